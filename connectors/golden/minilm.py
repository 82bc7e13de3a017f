"""Golden vectors of the text encoder, made by an independent program.

NumPy in float64. The tokenizer, the reader of safetensors and the forward pass are written from the
formats' descriptions and share nothing with the Rust code. Needs numpy alone:

    python connectors/golden/minilm.py FOLDER > connectors/golden/minilm.json

FOLDER holds all-MiniLM-L6-v2: model.safetensors, tokenizer.json and config.json.
"""

import hashlib
import json
import math
import re
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np

MAX_TOKENS = 256


def safetensors(data):
    """Name -> float64 array. A u64 length, a JSON header, then raw little-endian tensors."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    base = 8 + length
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        start, end = entry["data_offsets"]
        flat = np.frombuffer(data[base + start : base + end], dtype="<f4")
        tensors[name] = flat.astype(np.float64).reshape(entry["shape"])
    return tensors


def is_cjk(code):
    ranges = [
        (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
    ]  # fmt: skip
    return any(low <= code <= high for low, high in ranges)


def is_punctuation(char):
    code = ord(char)
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_symbol or unicodedata.category(char).startswith("P")


class WordPiece:
    def __init__(self, file):
        spec = json.loads(file)
        normalizer, model = spec["normalizer"], spec["model"]
        assert normalizer["type"] == "BertNormalizer"
        assert normalizer["clean_text"] and normalizer["handle_chinese_chars"] and normalizer["lowercase"]
        # Null means: as lowercase says.
        assert normalizer["strip_accents"] is None
        assert spec["pre_tokenizer"]["type"] == "BertPreTokenizer" and model["type"] == "WordPiece"
        self.vocab = model["vocab"]
        self.unknown = self.vocab[model["unk_token"]]
        self.prefix = model["continuing_subword_prefix"]
        self.longest = model["max_input_chars_per_word"]
        # Special tokens are found in the raw text, before it is normalised.
        self.special = {t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]}
        self.split = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")

    def normalise(self, text):
        out = []
        for char in text:
            code = ord(char)
            if char in "\t\n\r":
                out.append(" ")
            elif code in (0, 0xFFFD) or unicodedata.category(char).startswith("C"):
                continue
            elif char.isspace():
                out.append(" ")
            elif is_cjk(code):
                out.append(f" {char} ")
            else:
                out.append(char)
        text = unicodedata.normalize("NFD", "".join(out))
        return "".join(c for c in text if unicodedata.category(c) != "Mn").lower()

    def words(self, text):
        for chunk in text.split():
            word = ""
            for char in chunk:
                if is_punctuation(char):
                    if word:
                        yield word
                    yield char
                    word = ""
                else:
                    word += char
            if word:
                yield word

    def pieces(self, word):
        """The longest piece that fits, again and again; one unknown token if a rest fits nothing."""
        if len(word) > self.longest:
            return [self.unknown]
        ids, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = (self.prefix if start else "") + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unknown]
            ids.append(self.vocab[piece])
            start = end
        return ids

    def encode(self, text):
        ids = []
        for part in self.split.split(text):
            if part in self.special:
                ids.append(self.special[part])
            else:
                for word in self.words(self.normalise(part)):
                    ids += self.pieces(word)
        return [self.special["[CLS]"], *ids[: MAX_TOKENS - 2], self.special["[SEP]"]]


ERF = np.vectorize(math.erf)


class Bert:
    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors
        assert config["hidden_act"] == "gelu"

    def norm(self, x, name):
        mean = x.mean(axis=-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
        x = (x - mean) / np.sqrt(variance + self.config["layer_norm_eps"])
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def dense(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def attention(self, x, name):
        heads = self.config["num_attention_heads"]
        query, key, value = (self.dense(x, f"{name}.self.{part}") for part in ("query", "key", "value"))
        depth = query.shape[1] // heads
        out = np.empty_like(query)
        for head in range(heads):
            of = slice(head * depth, (head + 1) * depth)
            scores = query[:, of] @ key[:, of].T / math.sqrt(depth)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, of] = scores / scores.sum(axis=1, keepdims=True) @ value[:, of]
        return self.dense(out, f"{name}.output.dense")

    def states(self, ids):
        words = self.tensors["embeddings.word_embeddings.weight"][ids]
        places = self.tensors["embeddings.position_embeddings.weight"][: len(ids)]
        x = words + places + self.tensors["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for number in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            x = self.norm(x + self.attention(x, f"{layer}.attention"), f"{layer}.attention.output.LayerNorm")
            wide = self.dense(x, f"{layer}.intermediate.dense")
            wide = 0.5 * wide * (1 + ERF(wide / math.sqrt(2)))
            x = self.norm(x + self.dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x

    def vector(self, ids):
        mean = self.states(ids).mean(axis=0)
        return mean / np.linalg.norm(mean)


def long_text():
    """400 words: more tokens than count, so that the cut shows."""
    words = "the quiet lighthouse keeper repairs an unexpectedly complicated gramophone while storms gather".split()
    return " ".join(words[(i * i + 3 * i) % len(words)] + ("," if i % 9 == 4 else "") for i in range(400))


TEXTS = [
    "",
    " \t\n ",
    "title: The Matrix\ncreator: Lana Wachowski, Lilly Wachowski\ncategories: Action, Sci-Fi",
    "Amélie's CAFÉ — «déjà vu», naïve & Ångström; İstanbul, Straße, ﬁnale!",
    "I loved it 😀👩‍🚀, 10/10 🚀🚀 (don't miss it)",
    "千と千尋の神隠し is 宮崎 駿's film; 기생충 and Москва слезам не верит",
    "A mask [MASK] in the text, a [SEP] too, and [cls] which is none",
    "zero\u200bwidth\u00a0space\ufffd\x00control\x07 and " + "x" * 101 + " " + "antidisestablishmentarianism",
    "This viewer enjoys Film-Noir films such as Chinatown, because they are slow, dark and clever.",
    long_text(),
]


def main():
    folder = Path(sys.argv[1])
    weights = (folder / "model.safetensors").read_bytes()
    tokenizer = WordPiece((folder / "tokenizer.json").read_text(encoding="utf-8"))
    bert = Bert(json.loads((folder / "config.json").read_text()), safetensors(weights))
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text)
        vector = [round(float(x), 7) for x in bert.vector(ids)]
        cases.append({"text": text, "tokens": ids, "vector": vector})
    digest = hashlib.sha256(weights).hexdigest()
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    print(f'{{"model_sha256":"{digest}","cases":[\n{lines}\n]}}')


if __name__ == "__main__":
    main()

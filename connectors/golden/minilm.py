"""Sentence vectors of the encoder, computed without candle or tokenizers.

Reads `model.safetensors` and `tokenizer.json`, splits texts by its own WordPiece, runs BERT in
float64 and writes `minilm.json` beside this file. Needs NumPy:

    python3 connectors/golden/minilm.py [encoder folder]
"""

import json
import math
import os
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("ICTFLOW_MODELS", Path.home() / ".cache" / "ictflow"))
MAX_TOKENS = 256

TEXTS = [
    "title: Toy Story (1995)\ncategories: animation, children's, comedy",
    "title: GoldenEye (1995)\ncategories: action, adventure, thriller",
    "",
    "a",
    "Am\u00c9lie \u2013 na\u00efve caf\u00e9s, 12.5% more!",
    "\u5343\u3068\u5343\u5c0b\u306e\u795e\u96a0\u3057 (Spirited Away)",
    "popcorn \U0001f37f and tears \U0001f62d [SEP] [MASK]\u200b end",
    "This viewer enjoys comedy and mystery films such as The Glass Orchard because of their wit.\n"
    "Harbour of Foxes is a crime film. It suits viewers who want a tense tale of debts.",
    "antidisestablishmentarianism " + "x" * 101,
    "A long evening by the sea, told in small and patient scenes. " * 40,
]


def tensors(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    out = {}
    for name, info in header.items():
        if name != "__metadata__" and info["dtype"] == "F32":
            start, end = info["data_offsets"]
            values = np.frombuffer(data[8 + length + start : 8 + length + end], "<f4")
            out[name] = values.reshape(info["shape"]).astype(np.float64)
    return out


def is_cjk(char):
    point = ord(char)
    ranges = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)]
    ranges += [(0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]
    return any(low <= point <= high for low, high in ranges)


def is_punctuation(char):
    return 33 <= ord(char) <= 126 and not char.isalnum() or unicodedata.category(char).startswith("P")


def words(text):
    """BERT's uncased normaliser and pre-tokeniser."""
    clean = ""
    for char in text:
        if char in "\t\n\r" or unicodedata.category(char) == "Zs":
            clean += " "
        elif ord(char) == 0xFFFD or unicodedata.category(char).startswith("C"):
            continue
        else:
            clean += f" {char} " if is_cjk(char) else char
    plain = "".join(c for c in unicodedata.normalize("NFD", clean) if unicodedata.category(c) != "Mn").lower()
    spaced = "".join(f" {c} " if is_punctuation(c) else c for c in plain)
    return spaced.split()


def tokens(text, vocabulary):
    ids = []
    for word in words(text):
        pieces, at = [], 0
        while at < len(word) and len(word) <= 100:
            end = len(word)
            while end > at and ("##" if at else "") + word[at:end] not in vocabulary:
                end -= 1
            if end == at:
                break
            pieces.append(vocabulary[("##" if at else "") + word[at:end]])
            at = end
        ids += pieces if at == len(word) else [vocabulary["[UNK]"]]
    return [vocabulary["[CLS]"], *ids[: MAX_TOKENS - 2], vocabulary["[SEP]"]]


def norm(x, weights, name, epsilon):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weights[name + ".weight"] + weights[name + ".bias"]


def vector(ids, w, config):
    epsilon, heads = config["layer_norm_eps"], config["num_attention_heads"]
    count, width = len(ids), config["hidden_size"]
    gelu = lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    dense = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:count]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm", epsilon)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        split = lambda name: dense(x, at + "attention.self." + name).reshape(count, heads, -1).swapaxes(0, 1)
        q, k, v = split("query"), split("key"), split("value")
        scores = q @ k.swapaxes(1, 2) / math.sqrt(width // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(count, width)
        x = norm(x + dense(mixed, at + "attention.output.dense"), w, at + "attention.output.LayerNorm", epsilon)
        inner = gelu(dense(x, at + "intermediate.dense"))
        x = norm(x + dense(inner, at + "output.dense"), w, at + "output.LayerNorm", epsilon)
    mean = x.mean(0)
    return mean / np.sqrt((mean * mean).sum())


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE / "encoder"
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    weights = tensors(folder / "model.safetensors")
    out = []
    for text in TEXTS:
        ids = tokens(text, vocabulary)
        values = [round(float(v), 6) for v in vector(ids, weights, config)]
        out.append({"text": text, "tokens": ids, "vector": values})
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True, separators=(",", ":")) for entry in out)
    (Path(__file__).parent / "minilm.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

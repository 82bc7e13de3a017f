"""Logits and token ids of the LLM, computed without candle or tokenizers.

Reads the GGUF file, dequantises Q8_0 and Q4_1 itself, runs the LLaMA forward in float64 (rotary
angles rounded to float32, as every engine holds them) and writes `llm.json` beside this file. Needs
NumPy:

    python3 connectors/golden/llm.py [model.gguf]
"""

import json
import os
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("ICTFLOW_MODELS", Path.home() / ".cache" / "ictflow"))
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

MESSAGES = [
    ("system", "You describe films."),
    ("user", "title: Blue Harbour (1994)\nIt's 12 o'clock; what's new?"),
]
ANSWER = "Blue Harbour is a drama film. It suits viewers who want"
TEXTS = [
    "It's 1994, and they'll see 2001: A Space Odyssey!",
    "  two  blanks,\ttabs\n\nand lines ",
    "Am\u00e9lie \u2013 \u5343\u3068\u5343\u5c0b \U0001f3ac",
    "<|im_end|>\n<|im_start|>system",
    "x=3.14159 (50%)",
]


class Gguf:
    """A GGUF file: its metadata and where its tensors lie."""

    def __init__(self, path):
        self.data = memoryview(Path(path).read_bytes())
        self.at = 0
        assert self.bytes(4) == b"GGUF"
        assert self.number("I") == 3
        tensors, entries = self.number("Q"), self.number("Q")
        self.metadata = {}
        for _ in range(entries):
            key = self.text()
            self.metadata[key] = self.value(self.number("I"))
        self.tensors = {}
        for _ in range(tensors):
            name = self.text()
            shape = [self.number("Q") for _ in range(self.number("I"))][::-1]
            self.tensors[name] = (shape, self.number("I"), self.number("Q"))
        align = self.metadata.get("general.alignment", 32)
        self.start = (self.at + align - 1) // align * align

    def bytes(self, count):
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, kind):
        return struct.unpack("<" + kind, self.bytes(struct.calcsize(kind)))[0]

    def text(self):
        return self.bytes(self.number("Q")).decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            member, count = self.number("I"), self.number("Q")
            return [self.value(member) for _ in range(count)]
        return self.number(SCALARS[kind])

    def tensor(self, name):
        """A tensor in float32: F32, Q8_0 (f16 scale, 32 i8) or Q4_1 (f16 scale, f16 minimum, 32 nibbles)."""
        shape, kind, offset = self.tensors[name]
        count = int(np.prod(shape))
        raw = np.frombuffer(self.data, np.uint8, offset=self.start + offset, count=count // 32 * {0: 128, 8: 34, 3: 20}[kind])
        if kind == 0:
            return raw.view("<f4").reshape(shape)
        blocks = raw.reshape(count // 32, -1)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        if kind == 8:
            return (blocks[:, 2:].view(np.int8) * scale).reshape(shape)
        least = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        return (nibbles * scale + least).astype(np.float32).reshape(shape)


class Tokens:
    """GPT-2 byte-level BPE, numbers split into digits first."""

    def __init__(self, gguf):
        self.ids = {token: i for i, token in enumerate(gguf.metadata["tokenizer.ggml.tokens"])}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(gguf.metadata["tokenizer.ggml.merges"])}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        other = [b for b in range(256) if b not in plain]
        self.letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(other)}

    @staticmethod
    def kind(char):
        category = unicodedata.category(char)
        return "L" if category[0] == "L" else "N" if category[0] == "N" else " " if char.isspace() else "P"

    def words(self, text):
        """GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?P+|blanks before a blank|blanks."""
        at = 0
        while at < len(text):
            for ending in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
                if text.startswith(ending, at):
                    yield ending
                    at += len(ending)
                    break
            else:
                start = at
                lead = at + 1 if text[at] == " " and at + 1 < len(text) and self.kind(text[at + 1]) != " " else at
                kind = self.kind(text[lead])
                end = lead
                while end < len(text) and self.kind(text[end]) == kind:
                    end += 1
                # A run of blanks leaves its last one to the word that follows.
                if kind == " " and end < len(text) and end - start > 1:
                    end -= 1
                yield text[start:end]
                at = end

    def encode(self, text):
        pieces, run = [], ""
        for char in text:
            if self.kind(char) == "N":
                pieces += [run, char]
                run = ""
            else:
                run += char
        ids = []
        for piece in [*pieces, run]:
            for word in self.words(piece):
                parts = [self.letters[b] for b in word.encode()]
                while len(parts) > 1:
                    pairs = [(self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(zip(parts, parts[1:]))]
                    rank, i = min(pairs)
                    if rank == 1 << 30:
                        break
                    parts[i : i + 2] = [parts[i] + parts[i + 1]]
                ids += [self.ids[part] for part in parts]
        return ids

    def chat(self, messages, answer):
        """The chat template; a message's text never makes a control token."""
        ids = []
        for role, content in messages:
            ids += [self.ids["<|im_start|>"], *self.encode(f"{role}\n{content}"), self.ids["<|im_end|>"], *self.encode("\n")]
        return ids + [self.ids["<|im_start|>"], *self.encode(f"assistant\n{answer}")]


def norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def forward(gguf, ids):
    meta = gguf.metadata
    heads, kv = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    width, epsilon = meta["llama.rope.dimension_count"], meta["llama.attention.layer_norm_rms_epsilon"]
    base = meta["llama.rope.freq_base"]
    count = len(ids)
    angles = np.outer(np.arange(count), base ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    cos, sin = np.cos(angles, dtype=np.float64), np.sin(angles, dtype=np.float64)

    def rotate(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos[:, None] - odd * sin[:, None]
        out[..., 1::2] = even * sin[:, None] + odd * cos[:, None]
        return out

    embedding = gguf.tensor("token_embd.weight").astype(np.float64)
    x = embedding[ids]
    mask = np.triu(np.full((count, count), -np.inf), 1)
    for block in range(meta["llama.block_count"]):
        w = lambda name: gguf.tensor(f"blk.{block}.{name}.weight").astype(np.float64)
        y = norm(x, w("attn_norm"), epsilon)
        q = rotate((y @ w("attn_q").T).reshape(count, heads, width))
        k = rotate((y @ w("attn_k").T).reshape(count, kv, width))
        v = (y @ w("attn_v").T).reshape(count, kv, width)
        mixed = np.empty((count, heads, width))
        for head in range(heads):
            group = head // (heads // kv)
            scores = q[:, head] @ k[:, group].T / np.sqrt(width) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, group]
        x = x + mixed.reshape(count, -1) @ w("attn_output").T
        y = norm(x, w("ffn_norm"), epsilon)
        gate = y @ w("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w("ffn_up").T)) @ w("ffn_down").T
    return norm(x, gguf.tensor("output_norm.weight").astype(np.float64), epsilon) @ embedding.T


def main():
    gguf = Gguf(sys.argv[1] if len(sys.argv) > 1 else CACHE / "llm" / "model.gguf")
    tokens = Tokens(gguf)
    ids = tokens.chat(MESSAGES, ANSWER)
    logits = forward(gguf, ids)
    positions = []
    for position in range(len(ids)):
        row = logits[position]
        top = [int(i) for i in np.argsort(-row)[:8]]
        spread = [int(i) for i in range(position, len(row), len(row) // 8)][:8]
        positions.append({"at": position, "logits": [[i, round(float(row[i]), 5)] for i in top + spread]})
    out = {
        "messages": MESSAGES,
        "answer": ANSWER,
        "chat": ids,
        "texts": [{"text": text, "tokens": tokens.encode(text)} for text in TEXTS],
        "positions": positions,
    }
    lines = json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace('},{"at"', '},\n{"at"')
    (Path(__file__).parent / "llm.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()

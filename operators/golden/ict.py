"""Golden numbers of the ICT forward pass: an independent program in double precision.

    pip install numpy blake3
    python ict.py > ict.json

It shares no code with the Rust module. Weights and vectors are too large to commit, so both
programs compute them from the formula of `number` below; `ict.json` holds the cases (inputs by
their ids) and the outputs.

    number(stream, i) = mix(stream * 0x9E3779B97F4A7C15 + i)   (64-bit, wrapping)
    weight:  ((number >> 44) - 2^19) / 2^19 * scale, an exact f32; norms add 1; row 0 of hashed
             tables is zeros. The stream is seed * 1000 + the tensor's index in `tensors`.
    vector v, component i:  (number(5000 + v, i) >> 48) mod (2 a + 1) - a, an i16
"""

import json
import sys

import numpy as np
from blake3 import blake3

U64 = np.uint64


def mix(z):
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


def number(stream, count):
    start = U64(stream * 0x9E3779B97F4A7C15 % 2**64)
    return mix(start + np.arange(count, dtype=U64))


def ffn(d):
    return -(-int(2 * (2 * d) / 3) // 32) * 32


def tensors(s):
    """(name, shape, scale, kind) of every tensor, in the contract's order."""
    d, width = s["d"], s["text"]
    f = ffn(d)
    table, dense, bias = 0.25, 0.125, 0.0625
    yield "user.weight", (s["user_rows"], d), table, "hashed"
    yield "item.weight", (s["item_rows"], d), table, "hashed"
    yield "creator.weight", (s["creator_rows"], d), table, "hashed"
    yield "category.weight", (s["category_rows"], d), table, "hashed"
    yield "label.weight", (2, d), table, "plain"
    yield "text.0.weight", (256, width), 0.25, "plain"
    yield "text.0.bias", (256,), bias, "plain"
    yield "text.2.weight", (d, 256), dense, "plain"
    yield "text.2.bias", (d,), bias, "plain"
    yield "sample.0.weight", (128, 9 * d), dense, "plain"
    yield "sample.0.bias", (128,), bias, "plain"
    yield "sample.2.weight", (d, 128), dense, "plain"
    yield "sample.2.bias", (d,), bias, "plain"
    for layer in (0, 1):
        at = f"decoder.layers.{layer}."
        yield at + "attention_norm.weight", (d,), 0.25, "norm"
        for name in "qkvo":
            yield at + name + ".weight", (d, d), 0.5, "plain"
        yield at + "ffn_norm.weight", (d,), 0.25, "norm"
        yield at + "w1.weight", (f, d), 0.25, "plain"
        yield at + "w3.weight", (f, d), 0.25, "plain"
        yield at + "w2.weight", (d, f), 0.25, "plain"
    yield "decoder.norm.weight", (d,), 0.25, "norm"


def weights(s, tensors=tensors):
    made = {}
    for index, (name, shape, scale, kind) in enumerate(tensors(s)):
        count = int(np.prod(shape))
        ints = (number(s["seed"] * 1000 + index, count) >> U64(44)).astype(np.int64) - 2**19
        w = (ints / 2**19 * scale).reshape(shape)
        if kind == "norm":
            w = 1.0 + w
        if kind == "hashed":
            w[0] = 0.0
        assert np.array_equal(w, w.astype(np.float32))
        made[name] = w
    return made


def vector(s, v):
    a = s["amplitude"]
    return (number(5000 + v, s["text"]) >> U64(48)).astype(np.int64) % (2 * a + 1) - a


def row(table, ident, rows):
    framed = b"".join(len(p).to_bytes(4, "big") + p for p in (b"row", table.encode(), ident.encode()))
    return 1 + int.from_bytes(blake3(framed).digest()[:8], "big") % (rows - 1)


class Module:
    def __init__(self, s, items, tensors=tensors):
        self.s, self.items, self.w = s, items, weights(s, tensors)

    def embed(self, table, ident):
        return self.w[table + ".weight"][row(table, ident, self.s[table + "_rows"])]

    def net(self, name, x):
        h = np.maximum(self.w[name + ".0.weight"] @ x + self.w[name + ".0.bias"], 0.0)
        return self.w[name + ".2.weight"] @ h + self.w[name + ".2.bias"]

    def text(self, v):
        return self.net("text", v / 2**14)

    def mean(self, vectors):
        return np.mean(vectors, axis=0) if len(vectors) else np.zeros(self.s["d"])

    def sample(self, case):
        item = self.items[case["item"]]
        history = case["history"]
        known = [self.items[i] for i in history if i in self.items]
        seen = [vector(self.s, i["vector"]) for i in known if i["vector"] is not None]
        text = np.sum(seen, axis=0) / len(seen) if seen else np.zeros(self.s["text"])
        own = vector(self.s, item["vector"]) if item["vector"] is not None else np.zeros(self.s["text"])
        creator = item["creator"]
        f = np.concatenate([
            self.embed("user", case["user"]),
            self.embed("item", case["item"]),
            self.text(own),
            self.embed("creator", creator) if creator is not None else np.zeros(self.s["d"]),
            self.mean([self.embed("category", c) for c in item["categories"]]),
            self.mean([self.embed("item", i) for i in history]),
            self.text(text),
            self.mean([self.embed("creator", i["creator"]) for i in known if i["creator"] is not None]),
            self.mean([self.embed("category", c) for i in known for c in i["categories"]]),
        ])
        return self.net("sample", f)

    def rms(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * self.w[name + ".weight"]

    def rotate(self, x):
        """x is [positions, heads, width]: pairs as complex numbers, turned by their angle."""
        positions, _, width = x.shape
        angles = np.outer(np.arange(positions), 10000.0 ** (-np.arange(0, width, 2) / width))
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None, :]
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def decode(self, tokens):
        x = np.stack(tokens)
        length, d = x.shape
        width = d // 2
        for layer in (0, 1):
            at = f"decoder.layers.{layer}."
            n = self.rms(x, at + "attention_norm")
            q, k, v = ((n @ self.w[at + p + ".weight"].T).reshape(length, 2, width) for p in "qkv")
            q, k = self.rotate(q), self.rotate(k)
            logits = np.einsum("qhw,khw->hqk", q, k) / np.sqrt(width)
            logits = np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf)
            e = np.exp(logits - logits.max(axis=-1, keepdims=True))
            a = e / e.sum(axis=-1, keepdims=True)
            mixed = np.einsum("hqk,khw->qhw", a, v).reshape(length, d)
            x = x + mixed @ self.w[at + "o.weight"].T
            m = self.rms(x, at + "ffn_norm")
            gate = m @ self.w[at + "w1.weight"].T
            gate = gate / (1 + np.exp(-gate))
            x = x + (gate * (m @ self.w[at + "w3.weight"].T)) @ self.w[at + "w2.weight"].T
        return self.rms(x, "decoder.norm")[-1]

    def run(self, case):
        tokens = []
        for demonstration in case["demonstrations"]:
            tokens.append(self.sample(demonstration))
            tokens.append(self.text(vector(self.s, demonstration["cot"])))
            tokens.append(self.w["label.weight"][int(demonstration["positive"])])
        x = self.sample(case)
        return x, self.decode(tokens + [x])


SHAPES = {
    "usual": {"seed": 1, "d": 32, "text": 384, "amplitude": 1448,
              "user_rows": 101, "item_rows": 97, "creator_rows": 53, "category_rows": 31},
    "small": {"seed": 2, "d": 8, "text": 21, "amplitude": 6000,
              "user_rows": 2, "item_rows": 5, "creator_rows": 3, "category_rows": 7},
    "wide": {"seed": 3, "d": 44, "text": 100, "amplitude": 2800,
             "user_rows": 64, "item_rows": 1024, "creator_rows": 17, "category_rows": 16},
}

ITEMS = {
    "m1": {"creator": "Ann", "categories": ["Drama", "War"], "vector": 1},
    "m2": {"creator": None, "categories": ["Drama"], "vector": 2},
    "m3": {"creator": "Bob", "categories": [], "vector": 3},
    "m4": {"creator": "Zoë", "categories": ["Кино", "a/b", "War"], "vector": None},
    "m5": {"creator": None, "categories": [], "vector": 5},
    "m6": {"creator": "Ann", "categories": ["Comedy"], "vector": 6},
    "клип": {"creator": "Ünal", "categories": ["Short", "Comedy"], "vector": 7},
}


def demonstration(user, item, history, cot, positive):
    return {"user": user, "item": item, "history": history, "cot": cot, "positive": positive}


D1 = demonstration("u7", "m2", ["m1", "m3"], 101, True)
D2 = demonstration("u8", "m3", ["m6"], 102, False)
D3 = demonstration("u9", "клип", ["m2", "m2", "m4", "gone"], 103, True)
D4 = demonstration("u7", "m5", ["gone"], 104, False)
LONG = ["m1", "m2", "m3", "m4", "m5", "m6", "клип", "gone", "gone too", "m1"] * 2


def case(name, shape, user, item, history, demonstrations):
    return {"name": name, "shape": shape, "user": user, "item": item, "history": history,
            "demonstrations": demonstrations}


CASES = [
    case("no demonstration", "usual", "u1", "m1", ["m2", "m3"], []),
    case("no demonstration, no history", "usual", "u1", "m1", [], []),
    case("one demonstration", "usual", "u1", "m1", ["m2", "m3"], [D1]),
    case("two demonstrations", "usual", "u1", "m1", ["m2", "m3"], [D1, D2]),
    case("three demonstrations", "usual", "u1", "m1", ["m2", "m3"], [D3, D1, D2]),
    case("four demonstrations", "usual", "u1", "m1", ["m2", "m3"], [D1, D2, D3, D4]),
    case("four demonstrations, other order", "usual", "u1", "m1", ["m2", "m3"], [D4, D2, D3, D1]),
    case("four demonstrations, empty history", "usual", "u1", "m6", [], [D1, D2, D3, D4]),
    case("no creator", "usual", "u2", "m2", ["m1"], [D2, D1]),
    case("no creator, no category", "usual", "u2", "m5", ["m5", "m5"], [D2, D1]),
    case("item without a vector", "usual", "u2", "m4", ["m1"], [D2, D1]),
    case("history of missing items", "usual", "u3", "m1", ["gone", "gone too"], [D1, D4]),
    case("history without vectors", "usual", "u3", "m1", ["m4", "gone"], [D1, D4]),
    case("repeated items", "usual", "u4", "m3", ["m1", "m1", "m2", "m1"], [D3, D2, D1, D4]),
    case("long history", "usual", "пользователь", "клип", LONG, [D1, D2, D3, D4]),
    case("eight demonstrations", "usual", "u5", "m1", LONG, [D1, D2, D3, D4, D4, D3, D2, D1]),
    case("small, alone", "small", "u1", "m1", [], []),
    case("small", "small", "u1", "m1", LONG, [D1, D2, D3, D4]),
    case("wide, alone", "wide", "u1", "m1", ["m6"], []),
    case("wide", "wide", "u1", "клип", LONG, [D1, D2, D3, D4]),
]


def main():
    modules = {name: Module(s, ITEMS) for name, s in SHAPES.items()}
    lines = []
    for c in CASES:
        x, w = modules[c["shape"]].run(c)
        digits = lambda values: [float(f"{v:.9g}") for v in values]
        lines.append(json.dumps({**c, "x": digits(x), "vector": digits(w)}, ensure_ascii=False))
    out = sys.stdout
    out.write('{"shapes": ' + json.dumps(SHAPES) + ',\n"items": ' + json.dumps(ITEMS, ensure_ascii=False))
    out.write(',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()

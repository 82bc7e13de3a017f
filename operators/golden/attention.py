"""Golden numbers of attention over neighbours: an independent program in double precision.

    pip install numpy blake3
    python attention.py > attention.json

It shares no code with the Rust module. Tables, text net and sample token are those of `ict.py` beside
it; so is the formula of the weights, with the streams of this kind's own list of tensors. Keys and
values are made one by one, as the definition says them.
"""

import json
import sys

import ict
import numpy as np


def tensors(s):
    """(name, shape, scale, kind) of every tensor, in the contract's order."""
    d = s["d"]
    for tensor in ict.tensors(s):
        if not tensor[0].startswith(("label", "decoder")):
            yield tensor
    at = "attention."
    yield at + "user.weight", (64, d), 0.5, "plain"
    yield at + "item.weight", (64, 4 * d), 0.25, "plain"
    yield at + "label.weight", (2, 64), 0.25, "plain"
    yield at + "scalars.weight", (64, 3), 0.5, "plain"
    yield at + "bias", (64,), 0.0625, "plain"
    yield at + "source.weight", (2, 64), 0.25, "plain"
    yield at + "key.weight", (d, 64), 0.5, "plain"
    yield at + "value.weight", (d, 64), 0.5, "plain"
    yield at + "query.weight", (d, d), 0.5, "plain"
    yield at + "theta", (2,), 0.25, "norm"
    yield at + "phi", (2,), 0.5, "plain"
    yield at + "out.weight", (d, 2 * (d + 4)), 0.25, "plain"
    yield at + "out.bias", (d,), 0.0625, "plain"


def log2(x):
    power = x.bit_length() - 1
    return power + (x / 2**power - 1)


class Attention(ict.Module):
    def __init__(self, s, items):
        super().__init__(s, items, tensors)

    def part(self, ident):
        zeros = np.zeros(self.s["d"])
        item = self.items.get(ident, {"creator": None, "categories": [], "vector": None})
        v, creator = item["vector"], item["creator"]
        return np.concatenate([
            self.embed("item", ident),
            self.text(ict.vector(self.s, v) if v is not None else np.zeros(self.s["text"])),
            self.embed("creator", creator) if creator is not None else zeros,
            self.mean([self.embed("category", c) for c in item["categories"]]),
        ])

    def pool(self, source, x, neighbours):
        d, w = self.s["d"], {n[len("attention."):]: t for n, t in self.w.items() if n.startswith("attention.")}
        if not neighbours:
            return np.zeros(d + 4)
        query = w["query.weight"] @ x
        logits, values = [], []
        for n in neighbours:
            score, age, residual = n["score"] / 2**28, log2(1 + n["age"]) / 16, n["residual"] / 1024
            h = w["user.weight"] @ self.embed("user", n["user"]) + w["item.weight"] @ self.part(n["item"])
            h = h + w["label.weight"][int(n["positive"])] + w["source.weight"][source] + w["bias"]
            h = np.maximum(h + w["scalars.weight"] @ [score, age, residual], 0.0)
            logit = query @ (w["key.weight"] @ h) / np.sqrt(d)
            logits.append(logit + w["theta"][source] * score - w["phi"][source] * age)
            values.append(w["value.weight"] @ h)
        a = np.exp(np.array(logits) - max(logits))
        a /= a.sum()
        residuals = np.array([n["residual"] / 1024 for n in neighbours])
        labels = np.array([float(n["positive"]) for n in neighbours])
        scalars = [a @ residuals, a @ labels - 0.5, log2(1 + len(neighbours)) / 8, a @ a]
        return np.concatenate([a @ np.array(values), scalars])

    def run(self, case):
        x = self.sample(case)
        both = np.concatenate([self.pool(s, x, case[name]) for s, name in enumerate(SOURCES)])
        return x, self.w["attention.out.weight"] @ both + self.w["attention.out.bias"]


SOURCES = ["same_item", "same_user"]


def neighbour(user, item, positive, score, age, residual):
    return {"user": user, "item": item, "positive": positive, "score": score, "age": age, "residual": residual}


N1 = neighbour("u7", "m1", True, 2**27, 3, 512)
N2 = neighbour("u8", "m1", False, 2**26 + 12345, 40_000, -700)
N3 = neighbour("пользователь", "m1", True, -(2**25), 0, 1)
N4 = neighbour("u1", "m2", False, 2**28, 1_000_000, -1023)
N5 = neighbour("u1", "клип", True, 0, 7, 1023)
N6 = neighbour("u1", "m4", True, 99_999_999, 0, 300)
N7 = neighbour("u1", "gone", False, -(2**28), 2**40 + 1, -300)
MANY = [neighbour(f"u{n}", "m1", n % 3 == 0, (n - 5) * 2**24 + n, n * n, 100 * n - 800) for n in range(16)]
OWN = [neighbour("u1", f"m{1 + n % 6}", n % 2 == 0, n * 2**23 - n, 2**n, 1000 - 120 * n) for n in range(16)]


def case(name, shape, user, item, history, same_item, same_user):
    return {"name": name, "shape": shape, "user": user, "item": item, "history": history,
            "same_item": same_item, "same_user": same_user}


CASES = [
    case("no neighbour", "usual", "u1", "m1", ["m2", "m3"], [], []),
    case("one, same item", "usual", "u1", "m1", ["m2", "m3"], [N1], []),
    case("one, same user", "usual", "u1", "m1", ["m2", "m3"], [], [N4]),
    case("two and one", "usual", "u1", "m1", ["m2", "m3"], [N2, N1], [N5]),
    case("three and four", "usual", "u1", "m1", ["m2", "m3"], [N3, N2, N1], [N7, N4, N6, N5]),
    case("the other way round", "usual", "u1", "m1", ["m2", "m3"], [N7, N4, N6, N5], [N3, N2, N1]),
    case("the same twice", "usual", "u1", "m1", [], [N1, N1], [N4, N4]),
    case("full", "usual", "u1", "m1", ict.LONG, MANY, OWN),
    case("full, other query", "usual", "u9", "m5", ["gone"], MANY, OWN),
    case("small, alone", "small", "u1", "m1", [], [], []),
    case("small", "small", "u1", "m1", ict.LONG, [N3, N2, N1], [N7, N4, N6, N5]),
    case("wide", "wide", "u1", "клип", ict.LONG, MANY, [N7, N4, N6, N5]),
]


def main():
    modules = {name: Attention(s, ict.ITEMS) for name, s in ict.SHAPES.items()}
    lines = []
    for c in CASES:
        x, w = modules[c["shape"]].run(c)
        digits = lambda values: [float(f"{v:.9g}") for v in values]
        lines.append(json.dumps({**c, "x": digits(x), "vector": digits(w)}, ensure_ascii=False))
    out = sys.stdout
    out.write('{"shapes": ' + json.dumps(ict.SHAPES) + ',\n"items": ' + json.dumps(ict.ITEMS, ensure_ascii=False))
    out.write(',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()

"""Golden neighbours and votes: an independent program in plain integers.

    pip install blake3
    python neighbours.py > neighbours.json

It shares no code with the Rust modules. `neighbours.json` holds a small world (examples with the labels of
their histories, item vectors, their centre), its effective sketches at two times, and of every example the
neighbours and votes of both sources as of its time.
"""

import json
import math
import struct

from blake3 import blake3

RING, SELECTED, PERIOD, DELAY = 6, 4, 1_000, 250
WIDTH = 1_024


def frame(*parts):
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def hashed(table, id):
    return blake3(frame(b"sketch", table.encode(), id.encode())).digest(length=WIDTH // 8)


def signs(table, id):
    return [1 if hashed_byte >> bit & 1 else -1 for hashed_byte in hashed(table, id) for bit in range(8)]


def unit(x):
    n = math.isqrt(2**28 * sum(v * v for v in x))
    return [(2 * v * 2**28 + n) // (2 * n) for v in x] if n else [0] * len(x)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


class Random:
    """A small generator, so that the world doesn't depend on a library's."""

    def __init__(self, seed):
        self.state = seed

    def below(self, limit):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % limit


def world():
    random = Random(7)
    items = ["i0", "i1", "i2", "Ünïcode", "i4"]
    vectors = {item: [random.below(8001) - 4000 for _ in range(6)] for item in items if item != "i2"}
    centre = [random.below(2001) - 1000 for _ in range(6)]
    examples = []
    for n in range(48):
        history = [["positive", "negative", "none"][random.below(3)] for _ in range(random.below(21))]
        verdict = ["positive", "negative", "implicit"][random.below(3)]
        # Some at equal times, some at negative ones.
        event_time = 50 * random.below(120) - 500
        delay = {"implicit": 700}.get(verdict, [0, 0, 120][random.below(3)])
        examples.append(
            {
                "user": f"u{random.below(5)}",
                "item": items[random.below(5)],
                "event_time": event_time,
                "event_id": f"e{n:02}",
                "verdict": verdict,
                "label_time": event_time + delay,
                "history": history,
            }
        )
    for e in examples:
        positive, negative = e["history"].count("positive"), e["history"].count("negative")
        e["label"] = int(e["verdict"] == "positive")
        e["residual"] = 1024 * e["label"] - 1024 * (positive + 1) // (positive + negative + 2)
    return vectors, centre, examples


def sketch(examples, side, id, until):
    other = {"user": "item", "item": "user"}[side]
    total, any_of_it = [0] * WIDTH, False
    for e in examples:
        if e[side] == id and e["label_time"] < until:
            any_of_it = True
            total = [t + e["residual"] * s for t, s in zip(total, signs(other, e[other]))]
    return total if any_of_it else None


def newer(e):
    return (e["label_time"], e["event_time"], e["user"].encode(), e["event_id"].encode())


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def quotient(a, b):
    return f32(a / b) if b else 0.0


def selection(scored):
    best = sorted(scored, key=lambda s: (s[0], newer(s[1])))[-SELECTED:]
    n = len(best)
    sums = [n, 0, 0, 0, 0, 0]
    for score, e in best:
        w = min(max(2**14 + score // 2**14, 0), 2**15)
        w = w * w >> 15
        w = w * w >> 15
        for place, more in enumerate([e["label"], e["residual"], w, w * e["label"], w * e["residual"]]):
            sums[place + 1] += more
    _, y, r, w, wy, wr = sums
    numbers = [
        float(n),
        quotient(2 * y - n, 2 * n),
        quotient(r, 1024 * n),
        quotient(2 * wy - w, 2 * w),
        quotient(wr, 1024 * w),
    ]
    return {"neighbours": [[e["event_id"], score] for score, e in best], "votes": sums, "numbers": numbers}


def main():
    vectors, centre, examples = world()
    texts = {item: unit([x - m for x, m in zip(v, centre)]) for item, v in vectors.items()}
    rows = []
    for q in sorted(examples, key=lambda e: (e["event_time"], e["user"].encode(), e["event_id"].encode())):
        t = q["event_time"]
        until = t // PERIOD * PERIOD - DELAY
        known = sorted((e for e in examples if e["label_time"] + DELAY < t), key=newer)
        units = {}

        def effective(side, id):
            if (side, id) not in units:
                total = sketch(examples, side, id, until)
                units[side, id] = unit(total) if total else None
            return units[side, id]

        def cosine(a, b):
            return dot(a, b) if a and b else 0

        of_item = [e for e in known if e["item"] == q["item"]][-RING:]
        of_user = [e for e in known if e["user"] == q["user"]][-RING:]
        same_item = [
            (cosine(effective("user", q["user"]), effective("user", e["user"])), e)
            for e in of_item
            if e["user"] != q["user"]
        ]
        same_user = []
        for e in of_user:
            if e["item"] != q["item"]:
                sketches = cosine(effective("item", q["item"]), effective("item", e["item"]))
                same_user.append(((2 * sketches + cosine(texts.get(q["item"]), texts.get(e["item"]))) // 2, e))
        rows.append(
            {"event_id": q["event_id"], "same_item": selection(same_item), "same_user": selection(same_user)}
        )
    sketches = []
    for side, id, until in [("user", "u1", 2_000), ("user", "u3", 9_000), ("item", "i0", 9_000), ("item", "Ünïcode", 0)]:
        total = sketch(examples, side, id, until)
        sketches.append({"side": side, "id": id, "until": until, "sum": total, "unit": unit(total)})
    golden = {
        "signs": [[table, id, hashed(table, id).hex()] for table in ("user", "item") for id in ("u1", "Ünïcode", "")],
        "ring": RING,
        "selected": SELECTED,
        "sketch_period_ms": PERIOD,
        "label_delay_ms": DELAY,
        "centre": centre,
        "vectors": vectors,
        "examples": examples,
        "rows": rows,
        "sketches": sketches,
    }
    lists = {name: golden.pop(name) for name in ("signs", "examples", "rows", "sketches")}
    print(json.dumps(golden, ensure_ascii=False)[:-1] + ",")
    for place, (name, entries) in enumerate(lists.items()):
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
        print(f'"{name}": [\n{lines}\n]' + ("," if place + 1 < len(lists) else "}"))


main()

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

RING, SELECTED, PERIOD, DELAY, CENTRE = 6, 4, 1_000, 250, 448
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
        e["rate"] = 1024 * (positive + 1) // (positive + negative + 2)
    return vectors, centre, examples


def effective_of(examples, side, id, until):
    return [e for e in examples if e[side] == id and e["label_time"] < until]


def sketch(examples, side, id, until):
    other = {"user": "item", "item": "user"}[side]
    total = [0] * WIDTH
    for e in effective_of(examples, side, id, until):
        residual = 1024 * e["label"] - CENTRE
        total = [t + residual * s for t, s in zip(total, signs(other, e[other]))]
    return total


def rate(examples, side, id, until):
    labels = [e["label"] for e in effective_of(examples, side, id, until)]
    return 1024 * (sum(labels) + 1) // (len(labels) + 2)


def newer(e):
    return (e["label_time"], e["event_time"], e["user"].encode(), e["event_id"].encode())


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def quotient(a, b):
    return f32(a / b) if b else 0.0


def best(scored):
    return sorted(scored, key=lambda s: (s[0], newer(s[1])))[-SELECTED:]


def weight(score):
    x = min(max(2**14 + score // 2**14, 0), 2**15)
    x = x * x >> 15
    x = x * x >> 15
    return x * x


def votes(selected):
    """m, the sums of y, w and w (2y - 1)."""
    weights = [weight(score) for score, _ in selected]
    labels = [e["label"] for _, e in selected]
    return [len(selected), sum(labels), sum(weights), sum(w * (2 * y - 1) for w, y in zip(weights, labels))]


def main():
    vectors, centre, examples = world()
    texts = {item: unit([x - m for x, m in zip(v, centre)]) for item, v in vectors.items()}
    rows = []
    for q in sorted(examples, key=lambda e: (e["event_time"], e["user"].encode(), e["event_id"].encode())):
        t = q["event_time"]
        until = t // PERIOD * PERIOD - DELAY
        known = sorted((e for e in examples if e["label_time"] + DELAY < t), key=newer)

        def cosine(side, a, b):
            return dot(*(unit(sketch(examples, side, id, until)) for id in (a, b)))

        def text_cosine(a, b):
            return dot(texts[a], texts[b]) if a in texts and b in texts else 0

        of_item = [e for e in known if e["item"] == q["item"]][-RING:]
        of_item = [e for e in of_item if e["user"] != q["user"]]
        of_user = [e for e in known if e["user"] == q["user"]][-RING:]
        of_user = [e for e in of_user if e["item"] != q["item"]]
        same_item = best([(cosine("user", q["user"], e["user"]), e) for e in of_item])
        same_user = best(
            [((2 * cosine("item", q["item"], e["item"]) + text_cosine(q["item"], e["item"])) // 2, e) for e in of_user]
        )
        n, p = len(of_item), sum(e["label"] for e in of_item)
        item_votes = [n, p] + votes(same_item)
        d = [1024 * e["label"] - rate(examples, "item", e["item"], until) for _, e in same_user]
        user_votes = votes(same_user) + [sum(d), sum(weight(s[0]) * x for s, x in zip(same_user, d))]
        _, _, ma, ya, wa, la = item_votes
        mb, yb, wb, lb, db, wdb = user_votes
        numbers = [
            float(n),
            quotient(2 * p - n, 2 * (n + 2)),
            quotient(2 * ya - ma, 2 * ma),
            quotient(la, 2 * wa),
            float(mb),
            quotient(2 * yb - mb, 2 * mb),
            quotient(lb, 2 * wb),
            quotient(db, 1024 * mb),
            quotient(wdb, 1024 * wb),
        ]
        rows.append(
            {
                "event_id": q["event_id"],
                "same_item": [[e["event_id"], score] for score, e in same_item],
                "same_user": [[e["event_id"], score] for score, e in same_user],
                "item_votes": item_votes,
                "user_votes": user_votes,
                "numbers": numbers,
            }
        )
    sketches = []
    for side, id, until in [("user", "u1", 2_000), ("user", "u3", 9_000), ("item", "i0", 9_000), ("item", "Ünïcode", 0)]:
        total = sketch(examples, side, id, until)
        at = {"side": side, "id": id, "until": until, "rate": rate(examples, side, id, until)}
        sketches.append({**at, "sum": total, "unit": unit(total)})
    golden = {
        "signs": [[table, id, hashed(table, id).hex()] for table in ("user", "item") for id in ("u1", "Ünïcode", "")],
        "ring": RING,
        "selected": SELECTED,
        "sketch_period_ms": PERIOD,
        "label_centre": CENTRE,
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

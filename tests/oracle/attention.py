"""Attention over neighbours in float64: the vector of the kind `attention`."""

from typing import NamedTuple

import numpy as np

from ict import SCALE, attention_shapes, query_tokens
from neighbours import ATTENDED, ONE, rate

MINUTE = 60_000
SCORE_ONE = 2.0**28
NAMES = [name.removeprefix("attention.") for name in attention_shapes(4)]


class Reading(NamedTuple):
    """A neighbour as attention reads it, all in whole numbers."""

    user: str
    item: str
    label: int
    score: int  # in units of 2^-28
    age: int  # minutes
    residual: int  # in units of 1/1024


def log2(x):
    """The binary logarithm of whole numbers from 1 on, with straight lines between powers of two."""
    power = int(x).bit_length() - 1
    return power + (int(x) - 2**power) / 2**power


def residual(world, example):
    """A label less how often its user said yes, by the labels of the example's history."""
    words = [event.label for event in world.history(example)]
    return ONE * example.label - rate([int(word == "positive") for word in words if word != "none"])


def readings(world, neighbours):
    """By pair and source the nearest neighbours. Ages count from the newest label that the source selected."""
    labels, known = neighbours.labels, {}

    def read(selected):
        newest = max((labels[at].label_time for _, at in selected), default=0)
        rows = []
        for score, at in selected[-ATTENDED:]:
            e = labels[at]
            if at not in known:
                known[at] = residual(world, e)
            rows.append(Reading(e.user, e.item, e.label, score, (newest - e.label_time) // MINUTE, known[at]))
        return rows

    return [(read(sources.same_item), read(sources.same_user)) for sources in neighbours.sources]


def _item_part(ict, items, name):
    """What a sample reads of an item, which may be gone or without a vector."""
    item = items.get(name)
    alive = item is not None and item.exists
    vector = item.vector if alive and item.vector is not None else np.zeros(ict.width)
    return np.concatenate(
        [
            ict.embed("item", name),
            ict.text(vector / SCALE),
            ict.embed("creator", item.creator if alive else None),
            ict.mean_embedding("category", item.categories if alive else []),
        ]
    )


def vectors(ict, items, x, read):
    """Vectors [pairs, d] of query tokens with what is read of neighbours."""
    t = {name: ict.tensors[f"attention.{name}"] for name in NAMES}
    d = ict.d
    queries = x @ t["query.weight"].T
    users, parts = {}, {}

    def part(n):
        """What user and item of a neighbour give to its hidden values."""
        if n.user not in users:
            users[n.user] = t["user.weight"] @ ict.embed("user", n.user) + t["bias"]
        if n.item not in parts:
            parts[n.item] = t["item.weight"] @ _item_part(ict, items, n.item)
        return users[n.user] + parts[n.item]

    out = np.zeros((len(x), 2 * (d + 4)))
    for row, sources in enumerate(read):
        for source, rows in enumerate(sources):
            if not rows:
                continue
            label = np.array([n.label for n in rows])
            score = np.array([n.score for n in rows]) / SCORE_ONE
            age = np.array([log2(1 + n.age) for n in rows]) / 16
            rest = np.array([n.residual for n in rows]) / ONE
            h = np.stack([part(n) for n in rows]) + t["label.weight"][label] + t["source.weight"][source]
            h = np.maximum(h + np.stack([score, age, rest], axis=1) @ t["scalars.weight"].T, 0.0)
            logits = (h @ t["key.weight"].T) @ queries[row] / np.sqrt(d)
            logits = logits + t["theta"][source] * score - t["phi"][source] * age
            a = np.exp(logits - logits.max())
            a /= a.sum()
            values = a @ (h @ t["value.weight"].T)
            begin = source * (d + 4)
            out[row, begin : begin + d + 4] = [*values, a @ rest, a @ label - 0.5, log2(1 + len(rows)) / 8, a @ a]
    return out @ t["out.weight"].T + t["out.bias"]


def attend(ict, world, neighbours):
    """Vectors [pairs, d] of `world.pairs` with the neighbours that were selected."""
    if not world.pairs:
        return np.zeros((0, ict.d))
    return vectors(ict, world.items, query_tokens(ict, world), readings(world, neighbours))

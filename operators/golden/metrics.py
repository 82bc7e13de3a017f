"""Golden numbers of the ranking metrics and of the paired bootstrap: scikit-learn's.

    pip install numpy scikit-learn
    python metrics.py > metrics.json

It shares no code with the Rust module. Rows are made by both programs from a seed, so `metrics.json`
holds only what comes out. The draws are SplitMix64; a number below a bound is the high half of 32 bits
times the bound, drawn again where the low half is less than 2^32 mod bound. For each row, with `grid` a
power of two so that every score is an exact double:

    user  = below(users)
    a     = below(grid)                      score a = (a + 1/2) / grid
    b     = (a + below(grid)) // 2           score b = (b + 1/2) / grid
    label = below(4 grid) < grid + 2 a

A round of the bootstrap draws as many users as have rows, with replacement (one below(users) each, all
rounds from one stream of the case's `bootstrap.seed`); users are numbered by the order of those with rows.
A case `clamped` scores 0 and 1 instead, the label's value where b is even and the other where it is odd.
"""

import json

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

MASK = (1 << 64) - 1


class Draws:
    def __init__(self, seed):
        self.state = seed

    def bits(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, bound):
        while True:
            product = (self.bits() >> 32) * bound
            if product % 2**32 >= 2**32 % bound:
                return product >> 32


def rows(case):
    draws = Draws(case["seed"])
    users, a, b, labels = [], [], [], []
    for _ in range(case["rows"]):
        users.append(draws.below(case["users"]))
        first = draws.below(case["grid"])
        second = (first + draws.below(case["grid"])) // 2
        label = int(draws.below(4 * case["grid"]) < case["grid"] + 2 * first)
        if case.get("clamped"):
            a.append(float(label))
            b.append(float(label if second % 2 == 0 else 1 - label))
        else:
            a.append((first + 0.5) / case["grid"])
            b.append((second + 0.5) / case["grid"])
        labels.append(label)
    return np.array(users), np.array(labels), np.array(a), np.array(b)


def gauc(users, labels, scores, times):
    """(value, users that count, their rows, users with only positives, with only negatives)"""
    total, weight, count, ones, zeros = 0.0, 0, 0, [], []
    for user in np.unique(users):
        of = users == user
        if labels[of].all():
            ones.append(int(user))
        elif not labels[of].any():
            zeros.append(int(user))
        else:
            n = int(of.sum()) * times[user]
            total += n * roc_auc_score(labels[of], scores[of])
            weight += n
            count += 1
    return (total / weight if weight else None, count, weight, ones, zeros)


def figures(users, labels, scores):
    value, count, weight, ones, zeros = gauc(users, labels, scores, {u: 1 for u in users})
    return {
        "auc": roc_auc_score(labels, scores),
        "gauc": value,
        "gauc_users": count,
        "gauc_rows": weight,
        "only_positive": ones,
        "only_negative": zeros,
        "log_loss": log_loss(labels, scores),
    }


def bootstrap(case, users, labels, a, b):
    options = case["bootstrap"]
    there = np.unique(users)
    place = np.searchsorted(there, users)
    draws = Draws(options["seed"])
    found = {"auc": [], "gauc": [], "log_loss": []}
    for _ in range(options["rounds"]):
        drawn = np.zeros(len(there), dtype=int)
        for _ in there:
            drawn[draws.below(len(there))] += 1
        weights = drawn[place]
        times = dict(zip(there, drawn))
        if len(np.unique(labels[weights > 0])) == 2:
            found["auc"].append(
                roc_auc_score(labels, b, sample_weight=weights) - roc_auc_score(labels, a, sample_weight=weights)
            )
        pair = [gauc(users, labels, scores, times)[0] for scores in (a, b)]
        if None not in pair:
            found["gauc"].append(pair[1] - pair[0])
        found["log_loss"].append(
            log_loss(labels, b, sample_weight=weights) - log_loss(labels, a, sample_weight=weights)
        )
    outside = 50 * (1 - options["level"])
    return {
        name: {
            "low": float(np.percentile(values, outside)),
            "high": float(np.percentile(values, 100 - outside)),
            "rounds": len(values),
        }
        for name, values in found.items()
    }


CASES = [
    {"name": "ties", "seed": 1, "rows": 400, "users": 30, "grid": 16, "bootstrap": {"seed": 5, "rounds": 200, "level": 0.95}},
    {"name": "few ties", "seed": 2, "rows": 600, "users": 12, "grid": 65536, "bootstrap": {"seed": 6, "rounds": 100, "level": 0.9}},
    {"name": "many users", "seed": 3, "rows": 500, "users": 400, "grid": 1024, "bootstrap": {"seed": 7, "rounds": 50, "level": 0.5}},
    {"name": "few rows", "seed": 4, "rows": 6, "users": 4, "grid": 4, "bootstrap": {"seed": 8, "rounds": 100, "level": 0.95}},
    {"name": "clamped", "seed": 9, "rows": 100, "users": 5, "grid": 8, "clamped": True},
]


def main():
    out = []
    for case in CASES:
        users, labels, a, b = rows(case)
        case["a"] = figures(users, labels, a)
        case["b"] = figures(users, labels, b)
        case["rela_impr"] = ((case["b"]["auc"] - 0.5) / (case["a"]["auc"] - 0.5) - 1) * 100
        if "bootstrap" in case:
            case["bootstrap"].update(bootstrap(case, users, labels, a, b))
        out.append(case)
    print(json.dumps(out, indent=1))


main()

"""What labelled examples of the same item and of the same user say of every live pair, in exact integers.

Labels are all examples of the world, final ones too, in the order "newer": (label_time, event_time, user, event id).
A label is named by its place in that order, so the place decides between equal scores. Inner products go through
`exact_products`: float64 is exact there, and checked to be.
"""

from bisect import bisect_left
from collections import defaultdict
from math import isqrt
from typing import NamedTuple

import numpy as np

from framing import I64_MIN, SKETCH_WIDTH, neighbour_id, signs
from retrieval import exact_products

ONE = 1024  # what stands for 1 in rates, label centres and differences of the two
ATTENDED = 16  # how many neighbours of a source a vector of attention reads
SOURCES = ("same_item", "same_user")


def boundary(time, period):
    """The last multiple of the period at or before a time; the time itself for the period 0."""
    return max(time // period * period, I64_MIN) if period else time


def newer(example):
    """The order of labels, ids by bytes."""
    return (example.label_time, example.time, example.user.encode("utf-8"), example.id.encode("utf-8"))


def wrapped(sums):
    """Whole numbers modulo 2^32, read as i32."""
    low = np.asarray(sums, dtype=np.int64) & 0xFFFFFFFF
    return np.where(low >= 2**31, low - 2**32, low)


def unit(x):
    """The unit form of i32 numbers: with n = floor(sqrt(2^28 sum x^2)) each is floor((2^29 x + n) / 2n)."""
    x = np.asarray(x, dtype=np.int64)
    largest = int(np.abs(x).max(initial=0))
    if largest == 0:
        return np.zeros(len(x), dtype=np.int64)
    squares = int(x @ x) if largest**2 * len(x) < 2**63 else sum(int(v) ** 2 for v in x)
    n = isqrt(squares << 28)
    return np.floor_divide((x << 29) + n, 2 * n)


def rate(labels):
    """How often labels are positive, in 1/1024: one half where there is none."""
    return ONE * (sum(labels) + 1) // (len(labels) + 2)


def weights(scores):
    """The weights of scores, 0 to 2^30."""
    x = np.clip(2**14 + np.floor_divide(np.asarray(scores, dtype=np.int64), 2**14), 0, 2**15)
    for _ in range(2):
        x = np.floor_divide(x * x, 2**15)
    return x * x


def quotient(dividend, divisor):
    """A quotient rounded to f64 and then to f32; 0 where the divisor is. Both numbers are exact in f64."""
    return np.float32(dividend / divisor if divisor else 0.0)


def _columns(names):
    """A column for each distinct name, and the column of each name."""
    column = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return column, np.array([column[name] for name in names])


class Sources(NamedTuple):
    """Of one pair: by source the selected, [(score, label)] with the nearest last, and the nine votes as f32."""

    same_item: list
    same_user: list
    votes: list


class Neighbours:
    """The selections of all pairs of a world. `centre` is what the weights say of the catalog's mean text."""

    def __init__(self, world, centre):
        self.world, self.centre = world, np.asarray(centre, dtype=np.int64)
        config = world.config
        everything = sorted(world.examples, key=newer)
        times = [example.label_time for example in everything]
        self.boundary = boundary(world.clock, config.sketch_period)
        known, effective = bisect_left(times, world.clock), bisect_left(times, self.boundary)
        self.labels, self.hidden, self.effective = everything[:known], everything[known:], effective
        # Signs and unit forms are kept as float64, in which they are exact, so that products needn't convert them.
        self.signs = {}
        # By side and id the labels of its own, of all that are known and of those that sketches have.
        self.rings, self.sketched = defaultdict(list), defaultdict(list)
        for at, example in enumerate(self.labels):
            for owner in (("user", example.user), ("item", example.item)):
                self.rings[owner].append(at)
                if at < effective:
                    self.sketched[owner].append(at)
        self.units, self.texts, self.rates, self.ids = {}, {}, {}, {}
        self.sources = self._select()
        self._count()

    # --- what is compared -----------------------------------------------------------------------------------

    def _signs_of(self, table, name):
        if (table, name) not in self.signs:
            self.signs[table, name] = signs(table, name).astype(np.float64)
        return self.signs[table, name]

    def sketch(self, side, name):
        """The sum of the effective labels; None without any."""
        labels = [self.labels[at] for at in self.sketched.get((side, name), ())]
        if not labels:
            return None
        other, names = ("item", [e.item for e in labels]) if side == "user" else ("user", [e.user for e in labels])
        residuals = np.array([ONE * e.label - self.world.config.label_centre for e in labels], dtype=np.int64)
        rows = np.stack([self._signs_of(other, name) for name in names])
        return wrapped(exact_products(residuals[None], rows.T)[0])

    def unit_of(self, side, name):
        """The unit form of a sketch, zeros where there is none."""
        if (side, name) not in self.units:
            sketch = self.sketch(side, name)
            form = np.zeros(SKETCH_WIDTH) if sketch is None else unit(sketch)
            self.units[side, name] = form.astype(np.float64)
        return self.units[side, name]

    def text_of(self, item):
        """The unit form of an item's centred text, zeros where there is none."""
        if item not in self.texts:
            vector = self.world.vector_of(item)
            width = self.world.width or 0
            form = np.zeros(width) if vector is None else unit(vector - self.centre)
            self.texts[item] = form.astype(np.float64)
        return self.texts[item]

    def rate_of(self, item):
        """The rate of an item's effective labels."""
        if item not in self.rates:
            self.rates[item] = rate([self.labels[at].label for at in self.sketched.get(("item", item), ())])
        return self.rates[item]

    def ring(self, side, name):
        """The newest R known labels of a user or an item, oldest first."""
        return np.array(self.rings.get((side, name), ())[-self.world.config.ring :], dtype=np.int64)

    # --- selection ------------------------------------------------------------------------------------------

    def _products(self, form, names, others):
        """Inner products of the forms of names and of others."""
        return exact_products(np.stack([form(name) for name in names]), np.stack([form(name) for name in others]))

    def _user_scores(self, users, others):
        """How near users are to others."""
        return self._products(lambda user: self.unit_of("user", user), users, others)

    def _item_scores(self, items, others):
        """How near items are to others."""
        twice = 2 * self._products(lambda item: self.unit_of("item", item), items, others)
        twice += self._products(self.text_of, items, others)
        self.world.hits["same_user_rounded_down"] += int(np.sum((twice % 2 == 1) & (twice < 0)))
        return np.floor_divide(twice, 2)

    def _best(self, scores, ring, open_labels):
        """The M greatest by (score, newer) of the labels that are open, ascending."""
        at = np.flatnonzero(open_labels)
        # The ring is in the order of "newer", which a stable sort keeps for equal scores.
        at = at[np.argsort(scores[at], kind="stable")][-self.world.config.selected :]
        return [(int(scores[place]), int(ring[place])) for place in at]

    def _select(self):
        pairs, config, hits = self.world.pairs, self.world.config, self.world.hits
        by_item, by_user = defaultdict(list), defaultdict(list)
        for row, (user, item) in enumerate(pairs):
            by_item[item].append(row)
            by_user[user].append(row)
        same_item, same_user, counts = [[]] * len(pairs), [[]] * len(pairs), [(0, 0)] * len(pairs)
        for item, rows in by_item.items():
            ring = self.ring("item", item)
            if not len(ring):
                continue
            cut = len(self.rings["item", item]) > len(ring)
            hits["ring_of_item_cut"] += cut
            column, columns = _columns([self.labels[at].user for at in ring])
            scores = self._user_scores([pairs[row][0] for row in rows], column)[:, columns]
            labels = np.array([self.labels[at].label for at in ring])
            for row, own in zip(rows, scores):
                others = columns != column.get(pairs[row][0], -1)
                same_item[row] = self._best(own, ring, others)
                counts[row] = (int(others.sum()), int(labels[others].sum()))
                hits["own_label_left_out_of_same_item"] += not others.all()
                hits["ring_cut_before_own_were_left_out"] += cut and not others.all()
                hits["selection_of_same_item_cut"] += counts[row][0] > config.selected
        for user, rows in by_user.items():
            ring = self.ring("user", user)
            if not len(ring):
                continue
            hits["ring_of_user_cut"] += len(self.rings["user", user]) > len(ring)
            column, columns = _columns([self.labels[at].item for at in ring])
            scores = self._item_scores([pairs[row][1] for row in rows], column)[:, columns]
            for row, own in zip(rows, scores):
                others = columns != column.get(pairs[row][1], -1)
                same_user[row] = self._best(own, ring, others)
                hits["own_label_left_out_of_same_user"] += not others.all()
                hits["selection_of_same_user_cut"] += int(others.sum()) > config.selected
        return [Sources(a, b, self._votes(c, a, b)) for a, b, c in zip(same_item, same_user, counts)]

    def _votes(self, counts, same_item, same_user):
        n, p = counts
        m, y, w = self._summed(same_item)
        numbers = [quotient(n, 1), quotient(2 * p - n, 2 * (n + 2))]
        numbers += [quotient(2 * int(y.sum()) - m, 2 * m), quotient(int(w @ (2 * y - 1)), 2 * int(w.sum()))]
        m, y, w = self._summed(same_user)
        d = ONE * y - np.array([self.rate_of(self.labels[at].item) for _, at in same_user], dtype=np.int64)
        numbers += [quotient(m, 1)]
        numbers += [quotient(2 * int(y.sum()) - m, 2 * m), quotient(int(w @ (2 * y - 1)), 2 * int(w.sum()))]
        return numbers + [quotient(int(d.sum()), ONE * m), quotient(int(w @ d), ONE * int(w.sum()))]

    def _summed(self, selected):
        """How many were selected, their labels and weights."""
        labels = np.array([self.labels[at].label for _, at in selected], dtype=np.int64)
        return len(selected), labels, weights([score for score, _ in selected])

    def id_of(self, at):
        """The id under which features name a label."""
        if at not in self.ids:
            self.ids[at] = neighbour_id(*self.labels[at].identity)
        return self.ids[at]

    def published(self, row):
        """`neighbours` of a feature."""
        return [
            {
                "source": source,
                "id": self.id_of(at),
                "score": score,
                "label": self.labels[at].label,
            }
            for source, selected in zip(SOURCES, self.sources[row])
            for score, at in selected
        ]

    # --- hits -----------------------------------------------------------------------------------------------

    def _count(self):
        """How often each rule is hit."""
        world, hits = self.world, self.world.hits
        users, items = {user for user, _ in world.pairs}, {item for _, item in world.pairs}

        def concerned(example):
            return example.user in users or example.item in items

        hidden = [e.label_time for e in self.hidden if concerned(e)]
        hits["label_hidden_by_the_clock"] = len(hidden)
        hits["label_at_the_clock"] = hidden.count(world.clock)
        rings = [("item", item) for item in items] + [("user", user) for user in users]
        seen = sorted({int(at) for owner in rings for at in self.ring(*owner)})
        times = [self.labels[at].label_time for at in seen]
        hits["label_just_before_the_clock"] = times.count(world.clock - 1)
        hits["label_not_yet_effective"] = sum(at >= self.effective for at in seen)
        hits["label_at_the_boundary"] = times.count(self.boundary)
        hits["label_just_before_the_boundary"] = times.count(self.boundary - 1)
        hits["neighbour_corrected"] = sum(self.labels[at].identity in world.corrected for at in seen)
        hits["neighbour_retracted"] = sum(concerned(outcome) for outcome in world.retracted)
        hits["neighbour_erased"] = sum(map(self._would_stand, (e for e in world.erased_examples if e.item in items)))
        for (user, item), sources in zip(world.pairs, self.sources):
            self._count_pair(user, item, sources)

    def _would_stand(self, example):
        """Would the label of an erased user stand in the ring of its item?"""
        ring = self.ring("item", example.item)
        known = example.label_time < self.world.clock
        return known and (len(ring) < self.world.config.ring or newer(example) > newer(self.labels[ring[0]]))

    def _count_pair(self, user, item, sources):
        world, hits = self.world, self.world.hits
        for source, selected in zip(SOURCES, sources):
            hits[f"{source}_empty"] += not selected
            hits[f"{source}_beyond_what_attention_reads"] += len(selected) > ATTENDED
            examples = [self.labels[at] for _, at in selected]
            hits["neighbour_implicit"] += sum(e.implicit for e in examples)
            hits[f"{source}_of_negative_score"] += sum(score < 0 for score, _ in selected)
            side, own = ("user", user) if source == "same_item" else ("item", item)
            bare = (side, own) not in self.sketched
            hits[f"{source}_without_sketch"] += sum(bare or (side, getattr(e, side)) not in self.sketched for e in examples)
            for before, after in zip(selected, selected[1:]):
                if before[0] == after[0]:
                    orders = zip(ORDERS, newer(self.labels[before[1]]), newer(self.labels[after[1]]))
                    hits[next(word for word, a, b in orders if a != b)] += 1
        for _, at in sources.same_user:
            other = self.labels[at].item
            hits["same_user_without_text"] += world.vector_of(other) is None
            hits["same_user_item_gone"] += not world.exists(other)
            hits["same_user_rate_without_label"] += ("item", other) not in self.sketched


ORDERS = [f"newer_by_{field}" for field in ("label_time", "event_time", "user", "event_id")]

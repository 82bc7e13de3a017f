"""Exact scores and the top K of every live pair, in int64."""

from collections import Counter, defaultdict

import numpy as np

SHUT_OUT = np.iinfo(np.int64).min
CHUNK = 4_000


def exact_products(left, right):
    """left @ right.T in whole numbers. float64 is exact here: every partial sum stays below 2^53."""
    left = np.asarray(left, dtype=np.float64)
    right = np.asarray(right, dtype=np.float64)
    if left.size and right.size:
        bound = np.abs(left).sum(axis=1).max() * np.abs(right).max()
        if bound >= 2**53:
            raise OverflowError("a dot product may leave the exact range of float64")
    return (left @ right.T).astype(np.int64)


def history_scores(sums, counts, means):
    """floor(<sum, a_c> / n) for every user and demonstration, 0 for n = 0. Floor is div_euclid for n > 0."""
    return np.floor_divide(exact_products(sums, means), np.maximum(counts, 1)[:, None])


def choose(scores, labels, k):
    """Columns that each row uses, nearest last, for columns sorted ascending by (label_time, id).

    `scores` is int64 [rows, columns] with SHUT_OUT where a column may not be used. The rank of a column breaks
    ties, so one integer orders them all.
    """
    rows, columns = scores.shape
    if columns == 0:
        return [[] for _ in range(rows)], 0
    order = scores * columns + np.arange(columns)
    order[scores == SHUT_OUT] = SHUT_OUT
    best = {}
    for label in (0, 1):
        side = np.flatnonzero(labels == label)
        take = min(k, len(side))
        part = order[:, side]
        if take < len(side):
            at = np.argpartition(part, len(side) - take, axis=1)[:, len(side) - take :]
        else:
            at = np.broadcast_to(np.arange(len(side)), part.shape)
        values = np.take_along_axis(part, at, axis=1)
        by = np.argsort(values, axis=1)[:, ::-1]  # descending
        best[label] = (np.take_along_axis(values, by, axis=1), side[np.take_along_axis(at, by, axis=1)])
    chosen, filled = [], 0
    for row in range(rows):
        sides = {}
        for label, (values, at) in best.items():
            sides[label] = [(int(v), int(c)) for v, c in zip(values[row], at[row]) if v != SHUT_OUT]
        half = k // 2
        used = {label: side[:half] for label, side in sides.items()}
        for label, side in sides.items():
            free = k - sum(map(len, used.values()))
            if free and len(side) > len(used[label]):
                used[label] = side[: len(used[label]) + free]
                filled += 1
        chosen.append([column for _, column in sorted(used[0] + used[1])])
    return chosen, filled


def query_sums(world, users):
    """Per user: the sum of the vectors of the newest history, and how many entries have one."""
    sums = np.zeros((len(users), world.width), dtype=np.int64)
    counts = np.zeros(len(users), dtype=np.int64)
    for row, user in enumerate(users):
        newest = world.engagements.get(user, [])[-world.config.history :]
        known = [vector for event in newest if (vector := world.vector_of(event.item)) is not None]
        if known:
            sums[row] = np.sum(np.asarray(known, dtype=np.int64), axis=0)
            counts[row] = len(known)
        if len(known) < len(newest):
            world.hits["query_history_entry_skipped"] += 1
        if len({event.item for event in newest}) < len(newest):
            world.hits["query_history_with_repeated_item"] += 1
        if not newest:
            world.hits["query_without_history"] += 1
    return sums, counts


def retrieve(world, published=None):
    """For every pair of `world.pairs` the demonstrations used: [(index, score)], nearest last.

    `published` gives the columns that each pair's feature names, where a store of points searched: then these are
    used, with exact scores and in exact order. One that the pair may not use is left out, and so a difference.
    """
    hits = world.hits
    pairs, demonstrations, k = world.pairs, world.demonstrations, world.config.k
    if not pairs:
        return []
    if not demonstrations:
        hits["status_none"] += len(pairs)
        return [[] for _ in pairs]
    users = sorted({user for user, _ in pairs})
    items = sorted({item for _, item in pairs})
    user_row = {user: row for row, user in enumerate(users)}
    item_row = {item: row for row, item in enumerate(items)}
    sums, counts = query_sums(world, users)
    means = np.stack([d.mean for d in demonstrations])
    targets = np.stack([world.vector_of(d.example.item) for d in demonstrations])
    by_history = history_scores(sums, counts, means)
    by_item = exact_products(np.stack([world.vector_of(item) for item in items]), targets)
    labels = np.array([d.example.label for d in demonstrations])
    own = defaultdict(list)
    for column, d in enumerate(demonstrations):
        own[d.example.user, d.example.item].append(column)

    used = []
    for begin in range(0, len(pairs), CHUNK):
        part = pairs[begin : begin + CHUNK]
        scores = by_history[[user_row[user] for user, _ in part]] + by_item[[item_row[item] for _, item in part]]
        open_scores = scores.copy()
        shut = [row for row, pair in enumerate(part) if pair in own]
        for row in shut:
            open_scores[row, own[part[row]]] = SHUT_OUT
        chosen, filled = choose(open_scores, labels, k)
        if published is not None:
            exact, filled = chosen, 0
            chosen = [
                sorted((c for c in published[pair] if open_scores[row, c] != SHUT_OUT), key=lambda c: (scores[row, c], c))
                for row, pair in enumerate(part)
            ]
            hits["recall_of"] += sum(map(len, exact))
            hits["recalled"] += sum(len(set(a) & set(b)) for a, b in zip(exact, chosen))
        hits["quota_filled_from_other_side"] += filled
        if shut:
            greedy, _ = choose(scores[shut], labels, k)
            hits["own_demonstration_left_out"] += sum(
                chosen[row] != columns for row, columns in zip(shut, greedy)
            )
        used.extend([(c, int(scores[row, c])) for c in columns] for row, columns in enumerate(chosen))
    statuses = Counter(status(row, demonstrations, k) for row in used)
    for word, count in statuses.items():
        hits[f"status_{word}"] += count
    for row in used:
        for at, (column, score) in enumerate(row):
            hits["use_fresh" if demonstrations[column].fresh else "use_stale"] += 1
            if at and row[at - 1][1] == score:
                hits["equal_scores_in_one_feature"] += 1
                same = demonstrations[column].label_time == demonstrations[row[at - 1][0]].label_time
                hits["order_by_point_id" if same else "order_by_label_time"] += 1
    return used


def status(used, demonstrations, k):
    """none, partial, stale or full."""
    if not used:
        return "none"
    if len(used) < k:
        return "partial"
    return "full" if all(demonstrations[column].fresh for column, _ in used) else "stale"

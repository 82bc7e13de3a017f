"""The independent batch oracle: recomputes every output from the dumped logs and compares.

    python oracle.py verify --dumps DIR --wanted FILE --weights FILE [--min-features N] [--min-full SHARE]
                            [--require-hits N] [--except RULE,..]
    python oracle.py rules  --script FILE [--partitions N] [--config JSON] [--require-hits N] [--except RULE,..]

`verify` takes the folder of dumps, the program's wanted keys (one hex content key a line) and the ICT weights.
`rules` runs the same rules over a script of mutate.py without the program: it accepts, labels and pairs, with
no vectors and no answers, and counts how often each rule is hit.

Both print one JSON report. Exit code 0: no difference; 1: a difference, or a demand (`--min-features`,
`--min-full`, `--require-hits`) that isn't met; 2: the input itself can't be used.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

import logs as dumps
from framing import partition_of
from attention import attend
from ict import Ict, forward
from logs import BadDump
from neighbours import Neighbours
from retrieval import retrieve, status
from rules import HEX64, Config, World

ICT_TOLERANCE = 1e-5
LISTED = 20
# The labels of a history as features carry them.
LABEL_NUMBERS = {"positive": 1, "negative": 0, "none": -1}

# Every rule whose hits are counted: (name, what is counted). `--require-hits` goes over all of them.
RULES = {
    # accept
    "oversized": "interactions over max_record_bytes",
    "oversized_id": "interactions with an id over max_id_bytes",
    "unreadable": "interactions refused as unreadable",
    "unreadable_undecodable": "of those: bytes that don't decode",
    "unreadable_null_value": "of those: null value",
    "unreadable_unknown_kind": "of those: unknown kind",
    "unreadable_no_value": "of those: a missing or not finite value that the kind needs",
    "unreadable_empty_id": "of those: an empty user, item or event id",
    "unreadable_empty_impression_id": "of those: an impression id that is there but empty",
    "unreadable_null_key": "of those: null key",
    "unreadable_other_key": "of those: a key that isn't the user id",
    "unreadable_absurd_time": "of those: a time before the year 1900 or from 2200 on",
    "misrouted": "interactions on another partition than their key's",
    "future": "events beyond the record's timestamp + max_future_skew",
    "ahead_within_skew": "events after their record's timestamp, within the skew",
    "no_timestamp": "records without a timestamp, or with -1",
    "late": "events older than the maximum - lateness",
    "exactly_at_lateness": "events at just the maximum - lateness",
    "seen": "exact duplicates",
    "conflict": "duplicates with other fields",
    "window_full": "events beyond max_window_events",
    "accepted_out_of_order": "accepted events older than the partition maximum",
    "value_without_label": "events whose value gives no label (a play below 0.5)",
    "items_unreadable": "unreadable item records",
    "items_oversized": "item records over max_record_bytes",
    "items_oversized_id": "item records with a key over max_id_bytes",
    "item_kept_by_unreadable": "of those: on an item that exists and stays",
    "candidates_unreadable": "unreadable candidate records",
    "candidates_absurd_time": "sets computed before the year 1900 or from 2200 on",
    "candidates_oversized": "candidate records over max_record_bytes",
    "candidates_oversized_id": "sets with a user or an item id over max_id_bytes",
    "candidates_misrouted": "misrouted candidate records",
    "too_many_candidates": "candidate sets over the limit",
    "set_kept_by_too_many": "of those: on a user whose older set stays",
    "set_withdrawn": "sets replaced by null",
    "set_replaced": "sets replaced by another",
    "set_with_repeated_item": "live sets that name an item twice",
    # histories, labels
    "late_event_changed_a_history": "engagements that came after an example whose history has them",
    "history_truncated": "examples with more than L engagements before them",
    "engagement_at_the_same_time_left_out": "examples with an engagement at just their time",
    "label_positive": "positive examples",
    "label_explicit_negative": "explicit negatives",
    "label_implicit": "implicit negatives",
    "positive_beats_earlier_negative": "positives with an earlier negative on the same impression",
    "own_example": "outcomes without an impression",
    "impression_id_right": "outcomes whose impression id names a candidate",
    "impression_id_decides": "of those: it isn't the newest candidate",
    "impression_id_wrong": "outcomes whose impression id names no candidate although there are some",
    "double_impressions": "outcomes with several candidate impressions",
    "outcome_at_window_end": "outcomes at just impression + window",
    "late_outcome_after_implicit_label": "outcomes that came when their impression was an implicit negative already",
    "late_impression_took_an_outcome": "outcomes that came before their impression",
    "label_not_known_yet": "impressions still within their window at the head",
    # catalog
    "item_delete": "tombstones on items that exist",
    "rebirth": "items that come back after a tombstone",
    "text_edit": "edits that change the text",
    "attribute_only_edit": "edits that don't",
    "repeated_or_empty_category": "items at the head with a repeated or empty category",
    "vector_of_older_text": "items whose newest text has no vector and an older one has",
    "item_without_vector": "items that exist and have no vector",
    # pairs
    "pair_by_candidates": "live pairs by a candidate set",
    "pair_by_impression": "live pairs by an impression",
    "pair_blocked_by_outcome_set": "pairs of a standing set with a later outcome",
    "pair_blocked_by_outcome_impression": "young impressions with an outcome",
    "pair_without_item": "pairs whose item doesn't exist",
    "pair_waits_for_vector": "live pairs whose item has no vector",
    "expired_set": "sets older than pair_ttl",
    "expired_impression": "impressions without an outcome, older than pair_ttl",
    "null_candidate_set": "users whose set is withdrawn",
    # demonstrations
    "not_eligible_empty_history": "examples without a history",
    "not_eligible_hash": "examples that the stride leaves out",
    "not_eligible_ttl": "examples that hash rules in and age rules out",
    "not_eligible_no_item": "examples that only want for an item",
    "eligible_positive": "eligible positives",
    "eligible_explicit_negative": "eligible explicit negatives",
    "eligible_implicit_negative": "eligible implicit negatives",
    "content_key_shared": "eligible examples whose content key another one has too",
    "demonstration_fresh": "demonstrations with their own CoT",
    "demonstration_stale": "demonstrations with the fallback",
    "demonstration_absent_no_text": "eligible examples without a text that has a vector",
    "demonstration_absent_no_item_vector": "eligible examples with a text whose item has no vector",
    "demonstration_history_entry_skipped": "demonstrations with a history entry that has no vector",
    "demonstrations_over_limit": "demonstrations beyond max_demonstrations",
    "cot_failed": "content keys with a failure only",
    "cot_unusable": "unusable records of `cot`",
    "cot_tombstone": "tombstones of `cot`",
    "cot_without_vector": "CoT texts without a vector",
    "embedding_failed": "texts with a failure only",
    "embedding_unusable": "unusable records of `embeddings`",
    # features
    "status_none": "features without a demonstration",
    "status_partial": "features with fewer than K",
    "status_stale": "features with K, some stale",
    "status_full": "features with K fresh ones",
    "use_fresh": "fresh demonstrations used",
    "use_stale": "stale demonstrations used",
    "quota_filled_from_other_side": "features whose quota was filled from the other label",
    "own_demonstration_left_out": "features that lost a demonstration to the own-pair rule",
    "equal_scores_in_one_feature": "neighbours of equal score in one feature",
    "order_by_label_time": "of those: the label time decides their order",
    "order_by_point_id": "of those: only the point id does",
    "query_history_entry_skipped": "users whose newest history has an entry without a vector",
    "query_history_with_repeated_item": "users whose newest history names an item twice",
    "query_without_history": "users with pairs and no engagement",
    # neighbours: a label is of a pair's item or user; one that sources see stands in a ring
    "label_hidden_by_the_clock": "labels not before the clock",
    "label_at_the_clock": "of those: at just the clock",
    "label_just_before_the_clock": "labels in a ring, at just the clock - 1",
    "label_not_yet_effective": "labels in a ring that no sketch has yet",
    "label_at_the_boundary": "of those: at just the boundary",
    "label_just_before_the_boundary": "labels in a ring and in sketches, at just the boundary - 1",
    "ring_of_item_cut": "items with pairs and more than R labels",
    "ring_of_user_cut": "users with pairs and more than R labels",
    "own_label_left_out_of_same_item": "pairs whose item's ring has labels of the user",
    "ring_cut_before_own_were_left_out": "of those: the ring was cut, so an older label doesn't move up",
    "own_label_left_out_of_same_user": "pairs whose user's ring has labels on the item",
    "selection_of_same_item_cut": "pairs with more than M labels of others on the item",
    "selection_of_same_user_cut": "pairs with more than M labels of the user on other items",
    "same_item_empty": "features without a neighbour of the item",
    "same_user_empty": "features without a neighbour of the user",
    "same_item_beyond_what_attention_reads": "features with more than 16 of the item",
    "same_user_beyond_what_attention_reads": "features with more than 16 of the user",
    "same_item_without_sketch": "neighbours of the item where one of the two users has no sketch",
    "same_user_without_sketch": "neighbours of the user where one of the two items has no sketch",
    "same_user_without_text": "neighbours of the user on items without a vector",
    "same_user_item_gone": "of those: on items that don't exist",
    "same_user_rate_without_label": "neighbours of the user on items whose rate is one half for want of labels",
    "same_user_rounded_down": "items compared with an odd sum below zero, which is halved downwards",
    "same_item_of_negative_score": "neighbours of the item with a score below zero",
    "same_user_of_negative_score": "neighbours of the user with a score below zero",
    "neighbour_implicit": "neighbours with an implicit label",
    "neighbour_corrected": "labels in a ring that were implicit until a late outcome came",
    "neighbour_retracted": "labels that a late impression took from an outcome of its own",
    "newer_by_label_time": "neighbours of equal score: the label time decides",
    "newer_by_event_time": "of equal score and label time: the event time decides",
    "newer_by_user": "of equal times, too: the user decides",
    "newer_by_event_id": "of equal times and user: only the event id does",
    # erasures
    "erased_interaction": "interactions of users erased after them",
    "erased_set": "candidate sets of users erased after them",
    "neighbour_erased": "labels of the erased that would stand in the ring of a pair's item",
}

# Only a job that erased somebody hits these: elsewhere they are neither demanded nor reported.
NEEDS_ERASURES = ["erased_interaction", "erased_set", "neighbour_erased"]

# What `rules` can't hit: it has no answers and no vectors, so no pair with neighbours.
NEEDS_ANSWERS = [
    *[name for name in RULES if name.startswith(("label_hidden", "label_at", "label_just", "label_not_yet_e"))],
    *[name for name in RULES if name.startswith(("ring_", "own_label", "selection", "same_", "neighbour_", "newer_"))],
    "vector_of_older_text",
    "item_without_vector",
    "pair_waits_for_vector",
    *[name for name in RULES if name.startswith(("demonstration", "cot_", "embedding_", "status_", "use_"))],
    "quota_filled_from_other_side",
    "own_demonstration_left_out",
    "equal_scores_in_one_feature",
    "order_by_label_time",
    "order_by_point_id",
    "query_history_entry_skipped",
    "query_history_with_repeated_item",
    "query_without_history",
]


class Differences:
    """Differences by sort: all are counted, the first 20 of each are kept."""

    def __init__(self):
        self.counts = {}
        self.listed = {}

    def add(self, sort, what):
        self.counts[sort] = self.counts.get(sort, 0) + 1
        listed = self.listed.setdefault(sort, [])
        if len(listed) < LISTED:
            listed.append(what)

    def __bool__(self):
        return bool(self.counts)

    def __len__(self):
        return sum(self.counts.values())


# --- what has to be on the output topics ---------------------------------------------------------------------


def published_columns(world, actual):
    """By pair the live demonstrations that its feature on the topic names; one that isn't live is left out."""
    column = {d.id: at for at, d in enumerate(world.demonstrations)}
    named = {pair: actual.get(pair, {}).get("demonstrations", []) for pair in world.pairs}
    return {
        pair: {column[used["id"]] for used in row if used["id"] in column}
        for pair, row in named.items()
    }


def expected_features(world, weights, actual=None):
    """Values of `features` by (user, item).

    Where a store of points searches, which demonstrations a feature uses is read from `actual`, the topic. All the
    rest, their being live, scores, order, history and vector, is recomputed.
    """
    neighbours = Neighbours(world, weights.centre)
    if weights.kind == "attention":
        used = [[] for _ in world.pairs]
        vectors = attend(weights, world, neighbours)
    else:
        stored = world.config.search == "stored" and actual is not None
        used = retrieve(world, published_columns(world, actual) if stored else None)
        vectors = forward(weights, world, used)
    actives, k = world.actives, world.config.k
    out = {}
    for at, (pair, row, vector) in enumerate(zip(world.pairs, used, vectors)):
        user, item = pair
        newest = world.engagements.get(user, [])[-world.config.history :]
        out[pair] = {
            "user_id": user,
            "item_id": item,
            "ict": [float(x) for x in vector],
            "demonstrations": [
                {
                    "id": world.demonstrations[column].id,
                    "score": score,
                    "label": world.demonstrations[column].example.label,
                    "fresh": world.demonstrations[column].fresh,
                }
                for column, score in row
            ],
            "k": len(row),
            "history": [event.item for event in newest],
            "cot_status": status(row, world.demonstrations, k),
            "cot_created_at": min((world.demonstrations[column].created_at for column, _ in row), default=None),
            "ict_weights": actives["ict_weights"],
            "encoder": actives["encoder"],
            "prompt_version": actives["prompt_version"],
            "llm_model": actives["llm_model"],
            "event_time": newest[-1].time if newest else None,
            "votes": [float(number) for number in neighbours.sources[at].votes],
            "neighbours": neighbours.published(at),
            "vector_kind": weights.kind,
            "history_labels": [LABEL_NUMBERS[event.label] for event in newest],
        }
    return out


def expected_examples(world):
    """Values of `examples` by (user, event_time, event_id)."""
    return {
        (e.user, e.time, e.id): {
            "user_id": e.user,
            "event_time": e.time,
            "event_id": e.id,
            "item_id": e.item,
            "label": e.label,
            "implicit": e.implicit,
            "label_time": e.label_time,
            "history": [
                {"item_id": h.item, "kind": h.kind, "label": h.label, "event_time": h.time} for h in world.history(e)
            ],
        }
        for e in world.examples
    }


def key_hex(key, limit):
    """The key of a dead letter: hex text of the source's key bytes, cut to the limit, or null."""
    raw = dumps.key_bytes(key)
    return None if raw is None else raw[:limit].hex()


def expected_dead_letters(world):
    """Values of `dead_letters` by source position, without `payload`: that is compared by meaning."""
    out = {}
    for position, (record, reason) in world.dead.items():
        out[position] = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "stage": "accept",
            "reason": reason,
            "key": key_hex(record.key, world.config.max_record_bytes),
        }
    return out


# --- comparison ----------------------------------------------------------------------------------------------


def equal(a, b):
    """Equal with equal types, so that true isn't 1 and 1.0 isn't 1."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def compacted(records, topic, diff, users_partition=None):
    """The last record of each key, nulls removed. `users_partition` gives the partition that a user's records need."""
    newest, place = {}, {}
    for record in records:
        if not isinstance(record.key, list):
            diff.add(f"{topic}: unreadable key", {"position": record.position, "key": record.key})
            continue
        if record.undecodable is not None:
            diff.add(f"{topic}: undecodable value", {"position": record.position})
            continue
        key = tuple(record.key)
        if place.setdefault(key, record.partition) != record.partition:
            diff.add(f"{topic}: one key on two partitions", {"key": list(key)})
        if users_partition is not None and record.partition != users_partition(key[0]):
            diff.add(f"{topic}: on another partition than its user's", {"position": record.position, "key": list(key)})
        newest[key] = record.value
    return {key: value for key, value in newest.items() if value is not None}


def compare_keys(expected, actual, topic, diff):
    """Lists missing and extra outputs; gives the keys that both have."""
    for key in sorted(expected.keys() - actual.keys()):
        diff.add(f"{topic}: missing", list(key))
    for key in sorted(actual.keys() - expected.keys(), key=repr):
        diff.add(f"{topic}: extra", list(key))
    return sorted(expected.keys() & actual.keys())


def compare_fields(expected, actual, topic, key, diff):
    """Each field that differs is one difference."""
    for field in sorted(expected.keys() | actual.keys()):
        if field not in actual or field not in expected or not equal(expected[field], actual[field]):
            want, got = expected.get(field, "(no such field)"), actual.get(field, "(no such field)")
            diff.add(f"{topic}: {field}", {"key": list(key), "expected": want, "got": got})


def same_floats(want, got):
    """Is a list of numbers the wanted one to the bit, as f32? The decimal text is read back as that."""
    if not isinstance(got, list) or not all(type(x) in (int, float) for x in got):
        return False
    return np.array(got, dtype=np.float32).tobytes() == np.array(want, dtype=np.float32).tobytes()


def compare_features(expected, actual, diff):
    """Counts and the largest ICT error."""
    both = compare_keys(expected, actual, "features", diff)
    worst = 0.0
    demonstrations = neighbours = 0
    for key in both:
        want, got = dict(expected[key]), dict(actual[key])
        want_votes, got_votes = want.pop("votes"), got.pop("votes", "(no such field)")
        if not same_floats(want_votes, got_votes):
            diff.add("features: votes", {"key": list(key), "expected": want_votes, "got": got_votes})
        want_ict = np.array(want.pop("ict"))
        got_ict = got.pop("ict", None)
        error = np.inf
        if isinstance(got_ict, list) and len(got_ict) == len(want_ict) and all(
            isinstance(x, (int, float)) for x in got_ict
        ):
            # A feature holds f32: the decimal text is read back as that.
            error = float(np.max(np.abs(np.array(got_ict, dtype=np.float32).astype(np.float64) - want_ict)))
        if not error <= ICT_TOLERANCE:
            diff.add("features: ict", {"key": list(key), "error": error if np.isfinite(error) else "no vector"})
        if np.isfinite(error):
            worst = max(worst, error)
        compare_fields(want, got, "features", key, diff)
        demonstrations += len(want["demonstrations"])
        neighbours += len(want["neighbours"])
    return {
        "compared": len(both),
        "demonstrations": demonstrations,
        "neighbours": neighbours,
        "max_ict_error": worst,
    }


def compare_examples(expected, actual, diff):
    """How many were compared. What was served isn't: it depends on how epochs were cut."""
    both = compare_keys(expected, actual, "examples", diff)
    for key in both:
        got = {field: value for field, value in actual[key].items() if field != "served"}
        compare_fields(expected[key], got, "examples", key, diff)
    return len(both)


def payload_holds(record, topic, got, limit):
    """Is a dead letter's payload (hex or null) the source's value, as far as the limit goes with the key?"""
    room = max(0, limit - len(dumps.key_bytes(record.key) or b""))
    if record.source is not None:
        return got == record.source[: 2 * room]
    if record.value is None:
        return got is None
    if not isinstance(got, str):
        return False
    try:
        payload = bytes.fromhex(got)
        if len(payload) == room:  # cut, or just as long: as a producer of scripts writes it
            return payload[10:] == dumps.single_object(topic, record.value)[10:room]
        return dumps.decodes_to(topic, payload, record.value)
    except ValueError:
        return False


def compare_dead_letters(world, records, names, diff, check_payload=True):
    """The whole topic: each position once, in key and in value. `names`: our name by the topic's.

    What became of records of the erased was said before they were, if it was: nothing is expected of them.
    """
    expected = expected_dead_letters(world)
    actual, seen = {}, set()
    for record in records:
        value = record.value
        if not isinstance(record.key, list) or not isinstance(value, dict):
            diff.add("dead_letters: unreadable record", {"position": record.position})
            continue
        position = (value.get("topic"), value.get("partition"), value.get("offset"))
        if tuple(record.key) != position:
            diff.add("dead_letters: key isn't the position", {"key": record.key, "value": list(position)})
        if position in seen:
            diff.add("dead_letters: position comes twice", list(position))
        seen.add(position)
        if position not in world.silenced:
            actual[position] = value
    both = compare_keys(expected, actual, "dead_letters", diff)
    for position in both:
        got = dict(actual[position])
        payload = got.pop("payload", "(no such field)")
        compare_fields(expected[position], got, "dead_letters", position, diff)
        source = world.dead[position].record
        if check_payload and not payload_holds(
            source, names[source.topic], payload, world.config.max_record_bytes
        ):
            diff.add("dead_letters: payload", {"key": list(position), "got": str(payload)[:80]})
    return len(both)


HEADERS = ("ictflow-epoch", "ictflow-substep", "ictflow-published-at")
DECIMAL = re.compile(r"(0|[1-9][0-9]*)\Z")
# Epochs of a backfill are negative on its records, which stand below all that the job writes after a promote.
EPOCH = re.compile(r"(0|-?[1-9][0-9]*)\Z")


def check_headers(records, topic, last_epoch, diff):
    """Every output record carries its position and publish time as decimal text."""
    for record in records:
        for name in HEADERS:
            text = record.headers.get(name)
            form = EPOCH if name == "ictflow-epoch" else DECIMAL
            if not isinstance(text, str) or not form.match(text):
                diff.add(f"{topic}: header {name}", {"position": record.position, "got": text})
        text = record.headers.get("ictflow-epoch")
        if isinstance(text, str) and EPOCH.match(text) and int(text) > last_epoch:
            diff.add(f"{topic}: header of an epoch to come", {"position": record.position, "got": text})


def compare_wanted(expected, path, diff):
    """The program's wanted keys, as a set and each once."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    for line in lines:
        if not HEX64.match(line):
            raise BadDump(f"{path}: no content key: {line!r}")
    got = set(lines)
    if len(got) < len(lines):
        diff.add("wanted: a key comes twice", {"lines": len(lines), "keys": len(got)})
    for key in sorted(expected - got):
        diff.add("wanted: missing", key)
    for key in sorted(got - expected):
        diff.add("wanted: extra", key)
    return len(got & expected)


# --- the head ------------------------------------------------------------------------------------------------


def head(epochs, job=None):
    """The newest epoch record, the config text in force and who is erased below which offsets.

    For an equal epoch the lowest offset wins.
    """
    chosen = {}
    for record in epochs:
        value = record.value
        if value is None:
            raise BadDump(f"epochs: record at offset {record.offset} doesn't decode")
        if job is not None and value["job"] != job:
            continue
        if record.key != [value["job"], value["epoch"]]:
            raise BadDump(f"epochs: key {record.key!r} isn't (job, epoch) of its value")
        chosen.setdefault((value["job"], value["epoch"]), value)
    jobs = sorted({name for name, _ in chosen})
    if len(jobs) != 1:
        raise BadDump(f"epochs: one job is needed (--job), there are {jobs}")
    ordered = [chosen[at] for at in sorted(chosen)]
    configs = [value["config"] for value in ordered if value["config"] is not None]
    if not configs:
        raise BadDump("epochs: no record carries the config")
    erased = {}
    for erasure in (erasure for value in ordered for erasure in value.get("erasures") or []):
        below = erased.get(erasure["user"], (0, 0))
        erased[erasure["user"]] = (max(below[0], erasure["interactions"]), max(below[1], erasure["candidates"]))
    return ordered[-1], configs[-1], erased


def below(logs, ends):
    """The prefix of each input below the bounds, the partition counts, and our name by each topic's name."""
    prefix, counts, names = {}, {}, {}
    for name in dumps.INPUTS:
        topics = {record.topic for record in logs[name]} or {name}
        if len(topics) > 1:
            raise BadDump(f"{name}.jsonl holds several topics: {sorted(topics)}")
        topic = topics.pop()
        names[topic] = name
        bounds = ends.get(topic, ends.get(name))
        if bounds is None:
            if logs[name] or name in ("interactions", "items"):
                raise BadDump(f"the newest epoch record has no ends of {topic}")
            bounds = []
        for record in logs[name]:
            if record.partition >= len(bounds):
                raise BadDump(f"{topic} has a partition {record.partition}, the epoch record only {len(bounds)}")
        prefix[name] = [record for record in logs[name] if record.offset < bounds[record.partition]]
        counts[name] = len(bounds)
    return prefix, counts, names


def demands(hits, require, excepted):
    """Rules that are hit too rarely."""
    unknown = set(excepted) - set(RULES)
    if unknown:
        raise BadDump(f"--except names unknown rules: {sorted(unknown)}")
    return {name: hits[name] for name in RULES if hits[name] < require and name not in excepted}


def verify(args):
    """The whole comparison; gives the report."""
    started = time.monotonic()
    logs = dumps.read_folder(args.dumps)
    last, config_text, erased = head(logs["epochs"], args.job)
    config = Config(config_text)
    weights = Ict(args.weights)
    actives = last["actives"]
    diff = Differences()
    if config.digest != last["config_digest"]:
        diff.add("epochs: config_digest", {"expected": config.digest, "got": last["config_digest"]})
    if config.canonical != config_text:
        diff.add("epochs: config isn't canonical JSON", config_text)
    if weights.version != actives["ict_weights"]:
        diff.add("epochs: ict_weights", {"expected": weights.version, "got": actives["ict_weights"]})
    prefix, counts, names = below(logs, last["ends"])
    read = time.monotonic()
    world = World(prefix, counts, config, actives, erased)
    if list(world.maxima) != last["maxima"]:
        diff.add("epochs: maxima", {"expected": world.maxima, "got": last["maxima"]})
    if world.clock != last["clock"]:
        diff.add("epochs: clock", {"expected": world.clock, "got": last["clock"]})
    if world.width is not None and world.width != weights.width:
        raise BadDump(f"the weights take vectors of {weights.width}, the encoder gave {world.width}")

    def users_partition(user):
        return partition_of(user.encode("utf-8"), counts["interactions"], config.partitioner)

    published = compacted(logs["features"], "features", diff, users_partition)
    features = expected_features(world, weights, published)
    examples = expected_examples(world)
    computed = time.monotonic()
    for topic in dumps.OUTPUTS:
        check_headers(logs[topic], topic, last["epoch"], diff)
    result = compare_features(features, published, diff)
    compared = {
        "features": result["compared"],
        "demonstrations": result["demonstrations"],
        "neighbours": result["neighbours"],
        "examples": compare_examples(
            examples, compacted(logs["examples"], "examples", diff, users_partition), diff
        ),
        "dead_letters": compare_dead_letters(world, logs["dead_letters"], names, diff, not args.no_payload),
        "wanted": compare_wanted(world.wanted, args.wanted, diff),
    }
    full = sum(value["k"] == config.k for value in features.values())
    share = full / len(features) if features else 0.0
    unmet = []
    if compared["features"] < args.min_features:
        unmet.append(f"{compared['features']} features compared, --min-features {args.min_features}")
    if share < args.min_full:
        unmet.append(f"{share:.4f} of the features have all {config.k} demonstrations, --min-full {args.min_full}")
    without = [] if erased else NEEDS_ERASURES
    rare = demands(world.hits, args.require_hits, [*args.excepted, *without])
    if rare:
        unmet.append(f"rules hit fewer than {args.require_hits} times: {rare}")
    done = time.monotonic()
    return {
        "ok": not diff and not unmet,
        "epoch": last["epoch"],
        "clock": world.clock,
        "maxima": world.maxima,
        "compared": compared,
        "expected": {
            "features": len(features),
            "examples": len(examples),
            "dead_letters": len(world.dead),
            "wanted": len(world.wanted),
            "live_demonstrations": len(world.demonstrations),
        },
        "full_share": round(share, 6),
        "recall": world.hits["recalled"] / world.hits["recall_of"] if world.hits["recall_of"] else 1.0,
        "max_ict_error": result["max_ict_error"],
        "differences": len(diff),
        "difference_counts": diff.counts,
        "difference_examples": diff.listed,
        "unmet": unmet,
        "hits": {name: world.hits[name] for name in RULES if name not in without},
        "notes": dict(world.notes),
        "seconds": {
            "read": round(read - started, 2),
            "compute": round(computed - read, 2),
            "compare": round(done - computed, 2),
        },
    }


NO_ACTIVES = {"prompt_version": "", "llm_model": "", "parameters": "{}", "encoder": "", "ict_weights": ""}


def rules_only(args):
    """The rules over a script, without the program: what its accept, labels and pairs have to be."""
    started = time.monotonic()
    logs, counts = dumps.from_script(args.script, args.partitions)
    config = Config.default(**json.loads(args.config))
    world = World({**logs, "cot": [], "embeddings": []}, counts, config, NO_ACTIVES)
    without = [*NEEDS_ANSWERS, *NEEDS_ERASURES]
    rare = demands(world.hits, args.require_hits, [*args.excepted, *without])
    return {
        "ok": not rare,
        "records": {topic: len(records) for topic, records in logs.items()},
        "clock": world.clock,
        "maxima": world.maxima,
        "expected": {
            "examples": len(world.examples),
            "dead_letters": len(world.dead),
            "wanted": len(world.wanted),
            "live_pairs": world.hits["pair_live"],
        },
        "unmet": [f"rules hit fewer than {args.require_hits} times: {rare}"] if rare else [],
        "hits": {name: world.hits[name] for name in RULES if name not in without},
        "seconds": round(time.monotonic() - started, 2),
    }


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def names(text):
        return [name for name in text.split(",") if name]

    check = commands.add_parser("verify", help="compare dumps with a batch recomputation")
    check.add_argument("--dumps", required=True, help="folder with NAME.jsonl of every topic")
    check.add_argument("--wanted", required=True, help="the program's wanted content keys, one a line")
    check.add_argument("--weights", required=True, help="ICT weights (safetensors)")
    check.add_argument("--job", help="which job of `epochs`, if there are several")
    check.add_argument("--min-features", type=int, default=1, help="fail when fewer are compared (default 1)")
    check.add_argument("--min-full", type=float, default=0.0, help="fail when a smaller share has all K")
    check.add_argument("--no-payload", action="store_true", help="don't compare the payloads of dead letters")
    rules = commands.add_parser("rules", help="count how often a script hits each rule, without the program")
    rules.add_argument("--script", required=True, help="a script of mutate.py")
    rules.add_argument("--partitions", type=int, default=3)
    rules.add_argument("--config", default="{}", help="JSON of config values that differ from the defaults")
    for command in (check, rules):
        command.add_argument("--require-hits", type=int, default=0, metavar="N", help="fail on a rule hit less often")
        command.add_argument("--except", dest="excepted", type=names, default=[], metavar="RULE,..")
        command.add_argument("--report", help="also write the report to this file")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    try:
        report = verify(args) if args.command == "verify" else rules_only(args)
    except (BadDump, OSError, ValueError, KeyError) as error:
        print(f"oracle: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text)
    if args.report:
        Path(args.report).write_text(text + "\n", encoding="utf-8")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

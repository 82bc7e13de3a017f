"""The rules of the design §1 as one batch over finished logs.

`World` takes the prefix of every log, the semantic config and the actives, and holds everything that follows:
accepted events, dead letters, catalog, examples, wanted keys, demonstrations and live pairs. Nothing here is
incremental, and nothing is shared with the program under test.
"""

import json
import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from framing import (
    I64_MIN,
    canonical_json,
    content_key,
    digest,
    identity_number,
    item_text,
    normalise,
    partition_of,
    point_id,
    quantise,
    rounded_mean,
    text_digest,
)
from logs import record_size

HEX64 = re.compile(r"[0-9a-f]{64}\Z")

# Times are read from the year 1900, and below the year 2200.
EARLIEST = -2_208_988_800_000
LATEST = 7_258_118_400_000

CATEGORIES = 64
MINUTE = 60_000
DAY = 24 * 60 * MINUTE


def _kind(engagement="never", positive="never", negative="never", impression=False):
    return {"engagement": engagement, "impression": impression, "negative": negative, "positive": positive}


# The defaults as the design gives them, in the JSON of the config.
DEFAULT_CONFIG = {
    "attribution_window_ms": 30 * MINUTE,
    "cot_stride": {"positive": 10, "explicit_negative": 10, "implicit_negative": 10},
    "demonstration_ttl_ms": 30 * DAY,
    "demonstrations": 4,
    "history_length": 20,
    "kinds": {
        "click": _kind("always", "always"),
        "impression": _kind(impression=True),
        "like": _kind("always", "always"),
        "play": _kind({"from": "0.5"}, {"from": "0.5"}),
        "purchase": _kind("always", "always"),
        "rate": _kind("always", {"from": "4.0"}, {"below": "4.0"}),
        "skip": _kind(negative="always"),
    },
    "lateness_ms": 10 * MINUTE,
    "max_candidates": 1_000,
    "max_demonstrations": 100_000,
    "max_future_skew_ms": 5 * MINUTE,
    "max_id_bytes": 256,
    "max_live_pairs": 1_000_000,
    "max_record_bytes": 262_144,
    "max_window_events": 10_000,
    "pair_ttl_ms": DAY,
    "partitioner": "murmur2",
    "prompt_history": 10,
    "search": "exact",
}

# In the config only where it differs from this.
DEFAULT_NEIGHBOURS = {"label_centre": 512, "ring": 128, "selected": 32, "sketch_period_ms": 60 * MINUTE}


def _condition(text):
    """A test of a value from "always", "never", {"from": x} or {"below": x}; with it, whether it needs a value."""
    if text == "always":
        return (lambda value: True), False
    if text == "never":
        return (lambda value: False), False
    if isinstance(text, dict) and len(text) == 1:
        ((word, bound),) = text.items()
        bound = float(bound)
        if word == "from":
            return (lambda value: value >= bound), True
        if word == "below":
            return (lambda value: value < bound), True
    raise ValueError(f"a condition of unknown form: {text!r}")


class Kind:
    """What one kind of event means."""

    def __init__(self, row):
        self.impression = row["impression"]
        self.engagement, a = _condition(row["engagement"])
        self.positive, b = _condition(row["positive"])
        self.negative, c = _condition(row["negative"])
        self.needs_value = a or b or c

    def label(self, value):
        """positive, negative or none. An impression never has one."""
        if self.impression:
            return "none"
        if self.positive(value):
            return "positive"
        return "negative" if self.negative(value) else "none"

    def engages(self, value):
        """Does the event enter histories?"""
        return not self.impression and self.engagement(value)


class Config:
    """The semantic config, from its JSON text."""

    def __init__(self, text):
        raw = json.loads(text)
        neighbours = raw.pop("neighbours", DEFAULT_NEIGHBOURS)
        for got, expected, table in (
            (raw, DEFAULT_CONFIG, "the config"),
            (neighbours, DEFAULT_NEIGHBOURS, "the config's neighbours"),
        ):
            if set(got) != set(expected):
                raise ValueError(f"{table} has other keys: {sorted(set(got) ^ set(expected))}")
        self.text = text
        self.canonical = self.canonical_text({**raw, "neighbours": neighbours})
        self.ring = neighbours["ring"]
        self.selected = neighbours["selected"]
        self.sketch_period = neighbours["sketch_period_ms"]
        self.label_centre = neighbours["label_centre"]
        self.history = raw["history_length"]
        self.prompt_history = raw["prompt_history"]
        self.k = raw["demonstrations"]
        self.stride = raw["cot_stride"]
        self.lateness = raw["lateness_ms"]
        self.skew = raw["max_future_skew_ms"]
        self.window = raw["attribution_window_ms"]
        self.pair_ttl = raw["pair_ttl_ms"]
        self.demonstration_ttl = raw["demonstration_ttl_ms"]
        self.max_window_events = raw["max_window_events"]
        self.max_record_bytes = raw["max_record_bytes"]
        self.max_id_bytes = raw["max_id_bytes"]
        self.partitioner = raw["partitioner"]
        self.max_candidates = raw["max_candidates"]
        self.max_live_pairs = raw["max_live_pairs"]
        self.max_demonstrations = raw["max_demonstrations"]
        self.search = raw["search"]
        if self.search not in ("exact", "stored"):
            raise ValueError(f"the config has an unknown search: {self.search}")
        self.kinds = {name: Kind(row) for name, row in raw["kinds"].items()}

    @staticmethod
    def canonical_text(values):
        """The JSON text of a config: `neighbours` is left out where it is the default, and may be named in part."""
        neighbours = {**DEFAULT_NEIGHBOURS, **values.get("neighbours", {})}
        named = {} if neighbours == DEFAULT_NEIGHBOURS else {"neighbours": neighbours}
        return canonical_json({**{name: value for name, value in values.items() if name != "neighbours"}, **named})

    @classmethod
    def default(cls, **changes):
        """The defaults with some values changed."""
        return cls(cls.canonical_text({**DEFAULT_CONFIG, **changes}))

    @property
    def digest(self):
        """Hex digest of the config's text, domain `config`."""
        return digest("config", self.text).hex()


class Event(NamedTuple):
    """An accepted interaction. (time, id) leads, so that tuples sort in the order of events."""

    time: int
    id: str
    user: str
    item: str
    kind: str
    value: object
    impression_id: object
    label: str
    impression: bool
    engaged: bool
    offset: int
    before: int  # the partition maximum before it


class DeadLetter(NamedTuple):
    """An expected dead letter: its record and why it was refused."""

    record: object
    reason: str


class Example(NamedTuple):
    """A labelled example; `start` and `stop` cut its history out of the user's engagements."""

    user: str
    time: int
    id: str
    item: str
    label: int
    implicit: bool
    label_time: int
    start: int
    stop: int

    @property
    def identity(self):
        return self.user, self.time, self.id


class Item:
    """One item of the catalog: its newest readable record and the texts since its last tombstone."""

    def __init__(self):
        self.record = None
        self.digests = []  # newest first
        self.creator = None
        self.categories = []
        self.vector = None  # (rank of the text, quantised vector)
        self.was_deleted = False

    @property
    def exists(self):
        return self.record is not None


class Demonstration(NamedTuple):
    """A demonstration with what a score, an order and a token need."""

    label_time: int
    id: str
    example: Example
    fresh: bool
    created_at: int
    cot_vector: object
    mean: object


def decision(label):
    """The word of a 0/1 label in content keys and `cot`."""
    return "positive" if label == 1 else "negative"


def is_number(value):
    """A finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def plausible(time):
    """Is a producer's time one that is read?"""
    return EARLIEST <= time < LATEST


def bits(value):
    """A value by its bits, so that 0.0 and -0.0 differ."""
    return None if value is None else np.float64(value).tobytes()


class World:
    """Everything that follows from a prefix of the logs."""

    def __init__(self, logs, counts, config, actives, erased=None):
        """`logs`: records by topic below the bounds, in (partition, offset) order. `counts`: partitions by topic.

        `erased`: by user the offsets of `interactions` and `candidates` below which the user's records don't count.
        """
        self.erased = erased or {}
        self.silenced = set()  # positions of interactions of the erased
        self.config = config
        self.actives = actives
        self.partitioner = config.partitioner
        self.hits = Counter()
        self.notes = Counter()
        self.dead = {}
        self.maxima = [I64_MIN] * counts["interactions"]
        self.events = defaultdict(list)  # user -> accepted events
        self._accept_interactions(logs["interactions"], counts["interactions"])
        self.clock = max(self.maxima, default=I64_MIN)
        self.items = {}
        self._accept_items(logs["items"])
        self.sets = {}
        self._accept_candidates(logs["candidates"], counts.get("candidates") or 1)
        self.text_vectors = {}
        self.failed_texts = set()
        self._read_embeddings(logs["embeddings"])
        self._place_item_vectors()
        self.answers = {}
        self.failed_keys = set()
        self._read_cot(logs["cot"])
        self.examples = []
        self.engagements = {}
        self.newest_impression = {}
        self.newest_outcome = {}
        self.partition = {}
        self.corrected = set()  # identities of examples that were implicit negatives first
        self.retracted = []  # outcomes that were examples of their own until an impression came late
        for user in self.events:
            self._label_user(user)
        # Examples that there would be, had nobody been erased.
        self.erased_examples = []
        if self.erased:
            left = {example.identity for example in self.examples}
            whole = World(logs, counts, config, actives).examples
            self.erased_examples = [example for example in whole if example.identity not in left]
        self.eligible = []  # (example, content key)
        self._choose_eligible()
        self.wanted = {key.hex() for _, key in self.eligible}
        self.demonstrations = []
        self._place_demonstrations()
        self.pairs = []
        self._choose_pairs()

    # --- accept ---------------------------------------------------------------------------------------------

    def _refuse(self, record, reason, count_as=None):
        self.dead[(record.topic, record.partition, record.offset)] = DeadLetter(record, reason)
        self.hits[count_as or reason] += 1

    def _oversized(self, topic, record):
        return record_size(topic, record) > self.config.max_record_bytes

    def _long(self, *ids):
        """Is any of the ids that are there too long?"""
        return any(name is not None and len(name.encode("utf-8")) > self.config.max_id_bytes for name in ids)

    def _readable(self, record):
        """Why an interaction is unreadable, or None."""
        value = record.value
        if value is None:
            return "undecodable" if record.undecodable is not None else "null_value"
        kind = self.config.kinds.get(value["kind"])
        if kind is None:
            return "unknown_kind"
        if not value["user_id"] or not value["item_id"] or not value["event_id"]:
            return "empty_id"
        if value["impression_id"] == "":
            return "empty_impression_id"
        if kind.needs_value and not is_number(value["value"]):
            return "no_value"
        if record.key is None:
            return "null_key"
        if record.key != value["user_id"]:
            return "other_key"
        if not plausible(value["event_time"]):
            return "absurd_time"
        return None

    def _accept_interactions(self, records, count):
        config, hits = self.config, self.hits
        seen = {}
        times = defaultdict(list)
        misplaced = {}
        for record in records:
            if self._oversized("interactions", record):
                self._refuse(record, "oversized")
                continue
            why = self._readable(record)
            if why is not None:
                hits[f"unreadable_{why}"] += 1
                self._refuse(record, "unreadable")
                continue
            value, partition = record.value, record.partition
            if self._long(value["user_id"], value["item_id"], value["event_id"], value["impression_id"]):
                self._refuse(record, "oversized", "oversized_id")
                continue
            user, time = value["user_id"], value["event_time"]
            if user not in misplaced:
                misplaced[user] = partition_of(user.encode("utf-8"), count, self.partitioner)
            if misplaced[user] != partition:
                self._refuse(record, "misrouted")
                continue
            stamp = record.timestamp
            if stamp is None or stamp == -1:
                stamp = time
                hits["no_timestamp"] += 1
            if time > stamp + config.skew:
                self._refuse(record, "future")
                continue
            if time > stamp:
                hits["ahead_within_skew"] += 1
            before = self.maxima[partition]
            maximum = max(before, min(time, stamp))
            self.maxima[partition] = maximum
            if record.offset < self.erased.get(user, (0, 0))[0]:
                hits["erased_interaction"] += 1
                self.silenced.add((record.topic, record.partition, record.offset))
                continue
            bound = maximum - config.lateness
            if time < bound:
                self._refuse(record, "late")
                continue
            if time == bound:
                hits["exactly_at_lateness"] += 1
            identity = (user, time, value["event_id"])
            fields = (value["item_id"], value["kind"], bits(value["value"]), value["impression_id"])
            known = seen.get(identity)
            if known is not None:
                if known == fields:
                    hits["seen"] += 1
                else:
                    self._refuse(record, "conflict")
                continue
            mine = times[user]
            if len(mine) - bisect_left(mine, bound) + 1 > config.max_window_events:
                self._refuse(record, "window_full")
                continue
            insort(mine, time)
            seen[identity] = fields
            kind = config.kinds[value["kind"]]
            amount = value["value"] if kind.needs_value else 0.0
            if kind.needs_value and kind.label(amount) == "none":
                hits["value_without_label"] += 1
            if time < before:
                hits["accepted_out_of_order"] += 1
            self.events[user].append(
                Event(
                    time,
                    value["event_id"],
                    user,
                    value["item_id"],
                    value["kind"],
                    value["value"],
                    value["impression_id"],
                    kind.label(amount),
                    kind.impression,
                    kind.engages(amount),
                    record.offset,
                    before,
                )
            )
        hits["accepted"] = sum(map(len, self.events.values()))
        self._partitions = misplaced

    def _accept_items(self, records):
        place = {}
        for record in records:
            key = record.key
            if self._oversized("items", record):
                self._refuse(record, "oversized", "items_oversized")
                continue
            if not isinstance(key, str) or not key:
                self._refuse(record, "unreadable", "items_unreadable")
                continue
            if record.undecodable is not None:
                self._refuse(record, "unreadable", "items_unreadable")
                if key in self.items and self.items[key].exists:
                    self.hits["item_kept_by_unreadable"] += 1
                continue
            if self._long(key):
                self._refuse(record, "oversized", "items_oversized_id")
                continue
            if place.setdefault(key, record.partition) != record.partition:
                self.notes["items_on_two_partitions"] += 1
            item = self.items.setdefault(key, Item())
            if record.value is None:
                if item.exists:
                    self.hits["item_delete"] += 1
                item.record, item.digests, item.was_deleted = None, [], True
                continue
            new = text_digest(item_text(record.value))
            if item.exists:
                if new != item.digests[0]:
                    self.hits["text_edit"] += 1
                elif record.value != item.record:
                    self.hits["attribute_only_edit"] += 1
            elif item.was_deleted:
                self.hits["rebirth"] += 1
            item.record = record.value
            item.digests.insert(0, new)
        for item in self.items.values():
            if item.exists:
                item.creator = normalise(item.record["creator"] or "") or None
                named = (normalise(name) for name in item.record["categories"])
                categories = [name for name in dict.fromkeys(named) if name]
                if len(categories) < len(item.record["categories"]):
                    self.hits["repeated_or_empty_category"] += 1
                item.categories = categories[:CATEGORIES]

    def _accept_candidates(self, records, count):
        for record in records:
            key, value = record.key, record.value
            if self._oversized("candidates", record):
                self._refuse(record, "oversized", "candidates_oversized")
                continue
            unreadable = not isinstance(key, str) or not key or record.undecodable is not None
            if unreadable or (value is not None and "" in value["items"]):
                self._refuse(record, "unreadable", "candidates_unreadable")
                continue
            if value is not None and not plausible(value["computed_at"]):
                self._refuse(record, "unreadable", "candidates_absurd_time")
                continue
            if self._long(key, *(value["items"] if value is not None else ())):
                self._refuse(record, "oversized", "candidates_oversized_id")
                continue
            if partition_of(key.encode("utf-8"), count, self.partitioner) != record.partition:
                self._refuse(record, "misrouted", "candidates_misrouted")
                continue
            if value is not None and len(value["items"]) > self.config.max_candidates:
                self._refuse(record, "too_many_candidates")
                if self.sets.get(key):
                    self.hits["set_kept_by_too_many"] += 1
                continue
            if record.offset < self.erased.get(key, (0, 0))[1]:
                self.hits["erased_set"] += 1
                continue
            if self.sets.get(key):
                self.hits["set_withdrawn" if value is None else "set_replaced"] += 1
            self.sets[key] = value

    # --- internal logs --------------------------------------------------------------------------------------

    def _read_embeddings(self, records):
        standing = {}
        for record in records:
            if not isinstance(record.key, list):
                self.notes["embeddings_with_unreadable_key"] += 1
                continue
            key = tuple(record.key)
            if record.value is not None and self._usable_embedding(key, record.value):
                standing[key] = record.value
            else:
                if record.value is not None or record.undecodable is not None:
                    self.hits["embedding_unusable"] += 1
                standing.pop(key, None)
        for value in standing.values():
            if value["encoder"] != self.actives["encoder"]:
                continue
            if value["status"] == "ok":
                self.text_vectors[value["digest"]] = quantise(value["vector"])
            else:
                self.failed_texts.add(value["digest"])
        self.failed_texts -= set(self.text_vectors)
        self.hits["embedding_failed"] = len(self.failed_texts)
        widths = {len(vector) for vector in self.text_vectors.values()}
        if len(widths) > 1:
            raise ValueError(f"vectors of several widths under one encoder: {sorted(widths)}")
        self.width = widths.pop() if widths else None

    @staticmethod
    def _usable_embedding(key, value):
        if not HEX64.match(value["digest"]):
            return False
        if value["status"] == "failed":
            return key == (value["encoder"], "failed:" + value["digest"])
        if key != (value["encoder"], value["digest"]):
            return False
        numbers = [np.nan if x is None else x for x in value["vector"]]
        wide = np.asarray(numbers, dtype=np.float32).astype(np.float64)
        return bool(abs(np.sqrt(np.sum(wide * wide)) - 1.0) <= 1e-3)

    def _place_item_vectors(self):
        for item in self.items.values():
            if not item.exists:
                continue
            for rank, raw in enumerate(item.digests):
                vector = self.text_vectors.get(raw.hex())
                if vector is not None:
                    item.vector = vector
                    if raw != item.digests[0]:
                        self.hits["vector_of_older_text"] += 1
                    break
            else:
                self.hits["item_without_vector"] += 1

    def vector_of(self, name):
        """The vector of an item that exists and has one, else None."""
        item = self.items.get(name)
        return None if item is None else item.vector

    def exists(self, name):
        """Does an item exist now?"""
        item = self.items.get(name)
        return item is not None and item.exists

    def _read_cot(self, records):
        standing = {}
        for record in records:
            key = record.key
            if not isinstance(key, str):
                self.notes["cot_with_unreadable_key"] += 1
                continue
            if record.value is not None and self._usable_cot(key, record.value):
                standing[key] = (record.offset, record.value)
            else:
                if record.value is not None or record.undecodable is not None:
                    self.hits["cot_unusable"] += 1
                else:
                    self.hits["cot_tombstone"] += 1
                standing.pop(key, None)
        self.fallbacks = {}
        for key, (offset, value) in standing.items():
            if value["status"] == "failed":
                self.failed_keys.add(key.removeprefix("failed:"))
                continue
            vector = self.text_vectors.get(text_digest(value["text"]).hex())
            self.answers[key] = (value, vector)
            if vector is None:
                self.hits["cot_without_vector"] += 1
                continue
            slot = tuple(value[f] for f in ("user_id", "item_id", "decision", "prompt_version", "llm_model"))
            if slot not in self.fallbacks or self.fallbacks[slot][0] < offset:
                self.fallbacks[slot] = (offset, value, vector)
        self.hits["cot_failed"] = len(self.failed_keys - set(self.answers))

    @staticmethod
    def _usable_cot(key, value):
        failed = key.startswith("failed:")
        if not HEX64.match(key.removeprefix("failed:")):
            return False
        if value["status"] != ("failed" if failed else "ok"):
            return False
        if value["decision"] not in ("positive", "negative") or not value["user_id"] or not value["item_id"]:
            return False
        return failed or value["text"] != ""

    # --- events ---------------------------------------------------------------------------------------------

    def _label_user(self, user):
        config, hits = self.config, self.hits
        maximum = self.maxima[self._partitions[user]]
        events = sorted(self.events[user])
        engaged = [event for event in events if event.engaged]
        engaged_times = [event.time for event in engaged]
        self.engagements[user] = engaged

        impressions = defaultdict(list)
        for event in events:
            if event.impression:
                impressions[event.item].append(event)
        times = {item: [event.time for event in rows] for item, rows in impressions.items()}
        for item, rows in impressions.items():
            self.newest_impression[user, item] = rows[-1].time

        attributed = defaultdict(list)
        subjects = []  # (event, label, implicit, label_time)
        for outcome in events:
            if outcome.label == "none":
                continue
            self.newest_outcome[user, outcome.item] = outcome.time  # events are in time order
            rows = impressions.get(outcome.item, [])
            at = times.get(outcome.item, [])
            candidates = rows[bisect_left(at, outcome.time - config.window) : bisect_right(at, outcome.time)]
            was_own = all(row.offset > outcome.offset for row in candidates)
            if len(candidates) > 1:
                hits["double_impressions"] += 1
            if outcome.impression_id is not None and candidates:
                named = [row for row in candidates if row.id == outcome.impression_id]
                if named:
                    hits["impression_id_right"] += 1
                    if named[-1] is not candidates[-1]:
                        hits["impression_id_decides"] += 1
                    candidates = named
                else:
                    hits["impression_id_wrong"] += 1
            if not candidates:
                subjects.append((outcome, 1 if outcome.label == "positive" else 0, False, outcome.time))
                hits["own_example"] += 1
                continue
            chosen = candidates[-1]
            attributed[chosen.time, chosen.id].append(outcome)
            if outcome.time == chosen.time + config.window:
                hits["outcome_at_window_end"] += 1
            if outcome.before > chosen.time + config.window and outcome.offset > chosen.offset:
                hits["late_outcome_after_implicit_label"] += 1
                self.corrected.add((user, chosen.time, chosen.id))
            if chosen.offset > outcome.offset:
                hits["late_impression_took_an_outcome"] += 1
                if was_own:
                    self.retracted.append(outcome)

        for rows in impressions.values():
            for impression in rows:
                outcomes = attributed.get((impression.time, impression.id), [])
                positive = next((o for o in outcomes if o.label == "positive"), None)
                negative = next((o for o in outcomes if o.label == "negative"), None)
                due = impression.time + config.window
                if positive is not None:
                    subjects.append((impression, 1, False, positive.time))
                    if negative is not None and negative < positive:
                        hits["positive_beats_earlier_negative"] += 1
                elif negative is not None:
                    subjects.append((impression, 0, False, negative.time))
                elif maximum > due:
                    subjects.append((impression, 0, True, due))
                else:
                    hits["label_not_known_yet"] += 1

        changed = set()
        for event, label, implicit, label_time in subjects:
            stop = bisect_left(engaged_times, event.time)
            start = max(0, stop - config.history)
            if stop > config.history:
                hits["history_truncated"] += 1
            changed.update(at for at in range(start, stop) if engaged[at].offset > event.offset)
            if bisect_right(engaged_times, event.time) > stop:
                hits["engagement_at_the_same_time_left_out"] += 1
            word = "label_positive" if label else ("label_implicit" if implicit else "label_explicit_negative")
            hits[word] += 1
            self.examples.append(
                Example(user, event.time, event.id, event.item, label, implicit, label_time, start, stop)
            )
        hits["late_event_changed_a_history"] += len(changed)

    def history(self, example):
        """The engagements of an example's history, oldest first."""
        return self.engagements[example.user][example.start : example.stop]

    # --- demonstrations -------------------------------------------------------------------------------------

    def key_of(self, example, item_digest=None):
        """The raw content key of an example, by default for its item's newest text."""
        config, actives = self.config, self.actives
        newest = self.history(example)[-config.prompt_history :] if config.prompt_history else []
        return content_key(
            actives["prompt_version"],
            actives["llm_model"],
            actives["parameters"],
            example.user,
            example.item,
            self.items[example.item].digests[0] if item_digest is None else item_digest,
            decision(example.label),
            [(event.item, event.kind, event.label) for event in newest],
        )

    def _choose_eligible(self):
        config, hits = self.config, self.hits
        oldest = self.clock - config.demonstration_ttl
        for example in self.examples:
            if example.start == example.stop:
                hits["not_eligible_empty_history"] += 1
                continue
            sort = "positive" if example.label else (
                "implicit_negative" if example.implicit else "explicit_negative"
            )
            if identity_number(example.user, example.time, example.id) % config.stride[sort] != 0:
                hits["not_eligible_hash"] += 1
                continue
            if example.time < oldest:
                hits["not_eligible_ttl"] += 1
                continue
            if not self.exists(example.item):
                hits["not_eligible_no_item"] += 1
                continue
            hits[f"eligible_{sort}"] += 1
            self.eligible.append((example, self.key_of(example)))
        hits["content_key_shared"] = len(self.eligible) - len({key for _, key in self.eligible})

    def _place_demonstrations(self):
        hits, actives = self.hits, self.actives
        found = []
        for example, key in self.eligible:
            answer, vector = self.answers.get(key.hex(), (None, None))
            fresh = vector is not None
            if not fresh:
                slot = (
                    example.user,
                    example.item,
                    decision(example.label),
                    actives["prompt_version"],
                    actives["llm_model"],
                )
                _, answer, vector = self.fallbacks.get(slot, (None, None, None))
            if vector is None:
                hits["demonstration_absent_no_text"] += 1
                continue
            if self.vector_of(example.item) is None:
                hits["demonstration_absent_no_item_vector"] += 1
                continue
            known = [self.vector_of(event.item) for event in self.history(example)]
            vectors = [v for v in known if v is not None]
            if len(vectors) < len(known):
                hits["demonstration_history_entry_skipped"] += 1
            found.append(
                Demonstration(
                    example.label_time,
                    point_id(example.user, example.time, example.id, actives["prompt_version"]),
                    example,
                    fresh,
                    answer["created_at"],
                    vector,
                    rounded_mean(vectors, self.width),
                )
            )
        found.sort(key=lambda d: (d.label_time, d.id))
        cut = len(found) - self.config.max_demonstrations
        if cut > 0:
            hits["demonstrations_over_limit"] += cut
            found = found[cut:]
        self.demonstrations = found
        hits["demonstration_fresh"] = sum(d.fresh for d in found)
        hits["demonstration_stale"] = len(found) - hits["demonstration_fresh"]

    # --- pairs ----------------------------------------------------------------------------------------------

    def _choose_pairs(self):
        config, hits = self.config, self.hits
        by_set = set()
        for user, offered in self.sets.items():
            if offered is None:
                hits["null_candidate_set"] += 1
                continue
            computed_at = offered["computed_at"]
            if self.clock - computed_at > config.pair_ttl:
                hits["expired_set"] += 1
                continue
            distinct = dict.fromkeys(offered["items"])
            if len(distinct) < len(offered["items"]):
                hits["set_with_repeated_item"] += 1
            for item in distinct:
                if self.newest_outcome.get((user, item), I64_MIN) > computed_at:
                    hits["pair_blocked_by_outcome_set"] += 1
                else:
                    by_set.add((user, item))
        by_impression = set()
        for pair, time in self.newest_impression.items():
            answered = self.newest_outcome.get(pair)
            if answered is not None and answered >= time:
                if self.clock - time <= config.pair_ttl:
                    hits["pair_blocked_by_outcome_impression"] += 1
            elif self.clock - time > config.pair_ttl:
                hits["expired_impression"] += 1
            else:
                by_impression.add(pair)
        for pair in sorted(by_set | by_impression):
            if not self.exists(pair[1]):
                hits["pair_without_item"] += 1
                continue
            hits["pair_live"] += 1
            if pair in by_set:
                hits["pair_by_candidates"] += 1
            if pair in by_impression:
                hits["pair_by_impression"] += 1
            if self.vector_of(pair[1]) is None:
                hits["pair_waits_for_vector"] += 1
                continue
            self.pairs.append(pair)
        if hits["pair_live"] > config.max_live_pairs:
            raise ValueError(f"{hits['pair_live']} live pairs exceed max_live_pairs: the job had to stop")

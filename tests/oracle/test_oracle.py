"""Tests of the oracle: the golden bytes, the rules on hand-made logs, and faults planted in a consistent world."""

import contextlib
import io
import json
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

import framing
import ict as ict_module
import logs as dumps
import mutate
import oracle
import retrieval
import world as made_up
from conftest import SMALL, write_ratings
from logs import Record
from rules import DEFAULT_CONFIG, Config, World

GOLDEN = Path(__file__).parents[2] / "schemas" / "golden" / "keys.json"


# --- golden bytes --------------------------------------------------------------------------------------------


def expand(value):
    """{"long": {text, times}} is that text repeated."""
    if isinstance(value, dict) and "long" in value:
        return value["long"]["text"] * value["long"]["times"]
    if isinstance(value, dict):
        return {key: expand(member) for key, member in value.items()}
    return [expand(member) for member in value] if isinstance(value, list) else value


def golden_parts(given):
    parts = [bytes.fromhex(p["hex"]) if isinstance(p, dict) else p for p in given["parts"]]
    out = {"framed": framing.framed(*parts).hex()}
    raw = framing.digest(*parts)
    return out | {"digest": raw.hex(), "number": str(framing.number(raw))}


def golden_text(given):
    text = framing.item_text(given["item"])
    return {
        "text": text,
        "digest": framing.text_digest(text).hex(),
        "utf8_bytes": len(text.encode()),
        "ends": text[-20:],
    }


def golden_hash(given):
    raw = framing.digest("identity", *given["identity"])
    number = framing.identity_number(*given["identity"])
    return {"digest": raw.hex(), "number": str(number), "mod": {str(s): number % s for s in given["strides"]}}


def golden_key(given):
    parameters = framing.canonical_json(given["parameters"])
    item_digest = framing.text_digest(given["item_text"])
    key = framing.content_key(
        given["prompt_version"],
        given["llm_model"],
        parameters,
        given["user_id"],
        given["item_id"],
        item_digest,
        given["decision"],
        [(entry["item"], entry["kind"], entry["label"]) for entry in given["history"][-given["P"] :]],
    )
    return {"parameters": parameters, "item_digest": item_digest.hex(), "content_key": key.hex()}


def golden_point(given):
    return {
        "name": framing.framed(*given["identity"], given["prompt_version"]).hex(),
        "uuid": framing.point_id(*given["identity"], given["prompt_version"]),
    }


def golden_rows(given):
    number = framing.number(framing.digest("row", given["table"], given["id"]))
    rows = {str(n): framing.hashed_row(given["table"], given["id"], n) for n in given["rows"]}
    return {"number": str(number), "row": rows}


def golden_partition(given):
    raw = given["user_id"].encode()
    return {
        "utf8_bytes": len(raw),
        "murmur2_i32": framing.murmur2(raw),
        "partition": {str(n): framing.partition_of(raw, n) for n in given["counts"]},
    }


def golden_i16(given):
    return {"i16": framing.quantise(given["f32"]).tolist()}


def golden_mean(given):
    vectors = [vector for vector in given["vectors"] if vector is not None]
    return {"a_c": framing.rounded_mean(vectors, given["d"]).tolist()}


def golden_score(given):
    def tile(vector):
        return np.resize(np.array(vector, dtype=np.int64), given.get("width", len(vector)))

    known = [tile(v) for v in given["history"] if v is not None] * given.get("repeat", 1)
    sums = np.sum(known, axis=0) if known else np.zeros(len(tile(given["item"])), dtype=np.int64)
    history = retrieval.history_scores(sums[None], np.array([len(known)]), tile(given["a_c"])[None])
    item = retrieval.exact_products(tile(given["item"])[None], tile(given["b_c"])[None])
    return {"score": int((history + item)[0, 0])}


def golden_top(given):
    rows = sorted(given["demonstrations"], key=lambda row: (row["label_time"], bytes.fromhex(row["id"])))
    own = [row["user"] == given["user"] and row["item"] == given["item"] for row in rows]
    scores = np.array([[row["score"] for row in rows]], dtype=np.int64)
    scores[0, own] = retrieval.SHUT_OUT
    chosen, _ = retrieval.choose(scores, np.array([row["label"] for row in rows]), given["K"])
    return {"ids": [rows[column]["id"] for column in chosen[0]]}


GOLDEN_SORTS = {
    "digest": golden_parts,
    "topic key": golden_parts,
    "item text": golden_text,
    "example hash": golden_hash,
    "content key": golden_key,
    "point id": golden_point,
    "hashed rows": golden_rows,
    "partition": golden_partition,
    "i16": golden_i16,
    "a_c": golden_mean,
    "score": golden_score,
    "top-K": golden_top,
}


def golden_cases():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["name"][:60])
def test_golden(case):
    sort = case["name"].split(":")[0].split(" (")[0]
    got = GOLDEN_SORTS[sort](expand(case["input"]))
    expected = case["expected"]
    assert expected, "a golden case without an expectation proves nothing"
    assert {name: got[name] for name in expected} == expected


def test_every_golden_sort_is_there():
    sorts = {case["name"].split(":")[0].split(" (")[0] for case in golden_cases()}
    assert sorts == set(GOLDEN_SORTS)


def test_blanks_are_the_unicode_property():
    assert framing.normalise("a\u180eb\u200bc\u2060d") == "a\u180eb\u200bc\u2060d"
    for char in "\t\n\x0b\x0c\r\x1c\x1f \x7f\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000":
        assert framing.normalise(f" a{char}{char} b{char}") == "a b", hex(ord(char))


def test_own_default_config_is_as_designed():
    config = Config.default()
    assert (config.history, config.prompt_history, config.k) == (20, 10, 4)
    assert (config.lateness, config.skew, config.window) == (600_000, 300_000, 1_800_000)
    assert (config.pair_ttl, config.demonstration_ttl) == (86_400_000, 2_592_000_000)
    assert config.max_window_events == 10_000 and config.max_candidates == 1_000


# --- the rules on hand-made logs -----------------------------------------------------------------------------


M = 60_000
T = 1_000_000_000_000
ACTIVES = {**oracle.NO_ACTIVES, "prompt_version": "p", "llm_model": "m", "encoder": "e"}


class Logs:
    """A few records written by hand, on one partition."""

    def __init__(self):
        self.interactions, self.items, self.candidates = [], [], []

    def event(self, id, time, kind="click", item="a", user="u", value=None, names=None, stamp="time", **more):
        body = mutate.event(id, user, item, kind, time, value, names)
        stamp = time if stamp == "time" else stamp
        return self.add("interactions", more.get("key", user), body, stamp, more.get("partition", 0), more.get("raw"))

    def item(self, key="a", raw=None, **fields):
        return self.add("items", key, dumps.filled("items", fields), T, raw=raw)

    def gone(self, key="a"):
        return self.add("items", key, None, T)

    def set(self, user, computed_at, items):
        value = None if items is None else {"computed_at": computed_at, "items": items}
        return self.add("candidates", user, value, T)

    def add(self, topic, key, value, stamp, partition=0, raw=None):
        log = getattr(self, topic)
        offset = sum(record.partition == partition for record in log)
        log.append(Record(topic, partition, offset, stamp, key, {}, None if raw is not None else value, raw))
        return self

    def world(self, partitions=1, **changes):
        logs = {name: sorted(getattr(self, name), key=lambda r: r[1:3]) for name in ("interactions", "items", "candidates")}
        counts = {"interactions": partitions, "items": 1, "candidates": partitions}
        return World({**logs, "cot": [], "embeddings": []}, counts, Config.default(**changes), ACTIVES)


def reasons(world):
    return {position[2]: letter.reason for position, letter in world.dead.items() if position[0] == "interactions"}


def labels(world):
    return {e.id: (e.label, e.implicit, e.label_time) for e in world.examples}


def test_accept_in_order():
    logs = Logs()
    logs.event("e0", T)
    logs.event("e1", T + 5 * M + 1, stamp=T)  # 1: future; the maximum stays
    logs.event("e2", T + 5 * M, stamp=T)  # 2: within the skew; the maximum rises to the timestamp only
    logs.event("e3", T - 10 * M)  # 3: at just the lateness
    logs.event("e4", T - 10 * M - 1)  # 4: late
    logs.event("e0", T)  # 5: seen
    logs.event("e0", T, item="b")  # 6: conflict
    logs.event("e7", T, kind="play", value=0.0)
    logs.event("e7", T, kind="play", value=-0.0)  # 8: other bits
    logs.event("e9", T, stamp=None).event("e10", T, stamp=-1)
    world = logs.world()
    assert reasons(world) == {1: "future", 4: "late", 6: "conflict", 8: "conflict"}
    assert world.maxima == [T] and world.clock == T
    assert (world.hits["seen"], world.hits["accepted"], world.hits["no_timestamp"]) == (1, 6, 2)


def test_an_early_timestamp_holds_the_maximum_back():
    world = Logs().event("e0", T, stamp=T - M).event("e1", T - 11 * M).world()
    assert world.maxima == [T - M] and reasons(world) == {}


def test_unreadable_ones():
    logs = Logs()
    logs.event("x", T, raw="ff")
    logs.add("interactions", "u", None, T)
    logs.event("x", T, kind="view").event("", T).event("x", T, item="").event("x", T, user="", key="")
    logs.event("x", T, kind="rate").event("x", T, kind="play", value=float("nan"))
    logs.event("x", T, names="").event("x", T, key=None).event("x", T, key="v").event("x", T, key={"hex": "ff"})
    logs.event("x", T + 99 * M, kind="view", stamp=T + 99 * M)  # raises nothing
    logs.event("ok", T, value=float("nan"))  # a click needs no value
    world = logs.world()
    assert reasons(world) == {offset: "unreadable" for offset in range(13)}
    assert world.maxima == [T]


def test_unreadable_goes_before_misrouted_before_future():
    home = framing.partition_of(b"u", 2)
    logs = Logs()
    for at in (home, 1 - home):
        logs.event("e", T + 99 * M, kind="view", stamp=T, partition=at)
        logs.event("e", T + 99 * M, stamp=T, partition=at)
        logs.event("ok", T, partition=at)
    world = logs.world(partitions=2)
    got = {position[1:]: letter.reason for position, letter in world.dead.items()}
    assert got == {
        (home, 0): "unreadable",
        (home, 1): "future",
        (1 - home, 0): "unreadable",
        (1 - home, 1): "misrouted",
        (1 - home, 2): "misrouted",
    }
    assert world.maxima[home] == T and world.maxima[1 - home] == framing.I64_MIN


def test_times_are_read_from_1900_and_below_2200():
    logs = Logs()
    for time in (-(2**63), -2_208_988_800_001, 7_258_118_400_000, 2**63 - 1):
        logs.event("x", time)  # 0 to 3, each at its own timestamp
    logs.event("low", -2_208_988_800_000).event("e", T).event("high", 7_258_118_399_999, stamp=T)
    logs.set("u", 2**63 - 1, ["a"]).set("v", 7_258_118_399_999, ["a"])
    world = logs.world()
    assert reasons(world) == {**{offset: "unreadable" for offset in range(4)}, 6: "future"}
    assert world.maxima == [T] and world.hits["unreadable_absurd_time"] == 4
    assert world.hits["candidates_absurd_time"] == 1 and set(world.sets) == {"v"}


def test_sizes_at_the_limit_and_one_above():
    two = "\u00e9"  # two bytes
    logs = Logs()
    logs.event(5 * two, T).event(5 * two + "x", T)  # 1: an id of 11 bytes
    logs.event("a", T, names=5 * two).event("b", T, names=11 * "n")  # 3
    logs.event("", T, item=11 * "i")  # 4: unreadable goes first
    logs.event("c", T, kind="view", item=11 * "i")  # 5: as well
    logs.event("d", 2**63 - 1, item=11 * "i")  # 6: as well
    logs.event("x", T, raw="00" * 99).event("x", T, raw="00" * 100)  # with the key `u` 100 and 101 bytes
    logs.item(10 * "k", title="x").item(11 * "k", title="x").set("u", T, ["a", 10 * "i"]).set("u", T, ["a", 11 * "i"])
    world = logs.world(max_id_bytes=10, max_record_bytes=100)
    got = {position: letter.reason for position, letter in world.dead.items()}
    assert got == {
        **{("interactions", 0, offset): "oversized" for offset in (1, 3, 8)},
        **{("interactions", 0, offset): "unreadable" for offset in (4, 5, 6, 7)},
        ("items", 0, 1): "oversized",
        ("candidates", 0, 1): "oversized",
    }
    assert world.sets["u"]["items"] == ["a", 10 * "i"]
    letters = oracle.expected_dead_letters(world)
    assert letters["interactions", 0, 8]["key"] == b"u".hex()
    record = world.dead["interactions", 0, 8].record
    assert oracle.payload_holds(record, "interactions", "00" * 99, 100)
    assert not oracle.payload_holds(record, "interactions", "00" * 100, 100)


def test_crc32_places_records_elsewhere():
    user = next(f"u{n}" for n in range(99) if framing.partition_of(b"u%d" % n, 3) != zlib.crc32(b"u%d" % n) % 3)
    logs = Logs()
    for place in range(3):
        logs.event("e", T, user=user, key=user, partition=place)
    for partitioner, home in (("murmur2", framing.partition_of(user.encode(), 3)), ("crc32", zlib.crc32(user.encode()) % 3)):
        world = logs.world(partitions=3, partitioner=partitioner)
        assert {place: letter.reason for (_, place, _), letter in world.dead.items()} == {
            place: "misrouted" for place in range(3) if place != home
        }


def test_values_are_written_as_the_golden_ones():
    golden = json.loads((Path(__file__).parents[2] / "schemas/golden/values.json").read_text(encoding="utf-8"))
    for topic in ("interactions", "items", "candidates"):
        raw = bytes.fromhex(golden[f"{topic}.v1"])
        reader = dumps.Avro(raw[10:])
        assert dumps.single_object(topic, dumps.READERS[topic](reader))[10:] == raw[10:]
        assert reader.at == len(raw) - 10


def test_window_full_counts_itself_and_only_the_window():
    logs = Logs()
    logs.event("e0", T).event("e1", T + 10 * M).event("e2", T + 10 * M)  # e0 is at just the lateness
    logs.event("e3", T + 10 * M)  # 3: one too many
    logs.event("e3", T + 10 * M, item="z")  # 4: not a conflict, since e3 was never accepted; full as well
    logs.event("e4", T + 10 * M, user="v")  # another user
    logs.event("e5", T + 10 * M + 1)  # e0 has left the window
    assert reasons(logs.world(max_window_events=3)) == {3: "window_full", 4: "window_full"}


def test_labels_at_the_window_end_and_positive_first():
    logs = Logs()
    logs.event("i1", T, "impression").event("i2", T, "impression", "b").event("i3", T, "impression", "c")
    logs.event("s2", T + 1, "skip", "b")
    logs.event("r1", T + 30 * M, "rate", value=3.5)
    logs.event("r2", T + 30 * M, "rate", "b", value=4.0)
    logs.event("r3", T + 30 * M + 1, "rate", "c", value=5.0)
    assert labels(logs.world()) == {
        "i1": (0, False, T + 30 * M),
        "i2": (1, False, T + 30 * M),
        "i3": (0, True, T + 30 * M),
        "r3": (1, False, T + 30 * M + 1),
    }


def test_an_implicit_label_needs_the_maximum_beyond_the_window():
    logs = Logs().event("i1", T, "impression").event("x", T + 30 * M, item="b")
    assert "i1" not in labels(logs.world())
    assert labels(logs.event("y", T + 30 * M + 1, item="b").world())["i1"] == (0, True, T + 30 * M)


def test_attribution_by_id_or_newest():
    logs = Logs()
    logs.event("i1", T, "impression").event("i2", T + M, "impression").event("i3", T + M, "impression", "b")
    logs.event("c1", T + 2 * M, names="i1").event("s1", T + 2 * M, "skip", names="i3")
    got = labels(logs.world())
    assert got["i1"][:2] == (1, False) and got["i2"][:2] == (0, False)
    both = Logs().event("i2", T, "impression").event("i1", T, "impression").event("c", T, "click").world()
    assert "i1" not in labels(both) and labels(both)["i2"] == (1, False, T)  # the same time: the greater id


def test_an_impression_at_the_same_time_is_a_candidate_whatever_its_id():
    assert labels(Logs().event("a", T).event("z", T, "impression").world()) == {"z": (1, False, T)}


def test_history_is_strictly_before_and_newest_l():
    logs = Logs()
    for k in range(4):
        logs.event(f"c{k}", T + k, item=f"i{k}")
    logs.event("c9", T + 4, item="same").event("z", T + 4, "impression", "x").event("p", T + 4, "play", "x", value=0.1)
    logs.event("c", T + 5, item="x")
    world = logs.world(history_length=3, prompt_history=3)
    example = next(e for e in world.examples if e.id == "z")
    assert [event.item for event in world.history(example)] == ["i1", "i2", "i3"]
    assert world.hits["engagement_at_the_same_time_left_out"] >= 1


def test_catalog_keeps_the_last_readable_value():
    logs = Logs().item("a", title="A").item("a", raw="ff").item("b", title="B").gone("b").item("b", title="C")
    logs.item("", title="x").item("c", title="C").gone("c").item("c", raw="00").add("items", None, None, T)
    world = logs.world()
    assert world.exists("a") and world.exists("b") and not world.exists("c")
    assert world.items["b"].digests == [framing.text_digest("title: C")]
    assert sorted(position[2] for position in world.dead) == [1, 5, 8, 9]
    assert (world.hits["rebirth"], world.hits["item_delete"]) == (1, 2)


def test_pairs():
    logs = Logs().item("a", title="A").item("b", title="B")
    day = 24 * 60 * M
    logs.event("i", T - day, "impression", "b", "v").event("j", T - day - 1, "impression", "a", "v", stamp=T)
    logs.event("k", T - M, "impression", "b", "w").event("l", T, "click", "a", "u")
    logs.set("u", T - 1, ["a", "b", "b", "none"]).set("x", T - day - 1, ["a"]).set("y", T, ["a"]).set("y", T, None)
    logs.set("z", T - day, ["a"]).set("q", T, ["a"]).set("q", T, ["a"] * 1001)
    world = logs.world(lateness_ms=2 * day)
    live = {(user, item) for user, item in [("u", "b"), ("v", "b"), ("w", "b"), ("z", "a"), ("q", "a")]}
    assert world.hits["pair_live"] == len(live) == world.hits["pair_waits_for_vector"]
    assert world.hits["pair_blocked_by_outcome_set"] == 1 and world.hits["expired_set"] == 1
    assert world.hits["null_candidate_set"] == 1 and world.hits["too_many_candidates"] == 1
    assert world.hits["expired_impression"] == 1 and world.hits["pair_without_item"] == 1


def test_an_outcome_at_computed_at_does_not_block_but_one_at_the_impression_does():
    logs = Logs().item("a", title="A").event("c", T, "click").set("u", T, ["a"])
    assert logs.world().hits["pair_by_candidates"] == 1
    logs = Logs().item("a", title="A").event("i", T, "impression").event("c", T, "click")
    assert logs.world().hits["pair_live"] == 0


# --- choosing against a slow reference -----------------------------------------------------------------------


def slow_choice(scores, labels, k):
    """As the design says it, one row."""
    open_columns = [c for c, score in enumerate(scores) if score != retrieval.SHUT_OUT]
    nearest = sorted(open_columns, key=lambda c: (scores[c], c), reverse=True)
    sides = {label: [c for c in nearest if labels[c] == label] for label in (0, 1)}
    used = sides[0][: k // 2] + sides[1][: k // 2]
    rest = [c for c in nearest if c not in used]
    used += rest[: k - len(used)]
    return sorted(used, key=lambda c: (scores[c], c))


@pytest.mark.parametrize("seed", range(40))
def test_choice_agrees_with_the_slow_one(seed):
    dice = np.random.default_rng(seed)
    columns, k = int(dice.integers(0, 12)), int(dice.choice([2, 4, 6]))
    labels_of = (dice.random(columns) < dice.choice([0.1, 0.5, 0.9])).astype(np.int64)
    scores = dice.integers(-3, 4, size=(20, columns))
    scores[dice.random((20, columns)) < 0.1] = retrieval.SHUT_OUT
    chosen, _ = retrieval.choose(scores, labels_of, k)
    assert chosen == [slow_choice(list(row), labels_of, k) for row in scores]


# --- a made-up world, and faults in it -----------------------------------------------------------------------


@pytest.fixture
def dump(small, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(small[0], tmp_path / "dumps"))


def verify(folder, *more):
    """Exit code and report of the command."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    paths = ["--dumps", folder, "--wanted", folder / "wanted.txt", "--weights", folder / "weights.safetensors"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = oracle.main(["verify", *map(str, paths), "--report", str(report), *more])
    return code, json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


def change(folder, topic, edit):
    """Rewrites one dump: `edit` gets the rows and gives the new ones."""
    path = folder / f"{topic}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = edit(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def standing(rows):
    """The rows that are the last of their key and no tombstone."""
    last = {json.dumps(row["key"]): row for row in rows}
    return [row for row in last.values() if row["value"] is not None]


def test_a_consistent_world_has_no_difference(small):
    code, report = verify(small[0], "--min-features", "400", "--min-full", "0.9")
    assert (code, report["differences"], report["unmet"]) == (0, 0, [])
    compared = report["compared"]
    assert compared["examples"] > 2_000 and compared["dead_letters"] > 100 and compared["wanted"] > 200
    assert compared["demonstrations"] > 1_500 and compared["neighbours"] > 10_000 and report["max_ict_error"] < 1e-6
    rare = {"unreadable_undecodable", "no_timestamp", "demonstrations_over_limit", "status_none", "status_partial"}
    # Few items have as many labels as a ring, and every item that somebody labelled has a sketch.
    rare |= {"ring_of_item_cut", "ring_of_user_cut", "ring_cut_before_own_were_left_out"}
    rare |= {"quota_filled_from_other_side", "candidates_misrouted", "set_with_repeated_item"}
    assert not [name for name, hits in report["hits"].items() if hits == 0 and name not in rare]


# --- a store of points searches ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stored(small, tmp_path_factory):
    """The same world where a store of points searches."""
    folder = tmp_path_factory.mktemp("stored") / "dumps"
    script = small[0].parent / "script.jsonl"
    world = made_up.make(script, folder, seed=3, width=24, pool=60, search="stored", **SMALL)
    return folder, world


def other_choice(world, feature):
    """The feature's demonstrations with the first one replaced by one that it doesn't use, of the same label."""
    used = {d["id"] for d in feature["demonstrations"]}
    for d in world.demonstrations:
        own = (d.example.user, d.example.item) == (feature["user_id"], feature["item_id"])
        if d.id not in used and not own and d.example.label == feature["demonstrations"][0]["label"]:
            return [{"id": d.id}, *feature["demonstrations"][1:]]
    raise AssertionError("every demonstration is used")


def test_a_stored_search_may_choose_and_must_compute(stored, tmp_path):
    folder = Path(shutil.copytree(stored[0], tmp_path / "dumps"))
    code, report = verify(folder)
    assert (code, report["differences"], report["recall"]) == (0, 0, 1.0)
    weights = oracle.Ict(folder / "weights.safetensors")
    world = stored[1]

    def choose_others(rows):
        for row in standing(rows)[:5]:
            pair = tuple(row["key"])
            actual = {pair: {"demonstrations": other_choice(world, row["value"])}}
            row["value"] = oracle.expected_features(world, weights, actual)[pair]
        return rows

    change(folder, "features", choose_others)
    code, report = verify(folder)
    assert (code, report["differences"]) == (0, 0) and 0.9 < report["recall"] < 1.0

    def keep_the_vector(rows):
        row = standing(rows)[7]
        row["value"]["demonstrations"][0]["id"] = other_choice(world, row["value"])[0]["id"]
        return rows

    change(folder, "features", keep_the_vector)
    code, report = verify(folder)
    assert code == 1 and report["difference_counts"].keys() >= {"features: ict"}


@pytest.mark.parametrize("id", ["00000000-0000-5000-8000-000000000000", "no id"])
def test_a_stored_search_names_only_live_demonstrations(stored, tmp_path, id):
    folder = Path(shutil.copytree(stored[0], tmp_path / "dumps"))

    def name_a_stranger(rows):
        standing(rows)[3]["value"]["demonstrations"][1]["id"] = id
        return rows

    change(folder, "features", name_a_stranger)
    code, report = verify(folder)
    assert code == 1 and report["difference_counts"].keys() >= {"features: demonstrations", "features: k"}


def test_scores_of_the_world_against_plain_integers(small):
    world = small[1]
    used = retrieval.retrieve(world)
    dice = random.Random(1)
    for at in dice.sample(range(len(world.pairs)), 60):
        user, item = world.pairs[at]
        history = world.engagements.get(user, [])[-world.config.history :]
        vectors = [v.tolist() for e in history if (v := world.vector_of(e.item)) is not None]
        rows = []
        for d in world.demonstrations:
            if (d.example.user, d.example.item) == (user, item):
                continue
            total = sum(sum(x * int(y) for x, y in zip(v, d.mean)) for v in vectors)
            target = world.vector_of(d.example.item).tolist()
            score = total // len(vectors) if vectors else 0
            score += sum(x * y for x, y in zip(world.vector_of(item).tolist(), target))
            rows.append((score, d.label_time, d.id, d.example.label))
        nearest = sorted(rows, reverse=True)
        half = world.config.k // 2
        chosen = [r for r in nearest if r[3] == 1][:half] + [r for r in nearest if r[3] == 0][:half]
        assert len(chosen) == world.config.k
        got = [(score, world.demonstrations[c].label_time, world.demonstrations[c].id) for c, score in used[at]]
        assert got == sorted(row[:3] for row in chosen)


def slow_ict(weights, world, pair, used):
    """One pair, one token at a time, rotary positions by complex numbers, attention by loops."""
    t = weights.tensors
    d = weights.d

    def row(table, name):
        return t[f"{table}.weight"][0 if name is None else framing.hashed_row(table, name, len(t[f"{table}.weight"]))]

    def mean(rows, width):
        return sum(rows) / len(rows) if rows else np.zeros(width)

    def mlp(name, x):
        hidden = t[f"{name}.0.weight"] @ x + t[f"{name}.0.bias"]
        return t[f"{name}.2.weight"] @ np.where(hidden > 0, hidden, 0) + t[f"{name}.2.bias"]

    def sample(user, item, history):
        alive = [world.items[e.item] for e in history if world.exists(e.item)]
        own = world.items[item]
        vectors = [i.vector.astype(float) / 16384 for i in alive if i.vector is not None]
        parts = [
            row("user", user),
            row("item", item),
            mlp("text", own.vector / 16384),
            row("creator", own.creator),
            mean([row("category", c) for c in own.categories], d),
            mean([row("item", e.item) for e in history], d),
            mlp("text", mean(vectors, weights.width)),
            mean([row("creator", i.creator) for i in alive if i.creator], d),
            mean([row("category", c) for i in alive for c in i.categories], d),
        ]
        return mlp("sample", np.concatenate(parts))

    sequence = []
    for column, _ in used:
        c = world.demonstrations[column]
        e = c.example
        sequence += [sample(e.user, e.item, world.history(e)), mlp("text", c.cot_vector / 16384), t["label.weight"][e.label]]
    user, item = pair
    sequence.append(sample(user, item, world.engagements.get(user, [])[-world.config.history :]))

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2) + 1e-5) * t[name]

    def rotate(x, at):
        turned = (x[0::2] + 1j * x[1::2]) * np.exp(1j * at * 10000.0 ** (-2 * np.arange(len(x) // 2) / len(x)))
        return np.stack([turned.real, turned.imag], axis=1).ravel()

    for layer in range(2):
        name = f"decoder.layers.{layer}."
        n = [norm(s, name + "attention_norm.weight") for s in sequence]
        q, k, v = ([t[name + f"{m}.weight"] @ x for x in n] for m in "qkv")
        after = []
        for at, s in enumerate(sequence):
            heads = []
            for cut in (slice(0, d // 2), slice(d // 2, d)):
                mine = rotate(q[at][cut], at)
                weight = np.array([np.exp(mine @ rotate(k[j][cut], j) / np.sqrt(d // 2)) for j in range(at + 1)])
                heads.append(sum(w * v[j][cut] for j, w in enumerate(weight / weight.sum())))
            s = s + t[name + "o.weight"] @ np.concatenate(heads)
            m = norm(s, name + "ffn_norm.weight")
            gate = t[name + "w1.weight"] @ m
            after.append(s + t[name + "w2.weight"] @ (gate / (1 + np.exp(-gate)) * (t[name + "w3.weight"] @ m)))
        sequence = after
    return norm(sequence[-1], "decoder.norm.weight")


def test_ict_of_the_world_against_the_slow_one(small):
    folder, world = small
    weights = ict_module.Ict(folder / "weights.safetensors")
    used = [row[: at % 5] for at, row in enumerate(retrieval.retrieve(world))]  # all lengths from 0 to K
    vectors = ict_module.forward(weights, world, used)
    for at in random.Random(2).sample(range(len(world.pairs)), 25):
        slow = slow_ict(weights, world, world.pairs[at], used[at])
        assert np.max(np.abs(slow - vectors[at])) < 1e-12


def test_examples_of_the_world_against_a_slow_attribution(small):
    world = small[1]
    config = world.config
    expected = {}
    for user, events in world.events.items():
        maximum = world.maxima[framing.partition_of(user.encode(), 3)]
        owner, verdicts = {}, {}
        for o in events:
            if o.label == "none":
                continue
            near = [i for i in events if i.kind == "impression" and i.item == o.item and 0 <= o.time - i.time <= config.window]
            near = [i for i in near if i.id == o.impression_id] or near
            if near:
                owner.setdefault(max(near, key=lambda i: (i.time, i.id))[:2], []).append(o)
            else:
                verdicts[o.time, o.id] = (o, int(o.label == "positive"), False, o.time)
        for i in events:
            if i.kind != "impression":
                continue
            mine = sorted(owner.get((i.time, i.id), []), key=lambda o: (o.time, o.id))
            first = [o for o in mine if o.label == "positive"] or mine
            if first:
                verdicts[i.time, i.id] = (i, int(first[0].label == "positive"), False, first[0].time)
            elif maximum > i.time + config.window:
                verdicts[i.time, i.id] = (i, 0, True, i.time + config.window)
        engaged = sorted((e.time, e.id, e.item, e.kind, e.label) for e in events if e.engaged)
        for (time, id), (event, label, implicit, label_time) in verdicts.items():
            history = [e for e in engaged if e[0] < time][-config.history :]
            expected[user, time, id] = (event.item, label, implicit, label_time, [(e[2], e[3], e[4], e[0]) for e in history])
    got = {
        key: (
            v["item_id"],
            v["label"],
            v["implicit"],
            v["label_time"],
            [(h["item_id"], h["kind"], h["label"], h["event_time"]) for h in v["history"]],
        )
        for key, v in oracle.expected_examples(world).items()
    }
    assert len(got) > 2_000 and got == expected


def on_standing(topic, edit, which=lambda row: True):
    """A fault: `edit` changes one standing record of the topic, given its value and the whole row."""

    def plant(folder):
        def apply(rows):
            row = next(row for row in standing(rows) if which(row))
            edit(row["value"], row)
            return rows

        change(folder, topic, apply)

    return plant


def on_rows(topic, edit):
    """A fault that changes the list of rows."""
    return lambda folder: change(folder, topic, edit)


def without_standing(rows):
    lost = standing(rows)[0]["key"]
    return [row for row in rows if row["key"] != lost]


def lost_by_tombstone(rows):
    row = standing(rows)[0]
    offset = 1 + max(r["offset"] for r in rows if r["partition"] == row["partition"])
    return [*rows, {**row, "offset": offset, "value": None}]


def without_last_tombstone(rows):
    last = max(at for at, row in enumerate(rows) if row["value"] is None)
    return rows[:last] + rows[last + 1 :]


def twice(rows):
    offset = 1 + max(row["offset"] for row in rows)
    return [*rows, {**rows[3], "offset": offset}]


def set_in(field, value):
    def edit(body, row):
        assert body[field] != value
        body[field] = value

    return edit


def add_to(amount, *path):
    def edit(body, row):
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] += amount

    return edit


def swap_demonstrations(body, row):
    body["demonstrations"][0:2] = body["demonstrations"][1::-1]


def other_partition(rows):
    row = standing(rows)[0]
    row["partition"], row["offset"] = (row["partition"] + 1) % 3, 10**6
    return rows


def in_header(name, text):
    def edit(body, row):
        if text is None:
            del row["headers"][name]
        else:
            row["headers"][name] = text

    return edit


def in_epoch(field, edit):
    def apply(rows):
        value = next(row["value"] for row in rows if row["value"]["epoch"] == 2)
        value[field] = edit(value[field])
        return rows

    return on_rows("epochs", apply)


def wanted(edit):
    def plant(folder):
        path = folder / "wanted.txt"
        path.write_text("".join(f"{line}\n" for line in edit(path.read_text().split())))

    return plant


def wrong_weights(folder):
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(bytes(data))


def next_float(*path):
    """A change to the next f32 above."""

    def edit(body, row):
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = float(np.nextafter(np.float32(body[path[-1]]), np.float32(9)))

    return edit


def neighbours_of(row):
    return [neighbour["source"] for neighbour in row["value"]["neighbours"]].count("same_item") > 1


def implicit_of(row):
    return row["value"]["implicit"]


def full_of(row):
    return row["value"]["k"] == 4 and row["value"]["cot_status"] == "full"


def payload_of(row):
    return row["value"]["payload"] is not None


def lost_interaction(rows):
    """Input records that the program saw and the oracle doesn't: the outputs must not agree any more."""
    return rows[:500] + rows[530:]


FAULTS = {
    "a lost feature": ("features: missing", on_rows("features", without_standing)),
    "a feature lost by a tombstone": ("features: missing", on_rows("features", lost_by_tombstone)),
    "a feature whose tombstone never came": ("features: extra", on_rows("features", without_last_tombstone)),
    "a wrong score": ("features: demonstrations", on_standing("features", add_to(1, "demonstrations", 0, "score"))),
    "another order": ("features: demonstrations", on_standing("features", swap_demonstrations)),
    "fresh for stale": (
        "features: demonstrations",
        on_standing("features", lambda b, r: b["demonstrations"][0].update(fresh=not b["demonstrations"][0]["fresh"])),
    ),
    "a flag as a number": (
        "features: demonstrations",
        on_standing("features", lambda b, r: b["demonstrations"][0].update(fresh=1), full_of),
    ),
    "a wrong ict component": ("features: ict", on_standing("features", add_to(3e-5, "ict", 7))),
    "ict that is no number": ("features: ict", on_standing("features", lambda b, r: b["ict"].__setitem__(3, None))),
    "a short ict": ("features: ict", on_standing("features", lambda b, r: b["ict"].pop())),
    "a wrong status": ("features: cot_status", on_standing("features", set_in("cot_status", "none"))),
    "a wrong k": ("features: k", on_standing("features", set_in("k", 3))),
    "a wrong age": ("features: cot_created_at", on_standing("features", add_to(1, "cot_created_at"), full_of)),
    "a turned history": (
        "features: history",
        on_standing("features", lambda b, r: b["history"].reverse(), lambda r: len(set(r["value"]["history"])) > 2),
    ),
    "a wrong event time": ("features: event_time", on_standing("features", set_in("event_time", 5))),
    "a vote that is off by one bit": ("features: votes", on_standing("features", next_float("votes", 3))),
    "a vote too few": ("features: votes", on_standing("features", lambda b, r: b["votes"].pop())),
    "votes that are no numbers": ("features: votes", on_standing("features", set_in("votes", [None] * 9))),
    "no votes": ("features: votes", on_standing("features", lambda b, r: b.pop("votes"))),
    "a wrong score of a neighbour": (
        "features: neighbours",
        on_standing("features", add_to(1, "neighbours", 0, "score"), neighbours_of),
    ),
    "another order of neighbours": (
        "features: neighbours",
        on_standing("features", lambda b, r: b["neighbours"].insert(0, b["neighbours"].pop(1)), neighbours_of),
    ),
    "a neighbour too few": (
        "features: neighbours",
        on_standing("features", lambda b, r: b["neighbours"].pop(), neighbours_of),
    ),
    "a neighbour of the other source": (
        "features: neighbours",
        on_standing("features", lambda b, r: b["neighbours"][0].update(source="same_user"), neighbours_of),
    ),
    "another label in the history": ("features: history_labels", on_standing("features", set_in("history_labels", [7]))),
    "another kind of vector": ("features: vector_kind", on_standing("features", set_in("vector_kind", "attention"))),
    "another model": ("features: llm_model", on_standing("features", set_in("llm_model", "x"))),
    "a field too many": ("features: surplus", on_standing("features", lambda b, r: b.update(surplus=1))),
    "a field too few": ("features: encoder", on_standing("features", lambda b, r: b.pop("encoder"))),
    "another partition": ("features: on another partition than its user's", on_rows("features", other_partition)),
    "a missing header": (
        "features: header ictflow-substep",
        on_standing("features", in_header("ictflow-substep", None)),
    ),
    "a header that is no decimal": (
        "examples: header ictflow-epoch",
        on_standing("examples", in_header("ictflow-epoch", "0x2")),
    ),
    "a header of a dead letter": (
        "dead_letters: header ictflow-published-at",
        on_standing("dead_letters", in_header("ictflow-published-at", "")),
    ),
    "an epoch to come": ("examples: header of an epoch to come", on_standing("examples", in_header("ictflow-epoch", "3"))),
    "a lost example": ("examples: missing", on_rows("examples", without_standing)),
    "an example whose tombstone never came": ("examples: extra", on_rows("examples", without_last_tombstone)),
    "a wrong label": ("examples: label", on_standing("examples", lambda b, r: b.update(label=1 - b["label"]))),
    "an explicit negative for an implicit one": (
        "examples: implicit",
        on_standing("examples", set_in("implicit", False), implicit_of),
    ),
    "a wrong label time": ("examples: label_time", on_standing("examples", add_to(-1, "label_time"))),
    "a wrong label in a history": (
        "examples: history",
        on_standing("examples", lambda b, r: b["history"][0].update(label="other"), lambda r: r["value"]["history"]),
    ),
    "a missing dead letter": ("dead_letters: missing", on_rows("dead_letters", lambda rows: rows[1:])),
    "a dead letter twice": ("dead_letters: position comes twice", on_rows("dead_letters", twice)),
    "a dead letter too many": (
        "dead_letters: extra",
        on_standing("dead_letters", lambda b, r: (b.update(offset=10**6), r["key"].__setitem__(2, 10**6))),
    ),
    "a wrong reason": ("dead_letters: reason", on_standing("dead_letters", set_in("reason", "other"))),
    "a wrong stage": ("dead_letters: stage", on_standing("dead_letters", set_in("stage", "history"))),
    "a wrong payload": ("dead_letters: payload", on_standing("dead_letters", set_in("payload", "00"), payload_of)),
    "a lost payload": ("dead_letters: payload", on_standing("dead_letters", set_in("payload", None), payload_of)),
    "a wrong source key": ("dead_letters: key", on_standing("dead_letters", set_in("key", "00"))),
    "a key that isn't the position": (
        "dead_letters: key isn't the position",
        on_standing("dead_letters", lambda b, r: r["key"].__setitem__(1, 7)),
    ),
    "a missing wanted key": ("wanted: missing", wanted(lambda lines: lines[1:])),
    "a wanted key too many": ("wanted: extra", wanted(lambda lines: [*lines, "ab" * 32])),
    "a wrong wanted key": ("wanted: extra", wanted(lambda lines: [lines[0][::-1], *lines[1:]])),
    "a wanted key twice": ("wanted: a key comes twice", wanted(lambda lines: [lines[0], *lines])),
    "a wrong maximum": ("epochs: maxima", in_epoch("maxima", lambda m: [m[0] - 1, *m[1:]])),
    "a wrong clock": ("epochs: clock", in_epoch("clock", lambda clock: clock + 1)),
    "a wrong config digest": ("epochs: config_digest", in_epoch("config_digest", lambda text: "00" * 32)),
    "other weights": ("epochs: ict_weights", wrong_weights),
    "a lost interaction": ("examples: ", on_rows("interactions", lost_interaction)),
    "an answer that is gone": ("features: demonstrations", on_rows("cot", lambda rows: [])),
    "a vector that is gone": ("features: extra", on_rows("embeddings", lambda rows: rows[150:])),
    "an item that is gone": ("features: ", on_rows("items", lambda rows: rows[:100])),
    "a set that is gone": ("features: extra", on_rows("candidates", lambda rows: rows[:-80])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, dump):
    sort, plant = FAULTS[name]
    plant(dump)
    code, report = verify(dump)
    assert code == 1
    assert any(found.startswith(sort) for found in report["difference_counts"]), report["difference_counts"]
    assert all(len(listed) <= 20 for listed in report["difference_examples"].values())


def test_a_small_ict_error_is_allowed(dump):
    on_standing("features", add_to(5e-6, "ict", 7))(dump)
    code, report = verify(dump)
    assert code == 0 and 4e-6 < report["max_ict_error"] < 6e-6


def test_older_values_and_records_beyond_the_bounds_do_not_count(dump):
    def more(rows):
        offset = 1 + max(row["offset"] for row in rows if row["partition"] == 0)
        return [*rows, {**rows[0], "partition": 0, "offset": offset}]

    for topic in dumps.INPUTS:
        change(dump, topic, more)
    assert verify(dump)[0] == 0


@pytest.mark.parametrize(
    "demand",
    [["--min-features", "1000000"], ["--min-full", "1.01"], ["--require-hits", "1"], ["--require-hits", "1000000"]],
)
def test_a_demand_that_is_not_met_fails(demand, small):
    code, report = verify(small[0], *demand)
    assert code == 1 and report["differences"] == 0 and report["unmet"]


def test_excepted_rules_may_be_rare(small):
    _, report = verify(small[0])
    rare = ",".join(name for name, hits in report["hits"].items() if hits == 0)
    assert verify(small[0], "--require-hits", "1", "--except", rare)[0] == 0
    assert verify(small[0], "--require-hits", "1", "--except", "no_such_rule")[0] == 2


@pytest.mark.parametrize("broken", ["features", "epochs", "interactions"])
def test_a_missing_or_broken_dump_is_no_success(broken, dump):
    path = dump / f"{broken}.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    assert verify(dump)[0] == 2
    path.unlink()
    assert verify(dump)[0] == 2


NEVER = {"positive": 10**12, "explicit_negative": 10**12, "implicit_negative": 10**12}


@pytest.mark.parametrize("changes", [{"max_demonstrations": 3}, {"max_demonstrations": 1}, {"cot_stride": NEVER}])
def test_few_demonstrations(changes, small, tmp_path):
    script = small[0].parent / "script.jsonl"
    made_up.make(script, tmp_path / "few", seed=3, width=24, **{**SMALL, **changes})
    code, report = verify(tmp_path / "few")
    assert code == 0 and report["hits"]["status_full"] == report["hits"]["status_stale"] == 0
    assert report["hits"]["status_none" if "cot_stride" in changes else "status_partial"] > 100


# --- payloads and the mutator --------------------------------------------------------------------------------


def test_payloads_in_all_forms():
    value = {"computed_at": -3, "items": ["a", "é"]}
    avro = bytes([5, 4, 2]) + b"a" + bytes([4]) + "é".encode() + bytes([0])
    for payload in (json.dumps(value).encode(), avro, b"\x00\x00\x00\x00\x07" + avro):
        assert dumps.decodes_to("candidates", payload, value)
        assert not dumps.decodes_to("candidates", payload, {**value, "computed_at": -4})
        assert not dumps.decodes_to("candidates", payload[:-1], value)
    event = mutate.event("e", "u", "i", "rate", 77, 2.5)
    raw = b"\x02e\x02u\x02i\x08rate\x02" + np.float64(2.5).tobytes() + b"\x00" + bytes([0x9A, 0x01])
    assert dumps.decodes_to("interactions", raw, event)
    item = dumps.filled("items", {"title": "A", "tags": ["x"], "attributes": {"k": "v"}, "updated_at": 1})
    raw = b"\x02\x02A\x00\x00\x02\x02x\x00\x00\x00\x02\x02k\x02v\x00\x02"
    assert dumps.decodes_to("items", raw, item) and not dumps.decodes_to("items", raw, {**item, "title": "B"})


def test_raw_bytes_of_the_mutator_never_read(small):
    rows = [json.loads(line) for line in (small[0].parent / "script.jsonl").read_text(encoding="utf-8").splitlines()]
    raws = [(row["topic"], bytes.fromhex(row["raw"])) for row in rows if "raw" in row]
    assert len(raws) > 10
    for topic, raw in raws:
        with pytest.raises((dumps.NotAvro, ValueError)):
            dumps.READERS[topic](dumps.Avro(raw))
        whole = ("event_id", "user_id", "item_id", "kind", "event_time") if topic == "interactions" else ()
        with pytest.raises((ValueError, KeyError, TypeError, AssertionError)):
            value = json.loads(raw.decode("utf-8"))
            assert all(isinstance(value[name], str) for name in whole[:4])
            assert isinstance(value["event_time" if whole else "updated_at"], int)


def test_the_mutator_is_a_function_of_its_seed(tmp_path):
    write_ratings(tmp_path, ratings=600)
    texts = []
    for seed in (1, 1, 2):
        mutate.build(tmp_path, seed=seed).write(tmp_path / "out.jsonl")
        texts.append((tmp_path / "out.jsonl").read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_a_plain_replay_refuses_nothing(tmp_path):
    write_ratings(tmp_path, ratings=600)
    mutate.build(tmp_path, events=500, mutations=False).write(tmp_path / "out.jsonl")
    logs, counts = dumps.from_script(tmp_path / "out.jsonl", 3)
    world = World({**logs, "cot": [], "embeddings": []}, counts, Config.default(), ACTIVES)
    assert not world.dead and world.hits["accepted"] == 1_000
    assert world.hits["pair_live"] >= 20 * len(world.events)

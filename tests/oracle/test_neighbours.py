"""Tests of the neighbours: golden numbers, hand-made labels, slow references in plain integers."""

import importlib.util
import json
import random
import shutil
import sys
import uuid
from collections import Counter
from math import isqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import attention
import framing
import ict as ict_module
import neighbours
import oracle
import world as made_up
from conftest import SMALL
from neighbours import Neighbours
from rules import DEFAULT_NEIGHBOURS, Config, Example, World
from test_oracle import ACTIVES, M, T, Logs, change, verify

GOLDEN = Path(__file__).parents[2] / "operators" / "golden"
HOUR = 60 * M
LIKE, SKIP = 1, 0
ONE = 2**28


# --- hand-made labels ----------------------------------------------------------------------------------------


def label(user, item, time, said=LIKE, id=None, event_time=None, implicit=False):
    """A labelled example."""
    event_time = time if event_time is None else event_time
    return Example(user, event_time, f"{user}{item}{time}" if id is None else id, item, said, implicit, time, 0, 0)


def stub(examples, pairs, clock, vectors=None, gone=(), **constants):
    """As much of a world as neighbours read."""
    vectors = {item: np.array(vector) for item, vector in (vectors or {}).items()}
    return SimpleNamespace(
        config=Config.default(neighbours=constants),
        examples=examples,
        pairs=pairs,
        clock=clock,
        hits=Counter(),
        vector_of=vectors.get,
        exists=lambda item: item not in gone,
        width=max(map(len, vectors.values()), default=None),
        corrected=set(),
        retracted=[],
        erased_examples=[],
    )


def asked(examples, clock, pair=("u", "a"), centre=(), vectors=None, **constants):
    """What both sources say of one pair, by ids, and the hits."""
    world = stub(examples, [pair], clock, vectors, **constants)
    found = Neighbours(world, np.array(centre) if len(centre) else np.zeros(world.width or 0))
    (sources,) = found.sources
    named = [[(found.labels[at].id, score) for score, at in selected] for selected in sources[:2]]
    return named, [float(x) for x in sources.votes], world.hits


def f32(x):
    return float(np.float32(x))


def test_unit_forms():
    for x, expected in (
        ([3, 4], [9_830, 13_107]),  # 2^14 · 3 / 5 = 9830.4, 2^14 · 4 / 5 = 13107.2
        ([-3, 4], [-9_830, 13_107]),
        ([0, 0], [0, 0]),
        ([], []),
        ([-(2**31), 0], [-16_384, 0]),
        ([2**31 - 1, -(2**31)], [11_585, -11_585]),  # 2^14 / √2 = 11585.2; the squares don't fit 63 bits
        ([2**31 - 1] * 1_024, [512] * 1_024),
        ([-5] * 1_024, [-512] * 1_024),
        ([1, 1, 1, 1, 1], [7_327] * 5),  # 2^14 / √5 = 7327.1
    ):
        assert neighbours.unit(x).tolist() == expected, x


@pytest.mark.parametrize("seed", range(20))
def test_unit_forms_against_plain_integers(seed):
    dice = random.Random(seed)
    limit = dice.choice([3, 300, 2**20, 2**28, 2**31])
    x = [dice.randrange(-limit, limit) for _ in range(dice.choice([1, 6, 384, 1_024]))]
    n = isqrt(2**28 * sum(v * v for v in x))
    assert neighbours.unit(x).tolist() == ([(2**29 * v + n) // (2 * n) for v in x] if n else x)


def test_sums_are_modulo_2_to_the_32():
    given = [0, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**32 + 5, 3 * 2**31]
    assert neighbours.wrapped(given).tolist() == [0, -1, 2**31 - 1, -(2**31), 2**31 - 1, 5, -(2**31)]


def test_boundaries():
    for time, period, expected in (
        (0, 10, 0),
        (9, 10, 0),
        (10, 10, 10),
        (-1, 10, -10),
        (7, 0, 7),
        (framing.I64_MIN, 10, framing.I64_MIN),
        (framing.I64_MIN, 0, framing.I64_MIN),
    ):
        assert neighbours.boundary(time, period) == expected


def test_weights():
    # ((1 + s) / 2)^8 in units of 2^30: one half for strangers, three quarters at a cosine of one half.
    scores = [-3 * ONE, -ONE, -1, 0, ONE // 2, ONE, 2 * ONE]
    assert neighbours.weights(scores).tolist() == [0, 0, 2_047**2, 2**22, 10_368**2, 2**30, 2**30]


def test_quotients_are_rounded_to_f64_then_to_f32():
    assert neighbours.quotient(3, 0) == 0.0 and neighbours.quotient(1, 3) == np.float32(1 / 3)
    # Just above the middle between two neighbouring f32: f64 takes it for the middle, and the middle goes to the even.
    a, b = 2**46 + 2**22 + 1, 2**46
    assert neighbours.quotient(a, b) == np.float32(1.0 + 2.0**-23) and a / b > 1.0 + 2.0**-24
    a, b = (2**24 + 1) * 2**30 + 1, 2**54
    assert neighbours.quotient(a, b) == np.float32(1.0)


def test_users_who_said_the_same_of_one_item_are_equal_and_who_said_the_opposite_are_opposed():
    examples = [label("u", "x", T), label("v", "x", T), label("w", "x", T, SKIP), label("new", "a", T + 2 * HOUR)]
    examples += [label("v", "a", T + 1), label("w", "a", T + 2, SKIP)]
    (same_item, same_user), votes, hits = asked(examples, T + 3 * HOUR, label_centre=512)
    # Sketches: u has ±512 of x's signs. v and w have as much of a's beside it, so their cosine with u is 512² times
    # the 1,024 signs of x and the inner product of both items' signs, over the norms.
    x, a = framing.signs("item", "x"), framing.signs("item", "a")
    u, v = neighbours.unit(512 * x), neighbours.unit(512 * (x + a))
    assert u.tolist() == (512 * x).tolist()
    assert same_item == [("wa" + str(T + 2), -int(u @ v)), ("newa" + str(T + 2 * HOUR), int(u @ neighbours.unit(a))), ("va" + str(T + 1), int(u @ v))]
    # Only x is u's: its users' signs are those of a's v and w, and u's own.
    s_a = neighbours.unit(512 * (framing.signs("user", "v") + framing.signs("user", "new") - framing.signs("user", "w")))
    s_x = neighbours.unit(512 * (framing.signs("user", "u") + framing.signs("user", "v") - framing.signs("user", "w")))
    assert same_user == [(f"ux{T}", int(s_a @ s_x))]  # ⌊2s / 2⌋: nobody has a text
    assert votes[:3] == [3.0, f32(1 / 10), f32(1 / 6)]
    assert votes[4:6] == [1.0, 0.5] and votes[6] == 0.5 and votes[7] == f32((1_024 - 1_024 * 3 // 5) / 1_024)
    assert hits["same_user_without_text"] == 1 and hits["same_item_of_negative_score"] >= 1


def test_equal_sketches_have_a_cosine_of_just_one():
    examples = at_period(label("w", "x", 0, SKIP), *(label(user, "a", HOUR + 1) for user in ("v", "w")))
    (same_item, _), votes, hits = asked(examples, HOUR + 2)
    assert [score for _, score in same_item] == [-ONE, ONE]
    # The weight of the opposite is 0: all that counts is v, who likes it.
    assert votes[:4] == [2.0, 0.25, 0.5, 0.5]
    assert hits["label_not_yet_effective"] == 2


def at_period(*more):
    """Labels beside two that make the sketches of u and v equal, at the period's beginning."""
    return [label("u", "x", 0), label("v", "x", 0), *more]


def test_labels_count_strictly_before_the_clock():
    examples = [label("v", "a", 99), label("w", "a", 100), label("x", "a", 101)]
    (same_item, _), votes, hits = asked(examples, 100)
    assert [id for id, _ in same_item] == ["va99"] and votes[0] == 1.0
    assert hits["label_hidden_by_the_clock"] == 2 and hits["label_at_the_clock"] == 1
    assert hits["label_just_before_the_clock"] == 1
    # An example happens before its label is known: only the label's time counts.
    (same_item, _), _, _ = asked([label("v", "a", 100, event_time=10)], 100)
    assert same_item == []


def test_labels_are_in_sketches_strictly_before_the_boundary():
    for time, effective in ((1_999, True), (2_000, False), (2_001, False)):
        examples = at_period(label("w", "x", time), label("w", "a", 2_500), label("v", "a", 2_500))
        (same_item, _), votes, hits = asked(examples, 2_999, sketch_period_ms=1_000)
        scores = dict(same_item)
        assert scores["va2500"] == ONE and scores["wa2500"] == (ONE if effective else 0), time
        assert hits["label_not_yet_effective"] == 2, "both on a; x is no pair's"
    # At the period 0 every label counts at once.
    examples = at_period(label("w", "x", 2_998), label("w", "a", 2_999))
    (same_item, _), _, _ = asked(examples, 2_999, sketch_period_ms=0)
    assert same_item == []
    examples = at_period(label("w", "x", 2_998), label("w", "a", 2_998))
    (same_item, _), _, hits = asked(examples, 2_999, sketch_period_ms=0)
    x, a = framing.signs("item", "x"), framing.signs("item", "a")
    assert same_item == [("wa2998", int(neighbours.unit(x) @ neighbours.unit(x + a)))]
    assert hits["label_not_yet_effective"] == 0


def test_rates_are_of_effective_labels():
    # j: two likes and a skip are effective, a later skip isn't. ⌊1024 · 3 / 5⌋ = 614. k: none, one half.
    examples = [label("u", "j", 0), label("v", "j", 0), label("w", "j", 0, SKIP), label("w", "j", 1_500, SKIP, "late")]
    examples.append(label("u", "k", 1_500, SKIP))
    (_, same_user), votes, hits = asked(examples, 1_999, sketch_period_ms=1_000)
    assert dict(same_user) == {"uj0": 0, "uk1500": 0}
    assert votes[4:] == [2.0, 0.0, 0.0, f32((1_024 - 614 - 512) / 2_048), f32((1_024 - 614 - 512) / 2_048)]
    assert hits["same_user_rate_without_label"] == 1


def test_a_ring_is_cut_before_the_own_are_left_out():
    examples = [label(user, "a", time) for time, user in enumerate("vwuxu")]
    (same_item, _), votes, hits = asked(examples, HOUR, ring=3, selected=3)
    assert [id for id, _ in same_item] == ["xa3"], "w and v are older than the newest three"
    assert votes[0] == 1.0
    assert hits["ring_cut_before_own_were_left_out"] == hits["ring_of_item_cut"] == 1
    examples = [label("u", item, time) for time, item in enumerate("jkaba")]
    (_, same_user), votes, hits = asked(examples, HOUR, ring=3, selected=3)
    assert [id for id, _ in same_user] == ["ub3"] and votes[4] == 1.0
    assert hits["own_label_left_out_of_same_user"] == hits["ring_of_user_cut"] == 1


def test_the_nearest_are_selected_and_all_of_the_ring_counted():
    # v likes what u likes, w not; x said nothing of it.
    examples = at_period(label("w", "x", 0, SKIP))
    examples += [label(user, "a", 2_000 + n, n % 2) for n, user in enumerate("xvwyv")]
    (same_item, _), votes, hits = asked(examples, 2_999, selected=2, sketch_period_ms=1_000)
    assert same_item == [("va2001", ONE), ("va2004", ONE)], "equal scores: the newer is the nearer"
    # Of the ring two of five are positive; of the selected one of two, of equal weight.
    assert votes[:4] == [5.0, f32(-1 / 14), 0.0, 0.0] and hits["selection_of_same_item_cut"] == 1
    assert hits["newer_by_label_time"] == 1


def test_equal_scores_are_ordered_by_newer():
    given = [
        label("v", "a", 5, id="z", event_time=5),
        label("v", "a", 6, id="z", event_time=3),
        label("v", "a", 6, id="y", event_time=4),
        label("w", "a", 6, id="é", event_time=4),
        label("w", "a", 6, id="z", event_time=4),
    ]
    expected = [("v", 5, "z"), ("v", 3, "z"), ("v", 4, "y"), ("w", 4, "z"), ("w", 4, "é")]
    for seed in range(8):
        random.Random(seed).shuffle(given)
        world = stub(given, [("u", "a")], HOUR, selected=4)
        found = Neighbours(world, [])
        named = [found.labels[at] for _, at in found.sources[0].same_item]
        assert [(e.user, e.time, e.id) for e in named] == expected[1:]
        orders = {name: hits for name, hits in world.hits.items() if name.startswith("newer")}
        assert orders == {f"newer_by_{name}": 1 for name in ("event_time", "user", "event_id")}


def test_texts_are_centred_and_count_half_of_a_sketch():
    vectors = {"a": [13, 4], "j": [13, 4], "k": [7, -4], "m": [10, 0], "n": [13, 4]}
    # Less the centre a is (3, 4), k (-3, -4), m nothing; o has no vector.
    examples = [label("u", item, n) for n, item in enumerate("jkmo")]
    (_, same_user), _, hits = asked(examples, HOUR, centre=[10, 0], vectors=vectors, sketch_period_ms=0, label_centre=1_024)
    # All labels are likes and the centre is one: sketches are zeros.
    same = 9_830**2 + 13_107**2
    assert dict(same_user) == {"uj0": same // 2, "uk1": -same // 2, "um2": 0, "uo3": 0}
    assert same % 2 == 1 and -same // 2 == -(same // 2) - 1, "an odd sum below zero is halved downwards"
    assert hits["same_user_rounded_down"] == 1 and hits["same_user_without_text"] == 1
    # Sketch and text together: the label's user is v for both, so the sketches of a and j are equal.
    examples = [label("v", "a", 0), label("v", "j", 0), label("u", "j", 1_500)]
    (_, same_user), _, _ = asked(examples, 1_999, centre=[10, 0], vectors=vectors, sketch_period_ms=1_000)
    assert same_user == [("uj1500", (2 * ONE + same) // 2)]


def test_nobody_says_nothing():
    assert asked([], T) == ([[], []], [0.0] * 9, asked([], T)[2])
    assert asked([], framing.I64_MIN)[0] == [[], []]
    found, votes, hits = asked([label("u", "a", 0)], HOUR)
    assert (found, votes) == ([[], []], [0.0] * 9), "own labels on the item are no neighbours"
    assert hits["same_item_empty"] == hits["same_user_empty"] == 1


def test_the_weightless_vote_nothing():
    # w skipped all that u likes: its weight is 0, and so is the divisor.
    examples = [label("u", "x", 0), label("w", "x", 0, SKIP), label("w", "a", 1_500)]
    (same_item, _), votes, _ = asked(examples, 1_999, sketch_period_ms=1_000)
    assert same_item == [("wa1500", -ONE)] and votes[:4] == [1.0, f32(1 / 6), 0.5, 0.0]


def test_published_neighbours():
    world = stub([label("v", "a", 7, SKIP, "é"), label("u", "j", 8)], [("u", "a")], HOUR - 1)
    found = Neighbours(world, [])
    assert found.published(0) == [
        {"source": "same_item", "id": framing.neighbour_id("v", 7, "é"), "score": 0, "label": 0},
        {"source": "same_user", "id": framing.neighbour_id("u", 8, "uj8"), "score": 0, "label": 1},
    ]
    # UUIDv5 by the standard library, whose names are text: here the frame is.
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "ictflow:example")
    name = framing.framed("v", 7, "e").decode()
    assert framing.neighbour_id("v", 7, "e") == str(uuid.uuid5(namespace, name))
    assert framing.neighbour_id("v", 7, "e") != framing.point_id("v", 7, "e", "")


# --- golden numbers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "neighbours.json").read_text(encoding="utf-8"))


def golden_world(golden, pairs, clock):
    """The golden world at a time; what labels are delayed by is in their times here."""
    examples = [
        label(e["user"], e["item"], e["label_time"] + golden["label_delay_ms"], e["label"], e["event_id"], e["event_time"])
        for e in golden["examples"]
    ]
    constants = {name: golden[name] for name in DEFAULT_NEIGHBOURS}
    return stub(examples, pairs, clock, golden["vectors"], **constants)


def test_golden_signs(golden):
    for table, name, bits in golden["signs"]:
        raw = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
        assert [int(byte) >> bit & 1 for byte in raw for bit in range(8)] == ((framing.signs(table, name) + 1) // 2).tolist()


def test_golden_sketches(golden):
    for at in golden["sketches"]:
        clock = at["until"] + golden["label_delay_ms"]
        world = golden_world({**golden, "sketch_period_ms": 0}, [], clock)
        found = Neighbours(world, golden["centre"])
        sketch = found.sketch(at["side"], at["id"])
        assert (np.zeros(1_024, int) if sketch is None else sketch).tolist() == at["sum"]
        assert found.unit_of(at["side"], at["id"]).tolist() == at["unit"]
        if at["side"] == "item":
            assert found.rate_of(at["id"]) == at["rate"]


def test_golden_rows(golden):
    examples = {e["event_id"]: e for e in golden["examples"]}
    assert len(golden["rows"]) == len(examples)
    for row in golden["rows"]:
        e = examples[row["event_id"]]
        found = Neighbours(golden_world(golden, [(e["user"], e["item"])], e["event_time"]), golden["centre"])
        (sources,) = found.sources
        for source in neighbours.SOURCES:
            got = [[found.labels[at].id, score] for score, at in getattr(sources, source)]
            assert got == row[source], (row["event_id"], source)
        assert [float(x) for x in sources.votes] == row["numbers"]


def program(name):
    """A program beside the golden numbers, loaded under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"golden_{name}", GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_golden_attention(monkeypatch):
    """The vectors of an independent program, whose weights both make from a formula."""
    given = json.loads((GOLDEN / "attention.json").read_text(encoding="utf-8"))
    formula = program("ict")
    monkeypatch.setitem(sys.modules, "ict", formula)
    tensors = program("attention").tensors
    monkeypatch.undo()
    assert len(given["cases"]) > 10
    for case in given["cases"]:
        shape = given["shapes"][case["shape"]]
        weights = ict_module.Ict.__new__(ict_module.Ict)
        weights.tensors, weights._rows = formula.weights(shape, tensors), {}
        weights.d, weights.width, weights.kind = shape["d"], shape["text"], "attention"
        items = {}
        for name, item in given["items"].items():
            vector = None if item["vector"] is None else formula.vector(shape, item["vector"])
            items[name] = SimpleNamespace(exists=True, creator=item["creator"], categories=item["categories"], vector=vector)
        read = [[attention.Reading(*(n[field] * 1 for field in FIELDS)) for n in case[source]] for source in neighbours.SOURCES]
        (vector,) = attention.vectors(weights, items, np.array([case["x"]]), [read])
        assert np.max(np.abs(vector - case["vector"])) < 2e-7, case["name"]


FIELDS = ("user", "item", "positive", "score", "age", "residual")


# --- attention -----------------------------------------------------------------------------------------------


def test_what_attention_reads():
    """The nearest 16; ages from the newest of all that were selected; labels less the rate of their histories."""
    logs = Logs()
    for k, kind in enumerate(["like", "like", "skip", "rate", "play"]):
        logs.event(f"h{k}", T + k, kind, f"i{k}", value={"rate": 1.0, "play": 0.1}.get(kind), user="v")
    logs.event("z", T + 9, "like", "a", user="v")
    world = logs.world()
    (example,) = [e for e in world.examples if e.id == "z"]
    # Its history: two likes and a bad rating, which is an engagement; a skip and a short play are none.
    assert attention.residual(world, example) == 1_024 - 1_024 * 3 // 5
    (first,) = [e for e in world.examples if e.id == "h0"]
    assert attention.residual(world, first) == 512

    labels = [label("v", f"j{n}", T + n * M // 2) for n in range(40)]
    selected = [(n, (n + 1) % 20) for n in range(20)]  # the newest, 19, is near; 0 is the nearest
    found = SimpleNamespace(labels=labels, sources=[neighbours.Sources(selected, selected[:3], [])])
    plain = SimpleNamespace(history=lambda example: [])
    ((same_item, same_user),) = attention.readings(plain, found)
    assert [n.score for n in same_item] == list(range(4, 20)) and [n.score for n in same_user] == [0, 1, 2]
    assert [n.age for n in same_item] == [(19 - (n + 1) % 20) // 2 for n in range(4, 20)]
    assert [n.age for n in same_user] == [1, 0, 0] and {n.residual for n in same_item} == {512}
    # The newest of the selected counts though it isn't read.
    turned = SimpleNamespace(labels=labels, sources=[neighbours.Sources([(0, 39), *selected], [], [])])
    ((same_item, _),) = attention.readings(plain, turned)
    assert same_item[-1].age == 19 and same_item[-2].age == 10


def test_binary_logarithms():
    assert [attention.log2(x) for x in (1, 2, 3, 4, 5, 2**40, 3 * 2**40)] == [0, 1, 1.5, 2, 2.25, 40, 41.5]


def made_weights(path, kind, **changes):
    rows = {"user": 9, "item": 9, "creator": 5, "category": 5}
    tensors = {**ict_module.random_weights(1, 6, rows, kind), **changes}
    ict_module.write_safetensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, kind)
    return ict_module.Ict(path)


def test_weights_of_both_kinds(tmp_path):
    path = tmp_path / "weights"
    for kind in ("decoder", "attention"):
        weights = made_weights(path, kind)
        assert weights.kind == kind and weights.centre.tolist() == [0] * 6
        centre = np.array([-32_768, 32_767, 0, 1, 2, 3])
        assert made_weights(path, kind, **{"text.centre": centre}).centre.tolist() == centre.tolist()
        for odd in ([32_768, 0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0], [0, 0]):
            with pytest.raises(ValueError, match="text.centre"):
                made_weights(path, kind, **{"text.centre": np.array(odd)})
        for name in ("decoder.norm.weight", "attention.phi"):
            odd = np.zeros(3) if kind.startswith(name[:3]) or name[:3] == kind[:3] else np.zeros(2)
            with pytest.raises(ValueError, match=name):
                made_weights(path, kind, **{name: odd})
    with pytest.raises(ValueError, match="kind"):
        made_weights(path, "other")
    # A file that doesn't say is of the kind of before there were two.
    ict_module.write_safetensors(path, ict_module.random_weights(1, 6, {"user": 9, "item": 9, "creator": 5, "category": 5}))
    assert ict_module.Ict(path).kind == "decoder"


# --- the semantic configuration ------------------------------------------------------------------------------


def test_constants_stand_in_the_config_only_where_they_are_others():
    config = Config.default()
    assert (config.ring, config.selected, config.sketch_period, config.label_centre) == (128, 32, 3_600_000, 512)
    assert "neighbours" not in config.text and config.canonical == config.text
    assert Config.default(neighbours=dict(DEFAULT_NEIGHBOURS)).digest == config.digest
    other = Config.default(neighbours={"ring": 5, "selected": 2})
    assert '"neighbours":{"label_centre":512,"ring":5,"selected":2,"sketch_period_ms":3600000}' in other.text
    assert (other.ring, other.selected, other.sketch_period) == (5, 2, 3_600_000) and other.canonical == other.text
    # Named though it is the default: it can be read, but isn't canonical.
    spelled = Config(framing.canonical_json({**json.loads(config.text), "neighbours": DEFAULT_NEIGHBOURS}))
    assert spelled.ring == 128 and spelled.canonical != spelled.text
    for odd in ({"ring": 5}, {**DEFAULT_NEIGHBOURS, "more": 1}):
        with pytest.raises(ValueError, match="neighbours has other keys"):
            Config(framing.canonical_json({**json.loads(config.text), "neighbours": odd}))


# --- over whole logs -----------------------------------------------------------------------------------------


def of_pair(world, pair=("u", "a")):
    """What both sources say of a pair, whether it is live or not: [(user, event id, label)]."""
    world.pairs = [pair]
    found = Neighbours(world, [])
    (sources,) = found.sources
    return [[(e.user, e.id, e.label) for e in (found.labels[at] for _, at in selected)] for selected in sources[:2]]


def test_corrections_and_retractions_change_neighbours():
    logs = Logs()
    logs.event("i", T, "impression", "a", "v").event("x", T + 31 * M, item="b", user="v")
    logs.event("end", T + 60 * M, "impression", "c", "v")
    assert of_pair(logs.world())[0] == [("v", "i", 0)]
    logs = Logs()
    logs.event("i", T, "impression", "a", "v").event("x", T + 31 * M, item="b", user="v")
    logs.event("late", T + 29 * M, "like", "a", "v")  # when it was an implicit negative already
    logs.event("end", T + 60 * M, "impression", "c", "v")
    world = logs.world()
    assert of_pair(world)[0] == [("v", "i", 1)] and world.hits["neighbour_corrected"] == 1
    # An outcome of its own, until its impression comes late.
    logs = Logs().event("o", T + M, "skip", "a", "v").event("x", T + 5 * M, item="b", user="v")
    logs.event("end", T + 60 * M, "impression", "c", "v")
    assert of_pair(logs.world())[0] == [("v", "o", 0)]
    logs = Logs().event("o", T + M, "skip", "a", "v").event("i", T, "impression", "a", "v")
    logs.event("end", T + 60 * M, "impression", "c", "v")
    world = logs.world()
    assert of_pair(world)[0] == [("v", "i", 0)] and world.hits["neighbour_retracted"] == 1


def test_an_unknown_label_is_no_neighbour_and_a_label_of_the_clock_is_hidden():
    logs = Logs().event("i", T, "impression", "a", "v").event("e", T + 30 * M, "like", "a", "w")
    world = logs.world()
    assert of_pair(world) == [[], []] and world.hits["label_at_the_clock"] == 1
    logs.event("f", T + 30 * M + 1, "click", "b", "w")
    world = logs.world()
    # The impression's label is known now, as of the end of its window, which is strictly before.
    assert of_pair(world)[0] == [("v", "i", 0), ("w", "e", 1)]


def erased_world(logs, **below):
    given = {name: getattr(logs, name) for name in ("interactions", "items", "candidates")}
    counts = {"interactions": 1, "items": 1, "candidates": 1}
    return World({**given, "cot": [], "embeddings": []}, counts, Config.default(), ACTIVES, below)


def test_the_erased_leave_rings_sketches_and_pairs():
    logs = Logs().item("a", title="A")
    logs.event("1", T, "like", "a", "v").event("2", T + 1, "like", "a", "w")
    logs.event("3", T + 2 * HOUR, "click", "b", "v")
    logs.event("4", T, "click", "b", "v")  # late, and so no dead letter any more
    logs.event("5", T + 2 * HOUR, "skip", "a", "v").event("6", T + 2 * HOUR + 1, "click", "b", "w")
    logs.set("v", T + 2 * HOUR, ["a"]).set("w", T + 2 * HOUR, ["a"])
    world = erased_world(logs, v=(4, 1))
    assert of_pair(world)[0] == [("w", "2", 1), ("v", "5", 0)]
    assert world.maxima == [T + 2 * HOUR + 1] and list(world.dead) == [] and len(world.silenced) == 3
    assert world.hits["erased_interaction"] == 3 and world.hits["erased_set"] == 1 and set(world.sets) == {"w"}
    assert world.hits["neighbour_erased"] == 1, "the like of a; b is no pair's"
    assert [e.id for e in world.examples if e.user == "v"] == ["5"]
    # Whoever carried the maximum still did: another user's late record stays late.
    logs.event("7", T, "click", "b", "w")
    assert [letter.reason for letter in erased_world(logs, v=(9, 9)).dead.values()] == ["late"]


def test_erasures_are_read_from_all_epochs():
    def record(epoch, erasures, offset):
        value = {"job": "j", "epoch": epoch, "config": "{}" if epoch == 1 else None, "erasures": erasures}
        return oracle.dumps.Record("epochs", 0, offset, None, ["j", epoch], {}, value)

    def erasure(user, interactions, candidates):
        return {"user": user, "interactions": interactions, "candidates": candidates}

    records = [record(1, [], 0), record(2, [erasure("u", 5, 7)], 1), record(2, [erasure("no", 1, 1)], 2)]
    records.append(record(3, [erasure("u", 9, 2), erasure("v", 1, 0)], 3))
    assert oracle.head(records)[2] == {"u": (9, 7), "v": (1, 0)}


# --- made-up worlds ------------------------------------------------------------------------------------------


def slow_unit(x):
    """As the contract says it."""
    n = isqrt(2**28 * sum(v * v for v in x))
    return [(2**29 * v + n) // (2 * n) for v in x] if n else x


def slow_sources(world, pair, centre):
    """Both sources of one pair and their votes, over all labels, in plain integers."""
    config, (user, item) = world.config, pair
    labels = sorted(world.examples, key=lambda e: (e.label_time, e.time, e.user.encode(), e.id.encode()))
    known = [e for e in labels if e.label_time < world.clock]
    effective = [e for e in labels if e.label_time < world.clock // config.sketch_period * config.sketch_period]

    def sketch(side, name):
        total = [0] * 1_024
        for e in effective:
            if getattr(e, side) == name:
                bits = framing.signs(*(("item", e.item) if side == "user" else ("user", e.user))).tolist()
                total = [t + (1_024 * e.label - config.label_centre) * b for t, b in zip(total, bits)]
        return total

    def cosine(a, b):
        return sum(x * y for x, y in zip(slow_unit(a), slow_unit(b)))

    def text(a, b):
        vectors = [world.vector_of(name) for name in (a, b)]
        if any(v is None for v in vectors):
            return 0
        return cosine(*([int(x) - int(m) for x, m in zip(v, centre)] for v in vectors))

    sketches = {}

    def alike(side, a, b):
        for name in (a, b):
            if (side, name) not in sketches:
                sketches[side, name] = sketch(side, name)
        return cosine(sketches[side, a], sketches[side, b])

    of_item = [e for e in [e for e in known if e.item == item][-config.ring :] if e.user != user]
    of_user = [e for e in [e for e in known if e.user == user][-config.ring :] if e.item != item]
    scored = [
        [(alike("user", user, e.user), known.index(e)) for e in of_item],
        [((2 * alike("item", item, e.item) + text(item, e.item)) // 2, known.index(e)) for e in of_user],
    ]
    selected = [sorted(rows)[-config.selected :] for rows in scored]

    def weight(score):
        x = min(max(2**14 + score // 2**14, 0), 2**15)
        x = x * x // 2**15
        return (x * x // 2**15) ** 2

    def of(dividend, divisor):
        return f32(dividend / divisor) if divisor else 0.0

    p = sum(e.label for e in of_item)
    votes = [f32(len(of_item)), of(2 * p - len(of_item), 2 * len(of_item) + 4)]
    for source, rows in enumerate(selected):
        votes += [f32(len(rows))] if source else []
        said = [(weight(score), 2 * known[at].label - 1) for score, at in rows]
        votes += [of(sum(y for _, y in said), 2 * len(rows)), of(sum(w * y for w, y in said), 2 * sum(w for w, _ in said))]
    rates = {e.item: [f.label for f in effective if f.item == e.item] for e in of_user}
    d = []
    for score, at in selected[1]:
        of_other = rates[known[at].item]
        d.append((weight(score), 1_024 * known[at].label - 1_024 * (sum(of_other) + 1) // (len(of_other) + 2)))
    votes += [of(sum(x for _, x in d), 1_024 * len(d)), of(sum(w * x for w, x in d), 1_024 * sum(w for w, _ in d))]
    return [[(known[at].identity, score) for score, at in rows] for rows in selected], votes


def as_slow(found, row):
    """A pair's sources in the form of the slow ones."""
    sources = found.sources[row]
    named = [[(found.labels[at].identity, score) for score, at in selected] for selected in sources[:2]]
    return named, [float(x) for x in sources.votes]


FEW = {"ring": 9, "selected": 4, "sketch_period_ms": 7 * M, "label_centre": 700}
OTHER = {"ring": 30, "selected": 4, "label_centre": 700}


@pytest.mark.parametrize("constants", [{}, FEW])
def test_neighbours_of_the_world_against_plain_integers(small, constants):
    folder, world = small
    centre = ict_module.Ict(folder / "weights.safetensors").centre
    assert np.any(centre)
    config = world.config
    try:
        world.config = Config(Config.canonical_text({**json.loads(config.text), "neighbours": constants}))
        found = Neighbours(world, centre)
        rows = [row for row, sources in enumerate(found.sources) if sources.same_item]
        dice = random.Random(len(constants))
        for row in [*dice.sample(rows, 8), *dice.sample(range(len(world.pairs)), 4)]:
            assert as_slow(found, row) == slow_sources(world, world.pairs[row], centre.tolist()), world.pairs[row]
    finally:
        world.config = config


@pytest.fixture(scope="module")
def other(small, tmp_path_factory):
    """A world whose vectors are of the kind `attention`, with other constants and erased users."""
    folder = tmp_path_factory.mktemp("attention") / "dumps"
    script = small[0].parent / "script.jsonl"
    erased = ["3", "17", "29", "nobody"]
    world = made_up.make(
        script, folder, seed=3, width=24, pool=60, kind="attention", erased=erased, neighbours=OTHER, **SMALL
    )
    return folder, world


def test_a_world_of_attention_with_erased_users_has_no_difference(other):
    folder, world = other
    code, report = verify(folder, "--min-features", "300")
    assert (code, report["differences"], report["unmet"]) == (0, 0, [])
    assert report["compared"]["demonstrations"] == 0 and report["compared"]["neighbours"] > 2_000
    rules = [name for name in oracle.RULES if name.startswith(("erased", "ring", "selection", "neighbour", "label_"))]
    assert not [name for name in rules if report["hits"][name] == 0]
    features = [row["value"] for row in map(json.loads, open(folder / "features.jsonl", encoding="utf-8")) if row["value"]]
    assert all(f["vector_kind"] == "attention" and f["demonstrations"] == [] for f in features)
    assert {(f["cot_status"], f["cot_created_at"]) for f in features} == {("none", None)}


def test_an_erasure_that_nobody_recorded_is_a_difference(other, tmp_path):
    folder = Path(shutil.copytree(other[0], tmp_path / "dumps"))

    def forget(rows):
        for row in rows:
            row["value"]["erasures"] = row["value"]["erasures"][1:]
        return rows

    change(folder, "epochs", forget)
    code, report = verify(folder)
    assert code == 1 and {"features: neighbours", "features: votes", "examples: missing"} <= report["difference_counts"].keys()


def test_the_vector_of_attention_is_compared(other, tmp_path):
    folder = Path(shutil.copytree(other[0], tmp_path / "dumps"))

    def bend(rows):
        newest = {json.dumps(row["key"]): row for row in rows}
        next(row for row in newest.values() if row["value"])["value"]["ict"][2] += 3e-5
        return rows

    change(folder, "features", bend)
    code, report = verify(folder)
    assert code == 1 and report["difference_counts"] == {"features: ict": 1}

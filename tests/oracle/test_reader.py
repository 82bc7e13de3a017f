"""Tests of the reference reader, `deploy/reader.py`: both versions of a feature, lines of `ictflow tail`."""

import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import fastavro
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reader():
    spec = importlib.util.spec_from_file_location("reader", ROOT / "deploy" / "reader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NEW = {
    "votes": [3.0, 0.25, 0.5, -0.125, 1.0, 0.5, 0.5, 0.0, 0.0],
    "neighbours": [
        {"source": "same_item", "id": "one", "score": -(2**27), "label": 0},
        {"source": "same_item", "id": "two", "score": 2**28, "label": 1},
        {"source": "same_user", "id": "three", "score": 0, "label": 1},
    ],
    "vector_kind": "attention",
}


def old_value():
    """The golden value of version 1 and its bytes."""
    golden = json.loads((ROOT / "schemas/golden/values.json").read_text(encoding="utf-8"))
    return bytes.fromhex(golden["features.v1"])


def test_both_versions_decode(reader):
    values = reader.Values()
    old = values.decode(old_value())
    assert {name: old[name] for name in reader.ADDED} == reader.ADDED
    version = fastavro.parse_schema(json.loads((ROOT / "schemas/wire/features.v2.avsc").read_text()))
    (mark,) = [mark for mark, schema in values.versions.items() if schema == version]
    out = io.BytesIO(b"\xc3\x01" + mark)
    out.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(out, version, {**old, **NEW})
    assert values.decode(out.getvalue()) == {**old, **NEW}
    with pytest.raises(ValueError, match="newer schema"):
        values.decode(b"\xc3\x01" + bytes(8) + out.getvalue()[10:])


def test_lines_of_both_versions(reader, monkeypatch, capsys):
    old = reader.Values().decode(old_value())
    bare = {name: value for name, value in old.items() if name not in reader.ADDED}
    rows = [(["u", "a"], bare, 1), (["u", "b"], {**old, **NEW}, 1), (["u", "c"], {**old, **NEW}, 1), (["u", "c"], None, 2)]
    rows.append((["u", "b"], bare, 1))  # once more the same position: no harm
    lines = [
        json.dumps({"key": key, "value": value, "headers": {"ictflow-epoch": str(epoch), "ictflow-substep": "0"}})
        for key, value, epoch in rows
    ]

    def output(**options):
        monkeypatch.setattr("sys.stdin", lines)
        reader.run(SimpleNamespace(**{"stdin": True, "quiet": False, "neighbours": False} | options))
        return capsys.readouterr().out.splitlines()

    *printed, last = output(neighbours=True)
    assert json.loads(last) == {"live": 2, "seen": 3, "with_votes": 1, "kinds": {"decoder": 1, "attention": 1}}
    assert printed[0].startswith("epoch 1: user u item a: decoder of") and printed[0].endswith("votes none")
    assert "neighbours 2 of the item, 1 of the user" in printed[1]
    assert "item.count 3, item.rate 0.25," in printed[1] and printed[1].endswith("user.weighted_deviation 0")
    assert printed[2:5] == [
        "  same_item one label 0 score -0.500000",
        "  same_item two label 1 score 1.000000",
        "  same_user three label 1 score 0.000000",
    ]
    assert printed[-1] == "epoch 2: user u item c: gone"
    assert output(quiet=True, neighbours=True) == [last]
    lines = [lines[1].replace("0.25, ", "")]
    with pytest.raises(ValueError, match="8 votes"):
        output()

"""Reads and writes the dumps: JSON Lines of {topic, partition, offset, timestamp, key, headers, value}.

A record is a `Record`. A key that is no text is {"hex": ..}; a value that the program couldn't decode is
null beside `undecodable`, the hex of its bytes. Where a dump has them, `raw` is the hex of any value's bytes.
"""

import json
import struct
from pathlib import Path
from typing import NamedTuple

from framing import partition_of

INPUTS = ("interactions", "items", "candidates", "cot", "embeddings")
OUTPUTS = ("features", "examples", "dead_letters")


class Record(NamedTuple):
    """One record of a topic as the dump shows it."""

    topic: str
    partition: int
    offset: int
    timestamp: object
    key: object
    headers: dict
    value: object
    undecodable: object = None
    raw: object = None

    @property
    def source(self):
        """Hex of the value's bytes as they stood on the topic, where known."""
        return self.undecodable if self.raw is None else self.raw

    @property
    def position(self):
        return (self.topic, self.partition, self.offset)


class BadDump(Exception):
    """The dump itself can't be used."""


SUPERSEDED = {}


def read_dump(path, newest_only=False):
    """Records of one dump in (partition, offset) order. A position that comes twice is refused.

    `newest_only` keeps the value of each key's newest record and drops the older ones: a topic of many versions.
    """
    records, newest = [], {}
    with open(path, encoding="utf-8") as lines:
        for at, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
                records.append(
                    Record(
                        raw["topic"],
                        raw["partition"],
                        raw["offset"],
                        raw.get("timestamp"),
                        raw["key"],
                        raw.get("headers") or {},
                        raw["value"],
                        raw.get("undecodable"),
                        raw.get("raw"),
                    )
                )
            except (ValueError, KeyError, TypeError) as error:
                raise BadDump(f"{path}:{at}: not a record of a dump: {error!r}") from error
            if newest_only and records[-1].undecodable is None:
                supersede(records, newest)
    records.sort(key=lambda record: (record.partition, record.offset))
    for before, after in zip(records, records[1:]):
        if (before.partition, before.offset) == (after.partition, after.offset):
            raise BadDump(f"{path}: partition {after.partition} offset {after.offset} comes twice")
    return records


def supersede(records, newest):
    """Drops the older value of two: that of the last record, or that of the newest with its key."""
    at, key = len(records) - 1, json.dumps(records[-1].key)
    older = newest.setdefault(key, at)
    if older == at:
        return
    if records[older].position < records[at].position:
        newest[key] = at
    else:
        older = at
    records[older] = records[older]._replace(value=SUPERSEDED)


def write_dump(path, records):
    """The reverse of `read_dump`, for made-up worlds."""
    with open(path, "w", encoding="utf-8") as out:
        for record in records:
            row = {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "timestamp": record.timestamp,
                "key": record.key,
                "headers": record.headers,
                "value": record.value,
            }
            if record.undecodable is not None:
                row["undecodable"] = record.undecodable
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_folder(folder):
    """All dumps of a folder by name; `candidates`, `cot` and `embeddings` may be missing (an unused topic)."""
    folder = Path(folder)
    logs = {}
    for name in (*INPUTS, "epochs", *OUTPUTS):
        path = folder / f"{name}.jsonl"
        if path.exists():
            logs[name] = read_dump(path, newest_only=name in ("features", "examples"))
        elif name in ("candidates", "cot", "embeddings"):
            logs[name] = []
        else:
            raise BadDump(f"{path} is missing")
    return logs


def key_bytes(key):
    """Raw bytes of a key that is text or {"hex"}; None for a null key."""
    if key is None:
        return None
    if isinstance(key, str):
        return key.encode("utf-8")
    if isinstance(key, dict) and set(key) == {"hex"}:
        return bytes.fromhex(key["hex"])
    raise BadDump(f"a key of unknown form: {key!r}")


OPTIONAL = {
    "interactions": {"value": None, "impression_id": None},
    "items": {
        "title": None,
        "creator": None,
        "categories": [],
        "tags": [],
        "description": None,
        "language": None,
        "attributes": {},
        "updated_at": 0,
    },
    "candidates": {},
}


def filled(topic, value):
    """A value with the defaults of its schema."""
    return None if value is None else {**OPTIONAL[topic], **value}


def from_script(script, partitions, item_partitions=1):
    """Records of `interactions`, `items`, `candidates` as a producer would write a script of mutate.py."""
    counts = {"interactions": partitions, "items": item_partitions, "candidates": partitions}
    offsets = {topic: [0] * count for topic, count in counts.items()}
    logs = {topic: [] for topic in counts}
    with open(script, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            topic, key = row["topic"], row["key"]
            if row.get("partition") is not None:
                partition = row["partition"]
            elif key is None:
                partition = 0
            else:
                partition = partition_of(key.encode("utf-8"), counts[topic])
            offset = offsets[topic][partition]
            offsets[topic][partition] += 1
            raw = row.get("raw")
            value = None if raw is not None else filled(topic, row.get("value"))
            logs[topic].append(
                Record(topic, partition, offset, row.get("timestamp"), key, {}, value, raw)
            )
    for records in logs.values():
        records.sort(key=lambda record: (record.partition, record.offset))
    return logs, counts


class NotAvro(Exception):
    """The bytes are no Avro of the schema."""


class Avro:
    """Just enough of Avro's binary form to read the three input schemas."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, n):
        if n < 0 or self.at + n > len(self.data):
            raise NotAvro
        piece = self.data[self.at : self.at + n]
        self.at += n
        return piece

    def long(self):
        value, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise NotAvro
        return (value >> 1) ^ -(value & 1)

    def string(self):
        try:
            return self.take(self.long()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotAvro from error

    def double(self):
        return struct.unpack("<d", self.take(8))[0]

    def optional(self, read):
        branch = self.long()
        if branch not in (0, 1):
            raise NotAvro
        return read() if branch else None

    def blocks(self):
        while count := self.long():
            if count < 0:
                count = -count
                self.long()
            if count > len(self.data):
                raise NotAvro
            yield from range(count)

    def strings(self):
        return [self.string() for _ in self.blocks()]

    def text_map(self):
        return {self.string(): self.string() for _ in self.blocks()}


def _avro_interactions(a):
    return {
        "event_id": a.string(),
        "user_id": a.string(),
        "item_id": a.string(),
        "kind": a.string(),
        "value": a.optional(a.double),
        "impression_id": a.optional(a.string),
        "event_time": a.long(),
    }


def _avro_items(a):
    return {
        "title": a.optional(a.string),
        "creator": a.optional(a.string),
        "categories": a.strings(),
        "tags": a.strings(),
        "description": a.optional(a.string),
        "language": a.optional(a.string),
        "attributes": a.text_map(),
        "updated_at": a.long(),
    }


def _avro_candidates(a):
    return {"computed_at": a.long(), "items": a.strings()}


READERS = {"interactions": _avro_interactions, "items": _avro_items, "candidates": _avro_candidates}


def _put_long(number):
    zigzag, out = number * 2 if number >= 0 else -number * 2 - 1, bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes(out) + bytes([zigzag])


def _put_text(text):
    raw = text.encode("utf-8")
    return _put_long(len(raw)) + raw


def _put_optional(text):
    return b"\x00" if text is None else b"\x02" + _put_text(text)


def _put_block(members):
    return (_put_long(len(members)) + b"".join(members) if members else b"") + b"\x00"


def single_object(topic, value):
    """A value as single-object Avro, which producers of a script's records write; the fingerprint is left zero."""
    if topic == "interactions":
        fields = [_put_text(value[field]) for field in ("event_id", "user_id", "item_id", "kind")]
        number = value["value"]
        fields.append(b"\x00" if number is None else b"\x02" + struct.pack("<d", number))
        fields += [_put_optional(value["impression_id"]), _put_long(value["event_time"])]
    elif topic == "items":
        fields = [
            _put_optional(value["title"]),
            _put_optional(value["creator"]),
            _put_block([_put_text(text) for text in value["categories"]]),
            _put_block([_put_text(text) for text in value["tags"]]),
            _put_optional(value["description"]),
            _put_optional(value["language"]),
            _put_block([_put_text(name) + _put_text(text) for name, text in value["attributes"].items()]),
            _put_long(value["updated_at"]),
        ]
    else:
        fields = [_put_long(value["computed_at"]), _put_block([_put_text(item) for item in value["items"]])]
    return b"\xc3\x01" + bytes(8) + b"".join(fields)


def record_size(topic, record):
    """Bytes of a record of an input, key and value; without raw bytes those of `single_object`."""
    key = key_bytes(record.key) or b""
    if record.source is not None:
        return len(key) + len(record.source) // 2
    return len(key) + (0 if record.value is None else len(single_object(topic, record.value)))


def decodes_to(topic, payload, value):
    """Do raw bytes (JSON, or Avro: bare, behind a registry header, single-object) mean this value?"""
    want = filled(topic, value)

    def same(got):
        return got == want or repr(got) == repr(want)

    try:
        got = json.loads(payload.decode("utf-8"))
        if isinstance(got, dict) and same(filled(topic, got)):
            return True
    except ValueError:
        pass
    # The headers that stand before an Avro datum: none, a registry's, the single-object marker.
    for header, skip in ((b"", 0), (b"\x00", 5), (b"\xc3\x01", 10)):
        if not payload.startswith(header):
            continue
        reader = Avro(payload[skip:])
        try:
            got = READERS[topic](reader)
        except (NotAvro, struct.error):
            continue
        if reader.at == len(reader.data) and same(got):
            return True
    return False

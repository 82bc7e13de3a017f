"""Bytes of the design: framed parts, digests, item texts, partitions, hashed rows, ids, signs, quantised vectors.

Everything here is a pure function. Nothing is shared with the program under test.
"""

import hashlib
import json
import struct
import unicodedata
import uuid
import zlib

import numpy as np
from blake3 import blake3

I64_MIN = -(2**63)
I64_MAX = 2**63 - 1

# The Unicode property White_Space. `str.isspace` is another set: it has U+001C to U+001F.
WHITE_SPACE = frozenset(
    [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
)
# Category Cc never changes: it is just C0, DEL and C1.
CONTROL = frozenset([*range(0x00, 0x20), *range(0x7F, 0xA0)])
BLANK = WHITE_SPACE | CONTROL

TEXT_FIELDS = ("title", "creator", "categories", "tags", "description", "language")


def part_bytes(part):
    """One part: text is UTF-8, an integer i64 big-endian, bytes are themselves."""
    if isinstance(part, bytes):
        return part
    if isinstance(part, str):
        return part.encode("utf-8")
    if isinstance(part, int) and not isinstance(part, bool):
        return struct.pack(">q", part)
    raise TypeError(f"no bytes for a part of type {type(part).__name__}")


def framed(*parts):
    """Each part behind its length, u32 big-endian."""
    out = bytearray()
    for part in parts:
        raw = part_bytes(part)
        out += struct.pack(">I", len(raw))
        out += raw
    return bytes(out)


def digest(*parts):
    """BLAKE3 of the framed parts; the first part is the domain word."""
    return blake3(framed(*parts)).digest()


def number(raw_digest):
    """A number from a digest: its first 8 bytes, u64 big-endian."""
    return int.from_bytes(raw_digest[:8], "big")


def normalise(text):
    """NFC, each run of white space or control characters to one blank, trimmed."""
    out = []
    pending = False
    for char in unicodedata.normalize("NFC", text):
        if ord(char) in BLANK:
            pending = bool(out)
        else:
            if pending:
                out.append(" ")
                pending = False
            out.append(char)
    return "".join(out)


def item_text(item):
    """The text of an item; fields that are empty once normalised are left out."""
    lines = []
    for field in TEXT_FIELDS:
        value = item.get(field)
        if isinstance(value, list):
            value = ", ".join(value)
        value = normalise(value or "")
        if value:
            lines.append(f"{field}: {value}")
    return "\n".join(lines)


def text_digest(text):
    """Digest of an item's text or of a CoT text."""
    return digest("text", text)


def canonical_json(value):
    """Sorted keys, no blanks, text beyond ASCII unescaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(prompt_version, llm_model, parameters, user, item, item_digest, decision, history):
    """The raw content key; history = [(item, kind, label)], oldest first, already cut to P."""
    flat = [member for entry in history for member in entry]
    return digest(
        "key", prompt_version, llm_model, parameters, user, item, item_digest, decision, len(history), *flat
    )


def identity_number(user, time, event_id):
    """The hash of an example."""
    return number(digest("identity", user, time, event_id))


def hashed_row(table, name, rows):
    """Row of an id in a hashed table; row 0 stays free for `absent`."""
    return 1 + number(digest("row", table, name)) % (rows - 1)


POINT_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "ictflow:demonstration")
EXAMPLE_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "ictflow:example")


def _uuid5(namespace, name):
    """UUIDv5 over raw bytes (the standard function takes text only)."""
    raw = hashlib.sha1(namespace.bytes + name).digest()[:16]
    return str(uuid.UUID(bytes=raw, version=5))


def point_id(user, time, event_id, prompt_version):
    """The id of a demonstration."""
    return _uuid5(POINT_NAMESPACE, framed(user, time, event_id, prompt_version))


def neighbour_id(user, time, event_id):
    """The id of an example that is a neighbour."""
    return _uuid5(EXAMPLE_NAMESPACE, framed(user, time, event_id))


SKETCH_WIDTH = 1024


def signs(table, name):
    """The signs of an id in a table, `user` or `item`: 1 for a set bit, -1 for another, as int64."""
    raw = blake3(framed("sketch", table, name)).digest(length=SKETCH_WIDTH // 8)
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")
    return 2 * bits.astype(np.int64) - 1


def murmur2(data):
    """MurmurHash2 with the seed of the Java client of Kafka, as i32."""
    mask = 0xFFFFFFFF
    m = 0x5BD1E995
    length = len(data)
    h = (0x9747B28C ^ length) & mask
    whole = length - length % 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little")
        k = (k * m) & mask
        k ^= k >> 24
        k = (k * m) & mask
        h = ((h * m) & mask) ^ k
    tail = data[whole:]
    if tail:
        h ^= int.from_bytes(tail, "little")
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    h ^= h >> 15
    return h - 2**32 if h >= 2**31 else h


def partition_of(key, count, partitioner="murmur2"):
    """Partition of raw key bytes: murmur2 as in Java, or crc32 as in librdkafka's own default."""
    if partitioner == "crc32":
        return zlib.crc32(key) % count
    return (murmur2(key) & 0x7FFFFFFF) % count


def quantise(vector):
    """f32 vector to i16: times 2^14, round half to even, saturated."""
    wide = np.asarray(vector, dtype=np.float32).astype(np.float64) * 16384.0
    return np.clip(np.rint(wide), -32768, 32767).astype(np.int16)


def rounded_mean(vectors, width):
    """a_c: floor((2 sum + n) / 2n) by component; zeros for no vector."""
    if len(vectors) == 0:
        return np.zeros(width, dtype=np.int64)
    total = np.sum(np.asarray(vectors, dtype=np.int64), axis=0)
    n = len(vectors)
    return np.floor_divide(2 * total + n, 2 * n)

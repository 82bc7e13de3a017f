#!/usr/bin/env python3
"""A reader of the feature topic: keeps the newest vector of every live pair.

    python3 deploy/reader.py --bootstrap 127.0.0.1:9092 --topic features [--until-end]
    ictflow tail --state DIR | python3 deploy/reader.py --stdin

What a subscriber has to do, and why:
  * read_committed: an epoch is one transaction; what an aborted one wrote must stay unseen;
  * a record is an upsert of its key (user, item), a null value a tombstone: the pair isn't live any more;
  * (key, epoch, substep) from the headers names a record: a broker that shows one twice does no harm.

Needs `confluent-kafka` and `fastavro` for Kafka, nothing for `--stdin`.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

SCHEMA = Path(__file__).resolve().parent.parent / "schemas" / "wire" / "features.v1.avsc"


def parts(key):
    """The framed parts of a key: each a u32 big-endian length and UTF-8 bytes."""
    out, at = [], 0
    while at < len(key):
        (length,) = struct.unpack_from(">I", key, at)
        out.append(key[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return tuple(out)


def from_kafka(bootstrap, topic, until_end):
    """(key, value, headers) of committed records, from the beginning."""
    import fastavro
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    schema = fastavro.parse_schema(json.loads(SCHEMA.read_text()))
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "ictflow-reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    ended = set()
    while not (until_end and len(ended) == len(partitions)):
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            if message.error().code() != KafkaError._PARTITION_EOF:
                sys.exit(f"reader: {message.error()}")
            ended.add(message.partition())
            continue
        value = message.value()
        if value is not None:
            # Single-object Avro: the marker C3 01, the schema's fingerprint, the datum.
            if value[:2] != b"\xc3\x01":
                sys.exit("reader: a value without the single-object marker: is a registry configured?")
            from io import BytesIO

            value = fastavro.schemaless_reader(BytesIO(value[10:]), schema)
        headers = {name: text.decode() for name, text in message.headers() or []}
        yield parts(message.key()), value, headers
    consumer.close()


def from_lines(lines):
    """The same from the output of `ictflow tail`."""
    for line in lines:
        record = json.loads(line)
        yield tuple(record["key"]), record["value"], record["headers"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bootstrap", default="127.0.0.1:9092")
    options.add_argument("--topic", default="features")
    options.add_argument("--until-end", action="store_true", help="stop at the end of every partition")
    options.add_argument("--stdin", action="store_true", help="read lines of `ictflow tail`")
    options.add_argument("--quiet", action="store_true", help="print the last state only")
    options = options.parse_args()
    records = from_lines(sys.stdin) if options.stdin else from_kafka(options.bootstrap, options.topic, options.until_end)
    vectors, newest = {}, {}
    for key, value, headers in records:
        place = (int(headers["ictflow-epoch"]), int(headers["ictflow-substep"]))
        if newest.get(key, (-1, -1)) >= place:
            continue
        newest[key] = place
        if value is None:
            vectors.pop(key, None)
        else:
            vectors[key] = value["ict"]
        if not options.quiet:
            status = "gone" if value is None else f"{value['cot_status']}, k {value['k']}, |v| {len(value['ict'])}"
            print(f"epoch {place[0]}: user {key[0]} item {key[1]}: {status}")
    print(json.dumps({"live": len(vectors), "seen": len(newest)}))


if __name__ == "__main__":
    main()

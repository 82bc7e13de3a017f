#!/usr/bin/env python3
"""A reader of the feature topic: keeps the newest vector of every live pair.

    python3 deploy/reader.py --bootstrap 127.0.0.1:9092 --topic features [--until-end]
    python3 deploy/reader.py --epochs epochs --job ictflow      # the topic that the job writes now, also after a promote
    python3 deploy/reader.py --registry http://127.0.0.1:8081   # values framed by a schema registry
    ictflow tail --state DIR | python3 deploy/reader.py --stdin

What a subscriber has to do, and why:
  * read_committed: an epoch is one transaction; what an aborted one wrote must stay unseen;
  * from the beginning: the topic is compacted, so the newest vector of every live pair stands on it;
  * a record is an upsert of its key (user, item), a null value a tombstone: the pair isn't live any more;
  * (key, epoch, substep) from the headers names a record: a broker that shows one twice does no harm;
  * `vector_kind` says what `ict` is made of: vectors of two kinds, or of two `ict_weights`, don't compare;
  * `votes` are nine scalars beside the vector, ready for a ranker; `neighbours` are the labelled examples that vote;
  * a record of before these three fields existed reads as no votes, no neighbours and the kind `decoder`;
  * a promote or a rollback names another topic on `epochs`: it holds everything, so it is read from its beginning.

Prints a line for every change and, at the end, the number of live pairs, of those with votes, and by kind of vector.
`--neighbours` prints the neighbours, too. Needs `confluent-kafka` and
`fastavro` for Kafka, nothing for `--stdin`.
"""

import argparse
import io
import json
import os
import struct
import sys
import urllib.request
from collections import Counter
from pathlib import Path

WIRE = Path(__file__).resolve().parent.parent / "schemas" / "wire"
MARKER = b"\xc3\x01"
# Of the item: how many labels of others its ring has, their rate, the mean label of the selected and the mean by
# similarity. Of the user: how many were selected, the same two means, and both of labels less their items' rates.
# Counts are as they are, means less one half; 0 where there is nothing.
VOTES = (
    "item.count",
    "item.rate",
    "item.mean",
    "item.weighted",
    "user.count",
    "user.mean",
    "user.weighted",
    "user.deviation",
    "user.weighted_deviation",
)
# What a value of features.v1 lacks. Avro fills it from the newest schema; `ictflow tail` may show values without.
ADDED = {"votes": [], "neighbours": [], "vector_kind": "decoder"}


def parts(key):
    """The framed parts of a key: each a u32 big-endian length and UTF-8 bytes."""
    out, at = [], 0
    while at < len(key):
        (length,) = struct.unpack_from(">I", key, at)
        at += 4
        if at + length > len(key):
            raise ValueError(f"a key that is no frame: {key.hex()}")
        out.append(key[at : at + length].decode())
        at += length
    return tuple(out)


class Values:
    """Single-object Avro: the marker C3 01, the writer schema's fingerprint (8 bytes), the datum. With a registry
    also its framing: a zero byte, the writer schema's id (u32 big-endian), the datum."""

    def __init__(self, registry=None, name="features"):
        import fastavro
        from fastavro.schema import fingerprint, to_parsing_canonical_form

        self.parse, self.read = fastavro.parse_schema, fastavro.schemaless_reader
        self.registry, self.ids = registry, {}
        self.versions, self.newest = {}, None
        files = WIRE.glob(f"{name}.v*.avsc")
        for file in sorted(files, key=lambda file: int(file.name.split(".")[1][1:])):
            schema = json.loads(file.read_text())
            self.newest = fastavro.parse_schema(schema)
            mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
            self.versions[mark] = self.newest

    def decode(self, value):
        """A value of any version, as the newest one."""
        if value[:1] == b"\0" and len(value) > 5:
            (number,) = struct.unpack_from(">I", value, 1)
            return self.read(io.BytesIO(value[5:]), self.of_registry(number), self.newest)
        schema = self.versions.get(value[2:10])
        if value[:2] != MARKER or schema is None:
            raise ValueError(f"a value with another framing or a newer schema: it starts with {value[:10].hex()}")
        return self.read(io.BytesIO(value[10:]), schema, self.newest)

    def of_registry(self, number):
        """The schema of an id. The registry never changes one, so each is asked for once."""
        if self.registry is None:
            raise ValueError("values are framed by a schema registry: give its URL with --registry")
        if number not in self.ids:
            url = f"{self.registry.rstrip('/')}/schemas/ids/{number}"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    self.ids[number] = self.parse(json.loads(json.load(answer)["schema"]))
            except OSError as error:
                raise ValueError(f"{url}: {error}") from error
        return self.ids[number]


class Followed:
    """The features that a job writes now: those that the newest bounds record with outputs names."""

    def __init__(self, topic, epochs, job, registry):
        self.topic, self.epochs, self.job = topic, epochs, job
        self.values = Values(registry, "epochs") if epochs else None
        self.newest = 0

    def switched(self, message):
        """Whether a record of `epochs` names another topic. For an equal epoch the lowest offset wins."""
        if message.value() is None:
            return False
        record = self.values.decode(message.value())
        if record["job"] != self.job or record["epoch"] <= self.newest:
            return False
        self.newest = record["epoch"]
        before, outputs = self.topic, record["outputs"]
        self.topic = outputs["features"] if outputs else before
        return self.topic != before


def from_kafka(options):
    """(key, value, headers) of committed records, from the beginning; None where another topic begins."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

    values = Values(options.registry)
    followed = Followed(options.topic, options.epochs, options.job, options.registry)
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "group.id": "ictflow-reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )

    def partitions(topic):
        try:
            found = consumer.list_topics(topic, timeout=10).topics[topic]
        except KafkaException as error:
            raise ValueError(f"{options.bootstrap}: {error}") from error
        if found.error:
            raise ValueError(f"topic {topic}: {found.error}")
        return [TopicPartition(topic, p, OFFSET_BEGINNING) for p in found.partitions]

    bounds = partitions(options.epochs) if options.epochs else []
    # The log of bounds first, to its end: it says which topic to read.
    reading = bounds or partitions(followed.topic)
    consumer.assign(reading)
    ended, looked = set(), not bounds
    try:
        while True:
            if len(ended) == len(reading):
                if looked and options.until_end:
                    return
                if not looked:
                    looked, ended, reading = True, set(), bounds + partitions(followed.topic)
                    consumer.assign(reading)
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                if message.error().code() == KafkaError._PARTITION_EOF:
                    ended.add((message.topic(), message.partition()))
                elif message.error().fatal():
                    raise ValueError(message.error())
                else:
                    # The client library tries again by itself.
                    print(f"reader: {message.error()}", file=sys.stderr)
                continue
            if message.topic() == options.epochs:
                if followed.switched(message) and looked:
                    print(f"reader: the job writes {followed.topic} now", file=sys.stderr)
                    ended, reading = set(), bounds + partitions(followed.topic)
                    consumer.assign(reading)
                    yield None
                continue
            value = message.value()
            headers = {name: text.decode() for name, text in message.headers() or []}
            yield parts(message.key()), None if value is None else values.decode(value), headers
    finally:
        consumer.close()


def from_lines(lines):
    """The same from the output of `ictflow tail`."""
    for line in lines:
        record = json.loads(line)
        if not isinstance(record["key"], list) or "undecodable" in record:
            raise ValueError(f"not a record of features: {line.strip()}")
        yield tuple(record["key"]), record["value"], record["headers"]


def described(value):
    """One line for a feature."""
    of = {source: sum(n["source"] == source for n in value["neighbours"]) for source in ("same_item", "same_user")}
    votes = ", ".join(f"{name} {number:.6g}" for name, number in zip(VOTES, value["votes"])) or "none"
    return (
        f"{value['vector_kind']} of {len(value['ict'])} values, {value['cot_status']}, k {value['k']}, "
        f"neighbours {of['same_item']} of the item, {of['same_user']} of the user, votes {votes}"
    )


def run(options):
    records = from_lines(sys.stdin) if options.stdin else from_kafka(options)
    live, newest = {}, {}
    try:
        for record in records:
            if record is None:
                live, newest = {}, {}
                continue
            key, value, headers = record
            if "ictflow-epoch" not in headers:
                raise ValueError(f"a record that ictflow didn't publish: key {key}")
            place = (int(headers["ictflow-epoch"]), int(headers["ictflow-substep"]))
            # A backfill's epochs are below zero: all that the job writes after a promote is newer.
            if key in newest and newest[key] >= place:
                continue
            newest[key] = place
            if value is None:
                live.pop(key, None)
            else:
                value = ADDED | value
                if len(value["votes"]) not in (0, len(VOTES)):
                    raise ValueError(f"{len(value['votes'])} votes, this reader knows {len(VOTES)}: key {key}")
                # What a ranker keeps of a pair.
                live[key] = (value["vector_kind"], value["ict"], value["votes"])
            if not options.quiet:
                print(f"epoch {place[0]}: user {key[0]} item {key[1]}: {'gone' if value is None else described(value)}")
            if options.neighbours and not options.quiet and value is not None:
                for n in value["neighbours"]:
                    print(f"  {n['source']} {n['id']} label {n['label']} score {n['score'] / 2**28:.6f}")
    except KeyboardInterrupt:
        pass
    kinds = Counter(kind for kind, _, _ in live.values())
    with_votes = sum(bool(votes) for _, _, votes in live.values())
    print(json.dumps({"live": len(live), "seen": len(newest), "with_votes": with_votes, "kinds": kinds}))
    sys.stdout.flush()


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bootstrap", default="127.0.0.1:9092")
    options.add_argument("--topic", default="features")
    options.add_argument("--epochs", help="the job's log of bounds: follow the topic that it names, else --topic")
    options.add_argument("--job", default="ictflow", help="the job on that log")
    options.add_argument("--registry", help="the base URL of the schema registry that frames the values")
    options.add_argument("--until-end", action="store_true", help="stop at the end of every partition")
    options.add_argument("--stdin", action="store_true", help="read lines of `ictflow tail`")
    options.add_argument("--quiet", action="store_true", help="print the last state only")
    options.add_argument("--neighbours", action="store_true", help="print the neighbours of each feature, nearest last")
    try:
        run(options.parse_args())
    except BrokenPipeError:
        # Whoever read our lines has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (ImportError, ValueError) as error:
        sys.exit(f"reader: {error}")


if __name__ == "__main__":
    main()

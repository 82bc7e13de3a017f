#!/usr/bin/env python3
"""A producer that isn't ours: registers its schemas, frames values by fastavro, sends them to Kafka.

    produce.py --bootstrap HOST:PORT --registry URL < lines

A line: {topic, partition, key: hex or null, timestamp, value, schema: text or null, raw: hex or null}. With
`schema` the value is written under it, and registered as TOPIC-value; else the bytes are those of `raw`; with
neither it is a tombstone. Prints {"ids": {schema: id}}.
"""

import argparse
import io
import json
import struct
import sys
import urllib.request


def register(registry, subject, schema):
    """The id of a schema under a subject."""
    request = urllib.request.Request(
        f"{registry}/subjects/{subject}/versions",
        data=json.dumps({"schema": schema}).encode(),
        headers={"content-type": "application/vnd.schemaregistry.v1+json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["id"]


def main():
    import fastavro
    from confluent_kafka import Producer

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bootstrap", required=True)
    options.add_argument("--registry", required=True)
    options = options.parse_args()
    failed = []
    producer = Producer({"bootstrap.servers": options.bootstrap, "acks": "all", "enable.idempotence": True})
    known, ids = {}, {}
    for line in sys.stdin:
        line = json.loads(line)
        value = None
        if line["schema"] is not None:
            place = (line["topic"], line["schema"])
            if place not in known:
                number = register(options.registry, f"{line['topic']}-value", line["schema"])
                known[place] = (number, fastavro.parse_schema(json.loads(line["schema"])))
                ids[line["schema"]] = number
            number, schema = known[place]
            out = io.BytesIO()
            fastavro.schemaless_writer(out, schema, line["value"])
            value = struct.pack(">BI", 0, number) + out.getvalue()
        elif line["raw"] is not None:
            value = bytes.fromhex(line["raw"])
        extra = {} if line["timestamp"] is None else {"timestamp": line["timestamp"]}
        producer.produce(
            line["topic"],
            value=value,
            key=None if line["key"] is None else bytes.fromhex(line["key"]),
            partition=line["partition"],
            on_delivery=lambda error, _: error and failed.append(str(error)),
            **extra,
        )
        producer.poll(0)
    producer.flush(60)
    if failed:
        sys.exit(f"produce: {failed[0]}")
    print(json.dumps({"ids": ids}))


if __name__ == "__main__":
    main()

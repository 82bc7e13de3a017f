"""Writes training_set.parquet with pyarrow, as another program's training set, and with an argument reads the
one that ictflow wrote.

    python training_set.py                 writes training_set.parquet beside this file
    python training_set.py FILE.parquet    prints a training set's schema and first rows

Needs pyarrow, which no test does.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

T = 1_700_000_000_000


def write(path):
    time = pa.timestamp("us", tz="UTC")
    entry = pa.struct([("kind", pa.string()), ("item_id", pa.large_string()), ("event_time", time), ("label", pa.string())])
    micros = lambda millis: millis * 1_000
    film = ("Fïlm", ["drama", "war"])
    rows = [
        ("ann", "m1", 1, 1, [], *film),
        ("bob", "m2", 2, 0, [("m1", "positive", T), ("m3", "none", T + 1)], None, None),
        ("ann", "m1", 3, 0, [("m2", "negative", T + 2)], *film),
    ]
    column = lambda n: [row[n] for row in rows]
    history = [
        [{"kind": "play", "item_id": i, "event_time": micros(t), "label": label} for i, label, t in row[4]] for row in rows
    ]
    table = pa.table(
        {
            "score": pa.array([0.1, None, 0.3]),
            "label": pa.array(column(3), pa.int8()),
            "user_id": pa.array(column(0)).dictionary_encode(),
            "item_id": pa.array(column(1), pa.large_string()),
            "event_time": pa.array([micros(T + row[2]) for row in rows], time),
            "event_id": pa.array([f"e{row[2]}" for row in rows]),
            "implicit": pa.array([row[3] == 0 for row in rows]),
            "label_time": pa.array([micros(T + row[2] + 1_800_000) for row in rows], time),
            "history": pa.array(history, pa.list_(entry)),
            "title": pa.array(column(5)),
            "categories": pa.array(column(6), pa.list_(pa.string())),
        }
    )
    pq.write_table(table, path, compression="snappy", row_group_size=2)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        table = pq.read_table(sys.argv[1])
        print(table.schema)
        print(table.num_rows, table.slice(0, 3).to_pylist())
    else:
        write(Path(__file__).with_suffix(".parquet"))

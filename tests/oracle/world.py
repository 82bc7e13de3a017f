"""Makes a consistent world out of a script: the dumps that a correct program would leave, with made-up answers.

    python world.py --script script.jsonl --out DIR [--seed S] [--width D] [--partitions P]
                    [--max-window-events W] [--pool N] [--kind decoder|attention]

Vectors and CoT texts are invented (seeded); outputs are the oracle's own, so this proves nothing about a program.
It serves to test the oracle (planted faults, run time) and to see which rules a script can reach once there are
answers: some are missing, failed, stale, unusable, withdrawn or of another prompt on purpose.
`--pool N` takes all vectors from N, so that many scores are equal.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

import logs as dumps
from framing import canonical_json, item_text, partition_of, text_digest
from ict import Ict, random_weights, write_safetensors
from logs import Record, single_object
from oracle import expected_dead_letters, expected_examples, expected_features
from rules import Config, World, decision

ROWS = {"user": 4096, "item": 4096, "creator": 512, "category": 128}
STAMP = 1_700_000_000_000


class Vectors:
    """Invented unit vectors by text digest."""

    def __init__(self, seed, width, pool):
        self.seed, self.width, self.pool = seed, width, pool

    def of(self, raw_digest):
        number = int.from_bytes(raw_digest[:8], "big")
        number = number % self.pool if self.pool else number
        vector = np.random.default_rng([self.seed, number]).standard_normal(self.width)
        return [float(x) for x in (vector / np.linalg.norm(vector)).astype(np.float32)]


class Log:
    """An internal log in the making."""

    def __init__(self, topic, partitions):
        self.topic = topic
        self.offsets = [0] * partitions
        self.records = []

    def put(self, key, value, partition=0, headers=None, undecodable=None):
        self.records.append(
            Record(self.topic, partition, self.offsets[partition], STAMP, key, headers or {}, value, undecodable)
        )
        self.offsets[partition] += 1

    def done(self):
        return sorted(self.records, key=lambda record: (record.partition, record.offset))


def embed_items(log, items, encoder, vectors, dice):
    """Vectors of all item texts that ever were, but for some: not embedded yet, failed, or unusable."""
    texts = {}
    for record in items:
        if record.value is not None:
            texts.setdefault(text_digest(item_text(record.value)), record.key)
    edited = {}
    for raw, key in texts.items():
        edited.setdefault(key, []).append(raw)
    not_yet = {history[-1] for history in edited.values() if len(history) > 1 and dice.random() < 0.3}
    for raw in texts:
        if raw in not_yet:
            if dice.random() < 0.5:
                log.put([encoder, "failed:" + raw.hex()], embedding(encoder, raw, None))
            continue
        draw = dice.random()
        key = [encoder, raw.hex()]
        if draw < 0.02:
            log.put(["failed:" + encoder, raw.hex()], embedding(encoder, raw, None))  # a key of no form: unusable
            log.put([encoder, "failed:" + raw.hex()], embedding(encoder, raw, None))
        elif draw < 0.04:
            log.put(key, embedding(encoder, raw, vectors.of(raw)))
            log.put(key, embedding(encoder, raw, [2 * x for x in vectors.of(raw)]))  # norm 2: counts as a tombstone
        elif draw < 0.06:
            log.put(["another encoder", raw.hex()], embedding("another encoder", raw, vectors.of(raw)))
        else:
            if draw < 0.10:
                log.put(key, embedding(encoder, raw, vectors.of(raw[::-1])))  # the greater offset wins
            if draw > 0.95:
                log.put([encoder, "failed:" + raw.hex()], embedding(encoder, raw, None))  # ok beats it
            log.put(key, embedding(encoder, raw, vectors.of(raw)))


def embedding(encoder, raw, vector):
    """A value of `embeddings`; no vector is a failure."""
    return {
        "encoder": encoder,
        "digest": raw.hex(),
        "status": "failed" if vector is None else "ok",
        "vector": vector or [],
    }


def answer(actives, example, text, at):
    """A value of `cot`; no text is a failure."""
    return {
        "status": "failed" if text is None else "ok",
        "user_id": example.user,
        "item_id": example.item,
        "decision": decision(example.label),
        "prompt_version": actives["prompt_version"],
        "llm_model": actives["llm_model"],
        "parameters": "{}",
        "text": text or "",
        "attempts": 1,
        "tokens_in": 300,
        "tokens_out": 60,
        "finish_reason": "stop",
        "quality": 0.5,
        "created_at": STAMP + at,
    }


def answer_keys(cot, embeddings, world, counts, vectors, dice):
    """Answers for the eligible examples: most are fresh, the others take every other way."""
    actives, encoder = world.actives, world.actives["encoder"]

    def put(example, key, text, at, known=True, **changes):
        partition = partition_of(example.user.encode(), counts["interactions"])
        prefix = "failed:" if text is None else ""
        cot.put(prefix + key.hex(), {**answer(actives, example, text, at), **changes}, partition)
        if text is not None and known:
            raw = text_digest(text)
            embeddings.put([encoder, raw.hex()], embedding(encoder, raw, vectors.of(raw)))

    for at, (example, key) in enumerate(world.eligible):
        partition = partition_of(example.user.encode(), counts["interactions"])
        digests = world.items[example.item].digests
        draw = dice.random()
        if len(digests) > 1 and dice.random() < 0.6:
            old = world.key_of(example, digests[-1])
            put(example, old, f"Before the edit {at}", at)
            draw *= 0.5  # the new key is often not answered yet
        if draw < 0.10:
            continue
        if draw < 0.14:
            put(example, key, None, at)  # failed for good
        elif draw < 0.18:
            put(example, key, f"Not embedded {at}", at, known=False)
        elif draw < 0.22:
            put(example, key, f"Withdrawn {at}", at)
            cot.put(key.hex(), None, partition)
        elif draw < 0.26:
            put(example, key, f"Then unusable {at}", at)
            put(example, key, f"A word that is no decision {at}", at, decision="maybe")
        elif draw < 0.30:
            other = "negative" if example.label else "positive"
            put(example, bytes(reversed(key)), f"Argues against the label {at}", at, decision=other)
            put(example, bytes(key[1:] + key[:1]), f"Of another prompt {at}", at, prompt_version="other@00")
        elif draw < 0.34:
            put(example, bytes(reversed(key)), f"Of another history {at}", at)
        elif draw < 0.38:
            put(example, key, f"First {at}", at + 1)
            put(example, key, None, at)  # a failure never beats an answer
        elif draw < 0.42:
            put(example, key, f"First {at}", at)
            put(example, key, f"Second {at}", at + 7)
        else:
            put(example, key, f"Why they match {at}", at)


def headers(epoch, substep=0):
    """Headers of an output record."""
    return {"ictflow-epoch": str(epoch), "ictflow-substep": str(substep), "ictflow-published-at": str(STAMP)}


def outputs(topic, values, partitions, dice, epoch, old):
    """Records of a compacted output: some keys have an older value first, some keys have left by tombstone."""
    log = Log(topic, partitions)
    for key in sorted(values):
        partition = partition_of(key[0].encode(), partitions)
        if dice.random() < 0.1:
            log.put(list(key), old(values[key]), partition, headers(epoch - 1))
        log.put(list(key), values[key], partition, headers(epoch))
    for count in range(5):
        key = [f"gone{count}", *list(next(iter(values)))[1:]] if values else [f"gone{count}", "x"]
        partition = partition_of(key[0].encode(), partitions)
        log.put(key, old(next(iter(values.values()))) if values else {}, partition, headers(epoch - 1))
        log.put(key, None, partition, headers(epoch, 1))
    return log.done()


def erase(users, logs, counts):
    """Erasures of users, below an offset at a half of their partitions' records."""
    out = []
    for user in users:
        below = {}
        for topic in ("interactions", "candidates"):
            home = partition_of(user.encode(), counts[topic])
            offsets = [record.offset for record in logs[topic] if record.partition == home]
            below[topic] = offsets[len(offsets) // 2]
        out.append({"user": user, **below})
    return out


def make(
    script, folder, seed=1, width=384, partitions=3, pool=0, rows=None, kind="decoder", erased=(), **config_changes
):
    """Writes all dumps, `wanted.txt` and `weights.safetensors` into the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(seed)
    logs, counts = dumps.from_script(script, partitions)
    config = Config.default(**config_changes)
    erasures = erase(erased, logs, counts)
    below = {erasure["user"]: (erasure["interactions"], erasure["candidates"]) for erasure in erasures}
    tensors = random_weights(seed, width, rows or ROWS, kind)
    tensors["text.centre"] = np.rint(np.random.default_rng(seed).standard_normal(width) * 2**12 / np.sqrt(width))
    write_safetensors(folder / "weights.safetensors", tensors, kind)
    weights = Ict(folder / "weights.safetensors")
    actives = {
        "llm_model": "9f" * 32,
        "prompt_version": "match-1@0a0a0a0a0a0a0a0a",
        "parameters": canonical_json({"max_tokens": 96, "temperature": "0"}),
        "encoder": "made-up/mean/256",
        "ict_weights": weights.version,
    }
    vectors = Vectors(seed, width, pool)
    embeddings = Log("embeddings", 1)
    embed_items(embeddings, logs["items"], actives["encoder"], vectors, dice)
    draft = World({**logs, "cot": [], "embeddings": embeddings.records}, counts, config, actives, below)
    cot = Log("cot", partitions)
    answer_keys(cot, embeddings, draft, counts, vectors, dice)
    logs["cot"], logs["embeddings"] = cot.done(), embeddings.done()
    counts |= {"cot": partitions, "embeddings": 1}
    world = World(logs, counts, config, actives, below)

    ends = {name: [0] * counts[name] for name in dumps.INPUTS}
    for name in dumps.INPUTS:
        for record in logs[name]:
            ends[name][record.partition] = record.offset + 1
    epochs = Log("epochs", 1)
    start = {**ends, "interactions": [0] * partitions}
    record = {"job": "demo", "actives": actives, "config_digest": config.digest}
    nothing = [-(2**63)] * partitions
    for epoch, bounds, maxima, text in (
        (0, start, nothing, config.text),
        (1, start, nothing, None),
        (2, ends, world.maxima, None),
        (2, start, nothing, None),  # a second try of the same epoch: the lowest offset wins
    ):
        value = {**record, "epoch": epoch, "ends": bounds, "maxima": maxima, "clock": max(maxima), "config": text}
        epochs.put(["demo", epoch], {**value, "erasures": erasures if epoch == 2 else []})

    features = expected_features(world, weights)
    for value in features.values():
        value["ict"] = [float(x) for x in np.float32(value["ict"])]
    examples = expected_examples(world)
    letters = Log("dead_letters", 1)
    # What was refused of the erased before they were stays where it is.
    dead = World(logs, counts, config, actives).dead if below else {}
    world.dead |= {position: letter for position, letter in dead.items() if position in world.silenced}
    for position, value in sorted(expected_dead_letters(world).items()):
        source = world.dead[position].record
        payload = source.source
        if payload is None and source.value is not None:
            payload = single_object(source.topic, source.value).hex()
        if payload is not None:
            payload = payload[: 2 * max(0, config.max_record_bytes - len(dumps.key_bytes(source.key) or b""))]
        letters.put(list(position), {**value, "payload": payload}, headers=headers(2))
    written = {
        **logs,
        "epochs": epochs.done(),
        "features": outputs("features", features, partitions, dice, 2, lambda value: {**value, "k": 99}),
        "examples": outputs("examples", examples, partitions, dice, 2, lambda v: {**v, "label": 1 - v["label"]}),
        "dead_letters": letters.done(),
    }
    for name, records in written.items():
        dumps.write_dump(folder / f"{name}.jsonl", records)
    (folder / "wanted.txt").write_text("".join(f"{key}\n" for key in sorted(world.wanted)), encoding="utf-8")
    return world


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--max-window-events", type=int, default=250)
    parser.add_argument("--pool", type=int, default=0)
    parser.add_argument("--max-record-bytes", type=int, default=16_384)
    parser.add_argument("--kind", default="decoder", choices=["decoder", "attention"], help="of the vectors")
    args = parser.parse_args()
    world = make(
        args.script,
        args.out,
        args.seed,
        args.width,
        args.partitions,
        args.pool,
        kind=args.kind,
        max_window_events=args.max_window_events,
        max_record_bytes=args.max_record_bytes,
    )
    print(json.dumps({"pairs": len(world.pairs), "demonstrations": len(world.demonstrations)}))


if __name__ == "__main__":
    main()

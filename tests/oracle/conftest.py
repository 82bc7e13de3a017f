"""What several tests share: an invented catalog's ratings, and a consistent world made of them."""

import random

import pytest

import mutate
import world as made_up


def write_ratings(folder, seed=5, users=45, items=220, ratings=2_400):
    """RecBole files of an invented catalog: users rate in sittings, as in the real data."""
    dice = random.Random(seed)
    genres = ["Drama", "Comedy", "Sci-Fi", "Film-Noir", "unknown"]
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for n in range(items):
        chosen = " ".join(dice.sample(genres, dice.randint(1, 3)))
        lines.append(f"{n + 1}\tFilm {n // 2}\t{dice.choice(['1995', 'V'])}\t{chosen}")
    (folder / "ml-100k.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows, rated = [], set()
    while len(rows) < ratings:
        user, at = dice.randint(1, users), 880_000_000 + dice.randint(0, 12 * 86_400)
        for _ in range(dice.randint(1, 60)):
            at += dice.choice([0, 0, 1, 20, 60])
            item = min(items, 1 + int(dice.expovariate(1 / 40)))
            if (user, item) not in rated:
                rated.add((user, item))
                rows.append(f"{user}\t{item}\t{dice.randint(1, 5)}\t{at}")
    dice.shuffle(rows)
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "ml-100k.inter").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


SMALL = {
    "max_window_events": 60,
    "max_record_bytes": 16_384,
    "cot_stride": {"positive": 2, "explicit_negative": 1, "implicit_negative": 4},
    "demonstration_ttl_ms": 8 * 86_400_000,
}


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of a consistent world with every mutation, and what it was made of."""
    folder = tmp_path_factory.mktemp("small")
    write_ratings(folder)
    mutate.build(folder, seed=3, partitions=3, max_window_events=60).write(folder / "script.jsonl")
    world = made_up.make(folder / "script.jsonl", folder / "dumps", seed=3, width=24, pool=60, **SMALL)
    return folder / "dumps", world

"""A seeded mutator: turns MovieLens ratings (RecBole files) into a script of records that meets every rule.

    python mutate.py --data FOLDER --out script.jsonl [--events N] [--seed S] [--partitions P]
                     [--max-window-events W] [--max-record-bytes B] [--no-mutations]

Each line of the script is one record to produce, in order:
    {"topic": "interactions" | "items" | "candidates", "key": text | null, "value": object | null,
     "timestamp": ms | null, "raw"?: hex of the bytes to write instead of `value`, "partition"?: n}
`partition` is given for misrouted records only; the others go where murmur2 of the key says (a null key: any
partition, 0 in `oracle.py rules`).

Time is the stream's own: a record is written at its delivery time, which is the event's time unless a mutation
delays it. Since every earlier record has an event time at or before its delivery, an event that is delivered at
most `lateness` after its time is never late, however the data's days jump. A hopelessly late one is put right
behind a record of its own partition that has carried the maximum past it.

`--max-window-events` sizes the bursts and `--max-record-bytes` the oversized records: run the program with the same
values (defaults 250 and 16384), or no `window_full` and fewer `oversized` show. The other values of the semantic config are the design's defaults.
"""

import argparse
import json
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from pathlib import Path

from framing import I64_MAX, I64_MIN, partition_of
from logs import filled, single_object

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
LATENESS = 10 * MINUTE
SKEW = 5 * MINUTE
WINDOW = 30 * MINUTE
AHEAD = 20 * MINUTE  # the clock of a producer that is ahead: its refused records must not carry the maximum
LAST_HOURS = 21 * HOUR  # with CLOSING still within pair_ttl
CLOSING = 2 * HOUR  # how long after the last rating the stream ends
MAX_CANDIDATES = 1_000
MAX_ID_BYTES = 256
EARLIEST = -2_208_988_800_000  # 1900
LATEST = 7_258_118_400_000  # 2200
ABSURD = [I64_MIN, I64_MIN + 1, -(2**53), EARLIEST - 1, LATEST, 2**53, I64_MAX - 1, I64_MAX]
BLOCK = 1_000  # ratings between two rounds of candidate sets
OTHERS = 20  # items beside those rated, and of the last sets


def read_atomic(path):
    """Rows of a RecBole file as dicts; a column is named `name:type`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    names = [column.split(":")[0] for column in lines[0].split("\t")]
    return [dict(zip(names, line.split("\t"))) for line in lines[1:] if line]


def read_ratings(folder, limit):
    """(time in ms, user, item, rating) in time order; equal times stay in the file's order."""
    rows = read_atomic(folder / "ml-100k.inter")
    ratings = [(int(float(r["timestamp"])) * 1000, r["user_id"], r["item_id"], float(r["rating"])) for r in rows]
    ratings.sort(key=lambda row: row[0])
    return ratings[:limit]


def read_items(folder):
    """Item records by id, as the catalog first knows them."""
    items = {}
    for row in read_atomic(folder / "ml-100k.item"):
        year = row["release_year"] if row["release_year"].isdigit() else None
        items[row["item_id"]] = {
            "title": f"{row['movie_title']} ({year})" if year else row["movie_title"],
            "creator": None,
            "categories": [name for name in row["class"].split(" ") if name and name != "unknown"],
            "tags": [f"{year[:3]}0s"] if year else [],
            "description": None,
            "language": "en",
            "attributes": {"release_year": year} if year else {},
            "updated_at": 0,
        }
    return items


class Script:
    """Collects records with their delivery time; equal times keep (major, minor, order of creation)."""

    def __init__(self):
        self.rows = []

    def put(self, when, major, topic, key, value, minor=0, stamp="when", raw=None, partition=None):
        row = {"topic": topic, "key": key, "value": value, "timestamp": when if stamp == "when" else stamp}
        if raw is not None:
            row["raw"], row["value"] = raw.hex(), None
        if partition is not None:
            row["partition"] = partition
        self.rows.append((when, major, minor, len(self.rows), row))

    def write(self, path):
        self.rows.sort(key=lambda entry: entry[:4])
        with open(path, "w", encoding="utf-8") as out:
            for entry in self.rows:
                out.write(json.dumps(entry[4], ensure_ascii=False) + "\n")


def event(event_id, user, item, kind, time, value=None, impression_id=None):
    """The value of an interaction."""
    return {
        "event_id": event_id,
        "user_id": user,
        "item_id": item,
        "kind": kind,
        "value": value,
        "impression_id": impression_id,
        "event_time": time,
    }


class Mutator:
    """One run over the ratings."""

    def __init__(self, ratings, items, seed, partitions, max_window_events, mutations, max_record_bytes):
        self.ratings = ratings
        self.items = items
        self.names = sorted(items)
        self.random = random.Random(seed)
        self.partitions = partitions
        self.max_window_events = max_window_events
        self.max_record_bytes = max_record_bytes
        self.mutations = mutations
        self.script = Script()
        self.times = [row[0] for row in ratings]
        self.begin = ratings[0][0]
        self.end = ratings[-1][0]
        self.seen = defaultdict(set)
        for _, user, item, _ in ratings:
            self.seen[user].add(item)
        self.home = {user: partition_of(user.encode(), partitions) for user in self.seen}
        self.by_partition = defaultdict(lambda: ([], []))  # times, indices of the ratings
        for n, (time, user, _, _) in enumerate(ratings):
            times, at = self.by_partition[self.home[user]]
            times.append(time)
            at.append(n)

    def chance(self, share):
        return self.random.random() < share

    def often(self, share, least=5):
        """How often a mutation is to happen: a share of the ratings, but at least a few."""
        return max(least, round(share * len(self.ratings)))

    def run(self):
        self.first_items()
        for n in range(len(self.ratings)):
            self.rating(n)
        self.candidate_rounds()
        if self.mutations:
            self.item_changes()
            self.boundary_events()
            self.future_events()
            self.unreadable_events()
            self.misrouted_events()
            self.bursts()
            self.twins()
            self.last_day()
            self.boundaries_at_the_head()
            self.sizes()
            self.absurd_times()
        self.last_sets()
        if self.mutations:
            self.labels_at_the_head()
        return self.script

    # --- interactions -----------------------------------------------------------------------------------------

    def deliver(self, n, value, minor=0, mutable=True):
        """Writes an event: mostly at its time, sometimes late, hopelessly late, twice, or with other fields."""
        user, when, major, stamp = value["user_id"], value["event_time"], n, "when"
        if self.mutations and mutable:
            if self.chance(0.05):
                when += self.random.choice([self.random.randint(1, 60), self.random.randint(1, 599), 600]) * SECOND
            elif self.chance(0.002):
                times, at = self.by_partition[self.home[user]]
                behind = bisect_right(times, when + LATENESS)
                if behind < len(times):
                    when, major, minor = times[behind], at[behind], 9
            elif self.chance(0.003):
                stamp = self.random.choice([None, -1])
        self.script.put(when, major, "interactions", user, value, minor, stamp)
        if not (self.mutations and mutable):
            return
        if self.chance(0.01):
            again = when + self.random.choice([0, 1, 30, 300, 540, 900, 7200]) * SECOND
            self.script.put(again, major, "interactions", user, value, minor + 1)
        if self.chance(0.01):
            other = dict(value)
            change = self.random.randrange(4)
            if change == 0:
                other["item_id"] = self.random.choice(self.names)
            elif change == 1:
                other["kind"] = "click" if value["kind"] != "click" else "like"
            elif change == 2:
                other["value"] = 0.25 if value["value"] is None else value["value"] + 0.5
            else:
                other["impression_id"] = "another"
            if other != value:
                again = when + self.random.randint(0, 500) * SECOND
                self.script.put(again, major, "interactions", user, other, minor + 1)

    def rating(self, n):
        """A rating is an impression, then its outcome; the mutations are choices of one draw."""
        time, user, item, rating = self.ratings[n]
        shown, rate = f"i{n}", f"r{n}"
        named = shown if self.chance(0.4) else None
        if not self.mutations:
            self.deliver(n, event(shown, user, item, "impression", time))
            self.deliver(n, event(rate, user, item, "rate", time, rating, named), 1)
            return
        draw = self.random.random()
        at = time
        if not 0.305 <= draw < 0.32:  # else an outcome without an impression
            self.deliver(n, event(shown, user, item, "impression", time))
        if draw < 0.10:
            return  # the outcome is dropped
        if draw < 0.15:  # delayed
            at = time + self.random.choice(
                [self.random.randint(1, 1_800_000), self.random.randint(1, 1_800_000), WINDOW - 2 * SECOND, WINDOW]
                + ([WINDOW + 1] if self.chance(0.3) else [])
            )
        elif draw < 0.18:  # shown twice
            self.deliver(n, event(f"d{n}", user, item, "impression", time + 10 * SECOND), 1)
            at = time + 20 * SECOND
            named = self.random.choice([None, None, shown, shown, f"d{n}"])
        elif draw < 0.20:  # names an impression that isn't there, or one of another item
            named = self.random.choice([f"x{n}", f"i{max(0, n - 1)}"])
        elif draw < 0.23:  # skipped first
            self.deliver(n, event(f"s{n}", user, item, "skip", time, None, named), 1)
            at = time + self.random.randint(1, 300) * SECOND
        elif draw < 0.26:
            self.deliver(n, event(f"c{n}", user, item, "click", time, None, named), 1)
        elif draw < 0.29:
            watched = self.random.choice([0.0, 0.25, 0.49, 0.5, 0.75, 1.0])
            self.deliver(n, event(f"p{n}", user, item, "play", time + SECOND, watched, named), 1)
            at = time + 2 * SECOND
        elif draw < 0.305:
            kind = self.random.choice(["like", "purchase"])
            self.deliver(n, event(f"l{n}", user, item, kind, time, None, named), 1)
        self.deliver(n, event(rate, user, item, "rate", at, rating, named), 2)

    def boundary_events(self):
        """Events at just the maximum - lateness, put right behind the record that carries the maximum."""
        for count in range(self.often(0.0008)):
            n = self.random.randrange(len(self.ratings))
            time, user, _, _ = self.ratings[n]
            kind = self.random.choice(["click", "impression"])
            value = event(f"b{count}", user, self.random.choice(self.names), kind, time - LATENESS)
            self.script.put(time, n, "interactions", user, value, 8)

    def future_events(self):
        for count in range(self.often(0.001)):
            n = self.random.randrange(len(self.ratings))
            time, user, item, _ = self.ratings[n]
            stamp = time + self.random.choice([0, AHEAD])
            ahead = stamp - time + SKEW + self.random.choice([1, 1000, HOUR])
            value = event(f"f{count}", user, item, "click", time + ahead)
            self.script.put(time, n, "interactions", user, value, 5, stamp)
            if self.chance(0.3):  # and again when its time has come
                self.script.put(time + ahead, n, "interactions", user, value, 5)
        for count in range(self.often(0.001)):
            n = self.random.randrange(len(self.ratings))
            time, user, item, _ = self.ratings[n]
            ahead = self.random.choice([SKEW, self.random.randint(1, SKEW)])
            self.script.put(time, n, "interactions", user, event(f"a{count}", user, item, "click", time + ahead), 5)

    def raw_bytes(self, value, required=None):
        """Bytes that are neither JSON of a record nor Avro of it: a first byte that no length or index allows.

        `required` names a field without a default: a record that lacks it is one more way.
        """
        text = json.dumps(value).encode()
        last = list(value)[-1]
        ways = [
            b"",
            b"\xff" * 12 + self.random.randbytes(20),
            text[: len(text) // 2],
            json.dumps({**value, last: "tomorrow"}).encode(),
            text.replace(b'": "', b'": "\xc3\x28', 1),
        ]
        if required is not None:
            ways += [json.dumps({k: v for k, v in value.items() if k != required}).encode(), b"[]"]
        return self.random.choice(ways)

    def unreadable_events(self):
        def spoil(sort, value):
            key = value["user_id"]
            if sort == "raw":
                return key, None, self.raw_bytes(value, self.random.choice(["event_id", "kind", "event_time"]))
            if sort == "null":
                return key, None, None
            if sort == "kind":
                value["kind"] = self.random.choice(["view", "", "Click", "rating"])
            elif sort == "no_value":
                value["kind"], value["value"] = self.random.choice(["rate", "play"]), None
            elif sort == "empty_id":
                field = self.random.choice(["user_id", "item_id", "event_id"])
                value[field] = ""
                key = value["user_id"]
            elif sort == "empty_impression_id":
                value["impression_id"] = ""
            elif sort == "null_key":
                key = None
            elif sort == "other_key":
                key = self.random.choice([key + "0", " " + key, ""])
            return key, value, None

        for sort in ("raw", "null", "kind", "no_value", "empty_id", "empty_impression_id", "null_key", "other_key"):
            for count in range(self.often(0.0003)):
                n = self.random.randrange(len(self.ratings))
                time, user, item, _ = self.ratings[n]
                stamp = time + self.random.choice([0, AHEAD])
                key, value, raw = spoil(sort, event(f"u-{sort}-{count}", user, item, "click", stamp))
                self.script.put(time, n, "interactions", key, value, 6, stamp, raw=raw)

    def misrouted_events(self):
        if self.partitions < 2:
            return
        for count in range(self.often(0.0005)):
            n = self.random.randrange(len(self.ratings))
            time, user, item, _ = self.ratings[n]
            wrong = (self.home[user] + self.random.randint(1, self.partitions - 1)) % self.partitions
            stamp = time + self.random.choice([0, AHEAD])
            value = event(f"m{count}", user, item, "click", stamp)
            self.script.put(time, n, "interactions", user, value, 7, stamp, partition=wrong)

    def at_random(self):
        """A rating's place in the stream: index, time, user, item."""
        n = self.random.randrange(len(self.ratings))
        return n, *self.ratings[n][:3]

    def sizes(self):
        """Ids and records at just the limits, and one byte above."""
        for count in range(self.often(0.0006, 24)):
            n, time, user, item = self.at_random()
            value = event(f"o{count}-", user, item, "click", time, impression_id=f"o{count}")
            field = ["user_id", "item_id", "event_id", "impression_id"][count % 4]
            length = MAX_ID_BYTES + count % 8 // 4
            # Two bytes a letter, so that characters don't pass for bytes.
            long = value[field] + (length - len(value[field].encode())) % 2 * "-"
            value[field] = long + (length - len(long.encode())) // 2 * "\u00e9"
            self.script.put(time, n, "interactions", value["user_id"], value, 4)
            name = f"{'i' * (MAX_ID_BYTES - 4 + count % 2)}{count:04}"
            self.put_item(time, n, name, self.items[item])
            self.put_set(time, n, f"{'s' * (MAX_ID_BYTES - 4 + count % 3 // 2)}{count:04}", time, [item])
            self.put_set(time, n, f"long{count}", time, [item, name])
        for count in range(self.often(0.0004, 24)):
            n, time, user, item = self.at_random()
            one = count % 2
            value = event("", user, item, "click", time)
            value["event_id"] = self.stuffed("interactions", user, value, one)
            self.script.put(time, n, "interactions", user, value, 4)
            full = {**self.items[item], "description": "", "updated_at": time}
            full["description"] = self.stuffed("items", item, full, one)
            self.put_item(time, n, item, full)
            offered = {"computed_at": time, "items": [item, ""]}
            offered["items"][1] = self.stuffed("candidates", user, offered, one)
            self.put_set(time, n, f"{user}", time, offered["items"])

    def stuffed(self, topic, key, value, more):
        """The text that fills a field, now empty, so that the record is just as large as may be, or `more` larger."""
        length = self.max_record_bytes + more - len(key.encode()) - len(single_object(topic, filled(topic, value)))
        # The field's length takes one byte while it is empty, three from 8 KiB on.
        assert length > 8_193, "max_record_bytes is too small for what else stands in the record"
        return (length - 2) * "x"

    def absurd_times(self):
        for count in range(self.often(0.0005, 24)):
            n, time, user, item = self.at_random()
            absurd = ABSURD[count % len(ABSURD)]
            stamp = time + self.random.choice([0, AHEAD])
            self.script.put(time, n, "interactions", user, event(f"t{count}", user, item, "click", absurd), 6, stamp)
            self.put_set(time, n, user, absurd, [item])
            # The ends of what is read: one is late, the other future.
            end = [EARLIEST, LATEST - 1][count % 2]
            self.script.put(time, n, "interactions", user, event(f"e{count}", user, item, "click", end), 6)
            self.put_set(time, n, f"end{count}", end, [item])

    def bursts(self):
        """A user with more events within the lateness window than `max_window_events`."""
        for count in range(4):
            n = self.random.randrange(len(self.ratings))
            time, user, _, _ = self.ratings[n]
            for k in range(self.max_window_events + 20):
                kind, amount = ("impression", None) if k % 2 else ("play", 0.3)
                at = time + k * 100
                value = event(f"w{count}-{k}", user, self.random.choice(self.names), kind, at, amount)
                self.script.put(at, n, "interactions", user, value, 4)

    def extra(self, event_id, user, item, kind, time, **more):
        """An event of its own, delivered at its time."""
        n = bisect_right(self.times, time)
        self.script.put(time, n, "interactions", user, event(event_id, user, item, kind, time, **more), 3)

    def twins(self):
        """Examples that agree in all but their id: equal scores, decided by label time and then by point id."""
        low = bisect_right(self.times, self.end - 20 * DAY)
        for count in range(30):
            time, user, _, _ = self.ratings[self.random.randrange(low, len(self.ratings))]
            liked, shown = self.random.sample(sorted(set(self.names) - self.seen[user]), 2)
            for k in range(24):
                self.extra(f"t{count}-{k}", user, liked, "like", time + SECOND)
                self.extra(f"t{count}-i{k}", user, shown, "impression", time + SECOND)
                at = time + (2 + k % 3) * SECOND
                self.extra(f"t{count}-o{k}", user, shown, "like", at, impression_id=f"t{count}-i{k}")

    def new_item(self, user):
        return self.random.choice([name for name in self.names if name not in self.seen.get(user, ())])

    def last_day(self):
        """Impressions that nobody answered: of the last day, and of users without a history."""
        users = sorted(self.seen)
        rows = [(self.random.choice(users), self.random.randint(30 * MINUTE, 21 * HOUR)) for _ in range(80)]
        rows += [(f"new{k}", self.random.randint(0, 20 * HOUR)) for k in range(40)]
        for count, (user, ago) in enumerate(rows):
            self.extra(f"z{count}", user, self.new_item(user), "impression", max(self.begin, self.end - ago))

    def boundaries_at_the_head(self):
        """Every partition ends at a time of its own, with events at just the edges that the end decides.

        The edges: an attribution window that ends at the partition's maximum; a pair, a set and an example whose
        ttl ends at the event clock; an outcome at just a set's computed_at.
        """
        users = defaultdict(list)
        for user in sorted(self.seen):
            users[self.home[user]].append(user)
        closing = {home: self.end + CLOSING - 7 * MINUTE * rank for rank, home in enumerate(sorted(users))}
        clock = max(closing.values())
        for home, time in closing.items():
            mine = users[home]
            self.extra(f"end{home}", mine[0], self.names[0], "click", time)
            for k in range(24):
                user = self.random.choice(mine)
                ago = [WINDOW, WINDOW + 1, self.random.randint(0, WINDOW - 1)][k % 3]
                self.extra(f"e{home}-{k}", user, self.new_item(user), "impression", time - ago)
            for k in range(16):
                user = self.random.choice(mine)
                at = clock - DAY - k % 2
                self.extra(f"ttl{home}-{k}", user, self.new_item(user), "impression", max(self.begin, at))
            old = clock - 30 * DAY
            known = sorted({row[1] for row in self.ratings[: bisect_right(self.times, old - DAY)]} & set(mine))
            for k in range(400 if known else 0):
                user = self.random.choice(known)
                self.extra(f"old{home}-{k}", user, self.random.choice(self.names), "click", old - k % 2)
        for k in range(24):
            user, item, other = f"edge{k}", *self.random.sample(self.names, 2)
            home = partition_of(user.encode(), self.partitions)
            time = closing.get(home, clock) - HOUR
            self.extra(f"edge{k}", user, item, "click", time)
            self.put_set(self.end, len(self.ratings) + 1, user, time - k % 2, [item, other])
            self.put_set(self.end, len(self.ratings) + 1, f"worn{k}", clock - DAY - k % 2, [item, other])

    def labels_at_the_head(self):
        """Labels on a few offered items at just the edges that neighbours go by, and ties in their order.

        The edges: the event clock, which hides labels from it on, and the sketches' boundary. All users here are on
        the partition that ends at the clock.
        """
        clock, home = self.end + CLOSING, min(self.home.values())
        edge = clock // HOUR * HOUR

        def users(word, count):
            names = (f"{word}{n}" for n in range(10_000))
            return [name for name in names if partition_of(name.encode(), self.partitions) == home][:count]

        rated = Counter(row[2] for row in self.ratings)
        offered = sorted(self.names, key=lambda name: (rated[name], name))[:6]
        for k, (user, friend) in enumerate(zip(users("near", 12), users("friend", 12))):
            for item in self.random.sample(self.names, 3):
                self.extra(f"n{k}-{item}", user, item, "like", self.end + 20 * MINUTE + k)
            # On items that nobody knows, and of which no sketch has a label.
            self.extra(f"n{k}-unknown", user, f"unknown{k % 5}", "like", edge + k % 2)
            # The user's own label on an item that is offered all the same.
            self.extra(f"n{k}-own", user, offered[k % 6], "like", self.end + 21 * MINUTE + k)
            self.put_set(self.end, len(self.ratings) + 1, user, clock, offered)
            # Ties: users with one sketch, two impressions and two labels of one time, two events that are alike.
            at, item = self.end + 30 * MINUTE + k, offered[k % 6]
            for twin in (f"{friend}a", f"{friend}b"):
                self.extra(f"f{k}", twin, item, "like", at)
            for n in range(2):
                shown = f"f{k}-{n}"
                self.extra(shown, friend, item, "impression", at + n * SECOND)
                self.extra(f"{shown}o", friend, item, "like", at + 2 * SECOND, impression_id=shown)
                self.extra(f"{shown}c", friend, offered[(k + 1) % 6], "click", at)
        for k, user in enumerate(users("head", 24)):
            item = offered[k % 6]
            for time in (edge - 1, edge, clock - 1, clock):
                self.extra(f"h{k}-{time}", user, item, self.random.choice(["like", "skip"]), time)
            ahead = event(f"h{k}-ahead", user, item, "like", clock + 1 + k * (SKEW - 1) // 23)
            self.script.put(clock, len(self.ratings), "interactions", user, ahead, 3)
            # An implicit negative that an outcome corrects when it comes late.
            shown, due = self.end + 10 * MINUTE + k, self.end + 10 * MINUTE + k + WINDOW
            self.extra(f"h{k}-i", user, item, "impression", shown)
            self.extra(f"h{k}-due", user, self.random.choice(self.names), "click", due + MINUTE)
            late = event(f"h{k}-o", user, item, "like", due - MINUTE, impression_id=f"h{k}-i")
            self.script.put(due + 2 * MINUTE, len(self.ratings), "interactions", user, late, 3)

    # --- items ------------------------------------------------------------------------------------------------

    def put_item(self, when, major, key, value, raw=None):
        if value is not None:
            value = {**value, "updated_at": when}
        self.script.put(when, major, "items", key, value, -2, raw=raw)

    def first_items(self):
        for at, name in enumerate(self.names):
            item = self.items[name]
            if self.mutations:
                maker = self.random.randrange(300)
                if maker < 240:
                    # Decomposed letters and stray blanks: both are normalised away.
                    spelled = [f"Studio {maker}", f" Studio\u00a0{maker} ", f"Stu\u0308dio\t{maker}", f"St\u00fcdio {maker}"]
                    item["creator"] = spelled[maker % 4]
                if self.chance(0.05) and item["categories"]:
                    item["categories"] = [*item["categories"], " " + item["categories"][0], " "]
            self.put_item(self.begin - HOUR + at, -1, name, item)

    def item_changes(self):
        """Edits, deletes, rebirths and unreadable records, in the order of time, on items by their popularity."""
        alive = {name: dict(item) for name, item in self.items.items()}
        older = defaultdict(list)
        gone = {}
        for n in sorted(self.random.randrange(len(self.ratings)) for _ in range(self.often(0.01, 300))):
            when = self.ratings[n][0]
            name = self.random.choice(self.ratings)[2]
            draw = self.random.random()
            if draw < 0.10 and gone:
                name = self.random.choice(sorted(gone))
                draw = 1.0
            if name in gone:
                if draw < 0.3:
                    self.put_item(when, n, name, None)  # deleted twice
                    continue
                alive[name] = gone.pop(name)
                if self.chance(0.5):
                    alive[name] = {**alive[name], "description": f"Back again, {n}."}
                self.put_item(when, n, name, alive[name])
                continue
            item = alive[name]
            if draw < 0.35:
                older[name].append(item)
                change = self.random.choice(["title", "description", "tags", "language"])
                if change == "tags":
                    item = {**item, "tags": [*item["tags"][:3], f"tag{n % 50}"]}
                elif change == "language":
                    item = {**item, "language": self.random.choice(["en", "de", "fr", "cafe\u0301"])}
                elif change == "title":
                    item = {**item, "title": item["title"].split(" [")[0] + f" [cut {n}]"}
                else:
                    item = {**item, "description": f"Seen  by\u3000many,\nedit {n}."}
                self.put_item(when, n, name, item)
            elif draw < 0.55:
                item = {**item, "attributes": {**item["attributes"], "price": f"{n % 90}.99"}}
                if self.chance(0.3):
                    item["title"] = f" {item['title']}\t"  # another title, the same text
                self.put_item(when, n, name, item)
            elif draw < 0.72:
                gone[name] = alive.pop(name)
                self.put_item(when, n, name, None)
                continue
            elif draw < 0.80 and older[name]:
                item = older[name].pop()  # back to an older text
                self.put_item(when, n, name, item)
            elif draw < 0.85:
                self.put_item(when, n, name, item)  # the same again
            elif draw < 0.95:
                self.put_item(when, n, name, None, raw=self.raw_bytes(item))
            else:
                self.put_item(when, n, self.random.choice([None, ""]), item)
            alive[name] = item
        # Some items of the last days are gone for good, so that examples on them want for an item.
        recent = sorted({row[2] for row in self.ratings[-2_000:]} & alive.keys())
        for name in self.random.sample(recent, min(len(recent) // 10, 40)):
            self.put_item(self.end, len(self.ratings), name, None)

    # --- candidates -------------------------------------------------------------------------------------------

    def unseen(self, user, count):
        return self.random.sample([name for name in self.names if name not in self.seen[user]], count)

    def candidate_rounds(self):
        for start in range(0, len(self.ratings), BLOCK):
            block = self.ratings[start : start + BLOCK]
            rated = defaultdict(list)
            for _, user, item, _ in block:
                rated[user].append(item)
            when = block[0][0] - 1
            for user in sorted(rated):
                offered = [*rated[user], *self.unseen(user, OTHERS)]
                self.random.shuffle(offered)
                self.put_set(when, start, user, when, offered)
                if self.mutations:
                    self.spoil_set(block, start, user, offered)

    def put_set(self, when, major, user, computed_at, offered, minor=-1, **more):
        value = None if offered is None else {"computed_at": computed_at, "items": offered}
        self.script.put(when, major, "candidates", user, value, minor, **more)

    def raw_set(self):
        return self.random.choice([b"", b"\xff" * 14, b'{"computed_at": 1', b'{"items": ["1"]}'])

    def too_many(self):
        return self.random.choices(self.names, k=MAX_CANDIDATES + 1)

    def spoil_set(self, block, start, user, offered):
        n = self.random.randrange(len(block))
        when, major = block[n][0], start + n
        draw = self.random.random()
        if draw < 0.03:
            self.put_set(when, major, user, when, self.random.sample(offered, len(offered) // 2))
        elif draw < 0.06:
            self.put_set(when, major, user, when, None)
        elif draw < 0.08:
            self.put_set(when, major, user, when, self.too_many())
        elif draw < 0.10:
            sort = self.random.randrange(4)
            if sort == 0:
                self.put_set(when, major, user, when, None, raw=self.raw_set())
            elif sort == 1:
                self.put_set(when, major, user, when, [*offered, ""])
            elif sort == 2:
                self.put_set(when, major, None, when, offered)
            else:
                self.put_set(when, major, "", when, offered)
        elif draw < 0.12 and self.partitions > 1:
            wrong = (self.home[user] + 1) % self.partitions
            value = None if self.chance(0.3) else self.random.sample(offered, len(offered) // 2)
            self.put_set(when, major, user, when, value, partition=wrong)

    def last_sets(self):
        """20 unseen items for every user, so that many pairs are live at the end; a few users stay without."""
        users = sorted(self.seen)
        left_out, withdrawn = set(), set()
        if self.mutations:
            few = self.random.sample(users, min(len(users) // 5, 100))
            left_out, withdrawn = set(few[::2]), set(few[1::2])
        last, month = defaultdict(list), defaultdict(list)
        for time, user, item, _ in self.ratings:
            if time > self.end - LAST_HOURS:
                last[user].append(item)
            if time > self.end - 30 * DAY:
                month[user].append(item)
        for user in users:
            offered, computed_at = self.unseen(user, OTHERS), self.end
            if self.mutations:
                if user in last:  # a set from before the last day's outcomes
                    offered, computed_at = [*offered, *last[user][:900]], self.end - LAST_HOURS
                elif user in left_out:
                    continue
                elif user in withdrawn:
                    offered = None
                elif user in month:  # items offered again: the pair's own example must not serve it
                    offered = [*offered, *self.random.sample(month[user], min(len(month[user]), 10))]
                elif self.chance(0.05):
                    offered = [*offered, offered[0]]
            self.put_set(self.end, len(self.ratings) + 1, user, computed_at, offered)
            if self.mutations and self.chance(0.12):  # what comes after it is refused, so it stays
                sort = self.random.randrange(3)
                offered = self.too_many() if sort == 0 else [*self.unseen(user, 5), ""]
                raw = self.raw_set() if sort == 1 else None
                self.put_set(self.end, len(self.ratings) + 2, user, self.end, offered, raw=raw)


def build(
    folder, events=None, seed=1, partitions=3, max_window_events=250, mutations=True, max_record_bytes=16_384
):
    """The script for a folder of RecBole files."""
    folder = Path(folder)
    ratings = read_ratings(folder, events)
    return Mutator(
        ratings, read_items(folder), seed, partitions, max_window_events, mutations, max_record_bytes
    ).run()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with ml-100k.inter and ml-100k.item")
    parser.add_argument("--out", required=True, help="the script, JSON Lines")
    parser.add_argument("--events", type=int, help="only the first N ratings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--partitions", type=int, default=3, help="of interactions and candidates")
    parser.add_argument("--max-window-events", type=int, default=250, help="of the program's config: sizes the bursts")
    parser.add_argument("--max-record-bytes", type=int, default=16_384, help="of the program's config: sizes the oversized")
    parser.add_argument("--no-mutations", action="store_true", help="a plain replay")
    args = parser.parse_args()
    script = build(
        args.data,
        args.events,
        args.seed,
        args.partitions,
        args.max_window_events,
        not args.no_mutations,
        args.max_record_bytes,
    )
    script.write(args.out)
    topics = defaultdict(int)
    for *_, row in script.rows:
        topics[row["topic"]] += 1
    print(json.dumps({"records": len(script.rows), **topics}))


if __name__ == "__main__":
    main()

//! The queue of keys that wait for their call: the most valuable first.
//!
//! # The order
//! 1. **Active users**, those with an accepted event not older than `pair_ttl` against the event clock: a
//!    ranker asks for their pairs now. Among them the newest activity first, in buckets of a
//!    [`BUCKETS`]th of `pair_ttl`, so that a user isn't ranked anew with every event. Users who aren't
//!    active are equal, and come after all others.
//! 2. **Cold items**: the fewest CoTs answered on the item, in classes 0, 1, 2 to 3, 4 to 7, and so on. A
//!    first demonstration on an item tells more than a tenth one.
//! 3. **First in, first out**, by the first time that the key was wanted: a retry keeps its place.
//!
//! A key with a pause waits outside of the order until the pause is over. What was learned about users and
//! items ranks the waiting keys anew. The order never decides a value: it decides when an answer comes, and
//! every answer is data by its place on its log.
//!
//! # Cost
//! Putting in, taking out, cancelling and ranking one key anew are O(log n). A key is ranked anew at most
//! once for each bucket that its user's activity passes, and for each class that its item's CoTs pass: so
//! the coarse steps bound the work, not the stream. Memory: an entry a waiting key, at most one a wanted
//! key; a number for each user that is active, and for each item with CoTs.

use crate::pipeline::EpochInput;
use ictflow_connectors::llm::answer::Progress;
use ictflow_schemas::cot::PromptView;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::{Id, Millis, NO_TIME};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

/// Buckets of activity in one `pair_ttl`: by the default of a day, one is an hour.
const BUCKETS: Millis = 24;

/// What an epoch tells about the value of waiting keys.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// The newest accepted event of each user in it.
    pub users: HashMap<Id, Millis>,
    /// The item of each usable CoT in it.
    pub answered: Vec<Id>,
    /// The event clock.
    pub clock: Millis,
}

impl Activity {
    /// What an epoch's input tells, at its event clock.
    pub fn of(input: &EpochInput, clock: Millis) -> Self {
        let mut users: HashMap<Id, Millis> = HashMap::new();
        for event in &input.events {
            let newest = users.entry(event.user.clone()).or_insert(event.entry.event_time);
            *newest = event.entry.event_time.max(*newest);
        }
        let answered = input.answers.iter().filter_map(|change| change.answer.as_ref());
        Activity { users, answered: answered.map(|answer| answer.item.clone()).collect(), clock }
    }
}

/// A place in the order; the least is called first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// The bucket of the user's newest event; the least number for users who aren't active.
    activity: Reverse<i64>,
    /// The class of the number of CoTs on the item.
    cots: u32,
    /// The key's number.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Ranked(Rank),
    Paused(Instant),
}

#[derive(Debug)]
struct Entry {
    user: Id,
    item: Id,
    number: u64,
    progress: Progress,
    place: Place,
}

/// A key taken out of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The key.
    pub key: Digest,
    /// How far it has come.
    pub progress: Progress,
}

/// The queue. A key stands in it at most once.
#[derive(Debug)]
pub struct Queue {
    pair_ttl: Millis,
    /// The event time that one bucket spans.
    span: Millis,
    entries: HashMap<Digest, Entry>,
    ranked: BTreeMap<Rank, Digest>,
    paused: BTreeMap<(Instant, u64), Digest>,
    by_user: HashMap<Id, HashSet<Digest>>,
    by_item: HashMap<Id, HashSet<Digest>>,
    /// The bucket of every active user, and the users of every bucket.
    activity: HashMap<Id, i64>,
    active: BTreeMap<i64, HashSet<Id>>,
    cots: HashMap<Id, u32>,
}

impl Queue {
    /// An empty queue; users are active for `pair_ttl`, at least 1 ms.
    pub fn new(pair_ttl: Millis) -> Self {
        Queue {
            pair_ttl,
            span: (pair_ttl / BUCKETS).max(1),
            entries: HashMap::new(),
            ranked: BTreeMap::new(),
            paused: BTreeMap::new(),
            by_user: HashMap::new(),
            by_item: HashMap::new(),
            activity: HashMap::new(),
            active: BTreeMap::new(),
            cots: HashMap::new(),
        }
    }

    /// Puts a key in. `number` is its place in the order of first wishes, one of its own. With
    /// `not_before` it waits outside of the order until then. A key that stands in the queue is moved.
    pub fn put(
        &mut self,
        key: Digest,
        view: &PromptView,
        number: u64,
        progress: Progress,
        not_before: Option<Instant>,
    ) {
        self.remove(&key);
        let (user, item) = (view.user.clone(), view.item.clone());
        let place = match not_before {
            Some(time) => Place::Paused(time),
            None => Place::Ranked(self.rank(&user, &item, number)),
        };
        self.by_user.entry(user.clone()).or_default().insert(key);
        self.by_item.entry(item.clone()).or_default().insert(key);
        self.enter(key, number, place);
        self.entries.insert(key, Entry { user, item, number, progress, place });
    }

    /// Takes the first key out whose pause, if it had one, is over.
    pub fn pop(&mut self, now: Instant) -> Option<Next> {
        while let Some((&(time, number), &key)) = self.paused.first_key_value()
            && time <= now
        {
            self.paused.remove(&(time, number));
            let Some((user, item)) = self.entries.get(&key).map(|e| (e.user.clone(), e.item.clone())) else {
                continue;
            };
            let place = Place::Ranked(self.rank(&user, &item, number));
            self.enter(key, number, place);
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.place = place;
            }
        }
        let key = *self.ranked.first_key_value()?.1;
        self.remove(&key).map(|progress| Next { key, progress })
    }

    /// Takes a key out, wherever it waits; gives how far it had come.
    pub fn remove(&mut self, key: &Digest) -> Option<Progress> {
        let entry = self.entries.remove(key)?;
        match entry.place {
            Place::Ranked(rank) => self.ranked.remove(&rank),
            Place::Paused(time) => self.paused.remove(&(time, entry.number)),
        };
        for (index, id) in [(&mut self.by_user, &entry.user), (&mut self.by_item, &entry.item)] {
            if let Some(keys) = index.get_mut(id) {
                keys.remove(key);
                if keys.is_empty() {
                    index.remove(id);
                }
            }
        }
        Some(entry.progress)
    }

    /// Takes what an epoch tells, and ranks the keys anew that it concerns.
    pub fn learn(&mut self, activity: &Activity) {
        for item in &activity.answered {
            let count = self.cots.entry(item.clone()).or_default();
            let before = class(*count);
            *count = count.saturating_add(1);
            if class(*count) != before {
                let keys = self.by_item.get(item).into_iter().flatten().copied().collect();
                self.rank_anew(keys);
            }
        }
        let oldest = match activity.clock {
            NO_TIME => i64::MIN,
            clock => clock.saturating_sub(self.pair_ttl).div_euclid(self.span),
        };
        for (user, time) in &activity.users {
            let bucket = time.div_euclid(self.span);
            let before = self.activity.get(user).copied();
            if bucket < oldest || before.is_some_and(|before| before >= bucket) {
                continue;
            }
            self.activity.insert(user.clone(), bucket);
            self.active.entry(bucket).or_default().insert(user.clone());
            if let Some(before) = before {
                self.leave_bucket(before, user);
            }
            let keys = self.by_user.get(user).into_iter().flatten().copied().collect();
            self.rank_anew(keys);
        }
        while let Some(bucket) = self.active.first_entry()
            && *bucket.key() < oldest
        {
            for user in bucket.remove() {
                self.activity.remove(&user);
                let keys = self.by_user.get(&user).into_iter().flatten().copied().collect();
                self.rank_anew(keys);
            }
        }
    }

    /// How many keys wait, those with a pause too.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a key waits.
    pub fn contains(&self, key: &Digest) -> bool {
        self.entries.contains_key(key)
    }

    fn rank(&self, user: &Id, item: &Id, number: u64) -> Rank {
        Rank {
            activity: Reverse(self.activity.get(user).copied().unwrap_or(i64::MIN)),
            cots: class(self.cots.get(item).copied().unwrap_or_default()),
            number,
        }
    }

    fn enter(&mut self, key: Digest, number: u64, place: Place) {
        match place {
            Place::Ranked(rank) => self.ranked.insert(rank, key),
            Place::Paused(time) => self.paused.insert((time, number), key),
        };
    }

    fn rank_anew(&mut self, keys: Vec<Digest>) {
        for key in keys {
            let Some(entry) = self.entries.get(&key) else { continue };
            // One with a pause is ranked when that is over.
            let Place::Ranked(before) = entry.place else { continue };
            let rank = self.rank(&entry.user, &entry.item, entry.number);
            self.ranked.remove(&before);
            self.ranked.insert(rank, key);
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.place = Place::Ranked(rank);
            }
        }
    }

    fn leave_bucket(&mut self, bucket: i64, user: &Id) {
        if let Some(users) = self.active.get_mut(&bucket) {
            users.remove(user);
            if users.is_empty() {
                self.active.remove(&bucket);
            }
        }
    }
}

/// The class of a number of CoTs: 0 for none, n for 2^(n-1) up to 2^n - 1.
fn class(cots: u32) -> u32 {
    u32::BITS - cots.leading_zeros()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::history::Label;
    use std::time::Duration;

    const TTL: Millis = 24_000;
    /// The span of a bucket.
    const HOUR: Millis = 1_000;

    fn view(user: &str, item: &str) -> PromptView {
        PromptView::new(user.into(), item.into(), text_digest(item), Label::Positive, &[], 10)
    }

    fn key(name: &str) -> Digest {
        text_digest(name)
    }

    /// A queue with keys `user/item`, in this order.
    fn queue(keys: &[&str]) -> Queue {
        let mut queue = Queue::new(TTL);
        for (number, name) in keys.iter().enumerate() {
            let (user, item) = name.split_once('/').unwrap();
            queue.put(key(name), &view(user, item), number as u64, Progress::default(), None);
        }
        queue
    }

    fn learn(queue: &mut Queue, clock: Millis, users: &[(&str, Millis)], answered: &[&str]) {
        queue.learn(&Activity {
            users: users.iter().map(|(user, time)| (Id::from(*user), *time)).collect(),
            answered: answered.iter().map(|item| Id::from(*item)).collect(),
            clock,
        });
    }

    /// Takes everything out, as names of `keys`.
    fn order<'a>(queue: &mut Queue, keys: &[&'a str]) -> Vec<&'a str> {
        let now = Instant::now();
        let name = |next: Next| *keys.iter().find(|name| key(name) == next.key).unwrap();
        let order = std::iter::from_fn(|| queue.pop(now).map(name)).collect();
        // What is left is paused; nothing leaks.
        assert_eq!(queue.len(), queue.paused.len());
        assert_eq!(queue.ranked.len(), 0);
        if queue.is_empty() {
            assert!(queue.by_user.is_empty() && queue.by_item.is_empty());
        }
        order
    }

    #[test]
    fn without_knowledge_the_first_comes_first() {
        let keys = ["c/1", "a/1", "b/1"];
        assert_eq!(order(&mut queue(&keys), &keys), keys);
    }

    #[test]
    fn active_users_come_first_the_newest_bucket_before_older_ones() {
        let keys = ["idle/1", "old/1", "new/1", "newer/1", "gone/1"];
        let mut queue = queue(&keys);
        let clock = 100 * HOUR;
        // Within a bucket the order is that of the wishes: 99.1 and 99.9 hours are one.
        let users =
            [("old", 90 * HOUR), ("new", 99 * HOUR + 900), ("newer", 99 * HOUR + 100), ("gone", 75 * HOUR)];
        learn(&mut queue, clock, &users, &[]);
        assert_eq!(order(&mut queue, &keys), ["new/1", "newer/1", "old/1", "idle/1", "gone/1"]);
    }

    #[test]
    fn activity_ends_with_the_ttl() {
        let keys = ["idle/1", "edge/1"];
        let at_edge = |clock: Millis| {
            let mut queue = queue(&keys);
            learn(&mut queue, 50 * HOUR, &[("edge", 50 * HOUR)], &[]);
            learn(&mut queue, clock, &[], &[]);
            order(&mut queue, &keys)
        };
        assert_eq!(at_edge(50 * HOUR + TTL), ["edge/1", "idle/1"]);
        assert_eq!(at_edge(51 * HOUR + TTL), ["idle/1", "edge/1"], "one bucket further");
        let mut queue = queue(&keys);
        learn(&mut queue, 51 * HOUR + TTL, &[("edge", 50 * HOUR)], &[]);
        assert!(queue.activity.is_empty() && queue.active.is_empty(), "a late event makes nobody active");
    }

    #[test]
    fn cold_items_come_first_in_classes() {
        let keys = ["u/3", "u/2", "u/1", "u/0", "v/3"];
        let mut queue = queue(&keys);
        learn(&mut queue, 0, &[], &["1", "2", "2", "3", "3", "3", "3"]);
        assert_eq!(order(&mut queue, &keys), ["u/0", "u/1", "u/2", "u/3", "v/3"]);
        assert_eq!([0, 1, 2, 3, 4, 7, 8].map(class), [0, 1, 2, 2, 3, 3, 4]);
        assert_eq!(class(u32::MAX), 32);
    }

    #[test]
    fn an_active_user_beats_a_cold_item() {
        let keys = ["idle/cold", "busy/warm"];
        let mut queue = queue(&keys);
        learn(&mut queue, HOUR, &[("busy", HOUR)], &["warm", "warm"]);
        assert_eq!(order(&mut queue, &keys), ["busy/warm", "idle/cold"]);
    }

    #[test]
    fn what_is_learned_ranks_waiting_keys_anew_and_knowledge_outlasts_them() {
        let keys = ["a/1", "b/2", "c/3"];
        let mut queue = queue(&keys);
        learn(&mut queue, 10 * HOUR, &[("c", 10 * HOUR)], &[]);
        assert_eq!(queue.pop(Instant::now()).unwrap().key, key("c/3"));
        learn(&mut queue, 11 * HOUR, &[("b", 11 * HOUR), ("c", 5 * HOUR)], &["1"]);
        assert_eq!(queue.activity[&Id::from("c")], 10, "an older event takes nothing back");
        queue.put(key("c/3"), &view("c", "3"), 2, Progress::default(), None);
        assert_eq!(order(&mut queue, &keys), ["b/2", "c/3", "a/1"]);
    }

    #[test]
    fn a_pause_keeps_a_key_outside_and_its_place() {
        let keys = ["a/1", "b/1"];
        let mut queue = queue(&keys);
        let now = Instant::now();
        let first = queue.pop(now).unwrap();
        assert_eq!(first.key, key("a/1"));
        let progress = Progress { calls: 1, ..Progress::default() };
        let later = now + Duration::from_secs(60);
        queue.put(first.key, &view("a", "1"), 0, progress, Some(later));
        assert_eq!((queue.len(), queue.contains(&first.key)), (2, true));
        // Learning about it meanwhile is no harm.
        learn(&mut queue, HOUR, &[], &["1"]);
        assert_eq!(queue.pop(now).unwrap().key, key("b/1"));
        assert_eq!(queue.pop(later - Duration::from_millis(1)), None);
        queue.put(key("b/1"), &view("b", "1"), 1, Progress::default(), None);
        assert_eq!(
            queue.pop(later),
            Some(Next { key: key("a/1"), progress }),
            "before those that came later"
        );
        assert_eq!(order(&mut queue, &keys), ["b/1"]);
    }

    #[test]
    fn a_cancelled_key_is_gone_wherever_it_waits() {
        let keys = ["a/1", "b/1"];
        let mut queue = queue(&keys);
        let progress = Progress { calls: 3, ..Progress::default() };
        queue.put(key("a/1"), &view("a", "1"), 0, progress, Some(Instant::now() + Duration::from_secs(9)));
        assert_eq!(queue.len(), 2, "a key stands there once");
        assert_eq!(queue.remove(&key("a/1")), Some(progress));
        assert_eq!(queue.remove(&key("a/1")), None);
        assert_eq!(queue.remove(&key("b/1")), Some(Progress::default()));
        assert!(queue.is_empty() && order(&mut queue, &keys).is_empty());
        assert!(queue.paused.is_empty());
    }

    /// Against a list that is sorted at each question.
    #[test]
    fn any_course_gives_the_order_of_a_plain_list() {
        let seed = 0x1c7f_1055_u64;
        println!("seed {seed}");
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut queue = Queue::new(TTL);
        let mut list: Vec<(Digest, String, String, u64)> = Vec::new();
        let (mut newest, mut cots) = (HashMap::<String, Millis>::new(), HashMap::<String, u32>::new());
        let (mut clock, mut number) = (0, 0);
        for _ in 0..5_000 {
            let (user, item) = (format!("u{}", random(7)), format!("i{}", random(5)));
            match random(5) {
                0 | 1 => {
                    let key = text_digest(&format!("{number}"));
                    queue.put(key, &view(&user, &item), number, Progress::default(), None);
                    list.push((key, user, item, number));
                    number += 1;
                }
                2 => {
                    clock += random(3_000) as Millis;
                    let time = clock - random(2 * TTL as u64) as Millis;
                    let before = newest.entry(user.clone()).or_insert(Millis::MIN);
                    *before = time.max(*before);
                    learn(&mut queue, clock, &[(&user, time)], &[&item]);
                    *cots.entry(item).or_default() += 1;
                }
                3 if !list.is_empty() => {
                    let (key, ..) = list.swap_remove(random(list.len() as u64) as usize);
                    assert!(queue.remove(&key).is_some());
                }
                _ => {
                    let oldest = (clock - TTL).div_euclid(HOUR);
                    let rank = |(_, user, item, number): &(Digest, String, String, u64)| {
                        let bucket = newest.get(user).map(|time| time.div_euclid(HOUR));
                        let bucket = bucket.filter(|bucket| *bucket >= oldest).unwrap_or(i64::MIN);
                        (Reverse(bucket), class(cots.get(item).copied().unwrap_or_default()), *number)
                    };
                    let first = (0..list.len()).min_by_key(|place| rank(&list[*place]));
                    let expected = first.map(|place| list.swap_remove(place).0);
                    assert_eq!(queue.pop(Instant::now()).map(|next| next.key), expected);
                }
            }
            assert_eq!(queue.len(), list.len());
        }
    }
}

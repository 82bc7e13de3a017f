//! The share of records that may be refused before a job stops, so that a fault of a producer, a schema
//! or a setting doesn't drain a topic away into dead letters.
//!
//! For each partition of `interactions`, `items` and `candidates` the judge looks back over its last
//! `window` records, in offset order. A dead letter at which more than `max` of them are dead letters
//! *crosses*, and no epoch that holds it is committed. Records that aren't refused cross nothing.
//!
//! Under one limit this is a function of the partition's log alone: it doesn't depend on how the log is cut
//! into epochs, so every start stops before the same record until the log, the registry or the limit says
//! otherwise. A record that crosses is committed only under a higher limit. Where the window stands over the
//! limit at the bounds of such an epoch it starts empty there ([`Refusals::pass`]): what was let through
//! stops nothing that comes after it. The record is thus a function of the log, the limit and the committed
//! bounds.
//!
//! * Records that were seen before or whose user was erased count as judged and not as refused. So do late
//!   ones and those over a user's window ([`Reason::is_damage`]): events that come late, or one robot, stop
//!   nobody.
//! * A partition is judged once its window holds a tenth of `window`: before, a few records would decide.
//!   So it is again where the window started empty.
//! * What was committed isn't judged again: a limit that was lowered holds for what comes.
//! * A start from a snapshot has the windows as they were kept, and passes of the bounds up to there only the
//!   snapshot's own. Unless the limit was changed they are those of a replay; else they may hold other
//!   committed records, the same at every start from it.
//! * On `items` and `candidates` a start reads what compaction left, which is then what counts.
//!
//! Memory: a number for each refused record in a window.

use ictflow_connectors::Error;
use ictflow_operators::recovery::{self, Part, Saved};
use ictflow_schemas::dead_letter::{Position, Reason};
use ictflow_schemas::topic::Topic;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// The limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The largest share of dead letters; 1.0 stops nobody.
    pub max: f64,
    /// Records of a partition that are looked back over.
    pub window: u64,
}

impl Ratio {
    /// No limit, with the default window.
    pub const OFF: Ratio = Ratio { max: 1.0, window: 10_000 };

    /// How many records a window holds before it is judged.
    pub fn least(&self) -> u64 {
        self.window.div_ceil(10).max(1)
    }
}

impl Default for Ratio {
    /// A tenth of 10,000 records: damage in passing is far less, a wrong schema or partitioner far more.
    fn default() -> Self {
        Ratio { max: 0.1, window: 10_000 }
    }
}

/// The record at which a partition has more dead letters than it may.
#[derive(Clone, Debug, PartialEq)]
pub struct Crossing {
    /// The record.
    pub at: Position,
    /// Records in the window.
    pub judged: u64,
    /// Of these, the dead letters that count, by reason.
    pub refused: BTreeMap<Reason, u64>,
    /// The limit.
    pub max: f64,
}

impl Crossing {
    /// The failure that stops the job before it commits an epoch.
    pub fn stop(&self, epoch: i64) -> Error {
        let most = self.refused.iter().max_by_key(|(_, count)| **count).map(|(reason, _)| *reason);
        let hint = most.map_or("", Reason::hint);
        Error::fatal(
            format!("commit epoch {epoch}"),
            format!("{self}; nothing of this epoch is committed; {hint}"),
            "mend the cause and start again, nothing is lost; or raise [limits] max_dead_letter_ratio until these records are passed",
        )
    }
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<String> =
            self.refused.iter().map(|(reason, count)| format!("{count} {}", reason.word())).collect();
        let refused: u64 = self.refused.values().sum();
        write!(
            f,
            "{refused} of the last {} records up to {} are dead letters ({}), more than max_dead_letter_ratio {}",
            self.judged,
            self.at,
            reasons.join(", "),
            self.max
        )
    }
}

/// The windows of all partitions.
#[derive(Clone, Debug)]
pub struct Refusals {
    ratio: Ratio,
    windows: BTreeMap<(Topic, u32), Window>,
}

/// The last records of a partition.
#[derive(Clone, Debug, Default)]
struct Window {
    /// Records since the window started empty; it holds the last ones of them.
    judged: u64,
    /// The numbers of those refused in the window, with the reasons.
    refused: VecDeque<(u64, Reason)>,
}

/// A window as saved: records since it started empty, and the numbers of those refused in it. Not counted
/// from its oldest record: whether one was refused before the window was judged must be seen.
type SavedWindow = (u64, Vec<(u64, Reason)>);

impl Refusals {
    /// Windows that hold nothing.
    pub fn new(ratio: Ratio) -> Self {
        Refusals { ratio, windows: BTreeMap::new() }
    }

    /// Takes the next record of a partition with what it was refused for, and says whether it crosses: it
    /// counts as a dead letter, and with it the partition has more of them than it may.
    pub fn take(&mut self, topic: Topic, partition: u32, refused: Option<Reason>) -> bool {
        let damage = refused.filter(|reason| reason.is_damage());
        let window = self.windows.entry((topic, partition)).or_default();
        window.take(damage, self.ratio.window);
        damage.is_some() && window.is_over(self.ratio)
    }

    /// Passes the bounds of an epoch that is committed: a window that crossed, under the limit of now, and
    /// is still over it, starts empty. Under the limit that the epoch was committed under there is none.
    pub fn pass(&mut self) {
        let ratio = self.ratio;
        for window in self.windows.values_mut() {
            if window.has_crossed(ratio) {
                *window = Window::default();
            }
        }
    }

    /// What is to be said of a partition that has more dead letters than it may, since the record at `offset`.
    pub fn crossing(&self, topic: Topic, name: &str, partition: u32, offset: i64) -> Option<Crossing> {
        let window = self.windows.get(&(topic, partition))?;
        let mut refused: BTreeMap<Reason, u64> = BTreeMap::new();
        for (_, reason) in &window.refused {
            *refused.entry(*reason).or_default() += 1;
        }
        let at = Position { topic: name.to_owned(), partition, offset };
        Some(Crossing { at, judged: window.judged.min(self.ratio.window), refused, max: self.ratio.max })
    }

    /// The windows of `interactions`, to be saved. The other logs are read whole at every start.
    pub fn save(&self) -> Vec<Saved> {
        let of_events = self.windows.iter().filter(|((topic, _), _)| *topic == Topic::Interactions);
        let saved = of_events.map(|((_, partition), window)| {
            let saved: SavedWindow = (window.judged, window.refused.iter().copied().collect());
            let user = partition.to_string().as_str().into();
            Saved { user, part: Part::Refusals, state: Some(recovery::encode(&saved)) }
        });
        saved.collect()
    }

    /// Puts a window of `interactions` back.
    pub fn restore(&mut self, saved: &Saved) {
        let (Ok(partition), Some(state)) = (saved.user.parse(), &saved.state) else { return };
        let (judged, refused) = recovery::decode::<SavedWindow>(state);
        let mut window = Window { judged, refused: refused.into() };
        window.forget(self.ratio.window);
        self.windows.insert((Topic::Interactions, partition), window);
    }
}

impl Window {
    fn take(&mut self, refused: Option<Reason>, width: u64) {
        self.refused.extend(refused.map(|reason| (self.judged, reason)));
        self.judged += 1;
        self.forget(width);
    }

    /// Whether it holds enough to be judged, and more dead letters than it may.
    fn is_over(&self, ratio: Ratio) -> bool {
        let held = self.judged.min(ratio.window);
        held >= ratio.least() && self.refused.len() as f64 > ratio.max * held as f64
    }

    /// Whether it is over the limit since a record that crossed. Since the last dead letter the share has
    /// only fallen, so that one crossed, unless the window held too little then to be judged. Such a window
    /// stays: bounds anywhere among the good records that filled it up would else let the next damage pass.
    fn has_crossed(&self, ratio: Ratio) -> bool {
        let judged_then = self.refused.back().is_some_and(|(number, _)| number + 1 >= ratio.least());
        judged_then && self.is_over(ratio)
    }

    /// Forgets what is older than the window.
    fn forget(&mut self, width: u64) {
        let first = self.judged.saturating_sub(width);
        while self.refused.front().is_some_and(|(number, _)| *number < first) {
            self.refused.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Option<Reason> = Some(Reason::Unreadable);

    /// Takes a record, and what is said where it crosses.
    fn next(
        refusals: &mut Refusals,
        topic: Topic,
        (partition, offset): (u32, i64),
        refused: Option<Reason>,
    ) -> Option<Crossing> {
        let crosses = refusals.take(topic, partition, refused);
        crosses.then(|| refusals.crossing(topic, "clicks", partition, offset)).flatten()
    }

    /// The offset at which a partition crosses, with what stood in its window.
    fn crosses(ratio: Ratio, records: &[Option<Reason>]) -> Option<(i64, u64, u64)> {
        let mut refusals = Refusals::new(ratio);
        records.iter().zip(0..).find_map(|(refused, offset)| {
            let crossing = next(&mut refusals, Topic::Interactions, (0, offset), *refused)?;
            Some((crossing.at.offset, crossing.judged, crossing.refused.values().sum()))
        })
    }

    fn pattern(good: usize, bad: usize) -> Vec<Option<Reason>> {
        [vec![None; good], vec![BAD; bad]].concat()
    }

    #[test]
    fn a_partition_crosses_where_more_than_the_share_of_its_window_is_damaged() {
        let ratio = Ratio { max: 0.1, window: 100 };
        for (records, crossing) in [
            (pattern(0, 9), None),
            // Judged from a tenth of the window on.
            (pattern(0, 20), Some((9, 10, 10))),
            // Whatever fills it up to there: only a dead letter crosses.
            ([pattern(0, 9), pattern(1, 0)].concat(), None),
            ([pattern(0, 9), pattern(1, 1)].concat(), Some((10, 11, 10))),
            ([pattern(0, 9), vec![Some(Reason::Late); 20]].concat(), None),
            // Exactly the share doesn't cross, one more does.
            (pattern(90, 10), None),
            (pattern(100, 10), None),
            (pattern(100, 11), Some((110, 100, 11))),
            (pattern(1_000, 11), Some((1_010, 100, 11))),
            // Old damage leaves the window.
            ([pattern(100, 10), pattern(100, 10)].concat(), None),
            ([pattern(100, 10), pattern(89, 2)].concat(), Some((199, 100, 11))),
            ([pattern(100, 10), pattern(90, 1)].concat(), None),
        ] {
            assert_eq!(crosses(ratio, &records), crossing, "{} records", records.len());
        }
        assert_eq!(crosses(Ratio { max: 1.0, window: 10 }, &pattern(0, 1_000)), None);
        assert_eq!(crosses(Ratio { max: 0.0, window: 10 }, &pattern(5, 1)), Some((5, 6, 1)));
    }

    #[test]
    fn late_records_and_a_robot_stop_nobody_and_dilute_damage() {
        let ratio = Ratio { max: 0.1, window: 100 };
        for reason in Reason::ALL {
            let counts = !matches!(reason, Reason::Late | Reason::WindowFull);
            assert_eq!(crosses(ratio, &[Some(reason); 200]).is_some(), counts, "{}", reason.word());
        }
        let mixed = [vec![Some(Reason::Late); 90], vec![BAD; 10]].concat();
        assert_eq!(crosses(ratio, &mixed), None);
    }

    #[test]
    fn partitions_and_topics_are_judged_apart() {
        let mut refusals = Refusals::new(Ratio { max: 0.5, window: 10 });
        for offset in 0..10 {
            for (topic, partition) in [(Topic::Interactions, 0), (Topic::Items, 0)] {
                assert_eq!(next(&mut refusals, topic, (partition, offset), None), None);
            }
        }
        assert!(next(&mut refusals, Topic::Interactions, (1, 0), BAD).is_some());
        for offset in 10..15 {
            assert_eq!(next(&mut refusals, Topic::Items, (0, offset), BAD), None);
        }
        assert!(next(&mut refusals, Topic::Items, (0, 15), BAD).is_some());
        assert_eq!(next(&mut refusals, Topic::Interactions, (0, 10), BAD), None);
    }

    /// Takes records `from..to` of partition 3, and what is said of each.
    fn run(
        refusals: &mut Refusals,
        records: &[Option<Reason>],
        (from, to): (usize, usize),
    ) -> Vec<Option<Crossing>> {
        let place = |n: usize| (3, n as i64);
        (from..to).map(|n| next(refusals, Topic::Interactions, place(n), records[n])).collect()
    }

    /// A fixed mixture, damaged in waves, so that every start from 0 to 200 meets another window.
    fn waves() -> Vec<Option<Reason>> {
        (0..200_u32).map(|n| if (n * n / 7) % 5 < n % 3 { BAD } else { None }).collect()
    }

    #[test]
    fn a_window_that_was_saved_goes_on_as_if_it_had_not_been() {
        let ratio = Ratio { max: 0.3, window: 20 };
        let records = waves();
        let found = run(&mut Refusals::new(ratio), &records, (0, 200));
        assert!(found.iter().any(Option::is_some) && found.iter().any(Option::is_none));
        for cut in 0..200 {
            let mut before = Refusals::new(ratio);
            run(&mut before, &records, (0, cut));
            let mut after = Refusals::new(ratio);
            before.save().iter().for_each(|saved| after.restore(saved));
            assert_eq!(run(&mut after.clone(), &records, (cut, 200)), found[cut..], "cut at {cut}");
            before.pass();
            after.pass();
            let passed = run(&mut before, &records, (cut, 200));
            assert_eq!(run(&mut after, &records, (cut, 200)), passed, "passed at {cut}");
        }
    }

    #[test]
    fn the_bounds_before_a_crossing_do_not_move_it() {
        let records = waves();
        for (max, window) in [(0.01, 100), (0.3, 20), (0.2, 100), (0.5, 10), (0.15, 50)] {
            let ratio = Ratio { max, window };
            // Damage, then good records that fill the window up until it is judged.
            let slow = [pattern(0, 4), pattern(15, 0), records.clone()].concat();
            for records in [&records, &slow] {
                let whole = crosses(ratio, records);
                assert!(whole.is_some());
                for length in 1..30_i64 {
                    let mut refusals = Refusals::new(ratio);
                    let cut: Option<(i64, u64, u64)> =
                        records.iter().zip(0..).find_map(|(refused, offset)| {
                            if offset % length == 0 {
                                refusals.pass();
                            }
                            let crossing = next(&mut refusals, Topic::Interactions, (0, offset), *refused)?;
                            Some((crossing.at.offset, crossing.judged, crossing.refused.values().sum()))
                        });
                    assert_eq!(cut, whole, "{max} of {window}, epochs of {length}");
                }
            }
        }
    }

    #[test]
    fn damage_that_was_let_through_stops_nothing_after_it() {
        let ratio = Ratio { max: 0.1, window: 100 };
        let low = || Refusals::new(ratio);
        let take = |refusals: &mut Refusals, records: &[Option<Reason>]| -> Vec<bool> {
            records.iter().map(|refused| refusals.take(Topic::Interactions, 0, *refused)).collect()
        };
        let damage = pattern(70, 30);
        let (good, new) = (pattern(40, 0), pattern(0, 20));
        let at = |crossed: &[bool]| crossed.iter().position(|crosses| *crosses);
        // Not committed: it stops at the eighth of 78 records, every time, whatever was committed before it.
        for _ in 0..2 {
            let mut refusals = low();
            take(&mut refusals, &damage[..40]);
            refusals.pass();
            assert_eq!(at(&take(&mut refusals, &damage[40..])), Some(77 - 40));
        }
        // Committed under a higher limit and replayed under this one.
        let mut replayed = low();
        assert_eq!(at(&take(&mut replayed, &damage)), Some(77));
        replayed.pass();
        // Kept under the higher limit and put back under this one.
        let mut high = Refusals::new(Ratio { max: 0.5, ..ratio });
        assert_eq!(at(&take(&mut high, &damage)), None);
        high.pass();
        let mut restored = low();
        high.save().iter().for_each(|saved| restored.restore(saved));
        restored.pass();
        for mut refusals in [replayed, restored] {
            assert_eq!(at(&take(&mut refusals, &good)), None);
            // Bounds on the way change nothing.
            refusals.pass();
            // Four of 44 are few enough, five of 45 too many.
            assert_eq!(at(&take(&mut refusals, &new)), Some(4));
        }
        // Without a bound after the damage good records don't cross either, and the next dead letter does.
        let mut standing = low();
        take(&mut standing, &damage);
        assert_eq!(at(&take(&mut standing, &good)), None);
        assert_eq!(at(&take(&mut standing, &new)), Some(0));
    }

    #[test]
    fn the_failure_names_the_place_the_counts_and_what_to_look_for() {
        let mut refusals = Refusals::new(Ratio { max: 0.1, window: 10 });
        let crossing = next(&mut refusals, Topic::Interactions, (2, 41), Some(Reason::Misrouted));
        let text = crossing.map(|crossing| crossing.stop(7).to_string()).unwrap_or_default();
        for part in [
            "commit epoch 7",
            "1 of the last 1 records up to clicks[2]@41",
            "1 misrouted",
            "partitioner",
            "max_dead_letter_ratio",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

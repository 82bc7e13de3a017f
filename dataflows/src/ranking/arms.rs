//! The arms of an evaluation: what a ranker is given. One line here is one row of the table.
//!
//! | arm | backbone's ids | texts | the user's labels | votes | vector |
//! | --- | --- | --- | --- | --- | --- |
//! | `ids` | yes | | | | |
//! | `text` | yes | yes | | | |
//! | `strong` | yes | yes | yes | | |
//! | `strong+rate` | yes | yes | yes | the first two: how many labels the item's ring has, and their rate | |
//! | `votes` | yes | yes | yes | both sources | |
//! | `votes-recent` | yes | yes | yes | of the most recent, not of the most similar | |
//! | `votes-permuted` | yes | yes | yes | of neighbours whose labels changed places | |
//! | `attention` | yes | yes | yes | | attention over neighbours |
//! | `attention+votes` | yes | yes | yes | both sources | attention over neighbours |
//!
//! `strong` is the fair baseline: a module that sees labels must not be credited with what the user's own
//! labels say already. `strong+rate` tells how much of the votes' gain is the item's plain like-rate, for which
//! nobody has to be similar to anybody. `votes-permuted` is a control that must fall back to `strong`.

use super::neighbours::Selecting;
use serde::Serialize;

/// What a ranker is given beside the ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// Its name in options and tables.
    pub name: &'static str,
    /// The item's text vector and the mean of the history's.
    pub text: bool,
    /// Two scalars: the user's like-rate over the history, and how many labels it stands on.
    pub labels: bool,
    /// Two of the votes: how many labels the item's ring has, and their rate.
    pub rate: bool,
    /// The votes of both sources: nine scalars.
    pub votes: bool,
    /// The attention vector.
    pub attention: bool,
    /// How neighbours are selected, for votes and vector.
    pub selecting: Selecting,
}

/// Scalars of the user's own labels.
pub const LABEL_SCALARS: usize = 2;

/// The votes that stand for the item's own rate: they come first.
pub const RATE_SCALARS: usize = 2;

/// Scalars of the votes of both sources.
pub const VOTE_SCALARS: usize = 9;

/// The name of the fair baseline, which others are compared with.
pub const STRONG: &str = "strong";

const IDS: Arm = Arm {
    name: "ids",
    text: false,
    labels: false,
    rate: false,
    votes: false,
    attention: false,
    selecting: Selecting::Similar,
};

const BASE: Arm = Arm { name: STRONG, text: true, labels: true, ..IDS };

/// All arms, in the order of tables.
pub const ARMS: [Arm; 9] = [
    IDS,
    Arm { name: "text", text: true, ..IDS },
    BASE,
    Arm { name: "strong+rate", rate: true, ..BASE },
    Arm { name: "votes", votes: true, ..BASE },
    Arm { name: "votes-recent", votes: true, selecting: Selecting::Recent, ..BASE },
    Arm { name: "votes-permuted", votes: true, selecting: Selecting::Permuted, ..BASE },
    Arm { name: "attention", attention: true, ..BASE },
    Arm { name: "attention+votes", attention: true, votes: true, ..BASE },
];

/// The arms that an evaluation takes unless it is told.
pub const USUAL: [&str; 7] =
    ["ids", "text", STRONG, "strong+rate", "votes", "attention", "attention+votes"];

/// Arms that differ in one thing, and are held against each other where both are there.
pub const PAIRS: [(&str, &str); 4] = [
    ("votes", "strong+rate"),
    ("votes", "votes-recent"),
    ("attention", "strong+rate"),
    ("attention+votes", "votes"),
];

impl Arm {
    /// The arm of a name.
    pub fn named(name: &str) -> Option<Arm> {
        ARMS.into_iter().find(|arm| arm.name == name)
    }

    /// How many scalars it brings.
    pub fn scalars(&self) -> usize {
        let of = |there: bool, scalars: usize| if there { scalars } else { 0 };
        of(self.labels, LABEL_SCALARS) + of(self.rate, RATE_SCALARS) + of(self.votes, VOTE_SCALARS)
    }

    /// Whether it needs neighbours.
    pub fn neighbours(&self) -> bool {
        self.rate || self.votes || self.attention
    }

    /// Whether it reads labels of others or of the user, so that it matters when they are known.
    pub fn reads_labels(&self) -> bool {
        self.labels || self.neighbours()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_found_by_name_and_each_is_another() {
        for (place, arm) in ARMS.iter().enumerate() {
            assert_eq!(Arm::named(arm.name), Some(*arm));
            let as_another = |other: &Arm| Arm { name: "", ..*other };
            assert!(ARMS[..place].iter().all(|other| as_another(other) != as_another(arm)), "{}", arm.name);
        }
        assert_eq!(Arm::named("paper"), None);
        assert!(USUAL.iter().all(|name| Arm::named(name).is_some()));
        assert!(PAIRS.iter().all(|(arm, other)| arm != other && Arm::named(arm).and(Arm::named(other)).is_some()));
    }
}

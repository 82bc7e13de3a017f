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
//! | `decoder-…` | yes | yes | yes | | the paper's decoder over demonstrations |
//! | `paper-…` | yes | | | | the paper's decoder over demonstrations |
//!
//! `strong` is the fair baseline: a module that sees labels must not be credited with what the user's own
//! labels say already. `strong+rate` tells how much of the votes' gain is the item's plain like-rate, for which
//! nobody has to be similar to anybody. `votes-permuted` is a control: labels change places, but the two counts among
//! the votes stay true, so what is left of the gain is that of knowing how much an item and a user are rated.
//!
//! `paper` is what was published: a backbone of ids alone, which meets texts and labels only in the vector;
//! `decoder` the same vector over the fair baseline. Behind either stands what the demonstrations' CoTs are:
//!
//! | | CoTs |
//! | --- | --- |
//! | `-nocot` | none: two tokens a demonstration, no reconstruction |
//! | `-template` | the skeleton with fixed words, without a model |
//! | `-llm` | what the LLM wrote |
//! | `-shuffled` | the same texts, each at another demonstration: what a text says of its own is lost |
//! | `-label-free` | what the LLM wrote without being told the label |
//!
//! All five choose among the same demonstrations ([`super::cots`]).

use super::neighbours::Selecting;
pub use crate::cots::texts::Variant as Cot;
use ictflow_operators::ranking::scalars::LABEL_SCALARS;
use ictflow_schemas::neighbour::VOTES;
use serde::Serialize;

/// What makes the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vector {
    /// Attention over neighbours.
    Attention,
    /// The decoder over demonstrations, with their CoTs where there are some.
    Decoder(Option<Cot>),
}

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
    /// The vector.
    pub vector: Option<Vector>,
    /// How neighbours are selected, for votes and vector.
    pub selecting: Selecting,
}

/// The votes that stand for the item's own rate: they come first.
pub const RATE_SCALARS: usize = 2;

/// The name of the fair baseline, which others are compared with.
pub const STRONG: &str = "strong";

const IDS: Arm = Arm {
    name: "ids",
    text: false,
    labels: false,
    rate: false,
    votes: false,
    vector: None,
    selecting: Selecting::Similar,
};

const BASE: Arm = Arm { name: STRONG, text: true, labels: true, ..IDS };

const ATTENTION: Arm = Arm { name: "attention", vector: Some(Vector::Attention), ..BASE };

const fn decoder(name: &'static str, cot: Option<Cot>, base: Arm) -> Arm {
    Arm { name, vector: Some(Vector::Decoder(cot)), ..base }
}

/// All arms, in the order of tables.
pub const ARMS: [Arm; 19] = [
    IDS,
    Arm { name: "text", text: true, ..IDS },
    BASE,
    Arm { name: "strong+rate", rate: true, ..BASE },
    Arm { name: "votes", votes: true, ..BASE },
    Arm { name: "votes-recent", votes: true, selecting: Selecting::Recent, ..BASE },
    Arm { name: "votes-permuted", votes: true, selecting: Selecting::Permuted, ..BASE },
    ATTENTION,
    Arm { name: "attention+votes", votes: true, ..ATTENTION },
    decoder("decoder-nocot", None, BASE),
    decoder("decoder-template", Some(Cot::Template), BASE),
    decoder("decoder-llm", Some(Cot::Llm), BASE),
    decoder("decoder-shuffled", Some(Cot::Shuffled), BASE),
    decoder("decoder-label-free", Some(Cot::LabelFree), BASE),
    decoder("paper-nocot", None, IDS),
    decoder("paper-template", Some(Cot::Template), IDS),
    decoder("paper-llm", Some(Cot::Llm), IDS),
    decoder("paper-shuffled", Some(Cot::Shuffled), IDS),
    decoder("paper-label-free", Some(Cot::LabelFree), IDS),
];

/// The arms that an evaluation takes unless it is told.
pub const USUAL: [&str; 7] = ["ids", "text", STRONG, "strong+rate", "votes", "attention", "attention+votes"];

/// Arms that differ in one thing, and are held against each other where both are there.
pub const PAIRS: [(&str, &str); 14] = [
    ("votes", "strong+rate"),
    ("votes", "votes-recent"),
    ("attention", "strong+rate"),
    ("attention+votes", "votes"),
    ("decoder-nocot", STRONG),
    ("decoder-template", "decoder-nocot"),
    ("decoder-llm", "decoder-shuffled"),
    ("decoder-llm", "decoder-nocot"),
    ("decoder-llm", "decoder-label-free"),
    ("paper-nocot", "ids"),
    ("paper-template", "paper-nocot"),
    ("paper-llm", "paper-shuffled"),
    ("paper-llm", "paper-nocot"),
    ("paper-llm", "paper-label-free"),
];

impl Arm {
    /// The arm of a name.
    pub fn named(name: &str) -> Option<Arm> {
        ARMS.into_iter().find(|arm| arm.name == name)
    }

    /// How many scalars it brings.
    pub fn scalars(&self) -> usize {
        let of = |there: bool, scalars: usize| if there { scalars } else { 0 };
        of(self.labels, LABEL_SCALARS) + of(self.rate, RATE_SCALARS) + of(self.votes, VOTES)
    }

    /// Whether it needs neighbours.
    pub fn neighbours(&self) -> bool {
        self.rate || self.votes || self.vector == Some(Vector::Attention)
    }

    /// Whether it needs demonstrations, and which CoTs they have.
    pub fn demonstrations(&self) -> Option<Option<Cot>> {
        match self.vector {
            Some(Vector::Decoder(cot)) => Some(cot),
            Some(Vector::Attention) | None => None,
        }
    }

    /// Whether texts are read: by the backbone, or for the vector.
    pub fn reads_texts(&self) -> bool {
        self.text || self.vector.is_some()
    }

    /// Whether it reads labels of others or of the user, so that it matters when they are known.
    pub fn reads_labels(&self) -> bool {
        self.labels || self.neighbours() || self.vector.is_some()
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
        assert_eq!(Arm::named("decoder"), None);
        assert!(USUAL.iter().all(|name| Arm::named(name).is_some()));
        for arm in ARMS {
            if let Some(cot) = arm.demonstrations() {
                let end = cot.map_or("nocot", Cot::name);
                assert!(arm.name.ends_with(&format!("-{end}")), "{}", arm.name);
            }
        }
        for (arm, other) in PAIRS {
            assert!(arm != other && Arm::named(arm).and(Arm::named(other)).is_some(), "{arm}, {other}");
        }
    }
}

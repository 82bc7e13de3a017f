//! How much later than its event a label is known: what a batch job that refreshes now and then would know.

use ictflow_schemas::Millis;
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A label delay. A label counts as of its time and this, strictly before the example that asks: of the
/// user's own labels, in rings, in sketches and in the pool of demonstrations. What a user engaged with is
/// known at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delay(pub Millis);

/// Units, the longest first, in milliseconds.
const UNITS: [(&str, Millis); 4] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// The longest delay: a century. Times and it never overflow.
const LONGEST: Millis = 36_525 * 86_400_000;

impl Delay {
    /// No delay.
    pub const NONE: Delay = Delay(0);

    /// Whether a label of one time is known at another.
    pub fn known(self, label_time: Millis, at: Millis) -> bool {
        label_time.saturating_add(self.0) < at
    }
}

impl fmt::Display for Delay {
    /// In the longest unit that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 > 0 && self.0 % unit == 0) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None if self.0 == 0 => f.write_str("0"),
            None => write!(f, "{}ms", self.0),
        }
    }
}

impl FromStr for Delay {
    type Err = String;

    /// `0`, or a whole number with s, m, h or d behind it.
    fn from_str(text: &str) -> Result<Self, String> {
        const HINT: &str = "give 0, or a number with a unit of s, m, h, d, such as 10m, up to 36525d";
        if text == "0" {
            return Ok(Delay::NONE);
        }
        let unit = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
        // A u32 of days is far from overflowing.
        let delay = unit.and_then(|(number, unit)| Some(Millis::from(number.parse::<u32>().ok()?) * unit));
        delay.filter(|delay| *delay <= LONGEST).map(Delay).ok_or_else(|| HINT.to_owned())
    }
}

impl Serialize for Delay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn delays_are_read_and_written() {
        for (text, ms, written) in [
            ("0", 0, "0"),
            ("30s", 30_000, "30s"),
            ("10m", 600_000, "10m"),
            ("60m", 3_600_000, "1h"),
            ("24h", 86_400_000, "1d"),
            ("36525d", LONGEST, "36525d"),
        ] {
            let delay: Delay = text.parse().unwrap();
            assert_eq!((delay.0, delay.to_string().as_str()), (ms, written));
        }
        for wrong in ["", "10", "m", "-1m", "1.5h", "10 m", "36526d", "4294967295d", "4294967296s", "10ms"] {
            assert!(wrong.parse::<Delay>().unwrap_err().contains("such as 10m"), "{wrong:?}");
        }
    }

    #[test]
    fn a_label_is_known_strictly_after_its_delay() {
        assert!(Delay(10).known(5, 16) && !Delay(10).known(5, 15));
        assert!(Delay::NONE.known(5, 6) && !Delay::NONE.known(5, 5));
    }
}

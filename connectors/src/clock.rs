//! The wall clock, read in this one place.
//!
//! It stamps records and headers for people. No value that ictflow publishes depends on it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 UTC; negative where the clock stands before.
#[allow(clippy::disallowed_methods)] // This is the one place.
pub fn now_ms() -> i64 {
    let ms = |gap: std::time::Duration| i64::try_from(gap.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

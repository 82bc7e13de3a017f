//! SplitMix64: numbers that a seed decides, the same on every machine and in every version.
//!
//! The state grows by a constant, the output is a mix of it (Steele, Lea, Flood, OOPSLA 2014). Whoever draws
//! says here what the seed is and what becomes of a number.

/// 2^64 / golden ratio: by how much the state grows.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The mix of a state.
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of numbers, from the state that it holds on.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }
}

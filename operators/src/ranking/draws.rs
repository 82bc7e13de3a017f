//! Seeded draws: SplitMix64, so that a seed means the same on every machine and in every version.

use crate::splitmix::{STEP, SplitMix64, mix};

/// A stream of draws. The same seed and stream give the same draws.
#[derive(Clone, Debug)]
pub struct Draws(SplitMix64);

impl Draws {
    /// The draws of a seed.
    pub fn new(seed: u64) -> Self {
        Draws(SplitMix64(seed))
    }

    /// One of 2^64 streams of a seed: what is drawn in one doesn't move another.
    pub fn stream(seed: u64, stream: u64) -> Self {
        Draws(SplitMix64(mix(seed.wrapping_add(STEP)) ^ mix(stream.wrapping_add(STEP).wrapping_mul(STEP))))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `bound`, each equally often; 0 for the bound 0. The high half of 32 bits times
    /// the bound, drawn again where a short last stretch would favour some numbers.
    pub fn below(&mut self, bound: u32) -> u32 {
        let reject = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
        loop {
            let product = (self.bits() >> 32) * u64::from(bound);
            if product as u32 >= reject {
                return (product >> 32) as u32;
            }
        }
    }

    /// Puts a list into a drawn order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            let bound = u32::try_from(end + 1).unwrap_or(u32::MAX);
            list.swap(end, self.below(bound) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_splitmix64() {
        // The published first outputs for the seed 1234567.
        let mut draws = Draws::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| draws.bits()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_below_a_bound_are_even_and_a_shuffle_keeps_all() {
        let mut draws = Draws::stream(7, 3);
        let mut counts = [0; 7];
        for _ in 0..70_000 {
            counts[draws.below(7) as usize] += 1;
        }
        // Five deviations of a binomial count.
        assert!(counts.iter().all(|&count: &i32| (count - 10_000).abs() < 470), "{counts:?}");
        assert_eq!((draws.below(0), draws.below(1)), (0, 0));
        let mut list: Vec<u32> = (0..100).collect();
        draws.shuffle(&mut list);
        assert!(!list.is_sorted());
        list.sort_unstable();
        assert!(list.into_iter().eq(0..100));
        assert_ne!(Draws::stream(7, 3).bits(), Draws::stream(7, 4).bits());
    }
}

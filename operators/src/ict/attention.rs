//! Attention over neighbours: from a query token and the neighbours of two sources to one vector.
//!
//! With E_user(v) and p(item) = [E_item; G(text); E_creator; mean E_category] of the neighbour's own
//! user and item, s its source, and the scalars c = [score / 2^28, age, residual / 1024]:
//! h_j = ReLU(b + A E_user(v_j) + P p(item_j) + Y[label_j] + S[s] + C c_j), 64 values.
//! The logit of j is ⟨Q x, K h_j⟩ / √d + θ_s score_j − φ_s age_j; α is their softmax in the source.
//! A source gives [Σ α V h, Σ α residual, Σ α label − ½, L2(1 + n) / 8, Σ α²], zeros where n = 0;
//! the vector is O of both sources, `same_item` first.
//!
//! **Folded.** K and V are linear, so ⟨Q x, K h⟩ = ⟨Kᵀ Q x, h⟩ and Σ α V h = V Σ α h: keys and values
//! of neighbours are never made. A neighbour costs 5 · 64 products, whatever d is.
//!
//! **Parts.** What a neighbour's user and item give to h is kept, one part per user and per item.
//!
//! **Order of additions.** h: user part (from b on), item part, the sum Y[label] + S[s], then score,
//! age and residual. Sums over neighbours go in the order given; linear layers and dot products as
//! `kernel` says. So the order of neighbours moves last bits, and nothing else does.

use super::kernel::{Linear, add, dot, exp, relu};
use super::shape::{MAX_NEIGHBOURS, NEIGHBOUR_HIDDEN, NEIGHBOUR_SCALARS, SOURCE_SCALARS, SOURCES};
use super::tokens::ItemRows;
use super::weights::Weights;

/// A score of 1, in the integer unit of retrieval.
const SCORE_UNIT: f32 = (1u32 << 28) as f32;
/// A residual of 1, in its integer unit.
const RESIDUAL_UNIT: f32 = 1024.0;
/// What the logarithm of an age is divided by.
const AGE_SCALE: f32 = 16.0;
/// What the logarithm of a count is divided by.
const COUNT_SCALE: f32 = 8.0;
/// Milliseconds in a unit of age.
const AGE_UNIT_MS: u64 = 60_000;

/// What a neighbour's user gives to its hidden values: b + A E_user, 64 values.
#[derive(Clone, Debug, PartialEq)]
pub struct NeighbourUserPart(Box<[f32]>);

/// What a neighbour's item gives to its hidden values: P p(item), 64 values.
#[derive(Clone, Debug, PartialEq)]
pub struct NeighbourItemPart(Box<[f32]>);

/// One neighbour of a query: a labelled example.
#[derive(Clone, Copy, Debug)]
pub struct NeighbourInput<'a> {
    /// Of its user.
    pub user: &'a NeighbourUserPart,
    /// Of its item.
    pub item: &'a NeighbourItemPart,
    /// Its label.
    pub positive: bool,
    /// Its similarity, in units of 2^-28.
    pub score: i64,
    /// How much older its label is than the newest in the same source: whole minutes.
    pub age: u64,
    /// Its residual, in units of 1/1024.
    pub residual: i32,
}

/// L2(x) = ⌊log2 x⌋ + (x / 2^⌊log2 x⌋ − 1): the binary logarithm, with straight lines between powers
/// of two. One rounding, to f32, for x below 2^47. L2(0) = 0.
pub fn piecewise_log2(x: u64) -> f32 {
    let power = x.max(1).ilog2();
    let over = x.max(1) - (1 << power);
    (f64::from(power) + over as f64 / (1u64 << power) as f64) as f32
}

/// The age of a label, in the unit of [`NeighbourInput::age`], from the times in milliseconds; 0 for
/// a label that is newer than the newest.
pub fn age_units(newest: i64, label_time: i64) -> u64 {
    if newest > label_time { newest.abs_diff(label_time) / AGE_UNIT_MS } else { 0 }
}

/// A score as attention reads it.
pub fn score_scalar(score: i64) -> f32 {
    score as f32 / SCORE_UNIT
}

/// An age as attention reads it: L2(1 + age) / 16.
pub fn age_scalar(age: u64) -> f32 {
    piecewise_log2(age.saturating_add(1)) / AGE_SCALE
}

/// A residual as attention reads it.
pub fn residual_scalar(residual: i32) -> f32 {
    residual as f32 / RESIDUAL_UNIT
}

/// A count as a model reads it: L2(1 + n) / 8.
pub fn count_scalar(n: u64) -> f32 {
    piecewise_log2(n.saturating_add(1)) / COUNT_SCALE
}

type Hidden = [f32; NEIGHBOUR_HIDDEN];

/// The layers.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) d: usize,
    /// A with b.
    pub(super) user: Linear,
    /// P.
    pub(super) item: Linear,
    /// Y[label] + S[source], by source and label.
    pub(super) kinds: [[Hidden; 2]; SOURCES],
    /// The columns of C.
    pub(super) scalars: [Hidden; NEIGHBOUR_SCALARS],
    /// Q.
    pub(super) query: Linear,
    /// Kᵀ, from d to 64 values.
    pub(super) key: Linear,
    /// V.
    pub(super) value: Linear,
    /// By source.
    pub(super) theta: [f32; SOURCES],
    /// By source.
    pub(super) phi: [f32; SOURCES],
    /// O.
    pub(super) out: Linear,
    /// 1 / √d.
    pub(super) scale: f32,
}

/// Queries that are computed together. Only speed depends on it.
const QUERIES: usize = 16;

impl Attention {
    /// Sums of a label's row and a source's, both tables [2, 64].
    pub(super) fn kinds(labels: &[f32], sources: &[f32]) -> [[Hidden; 2]; SOURCES] {
        let row = |table: &[f32], row: usize, i: usize| table[row * NEIGHBOUR_HIDDEN + i];
        std::array::from_fn(|s| {
            std::array::from_fn(|l| std::array::from_fn(|i| row(labels, l, i) + row(sources, s, i)))
        })
    }

    /// The columns of C [64, 3].
    pub(super) fn scalars(weight: &[f32]) -> [Hidden; NEIGHBOUR_SCALARS] {
        std::array::from_fn(|c| std::array::from_fn(|i| weight[i * NEIGHBOUR_SCALARS + c]))
    }

    /// The hidden values of a neighbour.
    fn hidden(&self, source: usize, neighbour: &NeighbourInput<'_>, scalars: [f32; 3]) -> Hidden {
        let mut hidden = [0.0; NEIGHBOUR_HIDDEN];
        hidden.copy_from_slice(&neighbour.user.0);
        add(&mut hidden, &neighbour.item.0);
        add(&mut hidden, &self.kinds[source][usize::from(neighbour.positive)]);
        for (scalar, column) in scalars.into_iter().zip(&self.scalars) {
            for (h, weight) in hidden.iter_mut().zip(column) {
                *h += scalar * weight;
            }
        }
        relu(&mut hidden);
        hidden
    }

    /// Pools the neighbours of one source: Σ α h into `pooled`, the scalars into `rest`, both zeros
    /// at first. `query` is Kᵀ Q x.
    fn pool(
        &self,
        source: usize,
        query: &[f32],
        neighbours: &[NeighbourInput<'_>],
        pooled: &mut [f32],
        rest: &mut [f32],
    ) {
        let n = neighbours.len();
        assert!(n <= MAX_NEIGHBOURS, "a vector reads at most {MAX_NEIGHBOURS} neighbours of a source");
        if n == 0 {
            return;
        }
        let mut hidden = [[0.0; NEIGHBOUR_HIDDEN]; MAX_NEIGHBOURS];
        let mut weights = [0.0f32; MAX_NEIGHBOURS];
        let weights = &mut weights[..n];
        for ((neighbour, hidden), weight) in neighbours.iter().zip(&mut hidden).zip(weights.iter_mut()) {
            let (score, age) = (score_scalar(neighbour.score), age_scalar(neighbour.age));
            *hidden = self.hidden(source, neighbour, [score, age, residual_scalar(neighbour.residual)]);
            let fit = dot(query, hidden) * self.scale;
            *weight = fit + self.theta[source] * score - self.phi[source] * age;
        }
        let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for weight in weights.iter_mut() {
            *weight = exp(*weight - largest);
            total += *weight;
        }
        let (mut residual, mut label, mut squares) = (0.0, 0.0, 0.0);
        for ((neighbour, hidden), weight) in neighbours.iter().zip(&hidden).zip(weights.iter()) {
            let weight = weight / total;
            for (pooled, h) in pooled.iter_mut().zip(hidden) {
                *pooled += weight * h;
            }
            residual += weight * residual_scalar(neighbour.residual);
            label += if neighbour.positive { weight } else { 0.0 };
            squares += weight * weight;
        }
        rest.copy_from_slice(&[residual, label - 0.5, count_scalar(n as u64), squares]);
    }

    /// The vectors of some queries; `out` is [queries, d].
    fn apply<X: AsRef<[f32]>>(&self, queries: &[(X, [&[NeighbourInput<'_>]; SOURCES])], out: &mut [f32]) {
        let d = self.d;
        for (queries, out) in queries.chunks(QUERIES).zip(out.chunks_mut(QUERIES * d)) {
            let n = queries.len();
            let mut rows = Vec::with_capacity(n * d);
            for (x, _) in queries {
                assert_eq!(x.as_ref().len(), d, "a query token comes from weights of the same width");
                rows.extend_from_slice(x.as_ref());
            }
            let mut turned = vec![0.0; n * d];
            self.query.apply(&rows, &mut turned);
            let mut folded = vec![0.0; n * NEIGHBOUR_HIDDEN];
            self.key.apply(&turned, &mut folded);
            let mut pooled = vec![0.0; n * SOURCES * NEIGHBOUR_HIDDEN];
            let mut rest = vec![0.0; n * SOURCES * SOURCE_SCALARS];
            let mut pooled_rows = pooled.chunks_exact_mut(NEIGHBOUR_HIDDEN);
            let mut rest_rows = rest.chunks_exact_mut(SOURCE_SCALARS);
            for ((_, sources), query) in queries.iter().zip(folded.chunks_exact(NEIGHBOUR_HIDDEN)) {
                let rows = pooled_rows.by_ref().zip(rest_rows.by_ref());
                for ((source, neighbours), (pooled, rest)) in sources.iter().enumerate().zip(rows) {
                    self.pool(source, query, neighbours, pooled, rest);
                }
            }
            let mut values = vec![0.0; n * SOURCES * d];
            self.value.apply(&pooled, &mut values);
            let mut joined = Vec::with_capacity(n * SOURCES * (d + SOURCE_SCALARS));
            for (values, rest) in values.chunks_exact(d).zip(rest.chunks_exact(SOURCE_SCALARS)) {
                joined.extend_from_slice(values);
                joined.extend_from_slice(rest);
            }
            self.out.apply(&joined, out);
        }
    }
}

impl Weights {
    /// What a neighbour's user gives to attention. Keep it per user.
    ///
    /// # Panics
    /// With weights of the kind `decoder`.
    pub fn neighbour_user_part(&self, user: &str) -> NeighbourUserPart {
        let mut part = vec![0.0; NEIGHBOUR_HIDDEN];
        self.attention().user.apply(self.user.row(self.user.row_of(user)), &mut part);
        NeighbourUserPart(part.into())
    }

    /// What a neighbour's item gives to attention: its rows and its quantised vector, as for
    /// [`Weights::item_part`]. Keep it per item.
    ///
    /// # Panics
    /// With weights of the kind `decoder`.
    pub fn neighbour_item_part(&self, rows: &ItemRows, vector: Option<&[i16]>) -> NeighbourItemPart {
        let mut part = vec![0.0; NEIGHBOUR_HIDDEN];
        self.attention().item.apply(&self.item_fields(rows, vector), &mut part);
        NeighbourItemPart(part.into())
    }

    /// The vector of a query token and its neighbours, `same_item` first: d values. A source may be
    /// empty.
    ///
    /// # Panics
    /// With weights of the kind `decoder`, a token of another width, or more than
    /// [`MAX_NEIGHBOURS`] of a source.
    pub fn attend(&self, query: &[f32], sources: [&[NeighbourInput<'_>]; SOURCES]) -> Vec<f32> {
        self.attend_all(&[(query, sources)])
    }

    /// The vectors of many queries; one flat array [queries, d]. The same bits as one by one.
    ///
    /// # Panics
    /// As [`Weights::attend`].
    pub fn attend_all<X: AsRef<[f32]>>(&self, queries: &[(X, [&[NeighbourInput<'_>]; SOURCES])]) -> Vec<f32> {
        let mut out = vec![0.0; queries.len() * self.shape.d];
        self.attention().apply(queries, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_piecewise_logarithm_is_exact() {
        let cases = [
            (0, 0.0),
            (1, 0.0),
            (2, 1.0),
            (3, 1.5),
            (4, 2.0),
            (5, 2.25),
            (6, 2.5),
            (7, 2.75),
            (1023, 9.998_047),
            (1024, 10.0),
            (1 << 40, 40.0),
            (3 << 40, 41.5),
            (u64::MAX, 64.0),
        ];
        for (x, expected) in cases {
            assert_eq!(piecewise_log2(x), expected, "{x}");
        }
        // Never falling, and within 0.0861 below the logarithm.
        for x in 1..100_000u64 {
            let (here, truth) = (piecewise_log2(x), (x as f64).log2());
            assert!(here <= piecewise_log2(x + 1));
            assert!((-1e-6..0.0861).contains(&(truth - f64::from(here))), "{x}");
        }
    }

    #[test]
    fn scalars_at_their_edges() {
        assert_eq!([score_scalar(1 << 28), score_scalar(-(1 << 27)), score_scalar(0)], [1.0, -0.5, 0.0]);
        assert_eq!([residual_scalar(1024), residual_scalar(-512)], [1.0, -0.5]);
        assert_eq!([age_scalar(0), age_scalar(1), age_scalar(u64::MAX)], [0.0, 1.0 / 16.0, 4.0]);
        assert_eq!([count_scalar(0), count_scalar(1), count_scalar(15)], [0.0, 0.125, 0.5]);
        assert_eq!([age_units(60_000, 0), age_units(59_999, 0), age_units(0, 1)], [1, 0, 0]);
        assert_eq!(age_units(i64::MAX, i64::MIN), u64::MAX / 60_000);
    }
}

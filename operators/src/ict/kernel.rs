//! The arithmetic of the ICT: linear layers, norms, `exp` and rotary angles in plain f32.
//!
//! **Bits.** Every output element is one chain of IEEE additions and products in a written order,
//! whatever rows are computed beside it. Rust never contracts a product and a sum into one
//! operation and never reorders them, so blocking and vector width change the speed and never a
//! bit. Nothing here calls the system's maths library, whose last bits depend on its version and
//! on the CPU: only `+ - * /` and `sqrt`, which IEEE rounds correctly everywhere. So two machines
//! agree to the bit too.

/// Outputs that are computed together; also the unit of the packed layout.
const TILE: usize = 32;

/// Rows that share each load of a weight.
const ROWS: usize = 4;

/// Outputs of one row within a block of [`ROWS`] rows: as many as the sums of four rows fit the
/// registers of the CPU that the build is for. It changes the speed only.
const STRIP: usize = if cfg!(target_feature = "avx") { 16 } else { 8 };

/// y = W x + b. The sum of output j is b_j, then + x_0 W_j0, then + x_1 W_j1, and so on.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    inputs: usize,
    outputs: usize,
    /// Tile by tile of 32 outputs, and in it input by input: [tiles][inputs][TILE], padded with
    /// zeros. The loop over outputs is the inner one, so it vectorises without a reduction.
    packed: Vec<f32>,
    /// [tiles][TILE].
    bias: Vec<f32>,
}

impl Linear {
    /// Packs a layer whose weight from input i to output o is `weight(o, i)`.
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        bias: Option<&[f32]>,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let tiles = outputs.div_ceil(TILE);
        let mut packed = vec![0.0; tiles * inputs * TILE];
        for o in 0..outputs {
            for i in 0..inputs {
                packed[(o / TILE * inputs + i) * TILE + o % TILE] = weight(o, i);
            }
        }
        let mut padded = vec![0.0; tiles * TILE];
        if let Some(bias) = bias {
            padded[..outputs].copy_from_slice(bias);
        }
        Linear { inputs, outputs, packed, bias: padded }
    }

    /// Packs a PyTorch weight [outputs, inputs].
    pub(super) fn from_rows(weight: &[f32], inputs: usize, outputs: usize, bias: Option<&[f32]>) -> Self {
        Self::new(inputs, outputs, bias, |o, i| weight[o * inputs + i])
    }

    /// How many outputs.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Applies the layer to any number of rows: `x` is [rows, inputs], `y` is [rows, outputs].
    /// A row's result doesn't depend on the others.
    pub(super) fn apply(&self, x: &[f32], y: &mut [f32]) {
        debug_assert_eq!(x.len() * self.outputs, y.len() * self.inputs);
        let mut x_blocks = x.chunks_exact(ROWS * self.inputs);
        let mut y_blocks = y.chunks_exact_mut(ROWS * self.outputs);
        for (x, y) in x_blocks.by_ref().zip(y_blocks.by_ref()) {
            self.block(x, y);
        }
        let rest = x_blocks.remainder().chunks_exact(self.inputs);
        for (x, y) in rest.zip(y_blocks.into_remainder().chunks_exact_mut(self.outputs)) {
            self.row(x, y);
        }
    }

    /// One row: a tile of 32 sums stays in registers.
    fn row(&self, x: &[f32], y: &mut [f32]) {
        let tiles = self.packed.chunks_exact(self.inputs * TILE).zip(self.bias.as_chunks::<TILE>().0);
        for ((tile, bias), y) in tiles.zip(y.chunks_mut(TILE)) {
            let mut sums = *bias;
            for (x, weights) in x.iter().zip(tile.as_chunks::<TILE>().0) {
                axpy(&mut sums, *x, weights);
            }
            store(y, &sums);
        }
    }

    /// [`ROWS`] rows: each weight that is loaded serves all of them.
    fn block(&self, x: &[f32], y: &mut [f32]) {
        let n = self.inputs;
        let (x0, x) = x.split_at(n);
        let (x1, x) = x.split_at(n);
        let (x2, x3) = x.split_at(n);
        let tiles = self.packed.chunks_exact(n * TILE).zip(self.bias.as_chunks::<TILE>().0);
        for (t, (tile, bias)) in tiles.enumerate() {
            for strip in 0..TILE / STRIP {
                let first = t * TILE + strip * STRIP;
                if first >= self.outputs {
                    break;
                }
                let bias = bias.as_chunks::<STRIP>().0[strip];
                // One name a row: as an array of arrays they don't stay in registers.
                let (mut s0, mut s1, mut s2, mut s3) = (bias, bias, bias, bias);
                let inputs = x0.iter().zip(x1).zip(x2).zip(x3);
                for ((((x0, x1), x2), x3), weights) in inputs.zip(tile.as_chunks::<TILE>().0) {
                    let weights = &weights.as_chunks::<STRIP>().0[strip];
                    axpy(&mut s0, *x0, weights);
                    axpy(&mut s1, *x1, weights);
                    axpy(&mut s2, *x2, weights);
                    axpy(&mut s3, *x3, weights);
                }
                for (y, sums) in y.chunks_exact_mut(self.outputs).zip([s0, s1, s2, s3]) {
                    store(&mut y[first..], &sums);
                }
            }
        }
    }
}

/// Writes the sums that fit: all but those of padding. A fixed size is a few moves, not a call.
#[inline(always)]
fn store<const N: usize>(y: &mut [f32], sums: &[f32; N]) {
    match y.first_chunk_mut::<N>() {
        Some(y) => *y = *sums,
        None => y.copy_from_slice(&sums[..y.len()]),
    }
}

/// sums += x · weights.
#[inline(always)]
fn axpy<const N: usize>(sums: &mut [f32; N], x: f32, weights: &[f32; N]) {
    for (sum, weight) in sums.iter_mut().zip(weights) {
        *sum += x * weight;
    }
}

/// max(x, 0), in place.
pub(super) fn relu(values: &mut [f32]) {
    for value in values {
        *value = if *value > 0.0 { *value } else { 0.0 };
    }
}

/// target += source, element by element.
pub(super) fn add(target: &mut [f32], source: &[f32]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t += s;
    }
}

/// Lanes of a reduction. They are part of the order of additions: changing them changes bits.
const LANES: usize = 8;

/// ⟨a, b⟩: element i goes to lane i mod 8, then lanes are added in halves (0+4, 1+5, ..; 0+2, 1+3;
/// 0+1).
#[inline]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    for half in [4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The ε of every RMS norm.
pub(super) const EPSILON: f32 = 1e-5;

/// RMS norm of rows: y = x / sqrt(⟨x, x⟩ / d + ε) · scale, where d is the length of `scale`.
pub(super) fn rms_norm(x: &[f32], scale: &[f32], y: &mut [f32]) {
    let d = scale.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let inverse = 1.0 / (dot(x, x) / d as f32 + EPSILON).sqrt();
        for ((y, x), scale) in y.iter_mut().zip(x).zip(scale) {
            *y = x * inverse * scale;
        }
    }
}

/// e^x to about 1 unit in the last place, for x clamped to [-87, 88].
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2: e^r is its Taylor polynomial of degree 7, whose remainder
/// is below 6e-9 there, and 2^n goes into the exponent bits.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 x 2^23: adding it rounds to an integer, which then stands in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts; n times the first is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - LN2_HIGH as f64) as f32;
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    p * power
}

/// gate = silu(gate) · up, silu(a) = a / (1 + e^-a).
pub(super) fn silu_times(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// Rotary angles: at position p the pair (2i, 2i+1) of a head is turned by p · 10000^(-2i/width).
#[derive(Clone, Debug)]
pub(super) struct Rotary {
    /// The width of a head; even.
    width: usize,
    /// [positions][width / 2] of (cos, sin).
    turns: Vec<(f32, f32)>,
}

impl Rotary {
    /// The angles of the first `positions` positions.
    pub(super) fn new(width: usize, positions: usize) -> Self {
        let pairs = width / 2;
        let steps: Vec<(f64, f64)> = (0..pairs)
            .map(|i| {
                let angle = exp64(-std::f64::consts::LN_10 * 4.0 * (2 * i) as f64 / width as f64);
                (series(angle, 0), series(angle, 1))
            })
            .collect();
        let mut turns = Vec::with_capacity(positions * pairs);
        let mut at = vec![(1.0f64, 0.0f64); pairs];
        for _ in 0..positions {
            for ((cos, sin), (step_cos, step_sin)) in at.iter_mut().zip(&steps) {
                turns.push((*cos as f32, *sin as f32));
                (*cos, *sin) = (*cos * step_cos - *sin * step_sin, *cos * step_sin + *sin * step_cos);
            }
        }
        Rotary { width, turns }
    }

    /// Turns every head of one row at a position.
    #[inline]
    pub(super) fn turn(&self, row: &mut [f32], position: usize) {
        let pairs = self.width / 2;
        let turns = &self.turns[position * pairs..(position + 1) * pairs];
        for head in row.chunks_exact_mut(self.width) {
            for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }
}

/// e^x in f64 for x in [-10, 0]: the series at x / 1024, squared ten times.
fn exp64(x: f64) -> f64 {
    let x = x / 1024.0;
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..12 {
        term *= x / f64::from(n);
        sum += term;
    }
    for _ in 0..10 {
        sum *= sum;
    }
    sum
}

/// cos (`first` = 0) or sin (`first` = 1) in f64 by its series, for angles in [0, 1].
fn series(angle: f64, first: u32) -> f64 {
    let mut term = if first == 0 { 1.0 } else { angle };
    let mut sum = term;
    for n in 1..12 {
        let k = f64::from(2 * n + first);
        term *= -angle * angle / (k * (k - 1.0));
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - truth).abs() / truth);
        }
        assert!(worst < 1.5e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), exp(-87.0));
        assert_eq!(exp(1e30), exp(88.0));
    }

    #[test]
    fn rotary_angles_match_the_maths_library() {
        for width in [2, 4, 16, 32] {
            let rotary = Rotary::new(width, 193);
            for position in 0..193 {
                for i in 0..width / 2 {
                    let angle = position as f64 * 10_000f64.powf(-((2 * i) as f64) / width as f64);
                    let (cos, sin) = rotary.turns[position * width / 2 + i];
                    assert!((f64::from(cos) - angle.cos()).abs() < 1e-7, "cos {position} {i}");
                    assert!((f64::from(sin) - angle.sin()).abs() < 1e-7, "sin {position} {i}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_rows_equal_the_written_order() {
        for (inputs, outputs) in [(1, 1), (3, 5), (8, 32), (32, 40), (37, 64), (288, 128)] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 509.0 - 0.99;
            let bias: Vec<f32> = (0..outputs).map(value).collect();
            let layer = Linear::new(inputs, outputs, Some(&bias), |o, i| value(o * inputs + i + 3));
            let x: Vec<f32> = (0..11 * inputs).map(value).collect();
            for rows in 0..=11 {
                let mut y = vec![0.0; rows * outputs];
                layer.apply(&x[..rows * inputs], &mut y);
                for r in 0..rows {
                    for o in 0..outputs {
                        let mut sum = bias[o];
                        for i in 0..inputs {
                            sum += x[r * inputs + i] * value(o * inputs + i + 3);
                        }
                        assert_eq!(sum.to_bits(), y[r * outputs + o].to_bits(), "{inputs} {outputs} {rows}");
                    }
                }
            }
        }
    }
}

//! Losses.

use super::RankingError;
use candle_core::Tensor;

/// The mean binary cross-entropy of logits z `[B]` and labels y `[B]`, f32 0 or 1: a scalar,
/// mean(max(z, 0) − z y + ln(1 + e^−|z|)).
///
/// This form is finite for every finite logit; the logarithm of a sigmoid isn't.
///
/// # Errors
/// Where the shapes differ.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor, RankingError> {
    // At z = 0 the three parts have the gradients 1, −y and −1/2: the library takes 1 for both relu and |z|
    // there, so the sum is right. Replace neither alone.
    let tail = logits.abs()?.neg()?.exp()?.affine(1.0, 1.0)?.log()?;
    Ok(((logits.relu()? - (logits * labels)?)? + tail)?.mean_all()?)
}

/// p = 1 / (1 + e^−z) of logits of any shape.
///
/// # Errors
/// Where memory can't be had.
pub fn probability(logits: &Tensor) -> Result<Tensor, RankingError> {
    Ok(candle_nn::ops::sigmoid(logits)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn loss_and_gradient_match_the_formula_and_stay_finite() {
        let z = [-200.0f32, -30.0, -2.5, 0.0, 0.75, 30.0, 200.0];
        for y in [0.0f32, 1.0] {
            let logits = Var::new(&z, &Device::Cpu).unwrap();
            let labels = Tensor::full(y, z.len(), &Device::Cpu).unwrap();
            let loss = cross_entropy(&logits, &labels).unwrap();
            let truth: f64 = z
                .iter()
                .map(|z| {
                    let margin = f64::from(if y == 1.0 { *z } else { -*z });
                    if margin > 0.0 { (-margin).exp().ln_1p() } else { -margin + margin.exp().ln_1p() }
                })
                .sum::<f64>()
                / z.len() as f64;
            let found = f64::from(loss.to_scalar::<f32>().unwrap());
            assert!((found - truth).abs() < 1e-6 * truth, "{found} {truth}");
            let grads = loss.backward().unwrap();
            let grads: Vec<f32> = grads.get(&logits).unwrap().to_vec1().unwrap();
            for (z, grad) in z.iter().zip(grads) {
                let truth = (1.0 / (1.0 + (-f64::from(*z)).exp()) - f64::from(y)) / 7.0;
                assert!((f64::from(grad) - truth).abs() < 1e-7, "{z} {y}: {grad} {truth}");
            }
        }
    }
}

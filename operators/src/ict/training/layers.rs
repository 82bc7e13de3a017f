//! Layers with gradients. Each is built of operations that candle can run backwards.

use crate::ranking::ids::mean;
pub(super) use crate::ranking::layers::linear;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Storage, Tensor, bail};

/// Softmax over the last dimension. The largest logit only shifts them, so it needs no gradient.
pub(super) fn softmax(logits: &Tensor) -> Result<Tensor> {
    let exponentials = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// x / sqrt(mean x² + 1e-5) · scale over the last dimension.
pub(super) fn rms_norm(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / scale.dim(0)? as f64)?;
    x.broadcast_div(&(mean + 1e-5)?.sqrt()?)?.broadcast_mul(scale)
}

/// y = W x for rows x that nobody trains, [N, inputs]. The library would compute their gradient all the
/// same, a third of the work of the widest layer.
pub(super) fn linear_of_frozen(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    weight.apply_op1(Frozen { x: x.detach().contiguous()? })
}

/// The mean of the rows of lists of ids [B, N] that aren't 0, as [`mean`] gives it. A table of few rows
/// is multiplied with how often each is named, which is far less than gathering a row for every id.
pub(super) fn pooled(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let ((lists, longest), rows) = (ids.dims2()?, table.dim(0)?);
    if rows > longest {
        return mean(table, ids);
    }
    let there = ids.ne(0u32)?.to_dtype(table.dtype())?;
    let counts = Tensor::zeros((lists, rows), table.dtype(), table.device())?;
    let counts = counts.scatter_add(&ids.contiguous()?, &there, 1)?;
    let count = counts.sum_keepdim(1)?.maximum(1.0)?;
    counts.matmul(table)?.broadcast_div(&count)
}

/// W to x Wᵀ, for a constant x.
struct Frozen {
    x: Tensor,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear-of-frozen"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = self.x.dims2()?;
        let (outputs, width) = layout.shape().dims2()?;
        if width != inputs {
            bail!("a layer of {width} inputs can't read rows of width {inputs}")
        }
        let (x, x_layout) = self.x.storage_and_layout();
        let Storage::Cpu(x) = &*x else { bail!("the rows stand on another device than the layer") };
        let turned = layout.transpose(0, 1)?;
        let y = x.matmul(weight, (1, rows, outputs, inputs), x_layout, &turned)?;
        Ok((y, Shape::from((rows, outputs))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        gradient.t()?.matmul(&self.x).map(Some)
    }
}

//! A layer over rows that nobody trains. The library would compute their gradient all the same, a third of the work
//! of the widest layer.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// y = W x + b for rows x [N, inputs]; W is [outputs, inputs].
///
/// # Errors
/// Where the widths differ.
pub fn linear_of_frozen(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = weight.apply_op1(Frozen { x: x.detach().contiguous()? })?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
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

//! Means of rows of a table, as one operation with a backward pass of its own.
//!
//! Of a list of ids only the mean of their rows is read. Gathered first, the rows of a history's categories would be
//! the widest tensor of a whole batch, written and read several times over; here each row is added where it stands.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// The mean of the rows of each list of ids [B, N] that aren't 0: [B, d], zeros where there are none. Rows are
/// added in the order of the list. No gradient reaches row 0.
///
/// # Errors
/// Where an id is beyond the table.
pub fn mean(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (lists, longest) = ids.dims2()?;
    let ids = ids.flatten_all()?.to_vec1()?;
    table.contiguous()?.apply_op1(Mean { ids, lists, longest })
}

struct Mean {
    /// List after list, u32.
    ids: Vec<u32>,
    lists: usize,
    longest: usize,
}

/// A number that tables are of.
trait Float: WithDType + std::ops::AddAssign + std::ops::DivAssign {}

impl Float for f32 {}
impl Float for f64 {}

impl Mean {
    /// The lists, without absent ids.
    fn lists(&self) -> impl Iterator<Item = impl Iterator<Item = usize> + Clone> {
        let list = |at: usize| &self.ids[at * self.longest..][..self.longest];
        (0..self.lists).map(move |at| list(at).iter().filter(|id| **id > 0).map(|id| *id as usize))
    }

    fn forward<T: Float>(&self, table: &[T], rows: usize, width: usize) -> Result<Vec<T>> {
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= rows) {
            bail!("row {id} of a table of {rows} rows")
        }
        let mut means = vec![T::zero(); self.lists * width];
        for (mean, list) in means.chunks_exact_mut(width).zip(self.lists()) {
            for id in list.clone() {
                add(mean, &table[id * width..][..width]);
            }
            divide(mean, list.count());
        }
        Ok(means)
    }

    fn backward<T: Float>(&self, gradient: &[T], rows: usize, width: usize) -> Vec<T> {
        let mut of_table = vec![T::zero(); rows * width];
        let mut of_row = vec![T::zero(); width];
        for (gradient, list) in gradient.chunks_exact(width).zip(self.lists()) {
            of_row.copy_from_slice(gradient);
            divide(&mut of_row, list.clone().count());
            for id in list {
                add(&mut of_table[id * width..][..width], &of_row);
            }
        }
        of_table
    }
}

fn add<T: Float>(sum: &mut [T], row: &[T]) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
}

fn divide<T: Float>(sum: &mut [T], count: usize) {
    let count = T::from_f64(count.max(1) as f64);
    sum.iter_mut().for_each(|sum| *sum /= count);
}

impl CustomOp1 for Mean {
    fn name(&self) -> &'static str {
        "mean-of-rows"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let Some((begin, end)) = layout.contiguous_offsets() else { bail!("the table isn't contiguous") };
        let means = match table {
            CpuStorage::F32(table) => CpuStorage::F32(self.forward(&table[begin..end], rows, width)?),
            CpuStorage::F64(table) => CpuStorage::F64(self.forward(&table[begin..end], rows, width)?),
            _ => bail!("the table isn't of f32 or f64"),
        };
        Ok((means, Shape::from((self.lists, width))))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = table.dims2()?;
        let gradient = gradient.flatten_all()?;
        let device = table.device();
        Ok(Some(match gradient.dtype() {
            DType::F64 => {
                let of_table = self.backward(&gradient.to_vec1::<f64>()?, rows, width);
                Tensor::from_vec(of_table, (rows, width), device)?
            }
            _ => {
                let of_table = self.backward(&gradient.to_vec1::<f32>()?, rows, width);
                Tensor::from_vec(of_table, (rows, width), device)?
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn absent_ids_count_for_nothing_and_repeated_ones_twice() {
        let table = Var::new(&[[0.0_f32, 0.0], [1.0, 2.0], [4.0, 8.0]], &Device::Cpu).unwrap();
        let ids = Tensor::new(&[[1_u32, 2, 2], [0, 1, 0], [0, 0, 0]], &Device::Cpu).unwrap();
        let means = mean(&table, &ids).unwrap();
        assert_eq!(means.to_vec2::<f32>().unwrap(), [[3.0, 6.0], [1.0, 2.0], [0.0, 0.0]]);
        let weights = Tensor::new(&[[3.0_f32, 6.0], [5.0, 7.0], [9.0, 9.0]], &Device::Cpu).unwrap();
        let gradients = (means * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&table).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(gradient, [[0.0, 0.0], [6.0, 9.0], [2.0, 4.0]]);
    }

    #[test]
    fn an_id_beyond_the_table_is_refused() {
        let table = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        let ids = Tensor::new(&[[3_u32]], &Device::Cpu).unwrap();
        let error = mean(&table, &ids).unwrap_err().to_string();
        assert!(error.contains("row 3 of a table of 3 rows"), "{error}");
    }
}

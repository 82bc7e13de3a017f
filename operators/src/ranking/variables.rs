//! The variables of a model: a map from name to value, in the order of creation.
//!
//! The optimiser and the file walk it in that order, so neither depends on a hash map.

use super::RankingError;
use super::random::Stream;
use candle_core::{Device, Tensor, Var};
use std::collections::HashMap;

/// What training does to a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained.
    Weight,
    /// Trained, but for row 0, which stands for an absent id: zeros, and stays so.
    Table,
    /// Not trained by gradients: running statistics. In the file all the same.
    Statistic,
}

/// The first values of a variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// All this value.
    Constant(f32),
    /// Uniform in ± this limit.
    Uniform(f64),
    /// Normal with mean 0 and this deviation.
    Normal(f64),
}

/// How layers and tables draw their first values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// As PyTorch does by default: linear layers and their biases uniform in ± 1 / sqrt(inputs), tables normal
    /// with deviation 1.
    Torch,
    /// Normal with variance 2 / (inputs + outputs), for tables 2 / (rows + d); biases are zeros.
    XavierNormal,
}

/// A variable with its name.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name, the one in the file.
    pub name: String,
    /// What training does to it.
    pub role: Role,
    /// Its value, f32.
    pub var: Var,
}

/// The variables of a model and the seed that their first values are drawn from.
#[derive(Clone, Debug)]
pub struct Variables {
    seed: u64,
    entries: Vec<Variable>,
    places: HashMap<String, usize>,
}

impl Variables {
    /// An empty set.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Variables { seed, entries: Vec::new(), places: HashMap::new() }
    }

    /// Makes a variable, drawn from the stream of the seed and its name. Gives the tensor that a forward pass
    /// reads; it follows the variable's later values.
    ///
    /// # Errors
    /// Where the name is taken.
    pub fn create(
        &mut self,
        name: &str,
        shape: &[usize],
        role: Role,
        fill: Fill,
    ) -> Result<Tensor, RankingError> {
        let count: usize = shape.iter().product();
        let mut stream = Stream::new(self.seed, name);
        let mut values: Vec<f32> = match fill {
            Fill::Constant(value) => vec![value; count],
            Fill::Uniform(limit) => {
                (0..count).map(|_| ((2.0 * stream.unit() - 1.0) * limit) as f32).collect()
            }
            Fill::Normal(deviation) => (0..count).map(|_| (stream.normal() * deviation) as f32).collect(),
        };
        if role == Role::Table {
            let width = shape.iter().skip(1).product::<usize>().min(count);
            values[..width].fill(0.0);
        }
        let var = Var::from_vec(values, shape, &Device::Cpu)?;
        let tensor = var.as_tensor().clone();
        self.adopt(name, role, var)?;
        Ok(tensor)
    }

    /// Takes in a variable that was made elsewhere, so that one optimiser and one file have all of a model.
    ///
    /// # Errors
    /// Where the name is taken.
    pub fn adopt(&mut self, name: &str, role: Role, var: Var) -> Result<(), RankingError> {
        if self.places.contains_key(name) {
            return Err(RankingError::Twice { name: name.to_owned() });
        }
        self.places.insert(name.to_owned(), self.entries.len());
        self.entries.push(Variable { name: name.to_owned(), role, var });
        Ok(())
    }

    /// All of them, in the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = &Variable> {
        self.entries.iter()
    }

    /// Those that gradients train, in the order of creation.
    pub fn trained(&self) -> impl Iterator<Item = &Variable> {
        self.entries.iter().filter(|v| v.role != Role::Statistic)
    }

    /// One by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Variable> {
        self.places.get(name).map(|place| &self.entries[*place])
    }

    /// The number of trained values.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.trained().map(|v| v.var.elem_count()).sum()
    }

    /// A copy of all values, to come back to: the best epoch of a training.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn snapshot(&self) -> Result<Vec<Tensor>, RankingError> {
        self.entries.iter().map(|v| Ok(v.var.as_tensor().copy()?)).collect()
    }

    /// Puts the values of a [`Variables::snapshot`] back.
    ///
    /// # Errors
    /// Where the snapshot is of other variables.
    pub fn restore(&self, snapshot: &[Tensor]) -> Result<(), RankingError> {
        if snapshot.len() != self.entries.len() {
            return Err(RankingError::Size {
                what: "the number of tensors of a snapshot",
                found: snapshot.len(),
                expected: "that of the variables",
            });
        }
        for (variable, value) in self.entries.iter().zip(snapshot) {
            variable.var.set(value)?;
        }
        Ok(())
    }
}

/// Values in the order of rows, for tensors on the CPU. Only for what leaves the graph.
///
/// # Errors
/// Where the tensor isn't f32.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>, RankingError> {
    Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values_of(variables: &Variables, name: &str) -> Vec<f32> {
        values(&variables.get(name).unwrap().var).unwrap()
    }

    #[test]
    fn a_seed_gives_the_same_values_in_any_order_of_creation() {
        let fill = Fill::Normal(0.5);
        let (mut a, mut b) = (Variables::new(3), Variables::new(3));
        a.create("x", &[4, 2], Role::Weight, fill).unwrap();
        a.create("y", &[3], Role::Weight, fill).unwrap();
        b.create("y", &[3], Role::Weight, fill).unwrap();
        b.create("x", &[4, 2], Role::Weight, fill).unwrap();
        assert_eq!(values_of(&a, "x"), values_of(&b, "x"));
        assert_ne!(values_of(&a, "x")[..3], values_of(&a, "y")[..]);
        let names: Vec<&str> = b.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["y", "x"]);
        let mut other = Variables::new(4);
        other.create("x", &[4, 2], Role::Weight, fill).unwrap();
        assert_ne!(values_of(&a, "x"), values_of(&other, "x"));
    }

    #[test]
    fn tables_begin_with_a_row_of_zeros() {
        let mut variables = Variables::new(1);
        variables.create("t", &[3, 4], Role::Table, Fill::Normal(1.0)).unwrap();
        let all = values_of(&variables, "t");
        assert!(all[..4].iter().all(|x| *x == 0.0) && all[4..].iter().all(|x| *x != 0.0));
    }

    #[test]
    fn names_are_taken_once() {
        let mut variables = Variables::new(1);
        variables.create("t", &[3], Role::Weight, Fill::Constant(1.0)).unwrap();
        let twice = variables.create("t", &[3], Role::Weight, Fill::Constant(1.0)).unwrap_err();
        assert!(twice.to_string().contains("`t` stands there twice"), "{twice}");
    }

    #[test]
    fn snapshots_keep_their_values() {
        let mut variables = Variables::new(1);
        variables.create("t", &[3], Role::Weight, Fill::Uniform(1.0)).unwrap();
        let (before, snapshot) = (values_of(&variables, "t"), variables.snapshot().unwrap());
        let var = &variables.get("t").unwrap().var;
        var.set(&var.affine(2.0, 1.0).unwrap()).unwrap();
        assert_ne!(values_of(&variables, "t"), before);
        variables.restore(&snapshot).unwrap();
        assert_eq!(values_of(&variables, "t"), before);
        assert!(variables.restore(&[]).is_err());
    }
}

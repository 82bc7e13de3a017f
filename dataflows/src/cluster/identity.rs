//! What all processes of a job must have in common.

use super::Config;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Versions;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::epoch::{WRITER_VERSION, config_digest};
use std::collections::BTreeMap;

/// What a process is: names with their values, which must be equal in all processes of a job. Where one
/// differs, the outputs would depend on which process computes them, or the processes would misread each
/// other's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(pub(super) BTreeMap<String, String>);

impl Identity {
    /// What this process is: the job's name, its processes and workers, its semantics and weights, this
    /// program's own digest and what of the CPU decides the bits of a float. Weights of a directory may change
    /// while the job runs, each process finds them by the version that an epoch names: then what may not change
    /// of them counts.
    ///
    /// # Errors
    /// `Fatal` where the program's own file can't be read.
    pub fn of(
        config: &Config,
        job: &str,
        workers: usize,
        semantics: &Semantics,
        versions: &Versions,
    ) -> Result<Self> {
        let serving = versions.serving();
        let shape = serving.shape();
        let weights = match versions.finds_others() {
            true => {
                format!("a directory of kind {}, d {}, text width {}", serving.kind(), shape.d, shape.text)
            }
            false => serving.version().to_owned(),
        };
        let parts = [
            ("cluster.processes", config.processes.join(" ")),
            ("job", job.to_owned()),
            ("workers", workers.to_string()),
            ("semantics", config_digest(&semantics.canonical()).hex()),
            ("ict weights", weights),
            ("state version", WRITER_VERSION.to_owned()),
            ("program", program()?),
            ("cpu", cpu()),
        ];
        Ok(Identity(parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    /// How another process differs, by name; `None` where it doesn't.
    pub(super) fn difference(&self, other: &Identity) -> Option<String> {
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort();
        names.dedup();
        let none = "nothing".to_owned();
        let differs = |name: &&String| self.0.get(*name) != other.0.get(*name);
        let told: Vec<String> = names
            .into_iter()
            .filter(differs)
            .map(|name| {
                let (ours, theirs) = (self.0.get(name).unwrap_or(&none), other.0.get(name).unwrap_or(&none));
                format!("its {name} is {theirs}, process 0 has {ours}")
            })
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// The digest of the running program: the graph and the form of its messages are compiled in.
fn program() -> Result<String> {
    let failed = |e: std::io::Error| {
        Error::fatal(
            "read this program's own file",
            e,
            "its digest tells whether all processes run the same one",
        )
    };
    // On Linux this is the program that runs, also where its file was replaced meanwhile.
    let bytes = match std::fs::read("/proc/self/exe") {
        Ok(bytes) => bytes,
        Err(_) => std::fs::read(std::env::current_exe().map_err(failed)?).map_err(failed)?,
    };
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// The features of the CPU by which products of floats choose their kernels: sums are rounded otherwise
/// under another one.
fn cpu() -> String {
    let mut found = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx", is_x86_feature_detected!("avx")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            found.push(name);
        }
    }
    found.join("+")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_operators::ict::{Shape, Weights, untrained};
    use std::sync::Arc;

    #[test]
    fn a_difference_is_told_by_name() {
        let weights = |seed| -> Versions {
            Arc::new(Weights::from_safetensors(&untrained(seed, Shape::default()).unwrap()).unwrap()).into()
        };
        let of = |job: &str, workers, semantics: &Semantics, seed| {
            Identity::of(&Config::default(), job, workers, semantics, &weights(seed)).unwrap()
        };
        let plain = Semantics::default();
        let ours = of("a", 1, &plain, 1);
        assert_eq!(ours.difference(&of("a", 1, &plain, 1)), None);
        let longer = Semantics { history_length: 21, ..Semantics::default() };
        for (other, name) in [
            (of("b", 1, &plain, 1), "its job is b, process 0 has a"),
            (of("a", 2, &plain, 1), "its workers is 2, process 0 has 1"),
            (of("a", 1, &longer, 1), "its semantics is "),
            (of("a", 1, &plain, 2), "its ict weights is untrained-"),
        ] {
            let told = ours.difference(&other).unwrap();
            assert!(told.starts_with(name) && !told.contains(';'), "{told}");
        }
        let mut newer = ours.clone();
        newer.0.insert("a later name".to_owned(), "x".to_owned());
        assert_eq!(ours.difference(&newer).unwrap(), "its a later name is x, process 0 has nothing");
    }
}

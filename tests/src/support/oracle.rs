//! The independent oracle: a Python program with NumPy that shares no code with ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of the oracle's sources.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle")
}

/// A Python with the oracle's packages: `ICTFLOW_PYTHON`, which `make` sets up.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let python = std::env::var("ICTFLOW_PYTHON").unwrap_or_else(|_| {
            let home = std::env::var("HOME").unwrap_or_default();
            format!("{home}/.cache/ictflow/python/bin/python")
        });
        let ok =
            Command::new(&python).args(["-c", "import numpy, blake3"]).status().is_ok_and(|s| s.success());
        assert!(ok, "{python} has no numpy and blake3: run `make tools` once");
        python
    })
}

/// Runs a script of the oracle's folder and gives its standard output.
pub fn run(script: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(python()).arg(folder().join(script)).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
}

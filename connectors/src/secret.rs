//! Secrets by reference: a configuration names a file or a variable, never the secret itself.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a secret stands. The config never holds one itself, and a text in its place is refused
/// without being repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a secret is given by reference: { file = \"PATH\" } or { env = \"NAME\" }")]
pub enum Secret {
    /// In a file; one line feed at its end doesn't count.
    File {
        /// Its path.
        file: PathBuf,
    },
    /// In an environment variable.
    Env {
        /// Its name.
        env: String,
    },
}

/// A secret that was read; it prints as `[redacted]`, and only [`Resolved::expose`] gives it away.
#[derive(Clone, PartialEq, Eq)]
pub struct Resolved(String);

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Resolved {
    /// The secret itself, for the wire and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value of an `Authorization` header with this as the bearer's token.
    pub fn bearer(&self) -> Resolved {
        Resolved(format!("Bearer {}", self.0))
    }
}

impl Secret {
    /// The file and its mode, where the secret stands in one that others than its owner may use.
    pub fn open_to_others(&self) -> Option<(&Path, u32)> {
        match self {
            Secret::File { file } => open_mode(file).map(|mode| (file.as_path(), mode)),
            Secret::Env { .. } => None,
        }
    }

    /// Reads the secret of a configuration key, which errors name.
    pub fn resolve(&self, key: &str) -> Result<Resolved> {
        let hint = "put the secret there, readable to this user alone";
        let context = || format!("read the secret {key}");
        let text = match self {
            Secret::File { file } => {
                warn_if_open(file);
                let mut text = std::fs::read_to_string(file)
                    .map_err(|error| Error::fatal(context(), format!("{}: {error}", file.display()), hint))?;
                if text.ends_with('\n') {
                    text.pop();
                }
                text
            }
            // The error names the variable only: a value that isn't UTF-8 would be printed by it.
            Secret::Env { env } => std::env::var(env).map_err(|_| {
                Error::fatal(context(), format!("the variable {env} is unset or not UTF-8"), hint)
            })?,
        };
        if text.is_empty() || text.contains('\0') {
            return Err(Error::fatal(context(), "it is empty or holds a NUL", hint));
        }
        Ok(Resolved(text))
    }
}

/// Warns where others may read a secret's file.
fn warn_if_open(file: &Path) {
    if let Some(mode) = open_mode(file) {
        tracing::warn!(file = %file.display(), mode = format!("{mode:o}"), "a secret's file is open to others");
    }
}

/// The mode of a file that others than its owner may use.
fn open_mode(file: &Path) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then_some(mode)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        None
    }
}

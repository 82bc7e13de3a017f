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

    /// The value of an `Authorization` header that gives this secret as a bearer token.
    pub fn bearer_authorization(&self) -> Resolved {
        Resolved(format!("Bearer {}", self.0))
    }

    /// The value of an `Authorization` header that gives this secret as a user's password.
    pub fn basic_authorization(&self, user: &str) -> Resolved {
        Resolved(format!("Basic {}", base64(format!("{user}:{}", self.0).as_bytes())))
    }
}

/// Base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            // A group of n bytes fills n + 1 letters.
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= group.len() { letter.into() } else { '=' });
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorizations_are_what_the_headers_want_and_print_nothing() {
        for (text, wanted) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), wanted);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
        let secret = Resolved("open sesame".to_owned());
        // The example of RFC 7617.
        assert_eq!(secret.basic_authorization("Aladdin").expose(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(secret.bearer_authorization().expose(), "Bearer open sesame");
        assert_eq!(format!("{:?}", secret.bearer_authorization()), "[redacted]");
    }
}

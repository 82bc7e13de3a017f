//! Standard input as a file.
//!
//! A pipe can't be read again, an offset must be: so it is copied to the state folder first.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

const CHUNK_BYTES: usize = 256 << 10;

/// Copies `input` to its end into `target`.
///
/// A copy of an earlier run stands for offsets that a job has recorded. So the new input must
/// continue it: it may repeat it, or a part from its beginning (then the copy stays), or repeat it
/// and go on (then it becomes the copy). Anything else is refused and the copy stays.
pub(super) fn copy(input: impl Read, target: &Path) -> Result<()> {
    // Beside the target under its whole name, so that a rename puts it in place.
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let copied = continued(input, target, part);
    if !matches!(copied, Ok(true))
        && let Err(error) = std::fs::remove_file(part)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(part = %part.display(), %error, "left a partial copy of standard input behind");
    }
    copied.map(|_| ())
}

/// Whether the input became the copy.
fn continued(mut input: impl Read, target: &Path, part: &Path) -> Result<bool> {
    let context = || format!("copying standard input to {}", target.display());
    let failed = |error: std::io::Error| {
        Error::fatal(context(), error, "check the state folder and the space on its disk")
    };
    let differs = |at: u64| {
        Error::fatal(
            context(),
            format!("standard input differs from the copy of an earlier run at byte {at}"),
            "give the same input again, with more lines at its end if you like, or use a new state folder",
        )
    };
    let mut old = match File::open(target) {
        Ok(file) => Some(BufReader::with_capacity(CHUNK_BYTES, file)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let mut out = BufWriter::new(File::create(part).map_err(failed)?);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut known = vec![0; CHUNK_BYTES];
    let mut length = 0u64;
    let mut last = None;
    loop {
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let new = &chunk[..read];
        if let Some(file) = &mut old {
            let same = fill(file, &mut known[..read]).map_err(failed)?;
            if let Some(at) = (0..same).find(|&at| new[at] != known[at]) {
                return Err(differs(length + at as u64));
            }
            last = same.checked_sub(1).map_or(last, |at| Some(known[at]));
            if same < read {
                // The copy ends here. Its last line must not become another one.
                if last.is_some_and(|byte| byte != b'\n') && new[same] != b'\n' {
                    return Err(differs(length + same as u64));
                }
                old = None;
            }
        }
        out.write_all(new).map_err(failed)?;
        length += read as u64;
    }
    if old.is_some() {
        return Ok(false);
    }
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(part, target).map_err(failed)?;
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // The new name must outlive a power cut as the offsets do.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(true)
}

/// Reads until the slice is full or the file ends; gives the bytes read.
fn fill(file: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
    let mut at = 0;
    while at < into.len() {
        match file.read(&mut into[at..]) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_later_input_must_continue_the_copy() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("copy.jsonl");
        let run = |input: &str| copy(input.as_bytes(), &target).map_err(|error| error.detail);
        let kept = || std::fs::read_to_string(&target).unwrap();
        let refused =
            |at: u64| Err(format!("standard input differs from the copy of an earlier run at byte {at}"));
        assert_eq!(run("a\nb\n"), Ok(()));
        assert_eq!(run("a\nb\n"), Ok(()));
        assert_eq!(run("a\n"), Ok(()));
        assert_eq!(run(""), Ok(()));
        assert_eq!(kept(), "a\nb\n");
        assert_eq!(run("a\nc\n"), refused(2));
        assert_eq!(run("a\nb\nc"), Ok(()));
        assert_eq!(kept(), "a\nb\nc");
        // "c" was line 2 and would become "cd".
        assert_eq!(run("a\nb\ncd\n"), refused(5));
        assert_eq!(kept(), "a\nb\nc");
        assert_eq!(run("a\nb\nc\nd\n"), Ok(()));
        assert_eq!(kept(), "a\nb\nc\nd\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_input_is_a_copy_too() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("copy.jsonl");
        copy(&b""[..], &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"");
        let long = vec![b'x'; 3 * CHUNK_BYTES + 5];
        copy(&long[..], &target).unwrap();
        copy(&long[..CHUNK_BYTES], &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), long);
    }
}

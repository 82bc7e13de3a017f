//! The vectors of texts by one encoder, kept in a file: a second run embeds nothing.
//!
//! The file is one an encoder, named by its id. It begins with the id and the width; then come records of one
//! size: the text's digest, the quantised vector (i16, little-endian), and eight bytes of a checksum over both.
//! Records are only appended, each write whole records. A torn end, or a record that was damaged, is passed
//! over and made again; of two records of one text either will do, since they are equal.

use super::progress::Progress;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::{Disposition, Error, Result};
use ictflow_schemas::embedding::is_unit;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::vector::{Quantised, quantise};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// What a file begins with.
const MAGIC: &[u8; 8] = b"ictvec01";

/// Bytes of a digest and of a checksum.
const DIGEST: usize = 32;
const CHECK: usize = 8;

/// Texts that are embedded and then written together.
const AT_ONCE: usize = 64;

const HINT: &str = "delete the file: it is a cache, and is made again";

/// The vectors of one encoder, with their file.
#[derive(Debug)]
pub struct Embeddings {
    path: PathBuf,
    encoder: String,
    width: usize,
    known: HashMap<Digest, Quantised>,
}

impl Embeddings {
    /// Opens the file of an encoder in a folder, which is made where it doesn't exist. Of what is in it only
    /// the texts that are wanted are kept in memory.
    ///
    /// # Errors
    /// `Fatal` where the file can't be read or is of another encoder.
    pub fn open(folder: &Path, encoder: &dyn Embed, wanted: impl Fn(&Digest) -> bool) -> Result<Self> {
        let name = format!("{}.vectors", &blake3::hash(encoder.id().as_bytes()).to_hex()[..16]);
        let path = folder.join(name);
        let context = || format!("read text vectors from {}", path.display());
        std::fs::create_dir_all(folder).map_err(|error| {
            Error::fatal(context(), error, "name a folder that can be written by ICTFLOW_MODELS")
        })?;
        let mut known = HashMap::new();
        let mut end = 0;
        if let Ok(file) = File::open(&path) {
            let mut file = BufReader::new(file);
            let mut begin = vec![0; header(encoder).len()];
            match file.read_exact(&mut begin) {
                // Not even its head was written: it begins anew.
                Err(_) => {}
                Ok(()) if begin != header(encoder) => {
                    return Err(Error::fatal(context(), "it is of another encoder or version", HINT));
                }
                Ok(()) => {
                    end = begin.len();
                    let mut record = vec![0; record_bytes(encoder.width())];
                    while file.read_exact(&mut record).is_ok() {
                        end += record.len();
                        if let Some((digest, vector)) = read(&record).filter(|(digest, _)| wanted(digest)) {
                            known.insert(digest, vector);
                        }
                    }
                }
            }
        }
        let failed = |error| Error::fatal(context(), error, HINT);
        let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(failed)?;
        // What was cut off by a kill goes, so that records stand at their places.
        file.set_len(end as u64).map_err(failed)?;
        let (encoder, width) = (encoder.id().to_owned(), encoder.width());
        Ok(Embeddings { path, encoder, width, known })
    }

    /// Embeds the texts that have no vector yet, and keeps what comes.
    ///
    /// # Errors
    /// Those of the encoder but for a text that it refuses, which stays without a vector; `Fatal` where the
    /// file can't be written.
    pub fn fill(&mut self, texts: &[(Digest, &str)], encoder: &mut dyn Embed) -> Result<usize> {
        let mut missing: Vec<(Digest, &str)> =
            texts.iter().copied().filter(|(digest, _)| !self.known.contains_key(digest)).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(0);
        }
        let mut progress = Progress::new("embedding texts", missing.len());
        let mut file = self.append(encoder)?;
        let mut made = 0;
        for (part, texts) in missing.chunks(AT_ONCE).enumerate() {
            progress.at(part * AT_ONCE, "");
            let mut records = Vec::new();
            for ((digest, _), vector) in texts.iter().zip(embed(encoder, texts)?) {
                let Some(vector) = vector else { continue };
                records.extend(record(digest, &vector));
                self.known.insert(*digest, vector);
                made += 1;
            }
            file.write_all(&records)
                .map_err(|error| Error::fatal(format!("write {}", self.path.display()), error, HINT))?;
        }
        progress.finish(&format!("{made} made, kept in {}", self.path.display()));
        Ok(made)
    }

    fn append(&self, encoder: &dyn Embed) -> Result<File> {
        let failed = |error| Error::fatal(format!("write {}", self.path.display()), error, HINT);
        let mut file = File::options().create(true).append(true).open(&self.path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() == 0 {
            file.write_all(&header(encoder)).map_err(failed)?;
        }
        Ok(file)
    }

    /// The vector of a text.
    pub fn get(&self, text: &Digest) -> Option<&Quantised> {
        self.known.get(text)
    }

    /// The encoder's id.
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// The width of the vectors.
    pub fn width(&self) -> usize {
        self.width
    }
}

/// The vectors of some texts, `None` for one that the encoder refuses.
fn embed(encoder: &mut dyn Embed, texts: &[(Digest, &str)]) -> Result<Vec<Option<Quantised>>> {
    let all: Vec<String> = texts.iter().map(|(_, text)| (*text).to_owned()).collect();
    let vectors = match encoder.embed(&all) {
        Ok(vectors) => vectors.into_iter().map(Some).collect(),
        Err(error) if error.disposition == Disposition::Poison && texts.len() > 1 => {
            // One of them spoils the others: one after the other.
            let mut vectors = Vec::new();
            for text in texts {
                vectors.extend(embed(encoder, &[*text])?);
            }
            return Ok(vectors);
        }
        Err(error) if error.disposition == Disposition::Poison => vec![None],
        Err(error) => return Err(error),
    };
    Ok(vectors
        .into_iter()
        .map(|vector: Option<Vec<f32>>| {
            vector.filter(|vector| is_unit(vector)).map(|vector| quantise(&vector))
        })
        .collect())
}

fn header(encoder: &dyn Embed) -> Vec<u8> {
    let id = encoder.id().as_bytes();
    let number = |n: usize| (n as u64).to_le_bytes();
    [&MAGIC[..], &number(id.len()), id, &number(encoder.width())].concat()
}

fn record_bytes(width: usize) -> usize {
    DIGEST + 2 * width + CHECK
}

fn record(digest: &Digest, vector: &[i16]) -> Vec<u8> {
    let mut record = digest.0.to_vec();
    record.extend(vector.iter().flat_map(|x| x.to_le_bytes()));
    let check = blake3::hash(&record);
    record.extend(&check.as_bytes()[..CHECK]);
    record
}

/// The digest and vector of a record; `None` where it is damaged.
fn read(record: &[u8]) -> Option<(Digest, Quantised)> {
    let (held, check) = record.split_at_checked(record.len().checked_sub(CHECK)?)?;
    if blake3::hash(held).as_bytes()[..CHECK] != *check {
        return None;
    }
    let (digest, vector) = held.split_first_chunk::<DIGEST>()?;
    let (pairs, _) = vector.as_chunks::<2>();
    Some((Digest(*digest), pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_connectors::encoder::hashed::Hashed;
    use ictflow_schemas::framing::text_digest;

    /// Counts the texts that it is given, and refuses one.
    struct Counting {
        hashed: Hashed,
        asked: usize,
    }

    impl Embed for Counting {
        fn id(&self) -> &str {
            self.hashed.id()
        }

        fn width(&self) -> usize {
            self.hashed.width()
        }

        fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
            if texts.iter().any(|text| text == "refused") {
                return Err(Error::poison("embed", "no", "leave it out"));
            }
            self.asked += texts.len();
            self.hashed.embed(texts)
        }
    }

    fn counting() -> Counting {
        Counting { hashed: Hashed::new(16), asked: 0 }
    }

    #[test]
    fn texts_are_embedded_once_over_runs_and_torn_ends() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> =
            (0..100).map(|n| format!("text {n}")).chain(["refused".to_owned()]).collect();
        let texts: Vec<(Digest, &str)> =
            names.iter().map(|text| (text_digest(text), text.as_str())).collect();
        let run = |wanted: usize| {
            let mut encoder = counting();
            let mut embeddings = Embeddings::open(folder.path(), &encoder, |_| true).unwrap();
            let made = embeddings.fill(&texts[texts.len() - wanted..], &mut encoder).unwrap();
            (made, encoder.asked, embeddings)
        };
        assert_eq!(run(40).1, 39);
        let (made, asked, first) = run(101);
        assert_eq!((made, asked), (61, 61));
        assert_eq!(run(101).1, 0, "a second run embeds nothing");
        assert!(first.get(&text_digest("refused")).is_none());

        let bytes = std::fs::read(&first.path).unwrap();
        std::fs::write(&first.path, &bytes[..bytes.len() - 3]).unwrap();
        let (_, asked, again) = run(101);
        assert_eq!(asked, 1, "the torn record is made again");
        let mut bytes = std::fs::read(&first.path).unwrap();
        let place = bytes.len() - 20;
        bytes[place] ^= 1;
        std::fs::write(&first.path, &bytes).unwrap();
        assert_eq!(run(101).1, 1, "so is a damaged one");
        assert_eq!(run(101).1, 0);
        assert!(texts.iter().all(|(digest, _)| first.get(digest) == again.get(digest)));

        bytes[9] ^= 1;
        std::fs::write(&first.path, &bytes).unwrap();
        std::fs::write(&first.path, &bytes).unwrap();
        let error = Embeddings::open(folder.path(), &counting(), |_| true).unwrap_err().to_string();
        assert!(error.contains("another encoder or version") && error.contains("delete the file"), "{error}");
    }
}

//! The CoT log of a data set: the records of `cot`, line by line, in a file that only grows.
//!
//! A line is `{"key": TEXT, "value": RECORD, "timestamp": MS}`, as the connector `files` reads records, where
//! the key is that of the topic `cot`: the content key, `failed:` before a failure's. Content keys hold user,
//! item, text, label, history, prompt, model and parameters, so one log holds the answers of several
//! generators and protocols, and an answer that fits no more is never found.
//!
//! * **Delivery**: a line is written at once when its answer is there, and is on the disk after
//!   [`CotLog::sync`]; [`SYNC_EVERY`] lines are at most not. What a kill cut off is dropped when the log is opened
//!   to be written, and its key is asked again.
//! * **Ordering**: of several ok records of a key the last one holds; an ok record beats a failure.
//! * **Limits**: one process writes a log at a time; any number read it. Memory: every text once.
//! * **Secrets**: texts, ids and titles are persons' data. The file can be read by its owner only, and no line
//!   ever stands in an error.

use crate::config::checked::models;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::cot::{CotRecord, CotStatus, PromptView, parse_topic_key};
use ictflow_schemas::framing::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The model's name of template texts, which no LLM wrote.
pub const TEMPLATE: &str = "template";

/// Lines after which the file is brought to the disk.
pub const SYNC_EVERY: usize = 16;

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line<R> {
    key: String,
    value: R,
    timestamp: Millis,
}

/// What made an answer: with a prompt view it gives the content key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The prompt.
    pub prompt_version: String,
    /// The model.
    pub llm_model: String,
    /// The decoding parameters.
    pub parameters: String,
    /// Whether the prompt stated no decision.
    pub label_free: bool,
}

impl Version {
    /// That of a generator.
    pub fn of(generator: &dyn Generate, label_free: bool) -> Self {
        Version {
            prompt_version: generator.prompt_version().to_owned(),
            llm_model: generator.model().to_owned(),
            parameters: generator.parameters().to_owned(),
            label_free,
        }
    }

    /// The content key of a view.
    pub fn key(&self, view: &PromptView) -> Digest {
        view.content_key(&self.prompt_version, &self.llm_model, &self.parameters)
    }
}

/// The answer to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text; `None` where every attempt failed.
    pub text: Option<Box<str>>,
    /// Prompt tokens over all attempts.
    pub tokens_in: i64,
    /// Generated tokens over all attempts.
    pub tokens_out: i64,
    /// The place of what made it among [`CotLog::versions`].
    pub version: usize,
}

/// A log, read; and its file, where it is open to be written.
#[derive(Debug)]
pub struct CotLog {
    path: PathBuf,
    file: Option<File>,
    /// Lines that may not be on the disk.
    unsynced: usize,
    /// Bytes of a torn last line that were passed over.
    torn: u64,
    versions: Vec<Version>,
    answers: HashMap<Digest, Answer>,
}

/// The file of a data set in the cache folder, outside any repository.
pub fn default_path(data_set: &str) -> PathBuf {
    models().join("cots").join(format!("{data_set}.jsonl"))
}

impl CotLog {
    /// Reads a log. One that doesn't exist is empty; a torn last line counts as none. Writes nothing.
    ///
    /// # Errors
    /// `Fatal` where the file can't be read or a line but the last isn't a record.
    pub fn read(path: &Path) -> Result<Self> {
        let mut log = CotLog::empty(path);
        match File::open(path) {
            Ok(file) => log.load(&file).map(|_| log),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(log),
            Err(error) => Err(log.failed("read", error)),
        }
    }

    /// Opens a log to be written, and makes its file and folder where they don't exist. A torn last line is cut
    /// off.
    ///
    /// # Errors
    /// As [`CotLog::read`], and where the file can't be written or another process writes it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut log = CotLog::empty(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| log.failed("make the folder of", error))?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| log.failed("open", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let context = format!("open the CoT log {}", path.display());
                let hint = "wait for it, or name another file by --log";
                return Err(Error::fatal(context, "another run writes it", hint));
            }
            Err(TryLockError::Error(error)) => return Err(log.failed("lock", error)),
        }
        let whole = log.load(&file)?;
        let end = file.set_len(whole).and_then(|()| file.seek(SeekFrom::Start(whole)));
        end.map_err(|error| log.failed("write", error))?;
        log.file = Some(file);
        Ok(log)
    }

    fn empty(path: &Path) -> Self {
        CotLog {
            path: path.to_owned(),
            file: None,
            unsynced: 0,
            torn: 0,
            versions: Vec::new(),
            answers: HashMap::new(),
        }
    }

    fn failed(&self, what: &str, error: impl ToString) -> Error {
        let context = format!("{what} the CoT log {}", self.path.display());
        Error::fatal(context, error, "name another file by --log, or mend this one: its lines are paid for")
    }

    /// Takes all whole lines; gives how many bytes they have.
    fn load(&mut self, file: &File) -> Result<u64> {
        let mut reader = BufReader::new(file);
        let mut whole = 0;
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|error| self.failed("read", error))?;
            if read == 0 {
                break;
            }
            if line.last() != Some(&b'\n') {
                self.torn = read as u64;
                break;
            }
            let parsed = serde_json::from_slice::<Line<CotRecord>>(&line).ok();
            let parsed = parsed.and_then(|line| Some((parse_topic_key(line.key.as_bytes())?, line.value)));
            match parsed {
                Some(((status, key), record)) if status == record.status => self.take(key, &record),
                // What the line holds isn't said: it may be a person's data.
                _ => return Err(self.failed("read", format!("line {number} isn't a record of cot"))),
            }
            whole += read as u64;
        }
        Ok(whole)
    }

    fn take(&mut self, key: Digest, record: &CotRecord) {
        let version = Version {
            prompt_version: record.prompt_version.clone(),
            llm_model: record.llm_model.clone(),
            parameters: record.parameters.clone(),
            label_free: record.decision == "none",
        };
        let place = self.versions.iter().position(|known| *known == version);
        let version = place.unwrap_or_else(|| {
            self.versions.push(version);
            self.versions.len() - 1
        });
        let ok = record.status == CotStatus::Ok;
        let answer = Answer {
            text: ok.then(|| record.text.as_str().into()),
            tokens_in: record.tokens_in,
            tokens_out: record.tokens_out,
            version,
        };
        if ok || self.answers.get(&key).is_none_or(|known| known.text.is_none()) {
            self.answers.insert(key, answer);
        }
    }

    /// Appends an answer.
    ///
    /// # Errors
    /// `Fatal` where the log isn't open to be written, or can't be.
    pub fn append(&mut self, key: &Digest, record: &CotRecord) -> Result<()> {
        let key_text = String::from_utf8_lossy(&record.topic_key(key)).into_owned();
        let line = Line { key: key_text, value: record, timestamp: record.created_at };
        let mut bytes = serde_json::to_vec(&line).map_err(|error| self.failed("write", error))?;
        bytes.push(b'\n');
        let Some(file) = &mut self.file else {
            return Err(self.failed("write", "it is open to be read only"));
        };
        // One write a line, so that a kill leaves at most one that is torn.
        file.write_all(&bytes).map_err(|error| self.failed("write", error))?;
        self.take(*key, record);
        self.unsynced += 1;
        if self.unsynced >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// `Fatal` where that fails.
    pub fn sync(&mut self) -> Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.unsynced > 0) {
            file.sync_data().map_err(|error| self.failed("write", error))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of a torn last line that were passed over, 0 where there was none.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// The answer to a key, failed ones too.
    pub fn get(&self, key: &Digest) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// The text of a key.
    pub fn text(&self, key: &Digest) -> Option<&str> {
        self.get(key)?.text.as_deref()
    }

    /// What made the answers, in the order of their first lines.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The same log with the answers of one LLM alone, those of the template left out: of the model whose name begins
    /// so, or of the only one that has texts.
    ///
    /// # Errors
    /// `Fatal` where no such model has a text here, or several have.
    pub fn of_model(mut self, name: Option<&str>) -> Result<Self> {
        let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
        for (version, count) in self.versions.iter().zip(self.counts()) {
            if count > 0 && version.llm_model != TEMPLATE {
                *texts.entry(&version.llm_model).or_default() += count;
            }
        }
        let all = texts.iter().map(|(model, texts)| format!("{model} ({texts} texts)")).collect::<Vec<_>>();
        let failed = |problem: String, hint: &'static str| {
            Err(Error::fatal(format!("choose the LLM of {}", self.path.display()), problem, hint))
        };
        let passes = |model: &&str| match name {
            Some(name) if texts.contains_key(name) => *model == name,
            name => model.starts_with(name.unwrap_or_default()),
        };
        let named: Vec<&str> = texts.keys().copied().filter(passes).collect();
        let model = match (named.as_slice(), name) {
            ([only], _) => (*only).to_owned(),
            ([], None) => return Ok(self),
            ([], Some(name)) => {
                let has = if all.is_empty() { "none of any LLM".to_owned() } else { all.join(", ") };
                return failed(format!("it has no text of {name:?}, it has {has}"), "name one of these");
            }
            _ => {
                let hint = "name the one that counts, or its beginning, by --cots-model";
                return failed(format!("it has texts of several models: {}", all.join(", ")), hint);
            }
        };
        let versions = &self.versions;
        self.answers.retain(|_, answer| versions[answer.version].llm_model == model);
        Ok(self)
    }

    /// By version, how many texts it has.
    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.versions.len()];
        for answer in self.answers.values().filter(|answer| answer.text.is_some()) {
            counts[answer.version] += 1;
        }
        counts
    }

    /// The version with the most texts, of those that the filter passes; of several the one that came first.
    pub fn most(&self, passes: impl Fn(&Version) -> bool) -> Option<&Version> {
        let counts = self.counts();
        let passing = (0..counts.len()).filter(|&place| counts[place] > 0 && passes(&self.versions[place]));
        passing
            .max_by_key(|&place| (counts[place], std::cmp::Reverse(place)))
            .map(|place| &self.versions[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::history::Label;

    fn record(status: CotStatus, text: &str, decision: Label) -> CotRecord {
        CotRecord {
            status,
            user_id: "u".into(),
            item_id: "i".into(),
            decision: decision.word().into(),
            prompt_version: "p@0".into(),
            llm_model: "m".into(),
            parameters: "{}".into(),
            text: text.into(),
            attempts: 1,
            tokens_in: 20,
            tokens_out: 5,
            finish_reason: "stop".into(),
            quality: 1.0,
            created_at: 7,
        }
    }

    fn ok(text: &str) -> CotRecord {
        record(CotStatus::Ok, text, Label::Positive)
    }

    fn failed() -> CotRecord {
        record(CotStatus::Failed, "", Label::Negative)
    }

    #[test]
    fn what_is_appended_is_read_back_and_a_text_beats_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cots/d.jsonl");
        assert!(CotLog::read(&path).unwrap().versions().is_empty(), "a log that doesn't exist is empty");
        let mut log = CotLog::open(&path).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(text_digest);
        for (key, record) in
            [(a, failed()), (a, ok("one")), (a, failed()), (a, ok("two")), (b, failed()), (b, failed())]
        {
            log.append(&key, &record).unwrap();
        }
        log.append(&c, &record(CotStatus::Ok, "free", Label::None)).unwrap();
        log.sync().unwrap();
        let read = CotLog::read(&path).unwrap();
        for log in [&log, &read] {
            assert_eq!((log.text(&a), log.text(&b), log.text(&c)), (Some("two"), None, Some("free")));
            assert_eq!(log.get(&b).map(|answer| &answer.text), Some(&None));
            assert!(log.get(&text_digest("d")).is_none());
            let free: Vec<bool> = log.versions().iter().map(|version| version.label_free).collect();
            assert_eq!(free, [false, true], "a prompt without a decision is another version");
            assert_eq!(log.most(|_| true), Some(&log.versions()[0]), "of equals the first");
            assert_eq!(log.most(|version| version.label_free), Some(&log.versions()[1]));
            assert_eq!(log.most(|version| version.llm_model == "none"), None);
        }
    }

    #[test]
    fn a_log_of_several_models_needs_one_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let mut log = CotLog::open(&path).unwrap();
        let of = |model: &str, record: CotRecord| CotRecord { llm_model: model.into(), ..record };
        let [a, b, c] = ["a", "b", "c"].map(text_digest);
        log.append(&a, &ok("of m")).unwrap();
        log.append(&c, &of(TEMPLATE, ok("of the template"))).unwrap();
        log.append(&text_digest("d"), &of("broken", failed())).unwrap();
        log.sync().unwrap();
        let chosen = |name: Option<&str>| CotLog::read(&path).unwrap().of_model(name);
        // Neither the template nor a model without a text makes a choice.
        let only = chosen(None).unwrap();
        assert_eq!((only.text(&a), only.text(&c)), (Some("of m"), None));
        log.append(&b, &of("larger", ok("of larger"))).unwrap();
        log.sync().unwrap();
        let several = chosen(None).unwrap_err().to_string();
        assert!(
            several.contains("larger (1 texts), m (1 texts)") && several.contains("--cots-model"),
            "{several}"
        );
        let larger = chosen(Some("la")).unwrap();
        assert_eq!((larger.text(&a), larger.text(&b)), (None, Some("of larger")));
        assert_eq!(larger.most(|_| true).map(|version| &*version.llm_model), Some("larger"));
        log.append(&text_digest("e"), &of("larger still", ok("of another"))).unwrap();
        log.sync().unwrap();
        assert!(chosen(Some("larger")).unwrap().text(&b).is_some(), "the whole name names one");
        assert!(chosen(Some("large")).is_err());
        let none = chosen(Some("broken")).unwrap_err().to_string();
        assert!(none.contains("no text of \"broken\"") && none.contains("m (1 texts)"), "{none}");
        assert!(CotLog::read(&folder.path().join("none")).unwrap().of_model(None).is_ok());
    }

    #[test]
    fn a_torn_line_is_dropped_and_its_place_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let [a, b, c] = ["a", "b", "c"].map(text_digest);
        let mut log = CotLog::open(&path).unwrap();
        log.append(&a, &ok("one")).unwrap();
        log.append(&b, &ok("two")).unwrap();
        drop(log);
        let bytes = std::fs::read(&path).unwrap();
        // Also a whole record whose line end is missing: what follows would stand in its line.
        for cut in [1, 10, 200] {
            std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let read = CotLog::read(&path).unwrap();
            assert_eq!((read.text(&a), read.text(&b)), (Some("one"), None), "cut by {cut}");
            assert!(read.torn() > 0);
            let length = std::fs::metadata(&path).unwrap().len();
            assert_eq!(length, (bytes.len() - cut) as u64, "reading writes nothing");
            let mut log = CotLog::open(&path).unwrap();
            assert!(log.torn() > 0);
            log.append(&c, &ok("three")).unwrap();
            drop(log);
            let read = CotLog::open(&path).unwrap();
            assert_eq!((read.text(&a), read.text(&b), read.text(&c)), (Some("one"), None, Some("three")));
            assert_eq!(read.torn(), 0);
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let mut log = CotLog::open(&path).unwrap();
        log.append(&text_digest("a"), &ok("a secret taste")).unwrap();
        drop(log);
        let good = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            good.replace("\"key\"", "\"kee\""),
            good.replace("\"key\":\"", "\"key\":\"failed:"),
            good.replace("\"status\":\"ok\"", "\"status\":\"fine\""),
            "\n".to_owned(),
        ] {
            std::fs::write(&path, format!("{good}{damaged}{good}")).unwrap();
            for error in [CotLog::read(&path).unwrap_err(), CotLog::open(&path).unwrap_err()] {
                let error = error.to_string();
                assert!(error.contains("line 2 isn't a record of cot") && error.contains("--log"), "{error}");
                assert!(!error.contains("taste"), "{error}");
            }
        }
    }

    #[test]
    fn one_process_writes_a_log_and_others_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let mut log = CotLog::open(&path).unwrap();
        log.append(&text_digest("a"), &ok("one")).unwrap();
        let error = CotLog::open(&path).unwrap_err().to_string();
        assert!(error.contains("another run writes it"), "{error}");
        let mut read = CotLog::read(&path).unwrap();
        assert_eq!(read.text(&text_digest("a")), Some("one"));
        let error = read.append(&text_digest("b"), &ok("two")).unwrap_err().to_string();
        assert!(error.contains("read only"), "{error}");
        drop(log);
        assert!(CotLog::open(&path).is_ok());
    }
}

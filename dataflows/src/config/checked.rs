//! The configuration as a job uses it: every value checked, all problems reported at once.

use super::raw::{EncoderKind, GeneratorKind, Raw, TopicsKind};
use super::{generators, parse};
use crate::cli::Restarts;
use crate::cluster::{self, Cluster};
use crate::dead_letters::ratio::Ratio;
use crate::job::{Options, Parts};
use crate::models::Models;
use crate::names::Names;
use crate::weights::{self, Directory, Watcher};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_connectors::encoder::minilm::MiniLm;
use ictflow_connectors::files::{Files, Input, STDIN};
use ictflow_connectors::kafka::Kafka;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::local::{self, Local};
use ictflow_connectors::points::Points;
use ictflow_connectors::qdrant::Qdrant;
use ictflow_connectors::registry::{self, Registered};
use ictflow_connectors::snapshots::Snapshots;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::{Kind, Shape, Versions, Weights, untrained_of};
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The seed of the weights that serve until trained ones exist.
pub const UNTRAINED_SEED: u64 = 2026;

/// The most workers of one process; more than any machine this was run on has cores.
const MAX_WORKERS: usize = 256;

/// The most events of one epoch: its records are in memory several times over.
const MAX_EPOCH_EVENTS: usize = 1_000_000;

/// The file of the state folder that remembers the input files.
const INPUTS_FILE: &str = "inputs.json";

/// Input files in the place of topics.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InputFiles {
    /// Lines of `interactions`.
    pub interactions: PathBuf,
    /// Lines of `items`.
    pub items: PathBuf,
    /// Lines of `candidates`.
    pub candidates: Option<PathBuf>,
    /// Whether the files are still being written.
    pub follow: bool,
    /// Whether the template and hashed vectors stand in for the models.
    #[serde(default)]
    pub dry: bool,
}

impl InputFiles {
    /// The input files of the job that ran in a state folder, so that `tail` and `explain` find them;
    /// `None` where it ran on topics.
    ///
    /// # Errors
    /// `Fatal` where the note can't be read.
    pub fn of_state(state: &Path) -> Result<Option<Self>> {
        let path = state.join(INPUTS_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let failed =
            |e: String| Error::fatal(format!("read {}", path.display()), e, "run the job on its files again");
        let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
        serde_json::from_str(&text).map(Some).map_err(|e| failed(e.to_string()))
    }

    /// The configuration of a job without a file, on these inputs.
    pub fn raw(&self, state: &Path) -> Raw {
        let mut raw = Raw { state: Some(state.to_owned()), ..Raw::default() };
        if self.dry {
            self.dry(&mut raw);
        }
        raw
    }

    /// Puts the parts without a model in the place of the others.
    pub fn dry(&self, raw: &mut Raw) {
        raw.generator.kind = GeneratorKind::Template;
        raw.generator.openai = None;
        raw.encoder.kind = EncoderKind::Hashed;
    }

    fn remember(&self, state: &Path) -> Result<()> {
        let path = state.join(INPUTS_FILE);
        // The later command may run in another folder.
        let absolute = |path: &PathBuf| match path == Path::new(STDIN) {
            true => path.clone(),
            false => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        };
        let inputs = InputFiles {
            interactions: absolute(&self.interactions),
            items: absolute(&self.items),
            candidates: self.candidates.as_ref().map(absolute),
            follow: self.follow,
            dry: self.dry,
        };
        let text = serde_json::to_string_pretty(&inputs).unwrap_or_default();
        std::fs::write(&path, text).map_err(|e| {
            Error::fatal(format!("write {}", path.display()), e, "the state folder must be writable")
        })
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    raw: Raw,
    /// How the job runs.
    pub options: Options,
    /// What decides its outputs.
    pub semantics: Arc<Semantics>,
    /// How long input is gathered before an epoch is closed.
    pub interval: Duration,
    /// How long a job that is stopped waits for answers under way.
    pub drain: Duration,
    /// How often a job that failed is started anew in the process.
    pub restarts: Restarts,
    /// What the job says of itself, and where.
    pub telemetry: ictflow_connectors::telemetry::Config,
    state: PathBuf,
    files: Option<InputFiles>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// `Fatal` with every problem, each with its key.
    pub fn read(path: &Path) -> Result<Self> {
        Config::check(Config::raw_of(path)?, None)
    }

    /// Reads a file without checking its values.
    ///
    /// # Errors
    /// `Fatal` with everything that is no key or of another type, each with its line.
    pub fn raw_of(path: &Path) -> Result<Raw> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::fatal(format!("read {}", path.display()), e, "name a TOML file with --config")
        })?;
        let (raw, misfits) = parse::parse(&text);
        if !misfits.is_empty() {
            let misfits: Vec<String> = misfits.iter().map(ToString::to_string).collect();
            return Err(Error::fatal(
                format!("read {}", path.display()),
                misfits.join("; "),
                "deploy/config has examples with every key",
            ));
        }
        Ok(raw.unwrap_or_default())
    }

    /// Reads and checks a file. Input files that its job last ran on, noted in the state folder, count.
    ///
    /// # Errors
    /// Those of [`Config::raw_of`] and [`Config::check`].
    pub fn read_with_inputs(path: &Path) -> Result<Self> {
        let raw = Config::raw_of(path)?;
        let state = raw.state.clone().unwrap_or_else(|| PathBuf::from("state"));
        let files = if raw.topics.kind == TopicsKind::Local { InputFiles::of_state(&state)? } else { None };
        Config::check(raw, files)
    }

    /// Checks a configuration.
    ///
    /// # Errors
    /// `Fatal` with every problem, each with its key.
    pub fn check(raw: Raw, files: Option<InputFiles>) -> Result<Self> {
        let mut problems = Config::problems(&raw);
        if raw.registry.is_some() && files.is_some() {
            problems.push("[registry] is given and the inputs are files, whose lines are JSON".to_owned());
        }
        if !problems.is_empty() {
            return Err(Error::fatal(
                "check the configuration",
                problems.join("; "),
                "fix all of them, then try again",
            ));
        }
        Ok(Config::build(raw, files))
    }

    /// Every problem of the values, each beginning with its key.
    pub fn problems(raw: &Raw) -> Vec<String> {
        let mut problems = raw.semantics.problems();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let workers = raw.workers.unwrap_or(1);
        require((1..=MAX_WORKERS).contains(&workers), "workers must be 1 to 256");
        let job = raw.job.clone().unwrap_or_else(|| "ictflow".to_owned());
        let named = !job.is_empty() && job.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        require(
            named && job.len() <= 200,
            "job must be 1 to 200 letters, digits, '.', '_' or '-': it names transactional writers",
        );
        require(
            (1..=MAX_EPOCH_EVENTS).contains(&raw.epochs.max_events),
            "epochs.max_events must be 1 to 1000000",
        );
        require(raw.epochs.interval_ms <= 60_000, "epochs.interval_ms must be at most 60000");
        require(raw.run.max_restarts <= 1_000, "run.max_restarts must be at most 1000");
        require(
            (10..=600_000).contains(&raw.run.restart_pause_ms),
            "run.restart_pause_ms must be 10 to 600000",
        );
        require(
            (raw.run.restart_pause_ms..=600_000).contains(&raw.run.restart_pause_max_ms),
            "run.restart_pause_max_ms must be run.restart_pause_ms to 600000",
        );
        require(
            (10..=1_000_000).contains(&raw.limits.dead_letter_window),
            "limits.dead_letter_window must be 10 to 1000000",
        );
        // What is no number is in no range.
        require(
            (0.0..=1.0).contains(&raw.limits.max_dead_letter_ratio),
            "limits.max_dead_letter_ratio must be 0.0 to 1.0, which switches it off",
        );
        require(
            (1_000..=86_400_000).contains(&raw.snapshots.interval_ms),
            "snapshots.interval_ms must be 1000 to 86400000",
        );
        require(
            raw.snapshots.url.as_deref() != Some(""),
            "snapshots.url is empty: give a folder, a URL or off",
        );
        let kafka = raw.topics.kind == TopicsKind::Kafka;
        require(!kafka || raw.topics.kafka.is_some(), "topics.kind is kafka and [topics.kafka] is missing");
        require(kafka || raw.topics.kafka.is_none(), "[topics.kafka] is given and topics.kind is local");
        require(
            !kafka || raw.topics.partitions.is_none(),
            "topics.partitions is for local topics: on kafka the owner creates the inputs",
        );
        require(
            raw.topics.partitions.is_none_or(|p| (1..=1_000).contains(&p)),
            "topics.partitions must be 1 to 1000",
        );
        let names = Names::new(&raw.topics.names, &raw.topics.suffix);
        let distinct: BTreeSet<&str> = Topic::ALL.into_iter().map(|topic| names.of(topic)).collect();
        require(distinct.len() == Topic::ALL.len(), "topics.names gives one name to two topics");
        require(!distinct.contains(""), "topics.names has an empty name");
        require(
            raw.semantics.search == Search::Exact || raw.qdrant.is_some(),
            "semantics.search is stored and the section [qdrant] is missing",
        );
        require(
            raw.ict.weights.is_none() || raw.ict.directory.is_none(),
            "ict.weights and ict.directory are both given: the file active of the directory names the weights",
        );
        require(
            raw.ict.untrained.is_none() || (raw.ict.weights.is_none() && raw.ict.directory.is_none()),
            "ict.untrained is given beside trained weights, whose file says of which kind they are",
        );
        require(
            raw.ict.shadow_topic.is_none() || raw.ict.directory.is_some(),
            "ict.shadow_topic is given and ict.directory is missing, whose file shadow names the weights",
        );
        require(
            shadow_topic(raw, &names)
                .is_none_or(|name| !name.is_empty() && !distinct.contains(name.as_str())),
            "ict.shadow_topic must be a topic of its own",
        );
        require(raw.generator.drain_ms <= 600_000, "generator.drain_ms must be at most 600000");
        let service = raw.generator.kind == GeneratorKind::Openai;
        require(
            !service || raw.generator.openai.is_some(),
            "generator.kind is openai and [generator.openai] is missing",
        );
        require(
            service || raw.generator.openai.is_none(),
            "[generator.openai] is given and generator.kind is another",
        );
        if let Some(kafka) = &raw.topics.kafka {
            problems.extend(kafka.problems().into_iter().map(|problem| format!("topics.{problem}")));
            let largest = raw.semantics.largest_record();
            if largest > kafka.message_max_bytes {
                problems.push(format!(
                    "topics.kafka.message_max_bytes must be at least {largest}, the largest record that [semantics] \
                     max_record_bytes, max_id_bytes, history_length and demonstrations make possible: raise it, or \
                     lower these"
                ));
            }
        }
        if let Some(registry) = &raw.registry {
            problems.extend(registry.problems());
        }
        if let Some(qdrant) = &raw.qdrant {
            problems.extend(qdrant.problems());
        }
        if let Some(openai) = &raw.generator.openai {
            problems.extend(openai.problems());
        }
        problems.extend(raw.cluster.problems());
        problems.extend(raw.telemetry.problems());
        problems
    }

    /// The configuration of a file, whatever its problems.
    pub(crate) fn build(raw: Raw, files: Option<InputFiles>) -> Self {
        let workers = raw.workers.unwrap_or(1);
        let job = raw.job.clone().unwrap_or_else(|| "ictflow".to_owned());
        let names = Names::new(&raw.topics.names, &raw.topics.suffix);
        let names = match shadow_topic(&raw, &names) {
            Some(shadow) => names.with_shadow(shadow),
            None => names,
        };
        let kafka = raw.topics.kind == TopicsKind::Kafka;
        let state = raw.state.clone().unwrap_or_else(|| PathBuf::from("state"));
        let create_inputs = (!kafka).then(|| raw.topics.partitions.unwrap_or(1));
        let options = Options {
            calls_file: Some(state.join(format!("{job}.calls"))),
            dead_letters: Ratio {
                max: raw.limits.max_dead_letter_ratio,
                window: raw.limits.dead_letter_window,
            },
            accept_truncated: false,
            edges: Default::default(),
            by_hand: false,
            bounded: None,
            switch: None,
            job,
            names,
            workers,
            cluster: Default::default(),
            epoch_max_events: raw.epochs.max_events,
            create_inputs,
            generate: true,
        };
        Config {
            semantics: Arc::new(raw.semantics.clone()),
            interval: Duration::from_millis(raw.epochs.interval_ms),
            drain: Duration::from_millis(raw.generator.drain_ms),
            restarts: Restarts {
                max: raw.run.max_restarts,
                pause: Duration::from_millis(raw.run.restart_pause_ms),
                longest: Duration::from_millis(raw.run.restart_pause_max_ms),
            },
            telemetry: raw.telemetry.clone(),
            state,
            options,
            files,
            raw,
        }
    }

    /// The file as written.
    pub(crate) fn raw(&self) -> &Raw {
        &self.raw
    }

    /// The state folder.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The input files, where they stand in the place of topics.
    pub(crate) fn files(&self) -> Option<&InputFiles> {
        self.files.as_ref()
    }

    /// The file of `local` topics.
    pub(crate) fn local_file(&self) -> PathBuf {
        self.raw.topics.file.clone().unwrap_or_else(|| self.state.join(local::FILE_NAME))
    }

    /// Puts an address of the command line in the place of `telemetry.listen`.
    ///
    /// # Errors
    /// `Fatal` where it isn't one.
    pub fn listen(&mut self, listen: Option<&str>) -> Result<()> {
        if let Some(listen) = listen {
            self.telemetry.listen = listen.to_owned();
        }
        self.telemetry
            .address()
            .map(|_| ())
            .map_err(|problem| Error::fatal("read --listen", problem, "give host:port, or off"))
    }

    /// The store of the topics, behind the schema registry where one is configured. `read_only` for
    /// programs beside a running job.
    pub fn topics(&self, read_only: bool) -> Result<Box<dyn Topics>> {
        let store = self.store(read_only)?;
        Ok(match &self.raw.registry {
            Some(registry) => {
                let roles = self.options.names.roles();
                Box::new(Registered::open(store, registry.clone(), roles, read_only)?)
            }
            None => store,
        })
    }

    /// Checks the schema registry, where one is configured: whether it answers, whether the newest
    /// schemas of the inputs can be read, and whether ours may stand on the topics that the job writes.
    /// Warnings are logged. Registers nothing.
    ///
    /// # Errors
    /// `Fatal` with every problem, each with its topic, field and reason; or where the registry can't be
    /// asked.
    pub fn check_registry(&self) -> Result<()> {
        let Some(config) = &self.raw.registry else { return Ok(()) };
        let client = registry::Client::new(config.clone())?;
        let found = registry::check_compatibility(&client, &self.options.names.roles())?;
        for warning in &found.warnings {
            tracing::warn!(warning, "some records may be unreadable");
        }
        if found.problems.is_empty() {
            return Ok(());
        }
        Err(Error::fatal(
            "check the schema registry",
            found.problems.join("; "),
            "records of such a schema become dead letters: change the producers, or name other topics",
        ))
    }

    /// The store of the topics for a consumer beside the job, which may publish on a topic of its own. None of
    /// ours is written, so no schema is registered.
    ///
    /// # Errors
    /// `Fatal` where the input is files and the consumer publishes: they take no topics of others.
    pub fn topics_of_consumer(&self, publishes: bool) -> Result<Box<dyn Topics>> {
        if publishes && self.files.is_some() {
            return Err(Error::fatal(
                "publish on a topic",
                "the job reads files",
                "publish where the job is on topics (kafka or local)",
            ));
        }
        // A state folder that isn't there isn't made.
        drop(self.store(true)?);
        let store = self.store(!publishes)?;
        Ok(match &self.raw.registry {
            Some(registry) => {
                Box::new(Registered::open(store, registry.clone(), self.options.names.roles(), true)?)
            }
            None => store,
        })
    }

    /// The store of the topics for a replay of dead letters: it appends to inputs, which nothing frames
    /// anew, and needs their headers. A dry one writes nothing.
    pub fn topics_of_replay(&self, dry: bool) -> Result<Box<dyn Topics>> {
        // A state folder that isn't there isn't made.
        drop(self.topics(true)?);
        let mut with_headers = self.clone();
        if let Some(kafka) = &mut with_headers.raw.topics.kafka {
            kafka.topics_without_headers.clear();
        }
        let store = with_headers.store(dry)?;
        Ok(match &self.raw.registry {
            // Ours aren't written, so none of our schemas is registered.
            Some(registry) => {
                Box::new(Registered::open(store, registry.clone(), self.options.names.roles(), true)?)
            }
            None => store,
        })
    }

    fn store(&self, read_only: bool) -> Result<Box<dyn Topics>> {
        if let Some(kafka) = &self.raw.topics.kafka {
            return Ok(Box::new(Kafka::connect(kafka.clone())?));
        }
        if let Some(files) = &self.files {
            let input = |topic, path: &PathBuf| Input {
                topic: self.options.names.of(topic).to_owned(),
                path: path.clone(),
            };
            let mut inputs =
                vec![input(Topic::Interactions, &files.interactions), input(Topic::Items, &files.items)];
            inputs.extend(files.candidates.as_ref().map(|path| input(Topic::Candidates, path)));
            if read_only {
                return Ok(Box::new(Files::open_read_only(&inputs, &self.state, files.follow)?));
            }
            self.make_state()?;
            files.remember(&self.state)?;
            return Ok(Box::new(Files::open(&inputs, &self.state, files.follow)?));
        }
        let file = self.local_file();
        if read_only {
            return Ok(Box::new(Local::open_read_only(&file)?));
        }
        self.make_state()?;
        Ok(Box::new(Local::open(&file)?))
    }

    /// How the records of the inputs are written.
    pub fn formats(&self) -> BTreeMap<Topic, Format> {
        let json = |topics: &[Topic]| topics.iter().map(|topic| (*topic, Format::Json)).collect();
        match &self.files {
            None => BTreeMap::new(),
            Some(files) if files.candidates.is_some() => {
                json(&[Topic::Interactions, Topic::Items, Topic::Candidates])
            }
            Some(_) => json(&[Topic::Interactions, Topic::Items]),
        }
    }

    /// Everything that a job is made of, models loaded.
    ///
    /// # Errors
    /// `Fatal` where a model, the weights or the store can't be opened, or their widths differ.
    pub fn parts(&self) -> Result<Parts> {
        self.make_state()?;
        self.parts_with(&self.models()?)
    }

    /// The models of the process, loaded.
    ///
    /// # Errors
    /// `Fatal` where a model or the weights can't be opened, or their widths differ.
    pub fn models(&self) -> Result<Models> {
        self.make_state()?;
        let encoder = self.encoder()?;
        let weights = self.versions(encoder.width(), true)?;
        let (generators, validator) = self.generators()?;
        Ok(Models::new(encoder, generators, validator, weights))
    }

    /// Everything that a job is made of, with models that are loaded.
    ///
    /// # Errors
    /// Those of opening the stores.
    pub fn parts_with(&self, models: &Models) -> Result<Parts> {
        Ok(Parts {
            topics: self.topics(false)?,
            formats: self.formats(),
            generators: models.generators(),
            validator: models.validator(),
            encoder: models.encoder(),
            weights: models.weights(),
            points: self.points()?,
            snapshots: self.snapshots()?,
        })
    }

    /// Where snapshots are kept and how often one is taken, `None` where they are off.
    pub(crate) fn snapshots(&self) -> Result<Option<(Snapshots, Duration)>> {
        let place = match self.raw.snapshots.url.as_deref() {
            Some("off") => return Ok(None),
            Some(url) => url.to_owned(),
            None => self.state.join("snapshots").display().to_string(),
        };
        Ok(Some((Snapshots::open(&place)?, Duration::from_millis(self.raw.snapshots.interval_ms))))
    }

    /// The store of points with its over-fetch, `None` where the config has none.
    fn points(&self) -> Result<Option<(Box<dyn Points>, usize)>> {
        let Some(qdrant) = &self.raw.qdrant else { return Ok(None) };
        Ok(Some((Box::new(Qdrant::new(qdrant.clone())?), qdrant.over_fetch)))
    }

    pub(crate) fn encoder(&self) -> Result<Box<dyn Embed>> {
        let default = || models().join("encoder");
        Ok(match self.raw.encoder.kind {
            EncoderKind::Minilm => {
                Box::new(MiniLm::load(&self.raw.encoder.folder.clone().unwrap_or_else(default))?)
            }
            EncoderKind::Hashed => Box::new(Hashed::new(Shape::default().text)),
        })
    }

    /// The generators, one for each call that may be under way, and what judges their drafts.
    pub(crate) fn generators(&self) -> Result<(Vec<Box<dyn Generate>>, Validator)> {
        generators::open(&self.raw.generator, false, (None, 1))
    }

    /// The weights of the file, those that the directory names, or untrained ones, which are written to the state
    /// folder if `keep`.
    pub(crate) fn weights(&self, width: usize, keep: bool) -> Result<Arc<Weights>> {
        let weights = self.weights_of(width, keep)?;
        if weights.shape().text != width {
            return Err(Error::fatal(
                "load the ICT weights",
                format!("they take texts of width {}, the encoder gives {width}", weights.shape().text),
                "use the encoder that the weights were trained with",
            ));
        }
        Ok(weights)
    }

    /// The same with what finds others of the directory by their version.
    pub(crate) fn versions(&self, width: usize, keep: bool) -> Result<Versions> {
        let versions = self.among(self.weights(width, keep)?);
        let named = self.directory().map_or(Ok(None), |directory| directory.shadow());
        let beside = named
            .map_err(|error| error.to_string())
            .and_then(|shadow| versions.stand_beside(shadow).map_err(|error| error.to_string()));
        // What serves doesn't wait for what is only tried.
        if let Err(error) = beside {
            tracing::error!(error, "no shadow is published");
        }
        Ok(versions)
    }

    fn among(&self, serving: Arc<Weights>) -> Versions {
        Versions::new(serving, self.directory().map(|directory| directory.finder()))
    }

    /// The directory of weights, where there is one.
    pub(crate) fn directory(&self) -> Option<Directory> {
        self.raw.ict.directory.clone().map(Directory::new)
    }

    /// What watches the directory of weights.
    pub(crate) fn watcher(&self) -> Option<Watcher> {
        self.directory().map(Watcher::new)
    }

    /// The weights of the file whatever their width, or untrained ones of this width.
    fn weights_of(&self, width: usize, keep: bool) -> Result<Arc<Weights>> {
        if let Some(directory) = self.directory() {
            return directory.active();
        }
        if let Some(path) = &self.raw.ict.weights {
            return weights::load(path);
        }
        let path = self.state.join("untrained.safetensors");
        let kind = self.raw.ict.untrained.unwrap_or(Kind::Attention);
        let bytes = untrained_of(kind, UNTRAINED_SEED, Shape { text: width, ..Shape::default() })
            .map_err(|e| Error::fatal("make untrained weights", e, "the encoder's width is out of range"))?;
        if keep {
            std::fs::write(&path, &bytes).map_err(|e| {
                Error::fatal(format!("write {}", path.display()), e, "the state folder must be writable")
            })?;
        }
        weights::of_bytes(&path, &bytes)
    }

    /// Hosts workers of the job as this process of `[cluster]`, until the coordinator ends. Reads the
    /// weights, or where there are none the encoder's width, and nothing else of the job.
    ///
    /// # Errors
    /// Those of [`cluster::host`], or `Fatal` where the weights can't be loaded.
    pub fn host(&self, process: usize) -> Result<()> {
        let width = match self.raw.ict.weights.is_some() || self.raw.ict.directory.is_some() {
            // The coordinator looks whether they fit the encoder.
            true => Shape::default().text,
            false => self.encoder()?.width(),
        };
        let weights = self.among(self.weights_of(width, false)?);
        let (job, workers) = (&self.options.job, self.options.workers);
        cluster::host(&self.raw.cluster, process, job, workers, self.semantics.clone(), weights, true)
    }

    /// The other processes of the job. Only `run` has them: a command that opens the job for a moment
    /// does it alone.
    pub fn cluster(&self) -> Cluster {
        Cluster::new(&self.raw.cluster, true)
    }

    fn make_state(&self) -> Result<()> {
        std::fs::create_dir_all(&self.state).map_err(|e| {
            Error::fatal(
                format!("make the folder {}", self.state.display()),
                e,
                "set state to a writable folder",
            )
        })
    }
}

/// The topic of a shadow's vectors, where the weights come from a directory.
fn shadow_topic(raw: &Raw, names: &Names) -> Option<String> {
    raw.ict.directory.as_ref()?;
    let default = || format!("{}_shadow", names.of(Topic::Features));
    Some(raw.ict.shadow_topic.clone().unwrap_or_else(default))
}

/// The cache folder of models and data: `ICTFLOW_MODELS`, else `~/.cache/ictflow`.
pub fn models() -> PathBuf {
    match std::env::var_os("ICTFLOW_MODELS") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache").join("ictflow"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_operators::ict::untrained;

    fn raw(text: &str) -> Raw {
        toml::from_str(text).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_example_files_parse_and_hold_the_defaults() {
        for text in [
            include_str!("../../../deploy/config/local.toml"),
            include_str!("../../../deploy/config/kafka.toml"),
        ] {
            let raw = raw(text);
            assert_eq!(raw.semantics, Semantics::default());
            assert_eq!(raw.telemetry, ictflow_connectors::telemetry::Config::default());
            assert_eq!(raw.cluster, cluster::Config::default());
            assert_eq!(raw.limits, super::super::raw::Limits::default());
            if let Some(kafka) = &raw.topics.kafka {
                let servers = kafka.bootstrap_servers.clone();
                let default =
                    ictflow_connectors::kafka::Config { bootstrap_servers: servers, ..Default::default() };
                assert_eq!(format!("{kafka:?}"), format!("{default:?}"));
            }
            let config = Config::check(raw, None).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.options.job, "ictflow");
        }
    }

    #[test]
    fn the_example_files_show_the_service_with_its_defaults() {
        for text in [
            include_str!("../../../deploy/config/local.toml"),
            include_str!("../../../deploy/config/kafka.toml"),
        ] {
            let shown = text.lines().skip_while(|line| *line != "# [generator.openai]").skip(1);
            let shown: String =
                shown.map_while(|line| line.strip_prefix("# ")).flat_map(|line| [line, "\n"]).collect();
            let shown: ictflow_connectors::llm::openai::Config =
                toml::from_str(&shown).unwrap_or_else(|e| panic!("{e}"));
            assert!(shown.problems().is_empty() && shown.api_key.is_some());
            let default = ictflow_connectors::llm::openai::Config {
                base_url: shown.base_url.clone(),
                model: shown.model.clone(),
                api_key: shown.api_key.clone(),
                ..Default::default()
            };
            assert_eq!(shown, default);
        }
    }

    #[test]
    fn the_generator_and_its_section_go_together() {
        let refused = |text: &str| Config::check(raw(text), None).unwrap_err().to_string();
        assert!(refused("[generator]\nkind = 'openai'").contains("[generator.openai] is missing"));
        let section = "[generator.openai]\nbase_url = 'http://127.0.0.1:1/v1'\nmodel = 'm'";
        assert!(refused(section).contains("generator.kind is another"));
        let both = format!("[generator]\nkind = 'openai'\n{section}");
        assert!(refused(&format!("{both}\nconcurrency = 0")).contains("generator.openai.concurrency"));
        let (generators, _) = Config::check(raw(&both), None).unwrap().generators().unwrap();
        assert_eq!(generators.len(), 4);
        assert_eq!(generators[3].model(), "m");
    }

    #[test]
    fn the_commented_registry_of_the_example_files_holds_the_defaults() {
        for text in [
            include_str!("../../../deploy/config/local.toml"),
            include_str!("../../../deploy/config/kafka.toml"),
        ] {
            let from = text.find("# [registry]").unwrap();
            // A second mark stays: those keys have no default.
            let section: Vec<&str> =
                text[from..].lines().take_while(|line| !line.is_empty()).map(|l| &l[2..]).collect();
            let registry = raw(&section.join("\n")).registry.unwrap();
            let default = registry::Config { url: registry.url.clone(), ..registry::Config::default() };
            assert_eq!(registry, default);
            let keys = toml::Table::try_from(&registry).unwrap();
            for key in keys.keys() {
                assert!(section.iter().any(|line| line.starts_with(key)), "{key} isn't in the file");
            }
            assert!(registry.problems().is_empty());
        }
    }

    #[test]
    fn weights_of_both_kinds_are_served_and_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shape =
            Shape { user_rows: 4, item_rows: 4, creator_rows: 4, category_rows: 4, ..Shape::default() };
        let load = |bytes: &[u8]| {
            let path = folder.path().join("weights.safetensors");
            std::fs::write(&path, bytes).unwrap();
            let config = Config::check(raw(&format!("[ict]\nweights = '{}'", path.display())), None).unwrap();
            config.weights(384, false)
        };
        for kind in [Kind::Decoder, Kind::Attention] {
            assert_eq!(load(&untrained_of(kind, 1, shape).unwrap()).unwrap().kind(), kind);
        }
        let untrained = |text: &str| {
            let config = Config::check(raw(text), None).unwrap();
            let weights = config.weights(384, false).unwrap();
            assert!(weights.version().starts_with("untrained-"));
            weights.kind()
        };
        assert_eq!(untrained(""), Kind::Attention);
        assert_eq!(untrained("[ict]\nuntrained = 'decoder'"), Kind::Decoder);
        let both = Config::check(raw("[ict]\nuntrained = 'decoder'\nweights = 'a'"), None).unwrap_err();
        assert!(both.to_string().contains("whose file says"), "{both}");
        let error = load(b"no weights").unwrap_err().to_string();
        assert!(error.contains("not a safetensors file"), "{error}");
    }

    #[test]
    fn a_directory_names_the_weights_and_has_a_topic_for_its_shadow() {
        let refused = |text: &str| Config::check(raw(text), None).unwrap_err().to_string();
        assert!(refused("[ict]\nweights = 'a'\ndirectory = 'b'").contains("both given"));
        assert!(refused("[ict]\nshadow_topic = 'a'").contains("ict.directory is missing"));
        assert!(
            refused("[ict]\ndirectory = 'b'\nshadow_topic = 'features'").contains("ict.shadow_topic must be")
        );
        let shadow = |text: &str| {
            let config = Config::check(raw(text), None).unwrap();
            config.options.names.shadow().map(str::to_owned)
        };
        assert_eq!(shadow("[ict]\nweights = 'a'"), None);
        assert_eq!(shadow("[ict]\ndirectory = 'b'").as_deref(), Some("features_shadow"));
        assert_eq!(shadow("[ict]\ndirectory = 'b'\nshadow_topic = 'try'").as_deref(), Some("try"));
        // What serves must be there at a start, what is only tried need not.
        let folder = tempfile::tempdir().unwrap();
        let config =
            Config::check(raw(&format!("[ict]\ndirectory = '{}'", folder.path().display())), None).unwrap();
        assert!(config.versions(384, false).err().unwrap().to_string().contains("active"));
        let shape =
            Shape { user_rows: 4, item_rows: 4, creator_rows: 4, category_rows: 4, ..Shape::default() };
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("a.safetensors", &untrained(1, shape).unwrap());
        write("narrow.safetensors", &untrained(1, Shape { d: 16, ..shape }).unwrap());
        write("active", b"a.safetensors");
        for (named, stands) in [("a.safetensors", true), ("narrow.safetensors", false), ("gone", false)] {
            write("shadow", named.as_bytes());
            assert_eq!(config.versions(384, false).unwrap().shadow().is_some(), stands, "{named}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once_and_by_key() {
        let text = "job = 'a b'\nworkers = 0\n[topics]\nkind = 'kafka'\n[semantics]\ndemonstrations = 3\nmax_future_skew_ms = 700000";
        let error = Config::check(raw(text), None).unwrap_err().to_string();
        for key in [
            "job must",
            "workers must",
            "[topics.kafka] is missing",
            "demonstrations must be even",
            "max_future_skew_ms",
        ] {
            assert!(error.contains(key), "{key} in {error}");
        }
        assert!(toml::from_str::<Raw>("wokers = 1").unwrap_err().to_string().contains("wokers"));
    }
}

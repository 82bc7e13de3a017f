//! The configuration as the TOML file writes it. Parsing does no I/O and checks nothing but names
//! and types; an unknown key is an error.

use crate::cluster;
use crate::dead_letters::ratio::Ratio;
use ictflow_connectors::llm::openai;
use ictflow_connectors::{kafka, qdrant, registry, telemetry};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::topic::Topic;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// `[cluster]`: the processes of the job.
    pub cluster: cluster::Config,
    /// The encoder of texts.
    pub encoder: Encoder,
    /// How epochs are closed.
    pub epochs: Epochs,
    /// The generator of CoTs.
    pub generator: Generator,
    /// The ICT weights.
    pub ict: Ict,
    /// What stops a job.
    pub limits: Limits,
    /// The job's name. It names the transactional writers: one running process a name.
    pub job: Option<String>,
    /// The store of points: `[qdrant]`.
    pub qdrant: Option<qdrant::Config>,
    /// `[registry]`: values are framed by a schema registry. Without it they are single-object Avro.
    pub registry: Option<registry::Config>,
    /// What `run` does after a failure that may pass.
    pub run: Run,
    /// Every value that decides an output.
    pub semantics: Semantics,
    /// Snapshots of the job's state.
    pub snapshots: SnapshotsConfig,
    /// The folder of this job's files: the `local` topics, the accounting file, its snapshots.
    pub state: Option<PathBuf>,
    /// Metrics, probes and the status page.
    pub telemetry: telemetry::Config,
    /// Where the topics live.
    pub topics: Topics,
    /// Worker threads of the dataflow, in each process.
    pub workers: Option<usize>,
}

/// `[encoder]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encoder {
    /// Which encoder.
    pub kind: EncoderKind,
    /// The folder with `model.safetensors`, `tokenizer.json` and `config.json`.
    pub folder: Option<PathBuf>,
}

/// The encoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderKind {
    /// all-MiniLM-L6-v2 on candle.
    #[default]
    Minilm,
    /// Vectors from a hash of the text: fast, and says nothing. For tests.
    Hashed,
}

/// `[epochs]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Epochs {
    /// How long input is gathered before an epoch is closed.
    pub interval_ms: u64,
    /// Records of `interactions` in one epoch at most.
    pub max_events: usize,
}

impl Default for Epochs {
    fn default() -> Self {
        Epochs { interval_ms: 500, max_events: 10_000 }
    }
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Records of a partition of an input over which dead letters are counted.
    pub dead_letter_window: u64,
    /// The largest share of these that may be dead letters before the job stops; 1.0: it never does.
    pub max_dead_letter_ratio: f64,
}

impl Default for Limits {
    fn default() -> Self {
        let Ratio { max, window } = Ratio::default();
        Limits { dead_letter_window: window, max_dead_letter_ratio: max }
    }
}

/// `[run]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// New starts of the job in a row that may commit nothing before the process ends; 0: none is made.
    pub max_restarts: u32,
    /// The pause before the first; it doubles with each that commits nothing.
    pub restart_pause_ms: u64,
    /// The longest pause.
    pub restart_pause_max_ms: u64,
}

impl Default for Run {
    fn default() -> Self {
        Run { max_restarts: 20, restart_pause_ms: 500, restart_pause_max_ms: 30_000 }
    }
}

/// `[snapshots]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotsConfig {
    /// A folder, or the URL of an object store; `snapshots` in the state folder by default. `off`: none.
    pub url: Option<String>,
    /// How often one is taken.
    pub interval_ms: u64,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        SnapshotsConfig { url: None, interval_ms: 60_000 }
    }
}

/// `[generator]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generator {
    /// How long a job that is stopped waits for answers under way.
    pub drain_ms: u64,
    /// Which generator.
    pub kind: GeneratorKind,
    /// The GGUF file of a local model.
    pub model: Option<PathBuf>,
    /// `[generator.openai]`.
    pub openai: Option<openai::Config>,
}

impl Default for Generator {
    fn default() -> Self {
        Generator { drain_ms: 30_000, kind: GeneratorKind::default(), model: None, openai: None }
    }
}

/// The generators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorKind {
    /// A LLaMA-family model on candle.
    #[default]
    Local,
    /// Deterministic text without a model: for tests and as an ablation.
    Template,
    /// A service that speaks OpenAI's chat completions.
    Openai,
}

/// `[ict]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ict {
    /// A directory of such files in the place of one: its file `active` names the one that serves, and `run`
    /// switches while it runs where that changes.
    pub directory: Option<PathBuf>,
    /// The topic of the vectors that the weights named by the directory's file `shadow` make; the name of features
    /// and `_shadow` by default.
    pub shadow_topic: Option<String>,
    /// Which kind of weights serves where there is no file: untrained ones, which say so. `decoder` is the paper's
    /// vector over demonstrations; attention over neighbours where none is named, which is what trained best.
    pub untrained: Option<VectorKind>,
    /// A safetensors file of `schemas/weights.md`.
    pub weights: Option<PathBuf>,
}

/// `[topics]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// Which store.
    pub kind: TopicsKind,
    /// `[topics.kafka]`.
    pub kafka: Option<kafka::Config>,
    /// `[topics.names]`: names on the store that differ from the default ones.
    pub names: BTreeMap<Topic, String>,
    /// Appended to the default names of the topics that belong to one job: epochs, progress,
    /// features, examples, dead_letters. So several jobs share their inputs on one store.
    pub suffix: String,
    /// Partitions of inputs that are made where they don't exist; only for `local`.
    pub partitions: Option<u32>,
    /// The SQLite file of `local`; `topics.sqlite` in the state folder by default.
    pub file: Option<PathBuf>,
}

/// The stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopicsKind {
    /// One SQLite file.
    #[default]
    Local,
    /// Apache Kafka.
    Kafka,
}

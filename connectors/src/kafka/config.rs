//! The section `kafka` of the config: typed, bounded, secrets by reference.

use crate::Result;
use crate::secret::Secret;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// How to reach Kafka, and every limit on the way. Times are milliseconds, sizes bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Brokers to ask first, each `host:port`.
    pub bootstrap_servers: Vec<String>,
    /// The name under which the broker's log and quotas know this client.
    pub client_id: String,
    /// The group of the readers. They assign partitions themselves and commit nothing to it; a
    /// broker with access lists wants Read on it all the same.
    pub group_id: String,
    /// Encryption and authentication.
    pub security: Security,
    /// The longest wait for one answer of a broker; below `transaction_timeout_ms`.
    pub request_timeout_ms: u64,
    /// The longest time that one record may take to be acknowledged; at most
    /// `transaction_timeout_ms`.
    pub delivery_timeout_ms: u64,
    /// How long a transaction may stay open before the broker aborts it; at most the broker's
    /// `transaction.max.timeout.ms` (15 minutes by default).
    pub transaction_timeout_ms: u64,
    /// The largest record that is sent, framing included; the topics' `max.message.bytes`.
    pub message_max_bytes: usize,
    /// Records that a producer holds.
    pub send_queue_records: usize,
    /// Kibibytes that a producer holds.
    pub send_queue_kib: usize,
    /// Records that a reader fetches ahead of its caller, by partition.
    pub fetch_queue_records: usize,
    /// Kibibytes that a reader fetches ahead of its caller, over its partitions.
    pub fetch_queue_kib: usize,
    /// How long a broker holds back the answer to a fetch that finds nothing.
    pub fetch_wait_ms: u64,
    /// How batches are compressed.
    pub compression: Compression,
    /// Replicas of the topics that are created; the broker's default where unset.
    pub replication: Option<u32>,
    /// The topic on which the broker is tried before a new job relies on it, made where it doesn't exist;
    /// `off`: it isn't tried.
    pub conformance_topic: String,
    /// Topics whose headers are left unread. Their writers are strangers, and a header name that
    /// isn't UTF-8 stops the process inside the client library.
    pub topics_without_headers: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bootstrap_servers: Vec::new(),
            client_id: "ictflow".into(),
            group_id: "ictflow".into(),
            security: Security::default(),
            request_timeout_ms: 15_000,
            delivery_timeout_ms: 30_000,
            // Kafka's own default.
            transaction_timeout_ms: 60_000,
            // Below the broker's default of 1,048,588.
            message_max_bytes: 1_000_000,
            send_queue_records: 100_000,
            send_queue_kib: 65_536,
            fetch_queue_records: 10_000,
            fetch_queue_kib: 16_384,
            fetch_wait_ms: 50,
            compression: Compression::Lz4,
            replication: None,
            conformance_topic: super::conformance::TOPIC.to_owned(),
            topics_without_headers: ["interactions", "items", "candidates"].map(String::from).to_vec(),
        }
    }
}

/// How batches are compressed on their way and on the broker's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// Encryption and authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    /// How the broker's listener speaks.
    pub protocol: Protocol,
    /// PEM file of the authorities that sign the brokers' certificates; the system's where unset.
    pub ca_file: Option<PathBuf>,
    /// PEM file of this client's certificate.
    pub certificate_file: Option<PathBuf>,
    /// PEM file of this client's key.
    pub key_file: Option<PathBuf>,
    /// The password of `key_file`.
    pub key_password: Option<Secret>,
    /// How the user proves itself.
    pub mechanism: Mechanism,
    /// The user.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Allows SASL without TLS, where passwords cross the network in the open.
    pub allow_plaintext_sasl: bool,
}

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL in the open.
    SaslPlaintext,
    /// SASL over TLS.
    SaslSsl,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Plaintext => "plaintext",
            Protocol::Ssl => "ssl",
            Protocol::SaslPlaintext => "sasl_plaintext",
            Protocol::SaslSsl => "sasl_ssl",
        }
    }

    fn encrypted(self) -> bool {
        matches!(self, Protocol::Ssl | Protocol::SaslSsl)
    }

    fn authenticated(self) -> bool {
        matches!(self, Protocol::SaslPlaintext | Protocol::SaslSsl)
    }
}

/// How a SASL user proves itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mechanism {
    /// The password itself.
    #[serde(rename = "PLAIN")]
    Plain,
    /// A salted challenge over SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A salted challenge over SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What a record's framing adds at most: the batch header (61), and attributes, timestamp, offset,
/// lengths and the header count of the record itself as varints of their greatest width.
const FRAMING: usize = 61 + 1 + 10 + 5 * 5;

/// What a header's framing adds at most: two lengths.
const HEADER_FRAMING: usize = 10;

/// The largest size that a record may take on the wire.
pub fn wire_size(key: &[u8], value: Option<&[u8]>, headers: &[(String, Vec<u8>)]) -> usize {
    let headers: usize = headers.iter().map(|(name, value)| HEADER_FRAMING + name.len() + value.len()).sum();
    FRAMING + key.len() + value.map_or(0, <[u8]>::len) + headers
}

/// The greatest of every time: a day.
const LONGEST_MS: u64 = 24 * 60 * 60 * 1_000;

impl Config {
    /// Every problem of the values, each with its key and what to do.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let text = |value: &str| !value.is_empty() && !value.contains('\0');
        require(
            !self.bootstrap_servers.is_empty()
                && self.bootstrap_servers.iter().all(|server| text(server) && !server.contains(',')),
            "kafka.bootstrap_servers must name at least one broker, each an entry host:port".into(),
        );
        require(text(&self.client_id), "kafka.client_id must not be empty".into());
        require(text(&self.group_id), "kafka.group_id must not be empty".into());
        require(text(&self.conformance_topic), "kafka.conformance_topic must name a topic, or be off".into());
        let range = |name: &str, value: u64, low: u64, high: u64| {
            let problem = format!("kafka.{name} must be {low} to {high}, is {value}");
            ((low..=high).contains(&value), problem)
        };
        for (holds, problem) in [
            range("request_timeout_ms", self.request_timeout_ms, 100, 300_000),
            range("delivery_timeout_ms", self.delivery_timeout_ms, 100, LONGEST_MS),
            range("transaction_timeout_ms", self.transaction_timeout_ms, 1_000, LONGEST_MS),
            range("message_max_bytes", self.message_max_bytes as u64, 1_000, 1_000_000_000),
            range("send_queue_records", self.send_queue_records as u64, 1, 10_000_000),
            range("send_queue_kib", self.send_queue_kib as u64, 1_024, 2_097_151),
            range("fetch_queue_records", self.fetch_queue_records as u64, 1, 10_000_000),
            range("fetch_queue_kib", self.fetch_queue_kib as u64, 1_024, 2_097_151),
            range("fetch_wait_ms", self.fetch_wait_ms, 1, 10_000),
            range("replication", u64::from(self.replication.unwrap_or(1)), 1, 32_767),
        ] {
            require(holds, problem);
        }
        require(
            self.delivery_timeout_ms <= self.transaction_timeout_ms,
            "kafka.delivery_timeout_ms must not exceed transaction_timeout_ms: a record that arrives later is aborted".into(),
        );
        require(
            self.request_timeout_ms < self.transaction_timeout_ms,
            "kafka.request_timeout_ms must be below transaction_timeout_ms: one lost answer would spend it all".into(),
        );
        require(
            self.message_max_bytes <= self.send_queue_kib.saturating_mul(1_024),
            "kafka.message_max_bytes must fit send_queue_kib: a record that doesn't could never be queued"
                .into(),
        );
        problems.extend(self.security.problems());
        problems
    }

    /// The settings that every client shares, secrets included.
    pub(super) fn client(&self) -> Result<ClientConfig> {
        let mut client = ClientConfig::new();
        client
            .set_log_level(RDKafkaLogLevel::Warning)
            .set("bootstrap.servers", self.bootstrap_servers.join(","))
            .set("client.id", &self.client_id)
            .set("socket.timeout.ms", self.request_timeout_ms.to_string())
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", self.request_timeout_ms.max(1_000).to_string())
            // A broker that comes back is found within these, not after ten seconds.
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000")
            .set("message.max.bytes", self.message_max_bytes.to_string());
        self.security.apply(&mut client)?;
        Ok(client)
    }

    /// Adds the settings of a reader.
    pub(super) fn reader(&self, client: &ClientConfig) -> ClientConfig {
        let mut reader = client.clone();
        reader
            .set("group.id", &self.group_id)
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("allow.auto.create.topics", "false")
            // The first offset is chosen by us; later, a lost range must be an error, not a jump.
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set("queued.min.messages", self.fetch_queue_records.to_string())
            .set("queued.max.messages.kbytes", self.fetch_queue_kib.to_string())
            // One answer never outgrows the queue, nor the 50 MiB that librdkafka asks for by itself.
            .set(
                "fetch.max.bytes",
                (self.fetch_queue_kib * 1_024).min(52_428_800).max(self.message_max_bytes).to_string(),
            )
            .set("fetch.wait.max.ms", self.fetch_wait_ms.to_string())
            // A full queue is looked at again soon: the default of a second starves a fast caller.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100");
        reader
    }

    /// Adds the settings of a producer.
    pub(super) fn producer(&self, client: &ClientConfig) -> ClientConfig {
        let mut producer = client.clone();
        producer
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", self.delivery_timeout_ms.to_string())
            .set("linger.ms", "2")
            .set("compression.type", self.compression.name())
            .set("queue.buffering.max.messages", self.send_queue_records.to_string())
            .set("queue.buffering.max.kbytes", self.send_queue_kib.to_string());
        producer
    }

    /// Adds the settings of a transactional producer.
    pub(super) fn writer(&self, client: &ClientConfig, transactional_id: &str) -> ClientConfig {
        let mut writer = self.producer(client);
        writer
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", self.transaction_timeout_ms.to_string());
        writer
    }

    /// The longest wait for an answer.
    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// The longest wait for all reports of an append.
    pub(super) fn delivery_timeout(&self) -> Duration {
        Duration::from_millis(self.delivery_timeout_ms)
    }

    /// The longest life of a transaction.
    pub(super) fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.transaction_timeout_ms)
    }
}

impl Security {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let (encrypted, authenticated) = (self.protocol.encrypted(), self.protocol.authenticated());
        require(
            !encrypted || cfg!(feature = "tls"),
            "kafka.security.protocol asks for TLS, and this program was built without it: build with the feature tls",
        );
        require(
            !authenticated || self.mechanism == Mechanism::Plain || cfg!(feature = "tls"),
            "kafka.security.mechanism SCRAM needs a program that was built with the feature tls",
        );
        require(
            !authenticated || encrypted || self.allow_plaintext_sasl,
            "kafka.security.protocol sasl_plaintext sends passwords in the open: use sasl_ssl, or set allow_plaintext_sasl",
        );
        require(
            authenticated == (self.username.is_some() && self.password.is_some()),
            "kafka.security.username and password go with a protocol sasl_plaintext or sasl_ssl, both of them",
        );
        require(
            authenticated || (self.username.is_none() && self.password.is_none()),
            "kafka.security.username and password are set, but the protocol doesn't use them",
        );
        let files = [&self.ca_file, &self.certificate_file, &self.key_file];
        require(
            encrypted || files.iter().all(|file| file.is_none()),
            "kafka.security: files are named, but the protocol doesn't encrypt: use ssl or sasl_ssl",
        );
        require(
            self.certificate_file.is_some() == self.key_file.is_some(),
            "kafka.security.certificate_file and key_file go together",
        );
        require(
            self.key_password.is_none() || self.key_file.is_some(),
            "kafka.security.key_password is set without key_file",
        );
        problems
    }

    /// The only place where authentication meets librdkafka.
    fn apply(&self, client: &mut ClientConfig) -> Result<()> {
        client.set("security.protocol", self.protocol.name());
        if self.protocol.encrypted() {
            client.set("ssl.endpoint.identification.algorithm", "https");
            for (key, file) in [
                ("ssl.ca.location", &self.ca_file),
                ("ssl.certificate.location", &self.certificate_file),
                ("ssl.key.location", &self.key_file),
            ] {
                if let Some(file) = file {
                    client.set(key, file.display().to_string());
                }
            }
            if let Some(secret) = &self.key_password {
                client.set("ssl.key.password", secret.resolve("kafka.security.key_password")?.expose());
            }
        }
        if self.protocol.authenticated() {
            client.set("sasl.mechanisms", self.mechanism.name());
            if let Some(username) = &self.username {
                client.set("sasl.username", username);
            }
            if let Some(secret) = &self.password {
                client.set("sasl.password", secret.resolve("kafka.security.password")?.expose());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn good() -> Config {
        Config { bootstrap_servers: vec!["127.0.0.1:9092".into()], ..Config::default() }
    }

    #[test]
    fn the_defaults_need_only_a_broker() {
        assert_eq!(good().problems(), Vec::<String>::new());
        assert_eq!(Config::default().problems().len(), 1);
        let client = good().client().unwrap();
        let writer = good().writer(&client, "job");
        assert_eq!(writer.get("acks"), Some("all"));
        assert_eq!(good().reader(&client).get("isolation.level"), Some("read_committed"));
    }

    #[test]
    fn librdkafka_takes_every_setting() {
        let config = good();
        let client = config.client().unwrap();
        for built in [&config.reader(&client), &config.producer(&client), &config.writer(&client, "job")] {
            built.create_native_config().unwrap();
        }
        for compression in
            [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
        {
            Config { compression, ..good() }.producer(&client).create_native_config().unwrap();
        }
    }

    #[test]
    fn each_problem_is_named_by_its_key() {
        type Change = fn(&mut Config);
        let table: [(&str, Change); 10] = [
            ("bootstrap_servers", |c| c.bootstrap_servers = vec!["a:1,b:2".into()]),
            ("group_id", |c| c.group_id.clear()),
            ("delivery_timeout_ms", |c| c.delivery_timeout_ms = c.transaction_timeout_ms + 1),
            ("request_timeout_ms", |c| c.request_timeout_ms = c.transaction_timeout_ms),
            ("message_max_bytes", |c| c.message_max_bytes = 0),
            ("fetch_wait_ms", |c| c.fetch_wait_ms = 0),
            ("replication", |c| c.replication = Some(0)),
            ("allow_plaintext_sasl", |c| {
                c.security.protocol = Protocol::SaslPlaintext;
                c.security.mechanism = Mechanism::Plain;
                c.security.username = Some("u".into());
                c.security.password = Some(Secret::Env { env: "P".into() });
            }),
            ("password", |c| c.security.username = Some("u".into())),
            ("key_file", |c| c.security.certificate_file = Some("c.pem".into())),
        ];
        for (key, change) in table {
            let mut config = good();
            change(&mut config);
            let problems = config.problems();
            assert!(problems.iter().any(|problem| problem.contains(key)), "{key}: {problems:?}");
        }
        let mut tls = good();
        tls.security.protocol = Protocol::Ssl;
        assert_eq!(tls.problems().is_empty(), cfg!(feature = "tls"));
    }

    #[test]
    fn unknown_fields_and_inline_secrets_are_refused_without_being_repeated() {
        let parse = |text: &str| serde_json::from_str::<Config>(text);
        assert!(
            parse(r#"{"bootstrap_server": ["a:1"]}"#).unwrap_err().to_string().contains("bootstrap_server")
        );
        let inline = parse(r#"{"security": {"password": "hunter2"}}"#).unwrap_err().to_string();
        assert!(inline.contains("by reference") && !inline.contains("hunter2"), "{inline}");
        let config = parse(
            r#"{"bootstrap_servers": ["a:1"], "compression": "zstd", "security": {"protocol": "sasl_plaintext",
                "mechanism": "PLAIN", "username": "u", "password": {"env": "P"}, "allow_plaintext_sasl": true}}"#,
        )
        .unwrap();
        assert_eq!(config.problems(), Vec::<String>::new());
        assert_eq!(config.security.password, Some(Secret::Env { env: "P".into() }));
    }

    #[test]
    fn secrets_are_read_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let mut config = good();
        config.security = Security {
            protocol: Protocol::SaslPlaintext,
            mechanism: Mechanism::Plain,
            username: Some("u".into()),
            password: Some(Secret::File { file: file.clone() }),
            allow_plaintext_sasl: true,
            ..Security::default()
        };
        let client = config.client().unwrap();
        assert_eq!(client.get("sasl.password"), Some("hunter2"));
        let read = config.security.password.as_ref().unwrap().resolve("password").unwrap();
        for shown in [format!("{config:?}"), format!("{client:?}"), format!("{read:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(config.client().unwrap_err().to_string().contains("kafka.security.password"));
        std::fs::remove_file(&file).unwrap();
        assert!(config.client().unwrap_err().to_string().contains("kafka.security.password"));
        config.security.password = Some(Secret::Env { env: "ICTFLOW_TEST_NO_SUCH_VARIABLE".into() });
        assert!(config.client().unwrap_err().to_string().contains("ICTFLOW_TEST_NO_SUCH_VARIABLE"));
    }
}

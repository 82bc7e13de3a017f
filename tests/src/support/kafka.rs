//! A real Apache Kafka for the tests: one broker, KRaft, from Maven's jars, on loopback.
//!
//! Most tests use [`Broker::shared`], one broker a test process, and take topics of their own by
//! [`unique`]. Tests that kill or pause a broker start their own by [`Broker::start`].
//!
//! A broker never outlives its test: a small shell owns it, and kills it and removes its data when
//! the pipe from the test process closes, however that process ended.

use ictflow_connectors::kafka::{Config, Kafka};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a broker may take to answer after its start; a busy machine takes a while.
const START_LIMIT: Duration = Duration::from_secs(90);

/// How often a broker looks for transactions that exceeded their timeout, milliseconds: tests wait for it.
const OVERDUE_MS: u32 = 1_000;

/// The user of the listener that asks for a password.
pub const SASL_USER: &str = "ictflow";

/// Its password.
pub const SASL_PASSWORD: &str = "correct-horse";

/// The shell that owns a broker. It obeys lines, and its end of input is the broker's end.
const OWNER: &str = r#"
trap '' INT HUP
folder=$1; shift
pid=
while read -r word; do
    case $word in
    start) "$@" >>"$folder/broker.log" 2>&1 </dev/null & pid=$!; echo "$pid" ;;
    kill) kill -9 "$pid"; wait "$pid" 2>/dev/null; pid=; echo killed ;;
    pause) kill -STOP "$pid"; echo paused ;;
    resume) kill -CONT "$pid"; echo resumed ;;
    esac
done
[ -z "$pid" ] || { kill -9 "$pid"; wait "$pid"; } 2>/dev/null
rm -rf "$folder"
"#;

/// A running broker.
pub struct Broker {
    owner: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    ports: Ports,
    started_in: Duration,
}

#[derive(Clone, Copy)]
struct Ports {
    plain: u16,
    sasl: u16,
    controller: u16,
    /// TLS with SCRAM-SHA-512, and TLS that wants a client's certificate.
    encrypted: Option<(u16, u16)>,
}

impl Broker {
    /// The broker that the tests of this process share, started at the first call.
    ///
    /// # Panics
    /// Where it can't be started, with one line that says why.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Broker::start)
    }

    /// A broker of one's own.
    ///
    /// # Panics
    /// Where it can't be started, with one line that says why.
    pub fn start() -> Broker {
        Broker::start_as(false, OVERDUE_MS)
    }

    /// A broker of one's own that looks for overdue transactions as seldom as Kafka does by default. One that
    /// looks every second ends them while it still starts after a crash: Kafka 4.3.1 was then seen to record
    /// the abort and to write no marker of it, so that the successor's commit made the records visible.
    ///
    /// # Panics
    /// Where it can't be started, with one line that says why.
    pub fn start_default_pace() -> Broker {
        Broker::start_as(false, 10_000)
    }

    /// A broker of one's own that also has the listeners of [`Broker::scram_bootstrap`] and
    /// [`Broker::mutual_bootstrap`], with certificates made for it.
    ///
    /// # Panics
    /// Where it can't be started, with one line that says why.
    pub fn start_encrypted() -> Broker {
        Broker::start_as(true, OVERDUE_MS)
    }

    fn start_as(encrypted: bool, overdue_ms: u32) -> Broker {
        let libs = jars().join("libs");
        // A port that was free may be taken before the broker binds it: then others are tried.
        let mut failure = String::new();
        for _ in 0..3 {
            match Broker::try_start(&libs, encrypted, overdue_ms) {
                Ok(broker) => return broker,
                Err(problem) => failure = problem,
            }
        }
        panic!("no kafka broker could be started: {failure}");
    }

    fn try_start(libs: &Path, encrypted: bool, overdue_ms: u32) -> Result<Broker, String> {
        let begun = Instant::now();
        // The owner removes the folder, since a static is never dropped.
        let folder = tempfile::Builder::new()
            .prefix("ictflow-kafka-")
            .tempdir()
            .map_err(|error| format!("no temporary folder: {error}"))?
            .keep();
        if encrypted {
            certificates(&folder)?;
        }
        let ports = Ports::free(encrypted).map_err(|error| format!("no free port: {error}"))?;
        let properties = folder.join("server.properties");
        std::fs::write(&properties, ports.properties(&folder, overdue_ms))
            .map_err(|error| format!("write {}: {error}", properties.display()))?;
        let mut format = java(libs);
        let format = format
            .args([
                "kafka.tools.StorageTool",
                "format",
                "--ignore-formatted",
                "-t",
                "aWN0Zmxvdy10ZXN0cy0wMQ",
                "-c",
            ])
            .arg(&properties);
        if encrypted {
            format
                .arg("--add-scram")
                .arg(format!("SCRAM-SHA-512=[name={SASL_USER},password={SASL_PASSWORD}]"));
        }
        let formatted = format.output().map_err(|error| format!("run java: {error}"))?;
        if !formatted.status.success() {
            return Err(format!("format its storage: {}", String::from_utf8_lossy(&formatted.stderr)));
        }
        let server = java(libs);
        let mut owner = Command::new("sh")
            .args(["-c", OWNER, "owner"])
            .arg(&folder)
            .arg(server.get_program())
            .args(server.get_args())
            .arg("kafka.Kafka")
            .arg(&properties)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("run sh: {error}"))?;
        let orders = owner.stdin.take();
        let answers = owner.stdout.take().ok_or("the owner has no output")?;
        let mut broker = Broker {
            owner,
            orders,
            answers: BufReader::new(answers),
            folder,
            ports,
            started_in: Duration::ZERO,
        };
        broker.run()?;
        broker.started_in = begun.elapsed();
        Ok(broker)
    }

    /// The address for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// The address of the listener that asks for [`SASL_USER`] and [`SASL_PASSWORD`], in the open.
    pub fn sasl_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.sasl)
    }

    /// The address of the listener that speaks TLS and asks for [`SASL_USER`] and
    /// [`SASL_PASSWORD`] by SCRAM-SHA-512; its certificate is for 127.0.0.1 alone.
    ///
    /// # Panics
    /// Where the broker wasn't started by [`Broker::start_encrypted`].
    pub fn scram_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.encrypted.expect("an encrypted broker").0)
    }

    /// The address of the listener that speaks TLS and wants a certificate of the client.
    ///
    /// # Panics
    /// Where the broker wasn't started by [`Broker::start_encrypted`].
    pub fn mutual_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.encrypted.expect("an encrypted broker").1)
    }

    /// A file that [`Broker::start_encrypted`] made: `ca.pem`, `client.pem`, `client.key` (its
    /// password is [`SASL_PASSWORD`]), and `stranger.pem`, an authority that signed nothing here.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// How long the start took, storage and all.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// The connector's config for this broker, with timeouts that suit a test.
    pub fn config(&self) -> Config {
        Config { bootstrap_servers: vec![self.bootstrap()], ..Config::default() }
    }

    /// The connector on this broker.
    ///
    /// # Panics
    /// Where it doesn't connect.
    pub fn connect(&self) -> Kafka {
        Kafka::connect(self.config()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Settings of a raw client, for what the connector doesn't do.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.bootstrap());
        client
    }

    /// Deletes the records of a topic below these offsets, one a partition, as retention or an owner does.
    /// A compacted topic is made one that deletes first: the broker refuses it otherwise.
    ///
    /// # Panics
    /// Where the broker refuses.
    pub fn forget(&self, topic: &str, below: &[i64]) {
        let admin: AdminClient<DefaultClientContext> =
            self.client().create().unwrap_or_else(|error| panic!("create an admin client: {error}"));
        let settings = AlterConfig::new(ResourceSpecifier::Topic(topic))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1");
        let mut offsets = TopicPartitionList::new();
        for (partition, below) in below.iter().enumerate() {
            offsets
                .add_partition_offset(topic, partition as i32, Offset::Offset(*below))
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let options = AdminOptions::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|error| panic!("{error}"));
        let altered = runtime.block_on(admin.alter_configs([&settings], &options));
        for answer in altered.unwrap_or_else(|error| panic!("alter {topic}: {error}")) {
            answer.unwrap_or_else(|(_, code)| panic!("alter {topic}: {code}"));
        }
        // The altered settings reach the log a moment after the answer: until then the broker refuses.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let deleted = runtime.block_on(admin.delete_records(&offsets, &options));
            let deleted = deleted.unwrap_or_else(|error| panic!("delete records of {topic}: {error}"));
            let refused = deleted.elements().into_iter().find_map(|element| element.error().err());
            match refused {
                None => return,
                Some(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PolicyViolation)
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Some(error) => panic!("delete records of {topic}: {error}"),
            }
        }
    }

    /// Kills the broker as a crash does, its data kept.
    pub fn kill(&mut self) {
        self.order("kill").unwrap_or_else(|problem| panic!("kill the broker: {problem}"));
    }

    /// Stops the broker's process without ending it: connections stay open and nobody answers.
    pub fn pause(&mut self) {
        self.order("pause").unwrap_or_else(|problem| panic!("pause the broker: {problem}"));
    }

    /// Lets a paused broker go on.
    pub fn resume(&mut self) {
        self.order("resume").unwrap_or_else(|problem| panic!("resume the broker: {problem}"));
    }

    /// Starts a killed broker again on its data and ports, and waits until it answers.
    pub fn restart(&mut self) {
        self.run().unwrap_or_else(|problem| panic!("start the broker again: {problem}"));
    }

    /// Starts the process and waits until it answers.
    fn run(&mut self) -> Result<(), String> {
        self.order("start")?;
        let deadline = Instant::now() + START_LIMIT;
        let probe: BaseConsumer = self
            .client()
            .set("log_level", "0")
            .create()
            .map_err(|error| format!("create a client: {error}"))?;
        while Instant::now() < deadline {
            if probe
                .fetch_metadata(None, Duration::from_millis(500))
                .is_ok_and(|metadata| metadata.brokers().len() == 1)
            {
                return Ok(());
            }
            let log = self.log();
            if log.contains("Exiting Kafka due to fatal exception")
                || log.contains("Could not find or load main class")
            {
                return Err(last_lines(&log));
            }
        }
        Err(format!("it didn't answer in {START_LIMIT:?}: {}", last_lines(&self.log())))
    }

    fn order(&mut self, word: &str) -> Result<(), String> {
        let orders = self.orders.as_mut().ok_or("the owner is gone")?;
        writeln!(orders, "{word}").and_then(|()| orders.flush()).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer) {
            Ok(0) => Err("the owner ended".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The broker's own log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("broker.log")).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.owner.wait();
    }
}

impl Ports {
    fn free(encrypted: bool) -> std::io::Result<Ports> {
        // All are held until all are known, so that they differ.
        let held = (0..5).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
        let port = |at: usize| held[at].local_addr().map(|address| address.port());
        let encrypted = if encrypted { Some((port(3)?, port(4)?)) } else { None };
        Ok(Ports { plain: port(0)?, sasl: port(1)?, controller: port(2)?, encrypted })
    }

    fn properties(self, folder: &Path, overdue_ms: u32) -> String {
        let Ports { plain, sasl, controller, encrypted } = self;
        let data = folder.join("data");
        let data = data.display();
        let (listeners, protocols, settings) = encrypted.map_or_else(Default::default, |(scram, mutual)| {
            let folder = folder.display();
            (
                format!(",SCRAM://127.0.0.1:{scram},MUTUAL://127.0.0.1:{mutual}"),
                ",SCRAM:SASL_SSL,MUTUAL:SSL".to_owned(),
                format!(
                    "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.mutual.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
"
                ),
            )
        });
        format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl}{listeners}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT{protocols}
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_{SASL_USER}=\"{SASL_PASSWORD}\";
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
transaction.abort.timed.out.transaction.cleanup.interval.ms={overdue_ms}
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.backoff.ms=500
log.segment.delete.delay.ms=1000
log.initial.task.delay.ms=1000
{settings}"
        )
    }
}

/// Makes an authority, a server's certificate for 127.0.0.1, a client's, and an authority that
/// signs nothing.
fn certificates(folder: &Path) -> Result<(), String> {
    let script = r#"
set -e
cd "$1"
authority() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$1" -keyout "$1.key" -out "$1.pem"
}
signed() {
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "$1.plain.key" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out "$1.pem"
}
authority ca
authority stranger
echo "subjectAltName=IP:127.0.0.1" >names
signed server
signed client
# The broker reads one file, key first, in PKCS 8.
openssl pkcs8 -topk8 -nocrypt -in server.plain.key -out server.key
cat server.key server.pem >joined && mv joined server.pem
openssl rsa -aes256 -passout "pass:$2" -in client.plain.key -out client.key
"#;
    let made = Command::new("sh")
        .args(["-c", script, "certificates"])
        .arg(folder)
        .arg(SASL_PASSWORD)
        .output()
        .map_err(|error| format!("run sh: {error}"))?;
    if made.status.success() {
        return Ok(());
    }
    Err(format!("make certificates with openssl: {}", last_lines(&String::from_utf8_lossy(&made.stderr))))
}

/// Java with the jars, and settings that make a small broker start soon.
fn java(libs: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .arg("-cp")
        .arg(libs.join("*"));
    java
}

/// The folder of the jars, brought by `deploy/kafka-jars.sh`.
///
/// # Panics
/// With the script's own line where it fails.
pub fn jars() -> &'static Path {
    static JARS: OnceLock<PathBuf> = OnceLock::new();
    JARS.get_or_init(|| {
        let output = Command::new(root().join("deploy/kafka-jars.sh"))
            .output()
            .unwrap_or_else(|error| panic!("run deploy/kafka-jars.sh: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}

/// The repository's folder.
pub fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// A name that no other test of this process uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a Java program of one file with Kafka's jars; `input` is its standard input. Returns its
/// output.
///
/// # Panics
/// Where it fails, with its error output.
pub fn run_java(source: &Path, args: &[&str], input: &str) -> String {
    let mut child = Command::new("java")
        .args(["-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-cp"])
        .arg(jars().join("libs/*"))
        .arg(source)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("run java: {error}"));
    // The input is small: it fits the pipe.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("write to java: {error}"));
    }
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("wait for java: {error}"));
    assert!(output.status.success(), "java failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Debian's kcat, an independent client.
///
/// # Panics
/// Where it isn't installed, with the script that brings it.
pub fn kcat(broker: &Broker) -> Command {
    let found = Command::new("kcat").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(found.is_ok_and(|status| status.success()), "kcat isn't there: run deploy/test-tools.sh");
    let mut kcat = Command::new("kcat");
    kcat.args(["-b", &broker.bootstrap()]);
    kcat
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

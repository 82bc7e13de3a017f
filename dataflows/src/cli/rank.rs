//! `ictflow rank`: the reference consumer of the feature topic.

use super::Store;
use super::run::stop_flag;
use crate::config::checked::Config;
use crate::explain::job_of_outputs;
use crate::rank::print;
use crate::rank::publish::Publisher;
use crate::rank::ranker::Ranker;
use crate::rank::ranking::{Ranking, rankings};
use crate::rank::shortfalls::Shortfalls;
use crate::rank::subscription::{Options, Subscription};
use clap::Args;
use ictflow_connectors::{Disposition, Error, Result, clock};
use ictflow_schemas::Id;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a turn waits for new vectors.
const WAIT: Duration = Duration::from_millis(200);

/// How often all vectors are looked through for what the ranker doesn't find in them.
const LOOKED_THROUGH: Duration = Duration::from_secs(10);

/// Options of `rank`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads committed records only, from the beginning of the topic that the job publishes its features on now, and\n\
        follows a promote or a rollback. Keeps the newest vector of each live pair of the users asked for. Items and\n\
        text vectors come from the job's items and embeddings; the user's labels, votes and vector from the record.\n\n\
        vector age: since the record was published. event age: since the newest event of its history. Both by this\n\
        machine's clock.\n\n\
        A line of --json: user, live (pairs), ranker (SHA-256 of the file), ranked: item, title, score (probability of\n\
        a positive label), vector_age_ms, event_age_ms, cot_status, k, epoch, ict_weights.\n\n\
        A value of --publish: schemas/wire/rankings.v1.avsc as single-object Avro, never framed by a schema registry;\n\
        key: the raw user id, on the user's partition; null where the user has no live pair any more."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// The ranker: ranker.safetensors as `ictflow train` writes it.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Rank this user's live pairs; may be given several times.
    #[arg(long, value_name = "ID", required_unless_present = "all")]
    user: Vec<String>,
    /// Rank the live pairs of every user.
    #[arg(long, conflicts_with = "user")]
    all: bool,
    /// The items of a list.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    top: usize,
    /// Go on, and give a user's list again when it or one of its vectors has changed.
    #[arg(long, short)]
    follow: bool,
    /// Write the lists to this topic instead of printing them; it is made where it doesn't exist.
    #[arg(long, value_name = "TOPIC", conflicts_with = "json")]
    publish: Option<String>,
    /// Print each list as one line of JSON.
    #[arg(long)]
    json: bool,
    /// The most live pairs that are kept, about 200 B and the vector each; more end the command.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max_pairs: usize,
}

/// Ranks.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let ranker = Ranker::read(&arguments.model)?;
    let config = arguments.store.config()?;
    if let Some(topic) = &arguments.publish
        && config.options.names.roles().contains_key(topic)
    {
        return Err(Error::fatal(
            "publish lists",
            format!("{topic} is a topic of the job"),
            "name a topic of its own: --publish rankings",
        ));
    }
    // Signals end a list after a whole line, and nothing else is under way.
    let stop = stop_flag()?;
    let mut subscription = open(arguments, &config, &ranker)?;
    let mut lists = Lists::new(arguments, &ranker);
    if let Some(topic) = &arguments.publish {
        let features = subscription.topic().to_owned();
        let partitions = subscription.topics().partitions(&features)?.unwrap_or(1);
        let place = (partitions, config.semantics.partitioner);
        lists.publisher = Some(Publisher::open(subscription.topics(), topic, place, &ranker.version)?);
    }
    lists.give_all(&mut subscription)?;
    while arguments.follow && lists.open && !stop.load(Ordering::Relaxed) {
        let error = match lists.follow(&mut subscription, &stop) {
            Ok(()) => break,
            Err(error) => error,
        };
        let Disposition::Retry { after } = error.disposition else { return Err(error) };
        eprintln!("rank: {error}; reading from the beginning again in {} s", after.as_secs_f32());
        subscription = again(arguments, &config, &ranker, (after, &*stop))?;
        lists.give_all(&mut subscription)?;
    }
    lists.finish(&subscription);
    Ok(())
}

/// Opens a subscription anew, until the store answers.
fn again(
    arguments: &Arguments,
    config: &Config,
    ranker: &Ranker,
    (mut after, stop): (Duration, &AtomicBool),
) -> Result<Subscription> {
    loop {
        let until = Instant::now() + after;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        match open(arguments, config, ranker) {
            Ok(subscription) => return Ok(subscription),
            Err(error) => match error.disposition {
                Disposition::Retry { after: next } if !stop.load(Ordering::Relaxed) => after = next,
                _ => return Err(error),
            },
        }
    }
}

/// Reads the job's topics to their ends.
fn open(arguments: &Arguments, config: &Config, ranker: &Ranker) -> Result<Subscription> {
    let mut topics = config.topics_of_consumer(arguments.publish.is_some())?;
    let names = config.options.names.clone();
    // A state folder alone doesn't say the job's name; its topics do.
    let job = match arguments.store.config {
        Some(_) => Some(config.options.job.clone()),
        None => job_of_outputs(&mut *topics, &names)?,
    };
    let users = (!arguments.all).then(|| arguments.user.iter().cloned().collect::<HashSet<String>>());
    let options = Options {
        job,
        items: config.formats().get(&Topic::Items).copied().unwrap_or(Format::Avro),
        semantics: config.semantics.clone(),
        encoder: ranker.encoder(),
        users,
        most: arguments.max_pairs,
        names,
    };
    Subscription::open(topics, options)
}

/// The lists that were given, and where they go.
struct Lists<'a> {
    arguments: &'a Arguments,
    ranker: &'a Ranker,
    publisher: Option<Publisher>,
    /// The last list of each user, while changes are followed.
    given: HashMap<Id, Ranking>,
    /// Warnings that were told.
    told: HashSet<String>,
    looked_through: Option<Instant>,
    /// Whether somebody reads standard output.
    open: bool,
}

impl<'a> Lists<'a> {
    fn new(arguments: &'a Arguments, ranker: &'a Ranker) -> Self {
        Lists {
            arguments,
            ranker,
            publisher: None,
            given: HashMap::new(),
            told: HashSet::new(),
            looked_through: None,
            open: true,
        }
    }

    /// The users whose list was given or stands on the topic, and those with live pairs; or those asked for.
    fn users(&self, subscription: &Subscription) -> BTreeSet<Id> {
        if !self.arguments.all {
            return self.arguments.user.iter().map(|user| Id::from(user.as_str())).collect();
        }
        let published = self.publisher.iter().flat_map(Publisher::users);
        let given = self.given.keys().cloned();
        subscription.view.users().into_iter().chain(published).chain(given).collect()
    }

    /// Gives the lists of all users; while changes are followed only those that are others than before.
    fn give_all(&mut self, subscription: &mut Subscription) -> Result<()> {
        self.warn(subscription);
        let users = self.users(subscription);
        self.give(subscription, users)
    }

    /// Gives lists as vectors change, until a signal or until nobody reads them.
    fn follow(&mut self, subscription: &mut Subscription, stop: &AtomicBool) -> Result<()> {
        while self.open && !stop.load(Ordering::Relaxed) {
            let touched = subscription.turn(WAIT)?;
            if touched.switched {
                eprintln!("rank: the job publishes on {} now", subscription.topic());
            }
            let users = match touched.switched || touched.catalog {
                true => self.users(subscription),
                false => touched.users,
            };
            if users.is_empty() {
                continue;
            }
            if touched.switched || self.looked_through.is_none_or(|at| at.elapsed() >= LOOKED_THROUGH) {
                self.warn(subscription);
            }
            self.give(subscription, users)?;
        }
        Ok(())
    }

    /// Gives the lists of some users, but for those that are as before.
    fn give(&mut self, subscription: &mut Subscription, users: BTreeSet<Id>) -> Result<()> {
        let users: Vec<Id> = users.into_iter().collect();
        let Lists { arguments, ranker, publisher, given, .. } = self;
        let (topics, view, catalog) = subscription.parts();
        let mut out = std::io::stdout().lock();
        let mut written = Ok(());
        rankings(ranker, (view, catalog), &users, arguments.top, |ranking| {
            let now = clock::now_ms();
            if arguments.follow && given.get(&ranking.user) == Some(&ranking) {
                return Ok(true);
            }
            match publisher.as_mut() {
                Some(publisher) => publisher.take(&mut *topics, &ranking, now)?,
                None if arguments.json => {
                    written = writeln!(out, "{}", print::line(&ranking, &ranker.version, now));
                }
                None => written = out.write_all(print::text(&ranking, now).as_bytes()),
            }
            if arguments.follow {
                given.insert(ranking.user.clone(), ranking);
            }
            Ok(written.is_ok())
        })?;
        if let Some(publisher) = publisher.as_mut() {
            publisher.flush(&mut *topics)?;
        }
        match written.and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // A reader like `head` that has seen enough ends the command, not in an error.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.open = false;
                Ok(())
            }
            Err(error) => {
                Err(Error::fatal("write to standard output", error, "lines are missing: is the disk full?"))
            }
        }
    }

    /// Tells what the ranker doesn't find in the vectors, each once.
    fn warn(&mut self, subscription: &Subscription) {
        self.looked_through = Some(Instant::now());
        let found = Shortfalls::of(self.ranker, &subscription.view, &subscription.catalog);
        for (name, text) in found.warnings(self.ranker) {
            if self.told.insert(name) {
                eprintln!("warning: {text}");
            }
        }
    }

    /// Says what was read.
    fn finish(&self, subscription: &Subscription) {
        let counts = subscription.view.counts;
        eprintln!(
            "rank: {} live pairs by {} (ranker {}); read {} vectors, {} tombstones, {} duplicates, {} unreadable, {} of others",
            subscription.view.len(),
            self.ranker.kind().name(),
            self.ranker.version.get(..12).unwrap_or_default(),
            counts.upserts,
            counts.tombstones,
            counts.duplicates,
            counts.unreadable,
            counts.foreign
        );
        if let Some(publisher) = &self.publisher {
            eprintln!("rank: published {} lists and {} tombstones", publisher.lists, publisher.tombstones);
        }
    }
}

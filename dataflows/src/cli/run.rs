//! `ictflow run`: a job until it is stopped, or until its input is done.

use super::Store;
use super::supervise::Supervisor;
use crate::config::checked::{Config, InputFiles};
use crate::conformance;
use crate::copies::{Copies, Target};
use crate::demo;
use crate::job::{Job, Started, Totals, outputs};
use crate::progress::Reporter;
use crate::requester::IDLE;
use crate::status::Observer;
use crate::summary::Summary;
use crate::weights::Watcher;
use clap::Args;
use ictflow_connectors::{Error, Result, telemetry};
use ictflow_schemas::topic::Topic;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Options of `run`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// JSON Lines of interactions, in the place of a topic; - reads standard input.
    #[arg(long, value_name = "FILE", requires = "items")]
    interactions: Option<PathBuf>,
    /// JSON Lines of items; - reads standard input.
    #[arg(long, value_name = "FILE", requires = "interactions")]
    items: Option<PathBuf>,
    /// JSON Lines of candidate sets; - reads standard input.
    #[arg(long, value_name = "FILE", requires = "interactions")]
    candidates: Option<PathBuf>,
    /// Copy the features to this file, in the form that `tail` prints; - writes to standard output what
    /// this run commits. A file goes on where it ended.
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Copy the examples likewise.
    #[arg(long, value_name = "FILE")]
    examples: Option<PathBuf>,
    /// Copy the dead letters likewise.
    #[arg(long, value_name = "FILE")]
    dead_letters: Option<PathBuf>,
    /// Go on reading files that are still being written.
    #[arg(long, requires = "interactions")]
    follow: bool,
    /// Use the deterministic template in the place of the LLM, and hashed vectors in the place of the
    /// encoder: fast, for a first look at your own data.
    #[arg(long, requires = "interactions")]
    dry: bool,
    /// Go on although records are gone that the job's state rests on, and put the loss on record.
    #[arg(long)]
    accept_truncated: bool,
    /// Stop when all input is committed and every wanted CoT is answered.
    #[arg(long)]
    until_idle: bool,
    /// Serve metrics, probes and the status page here (host:port, or off), in the place of [telemetry]
    /// listen. Over files it is off by default.
    #[arg(long)]
    listen: Option<String>,
    /// Which process of [cluster] this is. 0, the default, is the coordinator, which runs the job; another
    /// one only hosts workers, until the coordinator ends.
    #[arg(long, value_name = "N", default_value_t = 0)]
    process: usize,
    /// Write the job's figures to this file at the end.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

impl Arguments {
    /// The configuration, and whether it reads files.
    fn config(&self) -> Result<(Config, bool)> {
        let (Some(interactions), Some(items)) = (&self.interactions, &self.items) else {
            let config = match &self.store.config {
                // Without input files on the command line it runs on topics, whatever it ran on before.
                Some(path) => Config::read(path)?,
                None => self.store.config()?,
            };
            return Ok((config, false));
        };
        let files = InputFiles {
            interactions: interactions.clone(),
            items: items.clone(),
            candidates: self.candidates.clone(),
            follow: self.follow,
            dry: self.dry,
        };
        let raw = match (&self.store.config, &self.store.state) {
            (Some(path), _) => {
                let mut raw = Config::raw_of(path)?;
                if self.dry {
                    files.dry(&mut raw);
                }
                raw
            }
            (None, Some(state)) => {
                let mut raw = files.raw(state);
                raw.telemetry = telemetry::Config::off();
                raw
            }
            (None, None) => {
                return Err(Error::fatal(
                    "find the job",
                    "input files without a job",
                    "give --state DIR, or --config FILE",
                ));
            }
        };
        Ok((Config::check(raw, Some(files))?, true))
    }

    /// The outputs that are copied out.
    fn targets(&self) -> Vec<Target> {
        let wanted = [
            (Topic::Features, &self.features),
            (Topic::Examples, &self.examples),
            (Topic::DeadLetters, &self.dead_letters),
        ];
        let target =
            |(topic, path): (Topic, &Option<PathBuf>)| path.clone().map(|path| Target { topic, path });
        wanted.into_iter().filter_map(target).collect()
    }

    /// Refuses what a process that only hosts workers can't do.
    fn only_hosts(&self) -> Result<()> {
        let given = [
            ("--features", self.features.is_some()),
            ("--examples", self.examples.is_some()),
            ("--dead-letters", self.dead_letters.is_some()),
            ("--until-idle", self.until_idle),
            ("--listen", self.listen.is_some()),
            ("--summary", self.summary.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((option, _)) => Err(Error::fatal(
                "host workers",
                format!("{option} is for the coordinator, process 0"),
                "leave it out: a host writes and serves nothing",
            )),
        }
    }

    /// The input files, which no output may overwrite.
    fn inputs(&self) -> Vec<PathBuf> {
        [&self.interactions, &self.items, &self.candidates].into_iter().flatten().cloned().collect()
    }
}

/// A flag that SIGTERM and SIGINT raise: the job ends after the epoch under way.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // A second signal ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| Error::fatal("watch for signals", e, "does the platform allow handlers?"))?;
    }
    Ok(stop)
}

/// Runs the job.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let (mut config, files) = arguments.config()?;
    if arguments.process > 0 {
        arguments.only_hosts()?;
        return config.host(arguments.process);
    }
    config.options.cluster = config.cluster();
    config.listen(arguments.listen.as_deref())?;
    let targets = arguments.targets();
    Copies::check(&targets, &arguments.inputs())?;
    let until_idle = arguments.until_idle || (files && !arguments.follow);
    let started = Instant::now();
    let mut observer = Observer::start(&config.telemetry, &config.options.job)?;
    tell_address(&observer);
    // Standard input is read and models are loaded here: a signal meanwhile ends the process at once, for
    // nothing is under way yet.
    let models = config.models()?;
    let mut parts = config.parts_with(&models)?;
    let stop = stop_flag()?;
    let names = match targets.is_empty() {
        true => config.options.names.clone(),
        false => outputs::active(&mut *parts.topics, &config.options.names, Some(&config.options.job))?,
    };
    conformance::before_a_new_job(&config, &mut *parts.topics)?;
    let mut copies = Copies::open(&targets, &mut *parts.topics, &names)?;
    config.options.accept_truncated = arguments.accept_truncated;
    let mut reporter = Reporter::new("run");
    let mut watcher = config.watcher();
    let mut supervisor = Supervisor::new(config.restarts, &stop);
    // What the jobs before a new start committed.
    let mut earlier = Totals::default();
    let mut parts = Some(parts);
    let (mut job, mut open) = loop {
        let start = |parts| {
            let (semantics, options) = (config.semantics.clone(), config.options.clone());
            Job::start_unless(parts, semantics, options, &stop, |job| observer.replayed(job))
        };
        // A store that can't be opened at the first time is told at once.
        let opened = parts.take().map_or_else(|| config.parts_with(&models), Ok);
        let (error, failed) = match opened.and_then(start) {
            Ok(Started::Running(job)) => {
                let mut job = *job;
                if !targets.is_empty() && *job.names() != names {
                    return Err(Error::fatal(
                        "copy the outputs",
                        "they were switched while the job started",
                        "start again; a copy of the outputs before needs another file",
                    ));
                }
                let mut turn = Turn {
                    config: &config,
                    stop: &stop,
                    until_idle,
                    earlier,
                    observer: &mut observer,
                    copies: &mut copies,
                    watcher: &mut watcher,
                    reporter: &mut reporter,
                };
                match turn.run(&mut job) {
                    Ok(open) => break (job, open),
                    Err(error) => (error, Some(job)),
                }
            }
            Ok(Started::Stopped { replayed, recorded }) => {
                eprintln!(
                    "run: stopped after {replayed} of {recorded} recorded epochs; nothing is lost, the next start replays them"
                );
                config.options.cluster.finish();
                return Ok(());
            }
            Err(error) => (error, None),
        };
        earlier = failed.as_ref().map_or(earlier, |failed| failed.totals().plus(earlier));
        if !supervisor.wait(error, failed, &mut observer)? {
            eprintln!("run: stopped while the job was stalled; nothing is lost, the next start goes on");
            config.options.cluster.finish();
            return Ok(());
        }
    };
    // Answers under way were paid for: they are waited for and journaled, for a while.
    job.drain(config.drain)?;
    job.snapshot();
    observer.finish(&mut job);
    if open {
        let totals = job.totals().plus(earlier);
        open = copies.finish(job.topics(), totals)?;
    }
    reporter.finish(&job);
    if !open {
        eprintln!("run: nobody reads standard output any more, stopped after epoch {}", job.committed());
    }
    let judged = job.judgements();
    let refused: Vec<String> =
        judged.dead_letters.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let refused = if refused.is_empty() { "none".to_owned() } else { refused.join(", ") };
    eprintln!(
        "run: {} of {} interactions accepted, {} seen before, dead letters: {refused}",
        judged.accepted, judged.interactions, judged.seen
    );
    let summary = Summary::of(&job, started.elapsed().as_secs_f64());
    if let Some(path) = &arguments.summary {
        demo::write_json(path, &summary)?;
    }
    // The workers end, then the hosts.
    drop(job);
    config.options.cluster.finish();
    Ok(())
}

/// How often an idle job asks whether it still stands.
const STANDING_EVERY: Duration = Duration::from_secs(5);

/// One run of a started job, until it is told to stop, is idle, or fails.
struct Turn<'a> {
    config: &'a Config,
    stop: &'a AtomicBool,
    until_idle: bool,
    earlier: Totals,
    observer: &'a mut Observer,
    copies: &'a mut Copies,
    watcher: &'a mut Option<Watcher>,
    reporter: &'a mut Reporter,
}

impl Turn<'_> {
    /// Steps the job. False where nobody reads standard output any more.
    fn run(&mut self, job: &mut Job) -> Result<bool> {
        self.observer.started(job);
        warn_untrained(job);
        self.copies.start(job.topics())?;
        let mut open = self.copies.copy(job.totals().plus(self.earlier))?;
        let (mut closed, mut asked) = (Instant::now(), Instant::now());
        let stopped = || self.stop.load(Ordering::Relaxed);
        while open && !stopped() {
            if let Some(watcher) = self.watcher.as_mut() {
                watcher.look(job);
                self.observer.models(watcher.figures);
            }
            if self.until_idle && job.idle()? {
                break;
            }
            // Input is gathered for an interval, so that a trickle doesn't make an epoch a record; the LLM
            // and the encoder don't wait for it.
            while closed.elapsed() < self.config.interval && !stopped() {
                job.journal()?;
                self.observer.turn();
                std::thread::sleep(IDLE);
            }
            let step = job.step(IDLE)?;
            if step.epoch.is_some() {
                (closed, asked) = (Instant::now(), Instant::now());
            } else if asked.elapsed() >= STANDING_EVERY {
                // An idle job learns of its successor by no commit.
                asked = Instant::now();
                if let Some(error) = job.fenced() {
                    return Err(error);
                }
            }
            self.observer.step(job, &step);
            open = self.copies.copy(job.totals().plus(self.earlier))?;
            self.reporter.report(job);
        }
        Ok(open)
    }
}

/// Says where the status page is, if anywhere.
pub fn tell_address(observer: &Observer) {
    if let Some(address) = observer.address() {
        eprintln!("the status page is http://{address}/, metrics are http://{address}/metrics");
    }
}

/// Says loudly that vectors of untrained weights carry no learned meaning.
pub fn warn_untrained(job: &Job) {
    if job.actives().ict_weights.starts_with("untrained-") {
        eprintln!(
            "warning: the ICT weights are untrained ({}): the vectors are exact, and no ranker gains by them yet",
            job.actives().ict_weights
        );
    }
}

//! Where and when it runs: the machine's facts, and what this process uses of it. Linux only.

use crate::Fallible;
use serde::Serialize;
use std::fmt;
use std::process::Command;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, GiB.
    pub memory_gib: f64,
    /// The load average over a minute at the start: above about 0.5 others were at work.
    pub load_at_start: f64,
    /// The vector level that the program was built for.
    pub built_for: &'static str,
    /// `RAYON_NUM_THREADS`, which bounds the threads of the models.
    pub model_threads: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Fallible<Self> {
        let load = std::fs::read_to_string("/proc/loadavg")?;
        Ok(Machine {
            cpu: ictflow_dataflows::machine::cpu(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: kib("/proc/meminfo", "MemTotal:")? / (1 << 20) as f64,
            load_at_start: load.split(' ').next().unwrap_or_default().parse()?,
            built_for: if cfg!(target_feature = "avx512f") {
                "x86-64-v4"
            } else if cfg!(target_feature = "avx2") {
                "x86-64-v3"
            } else {
                std::env::consts::ARCH
            },
            model_threads: std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "one a core".into()),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, {:.0} GiB, built for {}; load before the start {}",
            self.cpu, self.cores, self.memory_gib, self.built_for, self.load_at_start
        )
    }
}

/// A value in KiB from a file of lines `Name: value kB`.
fn kib(path: &str, name: &str) -> Fallible<f64> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value =
        line.and_then(|rest| rest.split_whitespace().next()).ok_or(format!("{path} has no {name}"))?;
    Ok(value.parse()?)
}

/// Memory of this process that no file backs, in bytes.
pub fn resident() -> Fallible<f64> {
    Ok(kib("/proc/self/status", "RssAnon:")? * 1024.0)
}

/// Seconds that the threads of this process, as far as they are alive, have been on a core.
pub fn cpu_seconds() -> Fallible<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    if nanoseconds == 0.0 {
        return Err("/proc/self/task/*/schedstat says nothing: the kernel keeps no times of threads".into());
    }
    Ok(nanoseconds / 1e9)
}

/// Now, UTC to the minute.
pub fn date() -> Fallible<String> {
    let minutes = ictflow_connectors::clock::now_ms().unsigned_abs() / 60_000;
    let (mut days, mut year) = (minutes / 1440, 1970);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    Ok(format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60 % 24, minutes % 60))
}

/// The commit of the checkout.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let out =
            Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        None => "unknown: no git".into(),
        Some(hash) => match git(&["status", "--porcelain", "--untracked-files=no"]).as_deref() {
            Some("") => hash,
            _ => format!("{hash}-dirty"),
        },
    }
}

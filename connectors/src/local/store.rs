//! The SQLite file: how it is opened, its tables, and what its failures mean.

use super::{BUSY_TIMEOUT, FORMAT_VERSION};
use crate::{Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// "ictf": tells our files from other SQLite databases.
const APPLICATION_ID: i32 = 0x6963_7466;

/// Larger pages than SQLite's 4 KiB keep most vectors and texts out of overflow pages.
const PAGE_BYTES: u32 = 8192;

/// Pages in the WAL before a commit also checkpoints it (32 MiB).
const CHECKPOINT_PAGES: u32 = 4096;

/// The WAL file is cut back to this after a checkpoint.
const WAL_BYTES: u32 = 64 << 20;

/// Page cache of one connection, in KiB.
const CACHE_KIB: u32 = 16 << 10;

const TABLES: &str = "
CREATE TABLE topics (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    partitions INTEGER NOT NULL CHECK (partitions > 0),
    policy     TEXT    NOT NULL
) STRICT;
CREATE TABLE records (
    topic     INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    \"offset\"  INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    key       BLOB,
    value     BLOB,
    headers   BLOB,
    PRIMARY KEY (topic, partition, \"offset\")
) STRICT, WITHOUT ROWID;
CREATE TABLE writers (
    id         TEXT    PRIMARY KEY,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE group_offsets (
    group_id  TEXT    NOT NULL,
    topic     TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    \"offset\"  INTEGER NOT NULL,
    PRIMARY KEY (group_id, topic, partition)
) STRICT, WITHOUT ROWID;
";

/// Whether a connection may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    Read,
}

/// The writers of one file in this process, so that they queue instead of polling SQLite's lock.
/// Other processes still meet at that lock.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Mutex<()>>);

impl Gate {
    fn of(path: &Path) -> Gate {
        static GATES: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = LazyLock::new(Default::default);
        let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
        Gate(gates.entry(path.to_owned()).or_default().clone())
    }

    pub(super) fn enter(&self) -> MutexGuard<'_, ()> {
        // A panic of another writer rolled its transaction back: nothing is half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens or creates the file for reading and writing. Also gives its absolute path and gate.
pub(super) fn open(path: &Path) -> Result<(Connection, PathBuf, Gate)> {
    let context = || format!("opening {}", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let hint = "choose a state folder that this user may write";
    std::fs::create_dir_all(folder).map_err(|error| Error::fatal(context(), error, hint))?;
    let folder = folder.canonicalize().map_err(|error| Error::fatal(context(), error, hint))?;
    let Some(name) = path.file_name() else {
        return Err(Error::fatal(context(), "the path names no file", "name a file, not a folder"));
    };
    let path = folder.join(name);
    let gate = Gate::of(&path);
    let connection = {
        let _guard = gate.enter();
        // Two processes that create the file at once may meet SQLITE_BUSY here, where SQLite
        // doesn't call its busy handler (the switch to WAL): try again for as long as it would.
        let start = Instant::now();
        loop {
            match connect(&path, Access::Write).and_then(|mut connection| {
                prepare(&mut connection, &path)?;
                Ok(connection)
            }) {
                Err(Error { disposition: crate::Disposition::Retry { .. }, .. })
                    if start.elapsed() < BUSY_TIMEOUT =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => break done?,
            }
        }
    };
    Ok((connection, path, gate))
}

/// A connection to a file that exists, set up but not checked.
pub(super) fn connect(path: &Path, access: Access) -> Result<Connection> {
    let context = || format!("opening {}", path.display());
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | match access {
            Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
            Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
        };
    let connection = Connection::open_with_flags(path, flags).map_err(|error| failure(context(), error))?;
    let set_up = || -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
        if access == Access::Write {
            // FULL: the WAL is on the disk when a commit returns.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
            connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
        }
        Ok(())
    };
    set_up().map_err(|error| failure(context(), error))?;
    Ok(connection)
}

/// Creates what a new file lacks; refuses files that aren't ours or are newer.
fn prepare(connection: &mut Connection, path: &Path) -> Result<()> {
    let failed = |error| failure(format!("opening {}", path.display()), error);
    if check(connection, path)? == Shape::Empty {
        connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(failed)?;
    }
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(Error::fatal(
            format!("opening {}", path.display()),
            format!("the journal mode stays {mode}"),
            "keep the state folder on a local disk: a write-ahead log needs shared memory",
        ));
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Another process may have created the tables since.
    if check(&transaction, path)? == Shape::Empty {
        transaction.execute_batch(TABLES).map_err(failed)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", FORMAT_VERSION).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing yet.
    Empty,
    /// Our tables.
    Ours,
}

/// Tells whether a file is empty or ours, else refuses it.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<Shape> {
    let context = || format!("opening {}", path.display());
    let failed = |error| failure(context(), error);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = number("application_id").map_err(failed)?;
    let version = number("user_version").map_err(failed)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if application == 0 && version == 0 && tables == 0 {
        return Ok(Shape::Empty);
    }
    if application != i64::from(APPLICATION_ID) {
        return Err(Error::fatal(
            context(),
            "it is a database of another program",
            "choose another file or state folder",
        ));
    }
    if version > i64::from(FORMAT_VERSION) {
        return Err(Error::fatal(
            context(),
            format!("its format is version {version}, this program reads up to version {FORMAT_VERSION}"),
            "use the newer ictflow that wrote it, or another state folder",
        ));
    }
    Ok(Shape::Ours)
}

/// A failure of SQLite before a commit, where nothing was written.
pub(super) fn failure(context: impl Into<String>, error: rusqlite::Error) -> Error {
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let hint = "another process holds the store: wait, or stop it";
            return Error::retry(Duration::from_secs(1), context, error, hint);
        }
        Some(ErrorCode::DiskFull) => "free space on the disk of the state folder",
        Some(ErrorCode::NotADatabase) => "it isn't a store of ictflow: choose another file",
        Some(ErrorCode::DatabaseCorrupt) => "restore the state folder from a copy, or start with a new one",
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            "check that the file exists and that this user may read and write it and its folder"
        }
        _ => "check the disk of the state folder",
    };
    Error::fatal(context, error, hint)
}

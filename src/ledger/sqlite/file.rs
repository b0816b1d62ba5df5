//! The files of a ledger folder: their names, their layout, and connections to them.
//!
//! `ledger.db` has what is summed up, `records-YYYY-MM-DD.db` the batches of one UTC day each. A day's file is made
//! when its first batch comes, and is never written again once there is a later one.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use accounting::{LedgerId, SealedBatch};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::facts;
use crate::ledger::store::{Head, StoreError};
use crate::ledger::times;

/// The layout of the files that this version writes. A later one must be refused: it may mean something else.
pub(super) const LAYOUT: u32 = 4;

/// The file with everything but batches.
pub(super) const LEDGER_FILE: &str = "ledger.db";

/// The file whose lock says that a process writes the folder.
const LOCK_FILE: &str = "lock";

/// Bytes of a page of the database: batches are long, and fewer, larger pages cost less.
const PAGE_SIZE: u32 = 8192;

/// Pages in the write-ahead log before they are moved into the file: 32 megabytes.
const CHECKPOINT_PAGES: u32 = 4000;

const META: &str = "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;";

/// Points go into `point` in the order of time, so that a whole fleet's points of a minute are one stretch of the
/// file. They are moved into `page` once its span is over, so that one device's history is a few rows.
const LEDGER_TABLES: &str = "
    CREATE TABLE device (id INTEGER PRIMARY KEY, name TEXT NOT NULL, groups BLOB NOT NULL,
        first_seen_us INTEGER NOT NULL, last_seen_us INTEGER NOT NULL, last_share_us INTEGER NOT NULL,
        best_difficulty REAL NOT NULL, address TEXT NOT NULL, user_agent TEXT NOT NULL, worker_name TEXT NOT NULL,
        device_id TEXT NOT NULL);
    CREATE TABLE device_group (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE upstream (id INTEGER PRIMARY KEY, name TEXT NOT NULL, account TEXT NOT NULL);
    CREATE TABLE sums (subject INTEGER PRIMARY KEY, sums BLOB NOT NULL);
    CREATE TABLE point (level INTEGER NOT NULL, start INTEGER NOT NULL, subject INTEGER NOT NULL,
        sums BLOB NOT NULL, PRIMARY KEY (level, start, subject)) WITHOUT ROWID;
    CREATE TABLE page (level INTEGER NOT NULL, subject INTEGER NOT NULL, start INTEGER NOT NULL,
        points BLOB NOT NULL, PRIMARY KEY (level, subject, start));
    CREATE INDEX page_age ON page (level, start);
    CREATE TABLE damage (set_aside TEXT NOT NULL, first_lost INTEGER NOT NULL, last_lost INTEGER, what TEXT NOT NULL);";

/// The index is for questions by time alone; batches come in its order, so it costs next to nothing.
const RECORD_TABLES: &str = "
    CREATE TABLE batch (number INTEGER PRIMARY KEY, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
        count INTEGER NOT NULL, previous BLOB NOT NULL, hash BLOB NOT NULL, payload BLOB NOT NULL);
    CREATE INDEX batch_time ON batch (last_us, first_us);";

/// The columns that [`batch_of`] reads.
pub(super) const BATCH_COLUMNS: &str = "number, first_us, last_us, count, previous, hash, payload";

/// Takes the folder for this process. The lock goes with the file that is returned, also when the process is killed.
pub(super) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(StoreError::disk(&path, "open the lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(StoreError::disk(&path, "take the lock")(error)),
    }
}

/// Which of the two kinds of files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ledger,
    Records,
}

/// Opens a file for writing; makes it when it does not exist yet, with `ledger` as what it belongs to.
pub(super) fn open_to_write(path: &Path, kind: Kind, ledger: LedgerId) -> Result<Connection, StoreError> {
    if !path.exists() {
        make(path, kind, ledger)?;
    }
    let connection = open_logged(path)?;
    check_layout(&connection, path)?;
    Ok(connection)
}

/// Makes a file under another name first, so that nobody ever meets one without its tables.
fn make(path: &Path, kind: Kind, ledger: LedgerId) -> Result<(), StoreError> {
    let failed = "make the file";
    let (folder, name) = (path.parent(), path.file_name().and_then(|name| name.to_str()));
    let (folder, name) = folder.zip(name).expect("every file has a plain name in a folder");
    let unfinished = folder.join(format!("new-{name}"));
    for ending in ["-shm", "-wal", "-journal", ""] {
        match fs::remove_file(format!("{}{ending}", unfinished.display())) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StoreError::disk(&unfinished, "remove an unfinished file")(error));
            }
            _ => {}
        }
    }
    let mut connection = open_logged(&unfinished)?;
    create(&mut connection, kind, ledger).map_err(StoreError::disk(path, failed))?;
    // The last connection to a file moves its log into it.
    connection.close().map_err(|(_, error)| StoreError::disk(path, failed)(error))?;
    fs::rename(&unfinished, path).map_err(StoreError::disk(path, failed))?;
    sync_folder(folder)
}

fn open_logged(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path).map_err(StoreError::disk(path, "open the file"))?;
    let pragmas = format!(
        "PRAGMA page_size = {PAGE_SIZE}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};"
    );
    connection.execute_batch(&pragmas).map_err(StoreError::disk(path, "open the file"))?;
    Ok(connection)
}

/// Makes the name of a new file durable, and not only what is in it.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(StoreError::disk(folder, "sync the folder"))
}

fn create(connection: &mut Connection, kind: Kind, ledger: LedgerId) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(META)?;
    match kind {
        Kind::Ledger => transaction.execute_batch(&[LEDGER_TABLES, facts::TABLES].concat())?,
        Kind::Records => transaction.execute_batch(RECORD_TABLES)?,
    }
    set_meta(&transaction, "layout", &LAYOUT.to_le_bytes())?;
    set_meta(&transaction, "ledger", &ledger.0)?;
    transaction.commit()
}

/// Opens a file for reading only; `None` when there is none.
pub(super) fn open_to_read(path: &Path) -> Result<Option<Connection>, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.table_exists(None, "meta")?;
        Ok(connection)
    });
    let connection = match opened {
        Ok(connection) => connection,
        Err(_) if !path.exists() => return Ok(None),
        Err(error) => open_unchanging(path).map_err(|_| StoreError::disk(path, "open the file")(error))?,
    };
    check_layout(&connection, path)?;
    Ok(Some(connection))
}

/// On a disk that cannot be written to, the engine can make no index of its log, and need not if there is no log.
pub(super) fn open_unchanging(path: &Path) -> rusqlite::Result<Connection> {
    let text = path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let log = PathBuf::from(format!("{}-wal", path.display()));
    if fs::metadata(log).is_ok_and(|log| log.len() > 0) {
        return Err(rusqlite::Error::InvalidPath(path.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(format!("file:{text}?immutable=1"), flags)?;
    connection.table_exists(None, "meta")?;
    Ok(connection)
}

fn check_layout(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let layout = meta(connection, "layout").map_err(StoreError::disk(path, "read the layout"))?;
    let layout = layout.and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    match layout {
        Some(LAYOUT) => Ok(()),
        Some(found) if found > LAYOUT => {
            Err(StoreError::Newer { path: path.to_owned(), found, known: LAYOUT })
        }
        Some(found) if found > 0 => {
            let what =
                format!("it is of the layout {found}, from before the first release: begin a new folder");
            Err(StoreError::damaged(path, what))
        }
        _ => Err(StoreError::damaged(path, "it does not say which layout it has")),
    }
}

/// The ledger that a file belongs to.
pub(super) fn ledger_of(connection: &Connection, path: &Path) -> Result<LedgerId, StoreError> {
    let id = meta(connection, "ledger").map_err(StoreError::disk(path, "read the ledger's id"))?;
    let id = id.and_then(|bytes| bytes.try_into().ok()).map(LedgerId);
    id.ok_or_else(|| StoreError::damaged(path, "it does not say which ledger it belongs to"))
}

pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut query = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    query.query_row([key], |row| row.get(0)).optional()
}

pub(super) fn set_meta(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    let mut change = connection.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?;
    change.execute(params![key, value]).map(drop)
}

/// A number and a hash in `meta`; [`Head::NONE`] when nothing was written yet.
pub(super) fn meta_head(connection: &Connection, key: &str) -> rusqlite::Result<Head> {
    let bytes = meta(connection, key)?.unwrap_or_default();
    let Some((number, hash)) = bytes.split_first_chunk::<8>() else { return Ok(Head::NONE) };
    let Ok(hash) = hash.try_into() else { return Ok(Head::NONE) };
    Ok(Head { number: accounting::BatchNumber(u64::from_le_bytes(*number)), hash })
}

pub(super) fn set_meta_head(connection: &Connection, key: &str, head: Head) -> rusqlite::Result<()> {
    let mut bytes = head.number.0.to_le_bytes().to_vec();
    bytes.extend_from_slice(&head.hash);
    set_meta(connection, key, &bytes)
}

/// One day's file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DayFile {
    /// Days since 1970.
    pub(super) day: u64,
    pub(super) path: PathBuf,
}

impl DayFile {
    /// The file of a day, whether it exists or not.
    pub(super) fn new(folder: &Path, day: u64) -> Self {
        let path = folder.join(format!("records-{}.db", times::day(day * times::DAY)));
        DayFile { day, path }
    }

    fn from_name(folder: &Path, name: &str) -> Option<Self> {
        let day = name.strip_prefix("records-")?.strip_suffix(".db")?;
        if day.len() != 10 {
            return None;
        }
        let day = times::parse(day).ok()? / 1_000_000 / times::DAY;
        Some(DayFile { day, path: folder.join(name) })
    }

    /// It and what the engine keeps beside it.
    pub(super) fn parts(&self) -> [PathBuf; 3] {
        let path = self.path.display();
        // The file itself last: without its log it would be an older state of itself.
        [format!("{path}-shm").into(), format!("{path}-wal").into(), self.path.clone()]
    }
}

/// The day files of a folder, oldest first.
pub(super) fn day_files(folder: &Path) -> Result<Vec<DayFile>, StoreError> {
    let failed = "list the folder";
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(StoreError::disk(folder, failed))? {
        let entry = entry.map_err(StoreError::disk(folder, failed))?;
        files.extend(entry.file_name().to_str().and_then(|name| DayFile::from_name(folder, name)));
    }
    files.sort();
    Ok(files)
}

/// The last batch of a day's file.
pub(super) fn last_of(connection: &Connection) -> rusqlite::Result<Option<SealedBatch>> {
    let query = format!("SELECT {BATCH_COLUMNS} FROM batch ORDER BY number DESC LIMIT 1");
    connection.query_row(&query, [], batch_of).optional()
}

/// A row with [`BATCH_COLUMNS`].
pub(super) fn batch_of(row: &Row<'_>) -> rusqlite::Result<SealedBatch> {
    Ok(SealedBatch {
        number: accounting::BatchNumber(row.get::<_, i64>(0)? as u64),
        first_us: row.get::<_, i64>(1)? as u64,
        last_us: row.get::<_, i64>(2)? as u64,
        count: row.get(3)?,
        previous: row.get(4)?,
        hash: row.get(5)?,
        payload: row.get(6)?,
    })
}

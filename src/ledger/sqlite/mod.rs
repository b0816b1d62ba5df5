//! The ledger in SQLite: one folder, no server.
//!
//! Batches go into one file a day, each with a commit of its own that is on the disk when it returns. Everything
//! else is in `ledger.db` and has a connection of its own, so that a rollup of the whole fleet and a batch do not
//! wait for each other. No transaction spans two files: a rollup says up to which batch it goes, and what came after
//! is read again from the batches.

mod facts;
mod file;
mod pages;
mod reader;
mod repair;
mod retention;
mod views;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use accounting::{LedgerId, SealedBatch, Subject};
use rand::RngCore;
use rand::rngs::OsRng;
use rusqlite::{Connection, OptionalExtension, params};
use stratum::{DeviceId, UpstreamId};

pub use reader::SqliteReader;
pub use views::SqliteViews;

use super::store::{Appended, Head, Opening, Reader, Retention, Store, StoreError};
use super::times;
use file::{DayFile, Kind};

/// The half that appends batches. Holds the folder's lock.
#[derive(Debug)]
pub struct SqliteStore {
    folder: PathBuf,
    ledger: LedgerId,
    /// Unknown after a failure, until it is read again.
    head: Option<Head>,
    current: Option<(DayFile, Connection)>,
    _lock: File,
}

impl SqliteStore {
    /// Opens the ledger in `folder` for writing, or makes it. A last day's file that is damaged is set aside, and
    /// what is whole of it goes on in a new one; [`Opening::damage`] says so.
    pub fn open(folder: &Path, retention: Retention) -> Result<(Self, SqliteViews, Opening), StoreError> {
        fs::create_dir_all(folder).map_err(StoreError::disk(folder, "make the folder"))?;
        let lock = file::lock(folder)?;
        let path = folder.join(file::LEDGER_FILE);
        let mut id = [0; 16];
        OsRng.fill_bytes(&mut id);
        let connection = file::open_to_write(&path, Kind::Ledger, LedgerId(id))?;
        let ledger = file::ledger_of(&connection, &path)?;
        repair::repair_last(folder, ledger, &connection)?;
        let (head, current) = (None, None);
        let mut store = SqliteStore { folder: folder.to_owned(), ledger, head, current, _lock: lock };
        store.open_last()?;
        let views = SqliteViews::new(folder.to_owned(), connection, retention);
        let opening = SqliteReader::open(folder)?.opening()?;
        Ok((store, views, opening))
    }

    /// Which ledger it is.
    pub fn ledger(&self) -> LedgerId {
        self.ledger
    }

    /// Finds the head, and opens the file that it is in.
    fn open_last(&mut self) -> Result<Head, StoreError> {
        if self.current.is_none()
            && let Some(last) = file::day_files(&self.folder)?.pop()
        {
            self.current = Some((last.clone(), self.open_day(&last)?));
        }
        let head = find_head(&self.folder)?;
        self.head = Some(head);
        Ok(head)
    }

    fn open_day(&self, day: &DayFile) -> Result<Connection, StoreError> {
        let connection = file::open_to_write(&day.path, Kind::Records, self.ledger)?;
        if file::ledger_of(&connection, &day.path)? != self.ledger {
            return Err(StoreError::Foreign { path: day.path.clone() });
        }
        Ok(connection)
    }

    /// A number that was written before.
    fn compare(&self, batch: &SealedBatch) -> Result<Appended, StoreError> {
        for day in file::day_files(&self.folder)?.iter().rev() {
            let Some(connection) = file::open_to_read(&day.path)? else { continue };
            let hash = connection
                .query_row("SELECT hash FROM batch WHERE number = ?1", [batch.number.0 as i64], |row| {
                    row.get::<_, [u8; 32]>(0)
                })
                .optional()
                .map_err(StoreError::disk(&day.path, "look for a batch"))?;
            match hash {
                Some(hash) if hash == batch.hash => return Ok(Appended::Already),
                Some(_) => {
                    return Err(StoreError::Conflict { path: self.folder.clone(), number: batch.number });
                }
                None => {}
            }
        }
        Err(StoreError::Gone { path: self.folder.clone(), number: batch.number })
    }

    fn insert(&mut self, batch: &SealedBatch) -> Result<(), StoreError> {
        // A clock that goes back must not bring the files out of the order of their batches.
        let last = self.current.as_ref().map_or(0, |(day, _)| day.day);
        let day = (batch.last_us / 1_000_000 / times::DAY).max(last);
        if self.current.is_none() || day != last {
            let file = DayFile::new(&self.folder, day);
            self.current = Some((file.clone(), self.open_day(&file)?));
        }
        let (file, connection) = self.current.as_ref().expect("it was just opened");
        let failed = |error| StoreError::disk(&file.path, "append a batch")(error);
        let mut insert = connection
            .prepare_cached(
                "INSERT INTO batch (number, first_us, last_us, count, previous, hash, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )
            .map_err(failed)?;
        insert
            .execute(params![
                batch.number.0 as i64,
                batch.first_us as i64,
                batch.last_us as i64,
                batch.count,
                batch.previous,
                batch.hash,
                batch.payload
            ])
            .map_err(failed)?;
        Ok(())
    }
}

impl Store for SqliteStore {
    fn append(&mut self, batch: &SealedBatch) -> Result<Appended, StoreError> {
        let head = match self.head {
            Some(head) => head,
            None => self.open_last()?,
        };
        if batch.number <= head.number {
            return self.compare(batch);
        }
        if batch.number != head.number.next() || batch.previous != head.hash {
            let path = self.folder.clone();
            return Err(StoreError::Gap { path, number: batch.number, head: head.number });
        }
        if let Err(error) = self.insert(batch) {
            // Whether it is there is only known once the file is read again.
            (self.head, self.current) = (None, None);
            return Err(error);
        }
        self.head = Some(Head { number: batch.number, hash: batch.hash });
        Ok(Appended::Written)
    }
}

/// The last batch of a folder, which also retention and damage leave a trace of.
fn find_head(folder: &Path) -> Result<Head, StoreError> {
    let mut head = Head::NONE;
    for day in file::day_files(folder)?.iter().rev() {
        let Some(connection) = file::open_to_read(&day.path)? else { continue };
        let last = file::last_of(&connection).map_err(StoreError::disk(&day.path, "read the last batch"))?;
        if let Some(last) = last {
            head = Head { number: last.number, hash: last.hash };
            break;
        }
    }
    let path = folder.join(file::LEDGER_FILE);
    let Some(connection) = file::open_to_read(&path)? else { return Ok(head) };
    for key in [REMOVED, WATERMARK] {
        let known = file::meta_head(&connection, key).map_err(StoreError::disk(&path, "read the head"))?;
        if known.number > head.number {
            head = known;
        }
    }
    Ok(head)
}

/// The key in `meta` of the last batch that retention removed.
const REMOVED: &str = "removed";

/// The key in `meta` of the last batch that is in the sums.
const WATERMARK: &str = "watermark";

/// The key in `meta` of the batch of the oldest share that waits for its answer.
const WAITING_FROM: &str = "waiting_from";

/// Subjects as the keys of rows: what kind in the upper half, which one in the lower.
fn subject_key(subject: Subject) -> i64 {
    let (kind, number) = match subject {
        Subject::Fleet => (0, 0),
        Subject::Untracked => (1, 0),
        Subject::Upstream(UpstreamId(number)) => (2, i64::from(number)),
        Subject::Group(accounting::GroupId(number)) => (3, i64::from(number)),
        Subject::Device(DeviceId(number)) => (4, i64::from(number)),
    };
    kind << 32 | number
}

/// The subject of a key; `None` when it is none.
fn subject_of(key: i64) -> Option<Subject> {
    let number = key as u32;
    let short = u16::try_from(number).ok();
    match (key >> 32, number) {
        (0, 0) => Some(Subject::Fleet),
        (1, 0) => Some(Subject::Untracked),
        (2, _) => short.map(|number| Subject::Upstream(UpstreamId(number))),
        (3, _) => short.map(|number| Subject::Group(accounting::GroupId(number))),
        (4, _) => Some(Subject::Device(DeviceId(number))),
        _ => None,
    }
}

//! Reads a ledger folder without ever writing into it, also while another process does.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use accounting::{
    BatchNumber, BlockRow, DeviceRow, EventRow, GroupId, LedgerId, Level, PackedSums, Point, SealedBatch,
    Subject, Sums,
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use stratum::{DeviceId, UpstreamId};

use super::facts;
use super::file::{self, DayFile};
use super::pages::{self, Points};
use super::{REMOVED, WAITING_FROM, WATERMARK, find_head, subject_key, subject_of};
use crate::ledger::store::{Batches, Damage, Opening, Reader, StoreError};
use crate::ledger::times;

/// Numbers of batches that are looked up at once.
const NUMBERS: i64 = 256;

/// A batch spans less than a second, unless a clock was set meanwhile: none spans more than this, in microseconds.
const LONGEST_BATCH: u64 = times::DAY * 1_000_000;

/// A reader with a connection of its own. Open as many as you like.
#[derive(Debug)]
pub struct SqliteReader {
    folder: PathBuf,
    path: PathBuf,
    ledger: Connection,
}

impl SqliteReader {
    /// Opens the ledger in `folder`.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(file::LEDGER_FILE);
        let absent = || StoreError::Absent { path: folder.to_owned() };
        let ledger = file::open_to_read(&path)?.ok_or_else(absent)?;
        Ok(SqliteReader { folder: folder.to_owned(), path, ledger })
    }

    /// The ledger's id.
    pub fn ledger(&self) -> Result<LedgerId, StoreError> {
        file::ledger_of(&self.ledger, &self.path)
    }

    fn failed(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
        move |error| StoreError::disk(&self.path, what)(error)
    }

    fn sums_of(&self, bytes: &[u8]) -> Result<Sums, StoreError> {
        accounting::decode_sums(bytes).map_err(|error| StoreError::damaged(&self.path, error.to_string()))
    }

    fn packed_sums(&self, bytes: &[u8]) -> Result<PackedSums, StoreError> {
        PackedSums::read(bytes).map_err(|error| StoreError::damaged(&self.path, error.to_string()))
    }

    fn rows<T>(
        &self,
        query: &str,
        parameters: impl rusqlite::Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let read = || {
            let mut query = self.ledger.prepare_cached(query)?;
            query.query_map(parameters, row)?.collect::<rusqlite::Result<Vec<T>>>()
        };
        read().map_err(self.failed("read the ledger"))
    }

    /// All that is read within sees one state.
    fn in_one_view<T>(&self, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if !self.ledger.is_autocommit() {
            // It is within one already.
            return read();
        }
        let transaction = self.ledger.unchecked_transaction().map_err(self.failed("read the ledger"))?;
        let found = read();
        // Nothing was written: its end is only the end of the view.
        drop(transaction);
        found
    }

    fn keyed_sums(&self, rows: Vec<(i64, Vec<u8>)>) -> Result<Vec<(Subject, PackedSums)>, StoreError> {
        let unknown = || StoreError::damaged(&self.path, "a subject is of an unknown kind");
        let decode = |(key, bytes): (i64, Vec<u8>)| {
            Ok((subject_of(key).ok_or_else(unknown)?, self.packed_sums(&bytes)?))
        };
        rows.into_iter().map(decode).collect()
    }

    fn edge(&self, level: Level, order: &str) -> Result<Option<u64>, StoreError> {
        let query = format!("SELECT start FROM point WHERE level = ?1 ORDER BY start {order} LIMIT 1");
        let start = self.ledger.query_row(&query, [level as i64], |row| row.get::<_, i64>(0)).optional();
        Ok(start.map_err(self.failed("read points"))?.map(|start| start as u64))
    }

    fn open_points(&self) -> Result<Vec<Point>, StoreError> {
        let mut points = Vec::new();
        let Some(latest) = self.edge(Level::Minute, "DESC")? else { return Ok(points) };
        for level in Level::ALL {
            let start = level.start(latest);
            let rows = self.rows(
                "SELECT subject, sums FROM point WHERE level = ?1 AND start = ?2",
                params![level as i64, start as i64],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let sums = self.keyed_sums(rows)?.into_iter();
            points.extend(sums.map(|(subject, sums)| Point { subject, level, start, sums }));
        }
        Ok(points)
    }

    fn damage(&self) -> Result<Vec<Damage>, StoreError> {
        let number = |number: i64| BatchNumber(number as u64);
        self.rows("SELECT set_aside, first_lost, last_lost, what FROM damage ORDER BY rowid", [], |row| {
            Ok(Damage {
                set_aside: row.get::<_, String>(0)?.into(),
                first_lost: number(row.get(1)?),
                last_lost: row.get::<_, Option<i64>>(2)?.map(number),
                what: row.get(3)?,
            })
        })
    }

    /// The encoded sums of one subject, from pages and from points that are not packed yet.
    fn encoded(&self, subject: i64, level: Level, from: u64, to: u64) -> Result<Points, StoreError> {
        let mut found = Points::new();
        let first_page = pages::page_start(level, from);
        let packed = self.rows(
            "SELECT start, points FROM page WHERE level = ?1 AND subject = ?2 AND start >= ?3 AND start < ?4",
            params![level as i64, subject, first_page as i64, clamp(to)],
            |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?)),
        )?;
        for (start, bytes) in packed {
            let points = pages::unpack(level, start, &bytes);
            found.extend(points.ok_or_else(|| StoreError::damaged(&self.path, "a page cannot be read"))?);
        }
        found.retain(|start, _| (from..to).contains(start));
        let (Some(earliest), Some(latest)) = (self.edge(level, "ASC")?, self.edge(level, "DESC")?) else {
            return Ok(found);
        };
        // Points lie in the order of time: one subject's are found one by one.
        let mut query = self
            .ledger
            .prepare_cached("SELECT sums FROM point WHERE level = ?1 AND start = ?2 AND subject = ?3")
            .map_err(self.failed("read points"))?;
        let first = level.start(from.max(earliest) + level.seconds() - 1);
        for start in (first..to.min(latest + 1)).step_by(level.seconds() as usize) {
            let sums = query.query_row(params![level as i64, start as i64, subject], |row| row.get(0));
            if let Some(sums) = sums.optional().map_err(self.failed("read points"))? {
                found.insert(start, sums);
            }
        }
        Ok(found)
    }

    /// As [`SqliteReader::encoded`], for all subjects.
    fn all_encoded(&self, level: Level, from: u64, to: u64) -> Result<AllPoints, StoreError> {
        let mut found = AllPoints::new();
        let first_page = pages::page_start(level, from);
        let packed = self.rows(
            "SELECT subject, start, points FROM page WHERE level = ?1 AND start >= ?2 AND start < ?3",
            params![level as i64, first_page as i64, clamp(to)],
            |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, Vec<u8>>(2)?)),
        )?;
        for (subject, start, bytes) in packed {
            let points = pages::unpack(level, start, &bytes);
            let points = points.ok_or_else(|| StoreError::damaged(&self.path, "a page cannot be read"))?;
            let wanted = points.into_iter().filter(|(start, _)| (from..to).contains(start));
            found.extend(wanted.map(|(start, sums)| ((subject, start), sums)));
        }
        // What is not packed yet, or came late, is the later word.
        let points = self.rows(
            "SELECT subject, start, sums FROM point WHERE level = ?1 AND start >= ?2 AND start < ?3",
            params![level as i64, clamp(from), clamp(to)],
            |row| Ok(((row.get(0)?, row.get::<_, i64>(1)? as u64), row.get(2)?)),
        )?;
        found.extend(points);
        Ok(found)
    }

    fn selection(&self, wanted: Wanted) -> Result<Batches<'_>, StoreError> {
        let ledger = self.ledger()?;
        let files = file::day_files(&self.folder)?.into();
        let (current, numbers, has_ended) = (None, VecDeque::new(), false);
        Ok(Box::new(Selection { ledger, wanted, files, current, numbers, has_ended }))
    }
}

/// Encoded sums by subject and start.
type AllPoints = BTreeMap<(i64, u64), Vec<u8>>;

/// A time that the engine's signed integers can hold.
fn clamp(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

impl SqliteReader {
    /// The batch of the oldest share that waits for its answer; the first one when no rollup was written yet.
    fn waiting_from(&self) -> Result<BatchNumber, StoreError> {
        let bytes = file::meta(&self.ledger, WAITING_FROM).map_err(self.failed("read where to go on"))?;
        let number = bytes.and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_le_bytes);
        Ok(BatchNumber(number))
    }
}

impl Reader for SqliteReader {
    fn at_once(&self, read: &mut dyn FnMut(&dyn Reader) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.in_one_view(|| read(self))
    }

    fn opening(&self) -> Result<Opening, StoreError> {
        self.in_one_view(|| {
            let head_in = |key| file::meta_head(&self.ledger, key).map_err(self.failed("read the head"));
            let groups = self.rows("SELECT id, name FROM device_group ORDER BY id", [], |row| {
                Ok((GroupId(row.get(0)?), Arc::from(row.get::<_, String>(1)?)))
            })?;
            let upstreams = self.rows("SELECT id, name, account FROM upstream ORDER BY id", [], |row| {
                let (name, account) = (row.get::<_, String>(1)?, row.get::<_, String>(2)?);
                Ok((UpstreamId(row.get(0)?), name.into(), account.into()))
            })?;
            Ok(Opening {
                ledger: self.ledger()?,
                head: find_head(&self.folder)?,
                removed: head_in(REMOVED)?,
                watermark: head_in(WATERMARK)?.number,
                waiting_from: self.waiting_from()?,
                sums: self.sums()?,
                devices: self.devices()?,
                groups,
                upstreams,
                open_points: self.open_points()?,
                damage: self.damage()?,
                facts: facts::read(&self.ledger, &self.path)?,
            })
        })
    }

    fn batches(&self, from: BatchNumber) -> Result<Batches<'_>, StoreError> {
        self.selection(Wanted::From(from.0))
    }

    fn batches_between(&self, from_us: u64, to_us: u64) -> Result<Batches<'_>, StoreError> {
        self.selection(Wanted::Between(from_us, to_us))
    }

    fn points(
        &self,
        subject: Subject,
        level: Level,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, Sums)>, StoreError> {
        let encoded = self.in_one_view(|| self.encoded(subject_key(subject), level, from, to))?;
        encoded.into_iter().map(|(start, bytes)| Ok((start, self.sums_of(&bytes)?))).collect()
    }

    fn all_points(&self, level: Level, from: u64, to: u64) -> Result<Vec<Point>, StoreError> {
        let encoded = self.in_one_view(|| self.all_encoded(level, from, to))?;
        let unknown = || StoreError::damaged(&self.path, "a subject is of an unknown kind");
        let point = |((subject, start), bytes): ((i64, u64), Vec<u8>)| {
            let subject = subject_of(subject).ok_or_else(unknown)?;
            Ok(Point { subject, level, start, sums: self.packed_sums(&bytes)? })
        };
        encoded.into_iter().map(point).collect()
    }

    fn devices(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.rows(
            "SELECT id, name, groups, first_seen_us, last_seen_us, last_share_us, best_difficulty, address,
             user_agent, worker_name, device_id FROM device ORDER BY id",
            [],
            |row| {
                let groups: Vec<u8> = row.get(2)?;
                let groups =
                    groups.chunks_exact(2).map(|pair| GroupId(u16::from_le_bytes([pair[0], pair[1]])));
                Ok(DeviceRow {
                    id: DeviceId(row.get(0)?),
                    name: row.get::<_, String>(1)?.into(),
                    groups: groups.collect(),
                    first_seen_us: row.get::<_, i64>(3)? as u64,
                    last_seen_us: row.get::<_, i64>(4)? as u64,
                    last_share_us: row.get::<_, i64>(5)? as u64,
                    best_difficulty: row.get(6)?,
                    address: row.get(7)?,
                    user_agent: row.get(8)?,
                    worker_name: row.get::<_, String>(9)?.into(),
                    device_id: row.get(10)?,
                })
            },
        )
    }

    fn events(&self, before_us: Option<u64>, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        facts::events(&self.ledger, before_us, limit).map_err(self.failed("read events"))
    }

    fn blocks(&self, before_us: Option<u64>, limit: usize) -> Result<Vec<BlockRow>, StoreError> {
        facts::blocks(&self.ledger, before_us, limit).map_err(self.failed("read blocks"))
    }

    fn sums(&self) -> Result<Vec<(Subject, PackedSums)>, StoreError> {
        let rows = self.rows("SELECT subject, sums FROM sums ORDER BY subject", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        self.keyed_sums(rows)
    }
}

/// Which batches.
#[derive(Clone, Copy)]
enum Wanted {
    From(u64),
    Between(u64, u64),
}

/// Batches, file by file and in each by number.
struct Selection {
    ledger: LedgerId,
    wanted: Wanted,
    files: VecDeque<DayFile>,
    current: Option<(DayFile, Connection)>,
    numbers: VecDeque<i64>,
    has_ended: bool,
}

impl Selection {
    fn next_batch(&mut self) -> Result<Option<SealedBatch>, StoreError> {
        loop {
            if let Some(number) = self.numbers.pop_front() {
                let (day, connection) = self.current.as_ref().expect("numbers come from a file");
                let query = format!("SELECT {} FROM batch WHERE number = ?1", file::BATCH_COLUMNS);
                let batch = connection
                    .prepare_cached(&query)
                    .and_then(|mut query| query.query_row([number], file::batch_of));
                if let Wanted::From(from) = &mut self.wanted {
                    *from = number as u64 + 1;
                }
                return batch.map(Some).map_err(StoreError::disk(&day.path, "read a batch"));
            }
            if let (Some((day, connection)), Wanted::From(from)) = (&self.current, self.wanted) {
                self.numbers = numbers_from(connection, from)
                    .map_err(StoreError::disk(&day.path, "look for batches"))?;
                if !self.numbers.is_empty() {
                    continue;
                }
            }
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }

    /// Goes on with the next file; false after the last.
    fn open_next(&mut self) -> Result<bool, StoreError> {
        let Some(day) = self.files.pop_front() else { return Ok(false) };
        if let Wanted::Between(from, _) = self.wanted
            && (day.day + 1) * times::DAY * 1_000_000 <= from
        {
            return Ok(true);
        }
        // A file that retention took away meanwhile is one that is no longer there.
        let Some(connection) = file::open_to_read(&day.path)? else { return Ok(true) };
        if file::ledger_of(&connection, &day.path)? != self.ledger {
            return Err(StoreError::Foreign { path: day.path });
        }
        if let Wanted::Between(from, to) = self.wanted {
            self.numbers = numbers_between(&connection, from, to)
                .map_err(StoreError::disk(&day.path, "look for batches"))?;
        }
        self.current = Some((day, connection));
        Ok(true)
    }
}

fn numbers_from(connection: &Connection, from: u64) -> rusqlite::Result<VecDeque<i64>> {
    let mut query =
        connection.prepare_cached("SELECT number FROM batch WHERE number >= ?1 ORDER BY number LIMIT ?2")?;
    query.query_map([clamp(from), NUMBERS], |row| row.get(0))?.collect()
}

fn numbers_between(connection: &Connection, from: u64, to: u64) -> rusqlite::Result<VecDeque<i64>> {
    let mut query = connection
        .prepare_cached("SELECT number FROM batch WHERE last_us >= ?1 AND last_us < ?2 AND first_us < ?3")?;
    let latest = clamp(to.saturating_add(LONGEST_BATCH));
    let numbers = query.query_map([clamp(from), latest, clamp(to)], |row| row.get(0))?;
    let mut numbers = numbers.collect::<rusqlite::Result<Vec<i64>>>()?;
    numbers.sort_unstable();
    Ok(numbers.into())
}

impl Iterator for Selection {
    type Item = Result<SealedBatch, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let next = self.next_batch().transpose();
        self.has_ended = !matches!(next, Some(Ok(_)));
        next
    }
}

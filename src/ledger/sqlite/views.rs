//! The half that keeps rollups: sums, points and devices, and the packing of points into pages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use accounting::{DeviceRow, Level, RollUp};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::facts;
use super::file;
use super::pages::{self, Points};
use super::retention;
use super::{WAITING_FROM, WATERMARK, subject_key};
use crate::ledger::store::{Head, Removed, Retention, StoreError, Views};

/// Subjects whose points are packed in one step: some tens of milliseconds.
const SUBJECTS_IN_STEP: i64 = 256;

/// Packed points that are removed in one step, but for those of the last start: some tens of milliseconds.
const ROWS_IN_STEP: usize = 10_000;

/// Keeps what is summed up. Has a connection of its own to `ledger.db`.
#[derive(Debug)]
pub struct SqliteViews {
    folder: PathBuf,
    path: PathBuf,
    connection: Connection,
    retention: Retention,
    packing: Option<Packing>,
}

/// A page's span whose points are on their way into pages.
#[derive(Clone, Copy, Debug)]
struct Packing {
    level: Level,
    /// When the span starts.
    start: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The subjects up to and with this key are packed.
    Packed(i64),
    /// All are, and the points before this time are removed.
    Removed(u64),
}

impl SqliteViews {
    pub(super) fn new(folder: PathBuf, connection: Connection, retention: Retention) -> Self {
        let path = folder.join(file::LEDGER_FILE);
        SqliteViews { folder, path, connection, retention, packing: None }
    }

    /// A span that is over and has points that are not packed.
    fn find_packing(&self) -> rusqlite::Result<Option<Packing>> {
        let Some(latest) = edge(&self.connection, Level::Minute, "DESC")? else { return Ok(None) };
        for level in Level::ALL {
            let Some(earliest) = edge(&self.connection, level, "ASC")? else { continue };
            let start = pages::page_start(level, earliest);
            if start + level.page_seconds() <= latest {
                return Ok(Some(Packing { level, start, stage: Stage::Packed(-1) }));
            }
        }
        Ok(None)
    }

    fn step(&mut self, packing: Packing) -> rusqlite::Result<Option<Packing>> {
        let transaction = self.connection.transaction()?;
        let stage = match packing.stage {
            Stage::Packed(after) => Some(pack_some(&transaction, packing, after)?),
            Stage::Removed(start) => remove_some(&transaction, packing, start)?,
        };
        transaction.commit()?;
        Ok(stage.map(|stage| Packing { stage, ..packing }))
    }
}

impl Views for SqliteViews {
    fn roll_up(&mut self, roll_up: &RollUp) -> Result<(), StoreError> {
        let head = head_at(&self.folder, &self.connection, roll_up)?;
        // A point that comes late must not be removed as packed.
        self.packing = None;
        let mut write = || {
            let transaction = self.connection.transaction()?;
            write_sums(&transaction, roll_up)?;
            for device in &roll_up.devices {
                write_device(&transaction, device)?;
            }
            write_names(&transaction, roll_up)?;
            facts::write(&transaction, &roll_up.facts)?;
            file::set_meta_head(&transaction, WATERMARK, head)?;
            file::set_meta(&transaction, WAITING_FROM, &roll_up.waiting_from.0.to_le_bytes())?;
            transaction.commit()
        };
        write().map_err(StoreError::disk(&self.path, "write a rollup"))
    }

    fn tidy(&mut self) -> Result<bool, StoreError> {
        let failed = |error| StoreError::disk(&self.path, "pack points")(error);
        let packing = match self.packing.take() {
            Some(packing) => Some(packing),
            None => self.find_packing().map_err(failed)?,
        };
        let Some(packing) = packing else { return Ok(false) };
        self.packing = self.step(packing).map_err(StoreError::disk(&self.path, "pack points"))?;
        Ok(true)
    }

    fn retain(&mut self, now: u64) -> Result<Removed, StoreError> {
        retention::retain(&self.folder, &mut self.connection, &self.retention, now)
    }
}

/// The first or last start of the points of a level.
fn edge(connection: &Connection, level: Level, order: &str) -> rusqlite::Result<Option<u64>> {
    let query = format!("SELECT start FROM point WHERE level = ?1 ORDER BY start {order} LIMIT 1");
    let mut query = connection.prepare_cached(&query)?;
    let start: Option<i64> = query.query_row([level as i64], |row| row.get(0)).optional()?;
    Ok(start.map(|start| start as u64))
}

/// The batch that a rollup goes up to, which must be there.
fn head_at(folder: &Path, ledger: &Connection, roll_up: &RollUp) -> Result<Head, StoreError> {
    let path = folder.join(file::LEDGER_FILE);
    let known = file::meta_head(ledger, WATERMARK).map_err(StoreError::disk(&path, "read the watermark"))?;
    if known.number == roll_up.watermark {
        return Ok(known);
    }
    for day in file::day_files(folder)?.iter().rev() {
        let Some(connection) = file::open_to_read(&day.path)? else { continue };
        let number = roll_up.watermark.0 as i64;
        let hash = connection
            .query_row("SELECT hash FROM batch WHERE number = ?1", [number], |row| row.get(0))
            .optional();
        if let Some(hash) = hash.map_err(StoreError::disk(&day.path, "look for a batch"))? {
            return Ok(Head { number: roll_up.watermark, hash });
        }
    }
    let path = folder.to_owned();
    Err(StoreError::Gap { path, number: roll_up.watermark, head: known.number })
}

fn write_sums(transaction: &Transaction<'_>, roll_up: &RollUp) -> rusqlite::Result<()> {
    // In the order of the table: neighbours are on one page of the file.
    let mut points: Vec<_> = roll_up.points.iter().collect();
    points.sort_by_key(|point| (point.level, point.start, subject_key(point.subject)));
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO point (level, start, subject, sums) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for point in points {
        let key = subject_key(point.subject);
        insert.execute(params![point.level as i64, point.start as i64, key, point.sums.bytes()])?;
    }
    let mut insert =
        transaction.prepare_cached("INSERT OR REPLACE INTO sums (subject, sums) VALUES (?1, ?2)")?;
    for (subject, sums) in &roll_up.sums {
        insert.execute(params![subject_key(*subject), sums.bytes()])?;
    }
    Ok(())
}

fn write_device(transaction: &Transaction<'_>, device: &DeviceRow) -> rusqlite::Result<()> {
    let groups: Vec<u8> = device.groups.iter().flat_map(|group| group.0.to_le_bytes()).collect();
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO device (id, name, groups, first_seen_us, last_seen_us, last_share_us,
         best_difficulty, address, user_agent, worker_name, device_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    insert
        .execute(params![
            device.id.0,
            &*device.name,
            groups,
            device.first_seen_us as i64,
            device.last_seen_us as i64,
            device.last_share_us as i64,
            device.best_difficulty,
            device.address,
            device.user_agent,
            &*device.worker_name,
            device.device_id
        ])
        .map(drop)
}

fn write_names(transaction: &Transaction<'_>, roll_up: &RollUp) -> rusqlite::Result<()> {
    for (group, name) in &roll_up.groups {
        let change = "INSERT OR REPLACE INTO device_group (id, name) VALUES (?1, ?2)";
        transaction.execute(change, params![group.0, &**name])?;
    }
    for (upstream, name, account) in &roll_up.upstreams {
        let change = "INSERT OR REPLACE INTO upstream (id, name, account) VALUES (?1, ?2, ?3)";
        transaction.execute(change, params![upstream.0, &**name, &**account])?;
    }
    Ok(())
}

/// Packs the points of the next subjects. What a page has already stays, unless there is a later point.
fn pack_some(transaction: &Transaction<'_>, packing: Packing, after: i64) -> rusqlite::Result<Stage> {
    let Packing { level, start, .. } = packing;
    let last: Option<i64> = transaction
        .prepare_cached("SELECT subject FROM sums WHERE subject > ?1 ORDER BY subject LIMIT 1 OFFSET ?2")?
        .query_row([after, SUBJECTS_IN_STEP - 1], |row| row.get(0))
        .optional()?;
    let last = last.unwrap_or(i64::MAX);
    let mut subjects: BTreeMap<i64, Points> = BTreeMap::new();
    let mut find = transaction.prepare_cached(
        "SELECT subject, sums FROM point WHERE level = ?1 AND start = ?2 AND subject > ?3 AND subject <= ?4",
    )?;
    for point in (start..start + level.page_seconds()).step_by(level.seconds() as usize) {
        let mut rows = find.query(params![level as i64, point as i64, after, last])?;
        while let Some(row) = rows.next()? {
            subjects.entry(row.get(0)?).or_default().insert(point, row.get(1)?);
        }
    }
    let mut known = transaction
        .prepare_cached("SELECT points FROM page WHERE level = ?1 AND subject = ?2 AND start = ?3")?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO page (level, subject, start, points) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET points = excluded.points",
    )?;
    for (subject, mut points) in subjects {
        let key = params![level as i64, subject, start as i64];
        let page: Option<Vec<u8>> = known.query_row(key, |row| row.get(0)).optional()?;
        let earlier = page.and_then(|bytes| pages::unpack(level, start, &bytes)).unwrap_or_default();
        for (point, sums) in earlier {
            points.entry(point).or_insert(sums);
        }
        let bytes = pages::pack(level, start, &points);
        insert.execute(params![level as i64, subject, start as i64, bytes])?;
    }
    Ok(if last == i64::MAX { Stage::Removed(start) } else { Stage::Packed(last) })
}

/// Removes the packed points of the next starts.
fn remove_some(
    transaction: &Transaction<'_>,
    packing: Packing,
    start: u64,
) -> rusqlite::Result<Option<Stage>> {
    let Packing { level, start: page, .. } = packing;
    let end = page + level.page_seconds();
    let mut remove = transaction.prepare_cached("DELETE FROM point WHERE level = ?1 AND start = ?2")?;
    let mut rows = 0;
    let mut next = start;
    while next < end && rows < ROWS_IN_STEP {
        rows += remove.execute(params![level as i64, next as i64])?;
        next += level.seconds();
    }
    Ok((next < end).then_some(Stage::Removed(next)))
}

//! What is kept besides sums and points: what work is worth, how fast upstreams answer, refusals by code, readings of
//! power, events and blocks.
//!
//! Small as a rule, but for readings, of which there is one or a few for each device.

use std::collections::BTreeMap;
use std::path::Path;

use accounting::books::{MAX_BLOCKS, MAX_EVENTS};
use accounting::entry::{EventEntry, EventKind};
use accounting::{
    BlockRow, EventRow, Facts, OpenPart, PowerRow, PowerSource, Worth, decode_acks, decode_part, encode_acks,
    encode_part,
};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, Transaction, params};
use stratum::{DeviceId, JobNumber, UpstreamId};

use super::{file, subject_key, subject_of};
use crate::ledger::store::{Retention, StoreError};
use crate::ledger::times;

/// The tables. Numbers of events and blocks count from the ledger's first.
pub(super) const TABLES: &str = "
    CREATE TABLE worth (upstream INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, value_sats INTEGER NOT NULL,
        height INTEGER, nbits INTEGER NOT NULL);
    CREATE TABLE ack (upstream INTEGER PRIMARY KEY, sums BLOB NOT NULL);
    CREATE TABLE refusal (code TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE upstream_refusal (upstream INTEGER NOT NULL, code TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (upstream, code)) WITHOUT ROWID;
    CREATE TABLE power (subject INTEGER NOT NULL, source INTEGER NOT NULL, milliwatts INTEGER NOT NULL,
        from_us INTEGER NOT NULL, until_us INTEGER NOT NULL, PRIMARY KEY (subject, source)) WITHOUT ROWID;
    CREATE TABLE event (number INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, kind INTEGER NOT NULL, device INTEGER,
        text TEXT NOT NULL);
    CREATE INDEX event_time ON event (at_us);
    CREATE TABLE block (number INTEGER PRIMARY KEY, found_us INTEGER NOT NULL, device INTEGER, upstream INTEGER,
        job INTEGER, difficulty REAL, hash BLOB, height INTEGER, value_sats INTEGER);
    CREATE INDEX block_time ON block (found_us);";

/// The key in `meta` of the part of a minute whose energy is not in the sums yet.
const PART: &str = "part";

/// The key in `meta` of how many records are without detail.
const FOLDED: &str = "folded";

/// Rows that one step of retention removes of each table.
const ROWS_IN_STEP: i64 = 5000;

/// Readings whose time is over are of no use to anybody; a day is for clocks that were set.
const KEEP_READINGS_SECONDS: u64 = times::DAY;

pub(super) fn write(transaction: &Transaction<'_>, facts: &Facts) -> rusqlite::Result<()> {
    for worth in &facts.worths {
        transaction.prepare_cached("INSERT OR REPLACE INTO worth VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(
            params![worth.upstream.0, worth.at_us as i64, worth.value_sats as i64, worth.height, worth.nbits],
        )?;
    }
    let mut bytes = Vec::new();
    for (upstream, acks) in &facts.acks {
        bytes.clear();
        encode_acks(acks, &mut bytes);
        let mut change = transaction.prepare_cached("INSERT OR REPLACE INTO ack VALUES (?1, ?2)")?;
        change.execute(params![upstream.0, bytes])?;
    }
    for (code, count) in &facts.refused_by_code {
        let mut change = transaction.prepare_cached("INSERT OR REPLACE INTO refusal VALUES (?1, ?2)")?;
        change.execute(params![code, *count as i64])?;
    }
    for (upstream, counts) in &facts.refused_by_upstream {
        let mut change =
            transaction.prepare_cached("INSERT OR REPLACE INTO upstream_refusal VALUES (?1, ?2, ?3)")?;
        for (code, count) in counts {
            change.execute(params![upstream.0, code, *count as i64])?;
        }
    }
    for row in &facts.power {
        transaction.prepare_cached("INSERT OR REPLACE INTO power VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(
            params![
                subject_key(row.subject),
                row.source as i64,
                row.milliwatts as i64,
                clamp(row.from_us),
                clamp(row.until_us)
            ],
        )?;
    }
    for row in &facts.events {
        write_event(transaction, row)?;
    }
    for row in &facts.blocks {
        write_block(transaction, row)?;
    }
    bytes.clear();
    encode_part(&facts.part, &mut bytes);
    file::set_meta(transaction, PART, &bytes)?;
    file::set_meta(transaction, FOLDED, &facts.folded.to_le_bytes())
}

fn write_event(transaction: &Transaction<'_>, row: &EventRow) -> rusqlite::Result<()> {
    let EventEntry { at_us, kind, device, text } = &row.event;
    let mut change =
        transaction.prepare_cached("INSERT OR REPLACE INTO event VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let device = device.map(|device| device.0);
    change.execute(params![row.number as i64, clamp(*at_us), *kind as i64, device, text]).map(drop)
}

fn write_block(transaction: &Transaction<'_>, row: &BlockRow) -> rusqlite::Result<()> {
    let mut change = transaction
        .prepare_cached("INSERT OR REPLACE INTO block VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    change
        .execute(params![
            row.number as i64,
            clamp(row.found_us),
            row.device.map(|device| device.0),
            row.upstream.map(|upstream| upstream.0),
            row.job.map(|job| job.0 as i64),
            row.difficulty,
            row.hash,
            row.height,
            row.value_sats.map(|value| value as i64)
        ])
        .map(drop)
}

/// Everything, and of events and blocks the latest.
pub(super) fn read(connection: &Connection, path: &Path) -> Result<Facts, StoreError> {
    let mut facts = read_tables(connection).map_err(StoreError::disk(path, "read the ledger"))?;
    let meta = |key| file::meta(connection, key).map_err(StoreError::disk(path, "read the ledger"));
    if let Some(bytes) = meta(PART)? {
        let part = decode_part(&bytes);
        facts.part = part.map_err(|error| StoreError::damaged(path, format!("an open minute: {error}")))?;
    }
    facts.folded = meta(FOLDED)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    Ok(facts)
}

fn read_tables(connection: &Connection) -> rusqlite::Result<Facts> {
    let worth = |row: &Row<'_>| {
        Ok(Worth {
            upstream: UpstreamId(row.get(0)?),
            at_us: time(row, 1)?,
            value_sats: row.get::<_, i64>(2)? as u64,
            height: row.get(3)?,
            nbits: row.get(4)?,
        })
    };
    let acks = |row: &Row<'_>| {
        let acks = decode_acks(&row.get::<_, Vec<u8>>(1)?);
        Ok((UpstreamId(row.get(0)?), acks.map_err(|error| unreadable(1, Type::Blob, error))?))
    };
    let power = |row: &Row<'_>| {
        let subject = subject_of(row.get(0)?);
        Ok(PowerRow {
            subject: subject.ok_or_else(|| unreadable(0, Type::Integer, "a subject of an unknown kind"))?,
            source: one_of(row, 1, &PowerSource::ALL)?,
            milliwatts: row.get::<_, i64>(2)? as u64,
            from_us: time(row, 3)?,
            until_us: time(row, 4)?,
        })
    };
    let refusal = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64));
    let mut events = events(connection, None, MAX_EVENTS)?;
    let mut blocks = blocks(connection, None, MAX_BLOCKS)?;
    events.reverse();
    blocks.reverse();
    Ok(Facts {
        worths: rows(connection, "SELECT * FROM worth", worth)?,
        acks: rows(connection, "SELECT * FROM ack", acks)?,
        refused_by_code: rows(connection, "SELECT code, count FROM refusal", refusal)?.into_iter().collect(),
        refused_by_upstream: read_refusals(connection)?,
        folded: 0,
        power: rows(connection, "SELECT * FROM power", power)?,
        part: OpenPart::default(),
        events,
        blocks,
    })
}

fn read_refusals(connection: &Connection) -> rusqlite::Result<BTreeMap<UpstreamId, BTreeMap<String, u64>>> {
    let refusal = |row: &Row<'_>| Ok((UpstreamId(row.get(0)?), row.get(1)?, row.get::<_, i64>(2)? as u64));
    let mut refusals: BTreeMap<UpstreamId, BTreeMap<String, u64>> = BTreeMap::new();
    for (upstream, code, count) in rows(connection, "SELECT * FROM upstream_refusal", refusal)? {
        refusals.entry(upstream).or_default().insert(code, count);
    }
    Ok(refusals)
}

/// Events no later than `before_us`, latest first.
pub(super) fn events(
    connection: &Connection,
    before_us: Option<u64>,
    limit: usize,
) -> rusqlite::Result<Vec<EventRow>> {
    let mut query = connection.prepare_cached(
        "SELECT number, at_us, kind, device, text FROM event WHERE at_us <= ?1
         ORDER BY at_us DESC, number DESC LIMIT ?2",
    )?;
    let event = |row: &Row<'_>| {
        let event = EventEntry {
            at_us: time(row, 1)?,
            kind: one_of(row, 2, &EventKind::ALL)?,
            device: row.get::<_, Option<u32>>(3)?.map(DeviceId),
            text: row.get(4)?,
        };
        Ok(EventRow { number: row.get::<_, i64>(0)? as u64, event })
    };
    let parameters = params![clamp(before_us.unwrap_or(u64::MAX)), limit as i64];
    query.query_map(parameters, event)?.collect()
}

/// Blocks found no later than `before_us`, latest first.
pub(super) fn blocks(
    connection: &Connection,
    before_us: Option<u64>,
    limit: usize,
) -> rusqlite::Result<Vec<BlockRow>> {
    let mut query = connection.prepare_cached(
        "SELECT number, found_us, device, upstream, job, difficulty, hash, height, value_sats FROM block
         WHERE found_us <= ?1 ORDER BY found_us DESC, number DESC LIMIT ?2",
    )?;
    let block = |row: &Row<'_>| {
        Ok(BlockRow {
            number: row.get::<_, i64>(0)? as u64,
            found_us: time(row, 1)?,
            device: row.get::<_, Option<u32>>(2)?.map(DeviceId),
            upstream: row.get::<_, Option<u16>>(3)?.map(UpstreamId),
            job: row.get::<_, Option<i64>>(4)?.map(|number| JobNumber(number as u64)),
            difficulty: row.get(5)?,
            hash: row.get(6)?,
            height: row.get(7)?,
            value_sats: row.get::<_, Option<i64>>(8)?.map(|value| value as u64),
        })
    };
    let parameters = params![clamp(before_us.unwrap_or(u64::MAX)), limit as i64];
    query.query_map(parameters, block)?.collect()
}

/// Removes what is too old. Returns how many rows of the greatest part there were.
pub(super) fn retain(connection: &Connection, retention: &Retention, now: u64) -> rusqlite::Result<u64> {
    let days = u64::from(retention.hours_days) * times::DAY;
    let happened = clamp(now.saturating_sub(days).saturating_mul(1_000_000));
    let readings = clamp(now.saturating_sub(KEEP_READINGS_SECONDS).saturating_mul(1_000_000));
    let remove = |change: &str, before: i64| {
        connection.prepare_cached(change)?.execute([before, ROWS_IN_STEP]).map(|rows| rows as u64)
    };
    let events = remove(
        "DELETE FROM event WHERE number IN (SELECT number FROM event WHERE at_us < ?1 LIMIT ?2)",
        happened,
    )?;
    let blocks = remove(
        "DELETE FROM block WHERE number IN (SELECT number FROM block WHERE found_us < ?1 LIMIT ?2)",
        happened,
    )?;
    remove(
        "DELETE FROM power WHERE (subject, source) IN
         (SELECT subject, source FROM power WHERE until_us < ?1 LIMIT ?2)",
        readings,
    )?;
    Ok(events.max(blocks))
}

fn rows<T>(
    connection: &Connection,
    query: &str,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(query)?.query_map([], row)?.collect()
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|time| time as u64)
}

/// The member of a list whose place is in a column.
fn one_of<T: Copy>(row: &Row<'_>, column: usize, all: &[T]) -> rusqlite::Result<T> {
    let place = usize::try_from(row.get::<_, i64>(column)?).ok();
    let one = place.and_then(|place| all.get(place)).copied();
    one.ok_or_else(|| unreadable(column, Type::Integer, "a kind that is not known"))
}

fn unreadable(
    column: usize,
    kind: Type,
    what: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, what.into())
}

/// A time that the engine's signed integers can hold.
fn clamp(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

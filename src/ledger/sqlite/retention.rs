//! What goes when it is too old or too much: whole days of batches, pages and points.
//!
//! Events and blocks go with the hours. Sums since the ledger began and day points stay for ever. The number and hash of the last batch that went stay as
//! well, so that the chain of the others can still be followed from somewhere.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use accounting::Level;
use rusqlite::{Connection, params};

use super::facts;
use super::file::{self, DayFile};
use super::{REMOVED, WAITING_FROM, WATERMARK};
use crate::ledger::store::{Head, Removed, Retention, StoreError};
use crate::ledger::times;

/// Rows that one step removes: some tens of milliseconds.
const ROWS_IN_STEP: i64 = 5000;

pub(super) fn retain(
    folder: &Path,
    connection: &mut Connection,
    retention: &Retention,
    now: u64,
) -> Result<Removed, StoreError> {
    let mut removed = Removed::default();
    remove_records(folder, connection, retention, now, &mut removed)?;
    let path = folder.join(file::LEDGER_FILE);
    for level in Level::ALL {
        let Some(days) = retention.days(level) else { continue };
        let cutoff = now.saturating_sub(u64::from(days) * times::DAY);
        let rows = remove_points(connection, level, cutoff);
        let rows = rows.map_err(StoreError::disk(&path, "remove old points"))?;
        removed.points += rows;
        removed.is_incomplete |= rows >= ROWS_IN_STEP as u64;
    }
    let rows = facts::retain(connection, retention, now);
    let rows = rows.map_err(StoreError::disk(&path, "remove old events"))?;
    removed.is_incomplete |= rows >= ROWS_IN_STEP as u64;
    Ok(removed)
}

fn remove_points(connection: &Connection, level: Level, cutoff: u64) -> rusqlite::Result<u64> {
    let last_page = cutoff.saturating_sub(level.page_seconds());
    let pages = connection
        .prepare_cached(
            "DELETE FROM page WHERE rowid IN
             (SELECT rowid FROM page WHERE level = ?1 AND start <= ?2 ORDER BY start LIMIT ?3)",
        )?
        .execute(params![level as i64, last_page as i64, ROWS_IN_STEP])?;
    let last_point = cutoff.saturating_sub(level.seconds());
    let points = connection
        .prepare_cached(
            "DELETE FROM point WHERE (level, start, subject) IN
             (SELECT level, start, subject FROM point WHERE level = ?1 AND start <= ?2 ORDER BY start LIMIT ?3)",
        )?
        .execute(params![level as i64, last_point as i64, ROWS_IN_STEP])?;
    Ok((pages + points) as u64)
}

fn remove_records(
    folder: &Path,
    connection: &mut Connection,
    retention: &Retention,
    now: u64,
    removed: &mut Removed,
) -> Result<(), StoreError> {
    let path = folder.join(file::LEDGER_FILE);
    let watermark = file::meta_head(connection, WATERMARK);
    let watermark = watermark.map_err(StoreError::disk(&path, "read the watermark"))?;
    let waiting = file::meta(connection, WAITING_FROM);
    let waiting = waiting.map_err(StoreError::disk(&path, "read where to go on"))?;
    let waiting = waiting.and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_le_bytes);
    let mut files = file::day_files(folder)?;
    let mut sizes: Vec<u64> = files.iter().map(size_of).collect();
    // The last day is being written.
    files.pop();
    sizes.pop();
    let last_size = file::day_files(folder)?.last().map_or(0, size_of);
    let mut total = last_size + sizes.iter().sum::<u64>();
    let cutoff = now.saturating_sub(u64::from(retention.records_days) * times::DAY);
    for (day, size) in files.into_iter().zip(sizes) {
        let is_old = (day.day + 1) * times::DAY <= cutoff;
        if !is_old && total <= retention.records_bytes {
            break;
        }
        let Some(records) = file::open_to_read(&day.path)? else { continue };
        let last = file::last_of(&records).map_err(StoreError::disk(&day.path, "read the last batch"))?;
        drop(records);
        if let Some(last) = last {
            // What is not in the sums yet must be there after a restart. Shares that wait for an answer should be; but
            // an upstream that never answers must not fill the disk.
            let is_waited_for = last.number.0 >= waiting && total <= retention.records_bytes;
            if last.number > watermark.number || is_waited_for {
                break;
            }
            let head = Head { number: last.number, hash: last.hash };
            file::set_meta_head(connection, REMOVED, head)
                .map_err(StoreError::disk(&path, "write what is removed"))?;
        }
        for part in day.parts() {
            match fs::remove_file(&part) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(StoreError::disk(&part, "remove the file")(error));
                }
                _ => {}
            }
        }
        total -= size;
        removed.bytes += size;
        removed.files.push(day.path);
    }
    Ok(())
}

fn size_of(day: &DayFile) -> u64 {
    day.parts().iter().filter_map(|part| fs::metadata(part).ok()).map(|metadata| metadata.len()).sum()
}

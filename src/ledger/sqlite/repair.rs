//! A last day's file that is damaged: what is whole of it is copied into a new one, and the damaged one is kept.
//!
//! A file that was torn by a power failure is none of this: the engine's own log heals it. This is for broken disks
//! and for files that somebody wrote into. Only the last file is looked at when a ledger is opened, and of it only
//! what a restart needs; `verify` looks at everything.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use accounting::{BatchNumber, LedgerId};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::WATERMARK;
use super::file::{self, DayFile, Kind};
use crate::ledger::store::{Head, StoreError};

/// Looks at the last day's file, and repairs it if it must be.
pub(super) fn repair_last(folder: &Path, ledger: LedgerId, summed: &Connection) -> Result<(), StoreError> {
    finish_earlier(folder)?;
    let Some(day) = file::day_files(folder)?.pop() else { return Ok(()) };
    let path = folder.join(file::LEDGER_FILE);
    let watermark = file::meta_head(summed, WATERMARK);
    let watermark = watermark.map_err(StoreError::disk(&path, "read the watermark"))?;
    let what = match check(&day, ledger, watermark) {
        Ok(()) => return Ok(()),
        Err(error) if is_damage(&error) => error.to_string(),
        Err(error) => return Err(error),
    };
    let copy = new_file(&day);
    let whole = copy_whole(&day, &copy, ledger)?;
    let set_aside = name_aside(&day);
    let before = match whole {
        Some(number) => number,
        None => last_before(folder, &day, watermark)?,
    };
    let last_lost = (watermark.number > before).then_some(watermark.number.0 as i64);
    summed
        .execute(
            "INSERT INTO damage (set_aside, first_lost, last_lost, what) VALUES (?1, ?2, ?3, ?4)",
            params![set_aside.display().to_string(), before.next().0 as i64, last_lost, what],
        )
        .map_err(StoreError::disk(&path, "write down damage"))?;
    for (part, ending) in day.parts().iter().zip(["-shm", "-wal", ""]) {
        let to = PathBuf::from(format!("{}{ending}", set_aside.display()));
        match fs::rename(part, to) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StoreError::disk(part, "set the damaged file aside")(error));
            }
            _ => {}
        }
    }
    finish_earlier(folder)
}

/// Puts a repaired file into its place, if that is free: otherwise its repair had not got far, and begins again.
fn finish_earlier(folder: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(folder).map_err(StoreError::disk(folder, "list the folder"))? {
        let path = entry.map_err(StoreError::disk(folder, "list the folder"))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_prefix("repaired-")) else { continue };
        let place = folder.join(name);
        if name.ends_with(".db") && !place.exists() {
            fs::rename(&path, &place).map_err(StoreError::disk(&path, "put the file into its place"))?;
        } else {
            fs::remove_file(&path).map_err(StoreError::disk(&path, "remove an unfinished repair"))?;
        }
    }
    file::sync_folder(folder)
}

/// Reads what a restart reads, and compares its hashes.
fn check(day: &DayFile, ledger: LedgerId, watermark: Head) -> Result<(), StoreError> {
    let connection = file::open_to_write(&day.path, Kind::Records, ledger)?;
    if file::ledger_of(&connection, &day.path)? != ledger {
        return Err(StoreError::Foreign { path: day.path.clone() });
    }
    let failed = || StoreError::disk(&day.path, "read a batch");
    let Some(last) = file::last_of(&connection).map_err(failed())? else { return Ok(()) };
    let mut previous = None;
    let first = watermark.number.0.min(last.number.0) as i64;
    let query = format!("SELECT {} FROM batch WHERE number >= ?1 ORDER BY number", file::BATCH_COLUMNS);
    let mut query = connection.prepare(&query).map_err(failed())?;
    for batch in query.query_map([first], file::batch_of).map_err(failed())? {
        let batch = batch.map_err(failed())?;
        let follows = previous
            .is_none_or(|head: Head| batch.number == head.number.next() && batch.previous == head.hash);
        if batch.computed_hash(ledger) != batch.hash || !follows {
            let what = format!("batch {} has not the hash that it was written with", batch.number.0);
            return Err(StoreError::damaged(&day.path, what));
        }
        previous = Some(Head { number: batch.number, hash: batch.hash });
    }
    Ok(())
}

/// Whether the file itself is wrong. A full disk or a missing permission is not its fault.
fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged { .. } => true,
        StoreError::Disk { source, .. } => match source.downcast_ref::<rusqlite::Error>() {
            Some(rusqlite::Error::SqliteFailure(failure, _)) => {
                matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            }
            Some(
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::SqlInputError { .. },
            ) => true,
            _ => false,
        },
        _ => false,
    }
}

fn new_file(day: &DayFile) -> DayFile {
    let name = day.path.file_name().and_then(|name| name.to_str()).expect("it has a plain name");
    DayFile { day: day.day, path: day.path.with_file_name(format!("repaired-{name}")) }
}

/// A name that no damaged file has yet.
fn name_aside(day: &DayFile) -> PathBuf {
    let name = day.path.file_name().and_then(|name| name.to_str()).expect("it has a plain name");
    let mut number = 1;
    loop {
        let path = day.path.with_file_name(format!("damaged-{number}-{name}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

/// Copies batches as long as each is whole and follows the one before. Returns the last one's number.
fn copy_whole(day: &DayFile, copy: &DayFile, ledger: LedgerId) -> Result<Option<BatchNumber>, StoreError> {
    let mut target = file::open_to_write(&copy.path, Kind::Records, ledger)?;
    let Ok(Some(source)) = file::open_to_read(&day.path) else { return Ok(None) };
    let write = |target: &mut Connection| {
        let transaction = target.transaction()?;
        let mut last: Option<Head> = None;
        let first = source.query_row("SELECT min(number) FROM batch", [], |row| row.get::<_, i64>(0));
        let mut number = first.unwrap_or(i64::MAX);
        let query = format!("SELECT {} FROM batch WHERE number = ?1", file::BATCH_COLUMNS);
        // What cannot be read is where the whole part ends.
        while let Ok(Some(batch)) = source
            .prepare_cached(&query)
            .and_then(|mut query| query.query_row([number], file::batch_of).optional())
        {
            let follows = last.is_none_or(|head| batch.previous == head.hash);
            if batch.computed_hash(ledger) != batch.hash || !follows {
                break;
            }
            transaction.prepare_cached("INSERT INTO batch VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
                params![
                    number,
                    batch.first_us as i64,
                    batch.last_us as i64,
                    batch.count,
                    batch.previous,
                    batch.hash,
                    batch.payload
                ],
            )?;
            last = Some(Head { number: batch.number, hash: batch.hash });
            number += 1;
        }
        transaction.commit()?;
        Ok(last.map(|head| head.number))
    };
    write(&mut target).map_err(StoreError::disk::<rusqlite::Error>(&copy.path, "copy what is whole"))
}

/// The last batch of the days before.
fn last_before(folder: &Path, day: &DayFile, watermark: Head) -> Result<BatchNumber, StoreError> {
    for earlier in file::day_files(folder)?.iter().rev().filter(|file| file.day < day.day) {
        let Some(connection) = file::open_to_read(&earlier.path)? else { continue };
        if let Some(last) =
            file::last_of(&connection).map_err(StoreError::disk(&earlier.path, "read the last batch"))?
        {
            return Ok(last.number);
        }
    }
    Ok(watermark.number)
}

//! From a ledger on disk to books in memory, when the program starts.
//!
//! Sums come from the last rollup, and everything since from the batches themselves. Nothing is written here, and
//! nothing is believed that cannot be read: the operator hears of it, and counting goes on with what is whole.

use accounting::codec;
use accounting::entry::{Entry, EventEntry, EventKind, microseconds};
use accounting::{Books, DeviceRow, Restored, SealedBatch, Verdict};

use super::{LedgerThreads, OpenLedger, Opening, Reader, StoreError};
use crate::clock::Clock;
use crate::config::LedgerConfig;
use crate::error::RunError;
use crate::sink::{DeviceRules, ToLedger};

/// How long before a share's own word a job may have been written: a queue and a batch lie between, and a clock may have
/// been set.
const JOB_SLACK_US: u64 = 10_000_000;

/// A ledger that goes on.
#[derive(Debug)]
pub struct Revived {
    /// For the sink.
    pub to_ledger: ToLedger,
    /// To be ended last.
    pub threads: LedgerThreads,
    /// The devices that it knows, as the last rollup and the batches since have them.
    pub devices: Vec<DeviceRow>,
    /// When the ledger began, in unix microseconds.
    pub began_us: u64,
}

/// Opens the ledger that the configuration names, or begins one, and reads what it holds.
pub fn revive(config: &LedgerConfig, rules: DeviceRules, clock: Clock) -> Result<Revived, RunError> {
    let OpenLedger { opening, writer, threads, reader } = super::open(config, clock)?;
    let failed = |error: StoreError| RunError::Failed(format!("ledger.path: {error}"));
    let (mut books, replayed) = books(&opening, &reader).map_err(failed)?;
    if replayed > 0 {
        tracing::info!(batches = replayed, "read again what came after the ledger's last sums");
    }
    let now_us = microseconds(clock.now().utc);
    let devices: Vec<DeviceRow> = books.device_rows().collect();
    let began_us = devices.iter().map(|row| row.first_seen_us).min().unwrap_or(now_us);
    let head = opening.head;
    books.begin_batch(head.number.next());
    let commit_interval = config.commit_interval;
    let to_ledger = ToLedger { id: opening.ledger, head, books, writer, rules, commit_interval };
    Ok(Revived { to_ledger, threads, devices, began_us })
}

/// The first entry of a process: what its predecessor had on the way is lost.
pub fn started(now_us: u64) -> EventEntry {
    let text = format!("checkweigh {}", env!("CARGO_PKG_VERSION"));
    EventEntry { at_us: now_us, kind: EventKind::Started, device: None, text }
}

/// The books as of the last batch, and how many batches they were brought up to date with.
pub fn books(opening: &Opening, reader: &dyn Reader) -> Result<(Books, u64), StoreError> {
    let mut books = restored(opening);
    recall(&mut books, opening, reader)?;
    let replayed = replay(&mut books, opening, reader)?;
    Ok((books, replayed))
}

/// The books as of the watermark.
fn restored(opening: &Opening) -> Books {
    Books::restore(Restored {
        sums: &opening.sums,
        devices: &opening.devices,
        groups: &opening.groups,
        upstreams: &opening.upstreams,
        open_points: &opening.open_points,
        facts: &opening.facts,
    })
}

/// Finds the shares again that wait for their answers since before the watermark.
fn recall(books: &mut Books, opening: &Opening, reader: &dyn Reader) -> Result<(), StoreError> {
    let from = opening.waiting_from.max(opening.removed.number.next());
    if from > opening.watermark {
        return Ok(());
    }
    for batch in reader.batches(from)? {
        let batch = batch?;
        if batch.number > opening.watermark {
            break;
        }
        books.begin_batch(batch.number);
        each_entry(&batch, |entry| books.recall(entry));
    }
    Ok(())
}

/// Applies the batches after the watermark. Returns how many there were.
fn replay(books: &mut Books, opening: &Opening, reader: &dyn Reader) -> Result<u64, StoreError> {
    let mut count = 0;
    for batch in reader.batches(opening.watermark.next())? {
        let batch = batch?;
        books.begin_batch(batch.number);
        each_entry(&batch, |entry| {
            find_job(books, reader, entry);
            books.apply(entry);
        });
        count += 1;
    }
    Ok(count)
}

/// A block whose job came before the watermark, which is rare: its job says its hash and its value.
fn find_job(books: &mut Books, reader: &dyn Reader, entry: &Entry) {
    let Entry::Share(share) = entry else { return };
    let Some(number) = share.job.filter(|_| share.verdict == Verdict::BlockFound) else { return };
    if books.knows_job(number) {
        return;
    }
    let judged_us = microseconds(share.judged.utc);
    let from_us = judged_us.saturating_sub(u64::from(share.job_age_ms) * 1000 + JOB_SLACK_US);
    let Ok(batches) = reader.batches_between(from_us, judged_us + 1) else { return };
    for batch in batches.map_while(Result::ok) {
        let mut jobs = codec::entries(&batch.payload).map_while(Result::ok);
        if let Some(job) = jobs.find(|entry| matches!(entry, Entry::Job(job) if job.number == number)) {
            return books.recall(&job);
        }
    }
}

fn each_entry(batch: &SealedBatch, mut visit: impl FnMut(&Entry)) {
    for entry in codec::entries(&batch.payload) {
        match entry {
            Ok(entry) => visit(&entry),
            Err(error) => {
                tracing::error!(
                    batch = batch.number.0,
                    "a batch of the ledger holds what cannot be read: {error}; `checkweigh ledger verify` says more"
                );
            }
        }
    }
}

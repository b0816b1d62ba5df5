//! The threads that own the store. They outlast a failing disk, and keep everything in order.
//!
//! The sink hands over sealed batches and rollups and never waits. One thread makes batches durable, one after the
//! other; another one writes rollups, once the batches that they sum up are durable, and does what has time. They are
//! two because a rollup of a whole fleet takes longer than a batch may wait.
//!
//! When the disk fails, each tries again with growing pauses, and says so once. Memory is bounded: batches that wait
//! are refused beyond [`MAX_UNWRITTEN`] (the sink then keeps sums in their place), and rollups that wait become one.

mod queue;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use accounting::{BatchNumber, RollUp, SealedBatch};

use self::queue::{Queue, Step};
pub use self::status::LedgerStatus;
use super::store::{Store, StoreError, Views};
use crate::clock::Clock;
use crate::error::RunError;

/// Bytes of batches that wait for the disk: more than half a million records of 110 bytes, which is a minute and a
/// half of the fastest farm.
pub const MAX_UNWRITTEN: usize = 64 * 1024 * 1024;

/// The pause before a write that failed is tried again; it doubles until [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two tries: a disk that works again is used within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often old records and points are looked for.
const RETENTION_INTERVAL: Duration = Duration::from_secs(600);

/// The pause between two pieces of work that has time, so that a disk that is slow is there for batches first.
const TIDY_PAUSE: Duration = Duration::from_millis(20);

/// What the sink hands over.
#[derive(Debug)]
pub enum Outgoing {
    /// A batch to make durable.
    Batch(SealedBatch),
    /// A rollup to keep once its batches are durable. The batches that it sums up were handed over before it.
    RollUp(Box<RollUp>),
}

/// Hands over to the threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LedgerWriter {
    queue: Arc<Queue>,
    status: Arc<LedgerStatus>,
}

/// The running threads; whoever holds it ends them.
#[derive(Debug)]
pub struct LedgerThreads {
    writer: LedgerWriter,
    threads: Vec<JoinHandle<()>>,
    clock: Clock,
}

/// What could not be written before the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the ledger ended with {batches} batches ({bytes} bytes) that could not be written{}: {reason}",
    if *roll_up { ", and with sums that will be made again from the batches at the next start" } else { "" })]
pub struct Unwritten {
    /// Batches that are lost.
    pub batches: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Whether a rollup is missing as well. What it sums up is not lost: it is in the batches.
    pub roll_up: bool,
    /// The system's words.
    pub reason: String,
}

impl LedgerWriter {
    /// Starts the threads. `durable` is the last batch that the store has.
    pub fn start(
        store: impl Store + 'static,
        views: impl Views + 'static,
        durable: BatchNumber,
        clock: Clock,
    ) -> Result<(LedgerWriter, LedgerThreads), RunError> {
        let status = Arc::new(LedgerStatus::new(durable));
        let queue = Arc::new(Queue::new(durable));
        let writer = LedgerWriter { queue, status };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map_err(RunError::io(format!("start the thread {name}")))
        };
        let (queue, status) = (Arc::clone(&writer.queue), Arc::clone(&writer.status));
        let batches = start("ledger-batches", Box::new(move || append_all(store, &queue, &status, clock)))?;
        let (queue, status) = (Arc::clone(&writer.queue), Arc::clone(&writer.status));
        let sums = start("ledger-sums", Box::new(move || keep_views(views, &queue, &status, clock)))?;
        let threads = LedgerThreads { writer: writer.clone(), threads: vec![batches, sums], clock };
        Ok((writer, threads))
    }

    /// Whether a batch would be taken now. Ask before sealing one: a sealed batch has used up its number.
    pub fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// Hands over, and never waits. A batch comes back when [`MAX_UNWRITTEN`] bytes wait already, or after the end
    /// was asked for; a rollup is always taken.
    ///
    /// # Panics
    /// When a thread of the ledger has panicked: what it owned cannot be trusted any more.
    pub fn send(&self, outgoing: Outgoing) -> Result<(), SealedBatch> {
        let sent = match outgoing {
            Outgoing::Batch(batch) => self.queue.push(batch),
            Outgoing::RollUp(roll_up) => {
                self.queue.roll_up(*roll_up);
                Ok(())
            }
        };
        self.status.set_waiting(self.queue.waiting());
        sent
    }

    /// How it goes.
    pub fn status(&self) -> &Arc<LedgerStatus> {
        &self.status
    }
}

impl LedgerThreads {
    /// Whether a thread has ended, which none does before it is asked to: a bug of ours.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Writes all that was handed over, for at most `limit`, and ends. Blocks: call it where that is allowed, after
    /// the sink has handed over its last.
    pub fn end(self, limit: Duration) -> Result<(), Unwritten> {
        let LedgerThreads { writer, threads, clock } = self;
        writer.queue.end_by(clock.now().monotonic + limit);
        for thread in threads {
            // A panic has been printed, and shows in what is left.
            let _ = thread.join();
        }
        let (batches, bytes, roll_up) = writer.queue.left();
        if batches == 0 && !roll_up {
            return Ok(());
        }
        let reason = writer.status.last_error().unwrap_or_else(|| "there was not time enough".to_owned());
        Err(Unwritten { batches, bytes, roll_up, reason })
    }
}

/// The pause after so many failures in a row.
fn pause_after(failures: u32) -> Duration {
    (FIRST_PAUSE * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST_PAUSE)
}

/// The thread of batches.
fn append_all(mut store: impl Store, queue: &Queue, status: &LedgerStatus, clock: Clock) {
    let _alarm = queue.alarm();
    while let Some(batch) = queue.next_batch() {
        let mut failures = 0;
        loop {
            let started = clock.now();
            match store.append(&batch) {
                Ok(_) => {
                    status.written(&batch, started, clock.now());
                    break;
                }
                Err(error) => {
                    failures += 1;
                    report(status.failed(&error), &error);
                    if !queue.pause(pause_after(failures), clock) {
                        return;
                    }
                }
            }
        }
        if failures > 0 {
            tracing::info!(batch = batch.number.0, failures, "the ledger is written again");
            status.recovered();
        }
        queue.written(&batch);
        status.set_waiting(queue.waiting());
    }
}

/// The thread of sums.
fn keep_views(mut views: impl Views, queue: &Queue, status: &LedgerStatus, clock: Clock) {
    let _alarm = queue.alarm();
    let mut retain_at = Duration::ZERO;
    let mut is_tidy = false;
    let mut failures = 0;
    loop {
        let now = clock.now();
        let patience = if is_tidy { retain_at.saturating_sub(now.monotonic) } else { TIDY_PAUSE };
        let done = match queue.next_step(patience) {
            Step::End => return,
            Step::RollUp(roll_up) => {
                is_tidy = false;
                let done = views.roll_up(&roll_up);
                match &done {
                    Ok(()) => status.rolled_up(roll_up.watermark, now, clock.now()),
                    Err(_) => queue.put_back(*roll_up),
                }
                done
            }
            Step::Idle if !is_tidy => views.tidy().map(|more| is_tidy = !more),
            Step::Idle => {
                let removed = views.retain(now.utc.as_secs());
                removed.map(|removed| {
                    status.removed(&removed);
                    let wait = if removed.is_incomplete { TIDY_PAUSE } else { RETENTION_INTERVAL };
                    retain_at = clock.now().monotonic + wait;
                })
            }
        };
        match done {
            Ok(()) if failures > 0 => {
                tracing::info!(failures, "the sums of the ledger are written again");
                failures = 0;
                status.views_recovered();
            }
            Ok(()) => {}
            Err(error) => {
                failures += 1;
                report(status.views_failed(&error), &error);
                retain_at = clock.now().monotonic + RETENTION_INTERVAL;
                if !queue.pause(pause_after(failures), clock) {
                    return;
                }
            }
        }
    }
}

/// One line for each time that it begins to fail; the status says the rest.
fn report(is_new: bool, error: &StoreError) {
    if is_new {
        tracing::error!(
            "the ledger cannot be written: {error}. Mining goes on, and what waits is written when that works again"
        );
    }
}

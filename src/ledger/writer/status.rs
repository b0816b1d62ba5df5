//! How the ledger's writing goes, for metrics and health: read at any time, by anybody.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use accounting::{BatchNumber, SealedBatch};
use stratum::Now;

use crate::ledger::store::{Removed, StoreError};

/// Counts since the process started, and how it is now.
#[derive(Debug, Default)]
pub struct LedgerStatus {
    /// Batches made durable.
    pub batches_written: AtomicU64,
    /// Bytes of their payloads.
    pub bytes_written: AtomicU64,
    /// Entries in them.
    pub entries_written: AtomicU64,
    /// The last batch that is durable.
    pub durable_batch: AtomicU64,
    /// When it became durable, in unix microseconds; 0 before the first.
    pub durable_at_us: AtomicU64,
    /// How long the last commit took, in microseconds.
    pub last_commit_us: AtomicU64,
    /// How long the last rollup took, in microseconds.
    pub last_roll_up_us: AtomicU64,
    /// The last batch that is in the stored sums.
    pub watermark: AtomicU64,
    /// Batches cannot be written now.
    pub is_failing: AtomicBool,
    /// Sums cannot be written now.
    pub is_failing_views: AtomicBool,
    /// Writes that failed, those of sums included.
    pub failures_total: AtomicU64,
    /// Bytes of batches that wait.
    pub waiting_bytes: AtomicU64,
    /// Bytes of batches that retention removed.
    pub removed_bytes: AtomicU64,
    /// Pages and points that retention removed.
    pub removed_points: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl LedgerStatus {
    pub(super) fn new(durable: BatchNumber) -> Self {
        LedgerStatus { durable_batch: AtomicU64::new(durable.0), ..LedgerStatus::default() }
    }

    /// What failed last, while something fails.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn written(&self, batch: &SealedBatch, started: Now, now: Now) {
        self.batches_written.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(batch.payload.len() as u64, Ordering::Relaxed);
        self.entries_written.fetch_add(batch.count.into(), Ordering::Relaxed);
        self.durable_at_us.store(now.utc.as_micros() as u64, Ordering::Relaxed);
        self.last_commit_us.store(now.since(started).as_micros() as u64, Ordering::Relaxed);
        self.durable_batch.store(batch.number.0, Ordering::Release);
    }

    pub(super) fn rolled_up(&self, watermark: BatchNumber, started: Now, now: Now) {
        self.last_roll_up_us.store(now.since(started).as_micros() as u64, Ordering::Relaxed);
        self.watermark.store(watermark.0, Ordering::Release);
    }

    pub(super) fn removed(&self, removed: &Removed) {
        self.removed_bytes.fetch_add(removed.bytes, Ordering::Relaxed);
        self.removed_points.fetch_add(removed.points, Ordering::Relaxed);
    }

    pub(super) fn set_waiting(&self, bytes: usize) {
        self.waiting_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// True for the first failure in a row.
    pub(super) fn failed(&self, error: &StoreError) -> bool {
        self.note(error);
        !self.is_failing.swap(true, Ordering::Relaxed)
    }

    /// True for the first failure in a row.
    pub(super) fn views_failed(&self, error: &StoreError) -> bool {
        self.note(error);
        !self.is_failing_views.swap(true, Ordering::Relaxed)
    }

    pub(super) fn recovered(&self) {
        self.is_failing.store(false, Ordering::Relaxed);
        self.forget();
    }

    pub(super) fn views_recovered(&self) {
        self.is_failing_views.store(false, Ordering::Relaxed);
        self.forget();
    }

    fn note(&self, error: &StoreError) {
        self.failures_total.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    fn forget(&self) {
        if !self.is_failing.load(Ordering::Relaxed) && !self.is_failing_views.load(Ordering::Relaxed) {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

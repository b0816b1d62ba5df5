//! What the sink hands over to the ledger: batches in order, and rollups after each minute.
//!
//! A scribe never waits for the disk. When the ledger takes nothing more, records become sums, which are written as
//! soon as it does again: what detail was lost is then in the stream itself.

use std::time::Duration;

use accounting::books::MAX_DEVICES;
use accounting::codec::{self, write_entry, write_share};
use accounting::entry::Entry;
use accounting::{BatchNumber, Books, LedgerId, Level, SealedBatch, ShareRecord};
use tokio::task::yield_now;

use super::Record;
use super::fold::Fold;
use super::keeper::CLOSED_AT_ONCE;
use crate::clock::Clock;
use crate::ledger::{Head, LedgerWriter, Outgoing};

/// Entries of one batch at most: as many as a fast farm makes within a commit interval.
const MAX_BATCH: u32 = 4096;

/// Bytes of entries that are no records and wait for a failing disk; further ones are left out.
const MAX_KEPT_BYTES: usize = 4 * 1024 * 1024;

/// See the module's documentation.
pub(super) struct Scribe {
    id: LedgerId,
    /// The last batch that was handed over.
    head: Head,
    writer: LedgerWriter,
    commit_interval: Duration,
    pub(super) clock: Clock,
    payload: Vec<u8>,
    count: u32,
    times_us: (u64, u64),
    /// The open minute as whoever reads the stream so far has it, in unix seconds.
    told_minute: u64,
    /// When the open batch was begun, on the monotonic clock.
    begun: Option<Duration>,
    /// Sums of records for which the ledger had no room.
    gap: Option<Fold>,
}

impl Scribe {
    pub(super) fn new(
        id: LedgerId,
        head: Head,
        writer: LedgerWriter,
        commit_interval: Duration,
        clock: Clock,
    ) -> Self {
        Scribe {
            id,
            head,
            writer,
            commit_interval,
            clock,
            payload: Vec::new(),
            count: 0,
            times_us: (u64::MAX, 0),
            told_minute: 0,
            begun: None,
            gap: None,
        }
    }

    /// The number of the open batch.
    pub(super) fn open_batch(&self) -> BatchNumber {
        self.head.number.next()
    }

    /// When the open batch is to be handed over; `None` while it is empty.
    pub(super) fn due(&self) -> Option<Duration> {
        self.begun.map(|begun| begun + self.commit_interval)
    }

    pub(super) fn share(&mut self, share: &ShareRecord, at_us: u64) {
        write_share(&mut self.payload, share);
        self.note(at_us);
    }

    pub(super) fn entry(&mut self, entry: &Entry) {
        write_entry(&mut self.payload, entry);
        self.note(entry.at_us());
        if let Entry::MinuteEnded(start) = entry {
            self.told_minute = self.told_minute.max(start + Level::Minute.seconds());
        }
    }

    /// See the field.
    pub(super) fn told_minute(&self) -> u64 {
        self.told_minute
    }

    /// Whether there are records that the ledger had no room for.
    pub(super) fn has_gap(&self) -> bool {
        self.gap.is_some()
    }

    /// Whether the open batch has as many entries as one may have.
    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_BATCH
    }

    /// Hands the open batch over, or makes sums of it if the ledger has no room. Nothing is done with an empty one. True
    /// when a gap was closed: what waited for that can be rolled up now.
    pub(super) fn seal(&mut self) -> bool {
        if self.count == 0 && self.gap.is_none() {
            return false;
        }
        if !self.writer.has_room() {
            self.fold();
            return false;
        }
        let had_gap = self.gap.is_some();
        if let Some(gap) = self.gap.take() {
            gap.into_entries().iter().for_each(|entry| self.entry(entry));
        }
        let room = Vec::with_capacity(self.payload.len());
        let payload = std::mem::replace(&mut self.payload, room);
        let number = self.open_batch();
        let batch = SealedBatch::seal(self.id, number, self.times_us, self.count, payload, self.head.hash);
        self.begin();
        let head = Head { number, hash: batch.hash };
        match self.writer.send(Outgoing::Batch(batch)) {
            Ok(()) => {
                self.head = head;
                had_gap
            }
            // It was full again, or the end was asked for: the number is not used up, because nobody has seen it.
            Err(batch) => {
                self.payload = batch.payload;
                self.count = batch.count;
                self.times_us = (batch.first_us, batch.last_us);
                self.fold();
                false
            }
        }
    }

    /// Hands a rollup over of everything that was handed over so far. While there is something that was not, the books
    /// hold more than any batch does, and a rollup of them would be counted twice after a restart: it waits.
    pub(super) async fn roll_up(&mut self, books: &mut Books) {
        if self.gap.is_some() || self.count > 0 {
            return books.shed_points();
        }
        while books.close_some(CLOSED_AT_ONCE) {
            yield_now().await;
        }
        let mut roll_up = Box::new(books.begin_roll_up(self.head.number));
        while books.roll_up_some(&mut roll_up, CLOSED_AT_ONCE) {
            yield_now().await;
        }
        drop(self.writer.send(Outgoing::RollUp(roll_up)));
    }

    fn begin(&mut self) {
        self.payload.clear();
        self.count = 0;
        self.times_us = (u64::MAX, 0);
        self.begun = None;
    }

    fn note(&mut self, at_us: u64) {
        self.count += 1;
        self.times_us = (self.times_us.0.min(at_us), self.times_us.1.max(at_us));
        self.told_minute = self.told_minute.max(Level::Minute.start(at_us / 1_000_000));
        if self.begun.is_none() {
            self.begun = Some(self.clock.now().monotonic);
        }
    }

    /// Makes sums of the records in the open batch; what is no record stays.
    fn fold(&mut self) {
        let payload = std::mem::take(&mut self.payload);
        self.begin();
        let mut gap = self.gap.take().unwrap_or_else(|| Fold::of(MAX_DEVICES));
        for entry in codec::entries(&payload) {
            match entry.expect("it was written here") {
                Entry::Share(share) => gap.add_record(&Record::Share(share)),
                Entry::Release(release) => gap.add_record(&Record::Release(release)),
                Entry::Answer(answer) => gap.add_record(&Record::Answer(answer)),
                // The gap was taken back with its batch.
                Entry::Gap(earlier) => gap.add_gap(&earlier),
                Entry::Connection(connection) => gap.add_connection(connection),
                other if self.payload.len() < MAX_KEPT_BYTES => self.entry(&other),
                _ => {}
            }
        }
        self.gap = Some(gap);
        // Looked at again after an interval.
        self.begun = Some(self.clock.now().monotonic);
    }
}

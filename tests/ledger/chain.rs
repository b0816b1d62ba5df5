//! A stream whose every batch and rollup follows from its number, so that whoever reads it knows what it must be.

use accounting::{BatchNumber, LedgerId, Level, Point, RollUp, SealedBatch, Subject, Sums};
use checkweigh::ledger::{Head, Opening, Reader, Retention, SqliteReader};
use stratum::DeviceId;

/// 2026-11-25T00:00:00Z.
const START: u64 = 1_795_564_800;

/// Seconds from one batch to the next: days and pages go by fast.
const STEP: u64 = 600;

/// Devices that have points.
const DEVICES: u32 = 20;

/// Nothing goes while a test runs.
pub(crate) const KEEP_ALL: Retention = Retention {
    records_days: 36_500,
    records_bytes: u64::MAX,
    minutes_days: 36_500,
    ten_minutes_days: 36_500,
    hours_days: 36_500,
};

pub(crate) fn payload(number: BatchNumber) -> Vec<u8> {
    (0..200 + number.0 % 3000).map(|place| (place * 7 + number.0) as u8).collect()
}

fn second(number: BatchNumber) -> u64 {
    START + number.0 * STEP
}

/// The batch that follows.
pub(crate) fn next(ledger: LedgerId, head: Head) -> SealedBatch {
    let number = head.number.next();
    let us = second(number) * 1_000_000;
    SealedBatch::seal(ledger, number, (us, us + 999_999), 7, payload(number), head.hash)
}

fn count(number: u64) -> Sums {
    let mut sums = Sums::default();
    sums.shares.submitted = number;
    sums
}

/// Sums up to a batch: each adds one to everything.
pub(crate) fn roll_up(watermark: BatchNumber) -> RollUp {
    let subjects: Vec<Subject> =
        std::iter::once(Subject::Fleet).chain((0..DEVICES).map(|id| Subject::Device(DeviceId(id)))).collect();
    let mut points = Vec::new();
    for level in Level::ALL {
        let start = level.start(second(watermark));
        let first = watermark.0 - (second(watermark) - start).min(watermark.0 * STEP - STEP) / STEP;
        let sums = count(watermark.0 - first + 1);
        points.extend(subjects.iter().map(|&subject| Point { subject, level, start, sums: sums.clone() }));
    }
    let sums = subjects.into_iter().map(|subject| (subject, count(watermark.0))).collect();
    RollUp { watermark, points, sums, ..RollUp::default() }
}

/// Holds a ledger against what it must be. Returns what it says of itself.
pub(crate) fn check(reader: &SqliteReader) -> Opening {
    let opening = reader.opening().expect("it can be read");
    assert_eq!(opening.damage, [], "a process that ends damages nothing");
    let mut head = Head::NONE;
    for batch in reader.batches(BatchNumber(0)).expect("they can be read") {
        let batch = batch.expect("it can be read");
        assert_eq!(batch, next(opening.ledger, head), "each once, in order, as it was written");
        head = Head { number: batch.number, hash: batch.hash };
    }
    assert_eq!(opening.head, head);
    assert!(opening.watermark <= head.number, "no sum is ahead of the batches");
    for (subject, sums) in &opening.sums {
        assert_eq!(sums.shares.submitted, opening.watermark.0, "{subject:?}");
    }
    let device = Subject::Device(DeviceId(DEVICES - 1));
    for level in [Level::Hour, Level::Day] {
        let points = reader.points(device, level, 0, u64::MAX).expect("they can be read");
        let sum: u64 = points.iter().map(|(_, sums)| sums.shares.submitted).sum();
        assert_eq!(sum, opening.watermark.0, "every batch is in one {} alone", level.name());
    }
    opening
}

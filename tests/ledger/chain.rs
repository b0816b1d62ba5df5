//! A stream whose every batch and rollup follows from its number, so that whoever reads it knows what it must be.

use std::time::Duration;

use accounting::{
    BatchNumber, Entry, Fate, LedgerId, Level, Point, RollUp, SealedBatch, ShareRecord, Subject, Sums,
    Verdict, codec,
};
use checkweigh::ledger::verify::verify;
use checkweigh::ledger::{Head, Opening, Reader, Retention, SqliteReader};
use stratum::{ChannelId, ConnectionId, DeviceId, Now, Work};

/// 2026-11-25T00:00:00Z.
const START: u64 = 1_795_564_800;

/// Seconds from one batch to the next: days and pages go by fast.
const STEP: u64 = 600;

/// Devices that have points.
pub(crate) const DEVICES: u32 = 20;

/// Nothing goes while a test runs.
pub(crate) const KEEP_ALL: Retention = Retention {
    records_days: 36_500,
    records_bytes: u64::MAX,
    minutes_days: 36_500,
    ten_minutes_days: 36_500,
    hours_days: 36_500,
};

/// A share of each device, which is kept.
fn payload(number: BatchNumber) -> Vec<u8> {
    let mut payload = Vec::new();
    let utc = Duration::from_secs(second(number));
    for device in 0..DEVICES {
        let share =
            share(Now { monotonic: Duration::ZERO, utc }, DeviceId(device), Verdict::Accepted, Work(0));
        codec::write_entry(&mut payload, &Entry::Share(share));
    }
    payload
}

/// A share where we are the pool.
pub(crate) fn share(judged: Now, device: DeviceId, verdict: Verdict, submitted: Work) -> ShareRecord {
    let is_accepted = verdict == Verdict::Accepted;
    ShareRecord {
        judged,
        device: Some(device),
        connection: ConnectionId(device.0.into()),
        channel: ChannelId(0),
        upstream: None,
        upstream_channel: None,
        job: None,
        verdict,
        fate: if is_accepted { Fate::Kept } else { Fate::Refused },
        sequence_number: None,
        submitted,
        upstream_work: Work(0),
        difficulty: None,
        job_age_ms: 7,
        version: 0x2000_0000,
        ntime: judged.utc.as_secs() as u32,
        nonce: device.0,
        rollable: Default::default(),
    }
}

fn second(number: BatchNumber) -> u64 {
    START + number.0 * STEP
}

/// The batch that follows.
pub(crate) fn next(ledger: LedgerId, head: Head) -> SealedBatch {
    let number = head.number.next();
    let us = second(number) * 1_000_000;
    SealedBatch::seal(ledger, number, (us, us + 999_999), DEVICES, payload(number), head.hash)
}

fn count(number: u64) -> Sums {
    let mut sums = Sums::default();
    (sums.shares.submitted, sums.shares.accepted, sums.shares.kept) = (number, number, number);
    sums
}

fn devices_in(subject: Subject) -> u64 {
    if subject == Subject::Fleet { DEVICES.into() } else { 1 }
}

/// Sums up to a batch: each adds one to everything.
pub(crate) fn roll_up(watermark: BatchNumber) -> RollUp {
    let subjects: Vec<Subject> =
        std::iter::once(Subject::Fleet).chain((0..DEVICES).map(|id| Subject::Device(DeviceId(id)))).collect();
    let mut points = Vec::new();
    for level in Level::ALL {
        let start = level.start(second(watermark));
        let first = watermark.0 - (second(watermark) - start).min(watermark.0 * STEP - STEP) / STEP;
        let number = watermark.0 - first + 1;
        let point =
            |subject| Point { subject, level, start, sums: count(number * devices_in(subject)).into() };
        points.extend(subjects.iter().copied().map(point));
    }
    let sums = |subject| (subject, count(watermark.0 * devices_in(subject)).into());
    let sums = subjects.into_iter().map(sums).collect();
    RollUp { watermark, waiting_from: watermark.next(), points, sums, ..RollUp::default() }
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
        assert_eq!(sums.sums().shares.submitted, opening.watermark.0 * devices_in(*subject), "{subject:?}");
    }
    let device = Subject::Device(DeviceId(DEVICES - 1));
    for level in [Level::Hour, Level::Day] {
        let points = reader.points(device, level, 0, u64::MAX).expect("they can be read");
        let sum: u64 = points.iter().map(|(_, sums)| sums.shares.submitted).sum();
        assert_eq!(sum, opening.watermark.0, "every batch is in one {} alone", level.name());
    }
    let found = verify(reader, |_, _| {}).expect("it can be read");
    assert_eq!((found.faults, found.batches), (Vec::new(), head.number.0));
    opening
}

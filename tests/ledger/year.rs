//! A year of a fleet: one device with every hour of it, and others around it.

use accounting::{BatchNumber, Level, PackedSums, Point, RollUp, SealedBatch, Subject, Sums};
use checkweigh::ledger::{Head, SqliteStore, SqliteViews, Store, Views};
use stratum::{DeviceId, Work};

/// 2026-01-01T00:00:00Z.
pub(crate) const YEAR: u64 = 1_767_225_600;

/// Hours of the year.
pub(crate) const HOURS: u64 = 365 * 24;

/// The device with every hour of the year.
pub(crate) const WHOLE: DeviceId = DeviceId(7);

/// Sums as an hour of a device has them.
pub(crate) fn hour(number: u64) -> Sums {
    let mut sums = Sums::default();
    let shares = &mut sums.shares;
    (shares.submitted, shares.accepted) = (480 + number % 7, 480);
    shares.rejected[0] = number % 7;
    (shares.forwarded, shares.below_upstream_target) = (30, 450);
    shares.credited = Work(480 << 50);
    shares.submitted_work = Work((480 << 50) + u128::from(number));
    shares.upstream_work = Work(30 << 54);
    shares.forwarded_work = Work(30 << 54);
    (sums.answers.forwarded, sums.answers.acknowledged) = (30, 30);
    (sums.answers.forwarded_work, sums.answers.acknowledged_work) = (Work(30 << 54), Work(30 << 54));
    sums.energy.millijoules[0] = 3500 * 3600 * 1000;
    sums.squared_work = 480.0 * 2f64.powi(100);
    sums
}

/// Writes the year: every hour of [`WHOLE`], and of the others every `step`th hour, so that they have all their pages
/// with less in them. Points are packed as time goes on, as they are in a running process.
pub(crate) fn write(store: &mut SqliteStore, views: &mut SqliteViews, devices: u32, step: u64) {
    let times = (YEAR * 1_000_000, YEAR * 1_000_000);
    let batch = SealedBatch::seal(store.ledger(), BatchNumber(1), times, 0, Vec::new(), Head::NONE.hash);
    store.append(&batch).expect("it is appended");
    for day in 0..HOURS / 24 {
        let mut roll_up = RollUp { watermark: BatchNumber(1), ..RollUp::default() };
        for number in day * 24..(day + 1) * 24 {
            let start = YEAR + number * 3600;
            let sums = PackedSums::from(hour(number));
            let all = if number % step == 0 { 0..devices } else { WHOLE.0..WHOLE.0 + 1 };
            roll_up.points.extend(all.map(|id| Point {
                subject: Subject::Device(DeviceId(id)),
                level: Level::Hour,
                start,
                sums: sums.clone(),
            }));
        }
        // Minutes say what time it is.
        let (start, sums) = (YEAR + (day * 24 + 23) * 3600, hour(day).into());
        roll_up.points.push(Point { subject: Subject::Fleet, level: Level::Minute, start, sums });
        if day == 0 {
            roll_up.sums = (0..devices).map(|id| (Subject::Device(DeviceId(id)), hour(0).into())).collect();
        }
        views.roll_up(&roll_up).expect("it is kept");
        while views.tidy().expect("it is packed") {}
    }
}

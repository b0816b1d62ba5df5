//! Who has proved how much: the table of devices and their hash rates.
//!
//! A hash rate here is what a device proved with accepted shares in a window of time; nothing that it says of
//! itself is in it.

use std::sync::Arc;
use std::time::Duration;

use mining_server::ShareRecord;
use stratum::{DeviceId, Difficulty, HashRate, Now};

use accounting::ShareSums;

/// Devices that are counted apart: the greatest farms have some hundred thousand, and each entry takes less than
/// a kilobyte. Beyond, shares count for the fleet and for [`DeviceTable::untracked`] alone.
pub const MAX_DEVICES: usize = 262_144;

/// Length of one bucket of a window.
const BUCKET: Duration = Duration::from_secs(30);

/// Buckets that are kept: ten minutes.
const BUCKETS: usize = 20;

/// Buckets of the short window: the current one and the two before, which is 60 to 90 seconds.
const SHORT: u64 = 3;

/// A hash rate, how long was looked at, and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateEstimate {
    /// Accepted work over time.
    pub rate: HashRate,
    /// The time that was looked at.
    pub window: Duration,
    /// Relative standard error: the square root of the sum of the shares' squared works over the sum of their works.
    pub uncertainty: f64,
}

/// One device at one moment.
#[derive(Clone, Debug)]
pub struct DeviceSummary {
    /// Its number.
    pub id: DeviceId,
    /// Its worker name, when it was announced.
    pub name: Option<Arc<str>>,
    /// When it was announced, or its first share came.
    pub first_seen: Now,
    /// When it was announced again, or its latest share came.
    pub last_seen: Now,
    /// When its latest accepted share came.
    pub last_share: Option<Now>,
    /// What became of its shares.
    pub shares: ShareSums,
    /// The hardest difficulty that a hash of its accepted shares reached.
    pub best_difficulty: Option<Difficulty>,
    /// What it proved in the last minute or so; `None` when it proved nothing.
    pub hash_rate_1m: Option<RateEstimate>,
    /// What it proved in the last ten minutes or so; `None` when it proved nothing.
    pub hash_rate_10m: Option<RateEstimate>,
}

/// All devices.
#[derive(Default)]
pub(super) struct DeviceTable {
    /// By their numbers, which the registry gives without gaps.
    devices: Vec<Option<Box<Device>>>,
    /// How many of them there are.
    known: usize,
    /// Shares of devices beyond [`MAX_DEVICES`].
    pub(super) untracked: ShareSums,
    fleet: Window,
    first_share: Option<Now>,
}

struct Device {
    name: Option<Arc<str>>,
    first_seen: Now,
    last_seen: Now,
    last_share: Option<Now>,
    shares: ShareSums,
    best_difficulty: Option<Difficulty>,
    window: Window,
}

impl DeviceTable {
    pub(super) fn announce(&mut self, id: DeviceId, name: Arc<str>, now: Now) {
        if let Some(device) = self.device(id, now) {
            device.name = Some(name);
            device.last_seen = device.last_seen.max(now);
        }
    }

    pub(super) fn add_share(&mut self, share: &ShareRecord) {
        let work = share.credited().0 as f64;
        self.note_fleet(share.judged, work, work * work);
        let Some(id) = share.device else { return };
        let Some(device) = self.device(id, share.judged) else {
            self.untracked.add_share(share);
            return;
        };
        device.shares.add_share(share);
        device.last_seen = device.last_seen.max(share.judged);
        if work > 0.0 {
            device.last_share = device.last_share.max(Some(share.judged));
            device.window.add(share.judged.monotonic, work, work * work);
            let best = device.best_difficulty.into_iter().chain(share.difficulty);
            device.best_difficulty = best.reduce(|a, b| if a.0 < b.0 { b } else { a });
        }
    }

    /// Adds shares whose detail was lost; the last of them came at `now`. Their works count as equal.
    pub(super) fn add_sums(&mut self, id: Option<DeviceId>, sums: &ShareSums, now: Now) {
        let work = sums.credited.0 as f64;
        let squares = if sums.accepted == 0 { 0.0 } else { work * work / sums.accepted as f64 };
        self.note_fleet(now, work, squares);
        let Some(id) = id else { return };
        let Some(device) = self.device(id, now) else {
            self.untracked.add(sums);
            return;
        };
        device.shares.add(sums);
        device.last_seen = device.last_seen.max(now);
        if work > 0.0 {
            device.last_share = device.last_share.max(Some(now));
            device.window.add(now.monotonic, work, squares);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known
    }

    /// What the whole fleet proved in the short and the long window.
    pub(super) fn fleet_rates(&self, now: Now) -> [Option<RateEstimate>; 2] {
        let Some(first) = self.first_share else { return [None, None] };
        [SHORT, BUCKETS as u64].map(|buckets| self.fleet.rate(now.monotonic, first.monotonic, buckets))
    }

    /// All devices in the order of their numbers.
    pub(super) fn summaries(&self, now: Now) -> Vec<DeviceSummary> {
        let known = self.devices.iter().enumerate();
        let known = known.filter_map(|(id, device)| Some((DeviceId(id as u32), device.as_ref()?)));
        known.map(|(id, device)| device.summary(id, now)).collect()
    }

    fn note_fleet(&mut self, now: Now, work: f64, squares: f64) {
        if work > 0.0 {
            self.first_share.get_or_insert(now);
            self.fleet.add(now.monotonic, work, squares);
        }
    }

    fn device(&mut self, id: DeviceId, now: Now) -> Option<&mut Device> {
        let index = id.0 as usize;
        if index >= MAX_DEVICES {
            return None;
        }
        if index >= self.devices.len() {
            self.devices.resize_with(index + 1, || None);
        }
        let known = &mut self.known;
        Some(self.devices[index].get_or_insert_with(|| {
            *known += 1;
            Box::new(Device {
                name: None,
                first_seen: now,
                last_seen: now,
                last_share: None,
                shares: ShareSums::default(),
                best_difficulty: None,
                window: Window::default(),
            })
        }))
    }
}

impl Device {
    fn summary(&self, id: DeviceId, now: Now) -> DeviceSummary {
        let rate = |buckets| self.window.rate(now.monotonic, self.first_seen.monotonic, buckets);
        DeviceSummary {
            id,
            name: self.name.clone(),
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            last_share: self.last_share,
            shares: self.shares.clone(),
            best_difficulty: self.best_difficulty,
            hash_rate_1m: rate(SHORT),
            hash_rate_10m: rate(BUCKETS as u64),
        }
    }
}

/// Accepted work of the last ten minutes in buckets. Floats, because rates are estimates; exact work is in the sums.
#[derive(Clone, Default)]
struct Window {
    buckets: [Bucket; BUCKETS],
    /// The number since time zero of the newest bucket.
    newest: u64,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    work: f64,
    squares: f64,
}

impl Window {
    fn add(&mut self, at: Duration, work: f64, squares: f64) {
        let number = bucket_number(at);
        if number > self.newest {
            let stale = (number - self.newest).min(BUCKETS as u64);
            for number in (number - stale + 1)..=number {
                self.buckets[slot(number)] = Bucket::default();
            }
            self.newest = number;
        }
        if number + BUCKETS as u64 > self.newest {
            let bucket = &mut self.buckets[slot(number)];
            bucket.work += work;
            bucket.squares += squares;
        }
    }

    /// The rate over the last `count` buckets, of which none began before `since`.
    fn rate(&self, now: Duration, since: Duration, count: u64) -> Option<RateEstimate> {
        let current = bucket_number(now);
        let first = (current + 1).saturating_sub(count);
        let oldest_kept = (self.newest + 1).saturating_sub(BUCKETS as u64);
        let (mut work, mut squares) = (0.0, 0.0);
        for number in first.max(oldest_kept)..=current.min(self.newest) {
            let bucket = self.buckets[slot(number)];
            work += bucket.work;
            squares += bucket.squares;
        }
        let start = since.max(BUCKET.saturating_mul(u32::try_from(first).unwrap_or(u32::MAX)));
        let window = now.saturating_sub(start);
        // The rate of a moment says nothing.
        if work == 0.0 || window < Duration::from_secs(1) {
            return None;
        }
        Some(RateEstimate {
            rate: HashRate(work / window.as_secs_f64()),
            window,
            uncertainty: squares.sqrt() / work,
        })
    }
}

fn bucket_number(at: Duration) -> u64 {
    at.as_secs() / BUCKET.as_secs()
}

fn slot(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_steady_device_has_its_rate_in_both_windows() {
        let mut window = Window::default();
        // One share of work 1000 every 10 seconds, at an uptime of days.
        for second in (400_000..401_000).step_by(10) {
            window.add(seconds(second), 1000.0, 1_000_000.0);
        }
        for count in [SHORT, BUCKETS as u64] {
            let estimate = window.rate(seconds(400_995), seconds(400_000), count).expect("shares came");
            assert!((estimate.rate.0 / 100.0 - 1.0).abs() < 0.07, "{estimate:?}");
            let shares = estimate.window.as_secs_f64() / 10.0;
            assert!((estimate.uncertainty * shares.sqrt() - 1.0).abs() < 0.07, "{estimate:?}");
        }
    }

    #[test]
    fn what_is_past_leaves_the_window() {
        let mut window = Window::default();
        window.add(seconds(1000), 5.0, 25.0);
        assert!(window.rate(seconds(1010), seconds(990), SHORT).is_some());
        assert!(window.rate(seconds(1100), seconds(990), SHORT).is_none());
        assert!(window.rate(seconds(1100), seconds(990), BUCKETS as u64).is_some());
        assert!(window.rate(seconds(1700), seconds(990), BUCKETS as u64).is_none());
        window.add(seconds(90_000), 7.0, 49.0);
        // A record that was delayed beyond the window changes nothing.
        window.add(seconds(1000), 5.0, 25.0);
        let estimate = window.rate(seconds(90_020), seconds(0), BUCKETS as u64).expect("one share");
        assert_eq!(estimate.rate.0 * estimate.window.as_secs_f64(), 7.0);
        assert_eq!(estimate.uncertainty, 1.0);
    }

    #[test]
    fn a_young_device_is_not_averaged_over_time_before_it_came() {
        let mut window = Window::default();
        window.add(seconds(905), 50.0, 2500.0);
        let estimate = window.rate(seconds(910), seconds(900), BUCKETS as u64).expect("one share");
        assert_eq!((estimate.rate, estimate.window), (HashRate(5.0), seconds(10)));
        assert_eq!(window.rate(seconds(905), seconds(905), SHORT), None);
    }
}

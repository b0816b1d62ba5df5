//! Hash rates that were proved, over four windows, with how far they may be off.
//!
//! A rate is work over time and nothing else: what a device says of itself is not in it. Floats, because rates are
//! estimates; exact work is in the sums. Nothing here says zero where nothing is known.

use stratum::HashRate;

/// A span of time that rates are looked at over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// One minute.
    Minute,
    /// Ten minutes.
    TenMinutes,
    /// One hour.
    Hour,
    /// 24 hours.
    Day,
}

impl Window {
    /// All windows, shortest first.
    pub const ALL: [Window; 4] = [Window::Minute, Window::TenMinutes, Window::Hour, Window::Day];

    /// The name in metrics and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Window::Minute => "1m",
            Window::TenMinutes => "10m",
            Window::Hour => "1h",
            Window::Day => "24h",
        }
    }
}

/// A hash rate, how long was looked at, and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateEstimate {
    /// Work over time, in hashes a second.
    pub rate: HashRate,
    /// The seconds that were looked at. The window begins with a bucket, so that it is not always of one length.
    pub window_seconds: f64,
    /// Relative standard error: the square root of the sum of the shares' squared works over the sum of their works.
    pub uncertainty: f64,
}

/// Both rates of one subject over one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RatePair {
    /// What it proved.
    pub accepted: Option<RateEstimate>,
    /// What it claimed, good or not.
    pub submitted: Option<RateEstimate>,
}

/// Works are kept in units of difficulty 1, so that their squares fit a short float.
const UNIT: f64 = 4_294_967_296.0;

/// The work of one share or of several, in expected hashes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecentWork {
    /// Its sum.
    pub(crate) work: f64,
    /// The sum of the squares.
    pub(crate) squares: f64,
}

/// The work of some time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    work: f32,
    squares: f32,
}

impl Bucket {
    fn add(&mut self, other: Bucket) {
        self.work += other.work;
        self.squares += other.squares;
    }
}

/// Buckets of one length, of which the oldest makes room for the newest.
#[derive(Clone, Debug)]
struct Ring<const N: usize> {
    buckets: [Bucket; N],
    /// The number since 1970 of the newest bucket.
    newest: u64,
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Ring { buckets: [Bucket::default(); N], newest: 0 }
    }
}

impl<const N: usize> Ring<N> {
    fn bucket(&mut self, number: u64) -> Option<&mut Bucket> {
        let length = N as u64;
        if number > self.newest {
            let stale = (number - self.newest).min(length);
            for number in (number - stale + 1)..=number {
                self.buckets[(number % length) as usize] = Bucket::default();
            }
            self.newest = number;
        }
        (number + length > self.newest).then(|| &mut self.buckets[(number % length) as usize])
    }

    /// Reads what the next work will change, for the sake of the reading.
    fn fetch(&self) -> u64 {
        let bucket = &self.buckets[(self.newest % N as u64) as usize];
        self.newest ^ u64::from(bucket.work.to_bits())
    }

    /// The work of the last `count` buckets up to the one that `now_us` lies in, and the seconds that they cover, no
    /// earlier than `since_us`.
    fn look(&self, now_us: u64, since_us: u64, seconds: u64, count: u64) -> (Bucket, f64) {
        let length_us = seconds * 1_000_000;
        let current = now_us / length_us;
        let first = (current + 1).saturating_sub(count);
        let oldest = (self.newest + 1).saturating_sub(N as u64);
        let mut sum = Bucket::default();
        for number in first.max(oldest)..=current.min(self.newest) {
            sum.add(self.buckets[(number % N as u64) as usize]);
        }
        let start = since_us.max(first * length_us);
        (sum, now_us.saturating_sub(start) as f64 / 1e6)
    }
}

/// The recent work of one subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    /// Half a kilobyte, which a device takes with its first share: a ledger knows many that mine no more.
    accepted: Option<Box<Rings>>,
    /// The same of refused shares, which many devices never have.
    refused: Option<Box<Rings>>,
    /// Since when something can have been proved, in unix microseconds; 0 while unknown.
    since_us: u64,
}

#[derive(Clone, Debug, Default)]
struct Rings {
    /// 20 seconds each: one minute is the current one and the three before, 60 to 80 seconds.
    short: Ring<31>,
    /// Five minutes each, for an hour.
    middle: Ring<13>,
    /// Two hours each, for a day.
    long: Ring<13>,
}

const SHORT_SECONDS: u64 = 20;
const MIDDLE_SECONDS: u64 = 300;
const LONG_SECONDS: u64 = 7200;

impl Rates {
    /// Says since when something can have been proved, unless that is known.
    pub(crate) fn begin(&mut self, at_us: u64) {
        if self.since_us == 0 {
            self.since_us = at_us;
        }
    }

    /// Adds shares that were accepted, or refused.
    pub(crate) fn add(&mut self, at_us: u64, work: RecentWork, is_refused: bool) {
        self.begin(at_us);
        if work.work > 0.0 {
            let rings = if is_refused { &mut self.refused } else { &mut self.accepted };
            rings.get_or_insert_default().add(at_us, work);
        }
    }

    /// Reads what the next share will change, for the sake of the reading: see [`crate::Books::fetch`].
    pub(crate) fn fetch(&self) -> u64 {
        let of_rings = |rings: &Rings| rings.short.fetch() ^ rings.middle.fetch() ^ rings.long.fetch();
        self.accepted.as_deref().map_or(0, of_rings) ^ self.since_us
    }

    /// The rates over a window that ends now.
    pub(crate) fn over(&self, window: Window, now_us: u64) -> RatePair {
        let look = |rings: &Option<Box<Rings>>| {
            rings.as_ref().map(|rings| rings.look(window, now_us, self.since_us)).unwrap_or_default()
        };
        let (accepted, refused) = (look(&self.accepted), look(&self.refused));
        let mut submitted = accepted.0;
        submitted.add(refused.0);
        RatePair {
            accepted: estimate(accepted.0, accepted.1),
            submitted: estimate(submitted, accepted.1.max(refused.1)),
        }
    }
}

impl Rings {
    fn add(&mut self, at_us: u64, work: RecentWork) {
        let more = Bucket { work: (work.work / UNIT) as f32, squares: (work.squares / UNIT / UNIT) as f32 };
        let buckets = [
            self.short.bucket(at_us / (SHORT_SECONDS * 1_000_000)),
            self.middle.bucket(at_us / (MIDDLE_SECONDS * 1_000_000)),
            self.long.bucket(at_us / (LONG_SECONDS * 1_000_000)),
        ];
        buckets.into_iter().flatten().for_each(|bucket| bucket.add(more));
    }

    /// The work of a window that ends now, and the seconds that it covers.
    fn look(&self, window: Window, now_us: u64, since_us: u64) -> (Bucket, f64) {
        match window {
            Window::Minute => self.short.look(now_us, since_us, SHORT_SECONDS, 4),
            Window::TenMinutes => self.short.look(now_us, since_us, SHORT_SECONDS, 31),
            Window::Hour => self.middle.look(now_us, since_us, MIDDLE_SECONDS, 13),
            Window::Day => self.long.look(now_us, since_us, LONG_SECONDS, 13),
        }
    }
}

fn estimate(sum: Bucket, seconds: f64) -> Option<RateEstimate> {
    let (work, squares) = (f64::from(sum.work), f64::from(sum.squares));
    // The rate of a moment says nothing.
    if work <= 0.0 || seconds < 1.0 {
        return None;
    }
    let rate = HashRate(work * UNIT / seconds);
    Some(RateEstimate { rate, window_seconds: seconds, uncertainty: squares.sqrt() / work })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn recent(work: f64) -> RecentWork {
        RecentWork { work, squares: work * work }
    }

    #[test]
    fn a_steady_device_has_its_rate_in_every_window() {
        let mut rates = Rates::default();
        let work = 1000.0 * UNIT;
        let start = 1_795_000_000;
        for second in (start..start + 90_000).step_by(10) {
            for is_refused in [false, true] {
                rates.add(second * SECOND, recent(work), is_refused);
            }
        }
        for window in Window::ALL {
            let pair = rates.over(window, (start + 89_995) * SECOND);
            let accepted = pair.accepted.expect("shares came");
            assert!((accepted.rate.0 / (work / 10.0) - 1.0).abs() < 0.1, "{window:?}: {accepted:?}");
            let shares = accepted.window_seconds / 10.0;
            assert!((accepted.uncertainty * shares.sqrt() - 1.0).abs() < 0.1, "{window:?}: {accepted:?}");
            let submitted = pair.submitted.expect("shares came");
            assert!((submitted.rate.0 / accepted.rate.0 - 2.0).abs() < 1e-3);
            let certainty = submitted.uncertainty / accepted.uncertainty * 2f64.sqrt();
            assert!((certainty - 1.0).abs() < 1e-3, "twice the shares: {certainty}");
        }
    }

    #[test]
    fn what_is_past_leaves_each_window_in_its_time() {
        let mut rates = Rates::default();
        let start = 1_795_000_000 * SECOND;
        rates.add(start, recent(UNIT), false);
        let is_known = |window, after: u64| rates.over(window, start + after * SECOND).accepted.is_some();
        assert!(is_known(Window::Minute, 30) && !is_known(Window::Minute, 100));
        assert!(is_known(Window::TenMinutes, 500) && !is_known(Window::TenMinutes, 700));
        assert!(is_known(Window::Hour, 3000) && !is_known(Window::Hour, 4500));
        assert!(is_known(Window::Day, 80_000) && !is_known(Window::Day, 100_000));
        assert_eq!(rates.over(Window::Minute, start).accepted, None, "a moment says nothing");
    }

    #[test]
    fn a_young_device_is_not_averaged_over_time_before_it_came() {
        let mut rates = Rates::default();
        let start = 1_795_000_000 * SECOND;
        rates.add(start, recent(50.0 * UNIT), false);
        let rate = rates.over(Window::Day, start + 10 * SECOND).accepted.expect("one share");
        assert_eq!((rate.rate, rate.window_seconds), (HashRate(5.0 * UNIT), 10.0));
    }
}

//! Vardiff: control of one downstream's difficulty, on the grid of powers of two.
//!
//! Two cumulative-sum tests (Page 1954: a sequential probability ratio test that starts anew whenever its evidence
//! is used up) run side by side: one asks whether the share rate has risen above the wanted one, one whether it
//! has fallen below. They look back no further than the change that they suspect, so the reaction is the same
//! after a month as after ten minutes, and a handful of numbers replaces a window of shares.
//!
//! Both tests take any rate within a factor of sqrt(2) of the wanted one as right. That is the whole distance
//! between two grid points, so a device whose ideal difficulty lies half-way is content with either neighbour.
//!
//! At 8 shares a minute an eightfold rise is followed in about 40 seconds and a fourfold drop in about 7 minutes.
//! A first difficulty that is too easy by 2^20 is left within a second of flood, one too hard by as much in about 8
//! minutes: silence takes some 2^4 off every 100 seconds.
//!
//! This module never reads a clock, never sends anything, and never judges a share: its caller credits shares,
//! asks for changes, and applies each change to the jobs it sends from then on. What it estimates is a hash rate,
//! not an account: exact work is summed elsewhere.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2, SQRT_2};
use std::time::Duration;

use crate::target::{HashRate, Work};

/// The easiest difficulty exponent: [`Target::MAX`](crate::Target::MAX).
pub const EASIEST_EXPONENT: i32 = -32;

/// The hardest difficulty exponent: the last power of two whose target is a whole number.
pub const HARDEST_EXPONENT: i32 = 223;

/// Share rates, in units of the wanted one, that the rise test tells apart: the highest that is still right, and
/// the double of it, at which one grid point more would again be right.
const RISE_RATES: (f64, f64) = (SQRT_2, 2.0 * SQRT_2);

/// The same for the fall test: the lowest rate that is still right, and half of it, at which one grid point less
/// would again be right.
const FALL_RATES: (f64, f64) = (FRAC_1_SQRT_2, 0.5 * FRAC_1_SQRT_2);

/// Evidence, in nats, at which a rise is believed. About e^12 shares pass between two false rises of a device
/// at the edge of the right rates, which is the worst place.
const RISE_THRESHOLD: f64 = 12.0;

/// Evidence, in nats, at which a fall is believed. Lower than for a rise, because evidence of absent shares
/// comes slowly and because a fall is tested against a lower rate, hence less often.
const FALL_THRESHOLD: f64 = 9.5;

/// Evidence, in nats, at which a fall is believed of a device whose hash rate is unknown: a newcomer, or one that
/// has gone silent. Lower, because nothing has shown that its difficulty was ever right.
const UNKNOWN_FALL_THRESHOLD: f64 = 3.5;

/// Shares that all come within this many seconds are no more than [`BURST_LIMIT`] of evidence of a rise, because a
/// stalled link, or a miner that submits again after a reconnection, delivers minutes of shares at once...
const BURST_SECONDS: f64 = 5.0;

/// ...half of what a rise needs, in nats...
const BURST_LIMIT: f64 = RISE_THRESHOLD / 2.0;

/// ...unless they are more than any such pause can have gathered.
const FLOOD_SHARES: f64 = 512.0;

/// A rise waits for this many shares, so that the jump lands where it should. They come fast when it rises.
const FEWEST_RISE_SHARES: f64 = 32.0;

/// A change is looked at again when this many shares have come since the hash rate changed, and once more at the
/// second number: the dozen shares that show a fall tell its size to a quarter only, and a difficulty that is one
/// grid point off looks almost right to both tests. Both numbers are below [`AVERAGED_SHARES`].
const LOOKS: [f64; 2] = [48.0, 96.0];

/// Shares from before a change count as no more than this, so that each look sees mostly new ones: a flood says
/// what the link can carry, which may be less than what the miner makes.
const FIRST_SHARES: f64 = 24.0;

/// At such a look, a difficulty this many grid points off its ideal is corrected: more than half a point, which
/// even the nearest may be off by.
const LOOK_DISTANCE: f64 = 0.7;

/// Seconds for which a change may wait for the next job, and shares say nothing of the new difficulty: jobs are
/// refreshed at least that often.
const SETTLING_SECONDS: f64 = 20.0;

/// The hash rate is averaged over about this many shares (9 % standard error)...
const AVERAGED_SHARES: f64 = 128.0;

/// ...and over no more than about this many seconds, so that the idle hours of a device at the minimum difficulty
/// do not weigh on what it does now.
const AVERAGED_SECONDS: f64 = 4.0 * 3600.0;

/// With fewer shares than this, the hash rate is unknown: one lucky share would be off by orders of magnitude.
const FEWEST_SHARES: f64 = 4.0;

/// What vardiff aims for; the same for all downstreams of a listener.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VardiffConfig {
    /// Wanted rate of accepted shares of one downstream; 0.1 to 600. Time to react and time between false changes
    /// are both in proportion to its inverse.
    pub shares_per_minute: f64,
    /// Exponent of the easiest difficulty that vardiff gives; [`EASIEST_EXPONENT`] to [`HARDEST_EXPONENT`].
    pub minimum_exponent: i32,
    /// Exponent of the difficulty of a downstream of which nothing is known; `minimum_exponent` to
    /// [`HARDEST_EXPONENT`].
    pub initial_exponent: i32,
}

/// A value of [`VardiffConfig`] that is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VardiffConfigError {
    /// `shares_per_minute` is not a number from 0.1 to 600.
    #[error("shares_per_minute must be from 0.1 to 600")]
    SharesPerMinute,
    /// `minimum_exponent` is off the grid.
    #[error("the minimum difficulty must be from 2^-32 to 2^223")]
    MinimumExponent,
    /// `initial_exponent` is below the minimum or off the grid.
    #[error("the initial difficulty must be from the minimum difficulty to 2^223")]
    InitialExponent,
}

impl VardiffConfig {
    /// Checks every range; the error names the first value that is out of it.
    pub fn validate(&self) -> Result<(), VardiffConfigError> {
        if !(0.1..=600.0).contains(&self.shares_per_minute) {
            return Err(VardiffConfigError::SharesPerMinute);
        }
        if !(EASIEST_EXPONENT..=HARDEST_EXPONENT).contains(&self.minimum_exponent) {
            return Err(VardiffConfigError::MinimumExponent);
        }
        if !(self.minimum_exponent..=HARDEST_EXPONENT).contains(&self.initial_exponent) {
            return Err(VardiffConfigError::InitialExponent);
        }
        Ok(())
    }

    /// Wanted shares in `seconds`.
    fn wanted(&self, seconds: f64) -> f64 {
        self.shares_per_minute / 60.0 * seconds
    }
}

/// One downstream's difficulty and the evidence for changing it. Below 96 bytes: there is one per miner.
#[derive(Clone, Debug)]
pub struct Vardiff {
    rise: Test,
    fall: Test,
    average: Average,
    /// Seconds of monotonic time up to which all is counted. Lies ahead of now while a change settles.
    counted_until: f64,
    exponent: i32,
    /// A change has been made, and nothing shows yet that the miner uses it.
    settling: bool,
    /// How many of [`LOOKS`] at the last change are done.
    looks_done: u8,
}

impl Vardiff {
    /// Starts at difficulty 2^`initial_exponent`, raised to the configured minimum, with nothing known, at
    /// monotonic time `now`.
    pub fn new(config: &VardiffConfig, initial_exponent: i32, now: Duration) -> Self {
        let now = now.as_secs_f64();
        Vardiff {
            rise: Test::starting(now),
            fall: Test::starting(now),
            average: Average::default(),
            counted_until: now,
            exponent: on_grid(initial_exponent.max(config.minimum_exponent)),
            settling: false,
            looks_done: LOOKS.len() as u8,
        }
    }

    /// The exponent of the difficulty for jobs sent from now on.
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// Sets the exponent from outside: a suggested difficulty, a password option. Vardiff goes on from there; the
    /// next [`Vardiff::check`] brings one that is out of bounds within them. All evidence starts anew, so a caller
    /// that grants a peer's every wish lets it hold vardiff still.
    pub fn set_exponent(&mut self, exponent: i32, now: Duration) {
        self.settle_at(on_grid(exponent), now.as_secs_f64());
    }

    /// Counts one accepted share that was credited at difficulty 2^`exponent_of_share`: that of its own job, when
    /// it was sent before a change.
    pub fn on_share(&mut self, config: &VardiffConfig, exponent_of_share: i32, now: Duration) {
        let exponent_of_share = on_grid(exponent_of_share);
        let now = now.as_secs_f64();
        self.count_time(config, now);
        if self.settling {
            // An easier share is of a job from before the change. Any other ends the wait, and as what ended it,
            // it is no part of the count: it came for certain.
            if exponent_of_share >= self.exponent {
                self.start_tests(now);
            }
            return;
        }
        // A share easier than the present difficulty is worth the part of a share that its work is. One that is
        // harder is no stronger sign of a changed rate than a share.
        let weight = match exponent_of_share.min(self.exponent) - self.exponent {
            0 => 1.0,
            easier => f64::from(easier).exp2(),
        };
        self.rise.add(weight, weight * LN_2, self.rise_limit(now), now);
        self.fall.add(weight, -weight * LN_2, FALL_THRESHOLD, now);
        self.average.add_shares(weight);
    }

    /// Decides whether a change is due: `Some(exponent)` is the new one, which holds from now on. To be called
    /// after every share and at least every 20 seconds. No exponent above `maximum_exponent` (that of the upstream's
    /// target) is given, even where the configured minimum is above it: shares that the upstream wants must not
    /// be missed.
    pub fn check(&mut self, config: &VardiffConfig, maximum_exponent: i32, now: Duration) -> Option<i32> {
        let now = now.as_secs_f64();
        self.count_time(config, now);
        let bounded = |exponent: i32| on_grid(exponent.max(config.minimum_exponent).min(maximum_exponent));
        if bounded(self.exponent) != self.exponent {
            return Some(self.settle_at(bounded(self.exponent), now));
        }
        if self.settling {
            return None;
        }
        if self.rise_is_due() {
            // The span starts and ends with a share; less a third, the estimate is as likely too high as too low.
            let exponent = bounded(self.ideal(config, &self.rise, -1.0 / 3.0, now));
            self.believe(self.rise, exponent, now)
        } else if self.fall_is_due() {
            // The span ends between shares; plus two thirds, the same holds, even when there was no share at all.
            let exponent = bounded(self.ideal(config, &self.fall, 2.0 / 3.0, now));
            self.believe(self.fall, exponent, now)
        } else {
            let exponent = bounded(self.look_again(config)?);
            (exponent != self.exponent).then(|| self.settle_at(exponent, now))
        }
    }

    /// The best present estimate of the hash rate from accepted work: the average over some 128 shares, less
    /// after a change. None while fewer than four shares are known: at first, and once a device has gone silent.
    pub fn hash_rate(&self, now: Duration) -> Option<HashRate> {
        if !self.is_known() {
            return None;
        }
        let mut average = self.average;
        if !self.settling {
            average.add_seconds((now.as_secs_f64() - self.counted_until).max(0.0), self.exponent);
        }
        average.rate().map(|rate| HashRate(rate * Work::OF_DIFFICULTY_1.0 as f64))
    }

    /// Counts the time up to `now`, without a share, for both tests and the average.
    fn count_time(&mut self, config: &VardiffConfig, now: f64) {
        let seconds = now - self.counted_until;
        if seconds <= 0.0 {
            return;
        }
        if self.settling {
            self.start_tests(self.counted_until);
        }
        self.counted_until = now;
        let wanted = config.wanted(seconds);
        self.rise.add(0.0, -wanted * (RISE_RATES.1 - RISE_RATES.0), RISE_THRESHOLD, now);
        self.fall.add(0.0, wanted * (FALL_RATES.0 - FALL_RATES.1), FALL_THRESHOLD, now);
        self.average.add_seconds(seconds, self.exponent);
    }

    fn is_known(&self) -> bool {
        self.average.shares >= FEWEST_SHARES
    }

    /// How much evidence of a rise there can be at `now`.
    fn rise_limit(&self, now: f64) -> f64 {
        let may_be_burst = self.rise.age(now) < BURST_SECONDS && self.rise.shares < FLOOD_SHARES;
        if may_be_burst { BURST_LIMIT } else { RISE_THRESHOLD }
    }

    fn rise_is_due(&self) -> bool {
        self.rise.evidence >= RISE_THRESHOLD && self.rise.shares >= FEWEST_RISE_SHARES
    }

    fn fall_is_due(&self) -> bool {
        self.fall.evidence >= if self.is_known() { FALL_THRESHOLD } else { UNKNOWN_FALL_THRESHOLD }
    }

    /// The exponent nearest to ideal by what `test` saw. `correction` makes the count of shares a fair estimate.
    fn ideal(&self, config: &VardiffConfig, test: &Test, correction: f64, now: f64) -> i32 {
        // A flood within one tick of the clock still has a rate, if not an exact one.
        let wanted = config.wanted(test.age(now).max(1e-6));
        let distance = ((test.shares + correction) / wanted).log2();
        self.exponent.saturating_add(distance.round() as i32)
    }

    /// Moves to `exponent`, on what `test` saw.
    fn believe(&mut self, test: Test, exponent: i32, now: f64) -> Option<i32> {
        if exponent == self.exponent {
            // There is nowhere to go: the difficulty is at a bound. The evidence is used up all the same, so that
            // it is not old when the bound moves.
            self.start_tests(now);
            return None;
        }
        self.average = Average::of(&test, self.exponent, now);
        self.looks_done = 0;
        Some(self.settle_at(exponent, now))
    }

    /// The exponent to correct the last change to, when a look at it is due and finds it wrong.
    fn look_again(&mut self, config: &VardiffConfig) -> Option<i32> {
        if self.average.shares < *LOOKS.get(usize::from(self.looks_done))? {
            return None;
        }
        self.looks_done += 1;
        let distance = (self.average.rate()? / config.wanted(1.0)).log2() - f64::from(self.exponent);
        (distance.abs() > LOOK_DISTANCE).then(|| self.exponent.saturating_add(distance.round() as i32))
    }

    /// Takes `exponent` and waits for the miner to use it.
    fn settle_at(&mut self, exponent: i32, now: f64) -> i32 {
        self.exponent = exponent;
        self.start_tests(now);
        self.settling = true;
        self.counted_until = now + SETTLING_SECONDS;
        exponent
    }

    /// Forgets all evidence and counts from `now` on.
    fn start_tests(&mut self, now: f64) {
        self.rise = Test::starting(now);
        self.fall = Test::starting(now);
        self.counted_until = now;
        self.settling = false;
    }
}

/// One cumulative-sum test.
#[derive(Clone, Copy, Debug)]
struct Test {
    /// Logarithm of the likelihood ratio of changed to right since `since`, never below 0.
    evidence: f64,
    /// When the evidence was last 0, in seconds of monotonic time: the likeliest moment of a change.
    since: f64,
    /// Shares since then, in units of the present difficulty.
    shares: f64,
}

impl Test {
    fn starting(now: f64) -> Self {
        Test { evidence: 0.0, since: now, shares: 0.0 }
    }

    /// Adds evidence for or against a change, up to `limit`: beyond its threshold it says nothing more.
    fn add(&mut self, shares: f64, evidence: f64, limit: f64, now: f64) {
        let started_here = self.evidence <= 0.0;
        self.evidence = (self.evidence + evidence).min(limit);
        if self.evidence <= 0.0 {
            *self = Test::starting(now);
        } else if started_here && shares > 0.0 {
            // The share that starts a span of time is at its edge, not in it.
            self.since = now;
        } else {
            self.shares += shares;
        }
    }

    /// Seconds since the evidence was last 0.
    fn age(&self, now: f64) -> f64 {
        (now - self.since).max(0.0)
    }
}

/// Shares over time, older ones counting less.
///
/// The likeliest hash rate is not work over time: after a change of difficulty, few hard shares would weigh more
/// than many easy ones, though they say less. It is the shares over the shares that a unit of hash rate makes.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    /// In units of the difficulty at which they were made.
    shares: f64,
    /// Shares that one unit of difficulty a second would have made.
    per_rate: f64,
    seconds: f64,
}

impl Average {
    /// The span of time that made a test believe in a change.
    fn of(test: &Test, exponent: i32, now: f64) -> Self {
        let seconds = test.age(now);
        let per_rate = seconds * f64::from(-exponent).exp2();
        let mut average = Average { shares: test.shares, per_rate, seconds };
        if average.shares > FIRST_SHARES {
            average.fade(FIRST_SHARES / average.shares);
        }
        average
    }

    fn add_shares(&mut self, shares: f64) {
        self.shares += shares;
        if self.shares > AVERAGED_SHARES {
            self.fade(AVERAGED_SHARES / self.shares);
        }
    }

    fn add_seconds(&mut self, seconds: f64, exponent: i32) {
        self.seconds += seconds;
        self.per_rate += seconds * f64::from(-exponent).exp2();
        if self.seconds > AVERAGED_SECONDS {
            self.fade(AVERAGED_SECONDS / self.seconds);
        }
    }

    fn fade(&mut self, factor: f64) {
        self.shares *= factor;
        self.per_rate *= factor;
        self.seconds *= factor;
    }

    /// Work a second, in units of difficulty 1; None before any time has passed.
    fn rate(&self) -> Option<f64> {
        (self.per_rate > 0.0).then(|| self.shares / self.per_rate)
    }
}

fn on_grid(exponent: i32) -> i32 {
    exponent.clamp(EASIEST_EXPONENT, HARDEST_EXPONENT)
}

//! One place that work is published to: its book of jobs, and how it stands with the upstream.
//!
//! A feed outlives the channel that fills it: while there is none, its jobs stay and are refreshed. This module
//! never sends a message; it says what is due.

use std::sync::Arc;
use std::time::Duration;

use job_declarator::client::ClientJob;
use mining_server::{JobBook, Work};
use stratum::job::{JobOrigin, JobParts, Tip};
use stratum::{JobNumber, Now, TipNumber, UpstreamId, UpstreamJobId};

use crate::backoff::Backoff;
use crate::channel::{Channel, ChannelTip, ReceivedJob};

/// A connection that runs out of room may ask for a new job at any time; it gets one this often at most.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// Hash rates are told this often at most. SV2 5.3.7 permits once a second; no pool acts on a change that fast.
const RATE_INTERVAL: Duration = Duration::from_secs(5);

/// A change of the hash rate that is worth telling: less is within the error of any estimate.
const RATE_CHANGE: f64 = 0.05;

/// How a feed stands with the upstream.
#[derive(Debug)]
pub(crate) enum Standing {
    /// There is no connection.
    Idle,
    /// It waits for its turn to ask for a channel.
    Queued,
    /// It has asked.
    Requested,
    /// It has a channel.
    Open(Box<Channel>),
    /// It was refused, or its channel was closed; it asks again then.
    Resting(Duration),
}

/// The hash rate of those who mine on a feed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Nominal {
    pub(crate) hashes_per_second: f64,
    pub(crate) devices: usize,
}

impl Nominal {
    /// As SV2 carries it: finite, and 0 when nothing mines.
    pub(crate) fn to_wire(self) -> f32 {
        // The sum of nothing is -0, which pools take for a negative rate; adding 0 makes it 0.
        (self.hashes_per_second as f32).clamp(0.0, f32::MAX) + 0.0
    }

    fn differs_from(self, told: Nominal) -> bool {
        let change = (self.hashes_per_second - told.hashes_per_second).abs();
        self.devices != told.devices || change > RATE_CHANGE * told.hashes_per_second
    }
}

#[derive(Debug)]
pub(crate) struct FeedState {
    pub(crate) user_identity: String,
    pub(crate) standing: Standing,
    pub(crate) backoff: Backoff,
    book: JobBook,
    live: bool,
    /// Whether another upstream gives its work now: what comes from this one is not published.
    retired: bool,
    tip_number: TipNumber,
    tip: Option<Arc<ChannelTip>>,
    last_job: Duration,
    /// When the active job is to be made anew; `None` until there is one.
    refresh_at: Option<Duration>,
    told: Nominal,
    told_at: Duration,
    /// Whether a hash rate may have changed since it was told.
    rate_changed: bool,
}

impl FeedState {
    /// A feed that publishes through `book`, which is a private one where the feed is one device's.
    pub(crate) fn new(user_identity: String, book: JobBook) -> Self {
        FeedState {
            user_identity,
            standing: Standing::Idle,
            backoff: Backoff::new(),
            book,
            live: false,
            retired: false,
            tip_number: TipNumber(0),
            tip: None,
            last_job: Duration::ZERO,
            refresh_at: None,
            told: Nominal::default(),
            told_at: Duration::ZERO,
            rate_changed: false,
        }
    }

    pub(crate) fn channel(&self) -> Option<&Channel> {
        match &self.standing {
            Standing::Open(channel) => Some(channel),
            _ => None,
        }
    }

    pub(crate) fn channel_mut(&mut self) -> Option<&mut Channel> {
        match &mut self.standing {
            Standing::Open(channel) => Some(channel),
            _ => None,
        }
    }

    /// What to publish; `None` until there was a job.
    pub(crate) fn work(&self) -> Option<Arc<Work>> {
        self.book.work().map(Arc::new)
    }

    /// Whether work of it is published, and may be made anew.
    pub(crate) fn has_work(&self) -> bool {
        !self.book.is_empty()
    }

    /// Whether work comes from its channel, and shares go there.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether another upstream gives its work.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Another upstream gives its work from now on. The channel stays, for what is still on its way.
    pub(crate) fn retire(&mut self) {
        self.book.start_over(self.book.next_number());
        self.live = false;
        self.retired = true;
        self.refresh_at = None;
    }

    /// Its work is to come from this upstream again. Its jobs have the number `next` or higher ones.
    pub(crate) fn revive(&mut self, next: JobNumber) {
        self.book.start_over(next);
        self.retired = false;
    }

    /// The first number that was ever its own.
    pub(crate) fn first_number(&self) -> JobNumber {
        self.book.first()
    }

    /// The number that its next job will have.
    pub(crate) fn next_number(&self) -> JobNumber {
        self.book.next_number()
    }

    /// Takes a message's job: holds it if it is a future one, else makes it the active one. `Ok(true)` when there
    /// is something to publish; fails when the job cannot be used.
    pub(crate) fn take_job(
        &mut self,
        upstream: UpstreamId,
        refresh_interval: Duration,
        job: &Arc<ReceivedJob>,
        now: Now,
    ) -> Result<bool, &'static str> {
        let is_retired = self.retired;
        let Some(channel) = self.channel_mut() else { return Ok(false) };
        if is_retired {
            return Ok(false);
        }
        let Some(min_ntime) = job.min_ntime else {
            channel.hold(Arc::clone(job));
            return Ok(false);
        };
        let Some(tip) = &channel.tip.clone() else { return Err("a job before the first previous hash") };
        let prefix = &channel.prefix.clone();
        let start = Start { upstream, job, min_ntime, tip, prefix, voids_others: false };
        self.start(&start, refresh_interval, now);
        Ok(true)
    }

    /// Takes a job of ours, which is the active one at once. True when there is something to publish.
    pub(crate) fn take_custom_job(
        &mut self,
        upstream: UpstreamId,
        refresh_interval: Duration,
        custom: &ClientJob,
        now: Now,
    ) -> bool {
        if self.retired || self.channel().is_none() {
            return false;
        }
        let template = &custom.template;
        let tip = &Arc::new(ChannelTip {
            previous_hash: template.previous_hash,
            nbits: template.nbits,
            network_target: template.network_target,
        });
        let job = ReceivedJob {
            id: UpstreamJobId(custom.id.0),
            min_ntime: Some(template.start_time),
            version: template.version,
            version_rolling_allowed: true,
            coinbase_prefix: custom.coinbase.prefix.as_slice().into(),
            coinbase_suffix: custom.coinbase.suffix.as_slice().into(),
            merkle_path: template.merkle_path.as_slice().into(),
        };
        let min_ntime = template.start_time;
        // The prefix of the channel is in the job's already.
        let start = Start { upstream, job: &job, min_ntime, tip, prefix: &[], voids_others: custom.clean };
        self.start(&start, refresh_interval, now);
        true
    }

    /// Takes a message's tip, with the job that it makes the active one. `Ok(true)` when there is something to
    /// publish; fails when that job is not known.
    pub(crate) fn take_tip(
        &mut self,
        upstream: UpstreamId,
        refresh_interval: Duration,
        tip: &Arc<ChannelTip>,
        (job, min_ntime): (UpstreamJobId, u32),
        now: Now,
    ) -> Result<bool, &'static str> {
        let is_retired = self.retired;
        let Some(channel) = self.channel_mut() else { return Ok(false) };
        if is_retired {
            return Ok(false);
        }
        let Some(future) = channel.set_tip(Arc::clone(tip), job) else {
            return Err("a previous hash for a future job that it never sent");
        };
        let (job, prefix) = (&future.job, &future.prefix);
        let start = Start { upstream, job, min_ntime, tip, prefix, voids_others: true };
        self.start(&start, refresh_interval, now);
        Ok(true)
    }

    /// Makes a job the active one: at once, or where miners hash its very headers already, as soon as a second has
    /// passed that makes others of them.
    fn start(&mut self, start: &Start<'_>, refresh_interval: Duration, now: Now) {
        let last_tip = self.tip_number;
        let tip_number = self.count_tip(start.tip);
        let number = self.book.next_number();
        let Standing::Open(channel) = &mut self.standing else { return };
        // A SetNewPrevHash leaves no other job valid (SV2 5.3.17), even when it repeats the hash: miners must leave
        // what they have. Shares that they had made by then stay good here, and are forwarded: they were honest work
        // on what is still the tip, and one of them may be a block. If the upstream refuses them, the record says so.
        let clean = start.voids_others || tip_number != last_tip || !channel.started;
        channel.started = true;
        channel.pending.shrink();
        let job = start.job;
        let parts = JobParts {
            number,
            epoch: channel.epoch,
            origin: JobOrigin { upstream: start.upstream, channel: channel.id, job: job.id, template: None },
            tip: Tip {
                number: tip_number,
                previous_hash: start.tip.previous_hash,
                nbits: start.tip.nbits,
                network_target: start.tip.network_target,
            },
            clean,
            version: job.version,
            version_rolling_allowed: job.version_rolling_allowed && !channel.fixed_version,
            min_ntime: start.min_ntime,
            // Both have a known length: it is made in one piece.
            coinbase_prefix: job.coinbase_prefix.iter().chain(start.prefix).copied().collect(),
            coinbase_suffix: Arc::clone(&job.coinbase_suffix),
            rollable_size: channel.rollable_size,
            merkle_path: Arc::clone(&job.merkle_path),
            upstream_target: channel.target,
            received: now,
        };
        // Only now: until the channel has a job, shares belong to the life before.
        self.book.set_epoch(channel.epoch);
        self.book.set_live(true);
        self.book.set_upstream_target(channel.target);
        self.book.add(parts);
        self.live = true;
        let is_held_back = self.book.next_number() == number && !self.book.refresh(now);
        if is_held_back {
            // Not put off: the upstream may repeat itself for ever.
            self.want_job();
        } else {
            self.schedule_refresh(refresh_interval, now);
        }
    }

    /// Ends the channel, if there is one. Returns it, and whether there is something to publish.
    pub(crate) fn end(&mut self, next: Standing) -> (Option<Box<Channel>>, bool) {
        let channel = match std::mem::replace(&mut self.standing, next) {
            Standing::Open(channel) => Some(channel),
            _ => None,
        };
        let was_live = std::mem::replace(&mut self.live, false);
        self.book.set_live(false);
        (channel, was_live)
    }

    /// Asks for a new job, which comes as soon as the limits permit.
    pub(crate) fn want_job(&mut self) {
        if let Some(at) = &mut self.refresh_at {
            *at = (*at).min(self.last_job + SHORTEST_REFRESH);
        }
    }

    /// Makes the active job anew if that is due. True when there is something to publish.
    pub(crate) fn refresh(&mut self, refresh_interval: Duration, now: Now) -> bool {
        if self.refresh_at.is_none_or(|at| now.monotonic < at) {
            return false;
        }
        let refreshed = self.book.refresh(now);
        self.schedule_refresh(refresh_interval, now);
        refreshed
    }

    /// Notes that a hash rate may have changed.
    pub(crate) fn touch_rate(&mut self) {
        self.rate_changed = true;
    }

    /// Notes that the upstream was told a hash rate.
    pub(crate) fn rate_told(&mut self, rate: Nominal, now: Now) {
        self.told = rate;
        self.told_at = now.monotonic;
        self.rate_changed = false;
    }

    /// Whether it is time to compare the hash rate with what the upstream was told.
    pub(crate) fn rate_is_due(&self, now: Now) -> bool {
        self.channel().is_some() && self.rate_changed && now.monotonic >= self.told_at + RATE_INTERVAL
    }

    /// Whether `rate` is worth telling; if not, nothing more is due until it changes again.
    pub(crate) fn rate_is_news(&mut self, rate: Nominal) -> bool {
        self.rate_changed = false;
        rate.differs_from(self.told)
    }

    /// When something is due next.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        let resting = match self.standing {
            Standing::Resting(until) => Some(until),
            _ => None,
        };
        let rate = (self.rate_changed && self.channel().is_some()).then(|| self.told_at + RATE_INTERVAL);
        [self.refresh_at, resting, rate].into_iter().flatten().min()
    }

    fn schedule_refresh(&mut self, refresh_interval: Duration, now: Now) {
        self.last_job = now.monotonic;
        self.refresh_at = Some(now.monotonic + refresh_interval.max(SHORTEST_REFRESH));
    }

    /// The number of a tip: the current one's when it is the same block, whichever channel or epoch shows it.
    fn count_tip(&mut self, tip: &Arc<ChannelTip>) -> TipNumber {
        let is_same =
            |last: &Arc<ChannelTip>| (last.previous_hash, last.nbits) == (tip.previous_hash, tip.nbits);
        if !self.tip.as_ref().is_some_and(is_same) {
            self.tip = Some(Arc::clone(tip));
            self.tip_number = TipNumber(self.tip_number.0 + 1);
        }
        self.tip_number
    }
}

/// What makes a message's job the active one.
struct Start<'a> {
    upstream: UpstreamId,
    job: &'a ReceivedJob,
    min_ntime: u32,
    tip: &'a Arc<ChannelTip>,
    prefix: &'a [u8],
    /// Whether the upstream takes no share of any other job from now on.
    voids_others: bool,
}

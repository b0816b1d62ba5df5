//! The part that an upstream has among several: it serves, it leaves, or it stands by.
//!
//! An upstream that stands by is connected and has no channel: whether it is there is known before it is needed, and
//! the pool makes no jobs for nobody. One that leaves keeps its channels while the next one's open, so that miners
//! have work until then, and for a moment longer, so that shares on their way still arrive and are answered.
//!
//! This module never decides which upstream serves.

use std::collections::BTreeMap;
use std::time::Duration;

use mining_server::LossReason;
use stratum::sv2::codes;
use stratum::{Epoch, JobNumber, Now, UpstreamId};

use super::{LinkState, NUMBERS_APART, Upstream, close};
use crate::feed::Standing;
use crate::output::{Feed, UpstreamOutput};

/// Shares that an upstream refuses in a row, not as stale, before that is trouble: no pool does that to good shares.
pub const REFUSALS_ARE_TROUBLE: u32 = 20;

/// How long it must go on at least: what was on its way when a pool restarted is refused within a second.
pub const REFUSED_FOR: Duration = Duration::from_secs(10);

/// The epochs of each upstream of a process begin here: none is ever another's, and 2^24 are more than any has.
pub(super) fn first_epoch(upstream: UpstreamId) -> Epoch {
    Epoch(u32::from(upstream.0) << 24)
}

/// Job numbers that an upstream that is left may still use for one device: so many refreshes take hours. Numbers of
/// one device rise by no more than they must, because SV2 shows the lower half of them.
const NUMBERS_LEFT: u64 = 1024;

/// Numbers that no feed has had.
fn fresh_range(next_first: &mut JobNumber, now: Now) -> JobNumber {
    let first = JobNumber::first(now).max(*next_first);
    *next_first = JobNumber(first.0.saturating_add(NUMBERS_APART));
    first
}

/// What an upstream is used for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Its channels are opened, and its work published.
    Serving,
    /// Another one's are opened: it keeps what it has.
    Leaving,
    /// It has no channels.
    Standby,
}

/// Refusals in a row, over all channels.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: u32,
    since: Duration,
}

impl Refusals {
    /// A share was taken.
    pub(super) fn none(&mut self) {
        self.count = 0;
    }

    /// A share was refused. That it is stale says nothing of the upstream.
    pub(super) fn one_more(&mut self, code: &str, now: Now) {
        if code == codes::submit_shares::STALE_SHARE {
            return;
        }
        if self.count == 0 {
            self.since = now.monotonic;
        }
        self.count = self.count.saturating_add(1);
    }

    fn are_trouble(&self, now: Now) -> bool {
        self.count >= REFUSALS_ARE_TROUBLE && now.monotonic.saturating_sub(self.since) >= REFUSED_FOR
    }
}

impl Upstream {
    /// Whether it takes none of our shares, although they are not stale.
    pub fn refuses_shares(&self, now: Now) -> bool {
        self.refusals.are_trouble(now)
    }

    /// Whether there is work from it for at least one device that wants some.
    pub fn gives_work(&self) -> bool {
        match self.feeds.get(&Feed::Shared) {
            Some(state) => state.is_live(),
            None => self.device_count() == 0 || self.open_channels() > 0,
        }
    }

    /// Whether the work of a feed that was published last is of this upstream.
    pub fn has_work(&self, feed: Feed) -> bool {
        self.feeds.get(&feed).is_some_and(|state| state.has_work())
    }

    /// Feeds whose work comes from it now.
    pub fn live_feeds(&self) -> usize {
        self.feeds.values().filter(|state| state.is_live()).count()
    }

    /// The next job number of each feed.
    pub fn next_numbers(&self) -> impl Iterator<Item = (Feed, JobNumber)> {
        self.feeds.iter().map(|(feed, state)| (*feed, state.next_number()))
    }

    /// The first job number that no feed has yet.
    pub fn next_first(&self) -> JobNumber {
        self.next_first
    }

    /// Leaves the numbers below `first` to others.
    pub fn set_next_first(&mut self, first: JobNumber) {
        self.next_first = self.next_first.max(first);
    }

    /// Work is to come from this upstream from now on: opens the channels. `used` has, for each feed, a number above
    /// those that any upstream's jobs have had: where another one gave the work before, it may use a few more before
    /// this one begins.
    pub fn serve(&mut self, used: &BTreeMap<Feed, JobNumber>, now: Now, out: &mut UpstreamOutput) {
        self.part = Part::Serving;
        self.refusals.none();
        let retired: Vec<Feed> =
            self.feeds.iter().filter(|(_, state)| state.is_retired()).map(|(feed, _)| *feed).collect();
        for feed in retired {
            // The channel that it still had has gone on to other jobs, which were not kept.
            self.end_channel(feed, codes::close_channel::UPSTREAM_CHANGED, now, out);
            let Some(state) = self.feeds.get_mut(&feed) else { continue };
            let used = used.get(&feed).copied().unwrap_or_default().max(state.next_number());
            let next = match feed {
                // It has all numbers to itself.
                Feed::Shared => JobNumber(used.0.saturating_add(NUMBERS_APART)),
                Feed::Device(_) => {
                    let next = JobNumber(used.0.saturating_add(NUMBERS_LEFT));
                    let has_room = next.0.saturating_sub(state.first_number().0) < NUMBERS_APART / 2;
                    if has_room { next } else { fresh_range(&mut self.next_first, now) }
                }
            };
            state.revive(next);
        }
        if self.link == LinkState::Ready {
            self.heard = now.monotonic;
            self.begin(now, out);
        }
    }

    /// Another upstream is to give the work. What this one gives goes on until [`Upstream::retire`], and its channels
    /// stay open until [`Upstream::stand_by`].
    pub fn leave(&mut self) {
        self.part = Part::Leaving;
        self.to_open.clear();
        self.requests.values_mut().for_each(|request| request.feed = None);
        for state in self.feeds.values_mut() {
            if !matches!(state.standing, Standing::Open(_)) {
                state.standing = Standing::Idle;
            }
            if !state.has_work() {
                state.retire();
            }
        }
    }

    /// Another upstream gives the work of this feed now.
    pub fn retire(&mut self, feed: Feed) {
        if let Some(state) = self.feeds.get_mut(&feed) {
            state.retire();
        }
    }

    /// Closes all channels, and keeps the connection. Shares that are not answered are lost.
    pub fn stand_by(&mut self, now: Now, out: &mut UpstreamOutput) {
        self.leave();
        self.part = Part::Standby;
        let open: Vec<Feed> = self.channels.values().copied().collect();
        for feed in open {
            self.end_channel(feed, codes::close_channel::UPSTREAM_CHANGED, now, out);
        }
    }

    fn end_channel(&mut self, feed: Feed, reason: &str, now: Now, out: &mut UpstreamOutput) {
        let Some(state) = self.feeds.get_mut(&feed) else { return };
        if !matches!(state.standing, Standing::Open(_)) {
            return;
        }
        let (channel, publish) = state.end(Standing::Idle);
        if publish {
            out.publish.extend(state.work().map(|work| (feed, work)));
        }
        if let Some(channel) = channel {
            self.channels.remove(&channel.id);
            close(channel.id, reason, out);
            self.note_closed(channel.id);
            self.count_lost(&channel, LossReason::Failover, now, out);
        }
        self.declare_channel(now, out);
    }
}

//! Forwarded shares that wait for their answers, channel by channel, and which of them an answer is for.
//!
//! An upstream answers by sequence number and knows nothing of devices. What the shares stand for is the caller's: a
//! device, or whether a statement counts them. Nothing is summed here.

use std::collections::{BTreeMap, VecDeque};

use stratum::{SequenceNumber, UpstreamChannelId, UpstreamId, Work};

use crate::record::{HeldRelease, ShareRecord, UpstreamAnswer, UpstreamVerdict};
use crate::sums::AnswerSums;

/// Forwarded shares of one channel that wait at most: as many as an upstream's state machine lets wait. When one more
/// comes, the oldest counts for nobody.
const MAX_WAITING: usize = 65_536;

/// Channels with waiting shares at most: as many as an upstream has channels for devices.
const MAX_CHANNELS: usize = 16_384;

/// A forwarded share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting<T> {
    /// Its number on the upstream's channel.
    pub(crate) number: SequenceNumber,
    /// What it is worth at the upstream's target.
    pub(crate) work: Work,
    /// What it stands for.
    pub(crate) of: T,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct WaitingShares<T> {
    channels: BTreeMap<(UpstreamId, UpstreamChannelId), VecDeque<Waiting<T>>>,
}

impl<T> Default for WaitingShares<T> {
    fn default() -> Self {
        WaitingShares { channels: BTreeMap::new() }
    }
}

impl<T> WaitingShares<T> {
    /// Notes that a share waits for its answer.
    pub(crate) fn push(&mut self, share: &ShareRecord, of: T) {
        let key = share.upstream.zip(share.upstream_channel);
        if let Some((key, number)) = key.zip(share.sequence_number) {
            self.insert(key, Waiting { number, work: share.upstream_work, of });
        }
    }

    /// Notes that a share waits for its answer which was held until now. Does nothing when it was dropped.
    pub(crate) fn push_released(&mut self, release: &HeldRelease, of: T) {
        if let Some(number) = release.fate.sequence_number() {
            let key = (release.upstream, release.upstream_channel);
            self.insert(key, Waiting { number, work: release.work, of });
        }
    }

    fn insert(&mut self, key: (UpstreamId, UpstreamChannelId), share: Waiting<T>) {
        if self.channels.len() >= MAX_CHANNELS && !self.channels.contains_key(&key) {
            return;
        }
        let waiting = self.channels.entry(key).or_default();
        if waiting.len() == MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(share);
    }

    /// Takes the shares out that an answer is for.
    pub(crate) fn answered(&mut self, answer: &UpstreamAnswer) -> Vec<Waiting<T>> {
        let key = (answer.upstream, answer.channel);
        let Some(waiting) = self.channels.get_mut(&key) else { return Vec::new() };
        let shares = match &answer.verdict {
            UpstreamVerdict::Rejected { sequence_number, .. } => {
                let place = waiting.iter().position(|share| share.number == *sequence_number);
                place.and_then(|place| waiting.remove(place)).into_iter().collect()
            }
            UpstreamVerdict::Acknowledged { last, count, .. } | UpstreamVerdict::Lost { last, count, .. } => {
                up_to(waiting, *last, *count as usize)
            }
        };
        if waiting.is_empty() {
            self.channels.remove(&key);
        }
        shares
    }

    /// The oldest share of each channel.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = &Waiting<T>> {
        self.channels.values().filter_map(VecDeque::front)
    }

    /// All shares that wait, each with its upstream.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (UpstreamId, &Waiting<T>)> {
        self.channels
            .iter()
            .flat_map(|((upstream, _), waiting)| waiting.iter().map(|share| (*upstream, share)))
    }

    /// Nothing waits any more.
    pub(crate) fn clear(&mut self) {
        self.channels.clear();
    }
}

/// Takes out the shares up to and with the number `last`, and returns the latest `count` of them. If more waited, the
/// answer to the others was lost with its detail.
fn up_to<T>(waiting: &mut VecDeque<Waiting<T>>, last: SequenceNumber, count: usize) -> Vec<Waiting<T>> {
    // Numbers wrap: half of all numbers are behind one.
    let is_covered = |share: &Waiting<T>| last.0.wrapping_sub(share.number.0) < u32::MAX / 2;
    let covered = waiting.iter().take_while(|share| is_covered(share)).count();
    let mut shares: Vec<Waiting<T>> = waiting.drain(..covered).collect();
    shares.drain(..covered.saturating_sub(count));
    shares
}

/// What an answer says of one of its shares.
pub(crate) fn part_of(verdict: &UpstreamVerdict, work: Work) -> AnswerSums {
    let mut part = AnswerSums::default();
    match verdict {
        UpstreamVerdict::Acknowledged { .. } => {
            part.acknowledged = 1;
            part.acknowledged_work = work;
        }
        UpstreamVerdict::Rejected { .. } => {
            part.refused = 1;
            part.refused_work = work;
        }
        UpstreamVerdict::Lost { reason, .. } => {
            part.lost[*reason as usize] = 1;
            part.lost_work[*reason as usize] = work;
        }
    }
    part
}

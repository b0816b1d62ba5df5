//! Shares that were sent on one upstream channel and wait for the upstream's answer.
//!
//! This module never sends anything: it numbers shares and remembers when they went.

use std::collections::VecDeque;
use std::time::Duration;

use stratum::{SequenceNumber, Work};

/// Shares of one channel that may wait for an answer: at ten shares a second, pools that acknowledge once an hour
/// still fit; two megabytes. When they are full, further shares are dropped.
pub const MAX_PENDING_SHARES: usize = 65_536;

/// The unanswered shares of one channel, oldest first.
///
/// Sequence numbers follow one another without a gap, so a share's place is its number less the first one's.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The number of the first entry of `sent`, or of the next share when there is none.
    first: SequenceNumber,
    /// Each share; `None` once it is answered.
    sent: VecDeque<Option<Sent>>,
    unanswered: u32,
    /// The work of the unanswered shares.
    work: Work,
}

/// A share on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// When it went, on the monotonic clock.
    pub(crate) at: Duration,
    /// What it is worth at the upstream's target.
    pub(crate) work: Work,
}

impl Pending {
    /// Nothing sent yet; the first share gets the number 1, so that 0 never stands for a share.
    pub(crate) fn new() -> Self {
        Pending { first: SequenceNumber(1), sent: VecDeque::new(), unanswered: 0, work: Work(0) }
    }

    /// Shares that wait for an answer.
    pub(crate) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// What the shares that wait for an answer are worth.
    pub(crate) fn work(&self) -> Work {
        self.work
    }

    /// The number of the latest share.
    pub(crate) fn last(&self) -> SequenceNumber {
        SequenceNumber(following(self.first, self.sent.len() as u32).0.wrapping_sub(1))
    }

    /// When the oldest unanswered share went.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.sent.front().copied().flatten().map(|sent| sent.at)
    }

    /// True when no further share may be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.sent.len() >= MAX_PENDING_SHARES
    }

    /// Gives up on the oldest share, which makes room for one more, and returns its number and what it was worth.
    /// `None` when there was none.
    pub(crate) fn forget_oldest(&mut self) -> Option<(SequenceNumber, Work)> {
        let sent = self.sent.pop_front()??;
        let number = self.first;
        self.first = following(self.first, 1);
        self.note_answered(sent);
        self.drop_answered();
        Some((number, sent.work))
    }

    /// The number of a share that goes now.
    pub(crate) fn push(&mut self, at: Duration, work: Work) -> SequenceNumber {
        let number = following(self.first, self.sent.len() as u32);
        if self.sent.capacity() == 0 {
            // A device that proves something now and then has one share on its way, and there may be thousands of them.
            self.sent.reserve_exact(1);
        }
        self.sent.push_back(Some(Sent { at, work }));
        self.unanswered += 1;
        self.work += work;
        number
    }

    /// Takes every unanswered share up to and with `last` as acknowledged, and hands each one to `each`. Returns how many, or `None` when no share with that number waits or waited lately.
    pub(crate) fn acknowledge(&mut self, last: SequenceNumber, mut each: impl FnMut(Sent)) -> Option<u32> {
        let count = self.index(last)? + 1;
        let mut covered = 0;
        for sent in self.sent.drain(..count).flatten() {
            covered += 1;
            self.work.0 -= sent.work.0;
            each(sent);
        }
        self.first = following(self.first, count as u32);
        self.unanswered -= covered;
        self.drop_answered();
        Some(covered)
    }

    /// Takes one share as refused, and returns what it was worth. `None` when it does not wait for an answer.
    pub(crate) fn reject(&mut self, number: SequenceNumber) -> Option<Work> {
        let index = self.index(number)?;
        let sent = self.sent[index].take()?;
        self.note_answered(sent);
        self.drop_answered();
        Some(sent.work)
    }

    /// Gives room back that is hardly used. For the moments when something else happens to the channel, not for each share.
    pub(crate) fn shrink(&mut self) {
        if self.sent.capacity() > 4 * self.sent.len() {
            self.sent.shrink_to_fit();
        }
    }

    fn note_answered(&mut self, sent: Sent) {
        self.unanswered -= 1;
        self.work.0 -= sent.work.0;
    }

    /// The first entry is always unanswered, so that answered ones do not count as pending for long.
    fn drop_answered(&mut self) {
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first = following(self.first, 1);
        }
    }

    fn index(&self, number: SequenceNumber) -> Option<usize> {
        let index = number.0.wrapping_sub(self.first.0) as usize;
        (index < self.sent.len()).then_some(index)
    }
}

/// Numbers wrap: a channel may live for more than 2^32 shares.
fn following(number: SequenceNumber, by: u32) -> SequenceNumber {
    SequenceNumber(number.0.wrapping_add(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(5);
    const W: Work = Work(7);

    fn with(count: u32) -> Pending {
        let mut pending = Pending::new();
        for number in 1..=count {
            assert_eq!(pending.push(T, W), SequenceNumber(number));
        }
        pending
    }

    #[test]
    fn an_acknowledgement_covers_all_before_it_but_the_refused() {
        let mut pending = with(5);
        assert_eq!(pending.reject(SequenceNumber(2)), Some(W));
        assert_eq!(pending.reject(SequenceNumber(2)), None, "a second answer is none");
        let mut times = 0;
        assert_eq!(
            pending
                .acknowledge(SequenceNumber(4), |sent| times += u32::from(sent == Sent { at: T, work: W })),
            Some(3)
        );
        assert_eq!((times, pending.unanswered(), pending.work()), (3, 1, W));
        assert_eq!(pending.acknowledge(SequenceNumber(4), |_| ()), None, "acknowledged before");
        assert_eq!(pending.acknowledge(SequenceNumber(6), |_| ()), None, "never sent");
        assert_eq!(pending.reject(SequenceNumber(0)), None);
        assert_eq!(pending.reject(SequenceNumber(5)), Some(W));
        assert_eq!((pending.unanswered(), pending.oldest(), pending.work()), (0, None, Work(0)));
        assert_eq!(pending.last(), SequenceNumber(5));
        assert_eq!(pending.push(T, W), SequenceNumber(6));
    }

    #[test]
    fn numbers_wrap() {
        let mut pending =
            Pending { first: SequenceNumber(u32::MAX), sent: VecDeque::new(), unanswered: 0, work: Work(0) };
        assert_eq!(pending.push(T, W), SequenceNumber(u32::MAX));
        assert_eq!(pending.push(T, W), SequenceNumber(0));
        assert_eq!(pending.acknowledge(SequenceNumber(0), |_| ()), Some(2));
        assert_eq!(pending.push(T, W), SequenceNumber(1));
    }

    #[test]
    fn room_is_made_by_giving_up_on_the_oldest() {
        let mut pending = with(MAX_PENDING_SHARES as u32);
        assert!(pending.is_full());
        assert_eq!(pending.forget_oldest(), Some((SequenceNumber(1), W)));
        assert!(!pending.is_full());
        assert_eq!(pending.reject(SequenceNumber(1)), None);
        assert_eq!(pending.reject(SequenceNumber(2)), Some(W));
        assert_eq!(pending.unanswered(), MAX_PENDING_SHARES as u32 - 2);
        assert_eq!(Pending::new().forget_oldest(), None);
    }
}

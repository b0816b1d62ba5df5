//! Tokens kept ahead, so that a new template finds one.
//!
//! Tokens are the connection's: when it goes, they go. This module never sends anything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stratum::RequestId;
use stratum::sv2::messages::MiningJobToken;
use template::Output;

/// Tokens in stock and on their way: a new tip's empty template and its full one come within a second.
pub const STOCK: usize = 2;

/// A server that does not give a token in this time is in trouble.
pub const TOKEN_DEADLINE: Duration = Duration::from_secs(10);

/// The first wait before asking again.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait before asking again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Tokens that are kept at most. The newest go first.
const MAX_READY: usize = 2 * STOCK;

/// Requests that were given up and may still be answered.
const MAX_LATE: usize = 16;

/// A token, and what a coinbase must have for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stocked {
    pub(super) token: MiningJobToken,
    pub(super) outputs: Arc<[Output]>,
}

#[derive(Debug, Default)]
pub(super) struct TokenStock {
    ready: VecDeque<Stocked>,
    /// Requests on their way, oldest first, with when they were sent.
    asked: VecDeque<(RequestId, Duration)>,
    /// Requests that were given up. Their tokens are as good, should they still come; at most [`MAX_LATE`].
    late: VecDeque<RequestId>,
    failures: u32,
    not_before: Duration,
    /// No token is worth asking for until then.
    held_until: Duration,
}

impl TokenStock {
    /// The connection is gone.
    pub(super) fn clear(&mut self) {
        *self = TokenStock::default();
    }

    pub(super) fn take(&mut self) -> Option<Stocked> {
        self.ready.pop_front()
    }

    /// A token was not used after all.
    pub(super) fn put_back(&mut self, stocked: Stocked) {
        self.ready.push_front(stocked);
        // Jobs that end together give back what was asked for in their stead.
        self.ready.truncate(MAX_READY);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// How many tokens to ask for now, `needed` of which are waited for already.
    pub(super) fn wanted(&self, needed: usize, now: Duration) -> usize {
        if now < self.not_before.max(self.held_until) {
            return 0;
        }
        (STOCK + needed.min(STOCK)).saturating_sub(self.ready.len() + self.asked.len())
    }

    pub(super) fn note_asked(&mut self, request_id: RequestId, now: Duration) {
        self.asked.push_back((request_id, now));
    }

    /// A token came. False when nobody asked for it; it is not kept then, because its owner may be another.
    pub(super) fn add(&mut self, request_id: RequestId, stocked: Stocked) -> bool {
        let asked = self.asked.iter().position(|(asked, _)| *asked == request_id);
        let late = self.late.iter().position(|late| *late == request_id);
        match (asked, late) {
            (Some(place), _) => drop(self.asked.remove(place)),
            (None, Some(place)) => drop(self.late.remove(place)),
            (None, None) => return false,
        }
        self.failures = 0;
        self.not_before = Duration::ZERO;
        self.ready.push_back(stocked);
        true
    }

    /// When [`TokenStock::give_up`] has something to do, or there is something to ask for.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let asked = self.asked.front().map(|(_, sent)| *sent + TOKEN_DEADLINE);
        let next = self.not_before.max(self.held_until);
        let waiting =
            (next > Duration::ZERO && self.asked.is_empty() && self.ready.is_empty()).then_some(next);
        asked.into_iter().chain(waiting).min()
    }

    /// What tokens come with is of no use: waits before the next are asked for.
    pub(super) fn hold(&mut self, now: Duration) {
        self.held_until = now + LONGEST_WAIT;
    }

    /// Gives up the requests that were not answered in time; true when there are any. They are asked for again after
    /// a while, longer each time.
    pub(super) fn give_up(&mut self, now: Duration) -> bool {
        if self.asked.front().is_none_or(|(_, sent)| *sent + TOKEN_DEADLINE > now) {
            return false;
        }
        self.late.extend(self.asked.drain(..).map(|(request_id, _)| request_id));
        while self.late.len() > MAX_LATE {
            self.late.pop_front();
        }
        let wait = (FIRST_WAIT * (1 << self.failures.min(8))).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn stocked(byte: u8) -> Stocked {
        Stocked { token: vec![byte].into(), outputs: Vec::new().into() }
    }

    #[test]
    fn two_are_kept_ahead() {
        let mut stock = TokenStock::default();
        assert_eq!((stock.wanted(0, seconds(0)), stock.wanted(1, seconds(0))), (2, 3));
        stock.note_asked(RequestId(1), seconds(0));
        stock.note_asked(RequestId(2), seconds(0));
        assert_eq!(stock.wanted(0, seconds(0)), 0);
        assert!(stock.add(RequestId(2), stocked(2)));
        assert!(!stock.add(RequestId(2), stocked(3)), "nobody asked for it");
        assert_eq!(stock.take(), Some(stocked(2)));
        assert_eq!(stock.wanted(0, seconds(0)), 1);
    }

    #[test]
    fn a_server_that_is_silent_is_asked_less_and_less_often() {
        let mut stock = TokenStock::default();
        let mut now = 0;
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(stock.wanted(0, seconds(now)), 2);
            stock.note_asked(RequestId(1), seconds(now));
            assert!(!stock.give_up(seconds(now + 9)));
            assert!(stock.give_up(seconds(now + 10)));
            assert_eq!(stock.wanted(0, seconds(now + 10 + wait - 1)), 0);
            assert_eq!(stock.next_timeout(), Some(seconds(now + 10 + wait)));
            now += 10 + wait;
        }
        assert!(stock.add(RequestId(1), stocked(1)), "late is better than never");
        assert_eq!(stock.wanted(0, seconds(now)), 1);
    }
}

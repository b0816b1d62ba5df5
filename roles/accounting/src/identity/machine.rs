//! One machine: what is known of it, and what it mines on.
//!
//! A machine never knows of others; that it may be another one is decided from outside.

use core::net::IpAddr;
use std::sync::Arc;

use super::{ALIVE_SECONDS, Introduction, OVERLAP_SECONDS, Seat};

/// Connections of one machine that are looked at one by one: a machine that reconnects has two, or a few more where
/// the network drops it again and again. Of others only the number is known.
pub const MAX_SEATS: usize = 8;

/// What a machine said and showed of itself when it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The worker name, where it is not the device's name; empty where it is.
    pub(super) worker_name: Arc<str>,
    pub(super) address: Option<IpAddr>,
    pub(super) user_agent: Arc<str>,
    pub(super) device_id: Arc<str>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) name: Arc<str>,
    /// Of the connection that was taken for its own last.
    pub(super) evidence: Arc<Evidence>,
    /// Where it mines, oldest first.
    seats: Vec<Taken>,
    /// How many connections there are besides.
    standing: u32,
    /// The device with the plain name, where there are several under it.
    pub(super) head: Option<stratum::DeviceId>,
}

/// A seat that is taken.
#[derive(Debug)]
struct Taken {
    seat: Seat,
    /// When, in seconds.
    joined: u32,
    /// When its last good share came, in seconds; looked at only while there are others, 0 before.
    last_share: u32,
    evidence: Arc<Evidence>,
}

/// How much two of a kind say for being the same: they differ, one is not known, or they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likeness {
    Differs,
    Unknown,
    Same,
}

/// How well a machine would go for a newcomer: `device_id`, address, user agent, and then whether it is free. One that
/// was lost without an end comes back sooner than one that ended, and one that is alive is it least likely.
pub(super) type Rank = ([Likeness; 3], State);

/// Whether a machine is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// It has a connection, which showed a sign of life a moment ago.
    Alive,
    /// It has no connection.
    Free,
    /// It has one, and says nothing on it.
    Silent,
}

impl Evidence {
    /// As its machine would introduce itself; `name` is the device's.
    pub(super) fn introduction<'a>(&'a self, name: &'a str) -> Introduction<'a> {
        let worker_name = if self.worker_name.is_empty() { name } else { &self.worker_name };
        let Evidence { address, user_agent, device_id, .. } = self;
        Introduction { worker_name, address: *address, device_id, user_agent }
    }

    fn likeness(&self, introduction: &Introduction<'_>) -> [Likeness; 3] {
        let address = match (self.address, introduction.address) {
            (None, _) | (_, None) => Likeness::Unknown,
            (Some(one), Some(other)) if one == other => Likeness::Same,
            _ => Likeness::Differs,
        };
        let text = |one: &str, other: &str| match (one.is_empty() || other.is_empty(), one == other) {
            (true, _) => Likeness::Unknown,
            (false, true) => Likeness::Same,
            (false, false) => Likeness::Differs,
        };
        [
            text(&self.device_id, introduction.device_id),
            address,
            text(&self.user_agent, introduction.user_agent),
        ]
    }
}

impl Machine {
    pub(super) fn new(name: Arc<str>, evidence: Arc<Evidence>) -> Self {
        Machine { name, evidence, ..Machine::default() }
    }

    /// How well it would go for a newcomer; `None` when it cannot be it. `last_share` is the device's.
    pub(super) fn rank(&self, introduction: &Introduction<'_>, now: u32, last_share: u32) -> Option<Rank> {
        let likeness = self.evidence.likeness(introduction);
        let state = self.state(now, last_share);
        let can_be = match state {
            State::Free => true,
            // Another machine took the name over while the old one's connection had not ended, or came beside it.
            State::Silent => likeness[0] != Likeness::Differs,
            State::Alive => likeness.iter().all(|part| *part != Likeness::Differs),
        };
        can_be.then_some((likeness, state))
    }

    pub(super) fn is_alive(&self, now: u32, last_share: u32) -> bool {
        self.state(now, last_share) == State::Alive
    }

    fn state(&self, now: u32, last_share: u32) -> State {
        if self.connections() == 0 {
            return State::Free;
        }
        // Of one alone, the device says when its last share came.
        let last_share = if self.is_contested() { 0 } else { last_share };
        let signs = self.seats.iter().map(|taken| taken.joined.max(taken.last_share));
        let last_sign = signs.max().unwrap_or(0).max(last_share);
        if now.saturating_sub(last_sign) < ALIVE_SECONDS { State::Alive } else { State::Silent }
    }

    pub(super) fn connections(&self) -> u32 {
        self.seats.len() as u32 + self.standing
    }

    pub(super) fn is_contested(&self) -> bool {
        self.seats.len() > 1
    }

    /// Takes a newcomer for this machine: what it said is what is known from now on.
    pub(super) fn take_for(&mut self, introduction: &Introduction<'_>, user_agent: Arc<str>) {
        let worker_name = introduction.worker_name;
        let worker_name = if *self.name == *worker_name { "" } else { worker_name };
        let is_known = self.evidence.address == introduction.address
            && self.evidence.user_agent == user_agent
            && *self.evidence.device_id == *introduction.device_id
            && *self.evidence.worker_name == *worker_name;
        if !is_known {
            // An empty text takes no room of its own.
            let text = |text: &str| if text.is_empty() { Arc::default() } else { Arc::from(text) };
            self.evidence = Arc::new(Evidence {
                worker_name: text(worker_name),
                address: introduction.address,
                user_agent,
                device_id: text(introduction.device_id),
            });
        }
    }

    /// Takes a seat. `last_share` is the device's.
    pub(super) fn sit(&mut self, seat: Seat, now: u32, last_share: u32) {
        if let [alone] = &mut self.seats[..] {
            alone.last_share = alone.last_share.max(last_share);
        }
        if self.seats.len() >= MAX_SEATS {
            return self.stand();
        }
        let evidence = Arc::clone(&self.evidence);
        self.seats.reserve_exact(1);
        self.seats.push(Taken { seat, joined: now, last_share: 0, evidence });
    }

    /// Has one more connection, which is not looked at.
    pub(super) fn stand(&mut self) {
        self.standing += 1;
    }

    /// Forgets a seat. Returns how many connections are left.
    pub(super) fn leave(&mut self, seat: Seat) -> u32 {
        match self.seats.iter().position(|taken| taken.seat == seat) {
            Some(place) => drop(self.seats.remove(place)),
            None => self.standing = self.standing.saturating_sub(1),
        }
        if self.seats.is_empty() {
            self.seats = Vec::new();
        }
        self.connections()
    }

    /// Goes back to what its own connections said, after one left that was another machine's.
    pub(super) fn recall_evidence(&mut self) {
        if let Some(last) = self.seats.last() {
            self.evidence = Arc::clone(&last.evidence);
        }
    }

    /// What was said on a seat.
    pub(super) fn evidence_of(&self, seat: Seat) -> Option<Arc<Evidence>> {
        let taken = self.seats.iter().find(|taken| taken.seat == seat)?;
        Some(Arc::clone(&taken.evidence))
    }

    /// Notes that a good share came from this seat. True when one from an older seat came so long after this one was taken
    /// that both have a machine of their own.
    pub(super) fn note_share(&mut self, seat: Seat, now: u32) -> bool {
        let Some(place) = self.seats.iter().position(|taken| taken.seat == seat) else { return false };
        self.seats[place].last_share = now;
        let overlap = self.seats[place].joined.saturating_add(OVERLAP_SECONDS);
        self.seats[..place].iter().any(|older| older.last_share >= overlap)
    }
}

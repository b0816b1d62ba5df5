//! What all connections of one worker share: buffers, and the ways out to the owner of the work and the records.
//!
//! Buffers that are shared cost an idle connection nothing. Shares are handed on together, a few dozen in one step,
//! at the latest when the worker has served everybody who was ready. A block never waits for that.

use std::sync::Arc;
use std::time::Duration;

use mining_proxy::DownstreamKey;
use mining_server::sv1::SV1_CHANNEL;
use mining_server::{DropReason, Event, Output, ShareEvent, Work};
use stratum::Now;
use tokio::sync::watch;

use super::super::{ConnectionCounts, Context, MAX_HOLD, Patience, keep, log_notice, not_taken};
use super::inbox::{Inbox, Place, Slip};
use crate::clock::Clock;
use crate::latency::Latencies;
use crate::owner::{Command, Owner, SHARE_BATCH};
use crate::sink::RecordWriter;

/// How often a thread hands shares on at most, unless they are many. The first after a pause leaves at once; what is
/// found within this time waits for more, because the owner would be woken for each.
const FORWARD_INTERVAL: Duration = Duration::from_millis(2);

/// How often room is looked for in a queue that had none: the shortest time that the system waits.
pub(super) const HELD_UP_TICK: Duration = Duration::from_millis(1);

/// The shared part of a worker.
pub(super) struct Desk {
    pub(super) clock: Clock,
    pub(super) patience: Patience,
    pub(super) latencies: Arc<Latencies>,
    pub(super) writer: RecordWriter,
    /// What the state machines put out; empty between two connections.
    pub(super) out: Output,
    /// The work that all connections share.
    pub(super) work: watch::Receiver<Option<Arc<Work>>>,
    /// Where other threads leave things for this worker.
    pub(super) inbox: Arc<Inbox>,
    owner: Owner,
    counts: Arc<ConnectionCounts>,
    forward: Vec<ShareEvent>,
    /// When shares were handed on last because it was time, on the monotonic clock.
    forwarded: Duration,
    /// While the owner's queue has no room for them.
    held: Option<Held>,
}

/// When a queue was found without room, on the monotonic clock.
struct Held {
    /// The first time in a row.
    since: Duration,
    /// The latest time.
    last: Duration,
}

impl Desk {
    pub(super) fn new(context: &Context, inbox: Arc<Inbox>) -> Self {
        Desk {
            clock: context.clock,
            patience: context.patience,
            latencies: Arc::clone(&context.latencies),
            writer: context.sink.writer(),
            out: Output::default(),
            work: context.owner.work.clone(),
            inbox,
            owner: context.owner.clone(),
            counts: Arc::clone(&context.counts),
            forward: Vec::with_capacity(SHARE_BATCH),
            forwarded: Duration::ZERO,
            held: None,
        }
    }

    /// Passes on the shares that were judged. A block is in its owner's queue when this returns, before its miner is
    /// answered. Returns when the first of them was judged.
    pub(super) fn pass_shares(&mut self) -> Option<Now> {
        let first = self.out.shares.first()?.record.judged;
        for share in self.out.shares.drain(..) {
            match &share.forward {
                None => keep(&mut self.writer, share),
                Some(forward) if forward.is_block => {
                    if let Err(refused) = self.owner.blocks.blocking_send(share) {
                        not_taken(&mut self.writer, refused.0, DropReason::UpstreamLost);
                    }
                }
                Some(_) => self.forward.push(share),
            }
        }
        if self.forward.len() >= SHARE_BATCH {
            self.forward_all();
        }
        Some(first)
    }

    /// When the shares that were gathered leave, on the monotonic clock; `None` while there are none.
    pub(super) fn forward_at(&self) -> Option<Duration> {
        (!self.forward.is_empty()).then_some(self.forwarded + FORWARD_INTERVAL)
    }

    /// Hands on the shares that were gathered, if it is time.
    pub(super) fn forward_if_due(&mut self) {
        let Some(at) = self.forward_at() else { return };
        let now = self.clock.monotonic();
        if now >= at {
            self.forwarded = now;
            self.forward_all();
        }
    }

    /// Hands on the shares that are to be forwarded. While the queue has no room for them they are kept, and the
    /// worker reads no further connections ([`Desk::is_held_up`]): miners wait for their answers rather than lose their shares. An
    /// owner that makes no room for [`MAX_HOLD`] is stuck, and then shares are dropped and counted.
    pub(super) fn forward_all(&mut self) {
        while !self.forward.is_empty() {
            let Ok(permit) = self.owner.shares.try_reserve() else { break };
            // What one read brought may be more than a batch.
            let rest = self.forward.split_off(self.forward.len().min(SHARE_BATCH));
            permit.send(std::mem::replace(&mut self.forward, rest));
            self.forward.reserve(SHARE_BATCH);
            self.held = None;
        }
        if self.forward.is_empty() {
            return;
        }
        let now = self.clock.monotonic();
        let held = self.held.get_or_insert(Held { since: now, last: now });
        if now > held.last + MAX_HOLD {
            // That was another time.
            held.since = now;
        }
        held.last = now;
        if now < held.since + MAX_HOLD && !self.owner.shares.is_closed() {
            return;
        }
        let full = !self.owner.shares.is_closed();
        let reason = if full { DropReason::QueueFull } else { DropReason::UpstreamLost };
        for share in self.forward.drain(..) {
            not_taken(&mut self.writer, share, reason);
        }
    }

    /// Hands on the shares that are to be forwarded, and waits for room if there is none; no longer than any share
    /// waits for it.
    pub(super) fn forward_now(&mut self) {
        self.forward_all();
        while !self.forward.is_empty() {
            std::thread::sleep(HELD_UP_TICK);
            self.forward_all();
        }
    }

    /// Whether shares wait for room in their owner's queue.
    pub(super) fn is_held_up(&self) -> bool {
        self.forward.len() >= SHARE_BATCH || (self.held.is_some() && !self.forward.is_empty())
    }

    /// Passes on everything else that a connection has to say.
    pub(super) fn pass_events(&mut self, place: Place) {
        let id = place.1;
        let key = DownstreamKey { connection: id, channel: SV1_CHANNEL };
        if self.out.events.iter().any(|event| matches!(event, Event::CloseUpstream { .. })) {
            // Its last shares must not find their channel closed.
            self.forward_now();
        }
        for event in self.out.events.drain(..) {
            let command = match event {
                Event::OpenUpstream { user_identity, hash_rate, .. } => {
                    let mailbox = Arc::new(Slip { inbox: Arc::clone(&self.inbox), place });
                    Command::Open { key, user_identity, hash_rate, mailbox }
                }
                Event::CloseUpstream { .. } => Command::Close { key },
                Event::HashRate { rate, .. } => Command::HashRate { key, rate },
                Event::NewJobWanted { .. } => Command::NewJobWanted { key },
                // The connection's holdings count these.
                Event::VersionRolling(_) | Event::RolledOutsideMask => continue,
                Event::Notice(notice) => {
                    log_notice(id, &notice, &self.counts, self.clock);
                    continue;
                }
            };
            // Its owner takes commands without ever waiting for a connection. News that it no longer takes mean
            // nothing: the process ends.
            let _ = self.owner.commands.blocking_send(command);
        }
    }

    /// Forgets what a connection put out that panicked meanwhile.
    pub(super) fn forget_output(&mut self) {
        self.out = Output::default();
    }
}

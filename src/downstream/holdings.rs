//! What a connection holds outside its own state, and gives back however it ends.
//!
//! A connection that ends in order gives everything back through its state machine, and nothing is left here. One
//! that panics has no state machine any more: without this its reserved bytes, its share of the upstream's hash rate
//! and its upstream channels would be held until the process ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accounting::{Introduction, Seat};
use mining_proxy::DownstreamKey;
use mining_server::{Event, Registry, VersionRolling};
use stratum::extranonce::Exhausted;
use stratum::job::RESERVED_SIZE;
use stratum::{ChannelId, ConnectionId, DeviceId, HashRate, Now};
use tokio::sync::mpsc;

use super::{ConnectionCounts, Context};
use crate::owner::Command;
use crate::registry::SharedRegistry;

/// Everything that one connection holds. It is the connection's way to the registry, and is shown every event, so
/// its sets are bounded by what the state machine may hold: one value and a few entries for each of its channels.
#[derive(Debug)]
pub(super) struct Holdings {
    id: ConnectionId,
    /// Where it comes from, as the socket says.
    peer: IpAddr,
    counts: Arc<ConnectionCounts>,
    gauge: fn(&ConnectionCounts) -> &AtomicU64,
    registry: SharedRegistry,
    commands: mpsc::Sender<Command>,
    reserved: Few<[u8; RESERVED_SIZE]>,
    seats: Seats,
    upstream_channels: Few<ChannelId>,
    rated: Few<ChannelId>,
    version_rolling: VersionRolling,
}

impl Holdings {
    /// Counts an open connection in `gauge`, for as long as this lives.
    pub(super) fn new(
        id: ConnectionId,
        peer: IpAddr,
        context: &Context,
        gauge: fn(&ConnectionCounts) -> &AtomicU64,
    ) -> Self {
        gauge(&context.counts).fetch_add(1, Ordering::Relaxed);
        Holdings {
            id,
            peer,
            counts: Arc::clone(&context.counts),
            gauge,
            registry: context.registry.clone(),
            commands: context.owner.commands.clone(),
            reserved: Few::None,
            seats: Seats::None,
            upstream_channels: Few::None,
            rated: Few::None,
            version_rolling: VersionRolling::NotNegotiated,
        }
    }

    /// Notes what the owner of the work is about to be told.
    pub(super) fn note(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::OpenUpstream { channel, .. } => {
                    self.upstream_channels.insert(*channel);
                }
                Event::CloseUpstream { channel } => {
                    self.upstream_channels.remove(*channel);
                    // With its channel an upstream forgets the rate too.
                    self.rated.remove(*channel);
                }
                Event::HashRate { channel, rate } if *rate > HashRate(0.0) => {
                    self.rated.insert(*channel);
                }
                Event::HashRate { channel, .. } => {
                    self.rated.remove(*channel);
                }
                Event::VersionRolling(state) => self.count_version_rolling(*state),
                Event::RolledOutsideMask => {
                    self.counts.rolled_outside_mask.fetch_add(1, Ordering::Relaxed);
                }
                Event::NewJobWanted { .. } | Event::Notice(_) => {}
            }
        }
    }

    /// Counts the connection where it belongs now, and no longer where it was counted.
    fn count_version_rolling(&mut self, state: VersionRolling) {
        let before = std::mem::replace(&mut self.version_rolling, state);
        if let Some(gauge) = self.counts.version_rolling(before) {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(gauge) = self.counts.version_rolling(state) {
            gauge.fetch_add(1, Ordering::Relaxed);
        }
        if state == VersionRolling::Withheld {
            self.counts.rolling_withheld_total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the owner must hear, so that it forgets this connection.
    fn farewell(&mut self) -> Vec<Command> {
        let id = self.id;
        let key = |channel| DownstreamKey { connection: id, channel };
        let (rated, open) = (self.rated.take(), self.upstream_channels.take());
        let open = open.into_iter();
        rated
            .into_iter()
            .map(|channel| Command::HashRate { key: key(channel), rate: HashRate(0.0) })
            .chain(open.map(|channel| Command::Close { key: key(channel) }))
            .collect()
    }
}

/// A set of what a connection has for each of its channels. Nearly always one thing, which takes no memory besides.
#[derive(Debug)]
enum Few<T> {
    None,
    One(T),
    Many(BTreeSet<T>),
}

impl<T: Copy + Ord> Few<T> {
    fn insert(&mut self, value: T) {
        match self {
            Few::None => *self = Few::One(value),
            Few::One(first) if *first == value => {}
            Few::One(first) => *self = Few::Many(BTreeSet::from([*first, value])),
            Few::Many(many) => drop(many.insert(value)),
        }
    }

    fn remove(&mut self, value: T) {
        match self {
            Few::One(first) if *first == value => *self = Few::None,
            Few::None | Few::One(_) => {}
            Few::Many(many) => drop(many.remove(&value)),
        }
    }

    fn take(&mut self) -> Vec<T> {
        match std::mem::replace(self, Few::None) {
            Few::None => Vec::new(),
            Few::One(value) => vec![value],
            Few::Many(many) => many.into_iter().collect(),
        }
    }
}

/// The devices that mine on a connection's channels. Nearly always one on one channel, which takes no memory besides.
#[derive(Debug)]
enum Seats {
    None,
    One(ChannelId, DeviceId),
    /// How often each, because workers without a device of their own share one.
    Many(BTreeMap<(ChannelId, DeviceId), u32>),
}

impl Seats {
    fn add(&mut self, channel: ChannelId, device: DeviceId) {
        match self {
            Seats::None => *self = Seats::One(channel, device),
            Seats::One(first, first_device) => {
                let mut many = BTreeMap::from([((*first, *first_device), 1)]);
                *many.entry((channel, device)).or_default() += 1;
                *self = Seats::Many(many);
            }
            Seats::Many(many) => *many.entry((channel, device)).or_default() += 1,
        }
    }

    fn remove(&mut self, channel: ChannelId, device: DeviceId) {
        match self {
            Seats::One(first, first_device) if (*first, *first_device) == (channel, device) => {
                *self = Seats::None;
            }
            Seats::None | Seats::One(..) => {}
            Seats::Many(many) => {
                if let Some(count) = many.get_mut(&(channel, device)) {
                    *count -= 1;
                    if *count == 0 {
                        many.remove(&(channel, device));
                    }
                }
            }
        }
    }

    fn take(&mut self) -> Vec<(ChannelId, DeviceId)> {
        match std::mem::replace(self, Seats::None) {
            Seats::None => Vec::new(),
            Seats::One(channel, device) => vec![(channel, device)],
            Seats::Many(many) => {
                many.into_iter().flat_map(|(seat, count)| (0..count).map(move |_| seat)).collect()
            }
        }
    }
}

impl Registry for Holdings {
    fn join(&mut self, channel: ChannelId, introduction: &Introduction<'_>) -> DeviceId {
        let address = introduction.address.or(Some(self.peer));
        let seat = Seat { connection: self.id, channel };
        let device = self.registry.join(seat, &Introduction { address, ..*introduction });
        self.seats.add(channel, device);
        device
    }

    fn note_share(&mut self, channel: ChannelId, device: DeviceId, now: Now) -> DeviceId {
        let found = self.registry.note_share(Seat { connection: self.id, channel }, device, now);
        if found != device {
            self.seats.remove(channel, device);
            self.seats.add(channel, found);
        }
        found
    }

    fn leave(&mut self, channel: ChannelId, device: DeviceId) {
        // Forgotten first: if the registry is broken, this must not be tried once more on the way out.
        self.seats.remove(channel, device);
        self.registry.leave(Seat { connection: self.id, channel }, device);
    }

    fn take_reserved(&mut self) -> Result<[u8; RESERVED_SIZE], Exhausted> {
        let reserved = self.registry.take_reserved()?;
        self.reserved.insert(reserved);
        Ok(reserved)
    }

    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]) {
        // Forgotten first: if the space refuses it, it must not be given back once more on the way out.
        self.reserved.remove(reserved);
        self.registry.give_back_reserved(reserved);
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        (self.gauge)(&self.counts).fetch_sub(1, Ordering::Relaxed);
        self.count_version_rolling(VersionRolling::NotNegotiated);
        for reserved in self.reserved.take() {
            self.registry.recover_reserved(reserved);
        }
        for (channel, device) in self.seats.take() {
            self.registry.recover_seat(Seat { connection: self.id, channel }, device);
        }
        let farewell = self.farewell();
        if farewell.is_empty() {
            return;
        }
        // The queue may be full, and nothing can wait here. Without a runtime the process ends, and the owner too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let commands = self.commands.clone();
            runtime.spawn(async move {
                for command in farewell {
                    // That the owner is gone can only mean that the process ends.
                    let _ = commands.send(command).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_one_stays_one_and_a_set_of_some_has_each_once() {
        let mut few = Few::None;
        for _ in 0..3 {
            few.insert(7);
            assert!(matches!(few, Few::One(7)), "it takes no memory besides");
        }
        few.remove(8);
        few.insert(9);
        few.insert(9);
        few.insert(7);
        few.remove(7);
        assert_eq!((few.take(), few.take()), (vec![9], vec![]));
    }
}

//! Which device a machine is: across reconnections, and where several machines use one worker name.
//!
//! A machine is known by its worker name first, or by what a rule of the configuration says. Machines that mine under
//! one name at the same time are told apart: the first keeps the plain name, the others have a number after it. There
//! are never more devices under a name than machines that were seen to mine at once, so that a machine whose address
//! or software changes stays what it was.
//!
//! Nothing here is ever certain, because names, addresses and software can be said by anybody. What is decided is what
//! the evidence says at a moment; records that were written stay as they are. Nothing here is asked for a share.

mod machine;
mod rules;
#[cfg(test)]
mod tests;

use core::cmp::Reverse;
use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stratum::{ChannelId, ConnectionId, DeviceId};

pub use self::machine::MAX_SEATS;
use self::machine::{Evidence, Machine};
pub use self::rules::{IdentityBy, IdentityRule, MAX_TEMPLATE, NameTemplate};
use crate::books::MAX_DEVICES;
use crate::entry::{DeviceEntry, MAX_TEXT};
use crate::rollup::DeviceRow;

/// Machines under one name that are told apart: more than anybody names alike by mistake, and each newcomer is compared
/// with all of them. Further ones share the last one's device, which is reported.
pub const MAX_MACHINES: usize = 64;

/// A connection that showed a sign of life within this time belongs to a machine that is there, in seconds. A machine
/// that lost its connection without an end takes longer to notice it and to come back.
pub const ALIVE_SECONDS: u32 = 30;

/// When an older connection still brings good shares this long after a newer one began, in seconds, both are live: what
/// was on its way when its machine left it has come by then.
pub const OVERLAP_SECONDS: u32 = 30;

/// A shared name is reported again after this time, in seconds.
const REPORT_INTERVAL: u32 = 3600;

/// Reports of shared names within that time, over all names: strangers can cause as many as they like.
const MAX_REPORTS: u32 = 256;

/// User agents that are kept once for all who use them; a fleet has a few dozen.
const MAX_AGENTS: usize = 1024;

/// The name of the device that stands for all names beyond [`MAX_DEVICES`].
pub const OTHERS: &str = "(others)";

/// Room that is left in a name for the number after it, in bytes: `~64`.
const ADDITION: usize = 4;

/// What a machine says and shows of itself when it wants to mine. Texts may be empty: not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Introduction<'a> {
    /// The worker name; the user identity of an SV2 channel.
    pub worker_name: &'a str,
    /// Where it comes from.
    pub address: Option<IpAddr>,
    /// `device_id` of SV2's `SetupConnection`. Some firmware sends the same from every machine.
    pub device_id: &'a str,
    /// What it calls itself: SV1's user agent, SV2's vendor, hardware and firmware.
    pub user_agent: &'a str,
}

/// What a machine mines on: a channel of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// The connection.
    pub connection: ConnectionId,
    /// Its channel; 0 on SV1 connections.
    pub channel: ChannelId,
}

/// Where a machine was found to belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its device.
    pub device: DeviceId,
    /// How many connections the device has now.
    pub connections: u32,
    /// What an operator should hear.
    pub report: Option<SharedName>,
}

/// A machine that was taken for another one, and was found to be one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    /// How many connections are left to the device that it was taken for.
    pub left: u32,
    /// Where it belongs from now on.
    pub joined: Joined,
}

/// Several machines mine under one worker name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedName {
    /// The name.
    pub name: Arc<str>,
    /// A device under this name, and the address of its machine.
    pub one: (DeviceId, Option<IpAddr>),
    /// The device of the machine that came, and its address.
    pub other: (DeviceId, Option<IpAddr>),
    /// There are more than [`MAX_MACHINES`]: the one that came has no device of its own.
    pub is_overfull: bool,
}

/// The devices under one name, where they are several.
#[derive(Debug)]
struct Namesakes {
    /// In the order in which they were told apart; the first has the plain name.
    members: Vec<DeviceId>,
    /// When that was reported last, and when that there are too many.
    reported: [Option<u32>; 2],
    /// Whether more than one mines now.
    is_shared: bool,
}

/// A machine on its way to a device.
struct Newcomer<'a> {
    introduction: Introduction<'a>,
    seat: Seat,
    /// Whether it may be found to be another machine later.
    tells_apart: bool,
    /// Whether there was no room for a device of its own.
    is_overfull: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Identities {
    rules: Vec<IdentityRule>,
    names: BTreeMap<Arc<str>, DeviceId>,
    /// By their numbers, which are given without gaps.
    machines: Vec<Machine>,
    /// By the device that has the plain name.
    namesakes: BTreeMap<DeviceId, Namesakes>,
    agents: BTreeSet<Arc<str>>,
    /// How many names are shared now.
    shared: usize,
    /// The hour of the last report, and how many there were in it.
    reports: (u32, u32),
}

impl Identities {
    /// Nobody is known yet. The first rule whose pattern matches and whose evidence is there decides; without one, it is
    /// the worker name, and machines are told apart.
    pub fn new(rules: Vec<IdentityRule>) -> Self {
        Identities { rules, ..Identities::default() }
    }

    /// Takes the devices of the time before, so that each keeps its number for ever.
    pub fn restore(&mut self, rows: &[DeviceRow]) {
        for row in rows.iter().filter(|row| (row.id.0 as usize) < MAX_DEVICES) {
            let index = row.id.0 as usize;
            if self.machines.len() <= index {
                self.machines.resize_with(index + 1, Machine::default);
            }
            let evidence = Evidence {
                worker_name: row.worker_name.clone(),
                address: row.address.parse().ok(),
                user_agent: self.shared_agent(&row.user_agent),
                device_id: row.device_id.as_str().into(),
            };
            self.machines[index] = Machine::new(Arc::clone(&row.name), Arc::new(evidence));
            if !row.name.is_empty() {
                self.names.insert(Arc::clone(&row.name), row.id);
            }
        }
        for row in rows.iter().filter(|row| is_addition(&row.name, &row.worker_name)) {
            if let Some(head) = self.names.get(&row.worker_name).copied()
                && (row.id.0 as usize) < MAX_DEVICES
                && head != row.id
                && self.members(head).len() < MAX_MACHINES
            {
                self.add_namesake(head, row.id);
            }
        }
    }

    /// A machine begins to mine. `last_share` says of a device when its last good share came, in seconds.
    pub fn join(
        &mut self,
        introduction: &Introduction<'_>,
        seat: Seat,
        now: u32,
        last_share: impl Fn(DeviceId) -> u32,
    ) -> Joined {
        let introduction = cut(introduction);
        let (name, tells_apart) = rules::name_of(&self.rules, &introduction);
        let (device, is_overfull) = match self.names.get(&*name).copied() {
            Some(named) if tells_apart => self.find(named, &introduction, now, &last_share),
            Some(named) => (named, false),
            None => (self.add_named(&name), false),
        };
        let newcomer = Newcomer { introduction, seat, tells_apart, is_overfull };
        self.take_seat(device, &newcomer, now, last_share(device))
    }

    /// A share from this seat was accepted. Says so where its machine is not the one that it was taken for.
    pub fn note_share(
        &mut self,
        device: DeviceId,
        seat: Seat,
        now: u32,
        last_share: impl Fn(DeviceId) -> u32,
    ) -> Option<Parted> {
        let machine = self.machines.get_mut(device.0 as usize)?;
        if !machine.note_share(seat, now) {
            return None;
        }
        let (evidence, name) = (machine.evidence_of(seat)?, Arc::clone(&machine.name));
        let introduction = evidence.introduction(&name);
        let head = machine.head.unwrap_or(device);
        let (found, is_overfull) = self.find_other(device, head, &introduction, now, &last_share);
        if is_overfull {
            return None;
        }
        let left = self.machines[device.0 as usize].leave(seat);
        self.machines[device.0 as usize].recall_evidence();
        let newcomer = Newcomer { introduction, seat, tells_apart: true, is_overfull };
        let joined = self.take_seat(found, &newcomer, now, last_share(found));
        Some(Parted { left, joined })
    }

    /// A seat is empty. Returns how many connections are left to the device.
    pub fn leave(&mut self, device: DeviceId, seat: Seat) -> u32 {
        let Some(machine) = self.machines.get_mut(device.0 as usize) else { return 0 };
        let left = machine.leave(seat);
        if left == 0 {
            self.count_shared(device);
        }
        left
    }

    /// Whether several connections are taken for the one of this device, so that their shares must be looked at.
    pub fn is_contested(&self, device: DeviceId) -> bool {
        self.machines.get(device.0 as usize).is_some_and(Machine::is_contested)
    }

    /// The name of a device.
    pub fn name(&self, device: DeviceId) -> Option<&Arc<str>> {
        self.machines.get(device.0 as usize).map(|machine| &machine.name)
    }

    /// The worker name that a device last mined under.
    pub fn worker_name(&self, device: DeviceId) -> Option<&Arc<str>> {
        let machine = self.machines.get(device.0 as usize)?;
        let worker_name = &machine.evidence.worker_name;
        Some(if worker_name.is_empty() { &machine.name } else { worker_name })
    }

    /// How many devices are known.
    pub fn len(&self) -> usize {
        self.machines.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// Names under which several machines mine now.
    pub fn shared_names(&self) -> usize {
        self.shared
    }

    /// What is known of a device, for the ledger.
    pub fn entry(&self, device: DeviceId, at_us: u64) -> DeviceEntry {
        let machine = &self.machines[device.0 as usize];
        let evidence = &machine.evidence;
        DeviceEntry {
            id: device,
            at_us,
            name: machine.name.to_string(),
            worker_name: evidence.worker_name.to_string(),
            groups: Vec::new(),
            address: evidence.address.map(|address| address.to_string()).unwrap_or_default(),
            user_agent: evidence.user_agent.to_string(),
            device_id: evidence.device_id.to_string(),
        }
    }

    /// The device under a name that a machine most likely is: the one that is most like it and may be it, or a new one.
    /// With whether there is no room for a new one.
    fn find(
        &mut self,
        named: DeviceId,
        introduction: &Introduction<'_>,
        now: u32,
        last_share: &impl Fn(DeviceId) -> u32,
    ) -> (DeviceId, bool) {
        let rank = |id: DeviceId, machine: &Machine| machine.rank(introduction, now, last_share(id));
        let machine = &self.machines[named.0 as usize];
        let head = machine.head.unwrap_or(named);
        // A machine that calls itself by the number that another one was given means that one.
        if head != named && rank(named, machine).is_some() {
            return (named, false);
        }
        let best = self.best(head, rank);
        best.map_or_else(|| self.add_machine(head), |device| (device, false))
    }

    /// As [`Identities::find`], for a machine that was found to be live beside the one of `device`: it is no other that is
    /// live either.
    fn find_other(
        &mut self,
        device: DeviceId,
        head: DeviceId,
        introduction: &Introduction<'_>,
        now: u32,
        last_share: &impl Fn(DeviceId) -> u32,
    ) -> (DeviceId, bool) {
        let best = self.best(head, |id, machine| {
            let rank = machine.rank(introduction, now, last_share(id))?;
            (id != device && !machine.is_alive(now, last_share(id))).then_some(rank)
        });
        best.map_or_else(|| self.add_machine(head), |device| (device, false))
    }

    fn best<R: Ord>(
        &self,
        head: DeviceId,
        rank: impl Fn(DeviceId, &Machine) -> Option<R>,
    ) -> Option<DeviceId> {
        let ranked = self.members(head).iter().enumerate().filter_map(|(place, id)| {
            let rank = rank(*id, &self.machines[id.0 as usize])?;
            Some((rank, Reverse(place), *id))
        });
        ranked.max().map(|(.., id)| id)
    }

    fn members(&self, head: DeviceId) -> &[DeviceId] {
        match self.namesakes.get(&head) {
            Some(namesakes) => &namesakes.members,
            // The number of the head itself, out of the table of names.
            None => self.names.get(&self.machines[head.0 as usize].name).map_or(&[], core::slice::from_ref),
        }
    }

    /// A device with a plain name; the one of all others when there are too many.
    fn add_named(&mut self, name: &str) -> DeviceId {
        let is_full = self.machines.len() >= MAX_DEVICES;
        let name = if is_full { OTHERS } else { name };
        match self.names.get(name) {
            Some(device) => *device,
            None => self.add(name.into()),
        }
    }

    /// One more device under a name; the last one, and true, where there is no room.
    fn add_machine(&mut self, head: DeviceId) -> (DeviceId, bool) {
        let last = self.members(head).last().copied().unwrap_or(head);
        let count = self.members(head).len();
        if count >= MAX_MACHINES || self.machines.len() >= MAX_DEVICES {
            return (last, true);
        }
        let plain = Arc::clone(&self.machines[head.0 as usize].name);
        let plain = &plain[..plain.floor_char_boundary(MAX_TEXT - ADDITION)];
        // Somebody may have authorised under such a name.
        let mut names = (count + 1..=2 * MAX_MACHINES).map(|number| format!("{plain}~{number}"));
        let Some(name) = names.find(|name| !self.names.contains_key(name.as_str())) else {
            return (last, true);
        };
        let device = self.add(name.into());
        self.add_namesake(head, device);
        (device, false)
    }

    fn add(&mut self, name: Arc<str>) -> DeviceId {
        let device = DeviceId(self.machines.len() as u32);
        self.machines.push(Machine::new(Arc::clone(&name), Arc::default()));
        self.names.insert(name, device);
        device
    }

    fn add_namesake(&mut self, head: DeviceId, device: DeviceId) {
        let first = || Namesakes { members: vec![head], reported: [None; 2], is_shared: false };
        self.namesakes.entry(head).or_insert_with(first).members.push(device);
        for id in [head, device] {
            self.machines[id.0 as usize].head = Some(head);
        }
    }

    fn take_seat(&mut self, device: DeviceId, newcomer: &Newcomer<'_>, now: u32, last_share: u32) -> Joined {
        let user_agent = self.shared_agent(newcomer.introduction.user_agent);
        let machine = &mut self.machines[device.0 as usize];
        machine.take_for(&newcomer.introduction, user_agent);
        if newcomer.tells_apart {
            machine.sit(newcomer.seat, now, last_share);
        } else {
            machine.stand();
        }
        let connections = machine.connections();
        self.count_shared(device);
        Joined { device, connections, report: self.report(device, newcomer, now) }
    }

    /// Counts a name among the shared ones, or no longer.
    fn count_shared(&mut self, device: DeviceId) {
        let Some(head) = self.machines[device.0 as usize].head else { return };
        let namesakes = self.namesakes.get_mut(&head).expect("who has a head is one of several");
        let live = |id: &&DeviceId| self.machines[id.0 as usize].connections() > 0;
        let is_shared = namesakes.members.iter().filter(live).nth(1).is_some();
        if namesakes.is_shared != is_shared {
            namesakes.is_shared = is_shared;
            self.shared = if is_shared { self.shared + 1 } else { self.shared - 1 };
        }
    }

    /// What to say of a device that a machine just joined.
    fn report(&mut self, device: DeviceId, newcomer: &Newcomer<'_>, now: u32) -> Option<SharedName> {
        let is_overfull = newcomer.is_overfull;
        let head = self.machines[device.0 as usize].head?;
        let namesakes = self.namesakes.get_mut(&head)?;
        let reported = &mut namesakes.reported[usize::from(is_overfull)];
        let is_due = reported.is_none_or(|at| now >= at.saturating_add(REPORT_INTERVAL));
        if !is_due || !namesakes.is_shared {
            return None;
        }
        let hour = now / REPORT_INTERVAL;
        self.reports = if self.reports.0 == hour { (hour, self.reports.1 + 1) } else { (hour, 1) };
        if self.reports.1 > MAX_REPORTS {
            self.reports.1 = MAX_REPORTS;
            return None;
        }
        *reported = Some(now);
        let live = |id: &&DeviceId| **id != device && self.machines[id.0 as usize].connections() > 0;
        let one = namesakes.members.iter().find(live).copied()?;
        let name = Arc::clone(&self.machines[head.0 as usize].name);
        let one = (one, self.machines[one.0 as usize].evidence.address);
        let other = (device, newcomer.introduction.address);
        Some(SharedName { name, one, other, is_overfull })
    }

    fn shared_agent(&mut self, user_agent: &str) -> Arc<str> {
        if user_agent.is_empty() {
            return Arc::default();
        }
        if let Some(known) = self.agents.get(user_agent) {
            return Arc::clone(known);
        }
        let new: Arc<str> = user_agent.into();
        if self.agents.len() < MAX_AGENTS {
            self.agents.insert(Arc::clone(&new));
        }
        new
    }
}

/// As long as the ledger can hold: a longer name would be another one after a restart.
fn cut<'a>(introduction: &Introduction<'a>) -> Introduction<'a> {
    let short = |text: &'a str| &text[..text.floor_char_boundary(MAX_TEXT)];
    Introduction {
        worker_name: short(introduction.worker_name),
        address: introduction.address.map(|address| address.to_canonical()),
        device_id: short(introduction.device_id),
        user_agent: short(introduction.user_agent),
    }
}

/// Whether a name is a worker name with a number after it.
fn is_addition(name: &str, worker_name: &str) -> bool {
    let plain = &worker_name[..worker_name.floor_char_boundary(MAX_TEXT - ADDITION)];
    let number = name.strip_prefix(plain).and_then(|rest| rest.strip_prefix('~'));
    !worker_name.is_empty() && number.is_some_and(|number| number.parse::<u16>().is_ok())
}

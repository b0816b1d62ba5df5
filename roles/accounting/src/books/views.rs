//! What others may see of the books: one subject or one device at one moment, and what a store keeps of a device.
//!
//! Nothing here changes anything.

use std::sync::Arc;

use stratum::{DeviceId, Work};

use super::Books;
use super::account::Account;
use super::identity::Odd;
use crate::power::PowerSource;
use crate::rates::{RatePair, Window};
use crate::rollup::{DeviceRow, GroupId, Subject};
use crate::sums::Sums;

/// One device at one moment.
#[derive(Clone, Debug)]
pub struct DeviceView {
    /// Its number.
    pub id: DeviceId,
    /// Its name, once it was said.
    pub name: Option<Arc<str>>,
    /// The worker name, where the name is another; empty where it is the name.
    pub worker_name: Arc<str>,
    /// Its groups.
    pub groups: Vec<GroupId>,
    /// How many connections it has.
    pub connections: u32,
    /// The address that it last came from; empty when unknown.
    pub address: Arc<str>,
    /// What it last called itself; empty when unknown.
    pub user_agent: Arc<str>,
    /// What it last sent as SV2's `device_id`; empty when unknown.
    pub device_id: Box<str>,
    /// Whether it last mined on a channel, as SV2 devices do; `None` when no connection of it is known.
    pub has_channel: Option<bool>,
    /// When it was first seen, in unix microseconds.
    pub first_seen_us: u64,
    /// When it was last seen, in unix microseconds.
    pub last_seen_us: u64,
    /// When its latest accepted share came, in unix microseconds.
    pub last_share_us: Option<u64>,
    /// The hardest difficulty that a hash of its accepted shares reached.
    pub best_difficulty: Option<f64>,
    /// What its latest accepted share was credited, where there was one in this process.
    pub latest_work: Option<Work>,
    /// Sums since the ledger began.
    pub sums: Sums,
    /// Its rates, in the order of [`Window::ALL`].
    pub rates: [RatePair; 4],
    /// Its power now in milliwatts, and who says so.
    pub power: Option<(u64, PowerSource)>,
}

/// What differs whenever something was counted for a device, or it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMark(pub u32, pub u64);

/// A group, an upstream or the fleet at one moment.
#[derive(Clone, Debug)]
pub struct SubjectView {
    /// Sums since the ledger began.
    pub sums: Sums,
    /// Its rates, in the order of [`Window::ALL`].
    pub rates: [RatePair; 4],
}

impl Books {
    /// One subject at one moment; `None` when nothing is known of it.
    pub fn view(&self, subject: Subject, now_us: u64) -> Option<SubjectView> {
        let account = self.account(subject)?;
        Some(SubjectView { sums: account.total(), rates: rates_of(account, now_us) })
    }

    /// One device at one moment.
    pub fn device_view(&self, id: DeviceId, now_us: u64) -> Option<DeviceView> {
        let device = self.devices.get(id.0 as usize)?.as_ref()?;
        Some(DeviceView {
            id,
            name: device.name.clone(),
            worker_name: Odd::worker_name(&device.odd),
            groups: device.groups.clone(),
            connections: device.connections,
            address: device.address.clone(),
            user_agent: device.user_agent.clone(),
            device_id: Odd::parts(&device.odd).1.into(),
            has_channel: device.has_channel,
            first_seen_us: device.first_seen_us,
            last_seen_us: device.last_seen_us,
            last_share_us: Some(device.last_share_us).filter(|time| *time > 0),
            best_difficulty: Some(device.best_difficulty).filter(|difficulty| *difficulty > 0.0),
            latest_work: Some(device.latest_work).filter(|work| work.0 > 0),
            sums: device.account.total(),
            rates: rates_of(&device.account, now_us),
            power: self.power(Subject::Device(id), now_us),
        })
    }

    /// The names of the devices from the number `first` on, in their order; `None` for those that none was said of.
    pub fn device_names(&self, first: usize) -> impl Iterator<Item = (DeviceId, Option<Arc<str>>)> {
        (first..self.devices.len()).filter_map(|index| {
            let device = self.devices[index].as_ref()?;
            Some((DeviceId(index as u32), device.name.clone()))
        })
    }

    /// What differs whenever something was counted for a device, or it was seen: of those from the number `first` on, in
    /// their order.
    pub fn device_marks(&self, first: usize) -> impl Iterator<Item = (DeviceId, DeviceMark)> {
        (first..self.devices.len()).filter_map(|index| {
            let device = self.devices[index].as_ref()?;
            Some((DeviceId(index as u32), DeviceMark(device.account.changes, device.last_seen_us)))
        })
    }

    /// The devices from the number `first` on, in their order.
    pub fn device_views(&self, first: usize, now_us: u64) -> impl Iterator<Item = DeviceView> {
        (first..self.devices.len()).filter_map(move |index| self.device_view(DeviceId(index as u32), now_us))
    }

    /// What a store keeps of each device.
    pub fn device_rows(&self) -> impl Iterator<Item = DeviceRow> {
        (0..self.devices.len()).filter_map(|index| self.device_row(DeviceId(index as u32)))
    }

    pub(super) fn device_row(&self, id: DeviceId) -> Option<DeviceRow> {
        let device = self.devices.get(id.0 as usize)?.as_ref()?;
        Some(DeviceRow {
            id,
            name: device.name.clone().unwrap_or_default(),
            groups: device.groups.clone(),
            first_seen_us: device.first_seen_us,
            last_seen_us: device.last_seen_us,
            last_share_us: device.last_share_us,
            best_difficulty: device.best_difficulty,
            address: device.address.to_string(),
            user_agent: device.user_agent.to_string(),
            worker_name: Odd::worker_name(&device.odd),
            device_id: Odd::parts(&device.odd).1.to_owned(),
        })
    }
}

fn rates_of(account: &Account, now_us: u64) -> [RatePair; 4] {
    Window::ALL.map(|window| account.rates.over(window, now_us))
}

//! Live changes as server-sent events: the fleet's totals and the devices that changed, at most once a second.
//!
//! A stream makes an event when its client has taken the one before, from the newest figures: what came between is
//! never kept, so a slow client builds no backlog and only sees less often.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, RawQuery, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior};

use super::api::{Answered, apart};
use super::listener::Peer;
use super::params::Params;
use super::problem::Problem;
use super::routes::ApiState;
use super::shapes::{DeviceShape, FleetShape};
use super::view::{Device, Fleet, View};

/// Streams that are open at once: each compares all devices once a second, and takes a connection.
pub(super) const MAX_STREAMS: usize = 16;

/// Devices of one event, half a megabyte. Those that changed beyond come with the next events, in turn.
const MAX_DEVICES: usize = 200;

/// The time between two events.
const INTERVAL: Duration = Duration::from_secs(1);

/// What one client has seen.
struct Stream {
    view: Arc<dyn View>,
    ticks: Interval,
    seen: Seen,
    _slot: OwnedSemaphorePermit,
}

/// The changes of each device that a client knows of, by place in the fleet, and where to look first.
#[derive(Default)]
struct Seen {
    marks: Vec<(u64, u64)>,
    first: usize,
    has_begun: bool,
}

#[derive(Serialize)]
struct Change<'a> {
    fleet: FleetShape<'a>,
    devices: Vec<DeviceShape<'a>>,
    /// Whether more devices have changed than one event holds.
    has_more: bool,
}

/// Streams changes until the client goes or the program ends.
pub(super) async fn live(
    State(state): State<ApiState>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    Params::read(query.as_deref(), &[])?;
    let slot = state.streams.try_acquire_owned().map_err(|_| Problem::too_many_streams())?;
    peer.keep_streaming();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = Stream { view: state.served.view, ticks, seen: Seen::default(), _slot: slot };
    let events = futures_util::stream::unfold(stream, |mut stream| async move {
        stream.ticks.tick().await;
        let fleet = stream.view.fleet().await.ok()?;
        let mut seen = std::mem::take(&mut stream.seen);
        let (event, seen) = apart(move || (seen.event(&fleet), seen)).await;
        stream.seen = seen;
        Some((Ok::<_, Infallible>(event), stream))
    });
    Ok(Sse::new(events).into_response())
}

impl Seen {
    fn event(&mut self, fleet: &Fleet) -> Event {
        let (devices, has_more) = self.changes(fleet);
        let change = Change {
            fleet: FleetShape::of(&fleet.overview),
            devices: devices
                .into_iter()
                .map(|device| DeviceShape::of(device, fleet.has_answers_by_device, None))
                .collect(),
            has_more,
        };
        Event::default().event("change").json_data(change).expect("figures and texts are JSON")
    }

    /// Devices that changed since they were last shown, and whether there are more. The first time, all count as
    /// shown: who wants the start asks for the devices.
    fn changes<'f>(&mut self, fleet: &'f Fleet) -> (Vec<&'f Device>, bool) {
        if !self.has_begun {
            self.has_begun = true;
            self.marks = fleet.devices.iter().map(mark).collect();
            return (Vec::new(), false);
        }
        let count = fleet.devices.len();
        self.marks.resize(count, (0, 0));
        let mut changed = Vec::new();
        for place in (self.first.min(count)..count).chain(0..self.first.min(count)) {
            let device = &fleet.devices[place];
            let mark = mark(device);
            if self.marks[place] == mark {
                continue;
            }
            if changed.len() == MAX_DEVICES {
                self.first = place;
                return (changed, true);
            }
            self.marks[place] = mark;
            changed.push(device);
        }
        self.first = 0;
        (changed, false)
    }
}

/// Differs whenever something was counted for the device, or it was seen.
fn mark(device: &Device) -> (u64, u64) {
    let answers = &device.sums.answers;
    let counted =
        device.sums.shares.submitted + answers.acknowledged + answers.refused + answers.lost_total();
    (counted.wrapping_add(1), device.last_seen_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::view::fake::fleet;

    fn names(devices: &[&Device]) -> Vec<String> {
        devices.iter().map(|device| device.name.to_string()).collect()
    }

    #[test]
    fn only_what_changed_is_shown_and_only_once() {
        let mut fleet = fleet(3);
        let mut seen = Seen::default();
        assert_eq!(seen.changes(&fleet).0.len(), 0, "the start is not a change");
        assert_eq!(seen.changes(&fleet).0.len(), 0);
        fleet.devices[1].sums.shares.submitted += 1;
        assert_eq!(names(&seen.changes(&fleet).0), [fleet.devices[1].name.to_string()]);
        assert_eq!(seen.changes(&fleet).0.len(), 0);
        let newcomer = Device { name: "new".into(), ..fleet.devices[0].clone() };
        fleet.devices.push(newcomer);
        assert_eq!(names(&seen.changes(&fleet).0), ["new"]);
    }

    #[test]
    fn a_great_fleet_is_shown_in_turn() {
        let mut fleet = fleet(3 * MAX_DEVICES);
        let mut seen = Seen::default();
        seen.changes(&fleet);
        let mut shown = std::collections::BTreeSet::new();
        for round in 0..3 {
            // All of them change all the time; nobody must starve.
            fleet.devices.iter_mut().for_each(|device| device.sums.shares.submitted += 1);
            let (devices, has_more) = seen.changes(&fleet);
            assert_eq!((devices.len(), has_more), (MAX_DEVICES, true), "round {round}");
            shown.extend(names(&devices));
        }
        assert_eq!(shown.len(), fleet.devices.len());
    }
}

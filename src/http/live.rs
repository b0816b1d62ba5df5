//! Live changes as server-sent events: the fleet's totals and the devices that changed, at most once a second.
//!
//! A stream makes an event when its client has taken the one before, from the newest figures: what came between is
//! never kept, so a slow client builds no backlog and only sees less often.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use accounting::DeviceMark;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stratum::DeviceId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior};

use super::api::{Answered, apart};
use super::listener::Peer;
use super::params::Params;
use super::problem::Problem;
use super::routes::ApiState;
use super::shapes::{DeviceShape, FleetShape};
use super::view::{Fleet, View};

/// Streams that are open at once: each compares the marks of all devices once a second, and takes a connection.
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

/// The mark of each device that a client knows of, by place in the fleet, and where to look first.
#[derive(Default)]
struct Seen {
    marks: Vec<Option<DeviceMark>>,
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
        let marks = stream.view.marks().await.ok()?;
        let (changed, has_more) = stream.seen.changes(&marks);
        let fleet = stream.view.some(changed).await.ok()?;
        let event = apart(move || event(&fleet, has_more)).await;
        Some((Ok::<_, Infallible>(event), stream))
    });
    Ok(Sse::new(events).into_response())
}

fn event(fleet: &Fleet, has_more: bool) -> Event {
    let devices = fleet.devices.iter();
    let change = Change {
        fleet: FleetShape::of(&fleet.overview),
        devices: devices.map(|device| DeviceShape::of(device, fleet.has_answers_by_device, None)).collect(),
        has_more,
    };
    Event::default().event("change").json_data(change).expect("figures and texts are JSON")
}

impl Seen {
    /// Devices that changed since they were last shown, and whether there are more. The first time, all count as
    /// shown: who wants the start asks for the devices.
    fn changes(&mut self, marks: &[(DeviceId, DeviceMark)]) -> (Vec<DeviceId>, bool) {
        if !self.has_begun {
            self.has_begun = true;
            self.marks = marks.iter().map(|(_, mark)| Some(*mark)).collect();
            return (Vec::new(), false);
        }
        let count = marks.len();
        self.marks.resize(count, None);
        let mut changed = Vec::new();
        for place in (self.first.min(count)..count).chain(0..self.first.min(count)) {
            let (device, mark) = marks[place];
            if self.marks[place] == Some(mark) {
                continue;
            }
            if changed.len() == MAX_DEVICES {
                self.first = place;
                return (changed, true);
            }
            self.marks[place] = Some(mark);
            changed.push(device);
        }
        self.first = 0;
        (changed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(count: u32) -> Vec<(DeviceId, DeviceMark)> {
        (0..count).map(|number| (DeviceId(number), DeviceMark(0, 7))).collect()
    }

    #[test]
    fn only_what_changed_is_shown_and_only_once() {
        let mut marks = marks(3);
        let mut seen = Seen::default();
        assert_eq!(seen.changes(&marks).0.len(), 0, "the start is not a change");
        assert_eq!(seen.changes(&marks).0.len(), 0);
        marks[1].1.0 += 1;
        assert_eq!(seen.changes(&marks).0, [DeviceId(1)]);
        assert_eq!(seen.changes(&marks).0.len(), 0);
        marks.push((DeviceId(3), DeviceMark::default()));
        assert_eq!(seen.changes(&marks).0, [DeviceId(3)], "a newcomer is a change");
    }

    #[test]
    fn a_great_fleet_is_shown_in_turn() {
        let mut marks = marks(3 * MAX_DEVICES as u32);
        let mut seen = Seen::default();
        seen.changes(&marks);
        let mut shown = std::collections::BTreeSet::new();
        for round in 0..3 {
            // All of them change all the time; nobody must starve.
            marks.iter_mut().for_each(|(_, mark)| mark.0 += 1);
            let (devices, has_more) = seen.changes(&marks);
            assert_eq!((devices.len(), has_more), (MAX_DEVICES, true), "round {round}");
            shown.extend(devices);
        }
        assert_eq!(shown.len(), marks.len());
    }
}

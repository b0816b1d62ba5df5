//! Devices: filtered, sorted and in pages.
//!
//! A page ends with a cursor that says after which device, in which order, the next one starts. A walk by name meets
//! every device exactly once, whatever happens meanwhile; a walk by a figure that changes can miss or repeat some.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use accounting::Sums;
use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stratum::DeviceId;

use super::{Answered, DEFAULT_PERIOD, apart, json, now_us};
use crate::http::Served;
use crate::http::params::Params;
use crate::http::problem::Problem;
use crate::http::shapes::{CostsShape, DeviceShape, SpanShape, Time};
use crate::http::view::{Device, Fleet, Names, Period, Unanswered};

/// Devices of one page: two megabytes.
const MAX_PAGE: usize = 1000;

/// Devices of a page when the asker does not say.
const DEFAULT_PAGE: usize = 100;

/// What devices can be sorted by; unknown comes as the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Name,
    Number,
    Submitted,
    Accepted,
    Rejected,
    AcceptedWork,
    Rate(usize),
    FirstSeen,
    LastSeen,
    LastShare,
    BestDifficulty,
    Power,
    Efficiency,
}

const SORTS: [(&str, Sort); 16] = [
    ("name", Sort::Name),
    ("number", Sort::Number),
    ("submitted", Sort::Submitted),
    ("accepted", Sort::Accepted),
    ("rejected", Sort::Rejected),
    ("accepted_work", Sort::AcceptedWork),
    ("hash_rate_1m", Sort::Rate(0)),
    ("hash_rate_10m", Sort::Rate(1)),
    ("hash_rate_1h", Sort::Rate(2)),
    ("hash_rate_24h", Sort::Rate(3)),
    ("first_seen", Sort::FirstSeen),
    ("last_seen", Sort::LastSeen),
    ("last_share", Sort::LastShare),
    ("best_difficulty", Sort::BestDifficulty),
    ("power", Sort::Power),
    ("efficiency", Sort::Efficiency),
];

/// A place in an order. Two devices never have the same one, because of the number.
#[derive(Clone, Debug, PartialEq)]
struct Rank {
    name: Option<Arc<str>>,
    figure: f64,
    number: u32,
}

impl Rank {
    fn order(&self, other: &Rank) -> Ordering {
        let names = self.name.cmp(&other.name);
        names.then(self.figure.total_cmp(&other.figure)).then(self.number.cmp(&other.number))
    }
}

impl Sort {
    fn rank(self, device: &Device, sums: &Sums) -> Rank {
        let time = |us: u64| us as f64;
        let figure = match self {
            Sort::Name => Some(0.0),
            Sort::Number => Some(f64::from(device.id.0)),
            Sort::Submitted => Some(sums.shares.submitted as f64),
            Sort::Accepted => Some(sums.shares.accepted as f64),
            Sort::Rejected => Some(sums.shares.rejected_total() as f64),
            Sort::AcceptedWork => Some(sums.shares.credited.0 as f64),
            Sort::Rate(window) => device.rates.accepted[window].map(|rate| rate.hash_rate_hs),
            Sort::FirstSeen => Some(time(device.first_seen_us)),
            Sort::LastSeen => Some(time(device.last_seen_us)),
            Sort::LastShare => device.last_share_us.map(time),
            Sort::BestDifficulty => device.best_difficulty,
            Sort::Power => device.power_w.map(|(power, _)| power),
            Sort::Efficiency => sums.energy.joules_per_terahash(),
        };
        Rank {
            name: (self == Sort::Name).then(|| Arc::clone(&device.name)),
            figure: figure.unwrap_or(f64::NEG_INFINITY),
            number: device.id.0,
        }
    }
}

/// What one request asks for.
struct Question {
    limit: usize,
    sort: Sort,
    descends: bool,
    group: Option<String>,
    /// Part of a name, in lower case.
    filter: Option<String>,
    after: Option<Rank>,
}

impl Question {
    fn read(params: &Params) -> Result<Self, Problem> {
        let sort = params.choice("sort", &SORTS)?;
        let descends = params.choice("order", &[("asc", false), ("desc", true)])?;
        let after = params.text("cursor").map(|text| {
            rank_of(text, sort, descends).ok_or_else(|| {
                Problem::bad_request("cursor is not one that a page in this order ended with (next)")
            })
        });
        Ok(Question {
            limit: params.integer("limit", 1..=MAX_PAGE, DEFAULT_PAGE)?,
            sort,
            descends,
            group: params.text("group").map(str::to_owned),
            filter: params.text("filter").map(str::to_lowercase),
            after: after.transpose()?,
        })
    }

    /// Whether names alone say which devices are on a page: then no other device is looked at.
    fn is_by_name(&self) -> bool {
        self.sort == Sort::Name && self.group.is_none()
    }

    /// The devices of the page, where names alone say which they are.
    fn find(&self, names: &Names) -> Found {
        let has_text = |text: &String, name: &str| name.to_lowercase().contains(text);
        let fits = |name: &str| self.filter.as_ref().is_none_or(|text| has_text(text, name));
        let rank = |(id, name): (DeviceId, &Arc<str>)| Rank {
            name: Some(Arc::clone(name)),
            figure: 0.0,
            number: id.0,
        };
        let all: Box<dyn Iterator<Item = (DeviceId, &Arc<str>)>> =
            if self.descends { Box::new(names.by_name().rev()) } else { Box::new(names.by_name()) };
        let mut found = Found { devices: Vec::new(), total: 0, next: None };
        let mut last = None;
        for one in all.filter(|(_, name)| fits(name)) {
            found.total += 1;
            if found.next.is_some() {
                continue;
            }
            let rank = rank(one);
            if self.after.as_ref().is_some_and(|after| !self.order(after, &rank).is_lt()) {
                continue;
            }
            if found.devices.len() == self.limit {
                found.next = last.as_ref().map(|last| self.cursor(last));
            } else {
                found.devices.push(one.0);
                last = Some(rank);
            }
        }
        found
    }

    fn wants(&self, device: &Device) -> bool {
        let in_group = |group: &String| device.groups.iter().any(|other| **other == **group);
        let has_text = |text: &String| device.name.to_lowercase().contains(text);
        self.group.as_ref().is_none_or(in_group) && self.filter.as_ref().is_none_or(has_text)
    }

    fn order(&self, a: &Rank, b: &Rank) -> Ordering {
        if self.descends { b.order(a) } else { a.order(b) }
    }

    fn cursor(&self, rank: &Rank) -> String {
        let order = if self.descends { 'd' } else { 'a' };
        let (figure, number) = (rank.figure.to_bits(), rank.number);
        let name = rank.name.as_deref().unwrap_or_default();
        hex::encode(format!("{order} {} {figure:x} {number} {name}", name_of(self.sort)))
    }
}

/// What names say of a page.
struct Found {
    devices: Vec<DeviceId>,
    total: usize,
    next: Option<String>,
}

fn name_of(sort: Sort) -> &'static str {
    SORTS.iter().find(|(_, known)| *known == sort).map_or("", |(name, _)| name)
}

/// Reads a cursor; `None` when it is none, or one of another order.
fn rank_of(cursor: &str, sort: Sort, descends: bool) -> Option<Rank> {
    let text = String::from_utf8(hex::decode(cursor).ok()?).ok()?;
    let mut parts = text.splitn(5, ' ');
    let is_same = parts.next()? == if descends { "d" } else { "a" } && parts.next()? == name_of(sort);
    let figure = f64::from_bits(u64::from_str_radix(parts.next()?, 16).ok()?);
    let number = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    is_same.then(|| Rank { name: (sort == Sort::Name).then(|| name.into()), figure, number })
}

#[derive(Serialize)]
struct PageShape<'a> {
    taken: Time,
    since: Time,
    period: Option<SpanShape>,
    /// How many devices there are that group and filter let through.
    total: usize,
    devices: Vec<DeviceShape<'a>>,
    next: Option<String>,
}

/// A page of devices.
pub(in crate::http) async fn devices(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    let known = ["limit", "cursor", "sort", "order", "filter", "group", "from", "to"];
    let params = Params::read(query.as_deref(), &known)?;
    let question = Question::read(&params)?;
    let period = period_of(&served, &params).await?;
    if question.is_by_name() {
        let names = served.view.names().await?;
        // A great fleet's names take a while to look through.
        let found = apart(move || question.find(&names)).await;
        let fleet = served.view.some(found.devices).await?;
        let of_page = move || {
            let devices: Vec<&Device> = fleet.devices.iter().collect();
            shape(&fleet, &devices, (found.total, found.next), period.as_ref())
        };
        return Ok(json(apart(of_page).await));
    }
    let fleet = served.view.fleet().await?;
    Ok(json(apart(move || page(&fleet, &question, period.as_ref())).await))
}

async fn period_of(served: &Served, params: &Params) -> Result<Option<Period>, Problem> {
    if params.text("from").is_none() && params.text("to").is_none() {
        return Ok(None);
    }
    let span = params.span(now_us(served), DEFAULT_PERIOD)?;
    Ok(Some(served.view.period(span).await?))
}

fn page(fleet: &Fleet, question: &Question, period: Option<&Period>) -> Vec<u8> {
    let nothing = Sums::default();
    let of_period: Option<HashMap<DeviceId, &Sums>> =
        period.map(|period| period.devices.iter().map(|(id, sums)| (*id, sums)).collect());
    let sums_of =
        |device: &Device| of_period.as_ref().map(|sums| sums.get(&device.id).copied().unwrap_or(&nothing));
    let mut total = 0;
    let mut found: Vec<(Rank, &Device)> = Vec::new();
    for device in fleet.devices.iter().filter(|device| question.wants(device)) {
        total += 1;
        let rank = question.sort.rank(device, sums_of(device).unwrap_or(&device.sums));
        if question.after.as_ref().is_none_or(|after| question.order(after, &rank).is_lt()) {
            found.push((rank, device));
        }
    }
    let is_last = found.len() <= question.limit;
    if !is_last {
        // Only the devices of the page need an order among themselves.
        found.select_nth_unstable_by(question.limit, |(a, _), (b, _)| question.order(a, b));
        found.truncate(question.limit);
    }
    found.sort_unstable_by(|(a, _), (b, _)| question.order(a, b));
    let next = found.last().filter(|_| !is_last).map(|(rank, _)| question.cursor(rank));
    let devices: Vec<&Device> = found.into_iter().map(|(_, device)| device).collect();
    shape(fleet, &devices, (total, next), period)
}

/// The page of these devices, with how many there are in all, and where the next one begins.
fn shape(
    fleet: &Fleet,
    devices: &[&Device],
    (total, next): (usize, Option<String>),
    period: Option<&Period>,
) -> Vec<u8> {
    let nothing = Sums::default();
    let of_period: Option<HashMap<DeviceId, &Sums>> =
        period.map(|period| period.devices.iter().map(|(id, sums)| (*id, sums)).collect());
    let sums_of =
        |device: &Device| of_period.as_ref().map(|sums| sums.get(&device.id).copied().unwrap_or(&nothing));
    let shape = PageShape {
        taken: Time(fleet.overview.taken_us),
        since: Time(fleet.overview.since_us),
        period: period.map(|period| period.span.into()),
        total,
        devices: devices
            .iter()
            .map(|device| {
                let of_period = period.zip(sums_of(device)).map(|(period, sums)| (period.span, sums));
                DeviceShape::of(device, fleet.has_answers_by_device, of_period)
            })
            .collect(),
        next,
    };
    serde_json::to_vec(&shape).expect("figures and texts are JSON")
}

/// One device.
pub(in crate::http) async fn device(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    let params = Params::read(query.as_deref(), &["from", "to"])?;
    let period = period_of(&served, &params).await?;
    let unknown = || Unanswered::Unknown("device");
    let id = served.view.names().await?.device(&name).ok_or_else(unknown)?;
    let fleet = served.view.some(vec![id]).await?;
    let device = fleet.devices.first().ok_or_else(unknown)?;
    let nothing = Sums::default();
    let of_period = period.as_ref().map(|period| {
        let sums = period.devices.iter().find(|(id, _)| *id == device.id);
        (period.span, sums.map_or(&nothing, |(_, sums)| sums))
    });
    let sums = of_period.map_or(&device.sums, |(_, sums)| sums);
    let cost = CostsShape::of(sums, fleet.overview.sats_per_hash());
    let shape = DeviceShape::of(device, fleet.has_answers_by_device, of_period).with_cost(cost);
    Ok(Json(shape).into_response())
}

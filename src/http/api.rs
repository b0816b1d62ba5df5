//! The API's own endpoints, but for live changes: they read a snapshot, and shape it.
//!
//! Whatever grows with the fleet is sorted and written on a thread for such work, never where shares are awaited.

mod devices;

use std::time::Duration;

use accounting::{Cause, DropReason, Level, LossReason, PowerSource, RejectReason};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::{Deserialize, Serialize};

pub(super) use devices::{device, devices};

use super::Served;
use super::params::{Params, parse_time};
use super::problem::Problem;
use super::routes::MAX_BODY;
use super::shapes::{
    BlockShape, CostShape, DeclarationShape, EventShape, FleetShape, GroupShape, JobShape, LedgerShape,
    Named, PointShape, SpanShape, Time, UpstreamShape,
};
use super::view::{PowerOf, PowerReading, Subject};

/// Points of one answer: a week of minutes.
const MAX_POINTS: u64 = 10_080;

/// Blocks or events of one answer.
const MAX_LIST: usize = 1000;

/// Blocks or events of an answer when the asker does not say.
const DEFAULT_LIST: usize = 100;

/// The time that is meant when only one end of a period is given: a day.
const DEFAULT_PERIOD: Duration = Duration::from_secs(86_400);

/// Readings in one request: one for each device of the greatest farms takes a few requests.
const MAX_READINGS: usize = 10_000;

/// No device takes more than some tens of kilowatts; a group, which may be a whole site, not more than a gigawatt.
const MAX_POWER_W: f64 = 1e9;

/// A reading that is to hold for longer is an entry of the configuration.
const MAX_VALID_SECONDS: u32 = 7 * 86_400;

/// How long a reading holds that does not say: some rounds of a script that asks once a minute.
const DEFAULT_VALID_SECONDS: u32 = 300;

/// The levels by name, the one first that is meant when none is named.
const LEVELS: [(&str, Level); 4] = [
    (Level::Hour.name(), Level::Hour),
    (Level::Minute.name(), Level::Minute),
    (Level::TenMinutes.name(), Level::TenMinutes),
    (Level::Day.name(), Level::Day),
];

/// The OpenAPI document, written by hand and held against the routes by tests.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// What an endpoint answers.
pub(super) type Answered<T> = Result<T, Problem>;

/// The reference as a page that needs nothing else.
pub(super) async fn reference() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("reference.html"))).into_response()
}

/// The OpenAPI document.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// The fleet as a whole.
pub(super) async fn fleet(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    Params::read(query.as_deref(), &[])?;
    let overview = served.view.overview().await?;
    Ok(Json(FleetShape::of(&overview)).into_response())
}

/// The fleet over time.
pub(super) async fn fleet_series(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    series(&served, query.as_deref(), Subject::Fleet).await
}

/// A device over time.
pub(super) async fn device_series(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    series(&served, query.as_deref(), Subject::Device(name)).await
}

/// A group over time.
pub(super) async fn group_series(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    series(&served, query.as_deref(), Subject::Group(name)).await
}

/// An upstream over time.
pub(super) async fn upstream_series(
    State(served): State<Served>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Response> {
    series(&served, query.as_deref(), Subject::Upstream(name)).await
}

#[derive(Serialize)]
struct SeriesShape {
    level: &'static str,
    period: SpanShape,
    points: Vec<PointShape>,
}

async fn series(served: &Served, query: Option<&str>, subject: Subject) -> Answered<Response> {
    let params = Params::read(query, &["level", "from", "to"])?;
    let level = params.choice("level", &LEVELS)?;
    let span = params.span(now_us(served), Duration::from_secs(level.seconds() * 168))?;
    let count = (span.to_us - span.from_us) / 1_000_000 / level.seconds();
    if count > MAX_POINTS {
        let what = format!("from and to are {count} points apart; at most {MAX_POINTS} are possible");
        return Err(Problem::bad_request(what));
    }
    let points = served.view.points(subject, level, span).await?;
    let points = points.iter().map(|point| PointShape::of(point, level.seconds())).collect();
    Ok(Json(SeriesShape { level: level.name(), period: span.into(), points }).into_response())
}

/// Groups of devices.
pub(super) async fn groups(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape<'a> {
        since: Time,
        groups: Vec<GroupShape<'a>>,
    }
    Params::read(query.as_deref(), &[])?;
    let overview = served.view.overview().await?;
    let sats_per_hash = overview.sats_per_hash();
    let groups = overview.groups.iter().map(|group| GroupShape::of(group, sats_per_hash)).collect();
    Ok(Json(Shape { since: Time(overview.since_us), groups }).into_response())
}

/// Upstreams, or the node of a pool.
pub(super) async fn upstreams(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape<'a> {
        since: Time,
        upstreams: Vec<UpstreamShape<'a>>,
        switches: Named<u64>,
        job_declaration: Option<DeclarationShape>,
    }
    Params::read(query.as_deref(), &[])?;
    let overview = served.view.overview().await?;
    let upstreams =
        overview.upstreams.iter().map(|upstream| UpstreamShape::of(upstream, &overview.energy)).collect();
    let switches = Named(overview.switches.clone());
    let job_declaration = overview.declarations.as_ref().map(DeclarationShape::of);
    Ok(Json(Shape { since: Time(overview.since_us), upstreams, switches, job_declaration }).into_response())
}

/// The jobs that miners work on.
pub(super) async fn jobs(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape<'a> {
        jobs: Vec<JobShape<'a>>,
    }
    Params::read(query.as_deref(), &[])?;
    let jobs = served.view.jobs().await?;
    Ok(Json(Shape { jobs: jobs.iter().map(JobShape::from).collect() }).into_response())
}

/// What bad work cost, by cause: since counting began, or over a period.
pub(super) async fn rejects(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape<'a> {
        since: Time,
        period: Option<SpanShape>,
        rejected: Vec<CostShape<'a>>,
        dropped: Vec<CostShape<'a>>,
        lost: Vec<CostShape<'a>>,
        rejected_by_upstream: CostShape<'a>,
        rejected_by_upstream_code: Option<Vec<CostShape<'a>>>,
    }
    let params = Params::read(query.as_deref(), &["from", "to"])?;
    let overview = &*served.view.overview().await?;
    let (period, sums) = match params.text("from").or(params.text("to")) {
        None => (None, overview.sums()),
        Some(_) => {
            let span = params.span(now_us(&served), DEFAULT_PERIOD)?;
            let (span, sums) = served.view.sums(Subject::Fleet, span).await?;
            (Some(span), sums)
        }
    };
    let cost = |cause| CostShape::of(cause, &sums, overview.sats_per_hash());
    // Codes are counted since the ledger began; their work is not kept apart.
    let codes = overview.totals.refused_by_code.iter();
    let by_code =
        period.is_none().then(|| codes.map(|(code, count)| CostShape::counted(code, *count)).collect());
    let shape = Shape {
        since: Time(overview.since_us),
        period: period.map(SpanShape::from),
        rejected: RejectReason::ALL.into_iter().map(|reason| cost(Cause::Rejected(reason))).collect(),
        dropped: DropReason::ALL.into_iter().map(|reason| cost(Cause::Dropped(reason))).collect(),
        lost: LossReason::ALL.into_iter().map(|reason| cost(Cause::Lost(reason))).collect(),
        rejected_by_upstream: cost(Cause::RefusedByUpstream),
        rejected_by_upstream_code: by_code,
    };
    Ok(Json(shape).into_response())
}

/// Blocks found, latest first.
pub(super) async fn blocks(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape<'a> {
        is_complete: bool,
        blocks: Vec<BlockShape<'a>>,
    }
    let params = Params::read(query.as_deref(), &["limit", "before"])?;
    let limit = params.integer("limit", 1..=MAX_LIST, DEFAULT_LIST)?;
    let blocks = served.view.blocks(limit, params.time("before")?).await?;
    let shapes = blocks.items.iter().take(limit).map(BlockShape::from).collect();
    Ok(Json(Shape { is_complete: blocks.is_complete, blocks: shapes }).into_response())
}

/// What happened, latest first.
pub(super) async fn events(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape<'a> {
        is_complete: bool,
        events: Vec<EventShape<'a>>,
    }
    let params = Params::read(query.as_deref(), &["limit", "before"])?;
    let limit = params.integer("limit", 1..=MAX_LIST, DEFAULT_LIST)?;
    let events = served.view.events(limit, params.time("before")?).await?;
    let shapes = events.items.iter().take(limit).map(EventShape::from).collect();
    Ok(Json(Shape { is_complete: events.is_complete, events: shapes }).into_response())
}

/// How the ledger is.
pub(super) async fn ledger(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Response> {
    Params::read(query.as_deref(), &[])?;
    Ok(Json(LedgerShape::from(served.view.ledger().await?)).into_response())
}

/// One power reading as it comes in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingShape {
    device: Option<String>,
    group: Option<String>,
    power_w: f64,
    source: String,
    at: Option<String>,
    valid_for_seconds: Option<u32>,
}

/// Takes power readings.
pub(super) async fn power(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Answered<Response> {
    #[derive(Serialize)]
    struct Shape {
        readings: usize,
    }
    Params::read(query.as_deref(), &[])?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::too_long(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {MAX_BODY} bytes"))
        }
        _ => Problem::bad_request("the body could not be read"),
    })?;
    let shapes: Vec<ReadingShape> = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("the body is not a list of readings: {error}")))?;
    if shapes.is_empty() || shapes.len() > MAX_READINGS {
        return Err(Problem::bad_request(format!("a request has 1 to {MAX_READINGS} readings")));
    }
    let now = now_us(&served);
    let readings: Result<Vec<PowerReading>, Problem> = shapes
        .into_iter()
        .enumerate()
        .map(|(index, shape)| {
            reading(shape, now).map_err(|what| Problem::bad_request(format!("reading {index}: {what}")))
        })
        .collect();
    let readings = readings?;
    let count = readings.len();
    served.view.set_power(readings).await?;
    Ok(Json(Shape { readings: count }).into_response())
}

fn reading(shape: ReadingShape, now_us: u64) -> Result<PowerReading, String> {
    let of = match (shape.device, shape.group) {
        (Some(device), None) => PowerOf::Device(device),
        (None, Some(group)) => PowerOf::Group(group),
        _ => return Err("needs device or group, and not both".to_owned()),
    };
    if !(0.0..=MAX_POWER_W).contains(&shape.power_w) {
        return Err(format!("power_w must be from 0 to {MAX_POWER_W}"));
    }
    let source = match PowerSource::from_name(&shape.source) {
        Some(source @ (PowerSource::Meter | PowerSource::Estimate)) => source,
        _ => return Err("source must be meter or estimate".to_owned()),
    };
    let at_us = shape.at.map_or(Ok(now_us), |at| parse_time(&at).map_err(|what| format!("at {what}")))?;
    let valid_for_seconds = shape.valid_for_seconds.unwrap_or(DEFAULT_VALID_SECONDS);
    if !(1..=MAX_VALID_SECONDS).contains(&valid_for_seconds) {
        return Err(format!("valid_for_seconds must be from 1 to {MAX_VALID_SECONDS}"));
    }
    Ok(PowerReading { of, power_w: shape.power_w, source, at_us, valid_for_seconds })
}

/// What does not fit between two polls of a task.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

pub(super) fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The time of an answer; unix microseconds.
pub(super) fn now_us(served: &Served) -> u64 {
    u64::try_from(served.clock.now().utc.as_micros()).unwrap_or(u64::MAX)
}

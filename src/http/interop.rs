//! The shapes of others, so that their dashboards work here: the monitoring paths of the SV2 reference implementation,
//! and the pool worker of MiningOS.
//!
//! Names and units of fields are theirs. What they want and we do not know is null, or empty where they have a text.
//! Their clients are connections; ours are the devices that have one.

mod miningos;

use accounting::{AnswerSums, Sums};
use axum::Json;
use axum::extract::{Path, RawQuery, State};
use serde::Serialize;
use serde_json::{Value, json};
use stratum::job::EXTRANONCE2_SIZE;
use stratum::{Target, Work};

pub(super) use miningos::{miningos_stats, miningos_transactions, miningos_workers};

use super::Served;
use super::api::{Answered, now_us};
use super::params::Params;
use super::problem::Problem;
use super::view::{Device, Fleet, Job, Overview, Protocol, Rates, Unanswered, Upstream};

/// Entries of a page when the asker does not say.
const DEFAULT_LIMIT: usize = 25;

/// Entries of a page. Their dashboard asks once for 1,000 and adds up what it gets.
const MAX_LIMIT: usize = 1000;

/// A page by offset, as these paths have it.
struct Page {
    offset: usize,
    limit: usize,
}

impl Page {
    /// A greater limit than is possible is lowered instead of refused, as their dashboards expect.
    fn read(query: Option<&str>) -> Result<Self, Problem> {
        let params = Params::read(query, &["offset", "limit"])?;
        let offset = params.integer("offset", 0..=usize::MAX, 0)?;
        let limit = params.integer("limit", 0..=usize::MAX, DEFAULT_LIMIT)?.min(MAX_LIMIT);
        Ok(Page { offset, limit })
    }

    fn of<T>(&self, items: impl Iterator<Item = T>) -> (usize, Vec<T>) {
        let mut total = 0;
        let mut page = Vec::new();
        for item in items {
            if total >= self.offset && page.len() < self.limit {
                page.push(item);
            }
            total += 1;
        }
        (total, page)
    }
}

/// Whether the server answers; always so.
pub(super) async fn health(State(served): State<Served>) -> Json<Value> {
    Json(json!({ "status": "ok", "timestamp": now_us(&served) / 1_000_000 }))
}

/// Hash rates of all that is up and down.
pub(super) async fn global(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Json<Value>> {
    Params::read(query.as_deref(), &[])?;
    let fleet = served.view.fleet().await?;
    let overview = &fleet.overview;
    let of = |protocol| fleet.devices.iter().filter(move |device| speaks(device, protocol));
    let total = |protocol| of(protocol).filter_map(hash_rate).sum::<f64>();
    let sv2 = of(Protocol::Sv2).count();
    let uptime = overview.taken_us.saturating_sub(overview.started_us) / 1_000_000;
    Ok(Json(json!({
        "server": {
            "total_channels": overview.upstreams.len(),
            "extended_channels": overview.upstreams.len(),
            "standard_channels": 0,
            "total_hashrate": server_rate(overview),
        },
        "sv2_clients": {
            "total_clients": sv2,
            "total_channels": sv2,
            "extended_channels": 0,
            "standard_channels": sv2,
            "total_hashrate": total(Protocol::Sv2),
        },
        "sv1_clients": {
            "total_clients": of(Protocol::Sv1).count(),
            "total_hashrate": total(Protocol::Sv1),
        },
        "uptime_secs": uptime,
    })))
}

/// The upstream side in numbers.
pub(super) async fn server(State(served): State<Served>, RawQuery(query): RawQuery) -> Answered<Json<Value>> {
    Params::read(query.as_deref(), &[])?;
    let overview = served.view.overview().await?;
    Ok(Json(json!({
        "extended_channels_count": overview.upstreams.len(),
        "standard_channels_count": 0,
        "total_hashrate": server_rate(&overview),
    })))
}

/// The upstream side: one channel for each upstream.
pub(super) async fn server_channels(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Json<Value>> {
    let page = Page::read(query.as_deref())?;
    let (fleet, jobs) = (served.view.fleet().await?, served.view.jobs().await?);
    let (total, channels) = page.of(fleet.overview.upstreams.iter().enumerate());
    let channels: Vec<Value> = channels
        .into_iter()
        .map(|(id, upstream)| {
            server_channel(id, upstream, jobs.iter().find(|job| job.upstream == upstream.name), &fleet)
        })
        .collect();
    Ok(Json(json!({
        "offset": page.offset,
        "limit": page.limit,
        "total_extended": total,
        "total_standard": 0,
        "extended_channels": channels,
        "standard_channels": [],
    })))
}

fn server_channel(id: usize, upstream: &Upstream, job: Option<&Job>, fleet: &Fleet) -> Value {
    let answers: &AnswerSums = &upstream.sums.answers;
    let target = job.and_then(|job| job.upstream_target).map(target_hex);
    // Each device's best share is the best for whatever upstream it was for.
    let best = fleet.devices.iter().filter_map(|device| device.best_difficulty).reduce(f64::max);
    json!({
        "channel_id": id,
        "user_identity": upstream.account.as_deref().unwrap_or_default(),
        "nominal_hashrate": rate_of(&upstream.rates),
        "target_hex": target.unwrap_or_default(),
        "extranonce_prefix_hex": "",
        "full_extranonce_size": null,
        "rollable_extranonce_size": job.and_then(|job| job.rollable_size),
        "version_rolling": job.and_then(|job| job.version_rolling),
        "shares_acknowledged": answers.acknowledged,
        "shares_submitted": answers.forwarded,
        "shares_rejected": answers.refused,
        "shares_rejected_by_reason": upstream.refused_by_code,
        "acknowledged_work_sum": difficulty_of(answers.acknowledged_work).round() as u64,
        "validated_work_sum": difficulty_of(answers.forwarded_work),
        "best_diff": best.filter(|_| fleet.overview.upstreams.len() == 1),
        "blocks_found": upstream.sums.shares.blocks,
    })
}

#[derive(Serialize)]
pub(super) struct ClientsPage {
    offset: usize,
    limit: usize,
    total: usize,
    items: Vec<Value>,
}

/// SV2 devices.
pub(super) async fn clients(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Json<ClientsPage>> {
    list(&served, query.as_deref(), Protocol::Sv2, sv2_client).await
}

/// One SV2 device.
pub(super) async fn client(
    State(served): State<Served>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Json<Value>> {
    one(&served, query.as_deref(), Protocol::Sv2, &id, sv2_client).await
}

/// The channel of one SV2 device.
pub(super) async fn client_channels(
    State(served): State<Served>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Json<Value>> {
    let page = Page::read(query.as_deref())?;
    let Json(channel) = one(&served, None, Protocol::Sv2, &id, client_channel).await?;
    let client_id = channel["channel_id"].clone();
    let (total, channels) = page.of(std::iter::once(channel));
    Ok(Json(json!({
        "client_id": client_id,
        "offset": page.offset,
        "limit": page.limit,
        "total_extended": 0,
        "total_standard": total,
        "extended_channels": [],
        "standard_channels": channels,
    })))
}

/// SV1 devices, and those of which it is not known what they speak.
pub(super) async fn sv1_clients(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Json<ClientsPage>> {
    list(&served, query.as_deref(), Protocol::Sv1, sv1_client_shape).await
}

/// One SV1 device.
pub(super) async fn sv1_client(
    State(served): State<Served>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answered<Json<Value>> {
    one(&served, query.as_deref(), Protocol::Sv1, &id, sv1_client_shape).await
}

async fn list(
    served: &Served,
    query: Option<&str>,
    protocol: Protocol,
    shape: fn(&Device) -> Value,
) -> Answered<Json<ClientsPage>> {
    let page = Page::read(query)?;
    let fleet = served.view.fleet().await?;
    let (total, items) = page.of(fleet.devices.iter().filter(|device| speaks(device, protocol)));
    let items = items.into_iter().map(shape).collect();
    Ok(Json(ClientsPage { offset: page.offset, limit: page.limit, total, items }))
}

async fn one(
    served: &Served,
    query: Option<&str>,
    protocol: Protocol,
    id: &str,
    shape: fn(&Device) -> Value,
) -> Answered<Json<Value>> {
    Params::read(query, &[])?;
    let fleet = served.view.fleet().await?;
    let mut devices = fleet.devices.iter().filter(|device| speaks(device, protocol));
    let found = id.parse().ok().and_then(|id: u32| devices.find(|device| device.id.0 == id));
    Ok(Json(shape(found.ok_or(Unanswered::Unknown("client"))?)))
}

/// Whether a device is connected and speaks this.
fn speaks(device: &Device, protocol: Protocol) -> bool {
    device.connections > 0 && device.protocol.unwrap_or(Protocol::Sv1) == protocol
}

fn sv2_client(device: &Device) -> Value {
    json!({
        "client_id": device.id.0,
        "client_kind": "unknown",
        "extended_channels_count": 0,
        "standard_channels_count": 1,
        "total_hashrate": hash_rate(device).unwrap_or(0.0),
        "miner_telemetry": telemetry(device),
        "miner_telemetry_status": device.power_w.map(|_| "matched"),
    })
}

/// What they read from devices themselves: here it is power alone, where that is known.
fn telemetry(device: &Device) -> Value {
    let Some((watts, _)) = device.power_w else { return Value::Null };
    json!({
        "make": null,
        "model": null,
        "firmware_version": null,
        "reported_hashrate_hs": null,
        "average_temperature_c": null,
        "power_consumption_w": watts,
        "efficiency_j_per_th": device.sums.energy.joules_per_terahash(),
        "uptime_secs": null,
        "is_mining": null,
    })
}

fn client_channel(device: &Device) -> Value {
    let shares = &device.sums.shares;
    let rejected = shares.rejected_by_reason().filter(|(_, count)| *count > 0);
    let rejected: serde_json::Map<String, Value> =
        rejected.map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
    json!({
        "channel_id": device.id.0,
        "user_identity": &*device.name,
        "nominal_hashrate": hash_rate(device),
        "stable_hashrate": is_stable(device),
        "target_hex": device_target(device),
        "requested_max_target_hex": "",
        "extranonce_prefix_hex": "",
        "expected_shares_per_minute": null,
        "shares_accepted": shares.accepted,
        "shares_rejected": shares.rejected_total(),
        "shares_rejected_by_reason": rejected,
        "share_work_sum": difficulty_of(shares.credited),
        "last_share_sequence_number": null,
        "best_diff": device.best_difficulty,
        "last_batch_accepted": null,
        "last_batch_work_sum": null,
        "share_batch_size": null,
        "blocks_found": shares.blocks,
    })
}

fn sv1_client_shape(device: &Device) -> Value {
    // A worker name is the account and the worker's own name, with a dot between them.
    let worker = device.name.split_once('.').map_or(&*device.name, |(_, worker)| worker);
    json!({
        "client_id": device.id.0,
        "channel_id": null,
        "connection_ip": device.address.as_deref().map(host_of).unwrap_or_default(),
        "sv1_username": &*device.name,
        "sv1_worker_name": worker,
        "target_hex": device_target(device),
        "hashrate": hash_rate(device),
        "stable_hashrate": is_stable(device),
        "extranonce1_hex": "",
        "extranonce2_len": EXTRANONCE2_SIZE,
        "version_rolling_mask": null,
        "version_rolling_min_bit": null,
        "miner_telemetry": telemetry(device),
        "miner_telemetry_status": device.power_w.map(|_| "matched"),
    })
}

/// What its latest accepted share was judged by; empty until there is one.
fn device_target(device: &Device) -> String {
    device.latest_work.map(|work| target_hex(Target::of_work(work))).unwrap_or_default()
}

/// A target with its highest byte first.
fn target_hex(target: Target) -> String {
    let mut bytes = target.to_le_bytes();
    bytes.reverse();
    hex::encode(bytes)
}

/// The address without its port.
fn host_of(address: &str) -> String {
    match address.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => address.to_owned(),
    }
}

/// What the device proved in ten minutes, or at least in one.
fn hash_rate(device: &Device) -> Option<f64> {
    rate_of(&device.rates)
}

/// Whether the rate is good to some ten percent.
fn is_stable(device: &Device) -> bool {
    device.rates.accepted[1].is_some_and(|rate| rate.uncertainty < 0.1)
}

fn server_rate(overview: &Overview) -> f64 {
    rate_of(&overview.rates).unwrap_or(0.0)
}

fn rate_of(rates: &Rates) -> Option<f64> {
    let [one_minute, ten_minutes, ..] = rates.accepted;
    ten_minutes.or(one_minute).map(|rate| rate.hash_rate_hs)
}

/// Work in units of difficulty 1, as these paths count it.
fn difficulty_of(work: Work) -> f64 {
    work.0 as f64 / Work::OF_DIFFICULTY_1.0 as f64
}

/// Work that was stale.
fn stale_work(sums: &Sums) -> Work {
    sums.shares.rejected_work[accounting::RejectReason::Stale as usize]
}

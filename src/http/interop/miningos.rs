//! The pool worker of MiningOS: what its `getWrkExtData` gives for the keys `stats`, `workers` and `transactions`.
//!
//! Rates are in hashes a second and times in unix milliseconds, as there. There are no balances: a proxy keeps no
//! money, so they are null.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Value, json};

use super::stale_work;
use crate::http::Served;
use crate::http::api::{Answered, apart, json as json_body, now_us};
use crate::http::params::Params;
use crate::http::view::{Device, Rates};

/// A device that was seen within this time is online, as MiningOS shows it.
const ONLINE_US: u64 = 10 * 60 * 1_000_000;

/// The fleet as an account at a pool.
pub(in crate::http) async fn miningos_stats(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Json<Value>> {
    Params::read(query.as_deref(), &[])?;
    let fleet = served.view.fleet().await?;
    let overview = &fleet.overview;
    let now = now_us(&served);
    let account = overview.upstreams.iter().find_map(|upstream| upstream.account.as_deref());
    Ok(Json(json!({
        "ts": now / 1000,
        "stats": [{
            "poolType": "checkweigh",
            "username": account.unwrap_or_default(),
            "timestamp": overview.taken_us / 1000,
            "balance": null,
            "unsettled": null,
            "revenue_24h": null,
            "estimated_today_income": null,
            "hashrate": rate(&overview.rates, [1, 0]),
            "hashrate_1h": rate(&overview.rates, [2, 2]),
            "hashrate_24h": rate(&overview.rates, [3, 3]),
            "hashrate_stale_1h": null,
            "hashrate_stale_24h": null,
            "worker_count": overview.devices,
            "active_workers_count": fleet.devices.iter().filter(|device| is_online(device, now)).count(),
            "yearlyBalances": [],
        }],
    })))
}

/// Every device as a worker at a pool.
pub(in crate::http) async fn miningos_workers(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<axum::response::Response> {
    Params::read(query.as_deref(), &[])?;
    let fleet = served.view.fleet().await?;
    let now = now_us(&served);
    let account = fleet.overview.upstreams.iter().find_map(|upstream| upstream.account.clone());
    let body = apart(move || {
        let username = account.as_deref().unwrap_or_default();
        let workers: Vec<Value> = fleet.devices.iter().map(|device| worker(device, username, now)).collect();
        serde_json::to_vec(&json!({ "ts": now / 1000, "workers": workers }))
            .expect("figures and texts are JSON")
    });
    Ok(json_body(body.await))
}

/// Payments: a proxy makes none.
pub(in crate::http) async fn miningos_transactions(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
) -> Answered<Json<Value>> {
    Params::read(query.as_deref(), &[])?;
    Ok(Json(json!({ "ts": now_us(&served) / 1000, "transactions": [] })))
}

fn worker(device: &Device, username: &str, now_us: u64) -> Value {
    json!({
        "username": username,
        "id": device.id.0,
        "name": &*device.name,
        "online": is_online(device, now_us),
        "last_updated": device.last_seen_us / 1000,
        "hashrate": rate(&device.rates, [1, 0]),
        "hashrate_1h": rate(&device.rates, [2, 2]),
        "hashrate_24h": rate(&device.rates, [3, 3]),
        "hashrate_stale_1h": null,
        "hashrate_stale_24h": null,
        "stale_work_th": stale_work(&device.sums).0 as f64 / 1e12,
    })
}

fn is_online(device: &Device, now_us: u64) -> bool {
    now_us.saturating_sub(device.last_seen_us) < ONLINE_US
}

/// The rate of the first of these windows that is known.
fn rate(rates: &Rates, windows: [usize; 2]) -> Option<f64> {
    windows.into_iter().find_map(|window| rates.accepted[window]).map(|rate| rate.hash_rate_hs)
}

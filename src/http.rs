//! What is served over HTTP: `/metrics` for Prometheus, `/healthz` for supervisors, and the API.
//!
//! Two listeners: one with metrics and health alone, without a password, as Prometheus is used to; and one with the
//! API and both of them behind its tokens. All of it reads the accounts through [`view::View`]; nothing here counts,
//! and nothing but a power reading changes anything.

mod access;
mod api;
mod interop;
mod limit;
mod listener;
mod live;
mod metrics;
mod page;
mod params;
mod problem;
mod routes;
mod shapes;
pub mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::config::ApiConfig;
use crate::declarations::DeclarationFigures;
use crate::latency::Latencies;
use crate::node::source::SourceFigures;
use crate::shutdown::Shutdown;
use crate::sink::RecordSink;
use crate::template_provider::ProviderStatus;
use crate::upstream::DeclarationView;
use listener::{Bounded, Peer};
use problem::Problem;
use view::View;

/// Connections to the metrics that are open at once. A scraper or two and a supervisor need a handful; more wait, so
/// that nobody can use up the file descriptors that miners need.
const MAX_CONNECTIONS: usize = 32;

/// Connections to the API that are open at once: some dashboards, whose browsers open six each.
const MAX_API_CONNECTIONS: usize = 64;

/// How long answers that are under way may hold up the end.
const END_GRACE: Duration = Duration::from_millis(200);

/// Where figures come from.
#[derive(Clone)]
pub struct Sources {
    /// Sums over shares.
    pub sink: RecordSink,
    /// The clocks.
    pub clock: Clock,
    /// Looks at everything else; called at every request.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Looks at the jobs that miners work on; called at every request for them.
    pub jobs: Arc<dyn Fn() -> Vec<view::Job> + Send + Sync>,
    /// The ledger, where one is kept.
    pub history: Option<view::History>,
}

/// What is served.
#[derive(Clone)]
pub struct Served {
    /// The accounts.
    pub view: Arc<dyn View>,
    /// Latencies of answers and jobs.
    pub latencies: Arc<Latencies>,
    /// The clocks.
    pub clock: Clock,
    /// Looks at connections and upstreams; called at every request.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Devices that `/metrics/devices` shows at most; 0 turns the page off.
    pub max_device_series: u32,
}

/// A look at connections and upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Open SV1 connections.
    pub sv1_connections: u64,
    /// Open SV2 connections.
    pub sv2_connections: u64,
    /// Connections accepted since the start.
    pub connections_accepted: u64,
    /// Connections turned away because there were too many.
    pub connections_refused: u64,
    /// Connections closed for what the peer did.
    pub connections_closed_for_fault: u64,
    /// Connections that ended by a bug of ours.
    pub connections_panicked: u64,
    /// Open SV1 connections whose miner may roll the version bits that it negotiated.
    pub rolling_granted: u64,
    /// Open SV1 connections whose miner negotiated version rolling and may not roll, because the job forbids it.
    pub rolling_withheld: u64,
    /// How often a connection came to be among those, since the start.
    pub rolling_withheld_total: u64,
    /// SV1 connections since the start whose miner rolled version bits outside its mask.
    pub rolled_outside_mask: u64,
    /// Worker names under which several machines mine now.
    pub shared_worker_names: u64,
    /// The upstreams, or the node of a pool, in the order of their ids.
    pub upstreams: Vec<UpstreamState>,
    /// How often work came to be from another upstream, by reason; empty for a pool.
    pub switches: Vec<(&'static str, u64)>,
    /// How job declaration goes, where jobs are declared.
    pub declarations: Option<DeclarationView>,
    /// What the source of templates does, where there is one.
    pub template_source: Option<SourceFigures>,
    /// How our job declaration server is doing, where there is one.
    pub declaration_server: Option<DeclarationFigures>,
}

/// What a role says of where its work comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamStates {
    /// See [`Status::upstreams`].
    pub states: Vec<UpstreamState>,
    /// See [`Status::switches`].
    pub switches: Vec<(&'static str, u64)>,
    /// See [`Status::declarations`].
    pub declarations: Option<DeclarationView>,
}

/// One upstream, or the node of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamState {
    /// Host and port, without credentials or keys: the label in metrics.
    pub name: String,
    /// The account that work is done for, where there is one.
    pub account: Option<Arc<str>>,
    /// Whether it gives work.
    pub is_live: bool,
    /// What it is used for: `serving`, `standby`, `held_down` or `away`.
    pub standing: &'static str,
}

impl Status {
    /// Whether miners have work: at least one upstream is live. If not, the reason.
    pub fn health(&self) -> Result<(), String> {
        if self.upstreams.iter().any(|upstream| upstream.is_live) {
            return Ok(());
        }
        let names: Vec<&str> = self.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
        Err(format!("no work: not connected to {}", names.join(", ")))
    }
}

/// Serves a page of metrics and health, for roles without accounts, until the end is asked for.
pub async fn serve_page(
    listener: TcpListener,
    page: impl Fn() -> String + Clone + Send + Sync + 'static,
    health: impl Fn() -> Result<(), String> + Clone + Send + Sync + 'static,
    shutdown: Shutdown,
) -> io::Result<()> {
    let metrics = move || async move { (TEXT_FORMAT, page()).into_response() };
    let healthz = move || async move { health_answer(health()) };
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz));
    serve(Bounded::new(listener, MAX_CONNECTIONS), router, shutdown).await
}

/// The page of a template provider.
pub fn render_provider(status: &ProviderStatus, source: Option<SourceFigures>) -> String {
    metrics::render_provider(status, source)
}

/// The page of a job declaration server that is a process of its own.
pub fn render_jd_server(
    pool_is_there: bool,
    figures: DeclarationFigures,
    source: Option<SourceFigures>,
) -> String {
    metrics::render_jd_server(pool_is_there, &figures, source)
}

/// Serves metrics and health until the end is asked for.
pub async fn serve_metrics(listener: TcpListener, served: Served, shutdown: Shutdown) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/metrics/devices", get(device_metrics))
        .route("/healthz", get(healthz))
        .with_state(served);
    serve(Bounded::new(listener, MAX_CONNECTIONS), router, shutdown).await
}

/// Serves the API, and metrics and health beside it, until the end is asked for.
pub async fn serve_api(
    listener: TcpListener,
    served: Served,
    config: &ApiConfig,
    shutdown: Shutdown,
) -> io::Result<()> {
    let router = routes::router(served, config);
    serve(Bounded::new(listener, MAX_API_CONNECTIONS), router, shutdown).await
}

async fn serve(listener: Bounded, router: Router, mut shutdown: Shutdown) -> io::Result<()> {
    let mut end = shutdown.clone();
    let server = axum::serve(listener, router.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move { end.requested().await });
    // An idle connection of a scraper must not hold up the end.
    tokio::select! {
        served = server => served,
        () = async { shutdown.requested().await; tokio::time::sleep(END_GRACE).await } => Ok(()),
    }
}

const TEXT_FORMAT: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

async fn metrics(State(served): State<Served>) -> Response {
    match served.view.overview().await {
        Ok(overview) => {
            let ledger = match served.view.ledger().await {
                Ok(ledger) => ledger,
                Err(error) => return Problem::from(error).into_response(),
            };
            let overview = overview.since(&served.view.at_start().overview);
            let page = metrics::render(&overview, &ledger, &served.latencies, &(served.status)());
            (TEXT_FORMAT, page).into_response()
        }
        Err(error) => Problem::from(error).into_response(),
    }
}

async fn device_metrics(State(served): State<Served>) -> Response {
    if served.max_device_series == 0 {
        return Problem::not_found("this page is off: metrics.max_device_series is 0").into_response();
    }
    match served.view.fleet().await {
        Ok(fleet) => {
            let pieces =
                metrics::device_pieces(fleet, served.view.at_start(), served.max_device_series as usize);
            let pieces = futures_util::stream::iter(pieces.map(Ok::<_, std::convert::Infallible>));
            (TEXT_FORMAT, Body::from_stream(pieces)).into_response()
        }
        Err(error) => Problem::from(error).into_response(),
    }
}

async fn healthz(State(served): State<Served>) -> Response {
    health_answer((served.status)().health())
}

fn health_answer(health: Result<(), String>) -> Response {
    match health {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests;

//! `/metrics` for Prometheus and `/healthz` for supervisors.
//!
//! Every number about shares comes from the sink's totals, so the page and the accounts cannot differ. The page is
//! written from those sums at each request, with the line formatting of `metrics-exporter-prometheus`. Its recorder
//! is not used: it counts by itself what is summed already, keeps every latency until somebody asks, and is meant to
//! be one per process, while a process here may run several roles.
//!
//! No label ever holds a worker name, an address of a miner, or anything else that a peer can make up without end.
//! Nothing here changes anything.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use metrics_exporter_prometheus::{LabelSet, formatting};
use stratum::Target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;
use crate::latency::{Latencies, LatencySnapshot};
use crate::shutdown::Shutdown;
use crate::sink::{Overview, RateEstimate, RecordSink};

/// Requests that are open at once. A scraper or two and a supervisor need a handful; more wait, so that nobody can
/// use up the file descriptors that miners need.
const MAX_CONNECTIONS: usize = 32;

/// A connection is cut after this long, whatever it does: otherwise 32 idle ones would lock everybody out.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// Upper limits of the exported classes of latency, as exponents of two of microseconds: 64 microseconds to
/// 33 seconds. The program's own classes are finer.
const LATENCY_EXPONENTS: std::ops::RangeInclusive<u32> = 6..=25;

/// What is served.
#[derive(Clone)]
pub struct Sources {
    /// Sums over shares.
    pub sink: RecordSink,
    /// Latencies of answers and jobs.
    pub latencies: Arc<Latencies>,
    /// The clocks.
    pub clock: Clock,
    /// Looks at everything else; called at every request.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
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
    /// The upstreams, or the node of a pool, in the order of their ids.
    pub upstreams: Vec<UpstreamState>,
}

/// One upstream, or the node of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamState {
    /// Host and port, without credentials or keys: the label in metrics.
    pub name: String,
    /// Whether it gives work.
    pub is_live: bool,
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

/// Serves until the end is asked for.
pub async fn serve(listener: TcpListener, sources: Sources, mut shutdown: Shutdown) -> io::Result<()> {
    let listener = Bounded { listener, slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)) };
    let mut end = shutdown.clone();
    let server =
        axum::serve(listener, routes(sources)).with_graceful_shutdown(async move { end.requested().await });
    // An idle connection of a scraper must not hold up the end.
    tokio::select! {
        served = server => served,
        () = async { shutdown.requested().await; tokio::time::sleep(Duration::from_millis(200)).await } => Ok(()),
    }
}

fn routes(sources: Sources) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(sources)
}

async fn metrics(State(sources): State<Sources>) -> Response {
    match sources.sink.overview(sources.clock.now()).await {
        Ok(overview) => {
            let page = render(&overview, &sources.latencies, &(sources.status)());
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(sources): State<Sources>) -> Response {
    match (sources.status)().health() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// The whole page in the text format of Prometheus, version 0.0.4.
pub fn render(overview: &Overview, latencies: &Latencies, status: &Status) -> String {
    let mut page = Page::default();
    page.gauge("checkweigh_build_info", "Always 1; which version runs.");
    page.labelled("version", env!("CARGO_PKG_VERSION"), 1);
    render_shares(&mut page, overview);
    render_upstreams(&mut page, overview, status);
    render_connections(&mut page, status);
    render_version_rolling(&mut page, status);
    page.gauge("checkweigh_devices", "Devices seen since the start.");
    page.value(overview.devices);
    let rates = [("1m", &overview.hash_rate_1m), ("10m", &overview.hash_rate_10m)];
    page.gauge(
        "checkweigh_hash_rate_hashes_per_second",
        "Hash rate proved by accepted shares; absent when unknown.",
    );
    for (window, rate) in rates {
        page.known("window", window, rate, |rate| rate.rate.0);
    }
    page.gauge("checkweigh_hash_rate_uncertainty_ratio", "Relative standard error of the hash rate.");
    for (window, rate) in rates {
        page.known("window", window, rate, |rate| rate.uncertainty);
    }
    let latency = "Time from a share read to its answer written.";
    page.histogram("checkweigh_share_ack_latency_seconds", latency, &latencies.share_ack.snapshot());
    let latency =
        "Time from a new block read, at the upstream or node, to the job for it written to a miner.";
    page.histogram("checkweigh_new_block_latency_seconds", latency, &latencies.new_block.snapshot());
    let latency = "Time from a share sent upstream to the upstream's answer.";
    page.histogram("checkweigh_upstream_ack_latency_seconds", latency, &latencies.upstream_ack.snapshot());
    page.text
}

fn render_shares(page: &mut Page, overview: &Overview) {
    let shares = &overview.totals.shares;
    page.counter("checkweigh_shares_submitted_total", "Shares judged: accepted and rejected ones.");
    page.value(shares.submitted);
    page.counter("checkweigh_shares_accepted_total", "Shares that met their target, blocks included.");
    page.value(shares.accepted);
    page.counter("checkweigh_shares_rejected_total", "Shares refused, by reason.");
    for (reason, count) in shares.rejected_by_reason() {
        page.labelled("reason", reason.name(), count);
    }
    page.counter("checkweigh_blocks_found_total", "Accepted shares that met the network's target.");
    page.value(shares.blocks);
    let help = "Accepted shares that were worth nothing at the upstream's target.";
    page.counter("checkweigh_shares_below_upstream_target_total", help);
    page.value(shares.below_upstream_target);
    page.counter("checkweigh_shares_kept_total", "Accepted shares that a pool kept.");
    page.value(shares.kept);
    page.counter(
        "checkweigh_shares_dropped_total",
        "Accepted shares that were worth forwarding but not sent, by reason.",
    );
    for (reason, count) in shares.dropped_by_reason() {
        page.labelled("reason", reason.name(), count);
    }
    let work = "Work credited to devices, in expected hashes.";
    page.counter("checkweigh_work_accepted_hashes_total", work);
    page.value(shares.credited.0);
    let work = "Credited work in units of difficulty 1.";
    page.counter("checkweigh_work_accepted_difficulty_total", work);
    page.value(shares.credited.0 as f64 / Target::DIFFICULTY_1.work().0 as f64);
    let work = "Work of forwarded shares at the upstream's target, in expected hashes.";
    page.counter("checkweigh_work_forwarded_hashes_total", work);
    page.value(shares.forwarded_work.0);
    let help = "Records whose detail was lost to a full queue; their sums are in all the other counters.";
    page.counter("checkweigh_records_folded_total", help);
    page.value(overview.totals.folded);
}

fn render_upstreams(page: &mut Page, overview: &Overview, status: &Status) {
    let totals = &overview.totals;
    page.counter("checkweigh_shares_forwarded_total", "Shares sent upstream, by upstream.");
    for (id, upstream) in status.upstreams.iter().enumerate() {
        let known = totals.upstreams.iter().find(|(known, _)| usize::from(known.0) == id);
        page.labelled("upstream", &upstream.name, known.map_or(0, |(_, sums)| sums.forwarded));
    }
    page.counter("checkweigh_shares_acknowledged_total", "Forwarded shares that the upstream says it took.");
    page.value(totals.answers.acknowledged);
    page.counter(
        "checkweigh_shares_refused_upstream_total",
        "Forwarded shares that the upstream refused, by its code.",
    );
    for (code, count) in &totals.refused_by_code {
        page.labelled("code", code, count);
    }
    let help = "Forwarded shares that were never answered, by what ended the wait.";
    page.counter("checkweigh_shares_lost_upstream_total", help);
    for (reason, count) in totals.answers.lost_by_reason() {
        page.labelled("reason", reason.name(), count);
    }
    page.gauge("checkweigh_upstream_up", "Whether the upstream, or the node of a pool, gives work.");
    for upstream in &status.upstreams {
        page.labelled("upstream", &upstream.name, u8::from(upstream.is_live));
    }
}

fn render_connections(page: &mut Page, status: &Status) {
    page.gauge("checkweigh_connections", "Open connections of miners, by protocol.");
    page.labelled("protocol", "sv1", status.sv1_connections);
    page.labelled("protocol", "sv2", status.sv2_connections);
    page.counter("checkweigh_connections_accepted_total", "Connections of miners since the start.");
    page.value(status.connections_accepted);
    page.counter(
        "checkweigh_connections_refused_total",
        "Connections turned away because there were too many.",
    );
    page.value(status.connections_refused);
    page.counter(
        "checkweigh_connections_closed_for_fault_total",
        "Connections closed for what the peer did.",
    );
    page.value(status.connections_closed_for_fault);
    page.counter("checkweigh_connections_panicked_total", "Connections that ended by a bug of the program.");
    page.value(status.connections_panicked);
}

fn render_version_rolling(page: &mut Page, status: &Status) {
    let help =
        "Open SV1 connections that negotiated version rolling: whether they may roll, or the job forbids it.";
    page.gauge("checkweigh_sv1_version_rolling_connections", help);
    page.labelled("state", "granted", status.rolling_granted);
    page.labelled("state", "withheld", status.rolling_withheld);
    let help =
        "Times that an SV1 miner was told an empty mask for the one it negotiated; some leave at once.";
    page.counter("checkweigh_sv1_version_rolling_withheld_total", help);
    page.value(status.rolling_withheld_total);
    let help = "SV1 connections whose miner rolled version bits outside its mask; those shares are refused.";
    page.counter("checkweigh_sv1_rolled_outside_mask_connections_total", help);
    page.value(status.rolled_outside_mask);
}

/// A page that grows family by family.
#[derive(Default)]
struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    fn counter(&mut self, name: &'static str, help: &str) {
        self.start(name, help, "counter");
    }

    fn gauge(&mut self, name: &'static str, help: &str) {
        self.start(name, help, "gauge");
    }

    fn start(&mut self, name: &'static str, help: &str, kind: &str) {
        formatting::write_help_line(&mut self.text, name, None, None, help);
        formatting::write_type_line(&mut self.text, name, None, None, kind);
        self.family = name;
    }

    fn value(&mut self, value: impl Display) {
        self.line(None, None::<(&'static str, &str)>, value);
    }

    fn labelled(&mut self, label: &'static str, text: &str, value: impl Display) {
        self.line(None, Some((label, formatting::sanitize_label_value(text))), value);
    }

    fn known(
        &mut self,
        label: &'static str,
        text: &str,
        rate: &Option<RateEstimate>,
        value: fn(&RateEstimate) -> f64,
    ) {
        if let Some(rate) = rate {
            self.labelled(label, text, value(rate));
        }
    }

    fn histogram(&mut self, name: &'static str, help: &str, latency: &LatencySnapshot) {
        self.start(name, help, "histogram");
        for exponent in LATENCY_EXPONENTS {
            // The classes of the histogram end one microsecond below each power of two.
            let limit = Duration::from_micros(1 << exponent);
            let count = latency.count_up_to(limit - Duration::from_micros(1));
            self.line(Some("bucket"), Some(("le", limit.as_secs_f64())), count);
        }
        self.line(Some("bucket"), Some(("le", "+Inf")), latency.count());
        self.line(Some("sum"), None::<(&'static str, &str)>, latency.sum().as_secs_f64());
        self.line(Some("count"), None::<(&'static str, &str)>, latency.count());
    }

    fn line(
        &mut self,
        suffix: Option<&'static str>,
        label: Option<(&'static str, impl Display)>,
        value: impl Display,
    ) {
        let none =
            LabelSet::from_key_and_global(&metrics::Key::from_static_name(self.family), &Default::default());
        formatting::write_metric_line(&mut self.text, self.family, suffix, &none, label, value, None);
    }
}

/// A listener that accepts no more connections than it has slots.
struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Slotted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Slotted, SocketAddr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed");
        // The listener's own accept waits out a lack of file descriptors.
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(tokio::time::sleep(CONNECTION_LIFETIME));
        (Slotted { stream, deadline, _slot: slot }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its slot back when it ends, and ends in time.
struct Slotted {
    stream: TcpStream,
    deadline: Pin<Box<tokio::time::Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl Slotted {
    fn expired(&mut self, context: &mut Context<'_>) -> Result<(), io::Error> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Slotted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.expired(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Slotted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.expired(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;

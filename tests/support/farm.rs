//! A pool on a development chain and proxies before it, in this process and over real sockets. Unlike processes
//! they can be asked for their records, and unlike a simulation they have real queues and real time.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkweigh::clock::Clock;
use checkweigh::config::listen::bind;
use checkweigh::config::{
    ApiConfig, DownstreamConfig, HttpConfig, Listeners, LogConfig, ProxyConfig, UpstreamConfig,
    VardiffSettings,
};
use checkweigh::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use checkweigh::error::RunError;
use checkweigh::node::BlockSource;
use checkweigh::pool::custom_jobs::CheckCustomJobs;
use checkweigh::pool::task::PoolStatus;
use checkweigh::pool::{self, PoolParts};
use checkweigh::proxy;
use checkweigh::role::Observed;
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use checkweigh::sink::Totals;
use mining_proxy::Patience;
use stratum::sv2::{AuthoritySecretKey, PoolUrl};
use stratum::vardiff::VardiffConfig;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

/// How long anything that a test waits for may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// A running role.
pub(crate) struct Running {
    pub(crate) sv1: SocketAddr,
    pub(crate) sv2: SocketAddr,
    /// Where a proxy says how it is.
    pub(crate) metrics: Option<SocketAddr>,
    /// Where a proxy serves its API.
    pub(crate) api: Option<SocketAddr>,
    pub(crate) observed: Observed,
    stop: ShutdownTrigger,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Ends it in order.
    pub(crate) async fn stop(self) {
        self.stop.trigger();
        let ended = timeout(DEADLINE, self.ended).await.expect("it ends in time").expect("it does not panic");
        ended.expect("it ends as it should");
    }

    /// The sums of everything that it recorded.
    pub(crate) async fn totals(&self) -> Totals {
        let now = self.observed.clock.now();
        self.observed.sink.overview(now).await.expect("the sink runs").totals
    }

    /// Waits until its sums are as `what` says.
    pub(crate) async fn wait_for(&self, what: &str, is_met: impl Fn(&Totals) -> bool) -> Totals {
        let deadline = Instant::now() + DEADLINE;
        let mut poll = interval(Duration::from_millis(20));
        loop {
            let totals = self.totals().await;
            if is_met(&totals) {
                return totals;
            }
            assert!(Instant::now() < deadline, "not in time: {what}; {totals:?}");
            poll.tick().await;
        }
    }
}

/// A chain whose next blocks each take about so many hashes.
pub(crate) fn chain(hashes_per_block: u64) -> DevChain {
    let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(hashes_per_block), transactions: 20 };
    DevChain::new(settings, Clock::start())
}

/// A difficulty that stays as it is.
pub(crate) fn fixed(exponent: i32) -> VardiffSettings {
    VardiffSettings { enabled: false, ..vardiff(exponent) }
}

/// A difficulty that starts there and follows what a device shows.
pub(crate) fn vardiff(exponent: i32) -> VardiffSettings {
    let config =
        VardiffConfig { shares_per_minute: 600.0, minimum_exponent: -32, initial_exponent: exponent };
    VardiffSettings { enabled: true, config }
}

/// The authority key of everything in these tests.
pub(crate) fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

/// A listener on a port that the system chooses, or on `address`.
pub(crate) fn listen(address: Option<SocketAddr>) -> TcpListener {
    bind(address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).expect("a port can be listened on")
}

/// Starts a pool on `chain`; `sv2` is where an earlier one was, or nothing.
pub(crate) fn start_pool(chain: &DevChain, vardiff: VardiffSettings, sv2: Option<SocketAddr>) -> Running {
    start_pool_with_status(chain, vardiff, sv2).0
}

/// The same, with what it says of its blocks.
pub(crate) fn start_pool_with_status(
    chain: &DevChain,
    vardiff: VardiffSettings,
    sv2: Option<SocketAddr>,
) -> (Running, Arc<PoolStatus>) {
    let parts = pool_parts(chain, vardiff);
    run_pool(parts, None, sv2)
}

/// What a pool on `chain` is made of.
pub(crate) fn pool_parts(chain: &DevChain, vardiff: VardiffSettings) -> PoolParts {
    PoolParts {
        source: BlockSource::Development(chain.clone()),
        source_name: "development chain".to_owned(),
        rules: pool::coinbase_rules(vec![0x51], "tests").expect("rules"),
        downstream: downstream(),
        vardiff,
        share_batch_size: 10,
        job_declaration: None,
        ledger: None,
        device_rules: Default::default(),
        http: HttpConfig::default(),
    }
}

/// Starts a pool, which takes the custom jobs that `checker` finds good.
pub(crate) fn run_pool(
    parts: PoolParts,
    checker: Option<Arc<dyn CheckCustomJobs>>,
    sv2: Option<SocketAddr>,
) -> (Running, Arc<PoolStatus>) {
    let (stop, end) = shutdown();
    let listeners = Listeners { sv1: Some(listen(None)), sv2: Some(listen(sv2)), ..Listeners::default() };
    let pool = pool::start_with(parts, checker, listeners, Clock::start(), end).expect("the pool starts");
    let role = pool.role;
    let running = Running {
        sv1: role.sv1_address.expect("it has a listener"),
        sv2: role.sv2_address.expect("it has a listener"),
        metrics: None,
        api: None,
        observed: role.observed.clone(),
        stop,
        ended: tokio::spawn(role.run()),
    };
    (running, pool.status)
}

/// Starts a proxy before the pool at `pool`.
pub(crate) fn start_proxy(pool: SocketAddr, aggregate: bool, vardiff: VardiffSettings) -> Running {
    start_proxy_before(&[pool], Patience::default(), aggregate, vardiff)
}

/// Starts a proxy before several pools, the preferred one first.
pub(crate) fn start_proxy_before(
    pools: &[SocketAddr],
    patience: Patience,
    aggregate: bool,
    vardiff: VardiffSettings,
) -> Running {
    let upstreams = pools.iter().enumerate().map(|(place, pool)| UpstreamConfig {
        url: PoolUrl { host: pool.ip().to_string(), port: pool.port(), authority: Some(key().public()) },
        user_identity: if place == 0 { "account.farm" } else { "other.farm" }.to_owned(),
        job_declaration_url: None,
        forward_worker_names: true,
    });
    let config = ProxyConfig {
        downstream: downstream(),
        upstreams: upstreams.collect(),
        job_declaration: None,
        patience,
        aggregate,
        vardiff,
        ledger: None,
        rules: Default::default(),
        metrics_listen: None,
        http: HttpConfig { api: Some(open_api()), max_device_series: 0 },
        log: LogConfig::default(),
    };
    run_proxy(&config, None)
}

/// Starts a proxy, with templates from `source` where jobs are declared.
pub(crate) fn run_proxy(config: &ProxyConfig, source: Option<BlockSource>) -> Running {
    let (stop, end) = shutdown();
    let metrics_listener = listen(None);
    let metrics = metrics_listener.local_addr().ok();
    let listeners = Listeners {
        sv1: Some(listen(None)),
        sv2: Some(listen(None)),
        metrics: Some(metrics_listener),
        api: Some(listen(None)),
        ..Listeners::default()
    };
    let proxy = proxy::start_with(config, source, listeners, Clock::start(), end).expect("the proxy starts");
    let role = proxy.role;
    Running {
        sv1: role.sv1_address.expect("it has a listener"),
        sv2: role.sv2_address.expect("it has a listener"),
        metrics,
        api: role.api_address,
        observed: role.observed.clone(),
        stop,
        ended: tokio::spawn(role.run()),
    }
}

/// An API without tokens.
pub(crate) fn open_api() -> ApiConfig {
    ApiConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        read_tokens: None,
        admin_tokens: None,
        cors_origins: Vec::new(),
        requests_per_minute: 600,
    }
}

pub(crate) fn downstream() -> DownstreamConfig {
    DownstreamConfig {
        sv1_listen: None,
        sv1_profiles: Vec::new(),
        sv2_listen: None,
        authority: Some((PathBuf::new(), key())),
        proxy_protocol: false,
        max_connections: 10_000,
    }
}

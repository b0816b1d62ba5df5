//! The demo: a chain, a pool, a proxy and miners in one process, over real sockets on the loopback address.
//!
//! Nothing is shortened: the miners grind real hashes and speak SV1 to the proxy, the proxy speaks encrypted SV2 to
//! the pool, and every block is judged by code that had no part in building it. Only the hash rate is small.

mod summary;
mod view;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use mining_proxy::Patience;
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::HashRate;
use stratum::sv2::{AuthoritySecretKey, PoolUrl};
use stratum::vardiff::VardiffConfig;

use crate::clock::Clock;
use crate::config::listen::bind;
use crate::config::{
    ApiConfig, DownstreamConfig, HttpConfig, LedgerConfig, Listeners, LogConfig, NodeConfig, ProxyConfig,
    TemplatesConfig, UpstreamConfig, VardiffSettings,
};
use crate::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use crate::error::RunError;
use crate::miner::{self, MinerFigures, MinerOptions};
use crate::node::BlockSource;
use crate::pool::{self, Pool, PoolParts};
use crate::proxy;
use crate::role::Role;
use crate::shutdown::{Shutdown, shutdown};
use crate::sink::DeviceRules;
use crate::templates;
use summary::Summary;

/// Shares of all miners together, per minute: enough to see something at once, few enough for any machine.
const TOTAL_SHARES_PER_MINUTE: f64 = 2400.0;

/// Hash rate of the slowest miner, in hashes per second; the others are up to eight times as fast.
const SLOWEST: f64 = 20_000.0;

/// Hash rate of all miners together that leaves a processor room for the rest.
const TOTAL_HASH_RATE: f64 = 1_000_000.0;

/// The development chain's difficulty: a block for so many shares.
const SHARES_PER_BLOCK: f64 = 500.0;

/// Transactions in each of the development chain's templates.
const TRANSACTIONS: usize = 500;

/// How often the development chain makes a fresher template.
const TEMPLATE_INTERVAL: Duration = Duration::from_secs(10);

/// Paid for the demo's blocks: anybody could spend it.
const OP_TRUE: u8 = 0x51;

/// What the demo is asked for.
#[derive(Debug)]
pub struct DemoOptions {
    /// Number of CPU miners; at least 1.
    pub miners: u16,
    /// How long it runs, in seconds; until the end is asked for when absent.
    pub seconds: Option<u64>,
    /// Whether the summary is one JSON object on the last line of standard output.
    pub json: bool,
    /// Where the proxy's API is served, if anywhere.
    pub api: Option<SocketAddr>,
    /// The folder of the proxy's ledger, if one is kept.
    pub ledger: Option<PathBuf>,
    /// The node to use instead of the development chain.
    pub bitcoin_rpc: Option<NodeConfig>,
}

/// Runs the demo until its time is over or the end is asked for.
pub async fn run(options: DemoOptions, mut shutdown: Shutdown) -> Result<(), RunError> {
    let demo = Demo::start(&options).await?;
    let time_is_over = async {
        match options.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown.requested() => {}
        () = time_is_over => {}
        () = view::show(&demo, options.json) => {}
    }
    let summary = demo.finish().await?;
    if options.json {
        println!("{}", summary.to_json());
    } else {
        println!("{summary}");
    }
    Ok(())
}

/// A running demo.
struct Demo {
    clock: Clock,
    pool: Pool,
    proxy: Role,
    figures: Arc<MinerFigures>,
    miners: std::thread::JoinHandle<()>,
    stop_miners: crate::shutdown::ShutdownTrigger,
    stop_proxy: crate::shutdown::ShutdownTrigger,
    stop_pool: crate::shutdown::ShutdownTrigger,
    chain: Option<DevChain>,
}

impl Demo {
    async fn start(options: &DemoOptions) -> Result<Self, RunError> {
        let clock = Clock::start();
        let (stop_pool, end) = shutdown();
        let (stop_proxy, proxy_end) = shutdown();
        let speeds = speeds(options.miners);
        let (source, source_name, chain) = source(options, &speeds, clock, &end).await?;
        let vardiff = vardiff(&speeds);
        let key = random_key();
        let parts = PoolParts {
            source,
            source_name,
            rules: pool::coinbase_rules(vec![OP_TRUE], "Checkweigh demo")?,
            downstream: downstream(Some(key.clone())),
            vardiff,
            share_batch_size: 10,
            job_declaration: None,
            ledger: None,
            device_rules: DeviceRules::default(),
            http: HttpConfig::default(),
        };
        let pool = pool::start(
            parts,
            Listeners { sv2: Some(listen()?), ..Listeners::default() },
            clock,
            end.clone(),
        )?;
        let pool_address = pool.role.sv2_address.expect("it was given a listener and a key");
        let config = ProxyConfig {
            downstream: downstream(None),
            upstreams: vec![UpstreamConfig {
                url: PoolUrl {
                    host: pool_address.ip().to_string(),
                    port: pool_address.port(),
                    authority: Some(key.public()),
                },
                user_identity: "demo".to_owned(),
                job_declaration_url: None,
                forward_worker_names: true,
            }],
            job_declaration: None,
            patience: Patience::default(),
            aggregate: true,
            vardiff,
            ledger: options.ledger.clone().map(LedgerConfig::in_folder),
            rules: DeviceRules::default(),
            metrics_listen: None,
            http: HttpConfig { api: options.api.map(ApiConfig::open), ..HttpConfig::default() },
            log: LogConfig::default(),
        };
        let proxy = proxy::start(
            &config,
            Listeners {
                sv1: Some(listen()?),
                api: options.api.map(listen_at).transpose()?,
                ..Listeners::default()
            },
            clock,
            proxy_end,
        )?;
        let proxy_address = proxy.sv1_address.expect("it was given a listener");
        let figures = Arc::<MinerFigures>::default();
        let (stop_miners, miners_end) = shutdown();
        let miners = start_miners(proxy_address, &speeds, Arc::clone(&figures), miners_end)?;
        Ok(Demo { clock, pool, proxy, figures, miners, stop_miners, stop_proxy, stop_pool, chain })
    }

    /// Stops the miners, takes stock, and then stops the rest.
    async fn finish(self) -> Result<Summary, RunError> {
        self.stop_miners.trigger();
        let miners = self.miners;
        let stopped = tokio::task::spawn_blocking(move || miners.join());
        if !matches!(stopped.await, Ok(Ok(()))) {
            return Err(RunError::Failed("a miner ended by a bug of ours; please report it".to_owned()));
        }
        let observed = self.proxy.observed.clone();
        let summary = Summary::of(&observed, &self.pool.status, &self.figures, self.chain.as_ref()).await?;
        // The proxy says goodbye to a pool that is still there.
        self.stop_proxy.trigger();
        self.proxy.run().await?;
        self.stop_pool.trigger();
        self.pool.role.run().await?;
        Ok(summary)
    }
}

/// The development chain, or the node that was named.
async fn source(
    options: &DemoOptions,
    speeds: &[f64],
    clock: Clock,
    end: &Shutdown,
) -> Result<(BlockSource, String, Option<DevChain>), RunError> {
    let Some(node) = &options.bitcoin_rpc else {
        let shares_per_second = speeds.len() as f64 * shares_per_minute(speeds.len()) / 60.0;
        let hashes_per_share = speeds.iter().sum::<f64>() / shares_per_second;
        let settings = DevChainSettings {
            seed: OsRng.next_u64(),
            nbits: nbits_for_hashes((hashes_per_share * SHARES_PER_BLOCK) as u64),
            transactions: TRANSACTIONS,
        };
        let chain = DevChain::new(settings, clock);
        tokio::spawn(chain.clone().keep_fresh(TEMPLATE_INTERVAL, end.clone()));
        return Ok((BlockSource::Development(chain.clone()), "development chain".to_owned(), Some(chain)));
    };
    let client = Arc::new(pool::node_client(node)?);
    let network = pool::network_of(&client).await?;
    if network != Network::Regtest {
        return Err(RunError::Failed(format!("the demo needs a node on regtest; this one is on {network}")));
    }
    let blocks = std::env::temp_dir().join("checkweigh-demo-blocks");
    let config = TemplatesConfig::default();
    let source = templates::start(&config, Some((node, client)), blocks, clock, end.clone())?;
    Ok((source, pool::node_name(node), None))
}

/// The speed of each miner in hashes per second: every one of eight in turn is faster.
fn speeds(miners: u16) -> Vec<f64> {
    let relative: Vec<f64> = (0..miners).map(|miner| f64::from(miner % 8 + 1)).collect();
    let slowest = SLOWEST.min(TOTAL_HASH_RATE / relative.iter().sum::<f64>());
    relative.iter().map(|speed| speed * slowest).collect()
}

fn shares_per_minute(miners: usize) -> f64 {
    (TOTAL_SHARES_PER_MINUTE / miners as f64).clamp(8.0, 300.0)
}

fn vardiff(speeds: &[f64]) -> VardiffSettings {
    let shares_per_minute = shares_per_minute(speeds.len());
    let mean = HashRate(speeds.iter().sum::<f64>() / speeds.len() as f64);
    let config = VardiffConfig {
        shares_per_minute,
        minimum_exponent: stratum::vardiff::EASIEST_EXPONENT,
        initial_exponent: mean.difficulty_exponent(shares_per_minute),
    };
    VardiffSettings { enabled: true, config }
}

fn downstream(key: Option<AuthoritySecretKey>) -> DownstreamConfig {
    DownstreamConfig {
        sv1_listen: None,
        sv1_profiles: Vec::new(),
        sv2_listen: None,
        authority: key.map(|key| (PathBuf::new(), key)),
        proxy_protocol: false,
        max_connections: 10_000,
    }
}

fn listen() -> Result<std::net::TcpListener, RunError> {
    listen_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

fn listen_at(address: SocketAddr) -> Result<std::net::TcpListener, RunError> {
    bind(address).map_err(RunError::io(format!("listen on {address}")))
}

fn random_key() -> AuthoritySecretKey {
    loop {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        if let Ok(key) = AuthoritySecretKey::from_bytes(bytes) {
            return key;
        }
    }
}

/// Miners have a thread of their own, so that their hashing does not hold up what is being shown.
fn start_miners(
    server: SocketAddr,
    speeds: &[f64],
    figures: Arc<MinerFigures>,
    end: Shutdown,
) -> Result<std::thread::JoinHandle<()>, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(RunError::io("start the miners"))?;
    let speeds = speeds.to_vec();
    let thread = std::thread::Builder::new().name("miners".to_owned());
    let mine_all = async move {
        let mut miners = tokio::task::JoinSet::new();
        for (number, hash_rate) in speeds.into_iter().enumerate() {
            let options = MinerOptions { server, user: format!("demo.miner{:03}", number + 1), hash_rate };
            miners.spawn(miner::mine(options, Arc::clone(&figures), end.clone()));
        }
        miners.join_all().await;
    };
    thread.spawn(move || runtime.block_on(mine_all)).map_err(RunError::io("start the miners"))
}

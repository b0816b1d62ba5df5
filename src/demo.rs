//! The demo: a chain, a pool, a proxy and miners in one process, over real sockets on the loopback address.
//!
//! Nothing is shortened: the miners grind real hashes and speak SV1 to the proxy, the proxy speaks encrypted SV2 to
//! the pool, and every block is judged by code that had no part in building it. Only the hash rate is small. With job
//! declaration there are two nodes, the farm's and the pool's, and everything that is mined was declared.

mod nodes;
mod summary;
mod view;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mining_proxy::Patience;
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::HashRate;
use stratum::sv2::{AuthoritySecretKey, PoolUrl};
use stratum::vardiff::VardiffConfig;

use crate::clock::Clock;
use crate::config::listen::bind;
use crate::config::{
    ApiConfig, DownstreamConfig, HttpConfig, JobDeclarationConfig, LedgerConfig, Listeners, LogConfig,
    NodeConfig, ProxyConfig, UpstreamConfig, VardiffSettings,
};
use crate::dev_chain::DevChain;
use crate::error::RunError;
use crate::miner::{self, MinerFigures, MinerOptions};
use crate::node::BlockSource;
use crate::pool::{self, JobDeclaration, Pool, PoolParts};
use crate::proxy::{self, Proxy};
use crate::shutdown::{Shutdown, ShutdownTrigger, shutdown};
use crate::sink::DeviceRules;
use crate::upstream::DeclarationView;
use nodes::{BlocksFolder, Declaring, Nodes};
use summary::Summary;

/// Shares of all miners together, per minute: enough to see something at once, few enough for any machine.
const TOTAL_SHARES_PER_MINUTE: f64 = 2400.0;

/// The same where every share is a block, and every block ends the jobs that were declared: a job must live for as long
/// as it takes to declare it.
const TOTAL_BLOCKS_PER_MINUTE: f64 = 60.0;

/// Hash rate of the slowest miner, in hashes per second; the others are up to eight times as fast.
const SLOWEST: f64 = 20_000.0;

/// Hash rate of all miners together that leaves a processor room for the rest.
const TOTAL_HASH_RATE: f64 = 1_000_000.0;

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
    /// Whether the farm mines on templates of its own node, which it declares to the pool.
    pub job_declaration: bool,
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
    proxy: Proxy,
    figures: Arc<MinerFigures>,
    /// There until the end.
    miners: Option<std::thread::JoinHandle<()>>,
    stop_miners: ShutdownTrigger,
    stop_proxy: ShutdownTrigger,
    stop_pool: ShutdownTrigger,
    /// Ends the nodes, which take the last blocks of both.
    stop_nodes: ShutdownTrigger,
    chain: Option<DevChain>,
    /// Whether jobs are declared.
    declares: bool,
    blocks: Option<BlocksFolder>,
}

impl Demo {
    async fn start(options: &DemoOptions) -> Result<Self, RunError> {
        let clock = Clock::start();
        let (stop_nodes, nodes_end) = shutdown();
        let (stop_pool, pool_end) = shutdown();
        let (stop_proxy, proxy_end) = shutdown();
        let pace = Pace::of(options);
        let Nodes { chain, source, source_name, declaring } =
            nodes::start(options, &pace, clock, &nodes_end).await?;
        let (server, farm, blocks) = match declaring {
            Some(Declaring { server, farm, blocks }) => (Some(server), Some(farm), blocks),
            None => (None, None, None),
        };
        let (pool, upstream) = start_pool((source, source_name), server, &pace, clock, pool_end)?;
        let declares = farm.is_some();
        let config = proxy_config(options, &pace, upstream, farm);
        let listeners = Listeners {
            sv1: Some(listen()?),
            api: options.api.map(listen_at).transpose()?,
            ..Listeners::default()
        };
        let proxy = proxy::start(&config, listeners, clock, proxy_end)?;
        let proxy_address = proxy.role.sv1_address.expect("it was given a listener");
        let figures = Arc::<MinerFigures>::default();
        let (stop_miners, miners_end) = shutdown();
        let miners = start_miners(proxy_address, &pace.speeds, Arc::clone(&figures), miners_end)?;
        Ok(Demo {
            clock,
            pool,
            proxy,
            figures,
            miners: Some(miners),
            stop_miners,
            stop_proxy,
            stop_pool,
            stop_nodes,
            chain,
            declares,
            blocks,
        })
    }

    /// How job declaration goes, where jobs are declared.
    fn declarations(&self) -> Option<DeclarationView> {
        self.declares.then(|| self.proxy.status.declarations())
    }

    /// Blocks that were found, and those that are in the chain.
    fn blocks(&self) -> (u64, u64) {
        let count = |blocks: &AtomicU64| blocks.load(Ordering::Relaxed);
        match self.declares {
            // All are of the farm's jobs. Some never come to the pool, because a block ends their job before it is declared.
            true => {
                let blocks = &self.proxy.status.own_blocks;
                (count(&blocks.found), count(&blocks.accepted))
            }
            false => (count(&self.pool.status.blocks_found), count(&self.pool.status.blocks_accepted)),
        }
    }

    /// Stops the miners, takes stock, and then stops the rest.
    async fn finish(mut self) -> Result<Summary, RunError> {
        self.stop_miners.trigger();
        let miners = self.miners.take().expect("they are there until now");
        let stopped = tokio::task::spawn_blocking(move || miners.join());
        if !matches!(stopped.await, Ok(Ok(()))) {
            return Err(RunError::Failed("a miner ended by a bug of ours; please report it".to_owned()));
        }
        let (blocks, declarations) = (self.blocks(), self.declarations());
        let observed = self.proxy.role.observed.clone();
        let summary =
            Summary::of(&observed, blocks, declarations, &self.figures, self.chain.as_ref()).await?;
        // The proxy says goodbye to a pool that is still there.
        self.stop_proxy.trigger();
        self.proxy.role.run().await?;
        self.stop_pool.trigger();
        self.pool.role.run().await?;
        self.stop_nodes.trigger();
        drop(self.blocks);
        Ok(summary)
    }
}

/// Starts the pool, and returns how a proxy reaches it.
fn start_pool(
    (source, source_name): (BlockSource, String),
    job_declaration: Option<JobDeclaration>,
    pace: &Pace,
    clock: Clock,
    end: Shutdown,
) -> Result<(Pool, UpstreamConfig), RunError> {
    let key = random_key();
    let declarations = job_declaration.is_some().then(listen).transpose()?;
    let declaration_address = declarations.as_ref().map(address_of).transpose()?;
    let listeners = Listeners { sv2: Some(listen()?), declarations, ..Listeners::default() };
    let parts = PoolParts {
        source,
        source_name,
        rules: pool::coinbase_rules(vec![OP_TRUE], "Checkweigh demo")?,
        downstream: downstream(Some(key.clone())),
        vardiff: pace.vardiff(),
        share_batch_size: 10,
        job_declaration,
        ledger: None,
        device_rules: DeviceRules::default(),
        http: HttpConfig::default(),
    };
    let pool = pool::start(parts, listeners, clock, end)?;
    let url = |address: SocketAddr| PoolUrl {
        host: address.ip().to_string(),
        port: address.port(),
        authority: Some(key.public()),
    };
    let upstream = UpstreamConfig {
        url: url(pool.role.sv2_address.expect("it was given a listener and a key")),
        user_identity: "demo".to_owned(),
        job_declaration_url: declaration_address.map(url),
        forward_worker_names: true,
    };
    Ok((pool, upstream))
}

/// How fast all is.
struct Pace {
    /// The hash rate of each miner; hashes per second.
    speeds: Vec<f64>,
    /// Of each miner.
    shares_per_minute: f64,
}

impl Pace {
    /// Every one of eight miners in turn is faster.
    fn of(options: &DemoOptions) -> Self {
        let relative: Vec<f64> = (0..options.miners).map(|miner| f64::from(miner % 8 + 1)).collect();
        let slowest = SLOWEST.min(TOTAL_HASH_RATE / relative.iter().sum::<f64>());
        let every_share_is_a_block = options.job_declaration && options.bitcoin_rpc.is_some();
        let total = if every_share_is_a_block { TOTAL_BLOCKS_PER_MINUTE } else { TOTAL_SHARES_PER_MINUTE };
        let shares_per_minute = (total / f64::from(options.miners)).clamp(8.0, 300.0);
        Pace { speeds: relative.iter().map(|speed| speed * slowest).collect(), shares_per_minute }
    }

    fn hashes_per_share(&self) -> f64 {
        let shares_per_second = self.speeds.len() as f64 * self.shares_per_minute / 60.0;
        self.speeds.iter().sum::<f64>() / shares_per_second
    }

    fn vardiff(&self) -> VardiffSettings {
        let mean = HashRate(self.speeds.iter().sum::<f64>() / self.speeds.len() as f64);
        let config = VardiffConfig {
            shares_per_minute: self.shares_per_minute,
            minimum_exponent: stratum::vardiff::EASIEST_EXPONENT,
            initial_exponent: mean.difficulty_exponent(self.shares_per_minute),
        };
        VardiffSettings { enabled: true, config }
    }
}

fn proxy_config(
    options: &DemoOptions,
    pace: &Pace,
    upstream: UpstreamConfig,
    job_declaration: Option<JobDeclarationConfig>,
) -> ProxyConfig {
    ProxyConfig {
        downstream: downstream(None),
        upstreams: vec![upstream],
        job_declaration,
        patience: Patience::default(),
        aggregate: true,
        vardiff: pace.vardiff(),
        ledger: options.ledger.clone().map(LedgerConfig::in_folder),
        rules: DeviceRules::default(),
        metrics_listen: None,
        http: HttpConfig { api: options.api.map(ApiConfig::open), ..HttpConfig::default() },
        log: LogConfig::default(),
    }
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

fn address_of(listener: &std::net::TcpListener) -> Result<SocketAddr, RunError> {
    listener.local_addr().map_err(RunError::io("find the address of a listener"))
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

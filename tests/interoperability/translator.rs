//! The reference implementation's translator mines through our pool: its process, its channels, its idea of a share.
//!
//! `translator_sv2` 0.6.0 takes SV1 miners in and speaks SV2 over Noise to our pool on the development chain.
//! What it refuses or misreads is seen here, because it checks every share with code that is not ours before it
//! passes it on.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::clock::Clock;
use checkweigh::config::listen::bind;
use checkweigh::config::{DownstreamConfig, HttpConfig, Listeners, VardiffSettings};
use checkweigh::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use checkweigh::miner::{self, MinerFigures, MinerOptions};
use checkweigh::node::BlockSource;
use checkweigh::pool::{self, Pool, PoolParts};
use checkweigh::shutdown::{Shutdown, ShutdownTrigger, shutdown};
use checkweigh::sink::Snapshot;
use mining_server::RejectReason;
use stratum::HashRate;
use stratum::vardiff::{EASIEST_EXPONENT, VardiffConfig};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval};

use crate::farm::key;
use crate::peer::{Peer, private_address};

/// How long any awaited event may take on a busy machine; each takes seconds on an idle one.
const DEADLINE: Duration = Duration::from_secs(120);

/// Paid for blocks: anybody could spend it.
const OP_TRUE: u8 = 0x51;

/// How often the pool's sums are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Miners behind the translator.
const MINERS: u16 = 3;

/// Hashes per second of each.
const HASH_RATE: f64 = 40_000.0;

/// What each miner should find, so that a test takes seconds.
const SHARES_PER_MINUTE: f64 = 120.0;

/// Shares of all miners for one block of the chain.
const SHARES_PER_BLOCK: f64 = 25.0;

/// Accepted shares after which a test has seen enough.
const ENOUGH_SHARES: u64 = 100;

/// Blocks after which a test has seen enough: the second one builds on the first, so the translator and its miners
/// have followed a tip of their own making.
const ENOUGH_BLOCKS: u64 = 2;

/// The translator sets its miners' difficulties itself...
const VARDIFF: &str = "enable_vardiff = true";

/// ...or hands ours on.
pub(crate) const DIFFICULTY_OF_THE_POOL: &str = "enable_vardiff = false";

/// Why the chain refuses a block that was found on an older tip.
const LATE_BLOCK: &str = "inconclusive-not-best-prevblk";

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_translator_mines_with_one_channel_for_all_devices() {
    // It asks for the extension that names the worker beside each share.
    let mode = "aggregate_channels = true\nsupported_extensions = [2]\nrequired_extensions = [2]";
    let stack = Stack::start(mode, VARDIFF).await;
    let seen = stack.mine_enough(usize::from(MINERS)).await;
    let names: Vec<&str> = seen.devices.iter().filter_map(|device| device.name.as_deref()).collect();
    let workers: Vec<_> =
        names.iter().filter_map(|name| name.strip_prefix("account.translator-proxy.")).collect();
    assert_eq!(workers.len(), usize::from(MINERS), "each worker is a device: {names:?}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_translator_mines_with_a_channel_per_device() {
    let stack = Stack::start("aggregate_channels = false", DIFFICULTY_OF_THE_POOL).await;
    let seen = stack.mine_enough(usize::from(MINERS)).await;
    for device in &seen.devices {
        let name = device.name.as_deref().expect("a channel has a user identity");
        assert!(name.starts_with("account.farm"), "{name} is not of the account");
    }
    stack.stop().await;
}

/// The translator comes back to a pool that was gone, and its miners mine on.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_translator_survives_a_restart_of_the_pool() {
    let stack = Stack::start("aggregate_channels = true", VARDIFF).await;
    stack.mine_enough(1).await;
    let stack = stack.restart_pool().await;
    stack.mine_enough(1).await;
    stack.stop().await;
}

/// A pool on a development chain, the translator's process, and its miners.
struct Stack {
    clock: Clock,
    chain: DevChain,
    pool: RunningPool,
    translator: Translator,
    stop_miners: ShutdownTrigger,
    miners: JoinHandle<()>,
}

impl Stack {
    async fn start(mode: &str, difficulty: &str) -> Self {
        let clock = Clock::start();
        let hashes_per_share = HASH_RATE * 60.0 / SHARES_PER_MINUTE;
        let settings = DevChainSettings {
            seed: u64::from(std::process::id()),
            nbits: nbits_for_hashes((hashes_per_share * SHARES_PER_BLOCK) as u64),
            transactions: 20,
        };
        let chain = DevChain::new(settings, clock);
        let pool = RunningPool::start(&chain, clock, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let translator = Translator::start(mode, difficulty, pool.address).await;
        let (stop_miners, end) = shutdown();
        let miners = tokio::spawn(mine(MINERS, translator.address, end));
        Stack { clock, chain, pool, translator, stop_miners, miners }
    }

    /// Waits until `devices` devices have shares and there is enough of all, and checks what there is to check.
    async fn mine_enough(&self, devices: usize) -> Snapshot {
        let deadline = Instant::now() + DEADLINE;
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            let seen = self.pool.snapshot(self.clock).await;
            self.check(&seen);
            let shares = &seen.overview.totals.shares;
            let mining = seen.devices.iter().filter(|device| device.sums.shares.accepted > 0).count();
            let blocks = self.pool.pool.status.blocks_accepted.load(Ordering::Relaxed);
            if shares.accepted >= ENOUGH_SHARES && blocks >= ENOUGH_BLOCKS && mining == devices {
                return seen;
            }
            assert!(
                Instant::now() < deadline,
                "{mining} devices mine and {blocks} blocks were accepted after {DEADLINE:?}: {shares:?}"
            );
        }
    }

    /// Neither side may have refused anything but what was late for a new tip.
    fn check(&self, seen: &Snapshot) {
        for (reason, count) in seen.overview.totals.shares.rejected_by_reason() {
            assert!(count == 0 || reason == RejectReason::Stale, "{count} shares refused: {reason:?}");
        }
        if let Some(reason) = self.chain.summary().last_rejection {
            assert_eq!(reason, LATE_BLOCK, "the chain refused a block of ours");
        }
        self.translator.check();
    }

    /// Ends the pool and starts another at the same address, on the same chain.
    async fn restart_pool(self) -> Self {
        let address = self.pool.address;
        self.pool.stop().await;
        let pool = RunningPool::start(&self.chain, self.clock, address);
        Stack { pool, ..self }
    }

    async fn stop(self) {
        self.stop_miners.trigger();
        self.miners.await.expect("miners do not panic");
        self.translator.stop().await;
        self.pool.stop().await;
    }
}

/// A pool, and what ends it.
struct RunningPool {
    pool: Pool,
    address: SocketAddr,
    stop: ShutdownTrigger,
}

impl RunningPool {
    fn start(chain: &DevChain, clock: Clock, listen: SocketAddr) -> Self {
        let (stop, end) = shutdown();
        let initial_exponent = HashRate(HASH_RATE).difficulty_exponent(SHARES_PER_MINUTE);
        let config = VardiffConfig {
            shares_per_minute: SHARES_PER_MINUTE,
            minimum_exponent: EASIEST_EXPONENT,
            initial_exponent,
        };
        let parts = PoolParts {
            source: BlockSource::Development(chain.clone()),
            source_name: "development chain".to_owned(),
            rules: pool::coinbase_rules(vec![OP_TRUE], "interoperability").expect("short enough"),
            downstream: DownstreamConfig {
                sv1_listen: None,
                sv1_profiles: Vec::new(),
                sv2_listen: None,
                authority: Some((PathBuf::new(), key())),
                proxy_protocol: false,
                max_connections: 100,
            },
            vardiff: VardiffSettings { enabled: true, config },
            share_batch_size: 4,
            job_declaration: None,
            ledger: None,
            device_rules: Default::default(),
            http: HttpConfig::default(),
        };
        let listeners = Listeners { sv2: Some(bind(listen).expect("a free port")), ..Listeners::default() };
        let pool = pool::start(parts, listeners, clock, end).expect("the pool starts");
        let address = pool.role.sv2_address.expect("it has a listener and a key");
        RunningPool { pool, address, stop }
    }

    async fn snapshot(&self, clock: Clock) -> Snapshot {
        self.pool.role.observed.sink.snapshot(clock.now()).await.expect("the sink runs")
    }

    async fn stop(self) {
        self.stop.trigger();
        self.pool.role.run().await.expect("the pool ends in order");
    }
}

/// The translator's process; killed when dropped.
pub(crate) struct Translator {
    peer: Peer,
    /// Where SV1 miners connect.
    pub(crate) address: SocketAddr,
}

impl Translator {
    /// Starts it before the pool, or whoever is one to it. `mode` and `difficulty` are lines of its configuration.
    pub(crate) async fn start(mode: &str, difficulty: &str, pool: SocketAddr) -> Self {
        let address = private_address();
        let mut peer = Peer::start("translator_sv2", &configuration(mode, difficulty, pool, address)).await;
        peer.says("listening on", 1).await;
        Translator { peer, address }
    }

    /// Fails if it was refused anything but what was late for a new tip.
    pub(crate) fn check(&self) {
        self.peer.check(|line| {
            let refused = line.contains("SubmitSharesError(") && !line.contains("error_code=stale-share");
            let failed = ["OpenMiningChannelError(", "UpdateChannelError(", "panic"];
            refused || failed.iter().any(|text| line.contains(text))
        });
    }

    /// Ends it, which must still run.
    pub(crate) async fn stop(self) {
        self.peer.stop().await;
    }
}

fn configuration(mode: &str, difficulty: &str, pool: SocketAddr, listen: SocketAddr) -> String {
    let mut text = format!(
        "downstream_address = \"{}\"\n\
         downstream_port = {}\n\
         max_supported_version = 2\n\
         min_supported_version = 2\n\
         downstream_extranonce2_size = 4\n\
         {mode}\n\
         [downstream_difficulty_config]\n\
         min_individual_miner_hashrate = {HASH_RATE:.1}\n\
         shares_per_minute = {SHARES_PER_MINUTE:.1}\n\
         {difficulty}\n\
         job_keepalive_interval_secs = 60\n",
        listen.ip(),
        listen.port(),
    );
    // The pool stands there twice: an upstream that was lost is never dialled again.
    for _ in 0..2 {
        write!(
            text,
            "[[upstreams]]\n\
             address = \"{}\"\n\
             port = {}\n\
             authority_pubkey = \"{}\"\n\
             user_identity = \"account.farm\"\n",
            pool.ip(),
            pool.port(),
            key().public(),
        )
        .expect("a text takes everything");
    }
    text
}

/// Runs miners until the end is asked for.
pub(crate) async fn mine(count: u16, server: SocketAddr, end: Shutdown) {
    let figures = Arc::<MinerFigures>::default();
    let mut miners = JoinSet::new();
    for number in 1..=count {
        let options = MinerOptions { server, user: format!("account.miner{number}"), hash_rate: HASH_RATE };
        miners.spawn(miner::mine(options, Arc::clone(&figures), end.clone()));
    }
    miners.join_all().await;
}

//! What a farm and a pool are on: two Bitcoin Core nodes that are connected, and programs of ours as processes.
//!
//! On regtest practically every share is a block.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bitcoin::{Amount, Txid};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use stratum::sv2::AuthoritySecretKey;
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::{Instant, interval};

use crate::bitcoin_node::{FEE, RegtestNode, WitnessSpend, block_of_height, two_nodes_with, wait_for_height};
use crate::process::{Checkweigh, terminate};
use crate::sv1_miner::{Miner, MinerOptions};

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Transactions that only the farm's node has in its mempool, all with witnesses.
const TRANSACTIONS: u32 = 5;

/// What a block of the first halving period of regtest creates.
const SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

/// Who pools pay.
pub(crate) const PAYOUT: &str = "5175";

/// Shares of a proxy's miners are so easy that processors find them at once.
pub(crate) const VARDIFF: &str = "[vardiff]\nenabled = false\nminimum_difficulty = 0.00000095367431640625\n\
                                  initial_difficulty = 0.00000095367431640625\n";

/// The authority key of every program.
pub(crate) fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("the bytes are a key")
}

/// A farm's node and a pool's, and what only the farm's has chosen.
pub(crate) struct Nodes {
    pub(crate) farm: RegtestNode,
    pub(crate) pool: RegtestNode,
    wanted: Vec<WitnessSpend>,
    /// The height of both before any block of the farm.
    pub(crate) start: u32,
    folder: TempDir,
}

impl Nodes {
    /// Both also answer over their IPC sockets.
    pub(crate) async fn start() -> Self {
        let (mut farm, pool) = two_nodes_with(&["-ipcbind=unix"]).await;
        let wanted = farm.fill_mempool(TRANSACTIONS).await;
        let start = farm.height().await;
        wait_for_height(&pool, start).await;
        Nodes { farm, pool, wanted, start, folder: tempfile::tempdir().expect("a folder for the test") }
    }

    /// Puts one more transaction into the farm's mempool, so that it has a better template for the same tip.
    pub(crate) async fn raise_fees(&mut self) {
        let child = self.farm.spend_again(&self.wanted[0]).await;
        self.wanted.push(child);
    }

    /// Somebody else's block reaches the farm's node first.
    pub(crate) async fn move_tip(&mut self) {
        self.farm.generate_empty().await;
        self.start += 1;
    }

    /// Starts a role of ours in a folder of its own.
    pub(crate) fn run(&self, role: &'static str, configuration: &str) -> Checkweigh {
        let folder = self.folder_of(role);
        std::fs::create_dir(&folder).expect("the folder is ours");
        std::fs::write(folder.join("authority.key"), key().secret_text()).expect("the folder is ours");
        protect(&folder.join("authority.key"));
        Checkweigh::start(role, configuration, &folder)
    }

    /// Where that role keeps what it writes.
    fn folder_of(&self, role: &str) -> PathBuf {
        self.folder.path().join(role)
    }

    /// Fails unless the block at that height has what the farm's node chose, and pays the pool all of it.
    pub(crate) async fn check_block(&self, height: u32) {
        let found = block_of_height(&self.farm, height).await;
        let theirs: BTreeSet<Txid> =
            found.txdata[1..].iter().map(bitcoin::Transaction::compute_txid).collect();
        let ours: BTreeSet<Txid> = self.wanted.iter().map(|spend| spend.transaction.compute_txid()).collect();
        assert_eq!(theirs, ours, "the block has what the farm's node chose");
        let payout = &found.txdata[0].output[0];
        assert_eq!(payout.script_pubkey.to_hex_string(), PAYOUT);
        let reward = SUBSIDY + FEE * self.wanted.len() as u64;
        assert_eq!(payout.value, reward, "the pool has the whole reward");
    }

    /// Waits until both nodes are on one tip.
    pub(crate) async fn agree(&self) {
        let height = self.farm.height().await;
        wait_for_height(&self.pool, height).await;
        assert_eq!(self.pool.tip().await, self.farm.tip().await, "both nodes end on one tip");
    }

    /// How many blocks a role of ours has on its disk.
    pub(crate) fn saved(&self, role: &str) -> usize {
        std::fs::read_dir(self.folder_of(role).join("blocks")).map_or(0, Iterator::count)
    }
}

/// Others may not read a secret key.
fn protect(file: &Path) {
    let status = Command::new("chmod").arg("600").arg(file).status().expect("chmod is everywhere");
    assert!(status.success(), "the file is ours");
}

/// A template provider of ours on the farm's node, and how a program of the reference implementation is told of it.
pub(crate) async fn start_provider(nodes: &Nodes) -> (Child, String) {
    let config = format!(
        "[template_provider]\nlisten = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\n{}[templates]\nmin_interval_seconds = 0\nmin_fee_gain_sats = 1\npoll_seconds = 1\n",
        nodes.farm.config_keys()
    );
    let mut provider = nodes.run("template-provider", &config);
    let address = provider.address("template clients may connect").await;
    let section = format!(
        "[template_provider_type.Sv2Tp]\naddress = \"{address}\"\npublic_key = \"{}\"\n",
        key().public()
    );
    (provider.detach_log(), section)
}

/// Waits until a counter of a metrics page is at least that.
pub(crate) async fn counts(metrics: SocketAddr, series: &str, least: u64) {
    let deadline = Instant::now() + DEADLINE;
    let mut look = interval(Duration::from_millis(50));
    loop {
        look.tick().await;
        let answer = reqwest::get(format!("http://{metrics}/metrics")).await.expect("it is served");
        let page = answer.text().await.expect("a page of text");
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<u64>().ok());
        if value.is_some_and(|value| value >= least) {
            return;
        }
        assert!(Instant::now() < deadline, "{series} is {value:?}, not {least}:\n{page}");
    }
}

/// An SV1 miner that submits a share now and then, until it is stopped.
pub(crate) struct SlowMiner {
    miner: Miner,
    stop: ShutdownTrigger,
}

impl SlowMiner {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let (stop, end) = shutdown();
        let pause = Some(Duration::from_millis(300));
        let options = MinerOptions { server, user: "farm.rig".to_owned(), window: 1, pause };
        SlowMiner { miner: Miner::start(options, end), stop }
    }

    /// Ends it; it must have been treated as a miner is to be treated.
    pub(crate) async fn stop(mut self) {
        self.stop.trigger();
        self.miner.stopped(DEADLINE).await;
    }
}

/// Ends processes of ours in order.
pub(crate) async fn end(children: impl IntoIterator<Item = Child>) {
    for mut child in children {
        let status = terminate(&mut child, Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    }
}

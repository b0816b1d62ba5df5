//! A chain tip that moves between a declared job and its solution: `checkweigh mining-proxy` on the farm's Bitcoin Core,
//! `checkweigh pool` with its job declaration server on the pool's, and an SV1 miner that keeps its solution until the
//! tip has moved.
//!
//! On regtest every share of such a miner is a block.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/held_miner.rs"]
mod held_miner;
#[path = "support/process.rs"]
mod process;

use std::net::SocketAddr;
use std::time::Duration;

use bitcoin::Amount;
use bitcoin_node::{RegtestNode, block_of_height, two_nodes, wait_for_height};
use held_miner::HeldMiner;
use process::{Checkweigh, pool_and_farm, terminate};
use serde_json::json;
use stratum::sv1::client::Notify;
use tempfile::TempDir;
use template::block_template::displayed;
use tokio::process::Child;
use tokio::time::{Instant, interval};

const DEADLINE: Duration = Duration::from_secs(60);

/// Transactions that only the farm's node has in its mempool.
const TRANSACTIONS: u32 = 3;

/// What a block of the first halving period of regtest creates.
const SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

/// Who the pool pays.
const PAYOUT: &str = "5175";

/// The code of a stale share to SV1 miners.
const JOB_NOT_FOUND: i64 = 21;

const VARDIFF: &str = "[vardiff]\nenabled = false\nminimum_difficulty = 0.00000095367431640625\n\
                       initial_difficulty = 0.00000095367431640625\n";

fn pool_config(node: &RegtestNode) -> String {
    format!(
        "[downstream]\nsv2_listen = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\n{}[pool]\ncoinbase_script = \"{PAYOUT}\"\n\
         [job_declaration]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n{VARDIFF}",
        node.config_keys()
    )
}

fn proxy_config(
    (mining, declaration, key): (SocketAddr, SocketAddr, &str),
    node: &RegtestNode,
    mode: &str,
) -> String {
    format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{mining}/{key}\"\nuser_identity = \"account.farm\"\n\
         job_declaration_url = \"stratum2+tcp://{declaration}/{key}\"\n\
         [job_declaration]\nmode = \"{mode}\"\npool_templates = false\n\
         [job_declaration.node]\n{}[metrics]\nlisten = \"127.0.0.1:0\"\n{VARDIFF}",
        node.config_keys()
    )
}

/// One figure of a metrics page; zero when it is not there yet.
async fn figure(page: SocketAddr, name: &str) -> f64 {
    let text = reqwest::get(format!("http://{page}/metrics")).await.expect("the page is served");
    let text = text.text().await.expect("text");
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.map(|value| value.parse::<f64>().expect("a number")).next().unwrap_or(0.0)
}

async fn wait_for_figure(page: SocketAddr, name: &str, is_met: impl Fn(f64) -> bool) -> f64 {
    let deadline = Instant::now() + DEADLINE;
    let mut poll = interval(Duration::from_millis(20));
    loop {
        let seen = figure(page, name).await;
        if is_met(seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "not in time: {name} is {seen}");
        poll.tick().await;
    }
}

/// Blocks of which the pool must have taken the share of one.
const MOST_BLOCKS: u32 = 5;

const DROPPED: &str = "checkweigh_job_declaration_held_shares_total{fate=\"dropped\"}";

const ACKNOWLEDGED: &str = "checkweigh_job_declaration_jobs_total{state=\"acknowledged\"}";

/// Farm and pool, each on its node, with one miner that has a job which the pool has taken.
struct Stage {
    farm: RegtestNode,
    pool_node: RegtestNode,
    /// The height of the chain at the start.
    start: u32,
    pool: Child,
    proxy: Child,
    pool_page: SocketAddr,
    proxy_page: SocketAddr,
    miner: HeldMiner,
    job: Notify,
    _folder: TempDir,
}

impl Stage {
    async fn set(mode: &str) -> Self {
        let (mut farm, pool_node) = two_nodes().await;
        farm.fill_mempool(TRANSACTIONS).await;
        let start = farm.height().await;
        wait_for_height(&pool_node, start).await;
        let (folder, of_pool, of_farm) = pool_and_farm();

        let mut pool = Checkweigh::start("pool", &pool_config(&pool_node), &of_pool);
        let line = pool.line("job declaration clients may connect").await;
        let declaration = line["address"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let key = line["authority_key"].as_str().expect("a key").to_owned();
        let mining = pool.address("SV2 miners may connect").await;
        let pool_page = pool.address("metrics at /metrics").await;
        let pool = pool.detach_log();
        let config = proxy_config((mining, declaration, &key), &farm, mode);
        let mut proxy = Checkweigh::start("mining-proxy", &config, &of_farm);
        let server = proxy.address("SV1 miners may connect").await;
        let proxy_page = proxy.address("metrics at /metrics").await;
        let proxy = proxy.detach_log();
        wait_for_figure(proxy_page, ACKNOWLEDGED, |jobs| jobs >= 1.0).await;
        let tip = farm.tip().await;
        let mut miner = HeldMiner::connect(server).await;
        let job = miner.job("a job on the tip", |job| displayed(&job.previous_hash) == tip).await;
        let _folder = folder;
        Stage { farm, pool_node, start, pool, proxy, pool_page, proxy_page, miner, job, _folder }
    }

    /// The miner's next job is on the tip of the farm's node, and the pool takes it: its block is the tip of both nodes,
    /// and pays the pool. `acknowledged` jobs had been taken before the tip moved. Returns how many blocks that took: on
    /// regtest one can be found before the pool has taken its job, and then its share has nowhere to go.
    async fn next_block_pays_the_pool(&mut self, mut acknowledged: f64) -> u32 {
        for blocks in 1..=MOST_BLOCKS {
            let dropped = figure(self.proxy_page, DROPPED).await;
            self.find_a_block(acknowledged).await;
            let deadline = Instant::now() + DEADLINE;
            let mut poll = interval(Duration::from_millis(20));
            while figure(self.proxy_page, "checkweigh_shares_acknowledged_total").await < 1.0 {
                if figure(self.proxy_page, DROPPED).await > dropped {
                    break;
                }
                assert!(Instant::now() < deadline, "the share is neither taken nor dropped");
                poll.tick().await;
            }
            if figure(self.proxy_page, "checkweigh_shares_acknowledged_total").await >= 1.0 {
                return blocks;
            }
            acknowledged = figure(self.proxy_page, ACKNOWLEDGED).await;
        }
        panic!("the pool took no share of {MOST_BLOCKS} blocks");
    }

    async fn find_a_block(&mut self, acknowledged: f64) {
        let (tip, height) = (self.farm.tip().await, self.farm.height().await);
        let is_on_tip = |job: &Notify| displayed(&job.previous_hash) == tip;
        self.miner.job("a job on the new tip", is_on_tip).await;
        wait_for_figure(self.proxy_page, ACKNOWLEDGED, |jobs| jobs > acknowledged).await;
        let job = self.miner.job("a job on the new tip", is_on_tip).await;
        let kept = self.miner.solve(&job);
        let answer = self.miner.submit(&kept).await;
        assert!(answer.accepted(), "{answer:?}");
        wait_for_height(&self.farm, height + 1).await;
        wait_for_height(&self.pool_node, height + 1).await;
        assert_eq!(self.pool_node.tip().await, self.farm.tip().await, "both nodes end on one tip");
        let found = block_of_height(&self.pool_node, height + 1).await;
        assert_eq!(found.header.prev_blockhash.to_string(), tip);
        let payout = &found.txdata[0].output[0];
        assert_eq!(payout.script_pubkey.to_hex_string(), PAYOUT);
        assert!(payout.value >= SUBSIDY, "the pool has the whole reward");
    }

    async fn finish(mut self) {
        let figure = async |page, name: &str| figure(page, name).await;
        assert_eq!(figure(self.proxy_page, "checkweigh_connections_accepted_total").await, 1.0);
        assert_eq!(figure(self.proxy_page, "checkweigh_connections{protocol=\"sv1\"}").await, 1.0);
        assert_eq!(figure(self.pool_page, "checkweigh_connections_accepted_total").await, 1.0);
        assert_eq!(figure(self.pool_page, "checkweigh_connections{protocol=\"sv2\"}").await, 1.0);
        assert_eq!(figure(self.pool_page, "checkweigh_job_declaration_server_connections").await, 1.0);
        let lost = "checkweigh_shares_lost_upstream_total{reason=\"disconnected\"}";
        assert_eq!(figure(self.proxy_page, lost).await, 0.0);
        for child in [&mut self.proxy, &mut self.pool] {
            let status = terminate(child, Duration::from_secs(5)).await;
            assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
        }
    }
}

/// Both nodes have the new tip before the solution comes: the farm itself refuses it.
async fn a_block_of_others_makes_the_solution_stale(mode: &str, of_pool: bool) {
    let mut stage = Stage::set(mode).await;
    let kept = stage.miner.solve(&stage.job);
    let acknowledged = figure(stage.proxy_page, ACKNOWLEDGED).await;
    let finder = if of_pool { &stage.pool_node } else { &stage.farm };
    finder.generate(1).await;
    wait_for_height(&stage.farm, stage.start + 1).await;
    wait_for_height(&stage.pool_node, stage.start + 1).await;
    let old = stage.job.previous_hash;
    let job = stage.miner.job("a job on the new tip", |job| job.previous_hash != old).await;
    assert!(job.clean, "the old job is void");
    let answer = stage.miner.submit(&kept).await;
    assert_eq!(answer.error.map(|error| error.code), Some(JOB_NOT_FOUND), "it is stale");
    let blocks = stage.next_block_pays_the_pool(acknowledged).await;
    assert_eq!(stage.farm.height().await, stage.start + 1 + blocks, "the stale solution is in no chain");
    let rejected = "checkweigh_shares_rejected_total{reason=\"stale\"}";
    wait_for_figure(stage.proxy_page, rejected, |shares| shares == 1.0).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_on_the_farms_node_makes_a_declared_solution_stale() {
    a_block_of_others_makes_the_solution_stale("full-template", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_on_the_pools_node_makes_a_declared_solution_stale() {
    a_block_of_others_makes_the_solution_stale("full-template", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_others_makes_the_solution_of_a_job_without_transactions_stale() {
    a_block_of_others_makes_the_solution_stale("coinbase-only", true).await;
}

/// The pool's node is ahead and the farm's does not know: share and next declaration are for a tip that is over. Once
/// the farm's node has heard of it, all is as before.
async fn a_farm_that_is_behind_is_told_so_and_goes_on(mode: &str) {
    let mut stage = Stage::set(mode).await;
    let kept = stage.miner.solve(&stage.job);
    let peers = stage.pool_node.call("getpeerinfo", json!([])).await;
    let address = peers[0]["addr"].clone();
    stage.pool_node.call("setnetworkactive", json!([false])).await;
    stage.pool_node.generate(2).await;
    let next = f64::from(stage.start + 3);
    wait_for_figure(stage.pool_page, "checkweigh_template_height", |height| height == next).await;

    let answer = stage.miner.submit(&kept).await;
    assert!(answer.accepted(), "the farm cannot know better: {answer:?}");
    let stale = "checkweigh_shares_refused_upstream_total{code=\"stale-share\"}";
    wait_for_figure(stage.proxy_page, stale, |shares| shares == 1.0).await;
    // It is a block all the same, on a chain of the farm's own, and the next job is declared on it.
    wait_for_height(&stage.farm, stage.start + 1).await;
    let refused = "checkweigh_job_declaration_jobs_total{state=\"refused\"}";
    wait_for_figure(stage.proxy_page, refused, |jobs| jobs >= 1.0).await;

    let acknowledged = figure(stage.proxy_page, ACKNOWLEDGED).await;
    stage.pool_node.call("setnetworkactive", json!([true])).await;
    stage.pool_node.call("addnode", json!([address, "onetry"])).await;
    wait_for_height(&stage.farm, stage.start + 2).await;
    let blocks = stage.next_block_pays_the_pool(acknowledged).await;
    assert_eq!(stage.farm.height().await, stage.start + 2 + blocks);
    assert_eq!(figure(stage.proxy_page, stale).await, 1.0, "no other share was stale");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_is_behind_the_pools_tip_is_told_so_and_goes_on() {
    a_farm_that_is_behind_is_told_so_and_goes_on("full-template").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_is_behind_the_pools_tip_and_shows_its_coinbase_alone_goes_on() {
    a_farm_that_is_behind_is_told_so_and_goes_on("coinbase-only").await;
}

//! A farm that finds its own blocks: an SV1 miner, `checkweigh mining-proxy` as a process, and two Bitcoin Core nodes
//! that are connected, one the farm's and one the pool's.
//!
//! On regtest practically every share is a block.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/declaring_pool.rs"]
#[expect(dead_code, reason = "what the pool can do wrong is for another test program")]
mod declaring_pool;
#[path = "support/process.rs"]
mod process;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Amount;
use bitcoin_node::{FEE, RegtestNode, block_of_height, two_nodes, wait_for_height};
use checkweigh::clock::Clock;
use checkweigh::node::{RpcSourceSettings, SourceKind, default_policy, run_rpc_source, template_source};
use checkweigh::shutdown::shutdown;
use declaring_pool::{DeclaringPool, PAYOUT, key};
use process::{Checkweigh, terminate};
use serde_json::{Value, json};
use stratum::Target;
use sv1_miner::{Miner, MinerOptions};

const DEADLINE: Duration = Duration::from_secs(120);

const EXPONENT: i32 = -20;

/// Transactions that only the farm's node has in its mempool.
const TRANSACTIONS: u32 = 5;

/// What a block of the first halving period of regtest creates.
const SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

fn proxy_config(pool: &DeclaringPool, node: &RegtestNode, mode: &str) -> String {
    let cookie = Value::from(node.cookie_file().display().to_string());
    let (public, url) = (key().public(), node.url());
    let (mining, declaration) = (pool.mining, pool.declaration);
    format!(
        r#"
        [downstream]
        sv1_listen = "127.0.0.1:0"
        [[upstream]]
        url = "stratum2+tcp://{mining}/{public}"
        user_identity = "account.farm"
        job_declaration_url = "stratum2+tcp://{declaration}/{public}"
        [job_declaration]
        mode = "{mode}"
        coinbase_tag = "/farm/"
        [job_declaration.node]
        rpc_url = "{url}"
        cookie_file = {cookie}
        network = "regtest"
        [vardiff]
        enabled = false
        minimum_difficulty = 0.00000095367431640625
        initial_difficulty = 0.00000095367431640625
        "#
    )
}

async fn a_farm_finds_its_own_blocks(mode: &str) {
    let (mut farm, pool_node) = two_nodes().await;
    let wanted = farm.fill_mempool(TRANSACTIONS).await;
    let start = farm.height().await;
    wait_for_height(&pool_node, start).await;
    assert_eq!(pool_node.call("getmempoolinfo", json!([])).await["size"], 0, "only the farm has them");
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (stop_source, end_source) = shutdown();
    let client = Arc::new(pool_node.client());
    let (outlet, source) = template_source(SourceKind::Rpc, default_policy(), Clock::start());
    tokio::spawn(run_rpc_source(client, RpcSourceSettings::default(), outlet, end_source));
    let pool = DeclaringPool::start(source.templates(), Target::from_difficulty_exponent(EXPONENT));
    let mut proxy = Checkweigh::start("mining-proxy", &proxy_config(&pool, &farm, mode), folder.path());
    let server = proxy.address("SV1 miners may connect").await;
    let mut proxy = proxy.detach_log();
    let (stop_miner, end) = shutdown();
    let pause = Some(Duration::from_millis(300));
    let options = MinerOptions { server, user: "farm.rig".to_owned(), window: 1, pause };
    let mut miner = Miner::start(options, end);

    wait_for_height(&farm, start + 2).await;
    stop_miner.trigger();
    miner.stopped(DEADLINE).await;
    let found = block_of_height(&farm, start + 1).await;
    let theirs: BTreeSet<_> =
        found.txdata[1..].iter().map(|transaction| transaction.compute_txid()).collect();
    let ours: BTreeSet<_> = wanted.iter().map(|spend| spend.transaction.compute_txid()).collect();
    assert_eq!(theirs, ours, "the block has what the farm's node chose");
    assert!(found.txdata[1..].iter().all(|transaction| {
        let wtxid = transaction.compute_wtxid();
        wtxid.to_string() != transaction.compute_txid().to_string()
    }));
    let payout = &found.txdata[0].output[0];
    let fees = FEE * u64::from(TRANSACTIONS);
    assert_eq!((payout.script_pubkey.as_bytes(), payout.value), (&PAYOUT[..], SUBSIDY + fees));
    let height = farm.height().await;
    wait_for_height(&pool_node, height).await;
    assert_eq!(pool_node.tip().await, farm.tip().await, "both nodes end on one tip");
    let seen = pool.seen();
    assert_eq!(seen.wrong, [""; 0]);
    let is_full = mode == "full-template";
    assert_eq!((seen.pushed > 0, seen.asked_for_transactions > 0), (is_full, is_full));
    let saved = std::fs::read_dir(folder.path().join("blocks")).expect("blocks are written").count();
    assert!(saved >= 2, "every block is on the disk: {saved}");
    let status = terminate(&mut proxy, Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    stop_source.trigger();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_block_with_the_farms_transactions_is_found_and_pays_the_pool() {
    a_farm_finds_its_own_blocks("full-template").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_which_the_pool_saw_the_coinbase_alone_is_found_and_pays_the_pool() {
    a_farm_finds_its_own_blocks("coinbase-only").await;
}

//! SV1 miners, `checkweigh mining-proxy`, `checkweigh pool` and Bitcoin Core as the processes that a farm would run.
//!
//! On regtest the network's target is easier than any share's, so that practically every share is a block.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/process.rs"]
mod process;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Block;
use bitcoin::consensus::deserialize;
use bitcoin::hashes::Hash;
use bitcoin_node::RegtestNode;
use checkweigh::miner::{self, MinerFigures, MinerOptions};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use process::{Checkweigh, terminate};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::{Instant, interval};

/// How long the chain may take to grow by what a test waits for.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where blocks pay to: told apart from what the node itself makes.
const PAYOUT: &str = "0014751e76e8199196d454941c45d1b3a323f1433bd6";

const TAG: &str = "/whole stack/";

/// A pool and a proxy on a node, with miners.
struct Stack {
    pool: Child,
    proxy: Child,
    stop_miners: ShutdownTrigger,
    miners: tokio::task::JoinHandle<()>,
    metrics: SocketAddr,
    folder: TempDir,
}

impl Stack {
    async fn start(node: &RegtestNode) -> Self {
        Stack::start_with(node, "").await
    }

    /// The same, with this section `[templates]` of the pool.
    async fn start_with(node: &RegtestNode, templates: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let key = keygen(&folder).await;
        let mut pool = Checkweigh::start("pool", &format!("{}{templates}", pool_config(node)), folder.path());
        let pool_address = pool.address("SV2 miners may connect").await;
        let mut proxy = Checkweigh::start("mining-proxy", &proxy_config(pool_address, &key), folder.path());
        let miners_address = proxy.address("SV1 miners may connect").await;
        let metrics = proxy.address("metrics").await;
        let (stop_miners, end) = shutdown();
        let figures = Arc::<MinerFigures>::default();
        let miners = tokio::spawn(async move {
            let mut miners = tokio::task::JoinSet::new();
            for number in 0..3 {
                let options = MinerOptions {
                    server: miners_address,
                    user: format!("stack.miner{number}"),
                    hash_rate: 20_000.0 * f64::from(number + 1),
                };
                miners.spawn(miner::mine(options, Arc::clone(&figures), end.clone()));
            }
            miners.join_all().await;
        });
        Stack { pool: pool.detach_log(), proxy: proxy.detach_log(), stop_miners, miners, metrics, folder }
    }

    /// Ends everything in order, and checks that both processes end as they should.
    async fn stop(mut self) {
        self.stop_miners.trigger();
        self.miners.await.expect("miners do not panic");
        for child in [&mut self.proxy, &mut self.pool] {
            let status = terminate(child, Duration::from_secs(5)).await;
            assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
        }
    }

    /// One figure of the proxy's metrics page.
    async fn metric(&self, name: &str) -> f64 {
        let page =
            reqwest::get(format!("http://{}/metrics", self.metrics)).await.expect("the page is served");
        let page = page.text().await.expect("the page is text");
        let line = page
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in:\n{page}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number follows")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_with_witness_transactions_become_the_tip() {
    blocks_become_the_tip(RegtestNode::start().await, |_| String::new()).await;
}

#[cfg(feature = "ipc")]
#[tokio::test(flavor = "multi_thread")]
async fn blocks_on_templates_over_ipc_become_the_tip() {
    blocks_become_the_tip(RegtestNode::start_with(&["-ipcbind=unix"]).await, over_ipc).await;
}

/// The pool's section `[templates]` where they come over IPC.
#[cfg(feature = "ipc")]
fn over_ipc(node: &RegtestNode) -> String {
    let socket = Value::from(node.ipc_socket().display().to_string());
    format!("[templates]\nsource = \"ipc\"\nipc_socket = {socket}\n")
}

async fn blocks_become_the_tip(mut node: RegtestNode, templates: impl Fn(&RegtestNode) -> String) {
    node.generate(110).await;
    let spends = node.fill_mempool(5).await;
    assert!(spends.iter().all(|spend| spend.transaction.compute_txid().to_byte_array()
        != spend.transaction.compute_wtxid().to_byte_array()));
    let before = node.height().await;
    let stack = Stack::start_with(&node, &templates(&node)).await;
    wait_for_height(&node, before + 5).await;
    assert!(stack.metric("checkweigh_blocks_found_total").await >= 5.0);
    assert!(stack.metric("checkweigh_shares_forwarded_total").await >= 5.0);
    stack_holds(&stack).await;
    let folder = stack.folder.path().join("blocks");
    let saved = std::fs::read_dir(&folder).expect("blocks are written to disk").count();
    assert!(saved >= 5, "{saved} blocks on disk");
    stack.stop().await;
    let mut mined = Vec::new();
    for height in before + 1..=node.height().await {
        let block = block_at(&node, height).await;
        assert_is_ours(&block);
        mined.extend(block.txdata.into_iter().skip(1).map(|transaction| transaction.compute_txid()));
    }
    for spend in &spends {
        assert!(
            mined.contains(&spend.transaction.compute_txid()),
            "a transaction of the mempool was left out"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mining_goes_on_across_a_reorganisation() {
    let node = RegtestNode::start().await;
    node.generate(101).await;
    let stack = Stack::start(&node).await;
    wait_for_height(&node, 104).await;
    // The node leaves our branch for one of its own, which is longer than what was left.
    let abandoned = node.call("getblockhash", json!([103])).await;
    node.call("invalidateblock", json!([abandoned])).await;
    node.generate(2).await;
    let height = node.height().await;
    wait_for_height(&node, height + 3).await;
    stack.stop().await;
    assert_is_ours(&block_at(&node, node.height().await).await);
    let now_there = node.call("getblockhash", json!([103])).await;
    assert_ne!(now_there, abandoned, "the abandoned branch stays abandoned");
}

#[tokio::test(flavor = "multi_thread")]
async fn mining_goes_on_after_the_node_restarts() {
    mining_outlasts_the_node(RegtestNode::start().await, |_| String::new()).await;
}

#[cfg(feature = "ipc")]
#[tokio::test(flavor = "multi_thread")]
async fn mining_over_ipc_goes_on_after_the_node_restarts() {
    mining_outlasts_the_node(RegtestNode::start_with(&["-ipcbind=unix"]).await, over_ipc).await;
}

async fn mining_outlasts_the_node(mut node: RegtestNode, templates: impl Fn(&RegtestNode) -> String) {
    node.generate(101).await;
    let stack = Stack::start_with(&node, &templates(&node)).await;
    wait_for_height(&node, 103).await;
    let accepted = stack.metric("checkweigh_connections_accepted_total").await;
    node.restart().await;
    let height = node.height().await;
    wait_for_height(&node, height + 3).await;
    assert_eq!(
        stack.metric("checkweigh_connections_accepted_total").await,
        accepted,
        "miners stayed connected"
    );
    stack_holds(&stack).await;
    stack.stop().await;
    assert_is_ours(&block_at(&node, node.height().await).await);
}

/// No share was refused for a reason that an honest miner cannot help.
async fn stack_holds(stack: &Stack) {
    for reason in [
        "low_difficulty",
        "duplicate",
        "bad_version_bits",
        "bad_ntime",
        "bad_extranonce",
        "malformed",
        "job_not_found",
    ] {
        let name = format!("checkweigh_shares_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(stack.metric(&name).await, 0.0, "{reason}");
    }
}

fn assert_is_ours(block: &Block) {
    let coinbase = &block.txdata[0];
    let script = coinbase.input[0].script_sig.as_bytes();
    assert!(script.windows(TAG.len()).any(|window| window == TAG.as_bytes()), "the tag is in the coinbase");
    assert_eq!(hex::encode(coinbase.output[0].script_pubkey.as_bytes()), PAYOUT, "the block pays us");
}

async fn block_at(node: &RegtestNode, height: u32) -> Block {
    let hash = node.call("getblockhash", json!([height])).await;
    let block = node.call("getblock", json!([hash, 0])).await;
    let bytes = hex::decode(block.as_str().expect("hexadecimal")).expect("hexadecimal");
    deserialize(&bytes).expect("the node's blocks are blocks")
}

async fn wait_for_height(node: &RegtestNode, height: u32) {
    let deadline = Instant::now() + DEADLINE;
    let mut poll = interval(Duration::from_millis(50));
    while node.height().await < height {
        assert!(Instant::now() < deadline, "the chain did not reach height {height} in time");
        poll.tick().await;
    }
}

async fn keygen(folder: &TempDir) -> String {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["keygen", "--out"])
        .arg(folder.path().join("authority.key"))
        .output()
        .await
        .expect("the binary was built with the test");
    assert!(output.status.success(), "keygen works");
    String::from_utf8(output.stdout).expect("a key is text").trim().to_owned()
}

fn pool_config(node: &RegtestNode) -> String {
    let cookie = Value::from(node.cookie_file().display().to_string());
    format!(
        r#"
        [downstream]
        sv2_listen = "127.0.0.1:0"
        authority_secret_key_file = "authority.key"
        [node]
        rpc_url = "{}"
        cookie_file = {cookie}
        network = "regtest"
        [pool]
        coinbase_script = "{PAYOUT}"
        coinbase_tag = "{TAG}"
        blocks_dir = "blocks"
        [vardiff]
        shares_per_minute = 60.0
        minimum_difficulty = 0.00000095367431640625
        initial_difficulty = 0.00000762939453125
        "#,
        node.url()
    )
}

fn proxy_config(pool: SocketAddr, key: &str) -> String {
    format!(
        r#"
        [downstream]
        sv1_listen = "127.0.0.1:0"
        [[upstream]]
        url = "stratum2+tcp://{pool}/{key}"
        user_identity = "account.farm"
        [vardiff]
        shares_per_minute = 60.0
        minimum_difficulty = 0.00000095367431640625
        initial_difficulty = 0.00000762939453125
        [metrics]
        listen = "127.0.0.1:0"
        "#
    )
}

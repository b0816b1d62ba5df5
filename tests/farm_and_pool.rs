//! A farm and a pool, all of it ours and as processes: an SV1 miner, `checkweigh mining-proxy` on the farm's Bitcoin
//! Core, `checkweigh pool` with its job declaration server on the pool's, and both nodes connected. Both are configured as
//! the README says, with other ports and paths.
//!
//! On regtest practically every share is a block.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/process.rs"]
mod process;
#[path = "support/readme.rs"]
mod readme;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bitcoin::{Address, Amount, Network, ScriptBuf, Txid};
use bitcoin_node::{FEE, RegtestNode, block_of_height, two_nodes, wait_for_height};
use checkweigh::shutdown::shutdown;
use process::{Checkweigh, terminate};
use readme::shown;
use serde_json::Value;
use sv1_miner::{Miner, MinerOptions};
use tokio::process::Child;

const DEADLINE: Duration = Duration::from_secs(120);

/// Transactions that only the farm's node has in its mempool, all with witnesses.
const TRANSACTIONS: u32 = 5;

/// What a block of the first halving period of regtest creates.
const SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

/// Who the pool pays.
fn payout() -> Address {
    Address::p2wsh(ScriptBuf::from(vec![0x51, 0x75]).as_script(), Network::Regtest)
}

/// Who is paid when there is no pool: never, here.
fn nobody() -> Address {
    Address::p2wsh(ScriptBuf::from(vec![0x6a]).as_script(), Network::Regtest)
}

/// Where the README has a node, and its cookie.
const SHOWN_NODE: &str = "rpc_url = \"http://127.0.0.1:8332\"\ncookie_file = \"/var/lib/bitcoind/.cookie\"\n";

const VARDIFF: &str = "[vardiff]\nenabled = false\nminimum_difficulty = 0.00000095367431640625\n\
                       initial_difficulty = 0.00000095367431640625\n";

fn node_keys(node: &RegtestNode) -> String {
    let cookie = Value::from(node.cookie_file().display().to_string());
    format!("rpc_url = \"{}\"\ncookie_file = {cookie}\nnetwork = \"regtest\"\n", node.url())
}

fn make_key(folder: &Path) {
    let keygen = Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["keygen", "--out"])
        .arg(folder.join("authority.key"))
        .output()
        .expect("the binary was built with the test");
    assert!(keygen.status.success(), "{keygen:?}");
}

fn pool_config(node: &RegtestNode) -> String {
    let shown = shown(
        "pool.toml",
        &[
            (SHOWN_NODE, &node_keys(node)),
            ("0.0.0.0:3336", "127.0.0.1:0"),
            ("0.0.0.0:3337", "127.0.0.1:0"),
            ("bc1q...", &payout().to_string()),
        ],
    );
    format!("{shown}{VARDIFF}")
}

fn provider_config(node: &RegtestNode) -> String {
    format!(
        "[template_provider]\nlisten = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\n{}",
        node_keys(node)
    )
}

/// `templates` is the section of that name.
fn proxy_config(
    (mining, declaration, key): (SocketAddr, SocketAddr, &str),
    node: &RegtestNode,
    mode: &str,
    templates: &str,
) -> String {
    let shown = shown(
        "mining-proxy.toml",
        &[
            (SHOWN_NODE, &node_keys(node)),
            ("0.0.0.0:3333", "127.0.0.1:0"),
            ("pool.example:3336/POOL_KEY", &format!("{mining}/{key}")),
            ("pool.example:3337/POOL_KEY", &format!("{declaration}/{key}")),
            ("mode = \"full-template\"", &format!("mode = \"{mode}\"")),
            // A block of anybody else's template would be no block of the farm's.
            ("pool_templates = true", "pool_templates = false"),
            ("bc1q...", &nobody().to_string()),
        ],
    );
    format!("{shown}{templates}{VARDIFF}")
}

fn address(line: &Value) -> SocketAddr {
    line["address"].as_str().and_then(|text| text.parse().ok()).expect("the line names an address")
}

/// A template provider on the farm's node, and what the proxy is told of it.
async fn start_provider(node: &RegtestNode, folder: &Path) -> (Child, String) {
    let folder = folder.join("provider");
    std::fs::create_dir(&folder).expect("the folder is ours");
    make_key(&folder);
    let mut provider = Checkweigh::start("template-provider", &provider_config(node), &folder);
    let line = provider.line("template clients may connect").await;
    let (address, key) = (address(&line), line["authority_key"].as_str().expect("a key"));
    let templates = format!(
        "[job_declaration.templates]\nsource = \"sv2\"\nsv2_url = \"stratum2+tcp://{address}/{key}\"\n"
    );
    (provider.detach_log(), templates)
}

/// A miner finds two blocks on jobs that the farm declared to the pool.
async fn blocks_of_the_farm_pay_the_pool(mode: &str, has_provider: bool) {
    let (mut farm, pool_node) = two_nodes().await;
    let wanted = farm.fill_mempool(TRANSACTIONS).await;
    let start = farm.height().await;
    wait_for_height(&pool_node, start).await;
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (of_pool, of_farm) = (folder.path().join("pool"), folder.path().join("farm"));
    std::fs::create_dir(&of_pool).expect("the folder is ours");
    std::fs::create_dir(&of_farm).expect("the folder is ours");
    make_key(&of_pool);

    let mut pool = Checkweigh::start("pool", &pool_config(&pool_node), &of_pool);
    let line = pool.line("job declaration clients may connect").await;
    let (declaration, key) = (address(&line), line["authority_key"].as_str().expect("a key").to_owned());
    let mining = pool.address("SV2 miners may connect").await;
    let mut pool = pool.detach_log();
    let provider = match has_provider {
        true => Some(start_provider(&farm, folder.path()).await),
        false => None,
    };
    let templates = provider.as_ref().map_or("", |(_, templates)| templates.as_str());
    let config = proxy_config((mining, declaration, &key), &farm, mode, templates);
    let mut proxy = Checkweigh::start("mining-proxy", &config, &of_farm);
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
    let theirs: BTreeSet<Txid> = found.txdata[1..].iter().map(bitcoin::Transaction::compute_txid).collect();
    let ours: BTreeSet<Txid> = wanted.iter().map(|spend| spend.transaction.compute_txid()).collect();
    assert_eq!(theirs, ours, "the block has what the farm's node chose");
    let payout = &found.txdata[0].output[0];
    assert_eq!(payout.script_pubkey, self::payout().script_pubkey());
    assert_eq!(payout.value, SUBSIDY + FEE * u64::from(TRANSACTIONS), "the pool has the whole reward");
    let height = farm.height().await;
    wait_for_height(&pool_node, height).await;
    assert_eq!(pool_node.tip().await, farm.tip().await, "both nodes end on one tip");
    let saved = |folder: &Path| std::fs::read_dir(folder.join("blocks")).map_or(0, Iterator::count);
    assert!(saved(&of_farm) >= 2, "every block is on the farm's disk");
    if mode == "full-template" {
        assert!(saved(&of_pool) >= 2, "and on that of the pool, which can make it");
    }
    let mut provider = provider.map(|(provider, _)| provider);
    for child in [&mut proxy, &mut pool].into_iter().chain(&mut provider) {
        let status = terminate(child, Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_declares_its_blocks_to_our_pool_and_finds_them() {
    blocks_of_the_farm_pay_the_pool("full-template", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_takes_its_templates_from_a_provider_and_declares_them_to_our_pool() {
    blocks_of_the_farm_pay_the_pool("full-template", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_shows_its_coinbase_alone_finds_blocks_for_our_pool() {
    blocks_of_the_farm_pay_the_pool("coinbase-only", false).await;
}

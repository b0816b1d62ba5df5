//! A farm and a pool, all of it ours and as processes: an SV1 miner, `checkweigh mining-proxy` on the farm's Bitcoin
//! Core, `checkweigh pool` with its job declaration server on the pool's, and both nodes connected.
//!
//! On regtest practically every share is a block.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/process.rs"]
mod process;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bitcoin::{Amount, Txid};
use bitcoin_node::{FEE, RegtestNode, block_of_height, two_nodes_with, wait_for_height};
use checkweigh::shutdown::shutdown;
use process::{Checkweigh, terminate};
use serde_json::Value;
use sv1_miner::{Miner, MinerOptions};
use tokio::process::Child;

const DEADLINE: Duration = Duration::from_secs(120);

/// Transactions that only the farm's node has in its mempool, all with witnesses.
const TRANSACTIONS: u32 = 5;

/// What a block of the first halving period of regtest creates.
const SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

/// Who the pool pays.
const PAYOUT: &str = "5175";

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

/// Where a farm's templates come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Templates {
    Node,
    Provider,
    /// The pool's too, and its judgement.
    #[cfg(feature = "ipc")]
    Ipc,
}

impl Templates {
    fn are_over_ipc(self) -> bool {
        !matches!(self, Templates::Node | Templates::Provider)
    }
}

/// The keys of templates over IPC, under `section`.
fn over_ipc(section: &str, node: &RegtestNode) -> String {
    let socket = Value::from(node.ipc_socket().display().to_string());
    format!("[{section}]\nsource = \"ipc\"\nipc_socket = {socket}\n")
}

fn pool_config(node: &RegtestNode) -> String {
    format!(
        "[downstream]\nsv2_listen = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\n{}[pool]\ncoinbase_script = \"{PAYOUT}\"\ncoinbase_tag = \"/pool/\"\n\
         [job_declaration]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n{VARDIFF}",
        node_keys(node)
    )
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
    format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{mining}/{key}\"\nuser_identity = \"account.farm\"\n\
         job_declaration_url = \"stratum2+tcp://{declaration}/{key}\"\n\
         [job_declaration]\nmode = \"{mode}\"\ncoinbase_tag = \"/farm/\"\npool_templates = false\n\
         [job_declaration.node]\n{}{templates}{VARDIFF}",
        node_keys(node)
    )
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

/// A miner finds three blocks on jobs that the farm declared to the pool.
async fn blocks_of_the_farm_pay_the_pool(mode: &str, templates: Templates) {
    let extra: &[&str] = if templates.are_over_ipc() { &["-ipcbind=unix"] } else { &[] };
    let (mut farm, pool_node) = two_nodes_with(extra).await;
    let wanted = farm.fill_mempool(TRANSACTIONS).await;
    let start = farm.height().await;
    wait_for_height(&pool_node, start).await;
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (of_pool, of_farm) = (folder.path().join("pool"), folder.path().join("farm"));
    std::fs::create_dir(&of_pool).expect("the folder is ours");
    std::fs::create_dir(&of_farm).expect("the folder is ours");
    make_key(&of_pool);

    let of_ipc = |section: &str, node: &RegtestNode| match templates.are_over_ipc() {
        true => over_ipc(section, node),
        false => String::new(),
    };
    let config = pool_config(&pool_node) + &of_ipc("templates", &pool_node);
    let mut pool = Checkweigh::start("pool", &config, &of_pool);
    let line = pool.line("job declaration clients may connect").await;
    let (declaration, key) = (address(&line), line["authority_key"].as_str().expect("a key").to_owned());
    let mining = pool.address("SV2 miners may connect").await;
    let metrics = pool.address("metrics at /metrics").await;
    let mut pool = pool.detach_log();
    let provider = match templates {
        Templates::Provider => Some(start_provider(&farm, folder.path()).await),
        _ => None,
    };
    let section = provider.as_ref().map(|(_, section)| section.clone());
    let section = section.unwrap_or_else(|| of_ipc("job_declaration.templates", &farm));
    let config = proxy_config((mining, declaration, &key), &farm, mode, &section);
    let mut proxy = Checkweigh::start("mining-proxy", &config, &of_farm);
    let server = proxy.address("SV1 miners may connect").await;
    let mut proxy = proxy.detach_log();
    let (stop_miner, end) = shutdown();
    let pause = Some(Duration::from_millis(300));
    let options = MinerOptions { server, user: "farm.rig".to_owned(), window: 1, pause };
    let mut miner = Miner::start(options, end);
    wait_for_height(&farm, start + 3).await;
    stop_miner.trigger();
    miner.stopped(DEADLINE).await;

    let found = block_of_height(&farm, start + 1).await;
    let theirs: BTreeSet<Txid> = found.txdata[1..].iter().map(bitcoin::Transaction::compute_txid).collect();
    let ours: BTreeSet<Txid> = wanted.iter().map(|spend| spend.transaction.compute_txid()).collect();
    assert_eq!(theirs, ours, "the block has what the farm's node chose");
    let payout = &found.txdata[0].output[0];
    assert_eq!(payout.script_pubkey.to_hex_string(), PAYOUT);
    assert_eq!(payout.value, SUBSIDY + FEE * u64::from(TRANSACTIONS), "the pool has the whole reward");
    let height = farm.height().await;
    wait_for_height(&pool_node, height).await;
    assert_eq!(pool_node.tip().await, farm.tip().await, "both nodes end on one tip");
    let saved = |folder: &Path| std::fs::read_dir(folder.join("blocks")).map_or(0, Iterator::count);
    assert!(saved(&of_farm) >= 3, "every block is on the farm's disk");
    if mode == "full-template" {
        // The first can be found before its job is declared.
        assert!(saved(&of_pool) >= 2, "and on that of the pool, which can make it");
    }
    let page = reqwest::get(format!("http://{metrics}/metrics")).await.expect("served");
    let page = page.text().await.expect("text");
    let kind = if templates.are_over_ipc() { "ipc" } else { "rpc" };
    let live = format!("checkweigh_template_source_up{{source=\"{kind}\"}} 1");
    assert!(page.lines().any(|line| line == live), "{live} is not in\n{page}");
    let mut provider = provider.map(|(provider, _)| provider);
    for child in [&mut proxy, &mut pool].into_iter().chain(&mut provider) {
        let status = terminate(child, Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_declares_its_blocks_to_our_pool_and_finds_them() {
    blocks_of_the_farm_pay_the_pool("full-template", Templates::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_takes_its_templates_from_a_provider_and_declares_them_to_our_pool() {
    blocks_of_the_farm_pay_the_pool("full-template", Templates::Provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_shows_its_coinbase_alone_finds_blocks_for_our_pool() {
    blocks_of_the_farm_pay_the_pool("coinbase-only", Templates::Node).await;
}

#[cfg(feature = "ipc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_farm_and_a_pool_over_ipc_find_blocks_together() {
    blocks_of_the_farm_pay_the_pool("full-template", Templates::Ipc).await;
}

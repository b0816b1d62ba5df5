//! Our mining proxy declares its jobs to the reference implementation's pool: `checkweigh mining-proxy` on the farm's
//! side, `pool_sv2` 0.7.0 with the job declaration server inside it on the pool's, on its node over IPC.
//!
//! That server throws pushed solutions away, so that blocks reach the pool's node from the farm's.

use std::net::SocketAddr;

use crate::bitcoin_node::wait_for_height;
use crate::farm::{Nodes, PAYOUT, SlowMiner, VARDIFF, counts, end, key, start_provider};
use crate::peer::{Peer, private_address};

fn pool_config(mining: SocketAddr, templates: &str) -> String {
    let (public, secret) = (key().public(), key().secret_text());
    format!(
        "authority_public_key = \"{public}\"\nauthority_secret_key = \"{secret}\"\n\
         cert_validity_sec = 3600\nlisten_address = \"{mining}\"\n\
         coinbase_reward_script = \"raw({PAYOUT})\"\nserver_id = 1\npool_signature = \"pool\"\n\
         shares_per_minute = 60.0\nshare_batch_size = 1\n{templates}"
    )
}

/// Starts their pool with its job declaration server on the pool's node, and says where both are.
async fn start_pool(nodes: &Nodes) -> (Peer, SocketAddr, SocketAddr) {
    let (mining, declaration) = (private_address(), private_address());
    let templates = format!(
        "[template_provider_type.BitcoinCoreIpc]\nversion = 31\nnetwork = \"regtest\"\n\
         data_dir = \"{}\"\nfee_threshold = 100\nmin_interval = 1\n\
         [jds]\nlisten_address = \"{declaration}\"\n",
        nodes.pool.folder().display()
    );
    let mut pool = Peer::start("pool_sv2", &pool_config(mining, &templates)).await;
    pool.says("ready to accept connections", 1).await;
    (pool, mining, declaration)
}

/// `mode` is a line of `[job_declaration]`, or more.
fn proxy_config(nodes: &Nodes, mining: SocketAddr, declaration: SocketAddr, mode: &str) -> String {
    let public = key().public();
    format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{mining}/{public}\"\nuser_identity = \"account.farm\"\n\
         job_declaration_url = \"stratum2+tcp://{declaration}/{public}\"\n\
         [job_declaration]\n{mode}\ncoinbase_tag = \"/farm/\"\n\
         [job_declaration.node]\n{}[metrics]\nlisten = \"127.0.0.1:0\"\n\
         [failover]\nstart_grace_s = 0\n{VARDIFF}",
        nodes.farm.config_keys()
    )
}

/// What their pool may not say: nothing is refused but what is late.
fn is_complaint(line: &str) -> bool {
    let refused = ["SubmitSharesError", "DeclareMiningJobError", "SetCustomMiningJobError"];
    let late = ["stale-chain-tip", "stale-share"];
    refused.iter().any(|text| line.contains(text)) && !late.iter().any(|text| line.contains(text))
        || line.contains("panic")
}

/// The tip moves under a job that their pool has taken, and the farm's node knows it first.
#[tokio::test(flavor = "multi_thread")]
async fn our_proxy_declares_its_jobs_to_the_reference_pool() {
    let mut nodes = Nodes::start().await;
    let (mut pool, mining, declaration) = start_pool(&nodes).await;
    let mode = "mode = \"full-template\"\npool_templates = false";
    let mut proxy = nodes.run("mining-proxy", &proxy_config(&nodes, mining, declaration, mode));
    let server = proxy.address("SV1 miners may connect").await;
    let metrics = proxy.address("metrics at /metrics").await;
    let proxy = proxy.detach_log();
    let acknowledged = "checkweigh_job_declaration_jobs_total{state=\"acknowledged\"}";
    counts(metrics, acknowledged, 1).await;
    nodes.move_tip().await;
    counts(metrics, acknowledged, 2).await;

    let miner = SlowMiner::start(server);
    wait_for_height(&nodes.farm, nodes.start + 2).await;
    counts(metrics, acknowledged, 3).await;
    counts(metrics, "checkweigh_job_declaration_blocks_total{state=\"accepted\"}", 2).await;
    counts(metrics, "checkweigh_job_declaration_solutions_pushed_total", 2).await;
    pool.says("Block Found", 2).await;
    pool.says("Received: PushSolution(", 2).await;
    miner.stop().await;

    nodes.check_block(nodes.start + 1).await;
    nodes.agree().await;
    assert!(nodes.saved("mining-proxy") >= 2, "every block is on the farm's disk");
    pool.check(is_complaint);
    end([proxy]).await;
    pool.stop().await;
}

/// Their server wants to see every transaction and sends whoever shows none away: then we mine the pool's own jobs.
#[tokio::test(flavor = "multi_thread")]
async fn our_proxy_mines_the_reference_pools_own_jobs_when_it_takes_no_declared_ones() {
    let nodes = Nodes::start().await;
    let (mut pool, mining, declaration) = start_pool(&nodes).await;
    let mode = "mode = \"coinbase-only\"";
    let mut proxy = nodes.run("mining-proxy", &proxy_config(&nodes, mining, declaration, mode));
    let server = proxy.address("SV1 miners may connect").await;
    let proxy = proxy.detach_log();

    let miner = SlowMiner::start(server);
    wait_for_height(&nodes.pool, nodes.start + 2).await;
    wait_for_height(&nodes.farm, nodes.start + 2).await;
    pool.says("Propagating solution to the Template Provider", 2).await;
    miner.stop().await;
    nodes.agree().await;
    pool.check(is_complaint);
    end([proxy]).await;
    pool.stop().await;
}

/// Without job declaration: our template provider, their pool, our proxy. All of it is on the farm's node.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_pool_mines_templates_of_our_provider() {
    let nodes = Nodes::start().await;
    let (provider, section) = start_provider(&nodes).await;
    let mining = private_address();
    let mut pool = Peer::start("pool_sv2", &pool_config(mining, &section)).await;
    pool.says("ready to accept connections", 1).await;
    let config = format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{mining}/{}\"\nuser_identity = \"account.farm\"\n{VARDIFF}",
        key().public()
    );
    let mut proxy = nodes.run("mining-proxy", &config);
    let server = proxy.address("SV1 miners may connect").await;
    let proxy = proxy.detach_log();

    let miner = SlowMiner::start(server);
    wait_for_height(&nodes.farm, nodes.start + 2).await;
    miner.stop().await;
    nodes.check_block(nodes.start + 1).await;
    nodes.agree().await;
    pool.check(is_complaint);
    end([proxy]).await;
    pool.stop().await;
    end([provider]).await;
}

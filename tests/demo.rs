//! The demo as the README starts it, on its own chain and on a real node.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;

use std::process::Stdio;

use bitcoin_node::RegtestNode;
use serde_json::Value;
use tokio::process::Command;

/// Runs the demo and returns the object on the last line of its standard output.
async fn demo(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["demo", "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the binary was built with the test");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the demo failed:\n{log}");
    let text = String::from_utf8(output.stdout).expect("JSON is text");
    let last = text.lines().last().expect("the summary is printed");
    serde_json::from_str(last).expect("the last line is JSON")
}

/// What holds of every summary.
fn check(summary: &Value, miners: usize) {
    let accepted = summary["shares"]["accepted"].as_u64().expect("a number");
    assert!(accepted > 0, "nothing was accepted: {summary}");
    let rejected = summary["shares"]["rejected"].as_object().expect("reasons and counts");
    for (reason, count) in rejected {
        assert_eq!(reason, "stale", "only stale shares are refused, not {count} for {reason}");
    }
    let devices = summary["devices"].as_array().expect("a list");
    assert_eq!(devices.len(), miners);
    let sum: u64 = devices.iter().map(|device| device["shares_accepted"].as_u64().expect("a number")).sum();
    assert_eq!(sum, accepted, "devices add up to the fleet");
    for device in devices {
        assert!(device["name"].as_str().is_some_and(|name| name.starts_with("demo.miner")));
        assert!(device["accepted_difficulty"].as_f64().is_some());
        assert!(device["hash_rate_hs"].as_f64().is_some());
    }
    let latency = &summary["latency_ms"];
    for name in ["share_ack_p50", "share_ack_p99", "new_block_p50", "new_block_p99"] {
        assert!(latency.get(name).is_some(), "{name} is missing");
    }
    assert!(latency["share_ack_p50"].as_f64().is_some_and(|milliseconds| milliseconds > 0.0));
    let blocks = &summary["blocks"];
    assert!(blocks["found"].as_u64() >= blocks["accepted"].as_u64());
}

#[tokio::test]
async fn on_its_own_chain_shares_are_accepted_and_add_up() {
    let summary = demo(&["--miners", "5", "--seconds", "10"]).await;
    check(&summary, 5);
}

#[tokio::test]
async fn on_a_real_node_blocks_are_accepted() {
    let node = RegtestNode::start().await;
    node.generate(1).await;
    let url = format!("{}?cookie={}", node.url(), node.cookie_file().display());
    let summary = demo(&["--miners", "2", "--seconds", "6", "--bitcoin-rpc", &url]).await;
    check(&summary, 2);
    let accepted = summary["blocks"]["accepted"].as_u64().expect("a number");
    assert!(accepted > 0, "no block was accepted: {summary}");
    assert!(u64::from(node.height().await) > accepted, "the node has them");
}

//! The demo as the README starts it, on its own chain and on a real node.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;

use std::process::Stdio;

use bitcoin_node::RegtestNode;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
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
    let (found, accepted) = (blocks["found"].as_u64(), blocks["accepted"].as_u64());
    assert!(found.expect("a number") >= accepted.expect("a number"));
}

#[tokio::test]
async fn on_its_own_chain_blocks_are_found_and_shares_add_up() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["demo", "--json", "--miners", "5", "--seconds", "300", "--log", "info"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary was built with the test");
    let mut log = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    // A block comes about every twelve seconds, at random.
    let mut blocks = 0;
    while blocks < 2 {
        let line =
            log.next_line().await.expect("the log can be read").expect("two blocks come within five minutes");
        blocks += u64::from(line.contains("block accepted"));
    }
    let id = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().await.expect("kill is everywhere");
    assert!(sent.success());
    let rest = tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let output = child.wait_with_output().await.expect("it ends");
    rest.await.expect("reading a log does not panic");
    assert!(output.status.success(), "Ctrl-C ends it with a summary");
    let text = String::from_utf8(output.stdout).expect("JSON is text");
    let summary: Value =
        serde_json::from_str(text.lines().last().expect("a summary")).expect("the last line is JSON");
    check(&summary, 5);
    assert!(summary["blocks"]["accepted"].as_u64() >= Some(2), "{summary}");
    let new_block = summary["latency_ms"]["new_block_p50"].as_f64();
    assert!(new_block.is_some_and(|milliseconds| milliseconds > 0.0), "{summary}");
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

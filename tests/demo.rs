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

/// Runs the demo on the development chain until its log has said twice that a block is in the chain, in the words `found`,
/// and ends it as its user would.
async fn until_two_blocks(arguments: &[&str], found: &str) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["demo", "--json", "--seconds", "300", "--log", "info"])
        .args(arguments)
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
        blocks += u64::from(line.contains(found));
    }
    let id = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().await.expect("kill is everywhere");
    assert!(sent.success());
    let rest = tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let output = child.wait_with_output().await.expect("it ends");
    rest.await.expect("reading a log does not panic");
    assert!(output.status.success(), "Ctrl-C ends it with a summary");
    let text = String::from_utf8(output.stdout).expect("JSON is text");
    serde_json::from_str(text.lines().last().expect("a summary")).expect("the last line is JSON")
}

/// What holds of a summary where jobs are declared: it says what became of them, and the pool takes their shares.
fn check_declarations(summary: &Value) {
    let number = |name: &str| summary["job_declaration"][name].as_u64().expect("a number");
    let [declared, acknowledged, refused] = ["declared", "acknowledged", "refused"].map(number);
    assert!(acknowledged > 0, "the pool took no job: {summary}");
    assert!(declared >= acknowledged + refused, "{summary}");
    let keys = summary["job_declaration"].as_object().expect("an object").keys();
    let keys: Vec<&str> = keys.map(String::as_str).collect();
    assert_eq!(keys, ["acknowledged", "declared", "refused", "solutions_pushed"]);
    let number = |name: &str| summary["shares"][name].as_u64().expect("a number");
    assert!(number("acknowledged_upstream") > 0, "the pool took no share: {summary}");
    // A share that crosses a block on its way is stale, and that is all.
    let blocks = summary["blocks"]["found"].as_u64().expect("a number");
    assert!(number("refused_upstream") <= 2 * blocks, "{summary}");
}

#[tokio::test]
async fn on_its_own_chain_blocks_are_found_and_shares_add_up() {
    let summary = until_two_blocks(&["--miners", "5"], "block accepted").await;
    check(&summary, 5);
    assert!(summary.get("job_declaration").is_none(), "nobody declares a job: {summary}");
    assert!(summary["blocks"]["accepted"].as_u64() >= Some(2), "{summary}");
    let new_block = summary["latency_ms"]["new_block_p50"].as_f64();
    assert!(new_block.is_some_and(|milliseconds| milliseconds > 0.0), "{summary}");
}

#[tokio::test]
async fn a_farm_declares_its_own_jobs_and_both_nodes_have_its_blocks() {
    let found = "a block of our own template is in the chain";
    let summary = until_two_blocks(&["--miners", "5", "--job-declaration"], found).await;
    check(&summary, 5);
    check_declarations(&summary);
    assert!(summary["blocks"]["accepted"].as_u64() >= Some(2), "{summary}");
    assert!(summary["job_declaration"]["solutions_pushed"].as_u64() >= Some(2), "{summary}");
    assert_eq!(summary["job_declaration"]["refused"], 0, "{summary}");
}

#[tokio::test]
async fn people_are_told_in_words_what_became_of_declared_jobs() {
    let output = Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["demo", "--job-declaration", "--miners", "2", "--seconds", "4"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the binary was built with the test");
    let text = String::from_utf8(output.stdout).expect("words");
    for words in [
        "declared to the pool ",
        "taken by it ",
        "refused ",
        "blocks pushed to it ",
        "node share ends on block",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

#[tokio::test]
async fn a_farm_and_a_pool_on_one_real_node_declare_and_find_blocks() {
    let node = RegtestNode::start().await;
    node.generate(1).await;
    let url = format!("{}?cookie={}", node.url(), node.cookie_file().display());
    let arguments = ["--miners", "2", "--seconds", "12", "--job-declaration", "--bitcoin-rpc", &url];
    let summary = demo(&arguments).await;
    check(&summary, 2);
    check_declarations(&summary);
    let accepted = summary["blocks"]["accepted"].as_u64().expect("a number");
    assert!(accepted > 0, "no block was accepted: {summary}");
    // Two blocks of one height can be told apart by their node alone: the later one is known to it, too, by the time that
    // the pool brings it.
    assert!(node.height().await > 1, "the node has one: {summary}");
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
    let height = u64::from(node.height().await);
    assert!(height > accepted, "the node has them, at {height}: {summary}");
}

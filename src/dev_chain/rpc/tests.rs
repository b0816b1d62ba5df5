//! The program's own client finds a node there, and a neighbour of it.

use stratum::hash::{merkle_root, sha256d};
use template::{CoinbaseRules, assemble_block};

use super::*;
use crate::clock::Clock;
use crate::dev_chain::{DevChainSettings, nbits_for_hashes};
use crate::node::{NodeClient, NodeError, SubmitAnswer};
use crate::pool::node_client;
use crate::shutdown::{ShutdownTrigger, shutdown};

const TEMPLATE: TemplateId = TemplateId(1);

async fn served(node: &DevChain) -> (NodeClient, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let config = serve(node.clone(), end).await.expect("the loopback address can be listened on");
    (node_client(&config).expect("a URL"), stop)
}

fn chain() -> DevChain {
    let settings = DevChainSettings { seed: 3, nbits: nbits_for_hashes(4), transactions: 60 };
    DevChain::new(settings, Clock::start())
}

fn solved(template: &BlockTemplate) -> Vec<u8> {
    let rules = CoinbaseRules::new(vec![0x51], b"/dev/".to_vec(), 8).expect("fits");
    let coinbase = rules.parts(template).expect("fits").with_extranonce(&[7; 8]);
    let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
    let header = |nonce| template.header(template.version, &root, template.current_time, nonce);
    let is_block = |nonce: &u32| template.network_target().is_met_by(&sha256d(&header(*nonce)));
    let nonce = (0..).find(is_block).expect("one of four hashes is a block");
    assemble_block(template, &coinbase, &header(nonce))
}

#[tokio::test]
async fn a_block_of_one_node_is_the_tip_of_both() {
    let farm = chain();
    let pool = farm.neighbour();
    let (clock, height) = (Clock::start(), farm.summary().height);
    let ((of_farm, _stop), (of_pool, _end)) = (served(&farm).await, served(&pool).await);
    let template = of_farm.block_template(TEMPLATE, None, &clock).await.expect("a template");
    assert_eq!(template.transactions, farm.waiting());
    let waiting = of_pool.block_template(TEMPLATE, None, &clock).await.expect("a template");
    assert!(waiting.transactions.len() < template.transactions.len(), "it has not heard of all");
    assert_eq!(waiting.previous_hash, template.previous_hash);

    let block = solved(&template);
    assert_eq!(of_pool.propose_block(&block).await.expect("an answer"), None, "nine in ten or not");
    let mut wrong = block.clone();
    wrong[36] ^= 1;
    let reason = of_pool.propose_block(&wrong).await.expect("an answer");
    assert_eq!(reason.as_deref(), Some("bad-txnmrklroot"));
    let news = of_pool.tip_of_height(height + 1);
    let long_poll = of_pool.block_template(TEMPLATE, waiting.long_poll_id.as_deref(), &clock);
    let (answer, tip, next) = tokio::join!(of_farm.submit_block(&block), news, long_poll);
    assert_eq!(answer.expect("an answer"), SubmitAnswer::Accepted);
    assert_eq!(tip.expect("a tip"), sha256d(&block[..80]));
    assert_eq!(next.expect("a template").previous_hash, sha256d(&block[..80]));
    assert_eq!(of_pool.submit_block(&block).await.expect("an answer"), SubmitAnswer::Duplicate);
    let refused = of_farm.submit_block(&wrong).await.expect("an answer");
    assert!(matches!(refused, SubmitAnswer::Rejected(_)), "{refused:?}");
    let info = of_pool.chain_info().await.expect("an answer");
    assert_eq!((info.blocks, &info.bestblockhash), (height + 1, &displayed(&sha256d(&block[..80]))));
    let header = of_pool.block_header(&sha256d(&block[..80])).await.expect("it is the tip");
    assert_eq!((header.confirmations, header.height), (1, height + 1));
    assert!(of_pool.block_header(&[0; 32]).await.is_err(), "no other header is kept");
}

#[tokio::test]
async fn transactions_are_listed_and_named() {
    let node = chain().neighbour();
    let (client, _stop) = served(&node).await;
    let listed: Vec<String> = client.call("getrawmempool", json!([false])).await.expect("a list");
    let waiting = node.waiting();
    assert_eq!(listed, waiting.iter().map(|one| displayed(&one.txid)).collect::<Vec<String>>());
    let params: Vec<Value> =
        listed.iter().chain([&"00".repeat(32)]).map(|txid| json!([txid, false])).collect();
    let entries: Vec<Option<Value>> = client.call_each("getmempoolentry", &params).await.expect("answers");
    let raw: Vec<Option<String>> = client.call_each("getrawtransaction", &params).await.expect("answers");
    for ((one, entry), raw) in waiting.iter().zip(&entries).zip(&raw) {
        assert_eq!(entry.as_ref().expect("it is listed")["wtxid"], displayed(&one.wtxid));
        assert_eq!(raw.as_deref(), Some(hex::encode(&one.raw).as_str()));
    }
    assert_eq!((entries.last(), raw.last()), (Some(&None), Some(&None)), "nobody knows it");
    let unknown = client.call::<Value>("stop", json!([])).await;
    assert!(matches!(unknown, Err(NodeError::Rpc { code: METHOD_NOT_FOUND, .. })), "{unknown:?}");
}

#[tokio::test]
async fn nobody_else_may_ask() {
    let (stop, end) = shutdown();
    let mut config = serve(chain(), end).await.expect("the loopback address can be listened on");
    config.auth = NodeAuth::Password { user: USER.to_owned(), password: "wrong".into(), file: None };
    let answer = node_client(&config).expect("a URL").best_block_hash().await;
    assert!(matches!(answer, Err(NodeError::Unauthorized)), "{answer:?}");
    stop.trigger();
}

#[test]
fn credentials_are_written_as_the_standard_has_them() {
    // RFC 7617, section 2, and the lengths that it does not show.
    assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    assert_eq!(basic("a", "b"), "Basic YTpi");
    assert_eq!(basic("u", "ab"), "Basic dTphYg==");
    assert_eq!(basic("u", "abc"), "Basic dTphYmM=");
}

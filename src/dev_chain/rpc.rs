//! A node of the development chain over JSON-RPC, as far as the program asks a node: templates with their long poll,
//! proposals (BIP 23), blocks, the mempool, and news of tips.
//!
//! It is for this process alone: it listens on the loopback address, and its password is made anew and shown to nobody
//! else. Nothing here decides: [`DevChain`] does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use rand::RngCore;
use rand::rngs::OsRng;
use secrecy::SecretString;
use serde_json::{Value, json};
use stratum::TemplateId;
use template::block_template::displayed;
use template::{BlockTemplate, TemplateTransaction};
use tokio::net::TcpListener;

use super::DevChain;
use super::validator::Invalid;
use crate::config::{NodeAuth, NodeConfig};
use crate::error::RunError;
use crate::node::SubmitOutcome;
use crate::shutdown::Shutdown;

/// The longest request: the hexadecimal of the heaviest block.
const MAX_REQUEST: usize = 9 * 1024 * 1024;

/// Calls in one request. More are refused.
const MAX_CALLS: usize = 5000;

/// Templates that no long poll was answered with are described again after this long, as Bitcoin Core does.
const LONG_POLL: Duration = Duration::from_secs(60);

/// Who may ask.
const USER: &str = "development";

/// The chain whose subsidies and heights the development chain has.
const CHAIN: &str = "main";

/// Errors of Bitcoin Core's JSON-RPC.
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMETER: i64 = -8;
const NOT_FOUND: i64 = -5;
const DESERIALIZATION: i64 = -22;

/// What a call comes to.
type Answer = Result<Value, (i64, &'static str)>;

/// Serves a node until the end is asked for, and returns what a client of it must know.
pub async fn serve(node: DevChain, shutdown: Shutdown) -> Result<NodeConfig, RunError> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
    let listener = listener.map_err(RunError::io("listen for the development chain"))?;
    let address = listener.local_addr().map_err(RunError::io("listen for the development chain"))?;
    let mut secret = [0; 16];
    OsRng.fill_bytes(&mut secret);
    let password = hex::encode(secret);
    let expected: Arc<str> = basic(USER, &password).into();
    let router = Router::new()
        .fallback(move |headers: HeaderMap, body: String| {
            answer(node.clone(), expected.clone(), headers, body)
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST));
    let mut end = shutdown;
    tokio::spawn(async move {
        // Long polls would hold up an end in order, and nobody waits for them then.
        tokio::select! {
            ended = axum::serve(listener, router) => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the development chain is no longer served");
                }
            }
            () = end.requested() => {}
        }
    });
    Ok(NodeConfig {
        rpc_url: format!("http://{address}").parse().expect("an address makes a URL"),
        auth: NodeAuth::Password {
            user: USER.to_owned(),
            password: SecretString::from(password),
            file: None,
        },
        network: None,
        zmq_hashblock: None,
    })
}

/// The header that proves user and password (RFC 7617).
fn basic(user: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for some in format!("{user}:{password}").as_bytes().chunks(3) {
        let bits =
            some.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - some.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > some.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

async fn answer(
    node: DevChain,
    expected: Arc<str>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if headers.get(header::AUTHORIZATION).is_none_or(|given| given.as_bytes() != expected.as_bytes()) {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    match serde_json::from_str(&body) {
        Ok(Value::Array(calls)) if calls.len() <= MAX_CALLS => {
            // One look at the mempool serves a whole batch, which asks for hundreds of its transactions.
            let waiting = node.waiting();
            let mut answers = Vec::with_capacity(calls.len());
            for one in calls {
                let result = call(&node, &one, &waiting).await;
                answers.push(envelope(&one["id"], result));
            }
            (StatusCode::OK, Value::Array(answers).to_string())
        }
        Ok(one @ Value::Object(_)) => {
            let result = call(&node, &one, &node.waiting()).await;
            let status = if result.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            (status, envelope(&one["id"], result).to_string())
        }
        _ => (StatusCode::BAD_REQUEST, String::new()),
    }
}

fn envelope(id: &Value, result: Answer) -> Value {
    match result {
        Ok(result) => json!({ "result": result, "error": null, "id": id }),
        Err((code, message)) => {
            json!({ "result": null, "error": { "code": code, "message": message }, "id": id })
        }
    }
}

async fn call(node: &DevChain, call: &Value, waiting: &[TemplateTransaction]) -> Answer {
    let first = &call["params"][0];
    match call["method"].as_str().unwrap_or_default() {
        "getblocktemplate" if first["mode"] == "proposal" => propose(node, &first["data"]),
        "getblocktemplate" => Ok(template(node, first["longpollid"].as_str()).await),
        "submitblock" => submit(node, first),
        "getblockchaininfo" => Ok(chain_info(node)),
        "getbestblockhash" => Ok(displayed(&node.summary().tip).into()),
        "getblockheader" => header_of_tip(node, first),
        "waitforblockheight" => wait_for_height(node, first, &call["params"][1]).await,
        "getrawmempool" => Ok(waiting.iter().map(|one| Value::from(displayed(&one.txid))).collect()),
        "getmempoolentry" => {
            let entry = named(waiting, first)?;
            Ok(json!({ "wtxid": displayed(&entry.wtxid), "weight": entry.weight }))
        }
        "getrawtransaction" => Ok(hex::encode(&named(waiting, first)?.raw).into()),
        _ => Err((METHOD_NOT_FOUND, "Method not found")),
    }
}

fn named<'a>(
    waiting: &'a [TemplateTransaction],
    txid: &Value,
) -> Result<&'a TemplateTransaction, (i64, &'static str)> {
    let mut wanted = [0; 32];
    let read = txid.as_str().and_then(|text| hex::decode_to_slice(text, &mut wanted).ok());
    wanted.reverse();
    let named = read.and_then(|()| waiting.iter().find(|one| one.txid == wanted));
    named.ok_or((NOT_FOUND, "Transaction not in mempool"))
}

fn bytes_of(text: &Value) -> Result<Vec<u8>, (i64, &'static str)> {
    text.as_str().and_then(|text| hex::decode(text).ok()).ok_or((DESERIALIZATION, "Block decode failed"))
}

fn propose(node: &DevChain, block: &Value) -> Answer {
    Ok(match node.propose(&bytes_of(block)?) {
        Ok(()) => Value::Null,
        Err(Invalid { reason }) => reason.into(),
    })
}

fn submit(node: &DevChain, block: &Value) -> Answer {
    Ok(match node.submit(&bytes_of(block)?) {
        SubmitOutcome::Accepted => Value::Null,
        SubmitOutcome::AlreadyKnown => "duplicate".into(),
        SubmitOutcome::Rejected(reason) | SubmitOutcome::Failed(reason) => reason.into(),
    })
}

/// With the id of the newest template it waits for the next.
async fn template(node: &DevChain, long_poll_id: Option<&str>) -> Value {
    let mut templates = node.templates();
    let is_newer = |template: &Option<Arc<BlockTemplate>>| {
        template.as_ref().is_some_and(|template| Some(long_poll_name(template.id).as_str()) != long_poll_id)
    };
    // An error means that the time is over, or the chain: then the newest is what there is.
    let _ = tokio::time::timeout(LONG_POLL, templates.wait_for(is_newer)).await;
    let newest = templates.borrow().clone().expect("a development chain always has a template");
    describe(&newest)
}

fn long_poll_name(id: TemplateId) -> String {
    format!("template-{}", id.0)
}

fn describe(template: &BlockTemplate) -> Value {
    let transactions = template.transactions.iter().map(|one| {
        json!({
            "data": hex::encode(&one.raw),
            "txid": displayed(&one.txid),
            "hash": displayed(&one.wtxid),
            "depends": one.depends.iter().map(|place| place + 1).collect::<Vec<u32>>(),
            "fee": one.fee,
            "sigops": one.sigops,
            "weight": one.weight,
        })
    });
    json!({
        "version": template.version,
        "previousblockhash": displayed(&template.previous_hash),
        "transactions": transactions.collect::<Vec<Value>>(),
        "coinbasevalue": template.coinbase_value,
        "longpollid": long_poll_name(template.id),
        "mintime": template.min_ntime,
        "curtime": template.current_time,
        "bits": format!("{:08x}", template.nbits),
        "height": template.height,
        "weightlimit": template.weight_limit,
        "sigoplimit": template.sigop_limit,
        "default_witness_commitment": template.witness_commitment.as_ref().map(hex::encode),
    })
}

fn chain_info(node: &DevChain) -> Value {
    let summary = node.summary();
    json!({
        "chain": CHAIN,
        "blocks": summary.height,
        "headers": summary.height,
        "bestblockhash": displayed(&summary.tip),
        "initialblockdownload": false,
    })
}

/// No other block's header is kept.
fn header_of_tip(node: &DevChain, hash: &Value) -> Answer {
    let templates = node.templates();
    let newest = templates.borrow().clone().expect("a development chain always has a template");
    if hash.as_str() != Some(&displayed(&newest.previous_hash)) {
        return Err((NOT_FOUND, "Block not found"));
    }
    let (time, median_time) = node.times();
    Ok(json!({
        "hash": hash,
        "confirmations": 1,
        "height": newest.height - 1,
        // The same as that of the block after it, but where the difficulty is changed, and then nobody relies on it.
        "bits": format!("{:08x}", newest.nbits),
        "time": time,
        "mediantime": median_time,
    }))
}

async fn wait_for_height(node: &DevChain, height: &Value, milliseconds: &Value) -> Answer {
    let height = height.as_u64().ok_or((INVALID_PARAMETER, "the height is no number"))?;
    let limit = milliseconds.as_u64().filter(|limit| *limit > 0);
    let limit = limit.map_or(LONG_POLL, Duration::from_millis).min(LONG_POLL);
    let mut templates = node.templates();
    let is_there = |template: &Option<Arc<BlockTemplate>>| {
        template.as_ref().is_some_and(|template| u64::from(template.height) > height)
    };
    // An error means that the time is over, or the chain: the answer says how far it got.
    let _ = tokio::time::timeout(limit, templates.wait_for(is_there)).await;
    let newest = templates.borrow().clone().expect("a development chain always has a template");
    Ok(json!({ "hash": displayed(&newest.previous_hash), "height": newest.height - 1 }))
}

#[cfg(test)]
mod tests;

//! The calls that Bitcoin Core 30 has in other places or of other shapes than its successors.
//!
//! A capability is the same whatever schema it is called by, so these are calls by the schema of that version
//! (`mining.capnp` of v30) on the objects of [`super::connection`]. Nothing here but [`make_mining`] is called on a
//! node of another version.

use bitcoin_capnp_types::init_capnp::init;
use bitcoin_capnp_types::mining_capnp::{block_template, mining};
use bitcoin_capnp_types::proxy_capnp::thread;
use bitcoin_capnp_types_30::init_capnp::init as init_30;
use bitcoin_capnp_types_30::mining_capnp::{block_template as block_template_30, mining as mining_30};
use bitcoin_capnp_types_30::proxy_capnp::{context, thread as thread_30};
use template::{NodeCoinbase, SolvedBlock};

use super::connection::{Caller, NodeTemplate, bad, judged, named, timely};
use super::source::CATCH_UP_INTERVAL;
use crate::node::error::NodeError;
use crate::node::judge::Rejection;

/// The mining interface of a node of this version.
pub(super) async fn make_mining(
    init: &init::Client,
    thread: &thread::Client,
) -> Result<mining::Client, NodeError> {
    const METHOD: &str = "makeMining";
    let mut request = init_30::Client { client: init.client.clone() }.make_mining_request();
    on(METHOD, request.get().get_context(), thread)?;
    let answer = named(METHOD, request.send().promise).await?;
    let made = answer.get().and_then(|answer| answer.get_result());
    made.map(|made| mining::Client { client: made.client }).map_err(|error| bad(METHOD, &error))
}

/// A new template that keeps this weight and these signature operations free for its coinbase.
///
/// This version does not wait by itself until it has caught up with the chain, and makes templates on a tip of long
/// ago: who wants it to wait (`cooldown`) waits here.
pub(super) async fn new_template(
    caller: &Caller,
    has_transactions: bool,
    (weight, sigops): (u64, u64),
    cooldown: bool,
) -> Result<NodeTemplate, NodeError> {
    const METHOD: &str = "createNewBlock";
    while cooldown && caller.is_catching_up().await? {
        tokio::time::sleep(CATCH_UP_INTERVAL).await;
    }
    let mut request = mining_of(caller).create_new_block_request();
    let mut options = request.get().init_options();
    options.set_use_mempool(has_transactions);
    options.set_block_reserved_weight(weight);
    options.set_coinbase_output_max_additional_sigops(sigops);
    let answer = timely(METHOD, request.send().promise).await?;
    let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
    if !answer.has_result() {
        return Err(NodeError::Unreachable("it is stopping".to_owned()));
    }
    answer.get_result().map(ours).map_err(|error| bad(METHOD, &error))
}

/// A template that pays at least `gain` satoshis more than `base`, or that is on another tip, if there is one now.
pub(super) async fn better_template(
    caller: &Caller,
    base: &NodeTemplate,
    gain: i64,
) -> Result<Option<NodeTemplate>, NodeError> {
    const METHOD: &str = "waitNext";
    let mut request = theirs(base).wait_next_request();
    on(METHOD, request.get().get_context(), &caller.thread)?;
    let mut options = request.get().init_options();
    options.set_timeout(0.0);
    options.set_fee_threshold(gain);
    let answer = timely(METHOD, request.send().promise).await?;
    let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
    if !answer.has_result() {
        return Ok(None);
    }
    answer.get_result().map(|template| Some(ours(template))).map_err(|error| bad(METHOD, &error))
}

/// What the coinbase of a template must look like, of which this version gives an example.
pub(super) async fn coinbase(caller: &Caller, template: &NodeTemplate) -> Result<NodeCoinbase, NodeError> {
    const METHOD: &str = "getCoinbaseTx";
    let mut request = theirs(template).get_coinbase_tx_request();
    on(METHOD, request.get().get_context(), &caller.thread)?;
    let answer = timely(METHOD, request.send().promise).await?;
    let example = answer.get().and_then(|answer| answer.get_result());
    Ok(NodeCoinbase::of_example(example.map_err(|error| bad(METHOD, &error))?)?)
}

/// Submits the solution of a template. True when the node has looked at it.
pub(super) async fn submit_solution(
    caller: &Caller,
    template: &NodeTemplate,
    solution: &SolvedBlock,
) -> Result<bool, NodeError> {
    const METHOD: &str = "submitSolution";
    let mut request = theirs(template).submit_solution_request();
    on(METHOD, request.get().get_context(), &caller.thread)?;
    request.get().set_version(solution.version);
    request.get().set_timestamp(solution.time);
    request.get().set_nonce(solution.nonce);
    request.get().set_coinbase(&solution.coinbase);
    let answer = timely(METHOD, request.send().promise).await?;
    Ok(answer.get().map_err(|error| bad(METHOD, &error))?.get_result())
}

/// What the node has against a block, proof of work aside. It looks at one block at a time, between all other calls.
pub(super) async fn check_block(caller: &Caller, block: &[u8]) -> Result<Option<Rejection>, NodeError> {
    const METHOD: &str = "checkBlock";
    let mut request = mining_of(caller).check_block_request();
    request.get().set_block(block);
    let mut options = request.get().init_options();
    options.set_check_merkle_root(true);
    options.set_check_pow(false);
    let answer = timely(METHOD, request.send().promise).await?;
    let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
    judged(METHOD, answer.get_result(), answer.get_reason(), answer.get_debug())
}

fn mining_of(caller: &Caller) -> mining_30::Client {
    mining_30::Client { client: caller.mining.client.clone() }
}

fn theirs(template: &NodeTemplate) -> block_template_30::Client {
    block_template_30::Client { client: template.0.client.clone() }
}

fn ours(template: block_template_30::Client) -> NodeTemplate {
    NodeTemplate(block_template::Client { client: template.client })
}

/// Has a call made on this thread of the node.
fn on(
    method: &'static str,
    context: bitcoin_capnp_types::capnp::Result<context::Builder<'_>>,
    thread: &thread::Client,
) -> Result<(), NodeError> {
    let thread = thread_30::Client { client: thread.client.clone() };
    context.map_err(|error| bad(method, &error))?.set_thread(thread);
    Ok(())
}

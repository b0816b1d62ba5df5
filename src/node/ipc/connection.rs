//! One connection to a node, and the calls that we make over it.
//!
//! This module never repeats a call. A node answers the calls of one of its threads one after the other, so a
//! [`Caller`] has a thread of its own there and makes one call at a time.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bitcoin_capnp_types::capnp::{self, ErrorKind};
use bitcoin_capnp_types::capnp_rpc::rpc_twoparty_capnp::Side;
use bitcoin_capnp_types::capnp_rpc::{RpcSystem, twoparty::VatNetwork};
use bitcoin_capnp_types::init_capnp::init;
use bitcoin_capnp_types::mining_capnp::{block_template, mining};
use bitcoin_capnp_types::proxy_capnp::{thread, thread_map};
use stratum::TemplateId;
use stratum::hash::Hash;
use template::block_template::MAX_MONEY;
use template::{BlockTemplate, CoinbaseConstraints, NodeBlock, NodeCoinbase, SolvedBlock};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::core30;
use super::node::Transactions;
use crate::clock::Clock;
use crate::node::client::{SubmitAnswer, submit_answer};
use crate::node::error::NodeError;
use crate::node::judge::Rejection;

/// How long a call may take that waits for nothing but the node's work, which a full block is at most.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// How long a node may take to greet, once it is there. Before it has loaded its chain it does not, so that this is
/// also how often whoever waits for it has something to say.
const GREETING_DEADLINE: Duration = Duration::from_secs(30);

/// The least weight that Bitcoin Core keeps free for header, count and coinbase; it refuses less.
const MIN_RESERVED_WEIGHT: u64 = 2_000;

/// The most, which is a whole block. That there is no template for who wants more is for the outlet to say.
const MAX_RESERVED_WEIGHT: u64 = 4_000_000;

/// A connection to a node. Dropping it closes it, and no caller of it gets an answer after that.
pub(super) struct Connection {
    threads: thread_map::Client,
    mining: mining::Client,
    is_core_30: bool,
    running: AbortHandle,
}

/// Makes calls, one at a time, on a thread of the node. Cheap to clone; clones share the thread.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) mining: mining::Client,
    pub(super) thread: thread::Client,
    /// Whether some methods are in the places and of the shapes that they have in Bitcoin Core 30.
    is_core_30: bool,
}

/// A template that the node keeps for us as long as we keep this.
#[derive(Clone)]
pub(super) struct NodeTemplate(pub(super) block_template::Client);

impl Connection {
    /// Dials the node at this socket. To be called within a [`tokio::task::LocalSet`].
    pub(super) async fn dial(socket: &Path) -> Result<Self, NodeError> {
        let unreachable = |error: std::io::Error| {
            NodeError::Unreachable(format!("its socket {}: {error}", socket.display()))
        };
        let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
        let (reader, writer) = stream.into_split();
        let network = VatNetwork::new(reader.compat(), writer.compat_write(), Side::Client, <_>::default());
        let mut system = RpcSystem::new(Box::new(network), None);
        let init: init::Client = system.bootstrap(Side::Server);
        // How a connection ends is what each call of it says.
        let running = tokio::task::spawn_local(async move { drop(system.await) }).abort_handle();
        let greeted = async {
            let answer = named("construct", init.construct_request().send().promise).await?;
            let threads = answer.get().and_then(|answer| answer.get_thread_map());
            let threads = threads.map_err(|error| bad("construct", &error))?;
            let thread = make_thread(&threads).await?;
            match make_mining(&init, &thread).await {
                Err(NodeError::Unknown { .. }) => {
                    Ok((threads, core30::make_mining(&init, &thread).await?, true))
                }
                mining => Ok((threads, mining?, false)),
            }
        };
        let greeted = tokio::time::timeout(GREETING_DEADLINE, greeted).await;
        match greeted.unwrap_or_else(|_| Err(NodeError::Timeout { method: "makeMining".to_owned() })) {
            Ok((threads, mining, is_core_30)) => Ok(Connection { threads, mining, is_core_30, running }),
            Err(error) => {
                running.abort();
                Err(error)
            }
        }
    }

    /// Whether it is closed, by whichever side.
    pub(super) fn is_closed(&self) -> bool {
        self.running.is_finished()
    }

    /// A thread of the node that makes calls for us.
    pub(super) async fn caller(&self) -> Result<Caller, NodeError> {
        let thread = in_time("makeThread", make_thread(&self.threads)).await?;
        Ok(Caller { mining: self.mining.clone(), thread, is_core_30: self.is_core_30 })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Makes a request, with the caller's thread as its context.
macro_rules! request {
    ($caller:expr, $name:literal, $request:expr) => {{
        let mut request = $request;
        context($name, request.get().get_context(), &$caller.thread)?;
        request
    }};
}

impl Caller {
    /// Whether blocks are made for tests on the node's chain: such a node may wait for ever for others' blocks.
    pub(super) async fn is_test_chain(&self) -> Result<bool, NodeError> {
        let request = request!(self, "isTestChain", self.mining.is_test_chain_request());
        let answer = timely("isTestChain", request.send().promise).await?;
        Ok(answer.get().map_err(|error| bad("isTestChain", &error))?.get_result())
    }

    /// Whether the node still catches up with the chain.
    pub(super) async fn is_catching_up(&self) -> Result<bool, NodeError> {
        const METHOD: &str = "isInitialBlockDownload";
        let request =
            request!(self, "isInitialBlockDownload", self.mining.is_initial_block_download_request());
        let answer = timely(METHOD, request.send().promise).await?;
        Ok(answer.get().map_err(|error| bad(METHOD, &error))?.get_result())
    }

    /// The node's tip, as soon as it is another than `known`, and at the latest after `longest`.
    pub(super) async fn wait_for_tip(&self, known: &Hash, longest: Duration) -> Result<Hash, NodeError> {
        const METHOD: &str = "waitTipChanged";
        let mut request = request!(self, "waitTipChanged", self.mining.wait_tip_changed_request());
        request.get().set_current_tip(known);
        request.get().set_timeout(longest.as_secs_f64() * 1000.0);
        let promise = tokio::time::timeout(longest + CALL_DEADLINE, named(METHOD, request.send().promise));
        let answer = promise.await.map_err(|_| NodeError::Timeout { method: METHOD.to_owned() })??;
        let tip = answer.get().and_then(|answer| answer.get_result()).and_then(|tip| tip.get_hash());
        let tip = tip.map_err(|error| bad(METHOD, &error))?;
        // A node that is ending has no tip to tell.
        Hash::try_from(tip).map_err(|_| NodeError::Unreachable("it is stopping".to_owned()))
    }

    /// A new template with this room in its coinbase. With `cooldown` the node first waits until it has caught up with
    /// the chain, which may take it days, and there is no deadline.
    pub(super) async fn new_template(
        &self,
        has_transactions: bool,
        room: CoinbaseConstraints,
        cooldown: bool,
    ) -> Result<NodeTemplate, NodeError> {
        const METHOD: &str = "createNewBlock";
        let reserved = room.reserved_weight().clamp(MIN_RESERVED_WEIGHT, MAX_RESERVED_WEIGHT);
        if self.is_core_30 {
            let sigops = room.max_additional_sigops.into();
            return core30::new_template(self, has_transactions, (reserved, sigops), cooldown).await;
        }
        let mut request = request!(self, "createNewBlock", self.mining.create_new_block_request());
        request.get().set_cooldown(cooldown);
        let mut options = request.get().init_options();
        options.set_use_mempool(has_transactions);
        options.set_block_reserved_weight(reserved);
        options.set_coinbase_output_max_additional_sigops(room.max_additional_sigops.into());
        let promise = request.send().promise;
        let answer = match cooldown {
            true => named(METHOD, promise).await?,
            false => timely(METHOD, promise).await?,
        };
        let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
        if !answer.has_result() {
            return Err(NodeError::Unreachable("it is stopping".to_owned()));
        }
        answer.get_result().map(NodeTemplate).map_err(|error| bad(METHOD, &error))
    }

    /// A template that pays at least `gain` satoshis more than `base`, or that is on another tip; `None` when there is
    /// none. Does not wait for one.
    pub(super) async fn better_template(
        &self,
        base: &NodeTemplate,
        gain: u64,
    ) -> Result<Option<NodeTemplate>, NodeError> {
        const METHOD: &str = "waitNext";
        // With all the money there is the node would not look at fees.
        let gain = gain.clamp(1, MAX_MONEY - 1) as i64;
        if self.is_core_30 {
            return core30::better_template(self, base, gain).await;
        }
        let mut request = request!(self, "waitNext", base.0.wait_next_request());
        let mut options = request.get().init_options();
        options.set_timeout(0.0);
        options.set_fee_threshold(gain);
        let answer = timely(METHOD, request.send().promise).await?;
        let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
        if !answer.has_result() {
            return Ok(None);
        }
        answer.get_result().map(|template| Some(NodeTemplate(template))).map_err(|error| bad(METHOD, &error))
    }

    /// All of a template.
    pub(super) async fn read(
        &self,
        template: &NodeTemplate,
        id: TemplateId,
        clock: Clock,
    ) -> Result<BlockTemplate, NodeError> {
        let request = request!(self, "getTxFees", template.0.get_tx_fees_request());
        let answer = timely("getTxFees", request.send().promise).await?;
        let fees = answer.get().and_then(|answer| answer.get_result());
        let fees = fees.map_err(|error| bad("getTxFees", &error))?.iter().collect();
        let request = request!(self, "getTxSigops", template.0.get_tx_sigops_request());
        let answer = timely("getTxSigops", request.send().promise).await?;
        let sigops = answer.get().and_then(|answer| answer.get_result());
        let sigops = sigops.map_err(|error| bad("getTxSigops", &error))?.iter().collect();
        let coinbase = match self.is_core_30 {
            true => core30::coinbase(self, template).await?,
            false => self.coinbase(template).await?,
        };
        let request = request!(self, "getBlock", template.0.get_block_request());
        let answer = timely("getBlock", request.send().promise).await?;
        let received = clock.now();
        let block = answer.get().and_then(|answer| answer.get_result());
        let block = block.map_err(|error| bad("getBlock", &error))?;
        let of = NodeBlock { id, fees, sigops, coinbase, received };
        Ok(BlockTemplate::of_node_block(block, of)?)
    }

    async fn coinbase(&self, template: &NodeTemplate) -> Result<NodeCoinbase, NodeError> {
        let request = request!(self, "getCoinbaseTx", template.0.get_coinbase_tx_request());
        let answer = timely("getCoinbaseTx", request.send().promise).await?;
        let read = || -> capnp::Result<NodeCoinbase> {
            let coinbase = answer.get()?.get_result()?;
            let outputs: capnp::Result<Vec<Vec<u8>>> =
                coinbase.get_required_outputs()?.iter().map(|output| output.map(<[u8]>::to_vec)).collect();
            Ok(NodeCoinbase {
                script_start: coinbase.get_script_sig_prefix()?.to_vec(),
                sequence: coinbase.get_sequence(),
                lock_time: coinbase.get_lock_time(),
                value: coinbase.get_block_reward_remaining(),
                outputs: outputs?,
            })
        };
        read().map_err(|error| bad("getCoinbaseTx", &error))
    }

    /// Submits a whole block. Nodes before Bitcoin Core 32 do not know how.
    pub(super) async fn submit_block(&self, block: &[u8]) -> Result<SubmitAnswer, NodeError> {
        const METHOD: &str = "submitBlock";
        let mut request = request!(self, "submitBlock", self.mining.submit_block_request());
        request.get().set_block(block);
        let answer = timely(METHOD, request.send().promise).await?;
        let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
        if answer.get_result() {
            return Ok(SubmitAnswer::Accepted);
        }
        Ok(submit_answer(Some(text(METHOD, answer.get_reason())?)))
    }

    /// Submits the solution of a template, as Bitcoin Core 30 and 31 take blocks. True when the node has looked at it,
    /// which does not mean that it is valid.
    pub(super) async fn submit_solution(
        &self,
        template: &NodeTemplate,
        solution: &SolvedBlock,
    ) -> Result<bool, NodeError> {
        const METHOD: &str = "submitSolution";
        if self.is_core_30 {
            return core30::submit_solution(self, template, solution).await;
        }
        let mut request = request!(self, "submitSolution", template.0.submit_solution_old7_request());
        request.get().set_version(solution.version);
        request.get().set_timestamp(solution.time);
        request.get().set_nonce(solution.nonce);
        request.get().set_coinbase(&solution.coinbase);
        let answer = timely(METHOD, request.send().promise).await?;
        Ok(answer.get().map_err(|error| bad(METHOD, &error))?.get_result())
    }

    /// The transactions of the mempool with these hashes with witness, in this order. Nodes before Bitcoin Core 32 do not
    /// know how.
    pub(super) async fn transactions(&self, wtxids: &[Hash]) -> Result<Transactions, NodeError> {
        const METHOD: &str = "getTransactionsByWitnessID";
        let request = self.mining.get_transactions_by_witness_i_d_request();
        let mut request = request!(self, "getTransactionsByWitnessID", request);
        let mut names = request.get().init_wtxids(wtxids.len() as u32);
        for (place, wtxid) in (0..).zip(wtxids) {
            names.set(place, wtxid);
        }
        let answer = timely(METHOD, request.send().promise).await?;
        let read = || -> capnp::Result<Transactions> {
            let found = answer.get()?.get_result()?;
            let found = found.iter().map(|raw| raw.map(|raw| (!raw.is_empty()).then(|| raw.to_vec())));
            found.collect()
        };
        let found = read().map_err(|error| bad(METHOD, &error))?;
        match found.len() == wtxids.len() {
            true => Ok(found),
            false => {
                let reason = format!("{} were asked for, and {} came", wtxids.len(), found.len());
                Err(NodeError::BadAnswer { method: METHOD.to_owned(), reason })
            }
        }
    }

    /// What the node has against a block, proof of work aside; `None` when it is valid on the tip.
    pub(super) async fn check_block(&self, block: &[u8]) -> Result<Option<Rejection>, NodeError> {
        const METHOD: &str = "checkBlock";
        if self.is_core_30 {
            return core30::check_block(self, block).await;
        }
        let mut request = request!(self, "checkBlock", self.mining.check_block_request());
        request.get().set_block(block);
        let mut options = request.get().init_options();
        // As in a proposal (BIP 23): what is declared has a sound merkle root, and whoever repeats transactions under
        // one (CVE-2012-2459) is found out.
        options.set_check_merkle_root(true);
        options.set_check_pow(false);
        let answer = timely(METHOD, request.send().promise).await?;
        let answer = answer.get().map_err(|error| bad(METHOD, &error))?;
        judged(METHOD, answer.get_result(), answer.get_reason(), answer.get_debug())
    }
}

/// What a node has against a block, from its answer to `method`.
pub(super) fn judged(
    method: &'static str,
    is_valid: bool,
    reason: capnp::Result<capnp::text::Reader<'_>>,
    details: capnp::Result<capnp::text::Reader<'_>>,
) -> Result<Option<Rejection>, NodeError> {
    if is_valid {
        return Ok(None);
    }
    Ok(Some(Rejection { reason: text(method, reason)?, details: text(method, details)? }))
}

async fn make_mining(init: &init::Client, thread: &thread::Client) -> Result<mining::Client, NodeError> {
    const METHOD: &str = "makeMining";
    let mut request = init.make_mining_request();
    context(METHOD, request.get().get_context(), thread)?;
    let answer = named(METHOD, request.send().promise).await?;
    let mining = answer.get().and_then(|answer| answer.get_result());
    mining.map_err(|error| bad(METHOD, &error))
}

async fn make_thread(threads: &thread_map::Client) -> Result<thread::Client, NodeError> {
    let mut request = threads.make_thread_request();
    request.get().set_name("checkweigh");
    let answer = named("makeThread", request.send().promise).await?;
    let thread = answer.get().and_then(|answer| answer.get_result());
    thread.map_err(|error| bad("makeThread", &error))
}

fn context(
    method: &'static str,
    context: capnp::Result<bitcoin_capnp_types::proxy_capnp::context::Builder<'_>>,
    thread: &thread::Client,
) -> Result<(), NodeError> {
    context.map_err(|error| bad(method, &error))?.set_thread(thread.clone());
    Ok(())
}

fn text(method: &'static str, text: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, NodeError> {
    let text = text.map_err(|error| bad(method, &error))?;
    Ok(String::from_utf8_lossy(text.as_bytes()).into_owned())
}

/// An answer, or why there is none.
pub(super) async fn named<T>(
    method: &'static str,
    answer: impl Future<Output = capnp::Result<T>>,
) -> Result<T, NodeError> {
    answer.await.map_err(|error| failure(method, error))
}

async fn in_time<T>(
    method: &'static str,
    answer: impl Future<Output = Result<T, NodeError>>,
) -> Result<T, NodeError> {
    let timeout = tokio::time::timeout(CALL_DEADLINE, answer).await;
    timeout.unwrap_or_else(|_| Err(NodeError::Timeout { method: method.to_owned() }))
}

pub(super) async fn timely<T>(
    method: &'static str,
    answer: impl Future<Output = capnp::Result<T>>,
) -> Result<T, NodeError> {
    in_time(method, named(method, answer)).await
}

fn failure(method: &'static str, error: capnp::Error) -> NodeError {
    let method = method.to_owned();
    match error.kind {
        ErrorKind::Disconnected => NodeError::Unreachable("the connection is lost".to_owned()),
        ErrorKind::Unimplemented => NodeError::Unknown { method },
        ErrorKind::Failed | ErrorKind::Overloaded => NodeError::Refused { method, message: error.extra },
        _ => NodeError::BadAnswer { method, reason: error.to_string() },
    }
}

pub(super) fn bad(method: &'static str, error: &capnp::Error) -> NodeError {
    NodeError::BadAnswer { method: method.to_owned(), reason: error.to_string() }
}

//! Against a node that is played: what no node of the tests' version does.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bitcoin_capnp_types::capnp;
use bitcoin_capnp_types::capnp_rpc::rpc_twoparty_capnp::Side;
use bitcoin_capnp_types::capnp_rpc::{RpcSystem, new_client, twoparty::VatNetwork};
use bitcoin_capnp_types::init_capnp::init;
use bitcoin_capnp_types::mining_capnp::{block_template, mining};
use bitcoin_capnp_types::proxy_capnp::{thread, thread_map};
use stratum::TemplateId;
use stratum::hash::{merkle_root, sha256d};
use template::{BlockTemplate, CoinbaseConstraints, CoinbaseRules, JobTemplate, assemble_block};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::connection::Connection;
use super::source::{IpcSourceSettings, start_ipc_source};
use super::start_thread;
use crate::clock::Clock;
use crate::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use crate::node::client::SubmitAnswer;
use crate::node::error::NodeError;
use crate::node::source::{SourceKind, default_policy, template_source};
use crate::node::submitter::{SourceBlock, SourceVerdict};
use crate::shutdown::shutdown;

#[path = "tests/core30.rs"]
mod core30;

type Reply = Result<(), capnp::Error>;

/// How a played node differs from a sound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quirk {
    /// It is of Bitcoin Core 31, which takes no whole blocks, and does what it is told to with solutions.
    TakesSolutions(bool),
    /// It is of Bitcoin Core 30.
    IsCore30,
    /// It is, and catches up with the chain for ever, and says so as a solution.
    IsCore30CatchingUp,
    /// Its interface is older than that.
    IsOlder,
    /// It says nothing of the fees.
    HasNoFees,
    /// Its templates are no blocks.
    TalksNonsense,
    /// It has no template to give, and no tip, because it is ending.
    IsEnding,
}

struct PlayedNode {
    quirk: Quirk,
    template: BlockTemplate,
    solutions: mpsc::UnboundedSender<Vec<u8>>,
}

impl PlayedNode {
    fn fees(&self) -> Vec<i64> {
        self.template.transactions.iter().map(|transaction| transaction.fee as i64).collect()
    }

    fn sigops(&self) -> Vec<i64> {
        self.template.transactions.iter().map(|transaction| transaction.sigops as i64).collect()
    }

    /// Takes version, time and nonce, and a coinbase.
    fn take_solution(&self, header: [u32; 3], coinbase: &[u8]) {
        self.say(&[&header.map(u32::to_le_bytes).concat(), coinbase].concat());
    }

    fn say(&self, what: &[u8]) {
        // A test that does not listen wants to know nothing.
        let _ = self.solutions.send(what.to_vec());
    }
}

struct PlayedThreads;

struct PlayedThread;

struct PlayedInit(Rc<PlayedNode>);

struct PlayedMining(Rc<PlayedNode>);

struct PlayedTemplate(Rc<PlayedNode>);

impl thread::Server for PlayedThread {}

impl thread_map::Server for PlayedThreads {
    async fn make_thread(
        self: Rc<Self>,
        _: thread_map::MakeThreadParams,
        mut results: thread_map::MakeThreadResults,
    ) -> Reply {
        results.get().set_result(new_client(PlayedThread));
        Ok(())
    }
}

impl init::Server for PlayedInit {
    async fn construct(
        self: Rc<Self>,
        _: init::ConstructParams,
        mut results: init::ConstructResults,
    ) -> Reply {
        results.get().set_thread_map(new_client(PlayedThreads));
        Ok(())
    }

    async fn make_mining(
        self: Rc<Self>,
        _: init::MakeMiningParams,
        mut results: init::MakeMiningResults,
    ) -> Reply {
        if self.0.quirk == Quirk::IsOlder {
            return Err(capnp::Error::unimplemented("Method not implemented.".to_owned()));
        }
        results.get().set_result(new_client(PlayedMining(Rc::clone(&self.0))));
        Ok(())
    }
}

/// Everything else is not known to it, a whole block among it.
impl mining::Server for PlayedMining {
    async fn is_test_chain(
        self: Rc<Self>,
        _: mining::IsTestChainParams,
        mut results: mining::IsTestChainResults,
    ) -> Reply {
        results.get().set_result(true);
        Ok(())
    }

    async fn is_initial_block_download(
        self: Rc<Self>,
        _: mining::IsInitialBlockDownloadParams,
        _: mining::IsInitialBlockDownloadResults,
    ) -> Reply {
        Ok(())
    }

    async fn wait_tip_changed(
        self: Rc<Self>,
        _: mining::WaitTipChangedParams,
        _: mining::WaitTipChangedResults,
    ) -> Reply {
        match self.0.quirk {
            Quirk::IsEnding => Ok(()),
            _ => std::future::pending().await,
        }
    }

    async fn create_new_block(
        self: Rc<Self>,
        _: mining::CreateNewBlockParams,
        mut results: mining::CreateNewBlockResults,
    ) -> Reply {
        if self.0.quirk != Quirk::IsEnding {
            results.get().set_result(new_client(PlayedTemplate(Rc::clone(&self.0))));
        }
        Ok(())
    }
}

impl block_template::Server for PlayedTemplate {
    async fn get_block(
        self: Rc<Self>,
        _: block_template::GetBlockParams,
        mut results: block_template::GetBlockResults,
    ) -> Reply {
        match self.0.quirk {
            Quirk::TalksNonsense => results.get().set_result(&[7; 500]),
            _ => results.get().set_result(&block(&self.0.template)),
        }
        Ok(())
    }

    async fn get_tx_fees(
        self: Rc<Self>,
        _: block_template::GetTxFeesParams,
        mut results: block_template::GetTxFeesResults,
    ) -> Reply {
        if self.0.quirk != Quirk::HasNoFees {
            results.get().set_result(&self.0.fees()[..])?;
        }
        Ok(())
    }

    async fn get_tx_sigops(
        self: Rc<Self>,
        _: block_template::GetTxSigopsParams,
        mut results: block_template::GetTxSigopsResults,
    ) -> Reply {
        results.get().set_result(&self.0.sigops()[..])
    }

    async fn get_coinbase_tx(
        self: Rc<Self>,
        _: block_template::GetCoinbaseTxParams,
        mut results: block_template::GetCoinbaseTxResults,
    ) -> Reply {
        let job = JobTemplate::of_block_template(&self.0.template);
        let mut coinbase = results.get().init_result();
        coinbase.set_script_sig_prefix(&job.script_start);
        coinbase.set_sequence(0xffff_fffe);
        coinbase.set_lock_time(self.0.template.height - 1);
        coinbase.set_block_reward_remaining(self.0.template.coinbase_value as i64);
        let script = self.0.template.witness_commitment.clone().expect("there are witnesses");
        let output = [&[0; 8][..], &[script.len() as u8], &script].concat();
        coinbase.init_required_outputs(1).set(0, &output);
        Ok(())
    }

    async fn submit_solution_old7(
        self: Rc<Self>,
        params: block_template::SubmitSolutionOld7Params,
        mut results: block_template::SubmitSolutionOld7Results,
    ) -> Reply {
        let params = params.get()?;
        let header = [params.get_version(), params.get_timestamp(), params.get_nonce()];
        self.0.take_solution(header, params.get_coinbase()?);
        results.get().set_result(self.0.quirk == Quirk::TakesSolutions(true));
        Ok(())
    }
}

/// A block on `template`; nobody looks whether it is solved.
fn block(template: &BlockTemplate) -> Vec<u8> {
    let rules = CoinbaseRules::new(vec![0x51], vec![], 4).expect("fits");
    let coinbase = rules.parts(template).expect("fits").with_extranonce(&[1; 4]);
    let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
    assemble_block(template, &coinbase, &template.header(5, &root, template.current_time, 77))
}

fn template() -> BlockTemplate {
    let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(1 << 40), transactions: 3 };
    let chain = DevChain::new(settings, Clock::start());
    let newest = chain.templates().borrow().clone();
    BlockTemplate::clone(&newest.expect("there is one at once"))
}

/// A played node at its socket, for one connection, and what was submitted to it.
fn play(folder: &Path, quirk: Quirk) -> (PathBuf, mpsc::UnboundedReceiver<Vec<u8>>) {
    let socket = folder.join("node.sock");
    let (solutions, submitted) = mpsc::unbounded_channel();
    let path = socket.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    start_thread("played-node", move || async move {
        let listener = UnixListener::bind(path).expect("the folder is ours");
        ready.send(()).expect("the test waits");
        let node = Rc::new(PlayedNode { quirk, template: template(), solutions });
        let (stream, _) = listener.accept().await.expect("somebody comes");
        let (reader, writer) = stream.into_split();
        let network = VatNetwork::new(reader.compat(), writer.compat_write(), Side::Server, <_>::default());
        let init = match quirk {
            Quirk::IsCore30 | Quirk::IsCore30CatchingUp => core30::init(node),
            _ => new_client::<init::Client, _>(PlayedInit(node)).client,
        };
        drop(RpcSystem::new(Box::new(network), Some(init)).await);
    })
    .expect("a thread starts");
    is_ready.recv().expect("it listens");
    (socket, submitted)
}

/// What comes of asking a node with this quirk for a template.
async fn asked(quirk: Quirk) -> Result<BlockTemplate, NodeError> {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder for the test");
    let (socket, _submitted) = play(folder.path(), quirk);
    let ask = async {
        let connection = Connection::dial(&socket).await?;
        let caller = connection.caller().await?;
        let template = caller.new_template(true, CoinbaseConstraints::default(), false).await?;
        caller.read(&template, TemplateId(3), Clock::start()).await
    };
    LocalSet::new().run_until(ask).await
}

#[tokio::test]
async fn a_template_is_read_and_nonsense_is_none() {
    let read = asked(Quirk::TakesSolutions(true)).await.expect("a template");
    assert_eq!(read.transactions, template().transactions);
    for (quirk, said) in [
        (
            Quirk::IsOlder,
            "does not know `makeMining`: its interprocess interface is not that of Bitcoin Core 30",
        ),
        (Quirk::HasNoFees, "3 transactions, 0 fees"),
        (Quirk::TalksNonsense, "it is no block"),
        (Quirk::IsEnding, "it is stopping"),
    ] {
        let failure = asked(quirk).await.expect_err("nothing").to_string();
        assert!(failure.contains(said), "{quirk:?}: {failure}");
    }
}

#[tokio::test]
async fn a_node_that_is_ending_has_no_tip() {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder for the test");
    let (socket, _submitted) = play(folder.path(), Quirk::IsEnding);
    let waited = async {
        let connection = Connection::dial(&socket).await?;
        connection.caller().await?.wait_for_tip(&[1; 32], Duration::ZERO).await
    };
    let failure = LocalSet::new().run_until(waited).await.expect_err("there is none");
    assert!(failure.to_string().contains("it is stopping"), "{failure}");
}

/// What a source on Bitcoin Core 30 or 31 says of blocks, and what the node is sent.
async fn submitted(quirk: Quirk) {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder for the test");
    let (socket, mut at_node) = play(folder.path(), quirk);
    let (outlet, source) = template_source(SourceKind::Ipc, default_policy(), Clock::start());
    let (_trigger, end) = shutdown();
    let (queue, blocks) = mpsc::channel(8);
    let fee_interval = Duration::from_secs(3600);
    let settings = IpcSourceSettings { socket, min_gain: 1, fee_interval, empty_first: false };
    start_ipc_source(settings, outlet, blocks, end).expect("a thread starts");
    let mut templates = source.templates();
    let template = templates.wait_for(Option::is_some).await.expect("it runs").clone().expect("there is one");

    let submit = async |bytes: Vec<u8>| {
        let (answer, verdict) = oneshot::channel();
        queue.send(SourceBlock { bytes: bytes.into(), answer }).await.expect("it runs");
        verdict.await.expect("it answers")
    };
    let found = block(&template);
    let expected = match quirk {
        // They say no more than that they have looked: the next template tells.
        Quirk::TakesSolutions(true) | Quirk::IsCore30 => SourceVerdict::Sent,
        _ => SourceVerdict::Judged(SubmitAnswer::Rejected("the node gives no reason".to_owned())),
    };
    assert_eq!(submit(found.clone()).await, expected);
    let sent = at_node.recv().await.expect("it was sent");
    let (head, coinbase) = sent.split_at(12);
    assert_eq!(head, [&found[0..4], &found[68..72], &found[76..80]].concat());
    assert_eq!(coinbase, &found[81..81 + coinbase.len()]);
    let stranger = block(&BlockTemplate { previous_hash: [3; 32], ..BlockTemplate::clone(&template) });
    assert!(matches!(submit(stranger).await, SourceVerdict::NotSent(_)), "of none of its templates");
}

#[tokio::test]
async fn a_node_that_takes_no_whole_blocks_gets_the_solution() {
    for quirk in [Quirk::TakesSolutions(true), Quirk::TakesSolutions(false), Quirk::IsCore30] {
        submitted(quirk).await;
    }
}

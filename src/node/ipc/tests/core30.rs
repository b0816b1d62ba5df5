//! A played node of Bitcoin Core 30, by the schema of that version.

use std::rc::Rc;

use bitcoin::Transaction;
use bitcoin::consensus::{deserialize, serialize};
use bitcoin_capnp_types::capnp::capability;
use bitcoin_capnp_types::capnp_rpc::new_client;
use bitcoin_capnp_types_30::init_capnp::init;
use bitcoin_capnp_types_30::mining_capnp::{block_template, mining};
use bitcoin_capnp_types_30::proxy_capnp::{thread, thread_map};
use template::{CoinbaseConstraints, CoinbaseRules, JobTemplate};
use tokio::task::LocalSet;

use super::{Connection, PlayedNode, Quirk, Reply, block, play, template};
use crate::node::judge::Rejection;

/// What the node would say of a block that begins with this byte, instead of that it is valid.
const BAD: u8 = 0xbd;

struct Threads;

struct Thread;

struct Init(Rc<PlayedNode>);

struct Mining(Rc<PlayedNode>);

struct Template(Rc<PlayedNode>);

pub(super) fn init(node: Rc<PlayedNode>) -> capability::Client {
    new_client::<init::Client, _>(Init(node)).client
}

impl thread::Server for Thread {}

impl thread_map::Server for Threads {
    async fn make_thread(
        self: Rc<Self>,
        _: thread_map::MakeThreadParams,
        mut results: thread_map::MakeThreadResults,
    ) -> Reply {
        results.get().set_result(new_client(Thread));
        Ok(())
    }
}

impl init::Server for Init {
    async fn construct(
        self: Rc<Self>,
        _: init::ConstructParams,
        mut results: init::ConstructResults,
    ) -> Reply {
        results.get().set_thread_map(new_client(Threads));
        Ok(())
    }

    async fn make_mining(
        self: Rc<Self>,
        params: init::MakeMiningParams,
        mut results: init::MakeMiningResults,
    ) -> Reply {
        params.get()?.get_context()?.get_thread()?;
        results.get().set_result(new_client(Mining(Rc::clone(&self.0))));
        Ok(())
    }
}

impl mining::Server for Mining {
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
        mut results: mining::IsInitialBlockDownloadResults,
    ) -> Reply {
        if self.0.quirk == Quirk::IsCore30CatchingUp {
            results.get().set_result(true);
            self.0.say(b"isInitialBlockDownload");
        }
        Ok(())
    }

    async fn wait_tip_changed(
        self: Rc<Self>,
        _: mining::WaitTipChangedParams,
        _: mining::WaitTipChangedResults,
    ) -> Reply {
        std::future::pending().await
    }

    async fn create_new_block(
        self: Rc<Self>,
        params: mining::CreateNewBlockParams,
        mut results: mining::CreateNewBlockResults,
    ) -> Reply {
        let options = params.get()?.get_options()?;
        assert!(options.get_use_mempool());
        assert!(options.get_block_reserved_weight() >= 2_000, "the node refuses less");
        results.get().set_result(new_client(Template(Rc::clone(&self.0))));
        Ok(())
    }

    async fn check_block(
        self: Rc<Self>,
        params: mining::CheckBlockParams,
        mut results: mining::CheckBlockResults,
    ) -> Reply {
        let params = params.get()?;
        let options = params.get_options()?;
        assert_eq!((options.get_check_merkle_root(), options.get_check_pow()), (true, false));
        let is_bad = params.get_block()?[0] == BAD;
        results.get().set_result(!is_bad);
        if is_bad {
            results.get().set_reason("bad-cb-amount");
            results.get().set_debug("coinbase pays too much");
        }
        Ok(())
    }
}

impl block_template::Server for Template {
    async fn get_block(
        self: Rc<Self>,
        _: block_template::GetBlockParams,
        mut results: block_template::GetBlockResults,
    ) -> Reply {
        results.get().set_result(&block(&self.0.template));
        Ok(())
    }

    async fn get_tx_fees(
        self: Rc<Self>,
        _: block_template::GetTxFeesParams,
        mut results: block_template::GetTxFeesResults,
    ) -> Reply {
        results.get().set_result(&self.0.fees()[..])
    }

    async fn get_tx_sigops(
        self: Rc<Self>,
        _: block_template::GetTxSigopsParams,
        mut results: block_template::GetTxSigopsResults,
    ) -> Reply {
        results.get().set_result(&self.0.sigops()[..])
    }

    /// An example: the whole reward to anybody, and after the height a zero.
    async fn get_coinbase_tx(
        self: Rc<Self>,
        _: block_template::GetCoinbaseTxParams,
        mut results: block_template::GetCoinbaseTxResults,
    ) -> Reply {
        let rules = CoinbaseRules::new(vec![0x51], vec![], 1).expect("fits");
        let ours = rules.parts(&self.0.template).expect("fits").with_extranonce(&[0]);
        let mut example: Transaction = deserialize(&ours).expect("a transaction");
        let script = [&JobTemplate::of_block_template(&self.0.template).script_start[..], &[0]].concat();
        example.input[0].script_sig = script.into();
        results.get().set_result(&serialize(&example));
        Ok(())
    }

    async fn submit_solution(
        self: Rc<Self>,
        params: block_template::SubmitSolutionParams,
        mut results: block_template::SubmitSolutionResults,
    ) -> Reply {
        let params = params.get()?;
        let header = [params.get_version(), params.get_timestamp(), params.get_nonce()];
        self.0.take_solution(header, params.get_coinbase()?);
        results.get().set_result(true);
        Ok(())
    }

    /// There is a better one for who wants up to a thousand satoshis more.
    async fn wait_next(
        self: Rc<Self>,
        params: block_template::WaitNextParams,
        mut results: block_template::WaitNextResults,
    ) -> Reply {
        let options = params.get()?.get_options()?;
        assert_eq!(options.get_timeout(), 0.0, "nobody waits");
        if options.get_fee_threshold() <= 1_000 {
            results.get().set_result(new_client(Template(Rc::clone(&self.0))));
        }
        Ok(())
    }
}

/// Does something with a connection to such a node.
async fn with_node<T>(ask: impl AsyncFnOnce(Connection) -> T) -> T {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder for the test");
    let (socket, _said) = play(folder.path(), Quirk::IsCore30);
    let asked = async { ask(Connection::dial(&socket).await.expect("it is there")).await };
    LocalSet::new().run_until(asked).await
}

#[tokio::test]
async fn templates_of_bitcoin_core_30_are_read() {
    let read = super::asked(Quirk::IsCore30).await.expect("a template");
    let made = template();
    assert_eq!(read.transactions, made.transactions);
    assert_eq!((read.height, read.coinbase_value), (made.height, made.coinbase_value));
    assert_eq!((read.merkle_path, read.witness_commitment), (made.merkle_path, made.witness_commitment));
}

#[tokio::test]
async fn bitcoin_core_30_is_asked_for_a_template_that_pays_more() {
    with_node(async |connection| {
        let caller = connection.caller().await.expect("a thread");
        let base = caller.new_template(true, CoinbaseConstraints::default(), false).await.expect("one");
        assert!(caller.better_template(&base, 1_000).await.expect("it answers").is_some());
        assert!(caller.better_template(&base, 1_001).await.expect("it answers").is_none());
    })
    .await;
}

#[tokio::test]
async fn bitcoin_core_30_judges_blocks() {
    with_node(async |connection| {
        let caller = connection.caller().await.expect("a thread");
        assert_eq!(caller.check_block(&[0]).await.expect("it answers"), None);
        let (reason, details) = ("bad-cb-amount".to_owned(), "coinbase pays too much".to_owned());
        assert_eq!(
            caller.check_block(&[BAD]).await.expect("it answers"),
            Some(Rejection { reason, details })
        );
    })
    .await;
}

/// It would make one, on a tip of long ago.
#[tokio::test]
async fn nobody_asks_bitcoin_core_30_for_a_template_while_it_catches_up() {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder for the test");
    let (socket, mut said) = play(folder.path(), Quirk::IsCore30CatchingUp);
    let ask = async {
        let connection = Connection::dial(&socket).await.expect("it is there");
        let caller = connection.caller().await.expect("a thread");
        tokio::select! {
            biased;
            _ = caller.new_template(true, CoinbaseConstraints::default(), true) => panic!("it still catches up"),
            asked = async { said.recv().await } => asked,
        }
    };
    assert_eq!(LocalSet::new().run_until(ask).await.expect("it was asked"), b"isInitialBlockDownload");
}

//! A real Bitcoin Core in regtest: its own data folder, a port of its own, gone when the test is.
//!
//! The binary is the one that `BITCOIN_NODE` names, or the one that `scripts/bitcoin-node.sh` prints.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use checkweigh::node::{NodeAuth, NodeClient, NodeClientSettings};
use serde_json::{Value, json};
use stratum::hash::{merkle_root, sha256d};
use tempfile::TempDir;
use template::{BlockTemplate, CoinbaseRules, assemble_block, payout_script};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, timeout};

/// How long a node may take to start; about one second on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// How long a node may take to stop before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// How often a starting node is asked whether it is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Blocks until a coinbase may be spent (consensus).
const MATURITY: u32 = 100;

/// What every transaction of [`RegtestNode::fill_mempool`] pays.
pub(crate) const FEE: Amount = Amount::from_sat(1000);

/// The descriptor of blocks that anybody may spend, with its checksum.
const ANYBODY: &str = "raw(51)#8lvh9jxk";

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// A running node.
pub(crate) struct RegtestNode {
    binary: PathBuf,
    directory: TempDir,
    port: u16,
    extra: Vec<String>,
    child: Child,
    /// The height of the next coinbase that [`RegtestNode::fill_mempool`] spends.
    next_coinbase: u32,
}

/// A transaction in the mempool that spends a P2WSH output with a witness, and the value of what it spends.
#[derive(Clone, Debug)]
pub(crate) struct WitnessSpend {
    pub(crate) transaction: Transaction,
    pub(crate) spends: OutPoint,
    pub(crate) value: Amount,
}

impl RegtestNode {
    /// Starts a node on a fresh chain and waits until it answers.
    pub(crate) async fn start() -> Self {
        RegtestNode::start_with(&[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(extra: &[&str]) -> Self {
        let binary = binary().await;
        let directory = folder();
        let port = free_port();
        let extra: Vec<String> = extra.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(&binary, directory.path(), port, &extra);
        let mut node = RegtestNode { binary, directory, port, extra, child, next_coinbase: 1 };
        node.ready().await;
        node
    }

    /// Where its JSON-RPC listens.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file with its credentials; new at every start of the node.
    pub(crate) fn cookie_file(&self) -> PathBuf {
        self.directory.path().join("regtest").join(".cookie")
    }

    /// The keys of a section of our configuration that names it.
    pub(crate) fn config_keys(&self) -> String {
        let cookie = Value::from(self.cookie_file().display().to_string());
        format!("rpc_url = \"{}\"\ncookie_file = {cookie}\nnetwork = \"regtest\"\n", self.url())
    }

    /// Its data folder. With `-ipcbind=unix` its socket is `regtest/node.sock` there.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Where its interprocess interface listens, when it was started with `-ipcbind=unix`.
    pub(crate) fn ipc_socket(&self) -> PathBuf {
        self.directory.path().join("regtest").join("node.sock")
    }

    /// A client of ours, with the cookie file.
    pub(crate) fn client(&self) -> NodeClient {
        let settings = NodeClientSettings { url: self.url(), auth: NodeAuth::CookieFile(self.cookie_file()) };
        NodeClient::new(settings).expect("the URL is one")
    }

    /// Any call that must succeed.
    pub(crate) async fn call(&self, method: &str, params: Value) -> Value {
        self.client().call(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Mines blocks that anybody may spend; returns their hashes.
    pub(crate) async fn generate(&self, blocks: u32) -> Vec<String> {
        let hashes = self.call("generatetodescriptor", json!([blocks, ANYBODY])).await;
        serde_json::from_value(hashes).expect("hashes of blocks")
    }

    /// Mines a block without a transaction, as somebody else would that has none of this node's.
    pub(crate) async fn generate_empty(&self) {
        self.call("generateblock", json!([ANYBODY, []])).await;
    }

    /// The hash of its tip, as nodes print it.
    pub(crate) async fn tip(&self) -> String {
        self.client().best_block_hash().await.expect("the node answers")
    }

    /// The height of its tip.
    pub(crate) async fn height(&self) -> u32 {
        self.client().chain_info().await.expect("the node answers").blocks
    }

    /// Puts `count` transactions with witnesses into the mempool, none of which spends another. Mines what
    /// that takes: the coins are OP_TRUE coinbases, sent to P2WSH(OP_TRUE) and confirmed, so that nothing is
    /// signed.
    pub(crate) async fn fill_mempool(&mut self, count: u32) -> Vec<WitnessSpend> {
        let mature = self.next_coinbase + MATURITY;
        let height = self.height().await;
        if height < mature {
            self.generate(mature - height).await;
        }
        let funding = self.fund(count).await;
        self.generate(1).await;
        let mut spends = Vec::new();
        for place in 0..count {
            let spend = witness_spend(&funding, place);
            self.send(&spend.transaction).await;
            spends.push(spend);
        }
        spends
    }

    /// Spends what a transaction of [`RegtestNode::fill_mempool`] pays, without a block in between.
    pub(crate) async fn spend_again(&self, spend: &WitnessSpend) -> WitnessSpend {
        let child = witness_spend(&spend.transaction, 0);
        self.send(&child.transaction).await;
        child
    }

    /// Stops it the way an operator does, and waits until it is gone.
    pub(crate) async fn stop(&mut self) {
        self.call("stop", json!([])).await;
        if timeout(STOP_DEADLINE, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends it the way a power cut does.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("the node was ours to kill");
    }

    /// Starts a stopped node again on the same chain and port.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(&self.binary, self.directory.path(), self.port, &self.extra);
        self.ready().await;
    }

    /// Stops it and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    async fn ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        let client = self.client();
        let mut polls = interval(POLL_INTERVAL);
        loop {
            polls.tick().await;
            let Err(reason) = client.chain_info().await else { return };
            let ended = self.child.try_wait().expect("the node is our child");
            assert!(ended.is_none(), "bitcoin-node ended ({ended:?}): {}", self.log());
            assert!(Instant::now() < deadline, "bitcoin-node is not ready ({reason}): {}", self.log());
        }
    }

    fn log(&self) -> String {
        let log = self.directory.path().join("regtest").join("debug.log");
        std::fs::read_to_string(log).unwrap_or_else(|error| format!("it left no log: {error}"))
    }

    async fn send(&self, transaction: &Transaction) {
        self.call("sendrawtransaction", json!([hex::encode(serialize(transaction))])).await;
    }

    /// Spends the next mature coinbase into `count` P2WSH outputs.
    async fn fund(&mut self, count: u32) -> Transaction {
        let block_hash = self.call("getblockhash", json!([self.next_coinbase])).await;
        self.next_coinbase += 1;
        let block = self.call("getblock", json!([block_hash, 2])).await;
        let coinbase = &block["tx"][0];
        let txid: Txid = coinbase["txid"].as_str().and_then(|txid| txid.parse().ok()).expect("a txid");
        let bitcoins = coinbase["vout"][0]["value"].as_f64().expect("a value");
        let available = Amount::from_btc(bitcoins).expect("an amount");
        let each = (available - FEE * 10) / u64::from(count);
        let output = TxOut { value: each, script_pubkey: op_true().to_p2wsh() };
        let funding = transaction(OutPoint::new(txid, 0), Witness::new(), vec![output; count as usize]);
        self.send(&funding).await;
        funding
    }
}

fn witness_spend(funding: &Transaction, place: u32) -> WitnessSpend {
    let spends = OutPoint::new(funding.compute_txid(), place);
    let value = funding.output[place as usize].value;
    let output = TxOut { value: value - FEE, script_pubkey: op_true().to_p2wsh() };
    let witness = Witness::from_slice(&[op_true().as_bytes()]);
    WitnessSpend { transaction: transaction(spends, witness, vec![output]), spends, value }
}

fn transaction(spends: OutPoint, witness: Witness, output: Vec<TxOut>) -> Transaction {
    let input =
        TxIn { previous_output: spends, script_sig: ScriptBuf::new(), sequence: Sequence::MAX, witness };
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output }
}

fn op_true() -> ScriptBuf {
    ScriptBuf::from(vec![0x51])
}

/// The path of a Unix socket has at most 107 bytes; where folders for tests have long names the node's is elsewhere.
fn folder() -> TempDir {
    let directory = tempfile::tempdir().expect("a folder for the node");
    match directory.path().as_os_str().len() + "/regtest/node.sock".len() < 108 {
        true => directory,
        false => tempfile::tempdir_in("/tmp").expect("a folder for the node"),
    }
}

async fn binary() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bitcoin-node.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().await.expect("the script runs");
    assert!(output.status.success(), "{script} failed: {:?}", output.status);
    let path = String::from_utf8(output.stdout).expect("a path");
    PathBuf::from(path.lines().last().expect("the last line is the path"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    listener.local_addr().expect("bound").port()
}

fn spawn(binary: &Path, directory: &Path, port: u16, extra: &[String]) -> Child {
    Command::new(binary)
        .arg(format!("-datadir={}", directory.display()))
        .args(["-regtest", "-listen=0", "-connect=0", "-printtoconsole=0", "-dbcache=16", "-par=1"])
        .args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1"])
        .arg(format!("-rpcport={port}"))
        // Spending a bare OP_TRUE is against the policy for other people's transactions.
        .arg("-acceptnonstdtxn=1")
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("bitcoin-node can be started")
}

/// How long a chain may take to grow on a busy machine.
const CHAIN_DEADLINE: Duration = Duration::from_secs(120);

/// A farm's node and a pool's: the farm's listens; the pool's connects to it, and takes no transactions but in blocks.
pub(crate) async fn two_nodes() -> (RegtestNode, RegtestNode) {
    two_nodes_with(&[]).await
}

/// The same with more arguments for both.
pub(crate) async fn two_nodes_with(extra: &[&str]) -> (RegtestNode, RegtestNode) {
    let port = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let address = port.local_addr().expect("bound").to_string();
    drop(port);
    let bind = format!("-bind={address}");
    let farm = RegtestNode::start_with(&[&["-listen=1", bind.as_str()], extra].concat()).await;
    let pool = RegtestNode::start_with(&[&["-blocksonly=1"], extra].concat()).await;
    pool.call("addnode", json!([address, "onetry"])).await;
    (farm, pool)
}

pub(crate) async fn wait_for_height(node: &RegtestNode, height: u32) {
    let deadline = tokio::time::Instant::now() + CHAIN_DEADLINE;
    let mut poll = tokio::time::interval(Duration::from_millis(50));
    while node.height().await < height {
        assert!(tokio::time::Instant::now() < deadline, "the chain reaches {height}");
        poll.tick().await;
    }
}

pub(crate) async fn block_of_height(node: &RegtestNode, height: u32) -> bitcoin::Block {
    let hash = node.call("getblockhash", json!([height])).await;
    let hex = node.call("getblock", json!([hash, 0])).await;
    let bytes = hex::decode(hex.as_str().expect("a block is text")).expect("hexadecimal");
    bitcoin::consensus::deserialize(&bytes).expect("a block")
}

/// A block on `template` that pays to a P2WPKH address of regtest and needs a nonce still.
pub(crate) fn block(template: &BlockTemplate, extranonce: u8) -> Vec<u8> {
    let payout = payout_script("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", bitcoin::Network::Regtest);
    let rules = CoinbaseRules::new(payout.expect("an address"), b"/checkweigh/".to_vec(), 16).expect("fits");
    let coinbase = rules.parts(template).expect("fits").with_extranonce(&[extranonce; 16]);
    let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
    let header = template.header(template.version, &root, template.current_time, 0);
    assemble_block(template, &coinbase, &header)
}

/// The same block with a nonce that makes it one, or with one that does not.
pub(crate) fn with_nonce(mut block: Vec<u8>, template: &BlockTemplate, solves: bool) -> Vec<u8> {
    for nonce in 0u32.. {
        block[76..80].copy_from_slice(&nonce.to_le_bytes());
        if template.network_target().is_met_by(&sha256d(&block[..80])) == solves {
            break;
        }
    }
    block
}

//! The job declaration server of `checkweigh pool`, over real sockets and on a real Bitcoin Core.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/process.rs"]
mod process;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use bitcoin_node::{FEE, RegtestNode, WitnessSpend};
use checkweigh::clock::Clock;
use checkweigh::declarations::{DeclarationParts, Declarations, declarations};
use checkweigh::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use checkweigh::node::{BlockJudge, BlockSource, NodeClient};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use job_declarator::server::Claimant;
use process::{Checkweigh, terminate};
use rand::rngs::OsRng;
use serde_json::json;
use stratum::hash::{merkle_root, sha256d};
use stratum::sv2::codes::{declare_mining_job, job_declaration_flags, set_custom_mining_job};
use stratum::sv2::messages::*;
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::{AuthoritySecretKey, Message};
use stratum::{ChannelId, RequestId, Target, TemplateId};
use template::block_template::{TemplateTransaction, displayed, witness_commitment};
use template::merkle::merkle_path;
use template::outputs::{parse_outputs, write_outputs};
use template::{BlockTemplate, JobTemplate, Output, Skeleton};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Far more than anything here needs.
const DEADLINE: Duration = Duration::from_secs(60);

const EXTRANONCE_SIZE: usize = 16;

/// What the pool's payout output pays to.
const PAYOUT: [u8; 2] = [0x51, 0x75];

fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

/// A job declaration client that says what it is told to.
struct Declarer {
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    next_request: u32,
}

impl Declarer {
    async fn dial(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let initiator = Initiator::new(Some(&key().public()), &mut OsRng);
        stream.write_all(&initiator.first()).await.expect("it reads");
        let mut reply = [0; RESPONDER_MESSAGE_SIZE];
        stream.read_exact(&mut reply).await.expect("it answers");
        let now = Clock::start().now().unix_seconds();
        let (encryptor, decryptor) = initiator.finish(&reply, now).expect("authentic").split(1 << 24);
        Declarer { stream, encryptor, decryptor, next_request: 1 }
    }

    async fn set_up(address: SocketAddr) -> Self {
        let mut declarer = Declarer::dial(address).await;
        declarer.send(setup(job_declaration_flags::DECLARE_TX_DATA)).await;
        let answer = declarer.next().await;
        assert!(matches!(answer, Some(Message::SetupConnectionSuccess(_))), "{answer:?}");
        declarer
    }

    async fn send(&mut self, message: impl Into<Message>) {
        let (mut frame, mut encrypted) = (Vec::new(), Vec::new());
        message.into().encode_frame(&mut frame).expect("fits");
        self.encryptor.encrypt_frames(&frame, &mut encrypted).expect("whole frames");
        self.stream.write_all(&encrypted).await.expect("it reads");
    }

    /// The next message; `None` once the connection has ended.
    async fn next(&mut self) -> Option<Message> {
        // Byte by byte, so that nothing of a second message is lost.
        let mut byte = [0];
        loop {
            let read = timeout(DEADLINE, self.stream.read(&mut byte)).await.expect("in time");
            let Ok(1) = read else { return None };
            let frame = self.decryptor.next_frame(&mut &byte[..]).expect("authentic");
            if let Some(frame) = frame {
                return Some(Message::decode(frame.header, frame.payload).expect("a message"));
            }
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    async fn token(&mut self) -> (MiningJobToken, Vec<Output>) {
        let request_id = self.request();
        self.send(AllocateMiningJobToken { user_identifier: "account.farm".to_owned(), request_id }).await;
        let answer = self.next().await;
        let Some(Message::AllocateMiningJobTokenSuccess(success)) = answer else { panic!("{answer:?}") };
        assert_eq!(success.request_id, request_id);
        let outputs = parse_outputs(&success.coinbase_outputs).expect("outputs");
        (success.mining_job_token, outputs)
    }

    /// Declares a job on `template` that pays what the pool wants, and returns the coinbase and the answer.
    async fn declare(&mut self, template: &BlockTemplate) -> (Skeleton, Message) {
        let (mining_job_token, outputs) = self.token().await;
        let coinbase =
            JobTemplate::of_block_template(template).coinbase(&outputs, b"/farm/", EXTRANONCE_SIZE);
        let coinbase = coinbase.expect("there is room");
        let (coinbase_tx_prefix, coinbase_tx_suffix) = coinbase.declared_parts();
        let declaration = DeclareMiningJob {
            request_id: self.request(),
            mining_job_token,
            version: template.version,
            coinbase_tx_prefix,
            coinbase_tx_suffix,
            wtxid_list: template.transactions.iter().map(|transaction| transaction.wtxid).collect(),
            excess_data: Vec::new(),
        };
        self.send(declaration).await;
        (coinbase, self.next().await.expect("it answers"))
    }
}

fn setup(flags: u32) -> SetupConnection {
    SetupConnection {
        protocol: Protocol::JobDeclaration,
        min_version: 2,
        max_version: 2,
        flags,
        endpoint_host: "127.0.0.1".to_owned(),
        endpoint_port: 1,
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
        device_id: String::new(),
    }
}

/// What makes a block of a declared job.
fn solution(template: &BlockTemplate, coinbase: &Skeleton) -> (PushSolution, String) {
    let extranonce = [7; EXTRANONCE_SIZE];
    let root = merkle_root(sha256d(&coinbase.parts().with_extranonce(&extranonce)), &template.merkle_path);
    for nonce in 0u32.. {
        let header = template.header(template.version, &root, template.current_time, nonce);
        let hash = sha256d(&header);
        if Target::from_compact(template.nbits).is_met_by(&hash) {
            let solution = PushSolution {
                extranonce: extranonce.to_vec(),
                prev_hash: template.previous_hash,
                nonce,
                ntime: template.current_time,
                nbits: template.nbits,
                version: template.version,
            };
            return (solution, displayed(&hash));
        }
    }
    unreachable!("on regtest every second hash is a block")
}

async fn template_of(node: &RegtestNode) -> BlockTemplate {
    let template = node.client().block_template(TemplateId(1), None, &Clock::start()).await;
    template.expect("the node has a template")
}

/// Sends the node a transaction that spends one of `template`, and returns a template with it: the node itself thinks of
/// a new one only after seconds.
async fn with_child(node: &RegtestNode, template: &BlockTemplate, parent: &WitnessSpend) -> BlockTemplate {
    let script = ScriptBuf::from(vec![0x51]);
    let previous = &parent.transaction.output[0];
    let input = TxIn {
        previous_output: OutPoint::new(parent.transaction.compute_txid(), 0),
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::from_slice(&[script.as_bytes()]),
    };
    let output = vec![TxOut { value: previous.value - FEE, script_pubkey: script.to_p2wsh() }];
    let child = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output };
    let raw = serialize(&child);
    node.call("sendrawtransaction", json!([hex::encode(&raw)])).await;
    let mut transactions = template.transactions.clone();
    transactions.push(TemplateTransaction {
        txid: child.compute_txid().to_byte_array(),
        wtxid: child.compute_wtxid().to_byte_array(),
        raw,
        fee: FEE.to_sat(),
        weight: child.weight().to_wu(),
        sigops: 0,
        depends: Vec::new(),
    });
    with_transactions(template, transactions)
}

fn with_transactions(template: &BlockTemplate, transactions: Vec<TemplateTransaction>) -> BlockTemplate {
    let txids: Vec<_> = transactions.iter().map(|transaction| transaction.txid).collect();
    let wtxids: Vec<_> = transactions.iter().map(|transaction| transaction.wtxid).collect();
    let mut changed = template.clone();
    changed.merkle_path = merkle_path(&txids);
    changed.witness_commitment = Some(witness_commitment(&wtxids).to_vec());
    changed.transactions = transactions;
    changed.coinbase_value = template.coinbase_value - template.fees() + changed.fees();
    changed
}

fn pool_config(node: &RegtestNode) -> String {
    format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\nrpc_url = \"{}\"\ncookie_file = \"{}\"\nnetwork = \"regtest\"\n\
         [templates]\nmin_fee_gain_sats = 100000000\nempty_first_template = false\n\
         [pool]\ncoinbase_script = \"{}\"\n\
         [job_declaration]\nlisten = \"127.0.0.1:0\"\nmodes = [\"full-template\"]\n\
         [metrics]\nlisten = \"127.0.0.1:0\"\n",
        node.url(),
        node.cookie_file().display(),
        hex::encode(PAYOUT),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_job_with_the_nodes_transactions_becomes_a_block() {
    let mut node = RegtestNode::start().await;
    let spends = node.fill_mempool(5).await;
    let folder = tempfile::tempdir().expect("a folder for the test");
    std::fs::write(folder.path().join("authority.key"), format!("{}\n", key().secret_text()))
        .expect("a file");
    let mut pool = Checkweigh::start("pool", &pool_config(&node), folder.path());
    let address = pool.address("job declaration clients may connect").await;
    let metrics = pool.address("metrics at /metrics").await;
    let mut pool = pool.detach_log();

    // Who hides transactions is told so, and who sends no frames is cut off.
    let mut hiding = Declarer::dial(address).await;
    hiding.send(setup(0)).await;
    let answer = hiding.next().await;
    assert!(matches!(answer, Some(Message::SetupConnectionError(_))), "{answer:?}");
    assert!(hiding.next().await.is_none(), "it is closed");
    let mut declarer = Declarer::set_up(address).await;
    let mut hostile = Declarer::set_up(address).await;
    hostile.stream.write_all(&[0x42; 4096]).await.expect("it reads");
    assert!(hostile.next().await.is_none(), "it is closed");

    let first = template_of(&node).await;
    assert_eq!(first.transactions.len(), 5);
    // Of the empty one comes nothing before the pool has its own template, in which the others are found.
    for template in [&with_transactions(&first, Vec::new()), &first] {
        let (_, answer) = declarer.declare(template).await;
        assert!(matches!(answer, Message::DeclareMiningJobSuccess(_)), "{answer:?}");
    }
    // One that is in no template of the pool: it is found in the mempool.
    let template = with_child(&node, &first, &spends[0]).await;
    let (coinbase, answer) = declarer.declare(&template).await;
    assert!(matches!(answer, Message::DeclareMiningJobSuccess(_)), "{answer:?}");

    let (solution, hash) = solution(&template, &coinbase);
    declarer.send(solution).await;
    let tip = timeout(DEADLINE, node.client().tip_of_height(template.height)).await.expect("in time");
    assert_eq!(displayed(&tip.expect("the node answers")), hash, "the pushed solution is the tip");
    let page = reqwest::get(format!("http://{metrics}/metrics")).await.expect("served");
    let page = page.text().await.expect("text");
    for line in [
        "server_connections 1",
        "server_jobs_total{state=\"acknowledged\"} 3",
        "server_jobs_total{state=\"refused\"} 0",
        "server_missing_asked_total 0",
        "server_solutions_total 1",
    ] {
        let line = format!("checkweigh_job_declaration_{line}");
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    let status = terminate(&mut pool, Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    let saved = std::fs::read_dir(folder.path().join("blocks")).expect("blocks are written").count();
    assert_eq!(saved, 1, "the block is on the disk");
}

/// A server in this process that has the node's tip, and whose jobs the node judges over JSON-RPC.
async fn server(node: &RegtestNode) -> (SocketAddr, Declarations, Arc<BlockTemplate>, ShutdownTrigger) {
    let client = Arc::new(node.client());
    server_with(node, Arc::clone(&client), BlockJudge::Rpc(client)).await
}

/// The same, with jobs judged by `judge`, and transactions of the mempool from there or from `client`.
async fn server_with(
    node: &RegtestNode,
    client: Arc<NodeClient>,
    judge: BlockJudge,
) -> (SocketAddr, Declarations, Arc<BlockTemplate>, ShutdownTrigger) {
    let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(1 << 40), transactions: 0 };
    let parts = DeclarationParts {
        outputs: vec![Output { value: 0, script: PAYOUT.to_vec() }],
        requires_transactions: false,
        max_connections: 8,
        key: key(),
        judge,
        node: client,
        source: BlockSource::Development(DevChain::new(settings, Clock::start())),
        blocks: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    let (trigger, end) = shutdown();
    let (declarations, running) = declarations(parts, listener, Clock::start(), end);
    tokio::spawn(running);
    let template = Arc::new(template_of(node).await);
    declarations.set_tip(&template);
    (address, declarations, template, trigger)
}

fn custom_job(token: MiningJobToken, template: &BlockTemplate, coinbase: &Skeleton) -> SetCustomMiningJob {
    SetCustomMiningJob {
        channel_id: ChannelId(1),
        request_id: RequestId(1),
        token,
        version: template.version,
        prev_hash: template.previous_hash,
        min_ntime: template.current_time,
        nbits: template.nbits,
        coinbase_tx_version: coinbase.version,
        coinbase_prefix: coinbase.script_prefix.clone(),
        coinbase_tx_input_n_sequence: coinbase.sequence,
        coinbase_tx_outputs: write_outputs(&coinbase.outputs),
        coinbase_tx_locktime: coinbase.lock_time,
        merkle_path: template.merkle_path.clone(),
    }
}

#[tokio::test]
async fn the_token_of_a_declared_job_is_good_for_one_custom_job() {
    let mut node = RegtestNode::start().await;
    node.fill_mempool(2).await;
    let (address, declarations, template, _trigger) = server(&node).await;
    let mut declarer = Declarer::set_up(address).await;
    let (coinbase, answer) = declarer.declare(&template).await;
    let Message::DeclareMiningJobSuccess(success) = answer else { panic!("{answer:?}") };
    let message = custom_job(success.new_mining_job_token, &template, &coinbase);
    let claimant = Claimant { user_identity: "account.rig", extranonce_size: EXTRANONCE_SIZE };
    let job = declarations.check_custom_job(claimant, message.clone()).await.expect("it was declared");
    assert_eq!(job.declared.expect("with its transactions").transactions.len(), 2);
    assert_eq!((job.payout, job.merkle_path), (template.coinbase_value, template.merkle_path.clone()));
    let again = declarations.check_custom_job(claimant, message).await.expect_err("it was used");
    assert_eq!(again.code, set_custom_mining_job::INVALID_MINING_JOB_TOKEN);
    let tally = declarations.figures().tally;
    assert_eq!((tally.declared, tally.acknowledged, tally.asked_for_transactions), (1, 1, 0));
}

#[tokio::test]
async fn what_the_node_does_not_find_good_is_never_acknowledged() {
    let mut node = RegtestNode::start().await;
    node.fill_mempool(1).await;
    let (address, _declarations, template, _trigger) = server(&node).await;
    let mut declarer = Declarer::set_up(address).await;
    let mut greedy = BlockTemplate::clone(&template);
    greedy.coinbase_value += 1;
    let (_, answer) = declarer.declare(&greedy).await;
    assert_eq!(refusal(answer), (declare_mining_job::INVALID_JOB.to_owned(), "bad-cb-amount".to_owned()));

    node.stop().await;
    let (_, answer) = declarer.declare(&template).await;
    assert_eq!(refusal(answer).0, declare_mining_job::INTERNAL_ERROR);
}

/// The code and the details of a refusal.
fn refusal(answer: Message) -> (String, String) {
    let Message::DeclareMiningJobError(error) = answer else { panic!("{answer:?}") };
    (error.error_code, String::from_utf8_lossy(&error.error_details).into_owned())
}

#[cfg(feature = "ipc")]
#[tokio::test]
async fn jobs_are_judged_over_ipc() {
    let mut node = RegtestNode::start_with(&["-ipcbind=unix"]).await;
    let spends = node.fill_mempool(2).await;
    let (_trigger, end) = shutdown();
    let judge = checkweigh::node::ipc::start_ipc_node(node.ipc_socket(), end).expect("a thread starts");
    let (client, judge) = (Arc::new(client_of_nobody()), BlockJudge::Ipc(judge));
    let (address, declarations, template, _server) = server_with(&node, client, judge).await;
    let mut declarer = Declarer::set_up(address).await;
    // The second has a transaction that is in no template: the node knows it by the name that it is declared by.
    for template in [&*template, &with_child(&node, &template, &spends[0]).await] {
        let (_, answer) = declarer.declare(template).await;
        assert!(matches!(answer, Message::DeclareMiningJobSuccess(_)), "{answer:?}");
    }

    let mut greedy = BlockTemplate::clone(&template);
    greedy.coinbase_value += 1;
    let (code, details) = refusal(declarer.declare(&greedy).await.1);
    assert_eq!(code, declare_mining_job::INVALID_JOB);
    assert!(details.starts_with("bad-cb-amount (") && details.contains("pays too much"), "{details}");

    // The server lives on when the node is restarted, and so does the connection.
    node.stop().await;
    let empty = with_transactions(&template, Vec::new());
    assert_eq!(refusal(declarer.declare(&empty).await.1).0, declare_mining_job::INTERNAL_ERROR);
    node.start_again().await;
    let (_, answer) = declarer.declare(&empty).await;
    assert!(matches!(answer, Message::DeclareMiningJobSuccess(_)), "{answer:?}");

    // The node is a block ahead of the pool.
    node.generate(1).await;
    let one = with_transactions(&template, template.transactions[..1].to_vec());
    assert_eq!(refusal(declarer.declare(&one).await.1).0, declare_mining_job::STALE_CHAIN_TIP);
    let tally = declarations.figures().tally;
    assert_eq!((tally.declared, tally.acknowledged, tally.asked_for_transactions), (6, 3, 0));
}

/// JSON-RPC where nobody answers.
#[cfg(feature = "ipc")]
fn client_of_nobody() -> NodeClient {
    let auth = checkweigh::node::NodeAuth::CookieFile("no-cookie".into());
    let settings = checkweigh::node::NodeClientSettings { url: "http://127.0.0.1:1".to_owned(), auth };
    NodeClient::new(settings).expect("the URL is one")
}

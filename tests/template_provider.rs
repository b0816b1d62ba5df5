//! Templates over SV2: our provider on a real Bitcoin Core, our source behind it, and clients that nobody wants.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/process.rs"]
mod process;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bitcoin_node::{FEE, RegtestNode};
use checkweigh::clock::Clock;
use checkweigh::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use checkweigh::node::{
    BlockSource, BlockSubmitter, RpcSourceSettings, SourceKind, SourcePath, SubmitOutcome, SubmitterSettings,
    run_rpc_source, run_sv2_source, submitter, template_source,
};
use checkweigh::shutdown::{Shutdown, ShutdownTrigger, shutdown};
use checkweigh::template_provider::{ProviderParts, ProviderStatus, serve};
use process::Checkweigh;
use rand::rngs::OsRng;
use stratum::hash::{merkle_root, sha256d};
use stratum::sv2::messages::{CoinbaseOutputConstraints, Protocol, RequestTransactionData, SetupConnection};
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::url::PoolUrl;
use stratum::sv2::{AuthoritySecretKey, Message};
use template::block_template::displayed;
use template::{BlockTemplate, CoinbaseConstraints, CoinbaseRules, PublishPolicy, assemble_block};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Far more than anything here needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whatever is better is published at once.
const EAGER: PublishPolicy = PublishPolicy { min_gain: 1, min_interval: Duration::ZERO };

fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

/// Templates of a node over JSON-RPC, asked for often: fees are announced only each minute.
fn rpc_source(node: &RegtestNode, blocks: &tempfile::TempDir, end: Shutdown) -> BlockSource {
    let client = Arc::new(node.client());
    let (outlet, source) = template_source(SourceKind::Rpc, EAGER, Clock::start());
    let settings = RpcSourceSettings { poll: Duration::from_millis(200), empty_first: true, announced: None };
    tokio::spawn(run_rpc_source(Arc::clone(&client), settings, outlet, end));
    let settings = SubmitterSettings { directory: blocks.path().to_owned(), deadline: DEADLINE };
    BlockSource::Node { source, submitter: Arc::new(BlockSubmitter::new(client, settings)) }
}

/// Templates of a provider, and blocks to it alone.
fn sv2_source(address: SocketAddr, blocks: &tempfile::TempDir, end: Shutdown) -> BlockSource {
    let url = PoolUrl { host: "127.0.0.1".to_owned(), port: address.port(), authority: Some(key().public()) };
    let (outlet, source) = template_source(SourceKind::Sv2, EAGER, Clock::start());
    let (queue, waiting) = mpsc::channel(submitter::SOURCE_QUEUE);
    let path = SourcePath { blocks: queue, templates: source.templates() };
    tokio::spawn(run_sv2_source(url, outlet, waiting, end));
    let settings = SubmitterSettings { directory: blocks.path().to_owned(), deadline: DEADLINE };
    BlockSource::Node { source, submitter: Arc::new(BlockSubmitter::through_source(None, path, settings)) }
}

/// A provider that serves the templates of `source`.
struct Provider {
    address: SocketAddr,
    status: Arc<ProviderStatus>,
    task: JoinHandle<()>,
    trigger: ShutdownTrigger,
}

impl Provider {
    async fn start(source: BlockSource, max_connections: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        Provider::on(listener, source, max_connections)
    }

    fn on(listener: TcpListener, source: BlockSource, max_connections: u32) -> Self {
        let address = listener.local_addr().expect("bound");
        let status = Arc::new(ProviderStatus::default());
        let (trigger, end) = shutdown();
        let parts = ProviderParts { source, key: key(), max_connections };
        let task = tokio::spawn(serve(parts, listener, Arc::clone(&status), Clock::start(), end));
        Provider { address, status, task, trigger }
    }

    async fn stop(self) {
        self.trigger.trigger();
        timeout(DEADLINE, self.task).await.expect("in time").expect("no panic");
    }
}

async fn template_where(source: &BlockSource, wanted: impl Fn(&BlockTemplate) -> bool) -> Arc<BlockTemplate> {
    let mut templates = source.templates();
    let found = timeout(DEADLINE, templates.wait_for(|one| one.as_deref().is_some_and(&wanted))).await;
    found.expect("in time").expect("the source runs").clone().expect("there is one")
}

fn solved(template: &BlockTemplate, extranonce: u8) -> Vec<u8> {
    let rules = CoinbaseRules::new(vec![0x51], b"/checkweigh/".to_vec(), 16).expect("fits");
    let coinbase = rules.parts(template).expect("fits").with_extranonce(&[extranonce; 16]);
    let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
    for nonce in 0u32.. {
        let header = template.header(template.version, &root, template.current_time, nonce);
        if template.network_target().is_met_by(&sha256d(&header)) {
            return assemble_block(template, &coinbase, &header);
        }
    }
    unreachable!("on regtest every second hash is a block")
}

fn raw(template: &BlockTemplate) -> Vec<&[u8]> {
    template.transactions.iter().map(|transaction| transaction.raw.as_slice()).collect()
}

#[tokio::test]
async fn a_block_on_a_providers_template_is_taken_by_its_node() {
    let mut node = RegtestNode::start().await;
    node.fill_mempool(5).await;
    let blocks = tempfile::tempdir().expect("a folder");
    let (_trigger, end) = shutdown();
    let first = rpc_source(&node, &blocks, end.clone());
    let provider = Provider::start(first.clone(), 4).await;
    let second = sv2_source(provider.address, &blocks, end.clone());
    second.set_constraints(CoinbaseConstraints { max_additional_size: 200, max_additional_sigops: 8 });

    let template = template_where(&second, |template| template.transactions.len() == 5).await;
    let of_node = template_where(&first, |template| template.transactions.len() == 5).await;
    assert_eq!(raw(&template), raw(&of_node));
    assert_eq!((template.height, template.coinbase_value), (of_node.height, of_node.coinbase_value));
    assert!(template.coinbase_value > 5 * FEE.to_sat());

    let block = solved(&template, 1);
    let hash = sha256d(&block[..80]);
    let (outcome, saved) = timeout(DEADLINE, second.submit(template.height, block)).await.expect("in time");
    assert_eq!(outcome, SubmitOutcome::Accepted);
    assert!(saved.expect("to the disk").await.expect("no panic").is_ok());
    assert_eq!(node.tip().await, displayed(&hash));
    // The next template can tell a client of its block before the node has answered the provider.
    let counted = timeout(DEADLINE, async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while provider.status.blocks_accepted.load(Ordering::Relaxed) != 1 {
            look.tick().await;
        }
    });
    assert!(counted.await.is_ok(), "the provider counts the block once");
    assert!(second.is_live() && second.status().expect("a source").figures().new_tips >= 2);

    // A second provider behind the first source, and a tip that somebody else finds.
    let chained = Provider::start(second.clone(), 4).await;
    let third = sv2_source(chained.address, &blocks, end);
    let tip = node.generate(1).await.remove(0);
    let template = template_where(&third, |template| displayed(&template.previous_hash) == tip).await;
    let (outcome, _) =
        timeout(DEADLINE, third.submit(template.height, solved(&template, 2))).await.expect("in time");
    assert_eq!(outcome, SubmitOutcome::Accepted);
    chained.stop().await;
    provider.stop().await;
}

#[tokio::test]
async fn a_restart_of_the_node_and_of_the_provider_is_survived() {
    let mut node = RegtestNode::start().await;
    node.generate(1).await;
    let blocks = tempfile::tempdir().expect("a folder");
    let (_trigger, end) = shutdown();
    let first = rpc_source(&node, &blocks, end.clone());
    let provider = Provider::start(first.clone(), 4).await;
    let second = sv2_source(provider.address, &blocks, end);
    template_where(&second, |template| template.height == 2).await;

    node.restart().await;
    let tip = node.generate(1).await.remove(0);
    let template = template_where(&second, |template| displayed(&template.previous_hash) == tip).await;
    assert_eq!(template.height, 3);

    let address = provider.address;
    provider.stop().await;
    let listener = TcpListener::bind(address).await.expect("the port is free again");
    // One that accepts and dies, as providers do whose node is away.
    let (stream, _) = timeout(DEADLINE, listener.accept()).await.expect("dialled again").expect("a client");
    drop(stream);
    let provider = Provider::on(listener, first, 4);
    let tip = node.generate(1).await.remove(0);
    let template = template_where(&second, |template| displayed(&template.previous_hash) == tip).await;
    let (outcome, _) =
        timeout(DEADLINE, second.submit(template.height, solved(&template, 1))).await.expect("in time");
    assert_eq!(outcome, SubmitOutcome::Accepted);
    assert!(second.status().expect("a source").figures().failures >= 2);
    provider.stop().await;
}

/// A client by hand.
struct Client {
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
}

impl Client {
    async fn dial(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let initiator = Initiator::new(Some(&key().public()), &mut OsRng);
        stream.write_all(&initiator.first()).await.expect("it reads");
        let mut reply = [0; RESPONDER_MESSAGE_SIZE];
        stream.read_exact(&mut reply).await.expect("it answers");
        let now = Clock::start().now().unix_seconds();
        let (encryptor, decryptor) = initiator.finish(&reply, now).expect("authentic").split(1 << 24);
        Client { stream, encryptor, decryptor }
    }

    async fn set_up(address: SocketAddr) -> Self {
        let mut client = Client::dial(address).await;
        client.send(&[setup().into(), room(100).into()]).await;
        client
    }

    async fn send(&mut self, messages: &[Message]) {
        let mut frames = Vec::new();
        messages.iter().for_each(|message| message.encode_frame(&mut frames).expect("fits"));
        self.send_frames(&frames).await;
    }

    async fn send_frames(&mut self, frames: &[u8]) {
        let mut encrypted = Vec::new();
        self.encryptor.encrypt_frames(frames, &mut encrypted).expect("whole frames");
        // A provider that has closed the connection reads nothing any more.
        let _ = self.stream.write_all(&encrypted).await;
    }

    /// Everything up to the end of the connection, or to a message for which `is_last` holds.
    async fn read_until(&mut self, is_last: impl Fn(&Message) -> bool) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = timeout(DEADLINE, self.stream.read(&mut buffer)).await.expect("in time");
            let Ok(length @ 1..) = read else { return messages };
            let mut input = &buffer[..length];
            while let Some(frame) = self.decryptor.next_frame(&mut input).expect("authentic") {
                messages.push(Message::decode(frame.header, frame.payload).expect("a message"));
                if messages.last().is_some_and(&is_last) {
                    return messages;
                }
            }
        }
    }
}

fn setup() -> SetupConnection {
    SetupConnection {
        protocol: Protocol::TemplateDistribution,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: "127.0.0.1".to_owned(),
        endpoint_port: 1,
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
        device_id: String::new(),
    }
}

fn room(size: u32) -> CoinbaseOutputConstraints {
    CoinbaseOutputConstraints {
        coinbase_output_max_additional_size: size,
        coinbase_output_max_additional_sigops: 0,
    }
}

fn chain() -> DevChain {
    let settings = DevChainSettings { seed: 1, nbits: nbits_for_hashes(2), transactions: 20 };
    DevChain::new(settings, Clock::start())
}

fn is_tip(message: &Message) -> bool {
    matches!(message, Message::TemplateSetNewPrevHash(_))
}

#[tokio::test]
async fn hostile_clients_lose_their_connection_and_others_notice_nothing() {
    let chain = chain();
    let provider = Provider::start(BlockSource::Development(chain.clone()), 3).await;
    let mut honest = Client::set_up(provider.address).await;
    assert!(honest.read_until(is_tip).await.iter().any(|one| matches!(one, Message::NewTemplate(_))));

    // A frame that is longer than anything a client has to say.
    let mut client = Client::set_up(provider.address).await;
    let header = stratum::sv2::FrameHeader {
        extension_type: 0,
        channel_msg: false,
        message_type: 0x76,
        payload_length: 200_000,
    };
    client.send_frames(&[&header.to_bytes()[..], &[0; 200_000]].concat()).await;
    client.read_until(|_| false).await;

    // Another order, garbage, and another protocol.
    let ask = |id| Message::from(RequestTransactionData { template_id: stratum::TemplateId(id) });
    let mut client = Client::dial(provider.address).await;
    client.send(&[ask(1)]).await;
    assert!(client.read_until(|_| false).await.is_empty());
    let mut stranger = TcpStream::connect(provider.address).await.expect("it listens");
    stranger.write_all(&[0x42; 200]).await.expect("it reads");
    let _ = timeout(DEADLINE, stranger.read_to_end(&mut Vec::new())).await.expect("it is closed");

    // A flood of requests: it gets a few answers and is closed.
    let mut client = Client::set_up(provider.address).await;
    let came = client.read_until(is_tip).await;
    let Some(Message::TemplateSetNewPrevHash(tip)) = came.last() else { panic!("{came:?}") };
    client.send(&vec![ask(tip.template_id.0); 5000]).await;
    let answers = client.read_until(|_| false).await;
    let brought =
        answers.iter().filter(|one| matches!(one, Message::RequestTransactionDataSuccess(_))).count();
    assert!((1..=4).contains(&brought), "{brought}");

    chain.refresh();
    let came = honest.read_until(|message| matches!(message, Message::NewTemplate(_))).await;
    assert!(matches!(came.last(), Some(Message::NewTemplate(template)) if !template.future_template));
    assert_eq!(provider.status.connections.load(Ordering::Relaxed), 1);
    assert!(provider.status.closed_for_fault.load(Ordering::Relaxed) >= 3);
    provider.stop().await;
}

#[tokio::test]
async fn the_program_serves_templates_and_says_what_it_does() {
    let node = RegtestNode::start().await;
    node.generate(1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("authority.key");
    std::fs::write(&secret, format!("{}\n", key().secret_text())).expect("a file");
    let config = format!(
        "[template_provider]\nlisten = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\nrpc_url = \"{}\"\ncookie_file = \"{}\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n",
        node.url(),
        node.cookie_file().display(),
    );
    let mut program = Checkweigh::start("template-provider", &config, folder.path());
    let metrics = program.address("metrics at /metrics").await;
    let listens = program.address("template clients may connect").await;
    let mut program = program.detach_log();
    let blocks = tempfile::tempdir().expect("a folder");
    let (_trigger, end) = shutdown();
    let source = sv2_source(listens, &blocks, end);
    let template = template_where(&source, |template| template.height == 2).await;
    let (outcome, _) = timeout(DEADLINE, source.submit(2, solved(&template, 1))).await.expect("in time");
    assert_eq!(outcome, SubmitOutcome::Accepted);
    let wanted = [
        "checkweigh_template_source_up{source=\"rpc\"} 1",
        "checkweigh_template_clients 1",
        "checkweigh_template_blocks_accepted_total 1",
        "checkweigh_template_height 3",
    ];
    // A client learns of its block from the next template, which can be before the node has answered the provider.
    let mut page = String::new();
    let told = timeout(DEADLINE, async {
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while !wanted.iter().all(|line| page.lines().any(|found| found == *line)) {
            look.tick().await;
            let answer = reqwest::get(format!("http://{metrics}/metrics")).await.expect("served");
            page = answer.text().await.expect("text");
        }
    });
    assert!(told.await.is_ok(), "{wanted:?} are not all in\n{page}");
    let health = reqwest::get(format!("http://{metrics}/healthz")).await.expect("served");
    assert_eq!(health.status(), 200);
    assert!(process::terminate(&mut program, DEADLINE).await.success());
}

#[tokio::test]
async fn no_more_clients_are_served_than_allowed() {
    let provider = Provider::start(BlockSource::Development(chain()), 1).await;
    let mut first = Client::set_up(provider.address).await;
    first.read_until(is_tip).await;
    let mut second = TcpStream::connect(provider.address).await.expect("it listens");
    let _ = timeout(DEADLINE, second.read_to_end(&mut Vec::new())).await.expect("it is closed");
    assert_eq!(provider.status.refused.load(Ordering::Relaxed), 1);
    provider.stop().await;
}

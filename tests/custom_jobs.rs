//! A pool that takes custom jobs, over real sockets: a client declares a job, mines on it, and finds a block that only
//! the pool submits.

#[path = "support/farm.rs"]
mod farm;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use accounting::{BatchNumber, Entry, codec};
use checkweigh::clock::Clock;
use checkweigh::config::LedgerConfig;
use checkweigh::dev_chain::DevChain;
use checkweigh::ledger::{Reader, SqliteReader};
use checkweigh::pool::PoolParts;
use checkweigh::pool::custom_jobs::CheckCustomJobs;
use farm::{DEADLINE, Running, chain, fixed, key, pool_parts, run_pool};
use futures_util::future::BoxFuture;
use job_declarator::server::{
    Claimant, CustomJob, JobDeclarationServer, Mode, PoolTip, Refusal, ServerAction, ServerConnection,
    ServerOutput, Verdict,
};
use mining_server::CustomJobRequest;
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::hash::{merkle_root, sha256d};
use stratum::sv2::codes::job_declaration_flags::DECLARE_TX_DATA;
use stratum::sv2::codes::setup_flags::REQUIRES_WORK_SELECTION;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_UPSTREAM;
use stratum::sv2::messages::*;
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, ConnectionId, JobId, RequestId, SequenceNumber, Target};
use template::outputs::write_outputs;
use template::{BlockTemplate, JobTemplate, Output, RawTransaction, Skeleton};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A share in about a thousand hashes.
const EXPONENT: i32 = -22;

/// Far more hashes than a share takes, and few enough to grind.
const HASHES_PER_BLOCK: u64 = 100_000;

const PAYOUT: [u8; 2] = [0x51, 0x75];

fn payout() -> Vec<Output> {
    vec![Output { value: 0, script: PAYOUT.to_vec() }]
}

/// A job declaration server without sockets, whose node finds every job good.
struct Checker {
    server: Mutex<JobDeclarationServer>,
    clock: Clock,
}

impl Checker {
    fn new() -> Arc<Self> {
        let server = Mutex::new(JobDeclarationServer::new(payout(), false));
        Arc::new(Checker { server, clock: Clock::start() })
    }

    fn lock(&self) -> MutexGuard<'_, JobDeclarationServer> {
        self.server.lock().expect("nothing panics here")
    }
}

impl CheckCustomJobs for Checker {
    fn check(&self, request: &CustomJobRequest) -> BoxFuture<'static, Result<CustomJob, Refusal>> {
        let claimant =
            Claimant { user_identity: &request.user_identity, extranonce_size: request.extranonce_size };
        let checked = self.lock().check_custom_job(claimant, &request.message, self.clock.now());
        Box::pin(std::future::ready(checked))
    }

    fn set_tip(&self, template: &Arc<BlockTemplate>) {
        self.lock().set_tip(PoolTip::from(&**template));
    }
}

fn fresh() -> [u8; 16] {
    let mut token = [0; 16];
    OsRng.fill_bytes(&mut token);
    token
}

/// A client's connection to the job declaration server.
struct Declarer {
    checker: Arc<Checker>,
    connection: ServerConnection,
    /// The transactions of what is being declared.
    known: Vec<RawTransaction>,
}

impl Declarer {
    fn set_up(checker: &Arc<Checker>, mode: Mode) -> Self {
        let connection = ServerConnection::new(ConnectionId(1), checker.clock.now());
        let mut declarer = Declarer { checker: Arc::clone(checker), connection, known: Vec::new() };
        let flags = if mode == Mode::FullTemplate { DECLARE_TX_DATA } else { 0 };
        let answer = declarer.send(setup(Protocol::JobDeclaration, flags));
        assert!(matches!(answer, Message::SetupConnectionSuccess(_)), "{answer:?}");
        declarer
    }

    /// Sends a message. Returns the one that answers it.
    fn send(&mut self, message: impl Into<Message>) -> Message {
        let (header, payload) = split(message.into());
        let (mut server, now) = (self.checker.lock(), self.checker.clock.now());
        let mut out = ServerOutput::default();
        self.connection.handle_frame(header, &payload, now, &mut server, &mut fresh, &mut out);
        while let Some(action) = out.actions.pop() {
            let server = &mut server;
            match action {
                ServerAction::LookUp { declaration, .. } => {
                    let found = self.known.iter().cloned().map(Some).collect();
                    self.connection.handle_looked_up(declaration, found, now, server, &mut out);
                }
                ServerAction::Validate { declaration, .. } => {
                    let valid = Verdict::Valid { revenue: None };
                    self.connection.handle_validated(declaration, valid, now, server, &mut fresh, &mut out);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(out.close.is_none(), "{:?}", out.close);
        let header = FrameHeader::parse(out.bytes[..6].try_into().expect("six bytes"));
        Message::decode(header, &out.bytes[6..]).expect("a message")
    }

    fn token(&mut self) -> MiningJobToken {
        let user_identifier = "account.declarer".to_owned();
        match self.send(AllocateMiningJobToken { user_identifier, request_id: RequestId(1) }) {
            Message::AllocateMiningJobTokenSuccess(success) => success.mining_job_token,
            other => panic!("{other:?}"),
        }
    }

    /// Declares a job of a template. Returns the token for it.
    fn declare(&mut self, template: &BlockTemplate, job: &Assembled) -> MiningJobToken {
        let raw = template.transactions.iter().map(|transaction| RawTransaction::parse(&transaction.raw));
        self.known = raw.collect::<Result<_, _>>().expect("transactions");
        let (coinbase_tx_prefix, coinbase_tx_suffix) = job.coinbase.declared_parts();
        let declaration = DeclareMiningJob {
            request_id: RequestId(2),
            mining_job_token: self.token(),
            version: job.template.version,
            coinbase_tx_prefix,
            coinbase_tx_suffix,
            wtxid_list: self.known.iter().map(|transaction| transaction.wtxid).collect(),
            excess_data: Vec::new(),
        };
        match self.send(declaration) {
            Message::DeclareMiningJobSuccess(success) => success.new_mining_job_token,
            other => panic!("{other:?}"),
        }
    }
}

/// A job of the client's own template.
struct Assembled {
    template: JobTemplate,
    coinbase: Skeleton,
}

impl Assembled {
    fn of(template: &BlockTemplate, extranonce_size: usize) -> Self {
        let template = JobTemplate::of_block_template(template);
        let coinbase = template.coinbase(&payout(), b"client", extranonce_size).expect("it fits");
        Assembled { template, coinbase }
    }

    fn request(&self, channel: &Channel, request: u32, token: MiningJobToken) -> SetCustomMiningJob {
        SetCustomMiningJob {
            channel_id: channel.opened.channel_id,
            request_id: RequestId(request),
            token,
            version: self.template.version,
            prev_hash: self.template.previous_hash,
            min_ntime: self.template.start_time,
            nbits: self.template.nbits,
            coinbase_tx_version: self.coinbase.version,
            coinbase_prefix: self.coinbase.script_prefix.clone(),
            coinbase_tx_input_n_sequence: self.coinbase.sequence,
            coinbase_tx_outputs: write_outputs(&self.coinbase.outputs),
            coinbase_tx_locktime: self.coinbase.lock_time,
            merkle_path: self.template.merkle_path.clone(),
        }
    }
}

/// A mining connection of a client that selects its own work, with an extended channel.
struct Channel {
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    input: Vec<u8>,
    messages: VecDeque<Message>,
    opened: OpenExtendedMiningChannelSuccess,
    /// The newest tip that the pool has told.
    tip: Option<[u8; 32]>,
    shares: u32,
}

impl Channel {
    async fn open(pool: &Running) -> Self {
        let mut stream = TcpStream::connect(pool.sv2).await.expect("the pool listens");
        let initiator = Initiator::new(Some(&key().public()), &mut OsRng);
        stream.write_all(&initiator.first()).await.expect("it is sent");
        let mut reply = [0; RESPONDER_MESSAGE_SIZE];
        stream.read_exact(&mut reply).await.expect("an answer");
        let now = Clock::start().now().unix_seconds();
        let transport = initiator.finish(&reply, now).expect("the pool's key");
        let (encryptor, decryptor) = transport.split(MAX_PAYLOAD_FROM_UPSTREAM);
        let (input, messages) = (vec![0; 65_536], VecDeque::new());
        let opened = OpenExtendedMiningChannelSuccess {
            request_id: RequestId(0),
            channel_id: ChannelId(0),
            target: Target::MAX,
            extranonce_size: 0,
            extranonce_prefix: Vec::new(),
            group_channel_id: ChannelId(0),
        };
        let mut channel =
            Channel { stream, encryptor, decryptor, input, messages, opened, tip: None, shares: 0 };
        channel.send(setup(Protocol::Mining, REQUIRES_WORK_SELECTION)).await;
        channel.wait_for(|message| matches!(message, Message::SetupConnectionSuccess(_)).then_some(())).await;
        let open = OpenExtendedMiningChannel {
            request_id: RequestId(1),
            user_identity: "account.client".to_owned(),
            nominal_hash_rate: 1e5,
            max_target: Target::MAX,
            min_extranonce_size: 8,
        };
        channel.send(open).await;
        channel.opened = channel
            .wait_for(|message| match message {
                Message::OpenExtendedMiningChannelSuccess(opened) => Some(opened),
                _ => None,
            })
            .await;
        channel
    }

    fn extranonce_size(&self) -> usize {
        self.opened.extranonce_prefix.len() + usize::from(self.opened.extranonce_size)
    }

    async fn send(&mut self, message: impl Into<Message>) {
        let mut encrypted = Vec::new();
        self.encryptor.encrypt_frames(&encoded(message.into()), &mut encrypted).expect("whole frames");
        self.stream.write_all(&encrypted).await.expect("the pool reads");
    }

    /// Reads until a message is what is wanted.
    async fn wait_for<T>(&mut self, wanted: impl Fn(Message) -> Option<T>) -> T {
        let found = async {
            loop {
                while let Some(message) = self.messages.pop_front() {
                    if let Some(found) = wanted(message) {
                        return found;
                    }
                }
                let length = self.stream.read(&mut self.input).await.expect("the pool writes");
                assert_ne!(length, 0, "the pool closed the connection");
                let mut input = &self.input[..length];
                while let Some(frame) = self.decryptor.next_frame(&mut input).expect("frames decrypt") {
                    let message = Message::decode(frame.header, frame.payload).expect("a message");
                    if let Message::SetNewPrevHash(tip) = &message {
                        self.tip = Some(tip.prev_hash);
                    }
                    self.messages.push_back(message);
                }
            }
        };
        timeout(DEADLINE, found).await.expect("in time")
    }

    /// Has the pool take a job. Returns its id, or the code that it was refused with.
    async fn set(&mut self, request: SetCustomMiningJob) -> Result<JobId, String> {
        let id = request.request_id;
        self.send(request).await;
        self.wait_for(|message| match message {
            Message::SetCustomMiningJobSuccess(success) if success.request_id == id => {
                Some(Ok(success.job_id))
            }
            Message::SetCustomMiningJobError(error) if error.request_id == id => Some(Err(error.error_code)),
            _ => None,
        })
        .await
    }

    /// Mines a share of a job. Whether it is a block is as wanted.
    async fn mine(&mut self, job: &Assembled, job_id: JobId, is_block: bool) -> Result<(), String> {
        self.shares += 1;
        let rolled = self.shares.to_be_bytes();
        let extranonce =
            [vec![0; usize::from(self.opened.extranonce_size) - rolled.len()], rolled.to_vec()].concat();
        let whole = [&self.opened.extranonce_prefix[..], &extranonce].concat();
        let root =
            merkle_root(sha256d(&job.coinbase.parts().with_extranonce(&whole)), &job.template.merkle_path);
        let (version, ntime) = (job.template.version, job.template.start_time);
        let network = Target::from_compact(job.template.nbits);
        let hash = |nonce: u32| {
            let rolled = [ntime, job.template.nbits, nonce];
            sha256d(&header(version, &job.template.previous_hash, &root, rolled))
        };
        let fits = |nonce: &u32| {
            let hash = hash(*nonce);
            self.opened.target.is_met_by(&hash) && network.is_met_by(&hash) == is_block
        };
        let nonce = (0..).find(fits).expect("some nonce does");
        let (channel_id, sequence_number) = (self.opened.channel_id, SequenceNumber(self.shares));
        let user_identity = None;
        let share = SubmitSharesExtended {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
            extranonce,
            user_identity,
        };
        self.send(share).await;
        self.wait_for(|message| match message {
            Message::SubmitSharesSuccess(success) if success.last_sequence_number == sequence_number => {
                Some(Ok(()))
            }
            Message::SubmitSharesError(error) if error.sequence_number == sequence_number => {
                Some(Err(error.error_code))
            }
            _ => None,
        })
        .await
    }
}

fn setup(protocol: Protocol, flags: u32) -> SetupConnection {
    SetupConnection {
        protocol,
        min_version: 2,
        max_version: 2,
        flags,
        endpoint_host: String::new(),
        endpoint_port: 0,
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
        device_id: String::new(),
    }
}

fn encoded(message: Message) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode_frame(&mut frame).expect("within the limits");
    frame
}

fn split(message: Message) -> (FrameHeader, Vec<u8>) {
    let frame = encoded(message);
    (FrameHeader::parse(frame[..6].try_into().expect("six bytes")), frame[6..].to_vec())
}

fn header(version: u32, previous: &[u8; 32], root: &[u8; 32], rolled: [u32; 3]) -> Vec<u8> {
    let [ntime, nbits, nonce] = rolled.map(u32::to_le_bytes);
    [&version.to_le_bytes()[..], previous, root, &ntime, &nbits, &nonce].concat()
}

async fn wait_until(is_met: impl Fn() -> bool) {
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    let met = async {
        while !is_met() {
            poll.tick().await;
        }
    };
    timeout(DEADLINE, met).await.expect("in time");
}

fn newest(chain: &DevChain) -> Arc<BlockTemplate> {
    chain.templates().borrow().clone().expect("always there")
}

/// The transactions of a declared job are with the pool, which makes blocks of them. It has no other way to one here:
/// the client has no node.
#[tokio::test(flavor = "multi_thread")]
async fn shares_of_a_declared_job_are_kept_and_its_block_is_submitted() {
    let (chain, checker) = (chain(HASHES_PER_BLOCK), Checker::new());
    let (pool, status) = run_pool(pool_parts(&chain, fixed(EXPONENT)), Some(checker.clone()), None);
    let mut channel = Channel::open(&pool).await;
    let template = newest(&chain);
    let job = Assembled::of(&template, channel.extranonce_size());
    let mut declarer = Declarer::set_up(&checker, Mode::FullTemplate);
    let token = declarer.declare(&template, &job);
    let job_id = channel.set(job.request(&channel, 5, token.clone())).await.expect("the pool takes it");
    let again = channel.set(job.request(&channel, 6, token)).await;
    assert_eq!(again, Err("invalid-mining-job-token".to_owned()), "a token is for one job");

    assert_eq!(channel.mine(&job, job_id, false).await, Ok(()));
    let totals = pool.wait_for("the share is recorded", |totals| totals.shares.accepted == 1).await;
    assert_eq!(totals.shares.submitted, 1);
    assert_eq!((chain.summary().accepted, channel.mine(&job, job_id, true).await), (0, Ok(())));
    pool.wait_for("the block is recorded", |totals| totals.shares.blocks == 1).await;
    wait_until(|| status.blocks_accepted.load(Ordering::Relaxed) == 1).await;
    let summary = chain.summary();
    assert_eq!((summary.accepted, summary.height), (1, template.height), "{:?}", summary.last_rejection);

    // The block is a new tip.
    if channel.tip == Some(template.previous_hash) {
        channel.wait_for(|message| matches!(message, Message::SetNewPrevHash(_)).then_some(())).await;
    }
    assert_eq!(channel.mine(&job, job_id, false).await, Err("stale-share".to_owned()));
    let other = Declarer::set_up(&checker, Mode::CoinbaseOnly).token();
    let late = channel.set(job.request(&channel, 7, other)).await;
    assert_eq!(late, Err("stale-chain-tip".to_owned()));
    let template = newest(&chain);
    let job = Assembled::of(&template, channel.extranonce_size());
    let token = declarer.declare(&template, &job);
    let job_id = channel.set(job.request(&channel, 8, token)).await.expect("the pool takes the next one");
    assert_eq!(channel.mine(&job, job_id, false).await, Ok(()));
    pool.stop().await;
}

/// What the pool never saw it cannot submit: the block is counted, and comes by the client's own node. All shares can be
/// hashed again from the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_a_job_that_shows_its_coinbase_alone_is_left_to_its_miner() {
    let (chain, checker) = (chain(HASHES_PER_BLOCK), Checker::new());
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Some(LedgerConfig::in_folder(folder.path().to_owned()));
    let parts = PoolParts { ledger, ..pool_parts(&chain, fixed(EXPONENT)) };
    let (pool, status) = run_pool(parts, Some(checker.clone()), None);
    let mut channel = Channel::open(&pool).await;
    let job = Assembled::of(&newest(&chain), channel.extranonce_size());
    let foreign = channel.set(job.request(&channel, 4, fresh().to_vec().into())).await;
    assert_eq!(foreign, Err("invalid-mining-job-token".to_owned()));
    let mut declarer = Declarer::set_up(&checker, Mode::CoinbaseOnly);
    let token = declarer.token();
    let job_id = channel.set(job.request(&channel, 5, token)).await.expect("the pool takes it");
    assert_eq!(channel.mine(&job, job_id, false).await, Ok(()));
    assert_eq!(channel.mine(&job, job_id, true).await, Ok(()));
    pool.wait_for("both are recorded", |totals| totals.shares.accepted == 2).await;
    wait_until(|| status.blocks_at_miners.load(Ordering::Relaxed) == 1).await;
    assert_eq!((status.blocks_lost.load(Ordering::Relaxed), chain.summary().accepted), (0, 0));
    pool.stop().await;
    assert_eq!(hashed_again(folder.path()), 2);
}

/// How many shares of a ledger are good when they are hashed again from the jobs before them.
fn hashed_again(folder: &Path) -> usize {
    let reader = SqliteReader::open(folder).expect("it can be read");
    let mut jobs = BTreeMap::new();
    let mut good = 0;
    for batch in reader.batches(BatchNumber(1)).expect("it can be read") {
        for entry in codec::entries(&batch.expect("a batch").payload) {
            match entry.expect("an entry") {
                Entry::Job(job) => {
                    jobs.insert(job.number, job);
                }
                Entry::Share(share) => {
                    let job = &jobs[&share.job.expect("it is for a job")];
                    assert_eq!(usize::from(job.rollable_size), share.rollable.len());
                    let coinbase = [&job.coinbase_prefix, &share.rollable[..], &job.coinbase_suffix].concat();
                    let root = merkle_root(sha256d(&coinbase), &job.merkle_path);
                    let rolled = [share.ntime, job.nbits, share.nonce];
                    let hash = sha256d(&header(share.version, &job.previous_hash, &root, rolled));
                    good += usize::from(Target::from_difficulty_exponent(EXPONENT).is_met_by(&hash));
                }
                _ => (),
            }
        }
    }
    good
}

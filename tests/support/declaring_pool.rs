//! A pool and its job declaration server, over the real decisions of `job_declarator::server`, that can be told to
//! misbehave. Every share that reaches it is hashed, and must be of a job that it has taken.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use checkweigh::config::listen::bind;
use job_declarator::server::{
    Claimant, CustomJob, JobDeclarationServer, PoolTip, ServerAction, ServerConnection, ServerOutput, Verdict,
};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::hash::{merkle_root, sha256d};
use stratum::sv2::codes::setup_flags;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_UPSTREAM;
use stratum::sv2::messages::*;
use stratum::sv2::noise::{INITIATOR_MESSAGE_SIZE, Responder};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::{AuthoritySecretKey, FrameHeader, Message};
use stratum::{ChannelId, ConnectionId, JobId, Target};
use template::{BlockTemplate, Output};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// The authority key of the pool and of its job declaration server.
pub(crate) fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

fn listen(address: SocketAddr) -> std::net::TcpListener {
    bind(address).expect("a port can be listened on")
}

const HANDSHAKE: Duration = Duration::from_secs(60);

/// Bytes that channels may roll.
const EXTRANONCE_SIZE: usize = 12;

const CHANNEL: ChannelId = ChannelId(1);

/// What the pool's payout output pays to.
pub(crate) const PAYOUT: [u8; 2] = [0x51, 0x75];

/// What it does wrong. Changes count from the next message on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manners {
    pub(crate) refuses_declarations: bool,
    /// Declarations are never answered.
    pub(crate) ignores_declarations: bool,
    pub(crate) refuses_custom_jobs: bool,
    pub(crate) refuses_shares: bool,
    /// Custom jobs are not answered until this ends.
    pub(crate) holds_custom_jobs: bool,
    /// Channels are opened, and the pool's own jobs sent, for those who do not declare any.
    pub(crate) has_own_jobs: bool,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) declared_shares: u64,
    pub(crate) own_shares: u64,
    pub(crate) asked_for_transactions: u64,
    pub(crate) custom_jobs: u64,
    /// Blocks that were pushed, and those that it made of shares.
    pub(crate) pushed: u64,
    pub(crate) solved: u64,
    /// What no honest client does.
    pub(crate) wrong: Vec<String>,
}

struct Shared {
    server: JobDeclarationServer,
    seen: Seen,
    next_connection: u64,
}

#[derive(Clone)]
struct Inner {
    shared: Arc<Mutex<Shared>>,
    manners: watch::Receiver<Manners>,
    templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
    target: Target,
}

/// Where it listens. It ends with this.
pub(crate) struct DeclaringPool {
    pub(crate) mining: SocketAddr,
    pub(crate) declaration: SocketAddr,
    manners: watch::Sender<Manners>,
    inner: Inner,
    servers: [Option<AbortHandle>; 2],
}

impl Drop for DeclaringPool {
    fn drop(&mut self) {
        self.stop_declaring();
        self.stop_mining();
    }
}

impl DeclaringPool {
    /// Starts it on the templates of a chain or node.
    pub(crate) fn start(templates: watch::Receiver<Option<Arc<BlockTemplate>>>, target: Target) -> Self {
        let (manners, seen_manners) = watch::channel(Manners { has_own_jobs: true, ..Manners::default() });
        let outputs = vec![Output { value: 0, script: PAYOUT.to_vec() }];
        let server = JobDeclarationServer::new(outputs, false);
        let inner = Inner {
            shared: Arc::new(Mutex::new(Shared { server, seen: Seen::default(), next_connection: 0 })),
            manners: seen_manners,
            templates,
            target,
        };
        let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut pool =
            DeclaringPool { mining: unused, declaration: unused, manners, inner, servers: [None, None] };
        pool.start_mining();
        pool.start_declaring();
        pool
    }

    pub(crate) fn seen(&self) -> Seen {
        self.inner.lock().seen.clone()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Manners)) {
        self.manners.send_modify(change);
    }

    /// Listens where it listened before, or anywhere.
    pub(crate) fn start_mining(&mut self) {
        let listener = listen(self.mining);
        self.mining = listener.local_addr().expect("it listens");
        self.servers[0] = Some(serve(listener, self.inner.clone(), |inner, wire, id| inner.mine(wire, id)));
    }

    pub(crate) fn start_declaring(&mut self) {
        let listener = listen(self.declaration);
        self.declaration = listener.local_addr().expect("it listens");
        self.servers[1] =
            Some(serve(listener, self.inner.clone(), |inner, wire, id| inner.declare(wire, id)));
    }

    /// Closes the listener and every connection, as a process that is killed does.
    pub(crate) fn stop_mining(&mut self) {
        self.servers[0].take().into_iter().for_each(|server| server.abort());
    }

    pub(crate) fn stop_declaring(&mut self) {
        self.servers[1].take().into_iter().for_each(|server| server.abort());
    }
}

/// Serves each connection by a task; all of them end with the one that is returned.
fn serve<Served>(
    listener: std::net::TcpListener,
    inner: Inner,
    act: impl Fn(Inner, Wire, ConnectionId) -> Served + Send + 'static,
) -> AbortHandle
where
    Served: Future<Output = Option<()>> + Send + 'static,
{
    let task = tokio::spawn(async move {
        let listener = TcpListener::from_std(listener).expect("it listens");
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Some(wire) = Wire::accept(stream, &key()).await else { continue };
            let id = {
                let mut shared = inner.lock();
                shared.next_connection += 1;
                ConnectionId(shared.next_connection)
            };
            connections.spawn(act(inner.clone(), wire, id));
        }
    });
    task.abort_handle()
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics here")
    }

    fn wrong(&self, what: impl Into<String>) {
        self.lock().seen.wrong.push(what.into());
    }

    fn set_tip(&self) {
        if let Some(template) = self.templates.borrow().as_deref() {
            self.lock().server.set_tip(PoolTip::from(template));
        }
    }

    /// One job declaration connection.
    async fn declare(mut self, mut wire: Wire, id: ConnectionId) -> Option<()> {
        self.set_tip();
        let mut connection = ServerConnection::new(id, now());
        let mut out = ServerOutput::default();
        loop {
            tokio::select! {
                changed = self.templates.changed() => {
                    changed.ok()?;
                    self.set_tip();
                    connection.handle_tip(now(), &mut self.lock().server, &mut out);
                }
                frame = wire.next() => {
                    let Some((header, payload)) = frame else { break };
                    let shared = &mut *self.lock();
                    connection.handle_frame(header, &payload, now(), &mut shared.server, &mut fresh, &mut out);
                }
            }
            self.act(&mut connection, &mut out);
            wire.send(&std::mem::take(&mut out.bytes)).await?;
            if let Some(reason) = out.close.take() {
                self.wrong(format!("closed: {reason}"));
                break;
            }
        }
        connection.handle_closed(&mut self.lock().server, &mut out);
        Some(())
    }

    /// Does what the connection asks for, as a node would that knows no transaction and finds every job good.
    fn act(&self, connection: &mut ServerConnection, out: &mut ServerOutput) {
        while !out.actions.is_empty() {
            for action in std::mem::take(&mut out.actions) {
                let shared = &mut *self.lock();
                match action {
                    ServerAction::LookUp { declaration, wtxids } => {
                        shared.seen.asked_for_transactions += 1;
                        let found = vec![None; wtxids.len()];
                        connection.handle_looked_up(declaration, found, now(), &mut shared.server, out);
                    }
                    ServerAction::Validate { .. } if self.manners.borrow().ignores_declarations => (),
                    ServerAction::Validate { declaration, .. } => {
                        let verdict = if self.manners.borrow().refuses_declarations {
                            Verdict::Invalid("bad-tests".to_owned())
                        } else {
                            Verdict::Valid { revenue: None }
                        };
                        let server = &mut shared.server;
                        connection.handle_validated(declaration, verdict, now(), server, &mut fresh, out);
                    }
                    ServerAction::Abandon { .. } => (),
                    ServerAction::Submit(_) => shared.seen.pushed += 1,
                }
            }
        }
    }

    /// One mining connection.
    async fn mine(mut self, mut wire: Wire, id: ConnectionId) -> Option<()> {
        let mut session = Session::new(id);
        loop {
            let (header, payload) = tokio::select! {
                changed = self.templates.changed() => {
                    changed.ok()?;
                    self.set_tip();
                    wire.send(&session.own_job(&self)).await?;
                    continue;
                }
                frame = wire.next() => frame?,
            };
            let message = Message::decode(header, &payload).expect("a proxy's messages can be read");
            if matches!(message, Message::SetCustomMiningJob(_)) {
                let mut manners = self.manners.clone();
                manners.wait_for(|manners| !manners.holds_custom_jobs).await.ok()?;
            }
            let answer = session.handle(message, &self)?;
            wire.send(&answer).await?;
        }
    }
}

/// A mining connection with at most one channel.
struct Session {
    prefix: Vec<u8>,
    user_identity: String,
    declares: bool,
    is_open: bool,
    jobs: HashMap<JobId, CustomJob>,
    own_jobs: BTreeMap<JobId, Arc<BlockTemplate>>,
    next_job: u32,
}

impl Session {
    fn new(id: ConnectionId) -> Self {
        Session {
            prefix: vec![0xab, id.0 as u8],
            user_identity: String::new(),
            declares: false,
            is_open: false,
            jobs: HashMap::new(),
            own_jobs: BTreeMap::new(),
            next_job: 1,
        }
    }

    /// What it answers to a message; `None` ends the connection.
    fn handle(&mut self, message: Message, inner: &Inner) -> Option<Vec<u8>> {
        match message {
            Message::SetupConnection(setup) => {
                self.declares = setup.flags & setup_flags::REQUIRES_WORK_SELECTION != 0;
                Some(frame(SetupConnectionSuccess { used_version: 2, flags: 0 }))
            }
            Message::RequestExtensions(request) => Some(frame(RequestExtensionsError {
                request_id: request.request_id,
                unsupported_extensions: request.requested_extensions,
                required_extensions: Vec::new(),
            })),
            Message::OpenExtendedMiningChannel(request) => {
                self.is_open = true;
                self.user_identity = request.user_identity;
                let mut answer = frame(OpenExtendedMiningChannelSuccess {
                    request_id: request.request_id,
                    channel_id: CHANNEL,
                    target: inner.target,
                    extranonce_size: EXTRANONCE_SIZE as u16,
                    extranonce_prefix: self.prefix.clone(),
                    group_channel_id: ChannelId(9),
                });
                answer.extend(self.own_job(inner));
                Some(answer)
            }
            Message::SetCustomMiningJob(custom) => Some(self.custom_job(&custom, inner)),
            Message::SubmitSharesExtended(share) => Some(self.share(&share, inner)),
            Message::CloseChannel(_) => {
                self.is_open = false;
                Some(Vec::new())
            }
            _ => Some(Vec::new()),
        }
    }

    /// A job of the pool's own on its tip, for those who declare none.
    fn own_job(&mut self, inner: &Inner) -> Vec<u8> {
        let template = inner.templates.borrow().clone();
        let Some(template) =
            template.filter(|_| self.is_open && !self.declares && inner.manners.borrow().has_own_jobs)
        else {
            return Vec::new();
        };
        let job_id = JobId(self.next_job);
        self.next_job += 1;
        let mut bytes = frame(NewExtendedMiningJob {
            channel_id: CHANNEL,
            job_id,
            min_ntime: None,
            version: template.version,
            version_rolling_allowed: true,
            merkle_path: Vec::new(),
            coinbase_tx_prefix: vec![1; 60],
            coinbase_tx_suffix: vec![2; 60],
        });
        bytes.extend(frame(SetNewPrevHash {
            channel_id: CHANNEL,
            job_id,
            prev_hash: template.previous_hash,
            min_ntime: template.current_time,
            nbits: template.nbits,
        }));
        self.own_jobs.insert(job_id, template);
        bytes
    }

    fn custom_job(&mut self, custom: &SetCustomMiningJob, inner: &Inner) -> Vec<u8> {
        let (channel_id, request_id) = (custom.channel_id, custom.request_id);
        let refuse =
            |error_code: String| frame(SetCustomMiningJobError { channel_id, request_id, error_code });
        if inner.manners.borrow().refuses_custom_jobs {
            return refuse("jd-not-supported".to_owned());
        }
        if !self.declares {
            inner.wrong("a custom job without REQUIRES_WORK_SELECTION");
        }
        let claimant = Claimant {
            user_identity: &self.user_identity,
            extranonce_size: self.prefix.len() + EXTRANONCE_SIZE,
        };
        let checked = inner.lock().server.check_custom_job(claimant, custom, now());
        match checked {
            Ok(job) => {
                let job_id = JobId(self.next_job);
                self.next_job += 1;
                self.jobs.insert(job_id, job);
                inner.lock().seen.custom_jobs += 1;
                frame(SetCustomMiningJobSuccess { channel_id, request_id, job_id })
            }
            Err(refusal) => refuse(refusal.code),
        }
    }

    fn share(&mut self, share: &SubmitSharesExtended, inner: &Inner) -> Vec<u8> {
        let (channel_id, sequence_number) = (share.channel_id, share.sequence_number);
        let extranonce = [&self.prefix[..], &share.extranonce].concat();
        let header = if self.declares {
            let Some(job) = self.jobs.get(&share.job_id) else {
                inner.wrong(format!("a share of job {}, which the pool has not taken", share.job_id));
                return Vec::new();
            };
            let root = merkle_root(sha256d(&job.coinbase.with_extranonce(&extranonce)), &job.merkle_path);
            header(share, job.tip.previous_hash, root, job.tip.nbits)
        } else {
            let Some(template) = self.own_jobs.get(&share.job_id) else {
                inner.wrong(format!("a share of an unknown job {}", share.job_id));
                return Vec::new();
            };
            let coinbase = [&[1; 60][..], &extranonce, &[2; 60]].concat();
            header(share, template.previous_hash, sha256d(&coinbase), template.nbits)
        };
        let hash = sha256d(&header);
        let mut shared = inner.lock();
        if !inner.target.is_met_by(&hash) {
            shared.seen.wrong.push(format!("share {sequence_number} misses its target"));
        }
        if self.declares {
            shared.seen.declared_shares += 1;
            let nbits = self.jobs[&share.job_id].tip.nbits;
            shared.seen.solved += u64::from(Target::from_compact(nbits).is_met_by(&hash));
        } else {
            shared.seen.own_shares += 1;
        }
        if self.declares && inner.manners.borrow().refuses_shares {
            let error_code = "invalid-share".to_owned();
            return frame(SubmitSharesError { channel_id, sequence_number, error_code });
        }
        frame(SubmitSharesSuccess {
            channel_id,
            last_sequence_number: sequence_number,
            new_submits_accepted_count: 1,
            new_shares_sum: 1,
        })
    }
}

fn header(share: &SubmitSharesExtended, previous: [u8; 32], root: [u8; 32], nbits: u32) -> Vec<u8> {
    let mut header = share.version.to_le_bytes().to_vec();
    header.extend_from_slice(&previous);
    header.extend_from_slice(&root);
    for number in [share.ntime, nbits, share.nonce] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header
}

fn frame(message: impl Into<Message>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.into().encode_frame(&mut frame).expect("within the limits");
    frame
}

fn fresh() -> [u8; 16] {
    let mut token = [0; 16];
    OsRng.fill_bytes(&mut token);
    token
}

fn now() -> stratum::Now {
    use std::sync::LazyLock;
    static CLOCK: LazyLock<checkweigh::clock::Clock> = LazyLock::new(checkweigh::clock::Clock::start);
    CLOCK.now()
}

/// An encrypted connection.
struct Wire {
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    input: Vec<u8>,
    frames: std::collections::VecDeque<(FrameHeader, Vec<u8>)>,
}

impl Wire {
    async fn accept(mut stream: TcpStream, key: &AuthoritySecretKey) -> Option<Self> {
        let mut first = [0; INITIATOR_MESSAGE_SIZE];
        stream.read_exact(&mut first).await.ok()?;
        let responder = Responder::new(key, HANDSHAKE, &mut OsRng);
        let (reply, transport) = responder.step(&first, now().unix_seconds(), &mut OsRng).ok()?;
        stream.write_all(&reply).await.ok()?;
        let (encryptor, decryptor) = transport.split(MAX_PAYLOAD_FROM_UPSTREAM);
        Some(Wire { stream, encryptor, decryptor, input: vec![0; 64 * 1024], frames: Default::default() })
    }

    /// The next frame; `None` when the peer has gone. May be dropped and called again.
    async fn next(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let length = self.stream.read(&mut self.input).await.ok().filter(|length| *length > 0)?;
            let mut input = &self.input[..length];
            while let Some(frame) = self.decryptor.next_frame(&mut input).expect("frames decrypt") {
                self.frames.push_back((frame.header, frame.payload.to_vec()));
            }
        }
    }

    async fn send(&mut self, frames: &[u8]) -> Option<()> {
        let mut encrypted = Vec::new();
        self.encryptor.encrypt_frames(frames, &mut encrypted).expect("whole frames");
        self.stream.write_all(&encrypted).await.ok()
    }
}

//! The miners' side of the program: accepts connections and drives them, those of SV1 on threads of their own and each
//! of SV2 with a task.
//!
//! What a connection decides is in the `mining-server` crate; here are only sockets, timers and queues. A
//! connection that panics is closed and counted, and nobody else notices.

mod holdings;
mod limiter;
mod sv1;
mod sv2;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mining_proxy::DownstreamKey;
use mining_server::sv2::TOO_MANY_WAITING;
use mining_server::{
    CloseReason, CustomJobRequest, DropReason, Event, Fate, Fault, Output, Settings, ShareEvent, Verdict,
    VersionRolling,
};
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::{ConnectionId, Now};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::latency::Latencies;
use crate::owner::{Command, CustomJobOrder, Mailbox, Owner, SHARE_BATCH, TaskMailbox};
use crate::registry::SharedRegistry;
use crate::shutdown::Shutdown;
use crate::sink::{RecordSink, RecordWriter};
use limiter::{LineKind, LogLimits};

/// The kernel gives up on a peer that acknowledges nothing for this long: half-open connections end here.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a connection's read buffer while it has something to read; none while it is idle.
const READ_BUFFER: usize = 4096;

/// How long a share waits for room in its owner's queue before it is dropped. An owner that is only busy makes room
/// within milliseconds; one that does not for this long has a pool that does not listen.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// How long [`serve`] waits after accept failed, so that running out of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections have to end after the end was asked for.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long a connection waits for its peer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the peer to accept what we write: a job that is this late is worth nothing.
    pub write: Duration,
    /// For the handshake of an SV2 peer: who has not sent its 64 bytes by then speaks something else.
    pub handshake: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { write: Duration::from_secs(10), handshake: Duration::from_secs(10) }
    }
}

/// What all connections of one role share.
#[derive(Clone, Debug)]
pub struct Context {
    /// What the state machines must know of the configuration.
    pub settings: Arc<Settings>,
    /// Who is who, and who holds which extranonce.
    pub registry: SharedRegistry,
    /// Where work comes from and shares go.
    pub owner: Owner,
    /// Where records go.
    pub sink: RecordSink,
    /// The clocks.
    pub clock: Clock,
    /// What is measured of answers and jobs.
    pub latencies: Arc<Latencies>,
    /// How many connections there are, and what became of them.
    pub counts: Arc<ConnectionCounts>,
    /// Limits the connections of all listeners together.
    pub slots: Arc<Semaphore>,
    /// How long they wait for their peers.
    pub patience: Patience,
}

/// Counts of connections, for metrics.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// Open SV1 connections.
    pub sv1: AtomicU64,
    /// Open SV2 connections.
    pub sv2: AtomicU64,
    /// Connections accepted since the start.
    pub accepted: AtomicU64,
    /// Connections turned away because all slots were taken.
    pub refused: AtomicU64,
    /// Connections closed for what the peer did.
    pub closed_for_fault: AtomicU64,
    /// Connections that ended by a bug of ours.
    pub panicked: AtomicU64,
    /// Open SV1 connections whose miner may roll the version bits that it negotiated.
    pub rolling_granted: AtomicU64,
    /// Open SV1 connections whose miner negotiated version rolling and may not roll, because the job forbids it.
    pub rolling_withheld: AtomicU64,
    /// How often a connection came to be among those, since the start: some miners leave at once.
    pub rolling_withheld_total: AtomicU64,
    /// SV1 connections since the start whose miner rolled version bits outside its mask.
    pub rolled_outside_mask: AtomicU64,
    next_id: AtomicU64,
    /// Here because the listeners of a role share it, as they share the counts.
    log: LogLimits,
}

impl ConnectionCounts {
    /// The gauge of the open connections in this state; none for those that negotiated nothing.
    fn version_rolling(&self, state: VersionRolling) -> Option<&AtomicU64> {
        match state {
            VersionRolling::NotNegotiated => None,
            VersionRolling::Granted => Some(&self.rolling_granted),
            VersionRolling::Withheld => Some(&self.rolling_withheld),
        }
    }
}

/// What a listener speaks.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// Lines of JSON.
    Sv1,
    /// Noise, with this authority key.
    Sv2(Arc<AuthoritySecretKey>),
}

/// Open files that each SV1 listener takes besides its connections.
pub(crate) fn files_of_sv1_listener() -> usize {
    sv1::workers() * sv1::FILES_OF_WORKER
}

/// Accepts connections until the end is asked for, and then waits a moment for them to close.
///
/// # Panics
///
/// When the registry is broken: connections share it, and the role must not outlive it.
pub async fn serve(listener: TcpListener, protocol: Protocol, context: Context, shutdown: Shutdown) {
    match protocol {
        Protocol::Sv1 => sv1::serve(listener, context, shutdown).await,
        Protocol::Sv2(key) => serve_sv2(listener, key, context, shutdown).await,
    }
}

async fn serve_sv2(
    listener: TcpListener,
    key: Arc<AuthoritySecretKey>,
    context: Context,
    mut shutdown: Shutdown,
) {
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(limiter::PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => break,
            Some(ended) = connections.join_next() => {
                note_end(&ended, &context);
                continue;
            }
            _ = tick.tick() => {
                tidy(&context);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => accept(&mut connections, stream, peer, &key, &context, &shutdown),
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let ended = tokio::time::timeout(CLOSE_GRACE, async {
        while let Some(ended) = connections.join_next().await {
            note_end(&ended, &context);
        }
    });
    if ended.await.is_err() {
        tracing::warn!(connections = connections.len(), "cut connections that did not close in time");
    }
    log_withheld(&context);
}

fn accept(
    connections: &mut JoinSet<()>,
    stream: TcpStream,
    peer: SocketAddr,
    key: &Arc<AuthoritySecretKey>,
    context: &Context,
    shutdown: &Shutdown,
) {
    let Ok(slot) = Arc::clone(&context.slots).try_acquire_owned() else {
        context.counts.refused.fetch_add(1, Ordering::Relaxed);
        if context.counts.log.admit(LineKind::TurnedAway, context.clock.now().monotonic) {
            tracing::warn!(%peer, "turned a connection away: downstream.max_connections is reached");
        }
        return;
    };
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%peer, %error, "a connection was gone before it was served");
        return;
    }
    context.counts.accepted.fetch_add(1, Ordering::Relaxed);
    let id = ConnectionId(context.counts.next_id.fetch_add(1, Ordering::Relaxed) + 1);
    let (context, key, shutdown) = (context.clone(), Arc::clone(key), shutdown.clone());
    connections.spawn(async move {
        Box::pin(sv2::drive(stream, peer, id, key, context, shutdown)).await;
        drop(slot);
    });
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(TCP_USER_TIMEOUT))
}

fn note_end(ended: &Result<(), tokio::task::JoinError>, context: &Context) {
    if let Err(error) = ended {
        context.note_panic(error);
    }
}

impl Context {
    /// Notes that a connection ended by a panic.
    ///
    /// # Panics
    ///
    /// When what all connections share is broken: every later one would panic too, while the process looked alive.
    fn note_panic(&self, what: &dyn std::fmt::Display) {
        self.counts.panicked.fetch_add(1, Ordering::Relaxed);
        tracing::error!("a connection ended by a bug of ours; please report it: {what}");
        assert!(!self.registry.is_broken(), "the registry of devices and extranonces is broken");
    }
}

/// What the driver of an SV2 connection does with what its state machine puts out.
struct Outlet {
    id: ConnectionId,
    owner: Owner,
    writer: RecordWriter,
    latencies: Arc<Latencies>,
    clock: Clock,
    patience: Patience,
    counts: Arc<ConnectionCounts>,
    mailbox: Arc<TaskMailbox>,
    /// When what is being answered was read, if there is a share among it.
    share_read: Option<Now>,
    /// When the clean job that is being sent reached us.
    clean_job_received: Option<Now>,
}

impl Outlet {
    fn new(id: ConnectionId, context: &Context) -> Self {
        Outlet {
            id,
            owner: context.owner.clone(),
            writer: context.sink.writer(),
            latencies: Arc::clone(&context.latencies),
            clock: context.clock,
            patience: context.patience,
            counts: Arc::clone(&context.counts),
            mailbox: Arc::new(TaskMailbox::default()),
            share_read: None,
            clean_job_received: None,
        }
    }

    /// Passes shares and events on. A block is in its owner's queue when this returns, before its miner is answered.
    async fn dispatch(&mut self, out: &mut Output) {
        if let Some(first) = out.shares.first() {
            self.share_read = Some(first.record.judged);
        }
        let mut batch = Vec::new();
        for share in out.shares.drain(..) {
            if let Some(share) = self.pass_share(share).await {
                batch.push(share);
                if batch.len() == SHARE_BATCH {
                    self.forward(std::mem::take(&mut batch)).await;
                }
            }
        }
        if !batch.is_empty() {
            self.forward(batch).await;
        }
        for request in out.custom_jobs.drain(..) {
            self.order(request);
        }
        for event in out.events.drain(..) {
            match event {
                Event::OpenUpstream { channel, user_identity, hash_rate } => {
                    let key = self.key(channel);
                    let mailbox: Arc<dyn Mailbox> = self.mailbox.clone();
                    self.command(Command::Open { key, user_identity, hash_rate, mailbox }).await;
                }
                Event::CloseUpstream { channel } => {
                    self.command(Command::Close { key: self.key(channel) }).await
                }
                Event::HashRate { channel, rate } => {
                    self.command(Command::HashRate { key: self.key(channel), rate }).await;
                }
                Event::NewJobWanted { channel } => {
                    self.command(Command::NewJobWanted { key: self.key(channel) }).await;
                }
                // The connection's holdings count these.
                Event::VersionRolling(_) | Event::RolledOutsideMask => {}
                Event::Notice(notice) => log_notice(self.id, &notice, &self.counts, self.clock),
            }
        }
    }

    /// Passes a share on, or gives it back if it is to be forwarded with others.
    async fn pass_share(&mut self, share: ShareEvent) -> Option<ShareEvent> {
        match &share.forward {
            None => keep(&mut self.writer, share),
            Some(forward) if forward.is_block => {
                if let Err(refused) = self.owner.blocks.send(share).await {
                    not_taken(&mut self.writer, refused.0, DropReason::UpstreamLost);
                }
            }
            Some(_) => return Some(share),
        }
        None
    }

    /// Hands a batch of shares on. An owner that makes no room for [`MAX_HOLD`] is stuck, and then they are dropped and
    /// counted.
    async fn forward(&mut self, batch: Vec<ShareEvent>) {
        if let Err(refused) = self.owner.shares.send_timeout(batch, MAX_HOLD).await {
            let full = matches!(refused, SendTimeoutError::Timeout(_));
            let reason = if full { DropReason::QueueFull } else { DropReason::UpstreamLost };
            for share in refused.into_inner() {
                not_taken(&mut self.writer, share, reason);
            }
        }
    }

    /// Asks the owner for a custom job. What has no room is refused by the way that its answer would have come.
    fn order(&self, request: CustomJobRequest) {
        let order = CustomJobOrder { request, mailbox: Arc::clone(&self.mailbox) };
        let orders = self.owner.custom_jobs.as_ref().expect("only its connections take custom jobs");
        if let Err(refused) = orders.try_send(order) {
            refused.into_inner().answer(Err(TOO_MANY_WAITING.to_owned()));
        }
    }

    /// Tells the owner. News that it no longer takes mean nothing: the process ends.
    async fn command(&self, command: Command) {
        let _ = self.owner.commands.send(command).await;
    }

    fn key(&self, channel: stratum::ChannelId) -> DownstreamKey {
        DownstreamKey { connection: self.id, channel }
    }

    /// Writes `bytes` and notes how long what is in them took.
    async fn write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
    ) -> Result<(), CloseReason> {
        if !bytes.is_empty() {
            match tokio::time::timeout(self.patience.write, stream.write_all(bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(CloseReason::gone(format!("writing failed: {error}"))),
                Err(_) => return Err(CloseReason::downstream("it reads too slowly")),
            }
        }
        let now = self.clock.now();
        if let Some(read) = self.share_read.take() {
            self.latencies.share_ack.record(now.since(read));
        }
        if let Some(received) = self.clean_job_received.take() {
            self.latencies.new_block.record(now.since(received));
        }
        Ok(())
    }
}

/// Records a share that its owner did not take. A pool's share is kept whether it came to its owner or not.
fn not_taken(writer: &mut RecordWriter, mut share: ShareEvent, reason: DropReason) {
    if share.record.fate == Fate::Kept {
        tracing::error!(job = ?share.record.job, "a block is lost: the pool has ended");
    } else {
        share.record.fate = Fate::Dropped(reason);
    }
    keep(writer, share);
}

/// Records a share that goes nowhere. A block among them is money lost, which the operator must hear of.
fn keep(writer: &mut RecordWriter, share: ShareEvent) {
    let record = share.record;
    if record.verdict == Verdict::BlockFound
        && let Fate::Dropped(reason) = record.fate
    {
        tracing::error!(job = ?record.job, reason = reason.name(), "a block is lost: it has nowhere to go");
    }
    writer.share(record);
}

fn log_close(
    kind: LineKind,
    peer: SocketAddr,
    id: ConnectionId,
    who: &str,
    reason: &CloseReason,
    context: &Context,
) {
    if reason.fault == Fault::Downstream {
        context.counts.closed_for_fault.fetch_add(1, Ordering::Relaxed);
    }
    if context.counts.log.admit(kind, context.clock.now().monotonic) {
        tracing::info!(%peer, connection = id.0, who, fault = ?reason.fault, "closed: {reason}");
    }
}

/// What is odd about a connection, in a line of the log. Strangers can cause as many as they like.
fn log_notice(id: ConnectionId, notice: &str, counts: &ConnectionCounts, clock: Clock) {
    if counts.log.admit(LineKind::Notice, clock.now().monotonic) {
        tracing::info!(connection = id.0, "{notice}");
    }
}

/// What is looked after from time to time, beside the connections.
fn tidy(context: &Context) {
    log_withheld(context);
    context.registry.flush();
}

fn log_withheld(context: &Context) {
    for (kind, lines) in context.counts.log.take_withheld(context.clock.now().monotonic) {
        tracing::warn!(lines, "withheld lines about {}", kind.what());
    }
}

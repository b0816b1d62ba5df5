//! Drives one upstream: dials it, keeps the Noise connection, and carries frames, shares and work between the
//! state machine of the `mining-proxy` crate and the rest of the program.
//!
//! The task never waits for a connection of ours, and a slow pool never holds up work: what cannot be written is
//! kept up to a bound, and then shares wait in their queue and are dropped there. Blocks never wait; a pool that does
//! not even take those is given up.

mod lines;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mining_proxy::upstream::MAX_DEVICE_CHANNELS;
use mining_proxy::{
    Backoff, DownstreamKey, Endpoint, Feed, LinkState, Upstream, UpstreamConfig, UpstreamOutput,
};
use mining_server::{CloseReason, Fate, ShareEvent};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_UPSTREAM;
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::url::PoolUrl;
use stratum::{HashRate, JobNumber, Now};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::latency::Latencies;
use crate::owner::{
    BLOCK_QUEUE, COMMAND_BATCH, Command, DRAIN_GRACE, Delivery, Mailbox, OwnerInbox, SHARE_QUEUE,
};
use crate::registry::SharedRegistry;
use crate::shutdown::Shutdown;
use crate::sink::RecordWriter;
use lines::LineLimit;

/// How long a pool has to accept a TCP connection and finish the handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that wait for a slow pool. With more, no further shares are taken from their queue.
const MAX_UNWRITTEN: usize = 256 * 1024;

/// Bytes that wait for a slow pool with blocks among them, which are taken whatever waits. With more the connection
/// is given up: tens of thousands of blocks are found on test networks alone, and such a pool reads nothing any more.
const MAX_UNWRITTEN_WITH_BLOCKS: usize = 16 * MAX_UNWRITTEN;

/// Blocks that are taken in a row. Then everything else has its turn: it may be a new tip, which makes those that
/// follow worthless.
const BLOCKS_IN_A_ROW: u32 = 16;

/// Shares that are forwarded together at most, in one encryption pass and one write.
const SHARE_BATCH: usize = 256;

/// Devices that have gone while a slow pool left no room for their last shares: no more can have a channel. One more
/// goes at once, and its shares are dropped.
const MAX_WAITING_CLOSES: usize = MAX_DEVICE_CHANNELS;

/// Bytes read at once from the pool.
const READ_BUFFER: usize = 16 * 1024;

/// How long the last frames have to leave when the program ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the rest of the program may know of an upstream.
#[derive(Debug, Default)]
pub struct UpstreamStatus {
    /// Whether work comes from it and shares go to it.
    pub live: AtomicBool,
}

/// What an upstream's task needs.
#[derive(Debug)]
pub struct UpstreamTask {
    /// What the state machine must know.
    pub config: UpstreamConfig,
    /// Where to dial.
    pub url: PoolUrl,
    /// The queues of the connections that this upstream serves.
    pub inbox: OwnerInbox,
    /// Where records go.
    pub writer: RecordWriter,
    /// The clocks.
    pub clock: Clock,
    /// What is measured.
    pub latencies: Arc<Latencies>,
    /// Told which job is the oldest that counts.
    pub registry: SharedRegistry,
    /// Told whether it is live.
    pub status: Arc<UpstreamStatus>,
}

/// Serves one upstream until the end is asked for.
pub async fn run(task: UpstreamTask, mut shutdown: Shutdown) {
    let now = task.clock.now();
    let mut driver = Driver::new(task, now);
    driver.serve(shutdown.requested()).await;
    // Connections end first: what they have judged by then is still forwarded.
    driver.serve(tokio::time::sleep(DRAIN_GRACE)).await;
    driver.farewell().await;
}

/// The transport, in one of its three states.
enum Link {
    Down { dial_at: Duration },
    Dialling(JoinHandle<Result<Box<Connected>, String>>),
    Up(Box<Connected>),
}

struct Connected {
    endpoint: Endpoint,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    encryptor: Encryptor,
    decryptor: Decryptor,
}

/// Everything that can wake the task.
enum Wake {
    Read(std::io::Result<usize>),
    Wrote(std::io::Result<usize>),
    Dialled(Result<Box<Connected>, String>),
    /// Boxed because it is rare, and much larger than all else that can happen.
    Block(Box<ShareEvent>),
    Commands,
    Shares,
    Time,
    Dial,
    End,
}

struct Driver {
    upstream: Upstream,
    out: UpstreamOutput,
    mailboxes: HashMap<DownstreamKey, Arc<dyn Mailbox>>,
    backoff: Backoff,
    link: Link,
    unwritten: Vec<u8>,
    shares: Vec<ShareEvent>,
    commands: Vec<Command>,
    /// Shares that were taken out of their queue until now.
    shares_taken: u64,
    /// Devices that have gone, each with the count of taken shares at which its last one is among them.
    closes: VecDeque<(u64, DownstreamKey)>,
    blocks_in_a_row: u32,
    found_lines: LineLimit,
    lost_lines: LineLimit,
    buffer: Vec<u8>,
    /// Where the upstream asked us to go, tried once.
    redirect: Option<Endpoint>,
    name: String,
    task: UpstreamTask,
}

impl Driver {
    fn new(task: UpstreamTask, now: Now) -> Self {
        Driver {
            upstream: Upstream::new(task.config.clone(), JobNumber::first(now), now),
            out: UpstreamOutput::default(),
            mailboxes: HashMap::new(),
            backoff: Backoff::new(),
            link: Link::Down { dial_at: now.monotonic },
            unwritten: Vec::new(),
            commands: Vec::with_capacity(COMMAND_BATCH),
            shares: Vec::with_capacity(SHARE_BATCH),
            shares_taken: 0,
            closes: VecDeque::new(),
            blocks_in_a_row: 0,
            found_lines: LineLimit::default(),
            lost_lines: LineLimit::default(),
            buffer: vec![0; READ_BUFFER],
            redirect: None,
            name: format!("{}:{}", task.url.host, task.url.port),
            task,
        }
    }

    /// Serves until `end`, or until there is no connection any more and none can come.
    async fn serve(&mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            match self.next(end.as_mut()).await {
                Wake::End => return,
                Wake::Read(Ok(length)) if length > 0 => self.handle_read(length),
                Wake::Read(Ok(_)) => self.disconnect("the pool closed the connection"),
                Wake::Read(Err(error)) | Wake::Wrote(Err(error)) => self.disconnect(&error.to_string()),
                Wake::Wrote(Ok(length)) => drop(self.unwritten.drain(..length)),
                Wake::Dialled(result) => self.handle_dialled(result),
                Wake::Block(share) => self.handle_block(*share),
                Wake::Commands => self.handle_commands(),
                Wake::Shares => self.handle_shares(),
                Wake::Time => {
                    self.upstream.handle_timeout(self.task.clock.now(), &mut self.out);
                    self.task.writer.flush();
                }
                Wake::Dial => self.dial(),
            }
            self.settle();
            self.give_up_if_unread();
        }
    }

    /// Waits for the next thing to do, and counts blocks in a row.
    async fn next(&mut self, end: Pin<&mut impl Future<Output = ()>>) -> Wake {
        let wake = self.wait(end).await;
        let is_block = matches!(wake, Wake::Block(_));
        self.blocks_in_a_row = if is_block { self.blocks_in_a_row.saturating_add(1) } else { 0 };
        wake
    }

    /// Waits for the next thing to do. Blocks come first, if not too many did, and then whatever comes from the
    /// upstream: it may be a new block of somebody else's.
    async fn wait(&mut self, end: Pin<&mut impl Future<Output = ()>>) -> Wake {
        let timeout = self.upstream.next_timeout().map(|at| self.task.clock.instant(at));
        let timer = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let room = self.has_room();
        let blocks_first = self.blocks_in_a_row < BLOCKS_IN_A_ROW;
        let Driver { link, buffer, unwritten, commands, shares, task, .. } = self;
        let inbox = &mut task.inbox;
        let block =
            async { inbox.blocks.recv().await.map_or(Wake::End, |share| Wake::Block(Box::new(share))) };
        let link = async {
            match link {
                Link::Down { dial_at } => {
                    tokio::time::sleep_until(task.clock.instant(*dial_at)).await;
                    Wake::Dial
                }
                Link::Dialling(dialling) => {
                    Wake::Dialled(dialling.await.unwrap_or_else(|error| Err(error.to_string())))
                }
                Link::Up(connected) => {
                    let Connected { reader, writer, .. } = connected.as_mut();
                    tokio::select! {
                        biased;
                        read = reader.read(buffer) => Wake::Read(read),
                        wrote = writer.write(unwritten), if !unwritten.is_empty() => Wake::Wrote(wrote),
                    }
                }
            }
        };
        let other = async {
            tokio::select! {
                biased;
                wake = link => wake,
                // What is due comes before shares: a flood of them must not hold up the job that is wanted for it.
                () = timer => Wake::Time,
                _ = inbox.commands.recv_many(commands, COMMAND_BATCH) => Wake::Commands,
                _ = inbox.shares.recv_many(shares, SHARE_BATCH), if room => Wake::Shares,
            }
        };
        let urgent_first = async {
            if blocks_first {
                tokio::select! { biased; wake = block => wake, wake = other => wake }
            } else {
                tokio::select! { biased; wake = other => wake, wake = block => wake }
            }
        };
        tokio::select! { biased; () = end => Wake::End, wake = urgent_first => wake }
    }

    fn handle_read(&mut self, length: usize) {
        let now = self.task.clock.now();
        let Link::Up(connected) = &mut self.link else { return };
        let mut input = &self.buffer[..length];
        loop {
            match connected.decryptor.next_frame(&mut input) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    self.upstream.handle_frame(frame.header, frame.payload, now, &mut self.out)
                }
                Err(error) => {
                    self.out.close = Some(CloseReason::upstream(error.to_string()));
                    self.upstream.handle_disconnected(now, &mut self.out);
                    return;
                }
            }
            if self.out.close.is_some() {
                return;
            }
        }
    }

    fn handle_block(&mut self, share: ShareEvent) {
        let now = self.task.clock.now();
        if let Some(blocks) = self.found_lines.admit(now.monotonic) {
            tracing::info!(job = ?share.record.job, blocks, "a block was found by a device");
        }
        self.forward(share, now);
    }

    fn forward(&mut self, share: ShareEvent, now: Now) {
        if let Some(device) = share.record.device
            && self.upstream.lacks_name_of(device)
        {
            // Once for each device, so that shares need no lock of the registry.
            self.upstream.note_worker_name(device, &self.task.registry.worker_name(device));
        }
        self.upstream.handle_share(share, now, &mut self.out);
    }

    /// Does what a batch of commands says, but first takes what was sent before it: the end of a device must not
    /// overtake its own last shares, nor its block, and commands without end must not starve either.
    fn handle_commands(&mut self) {
        self.take_blocks();
        let left = self.take_shares();
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Close { key } if left > 0 && self.closes.len() < MAX_WAITING_CLOSES => {
                    self.closes.push_back((self.shares_taken + left, key));
                }
                command => self.handle_command(command),
            }
        }
        self.commands = commands;
    }

    /// Takes the blocks that wait. More may come all the time: no more than their queue holds.
    fn take_blocks(&mut self) {
        for _ in 0..BLOCK_QUEUE {
            let Ok(block) = self.task.inbox.blocks.try_recv() else { return };
            self.handle_block(block);
        }
    }

    /// Takes the shares that wait, no more than their queue holds. Returns how many are left for want of room.
    fn take_shares(&mut self) -> u64 {
        for _ in 0..SHARE_QUEUE.div_ceil(SHARE_BATCH) {
            if !self.has_room() {
                return self.task.inbox.shares.len() as u64;
            }
            let waiting = std::iter::from_fn(|| self.task.inbox.shares.try_recv().ok());
            self.shares.extend(waiting.take(SHARE_BATCH));
            if self.shares.is_empty() {
                return 0;
            }
            self.handle_shares();
        }
        0
    }

    /// Whether further shares may be taken, or the pool is too slow for them.
    fn has_room(&self) -> bool {
        self.unwritten.len() + self.out.bytes.len() < MAX_UNWRITTEN
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.task.clock.now();
        let (upstream, out) = (&mut self.upstream, &mut self.out);
        match command {
            Command::Open { key, user_identity, hash_rate, mailbox } => {
                self.mailboxes.insert(key, mailbox);
                upstream.handle_open(key, &user_identity, hash_rate, now, out);
            }
            Command::Close { key } => {
                self.mailboxes.remove(&key);
                upstream.handle_close(key, now, out);
            }
            Command::HashRate { key, rate } => {
                let rate = Some(rate).filter(|rate| *rate > HashRate(0.0));
                upstream.handle_hash_rate(key, rate, now, out);
            }
            Command::NewJobWanted { key } => {
                let feed = if self.task.config.aggregate { Feed::Shared } else { Feed::Device(key) };
                upstream.handle_new_job_wanted(feed);
            }
        }
    }

    fn handle_shares(&mut self) {
        let now = self.task.clock.now();
        self.shares_taken += self.shares.len() as u64;
        let mut shares = std::mem::take(&mut self.shares);
        shares.drain(..).for_each(|share| self.forward(share, now));
        self.shares = shares;
        while let Some((_, key)) = self.closes.pop_front_if(|(last, _)| *last <= self.shares_taken) {
            self.handle_command(Command::Close { key });
        }
    }

    /// Passes on what the state machine put out, new work first.
    fn settle(&mut self) {
        for (feed, work) in self.out.publish.drain(..) {
            match feed {
                Feed::Shared => {
                    let oldest = work.oldest();
                    self.task.writer.job(&work.active().job);
                    self.task.registry.set_newest_job(work.active().job.number);
                    self.task.inbox.work.publish(work);
                    self.task.registry.set_oldest_live_job(oldest);
                }
                Feed::Device(key) => {
                    if let Some(mailbox) = self.mailboxes.get(&key) {
                        self.task.writer.job(&work.active().job);
                        mailbox.put(key.channel, Delivery::Work(work));
                    }
                }
            }
        }
        self.send();
        for (key, reason) in self.out.open_failed.drain(..) {
            if let Some(mailbox) = self.mailboxes.get(&key) {
                mailbox.put(key.channel, Delivery::OpenFailed(reason));
            }
        }
        for record in self.out.records.drain(..) {
            if record.verdict == mining_server::Verdict::BlockFound
                && record.fate != Fate::Forwarded
                && let Some(blocks) = self.lost_lines.admit(self.task.clock.now().monotonic)
            {
                tracing::error!(fate = ?record.fate, blocks, "a block could not be forwarded");
            }
            self.task.writer.share(record);
        }
        for answer in self.out.answers.drain(..) {
            self.task.writer.answer(answer);
        }
        // The books time answers themselves, from the records.
        self.out.ack_latencies.clear();
        for notice in self.out.notices.drain(..) {
            tracing::info!(upstream = self.name, "{notice}");
        }
        if let Some(reason) = self.out.close.take() {
            self.redirect = self.out.reconnect_to.take();
            self.go_down(&reason.to_string());
        }
        self.task.status.live.store(self.is_live(), Ordering::Relaxed);
    }

    /// Whether work comes from the upstream. Where devices have channels of their own, one that is open is enough,
    /// and where there is no device the connection is: but an upstream that opens none of them serves nobody.
    fn is_live(&self) -> bool {
        if self.task.config.aggregate {
            self.task.inbox.work.newest().is_some_and(|work| work.live)
        } else {
            self.upstream.link() == LinkState::Ready
                && (self.upstream.device_count() == 0 || self.upstream.open_channels() > 0)
        }
    }

    fn send(&mut self) {
        if self.out.bytes.is_empty() {
            return;
        }
        if let Link::Up(connected) = &mut self.link
            && let Err(error) = connected.encryptor.encrypt_frames(&self.out.bytes, &mut self.unwritten)
        {
            self.out.close.get_or_insert(CloseReason::ours(error.to_string()));
        }
        self.out.bytes.clear();
        // Most writes fit the socket's buffer: the frames leave now and not at the next turn.
        if let Link::Up(connected) = &mut self.link
            && let Ok(written) = connected.writer.try_write(&self.unwritten)
        {
            self.unwritten.drain(..written);
        }
    }

    fn give_up_if_unread(&mut self) {
        let bytes = self.unwritten.len();
        if bytes > MAX_UNWRITTEN_WITH_BLOCKS {
            self.disconnect(&format!("the pool does not read: {bytes} bytes wait for it"));
            self.settle();
        }
    }

    fn disconnect(&mut self, reason: &str) {
        self.upstream.handle_disconnected(self.task.clock.now(), &mut self.out);
        self.go_down(reason);
    }

    fn go_down(&mut self, reason: &str) {
        let now = self.task.clock.now();
        // After a redirect, too: pools that send each other's proxies back and forth must not keep them busy.
        let delay = self.backoff.failed(now, OsRng.next_u32());
        self.task.status.live.store(false, Ordering::Relaxed);
        let seconds = delay.as_secs_f32();
        tracing::warn!(upstream = self.name, "disconnected: {reason}; dialling again in {seconds:.1} s");
        self.unwritten.clear();
        self.link = Link::Down { dial_at: now.monotonic + delay };
    }

    fn dial(&mut self) {
        let endpoint = self
            .redirect
            .take()
            .unwrap_or_else(|| Endpoint { host: self.task.url.host.clone(), port: self.task.url.port });
        let (authority, clock) = (self.task.url.authority, self.task.clock);
        self.link = Link::Dialling(tokio::spawn(async move {
            match tokio::time::timeout(DIAL_TIMEOUT, connect(endpoint, authority, clock)).await {
                Ok(result) => result,
                Err(_) => Err("no connection in time".to_owned()),
            }
        }));
    }

    fn handle_dialled(&mut self, result: Result<Box<Connected>, String>) {
        let now = self.task.clock.now();
        match result {
            Ok(connected) => {
                tracing::info!(upstream = self.name, "connected");
                self.backoff.connected(now);
                self.upstream.handle_connected(&connected.endpoint, now, &mut self.out);
                self.link = Link::Up(connected);
            }
            Err(reason) => self.go_down(&reason),
        }
    }

    /// Says goodbye to the upstream, and accounts for what was still on its way.
    async fn farewell(&mut self) {
        let now = self.task.clock.now();
        self.task.inbox.close();
        while let Ok(share) = self.task.inbox.blocks.try_recv() {
            self.handle_block(share);
        }
        while let Ok(share) = self.task.inbox.shares.try_recv() {
            self.forward(share, now);
        }
        self.upstream.handle_shutdown(now, &mut self.out);
        self.settle();
        if let Link::Up(connected) = &mut self.link {
            let flushed = tokio::time::timeout(FAREWELL, connected.writer.write_all(&self.unwritten)).await;
            if !matches!(flushed, Ok(Ok(()))) {
                tracing::warn!(upstream = self.name, "the last frames did not leave in time");
            }
        }
        self.upstream.handle_disconnected(now, &mut self.out);
        self.out.close = None;
        self.settle();
    }
}

async fn connect(
    endpoint: Endpoint,
    authority: Option<stratum::sv2::keys::AuthorityPublicKey>,
    clock: Clock,
) -> Result<Box<Connected>, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(30));
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(text)?;
    let initiator = Initiator::new(authority.as_ref(), &mut OsRng);
    stream.write_all(&initiator.first()).await.map_err(text)?;
    let mut reply = [0; RESPONDER_MESSAGE_SIZE];
    stream.read_exact(&mut reply).await.map_err(|error| format!("the Noise handshake failed: {error}"))?;
    let transport = initiator
        .finish(&reply, clock.now().unix_seconds())
        .map_err(|error| format!("the Noise handshake failed: {error}"))?;
    let (encryptor, decryptor) = transport.split(MAX_PAYLOAD_FROM_UPSTREAM);
    let (reader, writer) = stream.into_split();
    Ok(Box::new(Connected { endpoint, reader, writer, encryptor, decryptor }))
}

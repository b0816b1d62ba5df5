//! Drives the upstreams of a proxy: dials them, keeps their Noise connections, and carries frames, shares and work
//! between the state machine of the `mining-proxy` crate and the rest of the program.
//!
//! One task drives all of them, because a share that was judged goes to the one that its job came from, without
//! another queue, and because work is published by one hand. Those that stand by cost it nothing but a look at their
//! sockets.
//!
//! The task never waits for a connection of ours, and a slow pool never holds up work: what cannot be written is
//! kept up to a bound, and then shares wait in their queue and are dropped there. Blocks never wait; a pool that does
//! not even take those is given up.

mod declaring;
mod lines;
mod link;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use mining_proxy::upstream::MAX_DEVICE_CHANNELS;
use mining_proxy::{DownstreamKey, Feed, Patience, UpstreamConfig, UpstreamOutput, Upstreams};
use mining_server::{CloseReason, Fate, ShareEvent};
use stratum::sv2::frame::{MAX_PAYLOAD_FROM_DECLARATION_SERVER, MAX_PAYLOAD_FROM_UPSTREAM};
use stratum::sv2::url::PoolUrl;
use stratum::{HashRate, JobNumber, Now};
use template::BlockTemplate;

use crate::clock::Clock;
use crate::latency::Latencies;
use crate::node::BlockSource;
use crate::owner::{
    BLOCK_QUEUE, COMMAND_BATCH, Command, DRAIN_GRACE, Delivery, Mailbox, OwnerInbox, SHARE_QUEUE,
};
use crate::registry::SharedRegistry;
use crate::shutdown::Shutdown;
use crate::sink::RecordWriter;
use declaring::OwnNode;
use lines::LineLimit;
use link::{Connected, Link, LinkEvent};

pub use declaring::OwnBlocks;
pub use status::{DeclarationView, UpstreamStatus, UpstreamView};

/// Bytes that wait for a slow pool. With more, no further shares are taken from their queue.
const MAX_UNWRITTEN: usize = 256 * 1024;

/// Bytes that wait for a slow pool with blocks among them, which are taken whatever waits. With more the connection
/// is given up: tens of thousands of blocks are found on test networks alone, and such a pool reads nothing any more.
const MAX_UNWRITTEN_WITH_BLOCKS: usize = 16 * MAX_UNWRITTEN;

/// Blocks that are taken in a row. Then everything else has its turn: it may be a new tip, which makes those that
/// follow worthless.
const BLOCKS_IN_A_ROW: u32 = 16;

/// Batches of shares that are forwarded together at most, in one encryption pass and one write.
const BATCHES_AT_ONCE: usize = 4;

/// Devices that have gone while a slow pool left no room for their last shares: no more can have a channel. One more
/// goes at once, and its shares are dropped.
const MAX_WAITING_CLOSES: usize = MAX_DEVICE_CHANNELS;

/// Bytes read at once from the pool.
const READ_BUFFER: usize = 16 * 1024;

/// What the task of the upstreams needs.
#[derive(Debug)]
pub struct UpstreamTask {
    /// Each upstream, in order of preference. At least one; each has its place in the list as its id, and all
    /// aggregate or none does.
    pub upstreams: Vec<UpstreamEntry>,
    /// Our own node, for those that jobs are declared to.
    pub node: Option<BlockSource>,
    /// How long those that were in trouble are left alone.
    pub patience: Patience,
    /// The queues of the connections that they serve.
    pub inbox: OwnerInbox,
    /// Where records go.
    pub writer: RecordWriter,
    /// The clocks.
    pub clock: Clock,
    /// What is measured.
    pub latencies: Arc<Latencies>,
    /// Told which job is the oldest that counts.
    pub registry: SharedRegistry,
    /// Told how they are.
    pub status: Arc<UpstreamStatus>,
}

/// One upstream.
#[derive(Clone, Debug)]
pub struct UpstreamEntry {
    /// What the state machine must know of it.
    pub config: UpstreamConfig,
    /// Where to dial it.
    pub url: PoolUrl,
    /// Where its job declaration server is, where jobs are declared.
    pub declaration: Option<PoolUrl>,
}

/// Serves the upstreams until the end is asked for.
pub async fn run(task: UpstreamTask, mut shutdown: Shutdown) {
    let now = task.clock.now();
    let mut driver = Driver::new(task, now);
    driver.serve(shutdown.requested()).await;
    // Connections end first: what they have judged by then is still forwarded.
    driver.serve(tokio::time::sleep(DRAIN_GRACE)).await;
    driver.farewell().await;
}

/// Everything that can wake the task.
enum Wake {
    Link(usize, LinkEvent),
    Declaration(usize, LinkEvent),
    Template(Option<Arc<BlockTemplate>>),
    /// Boxed because it is rare, and much larger than all else that can happen.
    Block(Box<ShareEvent>),
    Commands,
    Shares,
    Time,
    End,
}

struct Driver {
    upstreams: Upstreams,
    /// One for each upstream, and so are the links.
    outs: Vec<UpstreamOutput>,
    links: Vec<Link>,
    /// The connections to job declaration servers, of those that have one.
    declarations: Vec<Option<Link>>,
    node: Option<OwnNode>,
    /// What the rest of the program knows of job declaration.
    declarations_shown: DeclarationView,
    aggregate: bool,
    mailboxes: HashMap<DownstreamKey, Arc<dyn Mailbox>>,
    batches: Vec<Vec<ShareEvent>>,
    commands: Vec<Command>,
    /// Batches of shares that were taken out of their queue until now.
    batches_taken: u64,
    /// Devices that have gone, each with the count of taken batches at which its last share is among them.
    closes: VecDeque<(u64, DownstreamKey)>,
    blocks_in_a_row: u32,
    found_lines: LineLimit,
    lost_lines: LineLimit,
    buffer: Vec<u8>,
    task: UpstreamTask,
}

impl Driver {
    fn new(mut task: UpstreamTask, now: Now) -> Self {
        let entries = std::mem::take(&mut task.upstreams);
        let links = entries.iter().map(|entry| Link::new(&entry.url, MAX_PAYLOAD_FROM_UPSTREAM, now));
        let links: Vec<Link> = links.collect();
        let declaration = |url| Link::new(url, MAX_PAYLOAD_FROM_DECLARATION_SERVER, now);
        let declarations = entries.iter().map(|entry| entry.declaration.as_ref().map(declaration)).collect();
        let configs: Vec<UpstreamConfig> = entries.into_iter().map(|entry| entry.config).collect();
        let aggregate = configs.first().is_some_and(|config| config.aggregate);
        Driver {
            outs: configs.iter().map(|_| UpstreamOutput::default()).collect(),
            upstreams: Upstreams::new(configs, task.patience, JobNumber::first(now), now),
            links,
            declarations,
            node: task.node.take().map(OwnNode::new),
            declarations_shown: DeclarationView::default(),
            aggregate,
            mailboxes: HashMap::new(),
            commands: Vec::with_capacity(COMMAND_BATCH),
            batches: Vec::with_capacity(BATCHES_AT_ONCE),
            batches_taken: 0,
            closes: VecDeque::new(),
            blocks_in_a_row: 0,
            found_lines: LineLimit::default(),
            lost_lines: LineLimit::default(),
            buffer: vec![0; READ_BUFFER],
            task,
        }
    }

    /// Serves until `end`, or until there is no connection any more and none can come.
    async fn serve(&mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            match self.next(end.as_mut()).await {
                Wake::End => return,
                Wake::Link(place, event) => self.handle_link(place, event),
                Wake::Declaration(place, event) => self.handle_declaration(place, event),
                Wake::Template(template) => self.handle_template(template),
                Wake::Block(share) => self.handle_block(*share),
                Wake::Commands => self.handle_commands(),
                Wake::Shares => self.handle_shares(),
                Wake::Time => self.handle_time(),
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
        let links = self.links.iter().chain(self.declarations.iter().flatten());
        let dial = links.filter_map(Link::dial_at);
        let timeout = self.upstreams.next_timeout(self.task.clock.now()).into_iter().chain(dial).min();
        let timeout = timeout.map(|at| self.task.clock.instant(at));
        let timer = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let room = self.has_room();
        let blocks_first = self.blocks_in_a_row < BLOCKS_IN_A_ROW;
        let serving = self.upstreams.serving().unwrap_or(0);
        let Driver { links, declarations, node, buffer, commands, batches, task, .. } = self;
        let inbox = &mut task.inbox;
        let block =
            async { inbox.blocks.recv().await.map_or(Wake::End, |share| Wake::Block(Box::new(share))) };
        let link = std::future::poll_fn(|context| {
            // The one that serves comes first: it may say that there is a new block.
            for place in (serving..links.len()).chain(0..serving) {
                if let Poll::Ready(event) = links[place].poll(buffer, context) {
                    return Poll::Ready(Wake::Link(place, event));
                }
            }
            for (place, link) in declarations.iter_mut().enumerate() {
                if let Some(link) = link
                    && let Poll::Ready(event) = link.poll(buffer, context)
                {
                    return Poll::Ready(Wake::Declaration(place, event));
                }
            }
            Poll::Pending
        });
        let template = async {
            match node {
                Some(node) => Wake::Template(node.next().await),
                None => std::future::pending().await,
            }
        };
        let other = async {
            tokio::select! {
                biased;
                // A new block is in our node before a pool says so, or not.
                wake = template => wake,
                wake = link => wake,
                // What is due comes before shares: a flood of them must not hold up the job that is wanted for it.
                () = timer => Wake::Time,
                _ = inbox.commands.recv_many(commands, COMMAND_BATCH) => Wake::Commands,
                _ = inbox.shares.recv_many(batches, BATCHES_AT_ONCE), if room => Wake::Shares,
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

    fn handle_link(&mut self, place: usize, event: LinkEvent) {
        match event {
            LinkEvent::Read(Ok(0)) => self.disconnect(place, "the pool closed the connection"),
            LinkEvent::Read(Ok(length)) => self.handle_read(place, length),
            LinkEvent::Read(Err(error)) | LinkEvent::Wrote(Err(error)) => {
                self.disconnect(place, &error.to_string());
            }
            LinkEvent::Wrote(Ok(length)) => drop(self.links[place].unwritten.drain(..length)),
            LinkEvent::Dialled(result) => self.handle_dialled(place, result),
        }
    }

    fn handle_read(&mut self, place: usize, length: usize) {
        let now = self.task.clock.now();
        let mut input = &self.buffer[..length];
        loop {
            let Some(decryptor) = self.links[place].decryptor() else { return };
            match decryptor.next_frame(&mut input) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    let (header, payload) = (frame.header, frame.payload);
                    self.upstreams.handle_frame(place, header, payload, now, &mut self.outs);
                }
                Err(error) => {
                    self.outs[place].close = Some(CloseReason::upstream(error.to_string()));
                    self.upstreams.handle_disconnected(place, now, &mut self.outs);
                    return;
                }
            }
            if self.outs[place].close.is_some() {
                return;
            }
        }
    }

    fn handle_time(&mut self) {
        let now = self.task.clock.now();
        for link in self.links.iter_mut().chain(self.declarations.iter_mut().flatten()) {
            if link.dial_at().is_some_and(|at| at <= now.monotonic) {
                link.dial(self.task.clock);
            }
        }
        self.upstreams.handle_timeout(now, &mut self.outs);
        self.task.writer.flush();
    }

    fn handle_block(&mut self, share: ShareEvent) {
        let now = self.task.clock.now();
        if let Some(blocks) = self.found_lines.admit(now.monotonic) {
            tracing::info!(job = ?share.record.job, blocks, "a block was found by a device");
        }
        self.forward(share, now);
    }

    fn forward(&mut self, share: ShareEvent, now: Now) {
        if let Some(device) = share.record.device {
            let upstream = self.upstreams.get_mut(self.upstreams.place_of(&share));
            if upstream.lacks_name_of(device) {
                // Once for each device, so that shares need no lock of the registry.
                upstream.note_worker_name(device, &self.task.registry.worker_name(device));
            }
        }
        self.upstreams.handle_share(share, now, &mut self.outs);
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
                    self.closes.push_back((self.batches_taken + left, key));
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

    /// Takes the shares that wait, no more than their queue holds. Returns how many batches are left for want of room.
    fn take_shares(&mut self) -> u64 {
        for _ in 0..SHARE_QUEUE.div_ceil(BATCHES_AT_ONCE) {
            if !self.has_room() {
                return self.task.inbox.shares.len() as u64;
            }
            let waiting = std::iter::from_fn(|| self.task.inbox.shares.try_recv().ok());
            self.batches.extend(waiting.take(BATCHES_AT_ONCE));
            if self.batches.is_empty() {
                return 0;
            }
            self.handle_shares();
        }
        0
    }

    /// Whether further shares may be taken, or the pool that they are for is too slow for them.
    fn has_room(&self) -> bool {
        let serving = self.upstreams.serving().unwrap_or(0);
        self.links[serving].unwritten.len() + self.outs[serving].bytes.len() < MAX_UNWRITTEN
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.task.clock.now();
        let (upstreams, outs) = (&mut self.upstreams, &mut self.outs);
        match command {
            Command::Open { key, user_identity, hash_rate, mailbox } => {
                self.mailboxes.insert(key, mailbox);
                upstreams.handle_open(key, &user_identity, hash_rate, now, outs);
            }
            Command::Close { key } => {
                self.mailboxes.remove(&key);
                upstreams.handle_close(key, now, outs);
            }
            Command::HashRate { key, rate } => {
                let rate = Some(rate).filter(|rate| *rate > HashRate(0.0));
                upstreams.handle_hash_rate(key, rate, now, outs);
            }
            Command::NewJobWanted { key } => {
                let feed = if self.aggregate { Feed::Shared } else { Feed::Device(key) };
                upstreams.handle_new_job_wanted(feed);
            }
        }
    }

    fn handle_shares(&mut self) {
        let now = self.task.clock.now();
        self.batches_taken += self.batches.len() as u64;
        let mut batches = std::mem::take(&mut self.batches);
        batches.drain(..).flatten().for_each(|share| self.forward(share, now));
        self.batches = batches;
        while let Some((_, key)) = self.closes.pop_front_if(|(last, _)| *last <= self.batches_taken) {
            self.handle_command(Command::Close { key });
        }
    }

    /// Passes on what the state machine put out, new work first.
    fn settle(&mut self) {
        // A connection that breaks over what is sent may have another upstream say something: once for each of them.
        for _ in 0..=self.outs.len() {
            for place in 0..self.outs.len() {
                self.settle_one(place);
            }
            if self.outs.iter().all(|out| out.bytes.is_empty() && out.publish.is_empty()) {
                break;
            }
        }
        self.task.status.set(&self.upstreams, self.task.clock.now());
        if let Some(node) = &mut self.node {
            node.make_room(self.upstreams.constraints());
            self.task.status.set_declarations(&self.upstreams, &mut self.declarations_shown);
        }
    }

    fn settle_one(&mut self, place: usize) {
        self.publish(place);
        self.settle_declaration(place);
        self.send(place);
        self.record(place);
        if let Some(reason) = self.outs[place].close.take() {
            self.links[place].redirect = self.outs[place].reconnect_to.take();
            self.links[place].go_down(&reason.to_string(), self.task.clock.now());
        }
    }

    fn publish(&mut self, place: usize) {
        for (feed, work) in self.outs[place].publish.drain(..) {
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
    }

    fn send(&mut self, place: usize) {
        let out = &mut self.outs[place];
        if out.bytes.is_empty() {
            return;
        }
        if let Err(error) = self.links[place].send(&out.bytes) {
            out.close.get_or_insert(CloseReason::ours(error.to_string()));
        }
        out.bytes.clear();
    }

    fn record(&mut self, place: usize) {
        let out = &mut self.outs[place];
        for (key, reason) in out.open_failed.drain(..) {
            if let Some(mailbox) = self.mailboxes.get(&key) {
                mailbox.put(key.channel, Delivery::OpenFailed(reason));
            }
        }
        for record in &out.records {
            if record.verdict == mining_server::Verdict::BlockFound
                && !matches!(record.fate, Fate::Forwarded | Fate::Held(_))
                && let Some(blocks) = self.lost_lines.admit(self.task.clock.now().monotonic)
            {
                tracing::error!(fate = ?record.fate, blocks, "a block could not be forwarded");
            }
        }
        self.task.writer.batch(&mut out.records, &mut out.releases, &mut out.answers);
        for notice in out.notices.drain(..) {
            tracing::info!(upstream = self.links[place].name, "{notice}");
        }
    }

    fn give_up_if_unread(&mut self) {
        for place in 0..self.links.len() {
            let bytes = self.links[place].unwritten.len();
            if bytes > MAX_UNWRITTEN_WITH_BLOCKS {
                self.disconnect(place, &format!("the pool does not read: {bytes} bytes wait for it"));
                self.settle();
            }
        }
    }

    fn disconnect(&mut self, place: usize, reason: &str) {
        let now = self.task.clock.now();
        self.upstreams.handle_disconnected(place, now, &mut self.outs);
        self.links[place].go_down(reason, now);
    }

    fn handle_dialled(&mut self, place: usize, result: Result<Box<Connected>, String>) {
        let now = self.task.clock.now();
        match result {
            Ok(connected) => {
                self.upstreams.handle_connected(place, &connected.endpoint, now, &mut self.outs);
                self.links[place].go_up(connected, now);
            }
            Err(reason) => self.links[place].go_down(&reason, now),
        }
    }

    /// Says goodbye to the upstreams, and accounts for what was still on its way.
    async fn farewell(&mut self) {
        let now = self.task.clock.now();
        self.task.inbox.close();
        while let Ok(share) = self.task.inbox.blocks.try_recv() {
            self.handle_block(share);
        }
        while let Ok(shares) = self.task.inbox.shares.try_recv() {
            shares.into_iter().for_each(|share| self.forward(share, now));
        }
        self.upstreams.handle_shutdown(now, &mut self.outs);
        self.settle();
        // Together, so that one that does not read holds up no other.
        let links = self.links.iter_mut().chain(self.declarations.iter_mut().flatten());
        futures_util::future::join_all(links.map(Link::farewell)).await;
        if let Some(node) = &mut self.node {
            node.finish().await;
        }
        for place in 0..self.links.len() {
            self.upstreams.handle_disconnected(place, now, &mut self.outs);
            self.outs[place].close = None;
        }
        self.settle();
    }
}

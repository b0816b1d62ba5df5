//! How connections reach the owner of their work: an upstream's task, or the pool's.
//!
//! Nothing here blocks an owner: work goes out by replacing what was there, and what comes in waits in bounded
//! queues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mining_proxy::DownstreamKey;
use mining_server::{ShareEvent, Work};
use stratum::{ChannelId, HashRate};
use tokio::sync::{Notify, mpsc, watch};

/// Shares on their way to an owner. At the full speed of one core these are a tenth of a second; when they are
/// full a share is dropped before forwarding, and counted.
pub const SHARE_QUEUE: usize = 8192;

/// Blocks on their way to an owner: they have a queue of their own, so that nothing that a peer can cause is ahead of
/// them. Only a test network has more than one at a time; when it is full the connection waits.
pub const BLOCK_QUEUE: usize = 256;

/// News of connections on their way to an owner. When it is full the connection waits.
pub const COMMAND_QUEUE: usize = 8192;

/// Commands that an owner takes at once. Then it looks at its blocks and shares, which one busy peer must not starve.
pub const COMMAND_BATCH: usize = 64;

/// How long owners go on serving once the end was asked for: connections end within two seconds, and what they have
/// judged until then still counts.
pub const DRAIN_GRACE: Duration = Duration::from_millis(2500);

/// What a connection tells the owner of its work.
#[derive(Debug)]
pub enum Command {
    /// A device needs an upstream channel of its own; work for it goes to the mailbox.
    Open {
        /// The downstream channel.
        key: DownstreamKey,
        /// The worker name.
        user_identity: String,
        /// What the device is thought to hash.
        hash_rate: HashRate,
        /// Where work for it goes.
        mailbox: Arc<Mailbox>,
    },
    /// The device of this channel is gone.
    Close {
        /// The downstream channel.
        key: DownstreamKey,
    },
    /// The estimate of a device's hash rate changed; 0 when it is gone.
    HashRate {
        /// The downstream channel.
        key: DownstreamKey,
        /// The estimate.
        rate: HashRate,
    },
    /// A connection can remember no more shares of the jobs that it has.
    NewJobWanted {
        /// The downstream channel.
        key: DownstreamKey,
    },
}

/// A connection's way to the owner of its work.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Shares that are blocks: before everything else.
    pub blocks: mpsc::Sender<ShareEvent>,
    /// News of connections.
    pub commands: mpsc::Sender<Command>,
    /// Shares to forward.
    pub shares: mpsc::Sender<ShareEvent>,
    /// The work that all connections share; `None` before the first job, and always where every device has a
    /// channel of its own.
    pub work: watch::Receiver<Option<Arc<Work>>>,
}

/// The owner's end.
#[derive(Debug)]
pub struct OwnerInbox {
    /// Shares that are blocks: before everything else. It ends with the last connection.
    pub blocks: mpsc::Receiver<ShareEvent>,
    /// News of connections.
    pub commands: mpsc::Receiver<Command>,
    /// Shares to forward.
    pub shares: mpsc::Receiver<ShareEvent>,
    /// Publishes the work that all connections share.
    pub work: watch::Sender<Option<Arc<Work>>>,
}

/// The two ends of a way to an owner.
pub fn owner() -> (Owner, OwnerInbox) {
    let (block_sender, blocks) = mpsc::channel(BLOCK_QUEUE);
    let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE);
    let (share_sender, shares) = mpsc::channel(SHARE_QUEUE);
    let (work, work_receiver) = watch::channel(None);
    (
        Owner { blocks: block_sender, commands: command_sender, shares: share_sender, work: work_receiver },
        OwnerInbox { blocks, commands, shares, work },
    )
}

impl OwnerInbox {
    /// Takes nothing more. What is in the queues can still be received, and then nothing can come any more.
    pub fn close(&mut self) {
        self.blocks.close();
        self.commands.close();
        self.shares.close();
    }
}

/// What an owner has for one channel of a connection.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// New work.
    Work(Arc<Work>),
    /// The upstream refused the channel.
    OpenFailed(String),
}

/// Work for the channels of one connection that has a channel per device. The newest delivery of a channel takes
/// the place of an older one, so that it never holds more than the connection has channels.
#[derive(Debug, Default)]
pub struct Mailbox {
    deliveries: Mutex<BTreeMap<ChannelId, Delivery>>,
    arrived: Notify,
}

impl Mailbox {
    /// Leaves a delivery. Never waits for the connection.
    pub fn put(&self, channel: ChannelId, delivery: Delivery) {
        self.deliveries.lock().expect("nothing panics while it holds a mailbox").insert(channel, delivery);
        self.arrived.notify_one();
    }

    /// Waits until there is something to take.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes everything.
    pub fn take(&self) -> BTreeMap<ChannelId, Delivery> {
        std::mem::take(&mut *self.deliveries.lock().expect("nothing panics while it holds a mailbox"))
    }
}

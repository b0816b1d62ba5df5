//! How connections reach the owner of their work: an upstream's task, or the pool's.
//!
//! Nothing here blocks an owner: work goes out by replacing what was there, and what comes in waits in bounded
//! queues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mining_proxy::DownstreamKey;
use mining_server::{ShareEvent, Work};
use stratum::{ChannelId, HashRate};
use tokio::sync::{Notify, mpsc, watch};

/// Shares on their way to an owner. At the full speed of one core these are a tenth of a second; when they are
/// full a share is dropped before forwarding, and counted.
pub const SHARE_QUEUE: usize = 8192;

/// Everything else on its way to an owner: blocks, and news of connections. When it is full the connection waits.
pub const COMMAND_QUEUE: usize = 8192;

/// What a connection tells the owner of its work.
#[derive(Debug)]
pub enum Command {
    /// A share that is a block: before everything else.
    Block(Box<ShareEvent>),
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
    /// Blocks, and news of connections.
    pub commands: mpsc::Sender<Command>,
    /// Shares to forward.
    pub shares: mpsc::Sender<Box<ShareEvent>>,
    /// The work that all connections share; `None` before the first job, and always where every device has a
    /// channel of its own.
    pub work: watch::Receiver<Option<Arc<Work>>>,
}

/// The owner's end.
#[derive(Debug)]
pub struct OwnerInbox {
    /// Blocks, and news of connections.
    pub commands: mpsc::Receiver<Command>,
    /// Shares to forward.
    pub shares: mpsc::Receiver<Box<ShareEvent>>,
    /// Publishes the work that all connections share.
    pub work: watch::Sender<Option<Arc<Work>>>,
}

/// The two ends of a way to an owner.
pub fn owner() -> (Owner, OwnerInbox) {
    let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE);
    let (share_sender, shares) = mpsc::channel(SHARE_QUEUE);
    let (work, work_receiver) = watch::channel(None);
    (
        Owner { commands: command_sender, shares: share_sender, work: work_receiver },
        OwnerInbox { commands, shares, work },
    )
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

//! How connections reach the owner of their work: an upstream's task, or the pool's.
//!
//! Nothing here blocks an owner: work goes out by replacing what was there, and what comes in waits in bounded
//! queues.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mining_proxy::DownstreamKey;
use mining_server::{CustomJobRequest, PublishedJob, ShareEvent, Work};
use stratum::sv2::messages::SetCustomMiningJob;
use stratum::{ChannelId, HashRate, RequestId};
use tokio::sync::{Notify, mpsc, watch};

/// Batches of shares on their way to an owner: some fifty milliseconds at the full speed of two cores. When they are
/// full, connections wait a moment before they judge more, and then drop shares before forwarding, and count them.
///
/// Shares travel in batches because each message may wake its receiver on another core: single shares would be taken
/// one by one, each for the price of waking a thread.
pub const SHARE_QUEUE: usize = 64;

/// Shares in one batch: a connection that has more at once sends several.
pub const SHARE_BATCH: usize = 128;

/// Blocks on their way to an owner: they have a queue of their own, so that nothing that a peer can cause is ahead of
/// them. Only a test network has more than one at a time; when it is full the connection waits.
pub const BLOCK_QUEUE: usize = 256;

/// News of connections on their way to an owner. When it is full the connection waits.
pub const COMMAND_QUEUE: usize = 8192;

/// Custom jobs on their way to an owner: in 24 MiB, when each is as long as its message may be. One connection waits for
/// 64 at most. When it is full the request is refused at once: its connection has shares to judge meanwhile.
pub const CUSTOM_JOB_QUEUE: usize = 1024;

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
        mailbox: Arc<dyn Mailbox>,
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

/// A custom job that a connection asks its owner for.
#[derive(Debug)]
pub struct CustomJobOrder {
    /// The request.
    pub request: CustomJobRequest,
    /// Where the answer goes.
    pub mailbox: Arc<TaskMailbox>,
}

impl CustomJobOrder {
    /// Answers it.
    pub fn answer(self, answer: Result<Arc<PublishedJob>, String>) {
        let SetCustomMiningJob { channel_id, request_id, .. } = self.request.message;
        self.mailbox.answer(CustomJobAnswer { channel_id, request_id, answer });
    }
}

/// An owner's answer to a [`CustomJobOrder`].
#[derive(Debug)]
pub struct CustomJobAnswer {
    /// The channel or group of the request.
    pub channel_id: ChannelId,
    /// The request.
    pub request_id: RequestId,
    /// The job, or one of [`stratum::sv2::codes::set_custom_mining_job`].
    pub answer: Result<Arc<PublishedJob>, String>,
}

/// A connection's way to the owner of its work.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Shares that are blocks: before everything else.
    pub blocks: mpsc::Sender<ShareEvent>,
    /// News of connections.
    pub commands: mpsc::Sender<Command>,
    /// Shares to forward, [`SHARE_BATCH`] together at most and never none.
    pub shares: mpsc::Sender<Vec<ShareEvent>>,
    /// Custom jobs; `None` where the owner takes none.
    pub custom_jobs: Option<mpsc::Sender<CustomJobOrder>>,
    /// The work that all connections share; `None` before the first job, and always where every device has a
    /// channel of its own.
    pub work: watch::Receiver<Option<Arc<Work>>>,
    wakers: Wakers,
}

impl Owner {
    /// Has connections made from now on ask for custom jobs. Returns the queue of what they ask.
    pub fn take_custom_jobs(&mut self) -> mpsc::Receiver<CustomJobOrder> {
        let (orders, queue) = mpsc::channel(CUSTOM_JOB_QUEUE);
        self.custom_jobs = Some(orders);
        queue
    }

    /// Has `wake` called after each publication, for threads that cannot wait for `work` as a task does. It must
    /// return at once.
    pub fn wake_with(&self, wake: impl Fn() + Send + Sync + 'static) {
        self.wakers.lock().push(Box::new(wake));
    }
}

/// Whom to wake when work was published: a few threads, which stay as long as the owner.
#[derive(Clone, Default)]
struct Wakers(Arc<Mutex<Vec<Waker>>>);

type Waker = Box<dyn Fn() + Send + Sync>;

impl Wakers {
    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().expect("nothing panics while it wakes somebody")
    }
}

impl fmt::Debug for Wakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wakers({})", self.lock().len())
    }
}

/// Publishes the work that all connections share.
#[derive(Debug)]
pub struct Publisher {
    work: watch::Sender<Option<Arc<Work>>>,
    wakers: Wakers,
}

impl Publisher {
    /// Lets all connections have new work, in one swap.
    pub fn publish(&self, work: Arc<Work>) {
        self.work.send_replace(Some(work));
        self.wakers.lock().iter().for_each(|wake| wake());
    }

    /// What was published last.
    pub fn newest(&self) -> Option<Arc<Work>> {
        self.work.borrow().clone()
    }
}

/// The owner's end.
#[derive(Debug)]
pub struct OwnerInbox {
    /// Shares that are blocks: before everything else. It ends with the last connection.
    pub blocks: mpsc::Receiver<ShareEvent>,
    /// News of connections.
    pub commands: mpsc::Receiver<Command>,
    /// Shares to forward, in batches.
    pub shares: mpsc::Receiver<Vec<ShareEvent>>,
    /// Publishes the work that all connections share.
    pub work: Publisher,
}

/// The two ends of a way to an owner.
pub fn owner() -> (Owner, OwnerInbox) {
    let (block_sender, blocks) = mpsc::channel(BLOCK_QUEUE);
    let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE);
    let (share_sender, shares) = mpsc::channel(SHARE_QUEUE);
    let (work, work_receiver) = watch::channel(None);
    let wakers = Wakers::default();
    let publisher = Publisher { work, wakers: wakers.clone() };
    let (blocks_in, commands_in, shares_in) = (block_sender, command_sender, share_sender);
    (
        Owner {
            blocks: blocks_in,
            commands: commands_in,
            shares: shares_in,
            custom_jobs: None,
            work: work_receiver,
            wakers,
        },
        OwnerInbox { blocks, commands, shares, work: publisher },
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

/// Where an owner leaves work for the channels of one connection that has a channel per device.
pub trait Mailbox: fmt::Debug + Send + Sync {
    /// Leaves a delivery, which takes the place of an older one of the same channel. Never waits for the connection.
    fn put(&self, channel: ChannelId, delivery: Delivery);
}

/// The mailbox of a connection that is a task. It never holds more deliveries than the connection has channels, nor
/// more answers than it has requests that wait.
#[derive(Debug, Default)]
pub struct TaskMailbox {
    deliveries: Mutex<BTreeMap<ChannelId, Delivery>>,
    answers: Mutex<Vec<CustomJobAnswer>>,
    arrived: Notify,
}

impl Mailbox for TaskMailbox {
    fn put(&self, channel: ChannelId, delivery: Delivery) {
        self.deliveries.lock().expect("nothing panics while it holds a mailbox").insert(channel, delivery);
        self.arrived.notify_one();
    }
}

impl TaskMailbox {
    /// Waits until there is something to take.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes everything.
    pub fn take(&self) -> BTreeMap<ChannelId, Delivery> {
        std::mem::take(&mut *self.deliveries.lock().expect("nothing panics while it holds a mailbox"))
    }

    /// Leaves the answer to a custom job. Each order is answered once. Never waits for the connection.
    pub fn answer(&self, answer: CustomJobAnswer) {
        self.answers.lock().expect("nothing panics while it holds a mailbox").push(answer);
        self.arrived.notify_one();
    }

    /// Takes all answers, oldest first.
    pub fn take_answers(&self) -> Vec<CustomJobAnswer> {
        std::mem::take(&mut *self.answers.lock().expect("nothing panics while it holds a mailbox"))
    }
}

//! The job declaration server of a pool: clients declare jobs of their own templates, and our node judges them.
//!
//! One task owns what all connections share and decides with `job_declarator::server`; it never waits for a
//! connection, a node or a disk. What takes long runs beside it and comes back as an answer.

mod connection;
mod mempool;
mod task;
mod validation;

use std::future::Future;
use std::sync::Arc;

use job_declarator::server::{
    Claimant, CustomJob, DeclaredBlock, JobDeclarationServer, PoolTip, Refusal, ServerTally,
};
use stratum::sv2::codes::declare_mining_job::INTERNAL_ERROR;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::messages::SetCustomMiningJob;
use template::{BlockTemplate, Output};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::node::{BlockJudge, BlockSource, NodeClient};
use crate::shutdown::Shutdown;
use mempool::MempoolView;
use task::{DeclarationTask, Destinations};
use validation::Validator;

/// Custom jobs that wait for the owner, which takes microseconds for each. A mining connection waits for room.
const MAX_WAITING_CUSTOM_JOBS: usize = 256;

/// What connections say and the owner has not heard yet; a connection waits for room.
const MAX_WAITING_EVENTS: usize = 64;

/// What a job declaration server is made of.
#[derive(Debug)]
pub struct DeclarationParts {
    /// What coinbases must have: the pool's payout first.
    pub outputs: Vec<Output>,
    /// Whether clients must show their transactions.
    pub requires_transactions: bool,
    /// Clients that are served at once. Each may hold the transactions of some blocks.
    pub max_connections: usize,
    /// What signs our certificates.
    pub key: AuthoritySecretKey,
    /// Knows transactions by name.
    pub node: Arc<NodeClient>,
    /// Judges declared jobs.
    pub judge: BlockJudge,
    /// Where blocks go.
    pub source: BlockSource,
    /// Where else they go, without waiting for anybody.
    pub blocks: Option<mpsc::Sender<DeclaredBlock>>,
}

/// What the pool mines on.
#[derive(Clone, Debug)]
struct TipNews {
    tip: PoolTip,
    /// A template whose transactions clients may have, too.
    template: Option<Arc<BlockTemplate>>,
}

/// How a job declaration server is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeclarationFigures {
    /// Open connections.
    pub connections: usize,
    /// Tokens that are out.
    pub tokens: usize,
    /// What became of all that was declared.
    pub tally: ServerTally,
}

/// A `SetCustomMiningJob` on its way to the owner.
struct CustomJobOrder {
    user_identity: String,
    extranonce_size: usize,
    message: SetCustomMiningJob,
    answer: oneshot::Sender<Result<CustomJob, Refusal>>,
}

/// How a pool speaks to its job declaration server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Declarations {
    custom_jobs: mpsc::Sender<CustomJobOrder>,
    tip: watch::Sender<Option<TipNews>>,
    figures: watch::Receiver<DeclarationFigures>,
}

/// What the owner is handed.
struct DeclarationsInbox {
    custom_jobs: mpsc::Receiver<CustomJobOrder>,
    tip: watch::Receiver<Option<TipNews>>,
}

/// A job declaration server, as its handle and what must run. Ends when the end is asked for; blocks that clients found
/// are then waited for.
pub fn declarations(
    parts: DeclarationParts,
    listener: TcpListener,
    clock: Clock,
    shutdown: Shutdown,
) -> (Declarations, impl Future<Output = ()> + Send + use<>) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, authority_key = %parts.key.public(), "job declaration clients may connect");
    }
    let (custom_jobs, waiting) = mpsc::channel(MAX_WAITING_CUSTOM_JOBS);
    let (tip, newest) = watch::channel(None);
    let (figures, seen) = watch::channel(DeclarationFigures::default());
    let (events, heard) = mpsc::channel(MAX_WAITING_EVENTS);
    let server = JobDeclarationServer::new(parts.outputs, parts.requires_transactions);
    let destinations = Destinations { source: parts.source, other: parts.blocks };
    let mempool = MempoolView::new(parts.node, parts.judge.clone());
    let task =
        DeclarationTask::new(server, mempool, Validator::new(parts.judge), destinations, clock, figures);
    let inbox = DeclarationsInbox { custom_jobs: waiting, tip: newest };
    let most = parts.max_connections;
    let listening = connection::listen(listener, most, Arc::new(parts.key), events, clock, shutdown.clone());
    let owning = task.run(inbox, heard, shutdown);
    let running = async move {
        tokio::join!(owning, listening);
    };
    (Declarations { custom_jobs, tip, figures: seen }, running)
}

impl Declarations {
    /// Whether the pool takes a custom job, and all that is needed to check its shares (SV2 5.3.18). A refusal has one
    /// of the specification's codes, and `internal-error` when the server has ended.
    pub async fn check_custom_job(
        &self,
        claimant: Claimant<'_>,
        message: SetCustomMiningJob,
    ) -> Result<CustomJob, Refusal> {
        let (answer, answered) = oneshot::channel();
        let Claimant { user_identity, extranonce_size } = claimant;
        let user_identity = user_identity.to_owned();
        let order = CustomJobOrder { user_identity, extranonce_size, message, answer };
        let ended = || Refusal::new(INTERNAL_ERROR, "the job declaration server has ended");
        self.custom_jobs.send(order).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Tells the server of the pool's newest template, and with it of the tip. To be called once miners have the work
    /// made of it: declared jobs come after the pool's own.
    pub fn set_tip(&self, template: &Arc<BlockTemplate>) {
        self.set_tip_of_pool(PoolTip::from(&**template), Some(Arc::clone(template)));
    }

    /// The same for a pool in another process: its tip, and the newest template of our own node, whose transactions
    /// clients may have, too.
    pub fn set_tip_of_pool(&self, tip: PoolTip, template: Option<Arc<BlockTemplate>>) {
        self.tip.send_replace(Some(TipNews { tip, template }));
    }

    /// How the server is doing.
    pub fn figures(&self) -> DeclarationFigures {
        *self.figures.borrow()
    }
}

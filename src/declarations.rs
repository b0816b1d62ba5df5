//! The job declaration server of a pool: clients declare jobs of their own templates, and our node judges them.
//!
//! One task owns what all connections share and decides with `job_declarator::server`; it never waits for a
//! connection, a node or a disk. What takes long runs beside it and comes back as an answer.

use std::sync::Arc;

use job_declarator::server::{Claimant, CustomJob, Refusal};
use stratum::sv2::codes::declare_mining_job::INTERNAL_ERROR;
use stratum::sv2::messages::SetCustomMiningJob;
use template::BlockTemplate;
use tokio::sync::{mpsc, oneshot, watch};

/// Custom jobs that wait for the owner, which takes microseconds for each. A mining connection waits for room.
const MAX_WAITING_CUSTOM_JOBS: usize = 256;

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
    tip: watch::Sender<Option<Arc<BlockTemplate>>>,
}

/// What the owner is handed.
struct DeclarationsInbox {
    custom_jobs: mpsc::Receiver<CustomJobOrder>,
    tip: watch::Receiver<Option<Arc<BlockTemplate>>>,
}

fn declarations() -> (Declarations, DeclarationsInbox) {
    let (custom_jobs, waiting) = mpsc::channel(MAX_WAITING_CUSTOM_JOBS);
    let (tip, newest) = watch::channel(None);
    (Declarations { custom_jobs, tip }, DeclarationsInbox { custom_jobs: waiting, tip: newest })
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
        self.tip.send_replace(Some(Arc::clone(template)));
    }
}

//! Custom jobs of a pool: from what its connections ask for to what its job declaration server says of it.
//!
//! Nothing here makes a job, knows a token, or waits for a check: the pool's task takes what has come.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use job_declarator::server::{Claimant, CustomJob, Refusal};
use mining_server::CustomJobRequest;
use template::BlockTemplate;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::declarations::Declarations;
use crate::owner::CustomJobOrder;

/// Custom jobs that are checked at the same time. A check takes microseconds once it has its turn; what comes meanwhile
/// waits in the bounded queue of orders.
const MAX_CHECKS: usize = 64;

/// A pool's way to its job declaration server.
pub trait CheckCustomJobs: Send + Sync {
    /// Checks a request of a channel.
    fn check(&self, request: &CustomJobRequest) -> BoxFuture<'static, Result<CustomJob, Refusal>>;

    /// The pool has published work made of this template: no job is found good for a tip of which the connections
    /// have not heard. Never waits.
    fn set_tip(&self, template: &Arc<BlockTemplate>);
}

impl CheckCustomJobs for Declarations {
    fn check(&self, request: &CustomJobRequest) -> BoxFuture<'static, Result<CustomJob, Refusal>> {
        let (declarations, message) = (self.clone(), request.message.clone());
        let (user_identity, extranonce_size) = (request.user_identity.clone(), request.extranonce_size);
        Box::pin(async move {
            let claimant = Claimant { user_identity: &user_identity, extranonce_size };
            declarations.check_custom_job(claimant, message).await
        })
    }

    fn set_tip(&self, template: &Arc<BlockTemplate>) {
        Declarations::set_tip(self, template);
    }
}

/// An order with what the job declaration server says of it.
#[derive(Debug)]
pub struct Checked {
    /// What was asked for.
    pub order: CustomJobOrder,
    /// What came of it.
    pub result: Result<CustomJob, Refusal>,
}

/// What a pool that takes custom jobs holds for them.
pub struct CustomJobs {
    orders: mpsc::Receiver<CustomJobOrder>,
    checker: Arc<dyn CheckCustomJobs>,
    checks: JoinSet<Checked>,
}

impl CustomJobs {
    /// Takes `orders` to `checker`.
    pub fn new(orders: mpsc::Receiver<CustomJobOrder>, checker: Arc<dyn CheckCustomJobs>) -> Self {
        CustomJobs { orders, checker, checks: JoinSet::new() }
    }

    /// See [`CheckCustomJobs::set_tip`].
    pub fn set_tip(&self, template: &Arc<BlockTemplate>) {
        self.checker.set_tip(template);
    }

    /// The next order that was checked. May be dropped and called again. Waits for ever when nobody asks any more.
    pub async fn next(&mut self) -> Checked {
        loop {
            let is_free = self.checks.len() < MAX_CHECKS;
            tokio::select! {
                Some(checked) = self.checks.join_next() => match checked {
                    Ok(checked) => return checked,
                    // Its peer has no answer, and goes elsewhere when it has waited long enough.
                    Err(error) => {
                        tracing::error!(%error, "a custom job's check ended by a bug of ours; please report it");
                    }
                },
                Some(order) = self.orders.recv(), if is_free => {
                    let check = self.checker.check(&order.request);
                    self.checks.spawn(async move { Checked { result: check.await, order } });
                }
                else => std::future::pending().await,
            }
        }
    }
}

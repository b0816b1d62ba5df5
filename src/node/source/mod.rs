//! The one interface behind which every source of templates lives.
//!
//! A source is a task that hears of templates in its own way ([`rpc`], and others beside it) and hands each to its
//! [`TemplateOutlet`]. The outlet applies the rules that are the same for all of them: room for the coinbase's outputs
//! ([`CoinbaseConstraints`]), an empty first template on a new tip, fee gain and interval ([`Publisher`]). Whoever uses
//! templates holds a [`SourceHandle`] and cannot tell the sources apart.
//!
//! This module never makes a template: it lets go, holds back, or thins out what a source brings.

pub mod outlet;
pub mod rpc;
pub mod status;
pub mod sv2;
pub mod zmq;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use stratum::TemplateId;
use template::{BlockTemplate, CoinbaseConstraints, PublishPolicy};
use tokio::sync::watch;

pub use outlet::TemplateOutlet;
pub use rpc::{RpcSourceSettings, run_rpc_source};
pub use status::{SourceFigures, SourceStatus};
pub use sv2::run_sv2_source;
pub use zmq::run_hashblock_subscriber;

use crate::clock::Clock;

/// How much more a template must pay to be published when the configuration says nothing: less is not worth a job to
/// every miner and a declaration to every pool. Satoshis.
pub const DEFAULT_MIN_GAIN: u64 = 10_000;

/// The shortest time between two templates of one tip when the configuration says nothing.
pub const DEFAULT_MIN_INTERVAL: Duration = Duration::from_secs(10);

/// How templates reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// `getblocktemplate` over JSON-RPC.
    Rpc,
    /// A template provider over SV2 (SV2 7).
    Sv2,
    /// The interprocess interface of Bitcoin Core.
    Ipc,
}

impl SourceKind {
    /// What it is called in the configuration and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::Rpc => "rpc",
            SourceKind::Sv2 => "sv2",
            SourceKind::Ipc => "ipc",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The policy of a configuration that says nothing.
pub fn default_policy() -> PublishPolicy {
    PublishPolicy { min_gain: DEFAULT_MIN_GAIN, min_interval: DEFAULT_MIN_INTERVAL }
}

/// The users' end of one source. Cheap to clone; all clones are of the same source.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
    constraints: watch::Sender<CoinbaseConstraints>,
    status: Arc<SourceStatus>,
}

/// A new source's two ends: one for the task that hears of templates, one for those who use them.
pub fn template_source(
    kind: SourceKind,
    policy: PublishPolicy,
    clock: Clock,
) -> (TemplateOutlet, SourceHandle) {
    let (publish, templates) = watch::channel(None);
    let (constraints, wanted) = watch::channel(CoinbaseConstraints::default());
    let status = Arc::new(SourceStatus::new(kind));
    let outlet = TemplateOutlet::new(policy, publish, wanted, Arc::clone(&status), clock);
    (outlet, SourceHandle { templates, constraints, status })
}

impl SourceHandle {
    /// The newest template, whole and with the room that was asked for; none before the first. It stays while the
    /// source is away: [`SourceHandle::status`] tells.
    pub fn templates(&self) -> watch::Receiver<Option<Arc<BlockTemplate>>> {
        self.templates.clone()
    }

    /// Asks for room in the coinbase. What is published from now on has it; a template that has not is replaced at
    /// once. The last call counts: a source has one such user, and who shares it asks for the largest.
    pub fn set_constraints(&self, constraints: CoinbaseConstraints) {
        self.constraints.send_if_modified(|current| {
            let is_new = *current != constraints;
            *current = constraints;
            is_new
        });
    }

    /// As [`SourceHandle::set_constraints`], where several users share a source: never less room than was asked for before.
    pub fn raise_constraints(&self, constraints: CoinbaseConstraints) {
        let asked = *self.constraints.borrow();
        self.set_constraints(asked.largest(constraints));
    }

    /// What the source is doing.
    pub fn status(&self) -> &Arc<SourceStatus> {
        &self.status
    }
}

/// The numbers of a source's templates: strictly growing, across restarts of this program too (SV2 7.2 allows the
/// time for it).
#[derive(Debug)]
pub struct TemplateIds(u64);

impl TemplateIds {
    /// Numbers that begin with the wall clock, in microseconds: no template comes as often.
    pub fn new(clock: Clock) -> Self {
        TemplateIds(u64::try_from(clock.now().utc.as_micros()).unwrap_or(0))
    }

    /// The next number.
    pub fn next_id(&mut self) -> TemplateId {
        self.0 += 1;
        TemplateId(self.0)
    }
}

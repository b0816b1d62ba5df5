//! What the rest of the program may know of the upstreams. Written by their task, and read without waiting for it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use job_declarator::client::ClientTally;
use mining_proxy::{Standing, SwitchReason, Upstreams};
use stratum::Now;

use super::OwnBlocks;

/// How the upstreams are.
#[derive(Debug)]
pub struct UpstreamStatus {
    standings: Vec<AtomicU8>,
    gives_work: AtomicBool,
    switches: [AtomicU64; SwitchReason::ALL.len()],
    declarations: Mutex<DeclarationView>,
    /// Blocks of our own templates.
    pub own_blocks: Arc<OwnBlocks>,
}

/// How job declaration goes, over all upstreams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeclarationView {
    /// What became of all jobs and their shares.
    pub tally: ClientTally,
    /// Shares that wait until the pool has taken their job.
    pub held: u64,
    /// Blocks of our own templates that our miners found.
    pub blocks_found: u64,
    /// Those of them that our node has in its chain.
    pub blocks_accepted: u64,
}

/// How one upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamView {
    /// What it is used for.
    pub standing: Standing,
    /// Whether work comes from it and shares go to it.
    pub is_live: bool,
}

impl UpstreamStatus {
    /// So many upstreams, none of which is connected.
    pub fn new(count: usize) -> Self {
        UpstreamStatus {
            standings: (0..count).map(|_| AtomicU8::new(0)).collect(),
            gives_work: AtomicBool::new(false),
            switches: Default::default(),
            declarations: Mutex::default(),
            own_blocks: Arc::default(),
        }
    }

    /// How each is, in their order.
    pub fn views(&self) -> impl Iterator<Item = UpstreamView> {
        let gives_work = self.gives_work.load(Ordering::Relaxed);
        self.standings.iter().map(move |standing| {
            let standing = Standing::ALL[usize::from(standing.load(Ordering::Relaxed))];
            UpstreamView { standing, is_live: gives_work && standing == Standing::Serving }
        })
    }

    /// How often work came to be from another one, in the order of [`SwitchReason::ALL`].
    pub fn switches(&self) -> [u64; SwitchReason::ALL.len()] {
        std::array::from_fn(|reason| self.switches[reason].load(Ordering::Relaxed))
    }

    /// How job declaration goes; all zero where no jobs are declared.
    pub fn declarations(&self) -> DeclarationView {
        *self.declarations.lock().expect("nothing panics while it holds a few numbers")
    }

    /// Only where jobs are declared. The lock is taken when something has changed: not for a share of a job that the
    /// pool has taken. `shown` is what was set last.
    pub(super) fn set_declarations(&self, upstreams: &Upstreams, shown: &mut DeclarationView) {
        let (tally, held) = upstreams.declarations();
        let count = |blocks: &AtomicU64| blocks.load(Ordering::Relaxed);
        let (blocks_found, blocks_accepted) =
            (count(&self.own_blocks.found), count(&self.own_blocks.accepted));
        let view = DeclarationView { tally, held, blocks_found, blocks_accepted };
        if *shown != view {
            *shown = view;
            *self.declarations.lock().expect("nothing panics while it holds a few numbers") = view;
        }
    }

    pub(super) fn set(&self, upstreams: &Upstreams, now: Now) {
        for (known, standing) in self.standings.iter().zip(upstreams.standings(now)) {
            let index = Standing::ALL.iter().position(|other| *other == standing).unwrap_or_default();
            known.store(index as u8, Ordering::Relaxed);
        }
        self.gives_work.store(upstreams.gives_work(), Ordering::Relaxed);
        for (known, count) in self.switches.iter().zip(upstreams.switches()) {
            known.store(count, Ordering::Relaxed);
        }
    }
}

//! What the rest of the program may know of the upstreams. Written by their task, and read without waiting for it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use mining_proxy::{Standing, SwitchReason, Upstreams};
use stratum::Now;

/// How the upstreams are.
#[derive(Debug)]
pub struct UpstreamStatus {
    standings: Vec<AtomicU8>,
    gives_work: AtomicBool,
    switches: [AtomicU64; SwitchReason::ALL.len()],
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

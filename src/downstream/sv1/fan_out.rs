//! A new job on its way to all connections of a worker, the fastest miners first: theirs is the most work that would
//! be lost on the old one.
//!
//! It knows the order and how far it has come, and nothing of connections.

use std::sync::Arc;

use mining_server::Work;
use stratum::HashRate;

/// One piece of work, and the places of those who have not seen it yet.
#[derive(Debug)]
pub(super) struct FanOut {
    work: Arc<Work>,
    is_urgent: bool,
    /// The slowest first, so that the next one is taken off the end.
    waiting: Vec<usize>,
}

impl FanOut {
    /// For connections at these places with these hash rates. It is urgent if they have not seen a clean job in it.
    pub(super) fn new(
        work: Arc<Work>,
        is_urgent: bool,
        connections: impl Iterator<Item = (usize, HashRate)>,
    ) -> Self {
        let mut order: Vec<(f64, usize)> = connections.map(|(place, rate)| (rate.0, place)).collect();
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        FanOut { work, is_urgent, waiting: order.into_iter().map(|(_, place)| place).collect() }
    }

    /// Whether nothing else may come before it: it makes what miners work on worthless.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// The next connection, and what it is to get.
    pub(super) fn next(&mut self) -> Option<(usize, &Arc<Work>)> {
        let place = self.waiting.pop()?;
        Some((place, &self.work))
    }

    /// Whether everybody was served.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }
}

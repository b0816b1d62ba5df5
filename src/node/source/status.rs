//! What a source of templates is doing, for metrics, health and logs. Counts only: nothing here decides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::SourceKind;

/// Counts of one source since the start. Written by the source, read by anybody.
#[derive(Debug)]
pub struct SourceStatus {
    kind: SourceKind,
    pub(super) live: AtomicBool,
    pub(super) heard_us: AtomicU64,
    pub(super) height: AtomicU64,
    pub(super) fees: AtomicU64,
    pub(super) transactions: AtomicU64,
    pub(super) received_us: AtomicU64,
    pub(super) heard: AtomicU64,
    pub(super) published: AtomicU64,
    pub(super) new_tips: AtomicU64,
    pub(super) empty_first: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) dropped_transactions: AtomicU64,
    pub(super) dropped_fees: AtomicU64,
    pub(super) block_notices: AtomicU64,
}

/// One look at a [`SourceStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFigures {
    /// How templates reach us.
    pub kind: SourceKind,
    /// Whether the source gives templates now.
    pub is_live: bool,
    /// When it last did or said that nothing is new; unix microseconds, 0 before the first time.
    pub heard_us: u64,
    /// The height of the block to find; 0 before the first template.
    pub height: u64,
    /// The fees of the newest template; satoshis.
    pub fees: u64,
    /// Its transactions besides the coinbase.
    pub transactions: u64,
    /// When it reached us; unix microseconds.
    pub received_us: u64,
    /// Templates that the source brought.
    pub heard: u64,
    /// Templates that were published.
    pub published: u64,
    /// Those that were the first on their tip.
    pub new_tips: u64,
    /// Those that were empty first ones of our own.
    pub empty_first: u64,
    /// How often the source failed.
    pub failures: u64,
    /// Transactions that were dropped for room in the coinbase.
    pub dropped_transactions: u64,
    /// The fees that went with them; satoshis.
    pub dropped_fees: u64,
    /// New blocks that the node announced ahead of a template (ZeroMQ, or its tip over IPC).
    pub block_notices: u64,
}

impl SourceStatus {
    pub(super) fn new(kind: SourceKind) -> Self {
        let zero = || AtomicU64::new(0);
        SourceStatus {
            kind,
            live: AtomicBool::new(false),
            heard_us: zero(),
            height: zero(),
            fees: zero(),
            transactions: zero(),
            received_us: zero(),
            heard: zero(),
            published: zero(),
            new_tips: zero(),
            empty_first: zero(),
            failures: zero(),
            dropped_transactions: zero(),
            dropped_fees: zero(),
            block_notices: zero(),
        }
    }

    /// How templates reach us.
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// Whether the source gives templates now.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    /// All of it.
    pub fn figures(&self) -> SourceFigures {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SourceFigures {
            kind: self.kind,
            is_live: self.is_live(),
            heard_us: of(&self.heard_us),
            height: of(&self.height),
            fees: of(&self.fees),
            transactions: of(&self.transactions),
            received_us: of(&self.received_us),
            heard: of(&self.heard),
            published: of(&self.published),
            new_tips: of(&self.new_tips),
            empty_first: of(&self.empty_first),
            failures: of(&self.failures),
            dropped_transactions: of(&self.dropped_transactions),
            dropped_fees: of(&self.dropped_fees),
            block_notices: of(&self.block_notices),
        }
    }
}

pub(super) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

pub(super) fn set(value: &AtomicU64, to: u64) {
    value.store(to, Ordering::Relaxed);
}

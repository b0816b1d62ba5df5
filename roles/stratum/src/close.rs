//! Why connections end, and whose fault it is.

use std::fmt;

/// Whose fault an ending is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer on the miner's side.
    Downstream,
    /// The pool's side.
    Upstream,
    /// Ours, or the operator's choice.
    Ours,
    /// Nobody's: miners come and go, and networks fail.
    Nobody,
}

/// Why a connection ends. Says enough to be logged as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// Whose fault.
    pub fault: Fault,
    /// What happened, in words.
    pub what: String,
}

impl CloseReason {
    /// The peer did something that no miner does.
    pub fn downstream(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Downstream, what: what.into() }
    }

    /// The peer or the network ended it, as they may.
    pub fn gone(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Nobody, what: what.into() }
    }

    /// The upstream leaves us nothing else.
    pub fn upstream(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Upstream, what: what.into() }
    }

    /// Our own limits or wishes.
    pub fn ours(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Ours, what: what.into() }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

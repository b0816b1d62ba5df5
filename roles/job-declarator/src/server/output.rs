//! What a job declaration connection hands back to the program that drives it.

use std::sync::Arc;

use stratum::CloseReason;
use stratum::hash::Hash;

use super::declared::{DeclaredBlock, DeclaredJob};

/// One declaration of one connection, never repeated on it. With the connection it names what the driver is asked to
/// do, and what it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeclarationId(pub u64);

/// Collects what one or more calls into a connection produced. The driver does the actions first, in their order,
/// because a block is among them, and then writes the bytes.
#[derive(Debug, Default)]
pub struct ServerOutput {
    /// Plain SV2 frames for the client, which the driver encrypts.
    pub bytes: Vec<u8>,
    /// What the driver must do, oldest first.
    pub actions: Vec<ServerAction>,
    /// Set when the connection must be closed once the bytes are written. No further call may follow but
    /// [`super::ServerConnection::handle_closed`].
    pub close: Option<CloseReason>,
    /// What the operator should see, at the log level of information. At most a few for each connection.
    pub notices: Vec<String>,
}

/// What the driver must do. None of it may be waited for: answers come back as calls, in any order.
#[derive(Debug)]
pub enum ServerAction {
    /// Look these transactions up in our view of the mempool, by their hashes with witness. Answer with
    /// [`super::ServerConnection::handle_looked_up`].
    LookUp {
        /// For the answer.
        declaration: DeclarationId,
        /// Each at most once.
        wtxids: Arc<[Hash]>,
    },
    /// Have our node judge the job, with bounded concurrency and off every message loop (see
    /// [`DeclaredJob::proposal`]). Answer with [`super::ServerConnection::handle_validated`].
    Validate {
        /// For the answer.
        declaration: DeclarationId,
        /// The job. An earlier verdict over the same tip, coinbase and transactions may be given again.
        job: Arc<DeclaredJob>,
    },
    /// Nobody waits for the answer any more. It may still come, and is then ignored.
    Abandon {
        /// Which answer.
        declaration: DeclarationId,
    },
    /// Submit this block by every path there is, and write it to disk at the same moment (SV2 6.4.9).
    Submit(DeclaredBlock),
}

/// What a node says of a declared job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A block of it would be valid.
    Valid {
        /// What its coinbase may pay at most, subsidy and fees, where the node says so; satoshis.
        revenue: Option<u64>,
    },
    /// It does not build on the node's tip.
    StaleTip,
    /// A block of it would break the rules; why, in the node's words.
    Invalid(String),
    /// The node cannot say; why.
    Unknown(String),
}

/// What became of all that was declared, over the life of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerTally {
    /// DeclareMiningJob messages.
    pub declared: u64,
    /// Answered with Success.
    pub acknowledged: u64,
    /// Answered with Error.
    pub refused: u64,
    /// Ended without an answer: their connection went first.
    pub abandoned: u64,
    /// Declarations for which transactions were asked.
    pub asked_for_transactions: u64,
    /// Pushed solutions that were blocks.
    pub solutions_pushed: u64,
    /// Custom jobs that were taken.
    pub custom_jobs: u64,
    /// Custom jobs that were refused.
    pub custom_jobs_refused: u64,
}

//! What the job declaration client hands back to the program that drives it.

use std::sync::Arc;

use stratum::sv2::messages::SetCustomMiningJob;
use stratum::{CloseReason, TemplateId, UpstreamJobId};
use template::{CoinbaseConstraints, CoinbaseParts, JobTemplate};

/// A custom job as we number it, before the pool has a number for it. Never repeated by one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomJobId(pub u32);

/// Collects what one or more calls into a client produced. The driver handles the solutions first, then the jobs, and
/// then the rest.
#[derive(Debug)]
pub struct ClientOutput<S> {
    /// Blocks, for our own node.
    pub solutions: Vec<NodeSolution>,
    /// Jobs for the miners, oldest first.
    pub jobs: Vec<ClientJob>,
    /// Plain SV2 frames for the job declaration server, which the driver encrypts.
    pub bytes: Vec<u8>,
    /// Messages for the pool, on the mining connection. Their answers come back with
    /// [`super::Client::handle_custom_job_success`] and [`super::Client::handle_custom_job_error`].
    pub custom_jobs: Vec<SetCustomMiningJob>,
    /// Shares that the pool may be sent now, in the order in which they came.
    pub released: Vec<Released<S>>,
    /// Shares that are never sent.
    pub dropped: Vec<Dropped<S>>,
    /// Set when templates must leave another room in the coinbase from now on.
    pub constraints: Option<CoinbaseConstraints>,
    /// What the ladder must know, oldest first.
    pub trouble: Vec<Trouble>,
    /// Set when the connection to the job declaration server must be closed once the bytes are written. The client
    /// takes it as closed already.
    pub close: Option<CloseReason>,
    /// Set together with `close` when the server named another host and port to dial. The driver must expect the same
    /// authority key there (SV2 3.6.5), and goes back to the configured endpoint when it cannot connect.
    pub reconnect_to: Option<(String, u16)>,
    /// What the operator should see, at the log level of information. At most a few a minute.
    pub notices: Vec<String>,
}

impl<S> Default for ClientOutput<S> {
    fn default() -> Self {
        ClientOutput {
            solutions: Vec::new(),
            jobs: Vec::new(),
            bytes: Vec::new(),
            custom_jobs: Vec::new(),
            released: Vec::new(),
            dropped: Vec::new(),
            constraints: None,
            trouble: Vec::new(),
            close: None,
            reconnect_to: None,
            notices: Vec::new(),
        }
    }
}

/// A job to hash: published before anybody has taken it (SV2 6.3).
#[derive(Clone, Debug)]
pub struct ClientJob {
    /// Our number, which its shares come back with.
    pub id: CustomJobId,
    /// What it was made of.
    pub template: Arc<JobTemplate>,
    /// Whether earlier jobs are void: the first job of a tip, or of a channel.
    pub clean: bool,
    /// The coinbase without witness: up to and with the pool's extranonce prefix, and after the bytes that the
    /// channel rolls.
    pub coinbase: CoinbaseParts,
}

/// A share that may be sent, with the pool's number of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released<S> {
    /// As the pool numbers it.
    pub job: UpstreamJobId,
    /// The share.
    pub share: S,
}

/// A share that is never sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped<S> {
    /// The share.
    pub share: S,
    /// Why.
    pub reason: HeldDrop,
}

/// Why a share of a custom job is never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeldDrop {
    /// The pool or its job declaration server refused the job.
    JobRefused,
    /// The tip changed before the pool took the job.
    TipChanged,
    /// The mining channel ended, or its extranonce prefix changed.
    ChannelChanged,
    /// The job is over, or never was.
    JobRetired,
    /// Too many shares wait already.
    TooMany,
}

/// A block, for our own node: what `SubmitSolution` carries (SV2 7.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSolution {
    /// The template.
    pub template: TemplateId,
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The whole coinbase, witness included.
    pub coinbase: Vec<u8>,
}

/// What may make another source of work the better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The connection to the job declaration server is gone.
    Disconnected,
    /// No token came in time.
    NoToken,
    /// A declaration was not answered in time.
    DeclarationUnanswered,
    /// A declaration was refused.
    DeclarationRefused {
        /// The server's code.
        code: String,
        /// The server's words.
        details: String,
    },
    /// A `SetCustomMiningJob` was not answered in time.
    CustomJobUnanswered,
    /// A `SetCustomMiningJob` was refused.
    CustomJobRefused {
        /// The pool's code.
        code: String,
    },
    /// Shares of a job that the pool had taken were refused, several in a row.
    SharesRefused {
        /// The pool's last code.
        code: String,
    },
    /// What the server asks for fits in no coinbase, or is none.
    UnusableOutputs(String),
}

/// What became of all jobs, over the life of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientTally {
    /// Jobs that miners were given.
    pub published: u64,
    /// `DeclareMiningJob` messages.
    pub declared: u64,
    /// Jobs that the pool has taken.
    pub acknowledged: u64,
    /// Refusals, by either side.
    pub refused: u64,
    /// Solutions pushed to the job declaration server.
    pub solutions_pushed: u64,
    /// Shares that waited for their job to be taken, and were then sent.
    pub released: u64,
    /// Shares that were never sent.
    pub dropped: u64,
}

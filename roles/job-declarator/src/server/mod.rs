//! The pool's side of job declaration.
//!
//! One [`JobDeclarationServer`] holds what all connections share: tokens, the outputs that the pool wants, and the
//! chain tip. Each connection of a client is a [`ServerConnection`]. Their owner calls them one at a time; what takes
//! long (looking up, validating) is asked of the driver and comes back as a call, so that nobody waits for another.
//!
//! - [`tokens`]: who was given which token.
//! - [`connection`]: one connection.
//! - [`declared`]: a declared job.
//! - [`custom_job`]: the answer to `SetCustomMiningJob`, which comes by a mining connection.
//! - [`output`]: what a connection hands back.

pub mod connection;
pub mod custom_job;
mod declaration;
pub mod declared;
pub mod output;
pub mod tokens;

use std::sync::Arc;

use stratum::Now;
use stratum::hash::Hash;
use template::outputs::write_outputs;
use template::{BlockTemplate, Output};

pub use connection::ServerConnection;
pub use custom_job::{Claimant, CustomJob};
pub use declared::{DeclaredBlock, DeclaredJob, Refusal, Solution};
pub use output::{DeclarationId, ServerAction, ServerOutput, ServerTally, Verdict};
pub use tokens::{Mode, TOKEN_SIZE, TokenBytes, TokenTable};

/// The most bytes of outputs that a pool may ask for: every byte of them is block space that pays no fee, and the
/// message that carries them holds 65,535.
pub const MAX_POOL_OUTPUTS_SIZE: usize = 8 * 1024;

/// What the pool's node says of the next block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTip {
    /// The hash of the block to build on.
    pub previous_hash: Hash,
    /// The height of the block to find.
    pub height: u32,
    /// The compact target of the block to find.
    pub nbits: u32,
    /// The lowest time that it may carry, as far as the node says one; unix seconds.
    pub min_ntime: u32,
    /// A time that the node itself gave it; unix seconds.
    pub block_time: u32,
    /// What it may create; satoshis.
    pub subsidy: u64,
}

impl From<&BlockTemplate> for PoolTip {
    fn from(template: &BlockTemplate) -> Self {
        PoolTip {
            previous_hash: template.previous_hash,
            height: template.height,
            nbits: template.nbits,
            min_ntime: template.min_ntime,
            block_time: template.current_time,
            subsidy: template.coinbase_value.saturating_sub(template.fees()),
        }
    }
}

/// What all job declaration connections of a pool share.
#[derive(Debug)]
pub struct JobDeclarationServer {
    tokens: TokenTable,
    /// What coinbases must have; the first is the payout.
    outputs: Arc<[Output]>,
    tip: Option<PoolTip>,
    /// Whether only Full-Template mode is served.
    requires_transactions: bool,
    tally: ServerTally,
}

impl JobDeclarationServer {
    /// A server that wants `outputs` in each coinbase: the payout first, then outputs without value (SV2 6.4.3).
    /// Their values are made zero, as the specification has it.
    ///
    /// Panics when there is none, and when they are more than [`MAX_POOL_OUTPUTS_SIZE`] bytes: the config is checked
    /// before.
    pub fn new(mut outputs: Vec<Output>, requires_transactions: bool) -> Self {
        assert!(!outputs.is_empty(), "a pool has a payout output");
        outputs.iter_mut().for_each(|output| output.value = 0);
        assert!(write_outputs(&outputs).len() <= MAX_POOL_OUTPUTS_SIZE, "the pool's outputs are too many");
        JobDeclarationServer {
            tokens: TokenTable::new(),
            outputs: outputs.into(),
            tip: None,
            requires_transactions,
            tally: ServerTally::default(),
        }
    }

    /// The pool's node has another tip, or says something else of it. Every connection must be told after this
    /// ([`ServerConnection::handle_tip`]).
    pub fn set_tip(&mut self, tip: PoolTip) {
        self.tip = Some(tip);
    }

    /// The tip that was set last.
    pub fn tip(&self) -> Option<PoolTip> {
        self.tip
    }

    /// What became of all that was declared.
    pub fn tally(&self) -> ServerTally {
        self.tally
    }

    /// How many tokens are out.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// Time has passed: forgets what has expired. Once a minute is enough, because no expired token is taken.
    pub fn handle_timeout(&mut self, now: Now) {
        self.tokens.expire(now);
    }
}

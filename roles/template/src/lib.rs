//! From a node's answer to a block template, and from a template and a solved header to a block; and what others
//! declare of a block: its coinbase, taken apart, and its transactions.
//!
//! This crate never talks to a node, reads a clock or touches a file: answers come in as text, blocks go out
//! as bytes. Hashes are in internal byte order everywhere.

pub mod block;
pub mod block_template;
mod bytes;
pub mod coinbase;
pub mod constraints;
pub mod first_job;
pub mod job_template;
pub mod merkle;
pub mod node_block;
pub mod outputs;
pub mod payout;
pub mod provider;
pub mod publisher;
pub mod skeleton;
pub mod transaction;

pub use block::{SolvedBlock, assemble_block, assemble_declared_block};
pub use block_template::{BlockTemplate, TemplateError, TemplateTransaction};
pub use coinbase::{CoinbaseError, CoinbaseParts, CoinbaseRules};
pub use constraints::{CoinbaseConstraints, Constrained, TooDemanding};
pub use first_job::{ValidatedTip, subsidy};
pub use job_template::{AssemblyError, JobTemplate, TemplateFeed};
pub use node_block::{NodeBlock, NodeCoinbase};
pub use outputs::{Output, OutputsError};
pub use payout::{PayoutError, payout_script};
pub use publisher::{Publication, PublishPolicy, Publisher};
pub use skeleton::{Skeleton, SkeletonError};
pub use transaction::{NoTransaction, RawTransaction};

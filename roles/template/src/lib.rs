//! From a node's answer to a block template, and from a template and a solved header to a block.
//!
//! This crate never talks to a node, reads a clock or touches a file: answers come in as text, blocks go out
//! as bytes. Hashes are in internal byte order everywhere.

pub mod block;
pub mod block_template;
mod bytes;
pub mod coinbase;
pub mod merkle;
pub mod outputs;
pub mod payout;
pub mod skeleton;

pub use block::assemble_block;
pub use block_template::{BlockTemplate, TemplateError, TemplateTransaction};
pub use coinbase::{CoinbaseError, CoinbaseParts, CoinbaseRules};
pub use outputs::{Output, OutputsError};
pub use payout::{PayoutError, payout_script};
pub use skeleton::{Skeleton, SkeletonError};

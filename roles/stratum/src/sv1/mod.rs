//! Stratum V1 as data: lines, requests, answers and notifications, and the same seen from a miner.
//!
//! ```text
//! bytes -> line::LineBuffer -> request::Request -> (the state machine of a connection) -> render -> bytes
//! ```
//!
//! This module never decides anything about a miner: it keeps no connection state beyond the bytes of an
//! unfinished line, and it never judges a share. What is lenient here is lenient because some firmware needs it.

pub mod client;
mod hexadecimal;
mod json;
pub mod line;
pub mod proxy_header;
pub mod render;
pub mod request;
mod scan;

#[cfg(test)]
mod dialects;

//! What can go wrong between us and a node, and whose fault it is.

use std::path::PathBuf;

use template::TemplateError;

/// A call to a node that gave no result. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The URL of the node cannot be used. A fault of the config.
    #[error("the node's URL `{url}` cannot be used: {reason}")]
    Url {
        /// The URL as it was written, without user and password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cookie file cannot be read: the path is wrong, its permissions are, or the node is not running.
    #[error(
        "the node's cookie file {path} cannot be read ({reason}): is the node running, and is this its data folder?"
    )]
    Cookie {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// The node refuses our user and password, or our cookie. A fault of the config.
    #[error("the node refuses our credentials: check its cookie file, or user and password")]
    Unauthorized,
    /// Nothing answers at the node's address, or the connection was lost.
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
    /// The node did not answer in time.
    #[error("the node did not answer `{method}` in time")]
    Timeout {
        /// What was called.
        method: String,
    },
    /// The node has more calls than it can take at the moment.
    #[error("the node is too busy to answer `{method}`: raise its rpcworkqueue")]
    Busy {
        /// What was called.
        method: String,
    },
    /// An answer that no node gives. A fault of the node, or of what listens in its place.
    #[error("the node's answer to `{method}` cannot be used: {reason}")]
    BadAnswer {
        /// What was called.
        method: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The node's own error, for instance that it still starts or that it is not in sync.
    #[error("the node refuses `{method}`: {message} (code {code})")]
    Rpc {
        /// What was called.
        method: String,
        /// Bitcoin Core's number for it.
        code: i64,
        /// Bitcoin Core's words.
        message: String,
    },
    /// The node's own error over the interprocess interface, where errors have no numbers.
    #[error("the node refuses `{method}`: {message}")]
    Refused {
        /// What was called.
        method: String,
        /// The node's words.
        message: String,
    },
    /// The node does not know a call: its version is another than those that we know.
    #[error(
        "the node does not know `{method}`: its interprocess interface is not that of Bitcoin Core 30 or later"
    )]
    Unknown {
        /// What was called.
        method: String,
    },
    /// A template from which no block could be built. A fault of the node.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Bitcoin Core's number for a block that cannot be decoded.
const RPC_DESERIALIZATION_ERROR: i64 = -22;

/// Bitcoin Core's number for parameters that it cannot use.
const RPC_INVALID_PARAMETER: i64 = -8;

impl NodeError {
    /// Whether the operator must change something before this can work.
    pub fn is_config(&self) -> bool {
        matches!(self, NodeError::Url { .. } | NodeError::Unauthorized)
    }

    /// Whether the node understood the call and asking again would give the same answer.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            NodeError::Rpc { code: RPC_DESERIALIZATION_ERROR | RPC_INVALID_PARAMETER, .. }
                | NodeError::Url { .. }
        )
    }

    /// Whether a fresh cookie may help: a node that was restarted has a new one.
    pub(crate) fn may_need_fresh_cookie(&self) -> bool {
        matches!(self, NodeError::Unauthorized | NodeError::Unreachable(_) | NodeError::Timeout { .. })
    }
}

//! Why a role ended other than by being asked to.

/// A failure at runtime, worth exit code 1. Its text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system refused something that the role cannot do without.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as in "write blocks/1.hex".
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Anything else that ends a role.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    /// For `map_err` behind a call to the system; `what` continues "cannot".
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> RunError {
        let what = what.into();
        move |source| RunError::Io { what, source }
    }
}

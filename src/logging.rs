//! Where log lines go: to standard error, as text or JSON.
//!
//! Standard output belongs to what a command prints. This module never logs anything itself.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

use crate::config::LogFormat;

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("the log filter {filter:?} cannot be used: {source}")]
    Filter {
        /// What was asked for.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Somebody else in this process has set up logging.
    #[error("logging is set up already")]
    Twice(#[from] TryInitError),
}

/// Sends what passes `filter` (in the syntax of `RUST_LOG`) to standard error from now on. Once per process.
pub fn start(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })?;
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).finish().try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

/// Whether [`start`] would take the filter.
pub fn check_filter(filter: &str) -> Result<(), LoggingError> {
    match EnvFilter::try_new(filter) {
        Ok(_) => Ok(()),
        Err(source) => Err(LoggingError::Filter { filter: filter.to_owned(), source }),
    }
}

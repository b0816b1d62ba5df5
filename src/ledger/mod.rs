//! The durable ledger: batches and rollups on a disk, and their way back.
//!
//! What the entries mean is `accounting`'s part: here, payloads are bytes, and sums are stored as they come. Nothing
//! here is on the way of a share: the sink hands over what it has sealed, and goes on.
//!
//! - [`store`]: what any engine must do, and how it fails.
//! - [`sqlite`]: the engine that is built in: one folder, no server.
//! - [`writer`]: the threads that own the store, and outlast a failing disk.
//! - [`times`]: UTC, in and out.
//! - [`verify`]: whether all of it is sound.

pub mod sqlite;
pub mod store;
pub mod times;
pub mod verify;
pub mod writer;

use crate::clock::Clock;
use crate::config::LedgerConfig;
use crate::error::RunError;

pub use sqlite::{SqliteReader, SqliteStore, SqliteViews};
pub use store::{Appended, Damage, Head, Opening, Reader, Removed, Retention, Store, StoreError, Views};
pub use writer::{LedgerStatus, LedgerThreads, LedgerWriter, Outgoing, Unwritten};

/// A ledger that is open for writing, by the only process that may.
#[derive(Debug)]
pub struct OpenLedger {
    /// What it knew when it was opened.
    pub opening: Opening,
    /// Where the sink's batches and rollups go.
    pub writer: LedgerWriter,
    /// To be ended last, when the sink has handed over all it has.
    pub threads: LedgerThreads,
    /// Reads it: first the batches after the watermark, then whatever is asked.
    pub reader: SqliteReader,
}

/// Opens the ledger that the configuration names, or makes it, and starts the threads that write it.
pub fn open(config: &LedgerConfig, clock: Clock) -> Result<OpenLedger, RunError> {
    let failed = |error: StoreError| RunError::Failed(format!("ledger.path: {error}"));
    let (store, views, opening) = SqliteStore::open(&config.path, config.retention).map_err(failed)?;
    let reader = SqliteReader::open(&config.path).map_err(failed)?;
    for damage in &opening.damage {
        tracing::error!(
            set_aside = %damage.set_aside.display(),
            first_lost = damage.first_lost.0,
            last_lost = damage.last_lost.map(|number| number.0),
            "a file of the ledger was damaged: {}",
            damage.what
        );
    }
    let (writer, threads) = LedgerWriter::start(store, views, opening.head.number, clock)?;
    tracing::info!(
        path = %config.path.display(),
        batches = opening.head.number.0,
        devices = opening.devices.len(),
        "the ledger is open"
    );
    Ok(OpenLedger { opening, writer, threads, reader })
}

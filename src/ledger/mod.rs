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

pub mod coding;
pub mod sqlite;
pub mod store;
pub mod times;
pub mod verify;
pub mod writer;

pub use sqlite::{SqliteReader, SqliteStore, SqliteViews};
pub use store::{Appended, Damage, Head, Opening, Reader, Removed, Retention, Store, StoreError, Views};
pub use writer::{LedgerStatus, LedgerThreads, LedgerWriter, Outgoing, Unwritten};

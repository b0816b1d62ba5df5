//! Bitcoin Core's interprocess interface (`bitcoin-node -ipcbind=unix`): Cap'n Proto over a Unix socket.
//!
//! What Cap'n Proto hands out cannot leave its thread, so whoever speaks to a node so has a thread of its own, and
//! channels with bounds to everybody else. Nothing here decides which template is published or which block is valid.

mod connection;
mod core30;
mod node;
mod source;

use std::future::Future;
use std::io;

use tokio::task::LocalSet;

pub use node::{IpcNode, start_ipc_node};
pub use source::{IpcSourceSettings, start_ipc_source};

/// Runs what `make` makes on a thread of this name, with a scheduler of its own for what cannot leave it.
fn start_thread<F: Future<Output = ()> + 'static>(
    name: &str,
    make: impl FnOnce() -> F + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || LocalSet::new().block_on(&runtime, make()))?;
    Ok(())
}

#[cfg(test)]
mod tests;

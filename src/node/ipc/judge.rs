//! Judgement of blocks by `checkBlock`, for whoever is on another thread.
//!
//! A connection is dialled when a block is to be judged and there is none: a node that was restarted is found again by
//! the next block, and one that is away costs an answer that says so.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::{fmt, io};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::connection::Connection;
use super::start_thread;
use crate::node::error::NodeError;
use crate::node::judge::Rejection;
use crate::shutdown::Shutdown;

/// Blocks that wait for the thread, which hands them on at once. Whoever asks waits for room.
const MAX_WAITING: usize = 16;

/// Blocks that the node judges for us at once, those that nobody waits for any more included: each holds the lock of its
/// chain for as long as a block takes.
const MAX_AT_ONCE: usize = 4;

struct Order {
    block: Vec<u8>,
    answer: oneshot::Sender<Result<Option<Rejection>, NodeError>>,
}

/// Has blocks judged by a node. Cheap to clone.
#[derive(Clone)]
pub struct IpcJudge {
    orders: mpsc::Sender<Order>,
}

/// Starts the thread that asks the node behind `socket`. It ends when the end is asked for.
pub fn start_ipc_judge(socket: PathBuf, mut shutdown: Shutdown) -> io::Result<IpcJudge> {
    let (orders, waiting) = mpsc::channel(MAX_WAITING);
    start_thread("ipc-judge", move || async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = serve(&socket, waiting) => {}
        }
    })?;
    Ok(IpcJudge { orders })
}

impl IpcJudge {
    /// What the node has against `block`; `None` when nothing.
    pub(crate) async fn judge(&self, block: Vec<u8>) -> Result<Option<Rejection>, NodeError> {
        let (answer, answered) = oneshot::channel();
        let ended = || NodeError::Unreachable("we are stopping".to_owned());
        self.orders.send(Order { block, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

async fn serve(socket: &Path, mut orders: mpsc::Receiver<Order>) {
    let turns = Arc::new(Semaphore::new(MAX_AT_ONCE));
    let mut connection: Option<Rc<Connection>> = None;
    while let Some(Order { block, answer }) = orders.recv().await {
        let turn = Arc::clone(&turns).acquire_owned().await.expect("nobody closes it");
        if answer.is_closed() {
            continue;
        }
        connection = connection.filter(|connection| !connection.is_closed());
        let dialled = match connection.take() {
            Some(connection) => Ok(connection),
            None => Connection::dial(socket).await.map(Rc::new),
        };
        match dialled {
            Ok(dialled) => {
                connection = Some(Rc::clone(&dialled));
                tokio::task::spawn_local(async move {
                    // Fails when nobody waits any more.
                    let _ = answer.send(check(&dialled, &block).await);
                    drop(turn);
                });
            }
            // Fails when nobody waits any more.
            Err(error) => drop(answer.send(Err(error))),
        }
    }
}

/// The node judges on a thread of its own, so that a slow block holds up no other. A call is never given up: the node
/// would go on with it, and nobody would count it.
async fn check(connection: &Connection, block: &[u8]) -> Result<Option<Rejection>, NodeError> {
    connection.caller().await?.check_block(block).await
}

impl fmt::Debug for IpcJudge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IpcJudge").finish_non_exhaustive()
    }
}

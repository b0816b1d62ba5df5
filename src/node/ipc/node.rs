//! Questions to a node from other threads: whether a block is valid, and which transactions its mempool has.
//!
//! A connection is dialled when there is a question and no connection: a node that was restarted is found again by the
//! next question, and one that is away costs an answer that says so.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::{fmt, io};

use stratum::hash::Hash;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::connection::{Caller, Connection};
use super::start_thread;
use crate::node::error::NodeError;
use crate::node::judge::Rejection;
use crate::shutdown::Shutdown;

/// Questions that wait for the thread, which hands them on at once. Whoever asks waits for room.
const MAX_WAITING: usize = 16;

/// Questions that the node works on for us at once, those that nobody waits for any more included: for a block it holds
/// the lock of its chain for as long as a block takes.
const MAX_AT_ONCE: usize = 4;

type Answer<T> = oneshot::Sender<Result<T, NodeError>>;

/// Whole transactions, in the order in which they were asked for; `None` where the node has none of that name.
pub(crate) type Transactions = Vec<Option<Vec<u8>>>;

enum Question {
    Block(Vec<u8>, Answer<Option<Rejection>>),
    Transactions(Vec<Hash>, Answer<Transactions>),
}

/// Asks a node. Cheap to clone.
#[derive(Clone)]
pub struct IpcNode {
    questions: mpsc::Sender<Question>,
}

/// Starts the thread that asks the node behind `socket`. It ends when the end is asked for.
pub fn start_ipc_node(socket: PathBuf, mut shutdown: Shutdown) -> io::Result<IpcNode> {
    let (questions, waiting) = mpsc::channel(MAX_WAITING);
    start_thread("ipc-node", move || async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = serve(&socket, waiting) => {}
        }
    })?;
    Ok(IpcNode { questions })
}

impl IpcNode {
    /// What the node has against `block`; `None` when nothing.
    pub(crate) async fn judge(&self, block: Vec<u8>) -> Result<Option<Rejection>, NodeError> {
        self.ask(|answer| Question::Block(block, answer)).await
    }

    /// The transactions of the node's mempool with these hashes with witness. The caller bounds how many. Nodes before
    /// Bitcoin Core 32 do not know how.
    pub(crate) async fn transactions(&self, wtxids: Vec<Hash>) -> Result<Transactions, NodeError> {
        self.ask(|answer| Question::Transactions(wtxids, answer)).await
    }

    async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Question) -> Result<T, NodeError> {
        let (answer, answered) = oneshot::channel();
        let ended = || NodeError::Unreachable("we are stopping".to_owned());
        self.questions.send(question(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl Question {
    fn is_idle(&self) -> bool {
        match self {
            Question::Block(_, answer) => answer.is_closed(),
            Question::Transactions(_, answer) => answer.is_closed(),
        }
    }

    fn refuse(self, why: NodeError) {
        // These fail when nobody waits any more.
        match self {
            Question::Block(_, answer) => drop(answer.send(Err(why))),
            Question::Transactions(_, answer) => drop(answer.send(Err(why))),
        }
    }

    /// The node works on a thread of its own for each question, so that a slow one holds up no other. A call is never
    /// given up: the node would go on with it, and nobody would count it.
    async fn put(self, connection: &Connection) {
        match self {
            Question::Block(block, answer) => {
                put(connection, answer, async |caller| caller.check_block(&block).await).await;
            }
            Question::Transactions(wtxids, answer) => {
                put(connection, answer, async |caller| caller.transactions(&wtxids).await).await;
            }
        }
    }
}

async fn put<T, F: Future<Output = Result<T, NodeError>>>(
    connection: &Connection,
    answer: Answer<T>,
    call: impl FnOnce(Caller) -> F,
) {
    let said = match connection.caller().await {
        Ok(caller) => call(caller).await,
        Err(failure) => Err(failure),
    };
    // Fails when nobody waits any more.
    let _ = answer.send(said);
}

async fn serve(socket: &Path, mut questions: mpsc::Receiver<Question>) {
    let turns = Arc::new(Semaphore::new(MAX_AT_ONCE));
    let mut connection: Option<Rc<Connection>> = None;
    while let Some(question) = questions.recv().await {
        let turn = Arc::clone(&turns).acquire_owned().await.expect("nobody closes it");
        if question.is_idle() {
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
                    question.put(&dialled).await;
                    drop(turn);
                });
            }
            Err(error) => question.refuse(error),
        }
    }
}

impl fmt::Debug for IpcNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IpcNode").finish_non_exhaustive()
    }
}

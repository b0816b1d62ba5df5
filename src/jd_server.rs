//! The `jd-server` role: the job declaration server of a pool as a process of its own.
//!
//! It is the same server that a pool has in its own process ([`crate::declarations`]), with [`crate::control`] between:
//! the pool says what coinbases must have and what it mines on, and asks about custom jobs. A pool that is away is dialled
//! again; clients stay, and their tokens with them. Nothing here mines, or knows a miner.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use job_declarator::server::{Claimant, DeclaredBlock};
use template::Output;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::Clock;
use crate::config::{JdServerConfig, Listeners};
use crate::control::lines::{LineReader, LineWriter, lines};
use crate::control::wire::{self, ToPool, ToServer, Wrong};
use crate::control::{MAX_LINE_TO_SERVER, PROTOCOL};
use crate::declarations::{DeclarationFigures, DeclarationParts, Declarations, declarations};
use crate::error::RunError;
use crate::http;
use crate::node::{BlockJudge, BlockSource, NodeClient};
use crate::pool::node_client;
use crate::shutdown::{Shutdown, ShutdownTrigger, shutdown};
use crate::templates;

/// The wait before a pool that is away is dialled again.
const REDIAL: Duration = Duration::from_millis(500);

/// How long the pool may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Checks that are under way. The pool's next message waits for one of them.
const MAX_CHECKS: usize = 64;

/// Blocks that wait for a pool. Only a test network has several; our node has each in any case.
const MAX_BLOCKS: usize = 16;

/// What clients are served by, and for which outputs of the pool.
struct Served {
    outputs: Vec<Output>,
    declarations: Declarations,
    stop: ShutdownTrigger,
    running: JoinHandle<()>,
}

/// What is the same for every life of the pool.
struct Server {
    config: JdServerConfig,
    listener: std::net::TcpListener,
    node: Arc<NodeClient>,
    judge: BlockJudge,
    source: BlockSource,
    clock: Clock,
    blocks: mpsc::Sender<DeclaredBlock>,
    served: Option<Served>,
    /// For whoever reads the metrics: locked for a moment when the server begins or is asked.
    shown: Arc<Mutex<Shown>>,
}

/// What can be seen of it.
#[derive(Default)]
struct Shown {
    declarations: Option<Declarations>,
    pool_is_there: bool,
}

/// Runs a job declaration server until the end is asked for.
pub async fn run(
    config: JdServerConfig,
    mut listeners: Listeners,
    mut shutdown: Shutdown,
) -> Result<(), RunError> {
    let clock = Clock::start();
    let node = Arc::new(node_client(&config.node)?);
    let of_node = Some((&config.node, Arc::clone(&node)));
    let blocks_dir = config.blocks_dir.clone();
    // Ends after the clients: a block that one of them found goes there.
    let (stop_source, source_end) = crate::shutdown::shutdown();
    let source = templates::start(&config.templates, of_node, blocks_dir, clock, source_end)?;
    let judge = templates::judge(&config.templates, Arc::clone(&node), shutdown.clone())?;
    let missing = || RunError::Failed("jd_server.listen: nothing listens".to_owned());
    let listener = listeners.declarations.take().ok_or_else(missing)?;
    let shown = Arc::<Mutex<Shown>>::default();
    if let Some(metrics) = listeners.metrics.take() {
        let metrics = TcpListener::from_std(metrics).map_err(RunError::io("use a listener"))?;
        tokio::spawn(serve_metrics(metrics, Arc::clone(&shown), source.clone(), shutdown.clone()));
    }
    let (blocks, mut found) = mpsc::channel(MAX_BLOCKS);
    let mut server = Server { config, listener, node, judge, source, clock, blocks, served: None, shown };
    tokio::select! {
        biased;
        () = shutdown.requested() => {}
        failed = server.follow(&mut found) => return Err(failed),
    }
    server.end().await;
    stop_source.trigger();
    Ok(())
}

async fn serve_metrics(
    listener: TcpListener,
    shown: Arc<Mutex<Shown>>,
    source: BlockSource,
    shutdown: Shutdown,
) {
    let of_page = Arc::clone(&shown);
    let page = move || {
        let (is_there, figures) = look(&of_page);
        http::render_jd_server(is_there, figures, source.status().map(|source| source.figures()))
    };
    let health = move || match look(&shown).0 {
        true => Ok(()),
        false => Err("the pool is not there".to_owned()),
    };
    if let Err(error) = http::serve_page(listener, page, health, shutdown).await {
        tracing::error!(%error, "metrics are no longer served");
    }
}

fn look(shown: &Mutex<Shown>) -> (bool, DeclarationFigures) {
    let shown = shown.lock().expect("nothing panics while it holds what is shown");
    let figures = shown.declarations.as_ref().map(Declarations::figures);
    (shown.pool_is_there, figures.unwrap_or_default())
}

impl Server {
    /// Dials the pool again and again. Returns only what makes it needless to go on.
    async fn follow(&mut self, found: &mut mpsc::Receiver<DeclaredBlock>) -> RunError {
        let mut was_told = false;
        loop {
            let ended = match UnixStream::connect(&self.config.control_socket).await {
                Ok(stream) => self.speak(stream, found).await,
                Err(error) => Err(Ended::Away(error.to_string())),
            };
            // One that was there is news again.
            was_told &= !self.show(|shown| std::mem::take(&mut shown.pool_is_there));
            let path = self.config.control_socket.display();
            match ended {
                Ok(()) => tracing::warn!(%path, "the pool is gone; it is dialled until it is back"),
                Err(Ended::Failed(error)) => return error,
                Err(Ended::Away(reason)) if !was_told => {
                    tracing::warn!(%path, "no pool: {reason}; it is dialled until it is there");
                    was_told = true;
                }
                Err(Ended::Away(_)) => {}
            }
            tokio::time::sleep(REDIAL).await;
        }
    }

    /// Speaks with the pool until it goes.
    async fn speak(
        &mut self,
        stream: UnixStream,
        found: &mut mpsc::Receiver<DeclaredBlock>,
    ) -> Result<(), Ended> {
        let (mut reader, mut writer) = lines(stream, MAX_LINE_TO_SERVER);
        let outputs = greet(&mut reader, &mut writer).await?;
        let declarations = self.serve(outputs).await?;
        self.show(|shown| shown.pool_is_there = true);
        tracing::info!("the pool is there");
        let mut checks = JoinSet::new();
        // Reading goes on while something is written: neither end then waits for the other.
        let (answers, mut unwritten) = mpsc::channel::<ToPool>(MAX_CHECKS);
        let writing = async move {
            loop {
                let message = tokio::select! {
                    Some(message) = unwritten.recv() => message,
                    Some(block) = found.recv() => {
                        ToPool::Block { height: block.height, block: hex::encode(&block.bytes) }
                    }
                    else => return Ok(()),
                };
                writer.send(&message).await?;
            }
        };
        let source = self.source.clone();
        let reading = async {
            while let Some(message) = reader.next::<ToServer>().await? {
                while checks.len() >= MAX_CHECKS {
                    checks.join_next().await;
                }
                while checks.try_join_next().is_some() {}
                take(message, &declarations, &source, &answers, &mut checks)?;
            }
            Ok(())
        };
        tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
        }
    }

    /// The server for these outputs: the one that is there, or where the pool wants others than before, a new one.
    async fn serve(&mut self, outputs: Vec<Output>) -> Result<Declarations, Ended> {
        if let Some(served) = self.served.as_ref().filter(|served| served.outputs == outputs) {
            return Ok(served.declarations.clone());
        }
        if self.served.is_some() {
            tracing::warn!("the pool is paid to other outputs than before: clients must begin anew");
        }
        self.end().await;
        let failed = |error| Ended::Failed(RunError::io("use a listener")(error));
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).map_err(failed)?;
        let (stop, end) = shutdown();
        let parts = DeclarationParts {
            outputs: outputs.clone(),
            requires_transactions: self.config.modes.requires_transactions(),
            max_connections: self.config.max_connections as usize,
            key: self.config.authority.clone(),
            node: Arc::clone(&self.node),
            judge: self.judge.clone(),
            source: self.source.clone(),
            blocks: Some(self.blocks.clone()),
        };
        let (declarations, running) = declarations(parts, listener, self.clock, end);
        self.show(|shown| shown.declarations = Some(declarations.clone()));
        let running = tokio::spawn(running);
        self.served = Some(Served { outputs, declarations: declarations.clone(), stop, running });
        Ok(declarations)
    }

    /// Ends what clients are served by, if it is there.
    async fn end(&mut self) {
        let Some(served) = self.served.take() else { return };
        served.stop.trigger();
        if served.running.await.is_err() {
            tracing::error!("the job declaration server ended by a bug of ours; please report it");
        }
    }

    fn show<T>(&self, change: impl FnOnce(&mut Shown) -> T) -> T {
        change(&mut self.shown.lock().expect("nothing panics while it holds what is shown"))
    }
}

/// Why the pool is not spoken with.
enum Ended {
    /// It is not there, or says what it may not; it may be better the next time.
    Away(String),
    /// Nothing can be better the next time.
    Failed(RunError),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Ended::Away(error.to_string())
    }
}

impl From<Wrong> for Ended {
    fn from(wrong: Wrong) -> Self {
        Ended::Away(wrong.to_string())
    }
}

/// Tells the pool who we are, and learns what coinbases must have.
async fn greet(reader: &mut LineReader, writer: &mut LineWriter) -> Result<Vec<Output>, Ended> {
    writer.send(&ToPool::Server { protocol: PROTOCOL }).await?;
    let hello = tokio::time::timeout(HELLO_DEADLINE, reader.next()).await;
    match hello.map_err(|_| Ended::Away("it does not say who it is".to_owned()))?? {
        Some(ToServer::Pool { protocol: PROTOCOL, outputs }) => Ok(wire::outputs_of(&outputs)?),
        Some(ToServer::Pool { protocol, .. }) => {
            Err(Ended::Away(format!("it speaks version {protocol} of the interface, and we {PROTOCOL}")))
        }
        Some(_) => Err(Ended::Away("it does not say who it is".to_owned())),
        None => Err(Ended::Away("it has another job declaration server".to_owned())),
    }
}

/// What the pool says. Its checks are answered in any order.
fn take(
    message: ToServer,
    declarations: &Declarations,
    source: &BlockSource,
    answers: &mpsc::Sender<ToPool>,
    checks: &mut JoinSet<()>,
) -> Result<(), Ended> {
    match message {
        ToServer::Pool { .. } => return Err(Ended::Away("it says twice who it is".to_owned())),
        ToServer::Tip(tip) => {
            let template = source.templates().borrow().clone();
            declarations.set_tip_of_pool(tip.read()?, template);
        }
        ToServer::Check { id, user_identity, extranonce_size, message } => {
            let message = wire::message_of(&message)?;
            let (declarations, answers) = (declarations.clone(), answers.clone());
            checks.spawn(async move {
                let claimant = Claimant { user_identity: &user_identity, extranonce_size };
                let answer = match declarations.check_custom_job(claimant, message).await {
                    Ok(job) => ToPool::Taken { id, job: Box::new(wire::Job::from(&job)) },
                    Err(refusal) => ToPool::Refused { id, code: refusal.code, details: refusal.details },
                };
                // Fails when the pool has gone meanwhile.
                let _ = answers.send(answer).await;
            });
        }
    }
    Ok(())
}

//! The `template-provider` role: block templates out, to pools and job declaration clients (SV2 7).
//!
//! What a connection decides is `template::provider`'s; here are only sockets and timers. A client that misbehaves
//! loses its connection, and nobody else notices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stratum::sv2::frame::MAX_PAYLOAD_FROM_MINER;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::{CloseReason, Fault};
use template::CoinbaseConstraints;
use template::provider::{ProviderConnection, ProviderOutput};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::{Listeners, TemplateProviderConfig};
use crate::error::RunError;
use crate::http;
use crate::node::{BlockSource, SourceKind};
use crate::pool::node_client;
use crate::shutdown::Shutdown;
use crate::sv2_transport::{Sv2Stream, accept, serve_clients};
use crate::templates;

/// How long a client may take to read a template and its transactions: megabytes over a slow line.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes read at once from a client: its messages are short, but for the coinbase of a block.
const READ_BUFFER: usize = 4096;

/// The most room that another provider is asked for, in bytes and in operations: some hundred outputs. All clients are
/// served from its templates, so that one of them must not empty those of the others; who wants more is served when
/// there is room.
const MOST_SHARED_ROOM: CoinbaseConstraints =
    CoinbaseConstraints { max_additional_size: 10_000, max_additional_sigops: 400 };

/// How long connections have to end, and blocks to be judged by the node, after the end was asked for.
const END_GRACE: Duration = Duration::from_secs(4);

/// What the rest of the program may know of a template provider.
#[derive(Debug, Default)]
pub struct ProviderStatus {
    /// Open connections.
    pub connections: AtomicU64,
    /// Connections accepted since the start.
    pub accepted: AtomicU64,
    /// Connections turned away because there were too many.
    pub refused: AtomicU64,
    /// Connections closed for what the client did.
    pub closed_for_fault: AtomicU64,
    /// Blocks that clients solved.
    pub blocks_found: AtomicU64,
    /// Those that the node took.
    pub blocks_accepted: AtomicU64,
}

/// What each client adds to the coinbase. Locked for a moment, when a client says so and when it leaves.
#[derive(Debug, Default)]
struct Demands(Mutex<BTreeMap<u64, CoinbaseConstraints>>);

impl Demands {
    /// Changes what one client wants; returns the most of all of them, up to [`MOST_SHARED_ROOM`].
    fn set(&self, client: u64, constraints: Option<CoinbaseConstraints>) -> CoinbaseConstraints {
        let mut demands = self.0.lock().expect("nothing panics while it holds the demands");
        match constraints {
            Some(constraints) => drop(demands.insert(client, constraints)),
            None => drop(demands.remove(&client)),
        }
        let most = demands.values().fold(CoinbaseConstraints::default(), |most, one| most.largest(*one));
        CoinbaseConstraints {
            max_additional_size: most.max_additional_size.min(MOST_SHARED_ROOM.max_additional_size),
            max_additional_sigops: most.max_additional_sigops.min(MOST_SHARED_ROOM.max_additional_sigops),
        }
    }
}

/// What all connections share.
#[derive(Clone)]
struct Context {
    source: BlockSource,
    key: Arc<AuthoritySecretKey>,
    demands: Arc<Demands>,
    status: Arc<ProviderStatus>,
    clock: Clock,
}

impl Context {
    /// Other sources make room for each client apart; a provider must be asked for the most that any client wants.
    fn is_of_provider(&self) -> bool {
        self.source.status().is_some_and(|status| status.kind() == SourceKind::Sv2)
    }

    fn demand(&self, client: u64, constraints: Option<CoinbaseConstraints>) {
        let most = self.demands.set(client, constraints);
        if self.is_of_provider() {
            self.source.set_constraints(most);
        }
    }
}

/// Runs a template provider until the end is asked for.
pub async fn run(
    config: TemplateProviderConfig,
    mut listeners: Listeners,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let clock = Clock::start();
    let client = config.node.as_ref().map(node_client).transpose()?.map(Arc::new);
    let node = config.node.as_ref().zip(client);
    let source =
        templates::start(&config.templates, node, config.blocks_dir.clone(), clock, shutdown.clone())?;
    let status = Arc::new(ProviderStatus::default());
    if let Some(listener) = listeners.metrics.take() {
        let listener = TcpListener::from_std(listener).map_err(RunError::io("use a listener"))?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "metrics at /metrics, health at /healthz");
        }
        tokio::spawn(serve_metrics(listener, source.clone(), Arc::clone(&status), shutdown.clone()));
    }
    let Some(listener) = listeners.templates.take() else {
        return Err(RunError::Failed("template_provider.listen: nothing listens".to_owned()));
    };
    let listener = TcpListener::from_std(listener).map_err(RunError::io("use a listener"))?;
    let parts = ProviderParts { source, key: config.authority, max_connections: config.max_connections };
    serve(parts, listener, status, clock, shutdown).await;
    Ok(())
}

async fn serve_metrics(
    listener: TcpListener,
    source: BlockSource,
    status: Arc<ProviderStatus>,
    shutdown: Shutdown,
) {
    let of_health = source.clone();
    let page = move || http::render_provider(&status, source.status().map(|source| source.figures()));
    let health = move || match of_health.is_live() {
        true => Ok(()),
        false => Err("no templates: the source gives none".to_owned()),
    };
    if let Err(error) = http::serve_page(listener, page, health, shutdown).await {
        tracing::error!(%error, "metrics are no longer served");
    }
}

/// What a template provider is made of.
#[derive(Debug)]
pub struct ProviderParts {
    /// Where templates come from and blocks go.
    pub source: BlockSource,
    /// What signs our certificates.
    pub key: AuthoritySecretKey,
    /// Clients that are served at once; further ones are closed.
    pub max_connections: u32,
}

/// Serves clients until the end is asked for.
pub async fn serve(
    parts: ProviderParts,
    listener: TcpListener,
    status: Arc<ProviderStatus>,
    clock: Clock,
    shutdown: Shutdown,
) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, authority_key = %parts.key.public(), "template clients may connect");
    }
    let ProviderParts { source, key, max_connections } = parts;
    let context = Context { source, key: Arc::new(key), demands: Arc::default(), status, clock };
    let (status, end) = (Arc::clone(&context.status), shutdown.clone());
    let refuse = |_| {
        status.refused.fetch_add(1, Ordering::Relaxed);
    };
    let limits = (max_connections as usize, END_GRACE);
    serve_clients(listener, limits, end, refuse, |stream, peer, id| {
        context.status.accepted.fetch_add(1, Ordering::Relaxed);
        drive(stream, peer, id, context.clone(), shutdown.clone())
    })
    .await;
}

/// Serves one client until its connection ends.
async fn drive(stream: TcpStream, peer: SocketAddr, id: u64, context: Context, mut shutdown: Shutdown) {
    let transport = match accept(stream, &context.key, MAX_PAYLOAD_FROM_MINER, context.clock).await {
        Ok(transport) => transport,
        Err(reason) => return tracing::debug!(%peer, "a stranger: {reason}"),
    };
    context.status.connections.fetch_add(1, Ordering::Relaxed);
    tracing::info!(%peer, "a template client has connected");
    let connection = ProviderConnection::new(!context.is_of_provider(), context.clock.now());
    let mut driver = Driver {
        id,
        connection,
        transport,
        out: ProviderOutput::default(),
        encrypted: Vec::new(),
        buffer: vec![0; READ_BUFFER],
        submissions: JoinSet::new(),
        context: context.clone(),
    };
    let reason = driver.run(&mut shutdown).await;
    context.demand(id, None);
    context.status.connections.fetch_sub(1, Ordering::Relaxed);
    if reason.fault == Fault::Downstream {
        context.status.closed_for_fault.fetch_add(1, Ordering::Relaxed);
    }
    tracing::info!(%peer, "a template client is gone: {reason}");
    // A block outlives the connection that it came from.
    while driver.submissions.join_next().await.is_some() {}
}

struct Driver {
    id: u64,
    connection: ProviderConnection,
    transport: Sv2Stream,
    out: ProviderOutput,
    encrypted: Vec<u8>,
    buffer: Vec<u8>,
    submissions: JoinSet<()>,
    context: Context,
}

impl Driver {
    async fn run(&mut self, shutdown: &mut Shutdown) -> CloseReason {
        let mut templates = self.context.source.templates();
        let mut newest = templates.borrow_and_update().clone();
        loop {
            let timeout = self.connection.next_timeout();
            let timer = async {
                match timeout {
                    Duration::MAX => std::future::pending().await,
                    at => tokio::time::sleep_until(self.context.clock.instant(at)).await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.requested() => return CloseReason::ours("the program is ending"),
                changed = templates.changed() => {
                    if changed.is_err() {
                        return CloseReason::ours("the source of templates has ended");
                    }
                    newest = templates.borrow_and_update().clone();
                    if let Some(newest) = &newest {
                        self.connection.handle_template(newest, self.context.clock.now(), &mut self.out);
                    }
                }
                Some(_) = self.submissions.join_next() => {}
                () = timer => self.connection.handle_timeout(self.context.clock.now(), &mut self.out),
                read = self.transport.stream.read(&mut self.buffer) => {
                    let length = match read {
                        Ok(0) => return CloseReason::gone("the client closed the connection"),
                        Ok(length) => length,
                        Err(error) => return CloseReason::gone(format!("reading failed: {error}")),
                    };
                    if let Err(reason) = self.handle_read(length, newest.as_ref()).await {
                        return reason;
                    }
                }
            }
            if let Err(reason) = self.flush().await {
                return reason;
            }
        }
    }

    /// Takes frame after frame, and writes what each is answered before the next: answers have megabytes, and requests
    /// a few bytes.
    async fn handle_read(
        &mut self,
        length: usize,
        newest: Option<&Arc<template::BlockTemplate>>,
    ) -> Result<(), CloseReason> {
        let mut taken = 0;
        loop {
            let mut input = &self.buffer[taken..length];
            let decryptor = &mut self.transport.decryptor;
            decryptor.set_max_payload(self.connection.max_payload());
            let before = input.len();
            let now = self.context.clock.now();
            let frame = decryptor.next_frame(&mut input);
            taken += before - input.len();
            match frame {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => {
                    let wanted = self.connection.constraints();
                    self.connection.handle_frame(frame.header, frame.payload, newest, now, &mut self.out);
                    if self.connection.constraints() != wanted {
                        self.context.demand(self.id, self.connection.constraints());
                    }
                }
                Err(error) => return Err(CloseReason::downstream(error.to_string())),
            }
            self.flush().await?;
        }
    }

    async fn flush(&mut self) -> Result<(), CloseReason> {
        for block in self.out.blocks.drain(..) {
            let (source, status) = (self.context.source.clone(), Arc::clone(&self.context.status));
            status.blocks_found.fetch_add(1, Ordering::Relaxed);
            self.submissions.spawn(async move {
                let (outcome, saved) = source.submit(block.height, block.bytes).await;
                if outcome.is_accepted() {
                    status.blocks_accepted.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(saved) = saved {
                    // What prevents it was logged.
                    let _ = saved.await;
                }
            });
        }
        for notice in self.out.notices.drain(..) {
            tracing::info!("{notice}");
        }
        self.encrypted.clear();
        self.transport
            .encryptor
            .encrypt_frames(&self.out.bytes, &mut self.encrypted)
            .map_err(|error| CloseReason::ours(error.to_string()))?;
        // Not kept: an answer with transactions has megabytes.
        self.out.bytes = Vec::new();
        let encrypted = std::mem::take(&mut self.encrypted);
        if !encrypted.is_empty() {
            let write = self.transport.stream.write_all(&encrypted);
            match tokio::time::timeout(WRITE_DEADLINE, write).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(CloseReason::gone(format!("writing failed: {error}"))),
                Err(_) => return Err(CloseReason::downstream("it reads too slowly")),
            }
        }
        self.out.close.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_source_is_asked_for_the_most_that_clients_want_but_for_no_more_than_is_fair() {
        let room = |size, sigops| {
            Some(CoinbaseConstraints { max_additional_size: size, max_additional_sigops: sigops })
        };
        let demands = Demands::default();
        assert_eq!(Some(demands.set(1, room(100, 4))), room(100, 4));
        assert_eq!(Some(demands.set(2, room(50, 8))), room(100, 8));
        assert_eq!(demands.set(3, room(3_000_000, 60_000)), MOST_SHARED_ROOM);
        assert_eq!(Some(demands.set(3, None)), room(100, 8), "who leaves wants nothing");
    }
}

//! Lets clients in and carries their frames: to the owner one at a time, and from it as they come.
//!
//! Nothing here reads a message. A client that stops reading, or sends what is no frame, loses its connection, and
//! nobody else notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stratum::sv2::FrameHeader;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_MINER;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::{CloseReason, ConnectionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::shutdown::Shutdown;
use crate::sv2_transport::{Sv2Stream, accept, serve_clients};

/// How long a client may take to read what we write: a few kilobytes, or the places of all transactions of a block.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that wait to be written to a client. One that lets more gather does not read.
const MAX_UNWRITTEN: usize = 512 * 1024;

/// Bytes read at once: declarations and transactions are long.
const READ_BUFFER: usize = 16 * 1024;

/// How long connections have to end after the owner has.
const END_GRACE: Duration = Duration::from_secs(1);

/// What the owner hears of connections. Of each at most one frame waits, so that their number bounds the queue.
pub(super) enum Event {
    /// A client has finished the handshake.
    Arrived { id: ConnectionId, line: Line },
    /// A frame; the next one comes once `taken` was answered.
    Frame { id: ConnectionId, header: FrameHeader, payload: Vec<u8>, taken: oneshot::Sender<()> },
    /// The connection has ended.
    Gone { id: ConnectionId },
}

/// The owner's end of a connection. Dropping it closes the connection, once all is written.
pub(super) struct Line {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    unwritten: Arc<AtomicUsize>,
    max_payload: Arc<AtomicUsize>,
}

/// The client does not read, or has gone.
pub(super) struct Stuck;

impl Line {
    /// Has whole frames written.
    pub(super) fn send(&self, frames: Vec<u8>) -> Result<(), Stuck> {
        let waiting = self.unwritten.fetch_add(frames.len(), Ordering::Relaxed) + frames.len();
        if waiting > MAX_UNWRITTEN {
            return Err(Stuck);
        }
        self.frames.send(frames).map_err(|_| Stuck)
    }

    /// The longest payload that is read from now on. To be called before the client is sent what makes it longer.
    pub(super) fn set_max_payload(&self, max_payload: usize) {
        self.max_payload.store(max_payload, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.frames.is_closed()
    }
}

/// Accepts clients until the end is asked for; at most `most` at once.
pub(super) async fn listen(
    listener: TcpListener,
    most: usize,
    key: Arc<AuthoritySecretKey>,
    events: mpsc::Sender<Event>,
    clock: Clock,
    shutdown: Shutdown,
) {
    let refuse = |peer| tracing::debug!(%peer, "turned a job declaration client away: there are {most}");
    serve_clients(listener, (most, END_GRACE), shutdown, refuse, move |stream, peer, id| {
        let (key, events) = (Arc::clone(&key), events.clone());
        async move { serve(stream, peer, ConnectionId(id), &key, events, clock).await }
    })
    .await;
}

/// Serves one client until its connection ends.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    id: ConnectionId,
    key: &AuthoritySecretKey,
    events: mpsc::Sender<Event>,
    clock: Clock,
) {
    let transport = tokio::select! {
        accepted = accept(stream, key, MAX_PAYLOAD_FROM_MINER, clock) => accepted,
        // The owner has ended.
        () = events.closed() => return,
    };
    let Sv2Stream { stream, encryptor, decryptor } = match transport {
        Ok(transport) => transport,
        Err(reason) => return tracing::debug!(%peer, "a stranger: {reason}"),
    };
    let (frames, outlet) = mpsc::unbounded_channel();
    let unwritten = Arc::new(AtomicUsize::new(0));
    let max_payload = Arc::new(AtomicUsize::new(MAX_PAYLOAD_FROM_MINER));
    let line = Line { frames, unwritten: Arc::clone(&unwritten), max_payload: Arc::clone(&max_payload) };
    if events.send(Event::Arrived { id, line }).await.is_err() {
        return;
    }
    tracing::info!(%peer, connection = id.0, "a job declaration client has connected");
    let (incoming, outgoing) = stream.into_split();
    let reason = tokio::select! {
        reason = read(incoming, decryptor, id, &max_payload, &events) => reason,
        reason = write(outgoing, encryptor, outlet, &unwritten) => reason,
    };
    tracing::info!(%peer, connection = id.0, "a job declaration client is gone: {reason}");
    // Fails when the owner has ended, and then nobody needs to know.
    let _ = events.send(Event::Gone { id }).await;
}

async fn read(
    mut stream: OwnedReadHalf,
    mut decryptor: Decryptor,
    id: ConnectionId,
    max_payload: &AtomicUsize,
    events: &mpsc::Sender<Event>,
) -> CloseReason {
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        let length = match stream.read(&mut buffer).await {
            Ok(0) => return CloseReason::gone("the client closed the connection"),
            Ok(length) => length,
            Err(error) => return CloseReason::gone(format!("reading failed: {error}")),
        };
        let mut input = &buffer[..length];
        loop {
            decryptor.set_max_payload(max_payload.load(Ordering::Acquire));
            let (header, payload) = match decryptor.next_frame(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => (frame.header, frame.payload.to_vec()),
                Err(error) => return CloseReason::downstream(error.to_string()),
            };
            let (taken, was_taken) = oneshot::channel();
            let sent = events.send(Event::Frame { id, header, payload, taken }).await;
            if sent.is_err() || was_taken.await.is_err() {
                // The owner has closed the connection: what it still had to say is being written.
                return std::future::pending().await;
            }
        }
    }
}

async fn write(
    mut stream: OwnedWriteHalf,
    mut encryptor: Encryptor,
    mut outlet: mpsc::UnboundedReceiver<Vec<u8>>,
    unwritten: &AtomicUsize,
) -> CloseReason {
    let mut encrypted = Vec::new();
    while let Some(frames) = outlet.recv().await {
        encrypted.clear();
        if let Err(error) = encryptor.encrypt_frames(&frames, &mut encrypted) {
            return CloseReason::ours(error.to_string());
        }
        match tokio::time::timeout(WRITE_DEADLINE, stream.write_all(&encrypted)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return CloseReason::gone(format!("writing failed: {error}")),
            Err(_) => return CloseReason::downstream("it reads too slowly"),
        }
        unwritten.fetch_sub(frames.len(), Ordering::Relaxed);
    }
    CloseReason::ours("it was closed")
}

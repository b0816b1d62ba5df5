//! Noise connections over TCP: dialled, for all roles, and accepted, for those besides mining.
//!
//! Nothing here reads or writes a frame: who drives a connection does.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::OsRng;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::noise::{INITIATOR_MESSAGE_SIZE, Initiator, RESPONDER_MESSAGE_SIZE, Responder};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::url::PoolUrl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// How long a peer has to accept a TCP connection and finish the handshake.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the certificate in our handshake is valid. It is made anew for each connection, and a peer's clock may be
/// off.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// After so long without a byte from a peer's host the system asks whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long the host may leave such a question, or what we sent, without any confirmation: one that is cut off is found to
/// be gone in a minute or so, and not in a quarter of an hour.
const UNCONFIRMED: Duration = Duration::from_secs(60);

/// A client whose 64 bytes of a handshake have not come by then speaks something else.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long the listener waits after accept failed, so that running out of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection whose handshake is done.
pub(crate) struct Sv2Stream {
    pub(crate) stream: TcpStream,
    pub(crate) encryptor: Encryptor,
    pub(crate) decryptor: Decryptor,
}

/// Dials a server; `max_payload` is the longest payload that is accepted from it.
pub(crate) async fn dial(url: &PoolUrl, max_payload: usize, clock: Clock) -> Result<Sv2Stream, String> {
    match tokio::time::timeout(DIAL_TIMEOUT, dial_slowly(url, max_payload, clock)).await {
        Ok(dialled) => dialled,
        Err(_) => Err("no connection in time".to_owned()),
    }
}

async fn dial_slowly(url: &PoolUrl, max_payload: usize, clock: Clock) -> Result<Sv2Stream, String> {
    let text = |error: std::io::Error| error.to_string();
    let handshake = |error: std::io::Error| format!("the Noise handshake failed: {error}");
    let mut stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(text)?;
    prepare(&stream).map_err(text)?;
    let initiator = Initiator::new(url.authority.as_ref(), &mut OsRng);
    stream.write_all(&initiator.first()).await.map_err(handshake)?;
    let mut reply = [0; RESPONDER_MESSAGE_SIZE];
    stream.read_exact(&mut reply).await.map_err(handshake)?;
    let transport = initiator
        .finish(&reply, clock.now().unix_seconds())
        .map_err(|error| format!("the Noise handshake failed: {error}"))?;
    let (encryptor, decryptor) = transport.split(max_payload);
    Ok(Sv2Stream { stream, encryptor, decryptor })
}

/// Accepts clients until the end is asked for, and serves each in a task of its own, at most `most` at once: `serve` is
/// given its number, from 1, and further ones go to `refuse` and are closed. Returns when all have ended, or `grace`
/// after the end was asked for.
pub(crate) async fn serve_clients<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    (most, grace): (usize, Duration),
    mut shutdown: Shutdown,
    refuse: impl Fn(SocketAddr),
    serve: impl Fn(TcpStream, SocketAddr, u64) -> F,
) {
    let slots = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    let mut last = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => break,
            Some(ended) = connections.join_next() => {
                note_end(&ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                    refuse(peer);
                    continue;
                };
                last += 1;
                let served = serve(stream, peer, last);
                connections.spawn(async move {
                    served.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop((listener, serve));
    let ended = tokio::time::timeout(grace, async {
        while let Some(ended) = connections.join_next().await {
            note_end(&ended);
        }
    });
    if ended.await.is_err() {
        tracing::warn!(connections = connections.len(), "cut connections that did not end in time");
    }
}

fn note_end(ended: &Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a connection ended by a bug of ours; please report it: {error}");
    }
}

/// Answers a client's handshake, if that comes in time.
pub(crate) async fn accept(
    stream: TcpStream,
    key: &AuthoritySecretKey,
    max_payload: usize,
    clock: Clock,
) -> Result<Sv2Stream, String> {
    match tokio::time::timeout(HANDSHAKE_DEADLINE, accept_slowly(stream, key, max_payload, clock)).await {
        Ok(accepted) => accepted,
        Err(_) => Err("no Noise handshake in time".to_owned()),
    }
}

async fn accept_slowly(
    mut stream: TcpStream,
    key: &AuthoritySecretKey,
    max_payload: usize,
    clock: Clock,
) -> Result<Sv2Stream, String> {
    let failed = |error: std::io::Error| format!("the Noise handshake failed: {error}");
    prepare(&stream).map_err(failed)?;
    let mut first = [0; INITIATOR_MESSAGE_SIZE];
    stream.read_exact(&mut first).await.map_err(failed)?;
    let responder = Responder::new(key, CERTIFICATE_VALIDITY, &mut OsRng);
    let (reply, transport) = responder
        .step(&first, clock.now().unix_seconds(), &mut OsRng)
        .map_err(|error| format!("the Noise handshake failed: {error}"))?;
    stream.write_all(&reply).await.map_err(failed)?;
    let (encryptor, decryptor) = transport.split(max_payload);
    Ok(Sv2Stream { stream, encryptor, decryptor })
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(UNCONFIRMED / 3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNCONFIRMED))?;
    Ok(())
}

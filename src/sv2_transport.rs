//! Noise connections over TCP, dialled and accepted, for roles besides mining.
//!
//! Only the handshake is here: who drives a connection reads and writes its frames.

use std::time::Duration;

use rand::rngs::OsRng;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::noise::{INITIATOR_MESSAGE_SIZE, Initiator, RESPONDER_MESSAGE_SIZE, Responder};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::url::PoolUrl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clock::Clock;

/// How long a peer has to accept a TCP connection and finish the handshake.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the certificate in our handshake is valid. It is made anew for each connection, and a peer's clock may be
/// off.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// A peer that says nothing is asked whether it is there after this long.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The kernel gives up on a peer that acknowledges nothing for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

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

/// Answers a client's handshake. The caller bounds the time.
pub(crate) async fn accept(
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
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))
}

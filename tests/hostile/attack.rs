//! Ways to misbehave.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::OsRng;
use stratum::sv2::frame::{HEADER_SIZE, MAX_PAYLOAD_FROM_UPSTREAM};
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::{Encryptor, FrameHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::farm::DEADLINE;

/// A TLS 1.2 client hello, as far as its first bytes.
pub(crate) const TLS_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

pub(crate) const HTTP_GET: &[u8] = b"GET / HTTP/1.1\r\nHost: miner.example\r\nUser-Agent: probe/1.0\r\n\r\n";

/// A whole session up to mining, as every miner begins one.
pub(crate) const HELLO: &[u8] = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"flood/1.0\"]}\n\
      {\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"account.flood\",\"x\"]}\n";

/// Sends `bytes` and returns what came before the connection was closed. Panics when it stays open.
pub(crate) async fn closed_after(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("the listener accepts");
    // The other side may have closed before all was written.
    let _ = stream.write_all(bytes).await;
    read_to_close(&mut stream).await
}

/// Reads until the connection is closed. A reset is one way to close.
pub(crate) async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
    answer
}

/// A peer that is encrypted as it should be, and whose frames are what a test makes them.
pub(crate) async fn encrypted(address: SocketAddr) -> (TcpStream, Encryptor) {
    let mut stream = TcpStream::connect(address).await.expect("the listener accepts");
    let initiator = Initiator::new(Some(&crate::farm::key().public()), &mut OsRng);
    stream.write_all(&initiator.first()).await.expect("the handshake begins");
    let mut reply = [0; RESPONDER_MESSAGE_SIZE];
    timeout(DEADLINE, stream.read_exact(&mut reply)).await.expect("in time").expect("an answer");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let transport = initiator.finish(&reply, now.as_secs() as u32).expect("the right key");
    (stream, transport.split(MAX_PAYLOAD_FROM_UPSTREAM).0)
}

/// Sends one frame of these parts, encrypted, and waits for the close.
pub(crate) async fn closed_after_frame(address: SocketAddr, message_type: u8, payload: &[u8]) {
    let (mut stream, mut encryptor) = encrypted(address).await;
    let header = FrameHeader {
        extension_type: 0,
        channel_msg: false,
        message_type,
        payload_length: payload.len() as u32,
    };
    let frame = [&header.to_bytes()[..], payload].concat();
    assert_eq!(frame.len(), HEADER_SIZE + payload.len());
    let mut bytes = Vec::new();
    encryptor.encrypt_frames(&frame, &mut bytes).expect("a whole frame");
    let _ = stream.write_all(&bytes).await;
    read_to_close(&mut stream).await;
}

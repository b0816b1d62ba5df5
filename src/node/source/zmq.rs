//! New blocks as a node announces them over ZeroMQ (`zmqpubhashblock`).
//!
//! The subscriber's side of ZMTP 3.0 (rfc.zeromq.org/spec/23) with the NULL mechanism, which is all that Bitcoin Core
//! speaks: a hundred lines, where a library would bring a dozen crates. ZeroMQ drops what it cannot deliver, so nothing
//! may depend on it: it is only ever early.
//!
//! Nothing here trusts the publisher: what it announces is asked of the node again.

use std::time::Duration;

use stratum::hash::Hash;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::rpc::jittered;
use crate::config::ZmqEndpoint;
use crate::shutdown::Shutdown;

/// How long to wait after the first failure; doubled after each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);

/// The longest wait between two attempts.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// How long the publisher has to accept a connection and greet.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);

/// A publisher has nothing to say between blocks: whether it is still there is the system's to find out.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What is subscribed to.
const TOPIC: &[u8] = b"hashblock";

/// Bytes of a greeting.
const GREETING_SIZE: usize = 64;

/// The longest part of a message that is read: a hash has 32 bytes, and the properties of a handshake a few more.
const MAX_PART: usize = 1024;

/// The most parts of a message: topic, hash and sequence number are three.
const MAX_PARTS: usize = 8;

/// Further parts follow in the same message.
const FLAG_MORE: u8 = 1;

/// The length has eight bytes.
const FLAG_LONG: u8 = 2;

/// It is a command, and no part of a message.
const FLAG_COMMAND: u8 = 4;

/// Publishes the newest block that the node announces, in internal byte order, until the end is asked for.
pub async fn run_hashblock_subscriber(
    endpoint: ZmqEndpoint,
    publish: watch::Sender<Option<Hash>>,
    mut shutdown: Shutdown,
) {
    let subscribe = async {
        let mut back_off = FIRST_BACK_OFF;
        let mut was_told = false;
        loop {
            let (reason, greeted) = subscribe(&endpoint, &publish).await;
            if greeted {
                (back_off, was_told) = (FIRST_BACK_OFF, false);
            }
            if !was_told {
                tracing::warn!(publisher = %endpoint, "no news of blocks by ZeroMQ: {reason}; until it returns new tips come with the long poll, later and without an empty first template");
                was_told = true;
            }
            tokio::time::sleep(jittered(back_off)).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    };
    tokio::select! {
        () = shutdown.requested() => {}
        () = subscribe => {}
    }
}

/// One connection to its end. Returns why it ended, and whether the publisher had greeted.
async fn subscribe(endpoint: &ZmqEndpoint, publish: &watch::Sender<Option<Hash>>) -> (String, bool) {
    let mut subscriber = Subscriber::default();
    let ended = follow(endpoint, &mut subscriber, publish).await;
    let reason = match ended {
        Ok(()) => "the publisher closed the connection".to_owned(),
        Err(reason) => reason,
    };
    (reason, subscriber.is_subscribed)
}

async fn follow(
    endpoint: &ZmqEndpoint,
    subscriber: &mut Subscriber,
    publish: &watch::Sender<Option<Hash>>,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let late = |_| "it did not greet in time".to_owned();
    let deadline = tokio::time::Instant::now() + GREETING_DEADLINE;
    let dial = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let mut stream = tokio::time::timeout_at(deadline, dial).await.map_err(late)?.map_err(text)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(text)?;
    stream.write_all(&greeting()).await.map_err(text)?;
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer);
        let length = match subscriber.is_subscribed {
            true => read.await.map_err(text)?,
            false => tokio::time::timeout_at(deadline, read).await.map_err(late)?.map_err(text)?,
        };
        if length == 0 {
            return Ok(());
        }
        let was_subscribed = subscriber.is_subscribed;
        let output = subscriber.handle(&buffer[..length])?;
        stream.write_all(&output.bytes).await.map_err(text)?;
        if subscriber.is_subscribed && !was_subscribed {
            tracing::info!(publisher = %endpoint, "the node announces blocks by ZeroMQ");
        }
        if let Some(hash) = output.newest {
            publish.send_replace(Some(hash));
        }
    }
}

/// What a subscriber wants done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Output {
    bytes: Vec<u8>,
    newest: Option<Hash>,
}

/// The subscriber's side of one connection.
#[derive(Debug, Default)]
struct Subscriber {
    /// Bytes that are no whole greeting or frame yet; at most [`MAX_PART`] and a header.
    unread: Vec<u8>,
    is_greeted: bool,
    is_subscribed: bool,
    /// The parts of the message that is arriving.
    parts: Vec<Vec<u8>>,
}

impl Subscriber {
    /// Takes bytes of the publisher. Errors end the connection.
    fn handle(&mut self, bytes: &[u8]) -> Result<Output, String> {
        self.unread.extend_from_slice(bytes);
        let mut output = Output::default();
        if !self.is_greeted {
            if self.unread.len() < GREETING_SIZE {
                return Ok(output);
            }
            check_greeting(&self.unread[..GREETING_SIZE])?;
            self.unread.drain(..GREETING_SIZE);
            self.is_greeted = true;
            output.bytes.extend_from_slice(&ready());
        }
        while let Some(Frame { flags, body, size }) = next_frame(&self.unread)? {
            let body = body.to_vec();
            self.unread.drain(..size);
            if flags & FLAG_COMMAND != 0 {
                self.handle_command(&body, &mut output)?;
            } else {
                self.handle_part(flags, body, &mut output)?;
            }
        }
        Ok(output)
    }

    fn handle_command(&mut self, body: &[u8], output: &mut Output) -> Result<(), String> {
        let (name, _) = body
            .split_first()
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(*length)))
            .ok_or("a command of it has no name")?;
        match name {
            b"READY" if !self.is_subscribed => {
                self.is_subscribed = true;
                output.bytes.extend_from_slice(&subscription());
                Ok(())
            }
            b"ERROR" => Err("it refuses us".to_owned()),
            // Of later versions, which it may only send when we speak them too.
            _ => Ok(()),
        }
    }

    fn handle_part(&mut self, flags: u8, body: Vec<u8>, output: &mut Output) -> Result<(), String> {
        if !self.is_subscribed {
            return Err("it sends messages before it is ready".to_owned());
        }
        if self.parts.len() == MAX_PARTS {
            return Err(format!("a message of it has more than {MAX_PARTS} parts"));
        }
        self.parts.push(body);
        if flags & FLAG_MORE == 0 {
            let parts = std::mem::take(&mut self.parts);
            if let [topic, hash, ..] = &parts[..]
                && topic == TOPIC
                && let Ok(mut hash) = <Hash>::try_from(hash.as_slice())
            {
                // Bitcoin Core sends it as it prints it.
                hash.reverse();
                output.newest = Some(hash);
            }
        }
        Ok(())
    }
}

/// One frame, and how many bytes it takes with its header.
struct Frame<'a> {
    flags: u8,
    body: &'a [u8],
    size: usize,
}

/// The first frame, once all of it is there.
fn next_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, String> {
    let Some((flags, rest)) = bytes.split_first() else { return Ok(None) };
    let (length, rest) = if flags & FLAG_LONG != 0 {
        let Some((length, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        (u64::from_be_bytes(*length), rest)
    } else {
        let Some((length, rest)) = rest.split_first() else { return Ok(None) };
        (u64::from(*length), rest)
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_PART);
    let length = length.ok_or(format!("a part of its message is longer than {MAX_PART} bytes"))?;
    let header = bytes.len() - rest.len();
    Ok(rest.get(..length).map(|body| Frame { flags: *flags, body, size: header + length }))
}

/// Signature, version 3.0, mechanism NULL, not the server, filler.
fn greeting() -> [u8; GREETING_SIZE] {
    let mut greeting = [0; GREETING_SIZE];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(greeting: &[u8]) -> Result<(), String> {
    if greeting[0] != 0xff || greeting[9] & 1 == 0 || greeting[10] < 3 {
        return Err("it does not speak ZMTP 3".to_owned());
    }
    match &greeting[12..32] {
        [b'N', b'U', b'L', b'L', rest @ ..] if rest.iter().all(|byte| *byte == 0) => Ok(()),
        _ => Err("it wants credentials".to_owned()),
    }
}

/// The command `READY` of a subscriber.
fn ready() -> Vec<u8> {
    const BODY: &[u8] = b"\x05READY\x0bSocket-Type\0\0\0\x03SUB";
    [&[FLAG_COMMAND, BODY.len() as u8], BODY].concat()
}

/// The message that subscribes to the topic.
fn subscription() -> Vec<u8> {
    [&[0, 1 + TOPIC.len() as u8, 1], TOPIC].concat()
}

#[cfg(test)]
mod tests;

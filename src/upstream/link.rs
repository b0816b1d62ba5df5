//! The connection to one upstream: dialled, shaken hands on, read and written. Never says what its bytes mean.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mining_proxy::{Backoff, Endpoint};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::Now;
use stratum::sv2::transport::{Decryptor, Encryptor, TransportError};
use stratum::sv2::url::PoolUrl;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::sv2_transport::{Sv2Stream, dial};

/// How long the last frames have to leave when the program ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// The transport, in one of its three states.
enum State {
    Down { dial_at: Duration },
    Dialling(JoinHandle<Result<Box<Connected>, String>>),
    Up(Box<Connected>),
}

/// A connection after its handshake.
pub(super) struct Connected {
    pub(super) endpoint: Endpoint,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    encryptor: Encryptor,
    decryptor: Decryptor,
}

/// What happened on a link.
pub(super) enum LinkEvent {
    /// So many bytes are in the buffer; none when the pool has closed.
    Read(std::io::Result<usize>),
    /// So many of the unwritten bytes have left.
    Wrote(std::io::Result<usize>),
    Dialled(Result<Box<Connected>, String>),
}

pub(super) struct Link {
    pub(super) name: String,
    url: PoolUrl,
    /// The longest payload that is taken from there.
    max_payload: usize,
    state: State,
    backoff: Backoff,
    /// What is encrypted and has not left.
    pub(super) unwritten: Vec<u8>,
    /// Where the upstream asked us to go, tried once.
    pub(super) redirect: Option<Endpoint>,
}

impl Link {
    pub(super) fn new(url: &PoolUrl, max_payload: usize, now: Now) -> Self {
        Link {
            name: format!("{}:{}", url.host, url.port),
            url: url.clone(),
            max_payload,
            state: State::Down { dial_at: now.monotonic },
            backoff: Backoff::new(),
            unwritten: Vec::new(),
            redirect: None,
        }
    }

    /// When it must be dialled, if it is down.
    pub(super) fn dial_at(&self) -> Option<Duration> {
        match self.state {
            State::Down { dial_at } => Some(dial_at),
            _ => None,
        }
    }

    /// Waits for what happens next, as far as it is not a matter of time.
    pub(super) fn poll(&mut self, buffer: &mut [u8], context: &mut Context<'_>) -> Poll<LinkEvent> {
        match &mut self.state {
            State::Down { .. } => Poll::Pending,
            State::Dialling(dialling) => {
                let dialled = ready!(Pin::new(dialling).poll(context));
                Poll::Ready(LinkEvent::Dialled(dialled.unwrap_or_else(|error| Err(error.to_string()))))
            }
            State::Up(connected) => {
                let mut read = ReadBuf::new(buffer);
                if let Poll::Ready(result) = Pin::new(&mut connected.reader).poll_read(context, &mut read) {
                    return Poll::Ready(LinkEvent::Read(result.map(|()| read.filled().len())));
                }
                if self.unwritten.is_empty() {
                    return Poll::Pending;
                }
                let wrote = Pin::new(&mut connected.writer).poll_write(context, &self.unwritten);
                wrote.map(LinkEvent::Wrote)
            }
        }
    }

    /// What decrypts the bytes that were read; `None` when it is not up.
    pub(super) fn decryptor(&mut self) -> Option<&mut Decryptor> {
        match &mut self.state {
            State::Up(connected) => Some(&mut connected.decryptor),
            _ => None,
        }
    }

    /// Encrypts frames, and writes as much as the socket takes at once. When it is not up they are forgotten.
    pub(super) fn send(&mut self, frames: &[u8]) -> Result<(), TransportError> {
        let State::Up(connected) = &mut self.state else { return Ok(()) };
        connected.encryptor.encrypt_frames(frames, &mut self.unwritten)?;
        // Most writes fit the socket's buffer: the frames leave now and not at the next turn.
        if let Ok(written) = connected.writer.try_write(&self.unwritten) {
            self.unwritten.drain(..written);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn set_dialling(&mut self, dialling: JoinHandle<Result<Box<Connected>, String>>) {
        self.state = State::Dialling(dialling);
    }

    pub(super) fn dial(&mut self, clock: Clock) {
        let configured = || Endpoint { host: self.url.host.clone(), port: self.url.port };
        let endpoint = self.redirect.take().unwrap_or_else(configured);
        let url = PoolUrl { host: endpoint.host.clone(), port: endpoint.port, authority: self.url.authority };
        let max_payload = self.max_payload;
        self.state = State::Dialling(tokio::spawn(async move {
            let Sv2Stream { stream, encryptor, decryptor } = dial(&url, max_payload, clock).await?;
            let (reader, writer) = stream.into_split();
            Ok(Box::new(Connected { endpoint, reader, writer, encryptor, decryptor }))
        }));
    }

    pub(super) fn go_up(&mut self, connected: Box<Connected>, now: Now) {
        tracing::info!(upstream = self.name, "connected");
        self.backoff.connected(now);
        self.state = State::Up(connected);
    }

    pub(super) fn go_down(&mut self, reason: &str, now: Now) {
        // After a redirect, too: pools that send each other's proxies back and forth must not keep them busy.
        let delay = self.backoff.failed(now, OsRng.next_u32());
        let seconds = delay.as_secs_f32();
        tracing::warn!(upstream = self.name, "disconnected: {reason}; dialling again in {seconds:.1} s");
        self.unwritten.clear();
        self.state = State::Down { dial_at: now.monotonic + delay };
    }

    /// Writes what is left, if the pool takes it in time.
    pub(super) async fn farewell(&mut self) {
        if let State::Up(connected) = &mut self.state {
            let flushed = tokio::time::timeout(FAREWELL, connected.writer.write_all(&self.unwritten)).await;
            if !matches!(flushed, Ok(Ok(()))) {
                tracing::warn!(upstream = self.name, "the last frames did not leave in time");
            }
        }
    }
}

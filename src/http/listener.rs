//! A listener that bounds how many connections are open, and for how long.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A connection is cut after this long, whatever it does: otherwise idle ones would lock everybody out. Only a stream
/// of live changes may go on, and is cut when it could write nothing for as long.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// Who asks, for handlers.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Where the connection comes from.
    pub(super) address: SocketAddr,
    is_stream: Arc<AtomicBool>,
}

impl Peer {
    /// Lets the connection live for as long as it can write.
    pub(super) fn keep_streaming(&self) {
        self.is_stream.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Peer { address: *stream.remote_addr(), is_stream: Arc::clone(&stream.io().is_stream) }
    }
}

/// A listener that accepts no more connections than it has slots.
pub(super) struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener, connections: usize) -> Self {
        Bounded { listener, slots: Arc::new(Semaphore::new(connections)) }
    }
}

impl Listener for Bounded {
    type Io = Slotted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Slotted, SocketAddr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed");
        // The listener's own accept waits out a lack of file descriptors.
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(tokio::time::sleep(CONNECTION_LIFETIME));
        (Slotted { stream, deadline, is_stream: Arc::default(), _slot: slot }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its slot back when it ends, and ends in time.
pub(super) struct Slotted {
    stream: TcpStream,
    deadline: Pin<Box<tokio::time::Sleep>>,
    is_stream: Arc<AtomicBool>,
    _slot: OwnedSemaphorePermit,
}

impl Slotted {
    fn expired(&mut self, context: &mut Context<'_>) -> Result<(), io::Error> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Slotted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.expired(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Slotted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.expired(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() && self.is_stream.load(Ordering::Relaxed) {
            self.deadline.as_mut().reset(Instant::now() + CONNECTION_LIFETIME);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

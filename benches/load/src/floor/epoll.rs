//! The floor of threads that share nothing: each has its own listener on the common address, its own epoll instance
//! and its own connections, and nothing is locked or handed over.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::judge::{FloorJob, Peer};
use super::{Publish, Reserved, any_port, listen};

/// Events taken at once.
const EVENTS: usize = 1024;

/// Bytes read at once, and so answered with one write.
const READ_BUFFER: usize = 64 * 1024;

/// The longest unfinished line that is kept.
const MAX_LINE: usize = 4096;

/// Bytes that a peer may leave unread; with more it is disconnected.
const MAX_UNSENT: usize = 256 * 1024;

const LISTENER: Token = Token(usize::MAX);
const JOBS: Token = Token(usize::MAX - 1);

/// The running threads.
pub(super) struct Servers(Vec<(Sender<Arc<FloorJob>>, Waker)>);

impl Publish for Servers {
    fn publish(&self, job: Arc<FloorJob>) -> io::Result<()> {
        for (jobs, waker) in &self.0 {
            jobs.send(Arc::clone(&job)).map_err(io::Error::other)?;
            waker.wake()?;
        }
        Ok(())
    }
}

/// Starts the threads on a free port.
pub(super) fn start(threads: NonZeroUsize, job: &Arc<FloorJob>) -> io::Result<(SocketAddr, Servers)> {
    let reserved = Arc::<Reserved>::default();
    let (mut address, mut servers) = (any_port(), Vec::new());
    for number in 0..threads.get() {
        let listener = listen(address)?;
        address = listener.local_addr()?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), JOBS)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (sender, inbox) = mpsc::channel();
        let server = Server {
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            inbox,
            desk: Desk {
                job: Arc::clone(job),
                buffer: vec![0; READ_BUFFER],
                out: Vec::with_capacity(READ_BUFFER),
            },
            reserved: Arc::clone(&reserved),
        };
        thread::Builder::new().name(format!("floor-{number}")).spawn(move || {
            if let Err(error) = server.serve() {
                eprintln!("a thread of the floor ended: {error}");
                std::process::exit(1);
            }
        })?;
        servers.push((sender, waker));
    }
    Ok((address, Servers(servers)))
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    /// By token.
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    inbox: Receiver<Arc<FloorJob>>,
    desk: Desk,
    reserved: Arc<Reserved>,
}

/// What the connections of a thread have in common.
struct Desk {
    job: Arc<FloorJob>,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    peer: Peer,
    /// An unfinished line.
    unfinished: Vec<u8>,
    unsent: Vec<u8>,
}

impl Server {
    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    JOBS => self.take_jobs(),
                    Token(index) => {
                        let Some(Some(connection)) = self.connections.get_mut(index) else { continue };
                        let mut served = Ok(());
                        if event.is_writable() && !connection.unsent.is_empty() {
                            served = connection.send(&[]);
                        }
                        if served.is_ok() && event.is_readable() {
                            served = connection.read(&mut self.desk);
                        }
                        if served.is_err() {
                            self.close(index);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The peer may have gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            let peer = Peer::new(self.reserved.take());
            let (unfinished, unsent) = (Vec::new(), Vec::new());
            self.connections[index] = Some(Connection { stream, peer, unfinished, unsent });
        }
    }

    fn take_jobs(&mut self) {
        while let Ok(job) = self.inbox.try_recv() {
            self.desk.job = job;
            for index in 0..self.connections.len() {
                let Some(connection) = &mut self.connections[index] else { continue };
                let line = self.desk.job.line();
                if connection.peer.is_authorized && connection.send(line).is_err() {
                    self.close(index);
                }
            }
        }
    }

    fn close(&mut self, index: usize) {
        // A closed socket leaves its epoll instance by itself.
        if self.connections[index].take().is_some() {
            self.free.push(index);
        }
    }
}

impl Connection {
    fn read(&mut self, desk: &mut Desk) -> io::Result<()> {
        loop {
            let length = match self.stream.read(&mut desk.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Desk { job, buffer, out } = desk;
            out.clear();
            if self.unfinished.is_empty() {
                let rest = self.peer.answer_lines(&buffer[..length], job, out);
                self.unfinished.extend_from_slice(rest.map_err(|_| io::ErrorKind::InvalidData)?);
            } else {
                self.unfinished.extend_from_slice(&buffer[..length]);
                let rest = self.peer.answer_lines(&self.unfinished, job, out);
                let kept = rest.map_err(|_| io::ErrorKind::InvalidData)?.len();
                self.unfinished.drain(..self.unfinished.len() - kept);
            }
            if self.unfinished.len() > MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if !out.is_empty() {
                self.send(out)?;
            }
            // A short read has emptied the socket, and what comes later is a new event.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Writes what waits and then `bytes`, and keeps what the socket does not take.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            let written = write_some(&mut self.stream, &self.unsent)?;
            self.unsent.drain(..written);
        } else {
            let written = write_some(&mut self.stream, bytes)?;
            self.unsent.extend_from_slice(&bytes[written..]);
        }
        if self.unsent.len() > MAX_UNSENT { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }
}

fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

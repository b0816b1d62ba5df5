//! One SV1 miner: its socket, its state machine, and what could not be written yet.
//!
//! While something is unwritten nothing is read, and no job is added: a miner that does not listen is given the
//! newest job once it does, and cannot make us remember more than one answer.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mining_server::sv1::{Ahead, Foreseen, Sv1Connection};
use mining_server::{CloseReason, Event, Registry, Work};
use mio::net::TcpStream;
use stratum::{ConnectionId, HashRate, JobNumber, Now};
use tokio::sync::OwnedSemaphorePermit;

use super::super::holdings::Holdings;
use super::super::limiter::LineKind;
use super::super::{Context, log_close};
use super::desk::Desk;
use crate::owner::Delivery;

/// A connection that was accepted and is not served yet.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) id: ConnectionId,
    /// Its place among the connections that the role may have.
    pub(super) slot: OwnedSemaphorePermit,
}

/// One miner.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// Where its worker keeps it.
    pub(super) place: usize,
    pub(super) stream: TcpStream,
    /// What it is estimated to hash; 0 while unknown.
    pub(super) rate: HashRate,
    /// When the worker looks at it next, on the monotonic clock.
    pub(super) timer: Duration,
    /// Whether it is among those that the worker serves next.
    pub(super) is_ready: bool,
    /// Whether the system may have bytes for us.
    readable: bool,
    /// Whether the peer has ended its side, which the system says only once: there is an end to be read.
    ended: bool,
    /// What the socket did not take.
    unwritten: Vec<u8>,
    /// When the first of those was to be written.
    unwritten_since: Duration,
    /// The newest job that the state machine was given.
    newest_job: JobNumber,
    /// The newest work that came while something was unwritten.
    held: Option<Arc<Work>>,
    peer: SocketAddr,
    machine: Sv1Connection,
    holdings: Holdings,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// Fails when all extranonces are held.
    pub(super) fn new(
        newcomer: Newcomer,
        place: usize,
        context: &Context,
        now: Now,
    ) -> Result<Self, CloseReason> {
        let Newcomer { stream, peer, id, slot } = newcomer;
        let mut holdings = Holdings::new(id, peer.ip(), context, |counts| &counts.sv1);
        let reserved = holdings.take_reserved().map_err(|exhausted| CloseReason::ours(exhausted.to_string()));
        let reserved = reserved.inspect_err(|reason| {
            log_close(LineKind::StrangerClosed, peer, id, "", reason, context);
        })?;
        Ok(Connection {
            id,
            place,
            stream,
            rate: HashRate(0.0),
            timer: Duration::MAX,
            is_ready: false,
            readable: false,
            ended: false,
            unwritten: Vec::new(),
            unwritten_since: Duration::ZERO,
            newest_job: JobNumber(0),
            held: None,
            peer,
            machine: Sv1Connection::new(Arc::clone(&context.settings), id, reserved, now),
            holdings,
            _slot: slot,
        })
    }

    /// Notes that the system has bytes for us.
    pub(super) fn note_readable(&mut self) {
        self.readable = true;
    }

    /// Notes that after its last bytes there is an end, or an error, to be read.
    pub(super) fn note_ended(&mut self) {
        self.readable = true;
        self.ended = true;
    }

    /// Writes what is unwritten, then reads once. Returns how many bytes there are to be answered.
    pub(super) fn receive(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Result<usize, CloseReason> {
        if !self.unwritten.is_empty() {
            self.write_rest()?;
            if !self.unwritten.is_empty() {
                return Ok(0);
            }
            if let Some(work) = self.held.take() {
                self.take_work(&work, desk)?;
            }
        }
        if !self.has_more() {
            return Ok(0);
        }
        match self.stream.read(buffer) {
            Ok(0) => Err(CloseReason::gone("the miner closed the connection")),
            Ok(length) => {
                // What did not fill the buffer was all: the system says when there is more.
                self.readable = self.ended || length == buffer.len();
                Ok(length)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(CloseReason::gone(format!("reading failed: {error}"))),
        }
    }

    /// Whether there may be more to be read at once.
    pub(super) fn has_more(&self) -> bool {
        self.readable && self.unwritten.is_empty()
    }

    /// Looks for shares in what was read. Returns how many there are.
    pub(super) fn look_ahead<'a>(&self, bytes: &'a [u8], ahead: &mut Ahead<'a>) -> usize {
        ahead.read(&self.machine, bytes)
    }

    /// The state machine, for those who look ahead.
    pub(super) fn machine(&self) -> &Sv1Connection {
        &self.machine
    }

    /// Answers what was read at `now`, of which some was looked at ahead.
    pub(super) fn answer(
        &mut self,
        bytes: &[u8],
        foreseen: &[Foreseen<'_>],
        now: Now,
        desk: &mut Desk,
    ) -> Result<(), CloseReason> {
        self.machine.handle_read(bytes, foreseen, now, &mut self.holdings, &mut desk.out);
        self.flush(desk, None)
    }

    /// Takes new work, or keeps it until the miner listens again.
    pub(super) fn take_work(&mut self, work: &Arc<Work>, desk: &mut Desk) -> Result<(), CloseReason> {
        if !self.unwritten.is_empty() {
            self.held = Some(Arc::clone(work));
            return Ok(());
        }
        self.machine.handle_work(work, desk.clock.now(), &mut desk.out);
        let clean_job_received = work.clean_job_after(self.newest_job).map(|job| job.received);
        self.newest_job = work.active().job.number;
        self.flush(desk, clean_job_received)
    }

    /// Takes what the owner of the work has for this connection alone.
    pub(super) fn take_delivery(&mut self, delivery: &Delivery, desk: &mut Desk) -> Result<(), CloseReason> {
        match delivery {
            Delivery::Work(work) => self.take_work(work, desk),
            Delivery::OpenFailed(reason) => {
                self.machine.handle_open_failed(reason, &mut desk.out);
                self.flush(desk, None)
            }
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, desk: &mut Desk) -> Result<(), CloseReason> {
        let now = desk.clock.now();
        if !self.unwritten.is_empty() && now.monotonic >= self.unwritten_since + desk.patience.write {
            return Err(CloseReason::downstream("it reads too slowly"));
        }
        if now.monotonic >= self.machine.next_timeout() && self.unwritten.is_empty() {
            self.machine.handle_timeout(now, &mut desk.out);
            return self.flush(desk, None);
        }
        Ok(())
    }

    /// When something is due, on the monotonic clock.
    pub(super) fn next_timeout(&self, desk: &Desk) -> Duration {
        if self.unwritten.is_empty() {
            self.machine.next_timeout()
        } else {
            self.unwritten_since + desk.patience.write
        }
    }

    /// Says goodbye to the owner of the work, and to the log.
    pub(super) fn finish(mut self, reason: &CloseReason, desk: &mut Desk, context: &Context) {
        let peer = self.machine.proxied_source().unwrap_or(self.peer);
        self.machine.handle_closed(&mut self.holdings, &mut desk.out);
        self.holdings.note(&desk.out.events);
        desk.pass_shares();
        desk.pass_events((self.place, self.id));
        let who = format!(
            "{} {}",
            self.machine.user().unwrap_or("(not authorised)"),
            self.machine.user_agent().unwrap_or("(unknown software)"),
        );
        let is_known = self.machine.device().is_some();
        let kind = if is_known { LineKind::DeviceClosed } else { LineKind::StrangerClosed };
        log_close(kind, peer, self.id, &who, reason, context);
    }

    /// Passes on what the state machine put out, and writes its bytes.
    fn flush(&mut self, desk: &mut Desk, clean_job_received: Option<Now>) -> Result<(), CloseReason> {
        // Taken before anything can fail: what is left on the desk would be the next connection's.
        let close = desk.out.close.take();
        let shares_read = desk.pass_shares();
        if !desk.out.events.is_empty() {
            self.note_events(desk);
        }
        if !desk.out.bytes.is_empty() {
            self.write(desk)?;
            if shares_read.is_some() || clean_job_received.is_some() {
                let now = desk.clock.monotonic();
                if let Some(read) = shares_read {
                    desk.latencies.share_ack.record(now.saturating_sub(read.monotonic));
                }
                if let Some(received) = clean_job_received {
                    desk.latencies.new_block.record(now.saturating_sub(received.monotonic));
                }
            }
        }
        close.map_or(Ok(()), Err)
    }

    fn note_events(&mut self, desk: &mut Desk) {
        self.holdings.note(&desk.out.events);
        for event in &desk.out.events {
            if let Event::HashRate { rate, .. } = event {
                self.rate = *rate;
            }
        }
        desk.pass_events((self.place, self.id));
    }

    /// Writes the output; keeps what the socket does not take.
    fn write(&mut self, desk: &mut Desk) -> Result<(), CloseReason> {
        let bytes = &desk.out.bytes;
        let written = if self.unwritten.is_empty() { write_some(&mut self.stream, bytes) } else { Ok(0) };
        let written = written.inspect_err(|_| desk.out.bytes.clear())?;
        if written < desk.out.bytes.len() {
            if self.unwritten.is_empty() {
                self.unwritten_since = desk.clock.now().monotonic;
            }
            self.unwritten.extend_from_slice(&desk.out.bytes[written..]);
        }
        desk.out.bytes.clear();
        Ok(())
    }

    fn write_rest(&mut self) -> Result<(), CloseReason> {
        let written = write_some(&mut self.stream, &self.unwritten)?;
        if written == self.unwritten.len() {
            self.unwritten = Vec::new();
        } else {
            self.unwritten.drain(..written);
        }
        Ok(())
    }
}

/// What tests look at.
#[cfg(test)]
impl Connection {
    pub(super) fn is_held_up(&self) -> bool {
        !self.unwritten.is_empty()
    }
}

/// Writes until the socket takes no more; returns how much it took.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize, CloseReason> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(CloseReason::gone("writing failed: the socket takes nothing")),
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(CloseReason::gone(format!("writing failed: {error}"))),
        }
    }
    Ok(written)
}

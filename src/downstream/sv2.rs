//! Drives one SV2 connection: the Noise handshake, then frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mining_server::sv2::Sv2Connection;
use mining_server::{CloseReason, Output, Work};
use rand::rngs::OsRng;
use stratum::ConnectionId;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_MINER;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::noise::{INITIATOR_MESSAGE_SIZE, Responder};
use stratum::sv2::transport::{Decryptor, Encryptor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::holdings::Holdings;
use super::limiter::LineKind;
use super::{Context, Outlet, READ_BUFFER, log_close};
use crate::clock::Clock;
use crate::owner::{CustomJobAnswer, Delivery};
use crate::shutdown::Shutdown;

/// How long the certificate in our handshake is valid. It is made anew for each connection, and a miner's clock
/// may be off.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// Serves one SV2 miner or proxy until its connection ends.
pub(super) async fn drive(
    mut stream: TcpStream,
    peer: SocketAddr,
    id: ConnectionId,
    key: Arc<AuthoritySecretKey>,
    context: Context,
    mut shutdown: Shutdown,
) {
    let handshake =
        tokio::time::timeout(context.patience.handshake, shake_hands(&mut stream, &key, context.clock)).await;
    let late = || CloseReason::downstream("no Noise handshake in time");
    let (encryptor, decryptor) = match handshake.map_err(|_| late()).and_then(|done| done) {
        Ok(transport) => transport,
        Err(reason) => {
            log_close(LineKind::StrangerClosed, peer, id, "", &reason, &context);
            return;
        }
    };
    let holdings = Holdings::new(id, peer.ip(), &context, |counts| &counts.sv2);
    let mut connection = Sv2Connection::new(Arc::clone(&context.settings), id, context.clock.now());
    if context.owner.custom_jobs.is_some() {
        connection = connection.taking_custom_jobs();
    }
    let mut driver = Driver {
        connection,
        outlet: Outlet::new(id, &context),
        holdings,
        out: Output::default(),
        encrypted: Vec::new(),
        stream,
        encryptor,
        decryptor,
        context,
    };
    let reason = driver.run(&mut shutdown).await;
    driver.finish(peer, id, &reason).await;
}

async fn shake_hands(
    stream: &mut TcpStream,
    key: &AuthoritySecretKey,
    clock: Clock,
) -> Result<(Encryptor, Decryptor), CloseReason> {
    let failed =
        |error: std::io::Error| CloseReason::downstream(format!("the Noise handshake failed: {error}"));
    let mut first = [0; INITIATOR_MESSAGE_SIZE];
    stream.read_exact(&mut first).await.map_err(failed)?;
    let responder = Responder::new(key, CERTIFICATE_VALIDITY, &mut OsRng);
    let (reply, transport) = responder
        .step(&first, clock.now().unix_seconds(), &mut OsRng)
        .map_err(|error| CloseReason::downstream(format!("the Noise handshake failed: {error}")))?;
    stream.write_all(&reply).await.map_err(failed)?;
    Ok(transport.split(MAX_PAYLOAD_FROM_MINER))
}

struct Driver {
    connection: Sv2Connection,
    outlet: Outlet,
    holdings: Holdings,
    out: Output,
    encrypted: Vec<u8>,
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    context: Context,
}

impl Driver {
    async fn run(&mut self, shutdown: &mut Shutdown) -> CloseReason {
        let mut work = self.context.owner.work.clone();
        let mailbox = Arc::clone(&self.outlet.mailbox);
        let mut buffer = Vec::new();
        if let Some(work) = work.borrow_and_update().clone() {
            self.take_work(&work);
        }
        loop {
            let timeout = self.context.clock.instant(self.connection.next_timeout());
            tokio::select! {
                biased;
                changed = work.changed() => {
                    if changed.is_err() {
                        return CloseReason::ours("the source of work has ended");
                    }
                    let newest = work.borrow_and_update().clone();
                    if let Some(newest) = newest {
                        self.take_work(&newest);
                    }
                }
                () = mailbox.arrived() => {
                    self.take_deliveries();
                    self.take_answers(&mut work);
                }
                () = shutdown.requested() => return CloseReason::ours("the program is ending"),
                readable = self.stream.readable() => {
                    if let Err(reason) = readable.map_err(read_failed).and_then(|()| self.read(&mut buffer)) {
                        return reason;
                    }
                }
                () = tokio::time::sleep_until(timeout) => {
                    self.connection.handle_timeout(self.context.clock.now(), &mut self.out);
                    self.outlet.writer.flush();
                }
            }
            if let Err(reason) = self.flush().await {
                return reason;
            }
        }
    }

    fn read(&mut self, buffer: &mut Vec<u8>) -> Result<(), CloseReason> {
        buffer.resize(READ_BUFFER, 0);
        let length = match self.stream.try_read(buffer) {
            Ok(0) => return Err(CloseReason::gone("the miner closed the connection")),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                *buffer = Vec::new();
                return Ok(());
            }
            Err(error) => return Err(read_failed(error)),
        };
        let now = self.context.clock.now();
        let mut input = &buffer[..length];
        while self.out.close.is_none() {
            // Who has said that it selects its work may send longer messages from then on.
            self.decryptor.set_max_payload(self.connection.max_payload());
            match self.decryptor.next_frame(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let (header, payload) = (frame.header, frame.payload);
                    self.connection.handle_frame(header, payload, now, &mut self.holdings, &mut self.out);
                }
                Err(error) => return Err(CloseReason::downstream(error.to_string())),
            }
        }
        Ok(())
    }

    fn take_work(&mut self, work: &Arc<Work>) {
        self.take_work_for(None, work);
    }

    fn take_work_for(&mut self, channel: Option<stratum::ChannelId>, work: &Arc<Work>) {
        let before = self.out.bytes.len();
        self.connection.handle_work(channel, work, self.context.clock.now(), &mut self.out);
        if work.active().job.clean && self.out.bytes.len() > before {
            self.outlet.clean_job_received = Some(work.active().job.received);
        }
    }

    fn take_deliveries(&mut self) {
        for (channel, delivery) in self.outlet.mailbox.take() {
            match delivery {
                Delivery::Work(work) => self.take_work_for(Some(channel), &work),
                Delivery::OpenFailed(reason) => {
                    let now = self.context.clock.now();
                    self.connection.handle_open_failed(channel, &reason, now, &mut self.out);
                }
            }
        }
    }

    /// Takes the answers to custom jobs. The owner publishes its work before it answers, and the connection must have
    /// it before the answer.
    fn take_answers(&mut self, work: &mut watch::Receiver<Option<Arc<Work>>>) {
        let answers = self.outlet.mailbox.take_answers();
        if answers.is_empty() {
            return;
        }
        let newest = if work.has_changed().is_ok_and(|changed| changed) {
            work.borrow_and_update().clone()
        } else {
            None
        };
        if let Some(newest) = newest {
            self.take_work(&newest);
        }
        for CustomJobAnswer { channel_id, request_id, answer } in answers {
            let answer = answer.as_ref().map(Arc::clone).map_err(String::as_str);
            self.connection.handle_custom_job(channel_id, request_id, answer, &mut self.out);
        }
    }

    async fn flush(&mut self) -> Result<(), CloseReason> {
        self.holdings.note(&self.out.events);
        self.outlet.dispatch(&mut self.out).await;
        self.encrypted.clear();
        self.encryptor
            .encrypt_frames(&self.out.bytes, &mut self.encrypted)
            .map_err(|error| CloseReason::ours(error.to_string()))?;
        self.out.bytes.clear();
        let encrypted = std::mem::take(&mut self.encrypted);
        self.outlet.write(&mut self.stream, &encrypted).await?;
        self.out.close.take().map_or(Ok(()), Err)
    }

    async fn finish(mut self, peer: SocketAddr, id: ConnectionId, reason: &CloseReason) {
        let user = self.connection.user_identities().next();
        let kind = if user.is_some() { LineKind::DeviceClosed } else { LineKind::StrangerClosed };
        let first = user.unwrap_or("(no channel)").to_owned();
        let who = format!("{first} {} {}", self.connection.vendor(), self.connection.hardware_version());
        let now = self.context.clock.now();
        self.connection.handle_closed(now, &mut self.holdings, &mut self.out);
        self.holdings.note(&self.out.events);
        self.outlet.dispatch(&mut self.out).await;
        log_close(kind, peer, id, &who, reason, &self.context);
    }
}

fn read_failed(error: std::io::Error) -> CloseReason {
    CloseReason::gone(format!("reading failed: {error}"))
}

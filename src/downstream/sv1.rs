//! Drives one SV1 connection.

use std::net::SocketAddr;
use std::sync::Arc;

use mining_server::sv1::{SV1_CHANNEL, Sv1Connection};
use mining_server::{CloseReason, Output, Registry, Work};
use stratum::ConnectionId;
use tokio::net::TcpStream;

use super::holdings::Holdings;
use super::limiter::LineKind;
use super::{Context, Outlet, READ_BUFFER, log_close, take_bytes};
use crate::owner::Delivery;
use crate::shutdown::Shutdown;

/// Serves one SV1 miner until its connection ends.
pub(super) async fn drive(
    stream: TcpStream,
    peer: SocketAddr,
    id: ConnectionId,
    context: Context,
    mut shutdown: Shutdown,
) {
    let mut holdings = Holdings::new(id, &context, |counts| &counts.sv1);
    let reserved = match holdings.take_reserved() {
        Ok(reserved) => reserved,
        Err(exhausted) => {
            let reason = CloseReason::ours(exhausted.to_string());
            log_close(LineKind::StrangerClosed, peer, id, "", &reason, &context);
            return;
        }
    };
    let now = context.clock.now();
    let connection = Sv1Connection::new(Arc::clone(&context.settings), id, reserved, now);
    let outlet = Outlet::new(id, &context);
    let mut driver = Driver { connection, outlet, holdings, out: Output::default(), stream, context };
    let reason = driver.run(&mut shutdown).await;
    driver.finish(peer, id, &reason).await;
}

struct Driver {
    connection: Sv1Connection,
    outlet: Outlet,
    holdings: Holdings,
    out: Output,
    stream: TcpStream,
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
            // New work comes before everything else: it is what makes a late share worthless.
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
                () = mailbox.arrived() => self.take_deliveries(),
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

    /// Reads what is there. The buffer is given back when nothing more is: most connections are idle.
    fn read(&mut self, buffer: &mut Vec<u8>) -> Result<(), CloseReason> {
        buffer.resize(READ_BUFFER, 0);
        match self.stream.try_read(buffer) {
            Ok(0) => Err(CloseReason::gone("the miner closed the connection")),
            Ok(length) => {
                let now = self.context.clock.now();
                self.connection.handle_bytes(&buffer[..length], now, &mut self.holdings, &mut self.out);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                *buffer = Vec::new();
                Ok(())
            }
            Err(error) => Err(read_failed(error)),
        }
    }

    fn take_work(&mut self, work: &Arc<Work>) {
        let before = self.out.bytes.len();
        let clean = work.active().job.clean;
        self.connection.handle_work(work, self.context.clock.now(), &mut self.out);
        if clean && self.out.bytes.len() > before {
            self.outlet.clean_job_received = Some(work.active().job.received);
        }
    }

    fn take_deliveries(&mut self) {
        for (channel, delivery) in self.outlet.mailbox.take() {
            assert_eq!(channel, SV1_CHANNEL, "an SV1 connection opens one channel");
            match delivery {
                Delivery::Work(work) => self.take_work(&work),
                Delivery::OpenFailed(reason) => self.connection.handle_open_failed(&reason, &mut self.out),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), CloseReason> {
        self.holdings.note(&self.out.events);
        self.outlet.dispatch(&mut self.out).await;
        let bytes = take_bytes(&mut self.out);
        self.outlet.write(&mut self.stream, &bytes).await?;
        self.out.close.take().map_or(Ok(()), Err)
    }

    async fn finish(mut self, peer: SocketAddr, id: ConnectionId, reason: &CloseReason) {
        let peer = self.connection.proxied_source().unwrap_or(peer);
        self.connection.handle_closed(&mut self.holdings, &mut self.out);
        self.holdings.note(&self.out.events);
        self.outlet.dispatch(&mut self.out).await;
        let who = format!(
            "{} {}",
            self.connection.user().unwrap_or("(not authorised)"),
            self.connection.user_agent().unwrap_or("(unknown software)"),
        );
        let is_known = self.connection.device().is_some();
        let kind = if is_known { LineKind::DeviceClosed } else { LineKind::StrangerClosed };
        log_close(kind, peer, id, &who, reason, &self.context);
    }
}

fn read_failed(error: std::io::Error) -> CloseReason {
    CloseReason::gone(format!("reading failed: {error}"))
}

//! Drives SV1 connections: one thread for each core, each with the connections that it accepted.
//!
//! A task for each connection would be simpler and costs twice as much: most of what a share costs is in the kernel,
//! and a thread that serves hundreds of ready connections in turn wakes up once for all of them, reads and writes
//! once for each, and hands their shares on together. Nothing here decides what a miner is told: that is in the
//! `mining-server` crate.
//!
//! - [`worker`]: the thread's loop, in the order of what is urgent.
//! - [`connection`]: one miner: its socket, its state machine, its unwritten bytes.
//! - [`desk`]: what all connections of a thread share: buffers, and the ways out to the owner of the work.
//! - [`inbox`]: what other threads leave for a worker.
//! - [`fan_out`]: a new job on its way to all connections, the fastest miners first.

mod connection;
mod desk;
mod fan_out;
mod inbox;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::available_parallelism;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{CLOSE_GRACE, Context, TCP_USER_TIMEOUT, limiter, log_withheld, tidy};
use crate::shutdown::Shutdown;
use inbox::Inbox;
use worker::{Loads, Worker};

/// Threads at most. One core serves a hundred thousand miners at ordinary rates; more threads than this would only
/// make the upstream's task hand out new work to more of them.
const MAX_WORKERS: usize = 16;

/// Open files of a worker besides its connections: the listener once more, what it polls with, what wakes it.
pub(super) const FILES_OF_WORKER: usize = 3;

/// How many threads a listener has.
pub(super) fn workers() -> usize {
    available_parallelism().map_or(1, usize::from).min(MAX_WORKERS)
}

/// Accepts and serves SV1 miners until the end is asked for, and then waits a moment for the threads to end.
///
/// # Panics
///
/// When a thread ended by a panic of its own, or could not be started: the role must not outlive it.
pub(super) async fn serve(listener: TcpListener, context: Context, mut shutdown: Shutdown) {
    let (inboxes, mut workers) = start(listener, &context);
    let mut tick = tokio::time::interval(limiter::PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.requested() => break,
            ended = workers.join_next() => check(ended),
            _ = tick.tick() => tidy(&context),
        }
    }
    inboxes.iter().for_each(|inbox| inbox.end());
    let ended = tokio::time::timeout(CLOSE_GRACE, async {
        while let Some(ended) = workers.join_next().await {
            ended.expect("a worker's end is only waited for").expect("a thread of SV1 connections panicked");
        }
    });
    if ended.await.is_err() {
        tracing::warn!("SV1 connections did not close in time");
    }
    log_withheld(&context);
}

/// A worker ends before it is asked to only by a panic.
fn check(ended: Option<Result<Result<(), oneshot::error::RecvError>, tokio::task::JoinError>>) {
    panic!("a thread of SV1 connections ended too early: {ended:?}");
}

type Ended = JoinSet<Result<(), oneshot::error::RecvError>>;

fn start(listener: TcpListener, context: &Context) -> (Vec<Arc<Inbox>>, Ended) {
    let listener = listener.into_std().expect("a listener without a task is only a socket");
    prepare(&listener).expect("a listening socket takes the options of TCP");
    let mut workers = Vec::with_capacity(self::workers());
    for _ in 0..self::workers() {
        let listener = listener.try_clone().expect("there is a file descriptor for each core");
        workers.push(Worker::new(listener, context).expect("the system can poll sockets"));
    }
    let inboxes: Vec<Arc<Inbox>> = workers.iter().map(Worker::inbox).collect();
    let loads: Loads = workers.iter().map(|_| AtomicUsize::new(0)).collect();
    let mut ended = JoinSet::new();
    for (number, worker) in workers.into_iter().enumerate() {
        let (sender, receiver) = oneshot::channel();
        ended.spawn(receiver);
        let runtime = tokio::runtime::Handle::current();
        let run = {
            let (inboxes, loads) = (inboxes.clone(), Arc::clone(&loads));
            move || {
                // What connections leave behind when they panic is given back by a task.
                let _runtime = runtime.enter();
                worker.run(&inboxes, &loads, number);
                // Nobody listens when the role has been torn down.
                let _ = sender.send(());
            }
        };
        let thread = std::thread::Builder::new().name(format!("sv1-{number}"));
        thread.spawn(run).expect("the system has room for a thread for each core");
    }
    (inboxes, ended)
}

/// Accepted sockets inherit these on Linux, which spares four calls for each.
fn prepare(listener: &std::net::TcpListener) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(TCP_USER_TIMEOUT))
}

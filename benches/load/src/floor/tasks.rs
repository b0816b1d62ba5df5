//! The floor of tasks: Tokio's multi-threaded runtime, one task for each connection, new jobs through a watch
//! channel.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::judge::{FloorJob, Peer};
use super::{Publish, Reserved, any_port, listen};

/// Bytes read at once, and the longest line.
const READ_BUFFER: usize = 1024;

/// The running runtime.
pub(super) struct Tasks {
    jobs: watch::Sender<Arc<FloorJob>>,
    /// Ends with this.
    _runtime: Runtime,
}

impl Publish for Tasks {
    fn publish(&self, job: Arc<FloorJob>) -> io::Result<()> {
        self.jobs.send_replace(job);
        Ok(())
    }
}

/// Starts the runtime on a free port.
pub(super) fn start(threads: NonZeroUsize, job: Arc<FloorJob>) -> io::Result<(SocketAddr, Tasks)> {
    let runtime = Builder::new_multi_thread().worker_threads(threads.get()).enable_io().build()?;
    let listener = listen(any_port())?;
    let address = listener.local_addr()?;
    let (jobs, subscription) = watch::channel(job);
    let listener = {
        let _context = runtime.enter();
        TcpListener::from_std(listener)?
    };
    runtime.spawn(accept(listener, subscription));
    Ok((address, Tasks { jobs, _runtime: runtime }))
}

async fn accept(listener: TcpListener, jobs: watch::Receiver<Arc<FloorJob>>) {
    let reserved = Reserved::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = Peer::new(reserved.take());
                tokio::spawn(serve(stream, peer, jobs.clone()));
            }
            // The peer may have gone again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                eprintln!("the floor cannot accept: {error}");
                std::process::exit(1);
            }
        }
    }
}

/// Serves one connection to its end; how it ends makes no difference to a floor.
async fn serve(mut stream: TcpStream, mut peer: Peer, mut subscription: watch::Receiver<Arc<FloorJob>>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut job = Arc::clone(&subscription.borrow_and_update());
    let mut buffer = [0; READ_BUFFER];
    let (mut filled, mut out) = (0, Vec::new());
    loop {
        tokio::select! {
            biased;
            changed = subscription.changed() => {
                if changed.is_err() {
                    return;
                }
                job = Arc::clone(&subscription.borrow_and_update());
                if peer.is_authorized && stream.write_all(job.line()).await.is_err() {
                    return;
                }
            }
            read = stream.read(&mut buffer[filled..]) => {
                let Ok(length @ 1..) = read else { return };
                filled += length;
                out.clear();
                let Ok(rest) = peer.answer_lines(&buffer[..filled], &job, &mut out) else { return };
                let kept = rest.len();
                buffer.copy_within(filled - kept..filled, 0);
                filled = kept;
                if filled == buffer.len() || (!out.is_empty() && stream.write_all(&out).await.is_err()) {
                    return;
                }
            }
        }
    }
}

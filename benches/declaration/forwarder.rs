//! Stands between the server and its node, and takes the time that the server waits for the node.
//!
//! Threads of its own, so that a busy runtime does not show as the node's time.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request of so many bytes is a full block.
const LONG: usize = 1 << 20;

/// Until now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// From the last byte of each request to the last byte of its answer, together.
    pub(crate) waited: Duration,
    /// Requests that carried a block.
    pub(crate) long_requests: usize,
}

pub(crate) struct Forwarder {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// The request of one connection that is under way.
#[derive(Default)]
struct Request {
    bytes: usize,
    /// When its last byte left, as far as is known; then, when the last byte of its answer came.
    counted_to: Option<Instant>,
}

impl Forwarder {
    pub(crate) fn start(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(node).expect("the node listens");
                forward(client, server, Arc::clone(&shared));
            }
        });
        Forwarder { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Seen {
        *self.seen.lock().expect("nobody panics")
    }
}

fn forward(client: TcpStream, server: TcpStream, seen: Arc<Mutex<Seen>>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let request = Arc::new(Mutex::new(Request::default()));
    let (of_requests, of_answers) = (Arc::clone(&request), request);
    let (from, to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
    std::thread::spawn(move || {
        copy(from, to, |length| {
            let mut request = of_requests.lock().expect("nobody panics");
            request.bytes += length;
            request.counted_to = Some(Instant::now());
        });
    });
    std::thread::spawn(move || {
        copy(server, client, |_| {
            let now = Instant::now();
            let mut request = of_answers.lock().expect("nobody panics");
            let mut seen = seen.lock().expect("nobody panics");
            if let Some(since) = request.counted_to.replace(now) {
                seen.waited += now - since;
            }
            seen.long_requests += usize::from(std::mem::take(&mut request.bytes) >= LONG);
        });
    });
}

/// Copies until one side ends; tells of each piece once it is on its way.
fn copy(mut from: TcpStream, mut to: TcpStream, mut tell: impl FnMut(usize)) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        // Before it is passed on: the other side may answer at once.
        tell(length);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

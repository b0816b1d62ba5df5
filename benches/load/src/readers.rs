//! Readers of a target's API: each asks for one page after the other at a given pace, and some follow live changes.
//!
//! They are here to be in the way. What they wait for is measured, and what they get is looked at no further than its
//! status.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::in_flight::latencies;

/// What each reader asks for in turn. The device is the first of the swarm.
pub const PATHS: [&str; 4] =
    ["/metrics", "/api/v1/devices?limit=100", "/api/v1/devices/{device}", "/api/v1/fleet"];

/// One reader in this many follows live changes instead.
const LIVE_EACH: usize = 4;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What readers waited for, by path, in nanoseconds.
pub type Waited = BTreeMap<String, Histogram<u64>>;

/// Readers at work; they end when this is dropped.
#[derive(Debug)]
pub struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    waited: Mutex<Waited>,
}

impl Readers {
    /// Starts so many readers, each of which asks once in `pace`.
    pub fn start(api: SocketAddr, count: usize, pace: Duration, device: &str) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut threads = Vec::new();
        for number in 0..count {
            let (shared, device) = (Arc::clone(&shared), device.to_owned());
            let thread = std::thread::Builder::new().name(format!("reader-{number}"));
            threads.push(thread.spawn(move || {
                if number % LIVE_EACH == LIVE_EACH - 1 {
                    return follow(api, &shared);
                }
                // Not all at once.
                std::thread::sleep(pace.mul_f64(number as f64 / count as f64));
                ask_on(api, number, pace, &device, &shared)
            })?);
        }
        Ok(Readers { shared, threads })
    }

    /// Ends them, and returns what they waited for. An error when one of them was refused something.
    pub fn end(mut self) -> io::Result<Waited> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a reader panicked"))??;
        }
        Ok(std::mem::take(&mut *self.shared.waited.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Shared {
    fn note(&self, what: &str, waited: Duration) {
        let mut all = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        let of_path = all.entry(what.to_owned()).or_insert_with(latencies);
        of_path.saturating_record(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
    }
}

fn connect(api: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(api)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

fn ask_on(api: SocketAddr, number: usize, pace: Duration, device: &str, shared: &Shared) -> io::Result<()> {
    let mut stream = connect(api)?;
    let paths = PATHS.into_iter().cycle().skip(number);
    let mut next = Instant::now();
    for path in paths.take_while(|_| !shared.is_over.load(Ordering::Relaxed)) {
        let asked = Instant::now();
        ask(&mut stream, api, &path.replace("{device}", device))?;
        shared.note(path, asked.elapsed());
        next += pace;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Records of which a target of ours keeps sums alone, as its metrics say.
pub fn records_folded(api: SocketAddr) -> io::Result<u64> {
    let page = ask(&mut connect(api)?, api, "/metrics")?;
    let page = String::from_utf8_lossy(&page);
    let sample = page.lines().find_map(|line| line.strip_prefix("checkweigh_records_folded_total "));
    let count = sample.and_then(|count| count.parse().ok());
    count.ok_or_else(|| io::Error::other("the metrics do not say how many records were folded"))
}

/// Asks once over an open connection, and reads the answer to its end.
fn ask(stream: &mut BufReader<TcpStream>, api: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: {api}\r\n\r\n")?;
    let mut length = None;
    let mut line = String::new();
    let status = head_line(stream, &mut line)?.split(' ').nth(1).map(str::to_owned);
    if status.as_deref() != Some("200") {
        return Err(io::Error::other(format!("{path} was answered with {}", line.trim_end())));
    }
    while head_line(stream, &mut line)?.trim_end() != "" {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let length = length.ok_or_else(|| io::Error::other(format!("{path} is answered in pieces")))?;
    let mut body = Vec::new();
    stream.by_ref().take(length).read_to_end(&mut body)?;
    if (body.len() as u64) < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(body) }
}

fn head_line<'l>(stream: &mut BufReader<TcpStream>, line: &'l mut String) -> io::Result<&'l str> {
    line.clear();
    if stream.read_line(line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// Follows live changes, and notes the time from one event to the next.
fn follow(api: SocketAddr, shared: &Shared) -> io::Result<()> {
    let mut stream = connect(api)?;
    write!(stream.get_mut(), "GET /api/v1/live HTTP/1.1\r\nHost: {api}\r\n\r\n")?;
    let mut line = String::new();
    let mut last = Instant::now();
    while !shared.is_over.load(Ordering::Relaxed) {
        if head_line(&mut stream, &mut line)?.starts_with("event:") {
            shared.note("/api/v1/live", last.elapsed());
            last = Instant::now();
        }
    }
    Ok(())
}

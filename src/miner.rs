//! SV1 miners on the processor: they connect, grind real shares at a set speed, and note how they are answered.
//!
//! They share no hashing with the server: what they hash is built by the SV1 client from the lines that it reads.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stratum::sv1::client::{self, Notify, ServerLine};
use stratum::sv1::line::LineBuffer;
use stratum::{Difficulty, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::latency::Latency;
use crate::shutdown::Shutdown;

/// How long a miner hashes before it looks at the network again.
const SLICE: Duration = Duration::from_millis(2);

/// The wait before a lost connection is dialled again.
const REDIAL: Duration = Duration::from_millis(500);

/// Submissions whose answer is awaited at most; a miner that has more waits, as a firmware's queue would.
const MAX_UNANSWERED: usize = 64;

/// One miner.
#[derive(Clone, Debug)]
pub struct MinerOptions {
    /// Where the pool or proxy listens.
    pub server: SocketAddr,
    /// The worker name.
    pub user: String,
    /// Hashes per second that it makes, as long as the processor is fast enough.
    pub hash_rate: f64,
}

/// What all miners measured, as they saw it.
#[derive(Debug, Default)]
pub struct MinerFigures {
    /// From a submission written to its answer read.
    pub share_ack: Latency,
}

/// Mines until the end is asked for. A lost connection is dialled again.
pub async fn mine(options: MinerOptions, figures: Arc<MinerFigures>, mut shutdown: Shutdown) {
    loop {
        let ended = tokio::select! {
            () = shutdown.requested() => return,
            ended = Miner::session(&options, &figures) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(miner = options.user, "{error}");
        }
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(REDIAL) => {}
        }
    }
}

struct Miner<'a> {
    options: &'a MinerOptions,
    figures: &'a MinerFigures,
    stream: TcpStream,
    lines: LineBuffer,
    extranonce1: Vec<u8>,
    extranonce2_size: usize,
    extranonce2: u64,
    mask: u32,
    /// The difficulty of jobs to come; the one of `work` is the one that it came with.
    difficulty: f64,
    work: Option<Grind>,
    next_id: u64,
    /// When each submission that is not answered yet was sent, oldest first. Answers come in order.
    unanswered: VecDeque<(u64, Instant)>,
    out: Vec<u8>,
}

/// A job being ground.
struct Grind {
    notify: Notify,
    target: Target,
    header: [u8; 80],
    extranonce2: Vec<u8>,
    nonce: u32,
}

const CONFIGURE: u64 = 1;
const SUBSCRIBE: u64 = 2;
const AUTHORIZE: u64 = 3;
const FIRST_SUBMIT: u64 = 4;

impl<'a> Miner<'a> {
    async fn session(options: &'a MinerOptions, figures: &'a MinerFigures) -> std::io::Result<()> {
        let stream = TcpStream::connect(options.server).await?;
        stream.set_nodelay(true)?;
        let mut miner = Miner {
            options,
            figures,
            stream,
            lines: LineBuffer::new(client::MAX_SERVER_LINE_BYTES),
            extranonce1: Vec::new(),
            extranonce2_size: 0,
            extranonce2: 0,
            mask: 0,
            difficulty: 1.0,
            work: None,
            next_id: FIRST_SUBMIT,
            unanswered: VecDeque::new(),
            out: Vec::new(),
        };
        client::configure(&mut miner.out, CONFIGURE, Some(0x1fff_e000));
        client::subscribe(
            &mut miner.out,
            SUBSCRIBE,
            concat!("checkweigh-cpu/", env!("CARGO_PKG_VERSION")),
            None,
        );
        client::authorize(&mut miner.out, AUTHORIZE, &options.user, "x");
        miner.run().await
    }

    async fn run(&mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        let mut wake = tokio::time::Instant::now();
        loop {
            if !self.out.is_empty() {
                self.stream.write_all(&self.out).await?;
                self.out.clear();
            }
            tokio::select! {
                biased;
                read = self.stream.read(&mut buffer) => {
                    let length = read?;
                    if length == 0 {
                        return Err(std::io::Error::other("the server closed the connection"));
                    }
                    self.handle_bytes(&buffer[..length])?;
                }
                () = tokio::time::sleep_until(wake) => {
                    // What was not hashed in time is not caught up: a miner that has no processor is slower.
                    let hashed = self.grind();
                    let paced = Duration::from_secs_f64(hashed as f64 / self.options.hash_rate);
                    wake = (wake + paced).max(tokio::time::Instant::now());
                }
            }
        }
    }

    fn handle_bytes(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        let mut lines = std::mem::take(&mut self.lines);
        while let Some(line) = lines.next_line(&mut bytes).map_err(std::io::Error::other)? {
            match ServerLine::parse(line).map_err(std::io::Error::other)? {
                ServerLine::Notify(notify) => self.start(notify),
                ServerLine::SetDifficulty(difficulty) => self.difficulty = difficulty,
                ServerLine::SetVersionMask(mask) => self.mask = mask,
                ServerLine::SetExtranonce(extranonce) => {
                    self.extranonce1 = extranonce.extranonce1;
                    self.extranonce2_size = extranonce.extranonce2_size;
                }
                ServerLine::Reconnect => return Err(std::io::Error::other("the server asked to reconnect")),
                ServerLine::Ping { id } => client::pong(&mut self.out, &id),
                ServerLine::GetVersion { id } => client::version(&mut self.out, &id, "checkweigh-cpu"),
                ServerLine::Response(response) => self.handle_response(&response),
                ServerLine::Other(_) => {}
            }
        }
        self.lines = lines;
        Ok(())
    }

    fn handle_response(&mut self, response: &client::Response) {
        match response.id {
            Some(CONFIGURE) => self.mask = response.granted_mask().unwrap_or(0),
            Some(SUBSCRIBE) => {
                if let Some(subscribed) = response.subscribed() {
                    self.extranonce1 = subscribed.extranonce.extranonce1;
                    self.extranonce2_size = subscribed.extranonce.extranonce2_size;
                }
            }
            Some(id) => {
                if let Some((_, sent)) = self.unanswered.pop_front_if(|(unanswered, _)| *unanswered == id) {
                    self.figures.share_ack.record(sent.elapsed());
                }
            }
            None => {}
        }
    }

    fn start(&mut self, notify: Notify) {
        let target = target_of(self.difficulty);
        self.extranonce2 += 1;
        let mut grind = Grind { notify, target, header: [0; 80], extranonce2: Vec::new(), nonce: 0 };
        grind.build(&self.extranonce1, self.extranonce2, self.extranonce2_size);
        self.work = Some(grind);
    }

    /// Hashes one slice, and submits what it finds. Returns the number of hashes.
    fn grind(&mut self) -> u64 {
        // A slice is short enough that new work never waits for it, whatever the speed.
        let slice = (self.options.hash_rate * SLICE.as_secs_f64() * 8.0).clamp(64.0, 16_384.0) as u64;
        let Some(work) = &mut self.work else { return slice };
        if self.unanswered.len() >= MAX_UNANSWERED {
            return slice;
        }
        let mut hashed = 0;
        while hashed < slice {
            if work.nonce == u32::MAX {
                self.extranonce2 += 1;
                work.build(&self.extranonce1, self.extranonce2, self.extranonce2_size);
            }
            work.nonce += 1;
            hashed += 1;
            if work.is_solution() {
                let id = self.next_id;
                self.next_id += 1;
                let solution = client::Solution {
                    extranonce2: &work.extranonce2,
                    ntime: work.notify.ntime,
                    nonce: work.nonce,
                    version_rolling: (self.mask != 0)
                        .then_some(client::RolledVersion { mask: self.mask, bits: 0 }),
                };
                client::submit(&mut self.out, id, &self.options.user, &work.notify.job_id, &solution);
                self.unanswered.push_back((id, Instant::now()));
                break;
            }
        }
        hashed
    }
}

impl Grind {
    fn build(&mut self, extranonce1: &[u8], extranonce2: u64, size: usize) {
        let bytes = extranonce2.to_be_bytes();
        self.extranonce2 = vec![0; size.saturating_sub(8)];
        self.extranonce2.extend_from_slice(&bytes[8 - size.min(8)..]);
        self.nonce = 0;
        let solution = client::Solution {
            extranonce2: &self.extranonce2,
            ntime: self.notify.ntime,
            nonce: 0,
            version_rolling: None,
        };
        self.header = self.notify.header(extranonce1, &solution);
    }

    fn is_solution(&mut self) -> bool {
        use sha2::{Digest, Sha256};
        self.header[76..].copy_from_slice(&self.nonce.to_le_bytes());
        let hash: [u8; 32] = Sha256::digest(Sha256::digest(self.header)).into();
        Target::from_le_bytes(hash) <= self.target
    }
}

/// The target of a difficulty that a pool advertised, rounded to the harder power of two: what is submitted is
/// never too easy.
fn target_of(difficulty: f64) -> Target {
    let exponent = Difficulty(difficulty).0.log2().ceil() as i32;
    Target::from_difficulty_exponent(exponent)
}

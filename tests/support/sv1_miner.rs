//! SV1 miners that submit as fast as they are answered, and judge every answer: a share may only be refused as stale
//! when it left before its miner could have read the job that made it so.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use checkweigh::shutdown::Shutdown;
use sha2::{Digest, Sha256};
use stratum::Target;
use stratum::sv1::client::{self, Notify, Response, ServerLine, Solution};
use stratum::sv1::line::LineBuffer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// Hashes between two looks at the network.
const SLICE: u32 = 4096;

/// The first id of a share.
const FIRST_SHARE: u64 = 10;

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// How a miner behaves.
#[derive(Clone, Debug)]
pub(crate) struct MinerOptions {
    pub(crate) server: SocketAddr,
    pub(crate) user: String,
    /// Shares that it submits before it waits for an answer.
    pub(crate) window: usize,
    /// The shortest time between two submissions; none at full speed.
    pub(crate) pause: Option<Duration>,
}

/// What a miner has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) submitted: u64,
    pub(crate) accepted: u64,
    /// Refused as stale, rightly.
    pub(crate) stale: u64,
    /// Anything that must not happen: the first few, in words.
    pub(crate) wrong: Vec<String>,
    pub(crate) jobs: u64,
    pub(crate) clean_jobs: u64,
    /// Why its connection ended.
    pub(crate) ended: Option<String>,
}

/// A miner in the background.
pub(crate) struct Miner {
    seen: watch::Receiver<Seen>,
}

impl Miner {
    /// Starts it. It mines until `stop` is asked for or it is closed.
    pub(crate) fn start(options: MinerOptions, stop: Shutdown) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            let (seen, ended) = mine(&options, stop, Some(&sender)).await;
            sender.send_replace(Seen { ended: ended.err(), ..seen });
        });
        Miner { seen }
    }

    /// What it has seen until now.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until it has stopped, and returns all that it has seen. Before that, every share may be answered for a
    /// moment and the next one submitted.
    pub(crate) async fn stopped(&mut self, limit: Duration) -> Seen {
        let stopped = async { while self.seen.changed().await.is_ok() {} };
        timeout(limit, stopped).await.expect("it stops in time");
        let seen = self.seen();
        assert_eq!((seen.ended.as_ref(), seen.submitted), (None, seen.accepted + seen.stale));
        assert_eq!(seen.wrong, [""; 0]);
        seen
    }

    /// Waits until it has seen what `what` says.
    pub(crate) async fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        is_met: impl Fn(&Seen) -> bool,
    ) -> Seen {
        let met = timeout(limit, self.seen.wait_for(|seen| seen.ended.is_some() || is_met(seen))).await;
        let in_time = met.map(|seen| seen.expect("the miner's task runs").clone());
        let Ok(seen) = in_time else { panic!("not in time: {what}; {:?}", self.seen()) };
        assert_eq!(seen.ended, None, "while waiting for: {what}");
        assert_eq!(seen.wrong, [""; 0], "while waiting for: {what}");
        seen
    }
}

/// Mines until `stop` is asked for and every share is answered, or until something ends it.
pub(crate) async fn mine(
    options: &MinerOptions,
    mut stop: Shutdown,
    publish: Option<&watch::Sender<Seen>>,
) -> (Seen, Result<(), String>) {
    let mut session = match Session::connect(options).await {
        Ok(session) => session,
        Err(error) => return (Seen::default(), Err(format!("connecting: {error}"))),
    };
    let ended = loop {
        let stopping = stop.is_requested();
        if stopping && session.unanswered.is_empty() {
            break Ok(());
        }
        if let Err(ended) = session.turn(&mut stop, stopping).await {
            break Err(ended);
        }
        if let Some(publish) = publish {
            publish.send_replace(session.seen.clone());
        }
    };
    (session.seen, ended)
}

struct Session<'a> {
    options: &'a MinerOptions,
    stream: TcpStream,
    lines: LineBuffer,
    buffer: Vec<u8>,
    out: Vec<u8>,
    pace: Option<Interval>,
    extranonce1: Vec<u8>,
    extranonce2_size: usize,
    extranonce2: u64,
    target: Target,
    work: Option<Work>,
    next_id: u64,
    /// Ids of shares without an answer, each with the clean jobs that were read when it left.
    unanswered: VecDeque<(u64, u64)>,
    seen: Seen,
}

struct Work {
    notify: Notify,
    target: Target,
    header: [u8; 80],
    extranonce2: Vec<u8>,
    nonce: u32,
}

impl<'a> Session<'a> {
    async fn connect(options: &'a MinerOptions) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(options.server).await?;
        stream.set_nodelay(true)?;
        let mut hello = Vec::new();
        client::subscribe(&mut hello, 1, "flood/1", None);
        client::authorize(&mut hello, 2, &options.user, "x");
        stream.write_all(&hello).await?;
        Ok(Session {
            options,
            stream,
            lines: LineBuffer::new(client::MAX_SERVER_LINE_BYTES),
            buffer: vec![0; 4096],
            out: Vec::new(),
            pace: options.pause.map(|pause| {
                let mut pace = interval(pause);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                pace
            }),
            extranonce1: Vec::new(),
            extranonce2_size: 0,
            extranonce2: 0,
            target: Target::MAX,
            work: None,
            next_id: FIRST_SHARE,
            unanswered: VecDeque::new(),
            seen: Seen::default(),
        })
    }

    /// Hashes a little if it may submit, else waits for the server.
    async fn turn(&mut self, stop: &mut Shutdown, stopping: bool) -> Result<(), String> {
        let may_submit = !stopping && self.work.is_some() && self.unanswered.len() < self.options.window;
        if !may_submit {
            return tokio::select! {
                read = self.stream.read(&mut self.buffer) => self.take(read),
                () = stop.requested(), if !stopping => Ok(()),
            };
        }
        if let Some(pace) = &mut self.pace {
            tokio::select! {
                biased;
                read = self.stream.read(&mut self.buffer) => return self.take(read),
                _ = pace.tick() => {}
            }
        }
        // What has arrived comes first: it may be a new job.
        match self.stream.try_read(&mut self.buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            read => return self.take(read),
        }
        self.grind();
        if self.out.is_empty() {
            tokio::task::yield_now().await;
        } else {
            self.stream.write_all(&self.out).await.map_err(|error| format!("writing: {error}"))?;
            self.out.clear();
        }
        Ok(())
    }

    fn take(&mut self, read: std::io::Result<usize>) -> Result<(), String> {
        let length = read.map_err(|error| format!("reading: {error}"))?;
        if length == 0 {
            return Err("the server closed the connection".to_owned());
        }
        let mut lines = std::mem::take(&mut self.lines);
        let buffer = std::mem::take(&mut self.buffer);
        let mut bytes = &buffer[..length];
        while let Some(line) = lines.next_line(&mut bytes).map_err(|error| error.to_string())? {
            let text = String::from_utf8_lossy(line).into_owned();
            match ServerLine::parse(line).map_err(|error| format!("{error}: {text}"))? {
                ServerLine::Notify(notify) => self.start(notify),
                ServerLine::SetDifficulty(difficulty) => {
                    // Difficulties are powers of two.
                    self.target = Target::from_difficulty_exponent(difficulty.log2().round() as i32);
                }
                ServerLine::Response(response) => self.answered(&response)?,
                other => return Err(format!("unexpected: {other:?}")),
            }
        }
        self.lines = lines;
        self.buffer = buffer;
        Ok(())
    }

    fn start(&mut self, notify: Notify) {
        self.seen.jobs += 1;
        self.seen.clean_jobs += u64::from(notify.clean);
        let (extranonce2, header) = self.next_header(&notify);
        self.work = Some(Work { notify, target: self.target, header, extranonce2, nonce: 0 });
    }

    fn next_header(&mut self, notify: &Notify) -> (Vec<u8>, [u8; 80]) {
        self.extranonce2 += 1;
        let extranonce2 = self.extranonce2.to_be_bytes()[8 - self.extranonce2_size..].to_vec();
        let solution =
            Solution { extranonce2: &extranonce2, ntime: notify.ntime, nonce: 0, version_rolling: None };
        let header = notify.header(&self.extranonce1, &solution);
        (extranonce2, header)
    }

    fn answered(&mut self, response: &Response) -> Result<(), String> {
        if response.id == Some(1) {
            let subscribed = response.subscribed().ok_or("no answer to mining.subscribe")?;
            self.extranonce1 = subscribed.extranonce.extranonce1;
            self.extranonce2_size = subscribed.extranonce.extranonce2_size;
            return Ok(());
        }
        if response.id == Some(2) {
            return if response.accepted() { Ok(()) } else { Err("not authorised".to_owned()) };
        }
        let (id, clean_jobs) = self.unanswered.pop_front().ok_or("an answer that nobody waits for")?;
        if response.id != Some(id) {
            return Err(format!("{:?} was answered where {id} was next", response.id));
        }
        match &response.error {
            None => self.seen.accepted += 1,
            Some(error) if error.code == 21 && self.seen.clean_jobs > clean_jobs => self.seen.stale += 1,
            Some(error) if self.seen.wrong.len() < 8 => {
                let clean = self.seen.clean_jobs;
                self.seen.wrong.push(format!("share {id}: {error:?}, {clean_jobs} of {clean} clean jobs"));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn grind(&mut self) {
        let Some(mut work) = self.work.take() else { return };
        for _ in 0..SLICE {
            if work.nonce == u32::MAX {
                (work.extranonce2, work.header) = self.next_header(&work.notify);
                work.nonce = 0;
            }
            work.nonce += 1;
            work.header[76..].copy_from_slice(&work.nonce.to_le_bytes());
            let hash: [u8; 32] = Sha256::digest(Sha256::digest(work.header)).into();
            if Target::from_le_bytes(hash) <= work.target {
                let solution = Solution {
                    extranonce2: &work.extranonce2,
                    ntime: work.notify.ntime,
                    nonce: work.nonce,
                    version_rolling: None,
                };
                client::submit(
                    &mut self.out,
                    self.next_id,
                    &self.options.user,
                    &work.notify.job_id,
                    &solution,
                );
                self.unanswered.push_back((self.next_id, self.seen.clean_jobs));
                self.next_id += 1;
                self.seen.submitted += 1;
                break;
            }
        }
        self.work = Some(work);
    }
}

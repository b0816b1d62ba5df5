//! A source of work, a registry, and a miner that grinds its shares from what it was sent and nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mining_server::record::{RejectReason, Verdict};
use mining_server::sv1::{Foreseen, Sv1Connection};
use mining_server::{
    CloseReason, Event, Introduction, JobBook, Output, Registry, Settings, ShareEvent, ShareRecord, ShareUse,
    Work,
};
use serde_json::Value;
use stratum::extranonce::Exhausted;
use stratum::job::{JobParts, RESERVED_SIZE};
use stratum::sv1::client::{self, Notify, RolledVersion, ServerLine, Solution};
use stratum::vardiff::VardiffConfig;
use stratum::{
    ChannelId, ConnectionId, DeviceId, Epoch, JobNumber, JobOrigin, Now, Target, Tip, TipNumber,
    UpstreamChannelId, UpstreamId, UpstreamJobId,
};

/// The difficulty exponent that devices of unknown speed start at: 256 hashes a share.
pub(crate) const INITIAL: i32 = -24;

/// The difficulty exponent of the upstream's target, the hardest that a device is given.
pub(crate) const UPSTREAM: i32 = -18;

/// The number of a source's first job, as a process would choose it.
pub(crate) const FIRST_JOB: JobNumber = JobNumber(1_700_000_000_000 << 16 | 1);

/// The bytes that the connection under test has as extranonce1.
pub(crate) const RESERVED: [u8; RESERVED_SIZE] = [0x08, 0x00, 0x00, 0x02];

pub(crate) const FULL_MASK: u32 = 0x1fff_e000;

pub(crate) const CONFIGURE: &str = r#"{"id": 1, "method": "mining.configure", "params": [["version-rolling"], {"version-rolling.mask": "ffffffff"}]}"#;
pub(crate) const SUBSCRIBE: &str = r#"{"id": 2, "method": "mining.subscribe", "params": ["cgminer/4.11.1"]}"#;
pub(crate) const AUTHORIZE: &str =
    r#"{"id": 3, "method": "mining.authorize", "params": ["account.rig", "x"]}"#;
pub(crate) const SUBSCRIBED: &str =
    r#"[[["mining.set_difficulty","0000000000000007"],["mining.notify","0000000000000007"]],"08000002",4]"#;

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn start_of_time() -> Now {
    Now::simulated(seconds(1_700_000_000), seconds(1000))
}

pub(crate) fn settings() -> Settings {
    Settings {
        share_use: ShareUse::Forward,
        vardiff_enabled: true,
        minimum_is_firm: false,
        vardiff: VardiffConfig { shares_per_minute: 8.0, minimum_exponent: -32, initial_exponent: INITIAL },
        channel_per_device: false,
        proxy_protocol: false,
        share_batch_size: 1,
    }
}

/// The answer to a request, as the wire has it.
pub(crate) fn answer(id: &str, result: &str) -> String {
    format!(r#"{{"id":{id},"result":{result},"error":null}}"#)
}

pub(crate) fn set_difficulty(exponent: i32) -> String {
    let difficulty = 2f64.powi(exponent);
    format!(r#"{{"id":null,"method":"mining.set_difficulty","params":[{difficulty}]}}"#)
}

pub(crate) fn set_version_mask(mask: u32) -> String {
    format!(r#"{{"id":null,"method":"mining.set_version_mask","params":["{mask:08x}"]}}"#)
}

/// An upstream, as far as miners can tell.
pub(crate) struct Source {
    pub(crate) book: JobBook,
    epoch: u32,
    tip: u64,
    upstream_jobs: u32,
    pub(crate) version: u32,
    pub(crate) version_rolling_allowed: bool,
    pub(crate) upstream_exponent: i32,
    pub(crate) nbits: u32,
    pub(crate) rollable_size: usize,
    pub(crate) coinbase_prefix: Vec<u8>,
    pub(crate) coinbase_suffix: Vec<u8>,
    pub(crate) merkle_path: Vec<[u8; 32]>,
    /// The upstream takes no share of the jobs before the next one.
    pub(crate) voids_others: bool,
}

impl Source {
    pub(crate) fn new() -> Self {
        Source::starting_at(FIRST_JOB)
    }

    pub(crate) fn starting_at(first: JobNumber) -> Self {
        let mut book = JobBook::new(first);
        book.set_live(true);
        Source {
            book,
            epoch: 1,
            tip: 1,
            upstream_jobs: 0,
            version: 0x2000_0000,
            version_rolling_allowed: true,
            upstream_exponent: UPSTREAM,
            nbits: 0x1d00_ffff,
            rollable_size: 12,
            coinbase_prefix: b"coinbase, then the upstream's prefix".to_vec(),
            coinbase_suffix: b"suffix".to_vec(),
            merkle_path: vec![[1; 32], [2; 32]],
            voids_others: false,
        }
    }

    /// A job on the present tip.
    pub(crate) fn job(&mut self, now: Now) -> Arc<Work> {
        let clean = std::mem::take(&mut self.voids_others);
        let clean = clean
            || self.book.work().is_none_or(|work| {
                let job = &work.active().job;
                (job.epoch, job.tip.number) != (Epoch(self.epoch), TipNumber(self.tip))
            });
        self.upstream_jobs += 1;
        let upstream_target = Target::from_difficulty_exponent(self.upstream_exponent);
        self.book.set_epoch(Epoch(self.epoch));
        self.book.set_upstream_target(upstream_target);
        self.book.add(JobParts {
            number: self.book.next_number(),
            epoch: Epoch(self.epoch),
            origin: JobOrigin {
                upstream: UpstreamId(3),
                channel: UpstreamChannelId(4),
                job: UpstreamJobId(self.upstream_jobs),
                template: None,
            },
            tip: Tip {
                number: TipNumber(self.tip),
                previous_hash: [self.tip as u8; 32],
                nbits: self.nbits,
                network_target: Target::from_compact(self.nbits),
            },
            clean,
            version: self.version,
            version_rolling_allowed: self.version_rolling_allowed,
            min_ntime: now.unix_seconds(),
            coinbase_prefix: self.coinbase_prefix.as_slice().into(),
            coinbase_suffix: [&self.upstream_jobs.to_le_bytes()[..], &self.coinbase_suffix].concat().into(),
            rollable_size: self.rollable_size,
            merkle_path: self.merkle_path.as_slice().into(),
            upstream_target,
            received: now,
        });
        self.work()
    }

    /// A job on a new tip.
    pub(crate) fn block(&mut self, now: Now) -> Arc<Work> {
        self.tip += 1;
        self.job(now)
    }

    /// The upstream's channel was opened anew, on the same tip.
    pub(crate) fn redialled(&mut self, now: Now) -> Arc<Work> {
        self.epoch += 1;
        self.job(now)
    }

    pub(crate) fn work(&self) -> Arc<Work> {
        Arc::new(self.book.work().expect("a job was added"))
    }
}

/// Numbers devices, and knows which reserved values came back.
#[derive(Default)]
pub(crate) struct FakeRegistry {
    devices: HashMap<String, DeviceId>,
    /// Who mines on what.
    pub(crate) seats: HashSet<(ChannelId, DeviceId)>,
    /// What was said by those who joined: worker name, address, device id, user agent.
    pub(crate) introductions: Vec<[String; 4]>,
    /// How often a share was noted.
    pub(crate) signs: usize,
    /// The device that the next share is found to be of.
    pub(crate) switch: Option<DeviceId>,
    pub(crate) given_back: Vec<[u8; RESERVED_SIZE]>,
}

impl Registry for FakeRegistry {
    fn join(&mut self, channel: ChannelId, introduction: &Introduction<'_>) -> DeviceId {
        let Introduction { worker_name, address, device_id, user_agent } = *introduction;
        let next = DeviceId(self.devices.len() as u32 + 40);
        let device = *self.devices.entry(worker_name.to_owned()).or_insert(next);
        assert!(self.seats.insert((channel, device)), "a machine joins once");
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        self.introductions.push([worker_name, &address, device_id, user_agent].map(str::to_owned));
        device
    }

    fn note_share(&mut self, channel: ChannelId, device: DeviceId, _: Now) -> DeviceId {
        self.signs += 1;
        let Some(other) = self.switch.take() else { return device };
        assert!(self.seats.remove(&(channel, device)), "who mines has joined");
        self.seats.insert((channel, other));
        other
    }

    fn leave(&mut self, channel: ChannelId, device: DeviceId) {
        assert!(self.seats.remove(&(channel, device)), "who leaves has joined");
    }

    fn take_reserved(&mut self) -> Result<[u8; RESERVED_SIZE], Exhausted> {
        unreachable!("whoever makes an SV1 connection takes its value")
    }

    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]) {
        self.given_back.push(reserved);
    }
}

/// A connection, and what a miner would have understood of its lines.
pub(crate) struct Rig {
    pub(crate) connection: Sv1Connection,
    pub(crate) registry: FakeRegistry,
    pub(crate) now: Now,
    pub(crate) source: Source,
    pub(crate) events: Vec<Event>,
    shares: Vec<ShareEvent>,
    pub(crate) closed: Option<CloseReason>,
    /// The jobs that were sent, with the difficulty that the miner was told before each.
    pub(crate) jobs: Vec<(Notify, f64)>,
    pub(crate) difficulty: f64,
    pub(crate) mask: u32,
    extranonce1: Vec<u8>,
}

impl Rig {
    /// A connection that was just accepted, with nothing to mine yet.
    pub(crate) fn new(settings: Settings) -> Self {
        Rig::with(settings, RESERVED, start_of_time())
    }

    pub(crate) fn with(settings: Settings, reserved: [u8; RESERVED_SIZE], now: Now) -> Self {
        Rig {
            connection: Sv1Connection::new(Arc::new(settings), ConnectionId(7), reserved, now),
            registry: FakeRegistry::default(),
            now,
            source: Source::new(),
            events: Vec::new(),
            shares: Vec::new(),
            closed: None,
            jobs: Vec::new(),
            difficulty: f64::NAN,
            mask: 0,
            extranonce1: reserved.to_vec(),
        }
    }

    /// A connection that knows of a job and waits for its miner.
    pub(crate) fn with_work(settings: Settings) -> Self {
        let mut rig = Rig::new(settings);
        assert!(rig.job().is_empty(), "a silent miner is sent nothing");
        rig
    }

    /// A miner that subscribed and authorised, without version rolling, and has its first job.
    pub(crate) fn mining(settings: Settings) -> Self {
        let mut rig = Rig::with_work(settings);
        rig.send(SUBSCRIBE);
        rig.send(AUTHORIZE);
        assert_eq!(rig.jobs.len(), 1);
        rig
    }

    /// The same with version rolling.
    pub(crate) fn rolling(settings: Settings) -> Self {
        let mut rig = Rig::with_work(settings);
        for line in [CONFIGURE, SUBSCRIBE, AUTHORIZE] {
            rig.send(line);
        }
        assert_eq!((rig.jobs.len(), rig.mask), (1, FULL_MASK));
        rig
    }

    /// Sends one line and returns what is answered.
    pub(crate) fn send(&mut self, line: &str) -> Vec<String> {
        self.send_bytes(format!("{line}\n").as_bytes())
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut out = Output::default();
        self.connection.handle_bytes(bytes, self.now, &mut self.registry, &mut out);
        self.take(out)
    }

    /// Sends bytes that were looked at ahead.
    pub(crate) fn send_foreseen(&mut self, bytes: &[u8], foreseen: &[Foreseen<'_>]) -> Vec<String> {
        let mut out = Output::default();
        self.connection.handle_read(bytes, foreseen, self.now, &mut self.registry, &mut out);
        self.take(out)
    }

    /// The source has a job on the present tip.
    pub(crate) fn job(&mut self) -> Vec<String> {
        let work = self.source.job(self.now);
        self.work(&work)
    }

    /// The source has a job on a new tip.
    pub(crate) fn block(&mut self) -> Vec<String> {
        let work = self.source.block(self.now);
        self.work(&work)
    }

    pub(crate) fn work(&mut self, work: &Arc<Work>) -> Vec<String> {
        let mut out = Output::default();
        self.connection.handle_work(work, self.now, &mut out);
        self.take(out)
    }

    /// Lets time pass, with every timeout at its time.
    pub(crate) fn wait(&mut self, duration: Duration) -> Vec<String> {
        let end = self.now.plus(duration);
        let mut lines = Vec::new();
        while self.closed.is_none() && self.connection.next_timeout() <= end.monotonic {
            let step = self.connection.next_timeout().saturating_sub(self.now.monotonic);
            self.now = self.now.plus(step);
            let mut out = Output::default();
            self.connection.handle_timeout(self.now, &mut out);
            lines.extend(self.take(out));
            assert!(
                self.closed.is_some() || self.connection.next_timeout() > self.now.monotonic,
                "a timeout is done once"
            );
        }
        self.now = end;
        lines
    }

    fn take(&mut self, mut out: Output) -> Vec<String> {
        self.shares.append(&mut out.shares);
        self.events.append(&mut out.events);
        self.closed = self.closed.take().or(out.close.take());
        let text = String::from_utf8(out.bytes).expect("text");
        assert!(text.is_empty() || text.ends_with('\n'), "a line without its end: {text}");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for line in &lines {
            self.understand(line);
        }
        lines
    }

    fn understand(&mut self, line: &str) {
        match ServerLine::parse(line.as_bytes()).expect("a line that miners understand") {
            ServerLine::Notify(notify) => self.jobs.push((notify, self.difficulty)),
            ServerLine::SetDifficulty(difficulty) => self.difficulty = difficulty,
            ServerLine::SetVersionMask(mask) => self.mask = mask,
            ServerLine::Response(response) => {
                if let Some(mask) = response.granted_mask() {
                    self.mask = mask;
                }
                if let Some(subscribed) = response.subscribed() {
                    assert_eq!(subscribed.extranonce.extranonce1, self.extranonce1);
                    assert_eq!(subscribed.extranonce.extranonce2_size, 4);
                }
            }
            other => panic!("no miner asked for {other:?}"),
        }
    }

    /// The newest job.
    pub(crate) fn newest(&self) -> Notify {
        self.jobs.last().expect("a job was sent").0.clone()
    }

    /// The exponent of the difficulty that the newest job came with.
    pub(crate) fn exponent(&self) -> i32 {
        self.jobs.last().expect("a job was sent").1.log2() as i32
    }

    /// Grinds a share of `job` that meets 2^`exponent`.
    pub(crate) fn grind(&self, job: &Notify, exponent: i32) -> Found {
        self.grind_where(job, Grind { exponent, ..Grind::default() })
    }

    pub(crate) fn grind_where(&self, job: &Notify, wanted: Grind) -> Found {
        let rolled = wanted.rolled;
        let mut found = Found {
            job_id: job.job_id.clone(),
            extranonce2: wanted.extranonce2,
            ntime: job.ntime.wrapping_add(wanted.seconds),
            nonce: wanted.first_nonce,
            rolled,
        };
        loop {
            let hash = job.hash(&self.extranonce1, &found.solution());
            let missed = wanted.missing.is_some_and(|harder| meets(&hash, harder));
            if meets(&hash, wanted.exponent) && !missed {
                return found;
            }
            found.nonce += 1;
        }
    }

    /// Submits a share as cgminer does, and returns the code of the refusal, or 0.
    pub(crate) fn submit(&mut self, found: &Found) -> i64 {
        self.submit_line(&found.line("4"))
    }

    /// Sends a submission and returns the code of the refusal, or 0.
    pub(crate) fn submit_line(&mut self, line: &str) -> i64 {
        let answers = self.send(line);
        assert_eq!(answers.len(), 1, "one answer: {answers:?}");
        let answer: Value = serde_json::from_str(&answers[0]).expect("JSON");
        match &answer["error"] {
            Value::Null => {
                assert_eq!(answer["result"], Value::Bool(true));
                0
            }
            error => {
                assert_eq!(answer["result"], Value::Null);
                assert!(error[1].is_string() && error[2].is_null(), "[code, text, null]: {error}");
                error[0].as_i64().expect("a code")
            }
        }
    }

    /// Takes the shares that were judged since the last time.
    pub(crate) fn shares(&mut self) -> Vec<ShareEvent> {
        std::mem::take(&mut self.shares)
    }

    /// The record of the one share that was judged since the last time.
    pub(crate) fn record(&mut self) -> ShareRecord {
        let mut shares = self.shares();
        assert_eq!(shares.len(), 1, "one record a verdict");
        shares.remove(0).record
    }

    pub(crate) fn notices(&self) -> Vec<&str> {
        let mut notices = Vec::new();
        for event in &self.events {
            if let Event::Notice(notice) = event {
                notices.push(notice.as_str());
            }
        }
        notices
    }
}

/// Which share is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Grind {
    /// The difficulty exponent that it meets.
    pub(crate) exponent: i32,
    /// One that it misses.
    pub(crate) missing: Option<i32>,
    pub(crate) extranonce2: [u8; 4],
    /// Seconds after the job's time.
    pub(crate) seconds: u32,
    pub(crate) rolled: Option<RolledVersion>,
    pub(crate) first_nonce: u32,
}

impl Default for Grind {
    fn default() -> Self {
        Grind {
            exponent: INITIAL,
            missing: None,
            extranonce2: [0, 0, 0, 1],
            seconds: 0,
            rolled: None,
            first_nonce: 0,
        }
    }
}

/// A share that was found by hashing.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) job_id: String,
    pub(crate) extranonce2: [u8; 4],
    pub(crate) ntime: u32,
    pub(crate) nonce: u32,
    pub(crate) rolled: Option<RolledVersion>,
}

impl Found {
    fn solution(&self) -> Solution<'_> {
        Solution {
            extranonce2: &self.extranonce2,
            ntime: self.ntime,
            nonce: self.nonce,
            version_rolling: self.rolled,
        }
    }

    /// The submission with this id.
    pub(crate) fn line(&self, id: &str) -> String {
        let mut line = Vec::new();
        client::submit(&mut line, 4_321, "account.rig", &self.job_id, &self.solution());
        let line = String::from_utf8(line).expect("text");
        line.trim_end().replace("\"id\":4321", &format!("\"id\":{id}"))
    }

    /// The submission with these texts in the place of its parameters from extranonce2 on.
    pub(crate) fn with_texts(&self, texts: &[&str]) -> String {
        let texts = texts.join("\",\"");
        format!(r#"{{"id":4,"method":"mining.submit","params":["account.rig","{}","{texts}"]}}"#, self.job_id)
    }
}

/// Whether a hash meets a difficulty of 2^`exponent`, -32 to 0, reckoned from its top 64 bits.
fn meets(hash: &[u8; 32], exponent: i32) -> bool {
    let top = u64::from_le_bytes(hash[24..].try_into().expect("8 bytes"));
    exponent == -32 || top < 0xffff << (16 - exponent)
}

pub(crate) fn rejected(reason: RejectReason) -> Verdict {
    Verdict::Rejected(reason)
}

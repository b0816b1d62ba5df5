//! A source of work, a registry and a driver for one connection.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mining_server::record::Verdict;
use mining_server::sv2::Sv2Connection;
use mining_server::{
    CloseReason, CustomJobRequest, Event, Introduction, JobBook, Output, PublishedJob, Registry, Settings,
    ShareEvent, ShareUse, Work,
};
use stratum::extranonce::Exhausted;
use stratum::hash::{Hash, sha256d};
use stratum::job::{JobParts, RESERVED_SIZE};
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::vardiff::VardiffConfig;
use stratum::{
    ChannelId, ConnectionId, DeviceId, Epoch, HashRate, Job, JobId, JobNumber, JobOrigin, Now, RequestId,
    SequenceNumber, Target, Tip, TipNumber, UpstreamChannelId, UpstreamId, UpstreamJobId,
};

/// The difficulty exponent that devices of unknown speed start at: 256 hashes a share.
pub(crate) const INITIAL: i32 = -24;

pub(crate) const REQUIRES_STANDARD_JOBS: u32 = 1;
pub(crate) const REQUIRES_WORK_SELECTION: u32 = 2;
pub(crate) const REQUIRES_VERSION_ROLLING: u32 = 4;

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn settings() -> Settings {
    Settings {
        share_use: ShareUse::Forward,
        vardiff_enabled: true,
        minimum_is_firm: false,
        vardiff: VardiffConfig { shares_per_minute: 8.0, minimum_exponent: -30, initial_exponent: INITIAL },
        channel_per_device: false,
        proxy_protocol: false,
        share_batch_size: 3,
    }
}

/// An upstream, as far as miners can tell.
pub(crate) struct Source {
    book: JobBook,
    epoch: u32,
    tip: u64,
    upstream_jobs: u32,
    pub(crate) prefix: Vec<u8>,
    pub(crate) rollable_size: usize,
    pub(crate) version_rolling_allowed: bool,
    pub(crate) upstream_target: Target,
    pub(crate) nbits: u32,
    /// The upstream takes no share of the jobs before the next one.
    pub(crate) voids_others: bool,
}

impl Source {
    pub(crate) fn new() -> Self {
        let mut book = JobBook::new(JobNumber(0x1_0000_0001));
        book.set_live(true);
        book.set_epoch(Epoch(1));
        Source {
            book,
            epoch: 1,
            tip: 1,
            upstream_jobs: 0,
            prefix: b"upstream prefix".to_vec(),
            rollable_size: 12,
            version_rolling_allowed: true,
            upstream_target: Target::from_difficulty_exponent(-10),
            nbits: 0x1d00_ffff,
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
        let coinbase_prefix = [b"coinbase, then ", &self.prefix[..]].concat();
        self.book.set_epoch(Epoch(self.epoch));
        self.book.set_upstream_target(self.upstream_target);
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
            version: 0x2000_0000,
            version_rolling_allowed: self.version_rolling_allowed,
            min_ntime: now.unix_seconds(),
            coinbase_prefix: coinbase_prefix.into(),
            coinbase_suffix: self.upstream_jobs.to_le_bytes().into(),
            rollable_size: self.rollable_size,
            merkle_path: [[1; 32], [2; 32]].into(),
            upstream_target: self.upstream_target,
            received: now,
        });
        self.work()
    }

    /// A job for one connection alone, with a coinbase of its own.
    pub(crate) fn custom_job(&mut self, rollable_size: usize, now: Now) -> Arc<PublishedJob> {
        let number = self.book.take_number();
        let tip = self.work().active().job.tip;
        let job = Job::new(JobParts {
            number,
            epoch: Epoch(self.epoch),
            origin: JobOrigin {
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(0),
                job: UpstreamJobId(0),
                template: None,
            },
            tip,
            clean: false,
            version: 0x2000_0000,
            version_rolling_allowed: true,
            min_ntime: now.unix_seconds(),
            coinbase_prefix: (*b"a miner's own coinbase").into(),
            coinbase_suffix: number.0.to_le_bytes().into(),
            rollable_size,
            merkle_path: [[7; 32]].into(),
            upstream_target: Target::MAX,
            received: now,
        });
        Arc::new(PublishedJob { job, notify: None })
    }

    /// A job on a new tip.
    pub(crate) fn block(&mut self, now: Now) -> Arc<Work> {
        self.tip += 1;
        self.job(now)
    }

    /// The upstream's channel was opened anew: the tip is the same and everything else may be another.
    pub(crate) fn redialled(&mut self, prefix: &[u8], rollable_size: usize, now: Now) -> Arc<Work> {
        self.epoch += 1;
        self.prefix = prefix.to_vec();
        self.rollable_size = rollable_size;
        self.job(now)
    }

    pub(crate) fn set_live(&mut self, live: bool) -> Arc<Work> {
        self.book.set_live(live);
        self.work()
    }

    pub(crate) fn work(&self) -> Arc<Work> {
        Arc::new(self.book.work().expect("a job was added"))
    }
}

/// Hands out reserved values and panics when one is held twice or given back twice.
#[derive(Default)]
pub(crate) struct FakeRegistry {
    next: u32,
    free: Vec<[u8; RESERVED_SIZE]>,
    pub(crate) held: HashSet<[u8; RESERVED_SIZE]>,
    pub(crate) limit: Option<usize>,
    devices: HashMap<String, DeviceId>,
    /// Who mines on what.
    pub(crate) seats: HashSet<(ChannelId, DeviceId)>,
    /// What was said by those who joined: worker name, address, device id, user agent.
    pub(crate) introductions: Vec<[String; 4]>,
    /// How often a share was noted.
    pub(crate) signs: usize,
    /// The device that the next share is found to be of.
    pub(crate) switch: Option<DeviceId>,
}

impl Registry for FakeRegistry {
    fn join(&mut self, channel: ChannelId, introduction: &Introduction<'_>) -> DeviceId {
        let Introduction { worker_name, address, device_id, user_agent } = *introduction;
        let next = DeviceId(self.devices.len() as u32);
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
        if self.limit.is_some_and(|limit| self.held.len() >= limit) {
            return Err(Exhausted { limit: self.held.len() as u64 });
        }
        let reserved = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            (0xa000_0000 + self.next).to_be_bytes()
        });
        assert!(self.held.insert(reserved), "held twice");
        Ok(reserved)
    }

    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]) {
        assert!(self.held.remove(&reserved), "not held");
        self.free.push(reserved);
    }
}

/// Drives one connection.
pub(crate) struct Driver {
    pub(crate) connection: Sv2Connection,
    pub(crate) registry: FakeRegistry,
    pub(crate) now: Now,
    /// Everything that came out and was not taken.
    pub(crate) events: Vec<Event>,
    pub(crate) shares: Vec<ShareEvent>,
    pub(crate) custom_jobs: Vec<CustomJobRequest>,
    pub(crate) closed: Option<CloseReason>,
}

impl Driver {
    pub(crate) fn new(settings: Settings) -> Self {
        let now = Now::simulated(seconds(1_700_000_000), seconds(1000));
        let connection = Sv2Connection::new(Arc::new(settings), ConnectionId(7), now);
        let registry = FakeRegistry::default();
        Driver {
            connection,
            registry,
            now,
            events: Vec::new(),
            shares: Vec::new(),
            custom_jobs: Vec::new(),
            closed: None,
        }
    }

    /// A connection that has been set up with these flags.
    pub(crate) fn set_up(settings: Settings, flags: u32) -> Self {
        let mut driver = Driver::new(settings);
        let answer = driver.send(setup_connection(flags));
        assert_eq!(answer, [SetupConnectionSuccess { used_version: 2, flags: 0 }.into()]);
        driver
    }

    /// Sends a message and returns what is answered at once.
    pub(crate) fn send(&mut self, message: impl Into<Message>) -> Vec<Message> {
        let mut frame = Vec::new();
        message.into().encode_frame(&mut frame).expect("tests send what fits");
        self.send_frame(&frame)
    }

    pub(crate) fn send_frame(&mut self, frame: &[u8]) -> Vec<Message> {
        let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a header");
        let mut out = Output::default();
        self.connection.handle_frame(
            FrameHeader::parse(*header),
            payload,
            self.now,
            &mut self.registry,
            &mut out,
        );
        self.take(out)
    }

    /// A connection that takes custom jobs, set up with these flags.
    pub(crate) fn taking_custom_jobs(settings: Settings, flags: u32) -> Self {
        let mut driver = Driver::new(settings.clone());
        driver.connection =
            Sv2Connection::new(Arc::new(settings), ConnectionId(7), driver.now).taking_custom_jobs();
        let answer = driver.send(setup_connection(flags));
        assert_eq!(answer, [SetupConnectionSuccess { used_version: 2, flags: 0 }.into()]);
        driver
    }

    /// The owner answers a request for a custom job.
    pub(crate) fn answer_custom_job(
        &mut self,
        channel: ChannelId,
        request_id: u32,
        answer: Result<Arc<PublishedJob>, &str>,
    ) -> Vec<Message> {
        let mut out = Output::default();
        self.connection.handle_custom_job(channel, RequestId(request_id), answer, &mut out);
        self.take(out)
    }

    pub(crate) fn work(&mut self, work: &Arc<Work>) -> Vec<Message> {
        self.work_of(None, work)
    }

    pub(crate) fn work_of(&mut self, channel: Option<ChannelId>, work: &Arc<Work>) -> Vec<Message> {
        let mut out = Output::default();
        self.connection.handle_work(channel, work, self.now, &mut out);
        self.take(out)
    }

    pub(crate) fn open_failed(&mut self, channel: ChannelId, reason: &str) -> Vec<Message> {
        let mut out = Output::default();
        self.connection.handle_open_failed(channel, reason, self.now, &mut out);
        self.take(out)
    }

    /// Lets time pass, with every timeout at its time.
    pub(crate) fn wait(&mut self, duration: Duration) -> Vec<Message> {
        let end = self.now.plus(duration);
        let mut messages = Vec::new();
        while self.closed.is_none() && self.connection.next_timeout() <= end.monotonic {
            let step = self.connection.next_timeout().saturating_sub(self.now.monotonic);
            self.now = self.now.plus(step);
            let mut out = Output::default();
            self.connection.handle_timeout(self.now, &mut out);
            messages.extend(self.take(out));
            assert!(
                self.closed.is_some() || self.connection.next_timeout() > self.now.monotonic,
                "a timeout is done once"
            );
        }
        self.now = end;
        messages
    }

    pub(crate) fn close(&mut self) {
        let mut out = Output::default();
        self.connection.handle_closed(self.now, &mut self.registry, &mut out);
        assert!(self.take(out).is_empty(), "nothing is sent to who has gone");
    }

    fn take(&mut self, mut out: Output) -> Vec<Message> {
        self.shares.append(&mut out.shares);
        self.events.append(&mut out.events);
        self.custom_jobs.append(&mut out.custom_jobs);
        self.closed = self.closed.take().or(out.close.take());
        messages(&out.bytes)
    }

    /// Takes the shares that were judged since the last time.
    pub(crate) fn shares(&mut self) -> Vec<ShareEvent> {
        std::mem::take(&mut self.shares)
    }

    /// Takes the hash rates published since the last time.
    pub(crate) fn rates(&mut self) -> Vec<(ChannelId, f64)> {
        let mut rates = Vec::new();
        self.events.retain(|event| match event {
            Event::HashRate { channel, rate: HashRate(rate) } => {
                rates.push((*channel, *rate));
                false
            }
            _ => true,
        });
        rates
    }

    pub(crate) fn notices(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Notice(_))).count()
    }

    /// Opens an extended channel and returns it with what came after the answer.
    pub(crate) fn open_extended(&mut self, request: OpenExtendedMiningChannel) -> (Opened, Vec<Message>) {
        let mut answer = self.send(request);
        let Message::OpenExtendedMiningChannelSuccess(success) = answer.remove(0) else {
            panic!("refused: {:?}", self.closed);
        };
        (Opened::from(success), answer)
    }

    /// Opens a standard channel and returns it with what came after the answer.
    pub(crate) fn open_standard(&mut self, request: OpenStandardMiningChannel) -> (Opened, Vec<Message>) {
        let mut answer = self.send(request);
        let Message::OpenStandardMiningChannelSuccess(success) = answer.remove(0) else {
            panic!("refused: {:?}", self.closed);
        };
        (Opened::from(success), answer)
    }
}

pub(crate) fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::parse(*header);
        let (payload, rest) = rest.split_at(header.payload_length as usize);
        messages.push(Message::decode(header, payload).expect("our own messages are well formed"));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame");
    messages
}

pub(crate) fn setup_connection(flags: u32) -> SetupConnection {
    SetupConnection {
        protocol: Protocol::Mining,
        min_version: 2,
        max_version: 2,
        flags,
        endpoint_host: "proxy.example".to_owned(),
        endpoint_port: 3336,
        vendor: "vendor".to_owned(),
        hardware_version: "hardware".to_owned(),
        firmware: String::new(),
        device_id: String::new(),
    }
}

/// A request like that of ESP-Miner 2.15, with no hash rate that says anything.
pub(crate) fn extended(request_id: u32) -> OpenExtendedMiningChannel {
    OpenExtendedMiningChannel {
        request_id: RequestId(request_id),
        user_identity: format!("account.{request_id}"),
        nominal_hash_rate: -1.0,
        max_target: Target::MAX,
        min_extranonce_size: 2,
    }
}

/// A request like that of `mining_device`, with no hash rate that says anything.
pub(crate) fn standard(request_id: u32) -> OpenStandardMiningChannel {
    OpenStandardMiningChannel {
        request_id: RequestId(request_id),
        user_identity: format!("account.{request_id}"),
        nominal_hash_rate: -1.0,
        max_target: Target::MAX,
    }
}

pub(crate) fn refused(request_id: u32, code: &str) -> Message {
    OpenMiningChannelError { request_id: RequestId(request_id), error_code: code.to_owned() }.into()
}

/// What a success says, of either kind.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) request_id: RequestId,
    pub(crate) channel: ChannelId,
    pub(crate) group: ChannelId,
    pub(crate) target: Target,
    pub(crate) prefix: Vec<u8>,
    /// Bytes to roll; none on a standard channel.
    pub(crate) size: usize,
}

impl From<OpenExtendedMiningChannelSuccess> for Opened {
    fn from(success: OpenExtendedMiningChannelSuccess) -> Self {
        Opened {
            request_id: success.request_id,
            channel: success.channel_id,
            group: success.group_channel_id,
            target: success.target,
            prefix: success.extranonce_prefix,
            size: usize::from(success.extranonce_size),
        }
    }
}

impl From<OpenStandardMiningChannelSuccess> for Opened {
    fn from(success: OpenStandardMiningChannelSuccess) -> Self {
        Opened {
            request_id: success.request_id,
            channel: success.channel_id,
            group: success.group_channel_id,
            target: success.target,
            prefix: success.extranonce_prefix,
            size: 0,
        }
    }
}

/// The job as messages for one channel: what every job of a connection must look like.
pub(crate) fn job_messages(opened: &Opened, address: ChannelId, job: &Job, clean: bool) -> Vec<Message> {
    let full_size = opened.prefix.len() + opened.size;
    let mut suffix = vec![0; job.rollable_size - full_size];
    suffix.extend_from_slice(&job.coinbase_suffix);
    let message = NewExtendedMiningJob {
        channel_id: address,
        job_id: JobId(job.number.0 as u32),
        min_ntime: (!clean).then_some(job.min_ntime),
        version: job.version,
        version_rolling_allowed: job.version_rolling_allowed,
        merkle_path: job.merkle_path.to_vec(),
        coinbase_tx_prefix: job.coinbase_prefix.to_vec(),
        coinbase_tx_suffix: suffix,
    };
    with_prev_hash(message.into(), address, job, clean)
}

/// The same for a standard channel.
pub(crate) fn standard_job_messages(opened: &Opened, job: &Job, clean: bool) -> Vec<Message> {
    let padding = job.rollable_size.saturating_sub(opened.prefix.len());
    let prefix = &opened.prefix[..opened.prefix.len().min(job.rollable_size)];
    let coinbase = [&job.coinbase_prefix[..], prefix, &vec![0; padding], &job.coinbase_suffix].concat();
    let message = NewMiningJob {
        channel_id: opened.channel,
        job_id: JobId(job.number.0 as u32),
        min_ntime: (!clean).then_some(job.min_ntime),
        version: job.version,
        merkle_root: folded(&coinbase, &job.merkle_path),
    };
    with_prev_hash(message.into(), opened.channel, job, clean)
}

fn with_prev_hash(message: Message, address: ChannelId, job: &Job, clean: bool) -> Vec<Message> {
    let prev_hash = SetNewPrevHash {
        channel_id: address,
        job_id: JobId(job.number.0 as u32),
        prev_hash: job.tip.previous_hash,
        min_ntime: job.min_ntime,
        nbits: job.tip.nbits,
    };
    if clean { vec![message, prev_hash.into()] } else { vec![message] }
}

/// The merkle root of a coinbase, computed without the code under test.
pub(crate) fn folded(coinbase: &[u8], merkle_path: &[Hash]) -> Hash {
    merkle_path.iter().fold(sha256d(coinbase), |root, sibling| sha256d(&[root, *sibling].concat()))
}

/// The hash of a header, computed without the code under test.
pub(crate) fn header_hash(
    version: u32,
    prev_hash: &Hash,
    root: &Hash,
    ntime: u32,
    nbits: u32,
    nonce: u32,
) -> Hash {
    let mut header = version.to_le_bytes().to_vec();
    header.extend_from_slice(prev_hash);
    header.extend_from_slice(root);
    for number in [ntime, nbits, nonce] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    sha256d(&header)
}

/// A number as the extranonce that a miner rolls, counted from the low end.
pub(crate) fn rolled(number: u64, size: usize) -> Vec<u8> {
    let bytes = [[0; 24].as_slice(), &number.to_be_bytes()].concat();
    bytes[32 - size..].to_vec()
}

/// A share of an extended channel that meets `target`, found by hashing, with the extranonce `extranonce`.
pub(crate) fn find_share(
    opened: &Opened,
    job: &Job,
    target: Target,
    extranonce: u64,
    sequence: u32,
) -> SubmitSharesExtended {
    let rolled = &rolled(extranonce, opened.size);
    let padding = vec![0; job.rollable_size - opened.prefix.len() - opened.size];
    let coinbase =
        [&job.coinbase_prefix[..], &opened.prefix, rolled, &padding, &job.coinbase_suffix].concat();
    let root = folded(&coinbase, &job.merkle_path);
    let nonce = (0..)
        .find(|nonce| {
            let hash =
                header_hash(job.version, &job.tip.previous_hash, &root, job.min_ntime, job.tip.nbits, *nonce);
            target.is_met_by(&hash)
        })
        .expect("test targets are easy");
    SubmitSharesExtended {
        channel_id: opened.channel,
        sequence_number: SequenceNumber(sequence),
        job_id: JobId(job.number.0 as u32),
        nonce,
        ntime: job.min_ntime,
        version: job.version,
        extranonce: rolled.to_vec(),
        user_identity: None,
    }
}

pub(crate) fn verdicts(shares: &[ShareEvent]) -> Vec<Verdict> {
    shares.iter().map(|share| share.record.verdict).collect()
}

pub(crate) fn difficulty(exponent: i32) -> Target {
    Target::from_difficulty_exponent(exponent)
}

//! Native SV2 devices over real sockets, which understand and ignore exactly what the real ones do.
//!
//! - ESP-Miner 2.15 (Bitaxe), extended and standard: understands `OpenChannel.Success`, jobs of its kind,
//!   `SetNewPrevHash`, `SetTarget` and the answers to shares; ignores all else, `SetExtranoncePrefix`, `CloseChannel`,
//!   `SetGroupChannel` and `Reconnect` among it, and the channel ids of jobs.
//! - `mining_device` (of `integration_tests_sv2` 0.6.0): leaves at anything that it does not expect.
//!
//! What they hash is built here from the messages, by no code of the server's.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use stratum::sv2::messages::*;
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::{AuthorityPublicKey, Message};
use stratum::{ChannelId, JobId, RequestId, SequenceNumber, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// The longest frame and merkle path that ESP-Miner reads.
const FRAME_LIMIT: usize = 8192;
const PATH_LIMIT: usize = 20;

/// Slots in which ESP-Miner keeps future jobs, by job id.
const FUTURE_SLOTS: usize = 8;

/// Version bits that ESP-Miner's chips roll.
const ROLLED_BITS: u32 = 0x1fff_e000;

/// How far ahead of the clock `mining_device` puts its shares, in seconds.
const MINING_DEVICE_AHEAD: u32 = 60;

/// Hashes between two looks at the network.
const SLICE: u32 = 2048;

/// The shortest time between two shares.
const PAUSE: Duration = Duration::from_millis(15);

/// How long any answer of a server may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BitaxeExtended,
    BitaxeStandard,
    MiningDevice,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::BitaxeExtended, Kind::BitaxeStandard, Kind::MiningDevice];

/// Where and as whom a device mines.
#[derive(Clone, Debug)]
pub(crate) struct DeviceOptions {
    pub(crate) kind: Kind,
    pub(crate) server: SocketAddr,
    /// The server's key, where the device checks it.
    pub(crate) authority: Option<AuthorityPublicKey>,
    pub(crate) user: String,
    /// Hashes per second that it claims: 1e12 in the real firmware, less for what a processor can grind.
    pub(crate) nominal: f32,
}

/// What a device has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) submitted: u64,
    /// As the device counts: the sum of `new_submits_accepted_count`.
    pub(crate) accepted: u64,
    /// Refused as stale, rightly: the share left before the new tip was read.
    pub(crate) stale: u64,
    /// Anything that must not happen: the first few, in words.
    pub(crate) wrong: Vec<String>,
    pub(crate) jobs: u64,
    pub(crate) clean_jobs: u64,
    pub(crate) target: Option<Target>,
    /// Messages that it ignored.
    pub(crate) ignored: Vec<&'static str>,
    /// Why its connection ended.
    pub(crate) ended: Option<String>,
}

/// A device in the background. It mines until it is dropped.
pub(crate) struct Device {
    pub(crate) kind: Kind,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Device {
    /// Starts it.
    pub(crate) fn start(options: DeviceOptions) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let kind = options.kind;
        let task = tokio::spawn(async move {
            let ended = match Session::connect(&options).await {
                Ok(mut session) => loop {
                    if let Err(ended) = session.turn().await {
                        break ended;
                    }
                    sender.send_replace(session.seen.clone());
                },
                Err(error) => error,
            };
            sender.send_modify(|seen| seen.ended = Some(ended));
        });
        Device { kind, seen, task }
    }

    /// What it has seen until now.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until it has seen what `what` says, and fails if it was wronged.
    pub(crate) async fn wait_for(&mut self, what: &str, is_met: impl Fn(&Seen) -> bool) -> Seen {
        let kind = self.kind;
        let met = timeout(DEADLINE, self.seen.wait_for(|seen| seen.ended.is_some() || is_met(seen))).await;
        let in_time = met.map(|seen| seen.expect("the device's task runs").clone());
        let Ok(seen) = in_time else { panic!("{kind:?}, not in time: {what}; {:?}", self.seen()) };
        assert_eq!(seen.ended, None, "{kind:?}, while waiting for: {what}");
        assert_eq!(seen.wrong, [""; 0], "{kind:?}, while waiting for: {what}");
        seen
    }

    /// Waits until `count` more shares were accepted.
    pub(crate) async fn mine(&mut self, count: u64) -> Seen {
        let goal = self.seen().accepted + count;
        self.wait_for(&format!("{count} more shares"), |seen| seen.accepted >= goal).await
    }

    /// Waits until a job that replaces all others has come since `before`, and a share of it was accepted.
    pub(crate) async fn mine_on_clean_work(&mut self, before: &Seen) -> Seen {
        let clean = before.clean_jobs;
        self.wait_for("clean work", |seen| seen.clean_jobs > clean).await;
        self.mine(3).await
    }
}

/// A job as the device holds it.
#[derive(Clone, Debug)]
struct Job {
    id: JobId,
    version: u32,
    rolls_version: bool,
    root: Root,
}

#[derive(Clone, Debug)]
enum Root {
    Fixed([u8; 32]),
    Rolled { prefix: Vec<u8>, suffix: Vec<u8>, path: Vec<[u8; 32]> },
}

/// The job being hashed.
struct Grind {
    job: Job,
    header: [u8; 80],
    extranonce: Vec<u8>,
    version: u32,
    ntime: u32,
    nonce: u32,
}

struct Session {
    kind: Kind,
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    buffer: Vec<u8>,
    pace: tokio::time::Interval,
    channel: ChannelId,
    extranonce_prefix: Vec<u8>,
    extranonce_size: usize,
    extranonce: u64,
    rolled: u32,
    target: Target,
    tip: Option<([u8; 32], u32)>,
    future: [Option<Job>; FUTURE_SLOTS],
    grind: Option<Grind>,
    sequence: u32,
    /// Shares without an answer, each with the clean jobs that were read when it left.
    unanswered: VecDeque<(SequenceNumber, u64)>,
    seen: Seen,
}

impl Session {
    /// Connects as the device does: each answer must be the very next frame.
    async fn connect(options: &DeviceOptions) -> Result<Self, String> {
        let (stream, encryptor, decryptor) = shake_hands(options).await?;
        let mut pace = interval(PAUSE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = Session {
            kind: options.kind,
            stream,
            encryptor,
            decryptor,
            buffer: vec![0; FRAME_LIMIT],
            pace,
            channel: ChannelId(0),
            extranonce_prefix: Vec::new(),
            extranonce_size: 0,
            extranonce: 0,
            rolled: 0,
            target: Target::MAX,
            tip: None,
            future: Default::default(),
            grind: None,
            sequence: 0,
            unanswered: VecDeque::new(),
            seen: Seen::default(),
        };
        session.set_up(options).await?;
        session.open(options).await?;
        Ok(session)
    }

    async fn set_up(&mut self, options: &DeviceOptions) -> Result<(), String> {
        let (vendor, hardware_version) = match self.kind {
            Kind::MiningDevice => ("", ""),
            _ => ("bitaxe", "BM1370"),
        };
        let setup = SetupConnection {
            protocol: Protocol::Mining,
            min_version: 2,
            max_version: 2,
            flags: u32::from(self.kind != Kind::BitaxeExtended),
            endpoint_host: options.server.ip().to_string(),
            endpoint_port: options.server.port(),
            vendor: vendor.to_owned(),
            hardware_version: hardware_version.to_owned(),
            firmware: "v2.15".to_owned(),
            device_id: options.user.clone(),
        };
        self.send(setup).await?;
        let (first, rest) = self.next_messages().await?;
        match first {
            Message::SetupConnectionSuccess(success) if success.used_version == 2 && rest.is_empty() => {
                Ok(())
            }
            other => Err(format!("in answer to SetupConnection: {other:?}, {rest:?}")),
        }
    }

    async fn open(&mut self, options: &DeviceOptions) -> Result<(), String> {
        let (user_identity, nominal_hash_rate) = (options.user.clone(), options.nominal);
        let max_target = Target::MAX;
        if self.kind == Kind::BitaxeExtended {
            let (request_id, min_extranonce_size) = (RequestId(1), 2);
            let open = OpenExtendedMiningChannel {
                request_id,
                user_identity,
                nominal_hash_rate,
                max_target,
                min_extranonce_size,
            };
            self.send(open).await?;
        } else {
            let request_id = RequestId(if self.kind == Kind::MiningDevice { 10 } else { 1 });
            let open = OpenStandardMiningChannel { request_id, user_identity, nominal_hash_rate, max_target };
            self.send(open).await?;
        }
        let (first, rest) = self.next_messages().await?;
        match first {
            Message::OpenExtendedMiningChannelSuccess(success) if self.kind == Kind::BitaxeExtended => {
                self.channel = success.channel_id;
                self.target = success.target;
                self.extranonce_size = usize::from(success.extranonce_size);
                self.extranonce_prefix = success.extranonce_prefix;
            }
            Message::OpenStandardMiningChannelSuccess(success) if self.kind != Kind::BitaxeExtended => {
                self.channel = success.channel_id;
                self.target = success.target;
            }
            other => return Err(format!("in answer to the request for a channel: {other:?}")),
        }
        self.seen.target = Some(self.target);
        rest.into_iter().try_for_each(|message| self.hear(message))
    }

    /// Takes what has come, or hashes a little.
    async fn turn(&mut self) -> Result<(), String> {
        if self.grind.is_none() {
            return self.read().await;
        }
        tokio::select! {
            biased;
            length = self.stream.read(&mut self.buffer) => return self.take(length),
            _ = self.pace.tick() => {}
        }
        for _ in 0..16 {
            if self.hash_slice() {
                return self.submit().await;
            }
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), String> {
        let length = self.stream.read(&mut self.buffer).await;
        self.take(length)
    }

    fn take(&mut self, length: std::io::Result<usize>) -> Result<(), String> {
        self.decrypt(length)?.into_iter().try_for_each(|message| self.hear(message))
    }

    /// The next message, and those that came in the same read.
    async fn next_messages(&mut self) -> Result<(Message, Vec<Message>), String> {
        loop {
            let read = timeout(DEADLINE, self.stream.read(&mut self.buffer)).await;
            let mut messages = self.decrypt(read.map_err(|_| "no answer in time".to_owned())?)?;
            if !messages.is_empty() {
                return Ok((messages.remove(0), messages));
            }
        }
    }

    fn decrypt(&mut self, length: std::io::Result<usize>) -> Result<Vec<Message>, String> {
        let length = length.map_err(|error| format!("reading: {error}"))?;
        if length == 0 {
            return Err("the server closed the connection".to_owned());
        }
        let mut input = &self.buffer[..length];
        let mut messages = Vec::new();
        while let Some(frame) = self.decryptor.next_frame(&mut input).map_err(|error| error.to_string())? {
            messages.push(Message::decode(frame.header, frame.payload).map_err(|error| error.to_string())?);
        }
        Ok(messages)
    }

    fn hear(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::NewMiningJob(job) if self.kind != Kind::BitaxeExtended => {
                let root = Root::Fixed(job.merkle_root);
                let rolls_version = self.kind == Kind::BitaxeStandard;
                self.take_job(
                    Job { id: job.job_id, version: job.version, rolls_version, root },
                    job.min_ntime,
                )
            }
            Message::NewExtendedMiningJob(job) if self.kind == Kind::BitaxeExtended => {
                if job.merkle_path.len() > PATH_LIMIT {
                    return Err(format!("a merkle path of {}", job.merkle_path.len()));
                }
                let rolls_version = job.version_rolling_allowed;
                let root = Root::Rolled {
                    prefix: job.coinbase_tx_prefix,
                    suffix: job.coinbase_tx_suffix,
                    path: job.merkle_path,
                };
                self.take_job(
                    Job { id: job.job_id, version: job.version, rolls_version, root },
                    job.min_ntime,
                )
            }
            Message::SetNewPrevHash(tip) => self.take_tip(&tip),
            Message::SetTarget(target) => {
                self.target = target.maximum_target;
                self.seen.target = Some(self.target);
                Ok(())
            }
            Message::SubmitSharesSuccess(success) => self.resolve(&success),
            Message::SubmitSharesError(error) => self.refused(&error),
            other if self.kind == Kind::MiningDevice => Err(format!("it exits on {}", other.name())),
            other => {
                self.seen.ignored.push(other.name());
                Ok(())
            }
        }
    }

    /// A job with a time replaces what is hashed, one without waits in its slot.
    fn take_job(&mut self, job: Job, min_ntime: Option<u32>) -> Result<(), String> {
        self.seen.jobs += 1;
        let slot = job.id.0 as usize % FUTURE_SLOTS;
        match min_ntime {
            None => self.future[slot] = Some(job),
            Some(ntime) if self.tip.is_some() => self.start(job, ntime),
            Some(_) => return Err("a job that builds on nothing".to_owned()),
        }
        Ok(())
    }

    fn take_tip(&mut self, tip: &SetNewPrevHash) -> Result<(), String> {
        let job = self.future[tip.job_id.0 as usize % FUTURE_SLOTS].take();
        let job = job.filter(|job| job.id == tip.job_id).ok_or("a tip for a job that is not in its slot")?;
        self.tip = Some((tip.prev_hash, tip.nbits));
        self.seen.clean_jobs += 1;
        self.start(job, tip.min_ntime);
        Ok(())
    }

    fn resolve(&mut self, success: &SubmitSharesSuccess) -> Result<(), String> {
        let mut resolved = 0;
        while self.unanswered.front().is_some_and(|(number, _)| *number <= success.last_sequence_number) {
            self.unanswered.pop_front();
            resolved += 1;
        }
        self.seen.accepted += u64::from(success.new_submits_accepted_count);
        if resolved == success.new_submits_accepted_count {
            return Ok(());
        }
        Err(format!("{success:?} resolves {resolved} shares"))
    }

    fn refused(&mut self, error: &SubmitSharesError) -> Result<(), String> {
        let index = self.unanswered.iter().position(|(number, _)| *number == error.sequence_number);
        let index = index.ok_or_else(|| format!("{error:?} is for no share that waits"))?;
        let (_, clean_jobs) = self.unanswered.remove(index).ok_or("the index is of an element")?;
        if error.error_code == "stale-share" && clean_jobs < self.seen.clean_jobs {
            self.seen.stale += 1;
        } else if self.seen.wrong.len() < 8 {
            let clean = self.seen.clean_jobs;
            self.seen.wrong.push(format!("{error:?}, {clean_jobs} of {clean} clean jobs"));
        }
        Ok(())
    }

    fn start(&mut self, job: Job, ntime: u32) {
        self.grind =
            Some(Grind { job, header: [0; 80], extranonce: Vec::new(), version: 0, ntime, nonce: 0 });
        self.roll();
    }

    /// Moves on to headers that were not hashed yet.
    fn roll(&mut self) {
        let (Some(grind), Some((prev_hash, nbits))) = (&mut self.grind, self.tip) else { return };
        self.extranonce += 1;
        self.rolled = self.rolled.wrapping_add(1);
        grind.extranonce = from_the_low_end(self.extranonce, self.extranonce_size);
        let root = match &grind.job.root {
            Root::Fixed(root) => *root,
            Root::Rolled { prefix, suffix, path } => {
                let coinbase =
                    [prefix, &self.extranonce_prefix, &grind.extranonce, suffix].map(Vec::as_slice);
                path.iter().fold(sha256d(&coinbase.concat()), |root, node| sha256d(&[root, *node].concat()))
            }
        };
        let bits = if grind.job.rolls_version { self.rolled << 13 & ROLLED_BITS } else { 0 };
        grind.version = grind.job.version & !bits | bits;
        if self.kind == Kind::MiningDevice {
            grind.ntime = grind.ntime.max(unix_now() + MINING_DEVICE_AHEAD);
        } else {
            grind.nonce = 0;
        }
        grind.header[..4].copy_from_slice(&grind.version.to_le_bytes());
        grind.header[4..36].copy_from_slice(&prev_hash);
        grind.header[36..68].copy_from_slice(&root);
        grind.header[68..72].copy_from_slice(&grind.ntime.to_le_bytes());
        grind.header[72..76].copy_from_slice(&nbits.to_le_bytes());
    }

    /// Hashes for a moment. True when the header is a share.
    fn hash_slice(&mut self) -> bool {
        let Some(grind) = &mut self.grind else { return false };
        for _ in 0..SLICE {
            grind.nonce = grind.nonce.wrapping_add(1);
            grind.header[76..].copy_from_slice(&grind.nonce.to_le_bytes());
            if Target::from_le_bytes(sha256d(&grind.header)) <= self.target {
                return true;
            }
        }
        false
    }

    async fn submit(&mut self) -> Result<(), String> {
        let Some(grind) = &self.grind else { return Ok(()) };
        let (channel_id, sequence_number) = (self.channel, SequenceNumber(self.sequence));
        let (job_id, nonce, ntime, version) = (grind.job.id, grind.nonce, grind.ntime, grind.version);
        let share: Message = match &grind.job.root {
            Root::Fixed(_) => {
                SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version }.into()
            }
            Root::Rolled { .. } => SubmitSharesExtended {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
                extranonce: grind.extranonce.clone(),
                user_identity: None,
            }
            .into(),
        };
        self.sequence += 1;
        self.seen.submitted += 1;
        self.unanswered.push_back((sequence_number, self.seen.clean_jobs));
        self.send(share).await?;
        self.roll();
        Ok(())
    }

    async fn send(&mut self, message: impl Into<Message>) -> Result<(), String> {
        let (mut frame, mut encrypted) = (Vec::new(), Vec::new());
        message.into().encode_frame(&mut frame).map_err(|error| error.to_string())?;
        self.encryptor.encrypt_frames(&frame, &mut encrypted).map_err(|error| error.to_string())?;
        self.stream.write_all(&encrypted).await.map_err(|error| format!("writing: {error}"))
    }
}

async fn shake_hands(options: &DeviceOptions) -> Result<(TcpStream, Encryptor, Decryptor), String> {
    let text = |error: std::io::Error| format!("connecting: {error}");
    let mut stream = TcpStream::connect(options.server).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let initiator = Initiator::new(options.authority.as_ref(), &mut OsRng);
    stream.write_all(&initiator.first()).await.map_err(text)?;
    let mut reply = [0; RESPONDER_MESSAGE_SIZE];
    stream.read_exact(&mut reply).await.map_err(text)?;
    let transport = initiator.finish(&reply, unix_now()).map_err(|error| error.to_string())?;
    // The device's buffer holds a frame with its header.
    let (encryptor, decryptor) = transport.split(FRAME_LIMIT - 6);
    Ok((stream, encryptor, decryptor))
}

/// A number in the last bytes of an extranonce.
pub(crate) fn from_the_low_end(number: u64, size: usize) -> Vec<u8> {
    let bytes = [[0; 24].as_slice(), &number.to_be_bytes()].concat();
    bytes[32 - size..].to_vec()
}

pub(crate) fn sha256d(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

pub(crate) fn unix_now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32
}

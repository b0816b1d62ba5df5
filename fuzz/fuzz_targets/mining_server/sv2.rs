//! An SV2 connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use mining_server::sv2::{MAX_WAITING_CUSTOM_JOBS, Sv2Connection};
use mining_server::{Event, PublishedJob, Settings, Verdict};
use stratum::sv2::codes::set_custom_mining_job;
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, ConnectionId, JobId, RequestId, SequenceNumber, Target};

use crate::records::Records;
use crate::support::{Driver, Opened, Source, setup_connection};
use crate::{Change, change, target};

/// The longest run: more finds nothing new and is slow.
const MAX_OPERATIONS: usize = 300;

#[derive(Debug, Arbitrary)]
pub(crate) enum Operation<'a> {
    Frame { extension: u8, channel_msg: bool, message_type: u8, payload: &'a [u8] },
    SetUp { flags: u8 },
    Open { standard: bool, rate: f32, max: i8, size: u8 },
    Update { channel: u8, rate: f32, max: i8 },
    Close { channel: u8 },
    Submit { channel: u8, job: u8, nonce: u8, ntime: i16, version: u32, extranonce: u8, odd_size: Option<u8> },
    Work(Change),
    OpenFailed { channel: u8 },
    AskForCustomJob { channel: u8, outputs: u8 },
    AnswerCustomJob { which: u8, how: Answer },
    Wait(u16),
}

/// What the owner of the work says to a request for a custom job.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub(crate) enum Answer {
    Taken,
    /// A job that was made for an earlier request, and for another tip by now, perhaps.
    TakenLate,
    Refused,
}

/// One open channel as its peer sees it.
struct Channel {
    opened: Opened,
    accepted: u64,
    acknowledged: u64,
    /// Of the accepted and the acknowledged shares.
    difficulty: f64,
    told_difficulty: u64,
    jobs: Vec<(JobId, u32)>,
}

struct Run {
    settings: Settings,
    driver: Driver,
    source: Source,
    has_work: bool,
    channels: HashMap<ChannelId, Channel>,
    /// With a channel per device: wishes that were not answered yet.
    wanted: Vec<ChannelId>,
    /// Requests for custom jobs that the peer has no answer to.
    asked: HashMap<RequestId, ChannelId>,
    /// A custom job that was made and not given out, and the extranonce that it is for.
    late: Option<(Arc<PublishedJob>, usize)>,
    records: Records,
    operation: u32,
}

pub(crate) fn run(settings: Settings, takes_custom_jobs: bool, operations: &[Operation<'_>]) {
    let mut driver = Driver::new(settings.clone());
    if takes_custom_jobs {
        let connection = Sv2Connection::new(Arc::new(settings.clone()), ConnectionId(7), driver.now);
        driver.connection = connection.taking_custom_jobs();
    }
    let mut run = Run {
        driver,
        settings,
        source: Source::new(),
        has_work: false,
        channels: HashMap::new(),
        wanted: Vec::new(),
        asked: HashMap::new(),
        late: None,
        records: Records::default(),
        operation: 0,
    };
    // Chance alone seldom gets as far as a custom job.
    let opening = [
        Operation::SetUp { flags: 2 },
        Operation::Work(Change::Job),
        Operation::Open { standard: false, rate: 1e12, max: i8::MAX, size: 8 },
    ];
    let opening = if takes_custom_jobs { &opening[..] } else { &[] };
    for operation in opening.iter().chain(operations.iter().take(MAX_OPERATIONS)) {
        run.apply(operation);
        if run.driver.closed.is_some() {
            break;
        }
        assert_eq!(run.driver.connection.channel_count(), run.channels.len());
    }
    run.finish();
}

impl Run {
    fn apply(&mut self, operation: &Operation<'_>) {
        self.operation += 1;
        let messages = match operation {
            Operation::Frame { .. } => self.frame(operation),
            Operation::SetUp { flags } => self.driver.send(setup_connection(u32::from(flags % 8))),
            Operation::Open { .. } => self.open(operation),
            Operation::Update { channel, rate, max } => self.driver.send(UpdateChannel {
                channel_id: self.channel(*channel),
                nominal_hash_rate: *rate,
                maximum_target: target(*max),
            }),
            Operation::Close { channel } => {
                let channel_id = self.channel(*channel);
                let messages = self.driver.send(CloseChannel { channel_id, reason_code: "x".to_owned() });
                // Its shares were judged before it went.
                self.settle(messages);
                self.channels.retain(|id, open| *id != channel_id && open.opened.group != channel_id);
                Vec::new()
            }
            Operation::Submit { .. } => self.submit(operation),
            Operation::Work(what) => self.publish(*what),
            Operation::OpenFailed { channel } if self.settings.channel_per_device => {
                let channel = self.channel(*channel);
                self.driver.open_failed(channel, "failed")
            }
            Operation::OpenFailed { .. } => Vec::new(),
            Operation::AskForCustomJob { channel, outputs } => self.ask_for_custom_job(*channel, *outputs),
            Operation::AnswerCustomJob { which, how } => self.answer_custom_job(*which, *how),
            Operation::Wait(tenths) => self.driver.wait(Duration::from_millis(u64::from(*tenths) * 100)),
        };
        self.settle(messages);
        self.answer_wish();
    }

    fn frame(&mut self, operation: &Operation<'_>) -> Vec<Message> {
        let Operation::Frame { extension, channel_msg, message_type, payload } = operation else {
            unreachable!("the caller looked")
        };
        let header = FrameHeader {
            extension_type: u16::from(extension % 4),
            channel_msg: *channel_msg,
            message_type: *message_type,
            payload_length: payload.len() as u32,
        };
        // A well-formed message that opens or closes channels, or asks for a custom job, would escape our count.
        if matches!(message_type, 0x10 | 0x13 | 0x18 | 0x22) && header.extension_type == 0 {
            return Vec::new();
        }
        let mut frame = header.to_bytes().to_vec();
        frame.extend_from_slice(payload);
        self.driver.send_frame(&frame)
    }

    fn open(&mut self, operation: &Operation<'_>) -> Vec<Message> {
        let Operation::Open { standard, rate, max, size } = operation else {
            unreachable!("the caller looked")
        };
        let request_id = RequestId(self.operation);
        let user_identity = format!("account.{}", self.operation % 5);
        let (nominal_hash_rate, max_target) = (*rate, if *max > 100 { Target::MAX } else { target(*max) });
        if *standard {
            let open = OpenStandardMiningChannel { request_id, user_identity, nominal_hash_rate, max_target };
            return self.driver.send(open);
        }
        self.driver.send(OpenExtendedMiningChannel {
            request_id,
            user_identity,
            nominal_hash_rate,
            max_target,
            min_extranonce_size: u16::from(size % 40),
        })
    }

    fn submit(&mut self, operation: &Operation<'_>) -> Vec<Message> {
        let Operation::Submit { channel, job, nonce, ntime, version, extranonce, odd_size } = operation
        else {
            unreachable!("the caller looked")
        };
        let channel_id = self.channel(*channel);
        let open = self.channels.get(&channel_id);
        let newest =
            |open: &Channel| open.jobs.len().checked_sub(1 + usize::from(job % 4)).map(|at| open.jobs[at]);
        let (job_id, time) =
            open.and_then(newest).unwrap_or((JobId(u32::from(*job)), self.driver.now.unix_seconds()));
        let ntime = time.wrapping_add_signed(i32::from(*ntime) / 64);
        let sequence_number = SequenceNumber(self.operation);
        let nonce = u32::from(nonce % 16);
        let version = 0x2000_0000 ^ (version & 0x1fff_ffff);
        let size = odd_size.map_or(open.map_or(8, |open| open.opened.size), |size| usize::from(size % 33));
        if size == 0 {
            let share = SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version };
            return self.driver.send(share);
        }
        let mut rolled = vec![0; size];
        rolled[size - 1] = extranonce % 4;
        self.driver.send(SubmitSharesExtended {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
            extranonce: rolled,
            user_identity: None,
        })
    }

    fn ask_for_custom_job(&mut self, channel: u8, outputs: u8) -> Vec<Message> {
        let (channel_id, request_id) = (self.channel(channel), RequestId(self.operation));
        if self.driver.connection.max_payload() <= usize::from(outputs) * 128 + 1024 {
            // The transport would not let it through.
            return Vec::new();
        }
        self.asked.insert(request_id, channel_id);
        let messages = self.driver.send(SetCustomMiningJob {
            channel_id,
            request_id,
            token: vec![1; 16].into(),
            version: 0x2000_0000,
            prev_hash: [1; 32],
            min_ntime: 0,
            nbits: 0x1d00_ffff,
            coinbase_tx_version: 2,
            coinbase_prefix: vec![1, 7],
            coinbase_tx_input_n_sequence: 0,
            coinbase_tx_outputs: vec![0; usize::from(outputs) * 64],
            coinbase_tx_locktime: 0,
            merkle_path: vec![[7; 32]; usize::from(outputs)],
        });
        assert!(self.driver.custom_jobs.len() <= MAX_WAITING_CUSTOM_JOBS, "too many wait for the owner");
        messages
    }

    /// The owner answers one of the requests that it was handed.
    fn answer_custom_job(&mut self, which: u8, how: Answer) -> Vec<Message> {
        let waiting = self.driver.custom_jobs.len();
        if waiting == 0 || !self.has_work {
            return Vec::new();
        }
        let request = self.driver.custom_jobs.swap_remove(usize::from(which) % waiting);
        let (channel, id) = (request.message.channel_id, request.message.request_id);
        assert_eq!(self.asked.get(&id), Some(&channel), "the owner is asked what the peer asked");
        let size = request.extranonce_size;
        let refused = Err(set_custom_mining_job::INVALID_MINING_JOB_TOKEN);
        let made = |run: &mut Self| run.source.custom_job(size, run.driver.now);
        let answer = match how {
            Answer::Taken => Ok(made(self)),
            Answer::Refused => refused,
            Answer::TakenLate => {
                let fresh = made(self);
                match self.late.replace((fresh, size)) {
                    Some((late, for_size)) if for_size == size => Ok(late),
                    _ => refused,
                }
            }
        };
        self.driver.answer_custom_job(channel, id.0, answer)
    }

    fn publish(&mut self, what: Change) -> Vec<Message> {
        let Some(work) = change(&mut self.source, self.has_work, what, self.driver.now) else {
            return Vec::new();
        };
        self.has_work = true;
        if !self.settings.channel_per_device {
            return self.driver.work(&work);
        }
        let mut ids: Vec<_> = self.channels.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().flat_map(|id| self.driver.work_of(Some(id), &work)).collect()
    }

    /// With a channel per device, every third wish for an upstream channel comes true at once.
    fn answer_wish(&mut self) {
        if self.has_work
            && self.operation.is_multiple_of(3)
            && let Some(channel) = self.wanted.pop()
        {
            let messages = self.driver.work_of(Some(channel), &self.source.work());
            self.settle(messages);
        }
    }

    /// Takes what the last call put out.
    fn settle(&mut self, messages: Vec<Message>) {
        for share in std::mem::take(&mut self.driver.shares) {
            let work = self.has_work.then(|| self.source.work());
            self.records.take(&self.settings, work.as_deref(), &share);
            if matches!(share.record.verdict, Verdict::Accepted | Verdict::BlockFound) {
                let channel = self.channels.get_mut(&share.record.channel).expect("its channel is open");
                channel.accepted += 1;
                let unit = Target::DIFFICULTY_1.work().0 as f64;
                channel.difficulty += (share.record.credited().0 as f64 / unit).log2().round().exp2();
            }
        }
        for event in std::mem::take(&mut self.driver.events) {
            match event {
                Event::OpenUpstream { channel, hash_rate, .. } => {
                    assert!(self.settings.channel_per_device && hash_rate.0.is_finite());
                    self.wanted.push(channel);
                }
                Event::CloseUpstream { channel } => self.wanted.retain(|wanted| *wanted != channel),
                Event::HashRate { rate, .. } => assert!(rate.0.is_finite() && rate.0 >= 0.0),
                Event::NewJobWanted { .. } | Event::Notice(_) => {}
                Event::VersionRolling(_) | Event::RolledOutsideMask => panic!("masks belong to SV1"),
            }
        }
        messages.into_iter().for_each(|message| self.hear(message));
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::OpenExtendedMiningChannelSuccess(success) => self.opened(Opened::from(success)),
            Message::OpenStandardMiningChannelSuccess(success) => self.opened(Opened::from(success)),
            Message::NewMiningJob(job) => self.job(job.channel_id, job.job_id, job.min_ntime),
            Message::NewExtendedMiningJob(job) => self.job(job.channel_id, job.job_id, job.min_ntime),
            Message::SubmitSharesSuccess(success) => {
                let channel = self.channels.get_mut(&success.channel_id).expect("its channel is open");
                assert!(success.new_submits_accepted_count > 0);
                channel.acknowledged += u64::from(success.new_submits_accepted_count);
                channel.told_difficulty += success.new_shares_sum;
                assert!(channel.acknowledged <= channel.accepted, "more is acknowledged than was accepted");
                let told = channel.told_difficulty as f64;
                assert!(told <= channel.difficulty * 1.000_001, "{told} of {}", channel.difficulty);
            }
            Message::SetCustomMiningJobSuccess(taken) => {
                let asked = self.asked.remove(&taken.request_id);
                assert_eq!(asked, Some(taken.channel_id), "one answer to each request");
                self.custom_job(taken.channel_id, taken.job_id);
            }
            Message::SetCustomMiningJobError(refused) => {
                let asked = self.asked.remove(&refused.request_id);
                assert_eq!(asked, Some(refused.channel_id), "one answer to each request");
            }
            Message::CloseChannel(close) => {
                self.channels.remove(&close.channel_id).expect("it was open");
            }
            _ => (),
        }
    }

    fn opened(&mut self, opened: Opened) {
        for other in self.channels.values() {
            assert!(![opened.channel, opened.group].contains(&other.opened.channel), "an id came twice");
            assert_ne!(other.opened.prefix[..4], opened.prefix[..4], "two channels overlap");
        }
        let id = opened.channel;
        let channel = Channel {
            opened,
            accepted: 0,
            acknowledged: 0,
            difficulty: 0.0,
            told_difficulty: 0,
            jobs: Vec::new(),
        };
        self.channels.insert(id, channel);
    }

    fn job(&mut self, address: ChannelId, job: JobId, min_ntime: Option<u32>) {
        let time = min_ntime.unwrap_or(self.driver.now.unix_seconds());
        let mut hearers = 0;
        for channel in self.channels.values_mut() {
            if channel.opened.channel == address || channel.opened.group == address {
                assert!(channel.jobs.iter().all(|(id, _)| *id != job), "a job id came twice");
                channel.jobs.push((job, time));
                hearers += 1;
            }
        }
        assert!(hearers > 0, "a job for nobody");
    }

    /// A custom job was taken: for extended channels, whether named alone or by their group.
    fn custom_job(&mut self, address: ChannelId, job: JobId) {
        let time = self.driver.now.unix_seconds();
        let is_for = |open: &&mut Channel| {
            open.opened.size > 0 && (open.opened.channel == address || open.opened.group == address)
        };
        let mut hearers = 0;
        for channel in self.channels.values_mut().filter(is_for) {
            assert!(channel.jobs.iter().all(|(id, _)| *id != job), "a job id came twice");
            channel.jobs.push((job, time));
            hearers += 1;
        }
        assert!(hearers > 0, "a custom job for nobody");
    }

    /// An open channel or group, or a number that may be none.
    fn channel(&self, seed: u8) -> ChannelId {
        let mut ids: Vec<_> =
            self.channels.values().flat_map(|open| [open.opened.channel, open.opened.group]).collect();
        ids.sort_unstable();
        match ids.len() {
            0 => ChannelId(u32::from(seed)),
            _ if seed > 250 => ChannelId(u32::from(seed)),
            length => ids[usize::from(seed) % length],
        }
    }

    fn finish(mut self) {
        if self.driver.closed.is_none() {
            let messages = self.driver.wait(Duration::from_secs(2));
            self.settle(messages);
        }
        if self.driver.closed.is_none() {
            for channel in self.channels.values() {
                assert_eq!(channel.acknowledged, channel.accepted, "an accepted share was not acknowledged");
                let told = channel.told_difficulty as f64;
                let rest = channel.difficulty - told;
                assert!(rest < 1.0 + channel.difficulty * 1e-6, "{rest} of difficulty was not told");
            }
        }
        if self.driver.closed.is_none() {
            assert_eq!(
                self.asked.len(),
                self.driver.custom_jobs.len(),
                "the owner holds what is not answered"
            );
        }
        self.driver.close();
        assert!(self.driver.registry.held.is_empty(), "a reserved value was lost");
    }
}

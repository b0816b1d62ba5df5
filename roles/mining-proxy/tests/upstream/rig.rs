//! An upstream state machine in virtual time, with a scripted pool at its other end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mining_proxy::{DownstreamKey, Endpoint, Feed, LinkState, Upstream, UpstreamConfig, UpstreamOutput};
use mining_server::judge::{Submission, Submitter, refusal};
use mining_server::work::JobLookup;
use mining_server::{
    Fate, ForwardShare, LossReason, RejectReason, ShareEvent, ShareRecord, UpstreamVerdict, Verdict, Work,
};
use stratum::job::Rolled;
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{
    ChannelId, ConnectionId, HashRate, Job, JobId, JobNumber, Now, RequestId, SequenceNumber, Target,
    UpstreamId, Work as WorkSum,
};

pub(crate) const CHANNEL: ChannelId = ChannelId(7);
pub(crate) const GROUP: ChannelId = ChannelId(3);
pub(crate) const PREFIX: [u8; 8] = [0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8];
pub(crate) const NBITS: u32 = 0x1703_a30c;
pub(crate) const NTIME: u32 = 1_700_000_000;

pub(crate) struct Rig {
    pub(crate) upstream: Upstream,
    pub(crate) now: Now,
    /// What came out and was not asked for yet; bytes are taken out as messages.
    pub(crate) out: UpstreamOutput,
    pub(crate) sent: Vec<Message>,
    /// The last work published for each feed.
    pub(crate) work: BTreeMap<Feed, Arc<Work>>,
    pub(crate) published: usize,
}

pub(crate) fn config(aggregate: bool) -> UpstreamConfig {
    UpstreamConfig {
        id: UpstreamId(0),
        user_identity: "account.farm".to_owned(),
        aggregate,
        forward_worker_names: false,
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: "0.1.0".to_owned(),
        refresh_interval: Duration::from_secs(20),
        job_declaration: None,
    }
}

impl Rig {
    pub(crate) fn new(aggregate: bool) -> Self {
        Rig::with_config(config(aggregate))
    }

    pub(crate) fn with_config(config: UpstreamConfig) -> Self {
        let now = Now::simulated(Duration::from_secs(NTIME.into()), Duration::from_secs(100));
        Rig {
            upstream: Upstream::new(config, JobNumber::first(now), now),
            now,
            out: UpstreamOutput::default(),
            sent: Vec::new(),
            work: BTreeMap::new(),
            published: 0,
        }
    }

    /// A rig with an open shared channel that has no job yet.
    pub(crate) fn open() -> Self {
        let mut rig = Rig::new(true);
        rig.set_up(0);
        let request = rig.requests()[0].request_id;
        rig.receive(opened(request, CHANNEL));
        rig
    }

    /// A rig whose miners work on job 1 of the shared channel.
    pub(crate) fn mining() -> Self {
        let mut rig = Rig::open();
        rig.receive(job(CHANNEL, 1, None));
        rig.receive(tip(CHANNEL, 1, 1));
        rig.take();
        rig
    }

    pub(crate) fn connect(&mut self) {
        let endpoint = Endpoint { host: "pool.example".to_owned(), port: 34254 };
        self.upstream.handle_connected(&endpoint, self.now, &mut self.out);
        self.collect();
    }

    pub(crate) fn set_up(&mut self, flags: u32) {
        self.connect();
        self.receive(SetupConnectionSuccess { used_version: 2, flags });
    }

    pub(crate) fn disconnect(&mut self) {
        self.upstream.handle_disconnected(self.now, &mut self.out);
        self.collect();
    }

    pub(crate) fn receive(&mut self, message: impl Into<Message>) {
        let mut frame = Vec::new();
        message.into().encode_frame(&mut frame).expect("encodable");
        self.receive_frame(&frame);
    }

    pub(crate) fn receive_frame(&mut self, frame: &[u8]) {
        let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a header");
        self.upstream.handle_frame(FrameHeader::parse(*header), payload, self.now, &mut self.out);
        self.collect();
    }

    /// Lets time pass, calling the upstream whenever it wants to be.
    pub(crate) fn advance(&mut self, duration: Duration) {
        let end = self.now.plus(duration);
        while let Some(wake) = self.upstream.next_timeout().filter(|wake| *wake <= end.monotonic) {
            self.now = self.now.plus(wake.saturating_sub(self.now.monotonic));
            self.upstream.handle_timeout(self.now, &mut self.out);
            let next = self.upstream.next_timeout();
            assert!(next.is_none_or(|next| next > self.now.monotonic), "the timer must move on");
            self.collect();
        }
        self.now = self.now.plus(end.since(self.now));
    }

    pub(crate) fn open_device(&mut self, key: DownstreamKey, name: &str, rate: f64) {
        self.upstream.handle_open(key, name, HashRate(rate), self.now, &mut self.out);
        self.collect();
    }

    pub(crate) fn close_device(&mut self, key: DownstreamKey) {
        self.upstream.handle_close(key, self.now, &mut self.out);
        self.collect();
    }

    pub(crate) fn rate(&mut self, key: DownstreamKey, rate: Option<f64>) {
        self.upstream.handle_hash_rate(key, rate.map(HashRate), self.now, &mut self.out);
        self.collect();
    }

    /// Hands in a share for a job. Returns its completed record.
    pub(crate) fn share(&mut self, job: &Job, nonce: u32, is_block: bool) -> ShareRecord {
        let event = share(job, nonce, is_block, self.now);
        self.upstream.handle_share(event, self.now, &mut self.out);
        self.collect();
        self.out.records.last().expect("every share has a record").clone()
    }

    /// Everything that came out since the last time, apart from bytes.
    pub(crate) fn take(&mut self) -> UpstreamOutput {
        self.sent.clear();
        self.published = 0;
        std::mem::take(&mut self.out)
    }

    /// The job that miners of the shared channel work on.
    pub(crate) fn active(&self) -> Job {
        self.active_of(Feed::Shared)
    }

    pub(crate) fn active_of(&self, feed: Feed) -> Job {
        self.work[&feed].active().job.clone()
    }

    pub(crate) fn requests(&self) -> Vec<OpenExtendedMiningChannel> {
        let request = |message: &Message| match message {
            Message::OpenExtendedMiningChannel(request) => Some(request.clone()),
            _ => None,
        };
        self.sent.iter().filter_map(request).collect()
    }

    pub(crate) fn submits(&self) -> Vec<SubmitSharesExtended> {
        let submit = |message: &Message| match message {
            Message::SubmitSharesExtended(submit) => Some(submit.clone()),
            _ => None,
        };
        self.sent.iter().filter_map(submit).collect()
    }

    pub(crate) fn updates(&self) -> Vec<f32> {
        let update = |message: &Message| match message {
            Message::UpdateChannel(update) => Some(update.nominal_hash_rate),
            _ => None,
        };
        self.sent.iter().filter_map(update).collect()
    }

    pub(crate) fn closes(&self) -> Vec<ChannelId> {
        let close = |message: &Message| match message {
            Message::CloseChannel(close) => Some(close.channel_id),
            _ => None,
        };
        self.sent.iter().filter_map(close).collect()
    }

    /// The words with which the connection was closed.
    pub(crate) fn closed(&self) -> Option<&str> {
        self.out.close.as_ref().map(|reason| reason.what.as_str())
    }

    pub(crate) fn collect(&mut self) {
        let mut bytes = std::mem::take(&mut self.out.bytes);
        let mut rest = &bytes[..];
        while let Some((header, after)) = rest.split_first_chunk::<HEADER_SIZE>() {
            let header = FrameHeader::parse(*header);
            let (payload, after) = after.split_at(header.payload_length as usize);
            self.sent.push(Message::decode(header, payload).expect("we send what can be read"));
            rest = after;
        }
        assert!(rest.is_empty());
        bytes.clear();
        for (feed, work) in self.out.publish.drain(..) {
            if let Some(before) = self.work.get(&feed) {
                assert!(work.active().job.number >= before.active().job.number, "job numbers rise");
            }
            self.work.insert(feed, work);
            self.published += 1;
        }
        if self.out.close.is_some() {
            assert_eq!(self.upstream.open_channels(), 0);
            assert!(self.upstream.link() != LinkState::Ready);
        }
        let tally = self.upstream.tally();
        assert_eq!(tally.forwarded, tally.acknowledged + tally.rejected + tally.pending + tally.lost);
    }
}

pub(crate) fn key(connection: u64) -> DownstreamKey {
    DownstreamKey { connection: ConnectionId(connection), channel: ChannelId(0) }
}

pub(crate) fn opened(request_id: RequestId, channel_id: ChannelId) -> OpenExtendedMiningChannelSuccess {
    OpenExtendedMiningChannelSuccess {
        request_id,
        channel_id,
        target: Target::from_difficulty_exponent(10),
        extranonce_size: 12,
        extranonce_prefix: PREFIX.to_vec(),
        group_channel_id: GROUP,
    }
}

pub(crate) fn job(channel_id: ChannelId, id: u32, min_ntime: Option<u32>) -> NewExtendedMiningJob {
    NewExtendedMiningJob {
        channel_id,
        job_id: JobId(id),
        min_ntime,
        version: 0x2000_0000,
        version_rolling_allowed: true,
        merkle_path: vec![[id as u8; 32], [0x5a; 32]],
        coinbase_tx_prefix: vec![0x01; 60],
        coinbase_tx_suffix: vec![id as u8; 90],
    }
}

/// The tip whose previous hash is `block` repeated, for a future job.
pub(crate) fn tip(channel_id: ChannelId, job: u32, block: u8) -> SetNewPrevHash {
    SetNewPrevHash { channel_id, job_id: JobId(job), prev_hash: [block; 32], min_ntime: NTIME, nbits: NBITS }
}

pub(crate) fn success(channel_id: ChannelId, last: u32, count: u32) -> SubmitSharesSuccess {
    SubmitSharesSuccess {
        channel_id,
        last_sequence_number: SequenceNumber(last),
        new_submits_accepted_count: count,
        new_shares_sum: u64::from(count) * 1024,
    }
}

pub(crate) fn refused(channel_id: ChannelId, number: u32) -> SubmitSharesError {
    SubmitSharesError {
        channel_id,
        sequence_number: SequenceNumber(number),
        error_code: "stale-share".to_owned(),
    }
}

/// What each share of these tests is worth.
pub(crate) const SHARE_WORK: WorkSum = WorkSum(1 << 42);

/// Shares that were never answered, of which the last had this number.
pub(crate) fn lost(last: u32, count: u32, reason: LossReason) -> UpstreamVerdict {
    let work = WorkSum(SHARE_WORK.0 * u128::from(count));
    UpstreamVerdict::Lost { last: SequenceNumber(last), count, reason, work }
}

/// An accepted share that is worth forwarding.
pub(crate) fn share(job: &Job, nonce: u32, is_block: bool, now: Now) -> ShareEvent {
    let (reserved, extranonce) = ([1, 2, 3, 4], [5, 6, 7, 8]);
    let (version, ntime) = (job.version | 0x0000_6000, job.min_ntime + 2);
    let rolled = Rolled { reserved, extranonce: &extranonce, version, ntime, nonce };
    let rollable = job.rollable_bytes(reserved, &extranonce);
    let submitter = Submitter { connection: ConnectionId(1), channel: ChannelId(0), device: None };
    let submission = Submission {
        job: JobLookup::Unknown,
        extranonce: &extranonce,
        version,
        version_mask: 0,
        ntime,
        nonce,
        known: None,
    };
    let mut event = refusal(submitter, &submission, RejectReason::JobNotFound, now);
    event.record.verdict = if is_block { Verdict::BlockFound } else { Verdict::Accepted };
    event.record.fate = Fate::Forwarded;
    event.record.rollable = rollable;
    event.record.submitted = SHARE_WORK;
    event.record.upstream_work = SHARE_WORK;
    event.forward =
        Some(ForwardShare { epoch: job.epoch, origin: job.origin, hash: job.hash(&rolled), is_block });
    event
}

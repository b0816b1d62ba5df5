//! Somebody else's pool, written from the specification: it does what ours never does. It changes prefixes and
//! targets, closes channels, refuses them, sends its proxies elsewhere, and judges every share by the letter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mining_server::{RejectReason, Verdict};
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, JobId, SequenceNumber, Target};

use crate::frames::{Frames, frame};
use crate::hashing::{self, Hash};
use crate::net::{End, LinkId, Net};

#[derive(Clone, Debug)]
struct Job {
    version: u32,
    rolling: bool,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    path: Vec<Hash>,
    /// The extranonce prefix that was in force when it was sent, and the target when it became active.
    extranonce_prefix: Vec<u8>,
    target: Target,
    min_ntime: u32,
    tip: u64,
}

#[derive(Debug)]
struct Channel {
    prefix: Vec<u8>,
    size: usize,
    target: Target,
    jobs: BTreeMap<u32, Job>,
    seen: BTreeSet<Hash>,
    unacknowledged: u32,
    last: u32,
}

#[derive(Debug)]
struct Session {
    link: LinkId,
    frames: Frames,
    channels: BTreeMap<u32, Channel>,
    closed: BTreeSet<u32>,
}

/// Counts of what it saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) accepted: u64,
    pub(crate) stale: u64,
    pub(crate) prefixes: u64,
}

#[derive(Debug)]
pub(crate) struct Foreign {
    session: Option<Session>,
    exponent: i32,
    may_fix_version: bool,
    tip: u64,
    tip_time: u32,
    nbits: u32,
    next_channel: u32,
    next_job: u32,
    next_prefix: u64,
    batch: u32,
    pub(crate) seen: Seen,
}

impl Foreign {
    pub(crate) fn new(exponent: i32, may_fix_version: bool, nbits: u32, batch: u32) -> Self {
        Foreign {
            session: None,
            exponent,
            may_fix_version,
            tip: 1,
            tip_time: 0,
            nbits,
            next_channel: 1,
            next_job: 1,
            next_prefix: 1,
            batch,
            seen: Seen::default(),
        }
    }

    pub(crate) fn accept(&mut self, link: LinkId) {
        let (channels, closed) = (BTreeMap::new(), BTreeSet::new());
        self.session = Some(Session { link, frames: Frames::default(), channels, closed });
    }

    pub(crate) fn gone(&mut self, link: LinkId, net: &mut Net) {
        if self.session.as_ref().is_some_and(|session| session.link == link) {
            self.session = None;
            net.close(link, End::Server);
        }
    }

    pub(crate) fn readable(&mut self, link: LinkId, net: &mut Net) {
        let Some(piece) = net.read(link, End::Server) else { return };
        let Some(session) = self.session.as_mut().filter(|session| session.link == link) else { return };
        session.frames.push(&piece);
        while let Some(message) = self.session.as_mut().and_then(|session| session.frames.next_message()) {
            self.take(message, net);
        }
    }

    /// A new tip: a future job for each channel, and then the tip.
    pub(crate) fn new_tip(&mut self, net: &mut Net) {
        self.tip += 1;
        self.tip_time = net.now.unix_seconds();
        self.each_channel(net, |foreign, channel, net| foreign.send_tip(channel, net));
    }

    pub(crate) fn new_job(&mut self, net: &mut Net) {
        self.each_channel(net, |foreign, channel, net| foreign.send_job(channel, true, net));
    }

    /// A new prefix for each channel, at times with a job at once.
    pub(crate) fn change_prefix(&mut self, net: &mut Net) {
        self.each_channel(net, |foreign, channel, net| {
            let size = foreign.channel(channel).prefix.len();
            let prefix = foreign.prefix(size);
            foreign.channel(channel).prefix.clone_from(&prefix);
            foreign.seen.prefixes += 1;
            foreign
                .send(SetExtranoncePrefix { channel_id: ChannelId(channel), extranonce_prefix: prefix }, net);
            if net.dice.chance(0.7) {
                foreign.send_job(channel, true, net);
            }
        });
    }

    pub(crate) fn change_target(&mut self, net: &mut Net) {
        self.each_channel(net, |foreign, channel, net| {
            let exponent = foreign.exponent + net.dice.below(5) as i32 - 2;
            let maximum_target = Target::from_difficulty_exponent(exponent);
            foreign.channel(channel).target = maximum_target;
            foreign.send(SetTarget { channel_id: ChannelId(channel), maximum_target }, net);
            if net.dice.chance(0.7) {
                foreign.send_job(channel, true, net);
            }
        });
    }

    pub(crate) fn close_one(&mut self, net: &mut Net) {
        let channel = self.session.as_ref().and_then(|session| session.channels.keys().next().copied());
        if let (Some(channel), Some(session)) = (channel, self.session.as_mut()) {
            session.channels.remove(&channel);
            session.closed.insert(channel);
            let reason_code = "simulated".to_owned();
            self.send(CloseChannel { channel_id: ChannelId(channel), reason_code }, net);
        }
    }

    pub(crate) fn send_elsewhere(&mut self, net: &mut Net) {
        self.send(Reconnect { new_host: String::new(), new_port: 0 }, net);
    }

    /// Acknowledges what was accepted. Called now and then.
    pub(crate) fn acknowledge(&mut self, net: &mut Net) {
        self.each_channel(net, |foreign, channel, net| foreign.acknowledge_one(channel, net));
    }

    fn acknowledge_one(&mut self, id: u32, net: &mut Net) {
        let channel = self.channel(id);
        let count = std::mem::take(&mut channel.unacknowledged);
        let last = channel.last;
        let claimed = match last % 8 {
            0 => count + 3,
            1 => 0,
            _ => count,
        };
        if count > 0 {
            if let Some(session) = self.session.as_ref().filter(|_| claimed != count) {
                net.witness.miscounted.insert((session.link, id, u64::from(last)));
            }
            let message = SubmitSharesSuccess {
                channel_id: ChannelId(id),
                last_sequence_number: SequenceNumber(last),
                new_submits_accepted_count: claimed,
                new_shares_sum: 0,
            };
            self.send(message, net);
        }
    }

    fn take(&mut self, message: Message, net: &mut Net) {
        match message {
            Message::SetupConnection(_) => {
                self.send(SetupConnectionSuccess { used_version: 2, flags: 0 }, net)
            }
            Message::OpenExtendedMiningChannel(open) => self.open(&open, net),
            Message::SubmitSharesExtended(share) => self.judge(&share, net),
            Message::CloseChannel(close) => {
                if let Some(session) = &mut self.session {
                    session.channels.remove(&close.channel_id.0);
                    session.closed.insert(close.channel_id.0);
                }
            }
            Message::UpdateChannel(update) => {
                assert!(update.nominal_hash_rate >= 0.0, "a hash rate is one: {update:?}");
            }
            other => panic!("no proxy sends this to a pool: {other:?}"),
        }
    }

    fn open(&mut self, open: &OpenExtendedMiningChannel, net: &mut Net) {
        let request_id = open.request_id;
        if net.dice.chance(0.1) {
            self.send(OpenMiningChannelError { request_id, error_code: "simulated".to_owned() }, net);
            return;
        }
        let id = self.next_channel;
        self.next_channel += 2;
        let length = 4 + net.dice.below(5) as usize;
        let prefix = self.prefix(length);
        let size = usize::from(open.min_extranonce_size).max(8) + net.dice.below(9) as usize;
        let target = Target::from_difficulty_exponent(self.exponent);
        let channel = Channel {
            prefix: prefix.clone(),
            size,
            target,
            jobs: BTreeMap::new(),
            seen: BTreeSet::new(),
            unacknowledged: 0,
            last: 0,
        };
        if let Some(session) = &mut self.session {
            session.channels.insert(id, channel);
        }
        let success = OpenExtendedMiningChannelSuccess {
            request_id,
            channel_id: ChannelId(id),
            target,
            extranonce_size: size as u16,
            extranonce_prefix: prefix,
            group_channel_id: ChannelId(1_000_000),
        };
        self.send(success, net);
        self.send_tip(id, net);
    }

    fn send_tip(&mut self, channel: u32, net: &mut Net) {
        self.send_job(channel, false, net);
        let job = self.next_job - 1;
        let (now, tip, nbits) = (net.now.unix_seconds(), self.tip, self.nbits);
        self.tip_time = now;
        let state = self.channel(channel);
        let target = state.target;
        state.jobs.retain(|id, _| *id == job || net.dice.chance(0.5));
        let held = state.jobs.get_mut(&job).expect("it was just sent");
        (held.min_ntime, held.tip, held.target) = (now, tip, target);
        let message = SetNewPrevHash {
            channel_id: ChannelId(channel),
            job_id: JobId(job),
            prev_hash: previous(tip),
            min_ntime: now,
            nbits,
        };
        self.send(message, net);
        net.witness.published_elsewhere(self.session.as_ref().map_or(0, |session| session.link), job);
    }

    fn send_job(&mut self, channel: u32, is_active: bool, net: &mut Net) {
        let id = self.next_job;
        self.next_job += 1;
        let now = net.now.unix_seconds();
        let rolling = !(self.may_fix_version && net.dice.chance(0.3));
        let state = self.channel(channel);
        let job = Job {
            version: 0x2000_0000 | (net.dice.next() as u32 & 0x1fff_e000),
            rolling,
            prefix: [b"coinbase".as_slice(), &net.dice.bytes::<40>()].concat(),
            suffix: net.dice.bytes::<60>().to_vec(),
            path: (0..net.dice.below(5)).map(|_| net.dice.bytes::<32>()).collect(),
            extranonce_prefix: state.prefix.clone(),
            target: state.target,
            min_ntime: now,
            tip: 0,
        };
        let message = NewExtendedMiningJob {
            channel_id: ChannelId(channel),
            job_id: JobId(id),
            min_ntime: is_active.then_some(now),
            version: job.version,
            version_rolling_allowed: rolling,
            merkle_path: job.path.clone(),
            coinbase_tx_prefix: job.prefix.clone(),
            coinbase_tx_suffix: job.suffix.clone(),
        };
        let tip = self.tip;
        self.channel(channel).jobs.insert(id, Job { tip, ..job });
        self.send(message, net);
    }

    fn judge(&mut self, share: &SubmitSharesExtended, net: &mut Net) {
        let (id, tip, nbits) = (share.channel_id.0, self.tip, self.nbits);
        let Some(session) = &mut self.session else { return };
        let link = session.link;
        let Some(channel) = session.channels.get_mut(&id) else {
            assert!(session.closed.contains(&id), "shares are for channels that were open: {share:?}");
            net.witness.judged_elsewhere(link, share, None, Verdict::Rejected(RejectReason::NotSubscribed));
            self.refuse(share, "invalid-channel-id", net);
            return;
        };
        let job = channel.jobs.get(&share.job_id.0).filter(|job| job.tip == tip);
        let Some(job) = job else {
            net.witness.judged_elsewhere(link, share, None, Verdict::Rejected(RejectReason::Stale));
            self.seen.stale += 1;
            self.refuse(share, "stale-share", net);
            return;
        };
        assert_eq!(share.extranonce.len(), channel.size, "a share's extranonce has the size that was given");
        let mask = if job.rolling { 0x1fff_ffe0 } else { 0 };
        assert_eq!(
            (share.version ^ job.version) & !mask,
            0,
            "a share rolls no bit that it must not: {share:?}"
        );
        let latest = net.now.unix_seconds();
        assert!(
            (job.min_ntime..=latest).contains(&share.ntime),
            "a share's time is within the time that has passed: {share:?}"
        );
        let coinbase = [&job.prefix[..], &job.extranonce_prefix, &share.extranonce, &job.suffix].concat();
        let root = hashing::root(&coinbase, &job.path);
        let mut header = hashing::header(share.version, &previous(tip), &root, share.ntime, nbits);
        header[76..].copy_from_slice(&share.nonce.to_le_bytes());
        let hash = hashing::twice(&header);
        assert!(
            job.target.is_met_by(&hash) || Target::from_compact(nbits).is_met_by(&hash),
            "a forwarded share is valid at the pool: {share:?} of {job:?} hashes to {hash:02x?}"
        );
        assert!(channel.seen.insert(hash), "a share is forwarded once: {share:?}");
        channel.unacknowledged += 1;
        channel.last = share.sequence_number.0;
        let is_due = channel.unacknowledged >= self.batch;
        self.seen.accepted += 1;
        net.witness.judged_elsewhere(link, share, Some(hash), Verdict::Accepted);
        if is_due {
            self.acknowledge_one(id, net);
        }
    }

    /// What was accepted before is acknowledged first.
    fn refuse(&mut self, share: &SubmitSharesExtended, code: &str, net: &mut Net) {
        let id = share.channel_id.0;
        if self.session.as_ref().is_some_and(|session| session.channels.contains_key(&id)) {
            self.acknowledge_one(id, net);
        }
        let (channel_id, sequence_number) = (share.channel_id, share.sequence_number);
        self.send(SubmitSharesError { channel_id, sequence_number, error_code: code.to_owned() }, net);
    }

    fn prefix(&mut self, length: usize) -> Vec<u8> {
        self.next_prefix += 1;
        let mut prefix = vec![length as u8; length];
        prefix[length - 3..].copy_from_slice(&self.next_prefix.to_be_bytes()[5..]);
        prefix
    }

    fn channel(&mut self, id: u32) -> &mut Channel {
        let channels = self.session.as_mut().map(|session| &mut session.channels);
        channels.and_then(|channels| channels.get_mut(&id)).expect("the channel is open")
    }

    fn each_channel(&mut self, net: &mut Net, mut act: impl FnMut(&mut Self, u32, &mut Net)) {
        let Some(session) = &self.session else { return };
        let channels: Vec<u32> = session.channels.keys().copied().collect();
        channels.into_iter().for_each(|channel| act(self, channel, net));
    }

    /// This pool reads and writes without ever waiting: what does not fit is a session lost.
    fn send(&mut self, message: impl Into<Message>, net: &mut Net) {
        let Some(session) = &self.session else { return };
        let bytes = frame(message);
        if net.write(session.link, End::Client, &bytes) < bytes.len() {
            net.cut(session.link);
        }
    }
}

fn previous(tip: u64) -> Hash {
    hashing::twice(&tip.to_le_bytes())
}

/// How often the pool acknowledges what it has not acknowledged yet.
pub(crate) const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(5);

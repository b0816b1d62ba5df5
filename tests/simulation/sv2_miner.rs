//! SV2 miners: devices that ignore exactly what the real ones ignore, and a proxy with several channels.

use std::collections::BTreeMap;

use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, Difficulty, JobId, RequestId, SequenceNumber, Target};

use crate::frames::{Frames, frame};
use crate::hashing::{self, Hash};
use crate::net::{LinkId, Net};
use crate::witness::{Submission, newer};

/// Slots in which ESP-Miner 2.15 keeps future jobs, by job id.
const FUTURE_SLOTS: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// ESP-Miner 2.15 in its extended mode; it applies a target at once.
    BitaxeExtended { rolls_version: bool },
    /// The same in its standard mode.
    BitaxeStandard { rolls_version: bool },
    /// `mining_device` 0.6: leaves on everything that it does not understand.
    MiningDevice,
    /// Another proxy: an extended, a standard and another extended channel on one connection, in a group.
    Proxy,
}

#[derive(Clone, Debug)]
struct Held {
    id: u32,
    version: u32,
    rolling: bool,
    min_ntime: Option<u32>,
    work: Rolled,
}

#[derive(Clone, Debug)]
enum Rolled {
    Fixed(Hash),
    Extended { prefix: Vec<u8>, suffix: Vec<u8>, path: Vec<Hash> },
}

#[derive(Debug)]
struct Active {
    job: Held,
    previous: Hash,
    nbits: u32,
    ntime: u32,
    target: Target,
}

#[derive(Debug)]
struct Channel {
    id: ChannelId,
    group: ChannelId,
    prefix: Vec<u8>,
    /// Bytes to roll; 0 on a standard channel.
    size: usize,
    target: Target,
    future: BTreeMap<u32, Held>,
    active: Option<Active>,
    /// The newest job that was sent, future or not.
    sent: u32,
    /// The newest job that it mines, or mined, on.
    newest: u32,
    sequence: u32,
    extranonce: u64,
    nonce: u32,
}

#[derive(Debug)]
pub(crate) struct Sv2Miner {
    model: Model,
    link: LinkId,
    user: String,
    frames: Frames,
    channels: Vec<Channel>,
    /// The next answer that the device waits for: the next frame must be it.
    awaits: Awaits,
    turn: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    SetUp,
    Open,
    Nothing,
}

impl Sv2Miner {
    pub(crate) fn connect(model: Model, link: LinkId, user: &str, out: &mut Vec<u8>) -> Self {
        let requires_standard_jobs = matches!(model, Model::BitaxeStandard { .. } | Model::MiningDevice);
        let vendor = if matches!(model, Model::Proxy | Model::MiningDevice) { "" } else { "bitaxe" };
        out.extend(frame(SetupConnection {
            protocol: Protocol::Mining,
            min_version: 2,
            max_version: 2,
            flags: u32::from(requires_standard_jobs),
            endpoint_host: "checkweigh.example".to_owned(),
            endpoint_port: 3336,
            vendor: vendor.to_owned(),
            hardware_version: "BM1370".to_owned(),
            firmware: String::new(),
            device_id: String::new(),
        }));
        Sv2Miner {
            model,
            link,
            user: user.to_owned(),
            frames: Frames::default(),
            channels: Vec::new(),
            awaits: Awaits::SetUp,
            turn: 0,
        }
    }

    /// False when the miner leaves.
    pub(crate) fn read(&mut self, bytes: &[u8], net: &mut Net, out: &mut Vec<u8>) -> bool {
        self.frames.push(bytes);
        while let Some(message) = self.frames.next_message() {
            if !self.take(message, net, out) {
                return false;
            }
        }
        true
    }

    /// The target of what is mined next: channels take turns.
    pub(crate) fn target(&self) -> Option<Target> {
        self.mined().map(|channel| self.target_of(channel))
    }

    pub(crate) fn mine(&mut self, net: &mut Net, out: &mut Vec<u8>) {
        let Some(place) = self.mined_place() else { return };
        self.turn += 1;
        let target = self.target_of(&self.channels[place]);
        let model = self.model;
        let (message, submission) = self.channels[place].share(model, target, net);
        out.extend(frame(message));
        net.witness.submitted(self.link, submission);
    }

    fn target_of(&self, channel: &Channel) -> Target {
        match (&channel.active, self.model) {
            (Some(active), Model::Proxy) => active.target,
            _ => channel.target,
        }
    }

    fn mined_place(&self) -> Option<usize> {
        let ready: Vec<usize> =
            (0..self.channels.len()).filter(|place| self.channels[*place].active.is_some()).collect();
        ready.get(self.turn % ready.len().max(1)).copied()
    }

    fn mined(&self) -> Option<&Channel> {
        self.mined_place().map(|place| &self.channels[place])
    }

    fn take(&mut self, message: Message, net: &mut Net, out: &mut Vec<u8>) -> bool {
        match self.awaits {
            Awaits::SetUp => {
                assert!(
                    matches!(message, Message::SetupConnectionSuccess(_)),
                    "the first frame answers SetupConnection: {message:?}"
                );
                self.awaits = Awaits::Open;
                self.ask_for_channels(out);
                return true;
            }
            Awaits::Open if self.model != Model::Proxy => {
                let answers = matches!(
                    message,
                    Message::OpenExtendedMiningChannelSuccess(_)
                        | Message::OpenStandardMiningChannelSuccess(_)
                        | Message::OpenMiningChannelError(_)
                );
                assert!(answers, "the next frame answers the request for a channel: {message:?}");
                self.awaits = Awaits::Nothing;
            }
            _ => (),
        }
        self.take_mining(message, net)
    }

    fn take_mining(&mut self, message: Message, net: &mut Net) -> bool {
        let understands_standard = !matches!(self.model, Model::BitaxeExtended { .. });
        let understands_extended = matches!(self.model, Model::BitaxeExtended { .. } | Model::Proxy);
        match message {
            Message::OpenMiningChannelError(_) | Message::SetupConnectionError(_) => return false,
            Message::OpenStandardMiningChannelSuccess(opened) => {
                self.add(
                    opened.channel_id,
                    opened.group_channel_id,
                    opened.extranonce_prefix,
                    0,
                    opened.target,
                );
            }
            Message::OpenExtendedMiningChannelSuccess(opened) => {
                let size = usize::from(opened.extranonce_size);
                self.add(
                    opened.channel_id,
                    opened.group_channel_id,
                    opened.extranonce_prefix,
                    size,
                    opened.target,
                );
            }
            Message::NewMiningJob(job) if understands_standard => {
                let held = Held {
                    id: job.job_id.0,
                    version: job.version,
                    rolling: true,
                    min_ntime: job.min_ntime,
                    work: Rolled::Fixed(job.merkle_root),
                };
                self.each(job.channel_id, |channel| channel.hold(held.clone()));
            }
            Message::NewExtendedMiningJob(job) if understands_extended => self.take_extended(job),
            Message::SetNewPrevHash(tip) => self.each(tip.channel_id, |channel| channel.activate(&tip)),
            Message::SetTarget(target) => {
                self.each(target.channel_id, |channel| channel.target = target.maximum_target);
            }
            Message::SubmitSharesSuccess(success) => net.witness.acknowledged(
                self.link,
                success.channel_id.0,
                u64::from(success.last_sequence_number.0),
                success.new_submits_accepted_count,
            ),
            Message::SubmitSharesError(error) => {
                net.witness.refused(self.link, error.channel_id.0, u64::from(error.sequence_number.0));
            }
            Message::CloseChannel(closed) if self.model == Model::Proxy => {
                self.channels.retain(|channel| channel.id != closed.channel_id);
                return !self.channels.is_empty();
            }
            other => panic!("{:?} is never sent what it does not understand: {other:?}", self.model),
        }
        true
    }

    fn take_extended(&mut self, job: NewExtendedMiningJob) {
        assert!(job.merkle_path.len() <= 20, "ESP-Miner 2.15 takes no longer path");
        let held = Held {
            id: job.job_id.0,
            version: job.version,
            rolling: job.version_rolling_allowed,
            min_ntime: job.min_ntime,
            work: Rolled::Extended {
                prefix: job.coinbase_tx_prefix,
                suffix: job.coinbase_tx_suffix,
                path: job.merkle_path,
            },
        };
        self.each(job.channel_id, |channel| channel.hold(held.clone()));
    }

    fn each(&mut self, address: ChannelId, act: impl Fn(&mut Channel)) {
        let addressed = |channel: &&mut Channel| channel.id == address || channel.group == address;
        self.channels.iter_mut().filter(addressed).for_each(act);
    }

    fn add(&mut self, id: ChannelId, group: ChannelId, prefix: Vec<u8>, size: usize, target: Target) {
        for other in &self.channels {
            assert_ne!(other.prefix, prefix, "no two live downstreams share a reserved extranonce");
            let sizes = (other.prefix.len() + other.size, prefix.len() + size);
            assert!(
                other.group != group || sizes.0 == sizes.1,
                "members of a group have one size (SV2 5.2.3)"
            );
        }
        self.channels.push(Channel {
            id,
            group,
            prefix,
            size,
            target,
            future: BTreeMap::new(),
            active: None,
            sent: 0,
            newest: 0,
            sequence: 0,
            extranonce: 0,
            nonce: 0,
        });
    }

    fn ask_for_channels(&self, out: &mut Vec<u8>) {
        let standard = |request: u32| OpenStandardMiningChannel {
            request_id: RequestId(request),
            user_identity: format!("{}.{request}", self.user),
            nominal_hash_rate: 50.0,
            max_target: Target::MAX,
        };
        let extended = |request: u32| OpenExtendedMiningChannel {
            request_id: RequestId(request),
            user_identity: format!("{}.{request}", self.user),
            nominal_hash_rate: -1.0,
            max_target: Target::MAX,
            min_extranonce_size: 2,
        };
        match self.model {
            Model::BitaxeExtended { .. } => out.extend(frame(extended(1))),
            Model::BitaxeStandard { .. } | Model::MiningDevice => out.extend(frame(standard(1))),
            Model::Proxy => {
                out.extend(frame(extended(1)));
                out.extend(frame(standard(2)));
                out.extend(frame(extended(3)));
            }
        }
    }
}

impl Channel {
    /// A job with a time is mined at once and alone; one without waits for its previous hash.
    fn hold(&mut self, job: Held) {
        assert!(self.sent == 0 || newer(job.id, self.sent), "jobs come in order and never twice: {job:?}");
        self.sent = job.id;
        let Some(ntime) = job.min_ntime else {
            self.future.insert(job.id % FUTURE_SLOTS, job);
            return;
        };
        let active = self.active.as_ref().expect("no job comes before there is a tip to build on");
        let (previous, nbits) = (active.previous, active.nbits);
        self.start(job, previous, nbits, ntime);
    }

    fn activate(&mut self, tip: &SetNewPrevHash) {
        let held = self.future.remove(&(tip.job_id.0 % FUTURE_SLOTS)).expect("a tip names a future job");
        assert_eq!(held.id, tip.job_id.0, "slots of future jobs do not collide");
        self.future.clear();
        self.start(held, tip.prev_hash, tip.nbits, tip.min_ntime);
    }

    fn start(&mut self, job: Held, previous: Hash, nbits: u32, ntime: u32) {
        let target = self.target;
        self.newest = job.id;
        self.nonce = 0;
        self.active = Some(Active { job, previous, nbits, ntime, target });
    }

    fn share(&mut self, model: Model, target: Target, net: &mut Net) -> (Message, Submission) {
        let active = self.active.as_ref().expect("only channels with a job are mined");
        self.extranonce += 1;
        let rolled = [[0; 24].as_slice(), &self.extranonce.to_be_bytes()].concat();
        let rolled = &rolled[32 - self.size..];
        let root = match &active.job.work {
            Rolled::Fixed(root) => *root,
            Rolled::Extended { prefix, suffix, path } => {
                hashing::root(&[prefix, &self.prefix, rolled, suffix].concat(), path)
            }
        };
        let rolls_version = match model {
            Model::BitaxeExtended { rolls_version } | Model::BitaxeStandard { rolls_version } => {
                rolls_version
            }
            Model::Proxy => active.job.rolling && self.size > 0,
            Model::MiningDevice => false,
        };
        let bits = if rolls_version { net.dice.next() as u32 & 0x1fff_e000 } else { 0 };
        let version = active.job.version | bits;
        let header = hashing::header(version, &active.previous, &root, active.ntime, active.nbits);
        let (nonce, hash) = hashing::grind(&header, self.nonce, target);
        self.nonce = nonce.wrapping_add(1);
        let (channel_id, sequence_number) = (self.id, SequenceNumber(self.sequence));
        let (job_id, ntime) = (JobId(active.job.id), active.ntime);
        self.sequence += 1;
        let submission = Submission {
            channel: channel_id.0,
            number: u64::from(sequence_number.0),
            job: job_id.0,
            newest: Some(self.newest),
            version,
            ntime,
            nonce,
            difficulty: Difficulty::of_hash(&hash),
            hash: Some(hash),
            target,
            is_repeated: false,
        };
        let message = if self.size == 0 {
            SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version }.into()
        } else {
            let extranonce = rolled.to_vec();
            SubmitSharesExtended {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
                extranonce,
                user_identity: None,
            }
            .into()
        };
        (message, submission)
    }
}

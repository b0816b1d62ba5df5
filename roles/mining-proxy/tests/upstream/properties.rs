//! Random operations: nothing that a pool, a driver or a device does in any order breaks an upstream's books.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rig::*;
use mining_proxy::{Feed, LinkState};
use mining_server::Fate;
use mining_server::record::UpstreamVerdict;
use proptest::prelude::*;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, Epoch, Job, JobId, RequestId, SequenceNumber, Target, UpstreamChannelId};

#[derive(Clone, Debug)]
enum Operation {
    Connect,
    Disconnect,
    SetUp(u32),
    /// Answers the n-th last request.
    Answer(usize, u32, bool),
    Receive(Kind, u32, u32),
    Frame(Vec<u8>),
    /// A share for the n-th job that was ever published.
    Share(usize, bool),
    Open(u64),
    Close(u64),
    Rate(u64, Option<f64>),
    Wanted(u64),
    Advance(u64),
    Shutdown,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Job,
    FutureJob,
    Tip,
    Target,
    Prefix,
    Group,
    Success,
    Refusal,
    Close,
    Reconnect,
    OpenRefused,
    Opened,
}

const KINDS: [Kind; 12] = [
    Kind::Job,
    Kind::FutureJob,
    Kind::Tip,
    Kind::Target,
    Kind::Prefix,
    Kind::Group,
    Kind::Success,
    Kind::Refusal,
    Kind::Close,
    Kind::Reconnect,
    Kind::OpenRefused,
    Kind::Opened,
];

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        1 => Just(Operation::Connect),
        1 => Just(Operation::Disconnect),
        3 => (0..4u32).prop_map(Operation::SetUp),
        6 => (0..3usize, 1..4u32, prop::bool::weighted(0.9)).prop_map(|(a, b, c)| Operation::Answer(a, b, c)),
        20 => (prop::sample::select(&KINDS[..7]), 0..4u32, 0..4u32)
            .prop_map(|(kind, channel, value)| Operation::Receive(kind, channel, value)),
        3 => (prop::sample::select(&KINDS[7..]), 0..4u32, 0..4u32)
            .prop_map(|(kind, channel, value)| Operation::Receive(kind, channel, value)),
        1 => prop::collection::vec(any::<u8>(), 6..200).prop_map(Operation::Frame),
        12 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(job, block)| Operation::Share(job, block)),
        3 => (0..5u64).prop_map(Operation::Open),
        1 => (0..5u64).prop_map(Operation::Close),
        2 => (0..5u64, prop::option::of(0.0..1e15)).prop_map(|(device, rate)| Operation::Rate(device, rate)),
        1 => (0..5u64).prop_map(Operation::Wanted),
        6 => (1..30_000u64).prop_map(Operation::Advance),
        1 => Just(Operation::Shutdown),
    ]
}

fn message(kind: Kind, channel: u32, value: u32) -> Message {
    let channel_id = ChannelId(channel);
    match kind {
        Kind::Job => job(channel_id, value, Some(NTIME)).into(),
        Kind::FutureJob => job(channel_id, value, None).into(),
        Kind::Tip => tip(channel_id, value, value as u8).into(),
        Kind::Target => {
            SetTarget { channel_id, maximum_target: Target::from_difficulty_exponent(value as i32) }.into()
        }
        Kind::Prefix => SetExtranoncePrefix { channel_id, extranonce_prefix: vec![1; value as usize] }.into(),
        Kind::Group => {
            SetGroupChannel { group_channel_id: channel_id, channel_ids: vec![ChannelId(value), channel_id] }
                .into()
        }
        Kind::Success => success(channel_id, value, value).into(),
        Kind::Refusal => refused(channel_id, value).into(),
        Kind::Close => CloseChannel { channel_id, reason_code: String::new() }.into(),
        Kind::Reconnect => Reconnect { new_host: String::new(), new_port: value as u16 }.into(),
        Kind::OpenRefused => {
            OpenMiningChannelError { request_id: RequestId(value), error_code: String::new() }.into()
        }
        Kind::Opened => opened(RequestId(value), channel_id).into(),
    }
}

/// What must hold, summed up from everything that came out.
#[derive(Default)]
struct Books {
    forwarded: u64,
    acknowledged: u64,
    rejected: u64,
    lost: u64,
    jobs: Vec<Job>,
    /// The sequence number that each life of a channel sent last.
    last: BTreeMap<(UpstreamChannelId, Epoch), u32>,
}

impl Books {
    fn check(&mut self, rig: &mut Rig) {
        for work in rig.work.values() {
            let job = &work.active().job;
            if self.jobs.iter().all(|known| known.number != job.number) {
                self.jobs.push(job.clone());
            }
            assert!(work.jobs.iter().all(|published| published.job.epoch <= work.epoch));
        }
        for answer in rig.out.answers.drain(..) {
            match answer.verdict {
                UpstreamVerdict::Rejected { .. } => self.rejected += 1,
                UpstreamVerdict::Lost { count, .. } => self.lost += u64::from(count),
                UpstreamVerdict::Acknowledged { count, .. } => self.acknowledged += u64::from(count),
            }
        }
        let tally = rig.upstream.tally();
        assert_eq!(tally.forwarded, self.forwarded);
        assert_eq!(
            (tally.acknowledged, tally.rejected, tally.lost),
            (self.acknowledged, self.rejected, self.lost)
        );
        if rig.upstream.link() != LinkState::Ready {
            assert_eq!((rig.upstream.open_channels(), tally.pending), (0, 0));
            assert!(rig.work.values().all(|work| !work.live));
        }
        assert_eq!(rig.submits().len() as u64, self.forwarded);
    }

    fn share(&mut self, rig: &mut Rig, index: usize, is_block: bool) {
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs[index % self.jobs.len()].clone();
        let record = rig.share(&job, 1, is_block);
        if record.fate != Fate::Forwarded {
            assert_eq!(record.sequence_number, None);
            return;
        }
        self.forwarded += 1;
        let last = self.last.entry((job.origin.channel, job.epoch)).or_insert(0);
        *last += 1;
        assert_eq!(record.sequence_number, Some(SequenceNumber(*last)), "numbers follow one another");
        let submits = rig.submits();
        let submit = submits.last().expect("forwarded");
        assert_eq!((submit.channel_id.0, submit.job_id), (job.origin.channel.0, JobId(job.origin.job.0)));
        assert_eq!(submit.extranonce.len(), job.rollable_size);
    }
}

fn apply(rig: &mut Rig, books: &mut Books, operation: &Operation) {
    match operation {
        Operation::Connect => rig.connect(),
        Operation::Disconnect => rig.disconnect(),
        Operation::SetUp(flags) if rig.upstream.link() != LinkState::Ready => rig.set_up(*flags),
        Operation::SetUp(_) => (),
        Operation::Answer(nth, channel, good) => {
            let requests = rig.requests();
            let Some(request) = requests.iter().rev().nth(*nth) else { return };
            let size = if *good { 12 } else { 5 };
            let message = opened(request.request_id, ChannelId(*channel));
            rig.receive(OpenExtendedMiningChannelSuccess { extranonce_size: size, ..message });
            // A pool's first words on a channel, so that most sequences get to shares.
            rig.receive(job(ChannelId(*channel), 1, None));
            rig.receive(tip(ChannelId(*channel), 1, 1));
        }
        Operation::Receive(kind, channel, value) => rig.receive(message(*kind, *channel, *value)),
        Operation::Frame(bytes) => {
            let mut frame = bytes.clone();
            // Most random headers are unknown messages; these are known ones with a random payload.
            (frame[0], frame[1], frame[2]) = (0, 0, frame[2] % 0x26);
            frame[3..6].copy_from_slice(&((bytes.len() - 6) as u32).to_le_bytes()[..3]);
            rig.receive_frame(&frame);
        }
        Operation::Share(index, is_block) => books.share(rig, *index, *is_block),
        Operation::Open(device) => rig.open_device(key(*device), "x.rig", 1e14),
        Operation::Close(device) => {
            rig.close_device(key(*device));
            rig.work.remove(&Feed::Device(key(*device)));
        }
        Operation::Rate(device, rate) => rig.rate(key(*device), *rate),
        Operation::Wanted(device) => {
            rig.upstream.handle_new_job_wanted(Feed::Device(key(*device)));
            rig.upstream.handle_new_job_wanted(Feed::Shared);
        }
        Operation::Advance(milliseconds) => rig.advance(Duration::from_millis(*milliseconds)),
        Operation::Shutdown => {
            rig.upstream.handle_shutdown(rig.now, &mut rig.out);
            rig.disconnect();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_books_balance_whatever_happens(
        aggregate: bool,
        operations in prop::collection::vec(operation(), 1..120),
    ) {
        let mut rig = Rig::new(aggregate);
        let mut books = Books::default();
        rig.set_up(0);
        for operation in &operations {
            apply(&mut rig, &mut books, operation);
            rig.out.close = None;
            books.check(&mut rig);
        }
    }
}

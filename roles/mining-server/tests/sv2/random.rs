//! Random operations: nothing panics, no reserved value is held twice or lost, and what is sent makes sense.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use mining_server::{Event, Settings};
use proptest::prelude::*;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, JobId, RequestId, SequenceNumber, Target};

use crate::support::*;

#[derive(Clone, Debug)]
enum Operation {
    Junk(Vec<u8>),
    OpenStandard(f32, i32),
    OpenExtended(f32, i32, u16),
    Update(u8, f32, i32),
    Close(u8),
    Submit { channel: u8, job: u8, nonce: u32, size: u8, standard: bool },
    GoodShare(u8),
    Job,
    Block,
    Redial(usize),
    Live(bool),
    OpenFailed(u8),
    Wait(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let rate = prop_oneof![Just(1e12f32), Just(f32::NAN), Just(0.0), 1.0..1e6f32];
    let exponent = prop_oneof![Just(-40), Just(300), -32..0];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 6..80).prop_map(Operation::Junk),
        4 => (rate.clone(), exponent.clone()).prop_map(|(rate, max)| Operation::OpenStandard(rate, max)),
        4 => (rate.clone(), exponent.clone(), 0..40u16)
            .prop_map(|(rate, max, size)| Operation::OpenExtended(rate, max, size)),
        2 => (any::<u8>(), rate, exponent)
            .prop_map(|(channel, rate, max)| Operation::Update(channel, rate, max)),
        2 => any::<u8>().prop_map(Operation::Close),
        6 => (any::<u8>(), any::<u8>(), any::<u32>(), 0..33u8, any::<bool>()).prop_map(
            |(channel, job, nonce, size, standard)| Operation::Submit { channel, job, nonce, size, standard }
        ),
        6 => any::<u8>().prop_map(Operation::GoodShare),
        3 => Just(Operation::Job),
        2 => Just(Operation::Block),
        1 => (8..33usize).prop_map(Operation::Redial),
        1 => any::<bool>().prop_map(Operation::Live),
        1 => any::<u8>().prop_map(Operation::OpenFailed),
        4 => (0..40_000u64).prop_map(Operation::Wait),
    ]
}

/// What a peer that understands everything knows.
#[derive(Default)]
struct Peer {
    channels: HashMap<ChannelId, Opened>,
    targets: HashMap<ChannelId, Target>,
    futures: HashSet<JobId>,
    wanted: Vec<ChannelId>,
}

impl Peer {
    fn hear(&mut self, messages: Vec<Message>) {
        for message in messages {
            match message {
                Message::OpenExtendedMiningChannelSuccess(success) => self.opened(Opened::from(success)),
                Message::OpenStandardMiningChannelSuccess(success) => self.opened(Opened::from(success)),
                Message::SetTarget(told) => {
                    let before = self.targets.insert(told.channel_id, told.maximum_target);
                    assert_ne!(before, Some(told.maximum_target), "told for nothing");
                }
                Message::NewMiningJob(job) => {
                    assert!(self.channels.contains_key(&job.channel_id));
                    self.future(job.job_id, job.min_ntime);
                }
                Message::NewExtendedMiningJob(job) => {
                    let members =
                        self.channels.values().filter(|opened| opened.group == job.channel_id).count();
                    assert!(members > 1 || self.channels.contains_key(&job.channel_id));
                    self.future(job.job_id, job.min_ntime);
                }
                Message::SetNewPrevHash(tip) => {
                    assert!(self.futures.contains(&tip.job_id), "no such future job");
                }
                Message::SubmitSharesSuccess(success) => {
                    assert!(success.new_submits_accepted_count > 0);
                    assert!(self.channels.contains_key(&success.channel_id));
                }
                Message::CloseChannel(close) => {
                    self.channels.remove(&close.channel_id).expect("it was open");
                }
                _ => (),
            }
        }
    }

    fn opened(&mut self, opened: Opened) {
        assert!(self.channels.values().all(|other| ![opened.channel, opened.group].contains(&other.channel)));
        assert!(self.channels.values().all(|other| other.group != opened.channel));
        assert!(self.channels.values().all(|other| other.prefix[..4] != opened.prefix[..4]));
        assert!(
            self.channels.values().filter(|other| other.group == opened.group).all(|other| other
                .prefix
                .len()
                + other.size
                == opened.prefix.len() + opened.size)
        );
        self.targets.insert(opened.channel, opened.target);
        self.channels.insert(opened.channel, opened);
    }

    fn future(&mut self, job: JobId, min_ntime: Option<u32>) {
        if min_ntime.is_none() {
            self.futures.insert(job);
        }
    }

    fn channel(&self, seed: u8) -> ChannelId {
        let mut ids: Vec<_> =
            self.channels.values().flat_map(|opened| [opened.channel, opened.group]).collect();
        ids.push(ChannelId(u32::from(seed)));
        ids.sort_unstable();
        ids[usize::from(seed) % ids.len()]
    }
}

struct Run {
    driver: Driver,
    peer: Peer,
    source: Source,
    per_device: bool,
    has_work: bool,
    request: u32,
}

impl Run {
    fn apply(&mut self, operation: Operation) {
        self.request += 1;
        let request_id = RequestId(self.request);
        let user_identity = format!("account.{}", self.request % 5);
        let messages = match operation {
            Operation::Junk(mut frame) => {
                let length = (frame.len() - 6) as u32;
                frame[3..6].copy_from_slice(&length.to_le_bytes()[..3]);
                self.driver.send_frame(&frame)
            }
            Operation::OpenStandard(nominal_hash_rate, max) => self.driver.send(OpenStandardMiningChannel {
                request_id,
                user_identity,
                nominal_hash_rate,
                max_target: difficulty(max),
            }),
            Operation::OpenExtended(nominal_hash_rate, max, min_extranonce_size) => {
                self.driver.send(OpenExtendedMiningChannel {
                    request_id,
                    user_identity,
                    nominal_hash_rate,
                    max_target: difficulty(max),
                    min_extranonce_size,
                })
            }
            Operation::Update(channel, nominal_hash_rate, max) => self.driver.send(UpdateChannel {
                channel_id: self.peer.channel(channel),
                nominal_hash_rate,
                maximum_target: difficulty(max),
            }),
            Operation::Close(channel) => {
                let channel_id = self.peer.channel(channel);
                self.peer.channels.retain(|id, opened| *id != channel_id && opened.group != channel_id);
                self.driver.send(CloseChannel { channel_id, reason_code: "x".to_owned() })
            }
            Operation::Submit { channel, job, nonce, size, standard } => {
                self.submit(channel, job, nonce, size, standard)
            }
            Operation::GoodShare(channel) => self.good_share(channel),
            Operation::Job => self.publish(|source, now| source.job(now)),
            Operation::Block => self.publish(|source, now| source.block(now)),
            Operation::Redial(size) => self.publish(|source, now| source.redialled(&[size as u8], size, now)),
            Operation::Live(live) if self.has_work => self.publish(|source, _| source.set_live(live)),
            Operation::Live(_) => Vec::new(),
            Operation::OpenFailed(channel) if self.per_device => {
                let channel = self.peer.channel(channel);
                self.driver.open_failed(channel, "failed")
            }
            Operation::OpenFailed(_) => Vec::new(),
            Operation::Wait(milliseconds) => self.driver.wait(Duration::from_millis(milliseconds)),
        };
        self.peer.hear(messages);
        self.answer_wishes();
    }

    fn submit(&mut self, channel: u8, job: u8, nonce: u32, size: u8, standard: bool) -> Vec<Message> {
        let channel_id = self.peer.channel(channel);
        let sequence_number = SequenceNumber(nonce);
        let job_id = JobId(u32::from(job));
        let (ntime, version) = (self.driver.now.unix_seconds(), nonce);
        if standard {
            let share = SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version };
            return self.driver.send(share);
        }
        self.driver.send(SubmitSharesExtended {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
            extranonce: vec![1; usize::from(size)],
            user_identity: None,
        })
    }

    /// A share that an extended channel finds for the newest job. Targets are too hard for some channels.
    fn good_share(&mut self, channel: u8) -> Vec<Message> {
        let id = self.peer.channel(channel);
        let Some(opened) = self.peer.channels.get(&id).filter(|opened| opened.size > 0) else {
            return Vec::new();
        };
        let target = self.peer.targets[&id];
        if target < difficulty(-22) || self.source.rollable_size < opened.prefix.len() + opened.size {
            return Vec::new();
        }
        let share =
            find_share(opened, &self.source.work().active().job, target, self.request.into(), self.request);
        self.driver.send(share)
    }

    fn publish(
        &mut self,
        make: impl FnOnce(&mut Source, stratum::Now) -> std::sync::Arc<mining_server::Work>,
    ) -> Vec<Message> {
        let work = make(&mut self.source, self.driver.now);
        self.has_work = true;
        if !self.per_device {
            return self.driver.work(&work);
        }
        let mut ids: Vec<_> = self.peer.channels.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().flat_map(|id| self.driver.work_of(Some(id), &work)).collect()
    }

    /// With a channel per device, every third wish for an upstream channel comes true at once.
    fn answer_wishes(&mut self) {
        for event in std::mem::take(&mut self.driver.events) {
            match event {
                Event::OpenUpstream { channel, .. } => self.peer.wanted.push(channel),
                Event::CloseUpstream { channel } => self.peer.wanted.retain(|wanted| *wanted != channel),
                _ => (),
            }
        }
        if self.has_work
            && self.request.is_multiple_of(3)
            && let Some(channel) = self.peer.wanted.pop()
        {
            let messages = self.driver.work_of(Some(channel), &self.source.work());
            self.peer.hear(messages);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_peer_or_an_upstream_does_breaks_a_connection(
        per_device in any::<bool>(),
        flags in prop_oneof![Just(0u32), Just(1), Just(4)],
        operations in prop::collection::vec(operation(), 1..80),
    ) {
        let settings = Settings { channel_per_device: per_device, ..settings() };
        let mut run = Run {
            driver: Driver::set_up(settings, flags),
            peer: Peer::default(),
            source: Source::new(),
            per_device,
            has_work: false,
            request: 0,
        };
        for operation in operations {
            run.apply(operation);
            if run.driver.closed.is_some() {
                break;
            }
            prop_assert_eq!(run.driver.connection.channel_count(), run.peer.channels.len());
        }
        run.driver.close();
        prop_assert!(run.driver.registry.held.is_empty());
    }
}

//! The books against a reference that keeps every entry and adds up what it is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use stratum::{ChannelId, ConnectionId, Difficulty, Now, SequenceNumber, UpstreamChannelId, Work};

use super::*;
use crate::codec::PackedSums;
use crate::entry::PowerEntry;
use crate::power::{EnergySums, PowerSource};
use crate::record::{
    DropReason, HeldRelease, HoldNumber, LossReason, RejectReason, ReleaseFate, UpstreamAnswer,
    UpstreamVerdict,
};
use crate::rollup::{DeviceRow, EventRow, Facts, RollUp};
use crate::sums::{AnswerSums, ShareSums, Sums};

mod energy;

const START: u64 = 1_795_645_000;

fn at(seconds: u64) -> Now {
    let time = Duration::from_secs(START + seconds);
    Now { monotonic: time, utc: time }
}

/// What a test lets happen.
#[derive(Clone, Debug)]
enum Step {
    Share {
        device: Option<u32>,
        upstream: u16,
        kind: u8,
        exponent: u8,
    },
    Acknowledge {
        upstream: u16,
        channel: u32,
        count: u32,
    },
    /// The oldest share that is held for it is forwarded or dropped.
    Release {
        upstream: u16,
        is_forwarded: bool,
    },
    Refuse {
        upstream: u16,
        channel: u32,
    },
    Lose {
        upstream: u16,
        channel: u32,
    },
    /// Of the group of odd devices where no device is named.
    Power {
        device: Option<u32>,
        source: u8,
        watts: u32,
        valid_for_s: u32,
    },
    Wait(u64),
    Stop,
    Restart,
    Store,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (prop::option::weighted(0.9, 0_u32..6), 0_u16..3, 0_u8..18, 0_u8..40)
            .prop_map(|(device, upstream, kind, exponent)| Step::Share { device, upstream, kind, exponent }),
        4 => (0_u16..3, 0_u32..2, 1_u32..6)
            .prop_map(|(upstream, channel, count)| Step::Acknowledge { upstream, channel, count }),
        5 => (0_u16..3, prop::bool::weighted(0.7))
            .prop_map(|(upstream, is_forwarded)| Step::Release { upstream, is_forwarded }),
        2 => (0_u16..3, 0_u32..2).prop_map(|(upstream, channel)| Step::Refuse { upstream, channel }),
        1 => (0_u16..3, 0_u32..2).prop_map(|(upstream, channel)| Step::Lose { upstream, channel }),
        4 => (prop::option::of(0_u32..6), 0_u8..4, 0_u32..5000, 0_u32..200)
            .prop_map(|(device, source, watts, valid_for_s)| Step::Power { device, source, watts, valid_for_s }),
        4 => (1_u64..4000).prop_map(Step::Wait),
        4 => (1_u64..50).prop_map(Step::Wait),
        1 => Just(Step::Stop),
        1 => Just(Step::Restart),
        2 => Just(Step::Store),
    ]
}

/// Number, device and work of a share that waits, and when it was judged.
type Waiting = (u32, Option<u32>, u128, u64);

/// A share that is held: its number, device, channel and work.
type Holding = (u16, Option<u32>, u32, u128);

/// When, whose, at which upstream, what, and the work.
type FateOfShare = (u64, Option<u32>, u16, &'static str, u128);

/// Keeps everything, and makes the entries that a program would make. Deliberately simple.
#[derive(Default)]
struct World {
    seconds: u64,
    entries: Vec<Entry>,
    /// By upstream and channel.
    waiting: BTreeMap<(u16, u32), Vec<Waiting>>,
    next: BTreeMap<(u16, u32), u32>,
    /// By upstream, oldest first.
    held: BTreeMap<u16, Vec<Holding>>,
    last_hold: u16,
    releases: Vec<Released>,
    /// What became of forwarded shares by device: acknowledged, refused, lost, each with the time.
    fates: Vec<FateOfShare>,
    /// How long each answer took, by upstream.
    latencies: Vec<(u16, u64)>,
}

/// A held share of which it is known what became of it: when, whose, at which upstream, and its work when it was held and
/// now.
struct Released {
    seconds: u64,
    device: Option<u32>,
    upstream: u16,
    fate: Fate,
    held_work: Work,
    work: Work,
}

impl World {
    fn share(&mut self, device: Option<u32>, upstream: u16, kind: u8, exponent: u8) {
        let channel = device.unwrap_or(0) % 2;
        let work = 1_u128 << exponent;
        let (verdict, fate) = match kind {
            0..=9 if kind < 4 => (Verdict::Rejected(RejectReason::ALL[usize::from(kind)]), Fate::Refused),
            4 => (Verdict::Accepted, Fate::BelowUpstreamTarget),
            5 => (Verdict::Accepted, Fate::Dropped(DropReason::QueueFull)),
            6 => (Verdict::BlockFound, Fate::Forwarded),
            7 => (Verdict::Accepted, Fate::Kept),
            16 => (Verdict::Accepted, self.hold(device, upstream, 3 * work)),
            17 => (Verdict::BlockFound, self.hold(device, upstream, 3 * work)),
            _ => (Verdict::Accepted, Fate::Forwarded),
        };
        let mut sequence_number = None;
        if fate == Fate::Forwarded {
            sequence_number = Some(self.forward(device, upstream, channel, 3 * work));
        }
        let is_worth = matches!(fate, Fate::Forwarded | Fate::Dropped(_) | Fate::Held(_));
        self.entries.push(Entry::Share(ShareRecord {
            judged: at(self.seconds),
            device: device.map(DeviceId),
            connection: ConnectionId(1),
            channel: ChannelId(0),
            upstream: Some(UpstreamId(upstream)),
            upstream_channel: Some(UpstreamChannelId(channel)),
            job: None,
            verdict,
            fate,
            sequence_number,
            submitted: Work(work),
            upstream_work: Work(if is_worth { 3 * work } else { 0 }),
            difficulty: Some(Difficulty(f64::from(exponent))),
            job_age_ms: 0,
            version: 0,
            ntime: 0,
            nonce: 0,
            rollable: Default::default(),
        }));
    }

    fn forward(&mut self, device: Option<u32>, upstream: u16, channel: u32, work: u128) -> SequenceNumber {
        let next = self.next.entry((upstream, channel)).or_insert(u32::MAX - 2);
        *next = next.wrapping_add(1);
        self.waiting.entry((upstream, channel)).or_default().push((*next, device, work, self.seconds));
        SequenceNumber(*next)
    }

    fn hold(&mut self, device: Option<u32>, upstream: u16, work: u128) -> Fate {
        self.last_hold += 1;
        let share = (self.last_hold, device, device.unwrap_or(0) % 2, work);
        self.held.entry(upstream).or_default().push(share);
        Fate::Held(HoldNumber::new(self.last_hold))
    }

    fn release(&mut self, upstream: u16, is_forwarded: bool) {
        let held = self.held.entry(upstream).or_default();
        if held.is_empty() {
            return;
        }
        let (number, device, channel, held_work) = held.remove(0);
        // The target changed while every third of them waited.
        let has_changed = number % 3 == 0;
        let (fate, work) = match (is_forwarded, has_changed) {
            (true, false) => {
                (ReleaseFate::Forwarded(self.forward(device, upstream, channel, held_work)), held_work)
            }
            (true, true) => {
                let work = held_work / 3;
                (ReleaseFate::Forwarded(self.forward(device, upstream, channel, work)), work)
            }
            (false, false) => (ReleaseFate::Dropped(DropReason::EpochEnded), held_work),
            (false, true) => (ReleaseFate::BelowUpstreamTarget, 0),
        };
        self.entries.push(Entry::Release(HeldRelease {
            released: at(self.seconds),
            device: device.map(DeviceId),
            upstream: UpstreamId(upstream),
            upstream_channel: UpstreamChannelId(channel),
            number: HoldNumber::new(number),
            fate,
            held_work: Work(held_work),
            work: Work(work),
        }));
        self.releases.push(Released {
            seconds: self.seconds,
            device,
            upstream,
            fate: fate.of_share(),
            held_work: Work(held_work),
            work: Work(work),
        });
    }

    fn answer(&mut self, upstream: u16, channel: u32, verdict: UpstreamVerdict) {
        self.entries.push(Entry::Answer(UpstreamAnswer {
            received: at(self.seconds),
            upstream: UpstreamId(upstream),
            channel: UpstreamChannelId(channel),
            verdict,
        }));
    }

    /// Answers the oldest `count` waiting shares of a channel, or all.
    fn answer_some(&mut self, upstream: u16, channel: u32, count: usize, fate: &'static str) {
        let waiting = self.waiting.entry((upstream, channel)).or_default();
        let shares: Vec<_> = waiting.drain(..count.min(waiting.len())).collect();
        let Some((last, ..)) = shares.last().copied() else { return };
        let (count, work) = (shares.len() as u32, Work(shares.iter().map(|(_, _, work, _)| work).sum()));
        let last = SequenceNumber(last);
        let verdict = match fate {
            "acknowledged" => {
                UpstreamVerdict::Acknowledged { last, count, claimed: count, shares_sum: 0, work }
            }
            _ => UpstreamVerdict::Lost { last, count, reason: LossReason::ConnectionEnded, work },
        };
        self.answer(upstream, channel, verdict);
        let time = self.seconds;
        self.fates.extend(shares.iter().map(|(_, device, work, _)| (time, *device, upstream, fate, *work)));
        if fate == "acknowledged" {
            self.latencies.extend(shares.iter().map(|(.., judged)| (upstream, time - judged)));
        }
    }

    fn refuse(&mut self, upstream: u16, channel: u32) {
        let waiting = self.waiting.entry((upstream, channel)).or_default();
        if waiting.is_empty() {
            return;
        }
        let (number, device, work, judged) = waiting.remove(waiting.len() / 2);
        self.latencies.push((upstream, self.seconds - judged));
        let (sequence_number, code) = (SequenceNumber(number), "stale-share".to_owned());
        self.answer(upstream, channel, UpstreamVerdict::Rejected { sequence_number, code, work: Work(work) });
        self.fates.push((self.seconds, device, upstream, "refused", work));
    }

    fn event(&mut self, kind: EventKind) {
        let at_us = (START + self.seconds) * 1_000_000;
        self.entries.push(Entry::Event(EventEntry { at_us, kind, device: None, text: String::new() }));
    }

    fn restart(&mut self) {
        self.event(EventKind::Started);
        for ((upstream, _), shares) in std::mem::take(&mut self.waiting) {
            for (_, device, work, _) in shares {
                self.fates.push((self.seconds, device, upstream, "process ended", work));
            }
        }
        for (upstream, shares) in std::mem::take(&mut self.held) {
            for (_, device, _, work) in shares {
                let fate = Fate::Dropped(DropReason::ProcessEnded);
                let (seconds, work) = (self.seconds, Work(work));
                self.releases.push(Released { seconds, device, upstream, fate, held_work: work, work });
            }
        }
        self.next.clear();
    }

    /// The sums of what a filter lets pass, by adding up everything.
    fn sums(&self, wanted: impl Fn(u64, Option<u32>, u16) -> bool) -> Sums {
        let mut sums = Sums::default();
        for entry in &self.entries {
            let Entry::Share(share) = entry else { continue };
            let seconds = share.judged.utc.as_secs() - START;
            let upstream = share.upstream.expect("every share has one").0;
            if !wanted(seconds, share.device.map(|device| device.0), upstream) {
                continue;
            }
            sums.shares.add_share(share);
            sums.squared_work += (share.credited().0 as f64).powi(2);
            if share.fate == Fate::Forwarded {
                sums.answers.forwarded += 1;
                sums.answers.forwarded_work += share.upstream_work;
            }
        }
        for &Released { seconds, device, upstream, fate, held_work, work } in &self.releases {
            if !wanted(seconds, device, upstream) {
                continue;
            }
            sums.shares.released += 1;
            sums.shares.released_work += held_work;
            match fate {
                Fate::Dropped(reason) => {
                    sums.shares.dropped[reason as usize] += 1;
                    sums.shares.dropped_work[reason as usize] += work;
                }
                Fate::BelowUpstreamTarget => sums.shares.below_upstream_target += 1,
                _ => {
                    sums.shares.forwarded += 1;
                    sums.shares.forwarded_work += work;
                    sums.answers.forwarded += 1;
                    sums.answers.forwarded_work += work;
                }
            }
        }
        for (time, device, upstream, fate, work) in &self.fates {
            if !wanted(*time, *device, *upstream) {
                continue;
            }
            let answers = &mut sums.answers;
            let (count, sum) = match *fate {
                "acknowledged" => (&mut answers.acknowledged, &mut answers.acknowledged_work),
                "refused" => (&mut answers.refused, &mut answers.refused_work),
                "process ended" => (&mut answers.lost[3], &mut answers.lost_work[3]),
                _ => (&mut answers.lost[1], &mut answers.lost_work[1]),
            };
            *count += 1;
            *sum += Work(*work);
        }
        sums
    }

    fn of(&self, subject: Subject) -> Sums {
        self.between(subject, 0, u64::MAX)
    }

    fn between(&self, subject: Subject, from: u64, to: u64) -> Sums {
        let is_wanted = |time: u64, device: Option<u32>, upstream: u16| {
            (from..to).contains(&(START + time))
                && match subject {
                    Subject::Fleet => true,
                    Subject::Untracked => device.is_none(),
                    Subject::Device(id) => device == Some(id.0),
                    Subject::Upstream(id) => upstream == id.0,
                    Subject::Group(_) => device.is_some_and(|device| device % 2 == 1),
                }
        };
        let mut sums = self.sums(is_wanted);
        let parts = energy::parts(&self.entries).into_iter().filter(|part| (from..to).contains(&part.minute));
        parts.for_each(|part| sums.energy.add(&energy::of(&self.entries, &part, subject)));
        sums
    }
}

fn subjects() -> Vec<Subject> {
    let mut all = vec![Subject::Fleet, Subject::Untracked, Subject::Group(GroupId(0))];
    all.extend((0..6).map(|id| Subject::Device(DeviceId(id))));
    all.extend((0..3).map(|id| Subject::Upstream(UpstreamId(id))));
    all
}

/// A store that keeps rollups as any store must: whole values in place of earlier ones.
#[derive(Default)]
struct Kept {
    sums: BTreeMap<Subject, PackedSums>,
    devices: BTreeMap<DeviceId, DeviceRow>,
    groups: BTreeMap<GroupId, Arc<str>>,
    upstreams: BTreeMap<UpstreamId, (Arc<str>, Arc<str>)>,
    points: BTreeMap<(Level, Subject, u64), PackedSums>,
    /// As a whole: of what changes by and by, everything that was said.
    facts: Facts,
    /// How many entries are in all that.
    applied: usize,
    /// The entry of the oldest share that waits.
    waiting_from: usize,
}

impl Kept {
    fn take(&mut self, roll_up: RollUp, applied: usize) {
        // In this test each entry is a batch.
        self.waiting_from = roll_up.waiting_from.0 as usize - 1;
        self.sums.extend(roll_up.sums);
        self.devices.extend(roll_up.devices.into_iter().map(|row| (row.id, row)));
        self.groups.extend(roll_up.groups);
        self.upstreams.extend(roll_up.upstreams.into_iter().map(|(id, name, account)| (id, (name, account))));
        let points = roll_up.points.into_iter();
        self.points.extend(points.map(|point| ((point.level, point.subject, point.start), point.sums)));
        self.take_facts(roll_up.facts);
        self.applied = applied;
    }

    fn take_facts(&mut self, facts: Facts) {
        let Facts { mut power, mut events, mut blocks, .. } = std::mem::take(&mut self.facts);
        power.retain(|row| {
            !facts.power.iter().any(|new| (new.subject, new.source) == (row.subject, row.source))
        });
        power.extend_from_slice(&facts.power);
        events.extend_from_slice(&facts.events);
        blocks.extend_from_slice(&facts.blocks);
        self.facts = Facts { power, events, blocks, ..facts };
    }

    fn restore(&self) -> Books {
        let latest = |level| self.points.keys().filter(|key| key.0 == level).map(|key| key.2).max();
        let open = self.points.iter().filter(|((level, _, start), _)| latest(*level) == Some(*start));
        let open_points: Vec<Point> = open
            .map(|((level, subject, start), sums)| Point {
                subject: *subject,
                level: *level,
                start: *start,
                sums: sums.clone(),
            })
            .collect();
        let sums: Vec<_> = self.sums.iter().map(|(subject, sums)| (*subject, sums.clone())).collect();
        let devices: Vec<_> = self.devices.values().cloned().collect();
        let groups: Vec<_> = self.groups.iter().map(|(id, name)| (*id, name.clone())).collect();
        let upstreams: Vec<_> =
            self.upstreams.iter().map(|(id, (name, account))| (*id, name.clone(), account.clone())).collect();
        Books::restore(Restored {
            sums: &sums,
            devices: &devices,
            groups: &groups,
            upstreams: &upstreams,
            open_points: &open_points,
            facts: &self.facts,
        })
    }
}

fn device(id: u32, groups: &[GroupId]) -> Entry {
    Entry::Device(DeviceEntry {
        id: DeviceId(id),
        at_us: START * 1_000_000,
        name: format!("farm.{id}"),
        worker_name: if id == 2 { "farm.shared".to_owned() } else { String::new() },
        groups: if id % 2 == 1 { groups.to_vec() } else { Vec::new() },
        address: String::new(),
        user_agent: String::new(),
        device_id: String::new(),
    })
}

fn apply(books: &mut Books, entries: &[Entry], from: usize) {
    for (index, entry) in entries.iter().enumerate().skip(from) {
        books.begin_batch(BatchNumber(index as u64 + 1));
        books.apply(entry);
    }
}

fn play(steps: &[Step]) -> (World, Books, Kept) {
    let (mut world, mut books, mut kept) = (World::default(), Books::default(), Kept::default());
    let group = books.group("odd").expect("there is room");
    world.entries.extend((0..6).map(|id| device(id, &[group])));
    let mut applied = 0;
    for step in steps {
        match *step {
            Step::Share { device, upstream, kind, exponent } => world.share(device, upstream, kind, exponent),
            Step::Acknowledge { upstream, channel, count } => {
                world.answer_some(upstream, channel, count as usize, "acknowledged");
            }
            Step::Release { upstream, is_forwarded } => world.release(upstream, is_forwarded),
            Step::Refuse { upstream, channel } => world.refuse(upstream, channel),
            Step::Lose { upstream, channel } => world.answer_some(upstream, channel, usize::MAX, "lost"),
            Step::Power { device, source, watts, valid_for_s } => {
                let subject = device.map_or(Subject::Group(group), |id| Subject::Device(DeviceId(id)));
                let source = PowerSource::ALL[usize::from(source)];
                let milliwatts = 1000 * u64::from(watts) + 1;
                let at_us = (START + world.seconds) * 1_000_000;
                world.entries.push(Entry::Power(PowerEntry {
                    subject,
                    at_us,
                    valid_for_s,
                    milliwatts,
                    source,
                }));
            }
            Step::Wait(seconds) => {
                world.seconds += seconds;
                if books.is_in_later_minute((START + world.seconds) * 1_000_000) {
                    world.entries.extend(books.minute_to_end().map(Entry::MinuteEnded));
                    books.end_open_part();
                    while books.close_some(2) {}
                }
            }
            Step::Stop => world.event(EventKind::Ended),
            Step::Store => kept.take(roll_up_in_pieces(&mut books, applied), applied),
            Step::Restart => {
                // What was not rolled up is read again from the stream.
                books = kept.restore();
                let group = books.group("odd").expect("there is room");
                assert_eq!(group, GroupId(0));
                let from = kept.waiting_from.min(kept.applied);
                world.entries[from..kept.applied].iter().enumerate().for_each(|(index, entry)| {
                    books.begin_batch(BatchNumber((from + index + 1) as u64));
                    books.recall(entry);
                });
                apply(&mut books, &world.entries[..applied], kept.applied);
                world.restart();
            }
        }
        apply(&mut books, &world.entries, applied);
        applied = world.entries.len();
        assert_eq!(violation_in_pieces(&books), None);
    }
    kept.take(books.roll_up(BatchNumber(applied as u64)), applied);
    (world, books, kept)
}

fn roll_up_in_pieces(books: &mut Books, applied: usize) -> RollUp {
    while books.close_some(3) {}
    let mut roll_up = books.begin_roll_up(BatchNumber(applied as u64));
    while books.roll_up_some(&mut roll_up, 2) {}
    roll_up
}

fn violation_in_pieces(books: &Books) -> Option<String> {
    let mut check = books.begin_check().expect("the fleet's sums hold");
    while books.check_some(&mut check, 2) {}
    books.end_check(&check)
}

/// An answer whose detail is lost while its share's is not, and then the end of the process.
#[test]
fn an_answer_in_a_gap_is_not_counted_again_when_the_process_ends() {
    let mut world = World::default();
    world.share(Some(1), 0, 9, 3);
    world.share(Some(1), 0, 9, 5);
    let mut books = Books::default();
    world.entries.iter().for_each(|entry| books.apply(entry));
    let mut answers = AnswerSums::default();
    (answers.acknowledged, answers.acknowledged_work) = (1, Work(24));
    let upstreams = vec![(UpstreamId(0), Sums { answers, ..Sums::default() })];
    let time = START * 1_000_000;
    let gap = Gap { from_us: time, to_us: time, records: 1, upstreams, ..Gap::default() };
    books.apply(&Entry::Gap(gap));
    assert_eq!(books.violation(), None);
    world.restart();
    books.apply(world.entries.last().expect("a restart is an event"));
    assert_eq!(books.violation(), None);
    let fleet = books.view(Subject::Fleet, 0).expect("it is always there").sums.answers;
    assert_eq!((fleet.acknowledged, fleet.lost_total(), fleet.pending()), (1, 1, 0));
    // Nobody knows which of the two it was.
    let nobody = books.view(Subject::Untracked, 0).expect("it is always there").sums.answers;
    assert_eq!((nobody.acknowledged, nobody.lost_total()), (1, 1));
}

/// Equal, but for what adding floats in another order does, and for how a group's energy is shared out among its devices.
fn assert_same(ours: &Sums, truth: &Sums, subject: Subject, what: &str) {
    let (mut ours, mut truth) = (ours.clone(), truth.clone());
    if matches!(subject, Subject::Device(id) if id.0 % 2 == 1) {
        ours.energy.millijoules = truth.energy.millijoules;
    }
    let (a, b) = (std::mem::take(&mut ours.squared_work), std::mem::take(&mut truth.squared_work));
    assert!((a - b).abs() <= 1e-9 * b, "{what}: {a} and {b}");
    assert_eq!(ours, truth, "{what}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_figure_is_what_adding_everything_up_says(steps in prop::collection::vec(step(), 1..120)) {
        let (world, books, kept) = play(&steps);
        for subject in subjects() {
            let ours = books.view(subject, u64::MAX).map(|view| view.sums).unwrap_or_default();
            assert_same(&ours, &world.of(subject), subject, &format!("{subject:?}"));
            let stored = kept.sums.get(&subject).cloned().unwrap_or_default();
            assert_same(&stored.sums(), &ours, subject, &format!("{subject:?}, stored"));
        }
        for ((level, subject, start), sums) in &kept.points {
            let truth = world.between(*subject, *start, start + level.seconds());
            assert_same(&sums.sums(), &truth, *subject, &format!("{subject:?} {level:?} from {start}"));
        }
        // Nothing is missing from the points either.
        for level in Level::ALL {
            let mut all = Sums::default();
            let fleet = kept.points.iter().filter(|(key, _)| key.0 == level && key.1 == Subject::Fleet);
            fleet.for_each(|(_, sums)| sums.add_to(&mut all));
            assert_same(&all, &world.of(Subject::Fleet), Subject::Fleet, &format!("all points of {level:?}"));
        }
        assert_facts(&world, &books, &kept.facts);
    }
}

/// What is kept besides sums outlasts restarts as well.
fn assert_facts(world: &World, books: &Books, kept: &Facts) {
    let refused = world.fates.iter().filter(|(.., fate, _)| *fate == "refused").count() as u64;
    assert_eq!(books.totals().refused_by_code.get("stale-share").copied().unwrap_or(0), refused);
    assert_eq!(&kept.refused_by_code, &books.totals().refused_by_code);
    for id in (0..3).map(UpstreamId) {
        let counts = books.refused_by_code(id);
        let sums = books.view(Subject::Upstream(id), 0).map(|view| view.sums).unwrap_or_default();
        assert_eq!(counts.values().sum::<u64>(), sums.answers.refused);
        assert_eq!(kept.refused_by_upstream.get(&id).cloned().unwrap_or_default(), counts);
    }
    for id in 0..3 {
        let mut truth = AckSums::default();
        let of_upstream = world.latencies.iter().filter(|(upstream, _)| *upstream == id);
        of_upstream.for_each(|(_, seconds)| truth.add(seconds * 1_000_000));
        assert_eq!(books.acks(UpstreamId(id)), truth);
        let kept = kept.acks.iter().find(|(upstream, _)| *upstream == UpstreamId(id));
        assert_eq!(kept.map(|(_, acks)| acks.clone()).unwrap_or_default(), truth);
    }
    let events = world.entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => Some(event.clone()),
        _ => None,
    });
    let events: Vec<_> = (1..).zip(events).map(|(number, event)| EventRow { number, event }).collect();
    assert_eq!(kept.events, events, "each once, in order");
    assert!(books.events().eq(&events));
    let blocks = world.entries.iter().filter_map(|entry| match entry {
        Entry::Share(share) if share.verdict == Verdict::BlockFound => Some((share.device, share.judged.utc)),
        _ => None,
    });
    let kept = kept.blocks.iter();
    assert!(kept.clone().map(|block| (block.device, Duration::from_micros(block.found_us))).eq(blocks));
    assert!(kept.map(|block| block.number).eq(1..=books.blocks().len() as u64));
}

#[test]
fn what_comes_late_counts_for_the_open_minute() {
    let mut world = World { seconds: 100, ..World::default() };
    world.share(Some(1), 0, 9, 3);
    world.seconds = 10;
    world.share(Some(1), 0, 9, 3);
    let mut books = Books::default();
    world.entries.iter().for_each(|entry| books.apply(entry));
    let roll_up = books.roll_up(BatchNumber(1));
    let minutes: Vec<_> = roll_up.points.iter().filter(|point| point.level == Level::Minute).collect();
    assert!(minutes.iter().all(|point| point.start == Level::Minute.start(START + 100)), "{minutes:?}");
    assert!(minutes.iter().all(|point| point.sums.sums().shares.submitted == 2));
}

#[test]
fn a_gap_keeps_totals_and_what_is_answered_of_it_is_nobodys() {
    let mut world = World::default();
    world.share(Some(1), 0, 9, 3);
    let Some(Entry::Share(share)) = world.entries.last() else { panic!("a share was made") };
    let mut sums = Sums::default();
    sums.shares.add_share(share);
    let answers = AnswerSums::of_forwarded(share.upstream_work);
    let upstream = Sums { shares: sums.shares.clone(), answers, ..Sums::default() };
    let gap = Gap {
        from_us: START * 1_000_000,
        to_us: START * 1_000_000,
        records: 1,
        devices: vec![(Some(DeviceId(1)), sums)],
        upstreams: vec![(UpstreamId(0), upstream)],
        ..Gap::default()
    };
    let mut books = Books::default();
    books.apply(&Entry::Gap(gap));
    assert_eq!(books.violation(), None);
    assert_eq!((books.totals().folded, books.totals().shares.forwarded), (1, 1));
    // The answer comes with detail again.
    world.answer_some(0, 1, 1, "acknowledged");
    books.apply(world.entries.last().expect("an answer was made"));
    assert_eq!(books.violation(), None);
    let nobody = books.view(Subject::Untracked, 0).expect("it is always there").sums.answers;
    assert_eq!((nobody.forwarded, nobody.acknowledged, nobody.pending()), (1, 1, 0));
}

/// What a process that was killed held is dropped with a reason of its own, whoever's it was, and nothing else is.
#[test]
fn what_was_held_when_the_process_ended_is_dropped_with_that_reason() {
    let mut world = World::default();
    for device in [Some(0), Some(1), Some(1), None] {
        world.share(device, 0, 16, 3);
    }
    world.release(0, true);
    let mut books = Books::default();
    world.entries.iter().for_each(|entry| books.apply(entry));
    let shares = &books.totals().shares;
    assert_eq!((shares.held, shares.released, shares.forwarded, shares.waiting()), (4, 1, 1, 3));
    assert_eq!((shares.waiting_work(), books.violation()), (Work(72), None));
    let from = world.entries.len();
    world.restart();
    apply(&mut books, &world.entries, from);
    let ended = DropReason::ProcessEnded as usize;
    let shares = &books.totals().shares;
    assert_eq!((shares.waiting(), shares.forwarded, shares.dropped[ended]), (0, 1, 3));
    assert_eq!(shares.dropped_work[ended], Work(72));
    assert_eq!(books.violation(), None);
    let dropped = |subject| books.view(subject, 0).expect("it is known").sums.shares.dropped[ended];
    let subjects = [Subject::Device(DeviceId(0)), Subject::Device(DeviceId(1)), Subject::Untracked];
    assert_eq!(subjects.map(dropped), [0, 2, 1]);
    assert_eq!(dropped(Subject::Upstream(UpstreamId(0))), 3);
}

/// A share whose release lost the name of its device: what is left of the device's is dropped when the process ends, and
/// the devices still add up to the fleet.
#[test]
fn a_release_in_a_gap_is_not_counted_again_when_the_process_ends() {
    let mut world = World::default();
    world.share(Some(1), 0, 16, 3);
    world.share(Some(2), 0, 16, 5);
    let mut books = Books::default();
    world.entries.iter().for_each(|entry| books.apply(entry));
    let mut shares = ShareSums::default();
    shares.add_released(ReleaseFate::Dropped(DropReason::QueueFull), 1, Work(24), Work(24));
    let devices = vec![(None, Sums { shares: shares.clone(), ..Sums::default() })];
    let upstreams = vec![(UpstreamId(0), Sums { shares, ..Sums::default() })];
    let time = START * 1_000_000;
    let gap = Gap { from_us: time, to_us: time, records: 1, devices, upstreams, ..Gap::default() };
    books.apply(&Entry::Gap(gap));
    world.restart();
    books.apply(world.entries.last().expect("it began again"));
    let shares = &books.totals().shares;
    assert_eq!((shares.held, shares.released, shares.waiting_work()), (2, 2, Work(0)));
    assert_eq!((shares.dropped[2], shares.dropped[3]), (1, 1));
    assert_eq!(books.violation(), None);
}

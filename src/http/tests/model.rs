//! Every count and every sum of work that the API gives, against a model that keeps each record and counts it when it is
//! asked.

use std::collections::BTreeMap;

use accounting::entry::{DeviceEntry, microseconds};
use accounting::{
    DropReason, Fate, HeldRelease, HoldNumber, LossReason, RejectReason, ReleaseFate, ShareRecord,
    UpstreamAnswer, UpstreamVerdict, Verdict,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use stratum::{DeviceId, Now, SequenceNumber, UpstreamChannelId, UpstreamId, Work};

use super::recorded::{Running, running_on, share};
use super::*;
use crate::sink::{DeviceRules, RecordWriter};

const SHARES: u32 = 3000;

/// Those of hall a are a group.
const NAMES: [&str; 5] = ["farm.a0", "farm.b0", "farm.a1", "farm.b1", "farm.a2"];

const UPSTREAMS: [&str; 2] = ["pool.example:34254", "other.example:1"];

const CODES: [&str; 3] = ["stale-share", "invalid-job-id", "difficulty-too-low"];

/// A share with its latest fate, and what became of it once it was forwarded.
struct Seen {
    share: ShareRecord,
    /// What it was worth when it was recorded as held; `None` when it never was.
    held_work: Option<Work>,
    answer: Option<Said>,
}

#[derive(Clone, Copy, PartialEq)]
enum Said {
    Taken,
    Refused(&'static str),
    Lost(LossReason),
}

/// Makes records, and keeps them.
struct World {
    random: StdRng,
    seen: Vec<Seen>,
    sent: [u32; UPSTREAMS.len()],
    held: u16,
}

impl World {
    fn share(&mut self, now: Now) -> ShareRecord {
        let random = &mut self.random;
        let upstream = random.gen_range(0..UPSTREAMS.len());
        let (verdict, fate) = match random.gen_range(0..4) {
            0 => (
                Verdict::Rejected(RejectReason::ALL[random.gen_range(0..RejectReason::ALL.len())]),
                Fate::Refused,
            ),
            1 => (Verdict::Accepted, Fate::BelowUpstreamTarget),
            2 => (
                if random.gen_bool(0.1) { Verdict::BlockFound } else { Verdict::Accepted },
                match random.gen_range(0..4) {
                    0 => Fate::Kept,
                    1 | 2 => {
                        self.held += 1;
                        Fate::Held(HoldNumber::new(self.held))
                    }
                    _ => Fate::Dropped(DropReason::ALL[random.gen_range(0..DropReason::ALL.len())]),
                },
            ),
            _ => (Verdict::Accepted, Fate::Forwarded),
        };
        let is_known = fate != Fate::Refused || random.gen_bool(0.5);
        let has_device = fate != Fate::Refused || random.gen_bool(0.9);
        let is_worth = !matches!(fate, Fate::Refused | Fate::BelowUpstreamTarget);
        let mut share = share(random.gen_range(0..NAMES.len() as u32), now, verdict);
        share.device = share.device.filter(|_| has_device);
        (share.verdict, share.fate) = (verdict, fate);
        share.upstream = is_known.then_some(UpstreamId(upstream as u16));
        share.upstream_channel = is_known.then_some(UpstreamChannelId(7));
        share.submitted = Work(1 << random.gen_range(0..20));
        share.upstream_work = Work(if is_worth { 1 << random.gen_range(20..24) } else { 0 });
        share.sequence_number = (fate == Fate::Forwarded).then(|| {
            self.sent[upstream] += 1;
            SequenceNumber(self.sent[upstream])
        });
        share
    }

    /// What becomes of a share that is held; `None` when none is.
    fn release(&mut self, now: Now) -> Option<HeldRelease> {
        let is_held = |seen: &usize| matches!(self.seen[*seen].share.fate, Fate::Held(_));
        let held: Vec<usize> = (0..self.seen.len()).filter(is_held).collect();
        let place = *held.get(self.random.gen_range(0..=held.len()))?;
        let mut seen = self.seen.remove(place);
        let Fate::Held(number) = seen.share.fate else { unreachable!("it was looked for") };
        let upstream = seen.share.upstream.expect("its job is known");
        let fate = if self.random.gen_bool(0.7) {
            self.sent[usize::from(upstream.0)] += 1;
            ReleaseFate::Forwarded(SequenceNumber(self.sent[usize::from(upstream.0)]))
        } else if self.random.gen_bool(0.7) {
            ReleaseFate::Dropped(DropReason::ALL[self.random.gen_range(0..DropReason::ALL.len())])
        } else {
            ReleaseFate::BelowUpstreamTarget
        };
        let held_work = seen.share.upstream_work;
        // The target may have changed meanwhile.
        let left = self.random.gen_range(1..=4);
        seen.share.upstream_work = match fate {
            ReleaseFate::BelowUpstreamTarget => Work(0),
            ReleaseFate::Dropped(_) => held_work,
            ReleaseFate::Forwarded(_) => Work(held_work.0 / left),
        };
        let release = HeldRelease {
            released: now,
            device: seen.share.device,
            upstream,
            upstream_channel: UpstreamChannelId(7),
            number,
            fate,
            held_work,
            work: seen.share.upstream_work,
        };
        (seen.share.fate, seen.share.sequence_number) = (fate.of_share(), fate.sequence_number());
        // The list is in the order in which shares were forwarded.
        self.seen.push(seen);
        Some(release)
    }

    /// What an upstream says of some of the oldest shares that wait; `None` when none do.
    fn answer(&mut self, now: Now) -> Option<UpstreamAnswer> {
        let upstream = UpstreamId(self.random.gen_range(0..UPSTREAMS.len() as u16));
        let is_waiting = |seen: &&mut Seen| {
            seen.share.fate == Fate::Forwarded
                && seen.share.upstream == Some(upstream)
                && seen.answer.is_none()
        };
        let mut waiting: Vec<&mut Seen> = self.seen.iter_mut().filter(is_waiting).collect();
        if waiting.is_empty() {
            return None;
        }
        let count = self.random.gen_range(1..=waiting.len().min(20));
        let (code, reason) =
            (CODES[self.random.gen_range(0..CODES.len())], LossReason::ALL[self.random.gen_range(0..3)]);
        let said = [Said::Taken, Said::Refused(code), Said::Lost(reason)][self.random.gen_range(0..3)];
        // One share alone is refused, and it need not be the oldest.
        let told = match said {
            Said::Refused(_) => &mut waiting[count - 1..count],
            _ => &mut waiting[..count],
        };
        let work = Work(told.iter().map(|seen| seen.share.upstream_work.0).sum());
        let last = told[told.len() - 1].share.sequence_number.expect("it was forwarded");
        told.iter_mut().for_each(|seen| seen.answer = Some(said));
        let count = told.len() as u32;
        let verdict = match said {
            Said::Taken => {
                UpstreamVerdict::Acknowledged { last, count, claimed: count, shares_sum: count.into(), work }
            }
            Said::Refused(code) => {
                UpstreamVerdict::Rejected { sequence_number: last, code: code.to_owned(), work }
            }
            Said::Lost(reason) => UpstreamVerdict::Lost { last, count, reason, work },
        };
        Some(UpstreamAnswer { received: now, upstream, channel: UpstreamChannelId(7), verdict })
    }

    fn of(&self, wanted: impl Fn(&ShareRecord) -> bool) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| wanted(&seen.share)).collect()
    }
}

/// How many there are, and their work.
type Sum = (u64, u64);

fn sum(seen: &[&Seen], work: fn(&Seen) -> Work, wanted: impl Fn(&Seen) -> bool) -> Sum {
    let wanted: Vec<&&Seen> = seen.iter().filter(|seen| wanted(seen)).collect();
    (wanted.len() as u64, wanted.iter().map(|seen| work(seen).0 as u64).sum())
}

fn by_name(sums: impl Iterator<Item = (&'static str, Sum)>) -> (Value, Value) {
    let (mut counts, mut works) = (Map::new(), Map::new());
    for (name, (count, work)) in sums {
        counts.insert(name.to_owned(), count.into());
        works.insert(name.to_owned(), work.into());
    }
    (counts.into(), works.into())
}

/// What the API must say of these shares, as `shares` and as `work`.
fn expected(seen: &[&Seen]) -> (Value, Value) {
    let device = |wanted: &dyn Fn(&Seen) -> bool| sum(seen, |seen| seen.share.submitted, wanted);
    let upstream = |wanted: &dyn Fn(&Seen) -> bool| sum(seen, |seen| seen.share.upstream_work, wanted);
    let recorded = |wanted: &dyn Fn(&Seen) -> bool| {
        sum(seen, |seen| seen.held_work.unwrap_or(seen.share.upstream_work), wanted)
    };
    let accepted = |seen: &Seen| !matches!(seen.share.verdict, Verdict::Rejected(_));
    let forwarded = |seen: &Seen| seen.share.fate == Fate::Forwarded;
    let rejected = RejectReason::ALL
        .into_iter()
        .map(|reason| (reason.name(), device(&|seen| seen.share.verdict == Verdict::Rejected(reason))));
    let (rejected, rejected_work) = by_name(rejected);
    let dropped = DropReason::ALL
        .into_iter()
        .map(|reason| (reason.name(), upstream(&|seen| seen.share.fate == Fate::Dropped(reason))));
    let (dropped, dropped_work) = by_name(dropped);
    let lost = LossReason::ALL
        .into_iter()
        .map(|reason| (reason.name(), upstream(&|seen| seen.answer == Some(Said::Lost(reason)))));
    let (lost, lost_work) = by_name(lost);
    let held = recorded(&|seen| seen.held_work.is_some());
    let is_released = |seen: &Seen| seen.held_work.is_some() && !matches!(seen.share.fate, Fate::Held(_));
    let released = recorded(&is_released);
    let taken = upstream(&|seen| seen.answer == Some(Said::Taken));
    let refused = upstream(&|seen| matches!(seen.answer, Some(Said::Refused(_))));
    let pending = upstream(&|seen| forwarded(seen) && seen.answer.is_none());
    let shares = json!({
        "submitted": seen.len(),
        "accepted": device(&accepted).0,
        "blocks_found": device(&|seen| seen.share.verdict == Verdict::BlockFound).0,
        "rejected": rejected,
        "below_upstream_target": device(&|seen| seen.share.fate == Fate::BelowUpstreamTarget).0,
        "forwarded": upstream(&forwarded).0,
        "kept": device(&|seen| seen.share.fate == Fate::Kept).0,
        "dropped": dropped,
        "held": held.0,
        "released": released.0,
        "acknowledged": taken.0,
        "rejected_by_upstream": refused.0,
        "lost": lost,
        "pending": pending.0,
    });
    let work = json!({
        "device_difficulty": {
            "submitted_hashes": device(&|_| true).1,
            "accepted_hashes": device(&accepted).1,
            "rejected_hashes": rejected_work,
        },
        "upstream_target": {
            "accepted_hashes": recorded(&|_| true).1,
            "forwarded_hashes": upstream(&forwarded).1,
            "dropped_hashes": dropped_work,
            "held_hashes": held.1,
            "released_hashes": released.1,
            "acknowledged_hashes": taken.1,
            "rejected_by_upstream_hashes": refused.1,
            "lost_hashes": lost_work,
            "pending_hashes": pending.1,
        },
    });
    (shares, work)
}

fn codes(seen: &[&Seen]) -> Value {
    let mut codes: BTreeMap<&str, u64> = BTreeMap::new();
    for seen in seen {
        if let Some(Said::Refused(code)) = seen.answer {
            *codes.entry(code).or_default() += 1;
        }
    }
    json!(codes)
}

async fn play(running: &Running, seed: u64) -> World {
    let mut world = World { random: StdRng::seed_from_u64(seed), seen: Vec::new(), sent: [0; 2], held: 0 };
    let mut writer: RecordWriter = running.sink.writer();
    let now = running.clock.now();
    for (number, name) in NAMES.into_iter().enumerate() {
        writer.device(DeviceEntry::named(DeviceId(number as u32), name, microseconds(now.utc)));
    }
    for (number, name) in UPSTREAMS.into_iter().enumerate() {
        writer.upstream(UpstreamId(number as u16), name, "account", now);
    }
    for _ in 0..SHARES {
        let share = world.share(now);
        writer.share(share.clone());
        let held_work = matches!(share.fate, Fate::Held(_)).then_some(share.upstream_work);
        world.seen.push(Seen { share, held_work, answer: None });
        if world.random.gen_bool(0.1)
            && let Some(release) = world.release(now)
        {
            writer.release(release);
        }
        if world.random.gen_bool(0.05)
            && let Some(answer) = world.answer(now)
        {
            writer.answer(answer);
        }
    }
    assert!(!writer.is_behind(), "the queue has room for all of it");
    world
}

#[tokio::test]
async fn every_figure_of_the_api_is_that_of_a_naive_count() {
    let seed = rand::random();
    println!("seed {seed}");
    let groups = vec![("hall a".to_owned(), "farm.a*".to_owned())];
    let running =
        running_on(RecordSink::start_in_memory(DeviceRules { groups, ..DeviceRules::default() }).0, None);
    let world = play(&running, seed).await;
    let get = async |path: &str| -> Value {
        serde_json::from_str(&request(running.address, path).await.1).expect("JSON")
    };
    let same = |found: &Value, seen: &[&Seen], what: &str| {
        let (shares, work) = expected(seen);
        assert_eq!(found["shares"], shares, "{what}");
        assert_eq!(found["work"], work, "{what}");
    };
    let all = world.of(|_| true);
    let fleet = get("/api/v1/fleet").await;
    same(&fleet, &all, "the fleet");
    assert_eq!(fleet["rejected_by_upstream_code"], codes(&all));
    let devices = get("/api/v1/devices?limit=100").await;
    for (number, name) in NAMES.into_iter().enumerate() {
        let own = world.of(|share| share.device == Some(DeviceId(number as u32)));
        same(&devices["devices"][NAMES.iter().filter(|other| **other < name).count()], &own, name);
        same(&get(&format!("/api/v1/devices/{name}")).await, &own, name);
    }
    let hall = world.of(|share| share.device.is_some_and(|id| NAMES[id.0 as usize].starts_with("farm.a")));
    same(&get("/api/v1/groups").await["groups"][0], &hall, "the group");
    let upstreams = get("/api/v1/upstreams").await;
    for number in 0..UPSTREAMS.len() {
        let own = world.of(|share| share.upstream == Some(UpstreamId(number as u16)));
        same(&upstreams["upstreams"][number], &own, UPSTREAMS[number]);
        assert_eq!(upstreams["upstreams"][number]["rejected_by_upstream_code"], codes(&own));
    }
    let rejects = get("/api/v1/rejects").await;
    let (shares, work) = expected(&all);
    for (list, counts, works) in [
        ("rejected", &shares["rejected"], &work["device_difficulty"]["rejected_hashes"]),
        ("dropped", &shares["dropped"], &work["upstream_target"]["dropped_hashes"]),
        ("lost", &shares["lost"], &work["upstream_target"]["lost_hashes"]),
    ] {
        for cause in rejects[list].as_array().expect("a list") {
            let reason = cause["reason"].as_str().expect("a name");
            assert_eq!(
                (&cause["shares"], &cause["work_hashes"]),
                (&counts[reason], &works[reason]),
                "{list} {reason}"
            );
        }
    }
}

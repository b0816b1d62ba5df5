//! Statements over shares that really were hashed, and over shares that were not.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use stratum::hash::{Hash, header_hash, merkle_root, sha256d};
use stratum::sv2::AuthoritySecretKey;
use stratum::{
    ChannelId, ConnectionId, DeviceId, JobNumber, Now, SequenceNumber, Target, UpstreamChannelId, UpstreamId,
    UpstreamJobId, Work,
};

use super::check::{Checked, Fault, Following, check, check_contents};
use super::collect::{Counting, Finding, Grown, Members, Period, Picking, Scope};
use super::draw::{Draws, Seed};
use super::forms::{Count, Hex};
use super::sums::StatedSums;
use super::*;
use crate::entry::{Entry, EventEntry, EventKind, Gap, microseconds};
use crate::record::{
    DropReason, Fate, HeldRelease, HoldNumber, LossReason, RejectReason, ReleaseFate, ShareRecord,
    UpstreamAnswer, UpstreamVerdict, Verdict,
};
use crate::sums::{AnswerSums, ShareSums, Sums};

/// 2026-11-25T00:00:00Z, in microseconds.
const START: u64 = 1_795_564_800_000_000;

/// What each share is credited: a hash in sixteen is one.
const CREDITED: u128 = 16;

/// What a share is worth that meets the upstream's target: every eighth of them.
const UPSTREAM: u128 = 128;

fn job() -> JobEntry {
    JobEntry {
        number: JobNumber(77),
        at_us: START - 5,
        upstream: UpstreamId(0),
        upstream_channel: UpstreamChannelId(3),
        upstream_job: UpstreamJobId(9),
        template: None,
        previous_hash: [5; 32],
        nbits: 0x1d00_ffff,
        upstream_target: Target::MAX,
        coinbase_prefix: vec![1; 41],
        rollable_size: 8,
        coinbase_suffix: vec![2; 60],
        merkle_path: vec![[3; 32], [4; 32]],
    }
}

fn hash(job: &JobEntry, share: &ShareRecord) -> Hash {
    let coinbase = [&*job.coinbase_prefix, &*share.rollable, &*job.coinbase_suffix].concat();
    let mut header = [0; 80];
    header[..4].copy_from_slice(&share.version.to_le_bytes());
    header[4..36].copy_from_slice(&job.previous_hash);
    header[36..68].copy_from_slice(&merkle_root(sha256d(&coinbase), &job.merkle_path));
    header[68..72].copy_from_slice(&share.ntime.to_le_bytes());
    header[72..76].copy_from_slice(&job.nbits.to_le_bytes());
    header[76..].copy_from_slice(&share.nonce.to_le_bytes());
    header_hash(&header)
}

fn at(us: u64) -> Now {
    Now { monotonic: Duration::ZERO, utc: Duration::from_micros(us) }
}

/// The share of a second, without a nonce that was looked for. Two share each extranonce.
fn unhashed(number: u32) -> ShareRecord {
    let mut rollable = [0; 8];
    rollable[..4].copy_from_slice(&(number / 2).to_be_bytes());
    ShareRecord {
        judged: at(START + u64::from(number) * 1_000_000),
        device: Some(DeviceId(1)),
        connection: ConnectionId(1),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(3)),
        job: Some(JobNumber(77)),
        verdict: Verdict::Accepted,
        fate: Fate::BelowUpstreamTarget,
        sequence_number: None,
        submitted: Work(CREDITED),
        upstream_work: Work(0),
        difficulty: None,
        job_age_ms: number * 1000,
        version: 0x2000_0000,
        ntime: 1_795_564_800,
        nonce: 0,
        rollable: rollable.into_iter().collect(),
    }
}

/// A share that was hashed until it met its target, and is forwarded when it met the upstream's.
fn hashed(number: u32) -> ShareRecord {
    let mut share = unhashed(number);
    share.nonce = number % 2 * 1000;
    while Target::from_le_bytes(hash(&job(), &share)).work().0 < CREDITED {
        share.nonce += 1;
    }
    if Target::from_le_bytes(hash(&job(), &share)).work().0 >= UPSTREAM {
        share.upstream_work = Work(UPSTREAM);
        share.fate = Fate::Forwarded;
        share.sequence_number = Some(SequenceNumber(number));
    }
    share
}

/// So many hashed shares, each ninth of them refused, and answers.
fn stream(count: u32) -> Vec<Entry> {
    let mut entries = vec![Entry::Job(job())];
    for number in 0..count {
        let mut share = hashed(number);
        if number % 9 == 8 {
            (share.verdict, share.fate) = (Verdict::Rejected(RejectReason::Stale), Fate::Refused);
            (share.sequence_number, share.upstream_work) = (None, Work(0));
        }
        let sequence_number = share.sequence_number;
        let received = share.judged;
        entries.push(Entry::Share(share));
        if let Some(last) = sequence_number {
            let work = Work(UPSTREAM);
            let verdict = UpstreamVerdict::Acknowledged { last, count: 1, claimed: 1, shares_sum: 1, work };
            entries.push(Entry::Answer(UpstreamAnswer {
                received,
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(3),
                verdict,
            }));
        }
    }
    entries
}

fn scope(from_s: u64, to_s: u64) -> Scope {
    let us = |seconds| START + seconds * 1_000_000;
    let period = Period { from_us: us(from_s), to_us: us(to_s), answers_until_us: us(to_s + 3600) };
    Scope { members: Members::Devices([DeviceId(1)].into()), period }
}

fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

/// What a signer does, in memory. The leaves may be changed on the way.
struct Signer<'a> {
    entries: &'a [Entry],
    scope: Scope,
    previous: Option<&'a Statement>,
    challenge: &'a str,
    draws: u32,
}

impl<'a> Signer<'a> {
    fn of(entries: &'a [Entry], scope: Scope) -> Self {
        Signer { entries, scope, previous: None, challenge: "", draws: 8 }
    }

    fn leaves(&self) -> (Vec<Node>, (u64, Node, collect::Counted)) {
        let mut counting = Counting::new(self.scope.clone());
        let leaves = self.entries.iter().filter_map(|entry| counting.apply(entry).expect("little work"));
        let mut leaves: Vec<Node> = leaves.collect();
        leaves.sort_unstable_by_key(|leaf| (leaf.first, leaf.hash));
        (leaves, counting.finish().expect("little work"))
    }

    fn sign(&self) -> SignedStatement {
        let (leaves, counted) = self.leaves();
        self.sign_leaves(&leaves, counted)
    }

    fn sign_leaves(
        &self,
        leaves: &[Node],
        (refused, refused_root, counted): (u64, Node, collect::Counted),
    ) -> SignedStatement {
        let tree = |draws| {
            let mut picking = Picking::new(draws);
            leaves.iter().for_each(|leaf| picking.push(*leaf).expect("little work"));
            picking.finish().expect("little work")
        };
        let Grown { records, root, .. } = tree(Draws::default());
        let Period { from_us, to_us, answers_until_us } = self.scope.period;
        let nothing = AnswerSums::default();
        let statement = Statement {
            ledger: Hex([9; 16]),
            subject: StatedSubject::Device("farm.rig7".to_owned()),
            members: Count(1),
            number: Count(self.previous.map_or(0, |previous| previous.number.0) + 1),
            previous: self.previous.map(|previous| Hex(previous.hash())),
            from_unix_us: Count(from_us),
            to_unix_us: Count(to_us),
            answers_until_unix_us: Count(answers_until_us),
            first_batch: Some(StatedBatch { number: Count(1), hash: Hex([1; 32]) }),
            last_batch: None,
            lost_batches: Count(0),
            root: StatedRoot::of(records, &root),
            refused_root: RefusedRoot { records: Count(refused), hash: Hex(refused_root.hash) },
            sums: StatedSums::of(&counted.shares, &counted.answers),
            without_detail: StatedSums::of(&counted.without_detail, &nothing),
            signed_by: key().public().to_string(),
        };
        let seed = Seed::of(&statement.hash(), self.challenge);
        let picked = tree(Draws::of(seed, self.draws, root.works)).drawn;
        let mut finding = Finding::new(self.scope.clone(), picked);
        self.entries.iter().for_each(|entry| finding.apply(entry));
        let picked = finding.finish().expect("all are there");
        let jobs = BTreeMap::from([(JobNumber(77), job())]);
        let sample = Sample::of(self.challenge.to_owned(), self.draws, picked, &jobs);
        SignedStatement::sign(statement, sample, &key(), &[3; 32])
    }
}

fn checked(signed: &SignedStatement) -> Result<Checked, Fault> {
    let read = SignedStatement::read(signed.to_text().as_bytes()).expect("it was written");
    assert_eq!(&read, signed, "what is written is read");
    check(&read, &key().public(), None)
}

#[test]
fn an_honest_statement_is_right() {
    let entries = stream(200);
    let signed = Signer::of(&entries, scope(0, 200)).sign();
    let found = checked(&signed).expect("it is right");
    assert_eq!((found.credited.draws, found.credited.proved), (8, 8));
    assert_eq!((found.upstream.draws, found.upstream.proved), (8, 8));
    assert_eq!((found.following, found.without_job, found.not_alone), (Following::First, 0, 0));
    assert_eq!(found.tips.keys().copied().collect::<Vec<_>>(), [[5; 32]]);
    let sums = &signed.statement.sums;
    assert_eq!((sums.submitted.shares.0, sums.accepted.shares.0), (200, 178));
    assert_eq!(sums.accepted.hashes.0, Work(178 * CREDITED));
    assert_eq!(sums.acknowledged, sums.forwarded, "the upstream took all that it got");
    assert!(sums.forwarded.shares.0 > 0 && sums.unanswered.shares.0 == 0);
    assert_eq!(signed.statement.refused_root.records.0, 22);
}

#[test]
fn a_period_without_shares_has_a_statement() {
    let signed = Signer::of(&[], scope(0, 200)).sign();
    let found = checked(&signed).expect("it is right");
    assert_eq!((found.credited.draws, found.hashed), (0, 0));
}

#[test]
fn statements_follow_each_other() {
    let entries = stream(100);
    let first = Signer::of(&entries, scope(0, 50)).sign();
    let signer = |scope| Signer { previous: Some(&first.statement), ..Signer::of(&entries, scope) };
    let second = signer(scope(60, 100)).sign();
    let with = |signed: &SignedStatement, previous| check(signed, &key().public(), previous);
    let following = with(&second, Some(&first)).expect("it is right").following;
    assert_eq!(following, Following::Previous { gap_us: 10_000_000 });
    assert_eq!(with(&second, None).expect("as far as it goes").following, Following::NotShown);
    assert_eq!(with(&second, Some(&first)).map(|found| found.hash), Ok(second.statement.hash()));
    let overlapping = signer(scope(49, 100)).sign();
    let broken = [
        (&second, &second),
        (&first, &second),
        (&overlapping, &first),
        // With other refused shares it is another statement.
        (&second, &Signer::of(&entries[..40], scope(0, 50)).sign()),
    ];
    for (signed, previous) in broken {
        assert!(matches!(with(signed, Some(previous)), Err(Fault::Chain(_))));
    }
    let mut unsigned = first.clone();
    unsigned.signature.0[0] ^= 1;
    assert!(matches!(with(&second, Some(&unsigned)), Err(Fault::Chain(_))));
}

#[test]
fn another_key_is_told() {
    let signed = Signer::of(&stream(20), scope(0, 20)).sign();
    let other = AuthoritySecretKey::from_bytes([8; 32]).expect("a key");
    assert!(matches!(check(&signed, &other.public(), None), Err(Fault::OtherKey(_))));
    let mut taken = signed.clone();
    taken.statement.signed_by = other.public().to_string();
    assert_eq!(check(&taken, &other.public(), None), Err(Fault::Signature));
}

#[test]
fn another_sample_is_of_the_same_statement() {
    let entries = stream(100);
    let signer = Signer::of(&entries, scope(0, 100));
    let (one, other) = (signer.sign(), Signer { challenge: "a word", draws: 12, ..signer }.sign());
    assert_eq!(one.statement.hash(), other.statement.hash());
    assert_ne!(one.sample, other.sample);
    assert_eq!(checked(&other).expect("it is right").credited.proved, 12);
}

#[test]
fn work_that_was_not_hashed_is_found() {
    let mut entries = stream(40);
    // Nine of ten shares are made up, so that eight draws and more cannot miss them all.
    entries.extend((1000..1360).map(|number| {
        let share = ShareRecord { nonce: number * 7919, ..unhashed(number) };
        Entry::Share(share)
    }));
    let signed = Signer { draws: 40, ..Signer::of(&entries, scope(0, 2000)) }.sign();
    let Err(Fault::Share { what, .. }) = checked(&signed) else { panic!("it was not noticed") };
    assert!(what.starts_with("hashed again, it proves"), "{what}");
}

#[test]
fn work_that_is_counted_twice_is_found() {
    // Each share comes nine times, each time at another second.
    let mut entries = stream(30);
    let shares: Vec<ShareRecord> = entries
        .iter()
        .filter_map(|entry| if let Entry::Share(share) = entry { Some(share.clone()) } else { None })
        .collect();
    for copy in 1..9 {
        entries.extend(shares.iter().map(|share| {
            let judged = at(START + 100_000_000 * copy + u64::from(share.job_age_ms));
            let share = ShareRecord { judged, ..share.clone() };
            Entry::Share(if share.fate == Fate::Forwarded {
                ShareRecord { fate: Fate::BelowUpstreamTarget, sequence_number: None, ..share }
            } else {
                share
            })
        }));
    }
    let signer = Signer { draws: 20, ..Signer::of(&entries, scope(0, 2000)) };
    let Err(Fault::Share { what, .. }) = checked(&signer.sign()) else { panic!("it was not noticed") };
    assert!(what.contains("counted twice"), "{what}");
    // Copies that are put where nobody looks break the order.
    let (mut leaves, counted) = signer.leaves();
    leaves.sort_by_key(|leaf| leaf.hash);
    let Err(Fault::Share { what, .. }) = checked(&signer.sign_leaves(&leaves, counted)) else {
        panic!("it was not noticed")
    };
    assert!(what.contains("does not lead to the root"), "{what}");
}

#[test]
fn a_root_of_more_work_than_its_leaves_is_found() {
    let entries = stream(40);
    let signer = Signer { draws: 20, ..Signer::of(&entries, scope(0, 200)) };
    let (mut leaves, mut counted) = signer.leaves();
    for leaf in &mut leaves {
        leaf.works.credited.0 *= 10;
        counted.2.shares.credited.0 += 9 * CREDITED;
        counted.2.shares.submitted_work.0 += 9 * CREDITED;
    }
    let Err(Fault::Share { what, .. }) = checked(&signer.sign_leaves(&leaves, counted)) else {
        panic!("it was not noticed")
    };
    assert!(what.contains("does not lead to the root"), "{what}");
}

/// A change that the signer makes, and signs: the fault that is found.
fn signed_change(change: impl FnOnce(&mut Statement, &mut Sample)) -> Fault {
    let SignedStatement { mut statement, mut sample, .. } = Signer::of(&stream(60), scope(0, 60)).sign();
    change(&mut statement, &mut sample);
    let signed = SignedStatement::sign(statement, sample, &key(), &[4; 32]);
    check(&signed, &key().public(), None).expect_err("it is wrong")
}

#[test]
fn what_the_signer_changes_is_found() {
    let share = |fault: &Fault| matches!(fault, Fault::Share { .. });
    let draw = |fault: &Fault| matches!(fault, Fault::Draw(_));
    let statement = |fault: &Fault| matches!(fault, Fault::Statement(_));
    assert!(share(&signed_change(|_, sample| sample.shares[0].nonce ^= 1)));
    assert!(share(&signed_change(|_, sample| sample.shares[0].accepted_hashes.0.0 += 1)));
    assert!(share(&signed_change(|_, sample| sample.shares[0].record.0[9] ^= 1)));
    assert!(share(&signed_change(|_, sample| sample.shares[1].path[0].hash.0[0] ^= 1)));
    assert!(share(&signed_change(|_, sample| sample.jobs[0].coinbase_prefix.0[0] ^= 1)));
    assert!(share(&signed_change(|_, sample| sample.jobs.clear())));
    assert!(draw(&signed_change(|_, sample| sample.shares.clear())));
    assert!(draw(&signed_change(|_, sample| sample.challenge.push('x'))));
    assert!(draw(&signed_change(|_, sample| sample.shares.swap(0, 1))));
    assert!(draw(&signed_change(|_, sample| sample.draws = 0)));
    assert!(draw(&signed_change(|statement, _| statement.members.0 += 1)));
    assert!(statement(&signed_change(|statement, _| statement.sums.accepted.hashes.0.0 += 1)));
    assert!(statement(&signed_change(|statement, _| statement.sums.acknowledged.shares.0 += 1)));
    assert!(statement(&signed_change(|statement, _| statement.sums.unanswered.shares.0 += 1)));
    assert!(statement(&signed_change(|statement, _| statement.refused_root.records.0 += 1)));
    assert!(statement(&signed_change(|statement, _| statement.number.0 = 2)));
    assert!(statement(&signed_change(|statement, _| statement.from_unix_us = statement.to_unix_us)));
}

#[test]
fn a_share_without_its_job_is_not_proved() {
    let SignedStatement { statement, mut sample, .. } = Signer::of(&stream(60), scope(0, 60)).sign();
    sample.shares.iter_mut().for_each(|share| share.job = None);
    sample.jobs.clear();
    let signed = SignedStatement::sign(statement, sample, &key(), &[4; 32]);
    let found = checked(&signed).expect("nothing is wrong");
    assert_eq!((found.credited.proved, found.upstream.proved, found.hashed), (0, 0, 0));
    assert_eq!(found.without_job, signed.sample.shares.len() as u64);
}

#[test]
fn targets_that_were_chosen_after_hashing_are_found() {
    let found = |change: fn(&mut ShareRecord)| {
        let mut entries = stream(400);
        for entry in &mut entries {
            if let Entry::Share(share) = entry
                && share.verdict == Verdict::Accepted
            {
                change(share);
            }
        }
        let signer = Signer { draws: 200, ..Signer::of(&entries, scope(0, 400)) };
        checked(&signer.sign()).expect("nothing is wrong")
    };
    let honest = found(|_| ());
    let mean = honest.credited.mean_part().expect("there are shares");
    assert!((mean - 0.5).abs() < 0.1 && !honest.credited.fits_too_well(), "{mean}");
    assert!(!honest.upstream.fits_too_well());
    // Each share is credited the greatest power of two that its hash happens to meet.
    let fitted = found(|share| {
        let work = Target::from_le_bytes(hash(&job(), share)).work().0;
        share.submitted = Work(1 << work.ilog2());
    });
    assert_eq!(fitted.credited.proved, 200, "each of them meets its target");
    assert!(fitted.credited.fits_too_well(), "{:?}", fitted.credited.mean_part());
}

#[test]
fn a_share_of_another_time_is_not_proved() {
    let days = |count: u64| {
        let entries: Vec<Entry> = stream(30)
            .into_iter()
            .map(|entry| match entry {
                Entry::Share(share) => {
                    let judged = at(microseconds(share.judged.utc) + count * 86_400_000_000);
                    Entry::Share(ShareRecord { judged, ..share })
                }
                entry => entry,
            })
            .collect();
        let found = checked(&Signer::of(&entries, scope(0, 864_000)).sign()).expect("nothing is wrong");
        (found.credited.proved, found.untimely > 0, found.not_alone)
    };
    assert_eq!(days(0), (8, false, 0));
    assert_eq!(days(2), (0, true, 0), "the same shares, stated two days later");
}

#[test]
fn answers_count_for_the_shares_of_the_period_alone() {
    let shares: Vec<ShareRecord> = (0..8)
        .map(|number| ShareRecord {
            fate: Fate::Forwarded,
            sequence_number: Some(SequenceNumber(number)),
            upstream_work: Work(UPSTREAM),
            device: Some(DeviceId(1 + number / 7)),
            ..hashed(number)
        })
        .collect();
    let answer = |second: u64, verdict| {
        let received = at(START + second * 1_000_000);
        Entry::Answer(UpstreamAnswer {
            received,
            upstream: UpstreamId(0),
            channel: UpstreamChannelId(3),
            verdict,
        })
    };
    let work = |count: u128| Work(UPSTREAM * count);
    let acknowledged = |last: u32, count: u32| UpstreamVerdict::Acknowledged {
        last: SequenceNumber(last),
        count,
        claimed: count,
        shares_sum: 1,
        work: work(count.into()),
    };
    let mut entries: Vec<Entry> = shares.into_iter().map(Entry::Share).collect();
    // The first two are of an earlier period, the last one is of another device.
    entries.push(answer(10, acknowledged(3, 4)));
    let code = "stale-share".to_owned();
    entries.push(answer(
        11,
        UpstreamVerdict::Rejected { sequence_number: SequenceNumber(4), code, work: work(1) },
    ));
    let (last, reason) = (SequenceNumber(5), LossReason::Failover);
    entries.push(answer(12, UpstreamVerdict::Lost { last, count: 1, reason, work: work(1) }));
    let mut lost = ShareSums::default();
    (lost.submitted, lost.accepted, lost.kept) = (5, 5, 5);
    let lost = Sums { shares: lost, ..Sums::default() };
    let (from_us, to_us) = (START, START + 3_000_000);
    let devices = vec![(Some(DeviceId(1)), lost.clone()), (Some(DeviceId(2)), lost)];
    entries.push(Entry::Gap(Gap { from_us, to_us, records: 10, devices, ..Gap::default() }));
    let sums = |entries: &[Entry]| Signer::of(entries, scope(2, 9)).sign().statement;
    let statement = sums(&entries);
    assert_eq!(statement.sums.forwarded.shares.0, 5);
    assert_eq!(statement.sums.acknowledged.shares.0, 2);
    assert_eq!((statement.sums.refused.shares.0, statement.sums.lost[0].shares.0), (1, 1));
    assert_eq!(statement.sums.lost[0].reason, "failover");
    assert_eq!(statement.sums.unanswered.shares.0, 1);
    assert_eq!(statement.without_detail.accepted.shares.0, 5, "one device's alone");
    assert_eq!(statement.sums.accepted.shares.0, 5);
    let ended = |second: u64| {
        let at_us = START + second * 1_000_000;
        let event = EventEntry { at_us, kind: EventKind::Started, device: None, text: String::new() };
        let entries = [&entries[..], &[Entry::Event(event)]].concat();
        let sums = sums(&entries).sums;
        (sums.lost.iter().map(|lost| lost.shares.0).sum::<u64>(), sums.unanswered.shares.0)
    };
    assert_eq!(ended(20), (2, 0), "nobody answers a process that has ended");
    assert_eq!(ended(9 + 3600), (1, 1), "that is too late to count");
}

#[test]
fn files_of_strangers_are_refused_with_reasons() {
    let refused = |text: &str| SignedStatement::read(text.as_bytes()).expect_err("it is none").to_string();
    assert!(refused("").starts_with("it is no statement of work: EOF"));
    assert!(refused("{\"format\":\"x\"}").starts_with("it calls itself \"x\""));
    assert!(refused("{\"format\":\"checkweigh statement 2\"}").contains("missing field"));
    let text = Signer::of(&stream(20), scope(0, 20)).sign().to_text();
    let changed = |from: &str, to: &str| refused(&text.replacen(from, to, 1));
    assert!(changed("\"sums\"", "\"summs\"").contains("unknown field"));
    assert!(changed("\"number\": 1", "\"number\": 9007199254740992").contains("2^53"));
    assert!(changed("\"hashes\": \"", "\"hashes\": \"0").contains("decimal"));
    assert!(changed("\"ledger\": \"0909", "\"ledger\": \"09").contains("15 bytes"));
    assert!(changed("\"ledger\": \"0909", "\"ledger\": \"zz09").contains("hexadecimal"));
    let deep = format!("{{\"format\":\"checkweigh statement 2\",\"statement\":{}", "[".repeat(1_000_000));
    assert!(refused(&deep).starts_with("it is no statement"));
}

#[test]
fn white_space_is_not_signed() {
    let signed = Signer::of(&stream(20), scope(0, 20)).sign();
    let compact = serde_json::to_string(&signed).expect("it is written");
    let read = SignedStatement::read(compact.as_bytes()).expect("it is the same");
    assert!(read.is_signed_by(&key().public()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_changed_bit_is_noticed(places in prop::collection::vec((any::<usize>(), 0_u32..8), 40)) {
        let signed = Signer { draws: 2, ..Signer::of(&stream(12), scope(0, 12)) }.sign();
        let bytes = signed.to_text().into_bytes();
        for (place, bit) in places {
            let mut bytes = bytes.clone();
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            let noticed = match SignedStatement::read(&bytes) {
                Err(_) => true,
                Ok(read) => !read.is_signed_by(&key().public()),
            };
            prop_assert!(noticed, "bit {bit} of byte {place}");
        }
    }

    #[test]
    fn statements_over_any_shares_are_right(count in 0_u32..120, from in 0_u64..60, length in 1_u64..100, draws in 1_u32..30) {
        let entries = stream(count);
        let signed = Signer { draws, ..Signer::of(&entries, scope(from, from + length)) }.sign();
        let found = check_contents(&signed, None);
        let found = found.map_err(|fault| TestCaseError::fail(fault.to_string()))?;
        prop_assert_eq!(found.credited.proved, found.credited.draws);
        prop_assert_eq!(found.upstream.proved, found.upstream.draws);
    }
}

#[test]
fn a_held_share_counts_as_forwarded_only_once_it_was_released() {
    let hold = |number: u32| {
        let mut share = hashed(number);
        while Target::from_le_bytes(hash(&job(), &share)).work().0 < UPSTREAM {
            share.nonce += 1;
        }
        (share.upstream_work, share.sequence_number) = (Work(UPSTREAM), None);
        share.fate = Fate::Held(HoldNumber::new(number as u16 + 1));
        Entry::Share(share)
    };
    let release = |number: u32, second: u64, fate| {
        Entry::Release(HeldRelease {
            released: at(START + second * 1_000_000),
            device: Some(DeviceId(1)),
            upstream: UpstreamId(0),
            upstream_channel: UpstreamChannelId(3),
            number: HoldNumber::new(number as u16 + 1),
            fate,
            held_work: Work(UPSTREAM),
            work: Work(UPSTREAM),
        })
    };
    let taken = UpstreamVerdict::Acknowledged {
        last: SequenceNumber(9),
        count: 1,
        claimed: 1,
        shares_sum: 1,
        work: Work(UPSTREAM),
    };
    let mut entries: Vec<Entry> = std::iter::once(Entry::Job(job())).chain((0..4).map(hold)).collect();
    // The first is of an earlier period.
    entries.push(release(0, 10, ReleaseFate::Forwarded(SequenceNumber(8))));
    entries.push(release(2, 11, ReleaseFate::Forwarded(SequenceNumber(9))));
    entries.push(release(3, 12, ReleaseFate::Dropped(DropReason::EpochEnded)));
    entries.push(Entry::Answer(UpstreamAnswer {
        received: at(START + 13_000_000),
        upstream: UpstreamId(0),
        channel: UpstreamChannelId(3),
        verdict: taken,
    }));
    let sums = |entries: &[Entry]| {
        let signed = Signer::of(entries, scope(1, 9)).sign();
        checked(&signed).expect("nothing is wrong");
        let sums = signed.statement.sums;
        let dropped: Vec<_> =
            sums.dropped.iter().map(|dropped| (dropped.reason.clone(), dropped.shares.0)).collect();
        let counts = [sums.accepted, sums.held, sums.released, sums.forwarded, sums.acknowledged];
        (counts.map(|amount| amount.shares.0), dropped)
    };
    let ended = ("epoch_ended".to_owned(), 1);
    assert_eq!(sums(&entries), ([3, 3, 2, 1, 1], vec![ended.clone()]));
    let at_us = START + 20_000_000;
    let started = EventEntry { at_us, kind: EventKind::Started, device: None, text: String::new() };
    entries.push(Entry::Event(started));
    let killed = ("process_ended".to_owned(), 1);
    assert_eq!(sums(&entries), ([3, 3, 3, 1, 1], vec![ended, killed]));
    // Whoever lets a held share pass for a forwarded one contradicts themselves.
    let mut signed = Signer::of(&entries, scope(1, 9)).sign();
    signed.statement.sums.forwarded.shares.0 += 1;
    assert!(matches!(check_contents(&signed, None), Err(Fault::Statement(_))));
}

//! What an observer of both ends knows: which share was submitted where, how it was judged, and what its
//! submitter was told. Every rule about one share is checked here.

use std::collections::{BTreeMap, BTreeSet};

use mining_server::{RejectReason, ShareRecord, Verdict, Work};
use stratum::sv2::messages::SubmitSharesExtended;
use stratum::{Difficulty, JobNumber, Target};

use crate::hashing::Hash;
use crate::net::LinkId;

/// A share as its submitter made it.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    /// The channel on its connection; 0 on SV1 connections.
    pub(crate) channel: u32,
    /// The sequence number, or the id of the SV1 request.
    pub(crate) number: u64,
    /// The job, by the low half of its number.
    pub(crate) job: u32,
    /// The newest job that its submitter knew; `None` where it may have known a newer one (a proxy).
    pub(crate) newest: Option<u32>,
    pub(crate) version: u32,
    pub(crate) ntime: u32,
    pub(crate) nonce: u32,
    /// What it hashes to, computed by its submitter; a proxy knows the difficulty that it recorded.
    pub(crate) difficulty: Difficulty,
    pub(crate) hash: Option<Hash>,
    /// The target that its submitter was told to meet.
    pub(crate) target: Target,
    /// It was submitted before, on purpose.
    pub(crate) is_repeated: bool,
}

/// One transport session of a submitter.
#[derive(Debug, Default)]
struct Session {
    submissions: Vec<Submission>,
    verdicts: Vec<Verdict>,
    answered: Vec<bool>,
    /// Every submission before this one is answered.
    settled: usize,
    /// Clean jobs that its server published for it, by the low half of their numbers.
    clean: Vec<u32>,
    /// Channels that the server may have closed.
    ended: BTreeSet<u32>,
}

/// Sums of what submitters were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Witness {
    sessions: BTreeMap<LinkId, Session>,
    /// Every SV1 job id that a miner has seen, over all its connections.
    sv1_jobs: BTreeSet<(usize, String)>,
    pub(crate) told: BTreeMap<LinkId, Told>,
    pub(crate) stale: u64,
    pub(crate) repeated: u64,
    pub(crate) submitted: u64,
    /// The acknowledgements, by session, channel and last share, in which somebody else's pool miscounts.
    pub(crate) miscounted: BTreeSet<(LinkId, u32, u64)>,
}

impl Witness {
    pub(crate) fn submitted(&mut self, link: LinkId, submission: Submission) {
        self.submitted += 1;
        let session = self.sessions.entry(link).or_default();
        session.submissions.push(submission);
        session.answered.push(false);
    }

    /// A server published work for a session. The clean ones explain stale shares.
    pub(crate) fn published(&mut self, link: LinkId, work: &Work) {
        let session = self.sessions.entry(link).or_default();
        // Several jobs may have come since the last work: the oldest live one is the clean one.
        let oldest = work.jobs[0].job.number.0 as u32;
        if work.jobs[0].job.clean && session.clean.last() != Some(&oldest) {
            session.clean.push(oldest);
        }
    }

    /// The upstream gave up a channel of a session.
    pub(crate) fn ended(&mut self, link: LinkId, channel: u32) {
        self.sessions.entry(link).or_default().ended.insert(channel);
    }

    /// A server judged the session's next share.
    pub(crate) fn judged(&mut self, link: LinkId, record: &ShareRecord) {
        let session = self.sessions.get_mut(&link).expect("only submitted shares are judged");
        let place = session.verdicts.len();
        session.verdicts.push(record.verdict);
        let share = session.submissions.get(place).unwrap_or_else(|| panic!("nobody submitted {record:?}"));
        // Without its job, an SV1 share has no version but the bits that it rolled.
        let version = if record.job.is_some() { share.version } else { record.version };
        assert_eq!(
            (share.channel, share.nonce, share.ntime, version),
            (record.channel.0, record.nonce, record.ntime, record.version),
            "shares are judged in the order in which they were submitted, as they were submitted: link {link}, \
             share {place}, {record:?}"
        );
        match record.verdict {
            Verdict::Rejected(RejectReason::Stale) => {
                self.stale += 1;
                let older = |clean: &&u32| newer(**clean, share.job);
                let crossed = session
                    .clean
                    .iter()
                    .filter(older)
                    .any(|clean| share.newest.is_none_or(|newest| newer(*clean, newest)));
                assert!(
                    crossed,
                    "a stale share is one whose submitter could not know the new job: link {link}, {share:?}, \
                     clean jobs {:x?}",
                    session.clean
                );
            }
            Verdict::Rejected(RejectReason::Duplicate) if share.is_repeated => self.repeated += 1,
            Verdict::Rejected(RejectReason::NotSubscribed) if session.ended.contains(&share.channel) => (),
            Verdict::Rejected(_) => {
                panic!(
                    "honest shares are refused for nothing but staleness: link {link}, {record:?}, {share:?}"
                )
            }
            Verdict::Accepted | Verdict::BlockFound => {
                assert!(!share.is_repeated, "a share counts once: link {link}, {record:?}");
                check_accepted(link, share, record);
            }
        }
    }

    /// A pool that is not ours sent a clean job.
    pub(crate) fn published_elsewhere(&mut self, link: LinkId, job: u32) {
        self.sessions.entry(link).or_default().clean.push(job);
    }

    /// A pool that is not ours judged the session's next share. It has checked everything but staleness.
    pub(crate) fn judged_elsewhere(
        &mut self,
        link: LinkId,
        judged: &SubmitSharesExtended,
        hash: Option<Hash>,
        verdict: Verdict,
    ) {
        let session = self.sessions.get_mut(&link).expect("only submitted shares are judged");
        let place = session.verdicts.len();
        session.verdicts.push(verdict);
        let share = session.submissions.get(place).unwrap_or_else(|| panic!("nobody submitted {judged:?}"));
        assert_eq!(
            (share.channel, share.number, share.nonce, share.ntime, share.version),
            (
                judged.channel_id.0,
                u64::from(judged.sequence_number.0),
                judged.nonce,
                judged.ntime,
                judged.version
            ),
            "shares arrive in the order in which they were forwarded: link {link}, share {place}"
        );
        if let Some(hash) = hash {
            assert_eq!(
                Difficulty::of_hash(&hash),
                share.difficulty,
                "a forwarded share hashes at the pool to what its record says: link {link}, {judged:?}"
            );
        } else if verdict == Verdict::Rejected(RejectReason::Stale) {
            assert!(
                session.clean.iter().any(|clean| newer(*clean, share.job)),
                "a share that is stale at the pool crossed a new tip: link {link}, {judged:?}"
            );
        }
    }

    /// An SV1 miner read the answer to one of its requests.
    pub(crate) fn answered(&mut self, link: LinkId, number: u64, accepted: bool) {
        let session = self.sessions.get_mut(&link).expect("only submitters are answered");
        let place = session.open().find(|place| session.submissions[*place].number == number);
        let place = place.unwrap_or_else(|| panic!("link {link} was answered {number}, which it never sent"));
        session.answer(link, place, accepted, &mut self.told);
    }

    /// An SV2 submitter read that `count` shares of a channel up to `last` are accepted.
    pub(crate) fn acknowledged(&mut self, link: LinkId, channel: u32, last: u64, count: u32) {
        let session = self.sessions.get_mut(&link).expect("only submitters are answered");
        let places: Vec<usize> = session
            .open()
            .filter(|place| {
                let share = &session.submissions[*place];
                !session.answered[*place] && share.channel == channel && share.number <= last
            })
            .collect();
        assert!(
            places.len() == count as usize || self.miscounted.contains(&(link, channel, last)),
            "an acknowledgement counts what it covers: link {link}, to {last}"
        );
        for place in places {
            session.answer(link, place, true, &mut self.told);
        }
    }

    /// An SV2 submitter read that a share was refused.
    pub(crate) fn refused(&mut self, link: LinkId, channel: u32, number: u64) {
        let session = self.sessions.get_mut(&link).expect("only submitters are answered");
        let place = session.open().find(|place| {
            let share = &session.submissions[*place];
            (share.channel, share.number) == (channel, number)
        });
        let place = place.unwrap_or_else(|| panic!("link {link}: {number} was refused but never sent"));
        session.answer(link, place, false, &mut self.told);
    }

    /// A miner was sent a job.
    pub(crate) fn sv1_job(&mut self, miner: usize, id: &str) {
        assert!(
            self.sv1_jobs.insert((miner, id.to_owned())),
            "SV1 job ids never repeat for a miner: miner {miner}, job {id}"
        );
    }
}

impl Session {
    /// The submissions that may not be answered yet.
    fn open(&self) -> std::ops::Range<usize> {
        self.settled..self.submissions.len()
    }

    fn answer(&mut self, link: LinkId, place: usize, accepted: bool, told: &mut BTreeMap<LinkId, Told>) {
        assert!(
            !std::mem::replace(&mut self.answered[place], true),
            "a share is answered once: link {link}, share {place}"
        );
        let verdict = self.verdicts.get(place);
        let agreed = match verdict {
            Some(Verdict::Accepted | Verdict::BlockFound) => accepted,
            Some(Verdict::Rejected(_)) => !accepted,
            None => false,
        };
        assert!(
            agreed,
            "an answer says what was judged: link {link}, share {place}, {verdict:?}, told {accepted}"
        );
        while self.answered.get(self.settled) == Some(&true) {
            self.settled += 1;
        }
        let told = told.entry(link).or_default();
        told.accepted += u64::from(accepted);
        told.rejected += u64::from(!accepted);
    }
}

/// Whether `a` came after `b`, for numbers that wrap.
pub(crate) fn newer(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// The low half of a job's number.
pub(crate) fn low(number: JobNumber) -> u32 {
    number.0 as u32
}

fn check_accepted(link: LinkId, share: &Submission, record: &ShareRecord) {
    assert_eq!(
        record.difficulty,
        Some(share.difficulty),
        "an accepted share hashes to what its record says: link {link}, {record:?}"
    );
    assert_eq!(
        record.job.map(low),
        Some(share.job),
        "a record names the share's job: link {link}, {record:?}"
    );
    assert!(
        record.credited() <= share.target.work() || record.verdict == Verdict::BlockFound,
        "no share is credited more than its submitter was told to meet: link {link}, {record:?}, {share:?}"
    );
    if let Some(hash) = share.hash {
        let exponent = (record.credited().0 as f64).log2().round() as i32 - 32;
        assert!(
            Target::from_difficulty_exponent(exponent).is_met_by(&hash),
            "a share meets what it is credited for: link {link}, {record:?}, {share:?}"
        );
    }
}

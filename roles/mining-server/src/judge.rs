//! The verdict over one share, and the difficulty of one channel.
//!
//! A judge belongs to one SV2 channel or one SV1 connection and has one owner. It never answers the miner and
//! never forwards anything: it says what is true of a share, and the protocols put that into words.

use std::time::Duration;

use arrayvec::ArrayVec;
use stratum::hash::Hash;
use stratum::job::{RESERVED_SIZE, Rolled};
use stratum::vardiff::{Vardiff, VardiffConfig};
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, Epoch, HashRate, Job, JobNumber, Now, Target, TipNumber,
    Work as WorkSum,
};

use crate::output::{ForwardShare, ShareEvent};
use crate::seen::SeenShares;
pub use crate::seen::{MAX_SEEN_SHARES, NEW_JOB_WANTED_AFTER};
use crate::settings::{Settings, ShareUse, VARDIFF_INTERVAL};
use crate::work::{JobLookup, Work};
use accounting::record::{DropReason, Fate, RejectReason, ShareRecord, Verdict};

/// Difficulty changes that a channel remembers within the life of its jobs. When one more comes, the oldest two
/// become one at the easier difficulty, which never refuses a share that was good.
const MAX_DIFFICULTY_CHANGES: usize = 16;

/// How far a share's time may be ahead of our clock (Bitcoin's consensus rule: two hours).
pub const MAX_NTIME_AHEAD: u32 = 7200;

/// Who submitted a share.
#[derive(Clone, Copy, Debug)]
pub struct Submitter {
    /// The connection.
    pub connection: ConnectionId,
    /// Its channel; 0 on SV1 connections.
    pub channel: ChannelId,
    /// The device, once known.
    pub device: Option<DeviceId>,
}

/// What a miner submitted, its job already looked up by the protocol's own kind of id.
#[derive(Debug)]
pub struct Submission<'a> {
    /// The job.
    pub job: JobLookup<'a>,
    /// What the miner rolled, after its reserved bytes.
    pub extranonce: &'a [u8],
    /// The header's version.
    pub version: u32,
    /// The version bits that this miner may roll.
    pub version_mask: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The hash that all this makes with a job, where somebody has hashed it before.
    pub known: Option<KnownHash>,
}

/// A hash that is known before its share is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownHash {
    /// The job's number.
    pub job: JobNumber,
    /// The header's version.
    pub version: u32,
    /// The hash.
    pub hash: Hash,
}

/// Judges the shares of one channel and keeps its difficulty.
#[derive(Debug)]
pub struct Judge {
    reserved: [u8; RESERVED_SIZE],
    /// Bytes that the miner rolls after the reserved ones.
    rolled_size: usize,
    vardiff: Vardiff,
    /// The difficulty exponents of the jobs that may still be mined on, with the first job sent at each. One in nearly
    /// every channel at nearly any time, with room for no more; at most [`MAX_DIFFICULTY_CHANGES`].
    difficulties: Vec<(JobNumber, i32)>,
    /// The difficulty exponent at which the upstream's target stands, the hardest that a miner is ever given.
    upstream_exponent: i32,
    /// Never undercut, not even for the upstream's target: the easiest difficulty exponent that the miner accepts
    /// (SV2 `max_target`) or that its listener promises. `i32::MIN` where nobody named one.
    minimum_exponent: i32,
    seen: SeenShares,
    /// The epoch and tip that `seen` is about.
    seen_tip: (Epoch, TipNumber),
    /// The oldest job that this channel may submit for: earlier ones were not sent to it, or their shares can no
    /// longer be told from duplicates.
    oldest: JobNumber,
    newest: JobNumber,
    next_check: Duration,
    /// What the last share was judged by: nearly always the next one's too.
    judged_by: JudgedBy,
}

/// What follows from a difficulty exponent, worked out once.
#[derive(Clone, Copy, Debug)]
struct JudgedBy {
    exponent: i32,
    target: Target,
    work: WorkSum,
}

impl JudgedBy {
    fn new(exponent: i32) -> Self {
        let target = Target::from_difficulty_exponent(exponent);
        JudgedBy { exponent, target, work: target.work() }
    }
}

impl Judge {
    /// A judge for a miner with these reserved bytes, which rolls `rolled_size` bytes after them.
    pub fn new(reserved: [u8; RESERVED_SIZE], rolled_size: usize, settings: &Settings, now: Now) -> Self {
        let config = &settings.vardiff;
        Judge {
            reserved,
            rolled_size,
            vardiff: Vardiff::new(config, config.initial_exponent, now.monotonic),
            difficulties: Vec::new(),
            upstream_exponent: i32::MAX,
            minimum_exponent: firm_minimum(settings),
            seen: SeenShares::default(),
            seen_tip: (Epoch(0), TipNumber(0)),
            oldest: JobNumber(u64::MAX),
            newest: JobNumber(0),
            next_check: now.monotonic + VARDIFF_INTERVAL,
            judged_by: JudgedBy::new(config.initial_exponent),
        }
    }

    /// The bytes that tell this miner from others.
    pub fn reserved(&self) -> [u8; RESERVED_SIZE] {
        self.reserved
    }

    /// How many bytes the miner rolls.
    pub fn rolled_size(&self) -> usize {
        self.rolled_size
    }

    /// The newest job that this channel was sent; 0 before the first.
    pub fn newest_sent(&self) -> JobNumber {
        self.newest
    }

    /// Starts from another difficulty, which jobs sent from now on get: a suggestion, or a password option.
    pub fn suggest(&mut self, settings: &Settings, exponent: i32, now: Now) {
        if settings.vardiff_enabled {
            let exponent = exponent.clamp(settings.vardiff.minimum_exponent.max(self.minimum_exponent), 223);
            self.vardiff.set_exponent(exponent, now.monotonic);
        }
    }

    /// Forbids difficulties below 2^`exponent`: the target must not be easier than the miner's own maximum. A
    /// listener's firm minimum holds beside it.
    pub fn set_minimum_exponent(&mut self, settings: &Settings, exponent: i32) {
        self.minimum_exponent = exponent.max(firm_minimum(settings));
    }

    /// The difficulty exponent that the next job will have.
    pub fn exponent(&self, settings: &Settings) -> i32 {
        // A pool has no upstream whose target could stand in.
        let own = settings.vardiff_enabled || settings.share_use == ShareUse::Keep;
        let wanted = if own { self.vardiff.exponent() } else { 223 };
        wanted.min(self.upstream_exponent).max(self.minimum_exponent)
    }

    /// The difficulty exponent that we would choose if no upstream had a say. Meaningful before the first job, when
    /// nothing is known of the upstream's target.
    pub fn own_exponent(&self) -> i32 {
        self.vardiff.exponent().max(self.minimum_exponent)
    }

    /// The difficulty exponent that the miner was told last; `None` before its first job.
    pub fn told_exponent(&self) -> Option<i32> {
        self.difficulties.last().map(|(_, exponent)| *exponent)
    }

    /// What a share at the difficulty that the miner was told last is worth; 0 before its first job.
    pub fn told_work(&self) -> WorkSum {
        self.told_exponent().map_or(WorkSum(0), |told| self.work_at(told))
    }

    /// What a share at a difficulty exponent is worth: nearly always known from the last share.
    pub fn work_at(&self, exponent: i32) -> WorkSum {
        if exponent == self.judged_by.exponent {
            self.judged_by.work
        } else {
            Target::from_difficulty_exponent(exponent).work()
        }
    }

    /// Whether the miner was told a harder target than the upstream's, because of a minimum. What it finds between
    /// the two is never submitted.
    pub fn is_told_more_than_upstream(&self) -> bool {
        self.told_exponent().is_some_and(|told| told > self.upstream_exponent)
    }

    /// Whether the miner must drop everything that it was sent before when the active job of `work` is sent.
    pub fn is_clean(&self, work: &Work) -> bool {
        let job = &work.active().job;
        (job.epoch, job.tip.number) != self.seen_tip || work.clean_job_after(self.newest).is_some()
    }

    /// Notes that `job` goes to the miner now, at the difficulty that is current now. Returns that difficulty's
    /// exponent when it differs from the last job's, and so must be told first.
    pub fn send_job(&mut self, settings: &Settings, work: &Work, job: &Job) -> Option<i32> {
        self.upstream_exponent = work.upstream_target.difficulty_exponent_floor();
        // Told from the tip and not from the job's clean flag: a connection may never see a job that another
        // one overtook.
        if (job.epoch, job.tip.number) != self.seen_tip {
            self.seen_tip = (job.epoch, job.tip.number);
            self.seen.start(job.number, job.min_ntime);
            self.oldest = job.number;
        } else if let Some(oldest) = self.seen.note_job(job.number, job.min_ntime) {
            self.oldest = self.oldest.max(oldest);
        }
        self.oldest = self.oldest.min(job.number).max(work.oldest());
        self.newest = job.number;
        let exponent = self.exponent(settings);
        self.forget_old_difficulties();
        if self.told_exponent() == Some(exponent) {
            return None;
        }
        if self.difficulties.len() == MAX_DIFFICULTY_CHANGES {
            let (_, easier) = self.difficulties.remove(0);
            self.difficulties[0].1 = self.difficulties[0].1.min(easier);
        }
        self.difficulties.reserve_exact(1);
        self.difficulties.push((job.number, exponent));
        Some(exponent)
    }

    /// Notes that the miner may work on a custom job on the tip that it has. Its shares are judged by the difficulty that
    /// the miner was told when the job got its number, or by an easier one since. False when the job is for another tip.
    pub fn take_custom_job(&mut self, job: &Job) -> bool {
        let is_on_tip = (job.epoch, job.tip.number) == self.seen_tip;
        if is_on_tip {
            self.newest = self.newest.max(job.number);
        }
        is_on_tip
    }

    /// Judges one share. Allocates nothing but the record that goes on, and remembers the share if it is good.
    pub fn judge(
        &mut self,
        settings: &Settings,
        work: &Work,
        submitter: Submitter,
        submission: &Submission<'_>,
        now: Now,
    ) -> ShareEvent {
        let mut event = refusal(submitter, submission, RejectReason::JobNotFound, now);
        let job = match self.job_of(submission) {
            Ok(job) => job,
            Err(reason) => {
                event.record.verdict = Verdict::Rejected(reason);
                // Its own job's difficulty is forgotten: the one that it was told last is what comes nearest.
                event.record.submitted = self.told_work();
                return event;
            }
        };
        let exponent = self.judging_exponent(job.number);
        let record = &mut event.record;
        record.submitted = self.work_of(exponent);
        record.upstream = Some(job.origin.upstream);
        record.upstream_channel = Some(job.origin.channel);
        record.job = Some(job.number);
        record.job_age_ms = now.since(job.received).as_millis().min(u128::from(u32::MAX)) as u32;
        if let Err(reason) = self.check_fields(job, submission, now) {
            record.verdict = Verdict::Rejected(reason);
            return event;
        }
        record.rollable = job.rollable_bytes(self.reserved, submission.extranonce);
        let rolled = Rolled {
            reserved: self.reserved,
            extranonce: submission.extranonce,
            version: submission.version,
            ntime: submission.ntime,
            nonce: submission.nonce,
        };
        let is_of_this = |known: &KnownHash| (known.job, known.version) == (job.number, rolled.version);
        let hash = submission.known.filter(is_of_this).map_or_else(|| job.hash(&rolled), |known| known.hash);
        record.difficulty = Some(Difficulty::of_hash(&hash));
        let is_block = job.tip.network_target.is_met_by(&hash);
        let meets_own_target = self.judged_by.target.is_met_by(&hash);
        if !is_block && !meets_own_target {
            record.verdict = Verdict::Rejected(RejectReason::LowDifficulty);
            return event;
        }
        if !self.seen.insert(&hash, submission.ntime) {
            record.verdict = Verdict::Rejected(RejectReason::Duplicate);
            return event;
        }
        if meets_own_target {
            self.vardiff.on_share(&settings.vardiff, exponent, now.monotonic);
        }
        // Where blocks are easier than the miner's shares (regtest, testnets), a block proves what the network asked.
        let credited = if meets_own_target { self.judged_by.work } else { job.tip.network_target.work() };
        accept(settings, work, &mut event, job, &Accepted { credited, hash, is_block });
        event
    }

    /// Looks at the difficulty. True when it changed, so that the next job will carry another one.
    pub fn check_difficulty(&mut self, settings: &Settings, now: Now) -> bool {
        self.next_check = now.monotonic + VARDIFF_INTERVAL;
        if self.newest == JobNumber(0) {
            // A miner without work is silent, which says nothing of its speed.
            self.vardiff.set_exponent(self.vardiff.exponent(), now.monotonic);
            return false;
        }
        // Vardiff must know of the minimum: shares that are harder than it believes would make the miner seem slow.
        let minimum_exponent = settings.vardiff.minimum_exponent.max(self.minimum_exponent);
        let config = VardiffConfig { minimum_exponent, ..settings.vardiff };
        let maximum_exponent = self.upstream_exponent.min(223).max(self.minimum_exponent);
        settings.vardiff_enabled && self.vardiff.check(&config, maximum_exponent, now.monotonic).is_some()
    }

    /// When [`Judge::check_difficulty`] is due, on the monotonic clock.
    pub fn next_check(&self) -> Duration {
        self.next_check
    }

    /// Our estimate of what the miner hashes; `None` while unknown.
    pub fn hash_rate(&self, now: Now) -> Option<HashRate> {
        self.vardiff.hash_rate(now.monotonic)
    }

    /// Whether the channel should ask for a new job, because it will soon be able to remember no more shares of
    /// those that it has. Asked after each share. When it comes too late, all jobs sent so far are retired.
    pub fn wants_job(&mut self) -> bool {
        if self.seen.is_full() {
            self.oldest = self.newest.next();
            self.seen.clear(self.oldest);
            return true;
        }
        self.seen.wants_job()
    }

    /// The work of a difficulty exponent, which the next share will probably be judged by.
    fn work_of(&mut self, exponent: i32) -> WorkSum {
        if exponent != self.judged_by.exponent {
            self.judged_by = JudgedBy::new(exponent);
        }
        self.judged_by.work
    }

    fn job_of<'a>(&self, submission: &Submission<'a>) -> Result<&'a Job, RejectReason> {
        let job = match submission.job {
            JobLookup::Live(published) => &published.job,
            JobLookup::Retired => return Err(RejectReason::Stale),
            JobLookup::Unknown => return Err(RejectReason::JobNotFound),
        };
        // Published, but not sent here: the miner cannot have worked on it.
        if job.number > self.newest {
            return Err(RejectReason::JobNotFound);
        }
        if job.number < self.oldest { Err(RejectReason::Stale) } else { Ok(job) }
    }

    fn check_fields(&self, job: &Job, submission: &Submission<'_>, now: Now) -> Result<(), RejectReason> {
        if submission.extranonce.len() != self.rolled_size
            || RESERVED_SIZE + self.rolled_size > job.rollable_size
        {
            return Err(RejectReason::BadExtranonce);
        }
        let mask = if job.version_rolling_allowed { submission.version_mask } else { 0 };
        if (submission.version ^ job.version) & !mask != 0 {
            return Err(RejectReason::BadVersionBits);
        }
        let latest = now.unix_seconds().max(job.min_ntime).saturating_add(MAX_NTIME_AHEAD);
        let ntime = submission.ntime;
        if ntime < job.min_ntime || ntime > latest || !self.seen.can_tell(ntime) {
            return Err(RejectReason::BadNtime);
        }
        Ok(())
    }

    /// The easier of the job's difficulty and any sent since.
    fn judging_exponent(&self, job: JobNumber) -> i32 {
        let own = self.difficulties.iter().rposition(|(first, _)| *first <= job).unwrap_or(0);
        self.difficulties[own..].iter().map(|(_, exponent)| *exponent).min().unwrap_or(i32::MAX)
    }

    fn forget_old_difficulties(&mut self) {
        let over = self.difficulties.iter().skip(1).take_while(|(first, _)| *first <= self.oldest).count();
        if over > 0 {
            self.difficulties.drain(..over);
            self.difficulties.shrink_to_fit();
        }
    }
}

/// The difficulty exponent below which nobody on this listener goes; the lowest of all where there is none.
fn firm_minimum(settings: &Settings) -> i32 {
    if settings.minimum_is_firm { settings.vardiff.minimum_exponent } else { i32::MIN }
}

/// Completes the record of a share that is good, and says where it goes.
fn accept(settings: &Settings, work: &Work, event: &mut ShareEvent, job: &Job, accepted: &Accepted) {
    let worth_forwarding = job.upstream_target.is_met_by(&accepted.hash);
    let record = &mut event.record;
    record.verdict = if accepted.is_block { Verdict::BlockFound } else { Verdict::Accepted };
    record.submitted = accepted.credited;
    record.upstream_work = if worth_forwarding { job.upstream_work } else { WorkSum(0) };
    record.fate = match settings.share_use {
        ShareUse::Keep => Fate::Kept,
        ShareUse::Forward if !worth_forwarding && !accepted.is_block => Fate::BelowUpstreamTarget,
        ShareUse::Forward if job.epoch != work.epoch => Fate::Dropped(DropReason::EpochEnded),
        ShareUse::Forward if !work.live => Fate::Dropped(DropReason::UpstreamLost),
        ShareUse::Forward => Fate::Forwarded,
    };
    if record.fate == Fate::Forwarded || (record.fate == Fate::Kept && accepted.is_block) {
        event.forward = Some(ForwardShare {
            epoch: job.epoch,
            origin: job.origin,
            hash: accepted.hash,
            is_block: accepted.is_block,
        });
    }
}

/// A share that met its target.
struct Accepted {
    /// The work of the target that it was judged by.
    credited: WorkSum,
    hash: Hash,
    is_block: bool,
}

/// The record of a share that is refused for `reason`, with everything that is known before its job is.
pub fn refusal(
    submitter: Submitter,
    submission: &Submission<'_>,
    reason: RejectReason,
    now: Now,
) -> ShareEvent {
    let record = ShareRecord {
        judged: now,
        device: submitter.device,
        connection: submitter.connection,
        channel: submitter.channel,
        upstream: None,
        upstream_channel: None,
        job: None,
        verdict: Verdict::Rejected(reason),
        fate: Fate::Refused,
        sequence_number: None,
        submitted: WorkSum(0),
        upstream_work: WorkSum(0),
        difficulty: None,
        job_age_ms: 0,
        version: submission.version,
        ntime: submission.ntime,
        nonce: submission.nonce,
        rollable: ArrayVec::new(),
    };
    ShareEvent { record, forward: None }
}

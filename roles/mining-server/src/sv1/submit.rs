//! `mining.submit`: from the parameters to a verdict, and from the verdict to an answer.

use stratum::job::{RESERVED_SIZE, SV1_VERSION_MASK};
use stratum::sv1::render::{self, ErrorCode};
use stratum::sv1::request::{RawId, Submit};
use stratum::{Job, JobNumber, Now};

use super::{SV1_CHANNEL, Sv1Connection};
use crate::judge::{KnownHash, Submission, refusal};
use crate::output::{Event, Output, Registry, ShareEvent};
use crate::record::{RejectReason, Verdict};
use crate::settings::SIGN_OF_LIFE_INTERVAL;
use crate::work::JobLookup;

impl Sv1Connection {
    pub(super) fn handle_submit(
        &mut self,
        id: RawId<'_>,
        submit: &Submit<'_>,
        known: Option<KnownHash>,
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        let event = if !self.subscribed {
            self.refused(submit, RejectReason::NotSubscribed, now)
        } else if self.device.is_none() {
            self.refused(submit, RejectReason::Unauthorised, now)
        } else {
            self.judge_submit(submit, known, now)
        };
        answer(id, event.record.verdict, out);
        if event.record.verdict == Verdict::Rejected(RejectReason::BadVersionBits) {
            self.report_bits(submit.version_bits.unwrap_or(0), out);
        }
        let is_rejected = matches!(event.record.verdict, Verdict::Rejected(_));
        out.shares.push(event);
        if now.monotonic >= self.next_sign
            && !is_rejected
            && let Some(device) = self.device
        {
            self.next_sign = now.monotonic + SIGN_OF_LIFE_INTERVAL;
            self.device = Some(registry.note_share(SV1_CHANNEL, device, now));
        }
        self.check_difficulty(now, out);
        if self.judge.wants_job() {
            out.events.push(Event::NewJobWanted { channel: SV1_CHANNEL });
        }
    }

    /// A submission that could not be read is a refused share all the same.
    pub(super) fn refuse_malformed(&mut self, now: Now, out: &mut Output) {
        let submission = Submission {
            job: JobLookup::Unknown,
            extranonce: &[],
            version: 0,
            version_mask: 0,
            ntime: 0,
            nonce: 0,
            known: None,
        };
        let event = refusal(self.submitter(), &submission, RejectReason::Malformed, now);
        out.shares.push(event);
    }

    fn judge_submit(&mut self, submit: &Submit<'_>, known: Option<KnownHash>, now: Now) -> ShareEvent {
        let Some(work) = &self.work else {
            return self.refused(submit, RejectReason::JobNotFound, now);
        };
        let lookup = match self.job_number(&submit.job_id) {
            Some(number) => work.job(number),
            None => JobLookup::Unknown,
        };
        let JobLookup::Live(published) = lookup else {
            let reason = match lookup {
                JobLookup::Retired => RejectReason::Stale,
                _ => RejectReason::JobNotFound,
            };
            return self.refused(submit, reason, now);
        };
        let job = &published.job;
        let (version, mask) = self.version_of(submit, job);
        let (negotiated, bits) = (self.asked_mask, submit.version_bits.unwrap_or(0));
        let submitter = self.submitter();
        let submission = |version, mask| Submission {
            job: JobLookup::Live(published),
            extranonce: &submit.extranonce2,
            version,
            version_mask: mask,
            ntime: submit.ntime,
            nonce: submit.nonce,
            known,
        };
        let event = self.judge.judge(&self.settings, work, submitter, &submission(version, mask), now);
        let missed = matches!(
            event.record.verdict,
            Verdict::Rejected(RejectReason::LowDifficulty | RejectReason::BadVersionBits)
        );
        if negotiated.is_some() || bits == 0 || !missed {
            return event;
        }
        let without = self.judge.judge(&self.settings, work, submitter, &submission(job.version, 0), now);
        // If neither reading is a share, the one that was meant says why.
        if without.record.verdict == Verdict::Rejected(RejectReason::LowDifficulty) { event } else { without }
    }

    /// The version that a submission is tried with first, and the mask of bits that may be rolled in it.
    pub(super) fn version_of(&self, submit: &Submit<'_>, job: &Job) -> (u32, u32) {
        // Without BIP 310 a sixth parameter means nothing, but rented hash power comes with rolled versions that
        // were negotiated elsewhere (an S21 behind MiningRigRentals): it is tried as if it had been granted.
        let mask = self.asked_mask.unwrap_or(SV1_VERSION_MASK);
        let bits = submit.version_bits.unwrap_or(0);
        // Some clients send the whole version where bits are expected: the bits that the job has anyway are no harm.
        let version =
            if job.version_rolling_allowed { (job.version & !mask) | bits } else { job.version | bits };
        (version, mask)
    }

    /// A miner that does not follow its mask mines for nothing: the operator should see it, once.
    fn report_bits(&mut self, bits: u32, out: &mut Output) {
        if std::mem::replace(&mut self.reported_bits, true) {
            return;
        }
        let user_agent = self.user_agent().unwrap_or_default();
        let mask = self.told_mask;
        let notice =
            format!("{user_agent:?} rolls the version bits {bits:08x}; it was told the mask {mask:08x}");
        out.events.push(Event::Notice(notice));
        out.events.push(Event::RolledOutsideMask);
    }

    /// Our number of the job that a miner names; the first job of a connection has a name of its own.
    pub(super) fn job_number(&self, job_id: &str) -> Option<JobNumber> {
        let own = self.first_job.filter(|number| self.is_own_id(job_id, *number));
        if own.is_some() || job_id.len() > 16 {
            return own;
        }
        number_in(job_id).map(JobNumber)
    }

    /// Whether it is the id that the first job went out under: its number, and then the reserved bytes.
    fn is_own_id(&self, job_id: &str, first: JobNumber) -> bool {
        let split = job_id.len().checked_sub(2 * RESERVED_SIZE).and_then(|at| job_id.split_at_checked(at));
        let Some((number, reserved)) = split else { return false };
        let own = u32::from_be_bytes(self.judge.reserved());
        number_in(number) == Some(first.0) && number_in(reserved) == Some(own.into())
    }

    fn refused(&self, submit: &Submit<'_>, reason: RejectReason, now: Now) -> ShareEvent {
        let submission = Submission {
            job: JobLookup::Unknown,
            extranonce: &submit.extranonce2,
            version: submit.version_bits.unwrap_or(0),
            version_mask: 0,
            ntime: submit.ntime,
            nonce: submit.nonce,
            known: None,
        };
        let mut event = refusal(self.submitter(), &submission, reason, now);
        // Its own job's difficulty is not known: the one that it was told last is what comes nearest.
        event.record.submitted = self.judge.told_work();
        event
    }
}

fn answer(id: RawId<'_>, verdict: Verdict, out: &mut Output) {
    let Verdict::Rejected(reason) = verdict else {
        render::boolean(&mut out.bytes, id, true);
        return;
    };
    let (code, message) = match reason {
        RejectReason::Stale => (ErrorCode::JobNotFound, "Stale share"),
        RejectReason::JobNotFound => (ErrorCode::JobNotFound, "Job not found"),
        RejectReason::Duplicate => (ErrorCode::Duplicate, "Duplicate share"),
        RejectReason::LowDifficulty => (ErrorCode::LowDifficulty, "Low difficulty share"),
        RejectReason::BadVersionBits => (ErrorCode::Other, "Version bits outside the mask"),
        RejectReason::BadNtime => (ErrorCode::Other, "ntime out of range"),
        RejectReason::BadExtranonce => (ErrorCode::Other, "Wrong extranonce2 length"),
        RejectReason::Malformed => (ErrorCode::Other, "Malformed share"),
        RejectReason::Unauthorised => (ErrorCode::Unauthorized, "Unauthorized worker"),
        RejectReason::NotSubscribed => (ErrorCode::NotSubscribed, "Not subscribed"),
    };
    render::error_with(&mut out.bytes, id, code, message);
}

/// The number that hexadecimal digits spell.
fn number_in(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

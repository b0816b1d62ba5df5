//! How shares are answered.
//!
//! A refused share is answered at once, accepted ones together. Before a refusal goes out, everything that
//! was accepted before it is acknowledged, so that sequence numbers never go back.

use stratum::job::SV2_VERSION_MASK;
use stratum::sv2::codes::submit_shares;
use stratum::sv2::messages::{SubmitSharesError, SubmitSharesExtended, SubmitSharesStandard};
use stratum::{ChannelId, JobId, Now, SequenceNumber};

use super::{ACKNOWLEDGE_AFTER, Sv2Connection, send};
use crate::judge::{self, Submission, Submitter};
use crate::output::{Event, Output, Registry};
use crate::record::{RejectReason, ShareRecord, Verdict};
use crate::work::{JobLookup, Work};

/// A share of either kind. A standard one rolls no extranonce.
#[derive(Debug)]
pub(super) struct Submit<'a> {
    channel: ChannelId,
    sequence_number: SequenceNumber,
    job: JobId,
    nonce: u32,
    ntime: u32,
    version: u32,
    extranonce: &'a [u8],
    /// The worker's name by extension 2; to be ignored unless that was negotiated.
    worker: Option<&'a str>,
}

impl From<&SubmitSharesStandard> for Submit<'static> {
    fn from(share: &SubmitSharesStandard) -> Self {
        Submit {
            channel: share.channel_id,
            sequence_number: share.sequence_number,
            job: share.job_id,
            nonce: share.nonce,
            ntime: share.ntime,
            version: share.version,
            extranonce: &[],
            worker: None,
        }
    }
}

impl<'a> From<&'a SubmitSharesExtended> for Submit<'a> {
    fn from(share: &'a SubmitSharesExtended) -> Self {
        Submit {
            channel: share.channel_id,
            sequence_number: share.sequence_number,
            job: share.job_id,
            nonce: share.nonce,
            ntime: share.ntime,
            version: share.version,
            extranonce: &share.extranonce,
            worker: share.user_identity.as_deref(),
        }
    }
}

impl<'a> Submit<'a> {
    fn submission(&self, job: JobLookup<'a>) -> Submission<'a> {
        Submission {
            job,
            extranonce: self.extranonce,
            version: self.version,
            version_mask: SV2_VERSION_MASK,
            ntime: self.ntime,
            nonce: self.nonce,
            known: None,
        }
    }
}

impl Sv2Connection {
    /// Judges a share, answers it, and hands it on.
    pub(super) fn submit(
        &mut self,
        submit: &Submit<'_>,
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        let (connection, id) = (self.id, submit.channel);
        let Some(channel) = self.channels.get_mut(&id) else {
            let submitter = Submitter { connection, channel: id, device: None };
            let submission = submit.submission(JobLookup::Unknown);
            let event = judge::refusal(submitter, &submission, RejectReason::NotSubscribed, now);
            out.shares.push(event);
            return refuse(submit, submit_shares::INVALID_CHANNEL_ID, out);
        };
        let custom = self.custom_jobs.find(channel, submit.job);
        let worker = submit.worker.filter(|_| self.worker_names);
        let worker = worker.and_then(|name| channel.workers.find(id, &channel.user_identity, name, registry));
        let worker = worker.unwrap_or(&mut channel.own);
        let submitter = Submitter { connection, channel: id, device: Some(worker.device()) };
        let submission = submit.submission(match custom {
            Some(job) => JobLookup::Live(job),
            None => channel.work.job_by_id(submit.job),
        });
        let event = channel.judge.judge(&self.settings, &channel.work, submitter, &submission, now);
        match event.record.verdict {
            Verdict::Accepted | Verdict::BlockFound => {
                worker.note_share(id, now, registry);
                channel.accept(submit.sequence_number, event.record.credited());
                if channel.unacknowledged.count >= self.settings.share_batch_size {
                    channel.acknowledge(out);
                } else if self.acknowledge_at.is_none() {
                    self.acknowledge_at = Some(now.monotonic + ACKNOWLEDGE_AFTER);
                }
                if channel.judge.check_difficulty(&self.settings, now) {
                    channel.publish_hash_rate(now, out);
                }
            }
            Verdict::Rejected(reason) => {
                channel.acknowledge(out);
                refuse(submit, error_code(reason, &event.record, &channel.work), out);
            }
        }
        out.shares.push(event);
        if channel.judge.wants_job() {
            out.events.push(Event::NewJobWanted { channel: id });
        }
    }
}

fn refuse(submit: &Submit<'_>, code: &str, out: &mut Output) {
    let (channel_id, sequence_number) = (submit.channel, submit.sequence_number);
    send(SubmitSharesError { channel_id, sequence_number, error_code: code.to_owned() }, out);
}

/// The code that peers know a reason by.
fn error_code(reason: RejectReason, record: &ShareRecord, work: &Work) -> &'static str {
    match reason {
        RejectReason::Stale => submit_shares::STALE_SHARE,
        RejectReason::JobNotFound => submit_shares::INVALID_JOB_ID,
        RejectReason::Duplicate => submit_shares::DUPLICATE_SHARE,
        RejectReason::LowDifficulty => submit_shares::DIFFICULTY_TOO_LOW,
        RejectReason::BadExtranonce => submit_shares::BAD_EXTRANONCE_SIZE,
        RejectReason::BadVersionBits => match record.job.map(|number| work.job(number)) {
            Some(JobLookup::Live(published)) if !published.job.version_rolling_allowed => {
                submit_shares::VERSION_ROLLING_NOT_ALLOWED
            }
            _ => submit_shares::INVALID_NON_ROLLABLE_VERSION_BIT,
        },
        RejectReason::BadNtime | RejectReason::Malformed => submit_shares::INVALID_SHARE,
        RejectReason::Unauthorised | RejectReason::NotSubscribed => submit_shares::INVALID_CHANNEL_ID,
    }
}

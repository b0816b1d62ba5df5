//! Shares, releases and answers: the entries that come by the thousand.

use std::time::Duration;

use arrayvec::ArrayVec;
use stratum::job::MAX_EXTRANONCE_SIZE;
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, JobNumber, Now, SequenceNumber, UpstreamChannelId,
    UpstreamId, Work,
};

use super::fields::{Reader, write_number, write_text};
use super::{CodecError, Tag, begin, one_of, read_option, write_option};
use crate::entry::microseconds;
use crate::record::{
    DropReason, Fate, HeldRelease, HoldNumber, LossReason, RejectReason, ReleaseFate, ShareRecord,
    UpstreamAnswer, UpstreamVerdict, Verdict,
};

const HAS_DEVICE: u8 = 1;
const HAS_UPSTREAM: u8 = 1 << 1;
const HAS_JOB: u8 = 1 << 2;
const HAS_SEQUENCE: u8 = 1 << 3;
const HAS_DIFFICULTY: u8 = 1 << 4;
const ALL_FLAGS: u8 = (1 << 5) - 1;

/// Codes of verdicts: accepted, block found, then the reasons.
const FIRST_REASON: u8 = 2;

/// The code of a held share, whose number follows that on the upstream's channel.
const HELD: u8 = 4;

/// Codes of fates: refused, below, forwarded, kept, held, then the reasons of drops.
const FIRST_DROP: u8 = 5;

/// Appends a share. Allocates nothing beyond the room in `out`.
pub fn write_share(out: &mut Vec<u8>, share: &ShareRecord) {
    begin(out, Tag::Share);
    let origin = share.upstream.zip(share.upstream_channel);
    let flags = [
        (share.device.is_some(), HAS_DEVICE),
        (origin.is_some(), HAS_UPSTREAM),
        (share.job.is_some(), HAS_JOB),
        (share.sequence_number.is_some(), HAS_SEQUENCE),
        (share.difficulty.is_some(), HAS_DIFFICULTY),
    ];
    let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
    out.extend_from_slice(&[flags, verdict_code(share.verdict), fate_code(share.fate)]);
    out.extend_from_slice(&microseconds(share.judged.utc).to_le_bytes());
    if let Some(device) = share.device {
        write_small(out, device.0.into());
    }
    write_small(out, share.connection.0);
    write_small(out, share.channel.0.into());
    if let Some((upstream, channel)) = origin {
        write_small(out, upstream.0.into());
        write_small(out, channel.0.into());
    }
    if let Some(job) = share.job {
        out.extend_from_slice(&job.0.to_le_bytes());
    }
    if let Some(number) = share.sequence_number {
        write_small(out, number.0.into());
    }
    if let Fate::Held(number) = share.fate {
        write_small(out, number.get().into());
    }
    write_number(out, share.submitted.0);
    write_number(out, share.upstream_work.0);
    if let Some(difficulty) = share.difficulty {
        out.extend_from_slice(&difficulty.0.to_le_bytes());
    }
    write_small(out, share.job_age_ms.into());
    for word in [share.version, share.ntime, share.nonce] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.push(share.rollable.len() as u8);
    out.extend_from_slice(&share.rollable);
}

pub(super) fn read_share(from: &mut Reader<'_>) -> Result<ShareRecord, CodecError> {
    let [flags, verdict, fate] = from.array()?;
    if flags & !ALL_FLAGS != 0 {
        return Err(CodecError::Field("a share's flags"));
    }
    let has = |flag| flags & flag != 0;
    let judged = time(u64::from_le_bytes(from.array()?));
    let device = has(HAS_DEVICE).then(|| from.number("a share's device").map(DeviceId)).transpose()?;
    let connection = ConnectionId(from.number("a share's connection")?);
    let channel = ChannelId(from.number("a share's channel")?);
    let (mut upstream, mut upstream_channel) = (None, None);
    if has(HAS_UPSTREAM) {
        upstream = Some(UpstreamId(from.number("a share's upstream")?));
        upstream_channel = Some(UpstreamChannelId(from.number("a share's upstream channel")?));
    }
    let job =
        has(HAS_JOB).then(|| from.array().map(|bytes| JobNumber(u64::from_le_bytes(bytes)))).transpose()?;
    let sequence_number =
        has(HAS_SEQUENCE).then(|| from.number("a share's number").map(SequenceNumber)).transpose()?;
    let hold = if fate == HELD {
        HoldNumber::new(from.number("a share's number among the held")?)
    } else {
        HoldNumber::new(0)
    };
    let submitted = Work(from.number("a share's work")?);
    let upstream_work = Work(from.number("a share's work")?);
    let difficulty =
        has(HAS_DIFFICULTY).then(|| from.array().map(|bytes| Difficulty(f64::from_le_bytes(bytes))));
    let difficulty = difficulty.transpose()?;
    let job_age_ms = from.number("a share's age")?;
    let mut word = || from.array().map(u32::from_le_bytes);
    let (version, ntime, nonce) = (word()?, word()?, word()?);
    let length = usize::from(from.byte()?);
    if length > MAX_EXTRANONCE_SIZE {
        return Err(CodecError::Field("a share's extranonce"));
    }
    let rollable: ArrayVec<u8, MAX_EXTRANONCE_SIZE> = from.slice(length)?.iter().copied().collect();
    let (verdict, fate) = (verdict_of(verdict)?, fate_of(fate, hold)?);
    let share = ShareRecord {
        judged,
        device,
        connection,
        channel,
        upstream,
        upstream_channel,
        job,
        verdict,
        fate,
        sequence_number,
        submitted,
        upstream_work,
        difficulty,
        job_age_ms,
        version,
        ntime,
        nonce,
        rollable,
    };
    if crate::sums::is_consistent(&share) { Ok(share) } else { Err(CodecError::Field("a share's fate")) }
}

/// A number below 2^64, without the wide arithmetic of works.
fn write_small(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn verdict_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Accepted => 0,
        Verdict::BlockFound => 1,
        Verdict::Rejected(reason) => FIRST_REASON + reason as u8,
    }
}

fn verdict_of(code: u8) -> Result<Verdict, CodecError> {
    match code {
        0 => Ok(Verdict::Accepted),
        1 => Ok(Verdict::BlockFound),
        _ => {
            let reason = RejectReason::ALL.get(usize::from(code - FIRST_REASON));
            reason.copied().map(Verdict::Rejected).ok_or(CodecError::Field("a share's verdict"))
        }
    }
}

fn fate_code(fate: Fate) -> u8 {
    match fate {
        Fate::Refused => 0,
        Fate::BelowUpstreamTarget => 1,
        Fate::Forwarded => 2,
        Fate::Kept => 3,
        Fate::Held(_) => HELD,
        Fate::Dropped(reason) => FIRST_DROP + reason as u8,
    }
}

fn fate_of(code: u8, hold: HoldNumber) -> Result<Fate, CodecError> {
    match code {
        0 => Ok(Fate::Refused),
        1 => Ok(Fate::BelowUpstreamTarget),
        2 => Ok(Fate::Forwarded),
        3 => Ok(Fate::Kept),
        HELD => Ok(Fate::Held(hold)),
        _ => {
            let reason = DropReason::ALL.get(usize::from(code - FIRST_DROP));
            reason.copied().map(Fate::Dropped).ok_or(CodecError::Field("a share's fate"))
        }
    }
}

/// A time that was written. Clocks that only run while a process does are not in the stream.
pub(super) fn time(unix_us: u64) -> Now {
    let utc = Duration::from_micros(unix_us);
    Now { monotonic: utc, utc }
}

const ACKNOWLEDGED: u8 = 0;
const REJECTED: u8 = 1;
const LOST: u8 = 2;

/// Appends an answer.
pub(super) fn write_answer(out: &mut Vec<u8>, answer: &UpstreamAnswer) {
    begin(out, Tag::Answer);
    out.extend_from_slice(&microseconds(answer.received.utc).to_le_bytes());
    write_number(out, answer.upstream.0);
    write_number(out, answer.channel.0);
    match &answer.verdict {
        UpstreamVerdict::Acknowledged { last, count, claimed, shares_sum, work } => {
            out.push(ACKNOWLEDGED);
            write_number(out, last.0);
            write_number(out, *count);
            write_number(out, *claimed);
            write_number(out, *shares_sum);
            write_number(out, work.0);
        }
        UpstreamVerdict::Rejected { sequence_number, code, work } => {
            out.push(REJECTED);
            write_number(out, sequence_number.0);
            write_text(out, code);
            write_number(out, work.0);
        }
        UpstreamVerdict::Lost { last, count, reason, work } => {
            out.push(LOST);
            write_number(out, last.0);
            write_number(out, *count);
            out.push(*reason as u8);
            write_number(out, work.0);
        }
    }
}

pub(super) fn read_answer(from: &mut Reader<'_>) -> Result<UpstreamAnswer, CodecError> {
    let received = time(u64::from_le_bytes(from.array()?));
    let upstream = UpstreamId(from.number("an answer's upstream")?);
    let channel = UpstreamChannelId(from.number("an answer's channel")?);
    let verdict = match from.byte()? {
        ACKNOWLEDGED => UpstreamVerdict::Acknowledged {
            last: SequenceNumber(from.number("an answer's number")?),
            count: from.number("an answer's count")?,
            claimed: from.number("an answer's claim")?,
            shares_sum: from.number("an answer's sum")?,
            work: Work(from.number("an answer's work")?),
        },
        REJECTED => UpstreamVerdict::Rejected {
            sequence_number: SequenceNumber(from.number("an answer's number")?),
            code: from.text()?,
            work: Work(from.number("an answer's work")?),
        },
        LOST => UpstreamVerdict::Lost {
            last: SequenceNumber(from.number("an answer's number")?),
            count: from.number("an answer's count")?,
            reason: one_of(from, &LossReason::ALL, "an answer's reason")?,
            work: Work(from.number("an answer's work")?),
        },
        _ => return Err(CodecError::Field("an answer's verdict")),
    };
    Ok(UpstreamAnswer { received, upstream, channel, verdict })
}

/// Appends what became of a held share.
pub(super) fn write_release(out: &mut Vec<u8>, release: &HeldRelease) {
    begin(out, Tag::Release);
    out.extend_from_slice(&microseconds(release.released.utc).to_le_bytes());
    write_option(out, release.device.map(|device| device.0.into()));
    write_number(out, release.upstream.0);
    write_number(out, release.upstream_channel.0);
    write_number(out, release.number.get());
    match release.fate {
        ReleaseFate::Forwarded(number) => {
            out.push(RELEASED_FORWARDED);
            write_number(out, number.0);
        }
        ReleaseFate::Dropped(reason) => out.extend_from_slice(&[RELEASED_DROPPED, reason as u8]),
        ReleaseFate::BelowUpstreamTarget => out.push(RELEASED_BELOW_TARGET),
    }
    write_number(out, release.held_work.0);
    write_number(out, release.work.0);
}

const RELEASED_FORWARDED: u8 = 0;
const RELEASED_DROPPED: u8 = 1;
const RELEASED_BELOW_TARGET: u8 = 2;

pub(super) fn read_release(from: &mut Reader<'_>) -> Result<HeldRelease, CodecError> {
    let released = time(u64::from_le_bytes(from.array()?));
    let device = read_option(from)?.map(u32::try_from).transpose();
    let device = device.map_err(|_| CodecError::Field("a release's device"))?.map(DeviceId);
    let upstream = UpstreamId(from.number("a release's upstream")?);
    let upstream_channel = UpstreamChannelId(from.number("a release's channel")?);
    let number = HoldNumber::new(from.number("a release's number")?);
    let fate = match from.byte()? {
        RELEASED_FORWARDED => {
            ReleaseFate::Forwarded(SequenceNumber(from.number("a released share's number")?))
        }
        RELEASED_DROPPED => ReleaseFate::Dropped(one_of(from, &DropReason::ALL, "a release's reason")?),
        RELEASED_BELOW_TARGET => ReleaseFate::BelowUpstreamTarget,
        _ => return Err(CodecError::Field("a release's fate")),
    };
    let held_work = Work(from.number("a release's work when it was held")?);
    let work = Work(from.number("a release's work")?);
    Ok(HeldRelease { released, device, upstream, upstream_channel, number, fate, held_work, work })
}

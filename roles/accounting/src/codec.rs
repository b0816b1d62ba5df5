//! Entries as bytes, and back.
//!
//! The form: one tag, then fields in a fixed order; numbers that are small as a rule are written seven bits to a byte,
//! lowest first. A payload begins with its version. Nothing here allocates for a share, nothing panics on bytes that
//! somebody else wrote, and every length is checked before anything is made of it.

mod facts;
mod fields;
mod packed;
mod records;
#[cfg(test)]
mod tests;

use stratum::hash::Hash;
use stratum::{
    ChannelId, ConnectionId, DeviceId, JobNumber, Target, TemplateId, UpstreamChannelId, UpstreamId,
    UpstreamJobId,
};

pub use self::facts::{decode_acks, decode_part, encode_acks, encode_part};
use self::fields::{Reader, write_number, write_text};
pub use self::fields::{decode_sums, encode_sums};
pub use self::packed::PackedSums;
pub use self::records::write_share;
use crate::entry::{
    ConnectionEntry, DeviceEntry, Entry, EventEntry, EventKind, Gap, JobEntry, MAX_GAP_CODES,
    MAX_GAP_SUBJECTS, MAX_GROUPS, PowerEntry, UpstreamEntry,
};
use crate::power::PowerSource;
use crate::rollup::{GroupId, Subject};

/// The version of this form, the first byte of every payload.
pub const VERSION: u8 = 3;

/// The longest prefix or suffix of a coinbase in a job entry: what SV2 carries.
pub(crate) const MAX_COINBASE: usize = 65_535;

/// Why bytes are no entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The payload has a form that is not known here.
    #[error("form {0} is not known: a later version wrote it")]
    Version(u8),
    /// The bytes end within an entry.
    #[error("the entries end too early")]
    End,
    /// A field has a value that none can have.
    #[error("{0} has a value that it cannot have")]
    Field(&'static str),
}

/// What kind of entry follows.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Share = 1,
    Answer,
    Job,
    Device,
    Connection,
    Upstream,
    Power,
    Event,
    Gap,
    MinuteEnded,
    Release,
}

/// Appends an entry to a payload, and the version first if the payload is empty.
pub fn write_entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::Share(share) => write_share(out, share),
        Entry::Answer(answer) => records::write_answer(out, answer),
        Entry::Release(release) => records::write_release(out, release),
        Entry::Job(job) => write_job(out, job),
        Entry::Device(device) => write_device(out, device),
        Entry::Connection(connection) => {
            begin(out, Tag::Connection);
            write_number(out, connection.at_us);
            write_number(out, connection.id.0);
            write_number(out, connection.channel.0);
            write_number(out, connection.device.0);
            out.push(u8::from(connection.is_open));
            write_number(out, connection.connections);
        }
        Entry::Upstream(upstream) => {
            begin(out, Tag::Upstream);
            write_number(out, upstream.at_us);
            write_number(out, upstream.id.0);
            write_text(out, &upstream.name);
            write_text(out, &upstream.account);
        }
        Entry::Power(power) => {
            begin(out, Tag::Power);
            write_number(out, power.at_us);
            write_subject(out, power.subject);
            write_number(out, power.valid_for_s);
            write_number(out, power.milliwatts);
            out.push(power.source as u8);
        }
        Entry::Event(event) => {
            begin(out, Tag::Event);
            write_number(out, event.at_us);
            out.push(event.kind as u8);
            write_option(out, event.device.map(|device| device.0.into()));
            write_text(out, &event.text);
        }
        Entry::Gap(gap) => write_gap(out, gap),
        Entry::MinuteEnded(start) => {
            begin(out, Tag::MinuteEnded);
            write_number(out, *start);
        }
    }
}

/// The entries of a payload, in order. After an error comes nothing more.
pub fn entries(payload: &[u8]) -> Entries<'_> {
    Entries { rest: Reader(payload), state: State::Start }
}

/// See [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: Reader<'a>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Within,
    Broken,
}

impl Entries<'_> {
    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.0.len()
    }

    fn read(&mut self) -> Result<Entry, CodecError> {
        if std::mem::replace(&mut self.state, State::Within) == State::Start {
            match self.rest.byte()? {
                VERSION => {}
                other => return Err(CodecError::Version(other)),
            }
        }
        read_entry(&mut self.rest)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Broken || self.rest.0.is_empty() {
            return None;
        }
        let entry = self.read();
        if entry.is_err() {
            self.state = State::Broken;
        }
        Some(entry)
    }
}

fn begin(out: &mut Vec<u8>, tag: Tag) {
    if out.is_empty() {
        out.push(VERSION);
    }
    out.push(tag as u8);
}

fn write_option(out: &mut Vec<u8>, number: Option<u64>) {
    // One more than the number, so that 0 stands for none.
    write_number(out, number.map_or(0, |number| u128::from(number) + 1));
}

fn read_option(from: &mut Reader<'_>) -> Result<Option<u64>, CodecError> {
    match from.number::<u128>("an optional number")?.checked_sub(1) {
        None => Ok(None),
        Some(number) => u64::try_from(number).map(Some).map_err(|_| CodecError::Field("an optional number")),
    }
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn write_job(out: &mut Vec<u8>, job: &JobEntry) {
    begin(out, Tag::Job);
    write_number(out, job.at_us);
    write_number(out, job.number.0);
    write_number(out, job.upstream.0);
    write_number(out, job.upstream_channel.0);
    write_number(out, job.upstream_job.0);
    write_option(out, job.template.map(|template| template.0));
    out.extend_from_slice(&job.previous_hash);
    out.extend_from_slice(&job.nbits.to_le_bytes());
    out.extend_from_slice(&job.upstream_target.to_le_bytes());
    write_bytes(out, &job.coinbase_prefix[..job.coinbase_prefix.len().min(MAX_COINBASE)]);
    out.push(job.rollable_size);
    write_bytes(out, &job.coinbase_suffix[..job.coinbase_suffix.len().min(MAX_COINBASE)]);
    out.push(job.merkle_path.len().min(stratum::job::MAX_MERKLE_PATH) as u8);
    job.merkle_path.iter().take(stratum::job::MAX_MERKLE_PATH).for_each(|hash| out.extend_from_slice(hash));
}

fn read_job(from: &mut Reader<'_>) -> Result<JobEntry, CodecError> {
    Ok(JobEntry {
        at_us: from.number("a job's time")?,
        number: JobNumber(from.number("a job's number")?),
        upstream: UpstreamId(from.number("a job's upstream")?),
        upstream_channel: UpstreamChannelId(from.number("a job's channel")?),
        upstream_job: UpstreamJobId(from.number("a job's upstream number")?),
        template: read_option(from)?.map(TemplateId),
        previous_hash: from.array()?,
        nbits: u32::from_le_bytes(from.array()?),
        upstream_target: Target::from_le_bytes(from.array()?),
        coinbase_prefix: from.bytes(MAX_COINBASE, "a coinbase prefix")?.to_vec(),
        rollable_size: from.byte()?,
        coinbase_suffix: from.bytes(MAX_COINBASE, "a coinbase suffix")?.to_vec(),
        merkle_path: read_merkle_path(from)?,
    })
}

fn read_merkle_path(from: &mut Reader<'_>) -> Result<Vec<Hash>, CodecError> {
    let length = usize::from(from.byte()?);
    if length > stratum::job::MAX_MERKLE_PATH {
        return Err(CodecError::Field("a merkle path"));
    }
    (0..length).map(|_| from.array()).collect()
}

fn write_device(out: &mut Vec<u8>, device: &DeviceEntry) {
    begin(out, Tag::Device);
    write_number(out, device.at_us);
    write_number(out, device.id.0);
    write_text(out, &device.name);
    write_text(out, &device.worker_name);
    let groups = &device.groups[..device.groups.len().min(MAX_GROUPS)];
    out.push(groups.len() as u8);
    groups.iter().for_each(|group| write_number(out, group.0));
    write_text(out, &device.address);
    write_text(out, &device.user_agent);
    write_text(out, &device.device_id);
}

fn read_device(from: &mut Reader<'_>) -> Result<DeviceEntry, CodecError> {
    let at_us = from.number("a device's time")?;
    let id = DeviceId(from.number("a device's number")?);
    let (name, worker_name) = (from.text()?, from.text()?);
    let count = usize::from(from.byte()?);
    if count > MAX_GROUPS {
        return Err(CodecError::Field("a device's groups"));
    }
    let groups = (0..count).map(|_| from.number("a group").map(GroupId)).collect::<Result<_, _>>()?;
    let (address, user_agent, device_id) = (from.text()?, from.text()?, from.text()?);
    Ok(DeviceEntry { id, at_us, name, worker_name, groups, address, user_agent, device_id })
}

fn write_subject(out: &mut Vec<u8>, subject: Subject) {
    let (kind, number) = match subject {
        Subject::Fleet => (0, 0),
        Subject::Untracked => (1, 0),
        Subject::Upstream(upstream) => (2, upstream.0.into()),
        Subject::Group(group) => (3, group.0.into()),
        Subject::Device(device) => (4, device.0),
    };
    out.push(kind);
    write_number(out, number);
}

fn read_subject(from: &mut Reader<'_>) -> Result<Subject, CodecError> {
    let kind = from.byte()?;
    let number: u32 = from.number("a subject")?;
    let small = || u16::try_from(number).map_err(|_| CodecError::Field("a subject"));
    Ok(match kind {
        0 => Subject::Fleet,
        1 => Subject::Untracked,
        2 => Subject::Upstream(UpstreamId(small()?)),
        3 => Subject::Group(GroupId(small()?)),
        4 => Subject::Device(DeviceId(number)),
        _ => return Err(CodecError::Field("a subject")),
    })
}

fn write_gap(out: &mut Vec<u8>, gap: &Gap) {
    begin(out, Tag::Gap);
    write_number(out, gap.from_us);
    write_number(out, gap.to_us);
    write_number(out, gap.records);
    let devices = &gap.devices[..gap.devices.len().min(MAX_GAP_SUBJECTS)];
    write_number(out, devices.len() as u64);
    for (device, sums) in devices {
        write_option(out, device.map(|device| device.0.into()));
        encode_sums(sums, out);
    }
    let upstreams = &gap.upstreams[..gap.upstreams.len().min(MAX_GAP_SUBJECTS)];
    write_number(out, upstreams.len() as u64);
    for (upstream, sums) in upstreams {
        write_number(out, upstream.0);
        encode_sums(sums, out);
    }
    let codes = &gap.refused_by_code[..gap.refused_by_code.len().min(MAX_GAP_CODES)];
    write_number(out, codes.len() as u64);
    for (code, count) in codes {
        write_text(out, code);
        write_number(out, *count);
    }
}

fn read_gap(from: &mut Reader<'_>) -> Result<Gap, CodecError> {
    let (from_us, to_us) = (from.number("a gap's start")?, from.number("a gap's end")?);
    let records = from.number("a gap's records")?;
    let mut gap = Gap { from_us, to_us, records, ..Gap::default() };
    for _ in 0..from.count(MAX_GAP_SUBJECTS, "a gap's devices")? {
        let device = match read_option(from)? {
            None => None,
            Some(id) => Some(DeviceId(u32::try_from(id).map_err(|_| CodecError::Field("a gap's device"))?)),
        };
        gap.devices.push((device, from.sums()?));
    }
    for _ in 0..from.count(MAX_GAP_SUBJECTS, "a gap's upstreams")? {
        gap.upstreams.push((UpstreamId(from.number("a gap's upstream")?), from.sums()?));
    }
    for _ in 0..from.count(MAX_GAP_CODES, "a gap's codes")? {
        gap.refused_by_code.push((from.text()?, from.number("a gap's refusals")?));
    }
    Ok(gap)
}

fn read_entry(from: &mut Reader<'_>) -> Result<Entry, CodecError> {
    let tag = from.byte()?;
    Ok(match tag {
        tag if tag == Tag::Share as u8 => Entry::Share(records::read_share(from)?),
        tag if tag == Tag::Answer as u8 => Entry::Answer(records::read_answer(from)?),
        tag if tag == Tag::Release as u8 => Entry::Release(records::read_release(from)?),
        tag if tag == Tag::Job as u8 => Entry::Job(read_job(from)?),
        tag if tag == Tag::Device as u8 => Entry::Device(read_device(from)?),
        tag if tag == Tag::Connection as u8 => Entry::Connection(ConnectionEntry {
            at_us: from.number("a connection's time")?,
            id: ConnectionId(from.number("a connection's number")?),
            channel: ChannelId(from.number("a connection's channel")?),
            device: DeviceId(from.number("a connection's device")?),
            is_open: from.byte()? != 0,
            connections: from.number("a device's connections")?,
        }),
        tag if tag == Tag::Upstream as u8 => Entry::Upstream(UpstreamEntry {
            at_us: from.number("an upstream's time")?,
            id: UpstreamId(from.number("an upstream's number")?),
            name: from.text()?,
            account: from.text()?,
        }),
        tag if tag == Tag::Power as u8 => Entry::Power(PowerEntry {
            at_us: from.number("a reading's time")?,
            subject: read_subject(from)?,
            valid_for_s: from.number("a reading's validity")?,
            milliwatts: from.number("a reading's power")?,
            source: one_of(from, &PowerSource::ALL, "a reading's source")?,
        }),
        tag if tag == Tag::Event as u8 => Entry::Event(EventEntry {
            at_us: from.number("an event's time")?,
            kind: one_of(from, &EventKind::ALL, "an event's kind")?,
            device: match read_option(from)? {
                None => None,
                Some(id) => {
                    Some(DeviceId(u32::try_from(id).map_err(|_| CodecError::Field("an event's device"))?))
                }
            },
            text: from.text()?,
        }),
        tag if tag == Tag::Gap as u8 => Entry::Gap(read_gap(from)?),
        tag if tag == Tag::MinuteEnded as u8 => Entry::MinuteEnded(from.number("a minute")?),
        _ => return Err(CodecError::Field("an entry's kind")),
    })
}

/// The member of a list whose place comes next.
fn one_of<T: Copy>(from: &mut Reader<'_>, all: &[T], what: &'static str) -> Result<T, CodecError> {
    all.get(usize::from(from.byte()?)).copied().ok_or(CodecError::Field(what))
}

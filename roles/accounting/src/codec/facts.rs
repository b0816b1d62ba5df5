//! What a store keeps besides sums, where it is one value: how fast an upstream answers, and the open part of a minute.

use stratum::{DeviceId, Work};

use super::fields::{Reader, write_number};
use super::{CodecError, one_of, read_subject, write_subject};
use crate::acks::AckSums;
use crate::books::MAX_DEVICES;
use crate::energy::MAX_READINGS;
use crate::power::PowerSource;
use crate::rollup::{OpenPart, PowerRow};

/// Appends how fast an upstream answers.
pub fn encode_acks(acks: &AckSums, out: &mut Vec<u8>) {
    acks.classes.iter().for_each(|count| write_number(out, *count));
    write_number(out, acks.total_us);
    write_number(out, acks.longest_us);
}

/// What [`encode_acks`] wrote, and nothing else.
pub fn decode_acks(bytes: &[u8]) -> Result<AckSums, CodecError> {
    let mut from = Reader(bytes);
    let mut acks = AckSums::default();
    for count in &mut acks.classes {
        *count = from.number("a count of answers")?;
    }
    acks.total_us = from.number("latencies")?;
    acks.longest_us = from.number("a latency")?;
    end(&from, acks)
}

/// Appends the open part of a minute.
pub fn encode_part(part: &OpenPart, out: &mut Vec<u8>) {
    write_number(out, part.minute);
    write_number(out, part.from_us);
    write_number(out, part.latest_us);
    write_number(out, part.mined.len() as u64);
    for (device, work) in &part.mined {
        write_number(out, device.0);
        write_number(out, work.0);
    }
    let replaced = &part.replaced[..part.replaced.len().min(MAX_READINGS)];
    write_number(out, replaced.len() as u64);
    for row in replaced {
        write_subject(out, row.subject);
        out.push(row.source as u8);
        write_number(out, row.milliwatts);
        write_number(out, row.from_us);
        write_number(out, row.until_us);
    }
}

/// What [`encode_part`] wrote, and nothing else.
pub fn decode_part(bytes: &[u8]) -> Result<OpenPart, CodecError> {
    let mut from = Reader(bytes);
    let mut part = OpenPart {
        minute: from.number("a minute")?,
        from_us: from.number("the start of a part")?,
        latest_us: from.number("the end of a part")?,
        ..OpenPart::default()
    };
    for _ in 0..from.count(MAX_DEVICES, "the devices of a part")? {
        part.mined.push((DeviceId(from.number("a device")?), Work(from.number("a device's work")?)));
    }
    for _ in 0..from.count(MAX_READINGS, "the readings of a part")? {
        part.replaced.push(PowerRow {
            subject: read_subject(&mut from)?,
            source: one_of(&mut from, &PowerSource::ALL, "a reading's source")?,
            milliwatts: from.number("a reading's power")?,
            from_us: from.number("a reading's time")?,
            until_us: from.number("a reading's end")?,
        });
    }
    end(&from, part)
}

fn end<T>(from: &Reader<'_>, value: T) -> Result<T, CodecError> {
    if from.0.is_empty() { Ok(value) } else { Err(CodecError::Field("what follows a value")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::{GroupId, Subject};

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut acks = AckSums::default();
        [7, 80_000, 99_000_000].into_iter().for_each(|latency| acks.add(latency));
        let mut bytes = Vec::new();
        encode_acks(&acks, &mut bytes);
        assert_eq!(decode_acks(&bytes), Ok(acks));
        assert!(decode_acks(&bytes[1..]).is_err() && decode_acks(&[&bytes[..], &[0]].concat()).is_err());
        let subject = Subject::Group(GroupId(3));
        let row =
            PowerRow { subject, source: PowerSource::Meter, milliwatts: 5, from_us: 1, until_us: u64::MAX };
        let part = OpenPart {
            minute: 60,
            from_us: 61_000_000,
            latest_us: 70_000_000,
            mined: vec![(DeviceId(7), Work(1 << 100)), (DeviceId(0), Work(0))],
            replaced: vec![row],
        };
        let mut bytes = Vec::new();
        encode_part(&part, &mut bytes);
        assert_eq!(decode_part(&bytes), Ok(part));
        for end in 0..bytes.len() {
            assert!(decode_part(&bytes[..end]).is_err(), "cut at {end}");
        }
        // More devices than there can be take no room.
        assert!(decode_part(&[60, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }
}

//! Numbers, texts and sums, the parts that entries are made of.

use super::CodecError;
use crate::entry::MAX_TEXT;
use crate::power::PowerSource;
use crate::record::{DropReason, LossReason, RejectReason};
use crate::sums::Sums;

/// Appends a number, seven bits to a byte, lowest first.
pub(super) fn write_number(out: &mut Vec<u8>, number: impl Into<u128>) {
    let mut wide: u128 = number.into();
    while wide > u128::from(u64::MAX) {
        out.push(wide as u8 | 0x80);
        wide >>= 7;
    }
    // The rest of all but the largest: a processor has no registers for more.
    let mut rest = wide as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a text, cut to [`MAX_TEXT`] bytes.
pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// Bytes that are left to read.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Result<u8, CodecError> {
        let (first, rest) = self.0.split_first().ok_or(CodecError::End)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(CodecError::End)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let (first, rest) = self.0.split_at_checked(length).ok_or(CodecError::End)?;
        self.0 = rest;
        Ok(first)
    }

    /// A number that must fit its type, and is written in no more bytes than it needs.
    pub(super) fn number<T: TryFrom<u128>>(&mut self, what: &'static str) -> Result<T, CodecError> {
        let narrow = self.narrow_number(what)?;
        if let Some(number) = narrow {
            return T::try_from(u128::from(number)).map_err(|_| CodecError::Field(what));
        }
        let mut number = 0_u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(CodecError::Field(what));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return T::try_from(number).map_err(|_| CodecError::Field(what));
            }
        }
        Err(CodecError::Field(what))
    }

    /// A number of at most eight bytes, as almost all are; `None`, and nothing read, when the next one is longer.
    fn narrow_number(&mut self, what: &'static str) -> Result<Option<u64>, CodecError> {
        let mut number = 0_u64;
        for (place, byte) in self.0.iter().take(8).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                if *byte == 0 && place > 0 {
                    return Err(CodecError::Field(what));
                }
                self.0 = &self.0[place + 1..];
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// A number of things that follow.
    pub(super) fn count(&mut self, most: usize, what: &'static str) -> Result<usize, CodecError> {
        let count: u64 = self.number(what)?;
        if count > most as u64 { Err(CodecError::Field(what)) } else { Ok(count as usize) }
    }

    pub(super) fn bytes(&mut self, most: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let length = self.count(most, what)?;
        self.slice(length)
    }

    pub(super) fn text(&mut self) -> Result<String, CodecError> {
        let length = usize::from(self.byte()?);
        let bytes = self.slice(length)?;
        str::from_utf8(bytes).map(str::to_owned).map_err(|_| CodecError::Field("a text"))
    }

    pub(super) fn sums(&mut self) -> Result<Sums, CodecError> {
        let mut sums = Sums::default();
        self.add_to_sums(&mut sums)?;
        Ok(sums)
    }

    /// Adds sums that follow to others, which are of no use after an error.
    fn add_to_sums(&mut self, sums: &mut Sums) -> Result<(), CodecError> {
        let mut given = u64::from_le_bytes(self.array()?);
        if given >> NUMBERS != 0 {
            return Err(CodecError::Field(SUM));
        }
        let mut failure = None;
        each(sums, &mut |number| {
            if given & 1 != 0 && failure.is_none() {
                failure = self.add_to_number(number).err();
            }
            given >>= 1;
        });
        failure.map_or(Ok(()), Err)
    }

    fn add_to_number(&mut self, number: Number<'_>) -> Result<(), CodecError> {
        let more: u128 = self.number(SUM)?;
        let narrow = || u64::try_from(more).map_err(|_| CodecError::Field(SUM));
        match number {
            Number::Count(count) => *count = count.saturating_add(narrow()?),
            Number::Work(work) => *work = work.saturating_add(more),
            Number::Float(float) => *float += f64::from_bits(narrow()?.swap_bytes()),
        }
        // One that is 0 is not written.
        if more == 0 { Err(CodecError::Field(SUM)) } else { Ok(()) }
    }
}

/// What the numbers of sums are called in errors.
const SUM: &str = "a sum";

/// How many numbers sums have: counts and works by reason, energy by source, and 22 single ones.
const NUMBERS: usize = 22
    + 2 * (RejectReason::ALL.len() + DropReason::ALL.len() + LossReason::ALL.len())
    + PowerSource::ALL.len();

/// Appends sums: eight bytes that say which of the numbers are not 0, as most of them are, and those numbers.
pub fn encode_sums(sums: &Sums, out: &mut Vec<u8>) {
    let place = out.len();
    out.extend_from_slice(&[0; 8]);
    let (mut given, mut bit) = (0_u64, 1_u64);
    each(&mut sums.clone(), &mut |number| {
        let number = match number {
            Number::Count(count) => u128::from(*count),
            Number::Work(work) => *work,
            // Turned round, because the low bits of a small float are zeros.
            Number::Float(float) => u128::from(float.to_bits().swap_bytes()),
        };
        if number != 0 {
            given |= bit;
            write_number(out, number);
        }
        bit <<= 1;
    });
    out[place..place + 8].copy_from_slice(&given.to_le_bytes());
}

/// The sums that these bytes are, all of them.
pub fn decode_sums(bytes: &[u8]) -> Result<Sums, CodecError> {
    let mut sums = Sums::default();
    add_sums(bytes, &mut sums)?;
    Ok(sums)
}

/// Adds the sums that these bytes are, all of them, to others, which are of no use after an error.
pub(super) fn add_sums(bytes: &[u8], sums: &mut Sums) -> Result<(), CodecError> {
    let mut from = Reader(bytes);
    from.add_to_sums(sums)?;
    if from.0.is_empty() { Ok(()) } else { Err(CodecError::Field("what follows sums")) }
}

/// One number of sums.
enum Number<'a> {
    Count(&'a mut u64),
    Work(&'a mut u128),
    Float(&'a mut f64),
}

/// Shows every number of sums, in the order in which they are written: [`NUMBERS`] of them.
fn each(sums: &mut Sums, visit: &mut impl FnMut(Number<'_>)) {
    let Sums { shares, answers, energy, squared_work } = sums;
    let counts = [
        &mut shares.submitted,
        &mut shares.accepted,
        &mut shares.blocks,
        &mut shares.below_upstream_target,
        &mut shares.forwarded,
        &mut shares.kept,
        &mut shares.held,
        &mut shares.released,
        &mut answers.forwarded,
        &mut answers.acknowledged,
        &mut answers.refused,
    ];
    counts.into_iter().for_each(|count| visit(Number::Count(count)));
    shares.rejected.iter_mut().for_each(|count| visit(Number::Count(count)));
    shares.dropped.iter_mut().for_each(|count| visit(Number::Count(count)));
    answers.lost.iter_mut().for_each(|count| visit(Number::Count(count)));
    visit(Number::Float(squared_work));
    let works = [
        &mut shares.submitted_work,
        &mut shares.credited,
        &mut shares.upstream_work,
        &mut shares.forwarded_work,
        &mut shares.held_work,
        &mut shares.released_work,
        &mut answers.forwarded_work,
        &mut answers.acknowledged_work,
        &mut answers.refused_work,
        &mut energy.covered_work,
    ];
    works.into_iter().for_each(|work| visit(Number::Work(&mut work.0)));
    shares.rejected_work.iter_mut().for_each(|work| visit(Number::Work(&mut work.0)));
    shares.dropped_work.iter_mut().for_each(|work| visit(Number::Work(&mut work.0)));
    answers.lost_work.iter_mut().for_each(|work| visit(Number::Work(&mut work.0)));
    energy.millijoules.iter_mut().for_each(|millijoules| visit(Number::Work(millijoules)));
}

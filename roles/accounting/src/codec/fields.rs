//! Numbers, texts and sums, the parts that entries are made of.

use stratum::Work;

use super::CodecError;
use crate::entry::MAX_TEXT;
use crate::sums::Sums;

/// Appends a number, seven bits to a byte, lowest first.
pub(super) fn write_number(out: &mut Vec<u8>, number: impl Into<u128>) {
    let mut rest: u128 = number.into();
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
        let mut failure = None;
        each(&mut sums, &mut |value| {
            if failure.is_none() {
                match self.number("a sum") {
                    Ok(number) => *value = number,
                    Err(error) => failure = Some(error),
                }
            }
        });
        failure.map_or(Ok(sums), Err)
    }
}

/// Appends sums. What is 0, as most of them are, takes one byte.
pub fn encode_sums(sums: &Sums, out: &mut Vec<u8>) {
    let mut sums = sums.clone();
    each(&mut sums, &mut |value| write_number(out, *value));
}

/// The sums that these bytes are, all of them.
pub fn decode_sums(bytes: &[u8]) -> Result<Sums, CodecError> {
    let mut from = Reader(bytes);
    let sums = from.sums()?;
    if from.0.is_empty() { Ok(sums) } else { Err(CodecError::Field("what follows sums")) }
}

/// Shows every number of sums, in the order in which they are written.
fn each(sums: &mut Sums, visit: &mut impl FnMut(&mut u128)) {
    let Sums { shares, answers, energy, squared_work } = sums;
    let mut count = |count: &mut u64| {
        let mut wide = u128::from(*count);
        visit(&mut wide);
        *count = u64::try_from(wide).unwrap_or(u64::MAX);
    };
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
    counts.into_iter().for_each(&mut count);
    shares.rejected.iter_mut().for_each(&mut count);
    shares.dropped.iter_mut().for_each(&mut count);
    answers.lost.iter_mut().for_each(&mut count);
    // Turned round, because the low bits of a small float are zeros.
    let mut bits = squared_work.to_bits().swap_bytes();
    count(&mut bits);
    *squared_work = f64::from_bits(bits.swap_bytes());
    let mut work = |work: &mut Work| visit(&mut work.0);
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
    works.into_iter().for_each(&mut work);
    shares.rejected_work.iter_mut().for_each(&mut work);
    shares.dropped_work.iter_mut().for_each(&mut work);
    answers.lost_work.iter_mut().for_each(&mut work);
    energy.millijoules.iter_mut().for_each(visit);
}

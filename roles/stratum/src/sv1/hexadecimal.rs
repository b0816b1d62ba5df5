//! The hexadecimal fields of SV1, read the way that firmware writes them.
//!
//! This module never allocates for what a peer sent.

use arrayvec::ArrayVec;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A 32-bit number of one to eight digits in either case, with or without `0x`. Shorter forms stand for leading
/// zeros: NerdMiner 1.8.3 prints nonces without them.
pub(super) fn number(text: &[u8]) -> Option<u32> {
    // As nearly all are written.
    if let Ok(digits) = <&[u8; 8]>::try_from(text)
        && let Some(number) = eight_digits(digits)
    {
        return Some(number);
    }
    let digits = without_prefix(text);
    if !matches!(digits.len(), 1..=8) {
        return None;
    }
    // Every digit is looked at before any is refused, so that nothing is waited for in between.
    let (mut number, mut seen) = (0, 0);
    for digit in digits {
        let value = VALUES[usize::from(*digit)];
        seen |= value;
        number = number << 4 | u32::from(value & 15);
    }
    (seen < 16).then_some(number)
}

/// Whole bytes, at most `CAPACITY` of them. `None` for an odd number of digits, too many, or other characters.
pub(super) fn bytes<const CAPACITY: usize>(text: &[u8]) -> Option<ArrayVec<u8, CAPACITY>> {
    if text.len() > 2 * CAPACITY {
        return None;
    }
    let mut bytes = ArrayVec::new();
    let (eights, rest) = text.as_chunks::<8>();
    for digits in eights {
        bytes.try_extend_from_slice(&eight_digits(digits)?.to_be_bytes()).ok()?;
    }
    let (pairs, rest) = rest.as_chunks::<2>();
    let value = |digit: u8| Some(VALUES[usize::from(digit)]).filter(|value| *value < 16);
    for [high, low] in pairs {
        bytes.try_push(value(*high)? << 4 | value(*low)?).ok()?;
    }
    rest.is_empty().then_some(bytes)
}

/// The number of eight digits in either case; `None` when one of them is none. All eight are looked at in one word, a
/// byte each; the sums stay within their bytes, because each is below 0x80 where it counts.
pub(super) fn eight_digits(digits: &[u8; 8]) -> Option<u32> {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    const TOP: u64 = each(0x80);
    // The first digit is the highest byte.
    let text = u64::from_be_bytes(*digits);
    let low = text & !TOP;
    let (figure, letter) = (low ^ each(b'0'), (low | each(0x20)) ^ each(b'a' - 1));
    // The top bit of each: 10 and more for a figure; 7 and more, or 0, for a letter.
    let no_figure = figure + each(0x80 - 10);
    let no_letter = (letter + each(0x80 - 7)) | !(letter + each(0x7f));
    if (no_figure & no_letter | text) & TOP != 0 {
        return None;
    }
    let values = (low & each(0x0f)) + 9 * (low >> 6 & each(1));
    // Neighbours move together: digits into bytes, bytes into halves, halves into the number.
    let pairs = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    let halves = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((halves | halves >> 16) as u32)
}

/// Text without a leading `0x` or `0X`.
pub(super) fn without_prefix(text: &[u8]) -> &[u8] {
    match text {
        [b'0', b'x' | b'X', digits @ ..] => digits,
        digits => digits,
    }
}

/// Appends the two lower-case digits of each byte.
pub(super) fn write(out: &mut Vec<u8>, bytes: &[u8]) {
    // Counted and not looked up, and into room that is there: so the compiler does many at once. A coinbase and its
    // path go through here for every device with jobs of its own.
    const fn digit(value: u8) -> u8 {
        value + b'0' + if value > 9 { b'a' - b'9' - 1 } else { 0 }
    }
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    let (pairs, _) = out[start..].as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
}

/// The value of each digit; [`NO_DIGIT`] for every other character.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        let digit = DIGITS[value];
        values[digit as usize] = value as u8;
        values[digit.to_ascii_uppercase() as usize] = value as u8;
        value += 1;
    }
    values
};

const NO_DIGIT: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_firmware_writes_them() {
        for (text, expected) in [
            ("1a2b3", Some(0x1a2b3)),
            ("0x1FFFE000", Some(0x1fff_e000)),
            ("0Xab", Some(0xab)),
            ("00000000", Some(0)),
            ("ffffffff", Some(u32::MAX)),
            ("000000001", None),
            ("", None),
            ("0x", None),
            ("+1", None),
            ("-1", None),
            ("12 4", None),
            ("\u{663}", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn eight_digits_are_read_as_one_by_one() {
        for byte in 0..=255 {
            for place in 0..8 {
                let mut text = *b"09afAF5c";
                text[place] = byte;
                let expected = str::from_utf8(&text)
                    .ok()
                    .filter(|text| text.bytes().all(|digit| digit.is_ascii_hexdigit()))
                    .map(|text| u32::from_str_radix(text, 16).expect("they are digits"));
                assert_eq!(eight_digits(&text), expected, "{byte:#x} at {place}");
            }
        }
    }

    #[test]
    fn bytes_in_whole_pairs_only() {
        assert_eq!(bytes::<4>(b"00Ff10").as_deref(), Some(&[0, 0xff, 0x10][..]));
        assert_eq!(bytes::<4>(b"").as_deref(), Some(&[][..]));
        assert_eq!(bytes::<4>(b"abc"), None);
        assert_eq!(bytes::<4>(b"0x12"), None);
        assert_eq!(bytes::<4>(b"0011223344"), None);
        assert_eq!(bytes::<5>(b"0011aAff44").as_deref(), Some(&[0, 0x11, 0xaa, 0xff, 0x44][..]));
        assert_eq!(bytes::<5>(b"0011223344f"), None);
        assert_eq!(bytes::<5>(b"0011223g44"), None);
        let mut out = Vec::new();
        write(&mut out, &[0, 0xab, 0xff]);
        assert_eq!(out, b"00abff");
        let all: Vec<u8> = (0..=255).collect();
        out.clear();
        write(&mut out, &all);
        assert_eq!(out, hex::encode(&all).into_bytes());
    }
}

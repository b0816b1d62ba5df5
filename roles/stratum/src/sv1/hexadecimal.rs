//! The hexadecimal fields of SV1, read the way that firmware writes them.
//!
//! This module never allocates for what a peer sent.

use arrayvec::ArrayVec;

/// A 32-bit number of one to eight digits in either case, with or without `0x`. Shorter forms stand for leading
/// zeros: NerdMiner 1.8.3 prints nonces without them.
pub(super) fn number(text: &str) -> Option<u32> {
    let digits = without_prefix(text);
    // The digits are checked here because `from_str_radix` would also take a sign.
    let plain = matches!(digits.len(), 1..=8) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u32::from_str_radix(digits, 16).ok() } else { None }
}

/// Whole bytes, at most `CAPACITY` of them. `None` for an odd number of digits, too many, or other characters.
pub(super) fn bytes<const CAPACITY: usize>(text: &str) -> Option<ArrayVec<u8, CAPACITY>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > CAPACITY {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Text without a leading `0x` or `0X`.
pub(super) fn without_prefix(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}

/// Appends the two lower-case digits of each byte.
pub(super) fn write(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 * bytes.len());
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn digit(character: u8) -> Option<u8> {
    char::from(character).to_digit(16).map(|digit| digit as u8)
}

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
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn bytes_in_whole_pairs_only() {
        assert_eq!(bytes::<4>("00Ff10").as_deref(), Some(&[0, 0xff, 0x10][..]));
        assert_eq!(bytes::<4>("").as_deref(), Some(&[][..]));
        assert_eq!(bytes::<4>("abc"), None);
        assert_eq!(bytes::<4>("0x12"), None);
        assert_eq!(bytes::<4>("0011223344"), None);
        let mut out = Vec::new();
        write(&mut out, &[0, 0xab, 0xff]);
        assert_eq!(out, b"00abff");
    }
}

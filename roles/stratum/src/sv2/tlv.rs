//! Fields that extensions append to messages (SV2 3.4.3): type of three bytes, length of two, value.
//!
//! The specification contradicts itself on their byte order: its data types are little-endian, its example of
//! extension 2 is big-endian. The reference implementation writes little-endian, and so do we; both are read, which
//! no value of extension 2 leaves ambiguous. This module never allocates.

/// Bytes of a field before its value.
pub(super) const TLV_HEADER_SIZE: usize = 5;

/// What is at the end of a payload, after the fields that its message defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trailing<'a> {
    /// Well-formed fields, with the value of the one looked for. Nothing at all is well formed.
    Fields(Option<&'a [u8]>),
    /// Bytes that are no fields in either byte order.
    Junk,
}

/// Looks for one field among trailing bytes; all others are skipped, as unknown fields must be.
pub(super) fn find(bytes: &[u8], extension_type: u16, field_type: u8) -> Trailing<'_> {
    let wanted = (extension_type, field_type);
    let little = find_ordered(bytes, wanted, u16::from_le_bytes);
    let big = find_ordered(bytes, wanted, u16::from_be_bytes);
    match (little, big) {
        (Trailing::Junk, other) | (other, Trailing::Junk) => other,
        (Trailing::Fields(None), other) => other,
        (found, _) => found,
    }
}

fn find_ordered(mut bytes: &[u8], wanted: (u16, u8), read: fn([u8; 2]) -> u16) -> Trailing<'_> {
    let mut found = None;
    while !bytes.is_empty() {
        let Some((&[e0, e1, field_type, l0, l1], rest)) = bytes.split_first_chunk::<TLV_HEADER_SIZE>() else {
            return Trailing::Junk;
        };
        let Some((value, rest)) = rest.split_at_checked(usize::from(read([l0, l1]))) else {
            return Trailing::Junk;
        };
        if (read([e0, e1]), field_type) == wanted {
            found = Some(value);
        }
        bytes = rest;
    }
    Trailing::Fields(found)
}

/// Appends a field. The value must be at most 65,535 bytes.
pub(super) fn append(out: &mut Vec<u8>, extension_type: u16, field_type: u8, value: &[u8]) {
    let length =
        u16::try_from(value.len()).expect("extension values are limited to 32 bytes before they come here");
    out.extend_from_slice(&extension_type.to_le_bytes());
    out.push(field_type);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_byte_orders_are_read() {
        let little = *b"\x02\x00\x01\x0a\x00Worker_001";
        // The example of SV2 3.4.3.
        let big = *b"\x00\x02\x01\x00\x0aWorker_001";
        assert_eq!(find(&little, 2, 1), Trailing::Fields(Some(b"Worker_001")));
        assert_eq!(find(&big, 2, 1), Trailing::Fields(Some(b"Worker_001")));
        let mut written = Vec::new();
        append(&mut written, 2, 1, b"Worker_001");
        assert_eq!(written, little);
    }

    #[test]
    fn unknown_fields_are_skipped_and_junk_is_not() {
        assert_eq!(find(b"", 2, 1), Trailing::Fields(None));
        assert_eq!(find(b"\x03\x00\x01\x01\x00z", 2, 1), Trailing::Fields(None));
        assert_eq!(find(b"\x03\x00\x01\x01\x00z\x02\x00\x01\x01\x00y", 2, 1), Trailing::Fields(Some(b"y")));
        assert_eq!(find(b"\x02\x00\x01\x00\x00", 2, 1), Trailing::Fields(Some(b"")));
        assert_eq!(find(b"\x00\x02\x01\x00\x00", 2, 1), Trailing::Fields(Some(b"")));
        for junk in
            [&b"\x00"[..], b"\x02\x00\x01\x0a", b"\x02\x00\x01\x0a\x00short", b"\x02\x00\x01\x01\x00yz"]
        {
            assert_eq!(find(junk, 2, 1), Trailing::Junk, "{junk:?}");
        }
    }
}

//! A peer's words, made safe to show.

/// Characters of a peer's text that are repeated to the operator: enough for any error code in use.
const MAX_QUOTED: usize = 120;

/// The longest text that an SV2 message carries (STR0_255), in bytes.
pub(crate) const MAX_TEXT: usize = 255;

/// A peer's text as it is safe to show: visible ASCII only, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_QUOTED).collect()
}

/// The longest start of a text that an SV2 message carries.
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

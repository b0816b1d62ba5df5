//! Scanners for SV1 lines that both ends of this program write without spaces: where a field begins is known, so
//! that reading costs next to nothing. What they do not understand goes to the slow way, or is refused.

/// The first line of `bytes` without its line feed, and what follows; `None` when there is no line feed.
pub fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// What follows the first `marker`.
pub fn after<'a>(line: &'a [u8], marker: &[u8]) -> Option<&'a [u8]> {
    let at = line.windows(marker.len()).position(|window| window == marker)?;
    Some(&line[at + marker.len()..])
}

/// The digits of the id of a line that begins with it.
pub fn id(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"{\"id\":")?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    (end > 0).then(|| &rest[..end])
}

/// The number of up to nineteen decimal digits.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0, |number: u64, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// The number of one to eight hexadecimal digits.
pub fn hex_number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    digits.iter().try_fold(0, |number: u32, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(value))
    })
}

/// Appends the eight lower-case hexadecimal digits of a number.
pub fn write_hex(out: &mut Vec<u8>, number: u32) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 8];
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = DIGITS[(number >> (28 - 4 * place) & 15) as usize];
    }
    out.extend_from_slice(&digits);
}

/// Appends the decimal digits of a number.
pub fn write_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The texts between quotation marks, one after the other. Escaped quotation marks are not understood.
#[derive(Clone, Debug)]
pub struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    /// The texts in `bytes`, which must not begin within one.
    pub const fn of(bytes: &'a [u8]) -> Self {
        Strings(bytes)
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let quote = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'"');
        let text = &self.0[quote(self.0)? + 1..];
        let end = quote(text)?;
        self.0 = &text[end + 1..];
        Some(&text[..end])
    }
}

/// What a server's answer to a submission says, where it is written in one of the usual ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The id of the submission.
    pub id: u64,
}

/// An answer that accepts; `None` for everything else, refusals too.
pub fn accepted(line: &[u8]) -> Option<Accepted> {
    let digits = id(line)?;
    let rest = &line[b"{\"id\":".len() + digits.len()..];
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    let is_accepted = matches!(
        rest,
        b",\"result\":true,\"error\":null}" | b",\"error\":null,\"result\":true}" | b",\"result\":true}"
    );
    if is_accepted { decimal(digits).map(|id| Accepted { id }) } else { None }
}

/// The fields of a `mining.notify` line that are needed before it is mined on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotifyHead<'a> {
    /// The previous block's hash, as the line shows it.
    pub previous_hash: &'a [u8],
    /// Whether earlier jobs must be dropped.
    pub clean: bool,
}

/// Reads a `mining.notify` line; `None` when it is another one.
pub fn notify(line: &[u8]) -> Option<NotifyHead<'_>> {
    // Whatever the order of the keys, the method and the parameters begin within the first bytes, or the method
    // stands at the very end.
    let head = &line[..line.len().min(96)];
    let tail = &line[line.len().saturating_sub(48)..];
    after(head, b"mining.notify").or_else(|| after(tail, b"mining.notify"))?;
    let mut strings = Strings::of(after(line, b"\"params\":[")?);
    let (_job_id, previous_hash) = (strings.next()?, strings.next()?);
    let params_end = line.iter().rposition(|byte| *byte == b']')?;
    let clean = line[..params_end].ends_with(b"true");
    Some(NotifyHead { previous_hash, clean })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_answers_are_understood() {
        let id = |text: &str| accepted(text.as_bytes()).map(|accepted| accepted.id);
        assert_eq!(id(r#"{"id":12,"result":true,"error":null}"#), Some(12));
        assert_eq!(id(r#"{"id":12,"error":null,"result":true}"#), Some(12));
        assert_eq!(id(r#"{"id":12,"result":true}"#), Some(12));
        for other in [
            r#"{"id":12,"result":false,"error":null}"#,
            r#"{"id":12,"result":null,"error":[21,"Job not found",null]}"#,
            r#"{"id":null,"method":"mining.notify","params":[]}"#,
            r#"{"id":12345678901234567890,"result":true}"#,
            "",
        ] {
            assert_eq!(id(other), None, "{other}");
        }
    }

    #[test]
    fn the_head_of_a_job_is_found_in_every_order_of_keys() {
        let hash = "ab".repeat(32);
        let params = format!(r#"["5f","{hash}","01","02",["{hash}"],"20000000","17023a04","6b000000",true]"#);
        for line in [
            format!(r#"{{"id":null,"method":"mining.notify","params":{params}}}"#),
            format!(r#"{{"method":"mining.notify","params":{params}}}"#),
            format!(r#"{{"params":{params},"id":null,"method":"mining.notify"}}"#),
        ] {
            let head = notify(line.as_bytes()).expect("a job");
            assert_eq!((head.previous_hash, head.clean), (hash.as_bytes(), true), "{line}");
            let other = line.replace("true", "false");
            assert!(!notify(other.as_bytes()).expect("a job").clean, "{other}");
        }
        assert_eq!(notify(br#"{"id":null,"method":"mining.set_difficulty","params":[1]}"#), None);
        assert_eq!(notify(b"{\"id\":1,\"result\":true,\"error\":null}"), None);
    }

    #[test]
    fn numbers_go_both_ways() {
        for number in [0, 1, 9, 10, 0x1fff_e000, u32::MAX] {
            let (mut hex, mut decimal_digits) = (Vec::new(), Vec::new());
            write_hex(&mut hex, number);
            write_decimal(&mut decimal_digits, u64::from(number));
            assert_eq!(hex, format!("{number:08x}").into_bytes());
            assert_eq!(decimal_digits, number.to_string().into_bytes());
            assert_eq!(hex_number(&hex), Some(number));
            assert_eq!(decimal(&decimal_digits), Some(u64::from(number)));
        }
        for wrong in [&b""[..], b"123456789", b"12g4", b"-1"] {
            assert_eq!(hex_number(wrong), None);
        }
    }

    #[test]
    fn lines_and_texts_are_split() {
        assert_eq!(split_line(b"a\nb"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(split_line(b"ab"), None);
        let texts: Vec<_> = Strings::of(br#"{"a":["b",1,""],"c"#).collect();
        assert_eq!(texts, [&b"a"[..], b"b", b""]);
    }
}

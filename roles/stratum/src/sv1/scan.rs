//! Reads `mining.submit` as miners really write it, without a JSON parser: nearly every line of a connection is one.
//!
//! What is not exactly that shape is left to the parser: other methods and keys, repeated keys, escapes, other
//! characters than plain ASCII, numbers among the parameters, ids that are no string or whole number, and every
//! parameter that is wrong. So this module never refuses a line and never answers for an error; what it does accept
//! it reads as the parser would, which tests and a fuzz target hold it to.

use std::borrow::Cow;

use super::hexadecimal;
use super::request::{Call, MAX_ID_BYTES, MAX_JOB_ID_BYTES, MAX_USER_BYTES, RawId, Request, Submit};

/// The most digits of a number that is taken as an id: a 64-bit number has no more.
const MAX_ID_DIGITS: usize = 20;

/// The parameters of a submission: user, job, extranonce2, ntime, nonce, and the version bits where there are any.
const MOST_PARAMETERS: usize = 6;

const METHOD: &str = "mining.submit";

/// The submission that a line is; `None` for every other line, and for a submission that is not plainly right.
pub(super) fn submit(line: &[u8]) -> Option<Request<'_>> {
    if !is_plain(line) {
        return None;
    }
    let mut scanner = Scanner { rest: str::from_utf8(line).ok()? };
    let (mut id, mut params, mut is_submit) = (None, None, false);
    scanner.take(b'{')?;
    loop {
        let key = scanner.string()?;
        scanner.take(b':')?;
        match key {
            "id" if id.is_none() => id = Some(scanner.id()?),
            "method" if !is_submit && scanner.string()? == METHOD => is_submit = true,
            "params" if params.is_none() => params = Some(scanner.params()?),
            _ => return None,
        }
        match scanner.next()? {
            b',' => (),
            b'}' => break,
            _ => return None,
        }
    }
    scanner.blanks();
    let is_whole = is_submit && scanner.rest.is_empty();
    is_whole.then_some(Request { id: id.unwrap_or(RawId::NONE), call: Call::Submit(params?) })
}

/// Whether a line is printable ASCII without a backslash, so that a string in it ends with the next quotation mark
/// and says what it says. One pass over all of it, which the compiler turns into a few instructions for 16 bytes.
fn is_plain(line: &[u8]) -> bool {
    let is_odd = |byte: u8| u8::from(byte.wrapping_sub(b' ') > b'~' - b' ') | u8::from(byte == b'\\');
    line.iter().fold(0, |odd, byte| odd | is_odd(*byte)) == 0
}

/// Goes through a line that is plain.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    /// JSON has other white space too, which no plain line has.
    #[inline]
    fn blanks(&mut self) {
        while let Some(rest) = self.rest.strip_prefix(' ') {
            self.rest = rest;
        }
    }

    /// Takes the first `length` bytes, which a plain line can be cut after wherever it is.
    #[inline]
    fn cut(&mut self, length: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next character that is no blank.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        self.blanks();
        Some(self.cut(1)?.as_bytes()[0])
    }

    #[inline]
    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// What a string says.
    #[inline]
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let string = self.cut(quotation_mark(self.rest.as_bytes())?)?;
        self.cut(1)?;
        Some(string)
    }

    fn id(&mut self) -> Option<RawId<'a>> {
        self.blanks();
        let bytes = self.rest.as_bytes();
        let length = match bytes {
            [b'n', b'u', b'l', b'l', ..] => {
                self.cut(b"null".len())?;
                return Some(RawId::NONE);
            }
            [b'"', string @ ..] => quotation_mark(string)? + 2,
            [b'0', ..] => 1,
            [b'1'..=b'9', ..] => {
                let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
                if digits > MAX_ID_DIGITS {
                    return None;
                }
                digits
            }
            _ => return None,
        };
        // A number that goes on in another way is followed by no comma, brace or blank, which ends the scan.
        if length > MAX_ID_BYTES { None } else { Some(RawId::from_token(self.cut(length)?)) }
    }

    fn params(&mut self) -> Option<Submit<'a>> {
        self.take(b'[')?;
        let mut strings = [""; MOST_PARAMETERS];
        let mut count = 0;
        loop {
            *strings.get_mut(count)? = self.string()?;
            count += 1;
            match self.next()? {
                b',' => (),
                b']' => break,
                _ => return None,
            }
        }
        let [user, job_id, extranonce2, ntime, nonce, version_bits] = strings;
        if count < MOST_PARAMETERS - 1 || user.len() > MAX_USER_BYTES || job_id.len() > MAX_JOB_ID_BYTES {
            return None;
        }
        Some(Submit {
            user: Cow::Borrowed(user),
            job_id: Cow::Borrowed(job_id),
            extranonce2: hexadecimal::bytes(hexadecimal::without_prefix(extranonce2.as_bytes()))?,
            ntime: hexadecimal::number(ntime.as_bytes())?,
            nonce: hexadecimal::number(nonce.as_bytes())?,
            version_bits: match count {
                MOST_PARAMETERS => Some(hexadecimal::number(version_bits.as_bytes())?),
                _ => None,
            },
        })
    }
}

/// Where the first quotation mark is. Looks at eight bytes at a time.
fn quotation_mark(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    const MARKS: u64 = u64::from_ne_bytes([b'"'; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let difference = u64::from_le_bytes(*word) ^ MARKS;
        // The difference of a mark is zero and borrows, which sets its top bit, and perhaps those of bytes after it:
        // the first that is set is right, and it is all that counts.
        let marks = difference.wrapping_sub(ONES) & !difference & TOPS;
        if marks != 0 {
            return Some(8 * index + marks.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|byte| *byte == b'"').map(|index| 8 * words.len() + index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CGMINER: &str = r#"{"params": ["a.b", "1f", "00000001", "504e86ed", "b2957c02", "00c3e000"], "id": 4, "method": "mining.submit"}"#;

    /// What a line is to the scanner, which must be what it is to the parser.
    fn scanned(line: &str) -> bool {
        let scanned = submit(line.as_bytes());
        if let Some(request) = &scanned {
            assert_eq!(Request::parse_any(line.as_bytes()).as_ref(), Ok(request), "{line}");
        }
        scanned.is_some()
    }

    #[test]
    fn submissions_are_read_as_miners_write_them() {
        for line in [
            CGMINER,
            // Without version rolling, without blanks, with an id that is text or null, and keys in another order.
            r#"{"id":7,"method":"mining.submit","params":["user","0","0x00","1","ABCDEF01"]}"#,
            r#"{"method": "mining.submit", "params": ["", "", "", "0", "0"], "id": "x 1"}"#,
            r#"{"method":"mining.submit","id":null,"params":["~","1","00","1","1"]}"#,
            r#"{"id":0,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#" { "id" : 1 , "method" : "mining.submit" ,"params" :[ "u" ,"1" ,"00" ,"1" ,"1" ] } "#,
            r#"{"id":18446744073709551615,"method":"mining.submit","params":["{,}","1","00","1","1"]}"#,
        ] {
            assert!(scanned(line), "{line}");
        }
    }

    #[test]
    fn everything_else_is_left_to_the_parser() {
        for line in [
            "",
            "{}",
            "{",
            r#"{"id":1,"method":"mining.submit"}"#,
            r#"{"id":1,"params":["u","1","00","1","1"]}"#,
            r#"{"id":1,"method":"mining.ping","params":["u","1","00","1","1"]}"#,
            r#"{"id":01,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":-1,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":1.5,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":1e5,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":123456789012345678901,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":nul,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":true,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":{},"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":1,"id":2,"method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":1,"method":"mining.ping","method":"mining.submit","params":["u","1","00","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1"],"params":["u","1","00","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1"],"jsonrpc":"2.0"}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1"],}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1"]}}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1"]} x"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1",]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1",null]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u",1,"00","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","0","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","g"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","123456789"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u","1","00","1","1",""]}"#,
            r#"{"id":1,"method":"mining.submit","params":["u\u0041","1","00","1","1"]}"#,
            r#"{"id":1,"method":"mining.submit","params":["ü","1","00","1","1"]}"#,
            "{\"id\":1,\"method\":\"mining.submit\",\"params\":[\"u\t\",\"1\",\"00\",\"1\",\"1\"]}",
            "{\"id\":1,\t\"method\":\"mining.submit\",\"params\":[\"u\",\"1\",\"00\",\"1\",\"1\"]}",
        ] {
            assert!(!scanned(line), "{line}");
        }
        let long = "u".repeat(MAX_USER_BYTES);
        assert!(scanned(&CGMINER.replace("a.b", &long)));
        assert!(!scanned(&CGMINER.replace("a.b", &format!("{long}u"))));
        let long = "1".repeat(MAX_JOB_ID_BYTES);
        assert!(scanned(&CGMINER.replace("1f", &long)));
        assert!(!scanned(&CGMINER.replace("1f", &format!("{long}1"))));
        let long = "1".repeat(MAX_ID_BYTES - 2);
        assert!(scanned(&CGMINER.replace(": 4", &format!(": \"{long}\""))));
        assert!(!scanned(&CGMINER.replace(": 4", &format!(": \"{long}1\""))));
    }

    #[test]
    fn a_quotation_mark_is_found_anywhere() {
        for length in 0..40 {
            // A mark less one borrows from it.
            let mut bytes = vec![b'#'; length];
            assert_eq!(quotation_mark(&bytes), None);
            for at in (0..length).rev() {
                bytes[at] = b'"';
                assert_eq!(quotation_mark(&bytes), Some(at));
            }
        }
    }

    #[test]
    fn one_odd_byte_makes_a_line_that_is_not_plain() {
        for odd in (0..0x20).chain([b'\\']).chain(0x7f..=0xff) {
            for at in 0..40 {
                let mut line = [b' '; 40];
                line[at] = odd;
                assert!(!is_plain(&line), "{odd:#04x}");
            }
        }
        let plain: Vec<u8> = (0x20..0x7f).filter(|byte| *byte != b'\\').collect();
        assert!(is_plain(&plain) && is_plain(b""));
    }

    /// Pieces of which lines are made that are right, nearly right and wrong.
    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\t",
            "\"",
            "\\",
            "null",
            "0",
            "12",
            "-1",
            "1.0",
            "1e3",
            "true",
            "\"id\"",
            "\"method\"",
            "\"params\"",
            "\"mining.submit\"",
            "\"mining.ping\"",
            "\"user.name\"",
            "\"1f\"",
            "\"0x0001\"",
            "\"504e86ed\"",
            "\"\"",
            "\"\\u0031\"",
            "\"é\"",
            "\"result\"",
        ])
    }

    proptest! {
        #[test]
        fn changed_submissions_are_read_alike(
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, piece()), 0..4),
        ) {
            let mut line = CGMINER.to_owned();
            for (at, removed, added) in changes {
                let mut at = at.index(line.len());
                while !line.is_char_boundary(at) {
                    at -= 1;
                }
                let mut end = (at + removed).min(line.len());
                while !line.is_char_boundary(end) {
                    end -= 1;
                }
                line.replace_range(at..end.max(at), added);
            }
            scanned(&line);
        }

        #[test]
        fn any_pieces_are_read_alike(pieces in prop::collection::vec(piece(), 0..40)) {
            scanned(&pieces.concat());
        }

        #[test]
        fn any_members_are_read_alike(
            members in prop::collection::vec((piece(), piece()), 0..3),
            parameters in prop::collection::vec(piece(), 3..8),
            order in 0usize..4,
        ) {
            let mut texts: Vec<String> = members.iter().map(|(key, value)| format!("{key}:{value}")).collect();
            texts.insert(order.min(texts.len()), "\"method\":\"mining.submit\"".to_owned());
            texts.push(format!("\"params\":[{}]", parameters.join(",")));
            scanned(&format!("{{{}}}", texts.join(",")));
        }
    }
}

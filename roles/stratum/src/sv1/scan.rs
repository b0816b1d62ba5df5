//! Reads `mining.submit` as miners really write it, without a JSON parser: nearly every line of a connection is one.
//!
//! What is not exactly that shape is left to the parser: other methods and keys, repeated keys, escapes, other
//! characters than plain ASCII, numbers among the parameters, ids that are no string or whole number, and every
//! parameter that is wrong. So this module never refuses a line and never answers for an error; what it does accept
//! it reads as the parser would, which tests and a fuzz target hold it to.

use std::borrow::Cow;

use arrayvec::ArrayVec;

use super::hexadecimal;
use super::request::{
    Call, MAX_EXTRANONCE2_BYTES, MAX_ID_BYTES, MAX_JOB_ID_BYTES, MAX_USER_BYTES, RawId, Request, Submit,
};

/// The most digits of a number that is taken as an id: a 64-bit number has no more.
const MAX_ID_DIGITS: usize = 20;

/// The submission that a line is; `None` for every other line, and for a submission that is not plainly right.
///
/// Every byte is compared with what must be there, but for those of the three texts, which are looked at as a whole.
pub(super) fn submit(line: &[u8]) -> Option<Request<'_>> {
    let mut scanner = Scanner { text: str::from_utf8(line).ok()?, at: 0 };
    let (mut id, mut params, mut is_submit) = (None, None, false);
    scanner.take(b'{')?;
    loop {
        scanner.blanks();
        if scanner.skip(b"\"params\"") && params.is_none() {
            scanner.take(b':')?;
            params = Some(scanner.params()?);
        } else if scanner.skip(b"\"method\"") && !is_submit {
            scanner.take(b':')?;
            scanner.blanks();
            is_submit = scanner.skip(b"\"mining.submit\"");
            if !is_submit {
                return None;
            }
        } else if scanner.skip(b"\"id\"") && id.is_none() {
            scanner.take(b':')?;
            id = Some(scanner.id()?);
        } else {
            return None;
        }
        match scanner.next()? {
            b',' => (),
            b'}' => break,
            _ => return None,
        }
    }
    scanner.blanks();
    let is_whole = is_submit && scanner.at == line.len();
    is_whole.then_some(Request { id: id.unwrap_or(RawId::NONE), call: Call::Submit(params?) })
}

/// Goes through a line.
struct Scanner<'a> {
    text: &'a str,
    /// How much of it was read. A number and not the rest of the text, which would be written and read again in pieces of
    /// other sizes, and that stalls a processor.
    at: usize,
}

impl<'a> Scanner<'a> {
    /// What was not read yet.
    #[inline]
    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// JSON has other white space too, which is left to the parser.
    #[inline]
    fn blanks(&mut self) {
        while self.text.as_bytes().get(self.at) == Some(&b' ') {
            self.at += 1;
        }
    }

    /// The next character that is no blank.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        self.blanks();
        let next = *self.text.as_bytes().get(self.at)?;
        self.at += 1;
        Some(next)
    }

    #[inline]
    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// Takes what is wanted, if it is there.
    #[inline]
    fn skip(&mut self, wanted: &[u8]) -> bool {
        let is_there = self.rest().starts_with(wanted);
        self.at += if is_there { wanted.len() } else { 0 };
        is_there
    }

    /// Takes the next `length` bytes.
    #[inline]
    fn text(&mut self, length: usize) -> Option<&'a str> {
        let start = self.at;
        self.at += length;
        self.text.get(start..self.at)
    }

    /// What a string says.
    #[inline]
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let string = self.text(length_of_string(self.rest())?)?;
        self.at += 1;
        Some(string)
    }

    /// What a string of digits says, which others than digits are to be refused in.
    #[inline]
    fn digits(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let rest = self.rest();
        let digits = &rest[..quotation_mark(rest)?];
        self.at += digits.len() + 1;
        Some(digits)
    }

    #[inline]
    fn number(&mut self) -> Option<u32> {
        self.blanks();
        // As nearly all are written.
        if let Some([b'"', digits @ .., b'"']) = self.rest().first_chunk::<10>()
            && let Some(number) = hexadecimal::eight_digits(digits)
        {
            self.at += 10;
            return Some(number);
        }
        hexadecimal::number(self.digits()?)
    }

    #[inline]
    fn extranonce2(&mut self) -> Option<ArrayVec<u8, MAX_EXTRANONCE2_BYTES>> {
        self.blanks();
        // As long as most are.
        if let Some([b'"', digits @ .., b'"']) = self.rest().first_chunk::<10>()
            && let Some(number) = hexadecimal::eight_digits(digits)
        {
            self.at += 10;
            let mut bytes = ArrayVec::new();
            bytes.try_extend_from_slice(&number.to_be_bytes()).expect("there is room for four bytes");
            return Some(bytes);
        }
        hexadecimal::bytes(hexadecimal::without_prefix(self.digits()?))
    }

    fn id(&mut self) -> Option<RawId<'a>> {
        self.blanks();
        if self.skip(b"null") {
            return Some(RawId::NONE);
        }
        let rest = self.rest();
        let length = match rest {
            [b'"', string @ ..] => length_of_string(string)? + 2,
            [b'0', ..] => 1,
            [b'1'..=b'9', ..] => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                if digits > MAX_ID_DIGITS {
                    return None;
                }
                digits
            }
            _ => return None,
        };
        // A number that goes on in another way is followed by no comma, brace or blank, which ends the scan.
        if length > MAX_ID_BYTES { None } else { Some(RawId::from_token(self.text(length)?)) }
    }

    fn params(&mut self) -> Option<Submit<'a>> {
        self.take(b'[')?;
        let user = self.string()?;
        self.take(b',')?;
        let job_id = self.string()?;
        if user.len() > MAX_USER_BYTES || job_id.len() > MAX_JOB_ID_BYTES {
            return None;
        }
        self.take(b',')?;
        let extranonce2 = self.extranonce2()?;
        self.take(b',')?;
        let ntime = self.number()?;
        self.take(b',')?;
        let nonce = self.number()?;
        let version_bits = match self.next()? {
            b',' => {
                let version_bits = self.number()?;
                self.take(b']')?;
                Some(version_bits)
            }
            b']' => None,
            _ => return None,
        };
        let (user, job_id) = (Cow::Borrowed(user), Cow::Borrowed(job_id));
        Some(Submit { user, job_id, extranonce2, ntime, nonce, version_bits })
    }
}

/// A byte in each place of a word.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The top bit of each byte.
const TOPS: u64 = each(0x80);

/// The length of a string that begins here, without its marks, if it says what is written: it is printable ASCII
/// without a backslash. Looks at eight bytes at a time.
fn length_of_string(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // In words below 0x80 a sum stays within its byte, and its top bit tells how it compares. Others are odd, and what
        // they carry goes into later bytes.
        let is_other = |byte: u8| (word ^ each(byte)).wrapping_add(each(0x7f));
        let marks = !is_other(b'"') & TOPS;
        let controls = !word.wrapping_add(each(0x80 - b' ')) | word.wrapping_add(each(0x80 - 0x7f));
        let odd = (word | controls | !is_other(b'\\')) & TOPS;
        if marks | odd != 0 {
            // The first of either decides.
            let (mark, odd) = (marks.trailing_zeros(), odd.trailing_zeros());
            return (mark < odd).then_some(8 * index + mark as usize / 8);
        }
    }
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    let length = rest.iter().take_while(|byte| is_plain(byte)).count();
    (rest.get(length) == Some(&b'"')).then_some(8 * words.len() + length)
}

/// Where the first quotation mark is. Looks at eight bytes at a time.
fn quotation_mark(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let difference = u64::from_le_bytes(*word) ^ each(b'"');
        // The difference of a mark is zero and borrows, which sets its top bit, and perhaps those of bytes after it:
        // the first that is set is right, and it is all that counts.
        let marks = difference.wrapping_sub(each(1)) & !difference & TOPS;
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
    fn one_odd_byte_makes_a_string_that_is_left_to_the_parser() {
        for byte in 0..=0xff {
            let is_odd = byte == b'\\' || !matches!(byte, b' '..=b'~');
            for at in 0..20 {
                let mut string = *b"abcdefghijklmnopqrst\"";
                string[at] = byte;
                let expected = if byte == b'"' { Some(at) } else { Some(20).filter(|_| !is_odd) };
                assert_eq!(length_of_string(&string), expected, "{byte:#04x} at {at}");
                // What is behind the mark is of no interest, and what is before it counts.
                let behind = [b"x\"", &string[..]].concat();
                assert_eq!(length_of_string(&behind), Some(1));
            }
        }
        assert_eq!(length_of_string(b"abcdefghijkl"), None, "it does not end");
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

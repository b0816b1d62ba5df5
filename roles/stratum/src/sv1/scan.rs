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

/// The submission that a line is; `None` for every other line, and for a submission that is not plainly right.
pub(super) fn submit(line: &[u8]) -> Option<Request<'_>> {
    let mut scanner = Scanner { line: str::from_utf8(line).ok()?, at: 0 };
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
    let is_whole = is_submit && scanner.at == line.len();
    is_whole.then_some(Request { id: id.unwrap_or(RawId::NONE), call: Call::Submit(params?) })
}

const METHOD: &str = "mining.submit";

struct Scanner<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.at).copied()
    }

    /// JSON's white space.
    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The next character that is no white space.
    fn next(&mut self) -> Option<u8> {
        self.blanks();
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// The text of a string of plain ASCII.
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let start = self.at;
        let length = plain_length(&self.line.as_bytes()[start..]);
        self.at += length;
        if self.peek()? != b'"' {
            return None;
        }
        self.at += 1;
        Some(&self.line[start..start + length])
    }

    fn id(&mut self) -> Option<RawId<'a>> {
        self.blanks();
        let start = self.at;
        match self.peek()? {
            b'"' => {
                self.string()?;
            }
            b'n' => {
                self.at += b"null".len();
                return (self.line.get(start..self.at)? == "null").then_some(RawId::NONE);
            }
            b'0' => self.at += 1,
            b'1'..=b'9' => {
                while matches!(self.peek(), Some(b'0'..=b'9')) {
                    self.at += 1;
                }
                if self.at - start > MAX_ID_DIGITS {
                    return None;
                }
            }
            _ => return None,
        }
        let token = &self.line[start..self.at];
        // What follows a number that goes on in another way is no comma, brace or blank, and so ends the scan.
        (token.len() <= MAX_ID_BYTES).then_some(RawId::from_token(token))
    }

    fn params(&mut self) -> Option<Submit<'a>> {
        self.take(b'[')?;
        let mut texts = [""; MOST_PARAMETERS];
        let mut count = 0;
        loop {
            *texts.get_mut(count)? = self.string()?;
            count += 1;
            match self.next()? {
                b',' => (),
                b']' => break,
                _ => return None,
            }
        }
        let [user, job_id, extranonce2, ntime, nonce, version_bits] = texts;
        if count < MOST_PARAMETERS - 1 || user.len() > MAX_USER_BYTES || job_id.len() > MAX_JOB_ID_BYTES {
            return None;
        }
        Some(Submit {
            user: Cow::Borrowed(user),
            job_id: Cow::Borrowed(job_id),
            extranonce2: hexadecimal::bytes(hexadecimal::without_prefix(extranonce2))?,
            ntime: hexadecimal::number(ntime)?,
            nonce: hexadecimal::number(nonce)?,
            version_bits: match count {
                MOST_PARAMETERS => Some(hexadecimal::number(version_bits)?),
                _ => None,
            },
        })
    }
}

/// How many bytes from the start on are plain: printable ASCII but for quotation marks and backslashes. Looks at
/// eight at a time.
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // Each difference sets the top bit of a byte that borrows, and perhaps of bytes after one that does: the
        // first that is set is right, and it is all that counts.
        let below_blank = word.wrapping_sub(ONES * 0x20) & !word;
        let is = |byte: u8| {
            let difference = word ^ (ONES * u64::from(byte));
            difference.wrapping_sub(ONES) & !difference
        };
        let odd = (below_blank | is(b'"') | is(b'\\') | word) & TOPS;
        if odd != 0 {
            return 8 * index + odd.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &u8| matches!(byte, 0x20..=0x7f) && !matches!(byte, b'"' | b'\\');
    8 * words.len() + rest.iter().take_while(|byte| is_plain(byte)).count()
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
            "\t{ \"id\"\r:\n1 , \"method\" : \"mining.submit\" ,\"params\" :[ \"u\" ,\"1\" ,\"00\" ,\"1\" ,\"1\" ] } ",
            "{\"id\":18446744073709551615,\"method\":\"mining.submit\",\"params\":[\"\x7f\",\"1\",\"00\",\"1\",\"1\"]}",
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
    fn plain_bytes_end_at_each_odd_one() {
        for odd in (0..0x20).chain([b'"', b'\\']).chain(0x80..=0xff) {
            for at in 0..20 {
                let mut bytes = [b'!'; 20];
                bytes[at] = odd;
                assert_eq!(plain_length(&bytes), at, "{odd:#04x}");
                // Bytes that a borrow runs through.
                bytes[at + 1..].fill(b' ');
                assert_eq!(plain_length(&bytes), at, "{odd:#04x}");
            }
        }
        let plain: Vec<u8> = (0x20..=0x7f).filter(|byte| !matches!(byte, b'"' | b'\\')).collect();
        assert_eq!(plain_length(&plain), plain.len());
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

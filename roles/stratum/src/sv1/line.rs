//! Cuts the bytes of a connection into lines, and turns away at the first byte what does not speak SV1.
//!
//! A line that arrives whole, as nearly all do, is handed out where it lies: only an unfinished one is copied. This
//! module never looks into a line, and holds no memory while a connection has no unfinished line.

use core::net::SocketAddr;

use super::proxy_header::{Invalid, MAX_V2_BYTES, ProxyHeader};

/// The longest line that a miner may send, without its line feed. Submissions take about 200 bytes; the rest is
/// room for long user names, for a session that is resumed, and for methods that we only refuse. A longer line
/// closes the connection.
pub const MAX_LINE_BYTES: usize = 4096;

/// Why a connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The first byte after white space begins no JSON object: a TLS hello (0x16), an HTTP probe (`G`), SV2.
    /// Closing at once matters: BFGMiner 5.5.0 tries TLS on a plain port first and otherwise waits 30 seconds.
    #[error("the first byte is {0:#04x}, which begins no JSON object")]
    NotJson(u8),
    /// A PROXY header is configured and there is none, or a broken one.
    #[error(transparent)]
    ProxyHeader(#[from] Invalid),
    /// A line is longer than allowed.
    #[error("a line is longer than {limit} bytes")]
    TooLong {
        /// The most that is allowed.
        limit: usize,
    },
}

/// The unfinished line of one connection: at most its limit, or a PROXY header that has not arrived whole.
///
/// After each read: [`next_line`](LineBuffer::next_line) until it has none.
#[derive(Debug)]
pub struct LineBuffer {
    /// What came after the last line feed, and after [`LineBuffer::next_line`] had a line of it, that line.
    pending: Vec<u8>,
    /// `pending` is a line that the caller has had.
    taken: bool,
    limit: usize,
    phase: Phase,
    proxied_source: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ProxyHeader,
    FirstByte,
    Lines,
    Failed(LineError),
}

/// Where a line lies.
enum Line<'a> {
    /// In what was read.
    Whole(&'a [u8]),
    /// In the buffer, because its beginning came before.
    Completed,
}

impl Default for LineBuffer {
    fn default() -> Self {
        LineBuffer::new(MAX_LINE_BYTES)
    }
}

impl LineBuffer {
    /// For a connection whose lines have at most `limit` bytes, the line feed not counted.
    pub fn new(limit: usize) -> Self {
        LineBuffer { pending: Vec::new(), taken: false, limit, phase: Phase::FirstByte, proxied_source: None }
    }

    /// For a connection that must begin with a PROXY header.
    pub fn behind_proxy(limit: usize) -> Self {
        LineBuffer { phase: Phase::ProxyHeader, ..LineBuffer::new(limit) }
    }

    /// Takes bytes from the front of `input` up to and with the next line that is not empty, and returns it without
    /// white space around it; or takes all of them and returns none. To be called again with the rest until none is
    /// returned.
    ///
    /// After an error the connection must be closed; every further call fails alike.
    pub fn next_line<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Result<Option<&'a [u8]>, LineError> {
        if self.taken {
            self.release();
        }
        match self.advance(input) {
            Ok(Some(Line::Whole(line))) => Ok(Some(line)),
            Ok(Some(Line::Completed)) => {
                self.taken = true;
                Ok(Some(self.pending.trim_ascii()))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.phase = Phase::Failed(error);
                self.release();
                Err(error)
            }
        }
    }

    /// The lines that [`LineBuffer::next_line`] will hand out of `input` where they lie, if it is called with that next.
    /// None of them when what came before goes on in it.
    pub fn lines_ahead<'b>(&self, input: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let is_between_lines = self.phase == Phase::Lines && self.pending.is_empty();
        let mut rest = if is_between_lines { input } else { &[] };
        let lines = std::iter::from_fn(move || {
            let feed = line_feed(rest)?;
            let line = rest[..feed].trim_ascii();
            rest = &rest[feed + 1..];
            Some(line)
        });
        lines.filter(|line| !line.is_empty())
    }

    /// The miner's address as the load balancer named it, once its PROXY header has been read.
    pub fn proxied_source(&self) -> Option<SocketAddr> {
        self.proxied_source
    }

    /// Bytes that wait for the rest of their line.
    pub fn unread(&self) -> usize {
        if self.taken { 0 } else { self.pending.len() }
    }

    fn advance<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<Line<'b>>, LineError> {
        if self.phase != Phase::Lines && !self.open(input)? {
            return Ok(None);
        }
        while let Some(feed) = line_feed(input) {
            let line = &input[..feed];
            self.check_length(line)?;
            *input = &input[feed + 1..];
            if self.pending.is_empty() {
                let line = line.trim_ascii();
                if !line.is_empty() {
                    return Ok(Some(Line::Whole(line)));
                }
            } else {
                self.pending.extend_from_slice(line);
                if !self.pending.trim_ascii().is_empty() {
                    return Ok(Some(Line::Completed));
                }
                self.release();
            }
        }
        self.check_length(input)?;
        self.pending.extend_from_slice(input);
        *input = &[];
        Ok(None)
    }

    /// Fails when the pending line has no room for `more`.
    fn check_length(&self, more: &[u8]) -> Result<(), LineError> {
        let limit = self.limit;
        if self.pending.len() + more.len() > limit { Err(LineError::TooLong { limit }) } else { Ok(()) }
    }

    /// Reads what comes before the first line. False when more bytes are needed.
    fn open(&mut self, input: &mut &[u8]) -> Result<bool, LineError> {
        if let Phase::Failed(error) = self.phase {
            return Err(error);
        }
        if self.phase == Phase::ProxyHeader {
            let before = self.pending.len();
            let room = MAX_V2_BYTES.saturating_sub(before);
            self.pending.extend_from_slice(&input[..input.len().min(room)]);
            let Some(header) = ProxyHeader::parse(&self.pending)? else {
                *input = &[];
                return Ok(false);
            };
            // What came before was no whole header, so that this one ends within what was added.
            *input = &input[header.length.saturating_sub(before)..];
            self.proxied_source = header.source;
            self.release();
            self.phase = Phase::FirstByte;
        }
        *input = input.trim_ascii_start();
        match input.first() {
            Some(b'{') => self.phase = Phase::Lines,
            Some(byte) => return Err(LineError::NotJson(*byte)),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Gives the memory back: most connections are idle most of the time, and there are many.
    fn release(&mut self) {
        self.pending = Vec::new();
        self.taken = false;
    }
}

/// Where the first line feed is. Looks at 32 bytes at a time, which the compiler turns into a few instructions.
fn line_feed(bytes: &[u8]) -> Option<usize> {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let is_in = |block: &[u8; 32]| block.iter().fold(false, |found, byte| found | (*byte == b'\n'));
    let (from, tail) = match blocks.iter().position(is_in) {
        Some(index) => (32 * index, &blocks[index][..]),
        None => (32 * blocks.len(), rest),
    };
    tail.iter().position(|byte| *byte == b'\n').map(|index| from + index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that comes out when `chunks` go in one by one.
    fn lines_of<'a>(
        mut buffer: LineBuffer,
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Vec<u8>>, Option<LineError>, LineBuffer) {
        let mut lines = Vec::new();
        for mut chunk in chunks {
            loop {
                match buffer.next_line(&mut chunk) {
                    Ok(Some(line)) => lines.push(line.to_vec()),
                    Ok(None) => break,
                    Err(error) => return (lines, Some(error), buffer),
                }
            }
        }
        (lines, None, buffer)
    }

    #[test]
    fn lines_with_odd_ends_and_blanks() {
        let bytes = b" \r\n\n  {\"id\":1}\r\n\t{\"id\":2}  \n\r\n{\"id\":3}\nx\n{\"id\"".as_slice();
        let (lines, error, buffer) = lines_of(LineBuffer::default(), [bytes]);
        assert_eq!(lines, [&b"{\"id\":1}"[..], b"{\"id\":2}", b"{\"id\":3}", b"x"]);
        assert_eq!(error, None);
        assert_eq!(buffer.unread(), 5);
    }

    #[test]
    fn strangers_are_turned_away_at_their_first_byte() {
        for (bytes, byte) in [
            (b"\x16\x03\x01\x02\x00".as_slice(), 0x16),
            (b"GET / HTTP/1.1\r\n", b'G'),
            (b" \r\n[1]", b'['),
            (b"\xef\xbb\xbf{}", 0xef),
            (b"PROXY UNKNOWN\r\n{}\n", b'P'),
            (b"\0", 0),
        ] {
            let (lines, error, mut buffer) = lines_of(LineBuffer::default(), bytes.chunks(1));
            assert_eq!((lines.len(), error), (0, Some(LineError::NotJson(byte))), "{bytes:?}");
            assert_eq!(buffer.next_line(&mut &b"{}\n"[..]), Err(LineError::NotJson(byte)));
            assert_eq!(buffer.pending.capacity(), 0);
        }
    }

    #[test]
    fn a_proxy_header_comes_first_where_it_is_configured() {
        let bytes = b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 3333\r\n\r\n{\"id\":1}\n".as_slice();
        for size in [1, 7, bytes.len()] {
            let (lines, error, buffer) = lines_of(LineBuffer::behind_proxy(64), bytes.chunks(size));
            assert_eq!((lines, error), (vec![b"{\"id\":1}".to_vec()], None));
            assert_eq!(buffer.proxied_source(), Some("192.0.2.7:12345".parse().expect("an address")));
        }
        let (_, error, _) = lines_of(LineBuffer::behind_proxy(64), [b"{\"id\":1}\n".as_slice()]);
        assert_eq!(error, Some(LineError::ProxyHeader(Invalid)));
        let (_, error, _) = lines_of(LineBuffer::behind_proxy(64), [b"PROXY UNKNOWN\r\n\x16".as_slice()]);
        assert_eq!(error, Some(LineError::NotJson(0x16)));
    }

    #[test]
    fn a_line_at_the_limit_passes_and_a_longer_one_closes() {
        let longest = [b"{".as_slice(), &[b'x'; 31]].concat();
        let (lines, error, _) = lines_of(LineBuffer::new(32), [longest.as_slice(), b"\n"]);
        assert_eq!((lines, error), (vec![longest.clone()], None));
        for end in [b"x".as_slice(), b"x\n"] {
            let (lines, error, _) = lines_of(LineBuffer::new(32), [longest.as_slice(), end]);
            assert_eq!((lines.len(), error), (0, Some(LineError::TooLong { limit: 32 })));
        }
    }

    #[test]
    fn an_idle_connection_holds_no_memory() {
        let (lines, _, buffer) = lines_of(LineBuffer::default(), [b"{\"id\":1}\n{\"id\":2}\n".as_slice()]);
        assert_eq!(lines.len(), 2);
        assert_eq!(buffer.pending.capacity(), 0);
        let (_, _, buffer) = lines_of(LineBuffer::default(), [b"\r\n\r\n".as_slice()]);
        assert_eq!(buffer.pending.capacity(), 0);
    }

    #[test]
    fn a_whole_line_is_handed_out_where_it_lies() {
        let mut buffer = LineBuffer::default();
        let bytes = b"{\"id\":1}\r\n{\"id\":2}\n";
        let mut input = &bytes[..];
        for expected in [&bytes[..8], &bytes[10..18]] {
            let line = buffer.next_line(&mut input).expect("JSON").expect("a line");
            assert_eq!(line.as_ptr_range(), expected.as_ptr_range());
            assert_eq!(buffer.pending.capacity(), 0);
        }
        assert_eq!(buffer.next_line(&mut input), Ok(None));
    }

    #[test]
    fn what_is_dripped_meets_a_bound() {
        let mut buffer = LineBuffer::new(32);
        assert_eq!(buffer.next_line(&mut &b"{"[..]), Ok(None));
        for _ in 1..32 {
            assert_eq!(buffer.next_line(&mut &b" "[..]), Ok(None));
        }
        assert!(buffer.unread() == 32 && buffer.pending.capacity() <= 64);
        assert_eq!(buffer.next_line(&mut &b" "[..]), Err(LineError::TooLong { limit: 32 }));
        assert_eq!(buffer.pending.capacity(), 0);
        let mut buffer = LineBuffer::behind_proxy(32);
        for _ in 0..MAX_V2_BYTES {
            assert_eq!(buffer.next_line(&mut &b"PROXY"[..0]), Ok(None));
        }
        let endless = [b"PROXY ".as_slice(), &[b'x'; 4096]].concat();
        assert_eq!(buffer.next_line(&mut &endless[..]), Err(LineError::ProxyHeader(Invalid)));
    }

    #[test]
    fn blanks_before_the_first_line_are_no_part_of_it() {
        let blanks = [[b' '; 100].as_slice(), b"{}\n"].concat();
        for size in [1, 40, blanks.len()] {
            let (lines, error, _) = lines_of(LineBuffer::new(32), blanks.chunks(size));
            assert_eq!((lines, error), (vec![b"{}".to_vec()], None));
        }
    }

    #[test]
    fn a_line_feed_is_found_anywhere() {
        for length in 0..100 {
            let mut bytes = vec![b'x'; length];
            assert_eq!(line_feed(&bytes), None);
            for at in (0..length).rev() {
                bytes[at] = b'\n';
                assert_eq!(line_feed(&bytes), Some(at));
            }
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_bytes_arrive(
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'{'), Just(b'\n'), Just(b'\r'), Just(b' '), Just(b'a')], 0..200),
            cuts in proptest::collection::vec(1usize..20, 0..200),
        ) {
            let bytes = [b"{".as_slice(), &bytes].concat();
            let mut chunks = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (chunk, more) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = more;
            }
            chunks.push(rest);
            let (whole, whole_error, _) = lines_of(LineBuffer::new(24), [bytes.as_slice()]);
            let (pieces, pieces_error, _) = lines_of(LineBuffer::new(24), chunks);
            prop_assert_eq!(&whole, &pieces);
            prop_assert_eq!(whole_error, pieces_error);
            if whole_error.is_none() {
                let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
                let expected: Vec<Vec<u8>> = bytes[..end]
                    .split(|byte| *byte == b'\n')
                    .map(|line| line.trim_ascii().to_vec())
                    .filter(|line| !line.is_empty())
                    .collect();
                prop_assert_eq!(whole, expected);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20),
            proxied in any::<bool>(),
        ) {
            let buffer = if proxied { LineBuffer::behind_proxy(64) } else { LineBuffer::new(64) };
            lines_of(buffer, chunks.iter().map(Vec::as_slice));
        }
    }
}

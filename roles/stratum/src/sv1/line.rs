//! Cuts the bytes of a connection into lines, and turns away at the first byte what does not speak SV1.
//!
//! This module never looks into a line, and holds no memory while a connection has no unfinished line.

use core::net::SocketAddr;

use super::proxy_header::{Invalid, ProxyHeader};

/// The longest line that a miner may send, without its line feed. Submissions take about 200 bytes; the rest is
/// room for long user names, for a session that is resumed, and for methods that we only refuse. A longer line
/// closes the connection.
pub const MAX_LINE_BYTES: usize = 4096;

/// Bytes beyond one unfinished line that wait for [`LineBuffer::next_line`]. A caller that takes the lines after
/// each read never has more than the one read; bytes beyond this are dropped and the connection ends as if its
/// line were too long.
pub const MAX_UNREAD_BYTES: usize = 64 * 1024;

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

/// The bytes of one connection that are not yet a taken line.
///
/// After each read: [`push`](LineBuffer::push), then [`next_line`](LineBuffer::next_line) until it has none.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// No line feed lies between `start` and here.
    scanned: usize,
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

impl Default for LineBuffer {
    fn default() -> Self {
        LineBuffer::new(MAX_LINE_BYTES)
    }
}

impl LineBuffer {
    /// For a connection whose lines have at most `limit` bytes, the line feed not counted.
    pub fn new(limit: usize) -> Self {
        LineBuffer {
            bytes: Vec::new(),
            start: 0,
            scanned: 0,
            limit,
            phase: Phase::FirstByte,
            proxied_source: None,
        }
    }

    /// For a connection that must begin with a PROXY header.
    pub fn behind_proxy(limit: usize) -> Self {
        LineBuffer { phase: Phase::ProxyHeader, ..LineBuffer::new(limit) }
    }

    /// Takes bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = (self.limit + MAX_UNREAD_BYTES).saturating_sub(self.unread());
        if bytes.len() > room {
            self.phase = Phase::Failed(LineError::TooLong { limit: self.limit });
        }
        if matches!(self.phase, Phase::Failed(_)) {
            return;
        }
        self.bytes.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line that is not empty, without white space around it. `None` when more bytes are needed.
    ///
    /// After an error the connection must be closed; every further call fails alike.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineError> {
        match self.next_range() {
            Ok(Some((from, to))) => Ok(Some(&self.bytes[from..to])),
            Ok(None) => Ok(None),
            Err(error) => {
                self.phase = Phase::Failed(error);
                self.release();
                Err(error)
            }
        }
    }

    /// The miner's address as the load balancer named it, once its PROXY header has been read.
    pub fn proxied_source(&self) -> Option<SocketAddr> {
        self.proxied_source
    }

    /// Bytes that wait for a line to be taken or to be completed.
    pub fn unread(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn next_range(&mut self) -> Result<Option<(usize, usize)>, LineError> {
        if self.phase != Phase::Lines && !self.open()? {
            return Ok(None);
        }
        while let Some(feed) = self.bytes[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let (from, to) = (self.start, self.scanned + feed);
            if to - from > self.limit {
                return Err(LineError::TooLong { limit: self.limit });
            }
            self.start = to + 1;
            self.scanned = self.start;
            let line = &self.bytes[from..to];
            let from = from + line.len() - line.trim_ascii_start().len();
            let to = from + line.trim_ascii().len();
            if from < to {
                return Ok(Some((from, to)));
            }
        }
        self.scanned = self.bytes.len();
        if self.unread() > self.limit {
            return Err(LineError::TooLong { limit: self.limit });
        }
        if self.unread() == 0 {
            self.release();
        }
        Ok(None)
    }

    /// Reads what comes before the first line. False when more bytes are needed.
    fn open(&mut self) -> Result<bool, LineError> {
        if let Phase::Failed(error) = self.phase {
            return Err(error);
        }
        if self.phase == Phase::ProxyHeader {
            let Some(header) = ProxyHeader::parse(&self.bytes[self.start..])? else { return Ok(false) };
            self.proxied_source = header.source;
            self.start += header.length;
            self.scanned = self.start;
            self.phase = Phase::FirstByte;
        }
        let unread = &self.bytes[self.start..];
        match unread.trim_ascii_start().first() {
            Some(b'{') => self.phase = Phase::Lines,
            Some(byte) => return Err(LineError::NotJson(*byte)),
            None => {
                self.release();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives the memory back: most connections are idle most of the time, and there are many.
    fn release(&mut self) {
        self.bytes = Vec::new();
        self.start = 0;
        self.scanned = 0;
    }
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
        for chunk in chunks {
            buffer.push(chunk);
            loop {
                match buffer.next_line() {
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
            buffer.push(b"{}\n");
            assert_eq!(buffer.next_line(), Err(LineError::NotJson(byte)));
            assert_eq!(buffer.bytes.capacity(), 0);
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
        assert_eq!(buffer.bytes.capacity(), 0);
        let (_, _, buffer) = lines_of(LineBuffer::default(), [b"\r\n\r\n".as_slice()]);
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[test]
    fn a_caller_that_takes_no_lines_meets_a_bound() {
        let mut buffer = LineBuffer::new(32);
        for _ in 0..MAX_UNREAD_BYTES {
            buffer.push(b"{\"id\":1}\n");
        }
        assert!(buffer.bytes.len() <= 32 + MAX_UNREAD_BYTES);
        assert_eq!(buffer.next_line(), Err(LineError::TooLong { limit: 32 }));
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

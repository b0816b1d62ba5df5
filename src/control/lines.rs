//! Lines on a Unix socket: each is one JSON object, and none is longer than a bound.
//!
//! Nothing here knows what a line says.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// How long the other end may take to read a line.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Reads lines. Waiting for one may be given up and begun again: nothing is lost.
pub(crate) struct LineReader {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
    max: usize,
}

/// Writes lines.
pub(crate) struct LineWriter(OwnedWriteHalf);

/// Both directions of a socket, with the longest line that is read.
pub(crate) fn lines(stream: UnixStream, max: usize) -> (LineReader, LineWriter) {
    let (incoming, outgoing) = stream.into_split();
    (LineReader { reader: BufReader::new(incoming), line: Vec::new(), max }, LineWriter(outgoing))
}

impl LineReader {
    /// The next message; `None` once the other end has closed the socket.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        loop {
            let read = self.reader.fill_buf().await?;
            if read.is_empty() {
                return Ok(None);
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(read.len());
            if self.line.len() + taken > self.max {
                return Err(wrong(format!("it sent a line of more than {} bytes", self.max)));
            }
            self.line.extend_from_slice(&read[..taken]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                let message = serde_json::from_slice(&line);
                return message.map(Some).map_err(|error| wrong(format!("it sent no message: {error}")));
            }
        }
    }
}

impl LineWriter {
    /// Writes one message. Fails when the other end does not read it in time.
    pub(crate) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        match tokio::time::timeout(WRITE_DEADLINE, self.0.write_all(&line)).await {
            Ok(written) => written,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[tokio::test]
    async fn messages_arrive_one_by_one_and_long_lines_do_not() {
        let (one, other) = UnixStream::pair().expect("sockets");
        let (mut reader, _writer) = lines(one, 100);
        let (_reader, mut writer) = lines(other, 100);
        writer.send(&json!({ "a": 1 })).await.expect("it is read");
        writer.send(&json!({ "b": 2 })).await.expect("it is read");
        assert_eq!(reader.next::<Value>().await.expect("a line"), Some(json!({ "a": 1 })));
        assert_eq!(reader.next::<Value>().await.expect("a line"), Some(json!({ "b": 2 })));
        writer.send(&"x".repeat(101)).await.expect("there is room");
        let error = reader.next::<Value>().await.expect_err("it is too long");
        assert!(error.to_string().contains("more than 100 bytes"), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error_and_the_end_is_not() {
        let (one, mut other) = UnixStream::pair().expect("sockets");
        let (mut reader, _writer) = lines(one, 100);
        other.write_all(b"{\"a\":\n").await.expect("there is room");
        assert!(reader.next::<Value>().await.is_err());
        drop(other);
        assert!(reader.next::<Value>().await.expect("the end").is_none());
    }
}

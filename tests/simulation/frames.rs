//! Plain SV2 frames out of a stream of pieces. The Noise transport has tests of its own.

use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::{FrameHeader, Message};

#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn next(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        let header = FrameHeader::parse(*self.0.first_chunk::<HEADER_SIZE>()?);
        let end = HEADER_SIZE + header.payload_length as usize;
        let payload = self.0.get(HEADER_SIZE..end)?.to_vec();
        self.0.drain(..end);
        Some((header, payload))
    }

    pub(crate) fn next_message(&mut self) -> Option<Message> {
        let (header, payload) = self.next()?;
        Some(Message::decode(header, &payload).expect("what our side writes can be read"))
    }
}

pub(crate) fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut frames = Frames::default();
    frames.push(bytes);
    std::iter::from_fn(|| frames.next_message()).collect()
}

pub(crate) fn frame(message: impl Into<Message>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.into().encode_frame(&mut bytes).expect("a simulation sends what fits");
    bytes
}

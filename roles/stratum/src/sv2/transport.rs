//! Encrypted frames after the handshake (SV2 4.6): the header alone, then the payload in blocks.
//!
//! This module never reads or writes a socket: encrypted bytes go into one buffer of the caller's, and come from
//! slices of whatever length has arrived. It never allocates for a payload before that payload's bytes are here.

use std::fmt;

use super::cipher::{Cipher, CipherError, TAG_SIZE};
use super::frame::{FrameHeader, HEADER_SIZE};

/// Bytes that authenticate each encrypted block.
pub const MAC_SIZE: usize = TAG_SIZE;

/// The longest encrypted block (SV2 4.6).
const MAX_BLOCK: usize = 65_535;

/// The most payload that one block holds.
const MAX_PLAIN_BLOCK: usize = MAX_BLOCK - MAC_SIZE;

/// Bytes of an encrypted header.
const ENCRYPTED_HEADER_SIZE: usize = HEADER_SIZE + MAC_SIZE;

/// The transport failed; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// A block does not decrypt: it was changed on its way, or the peer does not speak Noise.
    #[error("a block from the peer is not authentic")]
    Authentication,
    /// The peer announces a payload that is longer than we accept.
    #[error("the peer announces a payload of {announced} bytes, and {limit} are accepted")]
    FrameTooLarge {
        /// The announced length.
        announced: usize,
        /// The limit of this side.
        limit: usize,
    },
    /// Bytes to be encrypted are no whole frames; nothing of them was sent.
    #[error("bytes to be encrypted are no whole frames")]
    NotFrames,
    /// The key has served for 2^64 blocks.
    #[error("the key is used up")]
    KeyUsedUp,
}

/// Both directions of a connection whose handshake is done.
pub struct Transport {
    outward: Cipher,
    inward: Cipher,
}

impl Transport {
    pub(super) const fn new(outward: Cipher, inward: Cipher) -> Self {
        Transport { outward, inward }
    }

    /// The two directions, which need nothing of each other. `max_payload` is the longest payload to be accepted
    /// from the peer, one of the limits in [`super::frame`].
    pub fn split(self, max_payload: usize) -> (Encryptor, Decryptor) {
        (Encryptor { cipher: self.outward }, Decryptor::new(self.inward, max_payload))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

/// Encrypts what goes to the peer, where it is to be sent from: it holds no bytes itself.
pub struct Encryptor {
    cipher: Cipher,
}

impl Encryptor {
    /// Encrypts plain frames, header and payload, that stand one after the other, and appends them to `out`: many
    /// frames, one pass, one write. What is appended must be sent, and in this order.
    ///
    /// Fails, with `out` as it was, when `frames` does not end with a frame's end.
    pub fn encrypt_frames(&mut self, frames: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        // All lengths are looked at first: what is encrypted has used up its nonces and must be sent.
        let encrypted_size = encrypted_size(frames)?;
        out.reserve(encrypted_size);
        let start = out.len();
        let mut rest = frames;
        while let Some((header, after)) = rest.split_first_chunk::<HEADER_SIZE>() {
            let (payload, after) = after.split_at(FrameHeader::parse(*header).payload_length as usize);
            let blocks = std::iter::once(&header[..]).chain(payload.chunks(MAX_PLAIN_BLOCK));
            for block in blocks {
                if let Err(error) = self.encrypt_block(block, out) {
                    out.truncate(start);
                    return Err(error);
                }
            }
            rest = after;
        }
        Ok(())
    }

    fn encrypt_block(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        let start = out.len();
        out.extend_from_slice(plain);
        let tag = self.cipher.encrypt(&[], &mut out[start..]).map_err(|_| TransportError::KeyUsedUp)?;
        out.extend_from_slice(&tag);
        Ok(())
    }
}

impl fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryptor")
    }
}

/// Bytes that plain frames take when they are encrypted.
fn encrypted_size(frames: &[u8]) -> Result<usize, TransportError> {
    let mut size = 0;
    let mut rest = frames;
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<HEADER_SIZE>().ok_or(TransportError::NotFrames)?;
        let payload_length = FrameHeader::parse(*header).payload_length as usize;
        rest = after.get(payload_length..).ok_or(TransportError::NotFrames)?;
        size += ENCRYPTED_HEADER_SIZE + payload_length + payload_length.div_ceil(MAX_PLAIN_BLOCK) * MAC_SIZE;
    }
    Ok(size)
}

/// A decrypted frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// Its payload, as long as the header says.
    pub payload: &'a [u8],
}

/// Decrypts what comes from the peer.
///
/// Holds one header and the payload of one frame: at most `max_payload` bytes and the MAC of a block, and never more
/// than twice the bytes that have arrived.
pub struct Decryptor {
    cipher: Cipher,
    max_payload: usize,
    /// The header of the frame whose payload is arriving, or was last handed out.
    header: Option<FrameHeader>,
    /// The bytes of a header that is not complete.
    encrypted_header: Vec<u8>,
    /// The frame's payload: decrypted blocks, and then the bytes of one that is not complete.
    payload: Vec<u8>,
    /// Bytes of `payload` that are decrypted.
    decrypted: usize,
    handed_out: bool,
    failed: Option<TransportError>,
}

impl Decryptor {
    const fn new(cipher: Cipher, max_payload: usize) -> Self {
        Decryptor {
            cipher,
            max_payload,
            header: None,
            encrypted_header: Vec::new(),
            payload: Vec::new(),
            decrypted: 0,
            handed_out: false,
            failed: None,
        }
    }

    /// Changes the longest payload that is accepted, from the next header on: a peer's role is known only when it
    /// has set up its connection.
    pub const fn set_max_payload(&mut self, max_payload: usize) {
        self.max_payload = max_payload;
    }

    /// Takes bytes from the front of `input` until a frame is complete, and returns it; or takes all of them and
    /// returns none. To be called again with the rest until none is returned.
    ///
    /// Once it has failed it fails for good.
    pub fn next_frame(&mut self, input: &mut &[u8]) -> Result<Option<Frame<'_>>, TransportError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.handed_out {
            self.handed_out = false;
            self.header = None;
            self.payload.clear();
            self.decrypted = 0;
        }
        match self.advance(input) {
            Ok(None) => Ok(None),
            Ok(Some(header)) => {
                self.handed_out = true;
                Ok(Some(Frame { header, payload: &self.payload }))
            }
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// Decrypts block after block until the frame is complete.
    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, TransportError> {
        loop {
            let (block_size, bytes, start) = match self.header {
                None => (ENCRYPTED_HEADER_SIZE, &mut self.encrypted_header, 0),
                Some(header) => match header.payload_length as usize - self.decrypted {
                    0 => return Ok(Some(header)),
                    missing => (missing.min(MAX_PLAIN_BLOCK) + MAC_SIZE, &mut self.payload, self.decrypted),
                },
            };
            let missing = block_size - (bytes.len() - start);
            let (taken, rest) = input.split_at(missing.min(input.len()));
            bytes.extend_from_slice(taken);
            *input = rest;
            if taken.len() < missing {
                return Ok(None);
            }
            let plain = self.cipher.decrypt(&[], &mut bytes[start..]).map_err(|error| match error {
                CipherError::Authentication => TransportError::Authentication,
                CipherError::KeyUsedUp => TransportError::KeyUsedUp,
            })?;
            let end = start + plain.len();
            bytes.truncate(end);
            if self.header.is_none() {
                self.header = Some(self.accept_header()?);
                self.encrypted_header.clear();
            } else {
                self.decrypted = self.payload.len();
            }
        }
    }

    fn accept_header(&self) -> Result<FrameHeader, TransportError> {
        let bytes = self
            .encrypted_header
            .as_slice()
            .try_into()
            .expect("the cipher takes exactly its MAC off the block");
        let header = FrameHeader::parse(bytes);
        let (announced, limit) = (header.payload_length as usize, self.max_payload);
        if announced > limit {
            return Err(TransportError::FrameTooLarge { announced, limit });
        }
        Ok(header)
    }
}

impl fmt::Debug for Decryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decryptor")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use stratum_core::noise_sv2;

    use super::super::frame::{MAX_PAYLOAD, MAX_PAYLOAD_FROM_MINER, MAX_PAYLOAD_FROM_UPSTREAM};
    use super::super::keys::AuthoritySecretKey;
    use super::super::noise::{Initiator, Responder};
    use super::*;

    const NOW: u32 = 1_790_000_000;

    fn authority() -> AuthoritySecretKey {
        AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
    }

    /// The initiator's encryptor and the responder's decryptor.
    fn pair(max_payload: usize) -> (Encryptor, Decryptor) {
        let mut rng = StdRng::seed_from_u64(1);
        let initiator = Initiator::new(Some(&authority().public()), &mut rng);
        let responder = Responder::new(&authority(), Duration::from_secs(60), &mut rng);
        let (reply, responder) = responder.step(&initiator.first(), NOW, &mut rng).expect("an answer");
        let initiator = initiator.finish(&reply, NOW).expect("a transport");
        (initiator.split(0).0, responder.split(max_payload).1)
    }

    fn header(payload_length: usize) -> FrameHeader {
        FrameHeader {
            extension_type: 3,
            channel_msg: true,
            message_type: 9,
            payload_length: payload_length as u32,
        }
    }

    fn frame(payload_length: usize) -> Vec<u8> {
        let mut frame = header(payload_length).to_bytes().to_vec();
        frame.extend((0..payload_length).map(|index| (index % 251) as u8));
        frame
    }

    fn all_frames(decryptor: &mut Decryptor, mut input: &[u8]) -> Result<Vec<u8>, TransportError> {
        let mut plain = Vec::new();
        while let Some(frame) = decryptor.next_frame(&mut input)? {
            plain.extend_from_slice(&frame.header.to_bytes());
            plain.extend_from_slice(frame.payload);
        }
        assert!(input.is_empty());
        Ok(plain)
    }

    #[test]
    fn frames_of_every_size_class_come_through() {
        let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD_FROM_UPSTREAM);
        for length in [0, 1, 65_518, 65_519, 65_520, 131_038, 131_039, MAX_PAYLOAD_FROM_UPSTREAM] {
            let frames = [frame(length), frame(5)].concat();
            let mut encrypted = b"kept".to_vec();
            encryptor.encrypt_frames(&frames, &mut encrypted).expect("whole frames");
            assert_eq!(&encrypted[..4], b"kept");
            let blocks = length.div_ceil(65_519);
            assert_eq!(encrypted.len(), 4 + (22 + length + 16 * blocks) + (22 + 5 + 16), "{length}");
            assert_eq!(all_frames(&mut decryptor, &encrypted[4..]), Ok(frames), "{length}");
        }
    }

    #[test]
    fn bytes_may_come_one_at_a_time() {
        let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD_FROM_UPSTREAM);
        let frames = [frame(40), frame(0), frame(70_000)].concat();
        let mut encrypted = Vec::new();
        encryptor.encrypt_frames(&frames, &mut encrypted).expect("whole frames");
        let mut plain = Vec::new();
        for byte in encrypted {
            plain.extend(all_frames(&mut decryptor, &[byte]).expect("authentic"));
        }
        assert_eq!(plain, frames);
    }

    #[test]
    fn announced_bytes_are_not_allocated() {
        let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD);
        let mut encrypted = Vec::new();
        encryptor.encrypt_frames(&frame(MAX_PAYLOAD), &mut encrypted).expect("a whole frame");
        let arrived = 1_000;
        assert_eq!(decryptor.next_frame(&mut &encrypted[..arrived]), Ok(None));
        assert!(decryptor.encrypted_header.capacity() + decryptor.payload.capacity() <= 2 * arrived);
        let arrived = 10 * MAX_BLOCK;
        assert_eq!(decryptor.next_frame(&mut &encrypted[1_000..arrived]), Ok(None));
        assert!(decryptor.payload.capacity() <= 2 * arrived);
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_by_its_header() {
        let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD_FROM_MINER);
        let frames = [frame(MAX_PAYLOAD_FROM_MINER), frame(MAX_PAYLOAD_FROM_MINER + 1)].concat();
        let mut encrypted = Vec::new();
        encryptor.encrypt_frames(&frames, &mut encrypted).expect("whole frames");
        let mut input = &encrypted[..];
        decryptor.next_frame(&mut input).expect("authentic").expect("a frame at the limit");
        let error = TransportError::FrameTooLarge { announced: 2_049, limit: 2_048 };
        let mut header = &input[..22];
        assert_eq!(decryptor.next_frame(&mut header), Err(error));
        assert_eq!(decryptor.next_frame(&mut &input[22..]), Err(error));
        decryptor.set_max_payload(MAX_PAYLOAD);
        assert_eq!(decryptor.next_frame(&mut &[][..]), Err(error));
    }

    #[test]
    fn changed_bytes_end_the_transport() {
        for position in [0, 21, 22, 61, 77] {
            let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD);
            let mut encrypted = Vec::new();
            encryptor.encrypt_frames(&frame(40), &mut encrypted).expect("a whole frame");
            encrypted[position] ^= 1;
            assert_eq!(all_frames(&mut decryptor, &encrypted), Err(TransportError::Authentication));
            encrypted[position] ^= 1;
            assert_eq!(all_frames(&mut decryptor, &encrypted), Err(TransportError::Authentication));
        }
    }

    #[test]
    fn half_a_frame_is_not_encrypted() {
        let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD);
        let mut out = Vec::new();
        for frames in [&frame(9)[..14], &frame(0)[..5], &[frame(9), vec![1]].concat()] {
            assert_eq!(encryptor.encrypt_frames(frames, &mut out), Err(TransportError::NotFrames));
            assert!(out.is_empty());
        }
        // The failures have used no nonce.
        encryptor.encrypt_frames(&frame(9), &mut out).expect("a whole frame");
        assert_eq!(all_frames(&mut decryptor, &out), Ok(frame(9)));
    }

    /// The other side made of the wire crate alone, as any peer of the reference implementation is.
    #[test]
    fn a_plain_noise_responder_understands_us() {
        let mut rng = StdRng::seed_from_u64(4);
        let key = authority();
        let mut theirs = noise_sv2::Responder::from_authority_kp_with_rng(
            &key.public().to_bytes(),
            &key.secret_bytes(),
            Duration::from_secs(60),
            &mut rng,
        )
        .expect("a responder");
        let ours = Initiator::new(Some(&key.public()), &mut rng);
        let (reply, mut engine) = theirs.step_1_with_now_rng(ours.first(), NOW, &mut rng).expect("an answer");
        let (mut encryptor, mut decryptor) =
            ours.finish(&reply, NOW).expect("a transport").split(MAX_PAYLOAD);

        let mut encrypted = Vec::new();
        encryptor.encrypt_frames(&frame(40), &mut encrypted).expect("a whole frame");
        let (mut head, mut body) = (encrypted[..22].to_vec(), encrypted[22..].to_vec());
        engine.decrypt(&mut head).expect("our header");
        engine.decrypt(&mut body).expect("our payload");
        assert_eq!([head, body].concat(), frame(40));

        let (mut head, mut body) = (frame(50)[..6].to_vec(), frame(50)[6..].to_vec());
        engine.encrypt(&mut head).expect("their header");
        engine.encrypt(&mut body).expect("their payload");
        assert_eq!(all_frames(&mut decryptor, &[head, body].concat()), Ok(frame(50)));
    }

    #[test]
    fn a_plain_noise_initiator_understands_us() {
        let mut rng = StdRng::seed_from_u64(5);
        let key = authority();
        let mut theirs = noise_sv2::Initiator::from_raw_k_with_rng(key.public().to_bytes(), &mut rng)
            .expect("an initiator");
        let first = theirs.step_0().expect("a message");
        let ours = Responder::new(&key, Duration::from_secs(60), &mut rng);
        let (reply, transport) = ours.step(&first, NOW, &mut rng).expect("an answer");
        let mut engine = theirs.step_2_with_now(reply, NOW).expect("our certificate");
        let (mut encryptor, mut decryptor) = transport.split(MAX_PAYLOAD);

        let mut encrypted = Vec::new();
        encryptor.encrypt_frames(&frame(70_000), &mut encrypted).expect("a whole frame");
        let mut plain = Vec::new();
        for (start, end) in [(0, 22), (22, 22 + 65_535), (22 + 65_535, encrypted.len())] {
            let mut block = encrypted[start..end].to_vec();
            engine.decrypt(&mut block).expect("our block");
            plain.extend(block);
        }
        assert_eq!(plain, frame(70_000));

        let (mut head, mut body) = (frame(50)[..6].to_vec(), frame(50)[6..].to_vec());
        engine.encrypt(&mut head).expect("their header");
        engine.encrypt(&mut body).expect("their payload");
        assert_eq!(all_frames(&mut decryptor, &[head, body].concat()), Ok(frame(50)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_come_through_cut_anywhere(
            lengths in prop::collection::vec(0usize..3_000, 1..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let (mut encryptor, mut decryptor) = pair(MAX_PAYLOAD);
            let frames: Vec<u8> = lengths.iter().flat_map(|length| frame(*length)).collect();
            let mut encrypted = Vec::new();
            encryptor.encrypt_frames(&frames, &mut encrypted).expect("whole frames");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(encrypted.len())).collect();
            cuts.extend([0, encrypted.len()]);
            cuts.sort_unstable();
            let mut plain = Vec::new();
            for ends in cuts.windows(2) {
                plain.extend(all_frames(&mut decryptor, &encrypted[ends[0]..ends[1]]).expect("authentic"));
            }
            prop_assert_eq!(plain, frames);
        }

        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut decryptor) = pair(MAX_PAYLOAD);
            let result = all_frames_or_error(&mut decryptor, &bytes);
            prop_assert_eq!(result.is_err(), bytes.len() >= 22);
        }
    }

    fn all_frames_or_error(decryptor: &mut Decryptor, mut input: &[u8]) -> Result<(), TransportError> {
        while decryptor.next_frame(&mut input)?.is_some() {}
        Ok(())
    }
}

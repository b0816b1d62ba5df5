//! SV2 bytes of a stranger: frames and messages, the encrypted transport, and the handshake.
//!
//! The first byte of an input chooses which of the three the rest is for.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rand::SeedableRng;
use rand::rngs::StdRng;
use stratum::sv2::frame::{HEADER_SIZE, MAX_PAYLOAD_FROM_MINER};
use stratum::sv2::noise::{INITIATOR_MESSAGE_SIZE, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::{
    AuthoritySecretKey, Decryptor, Encryptor, FrameHeader, Initiator, Message, Responder, TransportError,
};

const NOW: u32 = 1_790_000_000;

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 8 {
        0 => handshake(bytes),
        1 | 2 => transport(bytes),
        _ => message(bytes),
    }
});

/// Whatever decodes encodes again, and from then on never changes.
fn message(bytes: &[u8]) {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_SIZE>() else { return };
    let mut header = FrameHeader::parse(*header);
    assert_eq!(FrameHeader::parse(header.to_bytes()), header);
    header.payload_length = payload.len() as u32;
    let Ok(message) = Message::decode(header, payload) else { return };
    let frame = encoded(&message);
    assert!(frame.len() <= HEADER_SIZE + payload.len(), "{} grew", message.name());
    let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a frame has a header");
    let header = FrameHeader::parse(*header);
    assert_eq!(header.payload_length as usize, payload.len());
    let again = Message::decode(header, payload).expect("our own frames are well formed");
    // Compared as text and bytes, because a hash rate may be NaN, which equals nothing.
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
    assert_eq!(encoded(&again), frame);
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode_frame(&mut frame).expect("what was decoded fits its fields");
    frame
}

/// Frames of the input are encrypted, perhaps damaged, and arrive in pieces.
fn transport(bytes: &[u8]) {
    let Some((control, plain)) = bytes.split_first_chunk::<4>() else { return };
    let (mut encryptor, mut decryptor) = pair();
    let mut encrypted = Vec::new();
    match encryptor.encrypt_frames(plain, &mut encrypted) {
        Ok(()) => {}
        // Half a frame is never encrypted: the input itself stands for what a peer sends that speaks no Noise.
        Err(TransportError::NotFrames) => {
            assert!(encrypted.is_empty());
            encrypted.extend_from_slice(plain);
        }
        Err(error) => panic!("{error}"),
    }
    let intact = encrypted.len() != plain.len();
    let damage = usize::from(u16::from_le_bytes([control[1], control[2]]));
    let damaged = control[0] & 1 == 1 && damage < encrypted.len();
    if damaged {
        encrypted[damage] ^= control[3] | 1;
    }
    let piece = usize::from(control[0] >> 1) + 1;
    let (decrypted, error) = decrypt(&mut decryptor, encrypted.chunks(piece));
    assert!(decrypted.len() <= plain.len(), "more came out than went in");
    if intact {
        assert!(plain.starts_with(&decrypted), "a damaged frame came through");
        let too_large = matches!(error, Some(TransportError::FrameTooLarge { .. }));
        assert_eq!(damaged || too_large, error.is_some(), "{error:?}");
        assert!(error.is_some() || decrypted == plain, "frames were lost");
    } else {
        assert!(decrypted.is_empty(), "junk came through");
    }
}

fn decrypt<'a>(
    decryptor: &mut Decryptor,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, Option<TransportError>) {
    let mut decrypted = Vec::new();
    for mut piece in pieces {
        loop {
            match decryptor.next_frame(&mut piece) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert_eq!(frame.payload.len(), frame.header.payload_length as usize);
                    assert!(frame.payload.len() <= MAX_PAYLOAD_FROM_MINER);
                    decrypted.extend_from_slice(&frame.header.to_bytes());
                    decrypted.extend_from_slice(frame.payload);
                }
                Err(error) => {
                    assert_eq!(decryptor.next_frame(&mut piece), Err(error), "a failure is for good");
                    return (decrypted, Some(error));
                }
            }
        }
        assert!(piece.is_empty(), "bytes were left");
    }
    (decrypted, None)
}

/// Any bytes may come where a handshake message is expected, on either side.
fn handshake(bytes: &[u8]) {
    let mut rng = StdRng::seed_from_u64(1);
    if let Some((first, rest)) = bytes.split_first_chunk::<INITIATOR_MESSAGE_SIZE>() {
        let responder = Responder::new(&authority(), Duration::from_secs(60), &mut rng);
        if let Ok((_, transport)) = responder.step(first, NOW, &mut rng) {
            let (_, mut decryptor) = transport.split(MAX_PAYLOAD_FROM_MINER);
            let (decrypted, _) = decrypt(&mut decryptor, std::iter::once(rest));
            assert!(decrypted.is_empty(), "junk came through");
        }
    }
    let mut reply = [0; RESPONDER_MESSAGE_SIZE];
    let length = bytes.len().min(RESPONDER_MESSAGE_SIZE);
    reply[..length].copy_from_slice(&bytes[..length]);
    let initiator = Initiator::new(Some(&authority().public()), &mut rng);
    initiator.finish(&reply, NOW).expect_err("nobody guesses a handshake");
}

/// The initiator's encryptor and the responder's decryptor.
fn pair() -> (Encryptor, Decryptor) {
    let mut rng = StdRng::seed_from_u64(2);
    let initiator = Initiator::new(None, &mut rng);
    let responder = Responder::new(&authority(), Duration::from_secs(60), &mut rng);
    let (reply, responder) = responder.step(&initiator.first(), NOW, &mut rng).expect("an answer");
    let initiator = initiator.finish(&reply, NOW).expect("a transport");
    (initiator.split(MAX_PAYLOAD_FROM_MINER).0, responder.split(MAX_PAYLOAD_FROM_MINER).1)
}

fn authority() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

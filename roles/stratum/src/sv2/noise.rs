//! The Noise NX handshake, both sides (SV2 4.5): one message each way, then a [`Transport`].
//!
//! The handshake is ours so that both directions end up in ciphers of our choice ([`super::cipher`]); the tests hold it
//! against the reference implementation's, in both roles. This module never waits, never reads a clock and never
//! makes up randomness: who drives it brings the peer's bytes, the time and a random source.

use std::fmt;
use std::time::Duration;

use bitcoin::secp256k1::ellswift::{ElligatorSwift, ElligatorSwiftParty};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use rand::{CryptoRng, RngCore};

use super::cipher::{Cipher, TAG_SIZE};
use super::keys::{AuthorityPublicKey, AuthoritySecretKey};
use super::transport::Transport;
use crate::hash::{Midstate, sha256};

/// SV2 4.5.1.
const PROTOCOL_NAME: &[u8] = b"Noise_NX_Secp256k1+EllSwift_ChaChaPoly_SHA256";

/// Bytes of a public key on its way (BIP 324).
const KEY_SIZE: usize = 64;

/// Bytes of a certificate on its way: version, validity, signature (SV2 4.5.2, SIGNATURE_NOISE_MESSAGE).
const SIGNED_CERTIFICATE_SIZE: usize = 2 + 4 + 4 + 64;

/// The one version of certificates.
const CERTIFICATE_VERSION: u16 = 0;

/// Seconds by which the clocks of authority and initiator may differ at the ends of a certificate's validity.
const CLOCK_TOLERANCE: u32 = 10;

/// Bytes of the handshake's first message, from the initiator: its ephemeral key (SV2 4.5.1).
pub const INITIATOR_MESSAGE_SIZE: usize = 64;

/// Bytes of the handshake's second message, from the responder: two keys of 64 bytes, a certificate of 74, and two
/// MACs of 16 (SV2 4.5.2, where "170 bytes" is left from the time of 32-byte keys).
pub const RESPONDER_MESSAGE_SIZE: usize = 64 + (64 + 16) + (74 + 16);

/// How far back the validity of our certificates begins. Miners' clocks run late or in the wrong time zone, and
/// since the certified key is new for every connection, an early beginning gives nothing to anybody else.
const CERTIFICATE_BACKDATING: Duration = Duration::from_secs(24 * 3600);

/// The handshake failed; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's message does not decrypt: it is damaged, or the peer does not speak Noise.
    #[error("the peer's handshake message is not authentic")]
    Authentication,
    /// The server's certificate is not one of the expected authority, or not valid at this time.
    #[error(
        "the server's certificate (version {version}, valid from {valid_from} to {not_valid_after}, now is {now}) \
         is not valid for the expected authority key"
    )]
    Certificate {
        /// The certificate's version; 0 is the known one.
        version: u16,
        /// The first second of its validity, unix time.
        valid_from: u32,
        /// The last second of its validity, unix time.
        not_valid_after: u32,
        /// The time that it was checked at, unix time.
        now: u32,
    },
}

/// The server's side of one handshake.
pub struct Responder {
    ephemeral: KeyPair,
    fixed: KeyPair,
    authority: AuthoritySecretKey,
    certificate_validity: Duration,
}

impl Responder {
    /// Prepares for one connection, with new keys. The certificate will be signed with `authority` and be valid for
    /// `certificate_validity` (whole seconds) from the handshake on.
    pub fn new<R: RngCore + CryptoRng>(
        authority: &AuthoritySecretKey,
        certificate_validity: Duration,
        rng: &mut R,
    ) -> Self {
        Responder {
            ephemeral: KeyPair::new(rng),
            fixed: KeyPair::new(rng),
            authority: authority.clone(),
            certificate_validity,
        }
    }

    /// Answers the initiator. The transport may be used at once.
    ///
    /// Any 64 bytes are a valid first message: a peer that does not speak Noise shows only later.
    pub fn step<R: RngCore + CryptoRng>(
        self,
        initiator: &[u8; INITIATOR_MESSAGE_SIZE],
        unix_now: u32,
        rng: &mut R,
    ) -> Result<([u8; RESPONDER_MESSAGE_SIZE], Transport), HandshakeError> {
        let mut state = Handshake::after_first_message(initiator);
        let mut reply = [0; RESPONDER_MESSAGE_SIZE];
        let (key, rest) = reply.split_at_mut(KEY_SIZE);
        let (encrypted_key, encrypted_certificate) = rest.split_at_mut(KEY_SIZE + TAG_SIZE);
        key.copy_from_slice(&self.ephemeral.public);
        state.mix_hash(key);
        state.mix_key(&self.ephemeral.shared_secret(initiator, Party::Responder));
        state.encrypt(&self.fixed.public, encrypted_key)?;
        state.mix_key(&self.fixed.shared_secret(initiator, Party::Responder));
        let certificate = Certificate {
            version: CERTIFICATE_VERSION,
            valid_from: unix_now.saturating_sub(CERTIFICATE_BACKDATING.as_secs() as u32),
            not_valid_after: unix_now
                .saturating_add(self.certificate_validity.as_secs().min(u32::MAX.into()) as u32),
        };
        let mut aux = [0; 32];
        rng.fill_bytes(&mut aux);
        let signed = certificate.sign(&self.fixed.public, &self.authority, &aux);
        state.encrypt(&signed, encrypted_certificate)?;
        let (from_initiator, from_responder) = state.split();
        Ok((reply, Transport::new(from_responder, from_initiator)))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder")
    }
}

/// The client's side of one handshake.
pub struct Initiator {
    ephemeral: KeyPair,
    authority: Option<AuthorityPublicKey>,
}

impl Initiator {
    /// Prepares for one connection, with a new key. Without an authority key, whoever answers is trusted: the
    /// connection is then safe from listeners, and not from impostors.
    pub fn new<R: RngCore + CryptoRng>(authority: Option<&AuthorityPublicKey>, rng: &mut R) -> Self {
        Initiator { ephemeral: KeyPair::new(rng), authority: authority.copied() }
    }

    /// The message to send.
    pub const fn first(&self) -> [u8; INITIATOR_MESSAGE_SIZE] {
        self.ephemeral.public
    }

    /// Reads the responder's answer. With an authority key, its certificate must be signed by that authority and be
    /// valid at `unix_now`, give or take ten seconds.
    pub fn finish(
        self,
        reply: &[u8; RESPONDER_MESSAGE_SIZE],
        unix_now: u32,
    ) -> Result<Transport, HandshakeError> {
        let mut state = Handshake::after_first_message(&self.ephemeral.public);
        let (key, rest) = reply.split_first_chunk::<KEY_SIZE>().expect("the reply is longer");
        let (encrypted_key, encrypted_certificate) = rest.split_at(KEY_SIZE + TAG_SIZE);
        state.mix_hash(key);
        state.mix_key(&self.ephemeral.shared_secret(key, Party::Initiator));
        let fixed_key: [u8; KEY_SIZE] = state.decrypt(encrypted_key)?;
        state.mix_key(&self.ephemeral.shared_secret(&fixed_key, Party::Initiator));
        let signed: [u8; SIGNED_CERTIFICATE_SIZE] = state.decrypt(encrypted_certificate)?;
        Certificate::check(&signed, &fixed_key, self.authority.as_ref(), unix_now)?;
        let (from_initiator, from_responder) = state.split();
        Ok(Transport::new(from_initiator, from_responder))
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator")
    }
}

/// A key for one connection, with its public part as it travels: 64 bytes that look random (BIP 324).
struct KeyPair {
    secret: SecretKey,
    public: [u8; KEY_SIZE],
}

impl KeyPair {
    fn new<R: RngCore + CryptoRng>(rng: &mut R) -> Self {
        let mut bytes = [0; 32];
        let secret = loop {
            rng.fill_bytes(&mut bytes);
            // All but one in 2^128 are keys.
            if let Ok(secret) = SecretKey::from_slice(&bytes) {
                break secret;
            }
        };
        rng.fill_bytes(&mut bytes);
        let public = ElligatorSwift::from_seckey(&Secp256k1::new(), secret, Some(bytes)).to_array();
        KeyPair { secret, public }
    }

    /// ECDH (SV2 4.4.2, BIP 324's v2_ecdh). `party` is the one that we are.
    fn shared_secret(&self, theirs: &[u8; KEY_SIZE], party: Party) -> [u8; 32] {
        let (ours, theirs) = (ElligatorSwift::from_array(self.public), ElligatorSwift::from_array(*theirs));
        let (initiator, responder) = match party {
            Party::Initiator => (ours, theirs),
            Party::Responder => (theirs, ours),
        };
        ElligatorSwift::shared_secret(initiator, responder, self.secret, party.into(), None).to_secret_bytes()
    }
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

#[derive(Clone, Copy)]
enum Party {
    Initiator,
    Responder,
}

impl From<Party> for ElligatorSwiftParty {
    fn from(party: Party) -> Self {
        match party {
            Party::Initiator => ElligatorSwiftParty::A,
            Party::Responder => ElligatorSwiftParty::B,
        }
    }
}

/// The variables of a handshake (SV2 4.4.2), after the initiator's key was hashed.
struct Handshake {
    chaining_key: [u8; 32],
    hash: [u8; 32],
    cipher: Option<Cipher>,
}

impl Handshake {
    fn after_first_message(initiator: &[u8; KEY_SIZE]) -> Self {
        let chaining_key = sha256(PROTOCOL_NAME);
        let mut state = Handshake { chaining_key, hash: sha256(&chaining_key), cipher: None };
        state.mix_hash(initiator);
        // The first message has an empty payload, which is not encrypted.
        state.mix_hash(&[]);
        state
    }

    fn mix_hash(&mut self, data: &[u8]) {
        let mut hash = Midstate::of(&self.hash);
        hash.update(data);
        self.hash = hash.finish();
    }

    fn mix_key(&mut self, secret: &[u8; 32]) {
        let (chaining_key, key) = hkdf(&self.chaining_key, secret);
        self.chaining_key = chaining_key;
        self.cipher = Some(Cipher::new(&key));
    }

    /// Writes `plain`, encrypted, and its tag to `out`, which is exactly as long.
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<(), HandshakeError> {
        let cipher = self.cipher.as_mut().expect("a key is mixed in before anything is encrypted");
        let (data, tag) = out.split_at_mut(plain.len());
        data.copy_from_slice(plain);
        tag.copy_from_slice(&cipher.encrypt(&self.hash, data).map_err(|_| HandshakeError::Authentication)?);
        self.mix_hash(out);
        Ok(())
    }

    fn decrypt<const SIZE: usize>(&mut self, encrypted: &[u8]) -> Result<[u8; SIZE], HandshakeError> {
        let cipher = self.cipher.as_mut().expect("a key is mixed in before anything is decrypted");
        let mut data = encrypted.to_vec();
        let plain = cipher.decrypt(&self.hash, &mut data).map_err(|_| HandshakeError::Authentication)?;
        let plain = (&*plain).try_into().expect("the parts of the reply are cut to their sizes");
        self.mix_hash(encrypted);
        Ok(plain)
    }

    /// The ciphers of both directions: from the initiator, and from the responder.
    fn split(self) -> (Cipher, Cipher) {
        let (from_initiator, from_responder) = hkdf(&self.chaining_key, &[]);
        (Cipher::new(&from_initiator), Cipher::new(&from_responder))
    }
}

/// HKDF with two outputs (RFC 5869, SV2 4.4.2).
fn hkdf(chaining_key: &[u8; 32], secret: &[u8]) -> ([u8; 32], [u8; 32]) {
    let key = hmac(chaining_key, &[secret]);
    let first = hmac(&key, &[&[1]]);
    let second = hmac(&key, &[&first, &[2]]);
    (first, second)
}

/// HMAC-SHA256 (RFC 2104) over the parts of a message.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Midstate::of(&padded(0x36));
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Midstate::of(&padded(0x5c));
    outer.update(&inner.finish());
    outer.finish()
}

/// What the authority says of the server's key (SV2 4.5.3).
#[derive(Clone, Copy)]
struct Certificate {
    version: u16,
    valid_from: u32,
    not_valid_after: u32,
}

impl Certificate {
    /// As it travels: the fields, and the authority's signature over them and `server_key`.
    fn sign(
        self,
        server_key: &[u8; KEY_SIZE],
        authority: &AuthoritySecretKey,
        aux: &[u8; 32],
    ) -> [u8; SIGNED_CERTIFICATE_SIZE] {
        let mut signed = [0; SIGNED_CERTIFICATE_SIZE];
        signed[..2].copy_from_slice(&self.version.to_le_bytes());
        signed[2..6].copy_from_slice(&self.valid_from.to_le_bytes());
        signed[6..10].copy_from_slice(&self.not_valid_after.to_le_bytes());
        let signature = authority.sign(&certified(&signed, server_key), aux);
        signed[10..].copy_from_slice(&signature);
        signed
    }

    /// Reads it as it travels, and checks it at `unix_now`. Without an authority, whoever signed it is believed.
    fn check(
        signed: &[u8; SIGNED_CERTIFICATE_SIZE],
        server_key: &[u8; KEY_SIZE],
        authority: Option<&AuthorityPublicKey>,
        unix_now: u32,
    ) -> Result<(), HandshakeError> {
        let word =
            |at: usize| u32::from_le_bytes([signed[at], signed[at + 1], signed[at + 2], signed[at + 3]]);
        let certificate = Certificate {
            version: u16::from_le_bytes([signed[0], signed[1]]),
            valid_from: word(2),
            not_valid_after: word(6),
        };
        let is_valid = certificate.version == CERTIFICATE_VERSION
            && authority.is_none_or(|key| {
                certificate.valid_from <= unix_now.saturating_add(CLOCK_TOLERANCE)
                    && certificate.not_valid_after >= unix_now.saturating_sub(CLOCK_TOLERANCE)
                    && is_signed_by(key, signed, server_key)
            });
        let Certificate { version, valid_from, not_valid_after } = certificate;
        let refused = HandshakeError::Certificate { version, valid_from, not_valid_after, now: unix_now };
        is_valid.then_some(()).ok_or(refused)
    }
}

fn is_signed_by(
    authority: &AuthorityPublicKey,
    signed: &[u8; SIGNED_CERTIFICATE_SIZE],
    server_key: &[u8; KEY_SIZE],
) -> bool {
    let (_, signature) = signed.split_last_chunk().expect("a certificate ends with its signature");
    authority.has_signed(&certified(signed, server_key), signature)
}

/// The hash that is signed: over the certificate's fields and the X coordinate of the server's key.
fn certified(signed: &[u8; SIGNED_CERTIFICATE_SIZE], server_key: &[u8; KEY_SIZE]) -> [u8; 32] {
    let key = PublicKey::from_ellswift(ElligatorSwift::from_array(*server_key));
    let mut hash = Midstate::of(&signed[..10]);
    hash.update(&key.x_only_public_key().0.serialize());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use stratum_core::noise_sv2;

    use super::*;

    const NOW: u32 = 1_790_000_000;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn authority(byte: u8) -> AuthoritySecretKey {
        AuthoritySecretKey::from_bytes([byte; 32]).expect("a key")
    }

    /// A handshake in which the initiator trusts `trusted` and its clock shows `initiator_now`.
    fn handshake(
        trusted: Option<AuthorityPublicKey>,
        initiator_now: u32,
    ) -> Result<Transport, HandshakeError> {
        let mut rng = StdRng::seed_from_u64(1);
        let initiator = Initiator::new(trusted.as_ref(), &mut rng);
        let responder = Responder::new(&authority(7), DAY, &mut rng);
        let (reply, _) = responder.step(&initiator.first(), NOW, &mut rng).expect("an answer");
        initiator.finish(&reply, initiator_now)
    }

    #[test]
    fn the_right_authority_is_trusted_and_no_other() {
        handshake(Some(authority(7).public()), NOW).expect("the right key");
        handshake(None, NOW).expect("no key");
        let refused = handshake(Some(authority(8).public()), NOW).expect_err("the wrong key");
        let valid_from = NOW - 24 * 3600;
        let not_valid_after = NOW + 24 * 3600;
        assert_eq!(
            refused,
            HandshakeError::Certificate { version: 0, valid_from, not_valid_after, now: NOW }
        );
    }

    #[test]
    fn a_certificate_holds_for_its_time() {
        let hour = 3600;
        let trusted = Some(authority(7).public());
        for now in [NOW - 23 * hour, NOW + 23 * hour] {
            handshake(trusted, now).expect("within its time");
        }
        for now in [0, NOW - 25 * hour, NOW + 25 * hour, u32::MAX] {
            handshake(trusted, now).expect_err("outside its time");
        }
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let mut rng = StdRng::seed_from_u64(2);
        for now in [0, 1, u32::MAX] {
            let initiator = Initiator::new(Some(&authority(7).public()), &mut rng);
            let responder = Responder::new(&authority(7), Duration::MAX, &mut rng);
            let (reply, _) = responder.step(&initiator.first(), now, &mut rng).expect("an answer");
            initiator.finish(&reply, now).expect("a transport");
        }
    }

    #[test]
    fn damaged_answers_are_refused() {
        let mut rng = StdRng::seed_from_u64(3);
        for position in [0, 63, 64, 143, 144, 233] {
            let initiator = Initiator::new(None, &mut rng);
            let responder = Responder::new(&authority(7), DAY, &mut rng);
            let (mut reply, _) = responder.step(&initiator.first(), NOW, &mut rng).expect("an answer");
            reply[position] ^= 1;
            let refused = initiator.finish(&reply, NOW).expect_err("a damaged answer");
            assert_eq!(refused, HandshakeError::Authentication, "byte {position}");
        }
        for junk in [[0; RESPONDER_MESSAGE_SIZE], [255; RESPONDER_MESSAGE_SIZE]] {
            Initiator::new(None, &mut rng).finish(&junk, NOW).expect_err("junk");
        }
    }

    /// What both ends of two transports say to each other.
    fn talk(ours: Transport, theirs: noise_sv2::NoiseEngine) {
        let (mut encryptor, mut decryptor) = ours.split(1000);
        let (mut their_encryptor, mut their_decryptor) = theirs.into_split();
        for length in [0usize, 1, 33, 999] {
            let header = [0, 0, 7, length as u8, (length >> 8) as u8, 0];
            let frame = [&header[..], &vec![length as u8; length]].concat();
            let mut encrypted = Vec::new();
            encryptor.encrypt_frames(&frame, &mut encrypted).expect("a frame");
            let mut parts = vec![encrypted[..22].to_vec()];
            parts.extend((length > 0).then(|| encrypted[22..].to_vec()));
            let heard: Vec<u8> = parts
                .iter_mut()
                .flat_map(|part| {
                    their_decryptor.decrypt(part).expect("authentic");
                    part.clone()
                })
                .collect();
            assert_eq!(heard, frame);
            let mut said = header.to_vec();
            their_encryptor.encrypt(&mut said).expect("a fresh key");
            if length > 0 {
                let mut payload = frame[6..].to_vec();
                their_encryptor.encrypt(&mut payload).expect("a fresh key");
                said.extend(payload);
            }
            let mut input = said.as_slice();
            let frame_heard = decryptor.next_frame(&mut input).expect("authentic").expect("whole");
            assert_eq!(frame_heard.payload, &frame[6..]);
        }
    }

    #[test]
    fn we_understand_the_reference_responder() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let authority = authority(7);
            let ours = Initiator::new(Some(&authority.public()), &mut rng);
            let mut theirs = noise_sv2::Responder::from_authority_kp_with_rng(
                &authority.public().to_bytes(),
                &authority.secret_bytes(),
                DAY,
                &mut rng,
            )
            .expect("a key");
            let (reply, their_engine) =
                theirs.step_1_with_now_rng(ours.first(), NOW, &mut rng).expect("an answer");
            talk(ours.finish(&reply, NOW).expect("a transport"), their_engine);
        }
    }

    #[test]
    fn the_reference_initiator_understands_us() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let ours = Responder::new(&authority(7), DAY, &mut rng);
            let key = authority(7).public().to_bytes();
            let mut theirs = noise_sv2::Initiator::from_raw_k_with_rng(key, &mut rng).expect("a key");
            let first = theirs.step_0().expect("a message");
            let (reply, transport) = ours.step(&first, NOW, &mut rng).expect("an answer");
            talk(transport, theirs.step_2_with_now(reply, NOW).expect("a valid certificate"));
        }
    }
}

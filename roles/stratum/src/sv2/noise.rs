//! The Noise NX handshake, both sides (SV2 4.5): one message each way, then a [`Transport`].
//!
//! The cryptography is that of `noise_sv2`. This module never waits, never reads a clock and never makes up
//! randomness: who drives it brings the peer's bytes, the time and a random source.

use std::fmt;
use std::time::Duration;

use rand::{CryptoRng, RngCore};
use stratum_core::noise_sv2;

use super::keys::{AuthorityPublicKey, AuthoritySecretKey};
use super::transport::Transport;

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
pub struct Responder(Box<noise_sv2::Responder>);

impl Responder {
    /// Prepares for one connection, with new keys. The certificate will be signed with `authority` and be valid for
    /// `certificate_validity` (whole seconds) from the handshake on.
    pub fn new<R: RngCore + CryptoRng>(
        authority: &AuthoritySecretKey,
        certificate_validity: Duration,
        rng: &mut R,
    ) -> Self {
        let responder = noise_sv2::Responder::from_authority_kp_with_rng(
            &authority.public().to_bytes(),
            &authority.secret_bytes(),
            certificate_validity
                .saturating_add(CERTIFICATE_BACKDATING)
                .min(Duration::from_secs(u32::MAX.into())),
            rng,
        );
        Responder(responder.expect("an AuthoritySecretKey is a valid key, and knows its public key"))
    }

    /// Answers the initiator. The transport may be used at once.
    ///
    /// Any 64 bytes are a valid first message: a peer that does not speak Noise shows only later.
    pub fn step<R: RngCore + CryptoRng>(
        mut self,
        initiator: &[u8; INITIATOR_MESSAGE_SIZE],
        unix_now: u32,
        rng: &mut R,
    ) -> Result<([u8; RESPONDER_MESSAGE_SIZE], Transport), HandshakeError> {
        let valid_from = unix_now.saturating_sub(CERTIFICATE_BACKDATING.as_secs() as u32);
        let (reply, engine) = self
            .0
            .step_1_with_now_rng(*initiator, valid_from, rng)
            .map_err(|_| HandshakeError::Authentication)?;
        Ok((reply, Transport::new(engine)))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder")
    }
}

/// The client's side of one handshake.
pub struct Initiator {
    state: Box<noise_sv2::Initiator>,
    first: [u8; INITIATOR_MESSAGE_SIZE],
}

impl Initiator {
    /// Prepares for one connection, with a new key. Without an authority key, whoever answers is trusted: the
    /// connection is then safe from listeners, and not from impostors.
    pub fn new<R: RngCore + CryptoRng>(authority: Option<&AuthorityPublicKey>, rng: &mut R) -> Self {
        let state = match authority {
            Some(key) => noise_sv2::Initiator::from_raw_k_with_rng(key.to_bytes(), rng),
            None => noise_sv2::Initiator::without_pk_with_rng(rng),
        };
        let mut state = state.expect("an AuthorityPublicKey is a valid key");
        let first = state.step_0().expect("the first message is not encrypted, so that nothing can fail");
        Initiator { state, first }
    }

    /// The message to send.
    pub const fn first(&self) -> [u8; INITIATOR_MESSAGE_SIZE] {
        self.first
    }

    /// Reads the responder's answer. With an authority key, its certificate must be signed by that authority and be
    /// valid at `unix_now`, give or take ten seconds.
    pub fn finish(
        mut self,
        reply: &[u8; RESPONDER_MESSAGE_SIZE],
        unix_now: u32,
    ) -> Result<Transport, HandshakeError> {
        match self.state.step_2_with_now(*reply, unix_now) {
            Ok(engine) => Ok(Transport::new(engine)),
            Err(noise_sv2::Error::InvalidCertificate(certificate)) => Err(HandshakeError::Certificate {
                version: certificate.version,
                valid_from: certificate.valid_from,
                not_valid_after: certificate.not_valid_after,
                now: unix_now,
            }),
            Err(_) => Err(HandshakeError::Authentication),
        }
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator")
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

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
}

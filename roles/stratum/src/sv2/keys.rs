//! The authority's keys: what a miner is told to trust, and what a server signs its certificate with (SV2 4.3, 4.7).
//!
//! This module never shows a secret unless it is asked for it by name, and never makes up randomness.

use std::fmt;
use std::str::FromStr;

use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::secp256k1::{Keypair, Message, Secp256k1, SecretKey, XOnlyPublicKey};

/// The version before a public key in its text form: 1, as a little-endian 16-bit number (SV2 4.7).
const PUBLIC_KEY_VERSION: [u8; 2] = [1, 0];

/// Bytes of a signature (BIP 340).
pub const SIGNATURE_SIZE: usize = 64;

/// The longest key text that is looked at. The longest right one has 52 characters, and reading base58 takes time
/// that grows with the square of the length.
const MAX_KEY_TEXT: usize = 64;

/// A text or bytes that are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The text is not base58, or its checksum is wrong: most likely a typing error.
    #[error("the key is not base58 with a right checksum")]
    Text,
    /// The text is the right encoding of something else.
    #[error("the key has {0} bytes, which is not the length of such a key")]
    Length(usize),
    /// The key is of a version that we do not know.
    #[error("the key is of version {0}, and only version 1 is known")]
    Version(u16),
    /// The bytes are no point of the curve, or no number below its order.
    #[error("the key is not a key of the curve secp256k1")]
    Curve,
}

/// What an initiator trusts: the X coordinate of a secp256k1 point (BIP 340).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthorityPublicKey([u8; 32]);

impl AuthorityPublicKey {
    /// Checks that the bytes are a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, InvalidKey> {
        XOnlyPublicKey::from_slice(&bytes).map_err(|_| InvalidKey::Curve)?;
        Ok(AuthorityPublicKey(bytes))
    }

    /// The X coordinate, big-endian (BIP 340).
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Whether a signature over a digest is this key's (BIP 340).
    pub fn has_signed(&self, digest: &[u8; 32], signature: &[u8; SIGNATURE_SIZE]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        let key = XOnlyPublicKey::from_slice(&self.0).expect("an AuthorityPublicKey is a valid key");
        let message = Message::from_digest(*digest);
        Secp256k1::verification_only().verify_schnorr(&signature, &message, &key).is_ok()
    }
}

/// The form of pool URLs: base58check of the version and the key (SV2 4.7).
impl fmt::Display for AuthorityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = PUBLIC_KEY_VERSION.to_vec();
        bytes.extend_from_slice(&self.0);
        f.write_str(&bs58::encode(bytes).with_check().into_string())
    }
}

impl fmt::Debug for AuthorityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthorityPublicKey({self})")
    }
}

impl FromStr for AuthorityPublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = decode_base58check(text)?;
        let Some((version, key)) = bytes.split_first_chunk::<2>() else {
            return Err(InvalidKey::Length(bytes.len()));
        };
        let key = key.try_into().map_err(|_| InvalidKey::Length(bytes.len()))?;
        if *version != PUBLIC_KEY_VERSION {
            return Err(InvalidKey::Version(u16::from_le_bytes(*version)));
        }
        AuthorityPublicKey::from_bytes(key)
    }
}

/// What a responder signs its certificate with. Erased from memory when dropped; never in `Debug`.
#[derive(Clone)]
pub struct AuthoritySecretKey {
    secret: SecretKey,
    public: AuthorityPublicKey,
}

impl AuthoritySecretKey {
    /// Makes a key of 32 random bytes, or reads one. Fails for 0 and for numbers from the curve's order up, which
    /// random bytes are once in 2^128.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, InvalidKey> {
        let secret = SecretKey::from_slice(&bytes).map_err(|_| InvalidKey::Curve)?;
        let pair = Keypair::from_secret_key(&Secp256k1::new(), &secret);
        let public = AuthorityPublicKey(pair.x_only_public_key().0.serialize());
        Ok(AuthoritySecretKey { secret, public })
    }

    /// The key that initiators are told.
    pub const fn public(&self) -> AuthorityPublicKey {
        self.public
    }

    /// Signs a digest (BIP 340). `aux` should be random bytes: they protect the secret from whoever watches the signing.
    pub fn sign(&self, digest: &[u8; 32], aux: &[u8; 32]) -> [u8; SIGNATURE_SIZE] {
        let secp = Secp256k1::signing_only();
        let mut pair = Keypair::from_secret_key(&secp, &self.secret);
        let signature = secp.sign_schnorr_with_aux_rand(&Message::from_digest(*digest), &pair, aux);
        pair.non_secure_erase();
        *signature.as_ref()
    }

    /// The secret itself.
    pub fn secret_bytes(&self) -> [u8; 32] {
        self.secret.secret_bytes()
    }

    /// The secret itself as text, for a key file: base58check of its 32 bytes, as the reference implementation's
    /// configuration has it. The reverse is `parse`.
    pub fn secret_text(&self) -> String {
        bs58::encode(self.secret.secret_bytes()).with_check().into_string()
    }
}

impl Drop for AuthoritySecretKey {
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

impl fmt::Debug for AuthoritySecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthoritySecretKey(of {})", self.public)
    }
}

impl FromStr for AuthoritySecretKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = decode_base58check(text)?;
        let key = bytes.as_slice().try_into().map_err(|_| InvalidKey::Length(bytes.len()))?;
        AuthoritySecretKey::from_bytes(key)
    }
}

fn decode_base58check(text: &str) -> Result<Vec<u8>, InvalidKey> {
    if text.len() > MAX_KEY_TEXT {
        return Err(InvalidKey::Text);
    }
    bs58::decode(text).with_check(None).into_vec().map_err(|_| InvalidKey::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vector of SV2 4.7.1.
    const RAW: [u8; 32] = [
        118, 99, 112, 0, 151, 156, 28, 17, 175, 12, 48, 11, 205, 140, 127, 228, 134, 16, 252, 233, 185, 193,
        30, 61, 174, 227, 90, 224, 176, 138, 116, 85,
    ];
    const TEXT: &str = "9bXiEd8boQVhq7WddEcERUL5tyyJVFYdU8th3HfbNXK3Yw6GRXh";

    #[test]
    fn the_test_vector_of_the_specification() {
        let key: AuthorityPublicKey = TEXT.parse().expect("the specification's key");
        assert_eq!(key.to_bytes(), RAW);
        assert_eq!(key.to_string(), TEXT);
        assert_eq!(format!("{key:?}"), format!("AuthorityPublicKey({TEXT})"));
    }

    /// The key pair of the reference implementation's example configurations.
    #[test]
    fn a_pair_of_the_reference_implementation() {
        let public = "9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72";
        let secret = "mkDLTBBRxdBv998612qipDYoTK3YUrqLe8uWw7gu3iXbSrn2n";
        let key: AuthoritySecretKey = secret.parse().expect("a secret key");
        assert_eq!(key.public().to_string(), public);
        assert_eq!(key.secret_text(), secret);
        assert_eq!(format!("{key:?}"), format!("AuthoritySecretKey(of {public})"));
    }

    /// Test vector 1 of BIP 340, and what is not it.
    #[test]
    fn signatures_are_those_of_bip_340() {
        let bytes = |text: &str| hex::decode(text).expect("hexadecimal");
        let secret = bytes("b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfef");
        let key = AuthoritySecretKey::from_bytes(secret.try_into().expect("32 bytes")).expect("a key");
        let message = bytes("243f6a8885a308d313198a2e03707344a4093822299f31d0082efa98ec4e6c89");
        let message: [u8; 32] = message.try_into().expect("32 bytes");
        let aux = [&[0; 31][..], &[1]].concat().try_into().expect("32 bytes");
        let signature = key.sign(&message, &aux);
        let expected = concat!(
            "6896bd60eeae296db48a229ff71dfe071bde413e6d43f917dc8dcf8c78de3341",
            "8906d11ac976abccb20b091292bff4ea897efcb639ea871cfa95f6de339e4b0a"
        );
        assert_eq!(hex::encode(signature), expected);
        assert!(key.public().has_signed(&message, &signature));
        assert!(!key.public().has_signed(&[0; 32], &signature));
        assert!(!key.public().has_signed(&message, &[255; 64]));
        let other = AuthoritySecretKey::from_bytes([7; 32]).expect("a key").public();
        assert!(!other.has_signed(&message, &signature));
    }

    #[test]
    fn wrong_keys_say_what_is_wrong() {
        let public = |text: &str| text.parse::<AuthorityPublicKey>().expect_err("no key");
        assert_eq!(public(""), InvalidKey::Text);
        assert_eq!(public("9bXiEd8boQVhq7WddEcERUL5tyyJVFYdU8th3HfbNXK3Yw6GRXi"), InvalidKey::Text);
        assert_eq!(public(&"1".repeat(1_000_000)), InvalidKey::Text);
        let encoded = |bytes: &[u8]| bs58::encode(bytes).with_check().into_string();
        assert_eq!(public(&encoded(&[1])), InvalidKey::Length(1));
        assert_eq!(public(&encoded(&RAW)), InvalidKey::Length(32));
        assert_eq!(public(&encoded(&[&[2, 0], &RAW[..]].concat())), InvalidKey::Version(2));
        assert_eq!(public(&encoded(&[&[1, 0], &[255; 32][..]].concat())), InvalidKey::Curve);
        for bytes in [[0; 32], [255; 32]] {
            assert_eq!(AuthoritySecretKey::from_bytes(bytes).expect_err("no key"), InvalidKey::Curve);
        }
    }
}

//! One direction of a Noise connection: ChaCha20-Poly1305 with a counter (SV2 4.4.1, CipherState).
//!
//! The cipher is that of `ring`, which takes a third of the time of the portable one on the short messages that
//! shares are. This module never allocates, and never uses a counter twice with one key.

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes that authenticate an encrypted block.
pub(super) const TAG_SIZE: usize = 16;

/// A block could not be encrypted or decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CipherError {
    /// The block is not what the peer encrypted.
    Authentication,
    /// The key has served for as many blocks as it may.
    KeyUsedUp,
}

/// A key and how often it was used.
pub(super) struct Cipher {
    key: LessSafeKey,
    counter: u64,
}

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the cipher's keys have 32 bytes");
        Cipher { key: LessSafeKey::new(key), counter: 0 }
    }

    /// Encrypts `data` in place. Returns what must follow it.
    pub(super) fn encrypt(&mut self, ad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_SIZE], CipherError> {
        let nonce = self.nonce()?;
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(ad), data);
        // It fails only for more than 256 GiB.
        let tag = tag.map_err(|_| CipherError::KeyUsedUp)?;
        self.counter += 1;
        Ok(tag.as_ref().try_into().expect("the cipher's tags have 16 bytes"))
    }

    /// Decrypts `data`, which ends with its tag, in place. Returns the plain part of it.
    pub(super) fn decrypt<'d>(&mut self, ad: &[u8], data: &'d mut [u8]) -> Result<&'d mut [u8], CipherError> {
        let nonce = self.nonce()?;
        let plain = self.key.open_in_place(nonce, Aad::from(ad), data);
        let plain = plain.map_err(|_| CipherError::Authentication)?;
        self.counter += 1;
        Ok(plain)
    }

    /// 32 zero bits and the counter, little-endian. The last counter is reserved by Noise.
    fn nonce(&self) -> Result<Nonce, CipherError> {
        if self.counter == u64::MAX {
            return Err(CipherError::KeyUsedUp);
        }
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&self.counter.to_le_bytes());
        Ok(Nonce::assume_unique_for_key(bytes))
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cipher(used {} times)", self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_up_key_neither_encrypts_nor_decrypts() {
        let mut cipher = Cipher { counter: u64::MAX - 1, ..Cipher::new(&[7; 32]) };
        cipher.encrypt(&[], &mut [1, 2, 3]).expect("one counter is left");
        assert_eq!(cipher.encrypt(&[], &mut [1, 2, 3]), Err(CipherError::KeyUsedUp));
        assert_eq!(cipher.decrypt(&[], &mut [0; 20]), Err(CipherError::KeyUsedUp));
    }

    #[test]
    fn what_failed_to_decrypt_has_used_no_counter() {
        let (mut sender, mut receiver) = (Cipher::new(&[7; 32]), Cipher::new(&[7; 32]));
        let mut block = *b"a share0123456789abcdef";
        let (data, tag) = block.split_at_mut(7);
        tag.copy_from_slice(&sender.encrypt(b"ad", data).expect("a fresh key"));
        let mut damaged = block;
        damaged[0] ^= 1;
        assert_eq!(receiver.decrypt(b"ad", &mut damaged), Err(CipherError::Authentication));
        assert_eq!(receiver.decrypt(b"", &mut block.clone()), Err(CipherError::Authentication));
        assert_eq!(receiver.decrypt(b"ad", &mut block).expect("authentic"), b"a share");
    }
}

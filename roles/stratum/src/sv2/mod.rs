//! Stratum V2 on the wire: messages, frames, the Noise transport, authority keys and pool addresses.
//!
//! This is the one adapter around the SV2 wire crates (`stratum-core`): byte layouts are theirs, and none of their
//! types leaves this module. A change of their versions is a change here and nowhere else.
//!
//! It never decides anything about mining, never touches a socket, and never allocates for bytes that a peer has
//! announced but not sent. Random numbers and the time are arguments.

mod cipher;
mod codec;
pub mod codes;
pub mod frame;
pub mod jobs;
pub mod keys;
pub mod messages;
pub mod noise;
pub mod shares;
mod tlv;
pub mod transport;
pub mod url;

#[cfg(test)]
mod properties;

pub use codec::{DecodeError, EncodeError};
pub use frame::FrameHeader;
pub use keys::{AuthorityPublicKey, AuthoritySecretKey, InvalidKey, SIGNATURE_SIZE};
pub use messages::Message;
pub use noise::{HandshakeError, Initiator, Responder};
pub use transport::{Decryptor, Encryptor, Frame, Transport, TransportError};
pub use url::PoolUrl;

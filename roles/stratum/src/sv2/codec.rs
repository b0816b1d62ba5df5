//! How a field of ours becomes a field of the wire crates, and back.
//!
//! Layouts and lengths are the wire crates' business; this module never writes or reads a byte of a field itself.

use stratum_core::binary_sv2::{self, B016M, B032, B064K, B0255, Seq064K, Seq0255, Str0255, Sv2Option, U256};
use stratum_core::common_messages_sv2 as common;

use super::messages::{ExtensionsRequestId, MiningJobToken, Protocol};
use crate::{ChannelId, JobId, RequestId, SequenceNumber, Target, TemplateId};

/// A message of ours cannot be sent: a value is longer than its field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}.{field} is {length} long, and the field holds {limit}")]
pub struct EncodeError {
    /// The message, as the specification spells it.
    pub message: &'static str,
    /// The field, as the specification spells it.
    pub field: &'static str,
    /// The value's length: bytes, or elements of a sequence.
    pub length: usize,
    /// The longest value that the field holds.
    pub limit: usize,
}

/// A peer's message breaks the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A `SetupConnection` for a protocol that does not exist. Its sender is owed the answer
    /// `unsupported-protocol`.
    #[error("SetupConnection.protocol {0} is unknown")]
    UnsupportedProtocol(u8),
    /// The payload ends within the message's fields, or a field announces more than it may hold.
    #[error("{message} of {length} bytes: {reason}")]
    Malformed {
        /// The message, as the specification spells it.
        message: &'static str,
        /// Bytes of payload.
        length: usize,
        /// What the wire crates say.
        reason: &'static str,
    },
    /// A field's value is none that the field may have.
    #[error("{message}.{field} {reason}")]
    Field {
        /// The message, as the specification spells it.
        message: &'static str,
        /// The field, as the specification spells it.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Bytes follow the message's fields that are no extension fields (SV2 3.4.3).
    #[error("{message} is followed by {extra} bytes that are no extension fields")]
    TrailingBytes {
        /// The message, as the specification spells it.
        message: &'static str,
        /// How many bytes.
        extra: usize,
    },
}

impl DecodeError {
    pub(super) fn of_wire(message: &'static str, length: usize, error: &binary_sv2::Error) -> Self {
        let reason = match error {
            binary_sv2::Error::ValueIsNotAValidProtocol(protocol) => {
                return DecodeError::UnsupportedProtocol(*protocol);
            }
            binary_sv2::Error::ValueExceedsMaxSize(..) | binary_sv2::Error::SeqExceedsMaxSize => {
                "a field announces more than it may hold"
            }
            binary_sv2::Error::Sv2OptionHaveMoreThenOneElement(_) => "an option holds more than one value",
            _ => "it ends within its fields",
        };
        DecodeError::Malformed { message, length, reason }
    }
}

/// A value is longer than its field holds.
pub(super) struct TooLong {
    pub(super) length: usize,
    pub(super) limit: usize,
}

impl TooLong {
    pub(super) fn of(self, message: &'static str, field: &'static str) -> EncodeError {
        EncodeError { message, field, length: self.length, limit: self.limit }
    }
}

/// The first half of the way to the wire: a value that a borrowed wire field can point into.
pub(super) trait Lower<'a> {
    type Lowered: 'a;
    fn lower(&'a self) -> Self::Lowered;
}

/// The second half: the wire field itself.
pub(super) trait ToWire<'a, W> {
    fn to_wire(&'a self) -> Result<W, TooLong>;
}

/// The way back. Fails with what is wrong with the value.
pub(super) trait FromWire<W>: Sized {
    fn from_wire(wire: W) -> Result<Self, &'static str>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Lower<'_> for $number {
            type Lowered = $number;
            fn lower(&self) -> $number {
                *self
            }
        }
        impl ToWire<'_, $number> for $number {
            fn to_wire(&self) -> Result<$number, TooLong> {
                Ok(*self)
            }
        }
        impl FromWire<$number> for $number {
            fn from_wire(wire: $number) -> Result<Self, &'static str> {
                Ok(wire)
            }
        }
    )*};
}

numbers!(u16, u32, u64, f32, bool);

macro_rules! ids {
    ($($id:ident($inner:ty)),*) => {$(
        impl Lower<'_> for $id {
            type Lowered = $inner;
            fn lower(&self) -> $inner {
                self.0
            }
        }
        impl FromWire<$inner> for $id {
            fn from_wire(wire: $inner) -> Result<Self, &'static str> {
                Ok($id(wire))
            }
        }
    )*};
}

ids!(
    ChannelId(u32),
    JobId(u32),
    RequestId(u32),
    SequenceNumber(u32),
    TemplateId(u64),
    ExtensionsRequestId(u16)
);

impl Lower<'_> for Protocol {
    type Lowered = common::Protocol;
    fn lower(&self) -> common::Protocol {
        match self {
            Protocol::Mining => common::Protocol::MiningProtocol,
            Protocol::JobDeclaration => common::Protocol::JobDeclarationProtocol,
            Protocol::TemplateDistribution => common::Protocol::TemplateDistributionProtocol,
        }
    }
}

impl ToWire<'_, common::Protocol> for common::Protocol {
    fn to_wire(&self) -> Result<common::Protocol, TooLong> {
        Ok(*self)
    }
}

impl FromWire<common::Protocol> for Protocol {
    fn from_wire(wire: common::Protocol) -> Result<Self, &'static str> {
        Ok(match wire {
            common::Protocol::MiningProtocol => Protocol::Mining,
            common::Protocol::JobDeclarationProtocol => Protocol::JobDeclaration,
            common::Protocol::TemplateDistributionProtocol => Protocol::TemplateDistribution,
        })
    }
}

impl Lower<'_> for Target {
    type Lowered = [u8; 32];
    fn lower(&self) -> [u8; 32] {
        self.to_le_bytes()
    }
}

impl FromWire<U256<'_>> for Target {
    fn from_wire(wire: U256<'_>) -> Result<Self, &'static str> {
        Ok(Target::from_le_bytes(wire.to_array()))
    }
}

impl Lower<'_> for [u8; 32] {
    type Lowered = [u8; 32];
    fn lower(&self) -> [u8; 32] {
        *self
    }
}

impl<'a> ToWire<'a, U256<'a>> for [u8; 32] {
    fn to_wire(&'a self) -> Result<U256<'a>, TooLong> {
        Ok(U256::from(self))
    }
}

impl FromWire<U256<'_>> for [u8; 32] {
    fn from_wire(wire: U256<'_>) -> Result<Self, &'static str> {
        Ok(wire.to_array())
    }
}

impl Lower<'_> for Option<u32> {
    type Lowered = Option<u32>;
    fn lower(&self) -> Option<u32> {
        *self
    }
}

impl<'a> ToWire<'a, Sv2Option<'a, u32>> for Option<u32> {
    fn to_wire(&'a self) -> Result<Sv2Option<'a, u32>, TooLong> {
        Ok(Sv2Option::new(*self))
    }
}

impl FromWire<Sv2Option<'_, u32>> for Option<u32> {
    fn from_wire(wire: Sv2Option<'_, u32>) -> Result<Self, &'static str> {
        Ok(wire.into_inner())
    }
}

impl<'a> Lower<'a> for String {
    type Lowered = &'a str;
    fn lower(&'a self) -> &'a str {
        self
    }
}

impl<'a> ToWire<'a, Str0255<'a>> for &'a str {
    fn to_wire(&'a self) -> Result<Str0255<'a>, TooLong> {
        Str0255::new(self.as_bytes()).map_err(|_| TooLong { length: self.len(), limit: 255 })
    }
}

impl FromWire<Str0255<'_>> for String {
    fn from_wire(wire: Str0255<'_>) -> Result<Self, &'static str> {
        String::from_utf8(wire.to_owned_bytes()).map_err(|_| "is not UTF-8")
    }
}

impl<'a> Lower<'a> for Vec<u8> {
    type Lowered = &'a [u8];
    fn lower(&'a self) -> &'a [u8] {
        self
    }
}

macro_rules! byte_strings {
    ($($wire:ident: $limit:literal),*) => {$(
        impl<'a> ToWire<'a, $wire<'a>> for &'a [u8] {
            fn to_wire(&'a self) -> Result<$wire<'a>, TooLong> {
                $wire::new(self).map_err(|_| TooLong { length: self.len(), limit: $limit })
            }
        }
        impl FromWire<$wire<'_>> for Vec<u8> {
            fn from_wire(wire: $wire<'_>) -> Result<Self, &'static str> {
                Ok(wire.to_owned_bytes())
            }
        }
    )*};
}

byte_strings!(B032: 32, B0255: 255, B064K: 65_535);

impl<'a> Lower<'a> for MiningJobToken {
    type Lowered = &'a [u8];
    fn lower(&'a self) -> &'a [u8] {
        &self.0
    }
}

impl FromWire<B0255<'_>> for MiningJobToken {
    fn from_wire(wire: B0255<'_>) -> Result<Self, &'static str> {
        Ok(MiningJobToken(wire.to_owned_bytes()))
    }
}

impl<'a> Lower<'a> for Vec<Vec<u8>> {
    type Lowered = &'a [Vec<u8>];
    fn lower(&'a self) -> &'a [Vec<u8>] {
        self
    }
}

impl<'a> ToWire<'a, Seq064K<'a, B016M<'a>>> for &'a [Vec<u8>] {
    fn to_wire(&'a self) -> Result<Seq064K<'a, B016M<'a>>, TooLong> {
        let too_long = |length| TooLong { length, limit: (1 << 24) - 1 };
        let elements = self.iter().map(|element| B016M::new(element).map_err(|_| too_long(element.len())));
        let elements = elements.collect::<Result<_, _>>()?;
        Seq064K::new(elements).map_err(|_| TooLong { length: self.len(), limit: 65_535 })
    }
}

impl FromWire<Seq064K<'_, B016M<'_>>> for Vec<Vec<u8>> {
    fn from_wire(wire: Seq064K<'_, B016M<'_>>) -> Result<Self, &'static str> {
        Ok(wire.into_inner().into_iter().map(|element| element.to_owned_bytes()).collect())
    }
}

impl<'a> ToWire<'a, Seq064K<'a, U256<'a>>> for &'a [[u8; 32]] {
    fn to_wire(&'a self) -> Result<Seq064K<'a, U256<'a>>, TooLong> {
        Seq064K::new(self.iter().map(U256::from).collect())
            .map_err(|_| TooLong { length: self.len(), limit: 65_535 })
    }
}

impl<'a> FromWire<Seq064K<'a, U256<'a>>> for Vec<[u8; 32]> {
    fn from_wire(wire: Seq064K<'a, U256<'a>>) -> Result<Self, &'static str> {
        Ok(wire.into_inner().iter().map(|hash| *hash.as_array()).collect())
    }
}

impl<'a> Lower<'a> for Vec<[u8; 32]> {
    type Lowered = &'a [[u8; 32]];
    fn lower(&'a self) -> &'a [[u8; 32]] {
        self
    }
}

impl<'a> ToWire<'a, Seq0255<'a, U256<'a>>> for &'a [[u8; 32]] {
    fn to_wire(&'a self) -> Result<Seq0255<'a, U256<'a>>, TooLong> {
        Seq0255::new(self.iter().map(U256::from).collect())
            .map_err(|_| TooLong { length: self.len(), limit: 255 })
    }
}

impl<'a> FromWire<Seq0255<'a, U256<'a>>> for Vec<[u8; 32]> {
    fn from_wire(wire: Seq0255<'a, U256<'a>>) -> Result<Self, &'static str> {
        Ok(wire.iter().map(|hash| *hash.as_array()).collect())
    }
}

macro_rules! sequences {
    ($($element:ident as $wire:ty: $to:expr, $from:expr);*) => {$(
        impl<'a> Lower<'a> for Vec<$element> {
            type Lowered = &'a [$element];
            fn lower(&'a self) -> &'a [$element] {
                self
            }
        }
        impl<'a> ToWire<'a, Seq064K<'a, $wire>> for &'a [$element] {
            fn to_wire(&'a self) -> Result<Seq064K<'a, $wire>, TooLong> {
                Seq064K::new(self.iter().map($to).collect())
                    .map_err(|_| TooLong { length: self.len(), limit: 65_535 })
            }
        }
        impl FromWire<Seq064K<'_, $wire>> for Vec<$element> {
            fn from_wire(wire: Seq064K<'_, $wire>) -> Result<Self, &'static str> {
                Ok(wire.into_inner().into_iter().map($from).collect())
            }
        }
    )*};
}

sequences!(
    u16 as u16: |element| *element, |element| element;
    ChannelId as u32: |channel| channel.0, ChannelId
);

//! Every message of the mining and the common protocol, and of extension 1, as plain data of ours.
//!
//! Each message is declared once; its layout is that of the wire crates' type of the same name. A message serves
//! both directions of the protocol: ids are numbers as this connection counts them, and who speaks to an upstream
//! converts them to the upstream's own id types. Unknown messages are kept as they came, for those who must forward
//! them (SV2 3.4.1).
//!
//! Nothing here is checked beyond lengths, UTF-8 and the protocol number: hash rates may be no numbers, targets
//! zero, sizes absurd. That is for the state machines to judge.

use stratum_core::binary_sv2::{self, Deserialize, GetSize};

use super::codec::{DecodeError, EncodeError, FromWire, Lower, ToWire};
use super::frame::{self, FrameHeader, HEADER_SIZE};
use super::{codes, jobs, shares, tlv};
use crate::hash::Hash;
use crate::{ChannelId, JobId, RequestId, SequenceNumber, Target};

/// The wire crates' messages, each under the name that it has here.
mod wire {
    pub(super) use stratum_core::common_messages_sv2::{
        ChannelEndpointChanged, Reconnect, SetupConnection, SetupConnectionError, SetupConnectionSuccess,
    };
    pub(super) use stratum_core::extensions_sv2::{
        RequestExtensions, RequestExtensionsError, RequestExtensionsSuccess,
    };
    pub(super) use stratum_core::mining_sv2::{
        CloseChannel, NewExtendedMiningJob, NewMiningJob, OpenExtendedMiningChannel,
        OpenExtendedMiningChannelSuccess, OpenMiningChannelError, OpenStandardMiningChannel,
        OpenStandardMiningChannelSuccess, SetCustomMiningJob, SetCustomMiningJobError,
        SetCustomMiningJobSuccess, SetExtranoncePrefix, SetGroupChannel, SetNewPrevHash, SetTarget,
        SubmitSharesError, SubmitSharesExtended, SubmitSharesStandard, SubmitSharesSuccess, UpdateChannel,
        UpdateChannelError,
    };
}

/// The sub-protocols of SV2 (SV2 3.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 0: jobs and shares.
    Mining,
    /// 1: declaration of custom jobs.
    JobDeclaration,
    /// 2: block templates.
    TemplateDistribution,
}

/// Pairs `RequestExtensions` with its answer; 16 bits, unlike every other request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExtensionsRequestId(pub u16);

/// Extension 0x0002's field of `SubmitSharesExtended` that carries the worker's name.
pub(super) const WORKER_IDENTITY_FIELD: u8 = 1;

/// The longest worker name of extension 0x0002, in bytes.
pub const MAX_WORKER_IDENTITY: usize = 32;

/// What a message is called and numbered, and how its payload is read and written.
trait Payload: Sized {
    const NAME: &'static str;
    const EXTENSION_TYPE: u16;
    const CHANNEL_MSG: bool;
    const TYPE: u8;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
    fn decode(payload: &mut [u8]) -> Result<(Self, usize), DecodeError>;
}

/// What extensions append to a message. By default nothing is sent, and well-formed fields are ignored.
trait ExtensionFields: Payload {
    fn append_to(&self, _out: &mut Vec<u8>) -> Result<(), EncodeError> {
        Ok(())
    }

    fn read(&mut self, trailing: &[u8]) -> Result<(), DecodeError> {
        match tlv::find(trailing, 0, 0) {
            tlv::Trailing::Fields(_) => Ok(()),
            tlv::Trailing::Junk => {
                Err(DecodeError::TrailingBytes { message: Self::NAME, extra: trailing.len() })
            }
        }
    }
}

/// Declares the messages: name, the specification's name, extension, type number, channel bit, fields, and the
/// fields of extensions, for which [`ExtensionFields`] is then written by hand.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $name:ident = $text:literal, $extension:literal, $type:literal, $channel_msg:literal {
            $($(#[$field_doc:meta])* $field:ident: $field_type:ty,)*
        }
        $(+ {$($(#[$extra_doc:meta])* $extra:ident: $extra_type:ty,)*})?
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $field_type,)*
                $($($(#[$extra_doc])* pub $extra: $extra_type,)*)?
            }

            impl Payload for $name {
                const NAME: &'static str = $text;
                const EXTENSION_TYPE: u16 = $extension;
                const CHANNEL_MSG: bool = $channel_msg;
                const TYPE: u8 = $type;

                fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                    $(let $field = self.$field.lower();)*
                    let wire = wire::$name {
                        $($field: $field
                            .to_wire()
                            .map_err(|fault| fault.of(Self::NAME, stringify!($field)))?,)*
                    };
                    let start = out.len();
                    out.resize(start + wire.get_size(), 0);
                    binary_sv2::to_writer(wire, &mut out[start..])
                        .expect("the buffer is as long as the message says that it is");
                    Ok(())
                }

                fn decode(payload: &mut [u8]) -> Result<(Self, usize), DecodeError> {
                    let length = payload.len();
                    let wire = wire::$name::from_bytes(payload)
                        .map_err(|error| DecodeError::of_wire(Self::NAME, length, &error))?;
                    let size = wire.get_size();
                    let message = $name {
                        $($field: FromWire::from_wire(wire.$field).map_err(|reason| DecodeError::Field {
                            message: Self::NAME,
                            field: stringify!($field),
                            reason,
                        })?,)*
                        $($($extra: Default::default(),)*)?
                    };
                    Ok((message, size))
                }
            }

            messages!(@extension_fields $name $($($extra)*)?);

            impl From<$name> for Message {
                fn from(message: $name) -> Message {
                    Message::$name(message)
                }
            }
        )*

        /// Any message of the mining protocol, the common protocol or extension 1.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Message {
            $($(#[$doc])* $name($name),)*
            /// See [`Unknown`].
            Unknown(Unknown),
        }

        impl Message {
            /// The message's name, as the specification spells it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Message::$name(_) => <$name as Payload>::NAME,)*
                    Message::Unknown(_) => "an unknown message",
                }
            }

            /// Appends the message to `out` as a frame: header and payload.
            ///
            /// Fails, with `out` as it was, when a value is longer than its field holds.
            pub fn encode_frame(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                match self {
                    $(Message::$name(message) => encode_frame(message, out),)*
                    Message::Unknown(message) => message.encode_frame(out),
                }
            }

            /// Reads the message of a frame.
            ///
            /// Whether the header's channel bit is the specified one is not checked: implementations of different
            /// ages differ, and it says nothing new about a known message. Extension fields (SV2 3.4.3) after the
            /// message are skipped, except for those that are fields of the struct; other trailing bytes are an
            /// error. Allocates a few times the payload's length at most.
            pub fn decode(header: FrameHeader, payload: &[u8]) -> Result<Message, DecodeError> {
                if let Some(success) = shares::success(header, payload) {
                    return Ok(Message::SubmitSharesSuccess(success));
                }
                if let Some(tip) = jobs::new_prev_hash(header, payload) {
                    return Ok(Message::SetNewPrevHash(tip));
                }
                Message::decode_any(header, payload)
            }

            /// The same by the wire crates alone.
            pub(super) fn decode_any(header: FrameHeader, payload: &[u8]) -> Result<Message, DecodeError> {
                match (header.extension_type, header.message_type) {
                    $(($extension, $type) => decode_payload::<$name>(payload).map(Message::$name),)*
                    _ => Unknown::decode(header, payload).map(Message::Unknown),
                }
            }
        }
    };
    (@extension_fields $name:ident) => { impl ExtensionFields for $name {} };
    (@extension_fields $name:ident $($extra:ident)+) => {};
}

messages! {
    /// The first message of a connection (client to server, SV2 3.6.1).
    SetupConnection = "SetupConnection", 0, 0x00, false {
        /// The protocol that the client wants to speak.
        protocol: Protocol,
        /// The lowest version that the client speaks.
        min_version: u16,
        /// The highest version that the client speaks.
        max_version: u16,
        /// What the client requires: [`codes::setup_flags`] for the mining protocol.
        flags: u32,
        /// Host name or address that the client connected to; at most 255 bytes, like all texts here.
        endpoint_host: String,
        /// Port that the client connected to.
        endpoint_port: u16,
        /// Manufacturer or developer.
        vendor: String,
        /// Hardware or software package.
        hardware_version: String,
        /// Firmware.
        firmware: String,
        /// Unique identifier of the device; empty when the client gives no telemetry.
        device_id: String,
    }

    /// The connection is accepted (server to client, SV2 3.6.2).
    SetupConnectionSuccess = "SetupConnection.Success", 0, 0x01, false {
        /// The version that both sides speak from here on.
        used_version: u16,
        /// What the server requires: [`codes::success_flags`] for the mining protocol.
        flags: u32,
    }

    /// The connection is refused and will be closed (server to client, SV2 3.6.3).
    SetupConnectionError = "SetupConnection.Error", 0, 0x02, false {
        /// Every flag that the server does not support; 0 when flags were not the reason.
        flags: u32,
        /// One of [`codes::setup_connection`].
        error_code: String,
    }

    /// Another endpoint now serves the channel: state of extensions is void (server to client, SV2 3.6.4).
    ChannelEndpointChanged = "ChannelEndpointChanged", 0, 0x03, true {
        /// The channel.
        channel_id: ChannelId,
    }

    /// Go to another address of the same authority (server to client, SV2 3.6.5).
    Reconnect = "Reconnect", 0, 0x04, false {
        /// The host to go to; empty for the present one.
        new_host: String,
        /// The port to go to; 0 for the present one.
        new_port: u16,
    }

    /// Asks for a standard channel (client to server, SV2 5.3.2).
    OpenStandardMiningChannel = "OpenStandardMiningChannel", 0, 0x10, false {
        /// Pairs the answer.
        request_id: RequestId,
        /// Who mines, as the server knows it.
        user_identity: String,
        /// Expected hashes per second. A peer can send any bits: check for NaN, infinity and signs.
        nominal_hash_rate: f32,
        /// The easiest target that the client accepts.
        max_target: Target,
    }

    /// The standard channel is open (server to client, SV2 5.3.3).
    OpenStandardMiningChannelSuccess = "OpenStandardMiningChannel.Success", 0, 0x11, false {
        /// From the request.
        request_id: RequestId,
        /// The new channel.
        channel_id: ChannelId,
        /// Its first target.
        target: Target,
        /// The channel's whole extranonce, at most 32 bytes.
        extranonce_prefix: Vec<u8>,
        /// The group that the channel is in.
        group_channel_id: ChannelId,
    }

    /// No channel is opened (server to client, SV2 5.3.6).
    OpenMiningChannelError = "OpenMiningChannel.Error", 0, 0x12, false {
        /// From the request.
        request_id: RequestId,
        /// One of [`codes::open_channel`].
        error_code: String,
    }

    /// Asks for an extended channel (client to server, SV2 5.3.4).
    OpenExtendedMiningChannel = "OpenExtendedMiningChannel", 0, 0x13, false {
        /// Pairs the answer.
        request_id: RequestId,
        /// Who mines, as the server knows it.
        user_identity: String,
        /// Expected hashes per second. A peer can send any bits: check for NaN, infinity and signs.
        nominal_hash_rate: f32,
        /// The easiest target that the client accepts.
        max_target: Target,
        /// The fewest extranonce bytes that the client needs to roll.
        min_extranonce_size: u16,
    }

    /// The extended channel is open (server to client, SV2 5.3.5).
    OpenExtendedMiningChannelSuccess = "OpenExtendedMiningChannel.Success", 0, 0x14, false {
        /// From the request.
        request_id: RequestId,
        /// The new channel.
        channel_id: ChannelId,
        /// Its first target.
        target: Target,
        /// Extranonce bytes that the client rolls, after the prefix.
        extranonce_size: u16,
        /// The first bytes of the channel's extranonce, at most 32.
        extranonce_prefix: Vec<u8>,
        /// The group that the channel is in.
        group_channel_id: ChannelId,
    }

    /// A job of a standard channel: only version, time and nonce can be rolled (server to client, SV2 5.3.15).
    NewMiningJob = "NewMiningJob", 0, 0x15, true {
        /// A standard channel.
        channel_id: ChannelId,
        /// The job, for shares.
        job_id: JobId,
        /// The lowest time that a share may carry; none for a future job, which waits for its `SetNewPrevHash`.
        min_ntime: Option<u32>,
        /// The block's version.
        version: u32,
        /// The block's merkle root, in internal byte order.
        merkle_root: Hash,
    }

    /// The channel's hash rate or target wish has changed (client to server, SV2 5.3.7).
    UpdateChannel = "UpdateChannel", 0, 0x16, true {
        /// The channel.
        channel_id: ChannelId,
        /// Expected hashes per second. A peer can send any bits: check for NaN, infinity and signs.
        nominal_hash_rate: f32,
        /// The easiest target that the client accepts.
        maximum_target: Target,
    }

    /// An `UpdateChannel` was invalid (server to client, SV2 5.3.8).
    UpdateChannelError = "UpdateChannel.Error", 0, 0x17, true {
        /// The channel.
        channel_id: ChannelId,
        /// One of [`codes::update_channel`].
        error_code: String,
    }

    /// The channel, or every channel of the group, is closed (both directions, SV2 5.3.9).
    CloseChannel = "CloseChannel", 0, 0x18, true {
        /// A channel or a group.
        channel_id: ChannelId,
        /// Why, such as one of [`codes::close_channel`].
        reason_code: String,
    }

    /// Jobs sent from here on have another extranonce prefix (server to client, SV2 5.3.10).
    SetExtranoncePrefix = "SetExtranoncePrefix", 0, 0x19, true {
        /// A standard or extended channel.
        channel_id: ChannelId,
        /// The first bytes of the channel's extranonce, at most 32.
        extranonce_prefix: Vec<u8>,
    }

    /// A share of a standard channel (client to server, SV2 5.3.11).
    SubmitSharesStandard = "SubmitSharesStandard", 0, 0x1a, true {
        /// The channel.
        channel_id: ChannelId,
        /// The submission within its channel.
        sequence_number: SequenceNumber,
        /// The job.
        job_id: JobId,
        /// The header's nonce.
        nonce: u32,
        /// The header's time.
        ntime: u32,
        /// The header's version.
        version: u32,
    }

    /// A share of an extended channel (client to server, SV2 5.3.12).
    SubmitSharesExtended = "SubmitSharesExtended", 0, 0x1b, true {
        /// The channel.
        channel_id: ChannelId,
        /// The submission within its channel.
        sequence_number: SequenceNumber,
        /// The job.
        job_id: JobId,
        /// The header's nonce.
        nonce: u32,
        /// The header's time.
        ntime: u32,
        /// The header's version.
        version: u32,
        /// The bytes that the client rolled, as many as the channel's `extranonce_size`; at most 32.
        extranonce: Vec<u8>,
    } + {
        /// The worker's name by extension 0x0002, at most [`MAX_WORKER_IDENTITY`] bytes. To be ignored, and not
        /// to be sent, unless that extension was negotiated.
        user_identity: Option<String>,
    }

    /// Shares are accepted (server to client, SV2 5.3.13).
    SubmitSharesSuccess = "SubmitShares.Success", 0, 0x1c, true {
        /// The channel.
        channel_id: ChannelId,
        /// The newest submission that was right.
        last_sequence_number: SequenceNumber,
        /// How many shares this message accepts.
        new_submits_accepted_count: u32,
        /// The sum of their difficulties.
        new_shares_sum: u64,
    }

    /// A share is refused (server to client, SV2 5.3.14).
    SubmitSharesError = "SubmitShares.Error", 0, 0x1d, true {
        /// The channel.
        channel_id: ChannelId,
        /// The submission.
        sequence_number: SequenceNumber,
        /// One of [`codes::submit_shares`].
        error_code: String,
    }

    /// A job of an extended or group channel (server to client, SV2 5.3.16).
    NewExtendedMiningJob = "NewExtendedMiningJob", 0, 0x1f, true {
        /// An extended channel or a group.
        channel_id: ChannelId,
        /// The job, for shares.
        job_id: JobId,
        /// The lowest time that a share may carry; none for a future job, which waits for its `SetNewPrevHash`.
        min_ntime: Option<u32>,
        /// The block's version.
        version: u32,
        /// Whether the version bits of BIP 323 may be rolled.
        version_rolling_allowed: bool,
        /// Siblings of the coinbase on the way to the merkle root, lowest first; at most 255.
        merkle_path: Vec<Hash>,
        /// The coinbase without witness data, up to the extranonce; at most 65,535 bytes.
        coinbase_tx_prefix: Vec<u8>,
        /// The coinbase without witness data, after the extranonce; at most 65,535 bytes.
        coinbase_tx_suffix: Vec<u8>,
    }

    /// A new chain tip, which activates one future job and voids all others (server to client, SV2 5.3.17).
    SetNewPrevHash = "SetNewPrevHash", 0, 0x20, true {
        /// A channel or a group.
        channel_id: ChannelId,
        /// The future job to mine on.
        job_id: JobId,
        /// The hash of the block to build on, in internal byte order.
        prev_hash: Hash,
        /// The lowest time that a share may carry.
        min_ntime: u32,
        /// The compact network target.
        nbits: u32,
    }

    /// Another target, for jobs to come and future jobs (server to client, SV2 5.3.21).
    SetTarget = "SetTarget", 0, 0x21, true {
        /// A channel or a group.
        channel_id: ChannelId,
        /// The easiest hash that is accepted.
        maximum_target: Target,
    }

    /// The client will mine on a job that it declared (client to server, SV2 5.3.18).
    SetCustomMiningJob = "SetCustomMiningJob", 0, 0x22, true {
        /// An extended channel or a group.
        channel_id: ChannelId,
        /// Pairs the answer.
        request_id: RequestId,
        /// The token of the declared job (`mining_job_token` in the specification), at most 255 bytes.
        token: Vec<u8>,
        /// The block's version.
        version: u32,
        /// The hash of the block to build on, in internal byte order.
        prev_hash: Hash,
        /// The lowest time that a share may carry.
        min_ntime: u32,
        /// The compact network target.
        nbits: u32,
        /// The coinbase's version.
        coinbase_tx_version: u32,
        /// The start of the coinbase's script, at most 8 bytes; the wire holds 255.
        coinbase_prefix: Vec<u8>,
        /// The sequence of the coinbase's input.
        coinbase_tx_input_n_sequence: u32,
        /// The coinbase's outputs with their count, as consensus serialises them; at most 65,535 bytes.
        coinbase_tx_outputs: Vec<u8>,
        /// The coinbase's lock time.
        coinbase_tx_locktime: u32,
        /// Siblings of the coinbase on the way to the merkle root, lowest first; at most 255.
        merkle_path: Vec<Hash>,
    }

    /// The declared job is accepted (server to client, SV2 5.3.19).
    SetCustomMiningJobSuccess = "SetCustomMiningJob.Success", 0, 0x23, true {
        /// From the request.
        channel_id: ChannelId,
        /// From the request.
        request_id: RequestId,
        /// The job, for shares.
        job_id: JobId,
    }

    /// The declared job is refused (server to client, SV2 5.3.20).
    SetCustomMiningJobError = "SetCustomMiningJob.Error", 0, 0x24, true {
        /// From the request.
        channel_id: ChannelId,
        /// From the request.
        request_id: RequestId,
        /// One of [`codes::set_custom_mining_job`].
        error_code: String,
    }

    /// Channels join a group (server to client, SV2 5.3.22).
    SetGroupChannel = "SetGroupChannel", 0, 0x25, false {
        /// The group.
        group_channel_id: ChannelId,
        /// The channels that are in it from here on; at most 65,535.
        channel_ids: Vec<ChannelId>,
    }

    /// Asks for extensions (client to server, extension 1).
    RequestExtensions = "RequestExtensions", 1, 0x00, false {
        /// Pairs the answer.
        request_id: ExtensionsRequestId,
        /// Extension types; at most 65,535.
        requested_extensions: Vec<u16>,
    }

    /// Extensions are on (server to client, extension 1).
    RequestExtensionsSuccess = "RequestExtensions.Success", 1, 0x01, false {
        /// From the request.
        request_id: ExtensionsRequestId,
        /// Those of the requested extensions that are on; at most 65,535.
        supported_extensions: Vec<u16>,
    }

    /// Extensions stay off (server to client, extension 1).
    RequestExtensionsError = "RequestExtensions.Error", 1, 0x02, false {
        /// From the request.
        request_id: ExtensionsRequestId,
        /// Those of the requested extensions that the server does not know; at most 65,535.
        unsupported_extensions: Vec<u16>,
        /// Those that the server insists on; at most 65,535.
        required_extensions: Vec<u16>,
    }
}

/// A message that none of the others is, as it came. The receiver ignores it, or forwards it when it is for a
/// channel that ends elsewhere (SV2 3.4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The extension that defined the message; 15 bits.
    pub extension_type: u16,
    /// The message within its extension.
    pub message_type: u8,
    /// The channel that the message is for, when its header says that it is for one.
    pub channel_id: Option<ChannelId>,
    /// The payload, without the channel id.
    pub payload: Vec<u8>,
}

impl Unknown {
    fn encode_frame(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let channel_id = self.channel_id.map(|channel| channel.0.to_le_bytes());
        let channel_id = channel_id.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let limit = frame::MAX_PAYLOAD - channel_id.len();
        let length = self.payload.len();
        if length > limit {
            return Err(EncodeError { message: "an unknown message", field: "payload", length, limit });
        }
        let header = FrameHeader {
            extension_type: self.extension_type,
            channel_msg: self.channel_id.is_some(),
            message_type: self.message_type,
            payload_length: (channel_id.len() + length) as u32,
        };
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(channel_id);
        out.extend_from_slice(&self.payload);
        Ok(())
    }

    fn decode(header: FrameHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (channel_id, payload) = match (header.channel_msg, payload.split_first_chunk::<4>()) {
            (false, _) => (None, payload),
            (true, Some((channel_id, rest))) => (Some(ChannelId(u32::from_le_bytes(*channel_id))), rest),
            (true, None) => {
                return Err(DecodeError::Malformed {
                    message: "an unknown message",
                    length: payload.len(),
                    reason: "it ends within its channel id",
                });
            }
        };
        let (extension_type, message_type) = (header.extension_type, header.message_type);
        Ok(Unknown { extension_type, message_type, channel_id, payload: payload.to_vec() })
    }
}

impl From<Unknown> for Message {
    fn from(message: Unknown) -> Message {
        Message::Unknown(message)
    }
}

impl ExtensionFields for SubmitSharesExtended {
    fn append_to(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let Some(user_identity) = &self.user_identity else { return Ok(()) };
        let (length, limit) = (user_identity.len(), MAX_WORKER_IDENTITY);
        if length > limit {
            return Err(EncodeError { message: Self::NAME, field: "user_identity", length, limit });
        }
        tlv::append(out, codes::WORKER_HASHRATE_TRACKING, WORKER_IDENTITY_FIELD, user_identity.as_bytes());
        Ok(())
    }

    fn read(&mut self, trailing: &[u8]) -> Result<(), DecodeError> {
        let fault = |reason| DecodeError::Field { message: Self::NAME, field: "user_identity", reason };
        match tlv::find(trailing, codes::WORKER_HASHRATE_TRACKING, WORKER_IDENTITY_FIELD) {
            tlv::Trailing::Fields(None) => Ok(()),
            // The specification wants the message rejected, not the name cut (SV2 3.4.3).
            tlv::Trailing::Fields(Some(name)) if name.len() > MAX_WORKER_IDENTITY => {
                Err(fault("is longer than 32 bytes"))
            }
            tlv::Trailing::Fields(Some(name)) => {
                let name = str::from_utf8(name).map_err(|_| fault("is not UTF-8"))?;
                self.user_identity = Some(name.to_owned());
                Ok(())
            }
            tlv::Trailing::Junk => {
                Err(DecodeError::TrailingBytes { message: Self::NAME, extra: trailing.len() })
            }
        }
    }
}

fn encode_frame<M: ExtensionFields>(message: &M, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_SIZE]);
    if let Err(error) = message.encode(out).and_then(|()| message.append_to(out)) {
        out.truncate(start);
        return Err(error);
    }
    let header = FrameHeader {
        extension_type: M::EXTENSION_TYPE,
        channel_msg: M::CHANNEL_MSG,
        message_type: M::TYPE,
        // The fields of the longest message hold 262,146 bytes, far below the 16 MiB of a frame.
        payload_length: (out.len() - start - HEADER_SIZE) as u32,
    };
    out[start..start + HEADER_SIZE].copy_from_slice(&header.to_bytes());
    Ok(())
}

fn decode_payload<M: ExtensionFields>(payload: &[u8]) -> Result<M, DecodeError> {
    // The wire crates want to borrow the bytes mutably.
    let (mut message, size) = M::decode(&mut payload.to_vec())?;
    message.read(&payload[size..])?;
    Ok(message)
}

//! The messages of the mining protocol (SV2 5.3), and the field of extension 2.

use super::*;
use crate::{ChannelId, JobId, RequestId, SequenceNumber, Target};

/// The wire crates' messages, each under the name that it has here.
mod wire {
    pub(super) use stratum_core::mining_sv2::{
        CloseChannel, NewExtendedMiningJob, NewMiningJob, OpenExtendedMiningChannel,
        OpenExtendedMiningChannelSuccess, OpenMiningChannelError, OpenStandardMiningChannel,
        OpenStandardMiningChannelSuccess, SetCustomMiningJob, SetCustomMiningJobError,
        SetCustomMiningJobSuccess, SetExtranoncePrefix, SetGroupChannel, SetNewPrevHash, SetTarget,
        SubmitSharesError, SubmitSharesExtended, SubmitSharesStandard, SubmitSharesSuccess, UpdateChannel,
        UpdateChannelError,
    };
}

messages! {
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
        /// The token of the declared job (`mining_job_token` in the specification).
        token: MiningJobToken,
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

//! Flags and error codes: the words that SV2 peers understand.
//!
//! The specification leaves the list of error codes open (SV2 3.5): peers may log an unknown one and must not act
//! on it. These are the codes that deployed implementations use; [`close_channel`] holds words of our own, because
//! none are established there. This module never composes text from a peer's input.

/// `SetupConnection.flags` of the mining protocol (SV2 5.3.1).
pub mod setup_flags {
    /// The downstream cannot process extended jobs.
    pub const REQUIRES_STANDARD_JOBS: u32 = 1;
    /// The downstream will send `SetCustomMiningJob`.
    pub const REQUIRES_WORK_SELECTION: u32 = 1 << 1;
    /// The upstream must not send jobs that forbid version rolling.
    pub const REQUIRES_VERSION_ROLLING: u32 = 1 << 2;
    /// Every flag that the specification knows; any other bit is an unsupported feature.
    pub const ALL: u32 = REQUIRES_STANDARD_JOBS | REQUIRES_WORK_SELECTION | REQUIRES_VERSION_ROLLING;
}

/// `SetupConnection.Success.flags` of the mining protocol (SV2 5.3.1).
pub mod success_flags {
    /// The upstream accepts no change of the version field.
    pub const REQUIRES_FIXED_VERSION: u32 = 1;
    /// The upstream opens no standard channels.
    pub const REQUIRES_EXTENDED_CHANNELS: u32 = 1 << 1;
}

/// `SetupConnection.flags` of the job declaration protocol (SV2 6.4.1).
pub mod job_declaration_flags {
    /// The client will reveal its transactions: Full-Template mode. Without it: Coinbase-only mode.
    pub const DECLARE_TX_DATA: u32 = 1;
    /// Every flag that the specification knows; any other bit is an unsupported feature.
    pub const ALL: u32 = DECLARE_TX_DATA;
}

/// The one version of the protocol that exists (SV2 3.6.1).
pub const PROTOCOL_VERSION: u16 = 2;

/// Extension 0x0001, which negotiates the others (SV2 extension 1).
pub const EXTENSIONS_NEGOTIATION: u16 = 1;

/// Extension 0x0002, worker-specific hash rate tracking: a worker name with every share (SV2 extension 2).
pub const WORKER_HASHRATE_TRACKING: u16 = 2;

/// Codes of `SetupConnection.Error`.
pub mod setup_connection {
    /// Flags were set that we do not support; the message's `flags` names them.
    pub const UNSUPPORTED_FEATURE_FLAGS: &str = "unsupported-feature-flags";
    /// The protocol is not spoken at this address.
    pub const UNSUPPORTED_PROTOCOL: &str = "unsupported-protocol";
    /// No version suits both sides.
    pub const PROTOCOL_VERSION_MISMATCH: &str = "protocol-version-mismatch";
    /// This job declaration server serves Full-Template mode only.
    pub const MISSING_DECLARE_TX_DATA_FLAG: &str = "missing-declare-tx-data-flag";
}

/// Codes of `DeclareMiningJob.Error`.
pub mod declare_mining_job {
    /// The token was not given out, was used, or has expired.
    pub const INVALID_MINING_JOB_TOKEN: &str = "invalid-mining-job-token";
    /// A field of the message cannot be; the part after the last dash is its name in the specification.
    pub const INVALID_JOB_PARAM_VALUE: &str = "invalid-job-param-value-";
    /// The coinbase is none, or does not pay what it must.
    pub const INVALID_COINBASE_TX: &str = "invalid-coinbase-tx";
    /// The input of the coinbase is not that of one.
    pub const INVALID_COINBASE_TX_INPUT: &str = "invalid-coinbase-tx-input";
    /// Transactions that were asked for did not come, or are not those.
    pub const MISSING_TXS: &str = "missing-txs";
    /// The job is for an older chain tip.
    pub const STALE_CHAIN_TIP: &str = "stale-chain-tip";
    /// A block of this job would break the consensus rules.
    pub const INVALID_JOB: &str = "invalid-job";
    /// The server cannot say: the fault is its own.
    pub const INTERNAL_ERROR: &str = "internal-error";
}

/// Codes of `RequestTransactionData.Error`.
pub mod request_transaction_data {
    /// The template was for an older chain tip.
    pub const STALE_TEMPLATE_ID: &str = "stale-template-id";
    /// There never was such a template, or it is forgotten.
    pub const TEMPLATE_ID_NOT_FOUND: &str = "template-id-not-found";
}

/// Codes of `OpenMiningChannel.Error`.
pub mod open_channel {
    /// The user identity is not known or not allowed.
    pub const UNKNOWN_USER: &str = "unknown-user";
    /// The user identity cannot be one.
    pub const INVALID_USER_IDENTITY: &str = "invalid-user-identity";
    /// The nominal hash rate is negative or not a number.
    pub const INVALID_NOMINAL_HASHRATE: &str = "invalid-nominal-hashrate";
    /// The maximum target is harder than any that we can serve.
    pub const MAX_TARGET_OUT_OF_RANGE: &str = "max-target-out-of-range";
    /// More extranonce bytes were asked for than we can give.
    pub const MIN_EXTRANONCE_SIZE_TOO_LARGE: &str = "min-extranonce-size-too-large";
    /// The extranonce size asked for is one that we do not serve.
    pub const UNSUPPORTED_MIN_EXTRANONCE_SIZE: &str = "unsupported-min-extranonce-size";
    /// No channel or extranonce value is free.
    pub const CHANNEL_CAPACITY_EXHAUSTED: &str = "channel-capacity-exhausted";
    /// A standard channel on a connection that declared work selection.
    pub const STANDARD_CHANNELS_NOT_SUPPORTED_FOR_CUSTOM_WORK: &str =
        "standard-channels-not-supported-for-custom-work";
    /// An extended channel on a connection that requires standard jobs.
    pub const EXTENDED_CHANNELS_NOT_SUPPORTED_FOR_STANDARD_JOBS: &str =
        "extended-channels-not-supported-for-standard-jobs";
}

/// Codes of `UpdateChannel.Error`.
pub mod update_channel {
    /// There is no such channel on this connection.
    pub const INVALID_CHANNEL_ID: &str = "invalid-channel-id";
    /// The nominal hash rate is negative or not a number.
    pub const INVALID_NOMINAL_HASHRATE: &str = "invalid-nominal-hashrate";
    /// The maximum target is harder than any that we can serve.
    pub const MAX_TARGET_OUT_OF_RANGE: &str = "max-target-out-of-range";
}

/// Codes of `SubmitShares.Error`.
pub mod submit_shares {
    /// There is no such channel on this connection.
    pub const INVALID_CHANNEL_ID: &str = "invalid-channel-id";
    /// The job is for an older chain tip.
    pub const STALE_SHARE: &str = "stale-share";
    /// The hash does not meet the target.
    pub const DIFFICULTY_TOO_LOW: &str = "difficulty-too-low";
    /// There is no such job on this channel.
    pub const INVALID_JOB_ID: &str = "invalid-job-id";
    /// The same share was submitted before.
    pub const DUPLICATE_SHARE: &str = "duplicate-share";
    /// The extranonce is not of the size that the channel was given.
    pub const BAD_EXTRANONCE_SIZE: &str = "bad-extranonce-size";
    /// The version was changed though the job forbids it.
    pub const VERSION_ROLLING_NOT_ALLOWED: &str = "version-rolling-not-allowed";
    /// A version bit outside those that may be rolled was changed (BIP 323).
    pub const INVALID_NON_ROLLABLE_VERSION_BIT: &str = "invalid-non-rollable-version-bit";
    /// Anything else, such as a time outside the job's bounds.
    pub const INVALID_SHARE: &str = "invalid-share";
}

/// Codes of `SetCustomMiningJob.Error`.
pub mod set_custom_mining_job {
    /// This server takes no declared jobs.
    pub const JD_NOT_SUPPORTED: &str = "jd-not-supported";
    /// There is no such extended channel on this connection.
    pub const INVALID_CHANNEL_ID: &str = "invalid-channel-id";
    /// The token was not given out, was used, or has expired.
    pub const INVALID_MINING_JOB_TOKEN: &str = "invalid-mining-job-token";
    /// The declared job is still being validated.
    pub const JOB_NOT_YET_VALIDATED: &str = "job-not-yet-validated";
    /// The job is for an older chain tip.
    pub const STALE_CHAIN_TIP: &str = "stale-chain-tip";
    /// `min_ntime` breaks the consensus rules.
    pub const INVALID_MIN_NTIME: &str = "invalid-min-ntime";
    /// `nbits` is not the network's.
    pub const INVALID_NBITS: &str = "invalid-nbits";
    /// The version is not the declared one.
    pub const INVALID_VERSION: &str = "invalid-version";
    /// The coinbase is not the declared one.
    pub const INVALID_COINBASE_TX: &str = "invalid-coinbase-tx";
    /// The coinbase's version is not the declared one.
    pub const INVALID_COINBASE_TX_VERSION: &str = "invalid-coinbase-tx-version";
    /// The start of the coinbase's script is not the declared one.
    pub const INVALID_COINBASE_PREFIX: &str = "invalid-coinbase-prefix";
    /// The sequence of the coinbase's input is not the declared one.
    pub const INVALID_COINBASE_TX_INPUT_N_SEQUENCE: &str = "invalid-coinbase-tx-input-n-sequence";
    /// The coinbase's outputs are not the declared ones.
    pub const INVALID_COINBASE_TX_OUTPUTS: &str = "invalid-coinbase-tx-outputs";
    /// The coinbase's lock time is not the declared one.
    pub const INVALID_COINBASE_TX_LOCKTIME: &str = "invalid-coinbase-tx-locktime";
    /// The merkle path is not the declared one.
    pub const INVALID_MERKLE_PATH: &str = "invalid-merkle-path";
}

/// Words for `CloseChannel.reason_code` that we send (SV2 5.3.9 establishes none).
pub mod close_channel {
    /// The device behind the channel has gone.
    pub const DOWNSTREAM_DISCONNECTED: &str = "downstream-disconnected";
    /// The upstream that the channel mined for has gone or has changed.
    pub const UPSTREAM_CHANGED: &str = "upstream-changed";
    /// The process is ending.
    pub const SHUTTING_DOWN: &str = "shutting-down";
    /// The peer broke the protocol on this channel.
    pub const PROTOCOL_VIOLATION: &str = "protocol-violation";
}

#[cfg(test)]
mod tests {
    use stratum_core::{
        common_messages_sv2 as common, job_declaration_sv2 as declaration, mining_sv2 as mining,
        template_distribution_sv2 as templates,
    };

    use super::*;

    #[test]
    fn job_declaration_uses_the_same_words_too() {
        let pairs = [
            (
                setup_connection::MISSING_DECLARE_TX_DATA_FLAG,
                common::ERROR_CODE_SETUP_CONNECTION_MISSING_DECLARE_TX_DATA_FLAG,
            ),
            (
                declare_mining_job::INVALID_MINING_JOB_TOKEN,
                declaration::ERROR_CODE_DECLARE_MINING_JOB_INVALID_MINING_JOB_TOKEN,
            ),
            (
                declare_mining_job::INVALID_COINBASE_TX,
                declaration::ERROR_CODE_DECLARE_MINING_JOB_INVALID_COINBASE_TX,
            ),
            (
                declare_mining_job::INVALID_COINBASE_TX_INPUT,
                declaration::ERROR_CODE_DECLARE_MINING_JOB_INVALID_COINBASE_TX_INPUT,
            ),
            (declare_mining_job::MISSING_TXS, declaration::ERROR_CODE_DECLARE_MINING_JOB_MISSING_TXS),
            (declare_mining_job::STALE_CHAIN_TIP, declaration::ERROR_CODE_DECLARE_MINING_JOB_STALE_CHAIN_TIP),
            (declare_mining_job::INVALID_JOB, declaration::ERROR_CODE_DECLARE_MINING_JOB_INVALID_JOB),
            (declare_mining_job::INTERNAL_ERROR, declaration::ERROR_CODE_DECLARE_MINING_JOB_INTERNAL_ERROR),
            (
                request_transaction_data::STALE_TEMPLATE_ID,
                templates::ERROR_CODE_REQUEST_TRANSACTION_DATA_STALE_TEMPLATE_ID,
            ),
            (
                request_transaction_data::TEMPLATE_ID_NOT_FOUND,
                templates::ERROR_CODE_REQUEST_TRANSACTION_DATA_TEMPLATE_ID_NOT_FOUND,
            ),
            (
                set_custom_mining_job::JOB_NOT_YET_VALIDATED,
                mining::ERROR_CODE_SET_CUSTOM_MINING_JOB_JOB_NOT_YET_VALIDATED,
            ),
            (
                set_custom_mining_job::INVALID_COINBASE_TX_OUTPUTS,
                mining::ERROR_CODE_SET_CUSTOM_MINING_JOB_INVALID_COINBASE_TX_OUTPUTS,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn the_reference_implementation_uses_the_same_words() {
        let pairs = [
            (
                setup_connection::UNSUPPORTED_FEATURE_FLAGS,
                common::ERROR_CODE_SETUP_CONNECTION_UNSUPPORTED_FEATURE_FLAGS,
            ),
            (
                setup_connection::UNSUPPORTED_PROTOCOL,
                common::ERROR_CODE_SETUP_CONNECTION_UNSUPPORTED_PROTOCOL,
            ),
            (
                setup_connection::PROTOCOL_VERSION_MISMATCH,
                common::ERROR_CODE_SETUP_CONNECTION_PROTOCOL_VERSION_MISMATCH,
            ),
            (open_channel::UNKNOWN_USER, mining::ERROR_CODE_OPEN_MINING_CHANNEL_UNKNOWN_USER),
            (
                open_channel::MAX_TARGET_OUT_OF_RANGE,
                mining::ERROR_CODE_OPEN_MINING_CHANNEL_MAX_TARGET_OUT_OF_RANGE,
            ),
            (
                open_channel::MIN_EXTRANONCE_SIZE_TOO_LARGE,
                mining::ERROR_CODE_OPEN_MINING_CHANNEL_MIN_EXTRANONCE_SIZE_TOO_LARGE,
            ),
            (
                open_channel::CHANNEL_CAPACITY_EXHAUSTED,
                mining::ERROR_CODE_OPEN_MINING_CHANNEL_CHANNEL_CAPACITY_EXHAUSTED,
            ),
            (update_channel::INVALID_CHANNEL_ID, mining::ERROR_CODE_UPDATE_CHANNEL_INVALID_CHANNEL_ID),
            (submit_shares::STALE_SHARE, mining::ERROR_CODE_SUBMIT_SHARES_STALE_SHARE),
            (submit_shares::DIFFICULTY_TOO_LOW, mining::ERROR_CODE_SUBMIT_SHARES_DIFFICULTY_TOO_LOW),
            (submit_shares::INVALID_JOB_ID, mining::ERROR_CODE_SUBMIT_SHARES_INVALID_JOB_ID),
            (submit_shares::DUPLICATE_SHARE, mining::ERROR_CODE_SUBMIT_SHARES_DUPLICATE_SHARE),
            (submit_shares::BAD_EXTRANONCE_SIZE, mining::ERROR_CODE_SUBMIT_SHARES_BAD_EXTRANONCE_SIZE),
            (submit_shares::VERSION_ROLLING_NOT_ALLOWED, mining::ERROR_CODE_VERSION_ROLLING_NOT_ALLOWED),
            (submit_shares::INVALID_SHARE, mining::ERROR_CODE_SUBMIT_SHARES_INVALID_SHARE),
            (
                set_custom_mining_job::INVALID_MINING_JOB_TOKEN,
                mining::ERROR_CODE_SET_CUSTOM_MINING_JOB_INVALID_MINING_JOB_TOKEN,
            ),
            (
                set_custom_mining_job::STALE_CHAIN_TIP,
                mining::ERROR_CODE_SET_CUSTOM_MINING_JOB_STALE_CHAIN_TIP,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }
}

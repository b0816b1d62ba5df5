//! The messages of the job declaration protocol (SV2 6.4).

use super::*;
use crate::RequestId;

/// The wire crates' messages, each under the name that it has here.
mod wire {
    pub(super) use stratum_core::job_declaration_sv2::{
        AllocateMiningJobToken, AllocateMiningJobTokenSuccess, DeclareMiningJob, DeclareMiningJobError,
        DeclareMiningJobSuccess, ProvideMissingTransactions, ProvideMissingTransactionsSuccess, PushSolution,
    };
}

messages! {
    /// Asks for a token (client to server, SV2 6.4.2).
    AllocateMiningJobToken = "AllocateMiningJobToken", 0, 0x50, false {
        /// Who mines, as the pool knows it.
        user_identifier: String,
        /// Pairs the answer.
        request_id: RequestId,
    }

    /// Gives a token (server to client, SV2 6.4.3).
    AllocateMiningJobTokenSuccess = "AllocateMiningJobToken.Success", 0, 0x51, false {
        /// From the request.
        request_id: RequestId,
        /// For one job.
        mining_job_token: MiningJobToken,
        /// The outputs that the coinbase must have, with their count, as consensus serialises them
        /// (`coinbase_tx_outputs` in the specification); at most 65,535 bytes. The first is the pool's payout.
        coinbase_outputs: Vec<u8>,
    }

    /// Proposes a job (client to server, SV2 6.4.4).
    DeclareMiningJob = "DeclareMiningJob", 0, 0x57, false {
        /// Pairs the answer.
        request_id: RequestId,
        /// From `AllocateMiningJobToken.Success`.
        mining_job_token: MiningJobToken,
        /// The block's version.
        version: u32,
        /// The coinbase with marker and flag (BIP 144), up to the extranonce; at most 65,535 bytes.
        coinbase_tx_prefix: Vec<u8>,
        /// The coinbase with its witness, after the extranonce; at most 65,535 bytes.
        coinbase_tx_suffix: Vec<u8>,
        /// The transactions without the coinbase, in block order, by their hashes with witness; at most 65,535.
        wtxid_list: Vec<Hash>,
        /// What the template source wants the pool to know, unread; at most 65,535 bytes.
        excess_data: Vec<u8>,
    }

    /// The job is taken (server to client, SV2 6.4.5).
    DeclareMiningJobSuccess = "DeclareMiningJob.Success", 0, 0x58, false {
        /// From the request.
        request_id: RequestId,
        /// For `SetCustomMiningJob`.
        new_mining_job_token: MiningJobToken,
    }

    /// The job is refused (server to client, SV2 6.4.6).
    DeclareMiningJobError = "DeclareMiningJob.Error", 0, 0x59, false {
        /// From the request.
        request_id: RequestId,
        /// One of [`codes::declare_mining_job`].
        error_code: String,
        /// Further words, or none; at most 65,535 bytes.
        error_details: Vec<u8>,
    }

    /// Asks for the transactions that the server does not know (server to client, SV2 6.4.7).
    ProvideMissingTransactions = "ProvideMissingTransactions", 0, 0x55, false {
        /// That of the `DeclareMiningJob`.
        request_id: RequestId,
        /// Places in its `wtxid_list`, from 0; at most 65,535.
        unknown_tx_position_list: Vec<u16>,
    }

    /// Brings them (client to server, SV2 6.4.8).
    ProvideMissingTransactionsSuccess = "ProvideMissingTransactions.Success", 0, 0x56, false {
        /// That of the `DeclareMiningJob`.
        request_id: RequestId,
        /// Whole transactions, in the order in which they were asked for; at most 65,535.
        transaction_list: Vec<Vec<u8>>,
    }

    /// A solved block on the job that was taken last (client to server, SV2 6.4.9).
    PushSolution = "PushSolution", 0, 0x60, false {
        /// The whole extranonce, at most 32 bytes.
        extranonce: Vec<u8>,
        /// The hash of the block that it builds on, in internal byte order.
        prev_hash: Hash,
        /// The header's nonce.
        nonce: u32,
        /// The header's time.
        ntime: u32,
        /// The compact network target.
        nbits: u32,
        /// The header's version.
        version: u32,
    }
}

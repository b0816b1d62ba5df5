//! The messages of the template distribution protocol (SV2 7).

use super::*;
use crate::{Target, TemplateId};

/// The wire crates' messages, each under the name that it has here. The protocol has a `SetNewPrevHash` of its own.
mod wire {
    pub(super) use stratum_core::template_distribution_sv2::{
        CoinbaseOutputConstraints, NewTemplate, RequestTransactionData, RequestTransactionDataError,
        RequestTransactionDataSuccess, SetNewPrevHash as TemplateSetNewPrevHash, SubmitSolution,
    };
}

messages! {
    /// How much the client will add to the coinbase (client to server, SV2 7.1).
    CoinbaseOutputConstraints = "CoinbaseOutputConstraints", 0, 0x70, false {
        /// Bytes of outputs.
        coinbase_output_max_additional_size: u32,
        /// Signature operations of these outputs.
        coinbase_output_max_additional_sigops: u16,
    }

    /// A block template (server to client, SV2 7.2).
    NewTemplate = "NewTemplate", 0, 0x71, false {
        /// The server's number of it, higher than any before.
        template_id: TemplateId,
        /// Whether it waits for the `SetNewPrevHash` that names it.
        future_template: bool,
        /// The block's version.
        version: u32,
        /// The coinbase's version.
        coinbase_tx_version: u32,
        /// The start of the coinbase's script, at most 8 bytes; the wire holds 255.
        coinbase_prefix: Vec<u8>,
        /// The sequence of the coinbase's input.
        coinbase_tx_input_sequence: u32,
        /// What the client's outputs may pay; satoshis.
        coinbase_tx_value_remaining: u64,
        /// How many outputs `coinbase_tx_outputs` holds.
        coinbase_tx_outputs_count: u32,
        /// The last outputs of the coinbase without a count, as consensus serialises them; at most 65,535 bytes.
        coinbase_tx_outputs: Vec<u8>,
        /// The coinbase's lock time.
        coinbase_tx_locktime: u32,
        /// Siblings of the coinbase on the way to the merkle root, lowest first; at most 255.
        merkle_path: Vec<Hash>,
    }

    /// A new chain tip, which activates one future template and voids all others (server to client, SV2 7.3).
    TemplateSetNewPrevHash = "SetNewPrevHash", 0, 0x72, false {
        /// The template to mine on.
        template_id: TemplateId,
        /// The hash of the block to build on, in internal byte order.
        prev_hash: Hash,
        /// The time to start from; not the lowest that is valid.
        header_timestamp: u32,
        /// The compact network target.
        n_bits: u32,
        /// What a block's hash must meet, which may be harder than `n_bits` says.
        target: Target,
    }

    /// Asks for a template's transactions (client to server, SV2 7.4).
    RequestTransactionData = "RequestTransactionData", 0, 0x73, false {
        /// The template.
        template_id: TemplateId,
    }

    /// Brings them (server to client, SV2 7.5).
    RequestTransactionDataSuccess = "RequestTransactionData.Success", 0, 0x74, false {
        /// The template.
        template_id: TemplateId,
        /// For the pool, unread; at most 65,535 bytes.
        excess_data: Vec<u8>,
        /// Whole transactions without the coinbase, in block order; at most 65,535.
        transaction_list: Vec<Vec<u8>>,
    }

    /// There are none (server to client, SV2 7.6).
    RequestTransactionDataError = "RequestTransactionData.Error", 0, 0x75, false {
        /// The template.
        template_id: TemplateId,
        /// One of [`codes::request_transaction_data`].
        error_code: String,
    }

    /// A solved block (client to server, SV2 7.7).
    SubmitSolution = "SubmitSolution", 0, 0x76, false {
        /// The template.
        template_id: TemplateId,
        /// The header's version.
        version: u32,
        /// The header's time.
        header_timestamp: u32,
        /// The header's nonce.
        header_nonce: u32,
        /// The whole coinbase, witness included; at most 65,535 bytes.
        coinbase_tx: Vec<u8>,
    }
}

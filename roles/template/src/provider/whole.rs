//! A whole template, from what a provider says of it and its transactions.

use bitcoin::consensus::deserialize;
use stratum::hash::Hash;

use crate::block_template::{BlockTemplate, CLOCK_TOLERANCE, TemplateError, TemplateTransaction};
use crate::constraints::CoinbaseConstraints;
use crate::job_template::JobTemplate;
use crate::merkle::merkle_path;
use crate::skeleton::pushed_height;
use crate::transaction::TransactionList;

impl BlockTemplate {
    /// The template of `job` with its transactions, as a provider brought them. `room` is what the provider was asked
    /// to leave: the limits are such that exactly this much is free.
    ///
    /// The lowest time is ten minutes before the provider's, which says no more than that miners may begin with its own.
    /// Fees and signature operations of single transactions are unknown, and zero. Fails where the transactions are
    /// not those of the job, and where the job wants a coinbase of another form than all of ours have.
    pub fn of_provider(
        job: &JobTemplate,
        transactions: Vec<Vec<u8>>,
        room: CoinbaseConstraints,
    ) -> Result<Self, TemplateError> {
        let wrong = |field: &'static str, problem: &str| {
            Err(TemplateError::Wrong { field, problem: problem.to_owned() })
        };
        let Some(height) = pushed_height(&job.script_start) else {
            return wrong("coinbase_prefix", "begins with no height");
        };
        let transactions = read_transactions(transactions)?;
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        if merkle_path(&txids) != job.merkle_path {
            return wrong("transaction_list", "is not that of the template");
        }
        let weight: u64 = transactions.iter().map(|transaction| transaction.weight).sum();
        let commitment = match job.outputs.as_slice() {
            [] => None,
            [output] if output.value == 0 => Some(output.script.clone()),
            _ => return wrong("coinbase_tx_outputs", "are more than the witness commitment"),
        };
        let template = BlockTemplate {
            id: job.id,
            height,
            previous_hash: job.previous_hash,
            version: job.version,
            nbits: job.nbits,
            min_ntime: job.start_time.saturating_sub(CLOCK_TOLERANCE),
            current_time: job.start_time,
            coinbase_value: job.value,
            witness_commitment: commitment,
            merkle_path: job.merkle_path.clone(),
            transactions,
            weight_limit: weight + room.reserved_weight(),
            sigop_limit: room.max_additional_sigops.into(),
            long_poll_id: None,
            received: job.received,
        };
        let ours = JobTemplate::of_block_template(&template);
        // A target that is harder than the network's is the provider's wish; a block is one by the network's.
        if (JobTemplate { network_target: ours.network_target, ..job.clone() }) != ours {
            return wrong(
                "NewTemplate",
                "wants a coinbase with another version, sequence or lock time than BIP 54's",
            );
        }
        Ok(template)
    }
}

fn read_transactions(raw: Vec<Vec<u8>>) -> Result<Vec<TemplateTransaction>, TemplateError> {
    let mut list = TransactionList::with_capacity(raw.len());
    for (place, raw) in raw.into_iter().enumerate() {
        let transaction: bitcoin::Transaction = deserialize(&raw).map_err(|_| TemplateError::Wrong {
            field: "transaction_list",
            problem: format!("holds something else than a transaction at place {place}"),
        })?;
        list.push(&transaction, raw, 0, 0);
    }
    Ok(list.finish())
}

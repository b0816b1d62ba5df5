//! Room for what a pool adds to the coinbase (SV2 7.1): templates that leave too little lose their cheapest
//! transactions.
//!
//! This module never looks for a better choice than dropping: the node has chosen, and only the last few of its
//! choices are in doubt. Nor does it touch a template that fits.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use stratum::hash::Hash;

use crate::block_template::{BlockTemplate, TemplateTransaction, witness_commitment};
use crate::merkle::merkle_path;
use crate::outputs::Output;

/// The weight of a block besides its transactions and the outputs that are added to its coinbase: header 320, count
/// 12, fixed fields of the coinbase 236, script 400, count of outputs 12, witness commitment 188 (SV2 7.1).
pub const FIXED_WEIGHT: u64 = 1_168;

/// What the coinbase will get beside the template's own outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoinbaseConstraints {
    /// The most bytes of outputs.
    pub max_additional_size: u32,
    /// The highest cost of their signature operations (BIP 141: four for each that is outside a witness).
    pub max_additional_sigops: u16,
}

/// A template with the room that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constrained {
    /// The template; the very one that was given when nothing had to go.
    pub template: Arc<BlockTemplate>,
    /// How many transactions were dropped.
    pub dropped: usize,
    /// The fees that went with them; satoshis.
    pub lost_fees: u64,
}

/// Not even a block without transactions has the room. The fault of who asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "outputs of {max_additional_size} bytes and a signature operation cost of {max_additional_sigops} fit in no block"
)]
pub struct TooDemanding {
    /// From the constraints.
    pub max_additional_size: u32,
    /// From the constraints.
    pub max_additional_sigops: u16,
}

impl CoinbaseConstraints {
    /// What exactly these outputs take. Numbers beyond the fields of `CoinbaseOutputConstraints` become the highest
    /// that the fields hold, which no block has room for.
    pub fn of(outputs: &[Output]) -> Self {
        let size: usize = outputs.iter().map(Output::size).sum();
        let sigops: u64 = outputs.iter().map(Output::sigops).sum();
        CoinbaseConstraints {
            max_additional_size: u32::try_from(size).unwrap_or(u32::MAX),
            max_additional_sigops: u16::try_from(sigops).unwrap_or(u16::MAX),
        }
    }

    /// What is enough for either.
    #[must_use]
    pub fn largest(self, other: Self) -> Self {
        CoinbaseConstraints {
            max_additional_size: self.max_additional_size.max(other.max_additional_size),
            max_additional_sigops: self.max_additional_sigops.max(other.max_additional_sigops),
        }
    }

    /// The weight that must be kept free of transactions.
    pub fn reserved_weight(self) -> u64 {
        FIXED_WEIGHT + 4 * u64::from(self.max_additional_size)
    }

    /// The template with the cheapest leaves dropped until there is room: transactions on which no other depends, the
    /// lowest fee for their weight first. Fees, merkle path and witness commitment are those of what is left.
    pub fn apply(self, template: Arc<BlockTemplate>) -> Result<Constrained, TooDemanding> {
        let weight_room = template.weight_limit.checked_sub(self.reserved_weight());
        let sigop_room = template.sigop_limit.checked_sub(u64::from(self.max_additional_sigops));
        let (Some(weight_room), Some(sigop_room)) = (weight_room, sigop_room) else {
            let CoinbaseConstraints { max_additional_size, max_additional_sigops } = self;
            return Err(TooDemanding { max_additional_size, max_additional_sigops });
        };
        let mut pruning = Pruning::new(&template.transactions);
        pruning.prune(|pruning| pruning.weight > weight_room, rate);
        // Where only signature operations are too many, transactions without any are spared as long as they can be.
        pruning.prune(
            |pruning| pruning.sigops > sigop_room,
            |transaction| {
                let Rate { fee, weight, .. } = rate(transaction);
                Rate { spared: transaction.sigops == 0, fee, weight }
            },
        );
        let (dropped, lost_fees, kept) = (pruning.dropped, pruning.lost_fees, pruning.kept);
        if dropped == 0 {
            return Ok(Constrained { template, dropped, lost_fees });
        }
        let template = Arc::new(template.keeping(&kept));
        Ok(Constrained { template, dropped, lost_fees })
    }
}

impl BlockTemplate {
    /// The same template with those of its transactions for which `kept` is true. The caller keeps what others depend
    /// on.
    fn keeping(&self, kept: &[bool]) -> BlockTemplate {
        let mut places = Vec::with_capacity(kept.len());
        let mut next = 0;
        for kept in kept {
            places.push(next);
            next += u32::from(*kept);
        }
        let transactions: Vec<TemplateTransaction> = self
            .transactions
            .iter()
            .zip(kept)
            .filter(|(_, kept)| **kept)
            .map(|(transaction, _)| {
                let mut transaction = transaction.clone();
                transaction.depends.iter_mut().for_each(|place| *place = places[*place as usize]);
                transaction
            })
            .collect();
        let fees: u64 = transactions.iter().map(|transaction| transaction.fee).sum();
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        let wtxids: Vec<Hash> = transactions.iter().map(|transaction| transaction.wtxid).collect();
        BlockTemplate {
            id: self.id,
            height: self.height,
            previous_hash: self.previous_hash,
            version: self.version,
            nbits: self.nbits,
            min_ntime: self.min_ntime,
            current_time: self.current_time,
            coinbase_value: self.coinbase_value.saturating_sub(self.fees()) + fees,
            witness_commitment: self.witness_commitment.as_ref().map(|_| witness_commitment(&wtxids)),
            merkle_path: merkle_path(&txids),
            transactions,
            weight_limit: self.weight_limit,
            sigop_limit: self.sigop_limit,
            long_poll_id: self.long_poll_id.clone(),
            received: self.received,
        }
    }

    /// The same template without transactions: the coinbase claims the subsidy alone.
    pub fn emptied(&self) -> BlockTemplate {
        self.keeping(&vec![false; self.transactions.len()])
    }
}

/// A fee for its weight, the cheapest first.
#[derive(Clone, Copy, Debug)]
struct Rate {
    spared: bool,
    fee: u64,
    weight: u64,
}

fn rate(transaction: &TemplateTransaction) -> Rate {
    Rate { spared: false, fee: transaction.fee, weight: transaction.weight.max(1) }
}

impl Rate {
    fn compare(&self, other: &Rate) -> Ordering {
        let (ours, theirs) = (
            u128::from(self.fee) * u128::from(other.weight),
            u128::from(other.fee) * u128::from(self.weight),
        );
        self.spared.cmp(&other.spared).then(ours.cmp(&theirs))
    }
}

/// A leaf that may go. The greatest is dropped first: the cheapest and, of equals, the last in the block.
struct Leaf {
    rate: Rate,
    place: usize,
}

impl Ord for Leaf {
    fn cmp(&self, other: &Self) -> Ordering {
        other.rate.compare(&self.rate).then(self.place.cmp(&other.place))
    }
}

impl PartialOrd for Leaf {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Leaf {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Leaf {}

struct Pruning<'a> {
    transactions: &'a [TemplateTransaction],
    kept: Vec<bool>,
    /// How many of those that are kept depend on each.
    dependants: Vec<u32>,
    weight: u64,
    sigops: u64,
    dropped: usize,
    lost_fees: u64,
}

impl<'a> Pruning<'a> {
    fn new(transactions: &'a [TemplateTransaction]) -> Self {
        let mut dependants = vec![0; transactions.len()];
        for place in transactions.iter().flat_map(|transaction| &transaction.depends) {
            dependants[*place as usize] += 1;
        }
        Pruning {
            transactions,
            kept: vec![true; transactions.len()],
            dependants,
            weight: transactions.iter().map(|transaction| transaction.weight).sum(),
            sigops: transactions.iter().map(|transaction| transaction.sigops).sum(),
            dropped: 0,
            lost_fees: 0,
        }
    }

    fn prune(&mut self, is_over: impl Fn(&Self) -> bool, rate: impl Fn(&TemplateTransaction) -> Rate) {
        if !is_over(self) {
            return;
        }
        let leaf = |place: usize| Leaf { rate: rate(&self.transactions[place]), place };
        let is_leaf = |place: &usize| self.kept[*place] && self.dependants[*place] == 0;
        let mut leaves: BinaryHeap<Leaf> = (0..self.transactions.len()).filter(is_leaf).map(leaf).collect();
        while is_over(self) {
            let Some(Leaf { place, .. }) = leaves.pop() else { return };
            // One that names an earlier transaction twice leads to it twice.
            if !self.kept[place] {
                continue;
            }
            self.drop(place);
            for parent in &self.transactions[place].depends {
                let parent = *parent as usize;
                if self.dependants[parent] == 0 {
                    leaves.push(Leaf { rate: rate(&self.transactions[parent]), place: parent });
                }
            }
        }
    }

    fn drop(&mut self, place: usize) {
        let transaction = &self.transactions[place];
        self.kept[place] = false;
        self.weight -= transaction.weight;
        self.sigops -= transaction.sigops;
        self.dropped += 1;
        self.lost_fees += transaction.fee;
        for parent in &transaction.depends {
            self.dependants[*parent as usize] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_template::tests::{small_template, with_transactions};
    use proptest::prelude::*;

    /// Transactions of (fee, weight, sigops, depends).
    fn template(transactions: &[(u64, u64, u64, &[u32])]) -> BlockTemplate {
        let mut template = with_transactions(small_template(900_000), transactions.len());
        let changed = template.transactions.iter_mut().zip(transactions);
        for (transaction, (fee, weight, sigops, depends)) in changed {
            (transaction.fee, transaction.weight, transaction.sigops) = (*fee, *weight, *sigops);
            transaction.depends = depends.to_vec();
        }
        template.coinbase_value = 312_500_000 + template.fees();
        template
    }

    fn fees_after(constraints: CoinbaseConstraints, template: &BlockTemplate) -> Vec<u64> {
        let left = constraints.apply(Arc::new(template.clone())).expect("there is room").template;
        left.transactions.iter().map(|transaction| transaction.fee).collect()
    }

    #[test]
    fn what_fits_is_left_alone() {
        let template = Arc::new(template(&[(5, 400, 0, &[]), (9, 400, 0, &[0])]));
        let fit = CoinbaseConstraints::default().apply(Arc::clone(&template)).expect("there is room");
        assert!(Arc::ptr_eq(&fit.template, &template));
        assert_eq!((fit.dropped, fit.lost_fees), (0, 0));
    }

    /// The cheapest is needed by the dearest, and goes only with it.
    #[test]
    fn the_cheapest_leaves_go_first() {
        let mut template =
            template(&[(1, 400, 0, &[]), (50, 400, 0, &[0]), (20, 400, 0, &[]), (30, 800, 0, &[])]);
        let constraints = CoinbaseConstraints { max_additional_size: 100, max_additional_sigops: 0 };
        let mut rooms = (0..=2000).step_by(400).map(|room| {
            template.weight_limit = 1_168 + 400 + room;
            fees_after(constraints, &template)
        });
        assert_eq!(rooms.next(), Some(vec![]));
        assert_eq!(rooms.next(), Some(vec![1]));
        assert_eq!(rooms.next(), Some(vec![1, 50]));
        assert_eq!(rooms.next(), Some(vec![1, 50, 20]), "a lower fee for its weight: 30 for 800");
        assert_eq!(rooms.next(), Some(vec![1, 50, 20]));
        assert_eq!(rooms.next(), Some(vec![1, 50, 20, 30]));
    }

    #[test]
    fn signature_operations_count_too() {
        let mut template = template(&[(1, 400, 0, &[]), (50, 400, 40, &[]), (20, 400, 80, &[])]);
        template.sigop_limit = 120;
        let constraints = CoinbaseConstraints { max_additional_size: 0, max_additional_sigops: 1 };
        assert_eq!(fees_after(constraints, &template), [1, 50]);
        template.sigop_limit = 40;
        assert_eq!(fees_after(constraints, &template), [1]);
        let demanding = CoinbaseConstraints { max_additional_sigops: 41, ..constraints };
        assert!(demanding.apply(Arc::new(template.clone())).is_err());
        let demanding = CoinbaseConstraints { max_additional_size: 1_000_000, max_additional_sigops: 0 };
        assert!(demanding.apply(Arc::new(template)).is_err());
    }

    #[test]
    fn what_is_left_is_a_whole_template() {
        let mut template = with_transactions(small_template(900_000), 7);
        template.coinbase_value = 312_500_000 + template.fees();
        template.transactions[6].depends = vec![1];
        let all: u64 = template.transactions.iter().map(|transaction| transaction.weight).sum();
        template.weight_limit = 1_168 + all - 1;
        template.transactions[2].fee = 1;
        template.coinbase_value -= 9;
        let fit = CoinbaseConstraints::default().apply(Arc::new(template.clone())).expect("there is room");
        assert_eq!((fit.dropped, fit.lost_fees), (1, 1));
        let left = &fit.template;
        assert_eq!(left.coinbase_value, 312_500_000 + 60);
        assert_eq!(left.transactions[5].depends, [1]);
        let txids: Vec<Hash> = left.transactions.iter().map(|transaction| transaction.txid).collect();
        let wtxids: Vec<Hash> = left.transactions.iter().map(|transaction| transaction.wtxid).collect();
        assert_eq!(left.merkle_path, merkle_path(&txids));
        assert_eq!(left.witness_commitment, Some(witness_commitment(&wtxids)));
        let empty = template.emptied();
        assert_eq!((empty.coinbase_value, empty.merkle_path.len()), (312_500_000, 0));
        assert_eq!(empty.witness_commitment, Some(witness_commitment(&[])));
    }

    fn random_transactions() -> impl Strategy<Value = Vec<(u64, u64, u64, Vec<u32>)>> {
        let one = (0..100u64, 1..1000u64, 0..20u64, prop::collection::vec(any::<u32>(), 0..3));
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The limits hold, no transaction is without one that it depends on, and nothing goes without need.
        #[test]
        fn limits_hold_and_no_dependency_is_lost(
            mut transactions in random_transactions(),
            weight_room in 0..20_000u64,
            sigop_room in 0..400u64,
        ) {
            for (place, (.., depends)) in transactions.iter_mut().enumerate() {
                if place == 0 { depends.clear() }
                depends.iter_mut().for_each(|earlier| *earlier %= place.max(1) as u32);
            }
            let borrowed: Vec<_> = transactions.iter().map(|(a, b, c, d)| (*a, *b, *c, d.as_slice())).collect();
            let mut whole = template(&borrowed);
            whole.weight_limit = 1_168 + weight_room;
            whole.sigop_limit = sigop_room;
            let fit = CoinbaseConstraints::default().apply(Arc::new(whole.clone())).expect("room for nothing");
            let left = &fit.template;
            let weight: u64 = left.transactions.iter().map(|transaction| transaction.weight).sum();
            let sigops: u64 = left.transactions.iter().map(|transaction| transaction.sigops).sum();
            prop_assert!(weight <= weight_room && sigops <= sigop_room);
            prop_assert_eq!(left.coinbase_value, 312_500_000 + left.fees());
            prop_assert_eq!(left.fees() + fit.lost_fees, whole.fees());
            prop_assert_eq!(left.transactions.len() + fit.dropped, whole.transactions.len());
            let place_of = |wtxid: &Hash| whole.transactions.iter().position(|other| other.wtxid == *wtxid);
            for (place, transaction) in left.transactions.iter().enumerate() {
                let before = &whole.transactions[place_of(&transaction.wtxid).expect("it was there")];
                let names = |transaction: &TemplateTransaction, of: &BlockTemplate| -> Vec<Hash> {
                    transaction.depends.iter().map(|place| of.transactions[*place as usize].wtxid).collect()
                };
                prop_assert_eq!(names(transaction, left), names(before, &whole));
                prop_assert!(transaction.depends.iter().all(|earlier| (*earlier as usize) < place));
            }
        }
    }
}

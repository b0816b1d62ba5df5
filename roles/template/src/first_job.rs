//! The empty first template of a new tip: it claims the subsidy alone, and is there before the node has chosen
//! transactions.
//!
//! Only for a tip that our own node has validated, and only where the rules of the network let us know what the next
//! header must carry. Where they do not, there is none, and the node's own template is waited for.

use bitcoin::consensus::Params;
use bitcoin::{CompactTarget, Network};
use stratum::hash::Hash;
use stratum::{Now, TemplateId};

use crate::block_template::{BlockTemplate, witness_commitment};

/// Blocks between two changes of the network's target.
const RETARGET_INTERVAL: u32 = 2016;

/// Blocks between two halvings of the subsidy; regtest has its own.
const HALVING_INTERVAL: u32 = 210_000;

/// The same on regtest.
const HALVING_INTERVAL_REGTEST: u32 = 150;

/// The subsidy of the first blocks; satoshis.
const FIRST_SUBSIDY: u64 = 50 * 100_000_000;

/// How far the first time of a period may lie before the last one of the period before (BIP 94; templates of Bitcoin
/// Core keep to it on every network).
const MAX_TIMEWARP: u32 = 600;

/// A block that our own node has validated and holds for the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidatedTip {
    /// Its hash.
    pub hash: Hash,
    /// Its height.
    pub height: u32,
    /// Its compact target.
    pub nbits: u32,
    /// Its time; unix seconds.
    pub time: u32,
    /// The median time of it and the ten blocks before; unix seconds.
    pub median_time: u32,
    /// The time of the first block of its period of 2016. Needed only where the next block begins another.
    pub period_start: Option<u32>,
}

/// What a block of this height may create; satoshis.
pub fn subsidy(height: u32, network: Network) -> u64 {
    let interval = if network == Network::Regtest { HALVING_INTERVAL_REGTEST } else { HALVING_INTERVAL };
    FIRST_SUBSIDY.checked_shr(height / interval).unwrap_or(0)
}

impl ValidatedTip {
    /// The compact target of the next block; `None` where it depends on more than what is known here: at a change
    /// without the period's start, and on test networks that let blocks be easy after a pause.
    pub fn next_nbits(&self, network: Network) -> Option<u32> {
        let params = match network {
            Network::Bitcoin => Params::BITCOIN,
            Network::Signet => Params::SIGNET,
            Network::Regtest => return Some(self.nbits),
            _ => return None,
        };
        if !(self.height + 1).is_multiple_of(RETARGET_INTERVAL) {
            return Some(self.nbits);
        }
        let timespan = u64::from(self.time.saturating_sub(self.period_start?));
        let last = CompactTarget::from_consensus(self.nbits);
        Some(CompactTarget::from_next_work_required(last, timespan, &params).to_consensus())
    }

    /// The template of the next block without transactions. `previous` is the last template of the node for the tip
    /// before: its version, limits and kind are taken over. `None` where the next target is not known, and where
    /// `previous` is no template for the block that is now the tip.
    pub fn first_template(
        &self,
        id: TemplateId,
        previous: &BlockTemplate,
        network: Network,
        now: Now,
    ) -> Option<BlockTemplate> {
        let follows = previous.height == self.height && previous.previous_hash != self.hash;
        let nbits = self.next_nbits(network).filter(|_| follows)?;
        let height = self.height + 1;
        let mut min_ntime = self.median_time.saturating_add(1);
        if height.is_multiple_of(RETARGET_INTERVAL) {
            min_ntime = min_ntime.max(self.time.saturating_sub(MAX_TIMEWARP));
        }
        Some(BlockTemplate {
            id,
            height,
            previous_hash: self.hash,
            version: previous.version,
            nbits,
            min_ntime,
            current_time: now.unix_seconds().max(min_ntime),
            coinbase_value: subsidy(height, network),
            witness_commitment: previous.witness_commitment.as_ref().map(|_| witness_commitment(&[])),
            transactions: Vec::new(),
            merkle_path: Vec::new(),
            weight_limit: previous.weight_limit,
            sigop_limit: previous.sigop_limit,
            long_poll_id: None,
            received: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_template::tests::{small_template, with_transactions};
    use std::time::Duration;

    const NOW: Now = Now { monotonic: Duration::from_secs(5), utc: Duration::from_secs(1_700_000_000) };

    fn tip(height: u32) -> ValidatedTip {
        ValidatedTip {
            hash: [8; 32],
            height,
            nbits: 0x1705_3894,
            time: 1_699_999_900,
            median_time: 1_699_999_000,
            period_start: None,
        }
    }

    #[test]
    fn subsidies_halve() {
        let mainnet = |height| subsidy(height, Network::Bitcoin);
        assert_eq!(
            [mainnet(0), mainnet(209_999), mainnet(210_000)],
            [5_000_000_000, 5_000_000_000, 2_500_000_000]
        );
        assert_eq!([mainnet(840_000), mainnet(6_930_000), mainnet(u32::MAX)], [312_500_000, 0, 0]);
        assert_eq!(subsidy(300, Network::Regtest), 1_250_000_000);
    }

    #[test]
    fn the_first_template_claims_the_subsidy_alone() {
        let previous = with_transactions(small_template(899_999), 3);
        let first = tip(899_999).first_template(TemplateId(7), &previous, Network::Bitcoin, NOW);
        let first = first.expect("no change of the target");
        assert_eq!((first.height, first.coinbase_value), (900_000, 312_500_000));
        assert_eq!((first.previous_hash, first.nbits), ([8; 32], 0x1705_3894));
        assert_eq!((first.min_ntime, first.current_time), (1_699_999_001, 1_700_000_000));
        assert_eq!(first.witness_commitment, Some(witness_commitment(&[])));
        assert!(first.transactions.is_empty() && first.merkle_path.is_empty());
    }

    /// The tip must be the block that was being looked for: after a reorganisation of more than one block, or when
    /// templates were missed, nobody knows whether the version still holds.
    #[test]
    fn a_tip_that_does_not_follow_has_none() {
        for height in [899_998, 900_000] {
            let previous = small_template(height);
            assert_eq!(tip(899_999).first_template(TemplateId(7), &previous, Network::Bitcoin, NOW), None);
        }
    }

    #[test]
    fn the_target_follows_the_time_that_a_period_took() {
        let last = ValidatedTip {
            nbits: 0x1703_4219,
            time: 1_716_424_013,
            period_start: Some(1_715_252_414),
            ..tip(844_703)
        };
        let next = last.next_nbits(Network::Bitcoin).expect("the period's start is known");
        let ratio = |nbits: u32| {
            let target = stratum::Target::from_compact(nbits);
            target.difficulty().0
        };
        // 1,171,599 seconds instead of 1,209,600: blocks came too fast.
        let expected = 1_209_600.0 / 1_171_599.0;
        assert!((ratio(next) / ratio(last.nbits) - expected).abs() < 1e-4);
        assert_eq!(ValidatedTip { period_start: None, ..last }.next_nbits(Network::Bitcoin), None);
        assert_eq!(
            ValidatedTip { period_start: None, ..last }.next_nbits(Network::Regtest),
            Some(last.nbits)
        );
        assert_eq!(tip(5).next_nbits(Network::Testnet), None, "blocks may be easy there");
    }

    #[test]
    fn a_new_period_begins_no_earlier_than_it_may() {
        let last =
            ValidatedTip { median_time: 1_600_000_000, period_start: Some(1_698_800_000), ..tip(2015) };
        let first = last.first_template(TemplateId(7), &small_template(2015), Network::Bitcoin, NOW);
        assert_eq!(first.map(|first| first.min_ntime), Some(1_699_999_300));
    }
}

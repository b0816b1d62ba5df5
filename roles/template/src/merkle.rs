//! The merkle path of the coinbase: what a miner needs to turn any coinbase of a template into a merkle root.
//!
//! This module never sees a coinbase; `stratum::hash::merkle_root` folds one over the path.

use stratum::hash::{Hash, merkle_node};

/// The siblings of the first leaf on its way to the merkle root, lowest first.
///
/// `others` are the leaves after the first: the txids of a template's transactions without the coinbase. A
/// level with an odd number of nodes repeats its last one, as Bitcoin's merkle trees do.
pub fn merkle_path(others: &[Hash]) -> Vec<Hash> {
    let mut path = Vec::new();
    // The nodes of one level without its first node, which is unknown until there is a coinbase.
    let mut level = others.to_vec();
    while let Some((sibling, rest)) = level.split_first() {
        path.push(*sibling);
        level = rest
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => merkle_node(left, right),
                [last, ..] => merkle_node(last, last),
                [] => unreachable!("chunks are never empty"),
            })
            .collect();
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash as _;
    use stratum::hash::{merkle_root, sha256d};

    #[test]
    fn paths_lead_to_the_root_that_bitcoin_computes() {
        for others in 0..=20u8 {
            let leaves: Vec<Hash> = (0..=others).map(|leaf| sha256d(&[leaf])).collect();
            let expected = bitcoin::merkle_tree::calculate_root(
                leaves.iter().map(|leaf| bitcoin::hashes::sha256d::Hash::from_byte_array(*leaf)),
            )
            .expect("there is a leaf");
            let path = merkle_path(&leaves[1..]);
            assert_eq!(merkle_root(leaves[0], &path), expected.to_byte_array(), "{others} transactions");
        }
    }

    #[test]
    fn a_block_without_transactions_has_an_empty_path() {
        assert!(merkle_path(&[]).is_empty());
    }
}

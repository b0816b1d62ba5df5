//! A Merkle tree whose every node carries the work of what is below it, and the keys of its first and its last leaf.
//!
//! The shape is that of RFC 6962 (2.1): the left child of `n` leaves has the greatest power of two below `n`. A leaf is
//! SHA-256 of 0x00 and its bytes; an inner node is SHA-256 of 0x01 and, for the left child and then for the right, its
//! hash (32 bytes), its credited work and its work at the upstream's target (16 bytes each, big-endian), and its first
//! and its last key (12 bytes each).
//!
//! The works of an inner node are the sums of its children's. So whoever recomputes a path to the root knows that the work
//! of the leaf is in the root's, and which part of all work it is: what is claimed without leaves that show it is found in
//! proportion. Leaves are in the order of their keys, which each path shows too: of leaves that share a key, only one
//! can pretend to be alone, so that what is counted twice is found in proportion as well.
//!
//! This module keeps no leaves: a tree takes room for its height, and for the proofs that were asked for.

use std::ops::Range;

use sha2::{Digest, Sha256};
use stratum::Work;

use crate::record::{ShareRecord, Verdict};

/// Before the bytes of a leaf (RFC 6962, 2.1).
const LEAF: u8 = 0;

/// Before the children of an inner node (RFC 6962, 2.1).
const INNER: u8 = 1;

/// Works add up to more than any number here can hold: nobody has hashed that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the works add up to more than 2^128 hashes")]
pub struct TooMuchWork;

/// Both columns of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Works {
    /// What devices were credited, in expected hashes.
    pub credited: Work,
    /// What the accepted shares were worth at the upstream's target, in expected hashes.
    pub upstream: Work,
}

impl Works {
    /// The works of one share: none when it was refused.
    pub fn of(share: &ShareRecord) -> Self {
        match share.verdict {
            Verdict::Rejected(_) => Works::default(),
            Verdict::Accepted | Verdict::BlockFound => {
                Works { credited: share.submitted, upstream: share.upstream_work }
            }
        }
    }

    /// The sums of two.
    pub fn plus(self, other: Works) -> Result<Works, TooMuchWork> {
        let sum = |one: Work, other: Work| one.0.checked_add(other.0).map(Work).ok_or(TooMuchWork);
        Ok(Works {
            credited: sum(self.credited, other.credited)?,
            upstream: sum(self.upstream, other.upstream)?,
        })
    }
}

/// What the leaves are ordered by: nonce, time and version of the header, each big-endian. The same header has the same key,
/// whatever else is said of it; other headers hardly ever do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub [u8; 12]);

impl Key {
    /// The key of a share.
    pub fn of(share: &ShareRecord) -> Self {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&share.nonce.to_be_bytes());
        key[4..8].copy_from_slice(&share.ntime.to_be_bytes());
        key[8..].copy_from_slice(&share.version.to_be_bytes());
        Key(key)
    }
}

/// A node: a leaf, an inner node or the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// See the module's documentation.
    pub hash: [u8; 32],
    /// The work of all leaves below.
    pub works: Works,
    /// The key of the first leaf below.
    pub first: Key,
    /// The key of the last one.
    pub last: Key,
}

impl Node {
    /// The root over no leaves: SHA-256 of nothing (RFC 6962, 2.1).
    pub fn empty() -> Self {
        let (first, last) = (Key::default(), Key::default());
        Node { hash: Sha256::digest([]).into(), works: Works::default(), first, last }
    }

    /// A leaf.
    pub fn leaf(bytes: &[u8], works: Works, key: Key) -> Self {
        let mut hash = Sha256::new();
        hash.update([LEAF]);
        hash.update(bytes);
        Node { hash: hash.finalize().into(), works, first: key, last: key }
    }

    /// The parent of two nodes.
    pub fn parent(left: &Node, right: &Node) -> Result<Self, TooMuchWork> {
        let mut hash = Sha256::new();
        hash.update([INNER]);
        for child in [left, right] {
            hash.update(child.hash);
            hash.update(child.works.credited.0.to_be_bytes());
            hash.update(child.works.upstream.0.to_be_bytes());
            hash.update(child.first.0);
            hash.update(child.last.0);
        }
        let works = left.works.plus(right.works)?;
        Ok(Node { hash: hash.finalize().into(), works, first: left.first, last: right.last })
    }
}

/// What leads from a leaf to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The place of the leaf, from 0.
    pub index: u64,
    /// The siblings on the way, lowest first.
    pub path: Vec<Node>,
}

/// Where a proof leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proved {
    /// The root, with the work of all leaves.
    pub root: Node,
    /// The work of all leaves before this one.
    pub before: Works,
    /// Whether no leaf before has its key.
    pub is_first_of_key: bool,
    /// Whether no leaf after it has its key.
    pub is_last_of_key: bool,
}

impl Proof {
    /// Walks from `leaf` to the root of a tree of `count` leaves (RFC 9162, 2.1.3.2). `None` when the path has not the
    /// length of one at this place, when its keys are not in order, or when its works are too great to be true.
    pub fn walk(&self, leaf: Node, count: u64) -> Option<Proved> {
        let (mut place, mut last) = (self.index, count.checked_sub(1)?);
        if place > last {
            return None;
        }
        let mut proved =
            Proved { root: leaf, before: Works::default(), is_first_of_key: true, is_last_of_key: true };
        for sibling in &self.path {
            if last == 0 || sibling.first > sibling.last {
                return None;
            }
            if place & 1 == 1 || place == last {
                proved.root = in_order(sibling, &proved.root)?;
                proved.before = proved.before.plus(sibling.works).ok()?;
                proved.is_first_of_key &= sibling.last < leaf.first;
                while place & 1 == 0 && place != 0 {
                    (place, last) = (place >> 1, last >> 1);
                }
            } else {
                proved.root = in_order(&proved.root, sibling)?;
                proved.is_last_of_key &= sibling.first > leaf.last;
            }
            (place, last) = (place >> 1, last >> 1);
        }
        (last == 0).then_some(proved)
    }
}

/// The parent of two nodes whose keys are in order.
fn in_order(left: &Node, right: &Node) -> Option<Node> {
    if left.last > right.first { None } else { Node::parent(left, right).ok() }
}

/// A tree that grows leaf by leaf.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Whole subtrees, the largest first: one for each bit of the count.
    peaks: Vec<Peak>,
    count: u64,
    proofs: Vec<Proof>,
}

/// A whole subtree.
#[derive(Clone, Debug)]
struct Peak {
    node: Node,
    height: u32,
    /// Which of the proofs are of leaves in it: those of a subtree are neighbours.
    proofs: Range<usize>,
}

impl Tree {
    /// How many leaves it has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The work of the leaves so far.
    pub fn works(&self) -> Result<Works, TooMuchWork> {
        self.peaks.iter().try_fold(Works::default(), |sum, peak| sum.plus(peak.node.works))
    }

    /// Adds a leaf; `is_chosen` asks for its proof. After an error the tree is of no use.
    pub fn push(&mut self, leaf: Node, is_chosen: bool) -> Result<(), TooMuchWork> {
        let first = self.proofs.len();
        if is_chosen {
            self.proofs.push(Proof { index: self.count, path: Vec::new() });
        }
        self.count += 1;
        let mut peak = Peak { node: leaf, height: 0, proofs: first..self.proofs.len() };
        while let Some(left) = self.peaks.pop_if(|left| left.height == peak.height) {
            peak = self.join(left, peak)?;
        }
        self.peaks.push(peak);
        Ok(())
    }

    /// The root, and the proofs that were asked for, in the order of their leaves.
    pub fn finish(mut self) -> Result<(Node, Vec<Proof>), TooMuchWork> {
        let Some(mut right) = self.peaks.pop() else { return Ok((Node::empty(), Vec::new())) };
        while let Some(left) = self.peaks.pop() {
            right = self.join(left, right)?;
        }
        Ok((right.node, self.proofs))
    }

    fn join(&mut self, left: Peak, right: Peak) -> Result<Peak, TooMuchWork> {
        let node = Node::parent(&left.node, &right.node)?;
        self.proofs[left.proofs.clone()].iter_mut().for_each(|proof| proof.path.push(right.node));
        self.proofs[right.proofs.clone()].iter_mut().for_each(|proof| proof.path.push(left.node));
        Ok(Peak { node, height: left.height + 1, proofs: left.proofs.start..right.proofs.end })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn works(credited: u128, upstream: u128) -> Works {
        Works { credited: Work(credited), upstream: Work(upstream) }
    }

    fn leaf(number: u64) -> Node {
        // Two leaves of each key.
        let mut key = [0; 12];
        key[4..].copy_from_slice(&(number / 2).to_be_bytes());
        Node::leaf(&number.to_le_bytes(), works(u128::from(number) + 1, u128::from(number % 3)), Key(key))
    }

    fn tree(count: u64, is_chosen: impl Fn(u64) -> bool) -> (Node, Vec<Proof>) {
        let mut tree = Tree::default();
        (0..count).for_each(|number| tree.push(leaf(number), is_chosen(number)).expect("it is little work"));
        assert_eq!(tree.count(), count);
        let works = tree.works().expect("it is little work");
        let (root, proofs) = tree.finish().expect("it is little work");
        assert_eq!(root.works, works);
        (root, proofs)
    }

    /// As RFC 6962 defines it.
    fn defined(leaves: &[Node]) -> Node {
        match leaves {
            [] => Node::empty(),
            [leaf] => *leaf,
            leaves => {
                let half = leaves.len().next_power_of_two() / 2;
                Node::parent(&defined(&leaves[..half]), &defined(&leaves[half..])).expect("it is little work")
            }
        }
    }

    /// Computed apart, with another program.
    #[test]
    fn known_answers() {
        let hash = |count| hex::encode(tree(count, |_| false).0.hash);
        assert_eq!(hash(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hash(1), "3e7077fd2f66d689e0cee6a7cf5b37bf2dca7c979af356d0a31cbc5c85605c7d");
        assert_eq!(hash(2), "58894ba536e75049cb83aea36bf682ad124b5093d9361981265ab77791de5bac");
        assert_eq!(hash(7), "3f1920e8cb2504f6b9edb0fdcd187150a4bd3e02db215c3d2845fd9b3c7ade55");
    }

    #[test]
    fn every_size_has_the_root_of_the_definition() {
        for count in 0..70 {
            let leaves: Vec<Node> = (0..count).map(leaf).collect();
            assert_eq!(tree(count, |_| false).0, defined(&leaves), "{count} leaves");
        }
    }

    #[test]
    fn every_leaf_of_every_size_has_its_proof_and_no_other() {
        for count in 1..40 {
            let (root, proofs) = tree(count, |_| true);
            assert_eq!(proofs.len() as u64, count);
            for (number, proof) in (0..).zip(&proofs) {
                let proved = proof.walk(leaf(number), count).expect("the right length");
                assert_eq!(proved.root, root);
                let sum = |column: fn(Works) -> Work| (0..number).map(|one| column(leaf(one).works)).sum();
                assert_eq!(
                    proved.before,
                    Works { credited: sum(|w| w.credited), upstream: sum(|w| w.upstream) }
                );
                assert_eq!(proved.is_first_of_key, number % 2 == 0);
                assert_eq!(proved.is_last_of_key, number % 2 == 1 || number + 1 == count);
                for other in (0..count).filter(|other| *other != number) {
                    let moved = Proof { index: other, path: proof.path.clone() };
                    let proved = moved.walk(leaf(number), count);
                    assert!(
                        proved.is_none_or(|proved| proved.root != root),
                        "{number} at {other} of {count}"
                    );
                }
                assert_eq!(proof.walk(leaf(number), 0), None);
                assert_eq!(Proof { index: count, path: Vec::new() }.walk(leaf(number), count), None);
            }
        }
    }

    #[test]
    fn work_that_overflows_is_no_proof() {
        let greatest = Node::leaf(b"", works(u128::MAX, 0), Key::default());
        assert_eq!(Node::parent(&greatest, &leaf(0)), Err(TooMuchWork));
        assert_eq!(Proof { index: 1, path: vec![greatest] }.walk(leaf(0), 2), None);
        let mut tree = Tree::default();
        tree.push(greatest, false).expect("alone");
        assert_eq!(tree.push(leaf(0), false), Err(TooMuchWork));
    }

    #[test]
    fn leaves_out_of_order_have_no_proof() {
        let mut tree = Tree::default();
        for number in [2, 0, 4, 6] {
            tree.push(leaf(number), true).expect("it is little work");
        }
        let (_, proofs) = tree.finish().expect("it is little work");
        let walk = |place: usize, number| proofs[place].walk(leaf(number), 4).is_some();
        assert_eq!((walk(0, 2), walk(1, 0), walk(2, 4), walk(3, 6)), (false, false, false, false));
    }

    proptest! {
        #[test]
        fn a_changed_proof_leads_elsewhere(count in 2_u64..500, place: u64, sibling: usize, change in 0_u32..5, bit in 0_u32..100) {
            let place = place % count;
            let (root, proofs) = tree(count, |number| number == place);
            let mut proof = proofs[0].clone();
            prop_assert_eq!(proof.walk(leaf(place), count).map(|proved| proved.root), Some(root));
            let length = proof.path.len();
            let node = &mut proof.path[sibling % length];
            match change {
                0 => node.hash[bit as usize % 32] ^= 1,
                1 => node.works.credited.0 ^= 1 << bit,
                2 => node.works.upstream.0 ^= 1 << bit,
                3 => node.first.0[bit as usize % 12] ^= 1,
                _ => node.last.0[bit as usize % 12] ^= 1,
            }
            prop_assert_ne!(proof.walk(leaf(place), count).map(|proved| proved.root), Some(root));
        }
    }
}

//! Statements of work: what a device, a group or an account did in a period, signed, and with a sample of shares that
//! anybody can hash again.
//!
//! A statement binds all accepted shares of its subject by a Merkle root whose nodes carry work ([`crate::merkle`]), and the
//! refused ones by another. It names the hash of the statement before it, and says the sums. Which shares are shown
//! follows from the statement's own hash ([`draw`]): in proportion to work, once for each column of work. What a check
//! shows and what it does not is said where it is done ([`check`]).
//!
//! **The bytes.** The file is JSON. `statement` and `sample` are each taken as JSON without white space, with their fields
//! in the order that they have here (`jq -cj .statement FILE`). The statement's hash is SHA-256 of a tag and those bytes
//! of `statement`. Signed (BIP 340) is SHA-256 of another tag, the statement's hash, and SHA-256 of those bytes of `sample`.
//! So another sample of the same statement leaves its hash, and with it the chain, as it was.
//!
//! This module never opens a file and never makes up randomness. Whatever it reads may come from a stranger.

pub mod check;
pub mod collect;
pub mod draw;
pub mod forms;
pub mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stratum::JobNumber;
use stratum::sv2::{AuthorityPublicKey, AuthoritySecretKey};

use self::collect::Picked;
use self::forms::{Count, Hashes, Hex, HexBytes};
use self::sums::StatedSums;
use crate::codec::write_share;
use crate::entry::JobEntry;
use crate::merkle::{Key, Node, Works};

/// What the file calls itself; another number is another form.
pub const FORMAT: &str = "checkweigh statement 2";

/// The longest file that is read. The largest sample of ordinary jobs is a quarter of it.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Points that are drawn from each column when nobody says otherwise: a tenth of the work cannot be made up without being
/// seen in 999 of 1,000 cases.
pub const DEFAULT_DRAWS: u32 = 64;

/// Points that are drawn from each column at most: beyond, the whole ledger is the better proof.
pub const MAX_DRAWS: u32 = 1000;

/// The longest name or challenge, in bytes.
pub const MAX_TEXT: usize = crate::entry::MAX_TEXT;

/// What goes into a statement's hash first.
const HASH_TAG: &[u8] = b"checkweigh statement 2 hash";

/// What goes first into the hash that is signed.
const SIGNED_TAG: &[u8] = b"checkweigh statement 2 signed";

/// A statement, a sample of its shares, and the signature over both: all that its file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStatement {
    /// [`FORMAT`].
    pub format: String,
    /// What is stated.
    pub statement: Statement,
    /// Shares that were drawn.
    pub sample: Sample,
    /// Of `statement.signed_by`, over both: see the module's documentation.
    pub signature: Hex<64>,
}

/// Whose work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatedSubject {
    /// One device, by its name.
    Device(String),
    /// All devices that are in a group when the statement is made.
    Group(String),
    /// All shares of jobs of upstreams with this account.
    Account(String),
}

/// A batch of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedBatch {
    /// Its number.
    pub number: Count,
    /// Its hash, which covers all batches before it.
    pub hash: Hex<32>,
}

/// The Merkle root over accepted shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedRoot {
    /// How many records it is over: all accepted shares of the subject in the period, in the order of their keys.
    pub records: Count,
    /// Its hash.
    pub hash: Hex<32>,
    /// What all of them were credited, in expected hashes.
    pub accepted_hashes: Hashes,
    /// What all of them were worth at the upstream's target.
    pub upstream_hashes: Hashes,
}

/// The Merkle root over refused shares. Nothing of them is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedRoot {
    /// How many records it is over, in the order of the stream.
    pub records: Count,
    /// Its hash.
    pub hash: Hex<32>,
}

/// What is stated. Times are unix microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The ledger that it is made of.
    pub ledger: Hex<16>,
    /// Whose work.
    pub subject: StatedSubject,
    /// How many devices or upstreams that is.
    pub members: Count,
    /// Its place in the chain of statements of this subject, from 1.
    pub number: Count,
    /// The hash of the statement before; none in the first.
    pub previous: Option<Hex<32>>,
    /// Shares that were judged at this time or later.
    pub from_unix_us: Count,
    /// And before this one.
    pub to_unix_us: Count,
    /// Their answers count when they came before this time.
    pub answers_until_unix_us: Count,
    /// The first batch of the ledger with entries of the period.
    pub first_batch: Option<StatedBatch>,
    /// The last one.
    pub last_batch: Option<StatedBatch>,
    /// Batches between them that were lost with a disk: what was in them is in no sum here.
    pub lost_batches: Count,
    /// What binds the accepted shares.
    pub root: StatedRoot,
    /// What binds the refused ones.
    pub refused_root: RefusedRoot,
    /// The sums over the records that the roots bind.
    pub sums: StatedSums,
    /// Shares that were counted when there was no room for their records: they are on top of `sums`, no root binds them,
    /// and what was answered to them is not known.
    pub without_detail: StatedSums,
    /// The key of whoever signed, in the form of pool URLs (SV2 4.7).
    pub signed_by: String,
}

impl Statement {
    /// Its hash, which the next statement names.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(HASH_TAG);
        hash.update(canonical(self));
        hash.finalize().into()
    }

    /// The works of the root.
    pub fn works(&self) -> Works {
        Works { credited: self.root.accepted_hashes.0, upstream: self.root.upstream_hashes.0 }
    }
}

impl StatedRoot {
    /// The root over so many records.
    pub fn of(records: u64, root: &Node) -> Self {
        StatedRoot {
            records: Count(records),
            hash: Hex(root.hash),
            accepted_hashes: Hashes(root.works.credited),
            upstream_hashes: Hashes(root.works.upstream),
        }
    }
}

/// The shares that were drawn, and what they are hashed from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What somebody else said, so that the signer could not know the sample before; empty when nobody did.
    pub challenge: String,
    /// How many points were drawn from each column of work. A share that is drawn twice is here once.
    pub draws: u32,
    /// Those that were drawn, and those that have the key of one, so that it is seen that they are others. In the order of
    /// the tree.
    pub shares: Vec<SampledShare>,
    /// Their jobs.
    pub jobs: Vec<SampledJob>,
}

/// A share that was drawn. What is hashed of it is `version`, `ntime`, `nonce` and `rollable`, with its job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampledShare {
    /// The place of its leaf in the tree, from 0.
    pub index: Count,
    /// What the device was credited, in expected hashes.
    pub accepted_hashes: Hashes,
    /// What it was worth at the upstream's target.
    pub upstream_hashes: Hashes,
    /// The place of its job in `jobs`, from 0; none when the ledger does not have it any more.
    pub job: Option<u32>,
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The coinbase between the job's prefix and suffix.
    pub rollable: HexBytes,
    /// The record as the ledger has it: the bytes of its leaf. All of the above is in it.
    pub record: HexBytes,
    /// The siblings from its leaf to the root, lowest first.
    pub path: Vec<PathNode>,
}

/// A node beside the way to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathNode {
    /// Its hash.
    pub hash: Hex<32>,
    /// What all shares below were credited.
    pub accepted_hashes: Hashes,
    /// What they were worth at the upstream's target.
    pub upstream_hashes: Hashes,
    /// The key of the first of them.
    pub first: Hex<12>,
    /// The key of the last of them.
    pub last: Hex<12>,
}

/// What the shares of one job have in common. Hashes are in the byte order in which they are hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampledJob {
    /// The block that it builds on.
    pub previous_hash: Hex<32>,
    /// The compact network target.
    pub nbits: u32,
    /// The coinbase without witness data, up to the share's `rollable`.
    pub coinbase_prefix: HexBytes,
    /// And after it.
    pub coinbase_suffix: HexBytes,
    /// Siblings of the coinbase on the way to the block's merkle root, lowest first.
    pub merkle_path: Vec<Hex<32>>,
}

impl SampledJob {
    fn of(job: &JobEntry) -> Self {
        SampledJob {
            previous_hash: Hex(job.previous_hash),
            nbits: job.nbits,
            coinbase_prefix: HexBytes(job.coinbase_prefix.clone()),
            coinbase_suffix: HexBytes(job.coinbase_suffix.clone()),
            merkle_path: job.merkle_path.iter().copied().map(Hex).collect(),
        }
    }
}

impl Sample {
    /// The sample of these shares. Jobs that are not there are said to be missing.
    pub fn of(
        challenge: String,
        draws: u32,
        picked: Vec<Picked>,
        jobs: &BTreeMap<JobNumber, JobEntry>,
    ) -> Self {
        let mut sample =
            Sample { challenge, draws, shares: Vec::with_capacity(picked.len()), jobs: Vec::new() };
        let mut places = BTreeMap::new();
        for Picked { share, proof } in picked {
            let job = share.job.and_then(|number| jobs.get(&number)).map(|job| {
                *places.entry(job.number).or_insert_with(|| {
                    sample.jobs.push(SampledJob::of(job));
                    sample.jobs.len() as u32 - 1
                })
            });
            let mut record = Vec::new();
            write_share(&mut record, &share);
            sample.shares.push(SampledShare {
                index: Count(proof.index),
                accepted_hashes: Hashes(share.credited()),
                upstream_hashes: Hashes(share.upstream_work),
                job,
                version: share.version,
                ntime: share.ntime,
                nonce: share.nonce,
                rollable: HexBytes(share.rollable.to_vec()),
                record: HexBytes(record),
                path: proof.path.iter().map(PathNode::of).collect(),
            });
        }
        sample
    }
}

impl PathNode {
    fn of(node: &Node) -> Self {
        let Works { credited, upstream } = node.works;
        PathNode {
            hash: Hex(node.hash),
            accepted_hashes: Hashes(credited),
            upstream_hashes: Hashes(upstream),
            first: Hex(node.first.0),
            last: Hex(node.last.0),
        }
    }

    fn node(&self) -> Node {
        let works = Works { credited: self.accepted_hashes.0, upstream: self.upstream_hashes.0 };
        Node { hash: self.hash.0, works, first: Key(self.first.0), last: Key(self.last.0) }
    }
}

/// Why a file is no statement.
#[derive(Debug, thiserror::Error)]
pub enum NoStatement {
    /// It is not JSON, or not of this form.
    #[error("it is no statement of work: {0}")]
    Form(#[from] serde_json::Error),
    /// It is of another form.
    #[error("it calls itself {0:?}, and only {FORMAT:?} is known here: a later version may know it")]
    Format(String),
    /// It is too long.
    #[error("it has {0} bytes; a statement has at most {MAX_FILE_BYTES}")]
    Length(u64),
}

impl SignedStatement {
    /// Signs. `aux` should be random bytes (BIP 340). `statement.signed_by` becomes the key's public half, so it must have
    /// been that when the sample was drawn.
    pub fn sign(statement: Statement, sample: Sample, key: &AuthoritySecretKey, aux: &[u8; 32]) -> Self {
        debug_assert_eq!(
            statement.signed_by,
            key.public().to_string(),
            "the sample follows from the signer too"
        );
        let signature = Hex(key.sign(&digest(&statement, &sample), aux));
        SignedStatement { format: FORMAT.to_owned(), statement, sample, signature }
    }

    /// Reads a file. Nothing is checked but its form.
    pub fn read(bytes: &[u8]) -> Result<Self, NoStatement> {
        /// All that is looked at first.
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(NoStatement::Length(bytes.len() as u64));
        }
        let head: Head = serde_json::from_slice(bytes)?;
        if head.format != FORMAT {
            return Err(NoStatement::Format(head.format.chars().take(MAX_TEXT).collect()));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("it is made of what JSON has");
        text.push('\n');
        text
    }

    /// Whether it is signed by this key, and says so.
    pub fn is_signed_by(&self, key: &AuthorityPublicKey) -> bool {
        self.statement.signed_by == key.to_string()
            && key.has_signed(&digest(&self.statement, &self.sample), &self.signature.0)
    }
}

/// The hash that is signed.
fn digest(statement: &Statement, sample: &Sample) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(SIGNED_TAG);
    hash.update(statement.hash());
    hash.update(Sha256::digest(canonical(sample)));
    hash.finalize().into()
}

/// JSON without white space, in the order of the fields.
fn canonical(part: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(part).expect("it is made of what JSON has")
}

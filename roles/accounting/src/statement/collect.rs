//! From the entries of a period to the sums, the root and the shares that were drawn.
//!
//! [`Counting`] walks over the entries and gives the leaves of accepted shares, which the caller puts into the order of
//! their keys; [`Picking`] makes the tree of them, and the proofs of those that were drawn; [`Finding`] walks over the
//! entries again and finds their records. Nothing here keeps records but those that were drawn.

use std::collections::{BTreeMap, BTreeSet};

use stratum::{DeviceId, UpstreamId, Work};

use super::draw::Draws;
use crate::codec::write_share;
use crate::entry::{Entry, EventKind, Gap, microseconds};
use crate::merkle::{Key, Node, Proof, TooMuchWork, Tree, Works};
use crate::record::{
    DropReason, Fate, HeldRelease, HoldNumber, LossReason, ReleaseFate, ShareRecord, UpstreamAnswer,
    UpstreamVerdict, Verdict,
};
use crate::sums::{AnswerSums, ShareSums};
use crate::waiting::{WaitingShares, part_of};

/// Shares with one key that are all shown when one of them was drawn. Two hardly ever have one key: more than so many are a
/// sign that somebody counts the same share again and again, and then only what was drawn is shown.
pub const MAX_NEIGHBOURS: usize = 16;

/// Held shares that are known at a time: as many as upstreams let wait. Beyond, the one that is first in their order is
/// stated as never released.
const MAX_HELD: usize = 65_536;

/// Whose shares a statement is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Those of these devices.
    Devices(BTreeSet<DeviceId>),
    /// Those of jobs of these upstreams.
    Upstreams(BTreeSet<UpstreamId>),
}

/// From when to when, in unix microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Shares that were judged at this time or later.
    pub from_us: u64,
    /// And before this one.
    pub to_us: u64,
    /// Answers to them that came before this time.
    pub answers_until_us: u64,
}

impl Period {
    fn has_time(&self, us: u64) -> bool {
        (self.from_us..self.to_us).contains(&us)
    }

    /// Whether a share that was judged then is of the period.
    pub fn has(&self, share: &ShareRecord) -> bool {
        self.has_time(microseconds(share.judged.utc))
    }
}

/// Which shares a statement is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Whose.
    pub members: Members,
    /// From when to when.
    pub period: Period,
}

impl Scope {
    /// Whether a share is one of the statement's.
    pub fn has(&self, share: &ShareRecord) -> bool {
        let is_ours = match &self.members {
            Members::Devices(devices) => share.device.is_some_and(|device| devices.contains(&device)),
            Members::Upstreams(upstreams) => share.upstream.is_some_and(|id| upstreams.contains(&id)),
        };
        is_ours && self.period.has(share)
    }

    /// The sums of shares whose detail was lost, as far as they are ours.
    fn lost_in(&self, gap: &Gap) -> ShareSums {
        let mut lost = ShareSums::default();
        if !self.period.has_time(gap.to_us) {
            return lost;
        }
        match &self.members {
            Members::Devices(devices) => {
                let is_ours = |id: &Option<DeviceId>| id.is_some_and(|id| devices.contains(&id));
                let ours = gap.devices.iter().filter(|(id, _)| is_ours(id));
                ours.for_each(|(_, sums)| lost.add(&sums.shares));
            }
            Members::Upstreams(upstreams) => {
                let ours = gap.upstreams.iter().filter(|(id, _)| upstreams.contains(id));
                ours.for_each(|(_, sums)| lost.add(&sums.shares));
            }
        }
        lost
    }
}

/// The leaf of a share: its bytes are those of a payload with this one entry.
fn leaf(bytes: &mut Vec<u8>, share: &ShareRecord) -> Node {
    bytes.clear();
    write_share(bytes, share);
    Node::leaf(bytes, Works::of(share), Key::of(share))
}

/// The first walk over the entries.
#[derive(Debug)]
pub struct Counting {
    scope: Scope,
    /// Over refused shares, in the order of the stream.
    refused: Tree,
    counted: Counted,
    /// Forwarded shares of everybody, and whether each is one of this statement.
    waiting: WaitingShares<bool>,
    /// Held shares of everybody, and of those of this statement what each is worth; at most [`MAX_HELD`].
    held: BTreeMap<(UpstreamId, HoldNumber), Option<Work>>,
    /// The bytes of one record, kept for their room.
    bytes: Vec<u8>,
}

/// What the first walk found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// The shares whose records are there.
    pub shares: ShareSums,
    /// What became of the forwarded ones of them.
    pub answers: AnswerSums,
    /// Shares whose detail was lost: they are in no tree, nor in `shares`.
    pub without_detail: ShareSums,
}

impl Counting {
    /// Before the first entry.
    pub fn new(scope: Scope) -> Self {
        let (refused, counted) = (Tree::default(), Counted::default());
        let (waiting, held) = (WaitingShares::default(), BTreeMap::new());
        Counting { scope, refused, counted, waiting, held, bytes: Vec::new() }
    }

    /// Takes the next entry of the stream. Gives the leaf of an accepted share of the statement.
    pub fn apply(&mut self, entry: &Entry) -> Result<Option<Node>, TooMuchWork> {
        match entry {
            Entry::Share(share) => return self.apply_share(share),
            Entry::Release(release) => self.apply_release(release),
            Entry::Answer(answer) => self.apply_answer(answer),
            Entry::Gap(gap) => self.counted.without_detail.add(&self.scope.lost_in(gap)),
            Entry::Event(event) if event.kind == EventKind::Started => self.end_life(event.at_us),
            _ => {}
        }
        Ok(None)
    }

    /// The tree over the refused shares (how many, and its root), and all sums.
    pub fn finish(self) -> Result<(u64, Node, Counted), TooMuchWork> {
        let records = self.refused.count();
        let (root, _) = self.refused.finish()?;
        Ok((records, root, self.counted))
    }

    fn apply_share(&mut self, share: &ShareRecord) -> Result<Option<Node>, TooMuchWork> {
        let is_ours = self.scope.has(share);
        if share.fate == Fate::Forwarded {
            self.waiting.push(share, is_ours);
        }
        if let (Fate::Held(number), Some(upstream)) = (share.fate, share.upstream) {
            if self.held.len() >= MAX_HELD {
                self.held.pop_first();
            }
            self.held.insert((upstream, number), is_ours.then_some(share.upstream_work));
        }
        if !is_ours {
            return Ok(None);
        }
        self.counted.shares.add_share(share);
        if share.fate == Fate::Forwarded {
            self.counted.answers.add(&AnswerSums::of_forwarded(share.upstream_work));
        }
        let leaf = leaf(&mut self.bytes, share);
        if matches!(share.verdict, Verdict::Rejected(_)) {
            self.refused.push(leaf, false)?;
            return Ok(None);
        }
        Ok(Some(leaf))
    }

    fn apply_release(&mut self, release: &HeldRelease) {
        let is_in_time = microseconds(release.released.utc) < self.scope.period.answers_until_us;
        let held = self.held.remove(&(release.upstream, release.number)).flatten();
        let is_ours = held.is_some() && is_in_time;
        if is_ours {
            self.counted.shares.add_release(release);
            if matches!(release.fate, ReleaseFate::Forwarded(_)) {
                self.counted.answers.add(&AnswerSums::of_forwarded(release.work));
            }
        }
        self.waiting.push_released(release, is_ours);
    }

    fn apply_answer(&mut self, answer: &UpstreamAnswer) {
        let is_in_time = microseconds(answer.received.utc) < self.scope.period.answers_until_us;
        for share in self.waiting.answered(answer) {
            if share.of && is_in_time {
                self.counted.answers.add(&part_of(&answer.verdict, share.work));
            }
        }
    }

    /// The process that wrote the entries so far has ended: what waits will never be answered, and what is held
    /// never sent.
    fn end_life(&mut self, at_us: u64) {
        let is_in_time = at_us < self.scope.period.answers_until_us;
        for (_, share) in self.waiting.iter().filter(|(_, share)| share.of && is_in_time) {
            let (last, count, reason) = (share.number, 1, LossReason::ProcessEnded);
            let lost = UpstreamVerdict::Lost { last, count, reason, work: share.work };
            self.counted.answers.add(&part_of(&lost, share.work));
        }
        self.waiting.clear();
        let held = std::mem::take(&mut self.held).into_values().flatten();
        for work in held.filter(|_| is_in_time) {
            let fate = ReleaseFate::Dropped(DropReason::ProcessEnded);
            self.counted.shares.add_released(fate, 1, work, work);
        }
    }
}

/// The tree over accepted shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// How many leaves it has.
    pub records: u64,
    /// Its root.
    pub root: Node,
    /// The leaves that are shown, with their proofs.
    pub drawn: Vec<(Node, Proof)>,
}

/// Makes the tree of leaves in the order of their keys, and the proofs of those that were drawn.
#[derive(Debug)]
pub struct Picking {
    tree: Tree,
    /// What is left of them.
    draws: Draws,
    /// The work of the leaves so far.
    works: Works,
    /// Leaves with one key, and whether each was drawn: they go into the tree together, because where one was drawn all
    /// are shown.
    run: Vec<(Node, bool)>,
    leaves: Vec<Node>,
}

impl Picking {
    /// Before the first leaf. With draws of no points, only the root is made.
    pub fn new(draws: Draws) -> Self {
        let (tree, works) = (Tree::default(), Works::default());
        Picking { tree, draws, works, run: Vec::new(), leaves: Vec::new() }
    }

    /// Takes the next leaf.
    pub fn push(&mut self, leaf: Node) -> Result<(), TooMuchWork> {
        let is_other = self.run.first().is_some_and(|(first, _)| first.first != leaf.first);
        if is_other || self.run.len() > MAX_NEIGHBOURS {
            self.end_run()?;
        }
        self.works = self.works.plus(leaf.works)?;
        let is_drawn = self.draws.take_below(self.works);
        self.run.push((leaf, is_drawn));
        Ok(())
    }

    /// After the last leaf.
    pub fn finish(mut self) -> Result<Grown, TooMuchWork> {
        self.end_run()?;
        let records = self.tree.count();
        let (root, proofs) = self.tree.finish()?;
        Ok(Grown { records, root, drawn: self.leaves.into_iter().zip(proofs).collect() })
    }

    fn end_run(&mut self) -> Result<(), TooMuchWork> {
        let is_shown = self.run.len() <= MAX_NEIGHBOURS && self.run.iter().any(|(_, is_drawn)| *is_drawn);
        for (leaf, is_drawn) in self.run.drain(..) {
            let is_chosen = is_drawn || is_shown;
            if is_chosen {
                self.leaves.push(leaf);
            }
            self.tree.push(leaf, is_chosen)?;
        }
        Ok(())
    }
}

/// A share of the sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// What was written down of it.
    pub share: ShareRecord,
    /// From its leaf to the root.
    pub proof: Proof,
}

/// The second walk over the entries.
#[derive(Debug)]
pub struct Finding {
    scope: Scope,
    picked: Vec<(Node, Proof)>,
    keys: BTreeSet<Key>,
    found: BTreeMap<[u8; 32], ShareRecord>,
    bytes: Vec<u8>,
}

impl Finding {
    /// Before the first entry.
    pub fn new(scope: Scope, picked: Vec<(Node, Proof)>) -> Self {
        let keys = picked.iter().map(|(leaf, _)| leaf.first).collect();
        Finding { scope, picked, keys, found: BTreeMap::new(), bytes: Vec::new() }
    }

    /// Takes the next entry of the stream.
    pub fn apply(&mut self, entry: &Entry) {
        let Entry::Share(share) = entry else { return };
        if !self.keys.contains(&Key::of(share)) || !self.scope.has(share) {
            return;
        }
        let leaf = leaf(&mut self.bytes, share);
        if self.picked.iter().any(|(picked, _)| picked.hash == leaf.hash) {
            self.found.insert(leaf.hash, share.clone());
        }
    }

    /// The records that were picked; `None` when one of them is not there any more.
    pub fn finish(self) -> Option<Vec<Picked>> {
        let found = self.found;
        let picked = self.picked.into_iter();
        picked.map(|(leaf, proof)| Some(Picked { share: found.get(&leaf.hash)?.clone(), proof })).collect()
    }
}

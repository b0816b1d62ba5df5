//! From a `mining.notify` line to shares: the merkle root is made once for each miner and job, and then only nonces
//! are rolled.
//!
//! Lines are kept as they came until a miner wants to hash, because a thousand miners that are only told of a block
//! must not cost what a thousand parsed jobs cost.

use std::sync::Arc;

use stratum::hash::{Midstate, merkle_root};
use stratum::sv1::client::{Notify, ServerLine};
use stratum::{Difficulty, Target};

use crate::scan;

/// A `mining.notify` line as it came, which many miners may share.
#[derive(Clone, Debug)]
pub(super) struct JobLine(Arc<[u8]>);

/// A job that was read from its line, with the hash state after the first part of its coinbase.
#[derive(Debug)]
pub(super) struct ParsedJob {
    notify: Notify,
    coinbase: Midstate,
}

/// The lines that came last: behind a proxy with one channel for all, every miner gets the same.
#[derive(Debug, Default)]
pub(super) struct JobCache {
    line: Option<JobLine>,
    parsed: Option<(JobLine, Arc<ParsedJob>)>,
}

impl JobCache {
    /// Keeps a line; the very same memory when the last one was equal.
    pub(super) fn line(&mut self, line: &[u8]) -> JobLine {
        match &self.line {
            Some(last) if *last.0 == *line => last.clone(),
            _ => self.line.insert(JobLine(line.into())).clone(),
        }
    }

    /// Reads a line, unless it was the last one that was read.
    pub(super) fn parsed(&mut self, line: &JobLine) -> Option<Arc<ParsedJob>> {
        if let Some((known, parsed)) = &self.parsed
            && Arc::ptr_eq(&known.0, &line.0)
        {
            return Some(Arc::clone(parsed));
        }
        let Ok(ServerLine::Notify(notify)) = ServerLine::parse(&line.0) else { return None };
        let parsed = Arc::new(ParsedJob { coinbase: Midstate::of(&notify.coinb1), notify });
        self.parsed = Some((line.clone(), Arc::clone(&parsed)));
        Some(parsed)
    }
}

/// The target of a difficulty that a server advertised: that of the next harder power of two, so that nothing is
/// submitted that is too easy. A float that was meant to be a power of two counts as one.
pub(super) fn target_of(difficulty: f64) -> Target {
    let exponent = (Difficulty(difficulty).0.log2() - 1e-9).ceil() as i32;
    Target::from_difficulty_exponent(exponent)
}

/// What a miner needs to know to hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    pub(super) worker_name: &'a str,
    pub(super) extranonce1: &'a [u8],
    pub(super) extranonce2_size: usize,
    /// The version bits that were agreed on; submissions then carry rolled bits.
    pub(super) version_mask: Option<u32>,
    pub(super) target: Target,
}

/// A job that a miner hashes, for one value of its extranonce.
#[derive(Debug)]
pub(super) struct Grind {
    /// After the first 64 bytes of the header.
    midstate: Midstate,
    /// The header's last bytes before the nonce.
    tail: [u8; 12],
    next_nonce: u32,
    target: Target,
    /// The rolled bytes, of which all but the last four are zeros.
    pub(super) extranonce2: u32,
    /// The submission between its id and its nonce.
    head: Vec<u8>,
    /// The submission after its nonce.
    end: &'static [u8],
}

impl Grind {
    pub(super) fn new(job: &ParsedJob, terms: &Terms<'_>, extranonce2: u32) -> Self {
        let ParsedJob { notify, coinbase } = job;
        let mut rolled = vec![0; terms.extranonce2_size.saturating_sub(4)];
        rolled.extend_from_slice(&extranonce2.to_be_bytes());
        let mut coinbase = *coinbase;
        coinbase.update(terms.extranonce1);
        coinbase.update(&rolled);
        coinbase.update(&notify.coinb2);
        let root = merkle_root(coinbase.finish_double(), &notify.merkle_branches);
        // No version bits are rolled: nonces are enough. Where rolling was agreed on, zeros are the rolled bits.
        let version = notify.version & !terms.version_mask.unwrap_or(0);
        let mut midstate = Midstate::of(&version.to_le_bytes());
        midstate.update(&notify.previous_hash);
        midstate.update(&root[..28]);
        let mut tail = [0; 12];
        tail[..4].copy_from_slice(&root[28..]);
        tail[4..8].copy_from_slice(&notify.ntime.to_le_bytes());
        tail[8..].copy_from_slice(&notify.nbits.to_le_bytes());
        let mut head = Vec::with_capacity(128);
        head.extend_from_slice(b",\"method\":\"mining.submit\",\"params\":[\"");
        head.extend_from_slice(terms.worker_name.as_bytes());
        head.extend_from_slice(b"\",\"");
        head.extend_from_slice(notify.job_id.as_bytes());
        head.extend_from_slice(b"\",\"");
        for byte in &rolled[..rolled.len() - 4] {
            head.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        scan::write_hex(&mut head, extranonce2);
        head.extend_from_slice(b"\",\"");
        scan::write_hex(&mut head, notify.ntime);
        head.extend_from_slice(b"\",\"");
        let end: &[u8] = if terms.version_mask.is_some() { b"\",\"00000000\"]}\n" } else { b"\"]}\n" };
        Grind { midstate, tail, next_nonce: 0, target: terms.target, extranonce2, head, end }
    }

    /// Hashes until there is a share; `None` when the nonces are used up.
    pub(super) fn next_share(&mut self) -> Option<u32> {
        let mut midstate = self.midstate;
        midstate.update(&self.tail);
        loop {
            let nonce = self.next_nonce;
            self.next_nonce = nonce.checked_add(1)?;
            let mut whole = midstate;
            whole.update(&nonce.to_le_bytes());
            if self.target.is_met_by(&whole.finish_double()) {
                return Some(nonce);
            }
        }
    }

    /// Appends the submission of a share.
    pub(super) fn write_submission(&self, id: u64, nonce: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        scan::write_decimal(out, id);
        out.extend_from_slice(&self.head);
        scan::write_hex(out, nonce);
        out.extend_from_slice(self.end);
    }
}

#[cfg(test)]
mod tests {
    use stratum::job::{Rolled, SV1_VERSION_MASK};
    use stratum::sv1::render::NotifyLine;
    use stratum::sv1::request::{Call, Request};

    use super::*;
    use crate::block::Block;

    const EXPONENT: i32 = -28;

    fn terms() -> Terms<'static> {
        Terms {
            worker_name: "farm.m1",
            extranonce1: &[1, 2, 3, 4],
            extranonce2_size: 4,
            version_mask: Some(SV1_VERSION_MASK),
            target: target_of(2f64.powi(EXPONENT)),
        }
    }

    #[test]
    fn shares_meet_the_target_of_the_product() {
        let job = crate::floor::job_of(&Block::new(1), EXPONENT);
        let mut cache = JobCache::default();
        let line = cache.line(NotifyLine::render(&job).as_bytes());
        let parsed = cache.parsed(&line).expect("a job");
        let mut grind = Grind::new(&parsed, &terms(), 77);
        for id in 0..100 {
            let found = grind.next_share().expect("nonces last for long");
            let mut submission = Vec::new();
            grind.write_submission(id, found, &mut submission);
            let request = Request::parse(&submission).expect("a request");
            let Call::Submit(submit) = request.call else { panic!("no submission") };
            assert_eq!(submit.job_id, NotifyLine::render(&job).job_id());
            assert_eq!((submit.nonce, submit.version_bits), (found, Some(0)));
            let rolled = Rolled {
                reserved: [1, 2, 3, 4],
                extranonce: &submit.extranonce2,
                version: job.version,
                ntime: submit.ntime,
                nonce: submit.nonce,
            };
            assert!(job.upstream_target.is_met_by(&job.hash(&rolled)), "share {id}");
        }
        // One hash in sixteen.
        assert!((800..3200).contains(&grind.next_nonce), "{} hashes", grind.next_nonce);
    }

    #[test]
    fn equal_lines_are_kept_and_read_once() {
        let line = NotifyLine::render(&crate::floor::job_of(&Block::new(1), EXPONENT));
        let other = NotifyLine::render(&crate::floor::job_of(&Block::new(2), EXPONENT));
        let mut cache = JobCache::default();
        let [first, second] = [0, 1].map(|_| cache.line(line.as_bytes()));
        assert!(Arc::ptr_eq(&first.0, &second.0));
        let [one, two] = [first, second].map(|line| cache.parsed(&line).expect("a job"));
        assert!(Arc::ptr_eq(&one, &two));
        let other = cache.line(other.as_bytes());
        assert_ne!(cache.parsed(&other).expect("a job").notify.job_id, one.notify.job_id);
    }

    #[test]
    fn difficulties_become_targets() {
        assert_eq!(target_of(2f64.powi(-28)), Target::from_difficulty_exponent(-28));
        // As a float of a target that was converted to and fro.
        assert_eq!(target_of(2f64.powi(-28) * (1.0 + 1e-12)), Target::from_difficulty_exponent(-28));
        assert_eq!(target_of(1000.0), Target::from_difficulty_exponent(10));
    }
}

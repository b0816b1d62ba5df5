//! The shares that a channel remembers, to refuse them the second time.
//!
//! They are kept in three generations. When the youngest one has grown large, its channel asks for a new job on the
//! same tip; with that job a generation begins, and the oldest is forgotten. So a flood of shares fills no memory,
//! and none that was good is refused for it: the jobs that retire are those that the miner left two generations ago.
//!
//! Two generations would be too few for a proxy, which passes a new job on up to a second after it came: not more
//! often than once a second does it give its miners work whose headers they have not hashed. The next job is sent a
//! second after the one before, too, and would retire what the proxy's miners have only just left.
//!
//! A share's header does not name its job: what is forgotten could come again under the next job. Therefore no
//! share counts whose time is not later than that of every forgotten one.
//!
//! Nothing here judges a share or sends a job.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use stratum::JobNumber;
use stratum::hash::Hash;

/// Shares of one generation after which a new job is wanted: half an hour at ten a second, far beyond any rate that
/// vardiff allows. 300 KiB.
pub const NEW_JOB_WANTED_AFTER: usize = 16_384;

/// Shares of all generations that are remembered at most, in 3.5 MiB. A new job comes about a second after it was
/// wanted: one channel has to carry fifty thousand shares a second to get here. All its jobs retire then.
pub const MAX_SEEN_SHARES: usize = 196_608;

/// Generations before the youngest one.
const OLDER_GENERATIONS: usize = 2;

/// Shares for which a new tip finds room already, where the tip before had as many: the memory then grows, and is
/// freed, no more. A quarter of an hour at ten shares a second, in 150 KiB; a slow miner keeps a few bytes.
pub(crate) const KEPT_ROOM: usize = NEW_JOB_WANTED_AFTER / 2;

/// The shares of one tip.
#[derive(Debug, Default)]
pub(crate) struct SeenShares {
    youngest: Generation,
    /// The oldest first, [`OLDER_GENERATIONS`] at most. Only a channel that had very many shares has any.
    older: Vec<Generation>,
    job_wanted: bool,
    /// The latest time of a share that was forgotten.
    forgotten_until: Option<u32>,
}

/// The shares that came between two rotations.
#[derive(Debug, Default)]
struct Generation {
    shares: HashSet<u64, BuildHasherDefault<ShareHasher>>,
    /// The job that began it.
    first_job: JobNumber,
    /// The latest lowest time of its jobs, from which miners start.
    job_ntime: u32,
    /// The latest time of its shares.
    ntime: u32,
}

/// A share's hash is as good as random in its low bytes: nothing is gained by hashing it again.
#[derive(Debug, Default)]
struct ShareHasher(u64);

impl Hasher for ShareHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }
    fn write_u64(&mut self, value: u64) {
        // The low bytes are random; the table takes its bucket from the low bits and its tag from the high ones.
        self.0 = value;
    }
}

impl SeenShares {
    /// Forgets everything: shares of another tip than before cannot come again.
    pub(crate) fn start(&mut self, job: JobNumber, job_ntime: u32) {
        let mut shares = std::mem::take(&mut self.youngest.shares);
        let kept = shares.len().min(KEPT_ROOM);
        shares.clear();
        shares.shrink_to(kept);
        *self = SeenShares::default();
        self.youngest = Generation { shares, ..Generation::starting(job, job_ntime) };
    }

    /// Notes that a job on the same tip was sent. Returns the oldest job whose shares are still known, when older
    /// ones were forgotten with it.
    pub(crate) fn note_job(&mut self, job: JobNumber, job_ntime: u32) -> Option<JobNumber> {
        // Only later times tell the shares of one generation from those of another.
        if !self.job_wanted || job_ntime <= self.youngest.job_ntime {
            self.youngest.job_ntime = self.youngest.job_ntime.max(job_ntime);
            return None;
        }
        self.job_wanted = false;
        if self.older.len() == OLDER_GENERATIONS {
            let forgotten = self.older.remove(0);
            self.forget(&forgotten);
        }
        let youngest = std::mem::replace(&mut self.youngest, Generation::starting(job, job_ntime));
        self.older.push(youngest);
        Some(self.older[0].first_job)
    }

    /// Whether a share with this time can still be told from a forgotten one.
    pub(crate) fn can_tell(&self, ntime: u32) -> bool {
        self.forgotten_until.is_none_or(|until| ntime > until)
    }

    /// Remembers a share. False when it came before.
    pub(crate) fn insert(&mut self, hash: &Hash, ntime: u32) -> bool {
        let (words, _) = hash.as_chunks::<8>();
        let key = u64::from_le_bytes(words[0]);
        let is_older = self.older.iter().any(|older| older.shares.contains(&key));
        if is_older || !self.youngest.shares.insert(key) {
            return false;
        }
        self.youngest.ntime = self.youngest.ntime.max(ntime);
        true
    }

    /// Whether a new job should be asked for now. True once for each generation.
    pub(crate) fn wants_job(&mut self) -> bool {
        let wanted = self.youngest.shares.len() >= NEW_JOB_WANTED_AFTER;
        wanted && !std::mem::replace(&mut self.job_wanted, true)
    }

    /// Whether no more shares can be remembered.
    pub(crate) fn is_full(&self) -> bool {
        let older: usize = self.older.iter().map(|older| older.shares.len()).sum();
        self.youngest.shares.len() + older >= MAX_SEEN_SHARES
    }

    /// Forgets every share; `next` will be the first job that counts.
    pub(crate) fn clear(&mut self, next: JobNumber) {
        let job_ntime = self.youngest.job_ntime;
        let youngest = std::mem::take(&mut self.youngest);
        for generation in std::mem::take(&mut self.older).iter().chain([&youngest]) {
            self.forget(generation);
        }
        self.youngest = Generation::starting(next, job_ntime);
        self.job_wanted = true;
    }

    fn forget(&mut self, generation: &Generation) {
        if !generation.shares.is_empty() {
            self.forgotten_until = self.forgotten_until.max(Some(generation.ntime));
        }
    }
}

impl Generation {
    fn starting(first_job: JobNumber, job_ntime: u32) -> Self {
        Generation { first_job, job_ntime, ..Generation::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> Hash {
        let mut hash = [0; 32];
        // Spread as hashes are: the table relies on it.
        hash[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        hash
    }

    fn fill(seen: &mut SeenShares, from: u64, ntime: u32) {
        for number in from..from + NEW_JOB_WANTED_AFTER as u64 {
            assert!(seen.insert(&hash(number), ntime), "share {number}");
        }
    }

    #[test]
    fn a_generation_is_remembered_until_the_third_after_it() {
        let mut seen = SeenShares::default();
        seen.start(JobNumber(1), 100);
        fill(&mut seen, 0, 100);
        assert!(seen.wants_job() && !seen.wants_job(), "asked for once");
        assert_eq!(seen.note_job(JobNumber(2), 100), None, "a job of the same second tells nothing apart");
        assert_eq!(seen.note_job(JobNumber(3), 101), Some(JobNumber(1)));
        assert!(!seen.insert(&hash(5), 100) && seen.can_tell(100), "still known");
        fill(&mut seen, 1_000_000, 101);
        assert!(seen.wants_job());
        assert_eq!(seen.note_job(JobNumber(4), 102), Some(JobNumber(1)));
        assert!(!seen.insert(&hash(5), 100) && seen.can_tell(100), "known for another generation");
        fill(&mut seen, 2_000_000, 102);
        assert!(seen.wants_job());
        assert_eq!(seen.note_job(JobNumber(5), 103), Some(JobNumber(3)), "jobs 1 and 2 retire");
        assert!(!seen.can_tell(100), "forgotten, and so refused");
        assert!(seen.can_tell(101) && !seen.insert(&hash(1_000_005), 101));
        assert!(!seen.insert(&hash(2_000_005), 102));
        seen.start(JobNumber(9), 90);
        assert!(seen.can_tell(90), "another tip");
    }

    #[test]
    fn a_flood_that_no_job_ends_is_bounded() {
        let mut seen = SeenShares::default();
        seen.start(JobNumber(1), 100);
        let mut number = 0;
        while !seen.is_full() {
            assert!(seen.insert(&hash(number), 107));
            number += 1;
        }
        assert_eq!(number, MAX_SEEN_SHARES as u64);
        seen.clear(JobNumber(2));
        assert!(!seen.is_full() && !seen.can_tell(107) && seen.can_tell(108));
        assert!(!seen.wants_job(), "the next job is on its way");
        assert_eq!(seen.note_job(JobNumber(2), 101), Some(JobNumber(2)));
    }

    #[test]
    fn a_new_tip_finds_the_room_that_the_last_one_needed() {
        let mut seen = SeenShares::default();
        seen.start(JobNumber(1), 100);
        (0..1000).for_each(|number| assert!(seen.insert(&hash(number), 100)));
        seen.start(JobNumber(2), 200);
        let room = seen.youngest.shares.capacity();
        assert!((1000..4000).contains(&room), "{room}");
        (0..1000).for_each(|number| assert!(seen.insert(&hash(number), 200), "forgotten"));
        assert_eq!(seen.youngest.shares.capacity(), room);
        assert!(!seen.insert(&hash(7), 200));
        seen.start(JobNumber(3), 300);
        seen.start(JobNumber(4), 400);
        assert_eq!(seen.youngest.shares.capacity(), 0, "who submits nothing holds nothing");
        fill(&mut seen, 0, 400);
        seen.start(JobNumber(5), 500);
        assert!((KEPT_ROOM..2 * NEW_JOB_WANTED_AFTER).contains(&seen.youngest.shares.capacity()));
    }

    #[test]
    fn an_ordinary_miner_rotates_nothing() {
        let mut seen = SeenShares::default();
        seen.start(JobNumber(1), 100);
        for job in 2..60 {
            assert_eq!(seen.note_job(JobNumber(job), 100 + job as u32), None);
            assert!(seen.insert(&hash(job), 100) && !seen.wants_job());
        }
        assert!(seen.can_tell(0));
    }
}

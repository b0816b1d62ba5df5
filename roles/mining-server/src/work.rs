//! What a source of work publishes to its connections, and the book in which it numbers its jobs.
//!
//! A [`Work`] never changes once it is published; a new one takes its place in one swap.

use std::collections::VecDeque;
use std::sync::Arc;

use stratum::job::JobParts;
use stratum::sv1::render::NotifyLine;
use stratum::{Epoch, Job, JobId, JobNumber, Now, Target};

/// Jobs of one tip that a share may still be for. At one job in twenty seconds these last for more than twenty
/// minutes, and a miner works on the newest one or two; the oldest retires when one more comes.
pub const MAX_LIVE_JOBS: usize = 64;

/// A job with what is rendered once for all miners, if there can be more than one.
#[derive(Debug)]
pub struct PublishedJob {
    /// The job.
    pub job: Job,
    /// Its `mining.notify` line. `None` for a job of one device: whoever sends it renders it, so that a new block's
    /// lines are not all rendered by the thread that publishes them, nor kept when they have been sent.
    pub notify: Option<Box<NotifyLine>>,
}

impl PublishedJob {
    /// Appends its `mining.notify` line with another job id, if there is one, and with a clean flag.
    pub fn write_notify(&self, own_id: Option<&str>, clean: bool, out: &mut Vec<u8>) {
        match &self.notify {
            Some(line) if own_id.is_none() && clean == self.job.clean => {
                out.extend_from_slice(line.as_bytes());
            }
            Some(line) => line.write_with(own_id.unwrap_or(line.job_id()), clean, out),
            None => NotifyLine::write_once(&self.job, own_id, clean, out),
        }
    }
}

/// Everything that a connection needs to mine for one source of work, immutable.
#[derive(Clone, Debug)]
pub struct Work {
    /// The life of the upstream channel.
    pub epoch: Epoch,
    /// False while the upstream is away: shares are checked and answered, and dropped before forwarding.
    pub live: bool,
    /// The number that the source's first job had: a lower one was never ours.
    pub first: JobNumber,
    /// The jobs that shares may be for, oldest first; the last is the active one. Never empty.
    pub jobs: Vec<Arc<PublishedJob>>,
    /// The target that new jobs' shares must meet to be worth something to the upstream.
    pub upstream_target: Target,
}

/// What is known of a job number.
#[derive(Debug)]
pub enum JobLookup<'a> {
    /// A share may be for it.
    Live(&'a Arc<PublishedJob>),
    /// It was ours, but its tip or epoch is over, or too many came after it.
    Retired,
    /// It never was.
    Unknown,
}

impl Work {
    /// The job to mine on.
    pub fn active(&self) -> &Arc<PublishedJob> {
        self.jobs.last().expect("work is published with at least one job")
    }

    /// Finds a job by our number.
    pub fn job(&self, number: JobNumber) -> JobLookup<'_> {
        // Nearly every share is for the active job.
        let active = self.active();
        if number == active.job.number {
            return JobLookup::Live(active);
        }
        match self.jobs.binary_search_by_key(&number, |published| published.job.number) {
            Ok(index) => JobLookup::Live(&self.jobs[index]),
            Err(_) if number >= self.first && number < active.job.number => JobLookup::Retired,
            Err(_) => JobLookup::Unknown,
        }
    }

    /// Finds a job by the id that SV2 downstreams know.
    pub fn job_by_id(&self, id: JobId) -> JobLookup<'_> {
        let active = self.active().job.number;
        // The number's upper half is the active job's, or one less where the lower half has wrapped since.
        let behind = (active.0 as u32).wrapping_sub(id.0);
        match active.0.checked_sub(u64::from(behind)) {
            Some(number) => self.job(JobNumber(number)),
            None => JobLookup::Unknown,
        }
    }

    /// The newest job that retired all before it and that came after the job `seen`. It need not be the active one:
    /// another may have come before anybody looked.
    pub fn clean_job_after(&self, seen: JobNumber) -> Option<&Job> {
        let unseen = self.jobs.iter().rev().map(|published| &published.job);
        unseen.take_while(|job| job.number > seen).find(|job| job.clean)
    }

    /// The oldest job for which a share is still accepted.
    pub fn oldest(&self) -> JobNumber {
        self.jobs[0].job.number
    }
}

/// The jobs of one source of work: numbers them, keeps the live ones, and makes each [`Work`].
///
/// Several books of one process must not share numbers if a connection can move between them: give each a
/// `first` of its own.
#[derive(Debug)]
pub struct JobBook {
    first: JobNumber,
    /// Whether its jobs are for one device alone.
    is_private: bool,
    next: JobNumber,
    epoch: Epoch,
    live: bool,
    upstream_target: Target,
    jobs: VecDeque<Arc<PublishedJob>>,
    /// A job that was not added because its headers had been hashed: the next refresh is made of it.
    base: Option<Box<Job>>,
}

impl JobBook {
    /// An empty book, whose first job will have the number `first`.
    pub fn new(first: JobNumber) -> Self {
        JobBook {
            first,
            is_private: false,
            next: first,
            epoch: Epoch(0),
            live: false,
            upstream_target: Target::MAX,
            jobs: VecDeque::new(),
            base: None,
        }
    }

    /// An empty book of jobs that one device alone will see.
    pub fn private(first: JobNumber) -> Self {
        JobBook { is_private: true, ..JobBook::new(first) }
    }

    /// The number that the next job must carry.
    pub fn next_number(&self) -> JobNumber {
        self.next
    }

    /// Takes a number for a job that the book does not keep: one that a single connection mines on, and nobody else.
    pub fn take_number(&mut self) -> JobNumber {
        let number = self.next;
        self.next = number.next();
        number
    }

    /// Adds a job, which becomes the active one. `parts.number` must be [`JobBook::next_number`]. The first job of
    /// another tip or epoch retires all others.
    ///
    /// A job that differs from the active one by no later time is not added yet: an upstream that moves the time on
    /// as [`JobBook::refresh`] did before would otherwise have miners hash headers twice, and be refused for it. It
    /// comes with the next refresh, and [`JobBook::next_number`] stays as it was.
    pub fn add(&mut self, parts: JobParts) -> &Arc<PublishedJob> {
        let mut job = Job::new(parts);
        assert_eq!(job.number, self.next, "jobs are numbered by their book");
        let repeats = |active: &Arc<PublishedJob>| {
            active.job.is_same_work(&job) && job.min_ntime <= active.job.min_ntime
        };
        let repeated = self.jobs.back().is_some_and(repeats);
        // What the job was to replace is to be replaced by the one that comes in its stead.
        job.clean |= self.base.take().is_some_and(|base| base.clean);
        if repeated {
            self.base = Some(Box::new(job));
        } else {
            self.add_job(job);
        }
        self.jobs.back().expect("a job was added, now or before")
    }

    /// Makes the active job anew with the time moved on, so that miners have something fresh to hash and hear
    /// from us. The time moves by what has passed since the job came, which SV2 permits. False when there is no job yet or not a second has passed.
    pub fn refresh(&mut self, now: Now) -> bool {
        let Some(active) = self.jobs.back().map(|active| &active.job) else { return false };
        let seconds = now.since(active.received).as_secs() as u32;
        if seconds == 0 {
            return false;
        }
        let min_ntime = active.min_ntime.saturating_add(seconds);
        let mut job = self.base.as_deref().unwrap_or(active).refreshed(self.next, min_ntime, now);
        job.clean = self.base.take().is_some_and(|base| base.clean);
        self.add_job(job);
        true
    }

    /// Forgets its jobs: the next one has the number `next`, or a higher one if that was taken already. What it had
    /// before is retired, and not unknown.
    pub fn start_over(&mut self, next: JobNumber) {
        self.jobs.clear();
        self.base = None;
        self.live = false;
        self.next = self.next.max(next);
    }

    /// The number that its first job had, or was to have.
    pub fn first(&self) -> JobNumber {
        self.first
    }

    /// Whether it has no job.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Says whether the upstream takes shares. Jobs stay as they are.
    pub fn set_live(&mut self, live: bool) {
        self.live = live;
    }

    /// Sets the life of the upstream channel that jobs added from now on belong to.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// Sets the upstream's target for what is published from now on.
    pub fn set_upstream_target(&mut self, target: Target) {
        self.upstream_target = target;
    }

    /// What to publish; `None` until there is a job.
    pub fn work(&self) -> Option<Work> {
        (!self.jobs.is_empty()).then(|| Work {
            epoch: self.epoch,
            live: self.live,
            first: self.first,
            jobs: self.jobs.iter().cloned().collect(),
            upstream_target: self.upstream_target,
        })
    }

    fn add_job(&mut self, job: Job) {
        self.next = self.next.next();
        let goes_on =
            |last: &Arc<PublishedJob>| (last.job.epoch, last.job.tip.number) == (job.epoch, job.tip.number);
        // Not whenever a job is clean: on the same tip, a share that its miner had made by then is worth as much.
        if !self.jobs.back().is_some_and(goes_on) {
            self.jobs.clear();
        } else if self.jobs.len() == MAX_LIVE_JOBS {
            self.jobs.pop_front();
        }
        let notify = (!self.is_private).then(|| Box::new(NotifyLine::render(&job)));
        self.jobs.push_back(Arc::new(PublishedJob { job, notify }));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stratum::job::{JobOrigin, Tip};
    use stratum::{TipNumber, UpstreamChannelId, UpstreamId, UpstreamJobId};

    use super::*;

    fn at(seconds: u64) -> Now {
        Now::simulated(Duration::from_secs(1_700_000_000), Duration::from_secs(seconds))
    }

    fn parts(book: &JobBook, now: Now, exponent: i32) -> JobParts {
        let (nbits, coinbase) = (0x1d00_ffff, vec![1; 50]);
        JobParts {
            number: book.next_number(),
            epoch: Epoch(1),
            origin: JobOrigin {
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(1),
                job: UpstreamJobId(now.unix_seconds()),
                template: None,
            },
            tip: Tip {
                number: TipNumber(1),
                previous_hash: [1; 32],
                nbits,
                network_target: Target::from_compact(nbits),
            },
            clean: book.work().is_none(),
            version: 0x2000_0000,
            version_rolling_allowed: true,
            min_ntime: now.unix_seconds(),
            coinbase_prefix: coinbase.clone().into(),
            coinbase_suffix: coinbase.into(),
            rollable_size: 16,
            merkle_path: [].into(),
            upstream_target: Target::from_difficulty_exponent(exponent),
            received: now,
        }
    }

    #[test]
    fn a_clean_job_that_was_overtaken_is_still_news() {
        let mut book = JobBook::new(JobNumber(7));
        book.add(parts(&book, at(0), 3));
        assert!(book.refresh(at(20)));
        let work = book.work().expect("there is a job");
        assert!(!work.active().job.clean);
        let clean = |seen| work.clean_job_after(JobNumber(seen)).map(|job| job.number);
        assert_eq!((clean(0), clean(6)), (Some(JobNumber(7)), Some(JobNumber(7))));
        assert_eq!((clean(7), clean(8)), (None, None), "it was seen");
    }

    /// The upstream moves the time on in the second in which we did.
    #[test]
    fn no_header_is_hashed_twice_and_no_target_is_missed() {
        let mut book = JobBook::new(JobNumber(7));
        book.add(parts(&book, at(0), 3));
        assert!(book.refresh(at(20)));
        book.add(parts(&book, at(20), 5));
        let work = book.work().expect("there is a job");
        assert_eq!(work.active().job.number, JobNumber(8), "nothing new to hash");
        assert!(book.refresh(at(40)));
        let work = book.work().expect("there is a job");
        let job = &work.active().job;
        assert_eq!((job.number, job.min_ntime), (JobNumber(9), at(40).unix_seconds()));
        assert_eq!(job.upstream_target, Target::from_difficulty_exponent(5));
        assert_eq!(job.origin.job, UpstreamJobId(at(20).unix_seconds()));
        book.add(JobParts { received: at(41), ..parts(&book, at(30), 5) });
        assert_eq!(book.next_number(), JobNumber(10), "it comes late, and its time was hashed before");
        book.add(parts(&book, at(41), 5));
        assert_eq!(book.next_number(), JobNumber(11), "another time is another header");
    }
}

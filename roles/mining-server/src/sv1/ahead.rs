//! A look ahead at what was read of a few connections, so that their shares are hashed together.
//!
//! A few shares hash in less time together than one after the other ([`Job::hash_together`]). Nothing here judges, answers or changes anything: a connection that is
//! given what was foreseen does what it would have done without.

use arrayvec::ArrayVec;
use stratum::job::{RESERVED_SIZE, Rolled};
use stratum::sv1::request::{Call, RawId, Request, Submit};
use stratum::{Job, JobNumber};

use super::Sv1Connection;
use crate::judge::KnownHash;
use crate::work::JobLookup;

/// Shares that are looked at ahead: enough for a few connections. What comes after them is hashed alone.
pub const MAX_AHEAD: usize = 16;

/// Shares of one connection among them, so that one that floods leaves room for its neighbours.
pub const MAX_AHEAD_OF_EACH: usize = 4;

/// The shares that were found, in the order of their connections.
#[derive(Debug, Default)]
pub struct Ahead<'a> {
    shares: ArrayVec<Foreseen<'a>, MAX_AHEAD>,
}

/// A submission that lies in what was read.
#[derive(Debug)]
pub struct Foreseen<'a> {
    line: &'a [u8],
    id: RawId<'a>,
    submit: Submit<'a>,
    /// The job and the version that it is hashed with.
    job: JobNumber,
    version: u32,
    hash: Option<stratum::hash::Hash>,
}

impl<'a> Ahead<'a> {
    /// Looks at what was read of a connection. Returns how many shares were found.
    pub fn read(&mut self, connection: &Sv1Connection, bytes: &'a [u8]) -> usize {
        let before = self.shares.len();
        if connection.first_job.is_some() {
            let room = self.shares.remaining_capacity().min(MAX_AHEAD_OF_EACH);
            let lines = connection.lines.lines_ahead(bytes).take(room);
            // The first line that is something else may change what becomes of those after it.
            self.shares.extend(lines.map_while(|line| Foreseen::of(connection, line)));
        }
        self.shares.len() - before
    }

    /// Hashes all shares. `connections` are those that were looked at, in the same order, with how many each had.
    pub fn hash<'c>(&mut self, connections: impl Iterator<Item = (&'c Sv1Connection, usize)>) {
        let mut rest = self.shares.as_slice();
        let mut jobs: ArrayVec<(&Job, Rolled<'_>), MAX_AHEAD> = ArrayVec::new();
        for (connection, count) in connections {
            let (shares, others) = rest.split_at(count);
            rest = others;
            jobs.extend(shares.iter().filter_map(|share| share.rolled(connection)));
        }
        // A job that is gone meanwhile: nobody changes a connection between the two, but then nothing is lost by it.
        if jobs.len() < self.shares.len() {
            return;
        }
        let mut hashes = ArrayVec::<_, MAX_AHEAD>::new();
        Job::hash_together(&jobs, &mut hashes);
        drop(jobs);
        for (share, hash) in self.shares.iter_mut().zip(hashes) {
            share.hash = Some(hash);
        }
    }

    /// The shares, in the order in which they were found.
    pub fn shares(&self) -> &[Foreseen<'a>] {
        &self.shares
    }
}

impl<'a> Foreseen<'a> {
    fn of(connection: &Sv1Connection, line: &'a [u8]) -> Option<Self> {
        let Request { id, call: Call::Submit(submit) } = Request::parse_plain_submission(line)? else {
            return None;
        };
        let job = job_of(connection, &submit)?;
        let version = connection.version_of(&submit, job).0;
        let fits = submit.extranonce2.len() == connection.judge.rolled_size()
            && RESERVED_SIZE + submit.extranonce2.len() <= job.rollable_size;
        fits.then(|| Foreseen { line, id, job: job.number, version, submit, hash: None })
    }

    /// What it is hashed from.
    fn rolled<'s>(&'s self, connection: &'s Sv1Connection) -> Option<(&'s Job, Rolled<'s>)> {
        let submit = &self.submit;
        let rolled = Rolled {
            reserved: connection.judge.reserved(),
            extranonce: &submit.extranonce2,
            version: self.version,
            ntime: submit.ntime,
            nonce: submit.nonce,
        };
        Some((job_of(connection, submit)?, rolled))
    }

    /// Whether it is this line: the same bytes at the same place.
    pub(super) fn is_of(&self, line: &[u8]) -> bool {
        std::ptr::eq(self.line, line)
    }

    pub(super) fn parts(&self) -> (RawId<'a>, &Submit<'a>, Option<KnownHash>) {
        let known = self.hash.map(|hash| KnownHash { job: self.job, version: self.version, hash });
        (self.id, &self.submit, known)
    }
}

/// The job that a submission names, while shares may be for it.
fn job_of<'c>(connection: &'c Sv1Connection, submit: &Submit<'_>) -> Option<&'c Job> {
    let number = connection.job_number(&submit.job_id)?;
    match connection.work.as_ref()?.job(number) {
        JobLookup::Live(published) => Some(&published.job),
        JobLookup::Retired | JobLookup::Unknown => None,
    }
}

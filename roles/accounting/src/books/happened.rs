//! What the books know besides sums: what work is worth, how fast upstreams answer, blocks, and what happened.
//!
//! Of jobs only the latest are kept, and only until their blocks could no longer come; of blocks and events the latest
//! ones, and those that no rollup has told of.

use std::collections::{BTreeMap, VecDeque};

use stratum::{JobNumber, UpstreamId};

use super::{Books, MAX_UPSTREAMS};
use crate::acks::AckSums;
use crate::cost::Worth;
use crate::entry::{EventEntry, JobEntry, microseconds};
use crate::record::ShareRecord;
use crate::rollup::{BlockRow, EventRow, Facts};

/// Bytes of jobs that are kept: hours of those that all devices share, and a job for each of ten thousand devices that
/// have one each. The oldest go first, and their blocks then have neither hash nor value.
const MAX_JOB_BYTES: usize = 8 * 1024 * 1024;

/// What a job takes besides its coinbase and its merkle path.
const JOB_OVERHEAD: usize = 256;

/// Events that are kept in memory: more than happens in a day that is worth remembering.
pub const MAX_EVENTS: usize = 1024;

/// Blocks that are kept in memory.
pub const MAX_BLOCKS: usize = 256;

/// Events and blocks that wait for a rollup: far more than come in a minute. When more wait, because no rollup can be
/// made, the oldest are in the stream alone.
const MAX_NEWS: usize = 16_384;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Happened {
    jobs: BTreeMap<JobNumber, JobEntry>,
    job_bytes: usize,
    events: Latest<EventRow, MAX_EVENTS>,
    blocks: Latest<BlockRow, MAX_BLOCKS>,
}

/// Numbered things, the latest of them.
#[derive(Debug)]
struct Latest<T, const MOST: usize> {
    latest: VecDeque<T>,
    /// Those that no rollup has told of.
    news: VecDeque<T>,
    /// How many there were since the ledger began.
    count: u64,
}

impl<T, const MOST: usize> Default for Latest<T, MOST> {
    fn default() -> Self {
        Latest { latest: VecDeque::new(), news: VecDeque::new(), count: 0 }
    }
}

impl<T: Clone, const MOST: usize> Latest<T, MOST> {
    fn add(&mut self, make: impl FnOnce(u64) -> T) {
        self.count += 1;
        let one = make(self.count);
        keep_latest(&mut self.latest, one.clone(), MOST);
        keep_latest(&mut self.news, one, MAX_NEWS);
    }

    fn restore(&mut self, latest: &[T], number: impl Fn(&T) -> u64) {
        self.latest = latest.iter().skip(latest.len().saturating_sub(MOST)).cloned().collect();
        self.count = latest.last().map_or(0, number);
    }
}

fn keep_latest<T>(latest: &mut VecDeque<T>, one: T, most: usize) {
    if latest.len() == most {
        latest.pop_front();
    }
    latest.push_back(one);
}

impl Books {
    /// What work is worth, by the latest job of an upstream, or the latest of all.
    pub fn worth(&self, upstream: Option<UpstreamId>) -> Option<Worth> {
        let wanted = self.upstreams.iter().filter(|(id, _)| upstream.is_none_or(|wanted| wanted == **id));
        wanted.filter_map(|(_, known)| known.worth).max_by_key(|worth| worth.at_us)
    }

    /// How fast an upstream answers.
    pub fn acks(&self, upstream: UpstreamId) -> AckSums {
        self.upstreams.get(&upstream).map(|known| known.acks.clone()).unwrap_or_default()
    }

    /// Refused shares of an upstream by its codes.
    pub fn refused_by_code(&self, upstream: UpstreamId) -> BTreeMap<String, u64> {
        self.upstreams.get(&upstream).map(|known| known.refused_by_code.clone()).unwrap_or_default()
    }

    /// The latest [`MAX_EVENTS`] events, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &EventRow> + ExactSizeIterator {
        self.happened.events.latest.iter()
    }

    /// The latest [`MAX_BLOCKS`] blocks, oldest first.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = &BlockRow> + ExactSizeIterator {
        self.happened.blocks.latest.iter()
    }

    /// Whether a job is known, so that a block of it can be told with its hash and value.
    pub fn knows_job(&self, number: JobNumber) -> bool {
        self.happened.jobs.contains_key(&number)
    }

    pub(super) fn apply_job(&mut self, job: &JobEntry) {
        self.note_job(job);
        if self.upstreams.len() >= MAX_UPSTREAMS && !self.upstreams.contains_key(&job.upstream) {
            return;
        }
        if let Some(worth) = Worth::of_job(job) {
            self.upstreams.entry(job.upstream).or_default().worth = Some(worth);
        }
    }

    /// Keeps a job for the blocks that may come of it.
    pub(super) fn note_job(&mut self, job: &JobEntry) {
        let Happened { jobs, job_bytes, .. } = &mut self.happened;
        *job_bytes += size_of_job(job);
        if let Some(earlier) = jobs.insert(job.number, job.clone()) {
            *job_bytes -= size_of_job(&earlier);
        }
        while *job_bytes > MAX_JOB_BYTES {
            let Some((_, oldest)) = jobs.pop_first() else { break };
            *job_bytes -= size_of_job(&oldest);
        }
    }

    pub(super) fn note_event(&mut self, event: &EventEntry) {
        self.happened.events.add(|number| EventRow { number, event: event.clone() });
    }

    /// Notes a share that is a block, with what its job says of it.
    pub(super) fn note_block(&mut self, share: &ShareRecord) {
        let job = share.job.and_then(|number| self.happened.jobs.get(&number));
        let hash = job.and_then(|job| job.block_hash(share));
        let worth = hash.and(job).and_then(Worth::of_job);
        self.happened.blocks.add(|number| BlockRow {
            number,
            found_us: microseconds(share.judged.utc),
            device: share.device,
            upstream: share.upstream,
            job: share.job,
            difficulty: share.difficulty.map(|difficulty| difficulty.0),
            hash,
            height: worth.and_then(|worth| worth.height),
            value_sats: worth.map(|worth| worth.value_sats),
        });
    }

    /// What a rollup keeps besides sums.
    pub(super) fn take_facts(&mut self) -> Facts {
        let mut facts = Facts {
            worths: self.upstreams.values().filter_map(|upstream| upstream.worth).collect(),
            power: self.readings.take_changed(),
            part: self.open_part(),
            refused_by_code: self.totals.refused_by_code.clone(),
            folded: self.totals.folded,
            ..Facts::default()
        };
        let answered = self.upstreams.iter().filter(|(_, upstream)| upstream.acks.count() > 0);
        facts.acks = answered.map(|(id, upstream)| (*id, upstream.acks.clone())).collect();
        let refusing = self.upstreams.iter().filter(|(_, upstream)| !upstream.refused_by_code.is_empty());
        facts.refused_by_upstream = refusing.map(|(id, up)| (*id, up.refused_by_code.clone())).collect();
        facts.events = std::mem::take(&mut self.happened.events.news).into();
        facts.blocks = std::mem::take(&mut self.happened.blocks.news).into();
        facts
    }

    pub(super) fn restore_facts(&mut self, facts: &Facts) {
        for worth in &facts.worths {
            if let Some(upstream) = self.upstreams.get_mut(&worth.upstream) {
                upstream.worth = Some(*worth);
            }
        }
        for (id, acks) in &facts.acks {
            if let Some(upstream) = self.upstreams.get_mut(id) {
                upstream.acks = acks.clone();
            }
        }
        for (id, counts) in &facts.refused_by_upstream {
            if let Some(upstream) = self.upstreams.get_mut(id) {
                upstream.refused_by_code.clone_from(counts);
            }
        }
        self.totals.refused_by_code.clone_from(&facts.refused_by_code);
        self.totals.folded = facts.folded;
        self.happened.events.restore(&facts.events, |row| row.number);
        self.happened.blocks.restore(&facts.blocks, |row| row.number);
        self.readings = crate::energy::Readings::restore(&facts.power, &facts.part.replaced);
        self.restore_part(&facts.part);
    }
}

fn size_of_job(job: &JobEntry) -> usize {
    JOB_OVERHEAD + job.coinbase_prefix.len() + job.coinbase_suffix.len() + 32 * job.merkle_path.len()
}

//! A pool's own jobs, from templates to jobs and from shares to blocks.
//!
//! Pure, like the roles: no clock, no socket, no queue. It stands here because it needs both templates and jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use job_declarator::server::{CustomJob, DeclaredJob, Solution};
use mining_server::work::MAX_LIVE_JOBS;
use mining_server::{JobBook, PublishedJob, ShareEvent, Work};
use stratum::job::{JobParts, RESERVED_SIZE, Rolled};
use stratum::sv2::codes::set_custom_mining_job as codes;
use stratum::{Epoch, Job, JobNumber, Now, Target, TipNumber, UpstreamChannelId, UpstreamId, UpstreamJobId};
use stratum::{JobOrigin, Tip};
use template::{BlockTemplate, CoinbaseError, CoinbaseRules, assemble_block};

/// Bytes that an SV2 downstream may roll after the reserved ones: enough for three more proxies below us, each
/// with reserved bytes of its own, and short enough for every known firmware.
pub const ROLLED_SIZE: usize = 16;

/// The extranonce that our coinbases leave room for.
pub const EXTRANONCE_SIZE: usize = RESERVED_SIZE + ROLLED_SIZE;

/// Jobs whose blocks are still submitted: all live ones, and as many of the tip before.
const MAX_SOLVABLE: usize = 2 * MAX_LIVE_JOBS;

/// Custom jobs whose blocks are still submitted, of all connections together: at one in twenty seconds from each of a
/// hundred proxies these are of the last three minutes, and proxies mine on their newest. The oldest is forgotten.
const MAX_SOLVABLE_CUSTOM: usize = 1024;

/// Bytes of transactions that these may hold together, as if they shared none: a hundred full blocks. Jobs of a while
/// ago are mostly the same transactions, which are in memory once.
const MAX_CUSTOM_BYTES: usize = 400_000_000;

/// A custom job that was taken.
#[derive(Debug)]
struct TakenJob {
    tip: TipNumber,
    height: u32,
    /// What a block is made of; none where only its miner has the transactions.
    declared: Option<Arc<DeclaredJob>>,
    /// Bytes of its transactions.
    size: usize,
}

/// What a share that is a block is worth to its pool.
#[derive(Debug, PartialEq, Eq)]
pub enum Solved {
    /// A block to submit.
    Block(FoundBlock),
    /// A block of this height on a custom job whose transactions only its miner has: it comes by the miner's own node.
    AtItsMiner(u32),
    /// Its job is of neither this tip nor the one before, or there were too many since.
    Retired,
}

/// Makes jobs of templates, and blocks of shares.
#[derive(Debug)]
pub struct PoolJobs {
    rules: CoinbaseRules,
    book: JobBook,
    tip: Option<Tip>,
    /// The jobs that a block may come for, with their templates: those of this tip, and of the one before, because
    /// a block that was on its way when the tip changed may still win.
    solvable: BTreeMap<JobNumber, (Arc<PublishedJob>, Arc<BlockTemplate>)>,
    newest: Option<Arc<BlockTemplate>>,
    /// The custom jobs that a block may come for: of the same tips.
    taken: BTreeMap<JobNumber, TakenJob>,
}

/// A block that a share solved.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundBlock {
    /// Its height.
    pub height: u32,
    /// Its hash, in internal byte order.
    pub hash: stratum::hash::Hash,
    /// The whole block, as nodes take it.
    pub bytes: Vec<u8>,
}

impl PoolJobs {
    /// No jobs yet. `rules` must leave [`EXTRANONCE_SIZE`] bytes for the extranonce.
    pub fn new(rules: CoinbaseRules, first: JobNumber) -> Self {
        assert_eq!(
            rules.extranonce_size(),
            EXTRANONCE_SIZE,
            "jobs and coinbases must agree on the extranonce"
        );
        let mut book = JobBook::new(first);
        book.set_live(true);
        book.set_epoch(Epoch(1));
        // There is no upstream whose target could limit a miner's difficulty.
        book.set_upstream_target(Target::HARDEST);
        PoolJobs { rules, book, tip: None, solvable: BTreeMap::new(), newest: None, taken: BTreeMap::new() }
    }

    /// Makes a job of a template. Fails, with everything as it was, when no coinbase of ours fits it.
    pub fn handle_template(&mut self, template: Arc<BlockTemplate>) -> Result<(), CoinbaseError> {
        let parts = self.rules.parts(&template)?;
        let same_tip = self.tip.filter(|tip| tip.previous_hash == template.previous_hash);
        let tip = Tip {
            number: same_tip.map_or_else(|| self.next_tip(), |tip| tip.number),
            previous_hash: template.previous_hash,
            nbits: template.nbits,
            network_target: template.network_target(),
        };
        self.tip = Some(tip);
        let number = self.book.next_number();
        self.book.add(JobParts {
            number,
            epoch: Epoch(1),
            origin: JobOrigin {
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(0),
                job: UpstreamJobId(0),
                template: Some(template.id),
            },
            tip,
            clean: same_tip.is_none(),
            version: template.version,
            version_rolling_allowed: true,
            min_ntime: template.current_time.max(template.min_ntime),
            coinbase_prefix: parts.prefix.into(),
            coinbase_suffix: parts.suffix.into(),
            rollable_size: EXTRANONCE_SIZE,
            merkle_path: template.merkle_path.as_slice().into(),
            upstream_target: Target::HARDEST,
            received: template.received,
        });
        self.newest = Some(Arc::clone(&template));
        self.keep_active();
        Ok(())
    }

    /// Makes the active job anew with a later time. False when there is none, or too little time has passed.
    pub fn refresh(&mut self, now: Now) -> bool {
        let refreshed = self.book.refresh(now);
        if refreshed {
            self.keep_active();
        }
        refreshed
    }

    /// What to publish; `None` until there is a template.
    pub fn work(&self) -> Option<Work> {
        self.book.work()
    }

    /// Makes the job of a custom job that was found good. It is for whoever asked alone, and not in
    /// [`PoolJobs::work`]. Fails with the code for the peer when it is not for the present tip.
    pub fn handle_custom_job(
        &mut self,
        custom: CustomJob,
        now: Now,
    ) -> Result<Arc<PublishedJob>, &'static str> {
        let tip = self.tip.filter(|tip| tip.previous_hash == custom.tip.previous_hash);
        let tip = tip.ok_or(codes::STALE_CHAIN_TIP)?;
        if custom.tip.nbits != tip.nbits {
            return Err(codes::INVALID_NBITS);
        }
        let rollable_size = custom.coinbase.extranonce_size;
        let number = self.book.take_number();
        let job = Job::new(JobParts {
            number,
            epoch: Epoch(1),
            origin: JobOrigin {
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(0),
                job: UpstreamJobId(0),
                template: None,
            },
            tip,
            clean: false,
            version: custom.version,
            version_rolling_allowed: true,
            min_ntime: custom.min_ntime,
            coinbase_prefix: custom.coinbase.prefix.into(),
            coinbase_suffix: custom.coinbase.suffix.into(),
            rollable_size,
            merkle_path: custom.merkle_path.into(),
            upstream_target: Target::HARDEST,
            received: now,
        });
        let raw = custom.declared.iter().flat_map(|declared| &declared.transactions);
        let size = raw.map(|transaction| transaction.raw.len()).sum();
        let height = custom.tip.height;
        self.keep_taken(number, TakenJob { tip: tip.number, height, declared: custom.declared, size });
        Ok(Arc::new(PublishedJob { job, notify: None }))
    }

    /// What becomes of a share that is a block.
    pub fn solved(&self, share: &ShareEvent) -> Solved {
        let ShareEvent { record, forward } = share;
        let Some(taken) = record.job.and_then(|number| self.taken.get(&number)) else {
            return self.block(share).map_or(Solved::Retired, Solved::Block);
        };
        let (Some(declared), Some(_)) = (&taken.declared, forward) else {
            return Solved::AtItsMiner(taken.height);
        };
        let solution = Solution {
            extranonce: &record.rollable,
            version: record.version,
            ntime: record.ntime,
            nonce: record.nonce,
        };
        declared.solved(&solution).map_or(Solved::Retired, |block| {
            Solved::Block(FoundBlock { height: block.height, hash: block.hash, bytes: block.bytes })
        })
    }

    /// The block that a share solved on a job of ours; `None` when it is not one to pass on, or its job is of neither
    /// this tip nor the one before.
    pub fn block(&self, share: &ShareEvent) -> Option<FoundBlock> {
        let ShareEvent { record, forward } = share;
        let hash = forward.as_ref()?.hash;
        let (published, template) = self.solvable.get(&record.job?)?;
        let (reserved, rolled) = record.rollable.split_first_chunk::<RESERVED_SIZE>()?;
        let header = published.job.header(&Rolled {
            reserved: *reserved,
            extranonce: rolled,
            version: record.version,
            ntime: record.ntime,
            nonce: record.nonce,
        });
        let coinbase =
            [&*published.job.coinbase_prefix, record.rollable.as_slice(), &published.job.coinbase_suffix]
                .concat();
        let bytes = assemble_block(template, &coinbase, &header);
        Some(FoundBlock { height: template.height, hash, bytes })
    }

    /// Remembers the active job for its blocks. The oldest ones are forgotten.
    fn keep_active(&mut self) {
        let work = self.book.work().expect("a job was just added");
        let template = self.newest.clone().expect("the job was made of it");
        let active = Arc::clone(work.active());
        let tip = active.job.tip.number;
        // A template that is held back for the next refresh leaves the active job with its own.
        self.solvable.entry(active.job.number).or_insert((active, template));
        self.solvable.retain(|_, (published, _)| published.job.tip.number.0 + 1 >= tip.0);
        self.taken.retain(|_, taken| taken.tip.0 + 1 >= tip.0);
        while self.solvable.len() > MAX_SOLVABLE {
            self.solvable.pop_first();
        }
    }

    /// Remembers a custom job for its blocks. The oldest ones are forgotten.
    fn keep_taken(&mut self, number: JobNumber, taken: TakenJob) {
        self.taken.insert(number, taken);
        let mut bytes: usize = self.taken.values().map(|taken| taken.size).sum();
        while self.taken.len() > MAX_SOLVABLE_CUSTOM || bytes > MAX_CUSTOM_BYTES {
            let Some((_, oldest)) = self.taken.pop_first() else { break };
            bytes -= oldest.size;
        }
    }

    fn next_tip(&self) -> TipNumber {
        TipNumber(self.tip.map_or(1, |tip| tip.number.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
    use job_declarator::server::{DeclarationId, PoolTip};
    use mining_server::judge::{Submission, Submitter, refusal};
    use mining_server::work::JobLookup;
    use mining_server::{ForwardShare, RejectReason};
    use stratum::{ChannelId, ConnectionId};
    use template::{JobTemplate, Output, RawTransaction};

    /// Grinds a block on the active job.
    fn solve(jobs: &PoolJobs) -> ShareEvent {
        solve_job(&jobs.work().expect("there is a job").active().job)
    }

    fn solve_job(job: &Job) -> ShareEvent {
        let rollable = job.rollable_bytes([0; RESERVED_SIZE], &[]);
        let rolled = |nonce| Rolled {
            reserved: [0; RESERVED_SIZE],
            extranonce: &rollable[RESERVED_SIZE..],
            version: job.version,
            ntime: job.min_ntime,
            nonce,
        };
        let mut nonces = (0..).map(|nonce| (nonce, job.hash(&rolled(nonce))));
        let (nonce, hash) = nonces.find(|(_, hash)| job.tip.network_target.is_met_by(hash)).expect("endless");
        let submission = Submission {
            job: JobLookup::Unknown,
            extranonce: &[],
            version: job.version,
            version_mask: 0,
            ntime: job.min_ntime,
            nonce,
            known: None,
        };
        let submitter = Submitter { connection: ConnectionId(1), channel: ChannelId(0), device: None };
        // Only what a block is made of counts here, and not the verdict.
        let mut share = refusal(submitter, &submission, RejectReason::JobNotFound, job.received);
        share.record.job = Some(job.number);
        share.record.rollable = rollable.clone();
        share.forward = Some(ForwardShare { epoch: job.epoch, origin: job.origin, hash, is_block: true });
        share
    }

    #[test]
    fn a_block_that_the_next_tip_overtook_is_still_made_and_an_older_one_is_not() {
        let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(16), transactions: 3 };
        let chain = DevChain::new(settings, Clock::start());
        let templates = chain.templates();
        let newest = || templates.borrow().clone().expect("always there");
        let rules = CoinbaseRules::new(vec![0x51], Vec::new(), EXTRANONCE_SIZE).expect("it fits");
        let mut jobs = PoolJobs::new(rules, JobNumber(100));
        jobs.handle_template(newest()).expect("a coinbase fits");
        let share = solve(&jobs);
        let block = jobs.block(&share).expect("its job is the active one");
        assert!(chain.submit(&block.bytes).is_accepted());
        jobs.handle_template(newest()).expect("a coinbase fits");
        assert_eq!(jobs.block(&share), Some(block), "it may still win");
        let next = jobs.block(&solve(&jobs)).expect("its job is the active one");
        assert!(chain.submit(&next.bytes).is_accepted());
        jobs.handle_template(newest()).expect("a coinbase fits");
        assert_eq!(jobs.block(&share), None);
    }

    /// A custom job of a template, found good by its server.
    fn custom(template: &BlockTemplate, is_shown: bool) -> CustomJob {
        let ours = JobTemplate::of_block_template(template);
        let outputs: Arc<[Output]> = [Output { value: 0, script: vec![0x52] }].into();
        let coinbase = ours.coinbase(&outputs, b"", EXTRANONCE_SIZE).expect("it fits");
        let raw = template.transactions.iter().map(|transaction| RawTransaction::parse(&transaction.raw));
        let (parts, tip) = (coinbase.parts(), PoolTip::from(template));
        let declared = is_shown.then(|| {
            let transactions = raw.collect::<Result<_, _>>().expect("transactions");
            let id = DeclarationId(1);
            let declared = DeclaredJob::new(id, ours.version, coinbase, outputs, transactions, tip);
            Arc::new(declared.expect("its parts fit together"))
        });
        CustomJob {
            version: ours.version,
            tip,
            min_ntime: ours.start_time,
            coinbase: parts,
            merkle_path: ours.merkle_path,
            payout: ours.value,
            declared,
        }
    }

    #[test]
    fn a_block_of_a_custom_job_is_made_for_as_long_as_it_may_win() {
        let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(16), transactions: 3 };
        let clock = Clock::start();
        let chain = DevChain::new(settings, clock);
        let templates = chain.templates();
        let newest = || templates.borrow().clone().expect("always there");
        let rules = CoinbaseRules::new(vec![0x51], Vec::new(), EXTRANONCE_SIZE).expect("it fits");
        let mut jobs = PoolJobs::new(rules, JobNumber(100));
        let first = newest();
        let early = jobs.handle_custom_job(custom(&first, true), clock.now());
        assert_eq!(early.map(|job| job.job.number), Err("stale-chain-tip"), "there is no tip yet");
        jobs.handle_template(Arc::clone(&first)).expect("a coinbase fits");
        let take = |jobs: &mut PoolJobs, is_shown| {
            solve_job(&jobs.handle_custom_job(custom(&first, is_shown), clock.now()).expect("its tip").job)
        };
        let (shown, hidden) = (take(&mut jobs, true), take(&mut jobs, false));
        assert_eq!(jobs.work().expect("there is a job").jobs.len(), 1, "nobody else mines on them");
        let Solved::Block(block) = jobs.solved(&shown) else { panic!("{:?}", jobs.solved(&shown)) };
        assert_eq!(jobs.solved(&hidden), Solved::AtItsMiner(first.height));
        assert!(chain.submit(&block.bytes).is_accepted());
        jobs.handle_template(newest()).expect("a coinbase fits");
        assert_eq!(jobs.solved(&shown), Solved::Block(block), "it may still win");
        let late = jobs.handle_custom_job(custom(&first, true), clock.now());
        assert_eq!(late.map(|job| job.job.number), Err("stale-chain-tip"));
        let Solved::Block(next) = jobs.solved(&solve(&jobs)) else { panic!("its job is the active one") };
        assert!(chain.submit(&next.bytes).is_accepted());
        jobs.handle_template(newest()).expect("a coinbase fits");
        assert_eq!((jobs.solved(&shown), jobs.solved(&hidden)), (Solved::Retired, Solved::Retired));
    }

    #[test]
    fn what_is_kept_of_custom_jobs_is_bounded() {
        let rules = CoinbaseRules::new(vec![0x51], Vec::new(), EXTRANONCE_SIZE).expect("it fits");
        let mut jobs = PoolJobs::new(rules, JobNumber(100));
        let taken = |size| TakenJob { tip: TipNumber(1), height: 1, declared: None, size };
        for number in 0..2 * MAX_SOLVABLE_CUSTOM as u64 {
            jobs.keep_taken(JobNumber(number), taken(1));
        }
        assert_eq!(jobs.taken.len(), MAX_SOLVABLE_CUSTOM);
        let newest = JobNumber(3 * MAX_SOLVABLE_CUSTOM as u64);
        jobs.keep_taken(newest, taken(MAX_CUSTOM_BYTES));
        assert_eq!(jobs.taken.keys().collect::<Vec<_>>(), [&newest], "the newest stays");
    }
}

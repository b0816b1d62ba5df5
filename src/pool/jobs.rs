//! A pool's own jobs, from templates to jobs and from shares to blocks.
//!
//! Pure, like the roles: no clock, no socket, no queue. It stands here because it needs both templates and jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use mining_server::{ForwardShare, JobBook, Work};
use stratum::job::{JobParts, RESERVED_SIZE, Rolled};
use stratum::{Epoch, JobNumber, Now, Target, TipNumber, UpstreamChannelId, UpstreamId, UpstreamJobId};
use stratum::{JobOrigin, Tip};
use template::{BlockTemplate, CoinbaseError, CoinbaseRules, assemble_block};

/// Bytes that an SV2 downstream may roll after the reserved ones: enough for three more proxies below us, each
/// with reserved bytes of its own, and short enough for every known firmware.
pub const ROLLED_SIZE: usize = 16;

/// The extranonce that our coinbases leave room for.
pub const EXTRANONCE_SIZE: usize = RESERVED_SIZE + ROLLED_SIZE;

/// Makes jobs of templates, and blocks of shares.
#[derive(Debug)]
pub struct PoolJobs {
    rules: CoinbaseRules,
    book: JobBook,
    tip: Option<Tip>,
    /// The templates of the jobs that a share may still be for.
    templates: BTreeMap<JobNumber, Arc<BlockTemplate>>,
    newest: Option<Arc<BlockTemplate>>,
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
        PoolJobs { rules, book, tip: None, templates: BTreeMap::new(), newest: None }
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
            coinbase_prefix: parts.prefix,
            coinbase_suffix: parts.suffix,
            rollable_size: EXTRANONCE_SIZE,
            merkle_path: template.merkle_path.clone(),
            upstream_target: Target::HARDEST,
            received: template.received,
        });
        self.newest = Some(Arc::clone(&template));
        self.keep_template(number);
        Ok(())
    }

    /// Makes the active job anew with a later time. False when there is none, or too little time has passed.
    pub fn refresh(&mut self, now: Now) -> bool {
        let number = self.book.next_number();
        let refreshed = self.book.refresh(now);
        if refreshed {
            self.keep_template(number);
        }
        refreshed
    }

    /// What to publish; `None` until there is a template.
    pub fn work(&self) -> Option<Work> {
        self.book.work()
    }

    /// The block that a share solved; `None` when its job has retired since.
    pub fn block(&self, share: &ForwardShare) -> Option<FoundBlock> {
        let template = self.templates.get(&share.job)?;
        let work = self.book.work()?;
        let mining_server::work::JobLookup::Live(published) = work.job(share.job) else { return None };
        let (reserved, rolled) = share.rollable.split_first_chunk::<RESERVED_SIZE>()?;
        let header = published.job.header(&Rolled {
            reserved: *reserved,
            extranonce: rolled,
            version: share.version,
            ntime: share.ntime,
            nonce: share.nonce,
        });
        let coinbase =
            [&published.job.coinbase_prefix, share.rollable.as_slice(), &published.job.coinbase_suffix]
                .concat();
        let bytes = assemble_block(template, &coinbase, &header);
        Some(FoundBlock { height: template.height, hash: share.hash, bytes })
    }

    fn keep_template(&mut self, number: JobNumber) {
        let template = self.newest.clone().expect("a job was just made of it");
        self.templates.insert(number, template);
        let oldest = self.book.work().expect("a job was just added").oldest();
        self.templates = self.templates.split_off(&oldest);
    }

    fn next_tip(&self) -> TipNumber {
        TipNumber(self.tip.map_or(1, |tip| tip.number.0 + 1))
    }
}

//! One SV1 miner: what it was told, what it hashes, and which of its shares are not answered yet.
//!
//! It never touches its socket: bytes come in, and go into the thread's buffer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use stratum::Target;
use stratum::job::SV1_VERSION_MASK;
use stratum::sv1::client::{self, MAX_SERVER_LINE_BYTES, Response, ServerLine};

use super::figures::{Class, Counts, SwarmFigures, add};
use super::job::{Grind, JobCache, JobLine, Terms, target_of};
use crate::in_flight::{InFlight, ShareKey, nanoseconds};
use crate::scan;

const CONFIGURE: u64 = 1;
const SUBSCRIBE: u64 = 2;
const AUTHORIZE: u64 = 3;
const FIRST_SUBMIT: u64 = 4;

/// A server whose line cannot be used; the connection is closed.
#[derive(Clone, Debug)]
pub(super) struct Unusable(pub(super) String);

/// What the miners of a thread have in common.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) figures: SwarmFigures,
    pub(super) counts: Arc<Counts>,
    pub(super) jobs: JobCache,
    pub(super) watch: Option<Watch>,
    pub(super) in_flight: Arc<InFlight>,
    /// The last extranonce that was used; no two of a swarm are equal, so that a share is known by its extranonce
    /// and nonce alone.
    pub(super) extranonce2: u32,
}

/// A block that is waited for.
#[derive(Debug)]
pub(super) struct Watch {
    /// Counts the blocks that were watched for, from 1.
    pub(super) number: u64,
    /// As the line shows it.
    pub(super) previous_hash: Vec<u8>,
    /// When each miner had it.
    pub(super) arrivals: Vec<Instant>,
}

/// One miner.
#[derive(Debug)]
pub(super) struct Miner {
    pub(super) class: Class,
    worker_name: String,
    /// A line of the server that is not whole yet.
    unfinished: Vec<u8>,
    extranonce1: Vec<u8>,
    extranonce2_size: usize,
    version_mask: Option<u32>,
    /// That of the jobs to come.
    target: Option<Target>,
    job: Option<(JobLine, Target)>,
    grind: Option<Grind>,
    next_id: u64,
    unanswered: VecDeque<Unanswered>,
    /// Counts the jobs that voided all before them.
    cleans: u32,
    pub(super) is_ready: bool,
    seen_block: u64,
}

/// A share that was not answered yet.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    id: u64,
    submitted: Instant,
    cleans: u32,
}

impl Miner {
    pub(super) const fn new(class: Class, worker_name: String) -> Self {
        Miner {
            class,
            worker_name,
            unfinished: Vec::new(),
            extranonce1: Vec::new(),
            extranonce2_size: 0,
            version_mask: None,
            target: None,
            job: None,
            grind: None,
            next_id: FIRST_SUBMIT,
            unanswered: VecDeque::new(),
            cleans: 0,
            is_ready: false,
            seen_block: 0,
        }
    }

    /// Appends what a miner says first.
    pub(super) fn write_greeting(&self, out: &mut Vec<u8>) {
        client::configure(out, CONFIGURE, Some(SV1_VERSION_MASK));
        client::subscribe(out, SUBSCRIBE, concat!("load/", env!("CARGO_PKG_VERSION")), None);
        client::authorize(out, AUTHORIZE, &self.worker_name, "x");
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Takes bytes of the server, which were read at `now`.
    pub(super) fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
        desk: &mut Desk,
    ) -> Result<(), Unusable> {
        if !self.unfinished.is_empty() {
            let Some((end, rest)) = scan::split_line(bytes) else {
                self.unfinished.extend_from_slice(bytes);
                return self.check_unfinished();
            };
            let mut line = std::mem::take(&mut self.unfinished);
            line.extend_from_slice(end);
            self.handle_line(&line, now, desk)?;
            bytes = rest;
        }
        while let Some((line, rest)) = scan::split_line(bytes) {
            self.handle_line(line, now, desk)?;
            bytes = rest;
        }
        self.unfinished.extend_from_slice(bytes);
        self.check_unfinished()
    }

    fn check_unfinished(&self) -> Result<(), Unusable> {
        match self.unfinished.len() {
            0..=MAX_SERVER_LINE_BYTES => Ok(()),
            _ => Err(Unusable("a line that does not end".to_owned())),
        }
    }

    fn handle_line(&mut self, line: &[u8], now: Instant, desk: &mut Desk) -> Result<(), Unusable> {
        if let Some(accepted) = scan::accepted(line)
            && accepted.id >= FIRST_SUBMIT
        {
            self.handle_answer(accepted.id, None, now, desk);
            return Ok(());
        }
        if let Some(head) = scan::notify(line) {
            self.handle_job(line, head, now, desk);
            return Ok(());
        }
        match ServerLine::parse(line).map_err(|error| Unusable(error.to_string()))? {
            ServerLine::SetDifficulty(difficulty) => self.target = Some(target_of(difficulty)),
            ServerLine::SetVersionMask(mask) => self.version_mask = Some(mask),
            ServerLine::SetExtranonce(extranonce) => {
                self.extranonce1 = extranonce.extranonce1;
                self.extranonce2_size = extranonce.extranonce2_size;
            }
            ServerLine::Response(response) => self.handle_response(&response, now, desk)?,
            ServerLine::Reconnect => return Err(Unusable("a wish to reconnect".to_owned())),
            // Nobody asks a load program for its version, and pings are for firmware.
            ServerLine::Notify(_)
            | ServerLine::Ping { .. }
            | ServerLine::GetVersion { .. }
            | ServerLine::Other(_) => {}
        }
        Ok(())
    }

    fn handle_response(
        &mut self,
        response: &Response,
        now: Instant,
        desk: &mut Desk,
    ) -> Result<(), Unusable> {
        match response.id {
            Some(CONFIGURE) => self.version_mask = response.granted_mask(),
            Some(SUBSCRIBE) => {
                let subscribed = response.subscribed();
                let subscribed = subscribed.ok_or_else(|| Unusable(format!("subscribing: {response:?}")))?;
                let extranonce = subscribed.extranonce;
                if extranonce.extranonce2_size < 4 {
                    return Err(Unusable(format!("{} bytes to roll", extranonce.extranonce2_size)));
                }
                self.extranonce1 = extranonce.extranonce1;
                self.extranonce2_size = extranonce.extranonce2_size;
            }
            Some(AUTHORIZE) if !response.accepted() => {
                return Err(Unusable(format!("authorising: {response:?}")));
            }
            Some(id @ FIRST_SUBMIT..) => {
                let reason = match &response.error {
                    Some(error) => Some(format!("{} {}", error.code, error.message)),
                    None => (!response.accepted()).then(|| "neither accepted nor an error".to_owned()),
                };
                self.handle_answer(id, reason, now, desk);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_job(&mut self, line: &[u8], head: scan::NotifyHead<'_>, now: Instant, desk: &mut Desk) {
        if let Some(watch) = &mut desk.watch
            && self.seen_block != watch.number
            && *watch.previous_hash == *head.previous_hash
        {
            self.seen_block = watch.number;
            watch.arrivals.push(now);
            add(&desk.counts.arrivals, 1);
        }
        if head.clean {
            self.cleans = self.cleans.wrapping_add(1);
        }
        // A server that sets no difficulty means difficulty 1.
        let target = self.target.unwrap_or(Target::DIFFICULTY_1);
        self.job = Some((desk.jobs.line(line), target));
        self.grind = None;
        if !self.is_ready {
            self.is_ready = true;
            add(&desk.counts.ready, 1);
        }
    }

    /// An answer to a share; no reason means that it was accepted.
    fn handle_answer(&mut self, id: u64, refused: Option<String>, now: Instant, desk: &mut Desk) {
        let figures = desk.figures.of(self.class);
        let Some(at) = self.unanswered.iter().position(|share| share.id == id) else {
            figures.count_refusal("an answer to no share".to_owned());
            return;
        };
        let share = self.unanswered.remove(at).expect("it was found there");
        figures.answered.saturating_record(nanoseconds(share.submitted, now));
        match refused {
            None => {
                figures.accepted += 1;
                add(&desk.counts.accepted, 1);
            }
            Some(reason) => {
                add(&desk.counts.refused, 1);
                match share.cleans == self.cleans {
                    true => figures.count_refusal(reason),
                    false => figures.stale_crossing += 1,
                }
            }
        }
    }

    /// Finds a share and appends its submission, to be written at once. False when there is nothing to hash.
    pub(super) fn submit(&mut self, desk: &mut Desk, out: &mut Vec<u8>) -> bool {
        let Some((extranonce2, nonce)) = self.find_share(desk) else { return false };
        // Not before: what the swarm hashes is no latency of the target.
        let now = Instant::now();
        let id = self.next_id;
        self.next_id += 1;
        let grind = self.grind.as_ref().expect("it found the share");
        grind.write_submission(id, nonce, out);
        self.unanswered.push_back(Unanswered { id, submitted: now, cleans: self.cleans });
        add(&desk.counts.submitted, 1);
        if let Some(key) = ShareKey::sampled(extranonce2, nonce) {
            desk.in_flight.submitted(key, now);
        }
        true
    }

    fn find_share(&mut self, desk: &mut Desk) -> Option<(u32, u32)> {
        loop {
            if let Some(grind) = &mut self.grind {
                if let Some(nonce) = grind.next_share() {
                    return Some((grind.extranonce2, nonce));
                }
                self.grind = None;
            }
            let (line, target) = self.job.as_ref()?;
            let job = desk.jobs.parsed(line)?;
            let terms = Terms {
                worker_name: &self.worker_name,
                extranonce1: &self.extranonce1,
                extranonce2_size: self.extranonce2_size,
                version_mask: self.version_mask,
                target: *target,
            };
            desk.extranonce2 += 1;
            self.grind = Some(Grind::new(&job, &terms, desk.extranonce2));
        }
    }
}

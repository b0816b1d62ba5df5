//! What a floor says to a line: a scanner that knows where the fields of a submission are, one hash, one comparison.

use stratum::Job;
use stratum::job::{EXTRANONCE2_SIZE, RESERVED_SIZE, Rolled, SV1_VERSION_MASK};
use stratum::sv1::render::NotifyLine;

use super::{job_of, with_extranonce_prefix};
use crate::block::{Block, VERSION};
use crate::scan::{self, Strings};

/// A job of a floor, with everything that is rendered once.
#[derive(Debug)]
pub(super) struct FloorJob {
    job: Job,
    id: Vec<u8>,
    line: NotifyLine,
    /// The `mining.set_difficulty` line that goes before a connection's first job.
    difficulty_line: String,
}

impl FloorJob {
    pub(super) fn new(block: &Block, difficulty_exponent: i32) -> Self {
        let job = job_of(&with_extranonce_prefix(block), difficulty_exponent);
        let line = NotifyLine::render(&job);
        let difficulty = 2f64.powi(difficulty_exponent);
        FloorJob {
            id: line.job_id().as_bytes().to_vec(),
            line,
            difficulty_line: format!(
                "{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{difficulty}]}}\n"
            ),
            job,
        }
    }

    /// The `mining.notify` line.
    pub(super) fn line(&self) -> &[u8] {
        self.line.as_bytes()
    }
}

/// A connection's side of the conversation.
#[derive(Debug)]
pub(super) struct Peer {
    reserved: [u8; RESERVED_SIZE],
    /// Whether it is sent new jobs.
    pub(super) is_authorized: bool,
}

/// A line that no miner sends; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Peer {
    pub(super) const fn new(reserved: [u8; RESERVED_SIZE]) -> Self {
        Peer { reserved, is_authorized: false }
    }

    /// Answers every whole line of `bytes`. Returns what is left.
    pub(super) fn answer_lines<'a>(
        &mut self,
        mut bytes: &'a [u8],
        job: &FloorJob,
        out: &mut Vec<u8>,
    ) -> Result<&'a [u8], Malformed> {
        while let Some((line, rest)) = scan::split_line(bytes) {
            self.answer(line, job, out)?;
            bytes = rest;
        }
        Ok(bytes)
    }

    fn answer(&mut self, line: &[u8], job: &FloorJob, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let id = scan::id(line).ok_or(Malformed)?;
        let mut strings = scan::after(line, b"\"method\":").map(Strings::of).ok_or(Malformed)?;
        match strings.next().ok_or(Malformed)? {
            b"mining.submit" => {
                let verdict = self.judge(&mut strings, job).ok_or(Malformed)?;
                answer_with(out, id, verdict.as_bytes());
            }
            b"mining.configure" => {
                answer_with(out, id, b"\"result\":{\"version-rolling\":true,\"version-rolling.mask\":\"1fffe000\"},\"error\":null}\n");
            }
            b"mining.subscribe" => {
                let extranonce1 = u32::from_be_bytes(self.reserved);
                let result = format!(
                    "\"result\":[[[\"mining.notify\",\"{extranonce1:08x}\"]],\"{extranonce1:08x}\",{EXTRANONCE2_SIZE}],\"error\":null}}\n"
                );
                answer_with(out, id, result.as_bytes());
            }
            b"mining.authorize" => {
                answer_with(out, id, ACCEPTED.as_bytes());
                self.is_authorized = true;
                out.extend_from_slice(job.difficulty_line.as_bytes());
                out.extend_from_slice(job.line());
            }
            _ => answer_with(out, id, b"\"result\":null,\"error\":[20,\"Other/Unknown\",null]}\n"),
        }
        Ok(())
    }

    /// Judges a submission whose method was taken from `strings` already. `None` when it is malformed.
    fn judge(&self, strings: &mut Strings<'_>, job: &FloorJob) -> Option<&'static str> {
        let (_params, _user) = (strings.next()?, strings.next()?);
        let job_id = strings.next()?;
        let extranonce2 = scan::hex_number(strings.next()?)?;
        let (ntime, nonce) = (scan::hex_number(strings.next()?)?, scan::hex_number(strings.next()?)?);
        let bits = strings.next().map_or(Some(0), scan::hex_number)?;
        if job_id != job.id {
            return Some(UNKNOWN_JOB);
        }
        let job = &job.job;
        let rolled = Rolled {
            reserved: self.reserved,
            extranonce: &extranonce2.to_be_bytes(),
            version: VERSION & !SV1_VERSION_MASK | bits & SV1_VERSION_MASK,
            ntime,
            nonce,
        };
        let is_met = job.upstream_target.is_met_by(&job.hash(&rolled));
        Some(if is_met { ACCEPTED } else { LOW_DIFFICULTY })
    }
}

const ACCEPTED: &str = "\"result\":true,\"error\":null}\n";
const UNKNOWN_JOB: &str = "\"result\":null,\"error\":[21,\"Job not found\",null]}\n";
const LOW_DIFFICULTY: &str = "\"result\":null,\"error\":[23,\"Low difficulty share\",null]}\n";

fn answer_with(out: &mut Vec<u8>, id: &[u8], rest: &[u8]) {
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(id);
    out.push(b',');
    out.extend_from_slice(rest);
}

//! An SV1 miner. It builds its headers from the lines that it reads, with the client's code, which shares none with
//! the server's.

use stratum::Difficulty;
use stratum::Target;
use stratum::sv1::client::{self, Notify, RolledVersion, ServerLine, Solution};
use stratum::sv1::line::LineBuffer;

use crate::hashing;
use crate::net::{LinkId, Net};
use crate::witness::{Submission, newer};

const CONFIGURE: u64 = 1;
const SUBSCRIBE: u64 = 2;
const AUTHORIZE: u64 = 3;
const OTHER: u64 = 4;
const FIRST_SUBMIT: u64 = 10;

/// How one firmware differs from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    /// The version bits that it asks for; none without `mining.configure`.
    pub(crate) mask: Option<u32>,
    /// It authorises before it subscribes.
    pub(crate) authorizes_first: bool,
    /// It applies a difficulty to the job that it has.
    pub(crate) is_hasty: bool,
    /// It goes on with its job when another one comes that is not clean.
    pub(crate) is_lazy: bool,
    /// It starts with the same extranonce2 again for every job.
    pub(crate) restarts: bool,
    /// It moves the time on with its clock.
    pub(crate) rolls_time: bool,
    /// It submits a share twice at times.
    pub(crate) stutters: bool,
    pub(crate) suggests: Option<f64>,
    pub(crate) password: &'static str,
}

#[derive(Debug)]
struct Current {
    notify: Notify,
    target: Target,
    /// The version bits that may be rolled: a new mask is for the jobs that follow it.
    mask: u32,
    since: u32,
}

#[derive(Debug)]
pub(crate) struct Sv1Miner {
    dialect: Dialect,
    link: LinkId,
    index: usize,
    user: String,
    lines: LineBuffer,
    extranonce1: Vec<u8>,
    extranonce2_size: usize,
    extranonce2: u32,
    nonce: u32,
    mask: u32,
    difficulty: Option<f64>,
    current: Option<Current>,
    newest: u32,
    next_id: u64,
}

impl Sv1Miner {
    pub(crate) fn connect(
        dialect: Dialect,
        link: LinkId,
        index: usize,
        user: &str,
        out: &mut Vec<u8>,
    ) -> Self {
        if let Some(mask) = dialect.mask {
            client::configure(out, CONFIGURE, Some(mask));
        }
        if dialect.authorizes_first {
            client::authorize(out, AUTHORIZE, user, dialect.password);
            client::subscribe(out, SUBSCRIBE, "simulated/1", None);
        } else {
            client::subscribe(out, SUBSCRIBE, "simulated/1", None);
            client::authorize(out, AUTHORIZE, user, dialect.password);
        }
        if let Some(difficulty) = dialect.suggests {
            client::suggest_difficulty(out, OTHER, difficulty);
            client::extranonce_subscribe(out, OTHER + 1);
        }
        Sv1Miner {
            dialect,
            link,
            index,
            user: user.to_owned(),
            lines: LineBuffer::new(client::MAX_SERVER_LINE_BYTES),
            extranonce1: Vec::new(),
            extranonce2_size: 0,
            extranonce2: 0,
            nonce: 0,
            mask: 0,
            difficulty: None,
            current: None,
            newest: 0,
            next_id: FIRST_SUBMIT,
        }
    }

    /// False when the miner leaves.
    pub(crate) fn read(&mut self, mut bytes: &[u8], net: &mut Net, out: &mut Vec<u8>) -> bool {
        let mut lines = std::mem::take(&mut self.lines);
        while let Some(line) = lines.next_line(&mut bytes).expect("a server's lines are short") {
            let line = ServerLine::parse(line).expect("a server's lines are well-formed");
            self.take(line, net, out);
        }
        self.lines = lines;
        true
    }

    pub(crate) fn target(&self) -> Option<Target> {
        let current = self.current.as_ref()?;
        Some(if self.dialect.is_hasty { self.advertised() } else { current.target })
    }

    pub(crate) fn mine(&mut self, net: &mut Net, out: &mut Vec<u8>) {
        let Some(target) = self.target() else { return };
        let Some(current) = &self.current else { return };
        let notify = &current.notify;
        self.extranonce2 = self.extranonce2.wrapping_add(1);
        let extranonce2 = self.extranonce2.to_be_bytes();
        let extranonce2 = &extranonce2[..self.extranonce2_size];
        let elapsed = net.now.unix_seconds() - current.since;
        let ntime = notify.ntime + if self.dialect.rolls_time { elapsed } else { 0 };
        let bits = (net.dice.next() as u32) & current.mask;
        let version_rolling = (current.mask != 0).then_some(RolledVersion { mask: current.mask, bits });
        let mut solution = Solution { extranonce2, ntime, nonce: 0, version_rolling };
        let header = notify.header(&self.extranonce1, &solution);
        let (nonce, hash) = hashing::grind(&header, self.nonce, target);
        self.nonce = nonce.wrapping_add(1);
        solution.nonce = nonce;
        assert_eq!(notify.hash(&self.extranonce1, &solution), hash, "two ways to hash agree");
        let version = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let repeats = self.dialect.stutters && net.dice.chance(0.05);
        for is_repeated in [false, true].into_iter().filter(|again| repeats || !again) {
            let id = self.next_id;
            self.next_id += 1;
            client::submit(out, id, &self.user, &notify.job_id, &solution);
            let submission = Submission {
                channel: 0,
                number: id,
                job: self.job_number(&notify.job_id),
                newest: Some(self.newest),
                version,
                ntime,
                nonce,
                difficulty: Difficulty::of_hash(&hash),
                hash: Some(hash),
                target,
                is_repeated,
            };
            net.witness.submitted(self.link, submission);
        }
    }

    fn take(&mut self, line: ServerLine, net: &mut Net, out: &mut Vec<u8>) {
        match line {
            ServerLine::Notify(notify) => self.start(notify, net),
            ServerLine::SetDifficulty(difficulty) => self.difficulty = Some(difficulty),
            ServerLine::SetVersionMask(mask) => self.mask = mask,
            ServerLine::SetExtranonce(_) => panic!("extranonce1 never changes during a connection"),
            ServerLine::Ping { id } => client::pong(out, &id),
            ServerLine::GetVersion { id } => client::version(out, &id, "simulated/1"),
            ServerLine::Reconnect | ServerLine::Other(_) => {}
            ServerLine::Response(response) => match response.id {
                Some(CONFIGURE) => {
                    self.mask = response.granted_mask().expect("a mask is granted, if only zero")
                }
                Some(SUBSCRIBE) => {
                    let subscribed = response.subscribed().expect("everybody may subscribe");
                    self.extranonce1 = subscribed.extranonce.extranonce1;
                    self.extranonce2_size = subscribed.extranonce.extranonce2_size;
                    assert_eq!(
                        (self.extranonce1.len(), self.extranonce2_size),
                        (4, 4),
                        "every firmware takes these"
                    );
                }
                Some(id) if id >= FIRST_SUBMIT => net.witness.answered(self.link, id, response.accepted()),
                _ => assert!(response.accepted(), "what is asked politely is granted: {response:?}"),
            },
        }
    }

    fn start(&mut self, notify: Notify, net: &mut Net) {
        net.witness.sv1_job(self.index, &notify.job_id);
        assert!(!self.extranonce1.is_empty(), "no job comes before the subscription");
        let newest = self.job_number(&notify.job_id);
        let is_first = self.current.is_none();
        assert!(is_first || newer(newest, self.newest), "jobs come in order: {newest:x}");
        assert_eq!(is_first, notify.job_id.len() > 16, "the first job's name is the connection's own");
        self.newest = newest;
        let stays = self.dialect.is_lazy && !notify.clean && self.current.is_some() && net.dice.chance(0.5);
        if stays {
            return;
        }
        assert!(self.current.is_some() || notify.clean, "the first job of a connection is clean");
        if let Some(current) = &self.current {
            let same = current.notify.previous_hash == notify.previous_hash;
            assert!(same || notify.clean, "a job on a new tip is clean");
        }
        if self.dialect.restarts {
            (self.extranonce2, self.nonce) = (0, 0);
        }
        let target = self.advertised();
        self.current = Some(Current { notify, target, mask: self.mask, since: net.now.unix_seconds() });
    }

    fn advertised(&self) -> Target {
        let difficulty = self.difficulty.expect("a difficulty comes before the first job");
        Target::from_difficulty_exponent(difficulty.log2().ceil() as i32)
    }

    /// The number of a job. The first one's name ends with eight digits that are the connection's.
    fn job_number(&self, job_id: &str) -> u32 {
        if job_id.len() > 16 { number_of(&job_id[..job_id.len() - 8]) } else { number_of(job_id) }
    }
}

fn number_of(digits: &str) -> u32 {
    u64::from_str_radix(digits, 16).expect("job ids are hexadecimal") as u32
}

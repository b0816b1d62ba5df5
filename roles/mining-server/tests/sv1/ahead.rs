//! Shares that were hashed ahead: nothing else comes of them than without.

use crate::support::*;
use mining_server::Settings;
use mining_server::sv1::Ahead;

/// Two miners who get and send the same, of whom one is looked at ahead.
struct Twins {
    plain: Rig,
    ahead: Rig,
    /// Shares that were found ahead.
    foreseen: usize,
    chance: u64,
}

impl Twins {
    fn new(seed: u64) -> Self {
        let rig = || {
            let mut settings: Settings = settings();
            settings.vardiff.initial_exponent = -32;
            let mut rig = Rig::new(settings);
            rig.source.upstream_exponent = -32;
            rig.source.nbits = 0x1703_a30c;
            rig.job();
            for line in [SUBSCRIBE, AUTHORIZE] {
                rig.send(line);
            }
            rig
        };
        Twins { plain: rig(), ahead: rig(), foreseen: 0, chance: seed }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % limit
    }

    /// One line: nearly always a share, of which some come twice or are wrong.
    fn line(&mut self) -> String {
        let jobs = self.plain.jobs.len();
        let back = self.below(jobs.min(3) as u64) as usize;
        let job = self.plain.jobs[jobs - 1 - back].0.clone();
        let extranonce2 = [0, 0, 0, self.below(4) as u8];
        let nonce = self.below(64) as u32;
        let found = Found { job_id: job.job_id.clone(), extranonce2, ntime: job.ntime, nonce, rolled: None };
        let (ntime, nonce) = (format!("{:08x}", job.ntime), format!("{nonce:08x}"));
        match self.below(16) {
            0 => r#"{"id": 5, "method": "mining.ping", "params": []}"#.to_owned(),
            1 => CONFIGURE.to_owned(),
            2 => found.with_texts(&["0000000001", &ntime, &nonce]),
            3 => found.with_texts(&["00000001", "00000000", &nonce]),
            4 => found.with_texts(&["00000001", &ntime, &nonce, "00e00000"]),
            5 => found.with_texts(&["00000001", &ntime, &nonce, "00000001"]),
            6 => Found { job_id: "ffff".to_owned(), ..found }.line("6"),
            7 => " ".to_owned(),
            _ => found.line("7"),
        }
    }

    /// What arrives together, which may end within a line.
    fn read(&mut self, rest: &mut Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(20) {
            let line = self.line();
            rest.extend_from_slice(line.as_bytes());
            rest.extend_from_slice(if self.below(4) == 0 { b"\r\n" } else { b"\n" });
        }
        let kept = if self.below(3) == 0 { self.below(rest.len() as u64) as usize } else { 0 };
        let late = rest.split_off(rest.len() - kept);
        std::mem::replace(rest, late)
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let plain = self.plain.send_bytes(bytes);
        let mut ahead = Ahead::default();
        let found = ahead.read(&self.ahead.connection, bytes);
        self.foreseen += found;
        ahead.hash([(&self.ahead.connection, found)].into_iter());
        assert_eq!(self.ahead.send_foreseen(bytes, ahead.shares()), plain, "the same answers");
    }

    fn change(&mut self) {
        let (plain, ahead) = match self.below(4) {
            0 => (self.plain.block(), self.ahead.block()),
            1 => (self.plain.job(), self.ahead.job()),
            _ => (self.plain.wait(seconds(3)), self.ahead.wait(seconds(3))),
        };
        assert_eq!(plain, ahead);
    }

    fn assert_same(&mut self) {
        assert_eq!(format!("{:?}", self.plain.shares()), format!("{:?}", self.ahead.shares()), "records");
        assert_eq!(format!("{:?}", self.plain.events), format!("{:?}", self.ahead.events));
        assert_eq!(self.plain.registry.signs, self.ahead.registry.signs);
    }
}

#[test]
fn a_look_ahead_changes_nothing() {
    let mut foreseen = 0;
    for seed in 0..60 {
        let (mut twins, mut rest) = (Twins::new(seed), Vec::new());
        for _ in 0..40 {
            let bytes = twins.read(&mut rest);
            twins.deliver(&bytes);
            twins.assert_same();
            twins.change();
        }
        foreseen += twins.foreseen;
    }
    assert!(foreseen > 1000, "only {foreseen} shares were hashed ahead");
}

/// A line that began before is not to be taken for one that lies in what was read.
#[test]
fn nothing_is_foreseen_while_a_line_is_unfinished_or_a_miner_has_no_job() {
    let mut twins = Twins::new(1);
    let found = Found { nonce: 1, ..twins.plain.grind(&twins.plain.newest(), -32) };
    let lines = format!("{}\n{}\n", found.line("8"), Found { nonce: 2, ..found.clone() }.line("9"));
    let (start, rest) = lines.split_at(10);
    twins.deliver(start.as_bytes());
    twins.deliver(rest.as_bytes());
    assert_eq!(twins.foreseen, 0);
    twins.deliver(lines.as_bytes());
    assert_eq!(twins.foreseen, 2, "they came before, which is the judge's to say");
    twins.assert_same();
    let mut ahead = Ahead::default();
    assert_eq!(ahead.read(&Rig::with_work(settings()).connection, lines.as_bytes()), 0);
}

//! An SV1 connection.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use mining_server::record::RejectReason;
use mining_server::sv1::{Ahead, Sv1Connection};
use mining_server::{Event, Output, Registry, Settings, ShareEvent, Verdict, VersionRolling, Work};
use stratum::sv1::client::ServerLine;
use stratum::{ConnectionId, Now};

use crate::records::{Records, SV1_CHANNEL};
use crate::support::{FakeRegistry, Source, seconds};
use crate::{Change, change};

/// The longest run: more finds nothing new and is slow.
const MAX_OPERATIONS: usize = 300;

/// Bytes that may be answered to each byte that comes in: the shortest line that is answered has ten, and a line that
/// makes the first job go out is no shorter than any other.
const MOST_PER_BYTE: usize = 16;

/// A job with everything that comes before it.
const MOST_PER_CALL: usize = 8192;

#[derive(Debug, Arbitrary)]
pub(crate) enum Operation<'a> {
    Raw(&'a [u8]),
    Line { line: Line<'a>, hold: bool },
    Work(Change),
    OpenFailed,
    Wait(u16),
}

#[derive(Debug, Arbitrary)]
pub(crate) struct Line<'a> {
    id: Option<u8>,
    call: Call<'a>,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Call<'a> {
    Configure { mask: u32, minimum: Option<f64>, extranonce: bool },
    Subscribe,
    Authorize { worker: u8, difficulty: Option<f32> },
    SuggestDifficulty(f64),
    SuggestTarget(u64),
    ExtranonceSubscribe,
    Ping,
    Submit { job: u8, extranonce2: u8, size: u8, ntime: i16, nonce: u8, version: Option<u32> },
    Other(&'a str),
}

struct Run {
    settings: Settings,
    connection: Sv1Connection,
    registry: FakeRegistry,
    source: Source,
    work: Option<Arc<Work>>,
    now: Now,
    /// Lines that wait to arrive together with the next.
    held: Vec<u8>,
    /// Requests that must be answered, and shares that must be judged; no longer known once raw bytes came.
    owed: Option<(u64, u64)>,
    answered: u64,
    /// Jobs as they were sent: name, time, and the easiest difficulty told with it or since.
    jobs: Vec<(String, u32, f64)>,
    told: f64,
    records: Records,
    upstream_open: bool,
    version_rolling: VersionRolling,
    rolled_outside: bool,
    closed: bool,
}

pub(crate) fn run(settings: Settings, operations: &[Operation<'_>]) {
    let now = Now::simulated(seconds(1_700_000_000), seconds(1000));
    let mut registry = FakeRegistry::default();
    let reserved = registry.take_reserved().expect("the first");
    let shared = Arc::new(settings.clone());
    let mut run = Run {
        connection: Sv1Connection::new(shared, ConnectionId(7), reserved, now),
        registry,
        source: Source::new(),
        work: None,
        now,
        held: Vec::new(),
        owed: Some((0, 0)).filter(|_| !settings.proxy_protocol),
        answered: 0,
        jobs: Vec::new(),
        told: f64::INFINITY,
        records: Records::default(),
        upstream_open: false,
        version_rolling: VersionRolling::default(),
        rolled_outside: false,
        closed: false,
        settings,
    };
    for operation in operations.iter().take(MAX_OPERATIONS) {
        run.apply(operation);
        if run.closed {
            break;
        }
    }
    run.finish();
}

impl Run {
    fn apply(&mut self, operation: &Operation<'_>) {
        match operation {
            Operation::Raw(bytes) => {
                self.owed = None;
                self.held.extend_from_slice(bytes);
                self.deliver();
            }
            Operation::Line { line, hold } => {
                self.hold(line);
                if !hold {
                    self.deliver();
                }
            }
            Operation::Work(what) => {
                // With a channel per device, work comes only to who asked for it.
                let wanted = !self.settings.channel_per_device || self.upstream_open;
                let published = change(&mut self.source, self.work.is_some(), *what, self.now);
                if let Some(work) = published.filter(|_| wanted) {
                    self.work = Some(Arc::clone(&work));
                    let now = self.now;
                    self.call(0, |connection, _, out| connection.handle_work(&work, now, out));
                }
            }
            Operation::OpenFailed if self.upstream_open => {
                self.call(0, |connection, _, out| connection.handle_open_failed("no", out));
            }
            Operation::OpenFailed => {}
            Operation::Wait(tenths) => self.wait(Duration::from_millis(u64::from(*tenths) * 100)),
        }
    }

    fn hold(&mut self, line: &Line<'_>) {
        let (method, params) = self.request(&line.call);
        let id = line.id.map_or("null".to_owned(), |id| id.to_string());
        let text = format!("{{\"id\":{id},\"method\":{method},\"params\":{params}}}\n");
        self.held.extend_from_slice(text.as_bytes());
        if let Some((answers, shares)) = &mut self.owed {
            // A method named like an answer is not answered.
            let silent = method == "\"pong\"" || method == "\"mining.pong\"";
            *answers += u64::from(line.id.is_some() && !silent);
            *shares += u64::from(matches!(line.call, Call::Submit { .. }) || method == "\"mining.submit\"");
        }
    }

    fn request(&self, call: &Call<'_>) -> (String, String) {
        let plain = |method: &str| (format!("\"{method}\""), "[]".to_owned());
        let with = |method: &str, params: String| (format!("\"{method}\""), params);
        match call {
            Call::Configure { mask, minimum, extranonce } => {
                let minimum = minimum.filter(|minimum| minimum.is_finite());
                let value =
                    minimum.map_or(String::new(), |value| format!(",\"minimum-difficulty.value\":{value:e}"));
                let more = if *extranonce { ",\"subscribe-extranonce\"" } else { "" };
                let extensions = format!("[\"version-rolling\",\"minimum-difficulty\"{more}]");
                with(
                    "mining.configure",
                    format!("[{extensions},{{\"version-rolling.mask\":\"{mask:08x}\"{value}}}]"),
                )
            }
            Call::Subscribe => with("mining.subscribe", "[\"miner/1.0\"]".to_owned()),
            Call::Authorize { worker, difficulty } => {
                let password = difficulty.map_or("x".to_owned(), |difficulty| format!("d={difficulty}"));
                with("mining.authorize", format!("[\"account.{}\",\"{password}\"]", worker % 4))
            }
            Call::SuggestDifficulty(difficulty) if difficulty.is_finite() => {
                with("mining.suggest_difficulty", format!("[{difficulty:e}]"))
            }
            Call::SuggestDifficulty(_) => plain("mining.suggest_difficulty"),
            Call::SuggestTarget(target) => with("mining.suggest_target", format!("[\"{target:x}\"]")),
            Call::ExtranonceSubscribe => plain("mining.extranonce.subscribe"),
            Call::Ping => plain("mining.ping"),
            Call::Submit { .. } => with("mining.submit", self.submission(call)),
            Call::Other(method) => {
                let method: String = method.chars().take(60).collect();
                (serde_json::to_string(&method).expect("a text"), "[\"x\",\"y\"]".to_owned())
            }
        }
    }

    fn submission(&self, call: &Call<'_>) -> String {
        let Call::Submit { job, extranonce2, size, ntime, nonce, version } = call else {
            unreachable!("the caller looked")
        };
        let newest = self.jobs.len().saturating_sub(1 + usize::from(job % 4));
        let (name, time) = match self.jobs.get(newest) {
            Some((name, time, _)) if *job < 240 => (name.clone(), *time),
            _ => (format!("{job:x}"), self.now.unix_seconds()),
        };
        // Nearly always of the right length.
        let size = if *size < 240 { 4 } else { usize::from(size % 12) };
        let extranonce2 = format!("{:0width$x}", extranonce2 % 4, width = size * 2);
        let ntime = time.wrapping_add_signed(i32::from(*ntime) / 64);
        let version = version.map_or(String::new(), |version| format!(",\"{version:08x}\""));
        format!(
            "[\"account.1\",\"{name}\",\"{extranonce2}\",\"{ntime:08x}\",\"{:08x}\"{version}]",
            nonce % 16
        )
    }

    fn deliver(&mut self) {
        let bytes = std::mem::take(&mut self.held);
        let now = self.now;
        self.call(bytes.len(), |connection, registry, out| {
            let mut ahead = Ahead::default();
            let found = ahead.read(connection, &bytes);
            ahead.hash([(&*connection, found)].into_iter());
            connection.handle_read(&bytes, ahead.shares(), now, registry, out)
        });
    }

    fn wait(&mut self, duration: Duration) {
        let end = self.now.plus(duration);
        while !self.closed && self.connection.next_timeout() <= end.monotonic {
            let step = self.connection.next_timeout().saturating_sub(self.now.monotonic);
            self.now = self.now.plus(step);
            let now = self.now;
            self.call(0, |connection, _, out| connection.handle_timeout(now, out));
            let next = self.connection.next_timeout();
            assert!(self.closed || next > self.now.monotonic, "a timeout is done once");
        }
        self.now = end;
    }

    fn call(
        &mut self,
        bytes_in: usize,
        step: impl FnOnce(&mut Sv1Connection, &mut FakeRegistry, &mut Output),
    ) {
        let mut out = Output::default();
        step(&mut self.connection, &mut self.registry, &mut out);
        assert!(out.bytes.len() <= bytes_in * MOST_PER_BYTE + MOST_PER_CALL, "{} bytes", out.bytes.len());
        assert!(out.bytes.is_empty() || out.bytes.ends_with(b"\n"), "half a line");
        // Judged before what was told in the same call: a share is answered before a new job or difficulty goes out.
        for share in &out.shares {
            self.take_share(share);
        }
        for event in &out.events {
            self.take_event(event);
        }
        for line in out.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.hear(line);
        }
        self.closed |= out.close.is_some();
    }

    fn take_share(&mut self, share: &ShareEvent) {
        assert_eq!(share.record.channel, SV1_CHANNEL);
        self.records.take(&self.settings, self.work.as_deref(), share);
        if share.record.verdict == Verdict::Rejected(RejectReason::LowDifficulty) {
            let reached = share.record.difficulty.expect("it was hashed").0;
            let number = share.record.job.expect("its job is known").0;
            let name = |job: &&(String, u32, f64)| job.0[..16.min(job.0.len())] == format!("{number:016x}");
            let told = self.jobs.iter().find(name).map_or(f64::INFINITY, |(_, _, told)| *told);
            assert!(reached < told, "a share of {reached} was too low, and {told} was told");
        }
    }

    fn take_event(&mut self, event: &Event) {
        match event {
            Event::OpenUpstream { channel, .. } => {
                assert_eq!(*channel, SV1_CHANNEL);
                assert!(!self.upstream_open, "one channel for one device");
                self.upstream_open = true;
            }
            Event::CloseUpstream { .. } => {
                assert!(std::mem::take(&mut self.upstream_open), "what is closed was open");
            }
            Event::HashRate { rate, .. } => assert!(rate.0.is_finite() && rate.0 >= 0.0),
            Event::VersionRolling(state) => {
                assert_ne!(std::mem::replace(&mut self.version_rolling, *state), *state, "no news");
            }
            Event::RolledOutsideMask => {
                assert!(!std::mem::replace(&mut self.rolled_outside, true), "it was said already");
            }
            Event::NewJobWanted { .. } | Event::Notice(_) => {}
        }
    }

    fn hear(&mut self, line: &[u8]) {
        match ServerLine::parse(line).unwrap_or_else(|error| panic!("{error}: {}", line.escape_ascii())) {
            ServerLine::SetDifficulty(difficulty) => {
                assert!(difficulty.is_finite() && difficulty > 0.0);
                self.told = difficulty;
                self.jobs.iter_mut().for_each(|job| job.2 = job.2.min(difficulty));
            }
            ServerLine::Notify(notify) => {
                let is_new = self.jobs.iter().all(|(name, _, _)| *name != notify.job_id);
                assert!(is_new, "a job id came twice");
                assert!(self.told.is_finite(), "a job came before its difficulty");
                self.jobs.push((notify.job_id, notify.ntime, self.told));
            }
            ServerLine::Response(_) => self.answered += 1,
            _ => {}
        }
    }

    fn finish(mut self) {
        if !self.closed {
            self.deliver();
        }
        if let Some((answers, shares)) = self.owed.filter(|_| !self.closed) {
            assert_eq!(self.answered, answers, "every request is answered once");
            assert_eq!(self.records.judged, shares, "every share is judged once");
        }
        self.call(0, |connection, registry, out| {
            connection.handle_closed(registry, out);
            assert!(out.bytes.is_empty(), "nothing is sent to who has gone");
        });
        assert!(self.registry.held.is_empty(), "a reserved value was lost");
        assert!(!self.upstream_open, "an upstream channel was left open");
    }
}

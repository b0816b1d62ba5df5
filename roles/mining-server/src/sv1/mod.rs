//! An SV1 connection as a state machine: lines in, lines out.
//!
//! It never writes to a socket and never waits. What miners send in odd orders and shapes is taken as it comes;
//! what no miner sends closes the connection.
//!
//! ```text
//!            subscribe, authorize (any order, any number of times)      first work
//! Opening ----------------------------------------------------> Ready ------------> Mining
//!    |  60 s without both: closed                                 |  set_difficulty every 30 s of silence
//! ```
//!
//! Only when a whole batch of lines is answered does the first job go out: no notification ever comes between a
//! `mining.configure` and its answer, which cgminer reads as the very next line.

mod ahead;
mod firmware;
mod submit;

use std::sync::Arc;
use std::time::Duration;

use accounting::Introduction;
use stratum::job::{EXTRANONCE2_SIZE, RESERVED_SIZE, SV1_VERSION_MASK};
use stratum::sv1::line::{LineBuffer, MAX_LINE_BYTES};
use stratum::sv1::render::{self, ErrorCode, Grant};
use stratum::sv1::request::{Call, Configure, RawId, Request, RequestError, password_options};
use stratum::{ChannelId, ConnectionId, DeviceId, Difficulty, HashRate, Job, JobNumber, Now, Target};

use crate::judge::{Judge, Submitter};
use crate::output::{CloseReason, Event, Output, Registry, VersionRolling};
use crate::settings::{HANDSHAKE_DEADLINE, KEEPALIVE, Settings};
use crate::work::{PublishedJob, Work};

pub use ahead::{Ahead, Foreseen, MAX_AHEAD, MAX_AHEAD_OF_EACH};

/// The channel that an SV1 connection stands for in records.
pub const SV1_CHANNEL: ChannelId = ChannelId(0);

/// A hash rate estimate is told again when it moved by more than this share: the sum over many devices does not
/// need the noise of each.
const HASH_RATE_STEP: f64 = 0.1;

/// Once a miner mines, its suggestions count this often at most. Each starts vardiff anew, so that a miner which
/// always has a new one would hold it still for ever.
const SUGGESTION_INTERVAL: Duration = Duration::from_secs(60);

/// The device of a connection that authorises with an empty name.
const UNNAMED: &str = "(unnamed)";

/// One SV1 miner's connection.
#[derive(Debug)]
pub struct Sv1Connection {
    settings: Arc<Settings>,
    id: ConnectionId,
    lines: LineBuffer,
    judge: Judge,
    work: Option<Arc<Work>>,
    subscribed: bool,
    user: Option<Box<str>>,
    device: Option<DeviceId>,
    user_agent: Option<Box<str>>,
    /// The mask that the miner asked for, among the bits that we let roll; `None` before it asks.
    asked_mask: Option<u32>,
    /// The mask that it was last told.
    told_mask: u32,
    /// What the driver was last told of the mask.
    version_rolling: VersionRolling,
    /// The last suggestion that counted.
    last_suggestion: Option<i32>,
    next_suggestion: Duration,
    /// The operator was told that this miner rolls bits which it must not roll.
    reported_bits: bool,
    /// The operator was told that this miner's minimum is above the upstream's target.
    reported_minimum: bool,
    /// The first job, which went out under an id of its own.
    first_job: Option<JobNumber>,
    told_rate: HashRate,
    /// When the registry hears of an accepted share next.
    next_sign: Duration,
    opened: Duration,
    last_sent: Duration,
}

impl Sv1Connection {
    /// A connection that was just accepted; its miner will hash with `reserved` as its extranonce1.
    pub fn new(settings: Arc<Settings>, id: ConnectionId, reserved: [u8; RESERVED_SIZE], now: Now) -> Self {
        let lines = match settings.proxy_protocol {
            true => LineBuffer::behind_proxy(MAX_LINE_BYTES),
            false => LineBuffer::new(MAX_LINE_BYTES),
        };
        Sv1Connection {
            judge: Judge::new(reserved, EXTRANONCE2_SIZE, &settings, now),
            settings,
            id,
            lines,
            work: None,
            subscribed: false,
            user: None,
            device: None,
            user_agent: None,
            asked_mask: None,
            told_mask: 0,
            version_rolling: VersionRolling::NotNegotiated,
            last_suggestion: None,
            next_suggestion: now.monotonic,
            reported_bits: false,
            reported_minimum: false,
            first_job: None,
            told_rate: HashRate(0.0),
            next_sign: now.monotonic,
            opened: now.monotonic,
            last_sent: now.monotonic,
        }
    }

    /// Takes bytes that were read.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Now, registry: &mut dyn Registry, out: &mut Output) {
        self.handle_read(bytes, &[], now, registry, out);
    }

    /// As [`Sv1Connection::handle_bytes`], and with the same result, for bytes that an [`Ahead`] has looked at.
    pub fn handle_read(
        &mut self,
        bytes: &[u8],
        mut ahead: &[Foreseen<'_>],
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        let before = out.bytes.len();
        // Taken out so that its lines can be borrowed while the rest of the connection changes.
        let mut lines = std::mem::take(&mut self.lines);
        let mut input = bytes;
        while out.close.is_none() {
            match lines.next_line(&mut input) {
                Ok(Some(line)) => match ahead.split_first() {
                    Some((foreseen, rest)) if foreseen.is_of(line) => {
                        ahead = rest;
                        let (id, submit, known) = foreseen.parts();
                        self.handle_submit(id, submit, known, now, registry, out);
                    }
                    _ => self.handle_line(line, now, registry, out),
                },
                Ok(None) => break,
                Err(error) => out.close = Some(CloseReason::downstream(error.to_string())),
            }
        }
        self.lines = lines;
        if out.close.is_none() {
            self.join(registry, out);
            self.start_mining(now, out);
        }
        self.note_sent(before, now, out);
    }

    /// Takes work that its source published. Before the miner is ready it is only kept.
    pub fn handle_work(&mut self, work: &Arc<Work>, now: Now, out: &mut Output) {
        let before = out.bytes.len();
        let active = work.active();
        self.work = Some(Arc::clone(work));
        if self.first_job.is_none() {
            self.start_mining(now, out);
        } else if active.job.number > self.judge.newest_sent() {
            self.send_job(active, None, out);
        }
        self.note_sent(before, now, out);
    }

    /// When [`Sv1Connection::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self) -> Duration {
        let next = self.judge.next_check();
        if !self.is_ready() {
            return next.min(self.opened + HANDSHAKE_DEADLINE);
        }
        next.min(self.last_sent + KEEPALIVE)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Output) {
        if !self.is_ready() && now.monotonic >= self.opened + HANDSHAKE_DEADLINE {
            let seconds = HANDSHAKE_DEADLINE.as_secs();
            let what = format!("it did not subscribe and authorize within {seconds} seconds");
            out.close = Some(CloseReason::downstream(what));
            return;
        }
        let before = out.bytes.len();
        if now.monotonic >= self.judge.next_check() {
            self.check_difficulty(now, out);
        }
        if self.is_ready() && now.monotonic >= self.last_sent + KEEPALIVE {
            // The one that it knows: a new one goes only with the job from which on it counts.
            let exponent = self.judge.told_exponent().unwrap_or(self.judge.own_exponent());
            render::set_difficulty(&mut out.bytes, Difficulty::from_exponent(exponent));
        }
        self.note_sent(before, now, out);
    }

    /// The upstream refused this device a channel of its own. SV1 has no word for it: closing lets the miner turn
    /// to its next pool.
    pub fn handle_open_failed(&mut self, reason: &str, out: &mut Output) {
        out.close = Some(CloseReason::upstream(format!("the upstream opened no channel: {reason}")));
    }

    /// Gives back what the connection held. The last call.
    pub fn handle_closed(&mut self, registry: &mut dyn Registry, out: &mut Output) {
        registry.give_back_reserved(self.judge.reserved());
        if let Some(device) = self.device {
            registry.leave(SV1_CHANNEL, device);
        }
        if self.settings.channel_per_device && self.device.is_some() {
            out.events.push(Event::CloseUpstream { channel: SV1_CHANNEL });
        }
        if self.told_rate.0 > 0.0 {
            out.events.push(Event::HashRate { channel: SV1_CHANNEL, rate: HashRate(0.0) });
        }
    }

    /// The worker name that it authorised with first.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// What the miner calls itself.
    pub fn user_agent(&self) -> Option<&str> {
        self.user_agent.as_deref()
    }

    /// The device, once authorised and subscribed.
    pub fn device(&self) -> Option<DeviceId> {
        self.device
    }

    /// The miner's address as a load balancer named it (PROXY protocol).
    pub fn proxied_source(&self) -> Option<core::net::SocketAddr> {
        self.lines.proxied_source()
    }

    /// The latest estimate of its hash rate; `None` while unknown.
    pub fn hash_rate(&self, now: Now) -> Option<HashRate> {
        self.judge.hash_rate(now)
    }

    fn is_ready(&self) -> bool {
        self.subscribed && self.device.is_some()
    }

    fn handle_line(&mut self, line: &[u8], now: Now, registry: &mut dyn Registry, out: &mut Output) {
        match Request::parse(line) {
            Ok(request) => self.handle_request(&request, now, registry, out),
            Err(RequestError::BadParams { id, method, parameter }) => {
                if method == "mining.submit" {
                    self.refuse_malformed(now, out);
                }
                render::error_with(
                    &mut out.bytes,
                    id,
                    ErrorCode::Other,
                    &format!("{parameter} is missing or malformed"),
                );
            }
            Err(error) => out.close = Some(CloseReason::downstream(error.to_string())),
        }
    }

    fn handle_request(
        &mut self,
        request: &Request<'_>,
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        let id = request.id;
        match &request.call {
            Call::Submit(submit) => self.handle_submit(id, submit, None, now, registry, out),
            Call::Configure(configure) => self.handle_configure(id, configure, out),
            Call::Subscribe { user_agent, .. } => self.handle_subscribe(id, user_agent, out),
            Call::Authorize { user, password } => {
                self.handle_authorize(user, password, now);
                render::boolean(&mut out.bytes, id, true);
            }
            Call::SuggestDifficulty(difficulty) => {
                self.suggest(Difficulty(*difficulty), now);
                render::boolean(&mut out.bytes, id, true);
            }
            Call::SuggestTarget(target) => {
                self.suggest(target.difficulty(), now);
                render::boolean(&mut out.bytes, id, true);
            }
            // Granted and never used: a new upstream prefix is part of coinb1, and extranonce1 stays as it is.
            Call::ExtranonceSubscribe => render::boolean(&mut out.bytes, id, true),
            Call::Ping => render::pong(&mut out.bytes, id),
            Call::Pong | Call::Response(_) => {}
            Call::GetTransactions | Call::Capabilities | Call::MultiVersion | Call::Unknown(_) => {
                render::error_with(&mut out.bytes, id, ErrorCode::Other, "Unknown method");
            }
        }
    }

    fn handle_configure(&mut self, id: RawId<'_>, configure: &Configure<'_>, out: &mut Output) {
        let allowed = self.work.as_ref().is_none_or(|work| work.active().job.version_rolling_allowed);
        if let Some(asked) = configure.version_rolling {
            let mask = asked.mask & SV1_VERSION_MASK;
            self.asked_mask = Some(mask);
            // A mask of zero keeps the miner, where a refusal makes the cgminer family leave.
            self.told_mask = if allowed { mask } else { 0 };
            self.note_version_rolling(out);
        }
        if let Some(minimum) = configure.minimum_difficulty.flatten() {
            self.judge.set_minimum_exponent(&self.settings, exponent_from(Difficulty(minimum)));
        }
        let grant = Grant {
            version_mask: configure.version_rolling.map(|_| self.told_mask),
            minimum_difficulty: configure.minimum_difficulty.flatten().is_some(),
            subscribe_extranonce: configure.subscribe_extranonce,
        };
        render::configure(&mut out.bytes, id, configure, grant);
    }

    fn handle_subscribe(&mut self, id: RawId<'_>, user_agent: &str, out: &mut Output) {
        self.subscribed = true;
        if !user_agent.is_empty() {
            self.user_agent = Some(user_agent.into());
        }
        let session = format!("{:016x}", self.id.0);
        render::subscribe(&mut out.bytes, id, &session, &self.judge.reserved(), EXTRANONCE2_SIZE);
    }

    /// Everybody may mine: the worker name says whose work it is, and the password only carries options.
    fn handle_authorize(&mut self, user: &str, password: &str, now: Now) {
        if let Some(difficulty) = password_options(password).difficulty {
            self.suggest(Difficulty(difficulty), now);
        }
        let name = if user.is_empty() { UNNAMED } else { user };
        self.user.get_or_insert_with(|| name.into());
    }

    /// Asks which device it is, once all is said that a miner says of itself: some authorise before they subscribe.
    fn join(&mut self, registry: &mut dyn Registry, out: &mut Output) {
        let Some(name) = self.user.as_deref().filter(|_| self.subscribed && self.device.is_none()) else {
            return;
        };
        let introduction = Introduction {
            worker_name: name,
            address: self.proxied_source().map(|source| source.ip()),
            device_id: "",
            user_agent: self.user_agent.as_deref().unwrap_or_default(),
        };
        self.device = Some(registry.join(SV1_CHANNEL, &introduction));
        if self.settings.channel_per_device {
            let work = Target::from_difficulty_exponent(self.judge.own_exponent()).work();
            let rate = HashRate::of_shares(work, self.settings.vardiff.shares_per_minute);
            let user_identity = name.to_owned();
            out.events.push(Event::OpenUpstream { channel: SV1_CHANNEL, user_identity, hash_rate: rate });
        }
    }

    /// NerdMiner repeats its suggestion every 30 seconds as a sign of life: only a new one counts, or it would
    /// undo what the shares have shown.
    fn suggest(&mut self, difficulty: Difficulty, now: Now) {
        let exponent = exponent_of(difficulty);
        if self.last_suggestion == Some(exponent) || now.monotonic < self.next_suggestion {
            return;
        }
        self.last_suggestion = Some(exponent);
        if self.first_job.is_some() {
            self.next_suggestion = now.monotonic + SUGGESTION_INTERVAL;
        }
        self.judge.suggest(&self.settings, exponent, now);
    }

    fn start_mining(&mut self, now: Now, out: &mut Output) {
        if !self.is_ready() || self.first_job.is_some() {
            return;
        }
        let Some(active) = self.work.as_ref().map(|work| Arc::clone(work.active())) else { return };
        // minerd keeps its old work when it sees an id that it knows, even from another connection.
        let number = active.job.number;
        let job_id = format!("{:x}{:08x}", number.0, u32::from_be_bytes(self.judge.reserved()));
        self.first_job = Some(number);
        self.send_job(&active, Some(&job_id), out);
        self.report_long_coinbase(&active.job, out);
        self.tell_hash_rate(now, out);
    }

    fn send_job(&mut self, published: &PublishedJob, own_id: Option<&str>, out: &mut Output) {
        let work = self.work.as_ref().expect("jobs come with work");
        let job = &published.job;
        let clean = self.judge.is_clean(work);
        if let Some(exponent) = self.judge.send_job(&self.settings, work, job) {
            render::set_difficulty(&mut out.bytes, Difficulty::from_exponent(exponent));
            if self.judge.is_told_more_than_upstream() {
                report_minimum(&mut self.reported_minimum, exponent, work.upstream_target, out);
            }
        }
        if let Some(asked) = self.asked_mask {
            let mask = if job.version_rolling_allowed { asked } else { 0 };
            // Some firmware needs it besides the grant, and an S21 drops a pool that sends it before the answer to
            // authorize: so once with the first job, and then whenever it changes.
            if mask != self.told_mask || own_id.is_some() {
                self.told_mask = mask;
                render::set_version_mask(&mut out.bytes, mask);
                self.note_version_rolling(out);
            }
        }
        published.write_notify(own_id, clean, &mut out.bytes);
    }

    /// Says when the miner gains or loses what it negotiated: hash rate that an upstream costs it is only seen so.
    fn note_version_rolling(&mut self, out: &mut Output) {
        let state = match self.asked_mask {
            None | Some(0) => VersionRolling::NotNegotiated,
            Some(_) if self.told_mask == 0 => VersionRolling::Withheld,
            Some(_) => VersionRolling::Granted,
        };
        if self.version_rolling != state {
            self.version_rolling = state;
            out.events.push(Event::VersionRolling(state));
        }
    }

    /// An ASIC that cannot hold a job's coinbase mines nothing or crashes, and says nothing about it.
    fn report_long_coinbase(&self, job: &Job, out: &mut Output) {
        let user_agent = self.user_agent().unwrap_or_default();
        let length = job.coinbase_prefix.len() + job.rollable_size + job.coinbase_suffix.len();
        if let Some(limit) = firmware::longest_coinbase(user_agent)
            && length > limit
        {
            let notice = format!("the coinbase has {length} bytes; {user_agent:?} is known to take {limit}");
            out.events.push(Event::Notice(notice));
        }
    }

    fn current_exponent(&self) -> i32 {
        self.judge.exponent(&self.settings)
    }

    fn check_difficulty(&mut self, now: Now, out: &mut Output) {
        self.judge.check_difficulty(&self.settings, now);
        if self.first_job.is_some() {
            self.tell_hash_rate(now, out);
        }
    }

    fn tell_hash_rate(&mut self, now: Now, out: &mut Output) {
        let guess = || {
            let work = self.judge.work_at(self.current_exponent());
            HashRate::of_shares(work, self.settings.vardiff.shares_per_minute)
        };
        let rate = self.judge.hash_rate(now).unwrap_or_else(guess);
        if (rate.0 - self.told_rate.0).abs() > self.told_rate.0 * HASH_RATE_STEP {
            self.told_rate = rate;
            out.events.push(Event::HashRate { channel: SV1_CHANNEL, rate });
        }
    }

    fn submitter(&self) -> Submitter {
        Submitter { connection: self.id, channel: SV1_CHANNEL, device: self.device }
    }

    fn note_sent(&mut self, before: usize, now: Now, out: &Output) {
        if out.bytes.len() > before {
            self.last_sent = now.monotonic;
        }
    }
}

/// Work that a minimum costs is lost without a trace in any sum: the operator should see that it is, once.
fn report_minimum(reported: &mut bool, exponent: i32, upstream_target: Target, out: &mut Output) {
    if std::mem::replace(reported, true) {
        return;
    }
    let (told, wanted) = (Difficulty::from_exponent(exponent).0, upstream_target.difficulty().0);
    out.events.push(Event::Notice(format!(
        "its minimum difficulty of {told} is above the upstream's of {wanted}: what it finds between the two is never \
         submitted and earns nothing"
    )));
}

/// The smallest power of two that is no easier than `difficulty`, as an exponent.
fn exponent_from(difficulty: Difficulty) -> i32 {
    difficulty.0.log2().ceil().clamp(-32.0, 223.0) as i32
}

/// The greatest power of two that is no harder than `difficulty`, as an exponent.
fn exponent_of(difficulty: Difficulty) -> i32 {
    difficulty.0.log2().floor().clamp(-32.0, 223.0) as i32
}

//! All configured upstreams, and which of them gives the work.
//!
//! They stand in the order in which the operator prefers them. Each is connected, whether it is used or not, so that
//! one that is needed is known to be there and opens its channels at once; only the one that serves has channels. We
//! go over to the next at once when the one that serves is gone, gives no work, or refuses what is good, and go back
//! when a better one has been well for a while ([`Ladder`]). What it gave goes on being hashed until
//! there is work from the other, so that miners stay connected and never stop; then a clean job takes its place.
//!
//! A share goes to the upstream that its job came from, or nowhere: one that has become useless to it is recorded as
//! dropped, and one that was sent and will not be answered as lost.
//!
//! This module never dials, and never judges a share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use job_declarator::client::ClientTally;
use job_declarator::ladder::{Ladder, Patience, Rung};
use mining_server::record::UpstreamVerdict;
use mining_server::{LossReason, ShareEvent};
use stratum::sv2::FrameHeader;
use stratum::{HashRate, JobNumber, Now};
use template::{BlockTemplate, CoinbaseConstraints};

use crate::config::{Endpoint, UpstreamConfig};
use crate::output::{DownstreamKey, Feed, Tally, UpstreamOutput};
use crate::upstream::Upstream;

/// An upstream that is connected, is to serve, and gives no work in this time is in trouble: longer than it may take
/// to answer a request for a channel.
pub const WORK_DEADLINE: Duration = Duration::from_secs(25);

/// How long an upstream that we have left keeps its channels once the next one gives work: shares that were on their
/// way arrive, and their answers come.
pub const LEAVING_FOR: Duration = Duration::from_secs(10);

/// The same where the next one has not opened every device's channel yet: thousands take a while.
pub const LEAVING_FOR_AT_MOST: Duration = Duration::from_secs(120);

/// Why work comes from another upstream than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchReason {
    /// The connection to the one before was lost.
    ConnectionLost,
    /// The one before was connected and gave no work.
    NoWork,
    /// The one before refused one good share after the other.
    SharesRefused,
    /// Nothing more was heard of a job that was declared to the one before, or no token came.
    DeclarationUnanswered,
    /// The job declaration server of the one before refused a job.
    DeclarationRefused,
    /// The one before refused a job that had been declared.
    CustomJobRefused,
    /// A better one is well again.
    FailBack,
}

impl SwitchReason {
    /// All reasons, for those who count by them.
    pub const ALL: [SwitchReason; 7] = [
        SwitchReason::ConnectionLost,
        SwitchReason::NoWork,
        SwitchReason::SharesRefused,
        SwitchReason::DeclarationUnanswered,
        SwitchReason::DeclarationRefused,
        SwitchReason::CustomJobRefused,
        SwitchReason::FailBack,
    ];

    /// The name in metrics and summaries.
    pub const fn name(self) -> &'static str {
        match self {
            SwitchReason::ConnectionLost => "connection_lost",
            SwitchReason::NoWork => "no_work",
            SwitchReason::SharesRefused => "shares_refused",
            SwitchReason::DeclarationUnanswered => "declaration_unanswered",
            SwitchReason::DeclarationRefused => "declaration_refused",
            SwitchReason::CustomJobRefused => "custom_job_refused",
            SwitchReason::FailBack => "fail_back",
        }
    }
}

/// What an upstream is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Work comes from it, or is to.
    Serving,
    /// It is connected, and would serve if it had to.
    Standby,
    /// It is connected, and left alone for its troubles.
    HeldDown,
    /// It is not connected.
    Away,
}

impl Standing {
    /// All of them.
    pub const ALL: [Standing; 4] = [Standing::Away, Standing::Serving, Standing::Standby, Standing::HeldDown];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Standing::Serving => "serving",
            Standing::Standby => "standby",
            Standing::HeldDown => "held_down",
            Standing::Away => "away",
        }
    }
}

/// All upstreams. See the module's documentation.
///
/// An upstream is named by its place in the order of preference, from 0, which is also its
/// [`stratum::UpstreamId`]. Every method takes one output for each upstream, in that order.
#[derive(Debug)]
pub struct Upstreams {
    members: Vec<Member>,
    ladder: Ladder,
    serving: Option<usize>,
    /// Since when the one that serves is connected and gives no work to who wants some.
    workless_since: Option<Duration>,
    switches: [u64; SwitchReason::ALL.len()],
}

#[derive(Debug)]
struct Member {
    upstream: Upstream,
    /// What the ladder was told.
    is_up: bool,
    /// What was last wrong with it.
    fault: SwitchReason,
    leaving: Leaving,
}

/// How far an upstream that served has come with leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// It does not.
    No,
    /// The next one gives no work yet.
    UntilThereIsWork,
    /// The next one has given work since then; it stands by from `at` on.
    At { since: Duration, at: Duration },
}

impl Upstreams {
    /// Upstreams none of which is connected. `first` is the number of the first job of all. Panics when there is
    /// none, more than the ladder has rungs, or one whose id is not its place.
    pub fn new(configs: Vec<UpstreamConfig>, patience: Patience, first: JobNumber, now: Now) -> Self {
        let ladder = Ladder::new(configs.len(), patience, now);
        let members = configs.into_iter().enumerate().map(|(place, config)| {
            assert_eq!(usize::from(config.id.0), place, "an upstream's id is its place");
            let mut upstream = Upstream::new(config, first, now);
            upstream.stand_by(now, &mut UpstreamOutput::default());
            Member { upstream, is_up: false, fault: SwitchReason::ConnectionLost, leaving: Leaving::No }
        });
        Upstreams {
            members: members.collect(),
            ladder,
            serving: None,
            workless_since: None,
            switches: [0; SwitchReason::ALL.len()],
        }
    }

    /// The one that gives the work, or is to; `None` until one was there.
    pub fn serving(&self) -> Option<usize> {
        self.serving
    }

    /// One of them.
    pub fn get(&self, place: usize) -> &Upstream {
        &self.members[place].upstream
    }

    /// One of them, to tell it what devices are called.
    pub fn get_mut(&mut self, place: usize) -> &mut Upstream {
        &mut self.members[place].upstream
    }

    /// What each is used for, in their order.
    pub fn standings(&self, now: Now) -> impl Iterator<Item = Standing> {
        self.members.iter().enumerate().map(move |(place, member)| match member.is_up {
            false => Standing::Away,
            true if self.serving == Some(place) => Standing::Serving,
            true if self.ladder.barred_until(Rung(place)) > now.monotonic => Standing::HeldDown,
            true => Standing::Standby,
        })
    }

    /// How often work came to be from another upstream, in the order of [`SwitchReason::ALL`]. The first choice is
    /// none.
    pub fn switches(&self) -> [u64; SwitchReason::ALL.len()] {
        self.switches
    }

    /// Whether work comes from the one that serves, or still from one that we leave.
    pub fn gives_work(&self) -> bool {
        let is_used = |(place, member): &(usize, &Member)| {
            member.is_up && (self.serving == Some(*place) || member.leaving == Leaving::UntilThereIsWork)
        };
        self.members.iter().enumerate().filter(is_used).any(|(_, member)| member.upstream.gives_work())
    }

    /// What became of all jobs that were declared, and how many shares wait for theirs.
    pub fn declarations(&self) -> (ClientTally, u64) {
        let mut sum = ClientTally::default();
        let mut held = 0;
        for member in &self.members {
            let one = member.upstream.declaration_tally();
            sum.published += one.published;
            sum.declared += one.declared;
            sum.acknowledged += one.acknowledged;
            sum.refused += one.refused;
            sum.solutions_pushed += one.solutions_pushed;
            sum.released += one.released;
            sum.dropped += one.dropped;
            held += member.upstream.held_count() as u64;
        }
        (sum, held)
    }

    /// The room that a template must have for the coinbases of all jobs that are declared.
    pub fn constraints(&self) -> CoinbaseConstraints {
        let each = self.members.iter().map(|member| member.upstream.constraints());
        each.fold(CoinbaseConstraints::default(), CoinbaseConstraints::largest)
    }

    /// What became of all forwarded shares.
    pub fn tally(&self) -> Tally {
        let tallies = self.members.iter().map(|member| member.upstream.tally());
        tallies.fold(Tally::default(), |sum, one| Tally {
            forwarded: sum.forwarded + one.forwarded,
            acknowledged: sum.acknowledged + one.acknowledged,
            rejected: sum.rejected + one.rejected,
            pending: sum.pending + one.pending,
            lost: sum.lost + one.lost,
        })
    }

    /// When [`Upstreams::handle_timeout`] is due, on the monotonic clock. May have changed after every call.
    pub fn next_timeout(&self, now: Now) -> Option<Duration> {
        let own = self.members.iter().filter_map(|member| member.upstream.next_timeout());
        let leaving = self.members.iter().filter_map(|member| match member.leaving {
            Leaving::At { at, .. } => Some(at),
            _ => None,
        });
        let workless = self.workless_since.map(|since| since + WORK_DEADLINE);
        own.chain(leaving).chain(workless).chain(self.ladder.next_timeout(now)).min()
    }

    /// The transport to one is up.
    pub fn handle_connected(
        &mut self,
        place: usize,
        endpoint: &Endpoint,
        now: Now,
        outs: &mut [UpstreamOutput],
    ) {
        self.members[place].upstream.handle_connected(endpoint, now, &mut outs[place]);
        self.review(place, now, outs);
    }

    /// The transport to one is gone. Does nothing when the connection was given up here before.
    pub fn handle_disconnected(&mut self, place: usize, now: Now, outs: &mut [UpstreamOutput]) {
        self.members[place].upstream.handle_disconnected(now, &mut outs[place]);
        self.review(place, now, outs);
    }

    /// A frame came from one. `payload` must be as long as `header` says.
    pub fn handle_frame(
        &mut self,
        place: usize,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        outs: &mut [UpstreamOutput],
    ) {
        self.members[place].upstream.handle_frame(header, payload, now, &mut outs[place]);
        self.review(place, now, outs);
    }

    /// Our node has a template: for those to which jobs are declared.
    pub fn handle_template(&mut self, template: &Arc<BlockTemplate>, now: Now, outs: &mut [UpstreamOutput]) {
        for place in 0..self.members.len() {
            self.members[place].upstream.handle_template(template, now, &mut outs[place]);
            self.review(place, now, outs);
        }
    }

    /// The transport to one's job declaration server is up.
    pub fn handle_declaration_connected(
        &mut self,
        place: usize,
        endpoint: &Endpoint,
        now: Now,
        outs: &mut [UpstreamOutput],
    ) {
        self.members[place].upstream.handle_declaration_connected(endpoint, now, &mut outs[place]);
        self.review(place, now, outs);
    }

    /// The transport to one's job declaration server is gone.
    pub fn handle_declaration_disconnected(&mut self, place: usize, now: Now, outs: &mut [UpstreamOutput]) {
        self.members[place].upstream.handle_declaration_disconnected(now, &mut outs[place]);
        self.review(place, now, outs);
    }

    /// A frame came from one's job declaration server.
    pub fn handle_declaration_frame(
        &mut self,
        place: usize,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        outs: &mut [UpstreamOutput],
    ) {
        self.members[place].upstream.handle_declaration_frame(header, payload, now, &mut outs[place]);
        self.review(place, now, outs);
    }

    /// The place of the upstream that a share is for.
    pub fn place_of(&self, event: &ShareEvent) -> usize {
        let place = event.forward.as_ref().map_or(0, |forward| usize::from(forward.origin.upstream.0));
        // There is none such but in tests; the first one drops it, as it does whatever is not its own.
        if place < self.members.len() { place } else { 0 }
    }

    /// A share was judged: see [`Upstream::handle_share`].
    pub fn handle_share(&mut self, event: ShareEvent, now: Now, outs: &mut [UpstreamOutput]) {
        let place = self.place_of(&event);
        self.members[place].upstream.handle_share(event, now, &mut outs[place]);
    }

    /// A device needs a channel of its own: see [`Upstream::handle_open`].
    pub fn handle_open(
        &mut self,
        key: DownstreamKey,
        worker_name: &str,
        rate: HashRate,
        now: Now,
        outs: &mut [UpstreamOutput],
    ) {
        for (place, member) in self.members.iter_mut().enumerate() {
            member.upstream.handle_open(key, worker_name, rate, now, &mut outs[place]);
            // All have the same devices, so that one that could not take it says it for all.
            if place > 0 {
                outs[place].open_failed.clear();
            }
        }
    }

    /// A device with a channel of its own is gone.
    pub fn handle_close(&mut self, key: DownstreamKey, now: Now, outs: &mut [UpstreamOutput]) {
        for (member, out) in self.members.iter_mut().zip(outs) {
            member.upstream.handle_close(key, now, out);
        }
        self.share_numbers();
    }

    /// A device's hash rate changed: see [`Upstream::handle_hash_rate`].
    pub fn handle_hash_rate(
        &mut self,
        key: DownstreamKey,
        rate: Option<HashRate>,
        now: Now,
        outs: &mut [UpstreamOutput],
    ) {
        for (member, out) in self.members.iter_mut().zip(outs) {
            member.upstream.handle_hash_rate(key, rate, now, out);
        }
    }

    /// A connection wants a new job: see [`Upstream::handle_new_job_wanted`].
    pub fn handle_new_job_wanted(&mut self, feed: Feed) {
        self.members.iter_mut().for_each(|member| member.upstream.handle_new_job_wanted(feed));
    }

    /// The process is ending: closes every channel.
    pub fn handle_shutdown(&mut self, now: Now, outs: &mut [UpstreamOutput]) {
        for (member, out) in self.members.iter_mut().zip(outs) {
            member.upstream.handle_shutdown(now, out);
        }
    }

    /// Time has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: Now, outs: &mut [UpstreamOutput]) {
        for place in 0..self.members.len() {
            self.members[place].upstream.handle_timeout(now, &mut outs[place]);
            self.review(place, now, outs);
        }
        if let Some(rung) = self.ladder.handle_timeout(now) {
            self.switch(rung.0, now, outs);
        }
        self.look_for_work(now, outs);
        self.let_go(now, outs);
    }

    /// Ranges of job numbers are given out by all alike, so that none is given out twice.
    fn share_numbers(&mut self) {
        let first = self.members.iter().map(|member| member.upstream.next_first()).max();
        let first = first.expect("there is at least one");
        self.members.iter_mut().for_each(|member| member.upstream.set_next_first(first));
    }

    /// Looks at what a call has changed on one of them.
    fn review(&mut self, place: usize, now: Now, outs: &mut [UpstreamOutput]) {
        let member = &mut self.members[place];
        let is_up = member.upstream.is_up();
        let trouble = member.upstream.take_trouble();
        let mut chosen = None;
        if is_up != member.is_up {
            member.is_up = is_up;
            if is_up {
                chosen = self.ladder.handle_up(Rung(place), now);
            } else {
                member.fault = trouble.unwrap_or(SwitchReason::ConnectionLost);
                chosen = self.ladder.handle_down(Rung(place), now);
            }
        } else if is_up && self.serving == Some(place) && member.upstream.refuses_shares(now) {
            chosen = self.trouble(place, SwitchReason::SharesRefused, now);
        } else if let Some(trouble) = trouble {
            chosen = self.trouble(place, trouble, now);
        }
        if let Some(rung) = chosen {
            self.switch(rung.0, now, outs);
        }
        if self.members.len() > 1 {
            self.take_over(place, now, outs);
        }
    }

    fn trouble(&mut self, place: usize, fault: SwitchReason, now: Now) -> Option<Rung> {
        self.members[place].fault = fault;
        self.ladder.handle_trouble(Rung(place), now)
    }

    /// Goes over to another upstream.
    fn switch(&mut self, to: usize, now: Now, outs: &mut [UpstreamOutput]) {
        let from = self.serving.replace(to);
        if let Some(from) = from {
            let is_better = to < from && self.ladder.is_up(Rung(from));
            let is_well = self.ladder.barred_until(Rung(from)) <= now.monotonic;
            let reason = if is_better && is_well { SwitchReason::FailBack } else { self.members[from].fault };
            self.switches[reason as usize] += 1;
            let what = format!("work is to come from here: {}", reason.name());
            outs[to].notices.push(what);
            self.members[from].upstream.leave();
            self.members[from].leaving = Leaving::UntilThereIsWork;
            name_lost(&mut outs[from]);
        }
        let mut used = BTreeMap::new();
        for (feed, next) in self.members.iter().flat_map(|member| member.upstream.next_numbers()) {
            let used = used.entry(feed).or_insert(next);
            *used = next.max(*used);
        }
        self.workless_since = None;
        let member = &mut self.members[to];
        member.leaving = Leaving::No;
        member.upstream.serve(&used, now, &mut outs[to]);
        self.share_numbers();
        self.look_for_work(now, outs);
    }

    /// Where the one that serves has work for a feed, all others give none for it any more.
    fn take_over(&mut self, place: usize, now: Now, outs: &mut [UpstreamOutput]) {
        if self.serving != Some(place) {
            return;
        }
        let members = &mut self.members;
        // Nobody is sent away for what an upstream refuses while there is work from another.
        outs[place]
            .open_failed
            .retain(|(key, _)| !members.iter().any(|member| member.upstream.has_work(Feed::Device(*key))));
        if outs[place].publish.is_empty() {
            return;
        }
        for (other, member) in members.iter_mut().enumerate().filter(|(other, _)| *other != place) {
            let given = outs[place].publish.iter().filter(|(_, work)| work.live);
            let taken: Vec<Feed> =
                given.map(|(feed, _)| *feed).filter(|feed| member.upstream.has_work(*feed)).collect();
            for feed in taken {
                member.upstream.retire(feed);
                // What it may have said in the same turn is older.
                outs[other].publish.retain(|(published, _)| *published != feed);
            }
        }
        for member in members.iter_mut().filter(|member| member.leaving == Leaving::UntilThereIsWork) {
            member.leaving = Leaving::At { since: now.monotonic, at: now.monotonic + LEAVING_FOR };
        }
    }

    /// Whether the one that serves gives work to those who want some, and for how long it does not.
    fn look_for_work(&mut self, now: Now, outs: &mut [UpstreamOutput]) {
        let Some(serving) = self.serving.filter(|_| self.members.len() > 1) else { return };
        let member = &self.members[serving];
        if !member.is_up || member.upstream.gives_work() {
            self.workless_since = None;
            return;
        }
        let since = *self.workless_since.get_or_insert(now.monotonic);
        if now.monotonic.saturating_sub(since) < WORK_DEADLINE {
            return;
        }
        self.workless_since = Some(now.monotonic);
        if let Some(rung) = self.trouble(serving, SwitchReason::NoWork, now) {
            self.switch(rung.0, now, outs);
        }
    }

    /// Closes the channels of those that were left, when it is time.
    fn let_go(&mut self, now: Now, outs: &mut [UpstreamOutput]) {
        let serving = self.serving.map(|serving| &self.members[serving].upstream);
        let is_whole = serving.is_some_and(|upstream| upstream.live_feeds() >= upstream.device_count());
        for (member, out) in self.members.iter_mut().zip(outs) {
            let Leaving::At { since, at } = member.leaving else { continue };
            if at > now.monotonic {
                continue;
            }
            if is_whole || now.monotonic >= since + LEAVING_FOR_AT_MOST {
                member.leaving = Leaving::No;
                member.upstream.stand_by(now, out);
            } else {
                member.leaving = Leaving::At { since, at: now.monotonic + LEAVING_FOR };
            }
        }
    }
}

/// What was lost in the turn in which we went over to another upstream was lost by that.
fn name_lost(out: &mut UpstreamOutput) {
    for answer in &mut out.answers {
        if let UpstreamVerdict::Lost { reason, .. } = &mut answer.verdict
            && *reason == LossReason::ConnectionEnded
        {
            *reason = LossReason::Failover;
        }
    }
}

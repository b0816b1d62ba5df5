//! What an upstream's messages mean. A handler fails with the words with which the connection is given up.

use std::sync::Arc;

use mining_server::record::UpstreamVerdict;
use mining_server::{CloseReason, LossReason, UpstreamAnswer};
use stratum::sv2::Message;
use stratum::sv2::codes;
use stratum::sv2::jobs::ExtendedJob;
use stratum::sv2::messages::{
    CloseChannel, OpenExtendedMiningChannelSuccess, OpenMiningChannelError, Reconnect, SetExtranoncePrefix,
    SetGroupChannel, SetNewPrevHash, SetTarget, SetupConnectionSuccess, SubmitSharesError,
    SubmitSharesSuccess,
};
use stratum::{ChannelId, Epoch, Now, UpstreamChannelId, UpstreamJobId, Work};

use super::{LinkState, Upstream, close};
use crate::channel::{self, Channel};
use crate::config::Endpoint;
use crate::feed::{FeedState, Standing};
use crate::notices::quoted;
use crate::output::{Feed, UpstreamOutput};

/// Shares in a row that an upstream refuses before the operator is told.
pub const REFUSALS_WORTH_TELLING: u32 = 100;

pub(super) type Handled = Result<(), String>;

impl Upstream {
    pub(super) fn handle_message(&mut self, message: Message, now: Now, out: &mut UpstreamOutput) -> Handled {
        if self.link == LinkState::SettingUp {
            return self.handle_setup(message, now, out);
        }
        if self.declare_answer(&message, now, out) {
            return Ok(());
        }
        match message {
            Message::OpenExtendedMiningChannelSuccess(message) => self.handle_opened(&message, now, out),
            Message::OpenMiningChannelError(message) => self.handle_not_opened(&message, now, out),
            Message::NewExtendedMiningJob(message) => self.handle_job((&message).into(), now, out),
            Message::SetNewPrevHash(message) => self.handle_tip(&message, now, out),
            Message::SetTarget(message) => self.handle_target(&message, now, out),
            Message::SetExtranoncePrefix(message) => self.handle_prefix(&message, now, out),
            Message::SetGroupChannel(message) => {
                self.handle_group(&message);
                Ok(())
            }
            Message::SubmitSharesSuccess(message) => {
                self.handle_acknowledged(&message, now, out);
                Ok(())
            }
            Message::SubmitSharesError(message) => {
                self.handle_refused(&message, now, out);
                Ok(())
            }
            Message::CloseChannel(message) => {
                self.handle_closed(&message, now, out);
                Ok(())
            }
            Message::UpdateChannelError(message) => {
                let code = quoted(&message.error_code);
                self.tell(now, out, || format!("the upstream refused a hash rate: {code}"));
                Ok(())
            }
            Message::Reconnect(message) => self.handle_reconnect(&message, now, out),
            Message::RequestExtensionsSuccess(message) => self.handle_extensions(&message, now, out),
            Message::RequestExtensionsError(message) => self.handle_no_extensions(&message, now, out),
            // The extension that we use has no state to reset (SV2 3.6.4).
            Message::ChannelEndpointChanged(_) | Message::Unknown(_) => Ok(()),
            message => {
                let name = message.name();
                self.tell(now, out, || format!("the upstream sent {name}, which is ignored"));
                Ok(())
            }
        }
    }

    fn handle_setup(&mut self, message: Message, now: Now, out: &mut UpstreamOutput) -> Handled {
        match message {
            Message::SetupConnectionSuccess(message) => self.handle_set_up(&message, now, out),
            Message::SetupConnectionError(message) => Err(format!(
                "the upstream refused the connection: {} (flags {:#x})",
                quoted(&message.error_code),
                message.flags
            )),
            Message::Reconnect(message) => self.handle_reconnect(&message, now, out),
            Message::Unknown(_) => Ok(()),
            message => Err(format!("the upstream sent {} before it accepted the connection", message.name())),
        }
    }

    fn handle_set_up(
        &mut self,
        message: &SetupConnectionSuccess,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        if message.used_version != codes::PROTOCOL_VERSION {
            return Err(format!("the upstream chose protocol version {}", message.used_version));
        }
        self.fixed_version = message.flags & codes::success_flags::REQUIRES_FIXED_VERSION != 0;
        if !self.negotiate(now, out) {
            self.begin(now, out);
        }
        Ok(())
    }

    /// Everything is agreed: channels can be opened.
    pub(super) fn begin(&mut self, now: Now, out: &mut UpstreamOutput) {
        self.link = LinkState::Ready;
        let feeds: Vec<Feed> = self.feeds.keys().copied().collect();
        for feed in feeds {
            self.enqueue(feed);
        }
        self.open_waiting(now, out);
        let deadline = self.deadline();
        self.schedule_if(deadline);
    }

    fn handle_opened(
        &mut self,
        message: &OpenExtendedMiningChannelSuccess,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        let id = UpstreamChannelId(message.channel_id.0);
        if self.channels.contains_key(&id) {
            return Err(format!("the upstream opened channel {id} twice"));
        }
        let Some(request) = self.requests.remove(&message.request_id) else {
            self.tell(now, out, || format!("the upstream opened channel {id}, which nobody asked for"));
            close(id, codes::close_channel::PROTOCOL_VIOLATION, out);
            self.note_closed(id);
            return Ok(());
        };
        let waiting = request.feed.and_then(|feed| Some((feed, self.feeds.get_mut(&feed)?)));
        let Some((feed, state)) = waiting else {
            // The device went while its request was on its way.
            close(id, codes::close_channel::DOWNSTREAM_DISCONNECTED, out);
            self.note_closed(id);
            self.open_waiting(now, out);
            return Ok(());
        };
        self.epoch = Epoch(self.epoch.0.wrapping_add(1));
        let channel = Channel::open(message, self.epoch, self.fixed_version)?;
        state.standing = Standing::Open(Box::new(channel));
        state.backoff.connected(now);
        state.touch_rate();
        let due = state.next_timeout();
        self.schedule_if(due);
        self.channels.insert(id, feed);
        self.open_waiting(now, out);
        let deadline = self.deadline();
        self.schedule_if(deadline);
        self.declare_channel(now, out);
        Ok(())
    }

    /// A shared channel that is refused leaves nothing to do on this connection; a device's is asked for again.
    fn handle_not_opened(
        &mut self,
        message: &OpenMiningChannelError,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        let code = quoted(&message.error_code);
        let Some(request) = self.requests.remove(&message.request_id) else {
            self.tell(now, out, || format!("the upstream refused a channel that nobody asked for: {code}"));
            return Ok(());
        };
        match request.feed {
            Some(Feed::Shared) => return Err(format!("the upstream opened no channel: {code}")),
            Some(Feed::Device(key)) => {
                out.open_failed.push((key, code));
                self.rest(Feed::Device(key), now, out);
            }
            None => (),
        }
        self.open_waiting(now, out);
        Ok(())
    }

    pub(super) fn handle_job(
        &mut self,
        message: ExtendedJob<'_>,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        channel::check_job(message)?;
        if self.is_declaring() {
            // Pools may send what they would have us mine.
            return Ok(());
        }
        let (upstream, interval) = (self.config.id, self.config.refresh_interval);
        let channel_id = message.channel_id;
        let job = Arc::new(self.latest_parts.job(message));
        self.for_addressees(channel_id, now, out, |state| state.take_job(upstream, interval, &job, now));
        Ok(())
    }

    fn handle_tip(&mut self, message: &SetNewPrevHash, now: Now, out: &mut UpstreamOutput) -> Handled {
        let tip = channel::check_tip(message.prev_hash, message.nbits)?;
        if self.is_declaring() {
            return Ok(());
        }
        let tip = self.latest_parts.tip(tip);
        let (upstream, interval) = (self.config.id, self.config.refresh_interval);
        let job = (UpstreamJobId(message.job_id.0), message.min_ntime);
        self.for_addressees(message.channel_id, now, out, |state| {
            state.take_tip(upstream, interval, &tip, job, now)
        });
        Ok(())
    }

    fn handle_target(&mut self, message: &SetTarget, now: Now, out: &mut UpstreamOutput) -> Handled {
        channel::check_target(message.maximum_target)?;
        self.for_addressees(message.channel_id, now, out, |state| {
            if let Some(channel) = state.channel_mut() {
                channel.target = message.maximum_target;
            }
            Ok(false)
        });
        Ok(())
    }

    /// Prefixes belong to one channel; there is no such message for a group (SV2 5.3.10).
    fn handle_prefix(
        &mut self,
        message: &SetExtranoncePrefix,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        match self.channel_mut(message.channel_id) {
            Some(channel) => {
                channel.set_prefix(&message.extranonce_prefix)?;
                self.declare_channel(now, out);
                Ok(())
            }
            None => {
                let id = message.channel_id;
                self.tell_of(id, now, out, || {
                    format!("the upstream set the prefix of channel {id}, which is not open")
                });
                Ok(())
            }
        }
    }

    fn handle_group(&mut self, message: &SetGroupChannel) {
        for id in &message.channel_ids {
            if let Some(channel) = self.channel_mut(*id) {
                channel.group = UpstreamChannelId(message.group_channel_id.0);
            }
        }
    }

    fn handle_acknowledged(&mut self, message: &SubmitSharesSuccess, now: Now, out: &mut UpstreamOutput) {
        let (id, last, claimed) =
            (message.channel_id, message.last_sequence_number, message.new_submits_accepted_count);
        let mut work = Work(0);
        let count = self.channel_mut(id).and_then(|channel| {
            channel.refused_in_a_row = 0;
            channel.pending.acknowledge(last, |sent| work += sent.work)
        });
        let count = count.unwrap_or(0);
        if count > 0 {
            self.refusals.none();
            self.tally.acknowledged += u64::from(count);
            let shares_sum = message.new_shares_sum;
            let verdict = UpstreamVerdict::Acknowledged { last, count, claimed, shares_sum, work };
            self.answer(id, verdict, now, out);
        }
        if count != claimed {
            self.tell_of(id, now, out, || {
                format!("the upstream acknowledged {claimed} shares up to {last} where {count} were waiting")
            });
        }
    }

    fn handle_refused(&mut self, message: &SubmitSharesError, now: Now, out: &mut UpstreamOutput) {
        let (id, sequence_number) = (message.channel_id, message.sequence_number);
        let code = quoted(&message.error_code);
        let refused = self.channel_mut(id).and_then(|channel| {
            let work = channel.pending.reject(sequence_number)?;
            channel.refused_in_a_row = channel.refused_in_a_row.saturating_add(1);
            Some((channel.refused_in_a_row, work))
        });
        let Some((in_a_row, work)) = refused else {
            self.tell_of(id, now, out, || {
                format!("the upstream refused share {sequence_number}, which was not waiting: {code}")
            });
            return;
        };
        self.tally.rejected += 1;
        self.refusals.one_more(&message.error_code, now);
        if in_a_row == REFUSALS_WORTH_TELLING {
            self.tell(now, out, || {
                format!(
                    "the upstream refused the last {in_a_row} shares of channel {id}, at last with: {code}"
                )
            });
        }
        self.answer(id, UpstreamVerdict::Rejected { sequence_number, code, work }, now, out);
    }

    fn handle_closed(&mut self, message: &CloseChannel, now: Now, out: &mut UpstreamOutput) {
        let reason = quoted(&message.reason_code);
        let feeds = self.addressees(message.channel_id);
        self.tell(now, out, || {
            format!("the upstream closed channel {} ({} in all): {reason}", message.channel_id, feeds.len())
        });
        for feed in feeds {
            self.rest(feed, now, out);
        }
    }

    /// Only the same authority can be on the other end of where we are sent, because the driver keeps expecting its
    /// key; the name must still be one before anybody resolves it.
    fn handle_reconnect(&mut self, message: &Reconnect, now: Now, out: &mut UpstreamOutput) -> Handled {
        let Some((host, port)) = message.endpoint(&self.endpoint.host, self.endpoint.port) else {
            self.tell(now, out, || "the upstream named a host to reconnect to that is none".to_owned());
            return Ok(());
        };
        let endpoint = Endpoint { host, port };
        let what = format!("the upstream sent us to {}, port {}", endpoint.host, endpoint.port);
        out.close = Some(CloseReason::upstream(what));
        out.reconnect_to = Some(endpoint);
        self.lose(now, out);
        Ok(())
    }

    /// Ends a feed's channel, if it has one, and has it ask again after a while.
    fn rest(&mut self, feed: Feed, now: Now, out: &mut UpstreamOutput) {
        let Some(state) = self.feeds.get_mut(&feed) else { return };
        // No jitter: one connection's channels are paced by the limit on unanswered requests.
        let until = now.monotonic + state.backoff.failed(now, u32::MAX);
        let (channel, publish) = state.end(Standing::Resting(until));
        if publish {
            out.publish.extend(state.work().map(|work| (feed, work)));
        }
        if let Some(channel) = channel {
            self.channels.remove(&channel.id);
            self.count_lost(&channel, LossReason::ConnectionEnded, now, out);
        }
        self.declare_channel(now, out);
        self.schedule(until);
    }

    /// Does something to every channel that a message is for: publishes where there is something new, tells what
    /// is wrong.
    fn for_addressees(
        &mut self,
        id: ChannelId,
        now: Now,
        out: &mut UpstreamOutput,
        mut act: impl FnMut(&mut FeedState) -> Result<bool, &'static str>,
    ) {
        let feeds = self.addressees(id);
        if feeds.is_empty() {
            self.tell_of(id, now, out, || {
                format!("the upstream sent a message for channel {id}, which is not open")
            });
        }
        for feed in feeds {
            let Some(state) = self.feeds.get_mut(&feed) else { continue };
            match act(state) {
                Ok(true) => {
                    out.publish.extend(state.work().map(|work| (feed, work)));
                    let due = state.next_timeout();
                    self.schedule_if(due);
                }
                Ok(false) => (),
                Err(what) => self.tell(now, out, || format!("the upstream sent {what} on channel {id}")),
            }
        }
    }

    /// The feeds that a message for `id` is for: one channel's, or a group's.
    fn addressees(&self, id: ChannelId) -> Vec<Feed> {
        let id = UpstreamChannelId(id.0);
        if let Some(feed) = self.channels.get(&id) {
            return vec![*feed];
        }
        let of_group = |feed: &&Feed| {
            let channel = self.feeds.get(feed).and_then(|state| state.channel());
            channel.is_some_and(|channel| channel.group == id)
        };
        self.channels.values().filter(of_group).copied().collect()
    }

    fn channel_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        let feed = self.channels.get(&UpstreamChannelId(id.0))?;
        self.feeds.get_mut(feed)?.channel_mut()
    }

    fn answer(&mut self, id: ChannelId, verdict: UpstreamVerdict, now: Now, out: &mut UpstreamOutput) {
        let (upstream, channel) = (self.config.id, UpstreamChannelId(id.0));
        out.answers.push(UpstreamAnswer { received: now, upstream, channel, verdict });
    }

    /// Tells the operator of something odd on a channel, unless its end may have crossed with the message.
    fn tell_of(&mut self, id: ChannelId, now: Now, out: &mut UpstreamOutput, what: impl FnOnce() -> String) {
        if !self.closed_lately.contains(&UpstreamChannelId(id.0)) {
            self.tell(now, out, what);
        }
    }

    fn tell(&mut self, now: Now, out: &mut UpstreamOutput, what: impl FnOnce() -> String) {
        self.notices.tell(now, out, what);
    }
}

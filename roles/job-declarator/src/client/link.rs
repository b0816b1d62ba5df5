//! The conversation with the job declaration server.

use std::time::Duration;

use stratum::sv2::codes::declare_mining_job::{INVALID_MINING_JOB_TOKEN, STALE_CHAIN_TIP};
use stratum::sv2::codes::{self, job_declaration_flags};
use stratum::sv2::frame::MAX_PAYLOAD_FROM_DECLARATION_SERVER;
use stratum::sv2::messages::{
    AllocateMiningJobToken, AllocateMiningJobTokenSuccess, DeclareMiningJobError, DeclareMiningJobSuccess,
    Protocol, ProvideMissingTransactions, Reconnect, SetupConnection, SetupConnectionSuccess,
};
use stratum::sv2::{FrameHeader, Message};
use stratum::{CloseReason, Now, RequestId};
use template::CoinbaseConstraints;
use template::outputs::parse_outputs;

use super::job::{Job, Stage, provide};
use super::output::{ClientOutput, Trouble};
use super::stock::Stocked;
use super::{Client, push_solutions};
use crate::server::Mode;
use crate::text::{cut, quoted};

/// A server that does not answer SetupConnection in this time is taken for dead.
const SETUP_DEADLINE: Duration = Duration::from_secs(20);

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// There is none.
    Away,
    /// SetupConnection was sent at this time.
    SettingUp(Duration),
    /// Tokens can be asked for.
    Ready,
}

impl Link {
    pub(super) fn is_ready(self) -> bool {
        self == Link::Ready
    }

    pub(super) fn next_timeout(self) -> Option<Duration> {
        match self {
            Link::SettingUp(since) => Some(since + SETUP_DEADLINE),
            Link::Away | Link::Ready => None,
        }
    }
}

impl<S> Client<S> {
    /// The transport to the server at this host and port is up: introduces us.
    pub fn handle_connected(&mut self, host: &str, port: u16, now: Now, out: &mut ClientOutput<S>) {
        self.lose(now);
        self.link = Link::SettingUp(now.monotonic);
        self.endpoint = (host.to_owned(), port);
        let flags = match self.config.mode {
            Mode::FullTemplate => job_declaration_flags::DECLARE_TX_DATA,
            Mode::CoinbaseOnly => 0,
        };
        let setup = SetupConnection {
            protocol: Protocol::JobDeclaration,
            min_version: codes::PROTOCOL_VERSION,
            max_version: codes::PROTOCOL_VERSION,
            flags,
            endpoint_host: cut(host).to_owned(),
            endpoint_port: port,
            vendor: cut(&self.config.vendor).to_owned(),
            hardware_version: cut(&self.config.hardware_version).to_owned(),
            firmware: cut(&self.config.firmware).to_owned(),
            device_id: String::new(),
        };
        send(setup, out);
    }

    /// The transport is gone. Jobs go on; what was being declared will be declared again. Does nothing when the
    /// connection was given up here before.
    pub fn handle_disconnected(&mut self, now: Now, out: &mut ClientOutput<S>) {
        if self.link != Link::Away {
            self.lose(now);
            out.trouble.push(Trouble::Disconnected);
        }
    }

    /// A frame came from the server.
    pub fn handle_frame(&mut self, header: FrameHeader, payload: &[u8], now: Now, out: &mut ClientOutput<S>) {
        if self.link == Link::Away {
            return;
        }
        if payload.len() > MAX_PAYLOAD_FROM_DECLARATION_SERVER {
            let what = format!("the job declaration server sent a frame of {} bytes", payload.len());
            return self.give_up(what, now, out);
        }
        let handled = match Message::decode(header, payload) {
            Ok(message) => self.handle_message(message, now, out),
            Err(error) => Err(format!("the job declaration server sent what cannot be read: {error}")),
        };
        if let Err(what) = handled {
            self.give_up(what, now, out);
        }
    }

    fn handle_message(
        &mut self,
        message: Message,
        now: Now,
        out: &mut ClientOutput<S>,
    ) -> Result<(), String> {
        match (self.link, message) {
            (Link::SettingUp(_), Message::SetupConnectionSuccess(message)) => {
                self.handle_set_up(&message, now, out)
            }
            (Link::SettingUp(_), Message::SetupConnectionError(message)) => Err(format!(
                "the job declaration server refused the connection: {} (flags {:#x})",
                quoted(&message.error_code),
                message.flags
            )),
            (Link::Ready, Message::AllocateMiningJobTokenSuccess(message)) => {
                self.handle_token(message, now, out)
            }
            (Link::Ready, Message::DeclareMiningJobSuccess(message)) => {
                self.handle_declared(message, now, out);
                Ok(())
            }
            (Link::Ready, Message::DeclareMiningJobError(message)) => {
                self.handle_declaration_refused(&message, now, out);
                Ok(())
            }
            (Link::Ready, Message::ProvideMissingTransactions(message)) => self.handle_missing(&message, out),
            (_, Message::Reconnect(message)) => self.handle_reconnect(&message, out),
            // There are no channels here, nor extensions whose state could be void (SV2 3.6.4).
            (_, Message::ChannelEndpointChanged(_) | Message::Unknown(_)) => Ok(()),
            (_, other) => Err(format!("the job declaration server sent {}, or too early", other.name())),
        }
    }

    fn handle_set_up(
        &mut self,
        message: &SetupConnectionSuccess,
        now: Now,
        out: &mut ClientOutput<S>,
    ) -> Result<(), String> {
        if message.used_version != codes::PROTOCOL_VERSION {
            return Err(format!("the job declaration server chose version {}", message.used_version));
        }
        self.link = Link::Ready;
        self.advance(now, out);
        Ok(())
    }

    /// The driver keeps expecting the same authority's key, so that nobody else can be where we are sent.
    fn handle_reconnect(&self, message: &Reconnect, out: &mut ClientOutput<S>) -> Result<(), String> {
        let (host, port) = &self.endpoint;
        let Some((host, port)) = message.endpoint(host, *port) else {
            let what = "the job declaration server named a host to reconnect to that is none";
            out.notices.push(what.to_owned());
            return Ok(());
        };
        let what = format!("the job declaration server sent us to {host}, port {port}");
        out.reconnect_to = Some((host, port));
        Err(what)
    }

    fn handle_token(
        &mut self,
        message: AllocateMiningJobTokenSuccess,
        now: Now,
        out: &mut ClientOutput<S>,
    ) -> Result<(), String> {
        let outputs = parse_outputs(&message.coinbase_outputs)
            .map_err(|error| format!("the job declaration server's outputs: {error}"))?;
        let needs = CoinbaseConstraints::of(&outputs);
        let constraints = CoinbaseConstraints {
            max_additional_size: needs.max_additional_size.max(self.constraints.max_additional_size),
            max_additional_sigops: needs.max_additional_sigops.max(self.constraints.max_additional_sigops),
        };
        if constraints != self.constraints {
            self.constraints = constraints;
            out.constraints = Some(constraints);
        }
        let stocked = Stocked { token: message.mining_job_token, outputs: outputs.into() };
        if !self.stock.add(message.request_id, stocked) {
            out.notices.push("the job declaration server gave a token that nobody asked for".to_owned());
        }
        self.advance(now, out);
        Ok(())
    }

    fn handle_declared(&mut self, message: DeclareMiningJobSuccess, now: Now, out: &mut ClientOutput<S>) {
        // Jobs that were retired since are no longer asked after.
        let Some(place) = self.declaring(message.request_id) else { return };
        let job = &mut self.jobs[place];
        job.is_declared = true;
        push_solutions(job, self.link, &mut self.tally, out);
        self.set(place, message.new_mining_job_token, now, out);
    }

    fn handle_declaration_refused(
        &mut self,
        message: &DeclareMiningJobError,
        now: Now,
        out: &mut ClientOutput<S>,
    ) {
        let Some(place) = self.declaring(message.request_id) else { return };
        self.tally.refused += 1;
        let may_pass = [STALE_CHAIN_TIP, INVALID_MINING_JOB_TOKEN].contains(&message.error_code.as_str());
        if may_pass && self.try_again(place, now) {
            return self.advance(now, out);
        }
        let code = quoted(&message.error_code);
        let details = quoted(&String::from_utf8_lossy(&message.error_details));
        self.refuse(place, Trouble::DeclarationRefused { code, details }, now, out);
    }

    /// Each declaration is completed once: a block's transactions are many times longer than the question.
    fn handle_missing(
        &mut self,
        message: &ProvideMissingTransactions,
        out: &mut ClientOutput<S>,
    ) -> Result<(), String> {
        let Some(place) = self.declaring(message.request_id) else { return Ok(()) };
        let job = &mut self.jobs[place];
        let Stage::Declaring { provided, .. } = &mut job.stage else { return Ok(()) };
        if std::mem::replace(provided, true) {
            return Err("the job declaration server asked twice for the transactions of a job".to_owned());
        }
        let transactions = self.transactions.get(&job.template.id).map_or(&[][..], |all| all);
        let Some(answer) = provide(message, transactions) else {
            return Err(
                "the job declaration server asked for transactions that are not in the job".to_owned()
            );
        };
        let message = Message::from(answer);
        message
            .encode_frame(&mut out.bytes)
            .map_err(|error| format!("the transactions that a job lacks cannot be sent: {error}"))
    }

    /// Asks for the tokens that are wanted.
    pub(super) fn ask_for_tokens(&mut self, now: Now, out: &mut ClientOutput<S>) {
        if !self.link.is_ready() {
            return;
        }
        let waiting = self.jobs.iter().filter(|job| matches!(job.stage, Stage::AwaitingToken { .. })).count();
        let newest = usize::from(self.newest_waits());
        for _ in 0..self.stock.wanted(waiting + newest, now.monotonic) {
            let request_id = self.next_request;
            self.next_request = RequestId(request_id.0.wrapping_add(1));
            let user_identifier = cut(&self.config.user_identifier).to_owned();
            send(AllocateMiningJobToken { user_identifier, request_id }, out);
            self.stock.note_asked(request_id, now.monotonic);
        }
    }

    /// Gives the server up when it did not set the connection up in time.
    pub(super) fn check_link(&mut self, now: Now, out: &mut ClientOutput<S>) {
        if self.link.next_timeout().is_some_and(|due| due <= now.monotonic) {
            self.give_up("the job declaration server did not answer SetupConnection".to_owned(), now, out);
        }
    }

    fn declaring(&self, request_id: RequestId) -> Option<usize> {
        let is_it =
            |job: &Job| matches!(job.stage, Stage::Declaring { request, .. } if request == request_id);
        self.jobs.iter().position(is_it)
    }

    fn give_up(&mut self, what: String, now: Now, out: &mut ClientOutput<S>) {
        self.lose(now);
        out.trouble.push(Trouble::Disconnected);
        out.close = Some(CloseReason::upstream(what));
    }

    /// Tokens are the connection's. Jobs that were not declared yet need another.
    fn lose(&mut self, now: Now) {
        self.link = Link::Away;
        self.stock.clear();
        for job in self.jobs.iter_mut().chain(&mut self.past) {
            if matches!(job.stage, Stage::AwaitingTransactions(_) | Stage::Declaring { .. }) {
                job.enter(Stage::AwaitingToken { not_before: now.monotonic }, now.monotonic);
            }
            // The next connection's server knows nothing of what this one was told.
            job.is_declared = false;
        }
    }
}

fn send<S>(message: impl Into<Message>, out: &mut ClientOutput<S>) {
    let message: Message = message.into();
    message.encode_frame(&mut out.bytes).expect("texts are cut to their fields");
}

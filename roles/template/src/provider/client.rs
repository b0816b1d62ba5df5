//! One connection to a template provider, of which templates come out whole.
//!
//! A provider sends what a job is made of first; the transactions are asked for at once, and the template is handed
//! out when they are there. What a provider cannot say stays unknown: the fees of single transactions are zero, and
//! the limits are such that nothing has to be dropped and nothing may be.

use std::collections::VecDeque;
use std::sync::Arc;

use stratum::hash::Hash;
use stratum::sv2::codes::{self, request_transaction_data};
use stratum::sv2::frame::{MAX_PAYLOAD_FROM_TEMPLATE_PROVIDER, MAX_PAYLOAD_WITH_TRANSACTIONS};
use stratum::sv2::messages::{
    CoinbaseOutputConstraints, Protocol, RequestTransactionData, RequestTransactionDataSuccess,
    SetupConnection, SubmitSolution,
};
use stratum::sv2::{FrameHeader, Message};
use stratum::{CloseReason, Now, TemplateId};

use crate::block::SolvedBlock;
use crate::block_template::{MAX_TRANSACTION_BYTES, MAX_TRANSACTIONS, TemplateError};
use crate::{BlockTemplate, CoinbaseConstraints, JobTemplate, TemplateFeed};

/// Templates whose transactions are on their way at a time. More come only when tips follow one another; the oldest
/// goes.
const MAX_WAITING: usize = 4;

/// Templates that a block may still be found on. Merkle paths and numbers only; the provider has the transactions.
pub const MAX_KNOWN: usize = 64;

/// What a connection hands back to its driver.
#[derive(Debug, Default)]
pub struct ProviderClientOutput {
    /// Plain SV2 frames for the provider.
    pub bytes: Vec<u8>,
    /// Whole templates, oldest first, each with its provider's number.
    pub templates: Vec<BlockTemplate>,
    /// Set when the connection must be closed; dial again.
    pub close: Option<CloseReason>,
    /// Set together with `close` when the provider named another host and port to dial. The driver must expect the same
    /// authority key there (SV2 3.6.5), and goes back to the configured endpoint when it cannot connect.
    pub reconnect_to: Option<(String, u16)>,
    /// What the operator should see.
    pub notices: Vec<String>,
}

/// A client of one template provider, for one connection.
#[derive(Debug)]
pub struct ProviderClient {
    constraints: CoinbaseConstraints,
    /// Host and port that the connection leads to.
    endpoint: (String, u16),
    is_set_up: bool,
    feed: TemplateFeed,
    /// Templates that wait for their transactions, oldest first, with the room that the provider had been asked for.
    waiting: VecDeque<(JobTemplate, CoinbaseConstraints)>,
    /// Templates that were taken up, oldest first.
    known: VecDeque<Known>,
    closed: bool,
}

/// What is needed to tell which template a block was found on.
#[derive(Debug)]
struct Known {
    id: TemplateId,
    previous_hash: Hash,
    merkle_path: Arc<[Hash]>,
}

impl ProviderClient {
    /// A connection whose transport is up: sends what opens it. `host` and `port` are what was dialled.
    pub fn connected(
        host: &str,
        port: u16,
        constraints: CoinbaseConstraints,
        out: &mut ProviderClientOutput,
    ) -> Self {
        let setup = SetupConnection {
            protocol: Protocol::TemplateDistribution,
            min_version: codes::PROTOCOL_VERSION,
            max_version: codes::PROTOCOL_VERSION,
            flags: 0,
            endpoint_host: host.to_owned(),
            endpoint_port: port,
            vendor: "Checkweigh".to_owned(),
            hardware_version: String::new(),
            firmware: String::new(),
            device_id: String::new(),
        };
        send(setup, out);
        ProviderClient {
            constraints,
            endpoint: (host.to_owned(), port),
            is_set_up: false,
            feed: TemplateFeed::new(),
            waiting: VecDeque::new(),
            known: VecDeque::new(),
            closed: false,
        }
    }

    /// The longest payload that the transport should accept now: long ones only where transactions were asked for.
    pub fn max_payload(&self) -> usize {
        match self.waiting.is_empty() {
            true => MAX_PAYLOAD_FROM_TEMPLATE_PROVIDER,
            false => MAX_PAYLOAD_WITH_TRANSACTIONS,
        }
    }

    /// Other room in the coinbase is wanted.
    pub fn set_constraints(&mut self, constraints: CoinbaseConstraints, out: &mut ProviderClientOutput) {
        if self.constraints != constraints {
            self.constraints = constraints;
            if self.is_set_up {
                self.send_constraints(out);
            }
        }
    }

    /// Takes one frame of the provider. Errors are the provider's fault and close the connection.
    pub fn handle_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        out: &mut ProviderClientOutput,
    ) {
        if self.closed {
            return;
        }
        let handled = match Message::decode(header, payload) {
            Ok(message) => self.handle_message(message, now, out),
            Err(error) => Err(error.to_string()),
        };
        if let Err(what) = handled {
            self.closed = true;
            out.close = Some(CloseReason::upstream(what));
        }
    }

    /// Sends the solution for a block that was found on a template of this connection. False when it was found on none
    /// of them.
    pub fn submit(&self, block: &[u8], out: &mut ProviderClientOutput) -> bool {
        let Some(found) = SolvedBlock::read(block) else { return false };
        let known =
            self.known.iter().rev().find(|known| found.is_on(&known.previous_hash, &known.merkle_path));
        let Some(known) = known else { return false };
        let solution = SubmitSolution {
            template_id: known.id,
            version: found.version,
            header_timestamp: found.time,
            header_nonce: found.nonce,
            coinbase_tx: found.coinbase,
        };
        // Of a coinbase of ours; one that is longer than the field is no provider's.
        Message::from(solution).encode_frame(&mut out.bytes).is_ok()
    }

    fn handle_message(
        &mut self,
        message: Message,
        now: Now,
        out: &mut ProviderClientOutput,
    ) -> Result<(), String> {
        match message {
            Message::SetupConnectionSuccess(success) if !self.is_set_up => {
                if success.used_version != codes::PROTOCOL_VERSION {
                    return Err(format!("the provider wants version {}", success.used_version));
                }
                self.is_set_up = true;
                self.send_constraints(out);
                Ok(())
            }
            Message::SetupConnectionError(error) => {
                Err(format!("the provider refuses us: {}", shown(&error.error_code)))
            }
            Message::Reconnect(message) => {
                let (host, port) = &self.endpoint;
                let Some((host, port)) = message.endpoint(host, *port) else {
                    return Err("the provider named a host to reconnect to that is none".to_owned());
                };
                let what = format!("the provider sent us to {host}, port {port}");
                out.reconnect_to = Some((host, port));
                Err(what)
            }
            // There are no channels here, nor extensions whose state could be void (SV2 3.6.4).
            Message::ChannelEndpointChanged(_) | Message::Unknown(_) => Ok(()),
            other if !self.is_set_up => Err(format!("{} came before SetupConnection.Success", other.name())),
            Message::NewTemplate(template) => {
                let job = self.feed.handle_new_template(template, now).map_err(text)?;
                job.into_iter().for_each(|job| self.take_up(job, out));
                Ok(())
            }
            Message::TemplateSetNewPrevHash(tip) => {
                let job = self.feed.handle_set_new_prev_hash(tip, now).map_err(text)?;
                self.take_up(job, out);
                Ok(())
            }
            Message::RequestTransactionDataSuccess(answer) => self.complete(answer, out),
            Message::RequestTransactionDataError(error) => {
                self.handle_refused(error.template_id, &error.error_code)
            }
            other => Err(format!("{} came from a template provider", other.name())),
        }
    }

    fn take_up(&mut self, job: JobTemplate, out: &mut ProviderClientOutput) {
        if self.known.len() == MAX_KNOWN {
            self.known.pop_front();
        }
        let (id, previous_hash, merkle_path) = (job.id, job.previous_hash, job.merkle_path.as_slice().into());
        self.known.push_back(Known { id, previous_hash, merkle_path });
        // What waits for an older tip is of no use any more.
        self.waiting.retain(|(waiting, _)| waiting.previous_hash == job.previous_hash);
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        send(RequestTransactionData { template_id: job.id }, out);
        self.waiting.push_back((job, self.constraints));
    }

    fn complete(
        &mut self,
        answer: RequestTransactionDataSuccess,
        out: &mut ProviderClientOutput,
    ) -> Result<(), String> {
        let place = self.waiting.iter().position(|(job, _)| job.id == answer.template_id);
        // Of a template that had to make room, or whose tip was left meanwhile.
        let Some(place) = place else { return Ok(()) };
        let (job, constraints) = self.waiting.remove(place).expect("it was just found");
        if answer.transaction_list.len() > MAX_TRANSACTIONS
            || answer.transaction_list.iter().map(Vec::len).sum::<usize>() > MAX_TRANSACTION_BYTES
        {
            return Err("the provider's transactions are more than fit in a block".to_owned());
        }
        out.templates
            .push(BlockTemplate::of_provider(&job, answer.transaction_list, constraints).map_err(text)?);
        Ok(())
    }

    fn handle_refused(&mut self, id: TemplateId, code: &str) -> Result<(), String> {
        self.waiting.retain(|(job, _)| job.id != id);
        match code {
            // A newer template is on its way.
            request_transaction_data::STALE_TEMPLATE_ID => Ok(()),
            code => Err(format!("the provider has no transactions for template {id}: {}", shown(code))),
        }
    }

    fn send_constraints(&self, out: &mut ProviderClientOutput) {
        let message = CoinbaseOutputConstraints {
            coinbase_output_max_additional_size: self.constraints.max_additional_size,
            coinbase_output_max_additional_sigops: self.constraints.max_additional_sigops,
        };
        send(message, out);
    }
}

fn text(error: TemplateError) -> String {
    error.to_string()
}

/// A peer's text, short enough for a log.
fn shown(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(64).collect()
}

fn send(message: impl Into<Message>, out: &mut ProviderClientOutput) {
    message.into().encode_frame(&mut out.bytes).expect("what we send fits its fields");
}

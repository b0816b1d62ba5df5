//! The pool: its server, one connection for each farm's link, and its view of the mempool.

use std::collections::{BTreeMap, BTreeSet};

use job_declarator::server::{
    Claimant, DeclaredBlock, JobDeclarationServer, PoolTip, ServerAction, ServerConnection, ServerOutput,
    Verdict,
};
use stratum::hash::Hash;
use stratum::sv2::FrameHeader;
use stratum::sv2::messages::{SetCustomMiningJob, SetCustomMiningJobError, SetCustomMiningJobSuccess};
use stratum::{ConnectionId, JobId, Now};
use template::RawTransaction;

use super::super::support::*;

pub(super) struct Pool {
    pub(super) server: JobDeclarationServer,
    pub(super) connections: BTreeMap<u64, ServerConnection>,
    pub(super) mempool: BTreeMap<Hash, RawTransaction>,
    pub(super) blocks: Vec<DeclaredBlock>,
    tokens_given: u128,
    tokens_taken: BTreeSet<Vec<u8>>,
    next_job: u32,
}

/// What a call put out, without what was done at once.
#[derive(Default)]
pub(super) struct Answered {
    pub(super) bytes: Vec<u8>,
    pub(super) actions: Vec<ServerAction>,
    pub(super) closed: bool,
}

impl Pool {
    pub(super) fn new() -> Self {
        Pool {
            server: JobDeclarationServer::new(pool_outputs(), false),
            connections: BTreeMap::new(),
            mempool: BTreeMap::new(),
            blocks: Vec::new(),
            tokens_given: 0,
            tokens_taken: BTreeSet::new(),
            next_job: 0,
        }
    }

    pub(super) fn accept(&mut self, link: u64, now: Now) {
        self.connections.insert(link, ServerConnection::new(ConnectionId(link), now));
    }

    pub(super) fn close(&mut self, link: u64) {
        let mut out = ServerOutput::default();
        if let Some(mut connection) = self.connections.remove(&link) {
            connection.handle_closed(&mut self.server, &mut out);
        }
    }

    fn call(
        &mut self,
        link: u64,
        act: impl FnOnce(
            &mut ServerConnection,
            &mut JobDeclarationServer,
            &mut dyn FnMut() -> [u8; 16],
            &mut ServerOutput,
        ),
    ) -> Answered {
        let Some(connection) = self.connections.get_mut(&link) else { return Answered::default() };
        let given = &mut self.tokens_given;
        let mut fresh = || {
            *given += 1;
            given.to_le_bytes()
        };
        let mut out = ServerOutput::default();
        act(connection, &mut self.server, &mut fresh, &mut out);
        let mut actions = Vec::new();
        for action in out.actions {
            match action {
                ServerAction::Submit(block) => self.blocks.push(block),
                ServerAction::Abandon { .. } => (),
                other => actions.push(other),
            }
        }
        Answered { bytes: out.bytes, actions, closed: out.close.is_some() }
    }

    pub(super) fn frame(&mut self, link: u64, header: FrameHeader, payload: &[u8], now: Now) -> Answered {
        self.call(link, |connection, server, fresh, out| {
            connection.handle_frame(header, payload, now, server, fresh, out);
        })
    }

    pub(super) fn looked_up(&mut self, link: u64, action: &ServerAction, now: Now) -> Answered {
        let ServerAction::LookUp { declaration, wtxids } = action else { panic!("{action:?}") };
        let found = wtxids.iter().map(|wtxid| self.mempool.get(wtxid).cloned()).collect();
        self.call(link, |connection, server, _, out| {
            connection.handle_looked_up(*declaration, found, now, server, out);
        })
    }

    pub(super) fn validated(&mut self, link: u64, action: &ServerAction, is_bad: bool, now: Now) -> Answered {
        let ServerAction::Validate { declaration, job } = action else { panic!("{action:?}") };
        let is_current = self.server.tip().is_some_and(|tip| tip.previous_hash == job.tip.previous_hash);
        let verdict = match (is_current, is_bad) {
            (false, _) => Verdict::StaleTip,
            (true, true) => Verdict::Invalid("bad-txns".to_owned()),
            (true, false) => Verdict::Valid { revenue: Some(job.coinbase.value()) },
        };
        self.call(link, |connection, server, fresh, out| {
            connection.handle_validated(*declaration, verdict, now, server, fresh, out);
        })
    }

    pub(super) fn tip(&mut self, tip: PoolTip, now: Now) -> Vec<(u64, Answered)> {
        self.server.set_tip(tip);
        let links: Vec<u64> = self.connections.keys().copied().collect();
        let told = links.into_iter().map(|link| {
            let answered =
                self.call(link, |connection, server, _, out| connection.handle_tip(now, server, out));
            (link, answered)
        });
        told.collect()
    }

    pub(super) fn tick(&mut self, now: Now) -> Vec<(u64, Answered)> {
        let is_due = |connection: &ServerConnection| connection.next_timeout() <= now.monotonic;
        let due: Vec<u64> =
            self.connections.iter().filter(|(_, one)| is_due(one)).map(|(link, _)| *link).collect();
        let told = due.into_iter().map(|link| {
            let answered = self.call(link, |connection, server, fresh, out| {
                connection.handle_timeout(now, server, fresh, out);
            });
            let stands_still = !answered.closed && is_due(&self.connections[&link]);
            assert!(!stands_still, "the server's clock stands still");
            (link, answered)
        });
        let told: Vec<_> = told.collect();
        let tally = self.server.tally();
        assert!(tally.acknowledged + tally.refused + tally.abandoned <= tally.declared);
        told
    }

    pub(super) fn custom_job(
        &mut self,
        message: &SetCustomMiningJob,
        now: Now,
    ) -> Result<SetCustomMiningJobSuccess, SetCustomMiningJobError> {
        let claimant = Claimant { user_identity: "farm.site", extranonce_size: 12 };
        let (channel_id, request_id) = (message.channel_id, message.request_id);
        match self.server.check_custom_job(claimant, message, now) {
            Ok(_) => {
                assert!(self.tokens_taken.insert(message.token.0.clone()), "a token was taken twice");
                self.next_job += 1;
                Ok(SetCustomMiningJobSuccess { channel_id, request_id, job_id: JobId(self.next_job) })
            }
            Err(refusal) => Err(SetCustomMiningJobError { channel_id, request_id, error_code: refusal.code }),
        }
    }
}

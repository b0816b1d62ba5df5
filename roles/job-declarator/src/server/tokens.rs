//! Who was given which token, and what it stands for.
//!
//! A token is random bytes that only its owner has seen: one connection, and one account on it. A stranger's attempt
//! finds nothing and changes nothing, so nobody burns what is not theirs. A token serves once: for a declaration, or
//! for a custom job. Bytes come in as arguments; this module never makes a random number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use stratum::sv2::messages::MiningJobToken;
use stratum::{ConnectionId, Now};
use template::Output;

use super::declared::DeclaredJob;

/// Bytes of a token: 128 random bits are never guessed.
pub const TOKEN_SIZE: usize = 16;

/// A token as bytes.
pub type TokenBytes = [u8; TOKEN_SIZE];

/// Tokens of all connections together: sixteen for each of four thousand. A connection that asks for one more is
/// closed, as our fault.
pub const MAX_TOKENS: usize = 65_536;

/// Tokens of one connection that wait for a declaration. A client keeps two ahead; the oldest makes room.
pub const MAX_ALLOCATED: usize = 12;

/// Declared jobs of one connection that wait for their `SetCustomMiningJob`, which follows at once. Each may hold
/// the transactions of a block; the oldest makes room.
pub const MAX_DECLARED: usize = 4;

/// How long a token waits for its job. Longer than two blocks that are far apart, so that a client need not renew
/// what it keeps ahead.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// How long a declared job waits for its `SetCustomMiningJob`. Longer than a mining connection takes to be made
/// again.
pub const DECLARED_LIFETIME: Duration = Duration::from_secs(300);

/// Times that new bytes are asked for when a token has them already. Random bytes never repeat; a source that does is
/// broken.
const MAX_TRIES: usize = 4;

/// Who a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The job declaration connection that asked for it.
    pub connection: ConnectionId,
    /// The account that it asked for (see [`account_of`]).
    pub account: Arc<str>,
}

/// What a token stands for.
#[derive(Clone, Debug)]
enum Standing {
    /// A job that may be declared, or taken as it is in Coinbase-only mode.
    Allocated,
    /// A job that is being looked at.
    Declaring,
    /// A job that was found good.
    Declared(Arc<DeclaredJob>),
}

/// How a connection declares its jobs (SV2 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The coinbase alone is shown.
    CoinbaseOnly,
    /// Every transaction is shown.
    FullTemplate,
}

#[derive(Clone, Debug)]
struct Entry {
    owner: Owner,
    mode: Mode,
    outputs: Arc<[Output]>,
    expires: Duration,
    standing: Standing,
}

/// What was allocated with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Whose it is.
    pub owner: Owner,
    /// The outputs that the coinbase must have; the first is the payout.
    pub outputs: Arc<[Output]>,
}

/// What a token is worth to a `SetCustomMiningJob`.
#[derive(Clone, Debug)]
pub enum CustomJobToken {
    /// Coinbase-only mode: what the outputs must be.
    CoinbaseOnly(Allocation),
    /// Full-Template mode: the job.
    Declared(Arc<DeclaredJob>),
}

/// Why a token is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// It was never given out, is another's, was used, has expired, or is for something else.
    Invalid,
    /// The job is still being looked at.
    NotYetValidated,
}

/// No token can be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    /// [`MAX_TOKENS`] are out.
    #[error("all {MAX_TOKENS} tokens are given out")]
    Full,
    /// The bytes that are offered were used before.
    #[error("the source of random bytes repeats itself")]
    NotRandom,
}

/// The tokens of one connection, oldest first.
#[derive(Debug, Default)]
struct OfConnection {
    allocated: VecDeque<TokenBytes>,
    declaring: VecDeque<TokenBytes>,
    declared: VecDeque<TokenBytes>,
}

impl OfConnection {
    fn drop(&mut self, token: &TokenBytes) {
        for list in [&mut self.allocated, &mut self.declaring, &mut self.declared] {
            list.retain(|other| other != token);
        }
    }

    fn is_empty(&self) -> bool {
        self.allocated.is_empty() && self.declaring.is_empty() && self.declared.is_empty()
    }
}

/// Every token that is out.
#[derive(Default)]
pub struct TokenTable {
    entries: BTreeMap<TokenBytes, Entry>,
    connections: BTreeMap<ConnectionId, OfConnection>,
    /// When each token ends.
    expiries: BTreeSet<(Duration, TokenBytes)>,
}

/// The account of a user identity: what stands before the first dot, where a worker's name follows.
pub fn account_of(identity: &str) -> &str {
    identity.split_once('.').map_or(identity, |(account, _)| account)
}

impl TokenTable {
    /// No token is out.
    pub fn new() -> Self {
        TokenTable::default()
    }

    /// How many tokens are out.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no token is out.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives out a token. `fresh` brings random bytes.
    pub fn allocate(
        &mut self,
        owner: Owner,
        mode: Mode,
        outputs: Arc<[Output]>,
        fresh: &mut dyn FnMut() -> TokenBytes,
        now: Now,
    ) -> Result<MiningJobToken, NoToken> {
        let expires = now.monotonic + TOKEN_LIFETIME;
        let connection = owner.connection;
        let entry = Entry { owner, mode, outputs, expires, standing: Standing::Allocated };
        let token = self.insert(entry, fresh, now)?;
        let allocated = &mut self.connections.entry(connection).or_default().allocated;
        allocated.push_back(token);
        if allocated.len() > MAX_ALLOCATED
            && let Some(oldest) = allocated.pop_front()
        {
            self.forget(&oldest);
        }
        Ok(MiningJobToken(token.to_vec()))
    }

    /// Uses a token for a declaration. From here on it serves nothing else; [`TokenTable::finish`] ends it.
    pub fn declare(
        &mut self,
        token: &MiningJobToken,
        connection: ConnectionId,
        now: Now,
    ) -> Result<Allocation, TokenRefusal> {
        self.expire(now);
        let key = key(token)?;
        let entry = self.entries.get_mut(&key).filter(|entry| entry.owner.connection == connection);
        let entry = entry.ok_or(TokenRefusal::Invalid)?;
        if entry.mode != Mode::FullTemplate || !matches!(entry.standing, Standing::Allocated) {
            return Err(TokenRefusal::Invalid);
        }
        entry.standing = Standing::Declaring;
        let allocation = Allocation { owner: entry.owner.clone(), outputs: Arc::clone(&entry.outputs) };
        if let Some(of_connection) = self.connections.get_mut(&connection) {
            of_connection.drop(&key);
            of_connection.declaring.push_back(key);
        }
        Ok(allocation)
    }

    /// Ends the declaration that used a token, and gives out another if the job was found good.
    pub fn finish(
        &mut self,
        token: &MiningJobToken,
        job: Option<Arc<DeclaredJob>>,
        fresh: &mut dyn FnMut() -> TokenBytes,
        now: Now,
    ) -> Result<Option<MiningJobToken>, NoToken> {
        let entry = key(token).ok().and_then(|key| {
            let is_declaring = matches!(self.entries.get(&key)?.standing, Standing::Declaring);
            is_declaring.then(|| self.remove(&key)).flatten()
        });
        let Some((entry, job)) = entry.zip(job) else { return Ok(None) };
        let connection = entry.owner.connection;
        let expires = now.monotonic + DECLARED_LIFETIME;
        let entry = Entry { expires, standing: Standing::Declared(job), ..entry };
        let token = self.insert(entry, fresh, now)?;
        let declared = &mut self.connections.entry(connection).or_default().declared;
        declared.push_back(token);
        if declared.len() > MAX_DECLARED
            && let Some(oldest) = declared.pop_front()
        {
            self.forget(&oldest);
        }
        Ok(Some(MiningJobToken(token.to_vec())))
    }

    /// Uses a token for a custom job of `account`. A stranger's attempt leaves it as it was, and so does one that
    /// comes before the job was looked at.
    pub fn take(
        &mut self,
        token: &MiningJobToken,
        account: &str,
        now: Now,
    ) -> Result<CustomJobToken, TokenRefusal> {
        self.expire(now);
        let key = key(token)?;
        let entry = self.entries.get(&key).filter(|entry| &*entry.owner.account == account);
        let entry = entry.ok_or(TokenRefusal::Invalid)?;
        let worth = match (&entry.standing, entry.mode) {
            (Standing::Declaring, _) => return Err(TokenRefusal::NotYetValidated),
            (Standing::Allocated, Mode::FullTemplate) => return Err(TokenRefusal::Invalid),
            (Standing::Allocated, Mode::CoinbaseOnly) => {
                let (owner, outputs) = (entry.owner.clone(), Arc::clone(&entry.outputs));
                CustomJobToken::CoinbaseOnly(Allocation { owner, outputs })
            }
            (Standing::Declared(job), _) => CustomJobToken::Declared(Arc::clone(job)),
        };
        self.remove(&key);
        Ok(worth)
    }

    /// A job declaration connection is gone. What it had only been promised goes with it; jobs that were found good
    /// stay for their `SetCustomMiningJob`, which comes by another connection.
    pub fn close(&mut self, connection: ConnectionId) {
        let Some(of_connection) = self.connections.get_mut(&connection) else { return };
        let allocated = std::mem::take(&mut of_connection.allocated);
        let declaring = std::mem::take(&mut of_connection.declaring);
        if of_connection.is_empty() {
            self.connections.remove(&connection);
        }
        for token in allocated.into_iter().chain(declaring) {
            self.forget(&token);
        }
    }

    /// Forgets what has expired. Every other call does so too; for those who never call.
    pub fn expire(&mut self, now: Now) {
        while let Some((expires, token)) = self.expiries.first().copied() {
            if expires > now.monotonic {
                return;
            }
            self.remove(&token);
        }
    }

    fn insert(
        &mut self,
        entry: Entry,
        fresh: &mut dyn FnMut() -> TokenBytes,
        now: Now,
    ) -> Result<TokenBytes, NoToken> {
        self.expire(now);
        if self.entries.len() >= MAX_TOKENS {
            return Err(NoToken::Full);
        }
        let mut tries = std::iter::repeat_with(fresh).take(MAX_TRIES);
        let token = tries.find(|token| !self.entries.contains_key(token)).ok_or(NoToken::NotRandom)?;
        self.expiries.insert((entry.expires, token));
        self.entries.insert(token, entry);
        Ok(token)
    }

    fn remove(&mut self, token: &TokenBytes) -> Option<Entry> {
        let entry = self.forget(token)?;
        let connection = entry.owner.connection;
        if let Some(of_connection) = self.connections.get_mut(&connection) {
            of_connection.drop(token);
            if of_connection.is_empty() {
                self.connections.remove(&connection);
            }
        }
        Some(entry)
    }

    /// Removes a token that its connection no longer lists.
    fn forget(&mut self, token: &TokenBytes) -> Option<Entry> {
        let entry = self.entries.remove(token)?;
        self.expiries.remove(&(entry.expires, *token));
        Some(entry)
    }
}

/// Whoever reads a log must not be able to use a token.
impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenTable({} tokens)", self.entries.len())
    }
}

fn key(token: &MiningJobToken) -> Result<TokenBytes, TokenRefusal> {
    token.0.as_slice().try_into().map_err(|_| TokenRefusal::Invalid)
}

#[cfg(test)]
mod tests;

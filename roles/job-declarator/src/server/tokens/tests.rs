//! Random operations on the token table, against a plain list of what must be true.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Operation {
    Allocate {
        connection: u64,
        full: bool,
    },
    /// With the n-th token that was ever given out, by this connection.
    Declare {
        token: usize,
        connection: u64,
    },
    Finish {
        token: usize,
    },
    Take {
        token: usize,
        account: u64,
    },
    Close {
        connection: u64,
    },
    Wait(u64),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let connection = || 1..4u64;
    let token = || 0..40usize;
    let one = prop_oneof![
        4 => (connection(), any::<bool>()).prop_map(|(connection, full)| Operation::Allocate { connection, full }),
        4 => (token(), connection()).prop_map(|(token, connection)| Operation::Declare { token, connection }),
        2 => token().prop_map(|token| Operation::Finish { token }),
        4 => (token(), connection()).prop_map(|(token, account)| Operation::Take { token, account }),
        1 => connection().prop_map(|connection| Operation::Close { connection }),
        2 => (0..4000u64).prop_map(Operation::Wait),
    ];
    prop::collection::vec(one, 0..150)
}

/// What became of a token, as the outside sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Out,
    Declaring,
    Used,
}

struct Given {
    token: MiningJobToken,
    connection: u64,
    full: bool,
    fate: Fate,
}

fn account(connection: u64) -> Arc<str> {
    format!("account{connection}").into()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No token is used twice, none is used by a stranger, and no list grows beyond its bound.
    #[test]
    fn nothing_is_used_twice_or_by_a_stranger(operations in operations()) {
        let mut table = TokenTable::new();
        let mut given: Vec<Given> = Vec::new();
        let mut seconds = 0;
        let mut bytes = 0u128;
        for operation in operations {
            let now = Now::simulated(Duration::from_secs(1_700_000_000), Duration::from_secs(seconds));
            match operation {
                Operation::Allocate { connection, full } => {
                    let owner = Owner { connection: ConnectionId(connection), account: account(connection) };
                    let mode = if full { Mode::FullTemplate } else { Mode::CoinbaseOnly };
                    let mut fresh = || { bytes += 1; bytes.to_le_bytes() };
                    let token = table.allocate(owner, mode, Vec::new().into(), &mut fresh, now);
                    let token = token.expect("there is room");
                    prop_assert!(given.iter().all(|other| other.token != token));
                    given.push(Given { token, connection, full, fate: Fate::Out });
                }
                Operation::Declare { token, connection } => {
                    let Some(one) = given.get_mut(token) else { continue };
                    if table.declare(&one.token, ConnectionId(connection), now).is_ok() {
                        prop_assert!(one.connection == connection && one.full && one.fate == Fate::Out);
                        one.fate = Fate::Declaring;
                    }
                }
                Operation::Finish { token } => {
                    let Some(one) = given.get_mut(token) else { continue };
                    let nothing = table.finish(&one.token, None, &mut || [0; 16], now);
                    prop_assert_eq!(nothing, Ok(None));
                    if one.fate == Fate::Declaring { one.fate = Fate::Used }
                }
                Operation::Take { token, account: by } => {
                    let Some(one) = given.get_mut(token) else { continue };
                    match table.take(&one.token, &account(by), now) {
                        Ok(CustomJobToken::CoinbaseOnly(_)) => {
                            prop_assert!(one.connection == by && !one.full && one.fate == Fate::Out);
                            one.fate = Fate::Used;
                        }
                        Ok(CustomJobToken::Declared(_)) => prop_assert!(false, "nothing was found good"),
                        Err(TokenRefusal::NotYetValidated) => {
                            prop_assert!(one.connection == by && one.fate == Fate::Declaring);
                        }
                        Err(TokenRefusal::Invalid) => (),
                    }
                }
                Operation::Close { connection } => {
                    table.close(ConnectionId(connection));
                    let of_it = given.iter_mut().filter(|one| one.connection == connection);
                    of_it.for_each(|one| one.fate = Fate::Used);
                }
                Operation::Wait(wait) => seconds += wait,
            }
            check(&table)?;
        }
    }
}

/// The table's own lists agree with each other.
fn check(table: &TokenTable) -> Result<(), TestCaseError> {
    let mut listed: BTreeMap<TokenBytes, ConnectionId> = BTreeMap::new();
    for (connection, lists) in &table.connections {
        prop_assert!(!lists.is_empty());
        prop_assert!(lists.allocated.len() <= MAX_ALLOCATED && lists.declared.len() <= MAX_DECLARED);
        for token in lists.allocated.iter().chain(&lists.declaring).chain(&lists.declared) {
            prop_assert_eq!(listed.insert(*token, *connection), None);
        }
    }
    prop_assert_eq!(listed.len(), table.entries.len());
    prop_assert_eq!(table.expiries.len(), table.entries.len());
    for (token, entry) in &table.entries {
        prop_assert_eq!(listed.get(token), Some(&entry.owner.connection));
        prop_assert!(table.expiries.contains(&(entry.expires, *token)));
    }
    Ok(())
}

#[test]
fn a_source_that_repeats_itself_gives_no_token() {
    let mut table = TokenTable::new();
    let now = Now { monotonic: Duration::ZERO, utc: Duration::ZERO };
    let owner = Owner { connection: ConnectionId(1), account: account(1) };
    let mut allocate = |bytes: u8| {
        table.allocate(owner.clone(), Mode::FullTemplate, Vec::new().into(), &mut || [bytes; 16], now)
    };
    assert!(allocate(7).is_ok());
    assert_eq!(allocate(7), Err(NoToken::NotRandom));
    assert!(allocate(8).is_ok());
}

#[test]
fn accounts_are_what_stands_before_the_dot() {
    assert_eq!([account_of("farm.rig1"), account_of("farm"), account_of(".x")], ["farm", "farm", ""]);
}

//! What is known of firmware by the name that it gives itself.
//!
//! Never decides about a share or a job: names can be made up. It only helps the operator to see a problem.

/// What a user agent begins with, and the longest coinbase in bytes that it is known to take.
const LONGEST_COINBASES: [(&str, usize); 9] = [
    // NiceHash checks jobs before it sends hash power.
    ("NiceHash/", 500),
    // The stock firmware of an S19, under both of its names.
    ("bmminer/", 750),
    ("cgminer/", 750),
    ("Antminer S21/", 2250),
    ("bosminer", 2250),
    ("whatsminer/", 6500),
    ("bitaxe", 6500),
    ("xminer-1.", 16_000),
    ("PowerPlay-BM", 16_000),
];

/// The longest coinbase, in bytes, that firmware of this name is known to take; `None` when nothing is known.
pub(super) fn longest_coinbase(user_agent: &str) -> Option<usize> {
    LONGEST_COINBASES.iter().find(|(name, _)| user_agent.starts_with(name)).map(|(_, bytes)| *bytes)
}

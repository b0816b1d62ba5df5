//! The script that a coinbase pays, from what an operator writes in a config.
//!
//! This module never guesses: text that could lose the reward is refused with the reason.

use std::str::FromStr;

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Network};

/// The longest raw script that is taken as a payout. Every output of the coinbase takes block space from
/// transactions, and templates reserve little for it; bare multisig of three keys is 105 bytes.
pub const MAX_PAYOUT_SCRIPT: usize = 256;

/// Why a text is no payout. All of them are faults of the config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayoutError {
    /// Nothing was written.
    #[error("the payout is empty: write an address or an output script in hexadecimal")]
    Empty,
    /// Neither an address nor hexadecimal.
    #[error("`{text}` is neither an address ({reason}) nor an output script in hexadecimal")]
    Unreadable {
        /// What was written.
        text: String,
        /// Why it is no address.
        reason: String,
    },
    /// An address of another network.
    #[error("the address `{address}` is not one of the network {network}")]
    WrongNetwork {
        /// The address.
        address: String,
        /// The network that was asked for.
        network: Network,
    },
    /// An address whose coins anyone could take.
    #[error("the address `{address}` is of a kind that no rule protects yet: anyone could spend its coins")]
    Unprotected {
        /// The address.
        address: String,
    },
    /// An output script that can never be spent.
    #[error("the output script begins with OP_RETURN: the reward would be lost")]
    Unspendable,
    /// A script longer than [`MAX_PAYOUT_SCRIPT`].
    #[error("the output script has {length} bytes; at most {MAX_PAYOUT_SCRIPT} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
}

/// The output script that `text` stands for: an address of `network`, or a raw script in hexadecimal.
///
/// Addresses are P2PKH, P2SH, P2WPKH, P2WSH and P2TR. Raw scripts are taken as they are, except those that
/// would lose the reward.
pub fn payout_script(text: &str, network: Network) -> Result<Vec<u8>, PayoutError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(PayoutError::Empty);
    }
    match Address::from_str(text) {
        Ok(address) => address_script(address, text, network),
        Err(reason) => match hex::decode(text) {
            Ok(script) => checked_script(script),
            Err(_) => Err(PayoutError::Unreadable { text: shortened(text), reason: reason.to_string() }),
        },
    }
}

fn address_script(
    address: Address<NetworkUnchecked>,
    text: &str,
    network: Network,
) -> Result<Vec<u8>, PayoutError> {
    let Ok(address) = address.require_network(network) else {
        return Err(PayoutError::WrongNetwork { address: text.to_owned(), network });
    };
    let script = address.script_pubkey();
    let protected =
        script.is_p2pkh() || script.is_p2sh() || script.is_p2wpkh() || script.is_p2wsh() || script.is_p2tr();
    if protected {
        Ok(script.into_bytes())
    } else {
        Err(PayoutError::Unprotected { address: text.to_owned() })
    }
}

fn checked_script(script: Vec<u8>) -> Result<Vec<u8>, PayoutError> {
    if script.first() == Some(&bitcoin::opcodes::all::OP_RETURN.to_u8()) {
        return Err(PayoutError::Unspendable);
    }
    if script.len() > MAX_PAYOUT_SCRIPT {
        return Err(PayoutError::TooLong { length: script.len() });
    }
    Ok(script)
}

/// A config may hold anything; an error message shows no more than a line of it.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 100;
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_their_scripts() {
        // Address and script of the test vectors of BIP 173 and BIP 350.
        let cases = [
            ("BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4", "0014751e76e8199196d454941c45d1b3a323f1433bd6"),
            (
                "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
                "512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
            ),
            ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "76a91462e907b15cbf27d5425399ebf6f0fb50ebb88f1888ac"),
        ];
        for (address, script) in cases {
            let expected = hex::decode(script).expect("hexadecimal");
            assert_eq!(payout_script(address, Network::Bitcoin), Ok(expected), "{address}");
        }
    }

    #[test]
    fn raw_scripts_are_taken_as_they_are() {
        assert_eq!(payout_script(" 51 ", Network::Regtest), Ok(vec![0x51]));
        assert_eq!(payout_script("6a00", Network::Regtest), Err(PayoutError::Unspendable));
        let long = "51".repeat(MAX_PAYOUT_SCRIPT + 1);
        assert_eq!(
            payout_script(&long, Network::Regtest),
            Err(PayoutError::TooLong { length: MAX_PAYOUT_SCRIPT + 1 })
        );
    }

    #[test]
    fn what_would_lose_the_reward_is_refused() {
        assert_eq!(payout_script("  ", Network::Bitcoin), Err(PayoutError::Empty));
        let address = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4";
        assert!(matches!(payout_script(address, Network::Regtest), Err(PayoutError::WrongNetwork { .. })));
        // Pay to anchor (BIP 433): anyone may spend it.
        assert!(matches!(
            payout_script("bc1pfeessrawgf", Network::Bitcoin),
            Err(PayoutError::Unprotected { .. })
        ));
        // One letter changed: the checksum catches it.
        let mistyped = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5";
        assert!(matches!(payout_script(mistyped, Network::Bitcoin), Err(PayoutError::Unreadable { .. })));
    }
}

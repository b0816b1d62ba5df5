//! What a coinbase says of the block that it is for: what it pays, and the block's height.
//!
//! The bytes are a peer's: every length is checked, and what does not fit makes all of it unknown. Nothing here says
//! whether a block with it would be valid.

/// All bitcoins that there can ever be, in satoshis: no coinbase pays more.
const MAX_MONEY: u64 = 21_000_000 * 100_000_000;

/// The longest scriptSig of a coinbase that consensus allows.
const MAX_SCRIPT_SIG: u64 = 100;

/// The opcodes of the small numbers that a height may be pushed as.
const OP_1: u8 = 0x51;
const OP_16: u8 = 0x60;

/// The longest push of a height that is read: four bytes of number and one for its sign.
const MAX_HEIGHT: u8 = 5;

/// What is read of a coinbase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoinbaseFacts {
    /// The sum of its outputs, in satoshis: the reward of the block and its fees, whoever they are for.
    pub value_sats: u64,
    /// The height that its script begins with (BIP 34); `None` when it begins otherwise.
    pub height: Option<u32>,
}

/// Reads a coinbase without witness that is cut around its extranonce, which has `extranonce_size` bytes and whose
/// contents do not matter. `None` when it is not a coinbase from its first byte to its last.
pub fn read(prefix: &[u8], extranonce_size: usize, suffix: &[u8]) -> Option<CoinbaseFacts> {
    // In two pieces, because no length may lie within what miners roll.
    let mut from = prefix;
    take(&mut from, 4)?;
    let inputs = compact_size(&mut from)?;
    let previous_hash = take(&mut from, 32)?;
    let previous_index = take(&mut from, 4)?;
    if inputs != 1 || previous_hash != [0; 32] || previous_index != [0xff; 4] {
        return None;
    }
    let script_size = compact_size(&mut from)?;
    if script_size > MAX_SCRIPT_SIG {
        return None;
    }
    let height = pushed_height(from);
    let rest = (script_size as usize).checked_sub(from.len())?.checked_sub(extranonce_size)?;
    let mut from = suffix;
    take(&mut from, rest)?;
    take(&mut from, 4)?;
    let mut value_sats = 0_u64;
    for _ in 0..compact_size(&mut from)? {
        let value = u64::from_le_bytes(take(&mut from, 8)?.try_into().ok()?);
        value_sats = value_sats.checked_add(value).filter(|sum| *sum <= MAX_MONEY)?;
        let script = compact_size(&mut from)?;
        take(&mut from, usize::try_from(script).ok()?)?;
    }
    take(&mut from, 4)?;
    from.is_empty().then_some(CoinbaseFacts { value_sats, height })
}

/// The height at the beginning of a script, of which only what comes before the extranonce is there.
fn pushed_height(script: &[u8]) -> Option<u32> {
    let (first, rest) = script.split_first()?;
    match *first {
        0 => Some(0),
        OP_1..=OP_16 => Some(u32::from(first - OP_1) + 1),
        length @ 1..=MAX_HEIGHT => {
            let number = rest.get(..usize::from(length))?;
            // The highest bit is the sign.
            if number.last().is_some_and(|byte| byte & 0x80 != 0) {
                return None;
            }
            let height = number.iter().rev().fold(0_u64, |height, byte| height << 8 | u64::from(*byte));
            u32::try_from(height).ok()
        }
        _ => None,
    }
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

/// A number as transactions write counts and lengths, in its shortest form as Bitcoin Core demands it.
fn compact_size(from: &mut &[u8]) -> Option<u64> {
    let wide = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let (number, least) = match *take(from, 1)?.first()? {
        0xfd => (wide(take(from, 2)?), 0xfd),
        0xfe => (wide(take(from, 4)?), 0x1_0000),
        0xff => (wide(take(from, 8)?), 0x1_0000_0000),
        small => return Some(small.into()),
    };
    (number >= least).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The coinbase of block 125552 of the main chain, whose block pays 50.03853376 bitcoins, with a height before it as BIP
    /// 34 asks for.
    fn coinbase(script_start: &str) -> Vec<u8> {
        let script = format!("{script_start}044c86041b0120");
        let bytes = format!(
            "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff{:02x}{script}ffffffff\
             0140be402a0100000043410496b538e853519c726a2c91e61ec11600ae1390813a627c66fb8be7947be63c52da7589379515d4e0\
             a604f8141781e62294721166bf621e73a82cbf2342c858eeac00000000",
            script.len() / 2
        );
        hex::decode(bytes).expect("hexadecimal")
    }

    /// Cut so that the five bytes after the height are the extranonce.
    fn facts(script_start: &str) -> Option<CoinbaseFacts> {
        let coinbase = coinbase(script_start);
        let at = 42 + script_start.len() / 2;
        read(&coinbase[..at], 5, &coinbase[at + 5..])
    }

    #[test]
    fn value_and_height_are_read() {
        for (start, height) in [
            ("", None),
            ("0370ea01", Some(125_552)),
            ("03a1190e", Some(924_065)),
            ("00", Some(0)),
            ("51", Some(1)),
            ("60", Some(16)),
            ("0111", Some(17)),
            ("028000", Some(128)),
            ("0180", None),
            ("05ffffffff00", Some(u32::MAX)),
            ("05ffffffff01", None),
        ] {
            let facts = facts(start).expect("a coinbase");
            assert_eq!((facts.value_sats, facts.height), (5_003_853_376, height), "{start}");
        }
    }

    #[test]
    fn a_height_is_not_read_from_what_miners_roll() {
        let coinbase = coinbase("0370ea01");
        let facts = read(&coinbase[..44], 5, &coinbase[49..]).expect("a coinbase");
        assert_eq!((facts.value_sats, facts.height), (5_003_853_376, None));
    }

    #[test]
    fn outputs_are_added_up() {
        let mut coinbase = coinbase("0370ea01");
        let outputs = coinbase.len() - 4 - 76 - 1;
        coinbase[outputs] = 3;
        let end = coinbase.len() - 4;
        // An output of nothing, with a script of 253 bytes whose length takes three, and one of a satoshi.
        let mut more = vec![0; 8];
        more.extend_from_slice(&[0xfd, 0xfd, 0]);
        more.extend_from_slice(&[0x6a; 253]);
        more.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]);
        coinbase.splice(end..end, more);
        let facts = read(&coinbase[..46], 5, &coinbase[51..]).expect("a coinbase");
        assert_eq!(facts, CoinbaseFacts { value_sats: 5_003_853_377, height: Some(125_552) });
    }

    #[test]
    fn what_is_no_coinbase_is_unknown() {
        let whole = coinbase("0370ea01");
        for end in 0..whole.len() {
            let prefix = &whole[..end.min(46)];
            assert_eq!(read(prefix, 5, whole.get(51..end).unwrap_or_default()), None, "cut at {end}");
        }
        let altered = |change: fn(&mut Vec<u8>)| {
            let mut coinbase = whole.clone();
            change(&mut coinbase);
            read(&coinbase[..46], 5, &coinbase[51..])
        };
        assert!(altered(|_| {}).is_some());
        assert_eq!(altered(|coinbase| coinbase[4] = 2), None, "two inputs");
        assert_eq!(altered(|coinbase| coinbase[20] = 1), None, "it spends something");
        assert_eq!(altered(|coinbase| coinbase[41] = 101), None, "too long a script");
        assert_eq!(altered(|coinbase| coinbase[41] = 3), None, "a script that ends within the prefix");
        assert_eq!(altered(|coinbase| coinbase.push(0)), None, "something follows");
        // The value of the only output is above all money.
        assert_eq!(altered(|coinbase| coinbase[64] = 0xff), None);
        // A count of outputs that nobody has room for.
        assert_eq!(altered(|coinbase| drop(coinbase.splice(57..58, [0xff; 9]))), None);
    }
}

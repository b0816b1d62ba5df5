//! Values as a statement's file has them. Each value has one text only, so that nothing can be changed unseen.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stratum::Work;

/// The greatest number that every reader of JSON holds exactly (RFC 8259, 6).
pub(crate) const MAX_COUNT: u64 = (1 << 53) - 1;

/// The greatest work of one field: sums of a few of them never overflow. All that was ever hashed for Bitcoin is below 2^100.
pub(crate) const MAX_HASHES: u128 = 1 << 120;

/// So many bytes, as hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = HexBytes::deserialize(deserializer)?.0;
        let length = bytes.len();
        let wrong = |_| D::Error::custom(format!("has {length} bytes in hexadecimal instead of {N}"));
        bytes.try_into().map(Hex).map_err(wrong)
    }
}

/// Any number of bytes, as hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

impl fmt::Debug for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.bytes().any(|letter| letter.is_ascii_uppercase()) {
            return Err(D::Error::custom("hexadecimal digits are in upper case"));
        }
        hex::decode(&text)
            .map(HexBytes)
            .map_err(|error| D::Error::custom(format!("not hexadecimal: {error}")))
    }
}

/// Expected hashes, as a decimal text: they are too great for the numbers of most readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashes(pub Work);

impl Serialize for Hashes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Hashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.parse::<u128>().ok().filter(|number| number.to_string() == text);
        let number = number.ok_or_else(|| D::Error::custom("hashes are not a decimal number in a text"))?;
        if number > MAX_HASHES {
            return Err(D::Error::custom("more than 2^120 hashes"));
        }
        Ok(Hashes(Work(number)))
    }
}

/// A number that every reader of JSON holds exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub u64);

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        if number > MAX_COUNT { Err(D::Error::custom("a number of 2^53 or more")) } else { Ok(Count(number)) }
    }
}

/// Shares, and what they are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// How many.
    pub shares: Count,
    /// Their work in expected hashes.
    pub hashes: Hashes,
}

impl Amount {
    pub(crate) fn of(shares: u64, work: Work) -> Self {
        Amount { shares: Count(shares), hashes: Hashes(work) }
    }
}

/// Shares with the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForReason {
    /// The reason's name, as everywhere.
    pub reason: String,
    /// How many.
    pub shares: Count,
    /// Their work in expected hashes.
    pub hashes: Hashes,
}

/// Those reasons that occurred.
pub(crate) fn reasons<R>(
    all: &[R],
    name: fn(R) -> &'static str,
    shares: &[u64],
    works: &[Work],
) -> Vec<ForReason>
where
    R: Copy,
{
    let every = all.iter().zip(shares.iter().zip(works));
    every
        .filter(|(_, (shares, work))| **shares > 0 || work.0 > 0)
        .map(|(reason, (shares, work))| ForReason {
            reason: name(*reason).to_owned(),
            shares: Count(*shares),
            hashes: Hashes(*work),
        })
        .collect()
}

/// The reverse of [`reasons`]; `None` when a reason is unknown or comes twice.
pub(crate) fn by_reason<R: Copy, const N: usize>(
    list: &[ForReason],
    all: &[R; N],
    name: fn(R) -> &'static str,
) -> Option<([u64; N], [Work; N])> {
    let mut sums = [None; N];
    for entry in list {
        let place = all.iter().position(|reason| name(*reason) == entry.reason)?;
        if sums[place].replace((entry.shares.0, entry.hashes.0)).is_some() {
            return None;
        }
    }
    let sums = sums.map(Option::unwrap_or_default);
    Some((sums.map(|(shares, _)| shares), sums.map(|(_, work)| work)))
}

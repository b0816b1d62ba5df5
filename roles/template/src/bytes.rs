//! Reading of Bitcoin's serialisation from a peer's bytes.
//!
//! Nothing here trusts a length: every read fails where the bytes end, and nothing is allocated for what has not
//! come.

/// The bytes are not what they must be: they end early, or a count is not written in its shortest form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// Takes fields from the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Broken)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Broken> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Broken> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Broken> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count or length. One that is longer than need be is refused: nodes refuse it too.
    pub(crate) fn compact_size(&mut self) -> Result<u64, Broken> {
        let (size, least) = match self.u8()? {
            0xfd => (u64::from(u16::from_le_bytes(self.array()?)), 0xfd),
            0xfe => (u64::from(self.u32()?), 0x1_0000),
            0xff => (self.u64()?, 0x1_0000_0000),
            small => (u64::from(small), 0),
        };
        if size < least { Err(Broken) } else { Ok(size) }
    }

    /// A length that must be at hand.
    pub(crate) fn length(&mut self) -> Result<usize, Broken> {
        let length = self.compact_size()?;
        usize::try_from(length).ok().filter(|length| *length <= self.0.len()).ok_or(Broken)
    }

    pub(crate) fn end(self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err(Broken) }
    }
}

/// Bitcoin's count or length.
pub(crate) fn push_compact_size(bytes: &mut Vec<u8>, size: usize) {
    match size {
        0..=0xfc => bytes.push(size as u8),
        0xfd..=0xffff => {
            bytes.push(0xfd);
            bytes.extend_from_slice(&(size as u16).to_le_bytes());
        }
        _ => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&(size as u32).to_le_bytes());
        }
    }
}

//! Sums at rest: as the bytes that they are written as, which take a tenth of the room.
//!
//! They are never changed in place.

use std::sync::Arc;

use super::fields::add_sums;
use super::{CodecError, decode_sums, encode_sums};
use crate::sums::Sums;

/// What sums of nothing are written as.
const NOTHING: [u8; 8] = [0; 8];

/// Sums as bytes. Copies share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedSums(
    /// Empty for sums of nothing.
    Arc<[u8]>,
);

impl PackedSums {
    /// These sums.
    pub fn of(sums: &Sums) -> Self {
        Self::of_with(sums, &mut Vec::new())
    }

    /// As [`PackedSums::of`], with room to work in.
    pub fn of_with(sums: &Sums, room: &mut Vec<u8>) -> Self {
        room.clear();
        encode_sums(sums, room);
        Self::of_bytes(room)
    }

    /// Sums that were written as [`encode_sums`] writes them.
    ///
    /// # Errors
    /// When they were not.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        decode_sums(bytes)?;
        Ok(Self::of_bytes(bytes))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        if *bytes == NOTHING { PackedSums::default() } else { PackedSums(bytes.into()) }
    }

    /// As [`encode_sums`] writes them.
    pub fn bytes(&self) -> &[u8] {
        if self.0.is_empty() { &NOTHING } else { &self.0 }
    }

    /// The sums.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        self.add_to(&mut sums);
        sums
    }

    /// Adds them to others.
    pub fn add_to(&self, sums: &mut Sums) {
        if !self.0.is_empty() {
            add_sums(&self.0, sums).expect("they were encoded here, or looked at when they were read");
        }
    }
}

impl From<Sums> for PackedSums {
    fn from(sums: Sums) -> Self {
        PackedSums::of(&sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_nothing_take_no_room_and_are_written_as_any_others() {
        let mut bytes = Vec::new();
        encode_sums(&Sums::default(), &mut bytes);
        assert_eq!(PackedSums::default().bytes(), bytes);
        assert_eq!(PackedSums::of(&Sums::default()), PackedSums::default());
        assert_eq!(PackedSums::read(&bytes), Ok(PackedSums::default()));
        assert_eq!(PackedSums::default().sums(), Sums::default());
    }

    #[test]
    fn they_come_back_as_they_were() {
        let mut sums = Sums::default();
        sums.shares.submitted = 300;
        sums.squared_work = 1.5e30;
        let packed = PackedSums::of(&sums);
        assert_eq!(PackedSums::read(packed.bytes()), Ok(packed.clone()));
        let mut twice = packed.sums();
        packed.add_to(&mut twice);
        assert_eq!((twice.shares.submitted, twice.squared_work), (600, 3.0e30));
        let (_, cut) = packed.bytes().split_last().expect("they are not empty");
        assert!(PackedSums::read(cut).is_err());
    }
}

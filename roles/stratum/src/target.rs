//! Target, difficulty, hash rate and work: four types for four quantities.

use std::fmt;

use bitcoin::{CompactTarget, pow};

use crate::hash::Hash;

/// A 256-bit number that a block hash must not exceed.
///
/// Kept as four 64-bit limbs, least significant first, so that it compares with a hash without copying.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target([u64; 4]);

impl Target {
    /// The easiest target: every hash meets it.
    pub const MAX: Target = Target([u64::MAX; 4]);

    /// The hardest target that is still a number of hashes: nothing is ever expected to meet it.
    pub const HARDEST: Target = Target([1, 0, 0, 0]);

    /// The target of difficulty 1 as SV1 pools count it: 0xffff shifted left by 208 bits.
    pub const DIFFICULTY_1: Target = Target([0, 0, 0, 0x0000_0000_ffff_0000]);

    /// Reads the 32 little-endian bytes that SV2 messages carry (U256), the byte order of a hash in a header.
    pub fn from_le_bytes(bytes: [u8; 32]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Target([0, 1, 2, 3].map(|limb| u64::from_le_bytes(words[limb])))
    }

    /// The 32 little-endian bytes that SV2 messages carry (U256).
    pub fn to_le_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&limb.to_le_bytes());
        }
        bytes
    }

    /// The target that a block header's `nBits` stands for.
    pub fn from_compact(nbits: u32) -> Self {
        Target::from_le_bytes(pow::Target::from_compact(CompactTarget::from_consensus(nbits)).to_le_bytes())
    }

    /// True when a hash, in internal byte order, does not exceed this target.
    pub fn is_met_by(&self, hash: &Hash) -> bool {
        Target::from_le_bytes(*hash) <= *self
    }

    /// Expected number of hashes per share at this target: 2^256 / (target + 1), rounded down.
    pub fn work(&self) -> Work {
        let bytes = pow::Target::from_le_bytes(self.to_le_bytes()).to_work().to_be_bytes();
        let (high, low) = bytes.split_at(16);
        if high.iter().any(|byte| *byte != 0) {
            return Work(u128::MAX);
        }
        Work(u128::from_be_bytes(low.try_into().expect("half of 32 bytes is 16")))
    }

    /// The easiest target whose shares are worth so much: what [`Target::work`] was taken of, to its accuracy.
    pub fn of_work(work: Work) -> Self {
        match work.0 {
            0 | 1 => return Target::MAX,
            2 => return Target([u64::MAX, u64::MAX, u64::MAX, u64::MAX >> 1]),
            _ => {}
        }
        let mut bytes = [0; 32];
        bytes[16..].copy_from_slice(&(work.0 - 1).to_be_bytes());
        // 2^256 divided by the work. The target is one less: one of 2^n - 1 is met by one hash in 2^(256 - n).
        let above = pow::Work::from_be_bytes(bytes).to_target();
        let Target(mut limbs) = Target::from_le_bytes(above.to_le_bytes());
        for limb in &mut limbs {
            let (less, borrows) = limb.overflowing_sub(1);
            *limb = less;
            if !borrows {
                break;
            }
        }
        Target(limbs)
    }

    /// The difficulty of this target: [`Target::DIFFICULTY_1`] divided by it. Infinite for the zero target.
    pub fn difficulty(&self) -> Difficulty {
        Difficulty(Target::DIFFICULTY_1.to_f64() / self.to_f64())
    }

    /// The target of difficulty 2^`exponent`, rounded down: [`Target::DIFFICULTY_1`] shifted.
    /// Easier targets than [`Target::MAX`] and harder ones than 1 saturate there.
    pub const fn from_difficulty_exponent(exponent: i32) -> Self {
        if exponent <= -32 {
            return Target::MAX;
        }
        if exponent >= 224 {
            return Target::HARDEST;
        }
        let mut limbs = [0; 4];
        // How far the 16 set bits of difficulty 1 lie to the left, within 256 bits by the limits above.
        let shift = 208 - exponent;
        if shift < 0 {
            limbs[0] = 0xffff >> -shift;
            return Target(limbs);
        }
        let (limb, bits) = (shift as usize / 64, 0xffff_u128 << (shift % 64));
        limbs[limb] = bits as u64;
        if limb < 3 {
            limbs[limb + 1] = (bits >> 64) as u64;
        }
        Target(limbs)
    }

    /// The exponent of the hardest power-of-two difficulty that is no harder than this target:
    /// a share at that difficulty may miss this target, a share that meets this target always meets that one.
    pub fn difficulty_exponent_floor(&self) -> i32 {
        let mut exponent = self.difficulty().0.log2().floor().clamp(-32.0, 223.0) as i32;
        // The logarithm of a float may be off by one next to a power of two.
        while exponent > -32 && Target::from_difficulty_exponent(exponent) < *self {
            exponent -= 1;
        }
        while exponent < 223 && Target::from_difficulty_exponent(exponent + 1) >= *self {
            exponent += 1;
        }
        exponent
    }

    fn to_f64(self) -> f64 {
        self.0.iter().rev().fold(0.0, |sum, limb| sum * 2f64.powi(64) + *limb as f64)
    }
}

impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A greater target is an easier one.
impl Ord for Target {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let halves = |[a, b, c, d]: [u64; 4]| {
            (u128::from(d) << 64 | u128::from(c), u128::from(b) << 64 | u128::from(a))
        };
        halves(self.0).cmp(&halves(other.0))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "Target({d:016x}{c:016x}{b:016x}{a:016x})")
    }
}

/// Difficulty as SV1 counts it: how many times harder than [`Target::DIFFICULTY_1`]. Above 0.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Difficulty(pub f64);

impl Difficulty {
    /// 2^`exponent`.
    pub fn from_exponent(exponent: i32) -> Self {
        Difficulty(2f64.powi(exponent))
    }

    /// The difficulty that a hash would just meet.
    pub fn of_hash(hash: &Hash) -> Self {
        Target::from_le_bytes(*hash).difficulty()
    }
}

/// Powers of two from 1 up print as integers and smaller ones as exact decimals: firmware misreads anything else.
impl fmt::Display for Difficulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Hashes per second, not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct HashRate(pub f64);

impl HashRate {
    /// The rate at which shares of `work` each arrive `shares_per_minute` times.
    pub fn of_shares(work: Work, shares_per_minute: f64) -> Self {
        HashRate(work.0 as f64 * shares_per_minute / 60.0)
    }

    /// The exponent of the power-of-two difficulty at which this rate makes `shares_per_minute` shares,
    /// rounded down.
    pub fn difficulty_exponent(self, shares_per_minute: f64) -> i32 {
        let hashes_per_share = self.0 * 60.0 / shares_per_minute;
        (hashes_per_share / Work::OF_DIFFICULTY_1.0 as f64).log2().floor().clamp(-32.0, 223.0) as i32
    }
}

/// Expected hashes, summed exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work(pub u128);

impl Work {
    /// The work of [`Target::DIFFICULTY_1`].
    pub const OF_DIFFICULTY_1: Work = Work(0x1_0001_0001);
}

impl std::ops::Add for Work {
    type Output = Work;
    fn add(self, other: Work) -> Work {
        Work(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Work>>(works: I) -> Work {
        works.fold(Work(0), |sum, work| sum + work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifted_right_by_one(limbs: [u64; 4]) -> [u64; 4] {
        let [a, b, c, d] = limbs;
        [a >> 1 | b << 63, b >> 1 | c << 63, c >> 1 | d << 63, d >> 1]
    }

    fn shifted_left_by_one(limbs: [u64; 4]) -> [u64; 4] {
        let [a, b, c, d] = limbs;
        [a << 1, b << 1 | a >> 63, c << 1 | b >> 63, d << 1 | c >> 63]
    }

    #[test]
    fn a_power_of_two_shifts_difficulty_1_bit_by_bit() {
        let mut limbs = Target::DIFFICULTY_1.0;
        for exponent in 0..=223 {
            assert_eq!(Target::from_difficulty_exponent(exponent), Target(limbs), "2^{exponent}");
            limbs = shifted_right_by_one(limbs);
        }
        assert_eq!(Target::from_difficulty_exponent(223), Target::HARDEST);
        assert_eq!(Target::from_difficulty_exponent(224), Target::HARDEST);
        let mut limbs = Target::DIFFICULTY_1.0;
        for exponent in (-31..=0).rev() {
            assert_eq!(Target::from_difficulty_exponent(exponent), Target(limbs), "2^{exponent}");
            limbs = shifted_left_by_one(limbs);
        }
        for exponent in [i32::MIN, -33, -32] {
            assert_eq!(Target::from_difficulty_exponent(exponent), Target::MAX);
        }
        assert_eq!(Target::from_difficulty_exponent(i32::MAX), Target::HARDEST);
    }

    #[test]
    fn targets_compare_from_their_highest_limb() {
        for limb in 0..4 {
            let (mut small, mut great) = ([5; 4], [5; 4]);
            small[..limb].fill(9);
            great[limb] = 6;
            assert!(Target(small) < Target(great), "limb {limb}");
            small[limb] = 6;
            assert!(Target(small) > Target(great) || limb == 0, "limb {limb}");
        }
        assert_eq!(Target::MAX.cmp(&Target::MAX), std::cmp::Ordering::Equal);
    }

    #[test]
    fn difficulty_1_is_the_genesis_target() {
        assert_eq!(Target::from_compact(0x1d00_ffff), Target::DIFFICULTY_1);
        assert_eq!(Target::DIFFICULTY_1.work(), Work::OF_DIFFICULTY_1);
        assert_eq!(Target::DIFFICULTY_1.difficulty(), Difficulty(1.0));
    }

    #[test]
    fn the_grid_of_powers_of_two_is_exact() {
        for exponent in -31..200 {
            let target = Target::from_difficulty_exponent(exponent);
            assert_eq!(target.difficulty_exponent_floor(), exponent, "2^{exponent}");
            if exponent < 100 {
                assert_eq!(target.difficulty().0, 2f64.powi(exponent), "2^{exponent}");
            }
        }
        assert_eq!(Target::from_difficulty_exponent(-32), Target::MAX);
    }

    #[test]
    fn the_floor_never_hides_a_share_that_meets_the_target() {
        let between = Target([7, 7, 7, 0x0000_0000_0bcd_0000]);
        let floor = Target::from_difficulty_exponent(between.difficulty_exponent_floor());
        assert!(floor >= between);
        assert!(Target::from_difficulty_exponent(between.difficulty_exponent_floor() + 1) < between);
    }

    #[test]
    fn difficulties_print_as_firmware_reads_them() {
        assert_eq!(Difficulty::from_exponent(16).to_string(), "65536");
        assert_eq!(Difficulty::from_exponent(0).to_string(), "1");
        assert_eq!(Difficulty::from_exponent(-12).to_string(), "0.000244140625");
    }

    #[test]
    fn a_target_comes_back_from_its_work() {
        for exponent in [0, 1, 7, 32, 40, 64, 100, 127] {
            let work = Work(1 << exponent);
            assert_eq!(Target::of_work(work).work(), work, "2^{exponent}");
        }
        assert_eq!(Target::of_work(Work(0)), Target::MAX);
        assert_eq!(Target::of_work(Work(1)), Target::MAX);
        let odd = Target::from_compact(0x1702_1234);
        let back = Target::of_work(odd.work());
        assert!((back.difficulty().0 / odd.difficulty().0 - 1.0).abs() < 1e-12, "{back:?} and {odd:?}");
    }
}

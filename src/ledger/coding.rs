//! Sums as bytes, until the crate `accounting` has its own form for them.

use accounting::Sums;
use stratum::Work;

/// Appends the bytes of sums.
pub fn encode_sums(sums: &Sums, bytes: &mut Vec<u8>) {
    let mut sums = sums.clone();
    each(&mut sums, &mut |value| {
        let mut rest = *value;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    });
}

/// The sums of these bytes; `None` when they are none.
pub fn decode_sums(bytes: &[u8]) -> Option<Sums> {
    let mut sums = Sums::default();
    let mut rest = bytes.iter();
    let mut is_whole = true;
    each(&mut sums, &mut |value| {
        *value = 0;
        for shift in (0..128).step_by(7) {
            let Some(byte) = rest.next() else { return is_whole = false };
            *value |= u128::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return;
            }
        }
        is_whole = false;
    });
    (is_whole && rest.as_slice().is_empty()).then_some(sums)
}

fn each(sums: &mut Sums, visit: &mut impl FnMut(&mut u128)) {
    let Sums { shares, answers, energy, squared_work } = sums;
    let mut count = |count: &mut u64| {
        let mut wide = u128::from(*count);
        visit(&mut wide);
        *count = wide as u64;
    };
    let counts = [
        &mut shares.submitted,
        &mut shares.accepted,
        &mut shares.blocks,
        &mut shares.below_upstream_target,
        &mut shares.forwarded,
        &mut shares.kept,
        &mut answers.forwarded,
        &mut answers.acknowledged,
        &mut answers.refused,
    ];
    counts.into_iter().for_each(&mut count);
    shares.rejected.iter_mut().for_each(&mut count);
    shares.dropped.iter_mut().for_each(&mut count);
    answers.lost.iter_mut().for_each(&mut count);
    energy.millijoules.iter_mut().for_each(&mut count);
    let mut bits = squared_work.to_bits();
    count(&mut bits);
    *squared_work = f64::from_bits(bits);
    let mut work = |work: &mut Work| visit(&mut work.0);
    let works = [
        &mut shares.submitted_work,
        &mut shares.credited,
        &mut shares.upstream_work,
        &mut shares.forwarded_work,
        &mut answers.forwarded_work,
        &mut answers.acknowledged_work,
        &mut answers.refused_work,
        &mut energy.covered_work,
    ];
    works.into_iter().for_each(&mut work);
    shares.rejected_work.iter_mut().for_each(&mut work);
    shares.dropped_work.iter_mut().for_each(&mut work);
    answers.lost_work.iter_mut().for_each(&mut work);
}

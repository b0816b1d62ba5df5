//! Pages: the points of one subject over a stretch of time, in one row.

use std::collections::BTreeMap;

use accounting::Level;

/// What a page starts with: its form, so that a later one can be told from it.
const FORM: u8 = 1;

/// The encoded sums of the points of one page, by when each starts.
pub(super) type Points = BTreeMap<u64, Vec<u8>>;

/// When the page starts that a point belongs to.
pub(super) const fn page_start(level: Level, start: u64) -> u64 {
    start - start % level.page_seconds()
}

/// The bytes of a page that starts at `start`. All points are within its span. Each is its place in the page and the
/// length of its sums (two bytes each), and the sums.
pub(super) fn pack(level: Level, start: u64, points: &Points) -> Vec<u8> {
    let mut bytes = vec![FORM];
    for (point, sums) in points {
        let place = (point - start) / level.seconds();
        bytes.extend_from_slice(&(place as u16).to_le_bytes());
        bytes.extend_from_slice(&(sums.len() as u16).to_le_bytes());
        bytes.extend_from_slice(sums);
    }
    bytes
}

/// The points of a page; `None` when it has another form.
pub(super) fn unpack(level: Level, start: u64, bytes: &[u8]) -> Option<Points> {
    let mut points = Points::new();
    let (form, mut rest) = bytes.split_first()?;
    if *form != FORM {
        return None;
    }
    while !rest.is_empty() {
        let (place, after) = rest.split_first_chunk::<2>()?;
        let (length, after) = after.split_first_chunk::<2>()?;
        let (sums, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
        let point = start + u64::from(u16::from_le_bytes(*place)) * level.seconds();
        points.insert(point, sums.to_vec());
        rest = after;
    }
    Some(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_give_back_what_was_packed() {
        for level in Level::ALL {
            let start = page_start(level, 1_795_645_454);
            let places = level.page_seconds() / level.seconds();
            let points: Points = (0..places)
                .filter(|place| place % 3 != 1)
                .map(|place| (start + place * level.seconds(), vec![place as u8; place as usize * 3]))
                .collect();
            let bytes = pack(level, start, &points);
            assert_eq!(unpack(level, start, &bytes), Some(points));
            assert_eq!(unpack(level, start, &bytes[..bytes.len() - 1]), None, "torn");
        }
        assert_eq!(unpack(Level::Hour, 0, &[]), None);
        assert_eq!(unpack(Level::Hour, 0, &[FORM + 1]), None);
    }
}

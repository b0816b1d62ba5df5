//! How long upstreams take to answer: a histogram with fixed classes, and nothing of single shares.
//!
//! A latency is the time from a share judged to the answer that took or refused it. What was never answered is in no
//! latency: it is counted as lost.

/// The longest latency of each class but the last one, in microseconds; the last one has all longer ones.
pub const ACK_LIMITS_US: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// Latencies of answers, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckSums {
    /// How many there are in each class, the longer ones in the last.
    pub classes: [u64; ACK_LIMITS_US.len() + 1],
    /// All of them together, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub longest_us: u64,
}

impl AckSums {
    /// Adds one latency, in microseconds.
    pub fn add(&mut self, latency_us: u64) {
        let class = ACK_LIMITS_US.partition_point(|limit| *limit < latency_us);
        self.classes[class] += 1;
        self.total_us = self.total_us.saturating_add(latency_us);
        self.longest_us = self.longest_us.max(latency_us);
    }

    /// Takes earlier ones of the same upstream out of these. The longest stays the longest of all.
    pub fn subtract(&mut self, earlier: &AckSums) {
        let sums = self.classes.iter_mut().zip(earlier.classes);
        sums.for_each(|(sum, count)| *sum = sum.saturating_sub(count));
        self.total_us = self.total_us.saturating_sub(earlier.total_us);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// The mean, in seconds; `None` without any.
    pub fn mean_seconds(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.total_us as f64 / 1e6 / count as f64)
    }

    /// The longest, in seconds; `None` without any.
    pub fn longest_seconds(&self) -> Option<f64> {
        (self.count() > 0).then_some(self.longest_us as f64 / 1e6)
    }

    /// The limits of the classes in seconds, each with how many latencies do not exceed it; without the last class,
    /// up to which there are [`AckSums::count`].
    pub fn up_to(&self) -> impl Iterator<Item = (f64, u64)> {
        ACK_LIMITS_US.into_iter().zip(self.classes).scan(0, |sum, (limit, count)| {
            *sum += count;
            Some((limit as f64 / 1e6, *sum))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_first_class_that_it_does_not_exceed() {
        let mut acks = AckSums::default();
        assert_eq!((acks.mean_seconds(), acks.longest_seconds()), (None, None));
        for latency in [0, 1_000, 1_001, 30_000_000, 30_000_001, 90_000_000] {
            acks.add(latency);
        }
        assert_eq!((acks.classes[0], acks.classes[1], acks.classes[13], acks.classes[14]), (2, 1, 1, 2));
        assert_eq!((acks.count(), acks.longest_seconds()), (6, Some(90.0)));
        let limits: Vec<_> = acks.up_to().collect();
        assert_eq!((limits[0], limits[1], limits[13]), ((0.001, 2), (0.0025, 3), (30.0, 4)));
        assert_eq!(acks.mean_seconds(), Some(150.002002 / 6.0));
    }
}

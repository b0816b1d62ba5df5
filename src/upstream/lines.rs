//! Keeps a stream of blocks from filling the disk with log lines. Never decides what is logged, only how often.

use std::time::Duration;

/// How far apart lines of one kind are. Blocks come this fast only where nearly every share is one.
const PERIOD: Duration = Duration::from_secs(1);

/// When the last line of one kind was written, and what it left unsaid since.
#[derive(Debug, Default)]
pub(super) struct LineLimit {
    last: Option<Duration>,
    unsaid: u64,
}

impl LineLimit {
    /// How many events a line stands for that is written now, the present one included; `None` when it is too early
    /// for another line. `now` is monotonic.
    pub(super) fn admit(&mut self, now: Duration) -> Option<u64> {
        self.unsaid += 1;
        if self.last.is_some_and(|last| now.saturating_sub(last) < PERIOD) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stands_for_all_since_the_last() {
        let mut limit = LineLimit::default();
        let admitted = [0, 10, 999, 1000, 1500].map(|at| limit.admit(Duration::from_millis(at)));
        assert_eq!(admitted, [Some(1), None, None, Some(3), None]);
        assert_eq!(limit.admit(Duration::from_secs(60)), Some(2));
    }
}

//! What processes and threads use, as Linux tells it under `/proc`.
//!
//! Only whole processes are compared: the time of threads that have ended counts too.

use std::fs;
use std::io;
use std::time::Duration;

/// Clock ticks a second in `/proc/PID/stat`: USER_HZ, which is 100 on every architecture that we know.
const TICKS_PER_SECOND: u32 = 100;

/// What a process has used, and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user and kernel mode since it started, to 10 ms.
    pub cpu: Duration,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// Resident memory in KiB that is no file's: heap and stacks.
    pub anonymous_kib: u64,
}

impl Usage {
    /// Reads what the process with this id uses.
    pub fn of_process(id: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        Usage::parse(&stat, &status)
            .ok_or_else(|| io::Error::other("/proc tells something else than it used to"))
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name of the program stands in brackets and may hold anything.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        // utime and stime are the 14th and 15th of all; the first two were cut off.
        let ticks = fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Usage {
            cpu: Duration::from_secs(1) * ticks / TICKS_PER_SECOND,
            resident_kib: kib("VmRSS:")?,
            anonymous_kib: kib("RssAnon:")?,
        })
    }
}

/// Processor time of this process's live threads whose names begin with `prefix`.
pub fn own_threads(prefix: &str) -> Duration {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let of_thread = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        if !name.starts_with(prefix) {
            return None;
        }
        let schedule = fs::read_to_string(path.join("schedstat")).ok()?;
        schedule.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    threads.filter_map(of_thread).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_read_right() {
        let stat = "77 (a b) c) S 1 77 77 0 -1 4194304 9 0 0 0 1234 66 7 8 20 0 3 0 99 1000 200";
        let status = "Name:\ta\nVmRSS:\t   2048 kB\nRssAnon:\t    1024 kB\nThreads:\t3\n";
        let usage = Usage::parse(stat, status).expect("as Linux writes it");
        assert_eq!(usage, Usage { cpu: Duration::from_secs(13), resident_kib: 2048, anonymous_kib: 1024 });
        let own = Usage::of_process(std::process::id()).expect("this process runs");
        assert!(own.resident_kib >= own.anonymous_kib && own.anonymous_kib > 0);
    }
}

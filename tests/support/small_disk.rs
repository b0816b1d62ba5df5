//! A disk in memory that a test can fill, or forbid to be written to.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// A disk of a few megabytes; unmounted when dropped.
pub(crate) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// `None` where this process may not mount, which is printed.
    pub(crate) fn mount(size: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = SmallDisk { folder };
        match disk.run(&["-t", "tmpfs", "-o", &format!("size={size}"), "checkweigh-test"]) {
            Ok(()) => Some(disk),
            Err(why) => {
                println!("SKIPPED: no small disk can be mounted here, so nothing was tested: {why}");
                None
            }
        }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new("mount").args(arguments).arg(self.folder.path()).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said()) }
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Takes all the room that is left, except for `bytes`.
    pub(crate) fn fill_up(&self, bytes: usize) -> PathBuf {
        let ballast = self.folder.path().join("ballast");
        fs::write(&ballast, vec![0; bytes]).expect("there is room for that");
        let rest = self.folder.path().join("rest");
        let mut size = 1 << 20;
        let mut all = Vec::new();
        while size >= 4096 {
            all.resize(all.len() + size, 0);
            if fs::write(&rest, &all).is_err() {
                all.truncate(all.len() - size);
                size /= 2;
            }
        }
        fs::remove_file(ballast).expect("it is there");
        rest
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

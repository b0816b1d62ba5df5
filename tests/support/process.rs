//! The program as its user starts it: the real binary with a configuration file, watched through its log.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// How long any awaited line of a log may take on a busy machine.
const LINE_DEADLINE: Duration = Duration::from_secs(60);

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// Makes an authority key in `folder`, as its user would.
pub(crate) fn make_key(folder: &Path) {
    let keygen = std::process::Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["keygen", "--out"])
        .arg(folder.join("authority.key"))
        .output()
        .expect("the binary was built with the test");
    assert!(keygen.status.success(), "{keygen:?}");
}

/// A folder with one for a pool, which has a key, and one for a farm.
pub(crate) fn pool_and_farm() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (of_pool, of_farm) = (folder.path().join("pool"), folder.path().join("farm"));
    std::fs::create_dir(&of_pool).expect("the folder is ours");
    std::fs::create_dir(&of_farm).expect("the folder is ours");
    make_key(&of_pool);
    (folder, of_pool, of_farm)
}

/// A running `checkweigh`; killed when dropped.
pub(crate) struct Checkweigh {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    name: &'static str,
}

impl Checkweigh {
    /// Starts a role with a configuration, which is written to a file in `folder`.
    pub(crate) fn start(role: &'static str, config: &str, folder: &Path) -> Self {
        let path = folder.join(format!("{role}.toml"));
        std::fs::write(&path, config).expect("the folder can be written to");
        let mut child = Command::new(env!("CARGO_BIN_EXE_checkweigh"))
            .args([role, "--log-format", "json", "--log", "info", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary was built with the test");
        let log = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        Checkweigh { child, log, name: role }
    }

    /// Waits for a line of the log whose message contains `text`, and returns its fields.
    pub(crate) async fn line(&mut self, text: &str) -> Value {
        let found = timeout(LINE_DEADLINE, async {
            while let Some(line) = self.log.next_line().await.expect("the log can be read") {
                eprintln!("[{}] {line}", self.name);
                let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
                if line["message"].as_str().is_some_and(|message| message.contains(text)) {
                    return Some(line);
                }
            }
            None
        });
        let found = found.await.unwrap_or_else(|_| panic!("{} did not log {text:?} in time", self.name));
        found.unwrap_or_else(|| panic!("{} ended before it logged {text:?}", self.name))
    }

    /// Waits until it listens for what `text` names, and returns where.
    pub(crate) async fn address(&mut self, text: &str) -> SocketAddr {
        let fields = self.line(text).await;
        fields["address"].as_str().and_then(|text| text.parse().ok()).expect("the line names an address")
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it was not waited for yet")
    }

    /// Reads the rest of its log in the background, so that it never waits for us.
    pub(crate) fn detach_log(mut self) -> Child {
        let name = self.name;
        tokio::spawn(async move {
            while let Ok(Some(line)) = self.log.next_line().await {
                eprintln!("[{name}] {line}");
            }
        });
        self.child
    }
}

/// Asks a process to end as a service manager would, and waits for it at most `limit`.
pub(crate) async fn terminate(child: &mut Child, limit: Duration) -> ExitStatus {
    let id = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill is everywhere");
    assert!(sent.success(), "the process was gone already");
    timeout(limit, child.wait()).await.expect("it ends in time").expect("it can be waited for")
}

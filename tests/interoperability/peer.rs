//! A program of the reference implementation as its user starts it: a configuration file, and a log to watch.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long any awaited line may take on a busy machine; each takes seconds on an idle one.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running program; killed when dropped.
pub(crate) struct Peer {
    name: &'static str,
    process: Child,
    /// All lines of its log until now.
    log: watch::Receiver<Vec<String>>,
    _folder: TempDir,
}

impl Peer {
    /// Starts the program of that name.
    pub(crate) async fn start(name: &'static str, configuration: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the configuration");
        let path = folder.path().join("configuration.toml");
        std::fs::write(&path, configuration).expect("the folder is ours");
        let mut process = Command::new(folder_of(name).await.join(name))
            .arg("-c")
            .arg(&path)
            // What it leaves behind, such as the blocks it found, goes with the folder.
            .current_dir(folder.path())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the script installed it");
        let (sender, log) = watch::channel(Vec::new());
        // A panic goes to standard error, everything else to standard output.
        let (output, errors) = (process.stdout.take(), process.stderr.take());
        tokio::spawn(read_log(name, output.expect("it is piped"), sender.clone()));
        tokio::spawn(read_log(name, errors.expect("it is piped"), sender));
        Peer { name, process, log, _folder: folder }
    }

    /// Waits until `count` lines of the log contain `text`.
    pub(crate) async fn says(&mut self, text: &str, count: usize) {
        let name = self.name;
        let said = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(text)).count() >= count;
        let said = timeout(DEADLINE, self.log.wait_for(said)).await;
        let said = said.unwrap_or_else(|_| panic!("{name} did not say {text:?} {count} times in time"));
        assert!(said.is_ok(), "{name} ended before it said {text:?} {count} times");
    }

    /// Fails if a line of the log until now is a complaint.
    pub(crate) fn check(&self, is_complaint: impl Fn(&str) -> bool) {
        let log = self.log.borrow();
        let complaints: Vec<&String> = log.iter().filter(|line| is_complaint(line)).take(10).collect();
        assert!(complaints.is_empty(), "{} complains: {complaints:#?}", self.name);
    }

    /// Ends it, which must still run.
    pub(crate) async fn stop(mut self) {
        assert_eq!(self.process.try_wait().expect("it can be asked"), None, "it runs to the end of the test");
        self.process.kill().await.expect("it can be killed");
    }
}

/// Reads a log to its end, so that the program never waits for us.
async fn read_log(name: &str, log: impl AsyncRead + Unpin, sender: watch::Sender<Vec<String>>) {
    let mut log = BufReader::new(log).lines();
    while let Ok(Some(line)) = log.next_line().await {
        eprintln!("[{name}] {line}");
        sender.send_modify(|lines| lines.push(line));
    }
}

/// The folder that the program is installed in.
async fn folder_of(name: &str) -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/reference-peers.sh");
    let output = Command::new(script).arg(name).stderr(Stdio::inherit()).output();
    let output = output.await.expect("the script runs");
    assert!(output.status.success(), "{script} failed: {:?}", output.status);
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// An address for a program that cannot be told to let the system choose its port: of its own for each test and
/// each test process, so that nobody else can have taken the port.
pub(crate) fn private_address() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(3333);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 64 | high & 0x3f, middle, low);
    SocketAddr::from((address, NEXT_PORT.fetch_add(1, Ordering::Relaxed)))
}

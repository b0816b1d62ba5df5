//! The process that is measured: started with a configuration of its own, found by the address that it listens on,
//! and killed whatever happens.
//!
//! All proxies run with their log at the level `warn`, because some write a line for every share.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use stratum::sv2::AuthorityPublicKey;
use tempfile::TempDir;

use crate::floor::{FloorKind, LISTENING, NEW_BLOCK};
use crate::usage::Usage;

/// How long a process may take until it listens.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Lines of a process's log that are shown when it fails.
const SHOWN_LINES: usize = 20;

/// Connections that a proxy is allowed beyond the swarm's.
const SPARE_CONNECTIONS: usize = 100;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// This project's mining proxy
    Checkweigh,
    /// The reference implementation's translator
    Translator,
    /// The floor of threads that share nothing
    FloorEpoll,
    /// The floor of tasks
    FloorTokio,
}

impl TargetKind {
    /// The kind of floor; `None` for a proxy.
    pub const fn floor(self) -> Option<FloorKind> {
        match self {
            TargetKind::FloorEpoll => Some(FloorKind::Epoll),
            TargetKind::FloorTokio => Some(FloorKind::Tokio),
            TargetKind::Checkweigh | TargetKind::Translator => None,
        }
    }
}

/// How a proxy opens channels. Floors have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One upstream channel for all miners
    Aggregated,
    /// One upstream channel for each miner
    PerDevice,
    /// One upstream channel for all miners, and a ledger on the disk, where the target keeps one
    AggregatedLedger,
}

/// What a target is started with.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// What.
    pub kind: TargetKind,
    /// How a proxy opens channels.
    pub mode: Mode,
    /// The program, where it is not the usual one.
    pub binary: Option<PathBuf>,
    /// Miners that will connect.
    pub miners: usize,
    /// Threads of a floor. Proxies choose for themselves.
    pub threads: NonZeroUsize,
    /// The difficulty of a floor's shares is two to the power of this. Proxies hear it from the pool.
    pub difficulty_exponent: i32,
    /// Whether a proxy of ours has an API.
    pub with_api: bool,
    /// Where a proxy finds its pool, and the pool's key.
    pub pool: Option<(SocketAddr, AuthorityPublicKey)>,
}

/// A running target; killed when dropped.
#[derive(Debug)]
pub struct Target {
    /// Where it listens for SV1 miners.
    pub address: SocketAddr,
    /// Where its API is, where it has one.
    pub api: Option<SocketAddr>,
    process: Arc<Process>,
    id: u32,
}

#[derive(Debug)]
struct Process {
    child: Mutex<Child>,
    folder: TempDir,
}

/// Every process of ours that runs, for [`kill_all`].
static RUNNING: Mutex<Vec<Arc<Process>>> = Mutex::new(Vec::new());

impl Target {
    /// Starts it, and waits until it listens.
    pub fn start(options: &TargetOptions) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let listen = private_address();
        let api = options.with_api.then(private_address);
        let mut command = match options.kind {
            TargetKind::Checkweigh => checkweigh(options, listen, api, folder.path())?,
            TargetKind::Translator => translator(options, listen, folder.path())?,
            TargetKind::FloorEpoll | TargetKind::FloorTokio => floor(options)?,
        };
        let log = File::create(log_of(folder.path()))?;
        let is_floor = options.kind.floor().is_some();
        command.stdin(if is_floor { Stdio::piped() } else { Stdio::null() });
        command.stdout(if is_floor { Stdio::piped() } else { log.try_clone()?.into() });
        let child = command.stderr(log).spawn().map_err(|error| {
            io::Error::other(format!("{} cannot be started: {error}", command.get_program().display()))
        })?;
        let id = child.id();
        let process = Arc::new(Process { child: Mutex::new(child), folder });
        running().push(Arc::clone(&process));
        let mut target = Target { address: listen, api, process, id };
        if is_floor {
            target.address = target.announced()?;
        } else {
            target.wait_for_listener()?;
        }
        Ok(target)
    }

    /// What it uses.
    pub fn usage(&self) -> io::Result<Usage> {
        Usage::of_process(self.id).map_err(|error| self.failed(&format!("it cannot be looked at: {error}")))
    }

    /// Asks a floor for a new block. Returns when.
    pub fn order_block(&self) -> io::Result<Instant> {
        let mut child = self.process.child.lock().unwrap_or_else(PoisonError::into_inner);
        let input =
            child.stdin.as_mut().ok_or_else(|| io::Error::other("only floors are asked for blocks"))?;
        let now = Instant::now();
        writeln!(input, "{NEW_BLOCK}")?;
        input.flush()?;
        Ok(now)
    }

    /// Waits for the line in which a floor says where it listens.
    fn announced(&self) -> io::Result<SocketAddr> {
        let output = self.process.child.lock().unwrap_or_else(PoisonError::into_inner).stdout.take();
        let mut line = String::new();
        BufReader::new(output.expect("it is piped and nobody else takes it")).read_line(&mut line)?;
        let address = line.trim().strip_prefix(LISTENING).and_then(|address| address.parse().ok());
        address.ok_or_else(|| self.failed("it did not say where it listens"))
    }

    fn wait_for_listener(&self) -> io::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while !is_listened_on(self.address)? {
            let ended = self.process.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?;
            if let Some(status) = ended {
                return Err(self.failed(&format!("it ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failed("it does not listen"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// An error with the end of the target's log.
    pub fn failed(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(log_of(self.process.folder.path())).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        io::Error::other(format!("{what}; the end of its log:\n{shown}"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.process.kill();
        running().retain(|process| !Arc::ptr_eq(process, &self.process));
    }
}

impl Process {
    fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // A process that has ended already cannot be killed again.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Kills every process that was started, before this one ends.
pub fn kill_all() {
    for process in running().drain(..) {
        process.kill();
        let _ = fs::remove_dir_all(process.folder.path());
    }
}

fn running() -> std::sync::MutexGuard<'static, Vec<Arc<Process>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_of(folder: &Path) -> PathBuf {
    folder.join("log.txt")
}

/// An address for a program that cannot be told to let the system choose its port: of its own for each start and
/// each process of ours, so that nobody else has taken it.
fn private_address() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(3333);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 64 | high & 0x3f, middle, low.max(1));
    SocketAddr::from((address, NEXT_PORT.fetch_add(1, Ordering::Relaxed)))
}

/// Whether any process listens on an address. Nobody has to connect to learn it.
fn is_listened_on(address: SocketAddr) -> io::Result<bool> {
    let SocketAddr::V4(address) = address else { return Ok(false) };
    let shown = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let sockets = fs::read_to_string("/proc/net/tcp")?;
    // The second field is the local address, and the fourth the state: 0A is LISTEN.
    Ok(sockets.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1) == Some(shown.as_str()) && fields.nth(1) == Some("0A")
    }))
}

fn pool_of(options: &TargetOptions) -> io::Result<(SocketAddr, AuthorityPublicKey)> {
    options.pool.ok_or_else(|| io::Error::other("a proxy needs a pool"))
}

fn checkweigh(
    options: &TargetOptions,
    listen: SocketAddr,
    api: Option<SocketAddr>,
    folder: &Path,
) -> io::Result<Command> {
    let (pool, key) = pool_of(options)?;
    let config = format!(
        "[downstream]\nsv1_listen = \"{listen}\"\nmax_connections = {}\n\
         [[upstream]]\nurl = \"stratum2+tcp://{pool}/{key}\"\nuser_identity = \"account.farm\"\n\
         [channels]\naggregate = {}\n\
         [vardiff]\nenabled = false\n",
        options.miners + SPARE_CONNECTIONS,
        options.mode != Mode::PerDevice,
    );
    // Readers are as many as a scenario says, and none of them is turned away.
    let api = api.map(|api| format!("[api]\nlisten = \"{api}\"\nrequests_per_minute = 600000\n"));
    let ledger = if options.mode == Mode::AggregatedLedger { "[ledger]\npath = \"ledger\"\n" } else { "" };
    let path = folder.join("mining-proxy.toml");
    fs::write(&path, config + ledger + &api.unwrap_or_default())?;
    let beside = std::env::current_exe()?.with_file_name("checkweigh");
    let mut command = Command::new(options.binary.as_ref().unwrap_or(&beside));
    command.args(["mining-proxy", "--log", "warn", "--config"]).arg(path);
    Ok(command)
}

fn translator(options: &TargetOptions, listen: SocketAddr, folder: &Path) -> io::Result<Command> {
    let (pool, key) = pool_of(options)?;
    // Its first difficulty is that of this hash rate whatever the pool says, so that one share a second has to be
    // as hard as the pool wants it, and no harder: it takes a target of 1 in n + 1 for n hashes.
    let hash_rate = (2f64.powi(32 + options.difficulty_exponent) - 1.0).max(0.5);
    let config = format!(
        "downstream_address = \"{}\"\ndownstream_port = {}\n\
         max_supported_version = 2\nmin_supported_version = 2\n\
         downstream_extranonce2_size = 4\n\
         aggregate_channels = {}\n\
         [downstream_difficulty_config]\n\
         min_individual_miner_hashrate = {hash_rate:.1}\nshares_per_minute = 60.0\n\
         enable_vardiff = false\njob_keepalive_interval_secs = 60\n\
         [[upstreams]]\naddress = \"{}\"\nport = {}\n\
         authority_pubkey = \"{key}\"\nuser_identity = \"account.farm\"\n",
        listen.ip(),
        listen.port(),
        options.mode != Mode::PerDevice,
        pool.ip(),
        pool.port(),
    );
    let path = folder.join("translator.toml");
    fs::write(&path, config)?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => reference_peers()?.join("translator_sv2"),
    };
    let mut command = Command::new(binary);
    command.arg("-c").arg(path).env("RUST_LOG", "warn");
    Ok(command)
}

/// The folder of the reference implementation's programs, which are built the first time.
fn reference_peers() -> io::Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/reference-peers.sh");
    let output = Command::new(script).arg("translator_sv2").stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{script} failed: {}", output.status)));
    }
    let folder = String::from_utf8(output.stdout).map_err(io::Error::other)?;
    Ok(PathBuf::from(folder.trim()))
}

fn floor(options: &TargetOptions) -> io::Result<Command> {
    let own = std::env::current_exe()?;
    let mut command = Command::new(options.binary.as_ref().unwrap_or(&own));
    let kind = if options.kind == TargetKind::FloorEpoll { "epoll" } else { "tokio" };
    command.args(["floor", "--kind", kind, "--threads", &options.threads.to_string()]);
    command.arg(format!("--exponent={}", options.difficulty_exponent));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found_without_connecting() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it listens");
        assert!(is_listened_on(address).expect("Linux tells"));
        drop(listener);
        assert!(!is_listened_on(address).expect("Linux tells"));
    }
}

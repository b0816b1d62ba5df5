//! The command line: what can be asked for, and what a command does before a role takes over.
//!
//! Nothing here mines, and only [`keygen`] writes a file.

mod ledger;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::sv2::AuthoritySecretKey;

pub use self::ledger::{LedgerArgs, LedgerCommand};
use crate::config::{
    self, JdServerConfig, Loaded, LogConfig, LogFormat, NodeConfig, PoolConfig, Problems, ProxyConfig, Role,
    RoleConfig, TemplateProviderConfig,
};
use crate::demo::DemoOptions;
use crate::error::RunError;
use crate::logging::{self, LoggingError};
use crate::shutdown::{Shutdown, shutdown, termination_signal};
use crate::{demo, jd_server, pool, proxy, template_provider};

/// Exit code for a configuration that cannot be used (`EX_USAGE` of sysexits.h). Failures at runtime are 1, wrong
/// arguments 2.
pub const EXIT_CONFIG: u8 = 64;

/// Exit code for wrong arguments, as clap has it.
const EXIT_USAGE: u8 = 2;

/// What is logged when nobody says otherwise.
const DEFAULT_FILTER: &str = "info";

/// What the demo logs when nobody says otherwise: its view is on the same terminal.
const DEMO_FILTER: &str = "warn";

/// CPU miners beyond this only fight for the processor.
const MAX_DEMO_MINERS: i64 = 1000;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "checkweigh",
    version,
    about = "Stratum V2 mining proxy and pool: one binary between miners and pools that keeps exact accounts",
    arg_required_else_help = true,
    after_help = "\
Examples:
  checkweigh demo                                     see all of it work, on this machine alone
  checkweigh keygen --out authority.key               make the key that SV2 miners are told to trust
  checkweigh check --config mining-proxy.toml         find every mistake in a configuration
  checkweigh mining-proxy --config mining-proxy.toml  connect a farm to a pool
  checkweigh pool --config pool.toml                  mine solo, or for others, on a Bitcoin Core node
  checkweigh template-provider --config template-provider.toml
                                                      give block templates to pools and proxies
  checkweigh jd-server --config jd-server.toml        take declared jobs for a pool, as a process of its own
  checkweigh ledger --path ledger devices             what every device has proved

Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 64 wrong configuration."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look; they go to standard error.
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: a level, or levels by module, such as "info,checkweigh::upstream=debug".
    #[arg(long, global = true, env = "RUST_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show everything at work: a development chain, a pool, a proxy and CPU miners, in one process
    Demo(DemoArgs),
    /// Connect SV1 and SV2 miners to an SV2 pool
    #[command(after_help = "\
Example:
  checkweigh mining-proxy --config /etc/checkweigh/mining-proxy.toml

The file config/mining-proxy.toml explains every key. SIGTERM and Ctrl-C end it in order; a second one at once.")]
    MiningProxy(FileArgs),
    /// Serve SV1 and SV2 miners from a Bitcoin Core node
    #[command(after_help = "\
Example:
  checkweigh pool --config /etc/checkweigh/pool.toml

The file config/pool.toml explains every key. SIGTERM and Ctrl-C end it in order; a second one at once.")]
    Pool(FileArgs),
    /// Serve block templates to pools and job declaration clients (SV2 Template Distribution)
    #[command(after_help = "\
Example:
  checkweigh template-provider --config /etc/checkweigh/template-provider.toml

The file config/template-provider.toml explains every key. SIGTERM and Ctrl-C end it in order; a second one at once.")]
    TemplateProvider(FileArgs),
    /// Take declared jobs for a pool that is another process (SV2 Job Declaration)
    #[command(after_help = "\
Example:
  checkweigh jd-server --config /etc/checkweigh/jd-server.toml

The file config/jd-server.toml explains every key. SIGTERM and Ctrl-C end it in order; a second one at once.")]
    JdServer(FileArgs),
    /// Check a configuration and print what it amounts to, secrets hidden
    Check(CheckArgs),
    /// Look into a ledger: devices, one device's history, export, verification, statements of work
    Ledger(LedgerArgs),
    /// Make an authority key pair for SV2 connections
    Keygen(KeygenArgs),
}

/// Arguments of a role that runs from a file.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh demo                          until Ctrl-C, with a live view
  checkweigh demo --miners 3 --seconds 30  a short run
  checkweigh demo --seconds 10 --json      the summary as one JSON object on the last line
  checkweigh demo --job-declaration        the farm chooses the transactions, and the pool is told and paid
  checkweigh demo --api 127.0.0.1:9841 --ledger demo-ledger
                                           with the API and its reference at http://127.0.0.1:9841/api/v1/, and accounts
                                           that outlast the process: kill it, start it again, and look
  checkweigh demo --bitcoin-rpc http://user:password@127.0.0.1:18443
  checkweigh demo --bitcoin-rpc 'http://127.0.0.1:18443?cookie=/home/me/.bitcoin/regtest/.cookie'")]
pub struct DemoArgs {
    /// Number of CPU miners, of differing speeds.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=MAX_DEMO_MINERS))]
    pub miners: u16,
    /// End after this time instead of at Ctrl-C.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Print the summary as one JSON object on the last line, and no live view.
    #[arg(long)]
    pub json: bool,
    /// Mine on templates of the farm's own node, which are declared to the pool: two nodes of the development chain,
    /// or the one of --bitcoin-rpc for both sides.
    #[arg(long)]
    pub job_declaration: bool,
    /// Serve the proxy's API, its reference page and /metrics at this address of this machine.
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    pub api: Option<SocketAddr>,
    /// Keep the proxy's accounts in this folder; counts are then those since the ledger began.
    #[arg(long, value_name = "DIR")]
    pub ledger: Option<PathBuf>,
    /// Use this Bitcoin Core node instead of the development chain. It must be on regtest.
    #[arg(long, value_name = "URL", env = "CHECKWEIGH_BITCOIN_RPC", hide_env_values = true)]
    #[arg(value_parser = node_from_url)]
    pub bitcoin_rpc: Option<NodeConfig>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh check --config mining-proxy.toml
  checkweigh check --config draft.toml --role pool

All mistakes are listed at once, each with its line and key. Nothing is bound or dialled.")]
pub struct CheckArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The role that it is for; guessed from its sections when not given.
    #[arg(long, value_enum)]
    pub role: Option<Role>,
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh keygen --out authority.key   secret key to a new file that only you can read, public key to the screen
  checkweigh keygen                       both to the screen

The file is for downstream.authority_secret_key_file. Miners are told the public key, as in
stratum2+tcp://HOST:PORT/PUBLIC_KEY.")]
pub struct KeygenArgs {
    /// Where the secret key goes; the file must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// An address that only this machine reaches: the demo has no tokens.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "is no address with a port, as 127.0.0.1:9841".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("is not a loopback address".to_owned()) }
}

fn node_from_url(text: &str) -> Result<NodeConfig, String> {
    NodeConfig::from_url(text).map_err(|error| error.to_string())
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] Problems),
    #[error("{0}")]
    Logging(#[from] LoggingError),
    #[error("{0}")]
    Run(#[from] RunError),
    #[error("{0}")]
    Ledger(#[from] ledger::LedgerFailure),
}

impl Failure {
    const fn exit_code(&self) -> u8 {
        match self {
            Failure::Config(_) | Failure::Logging(_) => EXIT_CONFIG,
            Failure::Ledger(ledger::LedgerFailure::NoPath) => EXIT_USAGE,
            Failure::Run(_) | Failure::Ledger(_) => 1,
        }
    }
}

/// Does what the command line asks for, and says on standard error why it could not.
pub fn run(cli: Cli) -> ExitCode {
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("checkweigh: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    let Cli { command, log_format, log } = cli;
    let log = LogConfig { format: log_format, filter: log };
    match command {
        Command::Demo(args) => {
            start_logging(&log, &LogConfig { format: None, filter: Some(DEMO_FILTER.to_owned()) })?;
            let DemoArgs { miners, seconds, json, job_declaration, api, ledger, bitcoin_rpc } = args;
            let options = DemoOptions { miners, seconds, json, job_declaration, api, ledger, bitcoin_rpc };
            drive(cores(), |shutdown| demo::run(options, shutdown))
        }
        Command::MiningProxy(args) => {
            let (loaded, listeners) = config::load_and_listen::<ProxyConfig>(&args.config)?;
            let config = begin(loaded, &log, |config| &config.log)?;
            // SV1 miners have threads of their own, one for each core; what is left is the upstream and SV2 miners.
            drive(cores().div_ceil(2), |shutdown| proxy::run(config, listeners, shutdown))
        }
        Command::Pool(args) => {
            let (loaded, listeners) = config::load_and_listen::<PoolConfig>(&args.config)?;
            let config = begin(loaded, &log, |config| &config.log)?;
            drive(cores(), |shutdown| pool::run(config, listeners, shutdown))
        }
        Command::TemplateProvider(args) => {
            let (loaded, listeners) = config::load_and_listen::<TemplateProviderConfig>(&args.config)?;
            let config = begin(loaded, &log, |config| &config.log)?;
            drive(cores(), |shutdown| template_provider::run(config, listeners, shutdown))
        }
        Command::JdServer(args) => {
            let (loaded, listeners) = config::load_and_listen::<JdServerConfig>(&args.config)?;
            let config = begin(loaded, &log, |config| &config.log)?;
            drive(cores(), |shutdown| jd_server::run(config, listeners, shutdown))
        }
        Command::Check(args) => check(&args),
        Command::Ledger(args) => Ok(ledger::run(args)?),
        Command::Keygen(args) => Ok(keygen(args.out.as_deref())?),
    }
}

/// Starts logging as the command line and then the file say, and shows what is to be said of the file.
fn begin<C: RoleConfig>(
    loaded: Loaded<C>,
    asked: &LogConfig,
    log: fn(&C) -> &LogConfig,
) -> Result<C, Failure> {
    start_logging(asked, log(&loaded.config))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), role = %C::ROLE, "starting");
    for note in loaded.notes {
        tracing::warn!("configuration: {note}");
    }
    Ok(loaded.config)
}

fn start_logging(asked: &LogConfig, otherwise: &LogConfig) -> Result<(), LoggingError> {
    let format = asked.format.or(otherwise.format).unwrap_or(LogFormat::Text);
    let filter = asked.filter.as_deref().or(otherwise.filter.as_deref()).unwrap_or(DEFAULT_FILTER);
    logging::start(format, filter)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs a role until it ends, and asks it to at the first signal. A second signal ends the process. `threads` run its
/// tasks: with more than there is work for, they wake each other for nothing.
fn drive<R>(threads: usize, role: impl FnOnce(Shutdown) -> R) -> Result<(), Failure>
where
    R: Future<Output = Result<(), RunError>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.map_err(RunError::io("start the threads of the program"))?;
    let (trigger, waiting) = shutdown();
    runtime.spawn(async move {
        termination_signal().await;
        tracing::info!("ending; a second signal ends at once");
        trigger.trigger();
        termination_signal().await;
        std::process::exit(1);
    });
    let ended = runtime.block_on(role(waiting));
    // What still runs holds nothing that matters: the role has ended in order, or failed.
    runtime.shutdown_background();
    Ok(ended?)
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let role = match args.role {
        Some(role) => role,
        None => config::guess_role(&args.config)?,
    };
    match role {
        Role::MiningProxy => print_checked(config::load::<ProxyConfig>(&args.config)?),
        Role::Pool => print_checked(config::load::<PoolConfig>(&args.config)?),
        Role::TemplateProvider => print_checked(config::load::<TemplateProviderConfig>(&args.config)?),
        Role::JdServer => print_checked(config::load::<JdServerConfig>(&args.config)?),
    }
    Ok(())
}

/// The effective configuration goes to standard output, so that it can be kept; notes go to standard error.
fn print_checked<C: RoleConfig>(loaded: Loaded<C>) {
    for note in &loaded.notes {
        eprintln!("note: {note}");
    }
    print!("{}", loaded.config.effective());
    eprintln!("the configuration of this {} is right", C::ROLE);
}

/// Makes a key pair. With a file, standard output gets the public key alone, so that a script can use it.
fn keygen(out: Option<&Path>) -> Result<(), RunError> {
    let key = random_key();
    match out {
        None => {
            println!("public key: {}", key.public());
            println!("secret key: {}", key.secret_text());
        }
        Some(path) => {
            write_secret(path, &key).map_err(RunError::io(format!("write {}", path.display())))?;
            println!("{}", key.public());
        }
    }
    Ok(())
}

fn random_key() -> AuthoritySecretKey {
    loop {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        // One in 2^128 numbers is no key.
        if let Ok(key) = AuthoritySecretKey::from_bytes(bytes) {
            return key;
        }
    }
}

/// Never overwrites a key: miners would not trust the new one.
fn write_secret(path: &Path, key: &AuthoritySecretKey) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    writeln!(file, "{}", key.secret_text())?;
    file.sync_all()
}

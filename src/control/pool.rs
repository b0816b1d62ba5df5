//! The pool's end: a Unix socket for one job declaration server, which is asked about custom jobs.
//!
//! While nobody is there, custom jobs are refused and everything else goes on.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use job_declarator::server::{CustomJob, PoolTip, Refusal};
use mining_server::CustomJobRequest;
use template::{BlockTemplate, Output};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::lines::{LineReader, LineWriter, lines};
use super::wire::{self, ToPool, ToServer};
use super::{MAX_LINE_TO_POOL, PROTOCOL};
use crate::error::RunError;
use crate::node::BlockSource;
use crate::pool::custom_jobs::CheckCustomJobs;
use crate::shutdown::Shutdown;

/// What a custom job is refused with while the job declaration server is away: no code of the specification says it.
pub const SERVER_AWAY: &str = "job-declaration-server-away";

/// Checks that wait for the owner of the socket. More are refused.
const MAX_WAITING: usize = 256;

/// Checks that the server has not answered. More are refused.
const MAX_ASKED: usize = 256;

/// How long the server may take to answer: it looks into a table. What comes later is nobody's.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the other end may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Blocks from the server that the node judges at the same time. More are refused: the server submits them, too.
const MAX_BLOCKS: usize = 64;

/// Bytes of a block's header: nothing shorter is one.
const BLOCK_HEADER_SIZE: usize = 80;

/// How long blocks may still take when the program ends.
const END_GRACE: Duration = Duration::from_secs(2);

/// A pool's way to a job declaration server in another process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteDeclarations {
    checks: mpsc::Sender<Check>,
    tip: watch::Sender<Option<PoolTip>>,
}

/// A custom job that somebody wants to mine on.
#[derive(Debug)]
struct Check {
    user_identity: String,
    extranonce_size: usize,
    frame: String,
    answer: oneshot::Sender<Result<CustomJob, Refusal>>,
}

/// Listens on a socket at `path`, which only our own user may use, and tells who comes which `outputs` coinbases must
/// have. Blocks that they hand over go to `source`. Returns the way there, and what must run.
///
/// Fails when another process listens there. A socket that nobody listens on is replaced.
pub fn listen(
    path: &Path,
    outputs: &[Output],
    source: BlockSource,
    shutdown: Shutdown,
) -> Result<(RemoteDeclarations, impl Future<Output = ()> + Send + use<>), RunError> {
    let listener = bind(path).map_err(RunError::io(format!("listen on {}", path.display())))?;
    tracing::info!(path = %path.display(), "a job declaration server may connect");
    let (checks, waiting) = mpsc::channel(MAX_WAITING);
    let (tip, newest) = watch::channel(None);
    let outputs = wire::scripts_of(outputs);
    let place = (path.to_owned(), inode(path));
    let owner = Owner { place, outputs, source, waiting, tip: newest, blocks: JoinSet::new() };
    Ok((RemoteDeclarations { checks, tip }, owner.run(listener, shutdown)))
}

/// A socket is made under another name and moved: so it is never there with other permissions, and takes the place of
/// one that a process left behind.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    }
    if std::fs::symlink_metadata(path).is_ok_and(|there| !is_socket(&there)) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else than a socket"));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(name);
    let listener = UnixListener::bind(&fresh)?;
    let moved = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path));
    if moved.is_err() {
        // What prevented it is the news.
        let _ = std::fs::remove_file(&fresh);
    }
    moved.map(|()| listener)
}

/// Which file is there.
fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

fn is_socket(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
}

fn away() -> Refusal {
    Refusal::new(SERVER_AWAY, "the pool's job declaration server is not there")
}

impl CheckCustomJobs for RemoteDeclarations {
    fn check(&self, request: &CustomJobRequest) -> BoxFuture<'static, Result<CustomJob, Refusal>> {
        let (answer, answered) = oneshot::channel();
        let check = Check {
            user_identity: request.user_identity.clone(),
            extranonce_size: request.extranonce_size,
            frame: wire::frame_of(&request.message),
            answer,
        };
        let sent = self.checks.try_send(check);
        Box::pin(async move {
            sent.map_err(|_| Refusal::new(SERVER_AWAY, "too many custom jobs wait"))?;
            match tokio::time::timeout(ANSWER_DEADLINE, answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(away()),
                Err(_) => Err(Refusal::new(SERVER_AWAY, "the pool's job declaration server does not answer")),
            }
        })
    }

    fn set_tip(&self, template: &Arc<BlockTemplate>) {
        self.tip.send_replace(Some(PoolTip::from(&**template)));
    }
}

/// The owner of the socket.
struct Owner {
    /// Where the socket is, and which file it was.
    place: (PathBuf, Option<(u64, u64)>),
    outputs: Vec<String>,
    source: BlockSource,
    waiting: mpsc::Receiver<Check>,
    tip: watch::Receiver<Option<PoolTip>>,
    blocks: JoinSet<()>,
}

/// Checks that the server was asked for, with the extranonce that their channel has.
type Asked = HashMap<u64, (usize, oneshot::Sender<Result<CustomJob, Refusal>>)>;

impl Owner {
    async fn run(mut self, listener: UnixListener, mut shutdown: Shutdown) {
        loop {
            let stream = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                accepted = listener.accept() => accepted,
                check = self.waiting.recv() => match check {
                    // Fails when nobody waits any more.
                    Some(check) => {
                        let _ = check.answer.send(Err(away()));
                        continue;
                    }
                    None => break,
                },
            };
            let Ok((stream, _)) = stream else {
                // A lack of open files: it must not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            tokio::select! {
                () = shutdown.requested() => break,
                ended = self.serve(stream, &listener) => match ended {
                    Ok(()) => tracing::warn!("the job declaration server is gone: no custom jobs until it is back"),
                    Err(error) => tracing::warn!("the job declaration server is given up: {error}"),
                },
            }
        }
        drop(listener);
        let (path, socket) = &self.place;
        // A process that has begun meanwhile has put its own there.
        if inode(path) == *socket {
            let _ = std::fs::remove_file(path);
        }
        let judged = async { while self.blocks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_GRACE, judged).await.is_err() {
            tracing::error!("ended before blocks of the job declaration server were judged");
        }
    }

    /// Serves one server until it goes. Another one that comes meanwhile is closed.
    async fn serve(&mut self, stream: UnixStream, listener: &UnixListener) -> io::Result<()> {
        let (mut reader, mut writer) = lines(stream, MAX_LINE_TO_POOL);
        self.greet(&mut reader, &mut writer).await?;
        tracing::info!("the job declaration server is there");
        self.tip.mark_changed();
        let mut asked = Asked::new();
        let mut last_id = 0;
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.tip.changed() => {
                    let tip = *self.tip.borrow_and_update();
                    if let Some(tip) = tip {
                        writer.send(&ToServer::Tip(tip.into())).await?;
                    }
                }
                message = reader.next::<ToPool>() => match message? {
                    Some(message) => self.take(message, &mut asked)?,
                    None => return Ok(()),
                },
                Some(check) = self.waiting.recv() => {
                    last_id += 1;
                    ask(check, last_id, &mut asked, &mut writer).await?;
                }
                Some(_) = self.blocks.join_next() => {}
                Ok(_) = listener.accept() => {
                    tracing::warn!("turned a second job declaration server away");
                }
            }
        }
    }

    async fn greet(&self, reader: &mut LineReader, writer: &mut LineWriter) -> io::Result<()> {
        let outputs = self.outputs.clone();
        writer.send(&ToServer::Pool { protocol: PROTOCOL, outputs }).await?;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not say who it is");
        match tokio::time::timeout(HELLO_DEADLINE, reader.next()).await.map_err(late)?? {
            Some(ToPool::Server { protocol: PROTOCOL }) => Ok(()),
            Some(ToPool::Server { protocol }) => {
                Err(invalid(format!("it speaks version {protocol} of the interface, and we {PROTOCOL}")))
            }
            other => Err(invalid(format!("it does not say who it is, but {other:?}"))),
        }
    }

    fn take(&mut self, message: ToPool, asked: &mut Asked) -> io::Result<()> {
        match message {
            ToPool::Server { .. } => return Err(invalid("it says twice who it is".to_owned())),
            ToPool::Taken { id, job } => {
                if let Some((extranonce_size, answer)) = asked.remove(&id) {
                    let job = job.read(extranonce_size).map_err(|wrong| invalid(wrong.to_string()))?;
                    // Fails when it took too long, or the channel has gone.
                    let _ = answer.send(Ok(job));
                }
            }
            ToPool::Refused { id, code, details } => {
                if let Some((_, answer)) = asked.remove(&id) {
                    let _ = answer.send(Err(Refusal::new(code, details)));
                }
            }
            ToPool::Block { height, block } => {
                let block = wire::bytes_of(&block, "block").map_err(|wrong| invalid(wrong.to_string()))?;
                self.submit(height, block)?;
            }
        }
        Ok(())
    }

    fn submit(&mut self, height: u32, block: Vec<u8>) -> io::Result<()> {
        if block.len() < BLOCK_HEADER_SIZE || self.blocks.len() >= MAX_BLOCKS {
            return Err(invalid("it sent what is no block, or too many".to_owned()));
        }
        let source = self.source.clone();
        self.blocks.spawn(async move {
            let (outcome, saved) = source.submit(height, block).await;
            tracing::info!(height, ?outcome, "a block on a declared job, by its server");
            if let Some(saved) = saved {
                // What prevents it was logged.
                let _ = saved.await;
            }
        });
        Ok(())
    }
}

async fn ask(check: Check, id: u64, asked: &mut Asked, writer: &mut LineWriter) -> io::Result<()> {
    let Check { user_identity, extranonce_size, frame, answer } = check;
    if asked.len() >= MAX_ASKED {
        // Those that took too long are nobody's.
        asked.retain(|_, (_, answer)| !answer.is_closed());
    }
    if asked.len() >= MAX_ASKED {
        let _ = answer.send(Err(Refusal::new(SERVER_AWAY, "too many custom jobs are being looked at")));
        return Ok(());
    }
    asked.insert(id, (extranonce_size, answer));
    writer.send(&ToServer::Check { id, user_identity, extranonce_size, message: frame }).await
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use stratum::sv2::messages::{MiningJobToken, SetCustomMiningJob};
    use stratum::{ChannelId, RequestId};

    use super::*;
    use crate::clock::Clock;
    use crate::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
    use crate::shutdown::shutdown;

    fn request() -> CustomJobRequest {
        let message = SetCustomMiningJob {
            channel_id: ChannelId(1),
            request_id: RequestId(2),
            token: MiningJobToken::from(vec![9; 16]),
            version: 0x2000_0000,
            prev_hash: [1; 32],
            min_ntime: 5,
            nbits: 0x1d00_ffff,
            coinbase_tx_version: 2,
            coinbase_prefix: vec![3, 1, 2, 3],
            coinbase_tx_input_n_sequence: u32::MAX,
            coinbase_tx_outputs: vec![0],
            coinbase_tx_locktime: 0,
            merkle_path: Vec::new(),
        };
        CustomJobRequest { user_identity: "account.farm".to_owned(), extranonce_size: 16, message }
    }

    fn code(answer: Result<CustomJob, Refusal>) -> String {
        answer.expect_err("it is refused").code
    }

    #[tokio::test]
    async fn custom_jobs_are_for_the_server_and_refused_while_there_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pool.sock");
        let settings = DevChainSettings { seed: 1, nbits: nbits_for_hashes(4), transactions: 0 };
        let chain = DevChain::new(settings, Clock::start());
        let outputs = [Output { value: 0, script: vec![0x51] }];
        let source = BlockSource::Development(chain.clone());
        let (stop, end) = shutdown();
        // One that a killed process left.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let (remote, task) = listen(&path, &outputs, source.clone(), end.clone()).expect("it is replaced");
        let running = tokio::spawn(task);
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listen(&path, &outputs, source, end).is_err(), "somebody listens there");
        assert_eq!(code(remote.check(&request()).await), SERVER_AWAY);

        let stream = UnixStream::connect(&path).await.expect("it listens");
        let (mut reader, mut writer) = lines(stream, 100_000);
        let hello: Value = reader.next().await.expect("a line").expect("a line");
        assert_eq!(hello, json!({ "type": "pool", "protocol": PROTOCOL, "outputs": ["51"] }));
        writer.send(&json!({ "type": "server", "protocol": PROTOCOL })).await.expect("it reads");
        let template = chain.templates().borrow().clone().expect("it has one");
        remote.set_tip(&template);
        let tip: Value = reader.next().await.expect("a line").expect("a line");
        assert_eq!((&tip["type"], &tip["height"]), (&json!("tip"), &json!(template.height)));
        let answered = tokio::spawn(remote.check(&request()));
        let check: Value = reader.next().await.expect("a line").expect("a line");
        assert_eq!(
            (&check["user_identity"], &check["extranonce_size"]),
            (&json!("account.farm"), &json!(16))
        );
        let message = wire::message_of(check["message"].as_str().expect("a frame")).expect("it is one");
        assert_eq!(message, request().message);
        let refused =
            json!({ "type": "refused", "id": check["id"], "code": "invalid-version", "details": "" });
        writer.send(&refused).await.expect("it reads");
        assert_eq!(code(answered.await.expect("no panic")), "invalid-version");

        let unanswered = tokio::spawn(remote.check(&request()));
        let check: Value = reader.next().await.expect("a line").expect("a line");
        // No job: whoever says that is given up.
        writer.send(&json!({ "type": "taken", "id": check["id"], "job": {} })).await.expect("it reads");
        assert_eq!(code(unanswered.await.expect("no panic")), SERVER_AWAY);
        assert!(reader.next::<Value>().await.is_ok_and(|line| line.is_none()), "it was closed");
        assert_eq!(code(remote.check(&request()).await), SERVER_AWAY);
        stop.trigger();
        running.await.expect("no panic");
        assert!(!path.exists());
    }
}

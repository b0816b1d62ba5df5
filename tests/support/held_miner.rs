//! An SV1 miner that does nothing on its own: it solves the job that it is told to, keeps the solution, and submits it
//! when it is told to, however old the job is by then.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use stratum::Target;
use stratum::sv1::client::{self, Extranonce, Notify, Response, ServerLine, Solution};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// How long anything that it waits for may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

const USER: &str = "farm.held";

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

/// A miner that is held back.
pub(crate) struct HeldMiner {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    extranonce: Option<Extranonce>,
    target: Target,
    newest: Option<Notify>,
    next_id: u64,
}

/// A share that was found and not submitted yet.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    job_id: String,
    extranonce2: Vec<u8>,
    ntime: u32,
    nonce: u32,
}

impl HeldMiner {
    /// Subscribes and authorizes.
    pub(crate) async fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.expect("it listens");
        let (reader, mut writer) = stream.into_split();
        let mut hello = Vec::new();
        client::subscribe(&mut hello, 1, "held/1", None);
        client::authorize(&mut hello, 2, USER, "x");
        writer.write_all(&hello).await.expect("it reads");
        HeldMiner {
            lines: BufReader::new(reader).lines(),
            writer,
            extranonce: None,
            target: Target::MAX,
            newest: None,
            next_id: 10,
        }
    }

    /// Waits for a job that is as wanted, from the newest that it has on.
    pub(crate) async fn job(&mut self, what: &str, is_wanted: impl Fn(&Notify) -> bool) -> Notify {
        loop {
            if let Some(newest) = self.newest.as_ref().filter(|newest| is_wanted(newest)) {
                return newest.clone();
            }
            let answer = self.hear(what).await;
            assert!(answer.is_none(), "nothing was asked: {answer:?}");
        }
    }

    /// Finds a share of `job`, and keeps it.
    pub(crate) fn solve(&self, job: &Notify) -> Kept {
        let extranonce = self.extranonce.as_ref().expect("it has a job");
        let extranonce2 = vec![7; extranonce.extranonce2_size];
        let solution =
            Solution { extranonce2: &extranonce2, ntime: job.ntime, nonce: 0, version_rolling: None };
        let mut header = job.header(&extranonce.extranonce1, &solution);
        for nonce in 0..u32::MAX {
            header[76..].copy_from_slice(&nonce.to_le_bytes());
            let hash: [u8; 32] = Sha256::digest(Sha256::digest(header)).into();
            if Target::from_le_bytes(hash) <= self.target {
                return Kept { job_id: job.job_id.clone(), extranonce2, ntime: job.ntime, nonce };
            }
        }
        panic!("no share in four billion hashes")
    }

    /// Submits what was kept, and returns the answer.
    pub(crate) async fn submit(&mut self, kept: &Kept) -> Response {
        let id = self.next_id;
        self.next_id += 1;
        let Kept { job_id, extranonce2, ntime, nonce } = kept;
        let solution = Solution { extranonce2, ntime: *ntime, nonce: *nonce, version_rolling: None };
        let mut line = Vec::new();
        client::submit(&mut line, id, USER, job_id, &solution);
        self.writer.write_all(&line).await.expect("the connection is open");
        loop {
            if let Some(answer) = self.hear("the answer to a share").await {
                assert_eq!(answer.id, Some(id));
                return answer;
            }
        }
    }

    /// Takes the next line; returns the answer to a share.
    async fn hear(&mut self, what: &str) -> Option<Response> {
        let line = timeout(DEADLINE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("not in time: {what}")).expect("the connection is open");
        let line = line.unwrap_or_else(|| panic!("the server closed the connection before {what}"));
        match ServerLine::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{error}: {line}")) {
            ServerLine::Notify(notify) => self.newest = Some(notify),
            // Difficulties are powers of two.
            ServerLine::SetDifficulty(difficulty) => {
                self.target = Target::from_difficulty_exponent(difficulty.log2().round() as i32);
            }
            ServerLine::Response(response) if response.id == Some(1) => {
                self.extranonce = Some(response.subscribed().expect("it subscribes us").extranonce);
            }
            ServerLine::Response(response) if response.id == Some(2) => assert!(response.accepted()),
            ServerLine::Response(response) => return Some(response),
            other => panic!("unexpected: {other:?}"),
        }
        None
    }
}

//! What the parts of a share's and a job's path cost, one by one: `cargo bench --bench parts`.
//!
//! Each part does what it does in a running program, with values as they are on the main network: a coinbase of 260
//! bytes and a merkle path of twelve. The rigs are those of the roles' own tests. Nothing here opens a socket.

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use checkweigh::owner::{self, OwnerInbox};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use mining_proxy::UpstreamOutput;
use mining_server::{Output, RejectReason, Settings, ShareEvent, Verdict, Work};
use rand::SeedableRng;
use rand::rngs::StdRng;
use stratum::Job;
use stratum::job::Rolled;
use stratum::sv1::render::NotifyLine;
use stratum::sv1::request::Request;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::noise::{Initiator, Responder};
use stratum::sv2::transport::Encryptor;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

#[expect(dead_code, reason = "the tests of upstreams need more of it")]
#[path = "../roles/mining-proxy/tests/upstream/rig.rs"]
mod pool;
#[expect(dead_code, reason = "the tests of SV1 connections need more of it")]
#[path = "../roles/mining-server/tests/sv1/support.rs"]
mod sv1;

/// A submission as cgminer writes it, of 180 bytes with its line feed.
const SUBMIT: &[u8] =
    b"{\"params\": [\"bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq.rig01\", \"018f2b3c4d5e0001\", \
\"0000a1b2\", \"6563f0a1\", \"1a2b3c4d\", \"00c3e000\"], \"id\": 1234, \"method\": \"mining.submit\"}\n";

/// Shares after which a miner is given a new tip, so that what is measured is a connection of an ordinary age.
const SHARES_A_TIP: u32 = 1000;

/// Connections that wait for new work, each a task as an SV2 connection is.
const SUBSCRIBERS: usize = 10_000;

/// A job on a coinbase of 260 bytes, under twelve levels of a merkle tree.
fn job() -> Job {
    let mut rig = miner(Settings { vardiff_enabled: false, ..sv1::settings() });
    rig.block();
    rig.source.work().active().job.clone()
}

fn miner(settings: Settings) -> sv1::Rig {
    let mut rig = sv1::Rig::new(settings);
    rig.source.merkle_path = vec![[0x5a; 32]; 12];
    // Of the 260 bytes, 12 are the extranonce, and four number the source's jobs.
    rig.source.coinbase_prefix = vec![1; 100];
    rig.source.coinbase_suffix = vec![7; 260 - 100 - 12 - 4];
    rig
}

/// A miner whose every hash is a share.
struct Flood {
    rig: sv1::Rig,
    out: Output,
    line: Vec<u8>,
    nonce: u32,
}

impl Flood {
    fn new() -> Self {
        let mut settings = sv1::settings();
        settings.vardiff.initial_exponent = -32;
        settings.vardiff.shares_per_minute = 600.0;
        let mut rig = miner(settings);
        rig.source.upstream_exponent = -32;
        rig.source.nbits = 0x1703_a30c;
        rig.job();
        for line in [sv1::CONFIGURE, sv1::SUBSCRIBE, sv1::AUTHORIZE] {
            rig.send(line);
        }
        let mut flood = Flood { rig, out: Output::default(), line: Vec::new(), nonce: 0 };
        flood.next_tip();
        flood
    }

    fn next_tip(&mut self) {
        self.rig.block();
        let (job, _) = self.rig.jobs.last().expect("a job was sent");
        self.line = format!(
            "{{\"params\": [\"bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq.rig01\", \"{}\", \"0000a1b2\", \"{:08x}\", \
             \"00000000\", \"00c3e000\"], \"id\": 1234, \"method\": \"mining.submit\"}}\n",
            job.job_id, job.ntime
        )
        .into_bytes();
    }

    /// Submits the next share. It must be accepted.
    fn submit(&mut self) -> ShareEvent {
        if self.nonce.is_multiple_of(SHARES_A_TIP) {
            self.next_tip();
        }
        self.nonce += 1;
        let at = self.line.len()
            - b"00000000\", \"00c3e000\"], \"id\": 1234, \"method\": \"mining.submit\"}\n".len();
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for digit in 0..8 {
            self.line[at + digit] = DIGITS[(self.nonce >> (28 - 4 * digit) & 15) as usize];
        }
        let share = self.send();
        assert!(matches!(share.record.verdict, Verdict::Accepted), "every hash is a share");
        share
    }

    /// Submits the last share once more. It must be refused.
    fn repeat(&mut self) {
        let verdict = self.send().record.verdict;
        assert!(matches!(verdict, Verdict::Rejected(RejectReason::Duplicate)), "it came before");
    }

    fn send(&mut self) -> ShareEvent {
        let (rig, out) = (&mut self.rig, &mut self.out);
        rig.connection.handle_bytes(&self.line, rig.now, &mut rig.registry, out);
        out.bytes.clear();
        out.events.clear();
        out.shares.pop().expect("a share was judged")
    }
}

fn lines(c: &mut Criterion) {
    let line = SUBMIT.trim_ascii();
    c.bench_function("a submission is parsed", |b| b.iter(|| Request::parse(black_box(line)).is_ok()));
    c.bench_function("a submission is parsed as any line", |b| {
        b.iter(|| Request::parse_any(black_box(line)).is_ok());
    });
}

fn shares(c: &mut Criterion) {
    let job = job();
    let mut nonce = 0;
    c.bench_function("a share is hashed", |b| {
        b.iter(|| {
            nonce += 1;
            let rolled =
                Rolled { reserved: [1; 4], extranonce: &[2; 4], version: 0x2000_0000, ntime: 1, nonce };
            job.hash(black_box(&rolled))
        });
    });
    for count in [2, 3, 4] {
        c.bench_function(&format!("{count} shares are hashed together"), |b| {
            b.iter(|| {
                nonce += 1;
                let rolled =
                    Rolled { reserved: [1; 4], extranonce: &[2; 4], version: 0x2000_0000, ntime: 1, nonce };
                let mut hashes = ArrayVec::<_, 4>::new();
                Job::hash_together(&[(&job, black_box(rolled)); 4][..count], &mut hashes);
                hashes
            });
        });
    }
    let mut flood = Flood::new();
    c.bench_function("a share goes through an SV1 connection", |b| b.iter(|| flood.submit()));
    c.bench_function("a share that came before is refused", |b| b.iter(|| flood.repeat()));
    c.bench_function("mining.notify is rendered", |b| b.iter(|| NotifyLine::render(black_box(&job))));
}

fn encryptor() -> Encryptor {
    let mut rng = StdRng::seed_from_u64(1);
    let now = 1_790_000_000;
    let authority = AuthoritySecretKey::from_bytes([7; 32]).expect("a key");
    let initiator = Initiator::new(Some(&authority.public()), &mut rng);
    let responder = Responder::new(&authority, Duration::from_secs(60), &mut rng);
    let (reply, _) = responder.step(&initiator.first(), now, &mut rng).expect("an answer");
    initiator.finish(&reply, now).expect("a transport").split(0).0
}

fn forwarding(c: &mut Criterion) {
    let mut rig = pool::Rig::mining();
    let mut out = UpstreamOutput::default();
    let (job, now) = (rig.active(), rig.now);
    let mut number = 0;
    c.bench_function("a share is numbered and encoded for the upstream", |b| {
        b.iter_batched(
            || pool::share(&job, 1, false, now),
            |share| {
                number += 1;
                rig.upstream.handle_share(share, now, &mut out);
                assert!(!out.bytes.is_empty(), "it is forwarded");
                out.bytes.clear();
                out.records.clear();
                if number % 1000 == 0 {
                    rig.receive(pool::success(pool::CHANNEL, number, 1000));
                    rig.take();
                }
            },
            BatchSize::SmallInput,
        );
    });
    rig.upstream.handle_share(pool::share(&job, 1, false, now), now, &mut out);
    let frame = std::mem::take(&mut out.bytes);
    assert!(!frame.is_empty(), "it is forwarded");
    let mut encryptor = encryptor();
    let mut encrypted = Vec::new();
    c.bench_function("a frame with a share is encrypted", |b| {
        b.iter(|| {
            encrypted.clear();
            encryptor.encrypt_frames(black_box(&frame), &mut encrypted).expect("a whole frame");
        });
    });
}

/// Subscribers of one owner, all in one thread, so that no wake of another thread is measured with them.
struct Subscribers {
    runtime: Runtime,
    inbox: OwnerInbox,
    arrived: Rc<Cell<usize>>,
    work: Arc<Work>,
    tasks: LocalSet,
}

impl Subscribers {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let (owner, inbox) = owner::owner();
        let tasks = LocalSet::new();
        let arrived = Rc::<Cell<usize>>::default();
        for _ in 0..SUBSCRIBERS {
            let (mut work, arrived) = (owner.work.clone(), Rc::clone(&arrived));
            tasks.spawn_local(async move {
                while work.changed().await.is_ok() {
                    black_box(work.borrow_and_update().clone());
                    arrived.set(arrived.get() + 1);
                }
            });
        }
        let mut rig = miner(sv1::settings());
        rig.block();
        let mut subscribers = Subscribers { runtime, inbox, arrived, work: rig.source.work(), tasks };
        subscribers.publish();
        subscribers
    }

    /// Publishes new work, and lets every subscriber see it. Returns how long the swap took, and how long all took.
    fn publish(&mut self) -> (Duration, Duration) {
        // Every publication is work of its own, as every job is.
        let work = Arc::new(Work::clone(&self.work));
        self.arrived.set(0);
        let started = Instant::now();
        self.inbox.work.publish(work);
        let swapped = started.elapsed();
        let arrived = Rc::clone(&self.arrived);
        let all_have_it = async {
            while arrived.get() < SUBSCRIBERS {
                tokio::task::yield_now().await;
            }
        };
        self.runtime.block_on(self.tasks.run_until(all_have_it));
        (swapped, started.elapsed())
    }
}

fn publication(c: &mut Criterion) {
    let mut subscribers = Subscribers::new();
    c.bench_function("work is swapped under 10,000 subscribers", |b| {
        b.iter_custom(|count| (0..count).map(|_| subscribers.publish().0).sum());
    });
    c.bench_function("10,000 subscribers have new work", |b| {
        b.iter_custom(|count| (0..count).map(|_| subscribers.publish().1).sum());
    });
}

criterion_group!(parts, lines, shares, forwarding, publication);
criterion_main!(parts);

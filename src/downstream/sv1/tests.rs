//! What a worker does when a connection fails or does not listen, and in which order miners hear of a job.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mining_server::{JobBook, Work};
use stratum::job::{JobOrigin, JobParts, Tip};
use stratum::{
    Epoch, HashRate, JobNumber, Now, Target, TipNumber, UpstreamChannelId, UpstreamId, UpstreamJobId,
};
use tokio::runtime::Runtime;

use super::super::Context;
use super::super::tests::context;
use super::fan_out::FanOut;
use super::worker::Worker;
use super::{TCP_USER_TIMEOUT, prepare};
use crate::config::listen::bind;

const HELLO: &[u8] = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n\
    {\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"farm.one\",\"x\"]}\n";

const PING: &[u8] = b"{\"id\":3,\"method\":\"mining.ping\",\"params\":[]}\n";

fn worker(context: &Context) -> (Worker, SocketAddr) {
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = listener.local_addr().expect("bound");
    (Worker::new(listener, context).expect("a worker"), address)
}

/// A miner on a socket that blocks, after its worker has noticed it.
fn connect(worker: &mut Worker, address: SocketAddr) -> TcpStream {
    let before = worker.connections();
    let stream = TcpStream::connect(address).expect("the worker listens");
    while worker.connections() == before {
        worker.turn_alone();
    }
    stream
}

/// Has the worker go on until the miner has read something with `wanted` in it; returns all that it read.
fn read_until(worker: &mut Worker, miner: &mut TcpStream, wanted: &str) -> String {
    miner.set_nonblocking(true).expect("a socket need not block");
    let (mut heard, mut chunk) = (String::new(), vec![0; 1 << 16]);
    while !heard.contains(wanted) {
        match miner.read(&mut chunk) {
            Ok(0) => panic!("the connection was closed after {heard}"),
            Ok(length) => heard.push_str(core::str::from_utf8(&chunk[..length]).expect("text")),
            Err(_) => worker.turn_alone(),
        }
    }
    heard
}

/// Jobs whose tip is new each time.
fn add_job(book: &mut JobBook, now: Now) -> Arc<Work> {
    let number = book.next_number();
    let nbits = 0x1d00_ffff;
    let tip = Tip {
        number: TipNumber(number.0),
        previous_hash: [number.0 as u8; 32],
        nbits,
        network_target: Target::from_compact(nbits),
    };
    let channel = UpstreamChannelId(1);
    book.add(JobParts {
        number,
        epoch: Epoch(1),
        origin: JobOrigin { upstream: UpstreamId(0), channel, job: UpstreamJobId(1), template: None },
        tip,
        clean: true,
        version: 0x2000_0000,
        version_rolling_allowed: true,
        min_ntime: now.unix_seconds(),
        coinbase_prefix: [1; 100].into(),
        coinbase_suffix: [2; 100].into(),
        rollable_size: 16,
        merkle_path: [[3; 32]; 12].into(),
        upstream_target: Target::DIFFICULTY_1,
        received: now,
    });
    Arc::new(book.work().expect("there is a job"))
}

#[test]
fn a_panic_closes_one_connection_and_nobody_else_notices() {
    let runtime = Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let (context, _inbox) = context(false);
    let (mut worker, address) = worker(&context);
    let mut unlucky = connect(&mut worker, address);
    let mut other = connect(&mut worker, address);
    worker.panic_in(0);
    worker.panic_in(0);
    assert_eq!(unlucky.read(&mut [0; 8]).expect("an end"), 0, "it is closed");
    other.write_all(PING).expect("it is open");
    read_until(&mut worker, &mut other, "\"pong\"");
    assert_eq!(context.counts.panicked.load(Ordering::Relaxed), 1);
    assert_eq!(context.counts.sv1.load(Ordering::Relaxed), 1);
    assert_eq!(context.registry.live_reserved(), 1, "what it held is given back");
}

#[test]
fn a_peer_that_is_gone_while_it_is_closed_takes_nobody_with_it() {
    let runtime = Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let (context, _inbox) = context(false);
    let (mut worker, address) = worker(&context);
    for _ in 0..20 {
        let mut rude = connect(&mut worker, address);
        let mut other = connect(&mut worker, address);
        rude.write_all(&[PING, b"this is no JSON\n"].concat()).expect("it is open");
        // The answer to the first line cannot be written any more, and the second one closes.
        socket2::SockRef::from(&rude).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(rude);
        end_of(&mut worker, 1);
        other.write_all(PING).expect("it is open");
        read_until(&mut worker, &mut other, "\"pong\"");
        drop(other);
        end_of(&mut worker, 0);
    }
}

#[test]
fn an_end_that_comes_with_the_last_bytes_is_noticed() {
    let runtime = Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let (context, _inbox) = context(false);
    let (mut worker, address) = worker(&context);
    let mut miner = connect(&mut worker, address);
    miner.write_all(b"\n").expect("it is open");
    drop(miner);
    end_of(&mut worker, 0);
}

/// Has the worker go on until it has only so many connections left.
fn end_of(worker: &mut Worker, left: usize) {
    for _ in 0..100_000 {
        if worker.connections() == left {
            return;
        }
        worker.turn_alone();
    }
    panic!("{} connections are left", worker.connections());
}

#[test]
fn the_fastest_miners_hear_of_a_job_first() {
    let now = Now::simulated(Duration::from_secs(1_700_000_000), Duration::ZERO);
    let work = add_job(&mut JobBook::new(JobNumber(1)), now);
    let rates = [(0, 0.0), (1, 5e12), (2, 2e14), (3, 5e12), (4, 0.0)];
    let mut fan_out = FanOut::new(work, true, rates.into_iter().map(|(place, rate)| (place, HashRate(rate))));
    let order: Vec<usize> = std::iter::from_fn(|| fan_out.next().map(|(place, _)| place)).collect();
    assert_eq!(order, [2, 1, 3, 0, 4]);
    assert!(fan_out.is_done());
}

#[test]
fn accepted_sockets_have_the_options_of_their_listener() {
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    prepare(&listener).expect("options of TCP");
    let _miner = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    listener.set_nonblocking(false).expect("a socket can block");
    let (accepted, _) = listener.accept().expect("somebody connected");
    let socket = socket2::SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().expect("an option"));
    assert!(socket.keepalive().expect("an option"));
    assert_eq!(socket.tcp_keepalive_time().expect("an option"), TCP_USER_TIMEOUT);
    assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(TCP_USER_TIMEOUT));
}

#[test]
fn a_miner_that_did_not_listen_gets_the_newest_job_alone() {
    let runtime = Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let (context, inbox) = context(false);
    let (mut worker, address) = worker(&context);
    let mut book = JobBook::new(JobNumber(0x1000));
    let mut miner = connect(&mut worker, address);
    miner.write_all(HELLO).expect("it is open");
    inbox.work.publish(add_job(&mut book, context.clock.now()));
    read_until(&mut worker, &mut miner, "\"1000");
    // It asks and asks, and reads nothing, until every buffer between us is full.
    let (pings, mut cut) = (PING.repeat(50), 0);
    while !worker.is_held_up(0) {
        while let Ok(length) = miner.write(&pings[cut..]) {
            cut = (cut + length) % PING.len();
        }
        worker.turn_alone();
    }
    for _ in 0..5 {
        inbox.work.publish(add_job(&mut book, context.clock.now()));
        worker.turn_alone();
    }
    assert!(worker.is_held_up(0), "nothing is added to what it has not read");
    let heard = read_until(&mut worker, &mut miner, "\"1005\"");
    for skipped in 0x1001..0x1005 {
        assert!(!heard.contains(&format!("\"{skipped:x}\"")), "job {skipped:x} was old by then");
    }
}

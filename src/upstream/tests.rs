//! In which order things reach the upstream's state machine, where a pool is slow or many come at once.

use std::time::Duration;

use mining_proxy::Endpoint;
use mining_server::judge::{Submission, Submitter, refusal};
use mining_server::work::JobLookup;
use mining_server::{DropReason, ForwardShare, RejectReason, Verdict};
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, ConnectionId, Job, JobId, RequestId, Target, UpstreamId};

use super::*;
use crate::owner::{Owner, TaskMailbox, owner};
use crate::sink::RecordSink;

const CHANNEL: ChannelId = ChannelId(7);
const KEY: DownstreamKey = DownstreamKey { connection: ConnectionId(1), channel: ChannelId(0) };

/// The driver of an upstream with a channel for each device, which is not connected. Nothing runs but what a test
/// calls.
fn driver() -> (Driver, Owner) {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (owner, inbox) = owner();
    let url = PoolUrl { host: "pool.example".to_owned(), port: 34254, authority: None };
    let task = UpstreamTask {
        upstreams: vec![UpstreamEntry { config: config(), url, declaration: None }],
        node: None,
        patience: Patience::default(),
        inbox,
        writer: sink.writer(),
        clock,
        latencies: Arc::default(),
        registry: SharedRegistry::new(clock, sink.writer()),
        status: Arc::new(UpstreamStatus::new(1)),
    };
    let now = clock.now();
    (Driver::new(task, now), owner)
}

fn config() -> UpstreamConfig {
    UpstreamConfig {
        id: UpstreamId(0),
        user_identity: "account".to_owned(),
        aggregate: false,
        forward_worker_names: false,
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: "tests".to_owned(),
        refresh_interval: Duration::from_secs(20),
        job_declaration: None,
    }
}

fn receive(driver: &mut Driver, message: impl Into<Message>) {
    let mut frame = Vec::new();
    message.into().encode_frame(&mut frame).expect("encodable");
    let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a header");
    let now = driver.task.clock.now();
    driver.upstreams.handle_frame(0, FrameHeader::parse(*header), payload, now, &mut driver.outs);
}

/// Sets the connection up and asks for a channel for the device `KEY`.
fn ask_for_channel(driver: &mut Driver) {
    let endpoint = Endpoint { host: "pool.example".to_owned(), port: 34254 };
    let now = driver.task.clock.now();
    driver.upstreams.handle_connected(0, &endpoint, now, &mut driver.outs);
    receive(driver, SetupConnectionSuccess { used_version: 2, flags: 0 });
    driver.handle_command(Command::Open {
        key: KEY,
        user_identity: "account.device".to_owned(),
        hash_rate: HashRate(1e12),
        mailbox: Arc::<TaskMailbox>::default(),
    });
}

/// Opens the channel and starts a job on it.
fn start_job(driver: &mut Driver) -> Job {
    receive(
        driver,
        OpenExtendedMiningChannelSuccess {
            request_id: RequestId(1),
            channel_id: CHANNEL,
            target: Target::MAX,
            extranonce_size: 12,
            extranonce_prefix: vec![9; 4],
            group_channel_id: ChannelId(3),
        },
    );
    receive(
        driver,
        NewExtendedMiningJob {
            channel_id: CHANNEL,
            job_id: JobId(1),
            min_ntime: None,
            version: 0x2000_0000,
            version_rolling_allowed: true,
            merkle_path: vec![],
            coinbase_tx_prefix: vec![1; 60],
            coinbase_tx_suffix: vec![2; 90],
        },
    );
    let tip = SetNewPrevHash {
        channel_id: CHANNEL,
        job_id: JobId(1),
        prev_hash: [5; 32],
        min_ntime: 1_700_000_000,
        nbits: 0x207f_ffff,
    };
    receive(driver, tip);
    let (_, work) = driver.outs[0].publish.pop().expect("a job was published");
    driver.outs[0] = UpstreamOutput::default();
    work.active().job.clone()
}

fn mining() -> (Driver, Owner, Job) {
    let (mut driver, owner) = driver();
    ask_for_channel(&mut driver);
    let job = start_job(&mut driver);
    (driver, owner, job)
}

fn share(job: &Job, nonce: u32, is_block: bool, now: Now) -> ShareEvent {
    let submission = Submission {
        job: JobLookup::Unknown,
        extranonce: &[],
        version: job.version,
        version_mask: 0,
        ntime: job.min_ntime,
        nonce,
        known: None,
    };
    let submitter = Submitter { connection: KEY.connection, channel: KEY.channel, device: None };
    let mut event = refusal(submitter, &submission, RejectReason::JobNotFound, now);
    event.record.verdict = if is_block { Verdict::BlockFound } else { Verdict::Accepted };
    event.record.fate = Fate::Forwarded;
    event.record.rollable = job.rollable_bytes([1; 4], &[2; 4]);
    event.forward = Some(ForwardShare { epoch: job.epoch, origin: job.origin, hash: [0; 32], is_block });
    event
}

/// Has a connection submit two shares and a block, and end.
fn submit_and_close(driver: &mut Driver, owner: &Owner, job: &Job) {
    let now = driver.task.clock.now();
    for nonce in 1..=2 {
        owner.shares.try_send(vec![share(job, nonce, false, now)]).expect("there is room");
    }
    owner.blocks.try_send(share(job, 3, true, now)).expect("there is room");
    // As a task finds it that looks at its commands first.
    driver.commands.push(Command::Close { key: KEY });
    driver.handle_commands();
}

fn fates(driver: &Driver) -> Vec<Fate> {
    driver.outs[0].records.iter().map(|record| record.fate).collect()
}

#[tokio::test]
async fn the_end_of_a_device_does_not_overtake_its_last_shares_and_its_block() {
    let (mut driver, owner, job) = mining();
    submit_and_close(&mut driver, &owner, &job);
    assert_eq!(fates(&driver), [Fate::Forwarded; 3]);
    assert_eq!(driver.upstreams.get(0).open_channels(), 0);
}

#[tokio::test]
async fn a_device_that_goes_keeps_its_channel_until_a_slow_pool_has_taken_its_last_shares() {
    let (mut driver, owner, job) = mining();
    driver.links[0].unwritten = vec![0; MAX_UNWRITTEN];
    submit_and_close(&mut driver, &owner, &job);
    assert_eq!(fates(&driver), [Fate::Forwarded], "a block does not wait for room");
    assert_eq!((driver.upstreams.get(0).open_channels(), driver.closes.len()), (1, 1));
    driver.links[0].unwritten.clear();
    assert_eq!(driver.take_shares(), 0);
    assert_eq!(fates(&driver), [Fate::Forwarded; 3]);
    assert_eq!((driver.upstreams.get(0).open_channels(), driver.closes.len()), (0, 0));
}

#[tokio::test]
async fn devices_that_wait_to_go_are_bounded() {
    let (mut driver, owner, job) = mining();
    driver.links[0].unwritten = vec![0; MAX_UNWRITTEN];
    driver.closes = std::iter::repeat_n((u64::MAX, KEY), MAX_WAITING_CLOSES).collect();
    submit_and_close(&mut driver, &owner, &job);
    assert_eq!((driver.upstreams.get(0).open_channels(), driver.closes.len()), (0, MAX_WAITING_CLOSES));
    driver.links[0].unwritten.clear();
    driver.take_shares();
    assert_eq!(fates(&driver)[1..], [Fate::Dropped(DropReason::UpstreamLost); 2]);
}

#[tokio::test]
async fn a_pool_that_does_not_even_take_blocks_is_given_up() {
    let (mut driver, _owner, job) = mining();
    let now = driver.task.clock.now();
    driver.links[0].unwritten = vec![0; MAX_UNWRITTEN_WITH_BLOCKS];
    driver.give_up_if_unread();
    assert_eq!(driver.upstreams.get(0).open_channels(), 1, "as much may wait");
    driver.links[0].unwritten.push(0);
    driver.give_up_if_unread();
    assert_eq!((driver.upstreams.get(0).open_channels(), driver.links[0].unwritten.len()), (0, 0));
    driver.handle_block(share(&job, 1, true, now));
    assert_eq!(fates(&driver), [Fate::Dropped(DropReason::UpstreamLost)]);
}

#[tokio::test]
async fn a_stream_of_blocks_does_not_hold_up_what_the_pool_says() {
    let (mut driver, owner, job) = mining();
    let now = driver.task.clock.now();
    let dialled = tokio::spawn(async { Err("refused".to_owned()) });
    while !dialled.is_finished() {
        tokio::task::yield_now().await;
    }
    driver.links[0].set_dialling(dialled);
    let mut blocks = 0;
    loop {
        owner.blocks.try_send(share(&job, blocks, true, now)).expect("there is room");
        match driver.next(pin!(std::future::pending())).await {
            Wake::Block(_) => {
                blocks += 1;
                assert!(blocks <= BLOCKS_IN_A_ROW, "the pool is not heard");
            }
            Wake::Link(0, LinkEvent::Dialled(_)) => break,
            _ => panic!("nothing else is there"),
        }
    }
    assert_eq!(blocks, BLOCKS_IN_A_ROW);
    driver.links[0].go_down("refused", now);
    assert!(matches!(driver.next(pin!(std::future::pending())).await, Wake::Block(_)), "and then they go on");
}

#[tokio::test]
async fn an_upstream_that_opens_no_channel_is_not_live() {
    let (mut driver, _owner) = driver();
    assert!(!driver.upstreams.gives_work());
    ask_for_channel(&mut driver);
    assert!(!driver.upstreams.gives_work(), "not yet");
    start_job(&mut driver);
    assert!(driver.upstreams.gives_work());
    driver.handle_command(Command::Close { key: KEY });
    assert!(driver.upstreams.gives_work(), "without devices the connection is all that there can be");
    ask_for_channel(&mut driver);
    let error_code = "unknown-user".to_owned();
    receive(&mut driver, OpenMiningChannelError { request_id: RequestId(2), error_code });
    assert!(!driver.upstreams.gives_work());
}

//! What is left when a connection panics, and when what connections share is broken.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mining_server::{Event, Introduction, Registry, Settings, ShareUse, VersionRolling};
use stratum::vardiff::VardiffConfig;
use stratum::{ChannelId, ConnectionId, DeviceId, HashRate};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::holdings::Holdings;
use super::{Context, Patience, Protocol, serve};
use crate::clock::Clock;
use crate::owner::{Command, OwnerInbox, owner};
use crate::registry::SharedRegistry;
use crate::shutdown::shutdown;
use crate::sink::RecordSink;

/// For what happens at once, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// What connections share, with an upstream channel for each device or one for all.
pub(super) fn context(channel_per_device: bool) -> (Context, OwnerInbox) {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (owner, inbox) = owner();
    let vardiff = VardiffConfig { shares_per_minute: 6.0, minimum_exponent: 0, initial_exponent: 0 };
    let settings = Settings {
        share_use: ShareUse::Forward,
        vardiff_enabled: true,
        vardiff,
        minimum_is_firm: false,
        channel_per_device,
        proxy_protocol: false,
        share_batch_size: 1,
    };
    let context = Context {
        settings: Arc::new(settings),
        registry: SharedRegistry::new(clock, sink.writer()),
        owner,
        sink,
        clock,
        latencies: Arc::default(),
        counts: Arc::default(),
        slots: Arc::new(Semaphore::new(10)),
        patience: Patience::default(),
    };
    (context, inbox)
}

fn holdings(context: &Context) -> Holdings {
    Holdings::new(ConnectionId(7), [10, 0, 0, 7].into(), context, |counts| &counts.sv1)
}

fn open(channel: u32) -> Event {
    let user_identity = "farm.one".to_owned();
    Event::OpenUpstream { channel: ChannelId(channel), user_identity, hash_rate: HashRate(1e12) }
}

fn rate(channel: u32, rate: f64) -> Event {
    Event::HashRate { channel: ChannelId(channel), rate: HashRate(rate) }
}

#[tokio::test]
async fn a_panic_leaves_nothing_behind() {
    let (context, mut inbox) = context(true);
    let mut held = holdings(&context);
    let other = context.registry.clone().take_reserved().expect("there is room");
    let connection = tokio::spawn(async move {
        held.take_reserved().expect("there is room");
        held.take_reserved().expect("there is room");
        held.note(&[open(1), open(2), rate(2, 1e12), rate(3, 1e12), rate(4, 1e12), rate(4, 0.0)]);
        for channel in [1, 2, 3] {
            let introduction = Introduction { worker_name: "farm.one", ..Introduction::default() };
            assert_eq!(held.join(ChannelId(channel), &introduction), DeviceId(0));
        }
        held.leave(ChannelId(2), DeviceId(0));
        panic!("a bug of ours");
    });
    assert!(connection.await.is_err());
    assert_eq!(context.counts.sv1.load(Ordering::Relaxed), 0);
    assert_eq!(context.registry.live_reserved(), 1, "another connection's value is not touched");
    let devices = context.sink.snapshot(context.clock.now()).await.expect("the sink runs").devices;
    let [device] = &devices[..] else { panic!("one name is one device: {devices:?}") };
    assert_eq!((device.connections, &*device.address), (0, "10.0.0.7"), "nobody mines any more");
    context.registry.clone().give_back_reserved(other);
    let mut told = Vec::new();
    for _ in 0..4 {
        match tokio::time::timeout(DEADLINE, inbox.commands.recv()).await.expect("in time") {
            Some(Command::HashRate { key, rate: HashRate(0.0) }) => told.push(("rate", key)),
            Some(Command::Close { key }) => told.push(("close", key)),
            other => panic!("{other:?} says nothing of an end"),
        }
    }
    assert!(told.iter().all(|(_, key)| key.connection == ConnectionId(7)));
    let told: Vec<_> = told.into_iter().map(|(what, key)| (what, key.channel.0)).collect();
    assert_eq!(told, [("rate", 2), ("rate", 3), ("close", 1), ("close", 2)]);
    assert!(inbox.commands.try_recv().is_err());
}

#[tokio::test]
async fn what_was_given_back_in_order_is_not_given_back_twice() {
    let (context, mut inbox) = context(true);
    let mut held = holdings(&context);
    assert_eq!(context.counts.sv1.load(Ordering::Relaxed), 1);
    let reserved = held.take_reserved().expect("there is room");
    held.note(&[open(1), rate(1, 1e12), rate(2, 1e12)]);
    held.note(&[Event::CloseUpstream { channel: ChannelId(1) }, rate(2, 0.0)]);
    held.give_back_reserved(reserved);
    drop(held);
    assert_eq!(context.registry.live_reserved(), 0);
    assert_eq!(context.counts.sv1.load(Ordering::Relaxed), 0);
    drop(context);
    assert!(inbox.commands.recv().await.is_none(), "nobody is left who could say anything");
}

#[tokio::test]
async fn a_connection_counts_where_its_mask_stands_and_nowhere_once_it_ends() {
    let (context, _inbox) = context(true);
    let counted = |counts: &super::ConnectionCounts| {
        let counters = [&counts.rolling_granted, &counts.rolling_withheld, &counts.rolling_withheld_total];
        counters.map(|counter| counter.load(Ordering::Relaxed))
    };
    let mut held = holdings(&context);
    let mut other = holdings(&context);
    other.note(&[Event::VersionRolling(VersionRolling::Granted)]);
    held.note(&[Event::VersionRolling(VersionRolling::Granted)]);
    assert_eq!(counted(&context.counts), [2, 0, 0]);
    held.note(&[Event::VersionRolling(VersionRolling::Withheld), Event::RolledOutsideMask]);
    assert_eq!(counted(&context.counts), [1, 1, 1]);
    let connection = tokio::spawn(async move {
        let _held = held;
        panic!("a bug of ours");
    });
    assert!(connection.await.is_err());
    assert_eq!(counted(&context.counts), [1, 0, 1]);
    other.note(&[Event::VersionRolling(VersionRolling::NotNegotiated)]);
    drop(other);
    assert_eq!(counted(&context.counts), [0, 0, 1]);
    assert_eq!(context.counts.rolled_outside_mask.load(Ordering::Relaxed), 1, "what was seen stays seen");
}

#[tokio::test]
async fn a_connection_can_end_beside_a_broken_registry() {
    let (context, _inbox) = context(true);
    let mut held = holdings(&context);
    held.take_reserved().expect("there is room");
    break_registry(&context.registry).await;
    drop(held);
    assert_eq!(context.counts.sv1.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_broken_registry_ends_its_listener_by_a_panic() {
    let (context, _inbox) = context(true);
    let (_stop, end) = shutdown();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(serve(listener, Protocol::Sv1, context.clone(), end));
    break_registry(&context.registry).await;
    let _miner = TcpStream::connect(address).await.expect("the listener accepts");
    let ended = tokio::time::timeout(DEADLINE, serving).await.expect("it does not live on");
    assert!(ended.expect_err("the role must see a panic").is_panic());
    assert_eq!(context.counts.panicked.load(Ordering::Relaxed), 1);
    assert_eq!(context.counts.sv1.load(Ordering::Relaxed), 0);
}

async fn break_registry(registry: &SharedRegistry) {
    assert!(!registry.is_broken());
    let panicked = tokio::spawn({
        let registry = registry.clone();
        async move { registry.give_back_reserved([9; 4]) }
    });
    assert!(panicked.await.is_err(), "nobody held that value");
    assert!(registry.is_broken());
}

//! The sink as its writers and askers see it.

use std::time::Duration;

use mining_server::record::{HoldNumber, ReleaseFate};
use mining_server::{DropReason, Fate, LossReason, RejectReason, UpstreamVerdict, Verdict};
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, SequenceNumber, UpstreamChannelId, UpstreamId, Work,
};

use super::*;

fn at(seconds: u64) -> Now {
    Now::simulated(Duration::from_secs(1_800_000_000), Duration::from_secs(seconds))
}

fn us(seconds: u64) -> u64 {
    microseconds(at(seconds).utc)
}

fn share(device: u32, verdict: Verdict, fate: Fate) -> ShareRecord {
    ShareRecord {
        judged: at(100),
        device: Some(DeviceId(device)),
        connection: ConnectionId(1),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(7)),
        job: None,
        verdict,
        fate,
        sequence_number: None,
        submitted: Work(1000),
        upstream_work: Work(if matches!(fate, Fate::Forwarded | Fate::Held(_)) { 5000 } else { 0 }),
        difficulty: Some(Difficulty(f64::from(device))),
        job_age_ms: 0,
        version: 0,
        ntime: 0,
        nonce: 0,
        rollable: Default::default(),
    }
}

fn answer(verdict: UpstreamVerdict) -> UpstreamAnswer {
    UpstreamAnswer { received: at(101), upstream: UpstreamId(0), channel: UpstreamChannelId(7), verdict }
}

fn release(device: u32, fate: ReleaseFate) -> HeldRelease {
    HeldRelease {
        released: at(101),
        device: Some(DeviceId(device)),
        upstream: UpstreamId(0),
        upstream_channel: UpstreamChannelId(7),
        number: HoldNumber::new(1),
        fate,
        held_work: Work(5000),
        work: Work(5000),
    }
}

fn lost(count: u32) -> UpstreamVerdict {
    let (last, reason) = (SequenceNumber(9), LossReason::ConnectionEnded);
    UpstreamVerdict::Lost { last, count, reason, work: Work(5000 * u128::from(count)) }
}

/// Every verdict with every fate that goes with it, once.
fn one_of_each(device: u32) -> Vec<ShareRecord> {
    let rejected = RejectReason::ALL.map(|reason| share(device, Verdict::Rejected(reason), Fate::Refused));
    let fates = [Fate::BelowUpstreamTarget, Fate::Forwarded, Fate::Kept, Fate::Held(HoldNumber::new(1))];
    let dropped = DropReason::ALL.map(Fate::Dropped);
    let fates = fates.into_iter().chain(dropped);
    let accepted =
        fates.flat_map(|fate| [Verdict::Accepted, Verdict::BlockFound].map(|v| share(device, v, fate)));
    rejected.into_iter().chain(accepted).collect()
}

#[tokio::test]
async fn records_add_up() {
    let (sink, _task) = RecordSink::start();
    let mut writer = sink.writer();
    writer.device(DeviceEntry::named(DeviceId(3), "farm.rig3", us(90)));
    for device in [2, 3, 3] {
        one_of_each(device).into_iter().for_each(|share| writer.share(share));
    }
    let last = SequenceNumber(4);
    let miscounted = UpstreamVerdict::Acknowledged {
        last,
        count: 3,
        claimed: 1_000_000,
        shares_sum: 3,
        work: Work(15_000),
    };
    writer.answer(answer(miscounted));
    writer.answer(answer(UpstreamVerdict::Rejected {
        sequence_number: last,
        code: "stale-share".to_owned(),
        work: Work(5000),
    }));
    writer.answer(answer(lost(2)));
    writer.release(release(3, ReleaseFate::Forwarded(SequenceNumber(10))));
    writer.release(release(2, ReleaseFate::Dropped(DropReason::QueueFull)));

    let Snapshot { overview: Overview { totals, hash_rate_1m, .. }, devices, untracked } =
        sink.snapshot(at(120)).await.expect("alive");
    assert_eq!(totals.violation(), None);
    assert_eq!((totals.shares.submitted, totals.shares.accepted, totals.shares.blocks), (78, 48, 24));
    assert_eq!(totals.shares.rejected, [3; 10]);
    assert_eq!(totals.shares.dropped, [6, 6, 7, 6]);
    assert_eq!((totals.shares.forwarded, totals.shares.kept, totals.shares.below_upstream_target), (7, 6, 6));
    assert_eq!(
        (totals.shares.held, totals.shares.released, totals.shares.waiting_work()),
        (6, 2, Work(20_000))
    );
    assert_eq!((totals.shares.credited, totals.shares.forwarded_work), (Work(48_000), Work(35_000)));
    assert_eq!((totals.answers.acknowledged, totals.answers.refused, totals.answers.lost_total()), (3, 1, 2));
    assert_eq!(totals.upstreams[&UpstreamId(0)], totals.answers);
    assert_eq!(totals.refused_by_code["stale-share"], 1);
    assert_eq!((totals.folded, untracked.shares), (0, ShareSums::default()));

    assert_eq!(devices.len(), 2);
    assert_eq!(devices[1].name.as_deref(), Some("farm.rig3"));
    assert_eq!((devices[1].first_seen_us, devices[1].last_share_us), (us(90), Some(us(100))));
    assert_eq!(devices[1].best_difficulty, Some(3.0));
    assert_eq!((devices[0].sums.shares.submitted, devices[1].sums.shares.submitted), (26, 52));
    let rate = devices[1].rates[1].accepted.expect("it mined");
    assert_eq!(rate.window_seconds, 30.0);
    assert!((rate.rate.0 / (32_000.0 / 30.0) - 1.0).abs() < 1e-3, "{rate:?}");
    assert!(hash_rate_1m.is_some());
}

fn acknowledged(count: u32) -> UpstreamAnswer {
    let last = SequenceNumber(4);
    let (shares_sum, work) = (u64::from(count), Work(5000 * u128::from(count)));
    answer(UpstreamVerdict::Acknowledged { last, count, claimed: count, shares_sum, work })
}

#[tokio::test]
async fn records_in_batches_count_as_they_do_one_by_one_with_room_and_without() {
    let (sink, _task) = RecordSink::start();
    let mut writer = sink.writer();
    // The sink's task does not run before this test waits: the first batch takes all of the room.
    let mut sent: u64 = 0;
    for count in [QUEUE - 1, 1, 3, 2] {
        let mut shares = vec![share(2, Verdict::Accepted, Fate::Forwarded); count];
        let mut answers = vec![acknowledged(count as u32)];
        let mut releases = Vec::new();
        if count == 3 {
            shares.push(share(2, Verdict::Accepted, Fate::Held(HoldNumber::new(1))));
            releases.push(release(2, ReleaseFate::Dropped(DropReason::EpochEnded)));
        }
        writer.batch(&mut shares, &mut releases, &mut answers);
        assert!(shares.is_empty() && releases.is_empty() && answers.is_empty());
        sent += count as u64;
    }
    assert_eq!(sink.room.available_permits(), 0);
    let totals = sink.overview(at(120)).await.expect("no answer came before its share").totals;
    assert_eq!((totals.answers.forwarded, totals.answers.acknowledged), (sent, sent));
    assert_eq!((totals.shares.held, totals.shares.released), (1, 1));
    assert_eq!(totals.folded, 0);
    assert_eq!(sink.room.available_permits(), QUEUE, "room is given back");
}

#[tokio::test]
async fn an_answer_to_a_share_that_was_never_sent_is_a_bug() {
    let (sink, task) = RecordSink::start();
    let mut writer = sink.writer();
    writer.share(share(1, Verdict::Accepted, Fate::Forwarded));
    let last = SequenceNumber(1);
    writer.answer(answer(UpstreamVerdict::Acknowledged {
        last,
        count: 1,
        claimed: 1,
        shares_sum: 1,
        work: Work(5000),
    }));
    assert_eq!(sink.overview(at(101)).await.expect("alive").totals.violation(), None);
    writer.answer(answer(lost(1)));
    assert!(task.await.expect_err("the sums do not hold").is_panic());
}

/// The sink shares its thread with the upstream's task, which waits for as long as nothing is awaited.
#[tokio::test(flavor = "current_thread")]
async fn the_end_of_a_great_fleets_minute_keeps_nobody_waiting() {
    let (sink, _task) = RecordSink::start();
    let mut writer = sink.writer();
    let devices = 2000;
    for device in 0..devices {
        writer.share(share(device, Verdict::Accepted, Fate::Forwarded));
    }
    let before = sink.overview(at(101)).await.expect("alive");
    assert_eq!(before.devices, devices as usize);
    writer.share(ShareRecord { judged: at(200), ..share(1, Verdict::Accepted, Fate::Forwarded) });
    let after = sink.overview(at(200));
    tokio::pin!(after);
    let mut turns = 0;
    let after = loop {
        tokio::select! {
            biased;
            after = &mut after => break after.expect("alive"),
            () = tokio::task::yield_now() => turns += 1,
        }
    };
    assert_eq!(after.totals.shares.submitted, u64::from(devices) + 1);
    // Its points, and its rollup.
    assert!(turns >= 2 * devices as usize / keeper::CLOSED_AT_ONCE, "others had {turns} turns");
}

/// The sink's task does not run while this test does not wait: the queue is full after [`QUEUE`] records.
#[tokio::test(flavor = "current_thread")]
async fn a_full_queue_costs_detail_and_no_totals() {
    let (sink, _task) = RecordSink::start();
    let mut writer = sink.writer();
    let count = QUEUE + 1000;
    for number in 0..count {
        writer.share(share(number as u32 % 300, Verdict::Accepted, Fate::Forwarded));
    }
    let code = "too-late".to_owned();
    writer.answer(answer(UpstreamVerdict::Rejected {
        sequence_number: SequenceNumber(1),
        code,
        work: Work(5000),
    }));
    writer.device(DeviceEntry::named(DeviceId(5), "named.late", us(100)));
    // A storm of reconnections.
    for number in 0..2000 {
        writer.connection(ConnectionEntry {
            id: ConnectionId(number / 2),
            channel: ChannelId(0),
            device: DeviceId(number as u32 / 2 % 100),
            at_us: us(100),
            is_open: number % 2 == 0,
            connections: u32::from(number % 2 == 0),
        });
    }
    let last = ConnectionEntry {
        id: ConnectionId(5),
        channel: ChannelId(0),
        device: DeviceId(5),
        at_us: us(100),
        is_open: true,
        connections: 3,
    };
    writer.connection(last);

    // Another writer goes away with what it could not send.
    let mut leaving = sink.writer();
    leaving.share(share(5, Verdict::Rejected(RejectReason::Stale), Fate::Refused));
    drop(leaving);

    // Asking waits for room, which lets the sink work; the first writer still holds its sums.
    let totals = sink.overview(at(100)).await.expect("alive").totals;
    assert_eq!(totals.shares.submitted, QUEUE as u64 + 1, "the queue and the writer that left");
    writer.flush();
    let Snapshot { overview: Overview { totals, .. }, devices, .. } =
        sink.snapshot(at(100)).await.expect("alive");
    assert_eq!(totals.violation(), None);
    assert_eq!((totals.shares.submitted, totals.shares.forwarded), (count as u64 + 1, count as u64));
    assert_eq!(totals.shares.credited, Work(1000 * count as u128));
    assert_eq!((totals.answers.refused, totals.refused_by_code["too-late"]), (1, 1));
    assert_eq!(totals.folded, 1000 + 1 + 1);
    // Folded shares of up to 256 devices keep their names.
    let by_device: u64 = devices.iter().map(|device| device.sums.shares.submitted).sum();
    assert!(by_device < totals.shares.submitted && by_device > QUEUE as u64, "{by_device}");
    assert_eq!(devices[5].name.as_deref(), Some("named.late"));
    // Of what devices have, the last word counts.
    assert_eq!([5, 6].map(|device| devices[device].connections), [3, 0]);

    // With room again, detail is kept again.
    writer.share(share(1, Verdict::Accepted, Fate::Kept));
    assert_eq!(sink.overview(at(100)).await.expect("alive").totals.folded, 1002);
}

#[tokio::test]
#[should_panic(expected = "does not go with")]
async fn a_share_that_contradicts_itself_is_a_bug() {
    let (sink, _task) = RecordSink::start();
    sink.writer().share(share(1, Verdict::Accepted, Fate::Refused));
}

#[tokio::test]
async fn the_sink_ends_with_its_last_handle() {
    let (sink, task) = RecordSink::start();
    let other = sink.clone();
    drop(sink);
    assert!(other.overview(at(1)).await.is_ok());
    drop(other);
    task.await.expect("it ends in order");
}

/// The first configuration's nameplate is in the stream, and after a crash the second one reads it from there.
#[tokio::test]
async fn another_nameplate_counts_from_the_next_start_on() {
    let rules = |milliwatts: Option<u64>| DeviceRules {
        nameplates: milliwatts.map(|milliwatts| ("farm.*".to_owned(), milliwatts)).into_iter().collect(),
        ..DeviceRules::default()
    };
    let stream = || {
        let mut books = Books::default();
        let device = DeviceEntry::named(DeviceId(0), "farm.one", us(100));
        books.apply(&Entry::Device(device));
        let (subject, source) =
            (accounting::Subject::Device(DeviceId(0)), accounting::PowerSource::Nameplate);
        let (at_us, valid_for_s, milliwatts) = (us(100), u32::MAX, 3_000_000);
        books.apply(&Entry::Power(PowerEntry { subject, at_us, valid_for_s, milliwatts, source }));
        books
    };
    for wanted in [Some(3_000_000), Some(2_000_000), None] {
        let (sink, _task) = RecordSink::start_with(stream(), rules(wanted), None);
        sink.writer().device(DeviceEntry::named(DeviceId(0), "farm.one", us(200)));
        let devices = sink.snapshot(at(200)).await.expect("alive").devices;
        let power = devices[0].power.map(|(milliwatts, _)| milliwatts);
        assert_eq!(power, wanted);
    }
}

/// Groups and nameplates need no disk.
#[tokio::test]
async fn rules_hold_in_memory_as_well() {
    let rules = DeviceRules {
        groups: vec![("hall".to_owned(), "farm.*".to_owned())],
        nameplates: vec![("farm.*".to_owned(), 3_000_000)],
        ..DeviceRules::default()
    };
    let (sink, _task) = RecordSink::start_in_memory(rules);
    let mut writer = sink.writer();
    writer.device(DeviceEntry::named(DeviceId(0), "farm.one", us(100)));
    writer.share(share(0, Verdict::Accepted, Fate::Kept));
    let mut later = share(0, Verdict::Accepted, Fate::Kept);
    later.judged = at(200);
    writer.share(later);
    let Snapshot { overview: Overview { groups, .. }, devices, .. } =
        sink.snapshot(at(200)).await.expect("alive");
    let (_, name, count, group) = &groups[0];
    assert_eq!((&**name, *count), ("hall", 1));
    assert_eq!(devices[0].power, Some((3_000_000, accounting::PowerSource::Nameplate)));
    // A minute begins at 60 and at 120: twenty seconds.
    assert_eq!(group.sums.energy.joules(), 3000.0 * 20.0);
    assert_eq!(group.sums.energy, devices[0].sums.energy);
}

/// A fleet that is copied in pieces is whole, and each device is in it once.
#[tokio::test]
async fn a_copy_of_a_fleet_has_every_device_once() {
    for count in [0, 1, 63, 64, 65, 1000] {
        let (sink, _task) = RecordSink::start();
        let mut writer = sink.writer();
        for device in 0..count {
            writer.share(share(device, Verdict::Accepted, Fate::Kept));
        }
        let Snapshot { overview, devices, untracked } = sink.snapshot(at(120)).await.expect("alive");
        let numbers: Vec<u32> = devices.iter().map(|device| device.id.0).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
        let mut all = untracked;
        devices.iter().for_each(|device| all.add(&device.sums));
        assert_eq!((all.shares, overview.devices), (overview.totals.shares, count as usize));
    }
}

/// Names and marks of a fleet, and the devices that are asked for.
#[tokio::test]
async fn what_is_small_of_all_devices_and_what_is_great_of_some() {
    for count in [0, 1, 511, 512, 513, 2100] {
        let (sink, _task) = RecordSink::start();
        let mut writer = sink.writer();
        for device in 0..count {
            writer.device(DeviceEntry::named(DeviceId(device), format!("rig{device}"), us(90)));
        }
        let names = sink.names().await.expect("alive");
        let expected = (0..count).map(|id| (DeviceId(id), Some(format!("rig{id}").into())));
        assert_eq!(names, expected.collect::<Vec<_>>());
        let version = sink.names_version().await.expect("alive");
        let before = sink.marks().await.expect("alive");
        assert_eq!(before.len(), count as usize);
        let changed = count / 2;
        writer.share(share(changed, Verdict::Accepted, Fate::Kept));
        let after = sink.marks().await.expect("alive");
        let differs = |(one, other): &(&_, &_)| one != other;
        let different: Vec<_> = before.iter().zip(&after).filter(differs).map(|(_, (id, _))| *id).collect();
        assert_eq!(different, Vec::from_iter((count > 0).then_some(DeviceId(changed))));
        let is_same = sink.names_version().await.expect("alive") == version;
        assert_eq!(is_same, count > 0, "a device without a name is new");
        let ids = [count + 7, changed, 0].map(DeviceId);
        let devices = sink.devices(at(120), &ids).await.expect("alive");
        let found: Vec<u32> = devices.iter().map(|device| device.id.0).collect();
        assert_eq!(found, [changed, 0], "those that are known, in this order");
    }
}

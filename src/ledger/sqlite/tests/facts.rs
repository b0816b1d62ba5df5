//! What is kept besides sums and points: it comes back, and it goes when it is old.

use accounting::entry::{EventEntry, EventKind};
use accounting::{AckSums, BlockRow, EventRow, Facts, OpenPart, PowerRow, PowerSource, Worth};
use stratum::JobNumber;

use super::*;
use crate::ledger::store::Reader as _;

fn event(number: u64, second: u64) -> EventRow {
    let event = EventEntry {
        at_us: second * 1_000_000,
        kind: EventKind::SharedName,
        device: (number % 2 == 1).then_some(DeviceId(7)),
        text: format!("event {number}"),
    };
    EventRow { number, event }
}

fn block(number: u64, second: u64) -> BlockRow {
    let is_known = number % 2 == 1;
    BlockRow {
        number,
        found_us: second * 1_000_000,
        device: is_known.then_some(DeviceId(7)),
        upstream: is_known.then_some(UpstreamId(2)),
        job: is_known.then_some(JobNumber(u64::MAX)),
        difficulty: is_known.then_some(1e14),
        hash: is_known.then_some([7; 32]),
        height: is_known.then_some(925_000),
        value_sats: is_known.then_some(312_500_000),
    }
}

/// Some of everything.
pub(super) fn facts() -> Facts {
    let mut acks = AckSums::default();
    acks.add(70_000);
    let worth = Worth {
        at_us: 9,
        upstream: UpstreamId(2),
        value_sats: 312_500_000,
        height: Some(925_000),
        nbits: 0xffff_ffff,
    };
    let power = PowerRow {
        subject: Subject::Device(DeviceId(7)),
        source: PowerSource::Nameplate,
        milliwatts: 3_250_000,
        from_us: 1,
        until_us: u64::MAX >> 1,
    };
    let part = OpenPart {
        minute: START,
        from_us: START * 1_000_000,
        latest_us: START * 1_000_000 + 1,
        mined: vec![(DeviceId(7), Work(u128::MAX))],
        replaced: vec![power],
    };
    Facts {
        worths: vec![worth],
        acks: vec![(UpstreamId(2), acks)],
        refused_by_code: [("stale-share".to_owned(), 3)].into(),
        refused_by_upstream: [(UpstreamId(2), [("stale-share".to_owned(), 3)].into())].into(),
        folded: u64::MAX,
        power: vec![power],
        part,
        events: vec![event(1, START), event(2, START + 1)],
        blocks: vec![block(1, START), block(2, START + 1)],
    }
}

fn keep(views: &mut SqliteViews, facts: Facts) {
    let roll_up = RollUp { watermark: BatchNumber(1), facts, ..RollUp::default() };
    views.roll_up(&roll_up).expect("it is written");
}

#[test]
fn events_and_blocks_are_found_page_by_page() {
    let folder = folder();
    let (mut store, mut views, _) = open(&folder);
    fill(&mut store, Head::NONE, &[START]);
    let events: Vec<EventRow> = (1..=2000).map(|number| event(number, START + number / 3)).collect();
    let blocks: Vec<BlockRow> = (1..=2000).map(|number| block(number, START + number / 3)).collect();
    let (first, rest) = events.split_at(900);
    keep(&mut views, Facts { events: first.to_vec(), blocks: blocks[..900].to_vec(), ..Facts::default() });
    keep(&mut views, Facts { events: rest.to_vec(), blocks: blocks[900..].to_vec(), ..Facts::default() });
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    let opening = reader.opening().expect("it can be read");
    assert_eq!(opening.facts.events, events[2000 - accounting::books::MAX_EVENTS..]);
    assert_eq!(opening.facts.blocks, blocks[2000 - accounting::books::MAX_BLOCKS..]);
    let mut walked = Vec::new();
    let mut before = None;
    loop {
        let mut page = reader.events(before, 100).expect("they can be read");
        // Those of the last page's last moment come again.
        page.retain(|row| walked.last().is_none_or(|last: &EventRow| row.number < last.number));
        let Some(last) = page.last() else { break };
        before = Some(last.event.at_us);
        walked.extend(page);
    }
    walked.reverse();
    assert_eq!(walked, events);
    let before = Some((START + 4) * 1_000_000);
    let page: Vec<u64> =
        reader.blocks(before, 5).expect("they can be read").iter().map(|block| block.number).collect();
    assert_eq!(page, [14, 13, 12, 11, 10]);
}

#[test]
fn old_events_blocks_and_readings_go() {
    let folder = folder();
    let (mut store, mut views, _) = open(&folder);
    fill(&mut store, Head::NONE, &[START]);
    let power = |device: u32, until: u64| PowerRow {
        subject: Subject::Device(DeviceId(device)),
        source: PowerSource::Meter,
        milliwatts: 1,
        from_us: 1,
        until_us: until * 1_000_000,
    };
    let now = START + 101 * 86_400;
    let kept = Facts {
        power: vec![power(2, now - 60)],
        events: vec![event(2, START + 86_400)],
        blocks: vec![block(2, START + 86_400)],
        ..Facts::default()
    };
    let mut all = kept.clone();
    all.power.insert(0, power(1, now - 86_401));
    all.events.insert(0, event(1, START));
    all.blocks.insert(0, block(1, START));
    keep(&mut views, all);
    assert!(!views.retain(now).expect("it can be removed").is_incomplete);
    assert_eq!(SqliteReader::open(folder.path()).expect("it opens").opening().expect("it reads").facts, kept);
}

#[test]
fn a_fact_that_cannot_be_read_is_damage() {
    let folder = folder();
    let (mut store, mut views, _) = open(&folder);
    fill(&mut store, Head::NONE, &[START]);
    keep(&mut views, facts());
    let connection = Connection::open(folder.path().join(file::LEDGER_FILE)).expect("a file");
    for change in
        ["UPDATE event SET kind = 99", "UPDATE ack SET sums = x'ff'", "UPDATE power SET source = -1"]
    {
        let transaction = connection.unchecked_transaction().expect("it can be changed");
        transaction.execute(change, []).expect("it can be changed");
        assert!(super::super::facts::read(&transaction, folder.path()).is_err(), "{change}");
    }
}

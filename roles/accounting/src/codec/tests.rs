//! Every entry there and back, the bytes of one of each, and bytes that are none.

use std::time::Duration;

use proptest::prelude::*;
use stratum::{
    ChannelId, Difficulty, Now, SequenceNumber, UpstreamChannelId, UpstreamId, UpstreamJobId, Work,
};

use super::*;
use crate::record::*;
use crate::sums::Sums;

fn at(us: u64) -> Now {
    Now { monotonic: Duration::from_micros(us), utc: Duration::from_micros(us) }
}

fn share() -> ShareRecord {
    ShareRecord {
        judged: at(1_795_645_123_456_789),
        device: Some(DeviceId(300)),
        connection: ConnectionId(70_000),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(7)),
        job: Some(JobNumber(0x0102_0304_0506_0708)),
        verdict: Verdict::Accepted,
        fate: Fate::Forwarded,
        sequence_number: Some(SequenceNumber(5)),
        submitted: Work(1 << 42),
        upstream_work: Work(1 << 50),
        difficulty: Some(Difficulty(1024.5)),
        job_age_ms: 1500,
        version: 0x2000_e000,
        ntime: 0x6500_0000,
        nonce: 0xdead_beef,
        rollable: [1, 2, 3, 4, 5, 6, 7, 8].into_iter().collect(),
    }
}

/// A share that waits for its job.
fn held() -> ShareRecord {
    ShareRecord { fate: Fate::Held(HoldNumber::new(129)), sequence_number: None, ..share() }
}

fn release(fate: ReleaseFate) -> HeldRelease {
    HeldRelease {
        released: at(1_795_645_124_000_000),
        device: Some(DeviceId(300)),
        upstream: UpstreamId(0),
        upstream_channel: UpstreamChannelId(7),
        number: HoldNumber::new(129),
        fate,
        held_work: Work(1 << 50),
        work: Work(300),
    }
}

/// One entry of each kind.
fn one_of_each() -> Vec<Entry> {
    let answer = |verdict| UpstreamAnswer {
        received: at(7),
        upstream: UpstreamId(1),
        channel: UpstreamChannelId(2),
        verdict,
    };
    let (last, work) = (SequenceNumber(9), Work(300));
    [
        Entry::Share(share()),
        Entry::Share(held()),
        Entry::Release(release(ReleaseFate::Forwarded(last))),
        Entry::Release(HeldRelease { device: None, ..release(ReleaseFate::Dropped(DropReason::QueueFull)) }),
        Entry::Release(release(ReleaseFate::BelowUpstreamTarget)),
        Entry::Answer(answer(UpstreamVerdict::Acknowledged {
            last,
            count: 3,
            claimed: 4,
            shares_sum: 5,
            work,
        })),
        Entry::Answer(answer(UpstreamVerdict::Rejected {
            sequence_number: last,
            code: "stale-share".to_owned(),
            work,
        })),
        Entry::Answer(answer(UpstreamVerdict::Lost { last, count: 1, reason: LossReason::Failover, work })),
        Entry::Job(JobEntry {
            number: JobNumber(3),
            at_us: 4,
            upstream: UpstreamId(0),
            upstream_channel: UpstreamChannelId(1),
            upstream_job: UpstreamJobId(2),
            template: Some(TemplateId(0)),
            previous_hash: [5; 32],
            nbits: 0x1703_a30c,
            upstream_target: Target::MAX,
            coinbase_prefix: vec![1; 3],
            rollable_size: 20,
            coinbase_suffix: vec![],
            merkle_path: vec![[6; 32]],
        }),
    ]
    .into_iter()
    .chain(one_of_each_rare())
    .collect()
}

/// One entry of each kind that is rare.
fn one_of_each_rare() -> Vec<Entry> {
    let sums = Sums { squared_work: 2.5, ..Sums::default() };
    vec![
        Entry::Device(DeviceEntry {
            id: DeviceId(1),
            at_us: 2,
            name: "farm.rig~2".to_owned(),
            worker_name: "farm.rig".to_owned(),
            groups: vec![GroupId(3)],
            address: "10.0.0.7".to_owned(),
            user_agent: "cgminer/4.11".to_owned(),
            device_id: "0123".to_owned(),
        }),
        Entry::Connection(ConnectionEntry {
            id: ConnectionId(9),
            channel: ChannelId(4),
            device: DeviceId(1),
            at_us: 3,
            is_open: true,
            connections: 2,
        }),
        Entry::Upstream(UpstreamEntry {
            id: UpstreamId(0),
            at_us: 1,
            name: "pool:1".to_owned(),
            account: "a".to_owned(),
        }),
        Entry::Power(PowerEntry {
            subject: Subject::Group(GroupId(1)),
            at_us: 8,
            valid_for_s: 600,
            milliwatts: 3_500_000,
            source: PowerSource::Meter,
        }),
        Entry::Event(EventEntry {
            at_us: 1,
            kind: EventKind::SharedName,
            device: Some(DeviceId(0)),
            text: "two".to_owned(),
        }),
        Entry::Gap(Gap {
            from_us: 1,
            to_us: 2,
            records: 3,
            devices: vec![(None, sums.clone()), (Some(DeviceId(0)), sums.clone())],
            upstreams: vec![(UpstreamId(0), sums)],
            refused_by_code: vec![("stale-share".to_owned(), 2)],
        }),
        Entry::MinuteEnded(1_795_645_020),
    ]
}

fn payload(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|entry| write_entry(&mut out, entry));
    out
}

#[test]
fn every_kind_of_entry_comes_back_as_it_was() {
    let all = one_of_each();
    let read: Result<Vec<_>, _> = entries(&payload(&all)).collect();
    assert_eq!(read, Ok(all));
    assert_eq!(entries(&[]).next(), None);
}

/// The form must not change without another version: ledgers outlive programs.
#[test]
fn a_share_is_laid_out_for_ever() {
    let bytes = payload(&[Entry::Share(share())]);
    let expected = concat!(
        "03",
        "01",
        "1f0002",
        "15efb93521610600",
        "ac02",
        "f0a204",
        "00",
        "0007",
        "0807060504030201",
        "05",
        "80808080808001",
        "8080808080808002",
        "0000000000029040",
        "dc0b",
        "00e00020",
        "00000065",
        "efbeadde",
        "080102030405060708"
    );
    assert_eq!(text(&bytes), expected);
    assert!(bytes.len() <= 110, "a share takes {} bytes", bytes.len());
}

#[test]
fn a_held_share_and_its_release_are_laid_out_for_ever() {
    let rest = "808080808080018080808080808002000000000002904\
                0dc0b00e0002000000065efbeadde080102030405060708";
    assert_eq!(
        text(&payload(&[Entry::Share(held())])),
        format!("030117000415efb93521610600ac02f0a2040000070807060504030201{}{rest}", "8101")
    );
    assert_eq!(
        text(&payload(&[Entry::Release(release(ReleaseFate::Forwarded(SequenceNumber(9))))])),
        concat!(
            "03",
            "0b",
            "0039c23521610600",
            "ad02",
            "00",
            "07",
            "8101",
            "0009",
            "8080808080808002",
            "ac02"
        )
    );
    assert_eq!(
        text(&payload(&[Entry::Release(release(ReleaseFate::Dropped(DropReason::ProcessEnded)))])),
        concat!(
            "03",
            "0b",
            "0039c23521610600",
            "ad02",
            "00",
            "07",
            "8101",
            "0103",
            "8080808080808002",
            "ac02"
        )
    );
    assert_eq!(
        text(&payload(&[Entry::Release(release(ReleaseFate::BelowUpstreamTarget))])),
        concat!("03", "0b", "0039c23521610600", "ad02", "00", "07", "8101", "02", "8080808080808002", "ac02")
    );
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_cut_off_is_no_entry() {
    for entry in one_of_each() {
        let bytes = payload(std::slice::from_ref(&entry));
        for length in 1..bytes.len() {
            let read: Vec<_> = entries(&bytes[..length]).collect();
            assert!(read.len() <= 1 && read.iter().all(Result::is_err), "{entry:?} cut to {length}");
        }
    }
}

#[test]
fn sums_are_laid_out_for_ever() {
    let mut sums = Sums { squared_work: 2.5, ..Sums::default() };
    (sums.shares.submitted, sums.shares.submitted_work) = (300, Work(1 << 70));
    sums.energy.millijoules[3] = 5;
    let mut bytes = Vec::new();
    encode_sums(&sums, &mut bytes);
    let (given, numbers) = ("0100006000000020", ["ac02", "c008", "8080808080808080808001", "05"]);
    assert_eq!(text(&bytes), given.to_owned() + &numbers.concat());
    assert_eq!(decode_sums(&bytes), Ok(sums));
    // A number that is 0 is not written, and there are no more than these.
    assert!(decode_sums(&[1, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    assert!(decode_sums(&[0, 0, 0, 0, 0, 0, 0, 0x40, 1]).is_err());
}

#[test]
fn a_later_form_is_refused_by_name() {
    assert_eq!(entries(&[9, 1, 2]).next(), Some(Err(CodecError::Version(9))));
}

fn any_sums() -> impl Strategy<Value = Sums> {
    prop::collection::vec(prop_oneof![3 => Just(0_u64), 1 => any::<u64>()], 62).prop_map(|numbers| {
        let given = numbers.iter().enumerate().filter(|(_, number)| **number != 0);
        let given = given.fold(0_u64, |given, (place, _)| given | 1 << place);
        let mut bytes = given.to_le_bytes().to_vec();
        numbers.iter().filter(|number| **number != 0).for_each(|number| write_number(&mut bytes, *number));
        Reader(&bytes).sums().expect("every number fits")
    })
}

proptest! {
    #[test]
    fn sums_come_back_as_they_were(sums in any_sums()) {
        // The bits of a float that is no number need not come back.
        prop_assume!(!sums.squared_work.is_nan());
        let mut bytes = Vec::new();
        encode_sums(&sums, &mut bytes);
        prop_assert_eq!(decode_sums(&bytes), Ok(sums));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut hostile = vec![VERSION];
        hostile.extend_from_slice(&bytes);
        for entry in entries(&hostile).flatten() {
            // What was read can be written, and is read again as the same.
            let again: Vec<_> = entries(&payload(std::slice::from_ref(&entry))).collect();
            prop_assert_eq!(format!("{:?}", again), format!("{:?}", [Ok::<_, CodecError>(entry)]));
        }
    }

    #[test]
    fn shares_with_a_bit_turned_never_panic(place in 0_usize..90, bit in 0_u8..8) {
        let mut bytes = payload(&one_of_each());
        let place = place * (bytes.len() - 1) / 90;
        bytes[place] ^= 1 << bit;
        let _ = entries(&bytes).count();
    }
}

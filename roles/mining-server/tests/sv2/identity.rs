//! What the registry is told of the machines behind channels: it decides which devices they are.

use mining_server::Verdict;
use stratum::DeviceId;
use stratum::sv2::messages::*;

use crate::support::*;

fn set_up() -> Driver {
    let mut driver = Driver::new(settings());
    driver.send(SetupConnection {
        vendor: "bitaxe".to_owned(),
        hardware_version: "BM1370".to_owned(),
        firmware: "v2.15\n".to_owned(),
        device_id: "0a1b".to_owned(),
        ..setup_connection(0)
    });
    driver
}

#[test]
fn a_channel_says_what_its_connection_said_of_itself() {
    let mut source = Source::new();
    let mut driver = set_up();
    driver.work(&source.job(driver.now));
    driver.open_extended(extended(1));
    driver.open_standard(standard(2));
    let said: Vec<&[String; 4]> = driver.registry.introductions.iter().collect();
    assert_eq!(said.len(), 2);
    for [_, address, device_id, user_agent] in said {
        assert_eq!([address, device_id, user_agent], ["", "0a1b", "bitaxe BM1370 v2.15?"]);
    }
    assert_eq!(driver.registry.seats.len(), 2);
    driver.close();
    assert!(driver.registry.seats.is_empty());
}

#[test]
fn whoever_leaves_a_channel_or_never_gets_one_is_said_to_have_left() {
    let mut source = Source::new();
    let mut driver = set_up();
    // No work in time.
    driver.send(extended(1));
    assert_eq!(driver.registry.seats.len(), 1);
    driver.wait(mining_server::sv2::OPEN_DEADLINE);
    driver.work(&source.job(driver.now));
    let (opened, _) = driver.open_extended(extended(2));
    assert_eq!(driver.registry.seats.len(), 1, "told with the next frame");

    let request_id = ExtensionsRequestId(1);
    driver.send(RequestExtensions { request_id, requested_extensions: vec![2] });
    let job = &source.work().active().job.clone();
    for (number, worker) in [(1, "rig1"), (2, "rig2"), (3, "rig1")] {
        let share = find_share(&opened, job, opened.target, number, number as u32);
        driver.send(SubmitSharesExtended { user_identity: Some(worker.to_owned()), ..share });
    }
    assert_eq!(driver.registry.seats.len(), 3);
    let [name, address, device_id, user_agent] = &driver.registry.introductions[2];
    assert!(name.ends_with(".rig1"), "{name}");
    assert_eq!([address, device_id, user_agent], ["", "", ""], "what a proxy says of itself is not theirs");
    driver.send(CloseChannel { channel_id: opened.channel, reason_code: "done".to_owned() });
    assert!(driver.registry.seats.is_empty());
}

#[test]
fn a_channel_and_a_worker_follow_the_registry_with_their_later_shares() {
    let mut source = Source::new();
    let mut driver = set_up();
    driver.work(&source.job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    let request_id = ExtensionsRequestId(1);
    driver.send(RequestExtensions { request_id, requested_extensions: vec![2] });
    let job = &source.work().active().job.clone();
    let mut number = 0;
    let mut mine = |driver: &mut Driver, worker: Option<&str>| {
        number += 1;
        let share = find_share(&opened, job, opened.target, u64::from(number), number);
        driver.send(SubmitSharesExtended { user_identity: worker.map(str::to_owned), ..share });
        let share = driver.shares().pop().expect("it was judged");
        assert_eq!(share.record.verdict, Verdict::Accepted);
        share.record.device.expect("whoever has a channel is a device")
    };
    for (worker, other) in [(None, DeviceId(70)), (Some("rig1"), DeviceId(71))] {
        driver.registry.switch = Some(other);
        let before = mine(&mut driver, worker);
        assert_ne!(before, other, "what was judged stays what it is");
        assert_eq!(mine(&mut driver, worker), other);
    }
    assert_eq!(driver.registry.signs, 2, "not for every share");
    driver.wait(seconds(10));
    assert_eq!(mine(&mut driver, None), DeviceId(70));
    assert_eq!(driver.registry.signs, 3);
    driver.close();
    assert!(driver.registry.seats.is_empty());
}

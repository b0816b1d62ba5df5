//! How work reaches open channels.

use mining_server::{Fault, Settings};
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, Target};

use crate::support::*;

fn set_target(channel_id: ChannelId, maximum_target: Target) -> Message {
    SetTarget { channel_id, maximum_target }.into()
}

/// A connection with one extended channel.
fn one_channel(source: &mut Source) -> (Driver, Opened) {
    let mut driver = Driver::set_up(settings(), 0);
    driver.work(&source.job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    (driver, opened)
}

#[test]
fn only_a_new_tip_or_epoch_replaces_all_jobs() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(&mut source);
    let work = source.job(driver.now);
    assert_eq!(driver.work(&work), job_messages(&opened, opened.channel, &work.active().job, false));
    let work = source.block(driver.now);
    assert_eq!(driver.work(&work), job_messages(&opened, opened.channel, &work.active().job, true));
    let work = source.redialled(b"another prefix", 12, driver.now);
    assert_eq!(driver.work(&work), job_messages(&opened, opened.channel, &work.active().job, true));
}

#[test]
fn a_tip_that_another_job_overtook_is_still_announced() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(&mut source);
    source.block(driver.now);
    let work = source.job(driver.now);
    assert!(!work.active().job.clean);
    assert_eq!(driver.work(&work), job_messages(&opened, opened.channel, &work.active().job, true));
}

#[test]
fn a_job_that_the_upstream_takes_alone_replaces_all_on_the_same_tip() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(&mut source);
    source.voids_others = true;
    let work = source.job(driver.now);
    assert_eq!(driver.work(&work), job_messages(&opened, opened.channel, &work.active().job, true));
    assert_eq!(work.jobs.len(), 2, "shares on their way are taken");
    let old = source.work();
    let work = source.job(driver.now);
    assert_eq!(driver.work(&work), job_messages(&opened, opened.channel, &work.active().job, false));
    assert_eq!(driver.work(&old), [], "it was overtaken");
}

#[test]
fn work_without_a_new_job_disturbs_nobody() {
    let mut source = Source::new();
    let (mut driver, _) = one_channel(&mut source);
    let old = source.work();
    assert_eq!(driver.work(&source.set_live(false)), []);
    assert_eq!(driver.work(&source.set_live(true)), []);
    assert_eq!(driver.work(&source.job(driver.now)).len(), 1);
    assert_eq!(driver.work(&old), [], "it was overtaken");
}

#[test]
fn one_message_serves_a_group() {
    let mut source = Source::new();
    let (mut driver, first) = one_channel(&mut source);
    let (second, rest) = driver.open_standard(standard(2));
    assert_eq!(rest, standard_job_messages(&second, &source.work().active().job, true));
    for work in [source.job(driver.now), source.block(driver.now)] {
        let clean = work.active().job.clean;
        assert_eq!(driver.work(&work), job_messages(&first, first.group, &work.active().job, clean));
    }
    // Targets differ, so they are told to each, and first.
    source.upstream_target = difficulty(-26);
    let work = source.job(driver.now);
    let mut expected =
        vec![set_target(first.channel, difficulty(-26)), set_target(second.channel, difficulty(-26))];
    expected.extend(job_messages(&first, first.group, &work.active().job, false));
    assert_eq!(driver.work(&work), expected);
    // Alone again, the standard channel is addressed itself.
    driver.send(CloseChannel { channel_id: first.channel, reason_code: "enough".to_owned() });
    let work = source.job(driver.now);
    assert_eq!(driver.work(&work), standard_job_messages(&second, &work.active().job, false));
}

#[test]
fn devices_that_require_standard_jobs_get_their_own_each() {
    let mut source = Source::new();
    let mut driver = Driver::set_up(settings(), REQUIRES_STANDARD_JOBS);
    driver.work(&source.job(driver.now));
    let (first, _) = driver.open_standard(standard(1));
    let (second, _) = driver.open_standard(standard(2));
    for work in [source.job(driver.now), source.block(driver.now), source.redialled(b"new", 8, driver.now)] {
        let job = &work.active().job;
        let mut expected = standard_job_messages(&first, job, job.clean);
        expected.extend(standard_job_messages(&second, job, job.clean));
        assert_eq!(driver.work(&work), expected);
    }
    assert!(driver.closed.is_none());
}

#[test]
fn a_target_is_told_only_when_it_changes_and_before_its_job() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(&mut source);
    source.upstream_target = difficulty(-28);
    let work = source.block(driver.now);
    let mut expected = vec![set_target(opened.channel, difficulty(-28))];
    expected.extend(job_messages(&opened, opened.channel, &work.active().job, true));
    assert_eq!(driver.work(&work), expected);
    assert_eq!(driver.work(&source.job(driver.now)).len(), 1);
}

#[test]
fn more_room_upstream_is_padding_and_less_ends_the_connection() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(&mut source);
    let work = source.redialled(b"p", 20, driver.now);
    let messages = driver.work(&work);
    assert_eq!(messages, job_messages(&opened, opened.channel, &work.active().job, true));
    let Message::NewExtendedMiningJob(job) = &messages[0] else { panic!("{messages:?}") };
    assert_eq!(job.coinbase_tx_suffix[..8], [0; 8]);
    assert_eq!(driver.work(&source.redialled(b"p", 11, driver.now)), []);
    assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Upstream);
}

#[test]
fn a_job_that_no_message_holds_ends_the_connection_and_not_the_process() {
    let mut source = Source::new();
    let (mut driver, _) = one_channel(&mut source);
    source.prefix = vec![0; 70_000];
    assert_eq!(driver.work(&source.job(driver.now)), []);
    assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Upstream);
}

#[test]
fn jobs_too_long_for_the_firmware_are_noticed_once() {
    let mut driver = Driver::new(settings());
    driver.send(SetupConnection { vendor: "bitaxe".to_owned(), ..setup_connection(0) });
    let mut source = Source::new();
    source.prefix = vec![0; 8192];
    driver.work(&source.job(driver.now));
    driver.open_extended(extended(1));
    driver.work(&source.job(driver.now));
    assert_eq!(driver.notices(), 1);
}

#[test]
fn standard_jobs_without_version_rolling_are_noticed_once() {
    let mut driver = Driver::set_up(settings(), REQUIRES_STANDARD_JOBS);
    let mut source = Source::new();
    source.version_rolling_allowed = false;
    driver.work(&source.job(driver.now));
    driver.open_standard(standard(1));
    driver.work(&source.job(driver.now));
    assert_eq!(driver.notices(), 1);
}

#[test]
#[should_panic(expected = "work is a device's own or for all")]
fn work_for_nobody_in_particular_is_a_fault_of_the_driver() {
    let mut driver = Driver::set_up(Settings { channel_per_device: true, ..settings() }, 0);
    driver.work(&Source::new().job(driver.now));
}

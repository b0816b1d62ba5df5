//! Opening channels: what is answered, when, and what is refused.

use std::collections::HashSet;

use mining_server::sv2::{MAX_CHANNELS, MAX_PENDING_OPENS};
use mining_server::{Event, Fault, Settings, ShareUse};
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, HashRate, Target};

use crate::support::*;

fn per_device() -> Settings {
    Settings { channel_per_device: true, ..settings() }
}

#[test]
fn an_extended_channel_opens_with_its_first_job() {
    let mut driver = Driver::set_up(settings(), 0);
    let mut source = Source::new();
    driver.work(&source.job(driver.now));
    let work = source.job(driver.now);
    assert_eq!(driver.work(&work), [], "nobody to tell");
    let (opened, rest) = driver.open_extended(extended(1));
    assert_eq!(opened.prefix, 0xa000_0001u32.to_be_bytes());
    assert_eq!((opened.size, opened.target), (8, difficulty(INITIAL)));
    assert_ne!(opened.channel, opened.group);
    assert_eq!(rest, job_messages(&opened, opened.channel, &work.active().job, true));
    assert_eq!(driver.connection.channel_count(), 1);
    assert_eq!(driver.connection.user_identities().collect::<Vec<_>>(), ["account.1"]);
}

#[test]
fn a_standard_channel_opens_with_its_first_job_and_a_full_extranonce() {
    for flags in [0, REQUIRES_STANDARD_JOBS] {
        let mut driver = Driver::set_up(settings(), flags);
        let work = Source::new().job(driver.now);
        driver.work(&work);
        let (opened, rest) = driver.open_standard(standard(1));
        assert_eq!(opened.prefix, [0xa0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(rest, standard_job_messages(&opened, &work.active().job, true));
    }
}

#[test]
fn members_of_a_group_have_extranonces_of_one_size() {
    let mut driver = Driver::set_up(settings(), 0);
    let mut source = Source::new();
    source.rollable_size = 32;
    driver.work(&source.job(driver.now));
    let (first, _) = driver.open_extended(extended(1));
    assert_eq!(first.size, 16, "more is not promised, because a later upstream may have less");
    driver.work(&source.redialled(b"another", 28, driver.now));
    let (second, _) = driver.open_extended(extended(2));
    let (third, _) = driver.open_standard(standard(3));
    assert_eq!((second.size, third.prefix.len()), (16, 20));
    assert_eq!((first.group, first.group), (second.group, third.group));
    let prefixes: HashSet<_> = [&first, &second, &third].map(|opened| opened.prefix[..4].to_vec()).into();
    assert_eq!(prefixes.len(), 3);
}

#[test]
fn requests_that_cannot_be_met_are_refused_and_give_back_what_they_held() {
    let with = |change: fn(&mut OpenExtendedMiningChannel)| {
        let mut request = extended(1);
        change(&mut request);
        Message::from(request)
    };
    let cases = [
        (0, with(|request| request.min_extranonce_size = 9), "min-extranonce-size-too-large"),
        (0, with(|request| request.min_extranonce_size = u16::MAX), "min-extranonce-size-too-large"),
        (0, with(|request| request.max_target = difficulty(-9)), "max-target-out-of-range"),
        (0, with(|request| request.max_target = Target::from_le_bytes([0; 32])), "max-target-out-of-range"),
        (0, with(|request| request.user_identity = "a\nb".to_owned()), "invalid-user-identity"),
        (REQUIRES_STANDARD_JOBS, with(|_| ()), "extended-channels-not-supported-for-standard-jobs"),
    ];
    for (flags, request, code) in cases {
        let mut driver = Driver::set_up(settings(), flags);
        driver.work(&Source::new().job(driver.now));
        assert_eq!(driver.send(request), [refused(1, code)]);
        assert!(driver.registry.held.is_empty(), "{code}");
        assert!(driver.closed.is_none());
        assert!(driver.rates().is_empty());
    }
}

#[test]
fn a_maximum_target_is_kept_to() {
    let mut driver = Driver::set_up(settings(), 0);
    driver.work(&Source::new().job(driver.now));
    let mut max_target = difficulty(-21).to_le_bytes();
    max_target[0] ^= 1;
    max_target[31] = 0;
    let max_target = Target::from_le_bytes(max_target);
    let (opened, _) = driver.open_extended(OpenExtendedMiningChannel { max_target, ..extended(1) });
    assert!(opened.target <= max_target);
    assert!(opened.target >= difficulty(-20));
    // The hardest that the upstream's target allows.
    let max_target = difficulty(-10);
    let (opened, _) = driver.open_extended(OpenExtendedMiningChannel { max_target, ..extended(2) });
    assert_eq!(opened.target, difficulty(-10));
}

#[test]
fn a_pool_serves_any_maximum_target() {
    let mut driver = Driver::set_up(Settings { share_use: ShareUse::Keep, ..settings() }, 0);
    driver.work(&Source::new().job(driver.now));
    let max_target = difficulty(5);
    let (opened, _) = driver.open_extended(OpenExtendedMiningChannel { max_target, ..extended(1) });
    assert_eq!(opened.target, difficulty(5));
}

#[test]
fn a_plausible_hash_rate_sets_the_first_difficulty() {
    // 8 shares a minute: 7.5 s each.
    let wanted = |exponent: i32| 2f64.powi(exponent) * 4_295_032_833.0 / 7.5;
    let cases = [
        (wanted(-20) as f32 * 1.01, -20),
        (wanted(-20) as f32 * 1.99, -20),
        (1e12, -10), // no harder than the upstream's target
        (1e-3, -30), // no easier than the configured minimum
        (0.0, INITIAL),
        (-0.0, INITIAL),
        (-5.0, INITIAL),
        (f32::NAN, INITIAL),
        (f32::INFINITY, INITIAL),
        (f32::MAX, INITIAL),
    ];
    for (nominal_hash_rate, exponent) in cases {
        let mut driver = Driver::set_up(settings(), 0);
        driver.work(&Source::new().job(driver.now));
        let (opened, _) =
            driver.open_extended(OpenExtendedMiningChannel { nominal_hash_rate, ..extended(1) });
        assert_eq!(opened.target, difficulty(exponent), "{nominal_hash_rate}");
    }
}

#[test]
fn without_vardiff_the_channel_gets_the_upstreams_target() {
    let mut driver = Driver::set_up(Settings { vardiff_enabled: false, ..settings() }, 0);
    driver.work(&Source::new().job(driver.now));
    let request = OpenExtendedMiningChannel { nominal_hash_rate: 1000.0, ..extended(1) };
    assert_eq!(driver.open_extended(request).0.target, difficulty(-10));
}

#[test]
fn hash_rates_are_published_when_channels_open_and_close() {
    let mut driver = Driver::set_up(settings(), 0);
    driver.work(&Source::new().job(driver.now));
    let declared = OpenExtendedMiningChannel { nominal_hash_rate: 4096.0, ..extended(1) };
    let (first, _) = driver.open_extended(declared);
    let (second, _) = driver.open_extended(extended(2));
    let guess = HashRate::of_shares(difficulty(INITIAL).work(), 8.0).0;
    assert_eq!(driver.rates(), [(first.channel, 4096.0), (second.channel, guess)]);
    let none_yet = OpenExtendedMiningChannel { nominal_hash_rate: 0.0, ..extended(3) };
    driver.open_extended(none_yet);
    assert_eq!(driver.rates(), [], "no devices, no hash rate");
    assert_eq!(driver.connection.hash_rate(driver.now), None, "nothing is known yet");
    driver.send(CloseChannel { channel_id: first.channel, reason_code: String::new() });
    assert_eq!(driver.rates(), [(first.channel, 0.0)]);
    driver.close();
    assert_eq!(driver.rates(), [(second.channel, 0.0)]);
    assert!(driver.registry.held.is_empty());
}

#[test]
fn requests_wait_for_work_and_are_answered_in_order() {
    let mut driver = Driver::set_up(settings(), 0);
    for request_id in 1..4 {
        assert_eq!(driver.send(extended(request_id)), []);
    }
    assert_eq!(driver.wait(seconds(19)), []);
    let answers = driver.work(&Source::new().job(driver.now));
    let opened: Vec<_> = answers
        .iter()
        .filter_map(|message| match message {
            Message::OpenExtendedMiningChannelSuccess(success) => Some(success.request_id.0),
            _ => None,
        })
        .collect();
    assert_eq!(opened, [1, 2, 3]);
    assert_eq!(answers.len(), 9, "each with a future job and its prev hash");
    assert_eq!(driver.wait(seconds(100)), []);
    assert!(driver.closed.is_none());
}

#[test]
fn requests_without_work_are_refused_in_time() {
    let mut driver = Driver::set_up(settings(), 0);
    driver.send(extended(1));
    driver.wait(seconds(5));
    driver.send(standard(2));
    assert_eq!(driver.wait(seconds(15)), [refused(1, "no-work-available")]);
    assert_eq!(driver.wait(seconds(5)), [refused(2, "no-work-available")]);
    assert_eq!(driver.registry.held.len(), 2);
    // The next frame gives back what they held.
    driver.send(extended(3));
    assert_eq!(driver.registry.held.len(), 1);
    driver.close();
    assert!(driver.registry.held.is_empty());
}

#[test]
fn who_asks_again_and_again_while_there_is_no_work_is_not_to_blame() {
    let mut driver = Driver::set_up(settings(), 0);
    for request_id in 1..10 {
        driver.send(extended(request_id));
        assert_eq!(driver.wait(seconds(20)), [refused(request_id, "no-work-available")]);
        assert!(driver.closed.is_none(), "after {request_id} requests: {:?}", driver.closed);
    }
    driver.wait(seconds(59));
    assert!(driver.closed.is_none());
    driver.wait(seconds(1));
    assert_eq!(driver.closed.as_ref().expect("it asks no more").fault, Fault::Downstream);
}

#[test]
fn waiting_requests_are_bounded() {
    let mut driver = Driver::set_up(settings(), 0);
    for request_id in 0..MAX_PENDING_OPENS as u32 {
        assert_eq!(driver.send(extended(request_id)), []);
    }
    for _ in 0..3 {
        assert_eq!(driver.send(extended(1)), [refused(1, "channel-capacity-exhausted")]);
    }
    assert_eq!(driver.registry.held.len(), MAX_PENDING_OPENS);
    assert_eq!(driver.notices(), 1);
    driver.close();
    assert!(driver.registry.held.is_empty());
}

#[test]
fn open_channels_are_bounded() {
    let mut driver = Driver::set_up(settings(), REQUIRES_STANDARD_JOBS);
    driver.work(&Source::new().job(driver.now));
    let mut ids = HashSet::new();
    for request_id in 0..MAX_CHANNELS as u32 {
        let (opened, _) = driver.open_standard(standard(request_id));
        assert!(ids.insert(opened.channel), "{} was given twice", opened.channel);
        assert_ne!(opened.channel, opened.group);
    }
    assert_eq!(driver.send(standard(1)), [refused(1, "channel-capacity-exhausted")]);
    driver.close();
    assert!(driver.registry.held.is_empty());
}

#[test]
fn an_exhausted_extranonce_space_refuses_the_newcomer_only() {
    let mut driver = Driver::set_up(settings(), 0);
    driver.registry.limit = Some(1);
    driver.work(&Source::new().job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    assert_eq!(driver.send(extended(2)), [refused(2, "channel-capacity-exhausted")]);
    assert_eq!((driver.connection.channel_count(), driver.notices()), (1, 1));
    driver.send(CloseChannel { channel_id: opened.channel, reason_code: String::new() });
    driver.open_extended(extended(3));
}

#[test]
fn a_downstream_that_needs_version_rolling_is_sent_elsewhere_when_the_upstream_forbids_it() {
    let mut driver = Driver::set_up(settings(), REQUIRES_VERSION_ROLLING);
    let mut source = Source::new();
    driver.work(&source.job(driver.now));
    driver.open_extended(extended(1));
    source.version_rolling_allowed = false;
    assert_eq!(driver.work(&source.job(driver.now)), []);
    assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Upstream);
    driver.close();
    assert!(driver.registry.held.is_empty());

    let mut driver = Driver::set_up(settings(), REQUIRES_VERSION_ROLLING);
    driver.send(extended(1));
    assert_eq!(driver.work(&source.job(driver.now)), []);
    assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Upstream);
    driver.close();
    assert!(driver.registry.held.is_empty());
}

fn upstream_events(driver: &mut Driver) -> Vec<String> {
    let events = std::mem::take(&mut driver.events);
    let text = |event| match event {
        Event::OpenUpstream { channel, user_identity, hash_rate } => {
            Some(format!("open {channel} {user_identity} {}", hash_rate.0))
        }
        Event::CloseUpstream { channel } => Some(format!("close {channel}")),
        Event::HashRate { .. } => panic!("opening said it"),
        _ => None,
    };
    events.into_iter().filter_map(text).collect()
}

#[test]
fn with_a_channel_per_device_each_waits_for_its_own_work() {
    let mut driver = Driver::set_up(per_device(), 0);
    for request_id in [1, 2] {
        let request = OpenExtendedMiningChannel { nominal_hash_rate: 4096.0, ..extended(request_id) };
        assert_eq!(driver.send(request), []);
    }
    assert_eq!(upstream_events(&mut driver), ["open 2 account.1 4096", "open 4 account.2 4096"]);
    let (mut first, mut second) = (Source::new(), Source::new());
    second.rollable_size = 20;
    let answer = driver.work_of(Some(ChannelId(4)), &second.job(driver.now));
    let Message::OpenExtendedMiningChannelSuccess(success) = answer[0].clone() else { panic!("{answer:?}") };
    let later = Opened::from(success);
    assert_eq!((later.channel, later.request_id.0, later.size), (ChannelId(4), 2, 16));
    let answer = driver.work_of(Some(ChannelId(2)), &first.job(driver.now));
    let Message::OpenExtendedMiningChannelSuccess(success) = answer[0].clone() else { panic!("{answer:?}") };
    let earlier = Opened::from(success);
    assert_eq!(earlier.size, 8);
    assert_ne!(earlier.group, later.group, "they share no jobs");
    // A job of one device is nothing to the other.
    let work = second.block(driver.now);
    let expected = job_messages(&later, ChannelId(4), &work.active().job, true);
    assert_eq!(driver.work_of(Some(ChannelId(4)), &work), expected);
    assert_eq!(driver.work_of(Some(ChannelId(99)), &work), [], "it has gone");

    driver.send(CloseChannel { channel_id: later.group, reason_code: String::new() });
    assert_eq!(upstream_events(&mut driver), ["close 4"]);
    assert_eq!(driver.registry.held.len(), 1);
    driver.send(extended(3));
    driver.close();
    let guess = HashRate::of_shares(difficulty(INITIAL).work(), 8.0).0;
    assert_eq!(
        upstream_events(&mut driver),
        [format!("open 6 account.3 {guess}"), "close 2".into(), "close 6".into()]
    );
    assert!(driver.registry.held.is_empty());
}

#[test]
fn a_devices_request_that_the_upstream_refuses_is_refused_with_its_words() {
    let mut driver = Driver::set_up(per_device(), 0);
    driver.send(extended(1));
    driver.send(extended(2));
    driver.send(extended(3));
    assert_eq!(upstream_events(&mut driver).len(), 3);
    assert_eq!(driver.open_failed(ChannelId(4), "unknown-user"), [refused(2, "unknown-user")]);
    assert_eq!(upstream_events(&mut driver), ["close 4"], "it must not be asked for again");
    assert_eq!(driver.wait(seconds(20)), [1, 3].map(|id| refused(id, "no-work-available")));
    assert_eq!(upstream_events(&mut driver), ["close 2", "close 6"]);
    driver.close();
    assert!(upstream_events(&mut driver).is_empty(), "nothing is left open, and nothing is closed twice");
    assert!(driver.registry.held.is_empty());
}

#[test]
fn an_open_channel_that_the_upstream_closes_ends_and_the_last_one_ends_the_connection() {
    let mut driver = Driver::set_up(per_device(), 0);
    let mut source = Source::new();
    let work = source.job(driver.now);
    for request_id in [1, 2] {
        driver.send(extended(request_id));
        driver.work_of(Some(ChannelId(2 * request_id)), &work);
    }
    assert_eq!(upstream_events(&mut driver).len(), 2);
    let answer = driver.open_failed(ChannelId(4), "gone");
    let close = CloseChannel { channel_id: ChannelId(4), reason_code: "upstream-changed".to_owned() };
    assert_eq!(answer, [close.into()]);
    assert!(driver.closed.is_none());
    assert_eq!(upstream_events(&mut driver), ["close 4"]);
    assert_eq!(driver.open_failed(ChannelId(4), "gone"), []);
    assert_eq!(driver.open_failed(ChannelId(2), "gone"), []);
    assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Upstream);
    driver.close();
    assert_eq!(upstream_events(&mut driver), ["close 2"]);
    assert!(driver.registry.held.is_empty());
}

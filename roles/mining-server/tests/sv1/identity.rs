//! What the registry is told of a machine, and when: it decides which device it is.

use std::time::Duration;

use mining_server::Output;
use mining_server::sv1::SV1_CHANNEL;
use stratum::DeviceId;

use crate::support::*;

/// The device that the registry knows first.
const FIRST: DeviceId = DeviceId(40);

#[test]
fn a_machine_is_introduced_once_it_has_said_everything() {
    for lines in [[SUBSCRIBE, AUTHORIZE], [AUTHORIZE, SUBSCRIBE]] {
        let mut rig = Rig::with_work(settings());
        rig.send(lines[0]);
        assert_eq!((rig.connection.device(), rig.registry.introductions.len()), (None, 0));
        rig.send(lines[1]);
        assert_eq!(rig.connection.device(), Some(FIRST));
        let [[worker_name, address, device_id, user_agent]] = &rig.registry.introductions[..] else {
            panic!("it is introduced once: {:?}", rig.registry.introductions);
        };
        assert_eq!(rig.connection.user(), Some(&**worker_name));
        assert_eq!(rig.connection.user_agent(), Some(&**user_agent));
        assert_eq!([address, device_id], ["", ""]);
        // Saying it again is no second machine.
        rig.send(AUTHORIZE);
        rig.send(SUBSCRIBE);
        assert_eq!(rig.registry.introductions.len(), 1);
    }
}

#[test]
fn a_proxy_header_says_where_a_machine_comes_from() {
    let mut rig = Rig::with_work(mining_server::Settings { proxy_protocol: true, ..settings() });
    let all = format!("PROXY TCP4 192.0.2.7 198.51.100.1 12345 3333\r\n{SUBSCRIBE}\n{AUTHORIZE}\n");
    rig.send_bytes(all.as_bytes());
    assert_eq!(rig.registry.introductions[0][1], "192.0.2.7");
}

#[test]
fn a_machine_that_was_taken_for_another_has_its_own_device_for_later_shares() {
    let mut rig = Rig::mining(settings());
    let mine = |rig: &mut Rig| {
        let found = rig.grind(&rig.newest(), rig.exponent());
        rig.submit(&found);
        rig.record().device
    };
    rig.registry.switch = Some(DeviceId(7));
    assert_eq!(mine(&mut rig), Some(FIRST), "what was judged stays what it is");
    assert_eq!(rig.connection.device(), Some(DeviceId(7)));
    assert_eq!(rig.registry.signs, 1);
    rig.job();
    assert_eq!(mine(&mut rig), Some(DeviceId(7)));
    assert_eq!(rig.registry.signs, 1, "not for every share");
    rig.wait(Duration::from_secs(10));
    rig.job();
    assert_eq!(mine(&mut rig), Some(DeviceId(7)));
    assert_eq!(rig.registry.signs, 2);

    let mut out = Output::default();
    assert!(rig.registry.seats.contains(&(SV1_CHANNEL, DeviceId(7))));
    rig.connection.handle_closed(&mut rig.registry, &mut out);
    assert!(rig.registry.seats.is_empty(), "it leaves what it joined");
}

#[test]
fn a_refused_share_is_no_sign_of_life() {
    let mut rig = Rig::mining(settings());
    rig.submit_line(
        r#"{"id":9,"method":"mining.submit","params":["u","ffff","00000000","00000000","00000000"]}"#,
    );
    assert_eq!(rig.registry.signs, 0);
}

#[test]
fn who_never_authorised_has_nothing_to_leave() {
    let mut rig = Rig::with_work(settings());
    rig.send(SUBSCRIBE);
    rig.connection.handle_closed(&mut rig.registry, &mut Output::default());
    assert!(rig.registry.introductions.is_empty() && rig.registry.seats.is_empty());
}

//! Worker names beside shares: asked for, answered, refused, and met with silence.

use mining_proxy::upstream::NEGOTIATION_DEADLINE;
use mining_proxy::{LinkState, UpstreamConfig};
use stratum::DeviceId;
use stratum::sv2::Message;
use stratum::sv2::messages::*;

use super::rig::*;

const REQUEST: ExtensionsRequestId = ExtensionsRequestId(1);

fn asking() -> Rig {
    let mut rig = Rig::with_config(UpstreamConfig { forward_worker_names: true, ..config(true) });
    rig.set_up(0);
    rig
}

fn asked(rig: &Rig) -> usize {
    rig.sent.iter().filter(|message| matches!(message, Message::RequestExtensions(_))).count()
}

fn has_begun(rig: &Rig) -> bool {
    rig.upstream.link() == LinkState::Ready && rig.requests().len() == 1
}

fn accept(rig: &mut Rig) {
    rig.receive(RequestExtensionsSuccess { request_id: REQUEST, supported_extensions: vec![2] });
}

/// Opens the shared channel and gives it a job.
fn mine(rig: &mut Rig) {
    let request = rig.requests()[0].request_id;
    rig.receive(opened(request, CHANNEL));
    rig.receive(job(CHANNEL, 1, None));
    rig.receive(tip(CHANNEL, 1, 1));
    rig.take();
}

/// The name that went with a share of this device.
fn name_with_share(rig: &mut Rig, device: u32) -> Option<String> {
    let (job, now) = (rig.active(), rig.now);
    let mut event = share(&job, device, false, now);
    event.record.device = Some(DeviceId(device));
    rig.upstream.handle_share(event, now, &mut rig.out);
    rig.collect();
    rig.submits().pop().expect("it was forwarded").user_identity
}

#[test]
fn names_go_with_shares_once_the_upstream_has_agreed() {
    let mut rig = asking();
    assert_eq!((rig.upstream.link(), asked(&rig), rig.requests().len()), (LinkState::Negotiating, 1, 0));
    accept(&mut rig);
    assert!(has_begun(&rig));
    mine(&mut rig);
    assert!(rig.upstream.lacks_name_of(DeviceId(1)));
    assert_eq!(name_with_share(&mut rig, 1), None, "nobody has said it yet");
    rig.upstream.note_worker_name(DeviceId(1), "account.rig-one");
    rig.upstream
        .note_worker_name(DeviceId(2), "a name \u{fc} that has no dot and is much longer than it may be");
    assert!(!rig.upstream.lacks_name_of(DeviceId(1)));
    assert_eq!(name_with_share(&mut rig, 1).as_deref(), Some("rig-one"));
    assert_eq!(name_with_share(&mut rig, 2).as_deref(), Some("anamethathasnodotandismuchlonger"));
    // Another connection begins without.
    rig.disconnect();
    rig.take();
    rig.set_up(0);
    assert_eq!(asked(&rig), 1);
    rig.receive(RequestExtensionsError {
        request_id: REQUEST,
        unsupported_extensions: vec![2],
        required_extensions: vec![],
    });
    assert!(has_begun(&rig));
    mine(&mut rig);
    assert!(!rig.upstream.lacks_name_of(DeviceId(3)));
    assert_eq!(name_with_share(&mut rig, 1), None);
}

#[test]
fn an_upstream_that_says_nothing_is_used_without_and_not_asked_again() {
    let mut rig = asking();
    rig.advance(NEGOTIATION_DEADLINE);
    assert!(has_begun(&rig));
    assert_eq!(rig.out.notices.len(), 1, "{:?}", rig.out.notices);
    mine(&mut rig);
    accept(&mut rig);
    assert_eq!(name_with_share(&mut rig, 1), None, "that comes too late");
    rig.disconnect();
    rig.take();
    rig.set_up(0);
    assert!(has_begun(&rig));
    assert_eq!(asked(&rig), 0);
}

#[test]
fn an_upstream_that_leaves_when_it_is_asked_is_not_asked_again() {
    let mut rig = asking();
    rig.disconnect();
    rig.take();
    rig.set_up(0);
    assert!(has_begun(&rig));
    assert_eq!(asked(&rig), 0);
}

#[test]
fn an_upstream_that_insists_on_something_unknown_is_given_up() {
    let mut rig = asking();
    rig.receive(RequestExtensionsError {
        request_id: REQUEST,
        unsupported_extensions: vec![],
        required_extensions: vec![2, 0x4567],
    });
    assert_eq!(rig.closed(), Some("the upstream requires extension 0x4567, which is not known here"));
}

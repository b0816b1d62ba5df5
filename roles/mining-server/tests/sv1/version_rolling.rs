//! Version rolling (BIP 310), whichever way a miner puts its bits into the version.

use crate::support::*;
use mining_server::record::{RejectReason, Verdict};
use mining_server::{Event, VersionRolling};
use stratum::sv1::client::RolledVersion;

/// A share of the newest job with these bits rolled.
fn rolled(rig: &Rig, mask: u32, bits: u32) -> Found {
    let rolled = Some(RolledVersion { mask, bits });
    rig.grind_where(&rig.newest(), Grind { rolled, ..Grind::default() })
}

/// The same share with `sixth` as its sixth parameter.
fn with_sixth(found: &Found, sixth: u32) -> String {
    found.with_texts(&[
        &hex::encode(found.extranonce2),
        &format!("{:08x}", found.ntime),
        &format!("{:08x}", found.nonce),
        &format!("{sixth:08x}"),
    ])
}

/// What the driver was told of the mask since the last time.
fn told(rig: &mut Rig) -> Vec<VersionRolling> {
    let mut told = Vec::new();
    rig.events.retain(|event| {
        if let Event::VersionRolling(state) = event {
            told.push(*state);
        }
        !matches!(event, Event::VersionRolling(_))
    });
    told
}

fn times_reported(rig: &Rig) -> (usize, usize) {
    let reported = rig.events.iter().filter(|event| matches!(event, Event::RolledOutsideMask)).count();
    (rig.notices().len(), reported)
}

#[test]
fn a_job_version_never_has_bits_that_may_be_rolled() {
    // Bitcoin Core's regtest signals bit 28, which is inside the mask: Mujina drops such jobs.
    for miner in [Rig::rolling as fn(_) -> Rig, Rig::mining] {
        let mut rig = miner(settings());
        rig.source.version = 0x3fff_ffff;
        rig.job();
        assert_eq!(rig.newest().version, 0x2000_1fff);
    }
}

#[test]
fn the_three_readings_of_the_sixth_parameter_agree() {
    let mut rig = Rig::rolling(settings());
    rig.source.version = 0x3000_0000;
    rig.job();
    let bits = 0x0123_4000;
    let found = rolled(&rig, FULL_MASK, bits);
    let version = rig.newest().version;
    let full = version | bits;
    for (reading, sixth) in [
        ("ESP-Miner 2.15: rolled ^ job.version", full ^ version),
        ("cgminer 4.11.1: the bits inside the mask", full & FULL_MASK),
        ("BIP 310: what is put in place of the mask's bits", bits),
        ("the whole version", full),
    ] {
        // The first is accepted and the others are the same share: all have the same hash.
        let code = rig.submit_line(&with_sixth(&found, sixth));
        let record = rig.record();
        assert_eq!(record.version, full, "{reading}");
        assert!(code == 0 || record.verdict == rejected(RejectReason::Duplicate), "{reading}");
    }
}

#[test]
fn six_parameters_with_zeros_are_five() {
    // ESP-Miner 2.15 always sends six, also where nothing was granted.
    for mut rig in [Rig::mining(settings()), Rig::rolling(settings())] {
        let found = rig.grind(&rig.newest(), INITIAL);
        assert_eq!(rig.submit_line(&with_sixth(&found, 0)), 0);
        assert_eq!(rig.record().version, 0x2000_0000);
    }
}

#[test]
fn bits_outside_the_miners_own_mask_are_refused_and_reported_once() {
    for (firmware, mask, bits) in [
        ("outside its own mask, inside ours", "00c00000", 0x0000_2000),
        ("old bmminer", "ffffffff", 0x4000_0000),
        ("old bmminer", "ffffffff", 0x8000_0000),
        ("old bmminer", "ffffffff", 0xc000_0000),
        ("the general purpose bits below the mask", "ffffffff", 0x0000_0020),
    ] {
        let mut rig = Rig::with_work(settings());
        let line = CONFIGURE.replace("ffffffff", mask);
        for line in [line.as_str(), SUBSCRIBE, AUTHORIZE] {
            rig.send(line);
        }
        // A share it is, by the version that the miner hashed.
        for nonce in [0, 1 << 20] {
            let rolled = Some(RolledVersion { mask: bits, bits });
            let found =
                rig.grind_where(&rig.newest(), Grind { rolled, first_nonce: nonce, ..Grind::default() });
            assert_eq!(rig.submit_line(&with_sixth(&found, bits)), 20, "{firmware}");
            let record = rig.record();
            assert_eq!(record.verdict, rejected(RejectReason::BadVersionBits), "{firmware}");
            assert_eq!((record.credited().0, record.difficulty), (0, None), "{firmware}");
        }
        assert_eq!(times_reported(&rig), (1, 1), "{firmware}");
    }
}

#[test]
fn bits_without_configure_are_tried_both_ways() {
    // An S21 behind MiningRigRentals: what it rolls was negotiated elsewhere.
    let mut rig = Rig::mining(settings());
    let found = rolled(&rig, FULL_MASK, 0x2000);
    assert_eq!(rig.submit_line(&with_sixth(&found, 0x2000)), 0);
    assert_eq!(rig.record().version, 0x2000_2000);
    // Others fill the parameter and roll nothing, within the mask and outside it.
    for (sixth, first_nonce) in [(0x4000, 0), (0x4000_0000, 1 << 20), (0xffff_ffff, 1 << 21)] {
        let grind = Grind { extranonce2: [9; 4], first_nonce, ..Grind::default() };
        let found = rig.grind_where(&rig.newest(), grind);
        assert_eq!(rig.submit_line(&with_sixth(&found, sixth)), 0, "{sixth:08x}");
        assert_eq!(rig.record().version, 0x2000_0000, "{sixth:08x}");
        assert_eq!(rig.submit_line(&with_sixth(&found, sixth)), 22, "{sixth:08x}");
        rig.shares();
    }
    // If it is a share neither way, the reason names the bits where they are wrong.
    let grind = Grind { exponent: -32, missing: Some(INITIAL), ..Grind::default() };
    let found = rig.grind_where(&rig.newest(), grind);
    assert_eq!(rig.submit_line(&with_sixth(&found, 0x4000_0000)), 20);
    assert_eq!(rig.record().verdict, rejected(RejectReason::BadVersionBits));
}

#[test]
fn a_job_without_rolling_keeps_its_version_and_takes_the_mask_away_first() {
    let mut rig = Rig::rolling(settings());
    let before = rolled(&rig, FULL_MASK, 0x2000);
    rig.source.version_rolling_allowed = false;
    rig.source.version = 0x3000_0000;
    let lines = rig.job();
    assert_eq!((lines.len(), lines[0].as_str()), (2, set_version_mask(0).as_str()));
    assert_eq!(rig.newest().version, 0x3000_0000);
    // As cgminer 4.11.1 with vmask does: a share of the old mask follows, for its own job.
    assert_eq!(rig.submit(&before), 0);
    assert_eq!(rig.record().version, 0x2000_2000);
    // The job itself takes no bits, in five parameters or in six.
    let plain = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.submit(&plain), 0);
    assert_eq!(rig.record().version, 0x3000_0000);
    assert_eq!(rig.submit_line(&with_sixth(&plain, 0)), 22);
    rig.shares();
    let deaf = rolled(&rig, FULL_MASK, 0x2000);
    assert_eq!(rig.submit(&deaf), 20);
    assert_eq!(rig.record().verdict, rejected(RejectReason::BadVersionBits));
    assert_eq!(times_reported(&rig), (1, 1));
    // A second job of that kind says nothing more; one with rolling gives the mask back.
    assert_eq!(rig.job().len(), 1);
    rig.source.version_rolling_allowed = true;
    let lines = rig.job();
    assert_eq!((lines.len(), lines[0].as_str()), (2, set_version_mask(FULL_MASK).as_str()));
    assert_eq!(rig.newest().version, 0x2000_0000);
    let found = rolled(&rig, FULL_MASK, 0x1000_0000);
    assert_eq!(rig.submit(&found), 0);
}

#[test]
fn a_miner_without_a_mask_hears_nothing_of_masks() {
    let mut rig = Rig::mining(settings());
    rig.source.version_rolling_allowed = false;
    assert_eq!(rig.job().len(), 1);
    rig.source.version_rolling_allowed = true;
    assert_eq!(rig.job().len(), 1);
    assert_eq!(rig.mask, 0);
}

#[test]
fn while_nobody_may_roll_a_miner_is_granted_an_empty_mask_and_later_its_own() {
    // A refusal would make the cgminer family leave.
    let mut rig = Rig::new(settings());
    rig.source.version_rolling_allowed = false;
    rig.job();
    assert_eq!(
        rig.send(CONFIGURE),
        [answer("1", r#"{"version-rolling":true,"version-rolling.mask":"00000000"}"#)]
    );
    rig.send(SUBSCRIBE);
    rig.send(AUTHORIZE);
    assert_eq!(rig.mask, 0);
    rig.source.version_rolling_allowed = true;
    assert_eq!(rig.job()[0], set_version_mask(FULL_MASK));
}

#[test]
fn the_mask_is_sent_once_more_but_not_before_authorize_is_answered() {
    // One firmware needs it; an S21+ of early 2025 drops a pool that sends it sooner.
    let mut rig = Rig::with_work(settings());
    for line in [CONFIGURE, SUBSCRIBE] {
        assert_eq!(rig.send(line).len(), 1);
    }
    let lines = rig.send(AUTHORIZE);
    assert_eq!(lines[..3], [answer("3", "true"), set_difficulty(INITIAL), set_version_mask(FULL_MASK)]);
    assert!(rig.job().iter().all(|line| !line.contains("version_mask")));
}

#[test]
fn a_miner_may_ask_for_another_mask_later() {
    let mut rig = Rig::rolling(settings());
    let line = CONFIGURE.replace("ffffffff", "00c00000");
    assert_eq!(
        rig.send(&line),
        [answer("1", r#"{"version-rolling":true,"version-rolling.mask":"00c00000"}"#)]
    );
    let found = rolled(&rig, 0x00c0_0000, 0x0040_0000);
    assert_eq!(rig.submit(&found), 0);
    assert_eq!(rig.record().verdict, Verdict::Accepted);
}

#[test]
fn the_driver_hears_when_a_miner_gains_or_loses_its_mask() {
    let mut rig = Rig::rolling(settings());
    assert_eq!(told(&mut rig), [VersionRolling::Granted]);
    rig.job();
    assert_eq!(told(&mut rig), [], "nothing changed");
    rig.source.version_rolling_allowed = false;
    rig.job();
    rig.job();
    assert_eq!(told(&mut rig), [VersionRolling::Withheld]);
    rig.source.version_rolling_allowed = true;
    rig.job();
    assert_eq!(told(&mut rig), [VersionRolling::Granted]);
    rig.send(&CONFIGURE.replace("ffffffff", "00001fff"));
    assert_eq!(told(&mut rig), [VersionRolling::NotNegotiated], "it asks for bits that nobody may roll");
}

#[test]
fn a_miner_that_is_granted_an_empty_mask_counts_before_it_can_leave() {
    // The cgminer family reads the answer and goes to its next pool: it never has a job.
    let mut rig = Rig::new(settings());
    rig.source.version_rolling_allowed = false;
    rig.job();
    rig.send(CONFIGURE);
    assert_eq!(told(&mut rig), [VersionRolling::Withheld]);
    let mut rig = Rig::mining(settings());
    rig.source.version_rolling_allowed = false;
    rig.job();
    assert_eq!(told(&mut rig), [], "one without a mask has nothing to lose");
}

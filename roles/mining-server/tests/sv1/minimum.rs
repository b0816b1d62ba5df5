//! A listener's firm minimum, as rental markets ask for it: nobody is given less, and the upstream is told the truth.

use crate::support::*;
use mining_server::Event;
use mining_server::Settings;
use stratum::{HashRate, Target};

/// Easier than what miners start at elsewhere, so that a processor finds shares in no time; and harder than the
/// upstream's target in these tests.
const MINIMUM: i32 = -22;

fn firm() -> Settings {
    let mut settings = settings();
    settings.vardiff.minimum_exponent = MINIMUM;
    settings.vardiff.initial_exponent = MINIMUM;
    settings.minimum_is_firm = true;
    settings
}

/// A miner that has its first job, of an upstream whose target is at 2^`upstream_exponent`.
fn mining_under(settings: Settings, upstream_exponent: i32, authorize: &str) -> Rig {
    let mut rig = Rig::new(settings);
    rig.source.upstream_exponent = upstream_exponent;
    rig.job();
    rig.send(SUBSCRIBE);
    rig.send(authorize);
    rig
}

#[test]
fn nicehash_is_given_what_it_asks_for_first() {
    let mut nicehash = firm();
    nicehash.vardiff.minimum_exponent = 19;
    nicehash.vardiff.initial_exponent = 19;
    for (upstream_exponent, reports) in [(40, 0), (19, 0), (10, 1)] {
        let mut rig = mining_under(nicehash.clone(), upstream_exponent, AUTHORIZE);
        assert_eq!(rig.difficulty, 524_288.0, "{upstream_exponent}");
        assert_eq!(rig.notices().len(), reports, "{upstream_exponent}: {:?}", rig.notices());
        rig.job();
        rig.block();
        assert_eq!(rig.notices().len(), reports, "it is said once");
    }
}

#[test]
fn what_earns_nothing_is_said_with_both_difficulties() {
    let mut settings = firm();
    settings.vardiff.minimum_exponent = 19;
    settings.vardiff.initial_exponent = 19;
    let rig = mining_under(settings, 10, AUTHORIZE);
    let notices = rig.notices();
    assert!(
        notices[0].contains("minimum difficulty of 524288 is above the upstream's of 1024"),
        "{notices:?}"
    );
}

#[test]
fn nothing_that_a_miner_asks_for_undercuts_it() {
    let easier = 2f64.powi(MINIMUM - 5);
    let password = AUTHORIZE.replace("\"x\"", &format!("\"d={easier}\""));
    assert_eq!(mining_under(firm(), UPSTREAM, &password).exponent(), MINIMUM);
    for line in [
        format!(r#"{{"id":4,"method":"mining.suggest_difficulty","params":[{easier}]}}"#),
        format!(
            r#"{{"id":4,"method":"mining.configure","params":[["minimum-difficulty"],{{"minimum-difficulty.value":{easier}}}]}}"#
        ),
    ] {
        for upstream_exponent in [UPSTREAM, MINIMUM - 3] {
            let mut rig = mining_under(firm(), upstream_exponent, AUTHORIZE);
            rig.send(&line);
            rig.job();
            assert_eq!(rig.exponent(), MINIMUM, "{line}");
        }
    }
}

#[test]
fn neither_silence_nor_an_easier_upstream_undercuts_it() {
    let mut fixed = firm();
    fixed.vardiff_enabled = false;
    for (settings, upstream_exponent) in [(firm(), UPSTREAM), (firm(), MINIMUM - 5), (fixed, MINIMUM - 5)] {
        let mut rig = mining_under(settings, upstream_exponent, AUTHORIZE);
        for _ in 0..60 {
            rig.wait(seconds(120));
            rig.job();
            assert_eq!(rig.exponent(), MINIMUM);
        }
    }
}

#[test]
fn elsewhere_the_upstreams_target_is_still_the_hardest() {
    let mut settings = firm();
    settings.minimum_is_firm = false;
    let rig = mining_under(settings, MINIMUM - 3, AUTHORIZE);
    assert_eq!(rig.exponent(), MINIMUM - 3);
    assert_eq!(rig.notices(), [""; 0]);
}

/// The upstream chooses its target by this rate: told too low, it would choose ever easier ones.
#[test]
fn the_hash_rate_is_right_although_the_upstreams_target_is_easier() {
    let mut rig = mining_under(firm(), MINIMUM - 4, AUTHORIZE);
    let mut first_nonce = 0;
    for _ in 0..64 {
        // The wanted rate, at the minimum: no reason to change anything.
        rig.wait(std::time::Duration::from_millis(7500));
        let found =
            rig.grind_where(&rig.newest(), Grind { exponent: MINIMUM, first_nonce, ..Grind::default() });
        first_nonce = found.nonce + 1;
        assert_eq!(rig.submit(&found), 0);
    }
    let work = Target::from_difficulty_exponent(MINIMUM).work();
    let truth = HashRate::of_shares(work, 8.0);
    let told = rig.events.iter().rev().find_map(|event| match event {
        Event::HashRate { rate, .. } => Some(*rate),
        _ => None,
    });
    let ratio = told.expect("a rate was told").0 / truth.0;
    assert!((0.8..1.25).contains(&ratio), "{ratio}");
    rig.job();
    assert_eq!(rig.exponent(), MINIMUM);
}

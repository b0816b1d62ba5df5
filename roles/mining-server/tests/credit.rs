//! What a share is worth: the target that it was judged by, and never more than its hash proves.

#[expect(dead_code, reason = "the tests of SV2 need more of it")]
#[path = "sv2/support.rs"]
mod support;

use mining_server::{Settings, Verdict};
use stratum::Target;
use stratum::vardiff::VardiffConfig;

use support::{Driver, INITIAL, Source, difficulty, extended, find_share, settings};

/// The target of regtest, which every second hash meets.
const REGTEST: u32 = 0x207f_ffff;

/// On test networks blocks are easier than a fast miner's shares: each would otherwise earn what only a share does.
#[test]
fn a_block_that_is_no_share_earns_what_the_network_asked_for() {
    let vardiff = VardiffConfig { initial_exponent: 0, ..settings().vardiff };
    let mut driver = Driver::set_up(Settings { vardiff, ..settings() }, 0);
    let mut source = Source::new();
    source.nbits = REGTEST;
    let work = source.job(driver.now);
    driver.work(&work);
    let (opened, _) = driver.open_extended(extended(1));
    assert!(opened.target <= difficulty(-10), "its shares are harder than a block");
    let network_target = Target::from_compact(REGTEST);
    let block = find_share(&opened, &work.active().job, network_target, 1, 1);
    driver.send(block);
    let shares = driver.shares();
    assert_eq!(shares[0].record.verdict, Verdict::BlockFound);
    assert_eq!(shares[0].record.credited(), network_target.work());
    assert!(shares[0].forward.is_some(), "a block goes out whatever it is worth");
}

#[test]
fn a_block_that_is_a_share_earns_what_shares_do() {
    let mut driver = Driver::set_up(settings(), 0);
    let mut source = Source::new();
    source.nbits = REGTEST;
    let work = source.job(driver.now);
    driver.work(&work);
    let (opened, _) = driver.open_extended(extended(1));
    driver.send(find_share(&opened, &work.active().job, opened.target, 1, 1));
    let shares = driver.shares();
    assert_eq!(shares[0].record.verdict, Verdict::BlockFound);
    assert_eq!(shares[0].record.credited(), difficulty(INITIAL).work());
}

//! The answer to `SetCustomMiningJob`, field by field.

use job_declarator::server::{Claimant, CustomJob, PoolTip, Refusal};
use stratum::sv2::messages::*;
use stratum::{ChannelId, RequestId};
use template::outputs::write_outputs;
use template::{BlockTemplate, Output};

use super::support::*;

const CLAIMANT: Claimant<'_> = Claimant { user_identity: "farm.rig7", extranonce_size: 12 };

fn template() -> BlockTemplate {
    block_template(3, 900_000, [9; 32], &[1, 2, 3])
}

fn message(token: &MiningJobToken, template: &BlockTemplate) -> SetCustomMiningJob {
    let coinbase = coinbase(template);
    SetCustomMiningJob {
        channel_id: ChannelId(2),
        request_id: RequestId(1),
        token: token.clone(),
        version: template.version,
        prev_hash: template.previous_hash,
        min_ntime: template.current_time,
        nbits: template.nbits,
        coinbase_tx_version: coinbase.version,
        coinbase_prefix: coinbase.script_prefix,
        coinbase_tx_input_n_sequence: coinbase.sequence,
        coinbase_tx_outputs: write_outputs(&coinbase.outputs),
        coinbase_tx_locktime: coinbase.lock_time,
        merkle_path: template.merkle_path.clone(),
    }
}

fn check(rig: &mut Rig, claimant: Claimant<'_>, message: &SetCustomMiningJob) -> Result<CustomJob, Refusal> {
    rig.server.check_custom_job(claimant, message, rig.now)
}

fn code(result: Result<CustomJob, Refusal>) -> String {
    result.expect_err("refused").code
}

fn with_known_transactions() -> Rig {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    rig
}

#[test]
fn a_declared_job_is_taken_once() {
    let mut rig = with_known_transactions();
    let token = rig.declared(&template());
    let message = message(&token, &template());
    let job = check(&mut rig, CLAIMANT, &message).expect("taken");
    assert_eq!(job.coinbase, coinbase(&template()).parts());
    assert_eq!((job.payout, job.min_ntime), (template().coinbase_value, 1_700_000_000));
    assert_eq!(job.merkle_path, template().merkle_path);
    assert_eq!(job.declared.map(|declared| declared.transactions.len()), Some(3));
    assert_eq!(code(check(&mut rig, CLAIMANT, &message)), "invalid-mining-job-token");
    let tally = rig.server.tally();
    assert_eq!((tally.custom_jobs, tally.custom_jobs_refused), (1, 1));
}

#[test]
fn another_account_can_neither_use_nor_burn_it() {
    let mut rig = with_known_transactions();
    let token = rig.declared(&template());
    let message = message(&token, &template());
    for user_identity in ["thief.rig7", "", "farm2", "far"] {
        let thief = Claimant { user_identity, ..CLAIMANT };
        assert_eq!(code(check(&mut rig, thief, &message)), "invalid-mining-job-token");
    }
    let other_rig = Claimant { user_identity: "farm.elsewhere.8", ..CLAIMANT };
    assert!(check(&mut rig, other_rig, &message).is_ok());
}

#[test]
fn a_job_that_is_still_looked_at_waits() {
    let mut rig = with_known_transactions();
    let token = rig.allocate("farm");
    assert_eq!(code(check(&mut rig, CLAIMANT, &message(&token, &template()))), "invalid-mining-job-token");
    rig.send(declaration(1, &token, &template()));
    assert_eq!(code(check(&mut rig, CLAIMANT, &message(&token, &template()))), "job-not-yet-validated");
}

/// Every field of the message must be the declared job's, or the tip's.
#[test]
fn every_field_is_checked() {
    type Change = fn(&mut SetCustomMiningJob);
    let cases: [(&str, Change); 13] = [
        ("stale-chain-tip", |job| job.prev_hash = [1; 32]),
        ("invalid-nbits", |job| job.nbits ^= 1),
        ("invalid-min-ntime", |job| job.min_ntime = 1_699_998_999),
        ("invalid-min-ntime", |job| job.min_ntime = 1_700_000_000 + 7_201),
        ("invalid-version", |job| job.version ^= 0x2000),
        ("invalid-coinbase-tx-version", |job| job.coinbase_tx_version = 1),
        ("invalid-coinbase-prefix", |job| job.coinbase_prefix[5] ^= 1),
        ("invalid-coinbase-prefix", |job| job.coinbase_prefix = vec![0; 89]),
        ("invalid-coinbase-tx-input-n-sequence", |job| job.coinbase_tx_input_n_sequence = 0),
        ("invalid-coinbase-tx-outputs", |job| job.coinbase_tx_outputs[1] ^= 1),
        ("invalid-coinbase-tx-outputs", |job| job.coinbase_tx_outputs.truncate(20)),
        ("invalid-coinbase-tx-locktime", |job| job.coinbase_tx_locktime += 1),
        ("invalid-merkle-path", |job| job.merkle_path[0] = [0; 32]),
    ];
    for (expected, change) in cases {
        let mut rig = with_known_transactions();
        let token = rig.declared(&template());
        let mut message = message(&token, &template());
        change(&mut message);
        assert_eq!(code(check(&mut rig, CLAIMANT, &message)), expected);
    }
    let mut rig = with_known_transactions();
    let token = rig.declared(&template());
    let other_channel = Claimant { extranonce_size: 16, ..CLAIMANT };
    assert_eq!(code(check(&mut rig, other_channel, &message(&token, &template()))), "invalid-coinbase-tx");
}

#[test]
fn a_tip_that_moved_makes_the_job_stale() {
    let mut rig = with_known_transactions();
    let token = rig.declared(&template());
    rig.tip(PoolTip::from(&block_template(1, 900_001, [8; 32], &[])));
    assert_eq!(code(check(&mut rig, CLAIMANT, &message(&token, &template()))), "stale-chain-tip");
}

#[test]
fn declared_jobs_end_too() {
    let mut rig = with_known_transactions();
    let token = rig.declared(&template());
    rig.wait(300_000);
    assert_eq!(code(check(&mut rig, CLAIMANT, &message(&token, &template()))), "invalid-mining-job-token");
}

/// Nothing is known but the coinbase, so that is what is looked at.
#[test]
fn in_coinbase_only_mode_the_coinbase_is_evaluated() {
    let mut rig = Rig::set_up(0);
    let token = rig.allocate("farm");
    let job = check(&mut rig, CLAIMANT, &message(&token, &template())).expect("taken");
    assert_eq!(job.payout, template().coinbase_value);
    assert!(job.declared.is_none());

    let with_outputs = |outputs: &[Output]| write_outputs(outputs);
    let good = coinbase(&template()).outputs;
    let mut poor = good.clone();
    poor[0].value = SUBSIDY - 1;
    let mut shared = good.clone();
    shared[0].value -= 1;
    shared.push(Output { value: 1, script: vec![0x52] });
    for outputs in [&poor, &shared, &good[1..].to_vec(), &vec![good[0].clone()]] {
        let token = rig.allocate("farm");
        let message =
            SetCustomMiningJob { coinbase_tx_outputs: with_outputs(outputs), ..message(&token, &template()) };
        assert_eq!(code(check(&mut rig, CLAIMANT, &message)), "invalid-coinbase-tx-outputs");
    }
    let mut reordered = good;
    reordered.reverse();
    reordered.insert(0, Output { value: 0, script: vec![0x6a, 1, 9] });
    let token = rig.allocate("farm");
    let message =
        SetCustomMiningJob { coinbase_tx_outputs: with_outputs(&reordered), ..message(&token, &template()) };
    assert!(check(&mut rig, CLAIMANT, &message).is_ok(), "order and further outputs without value are free");

    let token = rig.allocate("farm");
    let higher = block_template(4, 900_001, [9; 32], &[]);
    assert_eq!(code(check(&mut rig, CLAIMANT, &self::message(&token, &higher))), "invalid-coinbase-prefix");
    let token = rig.allocate("farm");
    let long = SetCustomMiningJob { merkle_path: vec![[0; 32]; 21], ..self::message(&token, &template()) };
    assert_eq!(code(check(&mut rig, CLAIMANT, &long)), "invalid-merkle-path");
}

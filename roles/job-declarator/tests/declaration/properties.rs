//! Random operations on both state machines.

use proptest::prelude::*;

use super::operations::{run_client, run_server};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_the_server(data in prop::collection::vec(any::<u8>(), 0..600)) {
        run_server(&data);
    }

    #[test]
    fn nothing_breaks_the_client(data in prop::collection::vec(any::<u8>(), 0..600)) {
        run_client(&data);
    }
}

/// A fuzzer found these: the mining channel is announced twice on the same terms, which is no new channel.
#[test]
fn the_same_terms_are_the_same_channel() {
    let input = include_bytes!("../../../../fuzz/seeds/job_declarator/same_terms");
    run_client(&input[1..]);
}

/// A fuzzer found these: the pool changes its outputs while more than one job waits for a token.
#[test]
fn the_clock_goes_on_when_a_job_starts_over() {
    let input = include_bytes!("../../../../fuzz/seeds/job_declarator/starts_over");
    run_client(&input[1..]);
}

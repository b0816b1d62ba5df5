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

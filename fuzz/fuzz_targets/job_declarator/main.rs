//! Both state machines of job declaration and the token table, driven by operations: frames and requests of a peer,
//! answers of a node, tips, and time.
//!
//! What must hold is written beside the operations, which the tests of the same state machines run too. The first
//! byte of an input chooses the side.

#![no_main]

#[path = "../../../roles/job-declarator/tests/declaration/operations.rs"]
mod operations;
#[expect(dead_code, reason = "the tests of the same state machines need more of it")]
#[path = "../../../roles/job-declarator/tests/declaration/support.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

use operations::{run_client, run_server};

fuzz_target!(|data: &[u8]| {
    let Some((side, operations)) = data.split_first() else { return };
    if side % 2 == 0 {
        run_server(operations);
    } else {
        run_client(operations);
    }
});

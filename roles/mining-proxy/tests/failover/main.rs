//! Several upstreams in virtual time, with a scripted pool at the other end of each.

#[path = "../upstream/rig.rs"]
#[expect(dead_code, reason = "the rig is another test program's, and this one uses a part of it")]
mod rig;

mod declaring;
mod properties;
mod scripted;
mod stage;

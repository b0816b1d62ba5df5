//! The upstream state machine against a scripted pool, in virtual time.

mod extensions;
mod properties;
mod rig;
mod scripted;

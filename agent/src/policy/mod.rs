//! What decides about a request without touching it: who may pass, how it ended, how many at once.
//!
//! Pure: no clock, no socket. Answers are values that the caller has to use.

pub mod authz;
pub mod classify;
pub mod limit;

//! Picks one endpoint out of a backend's set: the cheaper of two drawn at random.
//!
//! Cost is the peak-EWMA round-trip time × (in flight + 1). A [`Lease`] counts as in flight until
//! it is finished or dropped. For HTTP the round trip ends with the first response frame, for
//! bytes with the connect. Pure: the caller passes the time and the draws.
//! Does not follow endpoint updates (see [`crate::discovery`]) and knows no connections.

mod ewma;
mod p2c;

pub use ewma::{Lease, Load, Time};
pub use p2c::pick;

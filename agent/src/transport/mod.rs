//! Bytes: what carries them, what they are, how they are passed on.
//!
//! [`io`] is the one connection type of the agent, [`detect`] looks at the first bytes and puts
//! them back, [`header`] is the transport header, [`dial`] opens connections with lent sockets,
//! [`copy`] joins two connections. [`connector`] opens connections to an endpoint the way it wants
//! to be reached, [`pool`] keeps those that carry HTTP. Nothing here knows of routes or policies.

pub mod body;
pub mod connector;
pub mod copy;
pub mod counted;
pub mod detect;
pub mod dial;
pub mod exchange;
pub mod exec;
pub mod header;
pub mod headers;
pub mod health;
pub mod io;
pub mod orig_proto;
pub mod pool;
pub mod serve;

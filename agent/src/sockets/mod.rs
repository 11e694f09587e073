//! Sockets that weft-node lends: listeners and dial sockets in the network namespaces of pods.
//!
//! [`borrow`] is the client of weft-node, [`Stock`] keeps a few dial sockets per pod at hand,
//! [`listeners`] accepts. The agent opens no socket of its own towards pods or their peers.

pub mod borrow;
pub mod listeners;
mod options;
mod stock;
mod wire;

pub use borrow::{Borrower, Event, Link, ListenerKind};
pub use stock::{Family, Lender, Stock, StockError};
pub use wire::WireError;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

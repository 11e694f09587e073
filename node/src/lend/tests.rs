//! The lending protocol over real sockets, with a lender that makes loopback sockets.

//! Sockets that weft-node lends.

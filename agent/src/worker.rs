//! Data threads: accept and serve connections.

//! Tables fed by a fake controller over real sockets.

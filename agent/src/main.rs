//! The weft-agent binary.

fn main() {}

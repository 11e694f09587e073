//! Compiles Weft's own protocols; Linkerd's come ready-made in `linkerd2-proxy-api`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // lend.proto names messages of node.proto; they are those that the second step writes. In
    // this order, because the first leaves an empty file for the package it takes from elsewhere.
    let lend = protox::compile(["weft/lend/v1/lend.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .extern_path(".weft.node.v1", "crate::proto::node")
        .compile_fds(lend)?;
    let node = protox::compile(["weft/node/v1/node.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(node)?;
    Ok(())
}

//! Compiles the protocols of the applications that tests, demo and benchmarks run.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=apps/proto");
    let protos = protox::compile(["echo.proto", "vote.proto"], ["apps/proto"])?;
    tonic_prost_build::configure().compile_fds(protos)?;
    Ok(())
}

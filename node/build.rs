//! Places the eBPF object that `cargo xtask build-ebpf` made where `kernel::object` includes it, or
//! an empty stand-in, so that the workspace builds without a BPF toolchain.

use std::{env, fs, io, path::Path};

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts by environment"
)]
fn main() -> io::Result<()> {
    let variable = |name| env::var(name).map_err(io::Error::other);
    let manifest = variable("CARGO_MANIFEST_DIR")?;
    let object = Path::new(&manifest).join("../target/bpf/weft-ebpf");
    let placed = Path::new(&variable("OUT_DIR")?).join("weft-ebpf");
    // A missing file is watched as well: the script runs again once it is there.
    println!("cargo::rerun-if-changed={}", object.display());
    match fs::read(&object) {
        Ok(bytes) => fs::write(placed, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if variable("PROFILE")? == "release" {
                return Err(io::Error::other(
                    "no eBPF object in target/bpf: run `cargo xtask build-ebpf` before a release build",
                ));
            }
            fs::write(placed, [])
        }
        Err(error) => Err(error),
    }
}

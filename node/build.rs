//! Places the eBPF object that `cargo xtask build-ebpf` made where `kernel::object` includes it, or
//! an empty stand-in, so that the workspace builds without a BPF toolchain.

use std::{env, fs, io, path::Path};

/// The map that programs with a log have.
const LOG_MAP: &[u8] = b"AYA_LOGS";

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts by environment"
)]
fn main() -> io::Result<()> {
    let variable = |name| env::var(name).map_err(io::Error::other);
    let manifest = variable("CARGO_MANIFEST_DIR")?;
    let object = Path::new(&manifest).join("../target/bpf/weft-ebpf");
    let placed = Path::new(&variable("OUT_DIR")?).join("weft-ebpf");
    let is_release = variable("PROFILE")? == "release";
    let prints_log = env::var_os("CARGO_FEATURE_KERNEL_LOG").is_some();
    // A missing file is watched as well: the script runs again once it is there.
    println!("cargo::rerun-if-changed={}", object.display());
    match fs::read(&object) {
        Ok(bytes) => {
            let writes_log = bytes.windows(LOG_MAP.len()).any(|part| part == LOG_MAP);
            if writes_log && !prints_log {
                if is_release {
                    return Err(io::Error::other(
                        "the eBPF object in target/bpf writes a log: run `cargo xtask build-ebpf`, \
                         or build with the feature `kernel-log` to debug",
                    ));
                }
                println!(
                    "cargo::warning=kernel programs write a log that nobody prints: see the feature kernel-log"
                );
            }
            fs::write(placed, bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if is_release {
                return Err(io::Error::other(
                    "no eBPF object in target/bpf: run `cargo xtask build-ebpf` before a release build",
                ));
            }
            fs::write(placed, [])
        }
        Err(error) => Err(error),
    }
}

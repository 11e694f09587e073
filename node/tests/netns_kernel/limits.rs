//! What is said when the machine does not give what is needed.

use weft_common::MAX_PODS;
use weft_node::kernel::{Guard, ListenerSlot, PodKernel};

use crate::{
    says_hello,
    world::{self, SERVICE4, World},
};

#[test]
fn a_full_map_is_named_and_harms_no_other_pod() {
    let world = World::new("full");
    let full = (1_u64 << 40..)
        .take(100_000)
        .find_map(|cookie| {
            let stranger = PodKernel {
                cookie,
                slot: MAX_PODS - 1,
                uid: "stranger",
                ..world.client.known(Guard::Off)
            };
            world.kernel.add_pod(&stranger).err()
        })
        .expect("an error");
    let text = world::report(&full);
    assert!(text.contains("PODS"), "{text}");
    assert!(full.remedy().contains("full"), "{text}: {}", full.remedy());

    let client = world.client.connect(SERVICE4).unwrap();
    says_hello(&client, &world.client.accept(ListenerSlot::Outbound4));
}

#[test]
fn preflight_without_capabilities_says_which_are_missing() {
    let output = std::process::Command::new("setpriv")
        .args([
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--ambient-caps=-all",
        ])
        .arg(env!("CARGO_BIN_EXE_weft-node"))
        .arg("preflight")
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    let row = table
        .lines()
        .find(|line| line.starts_with("capabilities"))
        .expect("a row about capabilities");
    assert!(row.contains("CAP_BPF"), "{table}");
    assert_eq!(output.status.code(), Some(1), "{table}");
}

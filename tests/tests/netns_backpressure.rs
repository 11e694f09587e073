//! A client that stops reading holds its own transfer up, and nobody's memory.

use anyhow::ensure;
use weft_tests::{
    eventually,
    fixture::{MIRROR, Pair, resident},
    node::binary,
    test_name, world,
};

const STALLED: u64 = 8;
/// Memory that a stalled transfer may cost each agent: windows, buffers, and some for allocators.
const ALLOWED: u64 = 3 << 20;

#[test]
fn stalled_readers_keep_memory_bounded_and_others_served() {
    let mut pair = Pair::build(test_name!()).unwrap();
    let service = pair.start_mirror().unwrap()[0];
    pair.works_soon().unwrap();
    let pids = || {
        let nodes = pair.world.nodes().iter();
        nodes
            .map(|node| node.agent_pid().unwrap())
            .collect::<Vec<_>>()
    };
    let memory = || {
        pids()
            .iter()
            .map(|pid| resident(*pid).unwrap())
            .collect::<Vec<_>>()
    };
    let before = memory();
    let styles = binary(&world::programs().unwrap(), "socket-styles").unwrap();
    let args = ["stall", &service.to_string(), "/large", "--connections"];
    let launch = pair
        .client
        .launch(styles)
        .args(args)
        .arg(STALLED.to_string());
    let mut stalled = pair.client.spawn("stalled", launch.keep_stdin()).unwrap();
    stalled.wait_for("stalled").unwrap();
    let port = MIRROR.to_string();
    let transferred = || {
        let labels = [
            ("pod", "web"),
            ("direction", "inbound"),
            ("target_port", port.as_str()),
        ];
        let node = pair.world.node("n2")?;
        Ok::<_, anyhow::Error>(node.agent_metrics()?.sum("tcp_write_bytes_total", &labels))
    };
    let mut last = -1.0;
    let mut same = 0;
    eventually("the transfers stand still", || {
        let now = transferred()?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        ensure!(same >= 10, "{now} bytes");
        Ok(())
    })
    .unwrap();
    for (before, after) in before.iter().zip(memory()) {
        let grown = after.saturating_sub(*before);
        assert!(grown < STALLED * ALLOWED, "agent grew by {grown} bytes");
    }
    pair.works().unwrap();
    stalled.close_stdin();
}

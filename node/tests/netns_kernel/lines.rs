//! With the feature `kernel-log` and programs of `cargo xtask build-ebpf --log`: each decision is
//! printed.

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use super::world::{PATIENCE, SERVICE4, World};

static PRINTED: Printed = Printed(Mutex::new(Vec::new()));

/// What was printed, in this process.
struct Printed(Mutex<Vec<String>>);

impl Log for Printed {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("{} {}", record.target(), record.args());
        self.0.lock().push(line);
    }

    fn flush(&self) {}
}

/// Whether a line says all of it.
fn is_printed(parts: &[&str]) -> bool {
    let printed = PRINTED.0.lock();
    printed
        .iter()
        .any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn programs_that_log_say_what_they_decided_about() {
    log::set_logger(&PRINTED).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let world = World::new("lines");
    let _client = world.client.connect(SERVICE4).unwrap();
    world
        .kernel
        .clear_listeners(world.server.place.slot)
        .unwrap();
    drop(world.dial(&world.client, "10.211.0.3:8080".parse().unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let expected: [&[&str]; 4] = [
        &[
            "weft_ebpf",
            "capture_connect4 captured ",
            "> [::ffff:10.96.0.10]:80 ",
        ],
        &[
            "steer_outbound ",
            " steered_out ",
            "[::ffff:10.211.0.2]:",
            "> [::ffff:10.96.0.10]:80 ",
        ],
        &[
            "guard_egress ",
            " guard_pass_lent ",
            "[::ffff:10.211.0.2]:",
            "> [::ffff:10.211.0.3]:8080 ",
        ],
        &[
            "steer_inbound ",
            " slot_empty_in ",
            "[::ffff:10.211.0.2]:",
            "> [::ffff:10.211.0.3]:8080 ",
        ],
    ];
    let cookie = format!("cookie {}", world.client.cookie);
    runtime.block_on(async {
        let mut lines = world.kernel.lines().unwrap();
        let printed = async {
            while !expected.iter().all(|parts| is_printed(parts)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = lines.print() => panic!("{ended:?}"),
            waited = tokio::time::timeout(PATIENCE, printed) => waited.unwrap(),
        }
    });
    assert!(is_printed(&["capture_connect4 captured", &cookie]));
}

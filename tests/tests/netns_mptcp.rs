//! Clients that speak Multipath TCP, as Go programs increasingly do.

use weft_tests::{
    capture::Capture,
    fixture::{MIRROR, Pair, socket_styles},
    test_name,
};

#[test]
fn a_multipath_client_is_captured_with_all_its_subflows() {
    let mut pair = Pair::build(test_name!()).unwrap();
    let services = pair.start_mirror().unwrap();
    pair.works_soon().unwrap();
    let capture = Capture::between_nodes(&pair.world, "mptcp").unwrap();
    for target in services {
        let row = &socket_styles(&pair.client, target, &["mptcp"]).unwrap()[0];
        assert_eq!(row["ok"], true, "{row}");
        assert_eq!(row["seen"]["peer"], target.to_string(), "{row}");
    }
    let frames = capture.stop().unwrap();
    let clear = frames.plaintext_streams();
    let clear: Vec<_> = clear
        .iter()
        .filter(|stream| stream.to.port() == MIRROR)
        .collect();
    assert!(clear.is_empty(), "{clear:?}");
    let stray: Vec<_> = frames
        .connection_attempts()
        .into_iter()
        .filter(|(_, to)| to.ip() == pair.service[0].ip())
        .collect();
    assert!(
        stray.is_empty(),
        "subflows to the virtual address: {stray:?}"
    );
}

//! Agents come and go under load: crash, orderly restart, a second generation beside the first.

use weft_tests::{demo::faults::judge_crash, fixture::Pair, hammer::Hammer, test_name};

#[test]
fn a_crash_of_an_agent_loses_no_connection_attempt() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let load = Hammer::start(&pair.client, "load", pair.service[0], &[]).unwrap();
    load.more(50).unwrap();
    let mut kills = 0;
    for _round in 0..2 {
        for node in pair.world.nodes() {
            node.kill_agent();
            kills += 1;
            node.start_agent().unwrap();
            load.more(100).unwrap();
        }
    }
    let report = load.stop().unwrap();
    judge_crash(&report, kills).unwrap();
}

#[test]
fn an_upgrade_of_the_agents_fails_no_request() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let new = Hammer::start(&pair.client, "new", pair.service[0], &[]).unwrap();
    let kept = Hammer::start(&pair.client, "kept", pair.service[0], &["--keep"]).unwrap();
    for _round in 0..2 {
        for node in pair.world.nodes() {
            new.more(50).unwrap();
            node.replace_agent().unwrap();
            new.more(100).unwrap();
            kept.more(100).unwrap();
        }
    }
    new.stop_without_failure().unwrap();
    kept.stop_without_failure().unwrap();
    pair.works().unwrap();
}

#[test]
fn an_orderly_restart_of_an_agent_fails_no_request() {
    let pair = Pair::build(test_name!()).unwrap();
    pair.works_soon().unwrap();
    let load = Hammer::start(&pair.client, "load", pair.service[0], &[]).unwrap();
    load.more(50).unwrap();
    for node in pair.world.nodes() {
        assert!(
            node.stop_agent(),
            "agent on {} had to be killed",
            node.name()
        );
        node.start_agent().unwrap();
        load.more(100).unwrap();
    }
    load.stop_without_failure().unwrap();
}

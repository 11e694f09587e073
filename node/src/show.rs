//! Tables for people: preflight and status.

use std::{fmt::Write as _, time::SystemTime};

use crate::{
    cni::protocol::NodeStatus,
    kernel::probe::{Check, Outcome},
    pods::status::{PodStatus, Standing},
};

/// The table of `weft-node preflight`.
pub fn preflight(checks: &[Check]) -> String {
    let mark = |outcome| match outcome {
        Outcome::Ok => "ok",
        Outcome::Warn => "warn",
        Outcome::Missing => "MISSING",
    };
    let rows = checks.iter().map(|check| {
        vec![
            check.name.to_owned(),
            mark(check.outcome).to_owned(),
            check.found.clone(),
            check.remedy.clone(),
        ]
    });
    let mut text = table(&["CHECK", "", "FOUND", "REMEDY"], rows);
    let count = |outcome| {
        checks
            .iter()
            .filter(|check| check.outcome == outcome)
            .count()
    };
    let (missing, warnings) = (count(Outcome::Missing), count(Outcome::Warn));
    let verdict = match (missing, warnings) {
        (0, 0) => "Weft can run here.".to_owned(),
        (0, warnings) => format!("Weft can run here, with {warnings} restriction(s)."),
        (missing, _) => format!("Weft cannot run here: {missing} required thing(s) missing."),
    };
    text.push('\n');
    text.push_str(&verdict);
    text.push('\n');
    text
}

/// The table of `weft-node status`.
pub fn status(status: &NodeStatus) -> String {
    let connected = if status.controller_connected {
        "connected"
    } else {
        "away (what it said last stays in force)"
    };
    let mut text = format!("node {}, controller {connected}\n", status.node);
    for agent in &status.agents {
        let state = match (agent.draining, agent.serving) {
            (true, _) => "draining",
            (false, true) => "serving",
            (false, false) => "starting",
        };
        // Writing to a String does not fail.
        writeln!(text, "agent generation {}: {state}", agent.generation).ok();
    }
    if status.agents.is_empty() {
        text.push_str("no agent is connected: connections of meshed pods wait\n");
    }
    text.push('\n');
    let rows = status.pods.iter().map(row);
    text.push_str(&table(
        &[
            "NAMESPACE",
            "POD",
            "STATE",
            "GUARD",
            "LISTENERS",
            "LEGACY",
            "SINCE",
            "NOTE",
        ],
        rows,
    ));
    text
}

fn row(pod: &PodStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if !pod.reason.is_empty() && pod.standing != Standing::Unmeshed {
        notes.push(pod.reason.clone());
    }
    if !pod.faults.is_empty() {
        notes.push(format!("repaired: {}", pod.faults.join(", ")));
    }
    if pod.foreign_rules > 0 {
        notes.push(format!(
            "{} routing rule(s) of others come before ours",
            pod.foreign_rules
        ));
    }
    let is_enrolled = pod.cookie.is_some();
    let since = pod
        .since
        .and_then(|since| SystemTime::now().duration_since(since).ok());
    vec![
        pod.namespace.clone(),
        pod.name.clone(),
        pod.standing.name().to_owned(),
        pod.guard.clone(),
        if is_enrolled {
            pod.listeners.len().to_string()
        } else {
            String::new()
        },
        if is_enrolled {
            pod.legacy_connections.to_string()
        } else {
            String::new()
        },
        since.map(|age| age_text(age.as_secs())).unwrap_or_default(),
        notes.join("; "),
    ]
}

fn age_text(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> =
        std::iter::once(heads.iter().map(|head| (*head).to_owned()).collect())
            .chain(rows)
            .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preflight_says_what_is_missing_and_what_to_do() {
        let checks = [
            Check {
                name: "cgroup v2",
                outcome: Outcome::Ok,
                found: "/sys/fs/cgroup".to_owned(),
                remedy: String::new(),
            },
            Check {
                name: "bpffs",
                outcome: Outcome::Missing,
                found: "not mounted".to_owned(),
                remedy: "mount -t bpf bpf /sys/fs/bpf".to_owned(),
            },
        ];
        assert_eq!(
            preflight(&checks),
            "CHECK               FOUND           REMEDY\n\
             cgroup v2  ok       /sys/fs/cgroup\n\
             bpffs      MISSING  not mounted     mount -t bpf bpf /sys/fs/bpf\n\
             \n\
             Weft cannot run here: 1 required thing(s) missing.\n"
        );
    }

    #[test]
    fn status_shows_why_a_pod_is_not_meshed() {
        let pod = PodStatus {
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
            standing: Standing::Skipped,
            reason: "hostNetwork".to_owned(),
            ..PodStatus::default()
        };
        let text = status(&NodeStatus {
            node: "n1".to_owned(),
            pods: vec![pod],
            ..NodeStatus::default()
        });
        assert!(text.starts_with("node n1, controller away"), "{text}");
        assert!(
            text.contains("skipped") && text.contains("hostNetwork"),
            "{text}"
        );
    }
}

//! The live summary: what each pod did since the last look, from the agents' node-wide metrics.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::metrics::{Scrape, quantile};

/// A scrape and when it was made.
#[derive(Debug)]
pub struct Look {
    at: Instant,
    scrape: Scrape,
}

/// What one pod did in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Pod.
    pub pod: String,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// Responses per second.
    pub rate: f64,
    /// Share of responses that were successes; none without responses.
    pub success: Option<f64>,
    /// Half of the responses came within so many milliseconds.
    pub p50: Option<f64>,
    /// 99 of 100 did.
    pub p99: Option<f64>,
    /// Share of responses, or else of open connections, that went over mutual TLS.
    pub tls: Option<f64>,
    /// Open TCP connections.
    pub connections: f64,
}

impl Look {
    /// A scrape made now.
    pub fn now(scrape: Scrape) -> Self {
        Self {
            at: Instant::now(),
            scrape,
        }
    }

    /// What happened between `before` and this look: one row per pod and direction with traffic.
    pub fn since(&self, before: &Self) -> Vec<Row> {
        let seconds = (self.at - before.at).as_secs_f64().max(0.001);
        let samples = self.scrape.samples.iter();
        let pods: BTreeSet<&str> = samples
            .map(|sample| sample.label("pod"))
            .filter(|pod| !pod.is_empty())
            .collect();
        let rows = pods.iter().flat_map(|pod| {
            ["inbound", "outbound"].map(|direction| self.row(before, seconds, pod, direction))
        });
        rows.filter(|row| row.rate > 0.0 || row.connections > 0.0)
            .collect()
    }

    fn row(&self, before: &Self, seconds: f64, pod: &str, direction: &'static str) -> Row {
        let delta = |more: &[(&str, &str)]| {
            let labels = [&[("pod", pod), ("direction", direction)], more].concat();
            let sum = |look: &Self| look.scrape.sum("response_total", &labels);
            (sum(self) - sum(before)).max(0.0)
        };
        let all = delta(&[]);
        let share = |part: f64| (all > 0.0).then(|| part / all);
        let buckets = self.bucket_delta(before, pod, direction);
        let peer = if direction == "inbound" { "src" } else { "dst" };
        let labels = [("pod", pod), ("direction", direction), ("peer", peer)];
        let connections = self.scrape.sum("tcp_open_connections", &labels);
        let secured = [&labels[..], &[("tls", "true")]].concat();
        let secured = self.scrape.sum("tcp_open_connections", &secured);
        let by_connection = (connections > 0.0).then(|| secured / connections);
        Row {
            pod: pod.to_owned(),
            direction,
            rate: all / seconds,
            success: share(delta(&[("classification", "success")])),
            p50: quantile(&buckets, 0.5),
            p99: quantile(&buckets, 0.99),
            tls: share(delta(&[("tls", "true")])).or(by_connection),
            connections,
        }
    }

    fn bucket_delta(&self, before: &Self, pod: &str, direction: &str) -> Vec<(f64, f64)> {
        let labels = [("pod", pod), ("direction", direction)];
        let of = |look: &Self| look.scrape.buckets("response_latency_ms_bucket", &labels);
        let earlier = of(before);
        let known = |bound: f64| {
            let mut found = earlier.iter();
            found
                .find(|(other, _)| *other == bound)
                .map_or(0.0, |(_, count)| *count)
        };
        of(self)
            .into_iter()
            .map(|(bound, count)| (bound, (count - known(bound)).max(0.0)))
            .collect()
    }
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<14}{:<10}{:>8}{:>10}{:>9}{:>9}{:>7}{:>7}\n",
        "POD", "DIRECTION", "RPS", "SUCCESS", "P50", "P99", "TLS", "CONNS"
    );
    let percent =
        |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.0}%", share * 100.0));
    let time = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.1}ms"));
    for row in rows {
        text.push_str(&format!(
            "{:<14}{:<10}{:>8.1}{:>10}{:>9}{:>9}{:>7}{:>7}\n",
            row.pod,
            row.direction,
            row.rate,
            percent(row.success),
            time(row.p50),
            time(row.p99),
            percent(row.tls),
            row.connections,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn look(at: Instant, good: u64, bad: u64) -> Look {
        let text = format!(
            "response_total{{pod=\"web\",direction=\"inbound\",tls=\"true\",classification=\"success\"}} {good}\n\
             response_total{{pod=\"web\",direction=\"inbound\",tls=\"no_identity\",classification=\"failure\"}} {bad}\n\
             response_latency_ms_bucket{{pod=\"web\",direction=\"inbound\",le=\"1\"}} {good}\n\
             response_latency_ms_bucket{{pod=\"web\",direction=\"inbound\",le=\"+Inf\"}} {good}\n\
             tcp_open_connections{{pod=\"web\",direction=\"inbound\",peer=\"src\",tls=\"true\"}} 2\n"
        );
        Look {
            at,
            scrape: Scrape::parse(&text).unwrap(),
        }
    }

    #[test]
    fn rows_are_made_of_what_changed() {
        let start = Instant::now();
        let before = look(start, 10, 10);
        let after = look(start + Duration::from_secs(2), 25, 15);
        let rows = after.since(&before);
        let expected = Row {
            pod: "web".to_owned(),
            direction: "inbound",
            rate: 10.0,
            success: Some(0.75),
            p50: Some(0.5),
            p99: Some(0.99),
            tls: Some(0.75),
            connections: 2.0,
        };
        assert_eq!(rows, [expected]);
        assert_eq!(table(&rows).lines().count(), 2);
    }
}

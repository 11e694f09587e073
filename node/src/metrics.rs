//! What this daemon counts: `weft_*` families, registered once.

use std::{fmt::Debug, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::lend::AgentStatus;

/// Upper bounds of enrolment times, in seconds: a CNI call has two.
const ENROL_BOUNDS: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FaultLabel {
    fault: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counters and gauges of the daemon.
#[derive(Clone, Debug)]
pub struct Metrics {
    pods: Family<StateLabel, Gauge>,
    enrol_seconds: Histogram,
    enrol_failures: Family<ReasonLabel, Counter>,
    repairs: Family<FaultLabel, Counter>,
    lend_errors: Family<ReasonLabel, Counter>,
    guard_events: Family<ReasonLabel, Counter>,
    legacy: Gauge,
    agents: Family<StateLabel, Gauge>,
    controller_connected: Gauge,
    invalid_pods: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            pods: Family::default(),
            enrol_seconds: Histogram::new(ENROL_BOUNDS),
            enrol_failures: Family::default(),
            repairs: Family::default(),
            lend_errors: Family::default(),
            guard_events: Family::default(),
            legacy: Gauge::default(),
            agents: Family::default(),
            controller_connected: Gauge::default(),
            invalid_pods: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let this = Self::default();
        let registry = registry.sub_registry_with_prefix("weft");
        registry.register(
            "pods",
            "Pods of this node that have a sandbox, by state",
            this.pods.clone(),
        );
        registry.register(
            "enrol_duration_seconds",
            "Time from a pod's turn until its steering was proven",
            this.enrol_seconds.clone(),
        );
        registry.register(
            "enrol_failures",
            "Enrolments that failed, by step",
            this.enrol_failures.clone(),
        );
        registry.register(
            "repairs",
            "Faults of enrolled pods that were found and repaired",
            this.repairs.clone(),
        );
        registry.register(
            "lend_errors",
            "Agents disconnected, by reason",
            this.lend_errors.clone(),
        );
        registry.register(
            "guard_events",
            "Reports of the egress guard that were read; the kernel limits their rate",
            this.guard_events.clone(),
        );
        registry.register(
            "legacy_connections",
            "Connections of enrolled pods from before their enrolment, outside the mesh",
            this.legacy.clone(),
        );
        registry.register(
            "agents",
            "Connected agents, by state: without a serving one, connections of meshed pods wait",
            this.agents.clone(),
        );
        registry.register(
            "controller_connected",
            "Whether the controller's stream of pods is open",
            this.controller_connected.clone(),
        );
        registry.register(
            "invalid_pod_records",
            "Pod records of the controller that were not understood",
            this.invalid_pods.clone(),
        );
        Arc::new(this)
    }

    /// Sets how many pods are in each state.
    pub fn set_pods(&self, states: &[(&'static str, i64)]) {
        for (state, count) in states {
            self.pods.get_or_create(&StateLabel { state }).set(*count);
        }
    }

    /// Records an enrolment that succeeded.
    pub fn enrolled(&self, took: Duration) {
        self.enrol_seconds.observe(took.as_secs_f64());
    }

    /// Counts an enrolment that failed.
    pub fn enrol_failed(&self, reason: &'static str) {
        self.enrol_failures
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// Counts a repair.
    pub fn repaired(&self, fault: &'static str) {
        self.repairs.get_or_create(&FaultLabel { fault }).inc();
    }

    /// Counts an agent that was disconnected.
    pub fn lend_error(&self, reason: &'static str) {
        self.lend_errors
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// Counts a report of the guard.
    pub fn guard_event(&self, reason: &'static str) {
        self.guard_events
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// Sets the number of legacy connections.
    pub fn set_legacy(&self, count: usize) {
        self.legacy.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many agents are in each state.
    pub fn set_agents(&self, agents: &[AgentStatus]) {
        let states = [
            ("draining", agents.iter().filter(|a| a.draining).count()),
            (
                "serving",
                agents.iter().filter(|a| a.serving && !a.draining).count(),
            ),
            (
                "starting",
                agents.iter().filter(|a| !a.serving && !a.draining).count(),
            ),
        ];
        for (state, count) in states {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.agents.get_or_create(&StateLabel { state }).set(count);
        }
    }

    /// Says whether the controller is connected.
    pub fn set_controller_connected(&self, connected: bool) {
        self.controller_connected.set(connected.into());
    }

    /// Counts a record that was not understood.
    pub fn invalid_pod(&self) {
        self.invalid_pods.inc();
    }
}

/// Where the kernel programs' counters are read at every scrape.
pub type KernelCounters = dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync;

/// Shows what the kernel programs count, read at every scrape.
pub struct KernelCollector(Box<KernelCounters>);

impl KernelCollector {
    /// Makes a collector of the given counters.
    pub fn new(read: Box<KernelCounters>) -> Self {
        Self(read)
    }
}

impl Debug for KernelCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelCollector")
    }
}

impl Collector for KernelCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "weft_kernel_decisions",
            "What the kernel programs decided about connections and packets, by reason",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (reason, count) in (self.0)() {
            let labels = ReasonLabel { reason };
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_the_names_that_dashboards_know() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        registry.register_collector(Box::new(KernelCollector::new(Box::new(|| {
            vec![("captured", 3)]
        }))));
        metrics.set_pods(&[("meshed", 2)]);
        metrics.repaired("rule");
        metrics.enrolled(Duration::from_millis(3));
        let text = weft_runtime::admin::render(&registry);
        for line in [
            r#"weft_pods{state="meshed"} 2"#,
            r#"weft_repairs_total{fault="rule"} 1"#,
            r#"weft_enrol_duration_seconds_bucket{le="0.005"} 1"#,
            r#"weft_kernel_decisions_total{reason="captured"} 3"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}

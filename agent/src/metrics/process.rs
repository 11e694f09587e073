//! What the operating system says about this process, and what it was built from.

use std::{
    fmt, fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::tls::crypto;

/// Clock ticks per second in /proc; the same on every architecture Linux runs on today.
const TICKS: f64 = 100.0;

type Labels = Vec<(&'static str, String)>;

/// Registers `process_*`, `proxy_build_info` and `rustls_info`.
pub(super) fn register(registry: &mut Registry) {
    let build = Family::<Labels, Gauge>::default();
    build
        .get_or_create(&vec![
            ("date", String::new()),
            (
                "git_sha",
                option_env!("WEFT_GIT_SHA").unwrap_or("").to_owned(),
            ),
            (
                "profile",
                if cfg!(debug_assertions) {
                    "debug"
                } else {
                    "release"
                }
                .to_owned(),
            ),
            ("vendor", "weft".to_owned()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ])
        .set(1);
    registry.register("proxy_build_info", "Proxy build info", build);
    let rustls = Family::<Labels, Gauge>::default();
    let labels = provider_labels(&crypto::provider());
    rustls.get_or_create(&labels).set(1);
    registry.register("rustls_info", "Proxy TLS info", rustls);
    registry.register_collector(Box::new(Process {
        started: SystemTime::now(),
    }));
}

fn provider_labels(provider: &rustls::crypto::CryptoProvider) -> Labels {
    let list = |names: Vec<String>| names.iter().map(|name| format!("{name},")).collect();
    let suites = provider.cipher_suites.iter();
    let groups = provider.kx_groups.iter();
    vec![
        (
            "tls_suites",
            list(suites.map(|suite| format!("{:?}", suite.suite())).collect()),
        ),
        (
            "tls_kx_groups",
            list(groups.map(|group| format!("{:?}", group.name())).collect()),
        ),
        ("tls_rand", "AwsLcRs".to_owned()),
        ("tls_key_provider", "AwsLcRs".to_owned()),
        ("tls_fips", provider.fips().to_string()),
    ]
}

#[derive(Debug)]
struct Process {
    started: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = SystemTime::now();
        let seconds = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64())
        };
        let (start, uptime) = (seconds(self.started), seconds(now) - seconds(self.started));
        let (clock, bytes) = (Unit::Seconds, Unit::Bytes);
        let mut gauge = |name, help, unit, value: f64| {
            let gauge = ConstGauge::new(value);
            let family = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(family)
        };
        gauge(
            "process_start_time",
            "Time that the process started (in seconds since the UNIX epoch)",
            Some(&clock),
            start,
        )?;
        gauge(
            "process_clock_time",
            "Current system time for this proxy",
            Some(&clock),
            seconds(now),
        )?;
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            for (name, help, unit, field, factor) in [
                (
                    "process_resident_memory",
                    "Resident memory size",
                    Some(&bytes),
                    "VmRSS:",
                    1024.0,
                ),
                (
                    "process_virtual_memory",
                    "Virtual memory size",
                    Some(&bytes),
                    "VmSize:",
                    1024.0,
                ),
                (
                    "process_threads",
                    "Number of OS threads in the process",
                    None,
                    "Threads:",
                    1.0,
                ),
            ] {
                if let Some(value) = field_of(&status, field) {
                    gauge(name, help, unit, value * factor)?;
                }
            }
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            let count = u32::try_from(fds.count()).unwrap_or(u32::MAX);
            gauge(
                "process_open_fds",
                "Number of open file descriptors",
                None,
                count.into(),
            )?;
        }
        if let Ok(limits) = fs::read_to_string("/proc/self/limits")
            && let Some(limit) = field_of(&limits, "Max open files")
        {
            gauge(
                "process_max_fds",
                "Maximum number of open file descriptors",
                None,
                limit,
            )?;
        }
        let mut counter = |name, help, value: f64| {
            let counter = ConstCounter::new(value);
            let kind = counter.metric_type();
            let family = encoder.encode_descriptor(name, help, Some(&clock), kind)?;
            counter.encode(family)
        };
        counter(
            "process_uptime",
            "Total time since the process started (in seconds)",
            uptime,
        )?;
        if let Ok(stat) = fs::read_to_string("/proc/self/stat")
            && let Some(ticks) = cpu_ticks(&stat)
        {
            counter(
                "process_cpu",
                "Total user and system CPU time spent",
                ticks / TICKS,
            )?;
        }
        Ok(())
    }
}

/// The first number behind a field's name.
fn field_of(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time. The process's name, which may hold anything, ends at the last bracket.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n)?.parse::<f64>().ok();
    Some(ticks(11)? + ticks(12)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_ticks(stat), Some(300.0));
        assert_eq!(
            field_of("Name:\tx\nVmRSS:\t  512 kB\n", "VmRSS:"),
            Some(512.0)
        );
        let limits = "Max cpu time  unlimited unlimited seconds\nMax open files  1024  4096 files";
        assert_eq!(field_of(limits, "Max open files"), Some(1024.0));
    }
}

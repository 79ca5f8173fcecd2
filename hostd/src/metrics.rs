//! Samples, and `/metrics` in OpenMetrics text.

mod vms;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use hostd_state::State;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub use vms::VmCounters;

/// What the reply is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds: from a read in memory to a long poll.
const LATENCY_BOUNDS: [f64; 11] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 60.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Debug, Clone)]
struct Latencies;

impl MetricConstructor<Histogram> for Latencies {
    fn new_metric(&self) -> Histogram {
        Histogram::new(LATENCY_BOUNDS)
    }
}

/// All samples of this daemon. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latencies: Family<EndpointLabels, Histogram, Latencies>,
    vms: Family<PhaseLabels, Gauge>,
    revision: Gauge,
    memory_promised: Gauge,
    resident: Gauge,
    connections: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lqx");
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let latencies = Family::new_with_constructor(Latencies);
        let help = "Time from a request's head to its reply's head";
        registry.register_with_unit(
            "http_request_duration",
            help,
            Unit::Seconds,
            latencies.clone(),
        );
        let vms = Family::default();
        registry.register("vms", "VMs by phase", vms.clone());
        let revision = Gauge::default();
        registry.register(
            "revision",
            "The revision this host has applied",
            revision.clone(),
        );
        let memory_promised = Gauge::default();
        let help = "Guest memory promised to VMs that are up";
        registry.register_with_unit(
            "memory_promised",
            help,
            Unit::Bytes,
            memory_promised.clone(),
        );
        let resident = Gauge::default();
        registry.register_with_unit(
            "resident_memory",
            "Memory of this daemon",
            Unit::Bytes,
            resident.clone(),
        );
        let connections = Gauge::default();
        registry.register("http_connections", "Connections open", connections.clone());
        let shared = Shared {
            registry,
            requests,
            latencies,
            vms,
            revision,
            memory_promised,
            resident,
            connections,
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn request(&self, endpoint: &'static str, status: u16, took: Duration) {
        self.shared
            .requests
            .get_or_create(&RequestLabels { endpoint, status })
            .inc();
        self.shared
            .latencies
            .get_or_create(&EndpointLabels { endpoint })
            .observe(took.as_secs_f64());
    }

    /// A connection was opened (1) or closed (-1).
    pub(crate) fn connection(&self, change: i64) {
        self.shared.connections.inc_by(change);
    }

    /// Everything as text, with what is agreed on as it is now, and what the VM processes have counted.
    pub fn text(&self, state: &State, counted: &[VmCounters]) -> Result<String, std::fmt::Error> {
        let shared = &self.shared;
        shared
            .revision
            .set(i64::try_from(state.revision()).unwrap_or(i64::MAX));
        shared.vms.clear();
        for vm in state.vms() {
            let phase = phase_name(vm.phase);
            shared.vms.get_or_create(&PhaseLabels { phase }).inc();
        }
        let promised: u64 = state
            .hosts()
            .map(|host| state.memory_promised(host).bytes().unwrap_or(0))
            .sum();
        shared
            .memory_promised
            .set(i64::try_from(promised).unwrap_or(i64::MAX));
        shared.resident.set(resident_bytes());
        let mut text = String::new();
        encode_registry(&mut text, &shared.registry)?;
        encode_registry(&mut text, &vms::registry(counted))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

fn phase_name(phase: api::vms::VmPhase) -> String {
    match serde_json::to_value(phase) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The second field of `/proc/self/statm` is resident pages.
fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: i64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages.saturating_mul(i64::try_from(rustix::param::page_size()).unwrap_or(4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_units_and_an_end() {
        let metrics = Metrics::default();
        metrics.request("vm_list", 200, Duration::from_millis(3));
        let counted = VmCounters {
            vm: "web".into(),
            counters: [("disk.root.reads_total".to_owned(), 2)].into(),
        };
        let text = metrics.text(&State::default(), &[counted]).unwrap();
        for line in [
            "lqx_http_requests_total{endpoint=\"vm_list\",status=\"200\"} 1",
            "lqx_http_request_duration_seconds_bucket{le=\"0.005\",endpoint=\"vm_list\"} 1",
            "lqx_vm_disk_reads_total{vm=\"web\",disk=\"root\"} 2",
            "lqx_revision 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("lqx_resident_memory_bytes ") && text.ends_with("# EOF\n"));
    }
}

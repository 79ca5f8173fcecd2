//! The counters of VM processes as samples.
//!
//! ```text
//! disk.root.reads_total    vm_disk_reads_total{vm="web",disk="root"}
//! nic.lan.sent_bytes_total vm_nic_sent_bytes_total{vm="web",nic="lan"}
//! vcpu0_io_exits_total     vm_vcpu_io_exits_total{vm="web",vcpu="0"}
//! ```
//! A VM process is not trusted: what is no proper name is left out, and there is an end to how much it may say.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The most counters shown of one VM.
const COUNTERS_MAX: usize = 512;
/// The longest name or label, in bytes.
const NAME_MAX: usize = 64;

/// What one VM process has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmCounters {
    /// The VM's name.
    pub vm: String,
    /// By the names its process gives them.
    pub counters: BTreeMap<String, u64>,
}

type Labels = Vec<(&'static str, String)>;

/// All of them in a registry of their own.
pub(super) fn registry(vms: &[VmCounters]) -> Registry {
    let mut families: BTreeMap<String, Family<Labels, Counter>> = BTreeMap::new();
    for vm in vms {
        let proper = vm
            .counters
            .iter()
            .filter_map(|(name, value)| Some((sample(name)?, value)));
        for ((family, label), value) in proper.take(COUNTERS_MAX) {
            let mut labels = vec![("vm", vm.vm.clone())];
            labels.extend(label);
            families
                .entry(family)
                .or_default()
                .get_or_create(&labels)
                .inc_by(*value);
        }
    }
    let mut registry = Registry::with_prefix("lqx");
    for (family, counters) in families {
        registry.register(
            format!("vm_{family}"),
            "Counted by the VM's process",
            counters,
        );
    }
    registry
}

/// A counter's family, without `_total`, and which device it is about; `None` for what is no counter.
fn sample(name: &str) -> Option<(String, Option<(&'static str, String)>)> {
    let counter = name.strip_suffix("_total")?;
    let (family, label) = if let Some(vcpu) = counter.strip_prefix("vcpu") {
        let (index, what) = vcpu.split_once('_')?;
        (format!("vcpu_{what}"), Some(("vcpu", index.to_owned())))
    } else {
        let parts: Vec<&str> = counter.split('.').collect();
        match parts.as_slice() {
            ["disk", id, what] => (format!("disk_{what}"), Some(("disk", (*id).to_owned()))),
            ["nic", id, what] => (format!("nic_{what}"), Some(("nic", (*id).to_owned()))),
            parts => (parts.join("_"), None),
        }
    };
    let fine = |text: &str, more: &[u8]| {
        (1..=NAME_MAX).contains(&text.len())
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte)
            })
    };
    let labelled = label.as_ref().is_none_or(|(_, value)| fine(value, b"-"));
    (fine(&family, b"_") && labelled).then_some((family, label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn devices_become_labels_and_nonsense_is_left_out() {
        let counters = [
            ("disk.root.reads_total", 7),
            ("disk.root.guest_errors_total", 2),
            ("nic.lan.sent_bytes_total", 1500),
            ("vcpu0_io_exits_total", 3),
            ("rng.guest_errors_total", 1),
            ("start_to_first_instruction_us", 9),
            ("disk.\"}\n evil.reads_total", 1),
            ("Shouting_total", 1),
            ("_total", 1),
        ];
        let vm = VmCounters {
            vm: "web".into(),
            counters: counters
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        };
        let mut text = String::new();
        encode(&mut text, &registry(&[vm])).unwrap();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "lqx_vm_disk_guest_errors_total{vm=\"web\",disk=\"root\"} 2",
                "lqx_vm_disk_reads_total{vm=\"web\",disk=\"root\"} 7",
                "lqx_vm_nic_sent_bytes_total{vm=\"web\",nic=\"lan\"} 1500",
                "lqx_vm_rng_guest_errors_total{vm=\"web\"} 1",
                "lqx_vm_vcpu_io_exits_total{vm=\"web\",vcpu=\"0\"} 3",
            ]
        );
    }

    #[test]
    fn a_process_that_counts_without_end_is_cut_short() {
        let counters = (0..10_000).map(|n| (format!("c{n}_total"), 1)).collect();
        let vm = VmCounters {
            vm: "loud".into(),
            counters,
        };
        let mut text = String::new();
        encode(&mut text, &registry(&[vm])).unwrap();
        assert_eq!(text.matches("vm=\"loud\"").count(), COUNTERS_MAX);
    }
}

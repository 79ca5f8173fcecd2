//! What the guest is told about its CPU: what KVM supports, less what we do not offer, plus who this vCPU is.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Which vCPU is described, and among how many.
#[derive(Debug, Clone, Copy)]
pub struct VcpuIdentity {
    /// APIC id, counted from 0.
    pub id: u8,
    /// All vCPUs: one package of single-threaded cores.
    pub vcpus: u8,
    /// Whether KVM emulates the TSC-deadline mode of the local APIC (`KVM_CAP_TSC_DEADLINE_TIMER`), which it does not
    /// list by itself.
    pub tsc_deadline: bool,
}

/// Turns the host's `KVM_GET_SUPPORTED_CPUID` into this vCPU's.
///
/// Not offered: nested virtualization (VMX, SVM), performance counters, SGX, MONITOR/MWAIT.
pub fn filter(cpuid: &mut CpuId, vcpu: VcpuIdentity) {
    for entry in cpuid.as_mut_slice() {
        filter_entry(entry, vcpu);
    }
}

fn filter_entry(entry: &mut kvm_cpuid_entry2, vcpu: VcpuIdentity) {
    let id = u32::from(vcpu.id);
    let count = u32::from(vcpu.vcpus);
    // Bits of an APIC id that number the cores of the package.
    let core_bits = count.next_power_of_two().trailing_zeros();
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | (id << 24) | (count << 16);
            // MONITOR, VMX, EST, TM2, PDCM.
            entry.ecx = clear(entry.ecx, &[3, 5, 7, 8, 15]) | bit(31);
            entry.ecx = if vcpu.tsc_deadline {
                entry.ecx | bit(24)
            } else {
                clear(entry.ecx, &[24])
            };
            entry.edx = if count > 1 {
                entry.edx | bit(28)
            } else {
                clear(entry.edx, &[28])
            };
        }
        // Deterministic caches: 1 and 2 are a core's own, 3 is the package's.
        0x4 => share_cache(entry, count, true),
        // MONITOR is not offered; of power management only the always running APIC timer (EAX bit 2).
        0x5 => zero(entry),
        0x6 => {
            entry.eax &= bit(2);
            (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
        }
        0x7 if entry.index == 0 => entry.ebx = clear(entry.ebx, &[2]),
        0x7 => {}
        // Performance counters, SGX.
        0xa | 0x12 | 0x8000_000a => zero(entry),
        // Extended topology: one thread per core, then the cores.
        0xb | 0x1f => {
            let (shift, logical, kind) = match entry.index {
                0 => (0, 1, 1),
                1 => (core_bits, count, 2),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = logical;
            entry.ecx = (entry.index & 0xff) | (kind << 8);
            entry.edx = id;
        }
        // SVM, OSVW, IBS, SKINIT, LWP, performance counters of the core, the north bridge and the L2.
        0x8000_0001 => entry.ecx = clear(entry.ecx, &[2, 9, 10, 12, 15, 23, 24, 28]),
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | (count - 1),
        0x8000_001d => share_cache(entry, count, false),
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Says how many vCPUs share a cache; `intel` leaves also carry the number of cores in the package.
fn share_cache(entry: &mut kvm_cpuid_entry2, count: u32, intel: bool) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = (entry.eax >> 5) & 0x7;
    let sharing = if level >= 3 { count - 1 } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
    if intel {
        entry.eax |= (count - 1).min(63) << 26;
    }
}

fn zero(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

fn bit(n: u32) -> u32 {
    1 << n
}

fn clear(value: u32, bits: &[u32]) -> u32 {
    bits.iter().fold(value, |value, n| value & !bit(*n))
}

/// The physical address width of the processor (leaf 0x8000_0008), 36 if it does not say.
pub fn physical_bits(cpuid: &CpuId) -> u8 {
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| (entry.eax & 0xff) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    fn filtered(function: u32, index: u32, id: u8, vcpus: u8) -> kvm_cpuid_entry2 {
        let mut cpuid = CpuId::from_entries(&[entry(function, index)]).unwrap();
        filter(
            &mut cpuid,
            VcpuIdentity {
                id,
                vcpus,
                tsc_deadline: true,
            },
        );
        cpuid.as_slice()[0]
    }

    #[test]
    fn each_vcpu_learns_its_own_apic_id_everywhere() {
        assert_eq!(filtered(1, 0, 3, 4).ebx >> 24, 3);
        assert_eq!(filtered(0xb, 1, 3, 4).edx, 3);
        assert_eq!(filtered(0x1f, 0, 3, 4).edx, 3);
        assert_eq!(filtered(0x8000_001e, 0, 3, 4).eax, 3);
    }

    #[test]
    fn the_hypervisor_shows_and_nested_virtualization_does_not() {
        let leaf = filtered(1, 0, 0, 1);
        assert_eq!(leaf.ecx & bit(31), bit(31));
        assert_eq!(leaf.ecx & bit(5), 0);
        assert_eq!(filtered(0x8000_0001, 0, 0, 1).ecx & bit(2), 0);
    }

    #[test]
    fn topology_is_one_package_of_single_threaded_cores() {
        let threads = filtered(0xb, 0, 0, 6);
        assert_eq!((threads.eax, threads.ebx, threads.ecx >> 8), (0, 1, 1));
        let cores = filtered(0xb, 1, 0, 6);
        assert_eq!((cores.eax, cores.ebx, cores.ecx >> 8), (3, 6, 2));
        assert_eq!(filtered(0xb, 2, 0, 6).ebx, 0);
        assert_eq!(filtered(0x8000_0008, 0, 0, 6).ecx & 0xf0ff, 0x3005);
        assert_eq!(filtered(1, 0, 0, 1).edx & bit(28), 0);
        assert_eq!(filtered(1, 0, 0, 2).edx & bit(28), bit(28));
    }
}

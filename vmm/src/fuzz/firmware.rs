//! What a guest writes to the devices that are there for its firmware.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::targets::Input;
use crate::arch::x86_64::acpi::PciPlaces;
use crate::arch::x86_64::firmware::config_device;
use crate::bus::BusDevice;
use crate::config::{Boot, VmmConfig};
use crate::devices::flash::fake::{Act, SIZE, chip};
use crate::devices::fw_cfg::{FwCfgDma, FwCfgPorts};
use crate::machine::{MachinePlan, RamRange};
use crate::metrics::Registry;

/// The flash chip's commands.
const COMMANDS: [u8; 8] = [0xff, 0x10, 0x40, 0x20, 0xd0, 0x50, 0x70, 0x90];

pub(super) fn flash_chip(data: &[u8]) {
    flash_outcome(data);
}

/// The chip is written to while its volume fails now and then; returns bytes programmed, blocks erased, failures.
pub(super) fn flash_outcome(data: &[u8]) -> [u64; 3] {
    let (mut chip, around, metrics) = chip();
    // The first failure is told; not in every round.
    let failures = metrics.counter("flash_volume_errors_total");
    failures.count();
    let mut input = Input(data);
    while !input.is_empty() {
        let (offset, kind, value) = (u64::from(input.u16()) % SIZE, input.u8(), input.u8());
        let len = (1 << (kind % 4)).min((SIZE - offset) as usize);
        let known = COMMANDS[usize::from(value) % COMMANDS.len()];
        match kind >> 2 & 7 {
            0 => chip.read(offset, &mut [0; 8][..len]),
            1 => around.is_broken.store(value & 3 == 0, Ordering::Relaxed),
            2 => chip.write(offset, &[value; 8][..len]),
            _ => chip.write(offset, &[known]),
        }
    }
    // Back to its array, whatever it waits for; the volume works again.
    around.is_broken.store(false, Ordering::Relaxed);
    chip.write(0, &[0xff]);
    chip.write(0, &[0xff]);
    let mut array = vec![0; SIZE as usize];
    chip.read(0, &mut array);
    let (mut volume, mut is_open) = (vec![0; SIZE as usize], true);
    for act in around.acts.lock().unwrap().iter() {
        match act {
            Act::Open(open) => is_open = *open,
            Act::Write(offset, bytes) => {
                volume[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }
    assert!(is_open, "the array is shown by its memory slot");
    assert!(array == volume, "the volume has what the guest sees");
    let counter = |name: &str| metrics.read()[&format!("flash_{name}_total")];
    [
        counter("programmed_bytes"),
        counter("erased_blocks"),
        failures.get() - 1,
    ]
}

pub(super) fn configuration(data: &[u8]) {
    configuration_outcome(data);
}

fn plan() -> MachinePlan {
    let boot = Boot::Firmware {
        code_fd: 10,
        vars_fd: 11,
    };
    MachinePlan::new(VmmConfig {
        name: "fuzz".into(),
        memory_mib: 16,
        vcpus: 2,
        boot,
        disks: vec![],
        nics: vec![],
        rng: false,
        kvm_fd: 3,
        control_fd: 4,
        serial_fd: 5,
        status_fd: 6,
    })
    .unwrap()
}

/// The configuration device with PCI anywhere; returns requests that were served, and refused.
pub(super) fn configuration_outcome(data: &[u8]) -> [u64; 2] {
    let ram = RamRange {
        start: 0,
        size: 1 << 20,
    };
    let memory = Arc::new(crate::memory::create(&[ram]).unwrap());
    let (metrics, plan) = (Registry::default(), plan());
    let mut input = Input(data);
    let (ecam, bar, len) = (input.u64(), input.u64() >> 12, u64::from(input.u32()));
    let places = {
        let plan = plan.clone();
        let start = bar.max(plan.mmio64);
        move || PciPlaces::around(&plan, ecam, Some(start..start + len))
    };
    let device = config_device(&plan, places, Arc::clone(&memory), &metrics).unwrap();
    let device = Arc::new(Mutex::new(device));
    let mut ports = FwCfgPorts(Arc::clone(&device));
    let mut dma = FwCfgDma(device);
    let mut served = 0;
    while !input.is_empty() {
        match input.u8() % 6 {
            0 => ports.write(0, &(u16::from(input.u8()) % 48).to_le_bytes()),
            1 => ports.write(u64::from(input.u8() % 2), &[input.u8()]),
            2 => ports.read(1, &mut [0]),
            3 => {
                let at = u64::from(input.u8() % 8);
                let len = (8 - at).min(1 << (input.u8() % 4));
                dma.write(at, &input.u64().to_be_bytes()[..len as usize]);
                dma.read(at, &mut [0; 8][..len as usize]);
            }
            _ => {
                let at = u64::from(input.u16());
                let control = u32::from(input.u8() % 48) << 16 | u32::from(input.u8() & 0x1f);
                let (len, to) = (u32::from(input.u16()), u64::from(input.u32() % (2 << 20)));
                let mut request = control.to_be_bytes().to_vec();
                request.extend(len.to_be_bytes());
                request.extend(to.to_be_bytes());
                memory.write_slice(&request, GuestAddress(at)).unwrap();
                dma.write(0, &[0; 4]);
                dma.write(4, &(at as u32).to_be_bytes());
                served += u64::from(memory.read_obj::<u32>(GuestAddress(at)).unwrap() == 0);
            }
        }
    }
    ports.write(0, &[0; 2]);
    for expected in b"QEMU" {
        let mut byte = [0];
        ports.read(1, &mut byte);
        assert_eq!(byte[0], *expected);
    }
    [served, metrics.read()["fw_cfg_refused_requests_total"]]
}

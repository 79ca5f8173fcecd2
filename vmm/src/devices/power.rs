//! ACPI fixed power management (ACPI 6.5 §4.8): the way off, the power button, a timer; and the reset register.
//!
//! ```text
//! +0 PM1 status  (write 1 to clear)   bit 8: power button pressed
//! +2 PM1 enable                       bit 8: it shall interrupt
//! +4 PM1 control                      bit 0: ACPI on, always; 10–12 sleep type; 13: sleep now
//! +8 timer, 32 bits at 3.579545 MHz
//! ```
//! ACPI is always on (the FADT names no SMI port), and the only sleep state is S5.

use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::VmFd;

use crate::arch::x86_64::layout;
use crate::bus::BusDevice;
use crate::control::ExitReason;
use crate::vm::ExitSignal;

/// The sleep type that `\_S5` names.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What OVMF writes to switch off, without a look at any table: QEMU's `\_S5`.
const SLEEP_TYPE_FIRMWARE: u8 = 0;

const POWER_BUTTON: u16 = 1 << 8;
const CONTROL_SCI_ENABLED: u16 = 1;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
const TIMER_HZ: u128 = 3_579_545;

/// The system control interrupt's line.
pub trait SciLine: Send {
    /// Sets its level; the line is level triggered, active high.
    fn set(&self, active: bool);
}

impl SciLine for Arc<VmFd> {
    fn set(&self, active: bool) {
        // It fails only for a machine without interrupt controllers, which the builder never makes.
        let _ = self.set_irq_line(layout::SCI_GSI, active);
    }
}

/// The power management block at [`layout::PM_PORT`].
pub struct Power<L> {
    status: u16,
    enable: u16,
    control: u16,
    started: Instant,
    line: L,
    exit: ExitSignal,
    off: &'static [u8],
}

impl<L: SciLine> Power<L> {
    /// A block that interrupts by `line` and switches off by `exit`.
    pub fn new(line: L, exit: ExitSignal) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: 0,
            started: Instant::now(),
            line,
            exit,
            off: &[SLEEP_TYPE_OFF],
        }
    }

    /// A block that firmware can switch off too.
    pub fn with_firmware(self) -> Self {
        Self {
            off: &[SLEEP_TYPE_OFF, SLEEP_TYPE_FIRMWARE],
            ..self
        }
    }

    /// Somebody presses the power button.
    pub fn press(&mut self) {
        self.status |= POWER_BUTTON;
        self.update_line();
    }

    fn update_line(&self) {
        self.line.set(self.status & self.enable != 0);
    }

    fn timer(&self) -> u32 {
        (self.started.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000) as u32
    }

    fn registers(&self) -> [u8; layout::PM_PORTS as usize] {
        let mut block = [0; layout::PM_PORTS as usize];
        block[0..2].copy_from_slice(&self.status.to_le_bytes());
        block[2..4].copy_from_slice(&self.enable.to_le_bytes());
        block[4..6].copy_from_slice(&(self.control | CONTROL_SCI_ENABLED).to_le_bytes());
        block[8..12].copy_from_slice(&self.timer().to_le_bytes());
        block
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let (low, high) = (u16::from(value), u16::from(value) << 8);
        match offset {
            0 => self.status &= !low,
            1 => self.status &= !high,
            2 => self.enable = (self.enable & 0xff00) | low,
            3 => self.enable = (self.enable & 0x00ff) | high,
            4 => self.control = (self.control & 0xff00) | low,
            5 => {
                self.control = (self.control & 0x00ff) | (high & !CONTROL_SLEEP_ENABLE);
                let sleep_type = (high >> 10) as u8 & 7;
                if high & CONTROL_SLEEP_ENABLE != 0 && self.off.contains(&sleep_type) {
                    self.exit.end(ExitReason::GuestPowerOff);
                }
            }
            _ => {}
        }
    }
}

impl<L: SciLine> BusDevice for Power<L> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let block = self.registers();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| block.get(at))
                .copied()
                .unwrap_or(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.write_byte(at, *byte);
        }
        self.update_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Clone, Default)]
    struct FakeLine(Arc<AtomicBool>);
    impl SciLine for FakeLine {
        fn set(&self, active: bool) {
            self.0.store(active, Ordering::SeqCst);
        }
    }

    fn power() -> (Power<FakeLine>, FakeLine, ExitSignal) {
        let (line, exit) = (FakeLine::default(), ExitSignal::new().unwrap());
        (Power::new(line.clone(), exit.clone()), line, exit)
    }

    #[test]
    fn sleep_type_5_with_sleep_enable_switches_off_and_nothing_else_does() {
        let (mut power, _, exit) = power();
        for value in [0u16, 1, 5 << 10, 1 << 13, 4 << 10 | 1 << 13] {
            power.write(4, &value.to_le_bytes());
            assert!(!exit.is_set(), "{value:#x}");
        }
        power.write(4, &(5u16 << 10 | 1 << 13).to_le_bytes());
        assert_eq!(exit.reason(), Some(ExitReason::GuestPowerOff));
    }

    #[test]
    fn firmware_switches_off_by_its_own_sleep_type() {
        let (power, _, exit) = power();
        let mut power = power.with_firmware();
        power.write(4, &0u16.to_le_bytes());
        assert!(!exit.is_set());
        power.write(4, &(1u16 << 13).to_le_bytes());
        assert_eq!(exit.reason(), Some(ExitReason::GuestPowerOff));
    }

    #[test]
    fn the_button_interrupts_until_it_is_acknowledged_if_enabled() {
        let (mut power, line, _) = power();
        let active = || line.0.load(Ordering::SeqCst);
        power.press();
        assert!(!active(), "not enabled");
        power.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(active());
        let mut status = [0; 2];
        power.read(0, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        power.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!active());
    }

    #[test]
    fn acpi_is_always_on_and_the_timer_runs() {
        let (mut power, _, _) = power();
        let mut control = [0; 2];
        power.read(4, &mut control);
        assert_eq!(control[0] & 1, 1);
        let first = power.timer();
        while power.timer() == first {}
    }

    proptest! {
        #[test]
        fn any_access_is_answered(
            accesses in prop::collection::vec((any::<bool>(), 0u64..16, prop::collection::vec(any::<u8>(), 0..9)), 0..40),
        ) {
            let (mut power, line, _) = power();
            for (write, offset, mut data) in accesses {
                if write { power.write(offset, &data) } else { power.read(offset, &mut data) }
                prop_assert_eq!(line.0.load(Ordering::SeqCst), power.status & power.enable != 0);
            }
        }
    }
}

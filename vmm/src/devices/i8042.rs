//! The keyboard controller, as far as it resets the machine.
//!
//! There is no keyboard: the status register says that nothing waits and nothing is full, and of the commands only
//! "pulse the reset line" (0xfe) does something. Linux uses it for `reboot=k`.

use crate::bus::BusDevice;
use crate::control::ExitReason;
use crate::vm::ExitSignal;

/// The command and status register. The data register at 0x60 is nobody's: there is no keyboard.
pub const COMMAND_PORT: u16 = 0x64;

const COMMAND_PULSE_RESET: u8 = 0xfe;

/// The controller's command register at [`COMMAND_PORT`].
pub struct I8042 {
    exit: ExitSignal,
    status: u8,
}

/// Parity and time-out errors together: OVMF takes this for "no keyboard controller" and waits for none.
const STATUS_NOTHING: u8 = 0xc0;

impl I8042 {
    /// A controller whose reset line is `exit`.
    pub fn new(exit: ExitSignal) -> Self {
        Self { exit, status: 0 }
    }

    /// The same, but its status says that there is no keyboard and no mouse.
    pub fn without_keyboard(exit: ExitSignal) -> Self {
        Self {
            exit,
            status: STATUS_NOTHING,
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.status);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&COMMAND_PULSE_RESET) {
            self.exit.end(ExitReason::GuestReset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let exit = ExitSignal::new().unwrap();
        let mut controller = I8042::new(exit.clone());
        controller.write(0, &[0xd1]);
        controller.write(0, &[]);
        assert!(!exit.is_set());
        controller.write(0, &[0xfe]);
        assert_eq!(exit.reason(), Some(ExitReason::GuestReset));
        let mut status = [0xff];
        controller.read(0, &mut status);
        assert_eq!(
            status,
            [0],
            "a driver that waits for an empty buffer must not wait for ever"
        );
        I8042::without_keyboard(exit).read(0, &mut status);
        assert_eq!(status[0] & 0b11, 0, "neither here");
    }
}

//! The CMOS clock (MC146818): the host's time in UTC, and 100 bytes that a guest may keep things in.
//!
//! The guest reads the time at boot and keeps its own from then on. Setting the clock is accepted and without effect:
//! the host's clock is right. Alarms and periodic interrupts do not exist.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

/// First of its two ports: index, data.
pub const PORT: u16 = 0x70;
/// Which byte holds the century; the FADT says so too.
pub const CENTURY: u8 = 0x32;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// 32.768 kHz, the usual rate; "update in progress" is never set.
const A_VALUE: u8 = 0x26;
/// 24 hours, binary coded decimal.
const B_VALUE: u8 = 0x02;
/// The battery is good.
const D_VALUE: u8 = 0x80;
/// Where memory begins.
const MEMORY: u8 = 0x0e;

/// The clock.
pub struct Rtc {
    index: u8,
    memory: [u8; 128],
    now: fn() -> SystemTime,
}

impl Rtc {
    /// A clock that shows the time of `now`, for example [`SystemTime::now`].
    pub fn new(now: fn() -> SystemTime) -> Self {
        Self {
            index: 0,
            memory: [0; 128],
            now,
        }
    }

    /// With the sizes of memory below and above 4 GiB where firmware looks for them, in units of 64 KiB.
    pub fn with_memory(mut self, low: u64, high: u64) -> Self {
        let above_16m = (low.saturating_sub(16 << 20) >> 16).min(0xffff);
        let above_4g = (high >> 16).min(0xff_ffff);
        self.memory[0x34..0x36].copy_from_slice(&above_16m.to_le_bytes()[..2]);
        self.memory[0x5b..0x5e].copy_from_slice(&above_4g.to_le_bytes()[..3]);
        self
    }

    fn register(&self) -> u8 {
        let time = || {
            Civil::from(
                (self.now)()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO),
            )
        };
        match self.index {
            0 => bcd(time().second),
            2 => bcd(time().minute),
            4 => bcd(time().hour),
            6 => bcd(time().weekday),
            7 => bcd(time().day),
            8 => bcd(time().month),
            9 => bcd((time().year % 100) as u8),
            CENTURY => bcd((time().year / 100 % 100) as u8),
            REGISTER_A => A_VALUE,
            REGISTER_B => B_VALUE,
            REGISTER_C => 0,
            REGISTER_D => D_VALUE,
            index => self.memory[usize::from(index & 0x7f)],
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = if offset == 0 {
                self.index
            } else {
                self.register()
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        match (offset, self.index) {
            // Bit 7 would mask NMIs.
            (0, _) => self.index = value & 0x7f,
            (_, CENTURY) => {}
            (_, index) if index >= MEMORY => self.memory[usize::from(index & 0x7f)] = *value,
            _ => {}
        }
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

/// A moment in the proleptic Gregorian calendar, UTC.
struct Civil {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl From<Duration> for Civil {
    /// Days are counted from 1 March of year 0, so that the leap day comes last in a year.
    fn from(since_1970: Duration) -> Self {
        let seconds = since_1970.as_secs();
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let day_number = days + 719_468;
        let (era, of_era) = (day_number / 146_097, day_number % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixed() -> SystemTime {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        UNIX_EPOCH + Duration::from_secs(1_709_251_198)
    }

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd() {
        let mut rtc = Rtc::new(fixed);
        let shown: Vec<u8> = [CENTURY, 9, 8, 7, 4, 2, 0, 6]
            .map(|index| read(&mut rtc, index))
            .to_vec();
        assert_eq!(shown, [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 0x05]);
        assert_eq!(read(&mut rtc, REGISTER_A) & 0x80, 0);
    }

    #[test]
    fn memory_keeps_what_is_written_and_the_clock_does_not() {
        let mut rtc = Rtc::new(fixed);
        rtc.write(0, &[0x40]);
        rtc.write(1, &[7]);
        assert_eq!(read(&mut rtc, 0x40), 7);
        rtc.write(0, &[9]);
        rtc.write(1, &[0x99]);
        assert_eq!(read(&mut rtc, 9), 0x24);
    }

    #[test]
    fn firmware_finds_the_size_of_memory() {
        let mut rtc = Rtc::new(fixed).with_memory(2 << 30, 5 << 30);
        let bytes = [0x34, 0x35, 0x5b, 0x5c, 0x5d].map(|index| read(&mut rtc, index));
        assert_eq!(bytes, [0x00, 0x7f, 0x00, 0x40, 0x01]);
    }

    proptest! {
        #[test]
        fn any_access_is_answered(accesses in prop::collection::vec((any::<bool>(), 0u64..2, any::<[u8; 4]>()), 0..50)) {
            let mut rtc = Rtc::new(SystemTime::now);
            for (write, offset, mut data) in accesses {
                if write { rtc.write(offset, &data) } else { rtc.read(offset, &mut data) }
            }
        }

        #[test]
        fn dates_are_dates(seconds in 0u64..10_000_000_000) {
            let civil = Civil::from(Duration::from_secs(seconds));
            prop_assert!((1..=12).contains(&civil.month) && (1..=31).contains(&civil.day) && civil.year >= 1970);
        }
    }
}

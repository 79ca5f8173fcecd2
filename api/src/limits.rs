//! How much a VM's device may do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest number a limit may be: far beyond any device, and exact in every JSON reader.
pub const LIMIT_MAX: u64 = 1 << 50;

/// Limits of a device; what is absent is not limited. They hold from the VM's next start.
///
/// A burst is what may be done at once after a rest: it is saved up at the rate, and once it is used up the rate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Bytes per second; a disk's reads and writes together. 1 to [`LIMIT_MAX`], as the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Bytes at once; needs `bytes_per_second`, and is what that gives in one second if absent. A single larger request
    /// still passes, after a rest, and is paid off before the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<u64>,
    /// Requests to a disk, or frames of a NIC, per second. A long segment that is cut up later is one frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    /// Operations at once; needs `operations_per_second`, and is what that gives in one second if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_burst: Option<u64>,
}

impl RateLimits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with them, if anything is.
    pub fn fault(&self) -> Option<LimitFault> {
        let numbers = [
            ("bytes_per_second", self.bytes_per_second),
            ("bytes_burst", self.bytes_burst),
            ("operations_per_second", self.operations_per_second),
            ("operations_burst", self.operations_burst),
        ];
        let wrong = |value: &u64| !(1..=LIMIT_MAX).contains(value);
        for (field, number) in numbers {
            if let Some(value) = number.filter(wrong) {
                return Some(LimitFault::Number { field, value });
            }
        }
        if self.bytes_per_second.is_none() && self.bytes_burst.is_some() {
            return Some(LimitFault::BurstAlone { of: "bytes" });
        }
        if self.operations_per_second.is_none() && self.operations_burst.is_some() {
            return Some(LimitFault::BurstAlone { of: "operations" });
        }
        None
    }
}

/// Why limits make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitFault {
    /// Nothing would get through, or nobody could count it.
    #[error("{field} is {value}; it must be between 1 and {LIMIT_MAX}, or absent")]
    Number {
        /// Which field.
        field: &'static str,
        /// As asked.
        value: u64,
    },
    /// It would never be saved up.
    #[error("{of}_burst needs {of}_per_second")]
    BurstAlone {
        /// Of what.
        of: &'static str,
    },
}

/// Limits of a NIC; directions are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NicLimits {
    /// What the guest receives; what comes beyond it waits on the host, and is lost once too much waits.
    #[serde(skip_serializing_if = "RateLimits::is_empty")]
    pub receive: RateLimits,
    /// What the guest sends.
    #[serde(skip_serializing_if = "RateLimits::is_empty")]
    pub transmit: RateLimits,
}

impl NicLimits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str) -> Option<String> {
        let limits: RateLimits = serde_json::from_str(json).unwrap();
        limits.fault().map(|fault| fault.to_string())
    }

    #[test]
    fn limits_that_make_no_sense_are_known() {
        assert_eq!(fault("{}"), None);
        let all = r#"{"bytes_per_second":1,"bytes_burst":1,"operations_per_second":1125899906842624,"operations_burst":1}"#;
        assert_eq!(fault(all), None);
        assert_eq!(
            fault(r#"{"operations_per_second":0}"#).unwrap(),
            "operations_per_second is 0; it must be between 1 and 1125899906842624, or absent"
        );
        assert!(fault(r#"{"bytes_per_second":5,"bytes_burst":18446744073709551615}"#).is_some());
        assert_eq!(
            fault(r#"{"bytes_burst":5,"operations_per_second":5}"#).unwrap(),
            "bytes_burst needs bytes_per_second"
        );
        assert_eq!(
            fault(r#"{"operations_burst":5}"#).unwrap(),
            "operations_burst needs operations_per_second"
        );
    }

    #[test]
    fn unknown_fields_and_numbers_that_are_none_are_refused() {
        for bad in [
            r#"{"iops":5}"#,
            r#"{"bytes_per_second":-1}"#,
            r#"{"bytes_per_second":1.5}"#,
            r#"{"bytes_per_second":18446744073709551616}"#,
        ] {
            assert!(serde_json::from_str::<RateLimits>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<NicLimits>(r#"{"sent":{}}"#).is_err());
    }

    #[test]
    fn what_is_not_limited_is_not_said() {
        let mut limits = NicLimits::default();
        assert_eq!(serde_json::to_string(&limits).unwrap(), "{}");
        limits.transmit.operations_per_second = Some(9);
        let json = serde_json::to_string(&limits).unwrap();
        assert_eq!(json, r#"{"transmit":{"operations_per_second":9}}"#);
        assert_eq!(serde_json::from_str::<NicLimits>(&json).unwrap(), limits);
    }
}

//! Limits of disks and NICs, as `--disk` and `--network` take them and as `lqx vm show` prints them.

use api::limits::{NicLimits, RateLimits};

use crate::failure::Failure;

/// `50M` or `500`: K, M and G are binary.
fn amount(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn field<'a>(limits: &'a mut RateLimits, name: &str) -> Option<&'a mut Option<u64>> {
    match name {
        "bytes_per_second" => Some(&mut limits.bytes_per_second),
        "bytes_burst" => Some(&mut limits.bytes_burst),
        "operations_per_second" => Some(&mut limits.operations_per_second),
        "operations_burst" => Some(&mut limits.operations_burst),
        _ => None,
    }
}

fn set(limits: Option<&mut RateLimits>, name: &str, text: &str) -> Result<(), Failure> {
    let bad = |what: String| Err(Failure::Usage(what));
    let Some(field) = limits.and_then(|limits| field(limits, name)) else {
        return bad(format!(
            "`{name}` is no limit; there are bytes_per_second, bytes_burst, operations_per_second and operations_burst"
        ));
    };
    match amount(text) {
        Some(value) => *field = Some(value),
        None => return bad(format!("`{text}` is not an amount; say 500 or 50M")),
    }
    Ok(())
}

/// Takes `bytes_per_second=50M` and its like off a list; what is no assignment comes back.
pub(super) fn of_disk<'a>(
    words: impl Iterator<Item = &'a str>,
) -> Result<(RateLimits, Vec<&'a str>), Failure> {
    let mut limits = RateLimits::default();
    let mut rest = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some((name, text)) => set(Some(&mut limits), name, text)?,
            None => rest.push(word),
        }
    }
    Ok((limits, rest))
}

/// Takes `transmit.bytes_per_second=50M` and its like off a list; what is no assignment comes back.
pub(super) fn of_nic<'a>(
    words: impl Iterator<Item = &'a str>,
) -> Result<(NicLimits, Vec<&'a str>), Failure> {
    let mut limits = NicLimits::default();
    let mut rest = Vec::new();
    for word in words {
        let Some((name, text)) = word.split_once('=') else {
            rest.push(word);
            continue;
        };
        let Some((direction, name)) = name.split_once('.') else {
            return Err(Failure::Usage(format!(
                "say receive.{name} or transmit.{name}"
            )));
        };
        let limits = match direction {
            "receive" => Some(&mut limits.receive),
            "transmit" => Some(&mut limits.transmit),
            _ => None,
        };
        set(limits, name, text)?;
    }
    Ok((limits, rest))
}

/// In the form that is read, with a comma before each; nothing for nothing.
pub(super) fn show(prefix: &str, limits: &RateLimits) -> String {
    let all = [
        ("bytes_per_second", limits.bytes_per_second),
        ("bytes_burst", limits.bytes_burst),
        ("operations_per_second", limits.operations_per_second),
        ("operations_burst", limits.operations_burst),
    ];
    let set = all
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    set.map(|(name, value)| format!(", {prefix}{name}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_shown() {
        let text = "bytes_per_second=50M,x,operations_burst=7";
        let (limits, rest) = of_disk(text.split(',')).unwrap();
        assert_eq!(rest, ["x"]);
        assert_eq!(
            show("", &limits),
            ", bytes_per_second=52428800, operations_burst=7"
        );
        let (limits, _) = of_nic("transmit.operations_per_second=2k".split(',')).unwrap();
        assert_eq!(limits.receive, RateLimits::default());
        assert_eq!(
            show("transmit.", &limits.transmit),
            ", transmit.operations_per_second=2048"
        );
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for bad in [
            "iops=5",
            "bytes_burst=",
            "bytes_burst=5x",
            "bytes_burst=-5",
            "bytes_burst=99999999999G",
            "=",
        ] {
            assert_eq!(of_disk([bad].into_iter()).unwrap_err().status(), 2, "{bad}");
        }
        for bad in ["bytes_burst=5", "up.bytes_burst=5", "receive.iops=5"] {
            assert_eq!(of_nic([bad].into_iter()).unwrap_err().status(), 2, "{bad}");
        }
    }
}

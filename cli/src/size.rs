//! Sizes as people write them.

use api::units::Mib;

/// `256M`, `2G`, `1T`; a plain number is MiB. Units are binary.
pub(crate) fn parse(text: &str) -> Result<Mib, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a size; say 512M or 2G"))?;
    let factor = match unit.as_str() {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        "t" | "tb" | "tib" => 1024 * 1024,
        _ => return Err(format!("`{unit}` is not a unit; say M, G or T")),
    };
    let mib = number.checked_mul(factor);
    mib.map(Mib).ok_or_else(|| format!("`{text}` is too much"))
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        for (text, mib) in [("256", 256), ("256M", 256), ("2G", 2048), ("1tib", 1 << 20)] {
            assert_eq!(parse(text), Ok(Mib(mib)), "{text}");
        }
        for bad in [
            "",
            "G",
            "1K",
            "-1",
            "1.5G",
            "99999999999999999999",
            "18446744073709551615T",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

//! Matching of `modules.alias` patterns: `*`, `?` and `[…]`, as fnmatch(3) without flags does.

/// Whether `text` matches `pattern` whole. Linear backtracking: only the last `*` is ever retried.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match class(pattern, p, text[t]) {
                Some((true, next)) => Some(next),
                Some((false, _)) => None,
                // Without an end it is an ordinary character.
                None => (text[t] == b'[').then_some(p + 1),
            },
            Some(byte) if *byte == text[t] => Some(p + 1),
            _ => None,
        };
        match (step, retry) {
            (Some(next), _) => {
                p = next;
                t += 1;
            }
            (None, Some((star, from))) => {
                retry = Some((star, from + 1));
                p = star + 1;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether `byte` is in the class starting at `open`, and where the pattern goes on. `None` without a closing bracket.
fn class(pattern: &[u8], open: usize, byte: u8) -> Option<(bool, usize)> {
    let mut at = open + 1;
    let negated = matches!(pattern.get(at), Some(b'!' | b'^'));
    at += usize::from(negated);
    let first = at;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        if pattern.get(at + 1) == Some(&b'-')
            && pattern.get(at + 2).is_some_and(|high| *high != b']')
        {
            found |= (low..=pattern[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= low == byte;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_of_real_devices_match_their_patterns() {
        let virtio_net = "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00";
        assert!(matches("pci:v00001AF4d*sv*sd*bc*sc*i*", virtio_net));
        assert!(!matches("pci:v00008086d*sv*sd*bc*sc*i*", virtio_net));
        assert!(matches(
            "pci:v*d*sv*sd*bc01sc08i02*",
            "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02"
        ));
        assert!(matches(
            "usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*",
            "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00"
        ));
        assert!(matches(
            "cpu:type:x86,ven*fam*mod*:feature:*00E2*",
            "cpu:type:x86,ven0002fam000Fmod006B:feature:,0000,00E2,0101"
        ));
        assert!(matches("acpi*:PNP0C0C:*", "acpi:PNP0C0C:"));
    }

    #[test]
    fn classes_and_single_characters_work_like_fnmatch() {
        for (pattern, text, expected) in [
            ("a[0-9]b", "a5b", true),
            ("a[0-9]b", "axb", false),
            ("a[!0-9]b", "axb", true),
            ("a[]x]b", "a]b", true),
            ("a[x-]b", "a-b", true),
            ("a[b", "a[b", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*a*b*c", "xxaxxbxxbxxc", true),
            ("*a*b*c", "xxaxxbxxb", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn hostile_patterns_take_linear_time_and_do_not_panic() {
        let text = "a".repeat(2000);
        assert!(!matches(&("*a".repeat(200) + "b"), &text));
        assert!(!matches("[", "x"));
        assert!(!matches("[a-", "a"));
    }
}

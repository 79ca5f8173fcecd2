//! SMBIOS: what the guest reads about its maker (DMTF DSP0134 3.4). Firmware places the tables and adds its own.

/// Type 1, system information (§7.2).
const SYSTEM: u8 = 1;
/// Type 3, the enclosure (§7.4).
const CHASSIS: u8 = 3;
/// Type 127, the end (§7.45).
const END: u8 = 127;
/// The system was switched on by its power switch.
const WAKE_UP_SWITCH: u8 = 6;
/// An enclosure of kind "other".
const CHASSIS_OTHER: u8 = 1;
/// Unknown or safe states of an enclosure: boot, power supply, temperature; no security.
const CHASSIS_STATES: [u8; 4] = [3, 3, 3, 2];

const MAKER: &str = "limiquantix";
const PRODUCT: &str = "Virtual Machine";

/// All structures, one after the other. No UUID and no serial number: a machine does not know its own yet.
pub fn tables() -> Vec<u8> {
    let mut tables = Vec::new();
    let mut system = vec![1, 2, 3, 0];
    system.extend_from_slice(&[0; 16]);
    system.extend_from_slice(&[WAKE_UP_SWITCH, 0, 0]);
    structure(
        &mut tables,
        SYSTEM,
        &system,
        &[MAKER, PRODUCT, env!("CARGO_PKG_VERSION")],
    );
    let mut chassis = vec![1, CHASSIS_OTHER, 0, 0, 0];
    chassis.extend_from_slice(&CHASSIS_STATES);
    chassis.extend_from_slice(&[0; 4 + 4]);
    structure(&mut tables, CHASSIS, &chassis, &[MAKER]);
    structure(&mut tables, END, &[], &[]);
    tables
}

/// The 64-bit entry point (§5.2.2); its address is the firmware's to fill in.
pub fn anchor(tables: &[u8]) -> Vec<u8> {
    let mut anchor = b"_SM3_".to_vec();
    // Checksum, length, version 3.4, revision of the entry point.
    anchor.extend_from_slice(&[0, 24, 3, 4, 0, 1, 0]);
    anchor.extend_from_slice(&(tables.len() as u32).to_le_bytes());
    anchor.extend_from_slice(&[0; 8]);
    let sum = anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    anchor[5] = sum.wrapping_neg();
    anchor
}

fn structure(tables: &mut Vec<u8>, kind: u8, fields: &[u8], strings: &[&str]) {
    let handle = u16::from(kind) << 8;
    tables.extend_from_slice(&[kind, (4 + fields.len()) as u8]);
    tables.extend_from_slice(&handle.to_le_bytes());
    tables.extend_from_slice(fields);
    for string in strings {
        tables.extend_from_slice(string.as_bytes());
        tables.push(0);
    }
    if strings.is_empty() {
        tables.push(0);
    }
    tables.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_follow_one_another_to_the_end() {
        let tables = tables();
        let (mut rest, mut seen) = (&tables[..], vec![]);
        while let [kind, len, _, _, ..] = rest {
            let strings = &rest[usize::from(*len)..];
            let end = strings.windows(2).position(|pair| pair == [0, 0]).unwrap();
            seen.push((*kind, *len));
            rest = &strings[end + 2..];
        }
        assert_eq!(seen, [(SYSTEM, 27), (CHASSIS, 21), (END, 4)]);
        assert!(rest.is_empty());
        let anchor = anchor(&tables);
        assert_eq!(anchor.len(), 24);
        assert_eq!(
            anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        assert_eq!(anchor[12..16], (tables.len() as u32).to_le_bytes());
    }
}

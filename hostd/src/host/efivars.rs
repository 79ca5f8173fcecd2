//! What firmware and boot loader left in EFI variables.
//!
//! efivarfs: each file is four bytes of attributes, then the value (Linux `Documentation/filesystems/efivarfs.rst`).

use super::Roots;

/// The boot loader interface's vendor id (systemd, "The Boot Loader Interface").
pub const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The UEFI specification's own variables.
pub const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// The value of a variable; `None` when it is not there (or there is no EFI).
pub fn read(roots: &Roots, name: &str, vendor: &str) -> Option<Vec<u8>> {
    let path = roots
        .sys
        .join("firmware/efi/efivars")
        .join(format!("{name}-{vendor}"));
    let bytes = std::fs::read(path).ok()?;
    bytes.get(4..).map(<[u8]>::to_vec)
}

/// A variable that holds UTF-16 text, up to its NUL.
pub fn read_text(roots: &Roots, name: &str, vendor: &str) -> Option<String> {
    let units: Vec<u16> = read(roots, name, vendor)?
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16(&units).ok()
}

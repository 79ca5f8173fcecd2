//! Taking over inherited descriptors: the one place where a number becomes an owner.
#![allow(unsafe_code)] // UNSAFETY: a descriptor number carries no type; ownership of it can only be asserted.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::KVM_API_VERSION;

/// A number in the configuration is not an open descriptor, or not one of the right kind.
#[derive(Debug, thiserror::Error)]
#[error("descriptor {fd} is not usable as {what}")]
pub struct TakeFdError {
    /// What the descriptor was meant for.
    pub what: &'static str,
    /// The number given.
    pub fd: i32,
    /// Why the kernel refused it.
    pub source: std::io::Error,
}

/// Takes over the inherited descriptor `fd` and sets close-on-exec on it.
///
/// The caller names each number once: [`crate::machine`] refuses a configuration that names one twice. Standard input,
/// output and error are never taken.
pub fn take(what: &'static str, fd: i32) -> Result<OwnedFd, TakeFdError> {
    if fd < 3 {
        let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        return Err(TakeFdError { what, fd, source });
    }
    // SAFETY: borrowed only to ask the kernel whether it is open; a closed number is answered with EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(|errno| {
        TakeFdError {
            what,
            fd,
            source: errno.into(),
        }
    })?;
    // SAFETY: the number is open, was inherited for this purpose, and each number of a configuration is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over an inherited descriptor of `/dev/kvm`.
pub fn take_kvm(fd: i32) -> Result<kvm_ioctls::Kvm, TakeFdError> {
    let owned = take("KVM", fd)?;
    // SAFETY: ownership goes from `owned` to the new value. That it is KVM is shown by its version, before any use.
    let kvm = unsafe { kvm_ioctls::Kvm::from_raw_fd(owned.into_raw_fd()) };
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not /dev/kvm");
        return Err(TakeFdError {
            what: "KVM",
            fd,
            source,
        });
    }
    Ok(kvm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_descriptor_is_taken_and_a_closed_one_refused() {
        let file = tempfile::tempfile().unwrap();
        let number = file.into_raw_fd();
        drop(take("test", number).unwrap());
        assert!(
            take("test", 9_999)
                .unwrap_err()
                .to_string()
                .contains("9999")
        );
        assert!(take("test", -1).is_err());
        assert!(take("test", 1).is_err());
    }
}

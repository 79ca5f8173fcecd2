//! Model-specific registers at power-on, where KVM's default is not what firmware leaves behind.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE`: fast strings on (Intel SDM 4, table 2-2).
const MISC_ENABLE: kvm_msr_entry = kvm_msr_entry {
    index: 0x1a0,
    reserved: 0,
    data: 1,
};
/// `IA32_MTRR_DEF_TYPE`: MTRRs on, all memory write-back (Intel SDM 3A §12.11.2.1). Linux maps RAM uncached without it.
const MTRR_DEF_TYPE: kvm_msr_entry = kvm_msr_entry {
    index: 0x2ff,
    reserved: 0,
    data: (1 << 11) | 6,
};

/// KVM did not take a register.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// The list could not be made.
    #[error("could not list the model-specific registers")]
    List,
    /// `KVM_SET_MSRS` failed.
    #[error("KVM_SET_MSRS failed")]
    Set(#[source] io::Error),
    /// One was refused.
    #[error("KVM refused the model-specific register {index:#x}")]
    Refused {
        /// Which.
        index: u32,
    },
}

/// Sets what firmware would have set.
pub fn set(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE];
    let msrs = Msrs::from_entries(&entries).map_err(|_| MsrError::List)?;
    let done = vcpu
        .set_msrs(&msrs)
        .map_err(|errno| MsrError::Set(errno.into()))?;
    match entries.get(done) {
        Some(refused) => Err(MsrError::Refused {
            index: refused.index,
        }),
        None => Ok(()),
    }
}

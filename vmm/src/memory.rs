//! Guest memory: RAM in a memfd, mapped here and given to KVM as memory slots.
#![allow(unsafe_code)] // UNSAFETY: handing a mapping to KVM (`KVM_SET_USER_MEMORY_REGION`) cannot be checked by the compiler.

/// The guest's RAM as this process sees it. Shared as `Arc<GuestMemory>`.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

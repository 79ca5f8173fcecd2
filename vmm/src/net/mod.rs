//! What a NIC's frames travel over.

//! irqfd and MSI routes.

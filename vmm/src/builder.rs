//! From plan and descriptors to a live machine: the one place that names every device.

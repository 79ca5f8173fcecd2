//! Isolation and anti-spoofing: **not built yet**, and nothing else does it.
//!
//! What holds without it: an isolated network has no route to any other (the host does not forward), DHCP answers only
//! known NICs, and a guest can not leave its bridge. What does not hold: a guest may send with another guest's MAC or
//! IP address on the same network, and may reach every port the host listens on at the gateway address.

//! The protocol between the daemon and the monitors.

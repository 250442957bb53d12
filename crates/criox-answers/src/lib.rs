//! What is known of pods and containers as the messages of CRI: records and readings go in, messages come out.
//!
//! | module | about |
//! |---|---|
//! | [`status`] | lists and statuses, and which records pass a filter |
//! | [`stats`] | readings of cgroups, layers and interfaces as statistics |
//! | [`metrics`] | rows of figures as metrics |
//!
//! Each is a function of its arguments. What can't be read is absent, and never fails an answer.

pub mod metrics;
pub mod stats;
pub mod status;

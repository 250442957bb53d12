//! Statistics: what pods and containers use, read from open files at the moment of the question.
//!
//! | module | what |
//! |---|---|
//! | [`probe`] | the open files of a container and of a pod, and when they are closed |
//! | [`rate`] | from time of the CPU to cores |
//! | [`answer`] | the requests, and figures as the messages of CRI |
//! | [`sampler`] | a beat that notes the time of the CPU, for the rates |
//! | [`layers`] | a walker that counts what writable layers hold, beside all requests |
//! | [`walk`] | one walk through one layer |
//! | [`metrics`] | figures as metrics for Prometheus, by the names that cAdvisor gave them |
//!
//! A read opens nothing but what it has not opened before, walks through no directory and waits for no lock that
//! anybody holds across I/O. What can't be read is absent, and never fails a list.

mod answer;
mod layers;
pub(crate) mod metrics;
mod probe;
mod rate;
mod sampler;
mod walk;

use std::sync::Arc;

pub(crate) use layers::LayerRoom;
pub(crate) use probe::Probes;

use crate::context::Context;
use crate::descriptors;

/// What other work keeps of the process's descriptors for itself, in parts of the limit.
const DESCRIPTOR_SHARE: u64 = 2;

/// Starts what is done beside requests; it ends with the runtime.
pub(crate) fn start(context: &Arc<Context>) {
    let limit = descriptors::raise().unwrap_or(u64::MAX);
    let kept = usize::try_from(limit / DESCRIPTOR_SHARE).unwrap_or(usize::MAX);
    criox_sys::cgroup::stats::set_descriptor_limit(kept);
    tokio::spawn(sampler::run(context.clone()));
    tokio::spawn(layers::run(context.clone()));
}

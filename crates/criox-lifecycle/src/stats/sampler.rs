//! A beat that notes each container's and pod's time of the CPU: one reading each, so that a rate has a recent beginning
//! whenever it is asked for. With `collection_period` all figures are read at that beat, and requests are answered from
//! what it read.

use std::sync::Arc;
use std::time::Duration;

use criox_records::SandboxPhase;
use criox_sys::cgroup::stats::Scratch;
use tokio::time::MissedTickBehavior;

use super::probes::measured;
use crate::context::Context;

/// Between notes. Half of what the kubelet waits between its questions.
const BEAT: Duration = Duration::from_secs(5);

/// How old a collected figure may be for an answer: with figures read on demand none is.
pub(super) fn age(context: &Context) -> Duration {
    let period = period(context);
    // A beat that comes late must not make the next request read all by itself.
    period.map_or(Duration::ZERO, |period| period * 2)
}

fn period(context: &Context) -> Option<Duration> {
    let seconds = u64::try_from(context.config.stats.collection_period).unwrap_or(0);
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Runs for ever.
pub(super) async fn run(context: Arc<Context>) {
    let period = period(&context);
    let mut beat = tokio::time::interval(period.unwrap_or(BEAT));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let (context, collect) = (context.clone(), period.is_some());
        if let Err(error) = tokio::task::spawn_blocking(move || note(&context, collect)).await {
            tracing::error!(%error, "the sampling of statistics ended in a panic");
        }
    }
}

fn note(context: &Context, collect: bool) {
    let views = context.index.pods();
    let probes = context.index.probes();
    let mut scratch = Scratch::default();
    for view in &views {
        for record in measured(view) {
            probes.container(context, record).meter().sample(collect, &mut scratch);
        }
        if view.sandbox.phase == SandboxPhase::Ready
            && let Some(meter) = probes.pod(context, &view.sandbox).meter()
        {
            meter.sample(collect, &mut scratch);
        }
    }
    // What has ended meanwhile must not be kept by what was read above.
    probes.keep_only(&context.index.pods());
    if probes.take_heavy() {
        // Answers of megabytes have been sent by now; a scrape a minute must not make them the daemon's size.
        criox_sys::process::release_memory();
    }
}

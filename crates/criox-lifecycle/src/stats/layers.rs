//! What writable layers hold is counted beside all requests: the first time as soon as a container has been created, then
//! again and again, the less often the longer it takes. Requests get the last figure, with its time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use criox_cri::ids::ContainerId;
use tokio::sync::Semaphore;

use super::probe::{ContainerProbe, Taken, measured};
use super::walk::{self, Room, Walked};
use crate::context::Context;
use crate::record::ContainerRecord;

/// Walks at the same time: of layers that were never counted, and as many of those that were. A new container does not
/// wait for walks through layers of millions of files.
const AT_ONCE: usize = 2;
/// When all of these are at work.
const BUSY: Duration = Duration::from_millis(100);
/// Between two walks through a layer that grows; the pause doubles while nothing changes.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How much longer than a walk the pause after it is at least.
const PATIENCE: u32 = 20;
/// A walk that is not done by then gives what it has counted.
const LONGEST: Duration = Duration::from_secs(600);
/// From its cancellation to its end: after that the disk does not answer.
const GRACE: Duration = Duration::from_secs(10);
/// Walks that hang in the kernel; with more no new one begins.
const HANGING: usize = 4;
/// The file system's size is asked for this often.
const ROOM: Duration = Duration::from_secs(60);

/// The last known size of the file system that writable layers lie on.
#[derive(Debug, Default)]
pub(crate) struct LayerRoom(Mutex<Option<Room>>);

impl LayerRoom {
    pub(super) fn get(&self) -> Option<Room> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, room: Room) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
    }
}

/// Runs for ever.
pub(super) async fn run(context: Arc<Context>) {
    let walks = [Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(AT_ONCE))];
    let hanging = Arc::new(AtomicUsize::new(0));
    let mut room_due = Instant::now();
    loop {
        if room_due <= Instant::now() {
            room_due = Instant::now() + ROOM;
            ask_for_room(&context);
        }
        let next = begin_due(&context, &walks, &hanging).min(room_due);
        tokio::select! {
            () = context.index.probes().changed() => {}
            () = tokio::time::sleep_until(next.into()) => {}
        }
    }
}

/// Beside the walks, for a disk that does not answer must not stop them.
fn ask_for_room(context: &Arc<Context>) {
    let context = context.clone();
    tokio::task::spawn_blocking(move || match walk::room(context.store.graph_root()) {
        Ok(room) => context.index.layer_room().set(room),
        Err(error) => tracing::warn!(%error, "the size of the file system of writable layers is not known"),
    });
}

/// Begins the walks that are due; when to look again.
fn begin_due(context: &Arc<Context>, walks: &[Arc<Semaphore>; 2], hanging: &Arc<AtomicUsize>) -> Instant {
    let now = Instant::now();
    let mut next = now + LONGEST_PAUSE;
    for view in context.index.pods() {
        for record in measured(&view) {
            let probe = context.index.probes().container(context, record);
            let mut layer = probe.layer();
            if layer.walking {
                continue;
            }
            if layer.due > now {
                next = next.min(layer.due);
                continue;
            }
            if hanging.load(Ordering::Relaxed) >= HANGING {
                layer.due = now + LONGEST_PAUSE;
                continue;
            }
            let [first, again] = walks;
            let lane = if layer.figure.is_none() { first } else { again };
            let Ok(permit) = lane.clone().try_acquire_owned() else {
                next = next.min(now + BUSY);
                continue;
            };
            layer.walking = true;
            drop(layer);
            let work = one(context.clone(), record.clone(), probe, hanging.clone());
            let context = context.clone();
            tokio::spawn(async move {
                work.await;
                drop(permit);
                // Only now it is known when this layer is due again.
                context.index.probes().wake();
            });
        }
    }
    next
}

/// One walk, and what comes of it.
async fn one(
    context: Arc<Context>,
    record: Arc<ContainerRecord>,
    probe: Arc<ContainerProbe>,
    hanging: Arc<AtomicUsize>,
) {
    let begun = Instant::now();
    let (ended, overlong) = (probe.ended.clone(), Arc::new(AtomicBool::new(false)));
    let (id, stop) = (record.id, overlong.clone());
    let mut work = tokio::task::spawn_blocking(move || {
        let upper = upper(&context, &id)?;
        walk::walk(&upper, &|| ended.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed))
    });
    let walked = match tokio::time::timeout(LONGEST, &mut work).await {
        Ok(walked) => walked,
        Err(_) => {
            overlong.store(true, Ordering::Relaxed);
            match tokio::time::timeout(GRACE, &mut work).await {
                Ok(walked) => walked,
                Err(_) => return hangs(id, probe, work, hanging),
            }
        }
    };
    let walked = match walked {
        Ok(Ok(walked)) => Some(walked),
        Ok(Err(error)) => {
            tracing::debug!(container = %id, %error, "what the writable layer holds is not known");
            None
        }
        Err(error) => {
            tracing::error!(container = %id, %error, "a walk through a writable layer ended in a panic");
            None
        }
    };
    note(&probe, walked, begun.elapsed());
}

/// Notes what a walk counted, and when the next one begins.
fn note(probe: &ContainerProbe, walked: Option<Walked>, took: Duration) {
    let mut layer = probe.layer();
    let known = layer.figure.map(|taken| taken.what);
    let figure = match (walked, known) {
        (Some(Walked::Whole(figure) | Walked::Part(figure)), None) | (Some(Walked::Whole(figure)), _) => {
            Some(figure)
        }
        // The tree changed under the walk: what was counted is there, and what was known may be, too.
        (Some(Walked::Part(figure)), Some(known)) => Some(walk::Figure {
            bytes: figure.bytes.max(known.bytes),
            inodes: figure.inodes.max(known.inodes),
        }),
        (None, _) => None,
    };
    layer.pause = match figure == known && figure.is_some() {
        true => (layer.pause * 2).min(LONGEST_PAUSE),
        false => SHORTEST_PAUSE,
    };
    if let Some(figure) = figure {
        layer.figure = Some(Taken::now(figure));
    }
    layer.walking = false;
    layer.due = Instant::now() + layer.pause.max(took * PATIENCE);
}

/// The kernel keeps the walk: nobody waits for it, but it is counted.
fn hangs<T: Send + 'static>(
    id: ContainerId,
    probe: Arc<ContainerProbe>,
    work: tokio::task::JoinHandle<T>,
    hanging: Arc<AtomicUsize>,
) {
    tracing::warn!(container = %id, "the walk through the writable layer hangs: its disk does not answer");
    hanging.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        drop(work.await);
        hanging.fetch_sub(1, Ordering::Relaxed);
        note(&probe, None, LONGEST);
    });
}

/// The directory with what the container has changed.
fn upper(context: &Context, id: &ContainerId) -> std::io::Result<PathBuf> {
    let container = context.store.container(id.as_str()).map_err(std::io::Error::other)?;
    // containers/storage: overlay/<layer>/diff.
    Ok(context.store.graph_root().join("overlay").join(&container.layer).join("diff"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::walk::Figure;

    fn probe() -> ContainerProbe {
        let mounts = "1 1 0:1 / /nowhere rw - cgroup2 cgroup2 rw\n";
        let cgroups = criox_sys::cgroup::Cgroups::from_mountinfo(mounts).expect("a hierarchy");
        ContainerProbe::of(cgroups.gauges("/crio"), 0)
    }

    fn whole(bytes: u64) -> Option<Walked> {
        Some(Walked::Whole(Figure { bytes, inodes: 1 }))
    }

    #[test]
    fn a_layer_that_grows_is_counted_often_and_one_that_rests_seldom() {
        let probe = probe();
        let pause = |walked, took| {
            note(&probe, walked, took);
            let layer = probe.layer();
            (layer.pause, layer.due.saturating_duration_since(Instant::now()))
        };
        assert_eq!(pause(whole(1), Duration::ZERO).0, SHORTEST_PAUSE);
        assert_eq!(pause(whole(1), Duration::ZERO).0, SHORTEST_PAUSE * 2);
        for _ in 0..10 {
            pause(whole(1), Duration::ZERO);
        }
        assert_eq!(pause(whole(1), Duration::ZERO).0, LONGEST_PAUSE);
        // A walk of a minute is not repeated before twenty are over.
        assert!(pause(whole(2), Duration::from_secs(60)).1 > Duration::from_secs(19 * 60));
        assert_eq!(probe.layer().pause, SHORTEST_PAUSE);
    }

    #[test]
    fn a_part_never_hides_what_was_known() {
        let probe = probe();
        note(&probe, whole(100), Duration::ZERO);
        note(&probe, Some(Walked::Part(Figure { bytes: 10, inodes: 5 })), Duration::ZERO);
        let known = || probe.layer().figure.map(|taken| taken.what);
        assert_eq!(known(), Some(Figure { bytes: 100, inodes: 5 }));
        // An error neither.
        note(&probe, None, Duration::ZERO);
        assert_eq!(known(), Some(Figure { bytes: 100, inodes: 5 }));
        note(&probe, whole(7), Duration::ZERO);
        assert_eq!(known(), Some(Figure { bytes: 7, inodes: 1 }));
    }
}

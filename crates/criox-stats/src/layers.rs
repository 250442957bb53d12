//! What writable layers hold is counted beside all requests: the first time as soon as a container has been created, then
//! again and again, the less often the longer it takes. Requests get the last figure, with its time.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use crate::lock;
use crate::meter::Taken;
use crate::probe::ContainerProbe;
use crate::walk::{self, Figure, Room, Walked};

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

/// Who has containers.
pub trait Layers: Send + Sync + 'static {
    /// What names a container.
    type Id: fmt::Display + Clone + Send + 'static;

    /// Shows each container that has a writable layer.
    fn each(&self, show: &mut dyn FnMut(&Self::Id, Arc<ContainerProbe>));

    /// The directory with what a container has changed. Blocks on the disk.
    ///
    /// # Errors
    /// It is not known: the container has gone, or the disk fails.
    fn directory(&self, id: &Self::Id) -> io::Result<PathBuf>;
}

/// What is known of a writable layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) figure: Option<Taken<Figure>>,
    /// When it is counted next.
    due: Instant,
    /// What lies between two walks.
    pause: Duration,
    walking: bool,
}

impl Default for Layer {
    fn default() -> Self {
        Self { figure: None, due: Instant::now(), pause: Duration::ZERO, walking: false }
    }
}

/// Counts layers, and knows the size of the file system that they lie on.
#[derive(Debug, Default)]
pub struct Walker {
    room: Mutex<Option<Room>>,
    /// Somebody asks for it, and may hang.
    asking: AtomicBool,
    changed: Notify,
    /// Walks that hang in the kernel.
    hanging: AtomicUsize,
}

impl Walker {
    /// Counts for ever. `home` is a directory on the file system of the layers.
    pub async fn run<L: Layers>(self: Arc<Self>, layers: Arc<L>, home: PathBuf) {
        let lanes = [Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(AT_ONCE))];
        let mut room_due = Instant::now();
        loop {
            if room_due <= Instant::now() {
                room_due = Instant::now() + ROOM;
                self.ask_for_room(&home);
            }
            let next = self.begin_due(&layers, &lanes).min(room_due);
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
    }

    /// There is a container that was not there before.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// The last known size of the file system of the layers.
    pub fn room(&self) -> Option<Room> {
        *lock(&self.room)
    }

    /// Beside the walks, for a disk that does not answer must not stop them.
    fn ask_for_room(self: &Arc<Self>, home: &Path) {
        let home = home.to_owned();
        self.ask_for_room_by(move || walk::room(&home));
    }

    /// One thread at a time: a disk that hangs costs no more.
    fn ask_for_room_by(self: &Arc<Self>, ask: impl FnOnce() -> io::Result<Room> + Send + 'static) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let walker = self.clone();
        tokio::task::spawn_blocking(move || {
            match ask() {
                Ok(room) => *lock(&walker.room) = Some(room),
                Err(error) => {
                    tracing::warn!(%error, "the size of the file system of writable layers is not known");
                }
            }
            walker.asking.store(false, Ordering::Release);
        });
    }

    /// Begins the walks that are due; when to look again.
    fn begin_due<L: Layers>(self: &Arc<Self>, layers: &Arc<L>, lanes: &[Arc<Semaphore>; 2]) -> Instant {
        let now = Instant::now();
        let mut next = now + LONGEST_PAUSE;
        layers.each(&mut |id, probe| {
            let mut layer = probe.layer_state();
            if layer.walking {
                return;
            }
            if layer.due > now {
                next = next.min(layer.due);
                return;
            }
            if self.hanging.load(Ordering::Relaxed) >= HANGING {
                layer.due = now + LONGEST_PAUSE;
                return;
            }
            let [first, again] = lanes;
            let lane = if layer.figure.is_none() { first } else { again };
            let Ok(permit) = lane.clone().try_acquire_owned() else {
                next = next.min(now + BUSY);
                return;
            };
            layer.walking = true;
            drop(layer);
            let (walker, layers, id) = (self.clone(), layers.clone(), id.clone());
            tokio::spawn(async move {
                walker.one(layers, id, probe).await;
                drop(permit);
                // Only now it is known when this layer is due again.
                walker.wake();
            });
        });
        next
    }

    /// One walk, and what comes of it.
    async fn one<L: Layers>(self: &Arc<Self>, layers: Arc<L>, id: L::Id, probe: Arc<ContainerProbe>) {
        let begun = Instant::now();
        let (ended, overlong) = (probe.ended().clone(), Arc::new(AtomicBool::new(false)));
        let (name, stop) = (id.clone(), overlong.clone());
        let mut work = tokio::task::spawn_blocking(move || {
            let directory = layers.directory(&name)?;
            walk::walk(&directory, &|| ended.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed))
        });
        let walked = match tokio::time::timeout(LONGEST, &mut work).await {
            Ok(walked) => walked,
            Err(_) => {
                overlong.store(true, Ordering::Relaxed);
                match tokio::time::timeout(GRACE, &mut work).await {
                    Ok(walked) => walked,
                    Err(_) => return self.hangs(&id, probe, work),
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

    /// The kernel keeps the walk: nobody waits for it, but it is counted.
    fn hangs<T: Send + 'static>(
        self: &Arc<Self>,
        id: &dyn fmt::Display,
        probe: Arc<ContainerProbe>,
        work: tokio::task::JoinHandle<T>,
    ) {
        tracing::warn!(container = %id, "the walk through the writable layer hangs: its disk does not answer");
        self.hanging.fetch_add(1, Ordering::Relaxed);
        let walker = self.clone();
        tokio::spawn(async move {
            drop(work.await);
            walker.hanging.fetch_sub(1, Ordering::Relaxed);
            note(&probe, None, LONGEST);
        });
    }
}

/// Notes what a walk counted, and when the next one begins.
fn note(probe: &ContainerProbe, walked: Option<Walked>, took: Duration) {
    let mut layer = probe.layer_state();
    let known = layer.figure.map(|taken| taken.what);
    let figure = match (walked, known) {
        (Some(Walked::Whole(figure) | Walked::Part(figure)), None) | (Some(Walked::Whole(figure)), _) => {
            Some(figure)
        }
        // The tree changed under the walk: what was counted is there, and what was known may be, too.
        (Some(Walked::Part(figure)), Some(known)) => {
            Some(Figure { bytes: figure.bytes.max(known.bytes), inodes: figure.inodes.max(known.inodes) })
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> ContainerProbe {
        let mounts = "1 1 0:1 / /nowhere rw - cgroup2 cgroup2 rw\n";
        let cgroups = criox_sys::cgroup::Cgroups::from_mountinfo(mounts).expect("a hierarchy");
        ContainerProbe::new(cgroups.gauges("/crio"), 0)
    }

    fn whole(bytes: u64) -> Option<Walked> {
        Some(Walked::Whole(Figure { bytes, inodes: 1 }))
    }

    #[tokio::test]
    async fn a_disk_that_hangs_keeps_one_thread_and_no_more() {
        let walker = Arc::new(Walker::default());
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |wait: Option<std::sync::mpsc::Receiver<()>>| {
            let asked = asked.clone();
            walker.ask_for_room_by(move || {
                asked.fetch_add(1, Ordering::SeqCst);
                if let Some(wait) = wait {
                    wait.recv().expect_err("nobody sends");
                }
                Ok(Room::default())
            });
        };
        ask(Some(hangs));
        for _ in 0..5 {
            ask(None);
        }
        drop(answer);
        while walker.asking.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // It answers again.
        ask(None);
        while walker.asking.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_layer_that_grows_is_counted_often_and_one_that_rests_seldom() {
        let probe = probe();
        let pause = |walked, took| {
            note(&probe, walked, took);
            let layer = probe.layer_state();
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
        assert_eq!(probe.layer_state().pause, SHORTEST_PAUSE);
    }

    #[test]
    fn a_part_never_hides_what_was_known() {
        let probe = probe();
        note(&probe, whole(100), Duration::ZERO);
        note(&probe, Some(Walked::Part(Figure { bytes: 10, inodes: 5 })), Duration::ZERO);
        let known = || probe.layer().map(|taken| taken.what);
        assert_eq!(known(), Some(Figure { bytes: 100, inodes: 5 }));
        // An error neither.
        note(&probe, None, Duration::ZERO);
        assert_eq!(known(), Some(Figure { bytes: 100, inodes: 5 }));
        note(&probe, whole(7), Duration::ZERO);
        assert_eq!(known(), Some(Figure { bytes: 7, inodes: 1 }));
    }

    /// One container with a layer at a path.
    struct One(Arc<ContainerProbe>, PathBuf);

    impl Layers for One {
        type Id = &'static str;

        fn each(&self, show: &mut dyn FnMut(&Self::Id, Arc<ContainerProbe>)) {
            show(&"one", self.0.clone());
        }

        fn directory(&self, _: &Self::Id) -> io::Result<PathBuf> {
            Ok(self.1.clone())
        }
    }

    /// Waits for at most ten seconds.
    async fn until(what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..1000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}");
    }

    #[tokio::test]
    async fn a_new_layer_is_counted_at_once_and_its_file_systems_size_is_known() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let probe = Arc::new(probe());
        let layers = Arc::new(One(probe.clone(), root.path().to_owned()));
        let walker = Arc::new(Walker::default());
        assert!(walker.room().is_none() && probe.layer().is_none());
        let running = tokio::spawn(walker.clone().run(layers, root.path().to_owned()));
        until("no figure of the layer", || probe.layer().is_some_and(|taken| taken.what.inodes == 1)).await;
        until("no size of the file system", || walker.room().is_some_and(|room| room.bytes > 0)).await;
        // Nothing waits for the next walk meanwhile, and a wake without anything due begins none.
        walker.wake();
        assert!(!running.is_finished() && !probe.layer_state().walking);
        running.abort();
    }
}

//! podman and criox at work on one store at the same time, with kills.
//!
//! podman pulls, removes, loads, builds, prunes, checks and copies out in a loop; criox pulls the same images (they share
//! their lowest layers), runs up to twenty pods from them and removes them; each is killed now and then in the middle.
//! Throughout, records and directories are held against each other, and every file of every running container against a
//! list of digests that the image brings along.
#![expect(clippy::print_stderr, reason = "says what was done, for the ten-minute run")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use testkit::image::sha256;
use testkit::{Compression, Cri, Daemon, Entry, Error, Registry, Result, busybox_image};

use crate::peers::{Original, Peers, put, same, text};
use crate::store::contradictions;

/// Images that both sides pull and remove; one more is there to be loaded and built upon.
const IMAGES: u64 = 4;
/// Files of each, beside those that all share.
const FILES: usize = 120;
/// Pods that run at once.
const PODS: usize = 20;
/// Pods that are removed when there are so many.
const REMOVED: usize = 8;
/// criox is killed after so many new pods.
const PODS_PER_KILL: u64 = 7;
/// How often something is tried that the other side may undo at the same time.
const TRIES: usize = 6;
/// A contradiction counts when it is still there after so many looks.
const LOOKS: usize = 10;

pub(crate) fn both_at_once() -> Result {
    let seconds = number("CRIOX_INTEROP_SECONDS")?.unwrap_or(45);
    let seed = number("CRIOX_INTEROP_SEED")?.unwrap_or(u64::from(std::process::id()) << 8);
    walk(seed, Duration::from_secs(seconds)).map_err(|error| format!("seed {seed}: {error}").into())
}

fn number(variable: &str) -> Result<Option<u64>> {
    Ok(std::env::var(variable).ok().map(|text| text.parse()).transpose()?)
}

fn walk(seed: u64, time: Duration) -> Result {
    let registry = Registry::start()?;
    let references = push_images(&registry)?;
    let mut daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let dir = tempfile::Builder::new().prefix("criox-interop-").tempdir()?;
    let load = Load::new(Peers::of(&daemon)?, daemon.root(), &references, dir.path().to_owned(), seed)?;
    std::thread::scope(|scope| {
        let podman = scope.spawn(|| load.until_over(|step| load.podman_step(step)));
        let look = scope.spawn(|| load.until_over(|_| load.look()));
        let result = load.criox_side(&mut daemon, Instant::now() + time);
        load.over.store(true, Ordering::SeqCst);
        let others = [podman.join(), look.join()];
        result?;
        if others.iter().any(std::result::Result::is_err) {
            Err("a thread panicked".into())
        } else {
            load.faultless()
        }
    })?;
    eprintln!("{load:?}");
    let cri = daemon.cri()?;
    cri.remove_all_pods()?;
    for original in &load.originals {
        cri.pull(&original.reference)?;
        original.copied_out(&load.peers)?;
    }
    same("podman's whole check", &load.peers.check(false)?, &None)?;
    same("contradictions", &contradictions(&daemon.root())?, &Vec::new())?;
    daemon.finish()
}

/// Images with files of their own and a list of the digests, on common lowest layers.
fn push_images(registry: &Registry) -> Result<Vec<String>> {
    (0..=IMAGES)
        .map(|n| {
            let mut sums = String::new();
            let mut entries = vec![Entry::dir(&format!("data-{n}"))];
            for file in 0..FILES {
                let (path, content) =
                    (format!("data-{n}/{file}"), format!("{n} {file} ").repeat(50 * (file % 7)));
                let digest = sha256(content.as_bytes());
                sums.push_str(&format!("{}  /{path}\n", digest.trim_start_matches("sha256:")));
                entries.push(Entry::file(&path, content));
            }
            let compression = match n % 3 {
                0 => Compression::Gzip,
                1 => Compression::Zstd,
                _ => Compression::None,
            };
            busybox_image()?
                .layer_as(&entries, compression)
                .layer(&[Entry::dir("etc"), Entry::file("etc/sums", sums)])
                .build()?
                .push(registry, &format!("interop/load-{n}"), "1")
        })
        .collect()
}

/// What both sides share.
struct Load {
    peers: Peers,
    root: PathBuf,
    originals: Vec<Original>,
    dir: PathBuf,
    archive: String,
    random: Random,
    /// Held for each of podman's steps and each look, so that both can be made to wait.
    turn: Mutex<()>,
    /// criox was killed, and podman hasn't looked since: what lies there half-made is not to be judged yet.
    dead: AtomicBool,
    over: AtomicBool,
    faults: Mutex<Vec<String>>,
    steps: AtomicU64,
    pods: AtomicU64,
    kills: AtomicU64,
    retries: AtomicU64,
}

impl std::fmt::Debug for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [steps, pods, kills, retries] =
            [&self.steps, &self.pods, &self.kills, &self.retries].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{steps} steps of podman and looks, {pods} pods, {kills} kills, {retries} retries")
    }
}

struct Pod {
    id: String,
    container: String,
}

impl Load {
    fn new(peers: Peers, root: PathBuf, references: &[String], dir: PathBuf, seed: u64) -> Result<Self> {
        let originals =
            references.iter().map(|reference| Original::of(&peers, reference)).collect::<Result<Vec<_>>>()?;
        let last = &originals.last().ok_or("no image")?.reference;
        let archive = dir.join("archive.tar").display().to_string();
        peers.podman(&["pull", "--quiet", last])?;
        peers.podman(&["tag", last, LOADED])?;
        peers.podman(&["save", "--quiet", "-o", &archive, LOADED])?;
        peers.podman(&["rmi", LOADED, last])?;
        let text = format!("FROM {last}\nRUN echo built > /built\n");
        put(&dir.join("Containerfile"), text.as_bytes())?;
        Ok(Self {
            peers,
            root,
            originals,
            dir,
            archive,
            random: Random(AtomicU64::new(seed)),
            turn: Mutex::default(),
            dead: AtomicBool::default(),
            over: AtomicBool::default(),
            faults: Mutex::default(),
            steps: AtomicU64::default(),
            pods: AtomicU64::default(),
            kills: AtomicU64::default(),
            retries: AtomicU64::default(),
        })
    }

    /// Runs `step` again and again. The first error ends everything.
    fn until_over(&self, step: impl Fn(u64) -> Result) {
        let mut n = 0;
        while !self.over.load(Ordering::SeqCst) {
            if let Err(error) = step(n) {
                self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                return;
            }
            n += 1;
            self.steps.fetch_add(1, Ordering::Relaxed);
            // A mutex isn't fair: whoever waits for a turn gets it now.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn faultless(&self) -> Result {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ").into()) }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Any of the images that both sides use.
    fn any(&self) -> Result<&Original> {
        let n = usize::try_from(self.random.below(IMAGES))?;
        self.originals.get(n).ok_or_else(|| "there are fewer images".into())
    }

    /// Tries anew what fails because the other side removed an image or a layer in the middle.
    fn insist<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let mut tried = 1;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) if tried == TRIES => return Err(error),
                Err(error) => {
                    eprintln!("once more: {error}");
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    tried += 1;
                }
            }
        }
    }
}

/// The name that the archive's image gets.
const LOADED: &str = "localhost/interop/loaded:1";
/// The name of the image that podman builds.
const BUILT: &str = "localhost/interop/built:1";

/// podman's side.
impl Load {
    fn podman_step(&self, step: u64) -> Result {
        let _turn = self.turn();
        let peers = &self.peers;
        let podman = |args: &[&str]| self.insist(|| peers.podman(args)).map(drop);
        let last = &self.originals.last().ok_or("no image")?.reference;
        match step % 10 {
            0 | 5 => podman(&["pull", "--quiet", &self.any()?.reference]),
            1 => {
                let original = self.any()?;
                self.insist(|| {
                    peers.podman(&["pull", "--quiet", &original.reference])?;
                    original.copied_out(peers)
                })
            }
            2 => {
                // One that a container uses stays.
                drop(peers.podman(&["rmi", &self.any()?.reference]));
                Ok(())
            }
            3 => podman(&["load", "--quiet", "-i", &self.archive]),
            4 if step % 20 == 4 => {
                podman(&["pull", "--quiet", last])?;
                podman(&[
                    "build",
                    "--quiet",
                    "--pull=never",
                    "--isolation=chroot",
                    "-t",
                    BUILT,
                    text(&self.dir),
                ])?;
                same("the built file", &peers.run(BUILT, &["cat", "/built"])?.as_str(), &"built\n")
            }
            4 => podman(&["rmi", "--ignore", LOADED, BUILT]),
            6 => self.podman_dies(),
            7 => podman(&["image", "prune", "--force", "--all"]),
            8 => podman(&["system", "prune", "--force", "--external"]),
            _ => self.checks(),
        }
    }

    /// podman's quick check, which takes its lists one after the other: what it finds counts when it finds it thrice.
    fn checks(&self) -> Result {
        let mut found = None;
        for _ in 0..3 {
            found = self.peers.check(true)?;
            if found.is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        same("podman's quick check", &found, &None)
    }

    /// A podman that is killed in the middle of a pull; the next one clears up, what it tried the file system with included.
    fn podman_dies(&self) -> Result {
        let reference = &self.any()?.reference;
        drop(self.peers.podman(&["rmi", reference]));
        let mut podman = self.peers.podman_command(&["pull", "--quiet", reference])?;
        let mut podman = podman.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(self.random.below(600)));
        podman.kill()?;
        podman.wait()?;
        self.peers.podman(&["system", "prune", "--force", "--external"]).map(drop)
    }

    /// Looks for contradictions; one that stays is a fault.
    fn look(&self) -> Result {
        let _turn = self.turn();
        let mut lasting: Option<Vec<String>> = None;
        for _ in 0..LOOKS {
            let found = contradictions(&self.root)?;
            let seen = match lasting {
                None => found,
                Some(lasting) => lasting.into_iter().filter(|line| found.contains(line)).collect(),
            };
            if seen.is_empty() || self.dead.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(200));
                return Ok(());
            }
            lasting = Some(seen);
            std::thread::sleep(Duration::from_millis(200));
        }
        same("contradictions", &lasting, &None)
    }
}

/// criox's side.
impl Load {
    fn criox_side(&self, daemon: &mut Daemon, end: Instant) -> Result {
        let mut pods: VecDeque<Pod> = VecDeque::new();
        let mut cri = daemon.cri()?;
        while Instant::now() < end {
            self.faultless()?;
            let n = self.pods.fetch_add(1, Ordering::Relaxed);
            pods.push_back(self.run_pod(&cri, &format!("load-{n}"))?);
            let any = usize::try_from(self.random.below(pods.len() as u64))?;
            whole(&cri, &pods[any])?;
            if pods.len() == PODS {
                pods.iter().try_for_each(|pod| whole(&cri, pod))?;
                for pod in pods.drain(..REMOVED) {
                    cri.stop(&pod.container, 0)?;
                    cri.stop_pod(&pod.id)?;
                    cri.remove_pod(&pod.id)?;
                }
                // In use, it stays.
                drop(cri.remove_image(&self.any()?.reference));
            }
            if n % PODS_PER_KILL == PODS_PER_KILL - 1 {
                cri = self.kill(daemon, &pods)?;
            }
        }
        pods.iter().try_for_each(|pod| whole(&cri, pod))
    }

    fn run_pod(&self, cri: &Cri, name: &str) -> Result<Pod> {
        let config = cri.host_network_pod(name);
        let id = cri.run_pod(&config)?;
        let reference = &self.any()?.reference;
        // podman's prune may take the image between the two calls, but not while one is under way.
        let container = self.insist(|| {
            cri.pull(reference).map_err(|error| -> Error { format!("pull: {error}").into() })?;
            Ok(cri.create(&id, &cri.container("c", reference, &["sleep", "100000"]), &config)?)
        })?;
        cri.start(&container)?;
        Ok(Pod { id, container })
    }

    /// SIGKILL in the middle of removing, pulling, creating and starting; podman and its check have to pass before criox
    /// is back, and no running container may have noticed.
    fn kill(&self, daemon: &mut Daemon, pods: &VecDeque<Pod>) -> Result<Cri> {
        let (cri, reference) = (daemon.cri()?, self.any()?.reference.clone());
        let name = format!("killed-{}", self.kills.fetch_add(1, Ordering::Relaxed));
        let busy = std::thread::spawn(move || {
            drop(cri.remove_image(&reference));
            drop(cri.pull(&reference));
            let config = cri.host_network_pod(&name);
            if let Ok(pod) = cri.run_pod(&config)
                && let Ok(container) =
                    cri.create(&pod, &cri.container("c", &reference, &["sleep", "100000"]), &config)
            {
                drop(cri.start(&container));
            }
        });
        std::thread::sleep(Duration::from_millis(self.random.below(800)));
        self.dead.store(true, Ordering::SeqCst);
        daemon.kill()?;
        busy.join().map_err(|_| "the thread that was at work panicked")?;
        {
            let _turn = self.turn();
            self.peers.podman(&["images"])?;
            same("podman's quick check after a kill", &self.peers.check(true)?, &None)?;
            let mut found = contradictions(&self.root)?;
            // Data of an image whose record was not yet written is swept by criox, or by the peers' prune.
            found.retain(|line| line.starts_with("layer"));
            same("contradictions after a kill", &found, &Vec::new())?;
        }
        daemon.start()?;
        self.dead.store(false, Ordering::SeqCst);
        let cri = daemon.cri()?;
        pods.iter().try_for_each(|pod| whole(&cri, pod))?;
        for pod in cri.list_pods()?.iter().filter(|listed| pods.iter().all(|pod| pod.id != listed.id)) {
            cri.stop_pod(&pod.id)?;
            cri.remove_pod(&pod.id)?;
        }
        Ok(cri)
    }
}

/// Every file of a running container is as the image has it.
fn whole(cri: &Cri, pod: &Pod) -> Result {
    let answer =
        cri.exec(&pod.container, &["sh", "-c", "sha256sum -c -s /etc/sums 2>&1 && echo whole"], 60)?;
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    let what = format!("what looking at the files of container {} said", pod.container);
    same(&what, &(answer.exit_code, said.as_str()), &(0, "whole\n"))
}

/// Numbers that a seed repeats, as far as the other side's timing allows.
struct Random(AtomicU64);

impl Random {
    /// A number below `limit`: splitmix64 (Steele, Lea, Flood 2014).
    fn below(&self, limit: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

//! The daemon is killed at its Nth state-changing system call, N at random, in the middle of a whole life from pull to
//! removal. After each kill, before criox runs again, podman finds nothing wrong in the store; a restart and the same
//! requests once more end as if nothing had happened, and a pod that runs beside it never notices.
//!
//! `CRIOX_CRASH_SEED` repeats a run; each run's seed and call are printed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the seed of a failure must be seen")]

mod faults;
mod tracer;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use faults::{Place, STEPS, Script};
use testkit::harness::skip;
use testkit::{Result, wait_for};
use tracer::Tracer;

fn main() -> ExitCode {
    if let Some(code) = tracer::main() {
        return code;
    }
    testkit::harness::run(&[
        ("a kill at each failpoint is mended by a restart", kill_at_failpoints),
        ("an error at each failpoint leaves nothing, and the same request works then", error_at_failpoints),
        ("a kill at a random system call is mended by a restart, runs 1 to 10", || runs(0)),
        ("a kill at a random system call is mended by a restart, runs 11 to 20", || runs(1)),
        ("a kill at a random system call is mended by a restart, runs 21 to 30", || runs(2)),
        ("a kill at a random system call is mended by a restart, runs 31 to 40", || runs(3)),
    ])
}

/// Runs of one test.
const RUNS: u64 = 10;
/// Between the kill and the moment at which a process is seen to be dead.
const DEATH: Duration = Duration::from_secs(5);

fn runs(batch: u64) -> Result {
    if !tracer::SUPPORTED {
        return Err(skip("the tracer knows the registers of x86_64 only"));
    }
    let seed = match std::env::var("CRIOX_CRASH_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => u64::from(std::process::id()) << 20 ^ std::time::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    println!("CRIOX_CRASH_SEED={seed}");
    let mut random = Random(seed.wrapping_add(batch.wrapping_mul(0x1234_5678_9abc_def1)));
    let mut crash = Crash::new()?;
    crash.measure()?;
    for run in 1..=RUNS {
        let step = usize::try_from(random.below(crash.ends.len() as u64))?;
        let first = step.checked_sub(1).map_or(0, |before| crash.ends[before]);
        let call = first + 1 + random.below(crash.ends[step].saturating_sub(first).max(1));
        let number = batch * RUNS + run;
        let told = crash.run(call);
        let (_, name) = crash.tracer.counted().unwrap_or_default();
        println!("run {number}: killed at call {call} ({name}), meant for {:?}", crash.step_name(step));
        told.map_err(|error| {
            format!(
                "seed {seed}, run {number}, call {call} ({name}): {error}; the log ends: {}",
                crash.place.log_tail(40)
            )
        })?;
    }
    crash.place.finish()
}

struct Crash {
    place: Place,
    tracer: Tracer,
    /// A container that runs all the time, and must not notice.
    keeper: String,
    kept: Vec<faults::Process>,
    before: std::collections::BTreeSet<String>,
    /// How many calls were made up to the end of the start and of each step.
    ends: Vec<u64>,
}

impl Crash {
    fn new() -> Result<Self> {
        let place = Place::new()?;
        let (_, keeper) = place.cri()?.run("keeper", &place.image, &["sleep", "100000"])?;
        // The first life makes directories that stay, and podman makes its own.
        let cri = place.cri()?;
        let mut script = Script::new("script", &place.other);
        for step in STEPS {
            script.step(&cri, step)?;
        }
        check_store(&place)?;
        let (kept, before) = (place.processes(&keeper)?, place.everything()?);
        Ok(Self { place, tracer: Tracer::new()?, keeper, kept, before, ends: Vec::new() })
    }

    fn step_name(&self, step: usize) -> &'static str {
        step.checked_sub(1).map_or("start", |step| STEPS[step])
    }

    /// One life without a kill.
    fn measure(&mut self) -> Result {
        self.place.daemon.terminate()?;
        let command = self.tracer.command(&self.place.daemon.command(), 0)?;
        self.place.daemon.start_with(command)?;
        let mut ends = vec![self.tracer.counted()?.0];
        let cri = self.place.cri()?;
        let mut script = Script::new("script", &self.place.other);
        for step in STEPS {
            script.step(&cri, step)?;
            ends.push(self.tracer.counted()?.0);
        }
        println!("state-changing calls after the start and each step: {ends:?}");
        self.ends = ends;
        self.place.is_as(&self.before)
    }

    /// One life with a kill at that call.
    fn run(&mut self, call: u64) -> Result {
        let command = self.tracer.command(&self.place.daemon.command(), call)?;
        self.life(command).map(drop)
    }

    /// One life that ends early, and goes on after a restart; whether it did end early.
    fn life(&mut self, command: Command) -> Result<bool> {
        let place = &mut self.place;
        place.kill()?;
        let mut script = Script::new("script", &place.other);
        let mut steps = STEPS.iter();
        let mut failed = None;
        // Killed before it listens, it can't be connected to.
        match place.daemon.start_with(command) {
            Ok(()) => {
                let cri = place.cri()?;
                for step in steps.by_ref() {
                    if let Err(error) = script.step(&cri, step) {
                        died(place).map_err(|_| format!("{step} failed without a kill: {error}"))?;
                        failed = Some(step);
                        break;
                    }
                }
            }
            Err(error) => died(place).map_err(|_| format!("it does not start, without a kill: {error}"))?,
        }
        let early = died_already(place);
        place.kill()?;
        if place.processes(&self.keeper)? != self.kept {
            return Err("a running container was touched by the kill".into());
        }
        check_store(place).map_err(|error| format!("before the restart: {error}"))?;
        place.daemon.start()?;
        let cri = place.cri()?;
        Script::nothing_useless(&cri)?;
        for step in failed.into_iter().chain(steps) {
            script.step(&cri, step).map_err(|error| format!("{step} after the restart: {error}"))?;
        }
        if place.processes(&self.keeper)? != self.kept {
            return Err("a running container was touched by the restart".into());
        }
        place.is_as(&self.before)?;
        check_store(place).map_err(|error| format!("in the end: {error}"))?;
        Ok(early)
    }
}

/// Each place in the sources at which a test can make the daemon die.
fn failpoints() -> Result<Vec<String>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates");
    let (mut names, mut pending) = (Vec::new(), vec![crates]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir)?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path)?;
                let calls = text.split("failpoint::hit(\"").skip(1).chain(text.split("failpoint(\"").skip(1));
                names.extend(calls.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    names.sort();
    if names.len() < 20 || names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(format!("failpoints are missing or not unique: {names:?}").into());
    }
    Ok(names)
}

fn kill_at_failpoints() -> Result {
    let mut crash = Crash::new()?;
    for name in failpoints()? {
        let mut command = crash.place.daemon.command();
        command.env("CRIOX_FAILPOINTS", format!("{name}=kill"));
        let at = |place: &Place, error: testkit::Error| {
            format!("killed at {name}: {error}; the log ends: {}", place.log_tail(40))
        };
        match crash.life(command) {
            Ok(true) => {}
            Ok(false) => return Err(format!("no step of a life comes by {name}").into()),
            Err(error) => return Err(at(&crash.place, error).into()),
        }
    }
    crash.place.finish()
}

fn error_at_failpoints() -> Result {
    let mut crash = Crash::new()?;
    for name in failpoints()? {
        crash.place.daemon.terminate()?;
        let mut command = crash.place.daemon.command();
        command.env("CRIOX_FAILPOINTS", format!("{name}=error*1"));
        crash.place.daemon.start_with(command)?;
        let told = life_with_an_error(&mut crash);
        told.map_err(|error| {
            format!("an error at {name}: {error}; the log ends: {}", crash.place.log_tail(40))
        })?;
    }
    crash.place.finish()
}

/// A life in which one step fails, which is asked for again.
fn life_with_an_error(crash: &mut Crash) -> Result {
    let cri = crash.place.cri()?;
    let mut script = Script::new("script", &crash.place.other);
    let mut failed = false;
    for step in STEPS {
        match script.step(&cri, step) {
            Ok(()) => {}
            // What could not be started has ended; the kubelet makes another container.
            Err(_) if !failed && *step == "start" => {
                failed = true;
                script.another_container(&cri)?;
                script.step(&cri, "create")?;
                script.step(&cri, step)?;
            }
            Err(_) if !failed => {
                failed = true;
                Script::nothing_useless(&cri)?;
                script.step(&cri, step).map_err(|error| format!("{step}, asked for again: {error}"))?;
            }
            Err(error) => return Err(format!("{step}: {error}").into()),
        }
    }
    if crash.place.processes(&crash.keeper)? != crash.kept {
        return Err("a running container was touched".into());
    }
    crash.place.is_as(&crash.before)
}

/// Whether the daemon is dead by now.
fn died_already(place: &Place) -> bool {
    let stat = place.daemon.pid().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stat.is_none_or(|stat| stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

/// Whether the daemon has been killed.
fn died(place: &Place) -> Result {
    wait_for("the daemon to be dead", DEATH, || Ok(died_already(place).then_some(())))
}

/// podman's own look at the store.
fn check_store(place: &Place) -> Result {
    let Ok(podman) = testkit::daemon::peer("podman") else {
        return Err(skip("no podman to check the store with: run scripts/peers"));
    };
    let home = place.daemon.dir().join("podman");
    std::fs::create_dir_all(&home)?;
    let output = Command::new(podman)
        .arg("--root")
        .arg(place.daemon.root())
        .arg("--runroot")
        .arg(place.daemon.run_root())
        .arg("--tmpdir")
        .arg(home.join("tmp"))
        .args(["--cgroup-manager=cgroupfs", "--events-backend=none", "--storage-driver=overlay"])
        .args(["system", "check", "--quick"])
        .env("HOME", &home)
        .env("TMPDIR", &home)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = [output.stdout, output.stderr].concat();
    Err(format!("podman's check of the store: {}", String::from_utf8_lossy(&words)).into())
}

/// splitmix64: short, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

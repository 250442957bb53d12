//! A `main` for tests that need root and namespaces of their own.
//!
//! A test file with `harness = false` says
//! `fn main() -> ExitCode { testkit::harness::run(&[("a sentence", a_function), …]) }`. A process with threads can't
//! enter a mount namespace, so the binary runs itself anew inside one before the first test; the tests then run one after
//! the other, for they share that namespace. A panic or an `Err` fails a test and the rest goes on.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program reports on its terminal")]

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// A name that reads as a sentence, and the function that proves it.
pub type Test = (&'static str, fn() -> Result);

/// How long one test may take before the whole run is given up: a hanging test has no way to be ended alone.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// `$CRIOX_TEST_LIMIT` seconds, for runs that are long on purpose, else [`TEST_LIMIT`].
fn test_limit() -> Duration {
    let asked = std::env::var("CRIOX_TEST_LIMIT").ok().and_then(|text| text.parse().ok());
    asked.map_or(TEST_LIMIT, Duration::from_secs)
}

/// Set in the environment of the inner run, so that it doesn't start a third: the mount and the network namespace of the
/// outer one, as `/proc/self/ns` names them.
pub const INSIDE: &str = "CRIOX_TEST_SANDBOXED";

/// The one description of the namespaces, which the scripts use too.
const SANDBOXED: &str = include_str!("../../../scripts/sandboxed");

/// A test that can't run here. Returned as the error by [`skip`].
#[derive(Debug)]
struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The error with which a test says that it can't run on this machine, and why: `return Err(skip("no runsc"))`.
pub fn skip(reason: impl Into<String>) -> Error {
    Box::new(Skip(reason.into()))
}

/// What `cargo test` was asked for.
#[derive(Debug, Default)]
struct Filter {
    list: bool,
    exact: bool,
    only: Vec<String>,
    without: Vec<String>,
}

impl Filter {
    /// Reads libtest's arguments, as far as they mean something here; the others are refused, not ignored, but for those
    /// that can't change the outcome.
    fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut filter = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => filter.list = true,
                "--exact" => filter.exact = true,
                "--skip" => filter.without.push(args.next().ok_or("--skip wants a name")?),
                "--test-threads" | "--format" | "--color" => drop(args.next()),
                "-q" | "--quiet" | "--nocapture" | "--no-capture" | "--show-output" => {}
                _ if arg.starts_with("--test-threads=") => {}
                _ if arg.starts_with("--format=") || arg.starts_with("--color=") => {}
                _ if arg.starts_with('-') => return Err(format!("no such option: {arg}").into()),
                _ => filter.only.push(arg),
            }
        }
        Ok(filter)
    }

    fn takes(&self, name: &str) -> bool {
        let hit =
            |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        (self.only.is_empty() || self.only.iter().any(hit)) && !self.without.iter().any(hit)
    }
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Runs the tests that the command line asks for in private mount and network namespaces, and prints one line for each.
///
/// Without root nothing runs: each test is named with the reason, and the exit code is 0, so that `cargo test` can be
/// called by a user. With `CRIOX_TESTS_NEED_ROOT` set (the gate) that is a failure.
pub fn run(tests: &[Test]) -> ExitCode {
    run_then(tests, || Ok(()))
}

/// The same for tests that share something (see [`crate::Shared`]): `finish` gives it back after the last test, and its
/// failure is one more failed test. It is called also when the run is given up.
pub fn run_then(tests: &[Test], finish: fn() -> Result) -> ExitCode {
    let filter = match Filter::parse(std::env::args().skip(1)) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let chosen: Vec<&Test> = tests.iter().filter(|(name, _)| filter.takes(name)).collect();
    if filter.list {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        println!("0 tests run, {} filtered out", tests.len());
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        for (name, _) in &chosen {
            eprintln!("skipped: {name}: needs root for its namespaces");
        }
        let needed = std::env::var_os("CRIOX_TESTS_NEED_ROOT").is_some();
        return if needed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    if std::env::var_os(INSIDE).is_none() {
        return run_inside();
    }
    run_all(&chosen, tests.len(), finish)
}

/// Starts this very program, with its arguments, inside the namespaces.
fn run_inside() -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("error: cannot find this program: {error}");
            return ExitCode::FAILURE;
        }
    };
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let status = Command::new("sh")
        .args(["-c", SANDBOXED, "sandboxed", "--net"])
        .arg(program)
        .args(args)
        .env(INSIDE, namespaces())
        .status();
    match status {
        // A signal has no code; the tests' own report is on the terminal already.
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(101)),
        Err(error) => {
            eprintln!("error: cannot start a shell: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The mount and the network namespace that this process is in.
pub fn namespaces() -> String {
    let name = |kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
    format!("{} {}", name("mnt").display(), name("net").display())
}

/// The name of the common end in the report.
const FINISH: &str = "what the tests shared is given back";

fn run_all(chosen: &[&Test], all: usize, finish: fn() -> Result) -> ExitCode {
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for (name, test) in chosen {
        let start = Instant::now();
        match run_one(name, *test, finish) {
            Outcome::Passed => {
                passed += 1;
                println!("test {name} ... ok ({:.2} s)", start.elapsed().as_secs_f64());
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                println!("test {name} ... skipped");
                eprintln!("skipped: {name}: {reason}");
            }
            Outcome::Failed(reason) => {
                failed.push(*name);
                println!("test {name} ... FAILED ({:.2} s)", start.elapsed().as_secs_f64());
                eprintln!("failed: {name}: {reason}");
            }
        }
    }
    if let Outcome::Failed(reason) = run_one(FINISH, finish, || Ok(())) {
        failed.push(FINISH);
        eprintln!("failed: {FINISH}: {reason}");
    }
    let filtered = all - chosen.len();
    println!("\n{passed} passed, {} failed, {skipped} skipped, {filtered} filtered out", failed.len());
    for name in &failed {
        println!("    failed: {name}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// A thread of its own, so that a test that hangs is named instead of hanging the run.
fn run_one(name: &'static str, test: fn() -> Result, finish: fn() -> Result) -> Outcome {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
        // The receiver is gone only when this run is being given up.
        drop(sender.send(outcome(catch_unwind(AssertUnwindSafe(test)))));
    });
    if let Err(error) = thread {
        return Outcome::Failed(format!("no thread for it: {error}"));
    }
    receiver.recv_timeout(test_limit()).unwrap_or_else(|_| {
        eprintln!("failed: {name}: still running after {} s; giving up the run", test_limit().as_secs());
        if let Err(error) = finish() {
            eprintln!("failed: {FINISH}: {}", chain(error.as_ref()));
        }
        std::process::exit(101);
    })
}

fn outcome(result: std::thread::Result<Result>) -> Outcome {
    match result {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(skip) => Outcome::Skipped(skip.0.clone()),
            None => Outcome::Failed(chain(error.as_ref())),
        },
        // The panic hook has printed where it was.
        Err(_) => Outcome::Failed("panicked".to_owned()),
    }
}

/// An error with all its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(args: &[&str]) -> Filter {
        Filter::parse(args.iter().map(|&arg| arg.to_owned())).unwrap()
    }

    #[test]
    fn a_name_filters_by_part_and_exactly_when_asked() {
        assert!(filter(&["pod"]).takes("a pod runs"));
        assert!(!filter(&["pod", "--exact"]).takes("a pod runs"));
        assert!(filter(&["a pod runs", "--exact", "-q"]).takes("a pod runs"));
        assert!(!filter(&["--skip", "pod"]).takes("a pod runs"));
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(Filter::parse(["--ignored".to_owned()]).is_err());
    }

    #[test]
    fn a_skip_is_told_from_a_failure() {
        assert!(
            matches!(outcome(Ok(Err(skip("no runsc")))), Outcome::Skipped(reason) if reason == "no runsc")
        );
        assert!(matches!(outcome(Ok(Err("broken".into()))), Outcome::Failed(_)));
    }
}

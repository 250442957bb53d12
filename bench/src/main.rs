//! Drives any CRI socket with the same work and prints one table, with the ratios of that same run.
//!
//! Machines differ and are shared, so only figures of one run are compared: the sockets take turns, step by
//! step, and the bare programs (an OCI runtime, CNI plugins) take theirs in the same loop. `bench/run` starts
//! everything that is needed; the flags are in [`args::USAGE`].

mod args;
mod bare;
mod client;
mod images;
mod measure;
mod processes;
mod report;
mod sample;
mod workload;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use args::Command;

/// Whatever went wrong, with what it was about in its text.
type Failure = Box<dyn Error + Send + Sync>;

/// Writes a line of progress to standard error; a reader that went away is no reason to panic.
fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

fn run() -> Result<bool, Failure> {
    match args::parse(std::env::args().skip(1))? {
        Command::Help => {
            std::io::stdout().write_all(args::USAGE.as_bytes())?;
            Ok(true)
        }
        Command::Images(options) => images::write(&options).map(|()| true),
        Command::Measure(options) => {
            // One thread: the load generator should not compete with what it measures.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let report = runtime.block_on(measure::all(&options))?;
            std::io::stdout().write_all(report.to_string().as_bytes())?;
            let kept = !options.check || report.broken().is_empty();
            Ok(kept && report.failures().is_empty())
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            progress(&error.to_string());
            ExitCode::from(2)
        }
    }
}

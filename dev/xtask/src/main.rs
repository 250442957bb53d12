//! Checks of the repository that the compiler does not make.
//!
//! `cargo run -p xtask -- tidy` holds the invariants of `ARCHITECTURE.md`: every finding has a file, a line and
//! what to do about it; the exit code is 1 when there is any.

mod tidy;

use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- tidy\n";

/// Writes to a stream that may be closed; a reader that went away is no reason to panic.
fn say(mut stream: impl Write, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments != ["tidy"] {
        say(std::io::stderr(), USAGE);
        return ExitCode::from(2);
    }
    let findings = match tidy::run() {
        Ok(findings) => findings,
        Err(error) => {
            say(std::io::stderr(), &format!("tidy: {error}\n"));
            return ExitCode::from(2);
        }
    };
    for finding in &findings {
        say(std::io::stdout(), &format!("{finding}\n"));
    }
    if findings.is_empty() {
        say(std::io::stderr(), "tidy: nothing found\n");
        return ExitCode::SUCCESS;
    }
    say(std::io::stderr(), &format!("tidy: {} found\n", findings.len()));
    ExitCode::FAILURE
}

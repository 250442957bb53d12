//! The daemon and its command line.

mod cli;
mod commands;
mod connections;
mod daemon;
mod edge;
mod inspect;
mod logging;
mod node;
mod notify;
mod rpc;
mod server;
mod streaming;
mod upkeep;
mod wiring;

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use cli::Command;

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    let result = match invocation.command {
        Command::Run => run(invocation.overrides),
        Command::Config { default } => {
            commands::config::run(invocation.overrides, default, &mut io::stdout().lock()).map_err(Into::into)
        }
        Command::Version { json } => {
            commands::version::run(json, &mut io::stdout().lock()).map_err(Into::into)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; there is nobody left to tell then.
            drop(writeln!(io::stderr(), "criox: {}", criox_lifecycle::chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn run(overrides: criox_config::Overrides) -> Result<(), Box<dyn Error>> {
    // Two threads suffice for a node's requests; blocking work has a pool of its own, which shrinks when idle.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(daemon::run(overrides))?;
    // What still blocks in the kernel does not keep the daemon.
    runtime.shutdown_background();
    Ok(())
}

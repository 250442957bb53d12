//! The daemon's log: text or JSON, on standard error or in a file, at the level of the configuration.

use std::fs::File;
use std::io;
use std::sync::Mutex;

use criox_config::{Config, ProcessOptions};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Starts the log. `RUST_LOG`, where set, decides instead of `log_level`.
///
/// # Errors
/// The file of `--log` can't be opened.
pub(crate) fn start(config: &Config, process: &ProcessOptions) -> io::Result<()> {
    let level = config.runtime.log_level.to_string();
    let level = match level.as_str() {
        "fatal" | "panic" => "error",
        other => other,
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let writer = match &process.log {
        Some(path) => BoxMakeWriter::new(Mutex::new(File::options().append(true).create(true).open(path)?)),
        None => BoxMakeWriter::new(io::stderr),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    if process.log_json {
        log.json().init()
    } else {
        log.init()
    }
    Ok(())
}

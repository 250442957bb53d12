//! `criox version`.

use std::io::{self, Write};

use crate::cli;

/// Prints the version, as text or as JSON.
pub(crate) fn run(json: bool, out: &mut impl Write) -> io::Result<()> {
    out.write_all(cli::version(json).as_bytes())?;
    out.flush()
}

//! The command line, written by the daemon.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the daemon says at the start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) sandbox_id: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) exit_dir: Option<PathBuf>,
    pub(crate) verbose: bool,
}

pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Args, String> {
    let (mut sandbox_id, mut run_dir, mut exit_dir, mut verbose) = (None, None, None, false);
    let mut args = args;
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{} needs a value", name.display()));
        match name.to_str() {
            Some("--sandbox-id") => sandbox_id = Some(value()?),
            Some("--run-dir") => run_dir = Some(PathBuf::from(value()?)),
            Some("--exit-dir") => exit_dir = Some(PathBuf::from(value()?)),
            Some("--log-level") => verbose = matches!(value()?.to_str(), Some("debug" | "trace")),
            // A newer daemon may know more flags than this build.
            _ => return Err(format!("unknown argument {}", name.display())),
        }
    }
    let sandbox_id = sandbox_id.and_then(|id| id.into_string().ok()).ok_or("--sandbox-id is missing")?;
    let run_dir = run_dir.filter(|dir| dir.is_absolute()).ok_or("--run-dir is missing or not absolute")?;
    Ok(Args { sandbox_id, run_dir, exit_dir, verbose })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_sandbox_and_the_run_directory_are_needed() {
        let check = |text: &str| parse(text.split_whitespace().map(Into::into));
        let args = check("--sandbox-id a --run-dir /r --exit-dir /e --log-level debug").unwrap();
        assert!(
            args.sandbox_id == "a" && args.run_dir.ends_with("r") && args.exit_dir.is_some() && args.verbose
        );
        for wrong in
            ["", "--sandbox-id a", "--run-dir /r", "--sandbox-id a --run-dir r", "--sandbox-id", "--x"]
        {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}

//! Stand-ins for CNI plugins and OCI runtimes: the real program behind a script that can fail, hang and count.
//!
//! What a stand-in does for a verb (`ADD`, `create`) can be changed while the daemon runs.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::Result;

/// What happens when a verb is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// What the real program does.
    Real,
    /// An error in the way that its caller expects (CNI error on standard output, runtime log), code 1.
    Fail,
    /// Nothing, for a thousand seconds, and SIGTERM is ignored.
    Hang,
    /// The real thing, and then an error: the caller must undo what it can't see.
    FailAfter,
}

/// The text in every error that a stand-in makes.
pub const COMPLAINT: &str = "the stand-in was told to fail";

/// One program in a directory of its own.
#[derive(Debug)]
pub struct StandIn {
    dir: TempDir,
    path: PathBuf,
}

impl StandIn {
    /// Stands in for a CNI plugin; [`StandIn::dir`] is a plugin directory in which all others are the real ones.
    pub fn plugin(name: &str, plugins: &Path) -> Result<Self> {
        let stand_in = Self::new(name, &plugins.join(name))?;
        for entry in std::fs::read_dir(plugins)? {
            let entry = entry?;
            if entry.file_name() != name {
                symlink(entry.path(), stand_in.dir.path().join(entry.file_name()))?;
            }
        }
        Ok(stand_in)
    }

    /// Stands in for an OCI runtime; [`StandIn::path`] is the program to configure.
    pub fn runtime(real: &Path) -> Result<Self> {
        Self::new("runtime", real)
    }

    fn new(name: &str, real: &Path) -> Result<Self> {
        if !real.exists() {
            return Err(format!("there is no {} to stand in for", real.display()).into());
        }
        let dir = tempfile::Builder::new().prefix("criox-standin-").tempdir()?;
        let path = dir.path().join(name);
        let script = SCRIPT.replace("@REAL@", &real.display().to_string()).replace("@COMPLAINT@", COMPLAINT);
        let text = dir.path().join(".stand-in");
        std::fs::OpenOptions::new().write(true).create_new(true).open(&text)?.write_all(script.as_bytes())?;
        // Another process writes the program: a descriptor of ours could be inherited by a child that some other thread
        // starts just now, and starting the program would then fail with "text file busy".
        let status = Command::new("install").args(["-m", "755"]).arg(&text).arg(&path).status()?;
        if !status.success() {
            return Err(format!("install ended with {status} for {}", path.display()).into());
        }
        Ok(Self { dir, path })
    }

    /// The directory that the program is in; what it starts has it as working directory, so that a leak check finds it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From the next call on, `verb` (`ADD`, `DEL`, `CHECK`, `GC`, `STATUS`; `create`, `start`, `exec`, `kill`, `delete`,
    /// `features`) behaves like this.
    pub fn set(&self, verb: &str, behaviour: Behaviour) -> Result {
        let word = match behaviour {
            Behaviour::Real => "real",
            Behaviour::Fail => "fail",
            Behaviour::Hang => "hang",
            Behaviour::FailAfter => "fail-after",
        };
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(self.beside("mode"))?;
        // The last line about a verb counts, so that a reader never sees half a change.
        Ok(file.write_all(format!("{verb} {word}\n").as_bytes())?)
    }

    /// The verbs called so far, in order.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.beside("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.path.with_extension(suffix)
    }
}

const SCRIPT: &str = r#"#!/bin/sh
set -eu
PATH=$PATH:/usr/bin:/bin
verb=${CNI_COMMAND-} log='' previous=''
for word in "$@"; do
  if [ "$previous" = --log ]; then log=$word; fi
  case $word in
    --log=*) log=${word#--log=} ;;
    create | start | run | exec | kill | delete | state | features | pause | resume | update)
      if [ -z "$verb" ]; then verb=$word; fi ;;
  esac
  previous=$word
done
echo "$verb" >> "$0.calls"
complain() {
  if [ -n "${CNI_COMMAND-}" ]; then
    echo '{"cniVersion": "1.0.0", "code": 999, "msg": "@COMPLAINT@"}'
  else
    echo '@COMPLAINT@' >&2
    if [ -n "$log" ]; then echo '{"level": "error", "msg": "@COMPLAINT@", "time": "2026-01-01T00:00:00Z"}' >> "$log"; fi
  fi
  exit 1
}
mode=$(sed -n "s/^$verb //p" "$0.mode" 2> /dev/null | tail -n 1)
case $mode in
  fail) complain ;;
  hang)
    trap '' TERM
    cd "$(dirname "$0")"
    exec sleep 1000 ;;
  fail-after)
    "@REAL@" "$@" > /dev/null
    complain ;;
esac
exec "@REAL@" "$@"
"#;

#[cfg(test)]
mod tests {
    use std::process::Output;

    use super::*;

    fn call(stand_in: &StandIn, verb: &str, args: &[&str]) -> Output {
        Command::new(stand_in.path()).args(args).env("CNI_COMMAND", verb).output().unwrap()
    }

    #[test]
    fn a_plugin_fails_as_told_and_counts() {
        let stand_in = StandIn::plugin("echo", Path::new("/bin")).unwrap();
        assert_eq!(call(&stand_in, "ADD", &["real"]).stdout, b"real\n");
        stand_in.set("ADD", Behaviour::Fail).unwrap();
        let failed = call(&stand_in, "ADD", &[]);
        assert_eq!(failed.status.code(), Some(1));
        assert!(String::from_utf8(failed.stdout).unwrap().contains(COMPLAINT));
        assert!(call(&stand_in, "DEL", &[]).status.success());
        stand_in.set("ADD", Behaviour::Real).unwrap();
        assert!(call(&stand_in, "ADD", &[]).status.success());
        assert_eq!(stand_in.calls(), ["ADD", "ADD", "DEL", "ADD"]);
        assert!(stand_in.dir().join("true").exists());
    }

    #[test]
    fn a_runtime_fails_into_its_log() {
        let stand_in = StandIn::runtime(Path::new("/bin/true")).unwrap();
        stand_in.set("create", Behaviour::FailAfter).unwrap();
        let log = stand_in.dir().join("log");
        let status =
            Command::new(stand_in.path()).arg("--log").arg(&log).args(["create", "--bundle", "x"]).status();
        assert_eq!(status.unwrap().code(), Some(1));
        assert!(std::fs::read_to_string(log).unwrap().contains(COMPLAINT));
        assert_eq!(stand_in.calls(), ["create"]);
    }

    #[test]
    fn a_hanging_program_is_found_in_its_directory() {
        let stand_in = StandIn::runtime(Path::new("/bin/true")).unwrap();
        stand_in.set("start", Behaviour::Hang).unwrap();
        let mut child = Command::new(stand_in.path()).arg("start").spawn().unwrap();
        let traces = crate::Traces { dirs: vec![stand_in.dir().to_owned()], ..crate::Traces::default() };
        // The shell reads its orders first.
        let found = crate::wait_for("the program to hang", std::time::Duration::from_secs(10), || {
            let found = crate::leftovers(&traces);
            Ok((found.len() == 1 && found[0].contains("sleep")).then_some(()))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        found.unwrap();
    }
}

//! The real podman and skopeo, which `scripts/peers` puts into a private root.
#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The peers' programs, and the directory that holds the store (`graph`, `run`) and their own state.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    bin: PathBuf,
    base: PathBuf,
}

impl Peers {
    /// Says on stderr what is missing.
    pub(crate) fn find(base: &Path) -> Option<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
        let bin =
            std::env::var_os("CRIOX_PEERS").map_or_else(|| target.join("peers"), PathBuf::from).join("bin");
        if !bin.join("podman").exists() || !bin.join("skopeo").exists() {
            eprintln!("skipped: no podman and skopeo in {}; scripts/peers installs them", bin.display());
            return None;
        }
        Some(Self { bin, base: base.to_owned() })
    }

    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<String, String> {
        let output = Command::new(self.bin.join(program))
            .args(arguments)
            .env("HOME", &self.base)
            .env("TMPDIR", &self.base)
            .output()
            .map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        Err(format!("{program} {arguments:?}: {}\n{out}\n{err}", output.status))
    }

    /// podman on the store, with nothing of the machine.
    pub(crate) fn podman(&self, arguments: &[&str]) -> Result<String, String> {
        let (graph, run, tmp) = (self.base.join("graph"), self.base.join("run"), self.base.join("tmp"));
        let mut all: Vec<&OsStr> = vec![
            "--root".as_ref(),
            graph.as_ref(),
            "--runroot".as_ref(),
            run.as_ref(),
            "--tmpdir".as_ref(),
            tmp.as_ref(),
            "--cgroup-manager=cgroupfs".as_ref(),
            "--events-backend=none".as_ref(),
            "--storage-driver=overlay".as_ref(),
        ];
        all.extend(arguments.iter().map(OsStr::new));
        self.run("podman", &all)
    }

    /// Copies an image without looking at its signatures.
    pub(crate) fn skopeo_copy(&self, from: &str, to: &str) -> Result<String, String> {
        self.run("skopeo", &["--insecure-policy".as_ref(), "copy".as_ref(), from.as_ref(), to.as_ref()])
    }
}

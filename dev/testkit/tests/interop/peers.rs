//! podman, skopeo and buildah, with a store given.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use testkit::{Daemon, Registry, Result, Traces, leftovers, wait_for};

/// How long podman's monitor may take to end after its container.
const LIMIT: Duration = Duration::from_secs(20);

/// Other people's programs on one store.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    root: PathBuf,
    run_root: PathBuf,
    /// podman's own run directory, beside the store.
    tmp: PathBuf,
    registries: PathBuf,
}

impl Peers {
    /// On the store of a daemon.
    pub(crate) fn of(daemon: &Daemon) -> Result<Self> {
        let tmp = daemon.dir().join("libpod");
        std::fs::create_dir_all(&tmp)?;
        Ok(Self {
            root: daemon.root(),
            run_root: daemon.run_root(),
            tmp,
            registries: daemon.dir().join("registries.conf"),
        })
    }

    /// On a store of their own below `dir`, to make images with.
    pub(crate) fn apart(dir: &Path, registry: &Registry) -> Result<Self> {
        let peers = Self {
            root: dir.join("root"),
            run_root: dir.join("run"),
            tmp: dir.join("libpod"),
            registries: dir.join("registries.conf"),
        };
        for dir in [&peers.root, &peers.run_root, &peers.tmp] {
            std::fs::create_dir_all(dir)?;
        }
        let text = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.address());
        put(&peers.registries, text.as_bytes())?;
        Ok(peers)
    }

    /// `podman ARGS`; what it wrote on its output.
    pub(crate) fn podman(&self, args: &[&str]) -> Result<String> {
        successful("podman", args, self.podman_command(args)?.output()?)
    }

    /// A podman to be started by the caller.
    pub(crate) fn podman_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command("podman")?;
        command.arg("--root").arg(&self.root).arg("--runroot").arg(&self.run_root);
        command.arg("--tmpdir").arg(&self.tmp).args(args);
        Ok(command)
    }

    /// `podman run` of a command in a container without a network and cgroups of its own.
    pub(crate) fn run(&self, image: &str, command: &[&str]) -> Result<String> {
        let mut args = vec!["run", "--rm", "--pull=never", "--network=host", "--cgroups=disabled", image];
        args.extend(command);
        let output = self.podman(&args)?;
        // podman goes before its monitor does, which still names the store.
        let traces = Traces { dirs: vec![self.root.clone()], ..Traces::default() };
        wait_for("the end of podman's monitor", LIMIT, || {
            let left = leftovers::processes(&traces);
            Ok((!left.iter().any(|(_, name)| name.contains("/conmon "))).then_some(()))
        })?;
        Ok(output)
    }

    /// `podman system check`: its complaint, if it has one. Quick, it looks at records and directories only; else it
    /// exports every layer and holds the digests, and what lies on disk, against the records.
    pub(crate) fn check(&self, quick: bool) -> Result<Option<String>> {
        let mut args = vec!["system", "check"];
        args.extend(quick.then_some("--quick"));
        let output = self.podman_command(&args)?.output()?;
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&text).into_owned()))
    }

    /// `buildah ARGS`.
    pub(crate) fn buildah(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command("buildah")?;
        command.arg("--root").arg(&self.root).arg("--runroot").arg(&self.run_root).args(args);
        successful("buildah", args, command.output()?)
    }

    /// `skopeo ARGS`.
    pub(crate) fn skopeo(&self, args: &[&str]) -> Result<Vec<u8>> {
        let output = self.command("skopeo")?.arg("--insecure-policy").args(args).output()?;
        if !output.status.success() {
            return Err(failure("skopeo", args, &output).into());
        }
        Ok(output.stdout)
    }

    /// An image of the store, as skopeo names it.
    pub(crate) fn stored(&self, reference: &str) -> String {
        format!("containers-storage:[overlay@{}+{}]{reference}", self.root.display(), self.run_root.display())
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(testkit::daemon::peer(program)?);
        // A peer that is killed leaves its blobs where it put them.
        command.env("CONTAINERS_REGISTRIES_CONF", &self.registries).env("TMPDIR", &self.tmp).current_dir("/");
        Ok(command)
    }
}

fn successful(program: &str, args: &[&str], output: Output) -> Result<String> {
    if !output.status.success() {
        return Err(failure(program, args, &output).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn failure(program: &str, args: &[&str], output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    format!("{program} {}: {}: {}", args.join(" "), output.status, error.trim_end())
}

/// An image as its registry has it, told by skopeo.
#[derive(Debug, Clone)]
pub(crate) struct Original {
    pub(crate) reference: String,
    /// `sha256:` and hexadecimal digits of the manifest.
    pub(crate) digest: String,
    /// Hexadecimal digits of the configuration's digest.
    pub(crate) id: String,
    pub(crate) diff_ids: Vec<String>,
}

impl Original {
    /// Asks the registry.
    pub(crate) fn of(peers: &Peers, reference: &str) -> Result<Self> {
        let url = format!("docker://{reference}");
        let manifest = peers.skopeo(&["inspect", "--tls-verify=false", "--raw", &url])?;
        let config = peers.skopeo(&["inspect", "--tls-verify=false", "--config", "--raw", &url])?;
        // It ends the raw configuration with a newline that isn't there.
        let parsed: serde_json::Value = serde_json::from_slice(&manifest)?;
        let id = parsed["config"]["digest"].as_str().ok_or("the manifest names no configuration")?;
        let config: serde_json::Value = serde_json::from_slice(&config)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().ok_or("the configuration has no layers")?;
        Ok(Self {
            reference: reference.to_owned(),
            digest: testkit::image::sha256(&manifest),
            id: id.trim_start_matches("sha256:").to_owned(),
            diff_ids: diff_ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect(),
        })
    }

    /// The repository with the manifest's digest.
    pub(crate) fn repo_digest(&self) -> String {
        let repository = self.reference.rsplit_once(':').map_or("", |(repository, _)| repository);
        format!("{repository}@{}", self.digest)
    }

    /// Copies the image out of the store with skopeo and compares: every layer's archive is byte for byte that of the
    /// registry, and manifest and configuration are the registry's.
    pub(crate) fn copied_out(&self, peers: &Peers) -> Result {
        let dir = tempfile::Builder::new().prefix("criox-copy-").tempdir()?;
        let to = format!("dir:{}", text(dir.path()));
        let stored = peers.stored(&self.reference);
        peers.skopeo(&["copy", "--quiet", &stored, &to])?;
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("manifest.json"))?)?;
        let layers: Vec<&str> = manifest["layers"]
            .as_array()
            .ok_or("the copied manifest has no layers")?
            .iter()
            .filter_map(|layer| layer["digest"].as_str())
            .collect();
        same("the layers of the copy", &layers, &self.diff_ids.iter().map(String::as_str).collect())?;
        let config = format!("sha256:{}", self.id);
        for digest in layers.into_iter().chain([config.as_str()]) {
            let bytes = std::fs::read(dir.path().join(digest.trim_start_matches("sha256:")))?;
            same("a copied blob", &testkit::image::sha256(&bytes), &digest.to_owned())?;
        }
        let raw = peers.skopeo(&["inspect", "--raw", &stored])?;
        same("the stored manifest", &testkit::image::sha256(&raw), &self.digest)
    }
}

/// An error that says what differs.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?} instead of {expected:?}").into())
}

/// The parsed output of a command with `--format json`.
pub(crate) fn json_list(output: &str) -> Result<Vec<serde_json::Value>> {
    Ok(serde_json::from_str(output)?)
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

/// Writes a file of the test's own.
#[expect(clippy::disallowed_methods, reason = "a new file in a test's own directory")]
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result {
    std::fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

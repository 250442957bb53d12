//! The network with plugins: fakes that record what they are given, and the real ones.
//!
//! Each test runs once more in a process of its own with a network namespace that plays the host, and a mount
//! namespace in which the pods' are pinned, so that nothing of the machine is touched and nothing stays.

mod fake;
mod real;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use criox_sys::netns;

use crate::plugin::tests::write_plugin;
use crate::{AttachRequest, Network, NetworkOptions, NetworkStatus};

const INSIDE: &str = "CRIOX_NETWORK_TEST_INSIDE";

/// Runs `body` in a private host; `name` is the test's own path below this module.
fn in_private_host<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    in_private_host_with(name, &path, body);
}

/// The same, with another search path for programs.
fn in_private_host_with<F: Future<Output = ()>>(name: &str, path: &OsStr, body: impl FnOnce() -> F) {
    if let Some(mark) = std::env::var_os(INSIDE) {
        let lo = netns::current().unwrap();
        netns::loopback_up(lo.as_fd()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(body());
        // Proves that the test ran: a name that is wrong would select none, and nothing would fail.
        return std::fs::remove_file(mark).unwrap();
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("{name}: not run, making network namespaces needs root");
        return;
    }
    let mark = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("network::tests::{name}"), "--nocapture", "--test-threads", "1"])
        .env("PATH", path)
        .env(INSIDE, mark.path())
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its private host");
    assert!(!mark.path().exists(), "{name} is not the name of the test");
}

/// Directories of one node.
struct Node {
    dir: tempfile::TempDir,
    bin: PathBuf,
}

/// What a test leaves pinned would keep the directory from being removed.
impl Drop for Node {
    fn drop(&mut self) {
        let pins = std::fs::read_dir(self.path("netns")).into_iter().flatten().flatten();
        for pin in pins {
            // One that was unpinned is a plain file.
            let _ = rustix::mount::unmount(pin.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin", "netns", "cache"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bin = dir.path().join("bin");
        Self { dir, bin }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> NetworkOptions {
        NetworkOptions {
            conf_dir: self.path("net.d"),
            plugin_dirs: vec![self.bin.clone()],
            cache_dir: self.path("cache"),
            ..NetworkOptions::default()
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a fixture")]
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn network(&self) -> Network {
        Network::new(self.options()).unwrap()
    }

    /// Makes and pins a network namespace for a pod.
    fn pin(&self, name: &str) -> PathBuf {
        let path = self.path("netns").join(name);
        std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let status =
            Command::new("unshare").arg(format!("--net={}", path.display())).arg("true").status().unwrap();
        assert!(status.success());
        path
    }

    fn unpin(&self, path: &Path) {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    fn request(&self, id: &str) -> AttachRequest {
        AttachRequest {
            sandbox_id: id.into(),
            netns: self.pin(id),
            namespace: "default".into(),
            name: format!("pod-{id}"),
            uid: format!("uid-{id}"),
            ..AttachRequest::default()
        }
    }

    /// A plugin that records each call and then does `body`.
    fn fake(&self, name: &str, body: &str) {
        let dir = self.dir.path().display();
        let body = format!(
            "stdin=$(cat)\n\
             echo \"{name} $CNI_COMMAND id=$CNI_CONTAINERID netns=$CNI_NETNS if=$CNI_IFNAME args=$CNI_ARGS\" >>{dir}/calls\n\
             printf %s \"$stdin\" >{dir}/{name}.$CNI_COMMAND\n{body}"
        );
        write_plugin(&self.bin, name, &body);
    }

    /// What was called, as `plugin VERB`, and forgets it.
    fn calls(&self) -> Vec<String> {
        let words = |line: &String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        self.lines().iter().map(words).collect()
    }

    /// The recorded calls in full, and forgets them.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _none = std::fs::remove_file(self.path("calls"));
        text.lines().map(str::to_owned).collect()
    }

    /// What a plugin was last given on stdin.
    fn stdin(&self, name: &str, verb: &str) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(&format!("{name}.{verb}"))).unwrap()).unwrap()
    }
}

/// Waits until the status is as wanted.
async fn until(network: &Network, what: &str, wanted: impl FnMut(&NetworkStatus) -> bool) {
    let mut wanted = wanted;
    let mut status = network.subscribe();
    let waited =
        tokio::time::timeout(std::time::Duration::from_secs(20), status.wait_for(|now| wanted(now))).await;
    assert!(waited.is_ok(), "{what}: {:?}", network.status());
}

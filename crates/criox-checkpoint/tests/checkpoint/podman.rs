//! podman's own checkpoint is read here, and what we write of it podman restores.

use std::path::{Path, PathBuf};
use std::process::Command;

use criox_checkpoint::{Cancel, Limits, archive, names, peek, unpack};

use crate::harness::{is_root, put};

/// A container that counts, is checkpointed and removed.
const CHECKPOINT: &str = r#"
mkdir -p root/bin root/proc root/sys root/dev root/etc root/tmp
cp "$(command -v busybox)" root/bin/busybox
ln -s busybox root/bin/sh
tar -C root -c . | podman import - localhost/counter:1 >/dev/null
podman run --detach --name one --network none --cgroup-parent "/$GROUP" localhost/counter:1 \
  /bin/sh -c 'echo made > /tmp/made; i=0; while true; do i=$((i+1)); echo $i; /bin/busybox sleep 0.1; done' >/dev/null
for try in $(seq 600); do podman logs one 2>/dev/null | grep -q '^5$' && break; sleep 0.1; done
podman container checkpoint --export "$BASE/podman.tar" --compress none --file-locks one >/dev/null
podman rm --force --time 0 one >/dev/null
"#;

/// It goes on where it was, with the file that it had made.
const RESTORE: &str = r#"
podman container restore --import "$BASE/ours.tar" --name two >/dev/null
for try in $(seq 600); do podman logs two 2>/dev/null | grep -q . && break; sleep 0.1; done
podman exec two /bin/busybox cat /tmp/made
podman logs two | head -n 1
podman rm --force --time 0 two >/dev/null
podman rmi --all --force >/dev/null
"#;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The peers that `scripts/peers` unpacks; says what is missing.
fn peers() -> Option<PathBuf> {
    if criox_sys::cgroup::both_versions().unwrap_or(true) {
        eprintln!("skipped: cgroup v1 and v2 are mounted at once, and CRIU would copy all of v2's groups");
        return None;
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let peers = std::env::var_os("CRIOX_PEERS").map_or_else(|| target.join("peers"), PathBuf::from);
    for program in ["podman", "crun", "criu"] {
        if !peers.join("bin").join(program).exists() {
            eprintln!("skipped: no {program} in {}; scripts/peers installs it", peers.display());
            return None;
        }
    }
    Some(peers)
}

/// Runs a script where containers can run, with podman on a store of its own.
fn script(peers: &Path, base: &Path, text: &str) -> Result<String, String> {
    let head = format!(
        r#"set -eu
cd "$BASE"
podman() {{
  "$PEERS/bin/podman" --root "$BASE/graph" --runroot "$BASE/run" --tmpdir "$BASE/tmp" --cgroup-manager=cgroupfs \
    --events-backend=none --storage-driver=overlay --runtime "$PEERS/bin/crun" --log-level=error "$@"
}}
trap 'status=$?; podman rm --all --force --time 0 >/dev/null 2>&1 || true; exit $status' EXIT
{text}"#
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(repository().join("scripts/sandboxed"))
        .args(["--net", "timeout", "120", "bash", "-c", &head])
        .env("PATH", format!("{}/bin:{path}", peers.display()))
        .env("PEERS", peers)
        .env("BASE", base)
        .env("GROUP", group(base))
        .env("HOME", base)
        .env("TMPDIR", base)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// The cgroup of the test's containers, named as its directory.
fn group(base: &Path) -> String {
    let name = base.file_name().unwrap().to_string_lossy();
    format!("criox-podman-{}", name.trim_start_matches('.'))
}

/// Removes the cgroup, which podman leaves, from all hierarchies.
struct Swept<'a>(&'a Path);

impl Drop for Swept<'_> {
    fn drop(&mut self) {
        let mut find = Command::new("find");
        find.args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path"]).arg(format!("*/{}*", group(self.0)));
        let _ = find.args(["-exec", "rmdir", "{}", ";"]).status();
    }
}

#[test]
fn an_archive_goes_from_podman_through_here_and_back() {
    if !is_root() {
        return;
    }
    let Some(peers) = peers() else { return };
    let base = tempfile::tempdir().unwrap();
    let _swept = Swept(base.path());
    if let Err(error) = script(&peers, base.path(), CHECKPOINT) {
        // CRIU needs much of a kernel; that it has not is nothing that this test is about.
        assert!(!base.path().join("podman.tar").exists(), "{error}");
        eprintln!("skipped: podman can't checkpoint here: {error}");
        return;
    }
    let file = archive::open(&base.path().join("podman.tar")).unwrap();
    let (config, spec) = peek(&file, &Cancel::new()).unwrap();
    assert_eq!((config.name.as_str(), spec.args.first().map(String::as_str)), ("one", Some("/bin/sh")));
    assert_eq!(config.rootfs_image_name, "localhost/counter:1");
    let into = base.path().join("into");
    std::fs::create_dir(&into).unwrap();
    let intake = unpack(&file, &into, &Limits::default(), &Cancel::new()).unwrap();
    // The network was the container's own: a pod would not let it in.
    assert!(intake.processes().unwrap_err().to_string().contains("image of a network"));
    // podman wants a file of its own that we pass over.
    put(&into.join("network.status"), b"null");
    archive::write(&into, &base.path().join("plain.tar"), 0, &Cancel::new()).unwrap();
    let added = Command::new("sh")
        .args(["-c", "cp plain.tar ours.tar && tar --append --file ours.tar -C into network.status"])
        .current_dir(base.path())
        .status()
        .unwrap();
    assert!(added.success());
    assert!(into.join(names::ROOT_DIFF).exists());
    let output = script(&peers, base.path(), RESTORE).unwrap();
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some("made"));
    let first: u64 = lines.next().and_then(|line| line.trim().parse().ok()).unwrap();
    assert!(first > 5, "it counts on, from {first}");
}

//! `crictl checkpoint`, and a container that is created from its archive.

use std::path::{Path, PathBuf};

use testkit::daemon::peer;
use testkit::harness::skip;
use testkit::{Daemon, Registry, Result, busybox_image, wait_for};

use super::Crictl;

/// CRIU's directory; skipped where it can't do its work.
fn criu() -> Result<PathBuf> {
    if let Some(reason) = testkit::cgroups::no_restores() {
        return Err(skip(reason));
    }
    let program = peer("criu").unwrap_or_else(|_| PathBuf::from("/usr/sbin/criu"));
    let checked = std::process::Command::new(&program).arg("check").output();
    if !checked.is_ok_and(|output| output.status.success()) {
        return Err(skip("CRIU is not here, or its check fails"));
    }
    Ok(program.parent().ok_or("CRIU has a directory")?.to_owned())
}

pub(crate) fn checkpoint() -> Result {
    let criu = criu()?;
    let registry = Registry::start()?;
    let image = busybox_image()?.build()?.push(&registry, "crictl/busybox", "1")?;
    let search = std::env::var("PATH").unwrap_or_default();
    let on = "[crio.checkpoint_restore]\ncontainer_level_enabled = \"checkpoint_restore\"\n";
    let daemon = Daemon::builder()
        .registry(&registry)
        .runtime("runc", peer("runc").unwrap_or_default())
        .env("PATH", &format!("{}:{search}", criu.display()))
        .drop_in(on)
        .start()?;
    let (crictl, cri) = (Crictl::new(&daemon)?, daemon.cri()?);
    cri.pull(&image)?;
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done";
    let (pod, container) = cri.run("crictl-checkpoint", &image, &["sh", "-c", script])?;
    counted(&cri, &container, 0)?;
    let archive = daemon.dir().join("archive.tar");
    crictl.run(&["checkpoint", &format!("--export={}", archive.display()), &container])?;
    let inspected = crictl.json(&["inspect", &container])?;
    assert!(inspected["info"]["checkpointedAt"].as_str().is_some_and(|time| !time.is_empty()), "{inspected}");
    let before = last(&cri, &container)?;
    let again = from_archive(&daemon, &crictl, &pod, &archive)?;
    daemon.note(&again);
    crictl.run(&["start", &again])?;
    counted(&cri, &again, 3)?;
    let first = cri.log(&again)?.lines().next().and_then(number).ok_or("it has said a number")?;
    assert!(first > 3 && first <= before + 1, "it goes on: {first}, and the other was at {before}");
    let bad = crictl.output(&["checkpoint", "--export=relative.tar", &container])?;
    let said = String::from_utf8_lossy(&bad.stderr);
    assert!(!bad.status.success() && said.contains("location"), "{said}");
    daemon.finish()
}

fn from_archive(daemon: &Daemon, crictl: &Crictl, pod: &str, archive: &Path) -> Result<String> {
    let (container, sandbox) = (daemon.dir().join("container.json"), daemon.dir().join("sandbox.json"));
    let config = serde_json::json!({
        "metadata": {"name": "again"}, "image": {"image": archive}, "log_path": "again.log", "linux": {},
    });
    super::put(&container, &config.to_string())?;
    super::put(&sandbox, "{\"metadata\": {\"name\": \"x\", \"namespace\": \"x\", \"uid\": \"x\"}}")?;
    let (container, sandbox) = (container.display().to_string(), sandbox.display().to_string());
    crictl.run(&["create", "--no-pull", pod, &container, &sandbox])
}

fn number(line: &str) -> Option<u64> {
    line.rsplit(' ').next()?.parse().ok()
}

fn last(cri: &testkit::Cri, id: &str) -> Result<u64> {
    Ok(cri.log(id)?.lines().next_back().and_then(number).unwrap_or(0))
}

fn counted(cri: &testkit::Cri, id: &str, more_than: u64) -> Result {
    wait_for("the container to count", std::time::Duration::from_secs(20), || {
        Ok((last(cri, id)? > more_than + 3).then_some(()))
    })
}

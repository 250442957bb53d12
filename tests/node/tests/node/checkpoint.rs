//! Checkpoints on a node with systemd: CRIU, the freezer of cgroup v2, scopes that systemd makes and takes away.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criox_cri::v1::{
    CheckpointContainerRequest, CheckpointPodRequest, ContainerConfig, ContainerState, RestorePodRequest,
};
use testkit::harness::Test;
use testkit::{Result, wait_for};

use crate::guest::{self, Guest, Ids, LIMIT, group, put, read, sh};

pub(crate) const TESTS: &[Test] = &[
    ("a container goes on from its checkpoint, with crun and with runc", || guest::test(container)),
    ("the containers of a pod go on from its checkpoint, in a pod of their own", || guest::test(pod)),
    (
        "a daemon killed while a checkpoint is made leaves a pod that runs, and nothing of the checkpoint",
        || guest::test(killed),
    ),
];

/// Off unless configured.
const SWITCH: &str = "/etc/crio/crio.conf.d/30-checkpoint.conf";
/// Where checkpoints are written.
const PLACE: &str = "/var/tmp/node-checkpoint";
/// Keeps a word and a number in memory only, and says them to who looks.
const COUNTER: &[&str] = &[
    "sh",
    "-c",
    "trap 'exit 7' TERM; w=$(cat /proc/sys/kernel/random/uuid); i=0; \
     while :; do i=$((i+1)); echo $w $i > /count.new; mv /count.new /count; sleep 0.2; done",
];

fn allowed(test: impl FnOnce() -> Result) -> Result {
    put(SWITCH, "[crio.checkpoint_restore]\ncontainer_level_enabled = \"checkpoint_restore\"\n")?;
    sh(&format!("rm -rf {PLACE} && mkdir {PLACE} && systemctl restart criox"))?;
    let result = test();
    sh(&format!("rm -rf {PLACE} {SWITCH} && systemctl restart criox"))?;
    result
}

fn counter(guest: &Guest, name: &str) -> ContainerConfig {
    guest.cri.container(name, &guest.image, COUNTER)
}

/// The word and the number that a container has now.
fn count(guest: &Guest, container: &str) -> Result<(String, u64)> {
    wait_for("the container to have counted", LIMIT, || {
        let answer = guest.cri.exec(container, &["cat", "/count"], 30)?;
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        let Some((word, number)) = said.trim_end().split_once(' ') else { return Ok(None) };
        Ok(Some((word.to_owned(), number.parse()?)))
    })
}

/// Waits until it has counted further: it runs.
fn goes_on(guest: &Guest, container: &str) -> Result<(String, u64)> {
    let (word, from) = count(guest, container)?;
    wait_for("the container to count on", LIMIT, || {
        let (now, number) = count(guest, container)?;
        assert_eq!(now, word, "it began anew");
        Ok((number > from).then_some((now, number)))
    })
}

fn checkpoint(guest: &Guest, container: &str, location: &Path) -> Result {
    let request = CheckpointContainerRequest {
        container_id: container.to_owned(),
        location: location.display().to_string(),
        timeout: 0,
    };
    guest.cri.call(guest.cri.runtime().checkpoint_container(request))?;
    Ok(())
}

fn checkpoint_pod(guest: &Guest, sandbox: &str, containers: &[&str], place: &Path) -> Result {
    std::fs::create_dir_all(place)?;
    let request = CheckpointPodRequest {
        pod_sandbox_id: sandbox.to_owned(),
        output_path: place.display().to_string(),
        container_ids: containers.iter().map(|&id| id.to_owned()).collect(),
        ..CheckpointPodRequest::default()
    };
    guest.cri.call(guest.cri.runtime().checkpoint_pod(request))?;
    Ok(())
}

/// Whether a group of the container's is frozen; its processes may be one level below its scope.
fn frozen(container: &str) -> Result<bool> {
    let scope = group(&format!("crio-{container}.scope"))?;
    let below = scope.join("container");
    for place in [Some(scope), below.exists().then_some(below)].into_iter().flatten() {
        if read(&place, "cgroup.events")?.contains("frozen 1") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a restored container is, beside its memory: in the scope of its own ID, confined, watched by its monitor.
fn is_whole(guest: &Guest, container: &str) -> Result {
    let scope = group(&format!("crio-{container}.scope"))?;
    assert!(read(&scope, "cgroup.events")?.contains("populated 1"));
    let answer = guest.cri.exec(container, &["cat", "/proc/1/attr/current"], 30)?;
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim_end(), "crio-default (enforce)");
    guest.cri.stop(container, 20)?;
    let status = guest.cri.status(container)?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    Ok(())
}

fn container(guest: &Guest) -> Result {
    allowed(|| {
        for handler in ["crun", "runc"] {
            let pod = guest.pod(&format!("checkpoint-{handler}"));
            let config = counter(guest, "main");
            let Ids { sandbox, container } = guest.run(&pod, handler, &config)?;
            let (word, before) = goes_on(guest, &container)?;
            let archive = PathBuf::from(PLACE).join(format!("{handler}.tar"));
            checkpoint(guest, &container, &archive)?;
            assert_eq!(std::fs::metadata(&archive)?.permissions().mode() & 0o7777, 0o600);
            assert_eq!(goes_on(guest, &container)?.0, word, "{handler}: the original runs on");
            guest.cri.stop(&container, 0)?;
            guest.cri.remove(&container)?;

            let mut again = config.clone();
            again.image.get_or_insert_default().image = archive.display().to_string();
            again.metadata.get_or_insert_default().attempt = 1;
            let restored = guest.cri.create(&sandbox, &again, &pod)?;
            assert_eq!(guest.cri.status(&restored)?.state(), ContainerState::ContainerCreated, "{handler}");
            guest.cri.start(&restored)?;
            let (now, number) = goes_on(guest, &restored)?;
            assert!(now == word && number > before, "{handler}: {now} {number} after {word} {before}");
            is_whole(guest, &restored)?;
        }
        Ok(())
    })
}

fn pod(guest: &Guest) -> Result {
    allowed(|| {
        let mut pod = guest.pod("checkpointed");
        let configs = [counter(guest, "one"), counter(guest, "two")];
        let Ids { sandbox, container: one } = guest.run(&pod, "", &configs[0])?;
        let two = guest.cri.create(&sandbox, &configs[1], &pod)?;
        guest.cri.start(&two)?;
        let before = [goes_on(guest, &one)?, goes_on(guest, &two)?];
        let place = PathBuf::from(PLACE).join("pod");
        checkpoint_pod(guest, &sandbox, &[&one, &two], &place)?;
        for (id, (word, _)) in [&one, &two].into_iter().zip(&before) {
            assert_eq!(&goes_on(guest, id)?.0, word, "it runs on");
        }
        guest.cri.stop_pod(&sandbox)?;
        guest.cri.remove_pod(&sandbox)?;

        pod.metadata.get_or_insert_default().attempt = 1;
        let request = RestorePodRequest {
            checkpoint_path: place.display().to_string(),
            config: Some(pod.clone()),
            container_configs: configs.to_vec(),
            ..RestorePodRequest::default()
        };
        let answer = guest.cri.call(guest.cri.runtime().restore_pod(request))?;
        let listed = guest.cri.list(Some(&answer.pod_sandbox_id))?;
        assert_eq!(listed.len(), 2);
        for container in &listed {
            assert_eq!(container.state(), ContainerState::ContainerCreated);
            let name = container.metadata.as_ref().map_or("", |metadata| &metadata.name);
            let (word, number) = if name == "one" { &before[0] } else { &before[1] };
            guest.cri.start(&container.id)?;
            let now = goes_on(guest, &container.id)?;
            assert!(now.0 == *word && now.1 > *number, "{name}: {now:?} after {word} {number}");
            is_whole(guest, &container.id)?;
        }
        Ok(())
    })
}

fn killed(guest: &Guest) -> Result {
    allowed(|| {
        let pod = guest.pod("checkpoint-killed");
        let Ids { sandbox, container } = guest.run(&pod, "", &counter(guest, "main"))?;
        let (word, _) = goes_on(guest, &container)?;
        let place = PathBuf::from(PLACE).join("place");
        for whole_pod in [false, true] {
            let archive = place.join("archive.tar");
            std::fs::create_dir_all(&place)?;
            std::thread::scope(|scope| -> Result {
                let call = scope.spawn(|| match whole_pod {
                    false => checkpoint(guest, &container, &archive),
                    true => checkpoint_pod(guest, &sandbox, &[&container], &place),
                });
                wait_for("the container to be frozen", LIMIT, || Ok(frozen(&container)?.then_some(())))?;
                // Well into what CRIU does.
                std::thread::sleep(Duration::from_millis(300));
                sh("systemctl kill --kill-whom main --signal KILL criox")?;
                assert!(call.join().map_err(|_| "the call panicked")?.is_err(), "its daemon is dead");
                Ok(())
            })?;
            guest.answers()?;
            wait_for("the container to be thawed", LIMIT, || Ok((!frozen(&container)?).then_some(())))?;
            assert_eq!(goes_on(guest, &container)?.0, word);
            wait_for("nothing of the checkpoint to be left", LIMIT, || {
                Ok(std::fs::read_dir(&place)?.next().is_none().then_some(()))
            })?;
        }
        // And the next one is made.
        checkpoint(guest, &container, &place.join("next.tar"))?;
        assert_eq!(goes_on(guest, &container)?.0, word);
        Ok(())
    })
}

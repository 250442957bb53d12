//! Pods with user namespaces and image volumes when the daemon is killed: before they are made, while they run, and while
//! they go. Nothing of them stays, and podman finds nothing wrong in the store.

mod faults;

use std::process::{Command, ExitCode};
use std::time::Duration;

use criox_cri::v1::{
    ContainerConfig, ContainerState, IdMapping, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    UserNamespace,
};
use faults::{Place, image_volume};
use testkit::daemon::peer;
use testkit::harness::skip;
use testkit::{Cri, Result, wait_for};

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("a killed daemon finds its pods with user namespaces again", survives),
        ("a kill at any step of making or removing such a pod leaves nothing", kill_at_steps),
        ("a way to a root that has gone is swept at the next start", sweep),
        ("podman reads a store with such pods, and takes its part of it away", beside_podman),
    ])
}

const LIMIT: Duration = Duration::from_secs(20);
const HOST: u32 = 700_000;
const LENGTH: u32 = 65_536;

fn place() -> Result<Place> {
    let crun = peer("crun").map_err(|error| skip(error.to_string()))?;
    let place = Place::with(|builder| builder.runtime("crun", crun))?;
    // The first life makes files that stay, and so does podman.
    life(&place.cri()?, &place)?;
    check_store(&place)?;
    Ok(place)
}

fn options() -> NamespaceOption {
    let map = || vec![IdMapping { host_id: HOST, container_id: 0, length: LENGTH }];
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(), gids: map() }),
        ..NamespaceOption::default()
    }
}

fn pod(cri: &Cri, name: &str) -> PodSandboxConfig {
    let mut config = cri.pod(name);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options());
    config
}

/// One with a mapped image beside its own.
fn container(cri: &Cri, place: &Place, name: &str) -> ContainerConfig {
    let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let mut config = cri.container(name, &place.image, &["sh", "-c", script]);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options());
    let map = || vec![IdMapping { host_id: HOST, container_id: 0, length: LENGTH }];
    config.mounts = vec![Mount { uid_mappings: map(), gid_mappings: map(), ..image_volume(&place.image) }];
    config
}

/// What a running container must be able to do at any time.
fn works(cri: &Cri, id: &str) -> Result {
    let script = "cat /proc/self/uid_map; stat -c '%u' / /volume/bin/busybox; cat /volume/etc/hello";
    let answer = cri.exec(id, &["sh", "-c", script], 20)?;
    let text = String::from_utf8(answer.stdout)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let (host, length) = (HOST.to_string(), LENGTH.to_string());
    assert_eq!(
        words,
        ["0", host.as_str(), length.as_str(), "0", "0", "hello", "from", "the", "image"],
        "{text}"
    );
    Ok(())
}

fn survives() -> Result {
    let mut place = place()?;
    let before = place.everything()?;
    let cri = place.cri()?;
    let config = pod(&cri, "survives");
    let sandbox = cri.run_pod(&config)?;
    let first = cri.create(&sandbox, &container(&cri, &place, "first"), &config)?;
    cri.start(&first)?;
    works(&cri, &first)?;
    let processes = place.processes(&first)?;
    place.daemon.kill()?;
    check_store(&place)?;
    place.daemon.start()?;
    let cri = place.cri()?;
    assert_eq!(place.processes(&first)?[0], processes[0]);
    works(&cri, &first)?;
    let told =
        cri.pod_status(&sandbox)?.linux.and_then(|linux| linux.namespaces?.options).ok_or("options")?;
    assert_eq!(told.userns_options, options().userns_options);
    let told =
        cri.status(&first)?.mounts.into_iter().find_map(|mount| mount.image).ok_or("the image volume")?;
    assert_eq!(Some(told.image_ref), cri.image(&place.image)?.map(|image| image.id));
    assert!(cri.remove_image(&place.image).is_err(), "an image in use");
    let second = cri.create(&sandbox, &container(&cri, &place, "second"), &config)?;
    cri.start(&second)?;
    works(&cri, &second)?;
    cri.stop(&first, 5)?;
    assert_eq!(cri.wait_state(&first, ContainerState::ContainerExited, LIMIT)?.exit_code, 0);
    cri.remove(&first)?;
    works(&cri, &second)?;
    place.daemon.kill()?;
    place.daemon.start()?;
    let cri = place.cri()?;
    cri.stop_pod(&sandbox)?;
    cri.remove_pod(&sandbox)?;
    place.is_as(&before)?;
    check_store(&place)?;
    place.finish()
}

/// Where something has been made or given back that must not stay.
const STEPS: &[&str] = &[
    "sandbox.pinned",
    "sandbox.recorded",
    "container.image-volume-stored",
    "container.mounted",
    "container.bundled",
    "container.created",
    "container.deleted",
    "container.unstored",
    "sandbox.released",
];

fn kill_at_steps() -> Result {
    let mut place = place()?;
    let before = place.everything()?;
    for step in STEPS {
        place.daemon.terminate()?;
        let mut command = place.daemon.command();
        command.env("CRIOX_FAILPOINTS", format!("{step}=kill"));
        place.daemon.start_with(command)?;
        let lived = life(&place.cri()?, &place);
        assert!(lived.is_err(), "no step of a life comes by {step}");
        place.daemon.kill()?;
        check_store(&place).map_err(|error| format!("killed at {step}: {error}"))?;
        place.daemon.start()?;
        let cri = place.cri()?;
        for pod in cri.list_pods()? {
            cri.stop_pod(&pod.id)?;
            cri.remove_pod(&pod.id)?;
        }
        place.is_as(&before).map_err(|error| format!("killed at {step}: {error}"))?;
        life(&cri, &place).map_err(|error| format!("after a kill at {step}: {error}"))?;
        place.is_as(&before).map_err(|error| format!("after a kill at {step}: {error}"))?;
    }
    place.finish()
}

fn life(cri: &Cri, place: &Place) -> Result {
    let config = pod(cri, "life");
    let sandbox = cri.run_pod(&config)?;
    let id = cri.create(&sandbox, &container(cri, place, "c"), &config)?;
    cri.start(&id)?;
    works(cri, &id)?;
    cri.stop(&id, 5)?;
    cri.remove(&id)?;
    cri.stop_pod(&sandbox)?;
    Ok(cri.remove_pod(&sandbox)?)
}

fn sweep() -> Result {
    let mut place = place()?;
    let before = place.everything()?;
    place.daemon.kill()?;
    let way = place.daemon.run_root().join("criox-roots").join("f".repeat(64));
    let root = way.join("root");
    std::fs::create_dir_all(&root)?;
    rustix::mount::mount_bind(&way, &root)?;
    place.daemon.start()?;
    wait_for("the way to be swept", LIMIT, || Ok((!way.exists()).then_some(())))?;
    place.is_as(&before)?;
    place.finish()
}

fn beside_podman() -> Result {
    let place = place()?;
    let cri = place.cri()?;
    let config = pod(&cri, "podman");
    let sandbox = cri.run_pod(&config)?;
    let id = cri.create(&sandbox, &container(&cri, &place, "c"), &config)?;
    cri.start(&id)?;
    let all = podman(&place, &["ps", "--all", "--external", "--no-trunc", "--format", "{{.ID}}"])?;
    assert!(all.contains(&id), "{all}");
    // An image that is a container's, or a volume's, is in use for podman, too.
    assert!(podman(&place, &["rmi", &place.image]).is_err());
    check_store(&place)?;
    works(&cri, &id)?;
    cri.stop_pod(&sandbox)?;
    cri.remove_pod(&sandbox)?;
    check_store(&place)?;
    place.finish()
}

fn podman(place: &Place, args: &[&str]) -> Result<String> {
    let program = peer("podman").map_err(|error| skip(error.to_string()))?;
    let home = place.daemon.dir().join("podman");
    std::fs::create_dir_all(&home)?;
    let output = Command::new(program)
        .arg("--root")
        .arg(place.daemon.root())
        .arg("--runroot")
        .arg(place.daemon.run_root())
        .arg("--tmpdir")
        .arg(home.join("tmp"))
        .args(["--cgroup-manager=cgroupfs", "--events-backend=none", "--storage-driver=overlay"])
        .args(args)
        .env("HOME", &home)
        .env("TMPDIR", &home)
        .output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = [output.stdout, output.stderr].concat();
    Err(format!("podman {}: {}", args.join(" "), String::from_utf8_lossy(&words)).into())
}

/// podman's own look at the store.
fn check_store(place: &Place) -> Result {
    podman(place, &["system", "check", "--quick"]).map(drop)
}

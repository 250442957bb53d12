//! The shortest walks through the whole daemon: one pod from a pulled image to nothing left.

use std::process::ExitCode;
use std::time::Duration;

use testkit::registry::{PASSWORD, USER};
use testkit::{Cri, Daemon, Entry, Registry, Result, busybox_image, wait_for};

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("a pod runs, logs, executes, stops and leaves nothing", whole_life),
        (
            "a container outlives kill -9 of the daemon, and its exit meanwhile is reported",
            outlives_the_daemon,
        ),
        ("a pod with the node's network has no network of its own", host_network),
        ("an image is pulled with a password and not without", password),
        ("an unknown image is an error for pull and an empty answer for status", unknown_image),
    ])
}

const LIMIT: Duration = Duration::from_secs(10);

/// Prints a line, then waits to be told to stop.
const SERVICE: &[&str] =
    &["sh", "-c", "echo started; trap 'echo stopping; exit 7' TERM; while :; do sleep 0.1; done"];

/// A registry with busybox in it, a daemon that may pull from it, a client, and the image's reference.
fn setup() -> Result<(Registry, Daemon, Cri, String)> {
    let registry = Registry::start()?;
    let reference = busybox_image()?.build()?.push(&registry, "walk/busybox", "1")?;
    let daemon = Daemon::builder().registry(&registry).start()?;
    let cri = daemon.cri()?;
    cri.pull(&reference)?;
    Ok((registry, daemon, cri, reference))
}

/// Waits for a text in a container's log.
fn logged(cri: &Cri, container: &str, text: &str) -> Result {
    wait_for(&format!("'{text}' in the log"), LIMIT, || Ok(cri.log(container)?.contains(text).then_some(())))
}

fn exited(cri: &Cri, container: &str) -> Result<i32> {
    Ok(cri.wait_state(container, criox_cri::v1::ContainerState::ContainerExited, LIMIT)?.exit_code)
}

fn whole_life() -> Result {
    let (_registry, daemon, cri, reference) = setup()?;
    let (pod, container) = cri.run("walk", &reference, SERVICE)?;
    logged(&cri, &container, " stdout F started\n")?;

    let answer = cri.exec(&container, &["sh", "-c", "cat /etc/hello; echo oops >&2; exit 3"], 10)?;
    assert_eq!(String::from_utf8(answer.stdout)?, "hello from the image\n");
    assert_eq!(String::from_utf8(answer.stderr)?, "oops\n");
    assert_eq!(answer.exit_code, 3);

    let address = cri.pod_status(&pod)?.network.ok_or("a ready pod has a network")?.ip;
    assert!(address.starts_with("10.231."), "{address}");

    cri.stop(&container, 10)?;
    assert_eq!(exited(&cri, &container)?, 7);
    logged(&cri, &container, " stdout F stopping\n")?;
    cri.remove(&container)?;
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    assert_eq!(daemon.leftovers(), Vec::<String>::new());
    daemon.finish()
}

fn outlives_the_daemon() -> Result {
    let (_registry, mut daemon, cri, reference) = setup()?;
    let (_, lives) = cri.run("lives", &reference, SERVICE)?;
    let (_, ends) = cri.run("ends", &reference, &["sh", "-c", "sleep 2; echo last words; exit 5"])?;
    let pid_before = cri.exec(&lives, &["sh", "-c", "cat /proc/1/stat | cut -d' ' -f22"], 10)?.stdout;
    daemon.kill()?;
    // Longer than the second container lives.
    std::thread::sleep(Duration::from_secs(3));
    daemon.start()?;
    let cri = daemon.cri()?;
    assert_eq!(exited(&cri, &ends)?, 5);
    logged(&cri, &ends, "last words")?;
    // The start time of its first process: the same process and not one like it.
    assert_eq!(cri.exec(&lives, &["sh", "-c", "cat /proc/1/stat | cut -d' ' -f22"], 10)?.stdout, pid_before);
    daemon.finish()
}

fn host_network() -> Result {
    let (_registry, daemon, cri, reference) = setup()?;
    let config = cri.host_network_pod("hostnet");
    let pod = cri.run_pod(&config)?;
    let container = cri.create(&pod, &cri.container("c", &reference, SERVICE), &config)?;
    cri.start(&container)?;
    let inside = cri.exec(&container, &["readlink", "/proc/self/ns/net"], 10)?.stdout;
    let ours = std::fs::read_link("/proc/self/ns/net")?;
    assert_eq!(String::from_utf8(inside)?.trim_end(), ours.to_string_lossy());
    daemon.finish()
}

fn password() -> Result {
    let registry = Registry::start_with_password()?;
    let reference =
        busybox_image()?.layer(&[Entry::file("secret", "x")]).build()?.push(&registry, "secret", "1")?;
    let daemon = Daemon::builder().registry(&registry).start()?;
    let cri = daemon.cri()?;
    let refused = cri.pull(&reference).err().ok_or("a stranger could pull")?;
    assert!(refused.message().contains(&reference), "{refused}");
    assert!(cri.pull_as(&reference, Some((USER, "wrong"))).is_err());
    assert!(cri.list_images()?.is_empty());
    cri.pull_as(&reference, Some((USER, PASSWORD)))?;
    assert!(cri.image(&reference)?.is_some());
    daemon.finish()
}

fn unknown_image() -> Result {
    let registry = Registry::start()?;
    let daemon = Daemon::builder().registry(&registry).start()?;
    let cri = daemon.cri()?;
    let reference = format!("{}/no/such:1", registry.address());
    let refused = cri.pull(&reference).err().ok_or("an image that isn't there was pulled")?;
    assert!(refused.message().contains(&reference), "{refused}");
    assert!(cri.image(&reference)?.is_none());
    assert!(cri.list_images()?.iter().all(|image| !image.repo_tags.contains(&reference)));
    daemon.finish()
}

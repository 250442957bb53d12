//! What bites a kubelet first, one test for each trap. `dev/conformance/traps.md` maps the traps to these and to other
//! tests, and tidy holds it against them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criox_cri::v1::{
    ContainerConfig, ContainerState, DnsConfig, ImageFsInfoRequest, LinuxContainerResources,
    ListContainerStatsRequest, ListPodSandboxMetricsRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest, Mount, PodSandboxConfig,
};
use rustix::process::{Pid, Signal, kill_process};
use testkit::harness::Test;
use testkit::{Behaviour, Daemon, Entry, ImageBuilder, Node, Registry, Result, StandIn, wait_for};
use tonic::Code;

use crate::NODE;
use crate::join::unclaimed;
use crate::pod::{LIMIT, Pod, security};

pub(crate) const TESTS: &[Test] = &[
    ("a creation that is asked for again as a kubelet does is the same creation", || NODE.test(retried)),
    ("however a creation fails, the next attempt has the same number", || NODE.test(attempts)),
    ("a container that nobody was given is in no list after a restart either", unlisted),
    ("one string names an image in every answer, and no size is 0", || NODE.test(one_string)),
    ("the path of the log is absolute in every state of a container", log_paths),
    ("the reason of a failed pull is its first word, under the code Unknown", reasons),
    ("no list is longer than a kubelet takes, whatever annotations pods have", || NODE.test(long_lists)),
    ("no message is absent into which a kubelet looks unasked", || NODE.test(no_nil)),
    ("GET /info answers whoever connects first, also while pods are being settled", first_info),
];

/// What the kubelet's client takes.
const KUBELET_TAKES: usize = 16 << 20;

/// Everything that a kubelet makes anew for a retry is another each time.
fn retried(node: &Node) -> Result {
    let pod = Pod::without_network(node, "trap-retry")?;
    let (path, annotation) = ("/custom/termination.log", "io.kubernetes.container.terminationMessagePath");
    let mut config = pod.shell("c", "true");
    let pair = |(key, value): (String, String)| criox_cri::v1::KeyValue { key, value: value.into() };
    config.envs = (0..8).map(|n| pair((format!("KEY_{n}"), format!("value {n}")))).collect();
    config.annotations = [(annotation.to_owned(), path.to_owned())].into();
    let mut ids = Vec::new();
    for attempt in 0..4 {
        let host = node.daemon.dir().join(format!("{attempt:08x}"));
        std::fs::OpenOptions::new().append(true).create(true).open(&host)?;
        let mut again = config.clone();
        again.envs.rotate_left(attempt * 3 % 8);
        again.mounts.push(Mount {
            container_path: path.to_owned(),
            host_path: host.display().to_string(),
            ..Mount::default()
        });
        let mut sandbox = pod.config.clone();
        sandbox.annotations.insert("kubernetes.io/config.seen".to_owned(), format!("at {attempt}"));
        sandbox.dns_config =
            Some(DnsConfig { servers: vec![format!("10.0.0.{attempt}")], ..DnsConfig::default() });
        sandbox.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
            cpu_shares: 2 + attempt as i64,
            ..LinuxContainerResources::default()
        });
        ids.push(node.cri.create(&pod.id, &again, &sandbox)?);
        assert_eq!(node.cri.run_pod(&sandbox)?, pod.id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(node.cri.list(None)?.len(), 1);
    Ok(())
}

/// As the kubelet counts where no container of the name is listed: one more than the highest log.
fn next_attempt(pod: &PodSandboxConfig, container: &str) -> u32 {
    let entries = std::fs::read_dir(Path::new(&pod.log_directory).join(container)).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let numbers = names.filter_map(|name| name.split_once(".log")?.0.parse::<u32>().ok());
    numbers.max().map_or(0, |highest| highest + 1)
}

fn attempts(node: &Node) -> Result {
    let pod = Pod::without_network(node, "trap-attempts")?;
    type Spoil = fn(&mut ContainerConfig);
    let spoil: [(&str, Spoil); 6] = [
        ("an absent image", |config| {
            config.image.get_or_insert_default().image = "localhost/no/such:1".into()
        }),
        ("an unknown user", |config| security(config).run_as_username = "nobody-knows".into()),
        ("an absent program", |config| config.command = vec!["/no/such/program".into()]),
        ("a source below a file", |config| {
            config.mounts.push(Mount {
                container_path: "/data".into(),
                host_path: "/etc/hostname/below-a-file".into(),
                ..Mount::default()
            });
        }),
        ("a profile that is not there", |config| {
            security(config).seccomp = Some(criox_cri::v1::SecurityProfile {
                profile_type: criox_cri::v1::security_profile::ProfileType::Localhost.into(),
                localhost_ref: "/no/such/profile.json".into(),
            });
        }),
        ("an unknown device", |config| {
            config.cdi_devices.push(criox_cri::v1::CdiDevice { name: "vendor.example/none=0".into() });
        }),
    ];
    for (what, spoil) in spoil {
        let mut config = pod.shell("c", "true");
        spoil(&mut config);
        node.cri.create(&pod.id, &config, &pod.config).err().ok_or_else(|| format!("{what} was accepted"))?;
        assert_eq!(next_attempt(&pod.config, "c"), 0, "{what}");
    }
    // One whose client went away, and whose retry is another request.
    let abandoned = unclaimed(node, &pod, &pod.shell("c", "true"))?;
    let id = pod.create(&pod.shell("c", "echo changed"))?;
    assert_ne!(id, abandoned);
    assert_eq!((next_attempt(&pod.config, "c"), node.cri.list(None)?.len()), (1, 1));
    Ok(())
}

/// A daemon of its own, which may be killed.
fn own_node(options: impl FnOnce(testkit::daemon::Builder) -> testkit::daemon::Builder) -> Result<Node> {
    Node::start(|registry| options(Daemon::builder()).registry(registry).start())
}

/// `kill -9` of the daemon, and its next life.
fn restart(node: &mut Node) -> Result {
    node.daemon.kill()?;
    node.daemon.start()?;
    node.cri = node.daemon.cri()?;
    Ok(())
}

fn unlisted() -> Result {
    let mut node = own_node(|builder| builder)?;
    let (id, pod, config, sandbox) = {
        let pod = Pod::without_network(&node, "trap-unlisted")?;
        let config = pod.shell("c", "true");
        (unclaimed(&node, &pod, &config)?, pod.id.clone(), config, pod.config)
    };
    restart(&mut node)?;
    assert!(node.cri.list(None)?.is_empty(), "a kubelet adopts no CREATED container, it makes another");
    // A READY sandbox it adopts.
    assert_eq!(node.cri.list_pods()?.len(), 1);
    assert_eq!(node.cri.create(&pod, &config, &sandbox)?, id);
    let listed = node.cri.list(None)?;
    assert_eq!(listed.iter().map(|container| container.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    node.daemon.finish()
}

fn one_string(node: &Node) -> Result {
    let pod = Pod::without_network(node, "trap-image")?;
    let check = |reference: &str, runs: bool| -> Result {
        let pulled = node.cri.pull(reference)?;
        let listed = node.cri.list_images()?;
        let listed =
            listed.iter().find(|image| image.id == pulled).ok_or("the image is listed by that ID")?;
        assert!(listed.size > 0, "{listed:?}");
        let found = node.cri.image(reference)?.ok_or("the image is found by its name")?;
        assert_eq!((found.id.as_str(), found.size), (pulled.as_str(), listed.size));
        if runs {
            let mut config = node.cri.container("c", reference, &["true"]);
            config.mounts.push(Mount {
                container_path: "/volume".into(),
                readonly: true,
                image: Some(criox_cri::v1::ImageSpec { image: reference.into(), ..Default::default() }),
                ..Mount::default()
            });
            let id = pod.create(&config)?;
            let listed = node.cri.list(None)?.pop().ok_or("a container")?;
            let status = node.cri.status(&id)?;
            assert_eq!((&listed.image_id, &status.image_id), (&pulled, &pulled));
            let volume = status.mounts.iter().find_map(|mount| mount.image.as_ref()).ok_or("a volume")?;
            assert_eq!(volume.image, pulled);
            // By what it was given the kubelet asks again.
            for image in [listed.image, status.image] {
                let name = image.ok_or("an image")?.image;
                assert_eq!(node.cri.image(&name)?.ok_or("that image")?.id, pulled);
            }
        }
        Ok(())
    };
    check(&node.image, true)?;
    let nothing = ImageBuilder::new().layer(&[Entry::file("empty", "")]).build()?;
    check(&nothing.push(&node.registry, "traps/nothing", "1")?, false)?;
    node.cri.remove_image(nothing.id())?;
    Ok(())
}

/// The machine's crun.
fn crun() -> Result<PathBuf> {
    let places = ["/usr/bin/crun", "/usr/local/bin/crun"].map(PathBuf::from);
    Ok(places.into_iter().find(|path| path.exists()).ok_or("crun is not installed")?)
}

/// The monitor of a pod.
fn monitor(pod: &str) -> Result<Pid> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = number.and_then(Pid::from_raw)
            && command.contains("criox-monitor")
            && command.contains(pod)
        {
            return Ok(pid);
        }
    }
    Err(format!("pod {pod} has no monitor").into())
}

/// Fails if a container of the list, of which there must be so many, has a log path that is not absolute.
fn check_logs(node: &Node, when: &str, count: usize) -> Result<Vec<ContainerState>> {
    let listed = node.cri.list(None)?;
    assert_eq!(listed.len(), count, "{when}");
    let mut states = Vec::new();
    for container in listed {
        let status = node.cri.status(&container.id)?;
        let path = Path::new(&status.log_path);
        assert!(path.is_absolute() && path.file_name().is_some(), "{when}: {status:?}");
        states.push(status.state());
    }
    states.sort_unstable();
    Ok(states)
}

fn log_paths() -> Result {
    use ContainerState::{
        ContainerCreated as Created, ContainerExited as Exited, ContainerRunning as Running,
    };
    let runtime = StandIn::runtime(&crun()?)?;
    let mut node = own_node(|builder| builder.runtime("stand-in", runtime.path()))?;
    let pod_id = {
        let pod = Pod::without_network(&node, "trap-logs")?;
        pod.create(&pod.shell("created", "true"))?;
        pod.service("running")?;
        let ended = pod.start(&pod.shell("ended", "true"))?;
        node.cri.wait_state(&ended, Exited, LIMIT)?;
        let mut unnamed = pod.shell("unnamed", "true");
        unnamed.log_path.clear();
        pod.create(&unnamed)?;
        let fails = pod.create(&pod.shell("fails", "true"))?;
        runtime.set("start", Behaviour::Fail)?;
        node.cri.start(&fails).err().ok_or("the start was to fail")?;
        runtime.set("start", Behaviour::Real)?;
        pod.id
    };
    let states = [Created, Created, Running, Exited, Exited];
    assert_eq!(check_logs(&node, "in life", 5)?, states);
    restart(&mut node)?;
    assert_eq!(check_logs(&node, "after a restart", 5)?, states);
    kill_process(monitor(&pod_id)?, Signal::KILL)?;
    wait_for("the pod to be lost", LIMIT, || {
        Ok((check_logs(&node, "without its monitor", 5)? == [Exited; 5]).then_some(()))
    })?;
    node.cri.stop_pod(&pod_id)?;
    assert_eq!(check_logs(&node, "of a stopped pod", 5)?, [Exited; 5]);
    node.daemon.finish()
}

fn reasons() -> Result {
    let check = |daemon: &Daemon, reference: &str, reason: &str| -> Result {
        let status = daemon.cri()?.pull(reference).err().ok_or("it was pulled")?;
        assert_eq!(status.code(), Code::Unknown, "{status}");
        assert!(status.message().starts_with(&format!("{reason}: ")), "{status}");
        Ok(())
    };
    let registry = Registry::start()?;
    let image = testkit::busybox_image()?.build()?.push(&registry, "traps/forbidden", "1")?;
    let mut daemon = Daemon::builder().registry(&registry).prepare()?;
    let policy = daemon.dir().join("policy.json");
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(policy)?;
    file.write_all(br#"{"default": [{"type": "reject"}]}"#)?;
    daemon.start()?;
    check(&daemon, &image, "SignatureValidationFailed")?;
    daemon.finish()?;
    // Nobody listens there any more.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let daemon = Daemon::builder().registry(&registry).start()?;
    check(&daemon, &format!("{address}/some/image:1"), "RegistryUnavailable")?;
    daemon.finish()
}

fn long_lists(node: &Node) -> Result {
    const LENGTH: usize = 5 << 20;
    let long = || -> std::collections::BTreeMap<String, String> {
        [("long".to_owned(), "x".repeat(LENGTH)), ("short".to_owned(), "kept".to_owned())].into()
    };
    // Containers' lists go the same way; but a specification of such a size takes a debug build many seconds.
    let mut pods = Vec::new();
    for number in 0..4 {
        let mut config = node.cri.host_network_pod(&format!("trap-long-{number}"));
        config.annotations = long();
        pods.push(Pod::run_with(node, config)?);
    }
    let mut client = node.cri.runtime().max_decoding_message_size(KUBELET_TAKES);
    let listed = node.cri.call(client.list_pod_sandbox(ListPodSandboxRequest::default()))?.items;
    assert_eq!(listed.iter().filter(|pod| pod.annotations.contains_key("short")).count(), 4);
    let stats = node.cri.call(client.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()))?.stats;
    assert_eq!(stats.len(), 4);
    node.cri.call(client.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default()))?;
    // Nothing is lost: who asks for one gets all of it.
    assert_eq!(node.cri.pod_status(&pods[0].id)?.annotations["long"].len(), LENGTH);
    Ok(())
}

/// What a kubelet dereferences, in all lists at this moment.
fn check_lists(node: &Node) -> Result {
    let (cri, mut runtime) = (&node.cri, node.cri.runtime());
    for pod in cri.list_pods()? {
        assert!(pod.metadata.is_some(), "{pod:?}");
    }
    for container in cri.list(None)? {
        assert!(container.metadata.is_some() && container.image.is_some(), "{container:?}");
    }
    for stats in cri.call(runtime.list_container_stats(ListContainerStatsRequest::default()))?.stats {
        assert!(stats.attributes.as_ref().is_some_and(|own| own.metadata.is_some()), "{stats:?}");
    }
    for stats in cri.call(runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()))?.stats {
        assert!(stats.attributes.as_ref().is_some_and(|own| own.metadata.is_some()), "{stats:?}");
        let containers = &stats.linux.as_ref().ok_or("a pod's statistics without linux")?.containers;
        for container in containers {
            assert!(container.attributes.as_ref().is_some_and(|own| own.metadata.is_some()), "{container:?}");
        }
    }
    let metrics = cri.call(runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default()))?;
    for pod in metrics.pod_metrics {
        let of_containers = pod.container_metrics.iter().flat_map(|container| &container.metrics);
        for metric in pod.metrics.iter().chain(of_containers) {
            assert!(metric.value.is_some(), "{metric:?}");
        }
    }
    let info = cri.call(cri.images().image_fs_info(ImageFsInfoRequest {}))?;
    for list in [&info.image_filesystems, &info.container_filesystems] {
        let first = list.first().ok_or("a kubelet takes the first file system")?;
        assert!(
            first.used_bytes.is_some() && first.inodes_used.is_some() && first.fs_id.is_some(),
            "{first:?}"
        );
    }
    Ok(())
}

fn no_nil(node: &Node) -> Result {
    check_lists(node)?;
    let (one, stopped) = (Pod::run(node, "trap-nil")?, Pod::without_network(node, "trap-nil-stopped")?);
    one.service("running")?;
    one.create(&one.shell("created", "true"))?;
    one.start(&one.shell("ended", "true"))?;
    stopped.service("c")?;
    node.cri.stop_pod(&stopped.id)?;
    check_lists(node)?;
    // And while objects come and go.
    std::thread::scope(|scope| -> Result {
        let churn = scope.spawn(|| -> Result {
            for round in 0..8 {
                let pod = Pod::without_network(node, &format!("trap-nil-{round}"))?;
                let id = pod.start(&pod.shell("c", "sleep 100"))?;
                node.cri.stop(&id, 0)?;
                node.cri.remove_pod(&pod.id)?;
            }
            Ok(())
        });
        while !churn.is_finished() {
            check_lists(node)?;
        }
        churn.join().expect("no panic")
    })
}

fn first_info() -> Result {
    let mut node = own_node(|builder| builder)?;
    let pod_id = {
        let pod = Pod::without_network(&node, "trap-info")?;
        pod.service("c")?;
        pod.id
    };
    let silent = monitor(&pod_id)?;
    node.daemon.kill()?;
    // The start waits for it, as long as it does for any.
    kill_process(silent, Signal::STOP)?;
    let socket = node.daemon.socket();
    let answer = std::thread::scope(|scope| -> Result<String> {
        let first = scope.spawn(|| ask_first(&socket));
        let started = node.daemon.start();
        let answer = first.join().expect("no panic");
        kill_process(silent, Signal::CONT)?;
        started?;
        answer
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an HTTP answer")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body)?;
    for key in ["storage_driver", "storage_root", "storage_image", "cgroup_driver"] {
        assert!(body[key].is_string(), "{key} in {body}");
    }
    assert_eq!(body["storage_driver"], "overlay");
    node.daemon.finish()
}

/// The answer to the first connection that the socket takes.
fn ask_first(socket: &Path) -> Result<String> {
    let until = Instant::now() + 3 * LIMIT;
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    };
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /info HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

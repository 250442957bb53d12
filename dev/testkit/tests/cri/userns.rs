//! Pods with user namespaces of their own, with each runtime that can.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use criox_cri::v1::{
    ContainerState, IdMapping, Int64Value, Mount, NamespaceMode, PodSandboxConfig, StatusRequest,
    UserNamespace,
};
use testkit::daemon::peer;
use testkit::harness::{Test, skip};
use testkit::{Node, Result, wait_for};
use tonic::Code;

use crate::NODE;
use crate::handlers::of_peer;
use crate::pod::{LIMIT, Pod, SERVICE, namespaces, refused, sandbox_namespaces, security};

pub(crate) const TESTS: &[Test] = &[
    ("crun: root of a pod with a user namespace is nobody on the node", || each("crun", identity)),
    ("runc: root of a pod with a user namespace is nobody on the node", || each("runc", identity)),
    ("crun: what lies in such a container belongs to its own users", || each("crun", files)),
    ("runc: what lies in such a container belongs to its own users", || each("runc", files)),
    ("crun: volumes of such a pod have the pod's owners", || each("crun", volumes)),
    ("runc: volumes of such a pod have the pod's owners", || each("runc", volumes)),
    ("crun: execs, other users, terminals and standard streams work in it", || each("crun", streams)),
    ("runc: execs, other users, terminals and standard streams work in it", || each("runc", streams)),
    ("crun: network, sysctls, queues and host name are the pod's", || each("crun", own_namespaces)),
    ("runc: network, sysctls, queues and host name are the pod's", || each("runc", own_namespaces)),
    ("crun: shared PIDs work in it, and process 1 is the pod's", || each("crun", shared_pids)),
    ("runc: shared PIDs work in it, and process 1 is the pod's", || each("runc", shared_pids)),
    ("crun: the node's network can be had in a user namespace", || each("crun", host_network)),
    ("runc: the node's network can be had in a user namespace", || each("runc", host_network)),
    ("crun: the node's PIDs and IPC can be had in a user namespace", || each("crun", host_others)),
    ("runc: the node's PIDs and IPC can be had in a user namespace", || each("runc", host_others)),
    ("crun: several ranges make one mapping", || each("crun", ranges)),
    ("runc: several ranges make one mapping", || each("runc", ranges)),
    ("the node's root alone and the pod's find a way to its files", || NODE.test(way)),
    ("mappings that can't be are refused with the field", || NODE.test(bad_mappings)),
    ("a handler that can't is refused before anything is made", || NODE.test(old_handler)),
    ("a volume that can't be idmapped is named", || NODE.test(bad_volume)),
    ("users that the namespace does not have are refused with the field", || NODE.test(bad_users)),
    ("a container can't be in another user namespace than its pod", || NODE.test(other_namespace)),
];

/// Where the node's IDs of these pods begin, and how many there are.
const HOST: u32 = 200_000;
const LENGTH: u32 = 65_536;

fn each(peer_name: &str, test: fn(&Node, &str) -> Result) -> Result {
    peer(peer_name).map_err(|error| skip(error.to_string()))?;
    let handler = of_peer(peer_name);
    NODE.test(|node| {
        let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
        let features = status.runtime_handlers.iter().find(|found| found.name == handler);
        if !features.and_then(|found| found.features).is_some_and(|features| features.user_namespaces) {
            return Err(skip(format!("Status says that {handler} has no user namespaces here")));
        }
        test(node, &handler)
    })
}

fn map(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: LENGTH }]
}

fn own_users(uids: Vec<IdMapping>, gids: Vec<IdMapping>) -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids, gids }
}

/// The kubelet sends the options with the containers, too.
fn users(config: &mut PodSandboxConfig) {
    sandbox_namespaces(config).userns_options = Some(own_users(map(HOST), map(HOST)));
}

fn run<'a>(node: &'a Node, handler: &str, mut config: PodSandboxConfig) -> Result<Pod<'a>> {
    // The log of a pod of the same name would go on.
    if let Some(metadata) = &mut config.metadata {
        metadata.uid = format!("{}-{handler}", metadata.uid);
    }
    config.log_directory = format!("{}-{handler}", config.log_directory);
    let id = node.cri.run_pod_as(&config, handler)?;
    Ok(Pod { cri: &node.cri, image: &node.image, id, config })
}

fn pod<'a>(node: &'a Node, handler: &str, name: &str) -> Result<Pod<'a>> {
    let mut config = node.cri.pod(name);
    users(&mut config);
    run(node, handler, config)
}

/// A container of this pod, as the kubelet asks for it.
fn shell(pod: &Pod, name: &str, script: &str) -> criox_cri::v1::ContainerConfig {
    let mut config = pod.shell(name, script);
    *namespaces(&mut config) = sandbox_namespaces(&mut pod.config.clone()).clone();
    config
}

/// The process of a container as the node numbers it.
fn pid(node: &Node, id: &str) -> Result<i64> {
    let (_, body) = crate::socket::get(node, &format!("/containers/{id}"))?;
    Ok(body["pid"].as_i64().ok_or("a running container has a pid")?)
}

fn identity(node: &Node, handler: &str) -> Result {
    let pod = pod(node, handler, "identity")?;
    let status = node.cri.pod_status(&pod.id)?;
    let told = status.linux.and_then(|linux| linux.namespaces?.options?.userns_options).ok_or("options")?;
    assert_eq!(told, own_users(map(HOST), map(HOST)));
    let (a, b) = (pod.up(&shell(&pod, "a", SERVICE))?, pod.up(&shell(&pod, "b", SERVICE))?);
    let table = pod.exec(&a, "cat /proc/self/uid_map /proc/self/gid_map")?;
    let numbers: Vec<u32> = table.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    assert_eq!(numbers, [0, HOST, LENGTH, 0, HOST, LENGTH]);
    assert_eq!(pod.exec(&a, "id -u; id -g")?, "0\n0");
    let namespace = pod.exec(&a, "readlink /proc/self/ns/user")?;
    assert_eq!(pod.exec(&b, "readlink /proc/self/ns/user")?, namespace, "one for all containers of the pod");
    assert_ne!(namespace, fs::read_link("/proc/self/ns/user")?.display().to_string());
    let outside = fs::metadata(format!("/proc/{}", pid(node, &a)?))?;
    assert_eq!((outside.uid(), outside.gid()), (HOST, HOST));
    // The namespace of the pod owns its others.
    let pin = node.daemon.dir().join("ns/userns").join(&pod.id);
    if pin.exists() {
        assert_eq!(fs::metadata(&pin)?.ino(), namespace_inode(&namespace)?);
    }
    assert_eq!(node.cri.status(&a)?.state(), ContainerState::ContainerRunning);
    Ok(())
}

fn namespace_inode(text: &str) -> Result<u64> {
    let number = text.split(['[', ']']).nth(1).ok_or("a link to a namespace")?;
    Ok(number.parse()?)
}

fn files(node: &Node, handler: &str) -> Result {
    let pod = pod(node, handler, "files")?;
    let mut config = shell(&pod, "c", SERVICE);
    config.working_dir = "/new/working/dir".to_owned();
    let id = pod.up(&config)?;
    let stat = |paths: &str| pod.exec(&id, &format!("stat -c '%u:%g' {paths}"));
    // The image's, ours, and what was made in the container's layer.
    for path in [
        "/",
        "/bin/busybox",
        "/etc",
        "/etc/hello",
        "/new",
        "/new/working/dir",
        "/dev/shm",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/run/.containerenv",
    ] {
        assert_eq!(stat(path)?, "0:0", "{path}");
    }
    pod.exec(&id, "test ! -L /etc/mtab || test $(stat -c %u /etc/mtab) = 0")?;
    pod.exec(
        &id,
        "touch /written; chown 7:8 /written; echo x >> /etc/hello; touch /dev/shm/x; : >> /etc/resolv.conf",
    )?;
    assert_eq!(stat("/written /etc/hello")?, "7:8\n0:0");
    let layer = writable_layer(node, &id)?;
    let of = |name: &str| fs::metadata(layer.join(name)).map(|file| (file.uid(), file.gid()));
    assert_eq!(of("written")?, (HOST + 7, HOST + 8));
    assert_eq!(of("etc/hello")?, (HOST, HOST), "copied up with its mapped owner");
    assert_eq!(of("")?, (HOST, HOST));
    // Another container without a user namespace sees the image as it is.
    let plain = Pod::without_network(node, &format!("plain-{handler}"))?;
    assert_eq!(
        plain.answer("c", "stat -c '%u:%g' /etc/hello /bin/busybox; cat /etc/hello")?,
        "0:0\n0:0\nhello from the image"
    );
    // The pod's log is the node's.
    let log = PathBuf::from(node.cri.status(&id)?.log_path);
    assert_eq!(fs::metadata(log)?.uid(), 0);
    Ok(())
}

/// The directory of a container's own layer.
fn writable_layer(node: &Node, id: &str) -> Result<PathBuf> {
    let (_, body) = crate::socket::get(node, &format!("/containers/{id}"))?;
    let root = body["root"].as_str().ok_or("a root")?;
    Ok(Path::new(root).parent().ok_or("a layer")?.join("diff"))
}

/// Where nobody but the node's root may go, as on a node.
fn volume(node: &Node, name: &str) -> Result<PathBuf> {
    let parent = node.daemon.dir().join("kubelet");
    let dir = parent.join(name);
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o700))?;
    for (file, owner) in [("root", 0), ("user", 1000)] {
        let path = dir.join(file);
        put(&path, "from the node\n")?;
        chown(&path, Some(owner), Some(owner))?;
    }
    Ok(dir)
}

#[expect(clippy::disallowed_methods, reason = "no container that could change it runs any more")]
fn remove_volumes(node: &Node) -> Result {
    Ok(fs::remove_dir_all(node.daemon.dir().join("kubelet"))?)
}

#[expect(clippy::disallowed_methods, reason = "a file in the test's own directory")]
fn put(path: &Path, text: &str) -> Result {
    Ok(fs::write(path, text)?)
}

fn mapped(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        uid_mappings: map(HOST),
        gid_mappings: map(HOST),
        ..Mount::default()
    }
}

fn volumes(node: &Node, handler: &str) -> Result {
    let pod = pod(node, handler, "volumes")?;
    let dir = volume(node, "userns-volume")?;
    let plain = Mount { uid_mappings: vec![], gid_mappings: vec![], ..mapped(&dir, "/plain") };
    let file = mapped(&dir.join("root"), "/dev/termination-log");
    let read_only = Mount { readonly: true, ..mapped(&dir, "/ro") };
    let mut config = shell(&pod, "c", SERVICE);
    config.mounts = vec![mapped(&dir, "/data"), read_only, plain, file];
    let id = pod.up(&config)?;
    assert_eq!(
        pod.exec(&id, "stat -c '%u:%g' /data/root /data/user /ro/user /dev/termination-log")?,
        "0:0\n1000:1000\n1000:1000\n0:0"
    );
    // Without the mapping the node's users are nobody's in there.
    assert_eq!(pod.exec(&id, "stat -c '%u' /plain/root")?, "65534");
    pod.exec(&id, "touch /data/new; chown 5:6 /data/new; echo last words > /dev/termination-log")?;
    let made = fs::metadata(dir.join("new"))?;
    assert_eq!((made.uid(), made.gid()), (5, 6), "on the volume they are the pod's numbers");
    assert_eq!(fs::read_to_string(dir.join("root"))?, "last words\n");
    let written = pod.exec(&id, "touch /ro/new").err().ok_or("a read-only mount was written")?.to_string();
    assert!(written.contains("Read-only"), "{written}");
    node.cri.remove(&id)?;
    remove_volumes(node)?;
    Ok(())
}

fn streams(node: &Node, handler: &str) -> Result {
    let pod = pod(node, handler, "streams")?;
    // runc can't take the path of a console socket in a directory as deep as a test's.
    if handler.starts_with("crun") {
        let mut config = shell(&pod, "tty", "tty; stat -c %u $(tty)");
        config.tty = true;
        let said = pod.said(&config)?;
        assert!(said.stdout.contains("/dev/pts/0") || said.stdout.contains("/dev/console"), "{said:?}");
        assert_eq!(said.code, 0);
    }
    let said = pod.said(&shell(&pod, "out", "echo one > /dev/stdout; echo two > /dev/stderr; exit 3"))?;
    assert_eq!((said.stdout.as_str(), said.stderr.as_str(), said.code), ("one\n", "two\n", 3));
    let mut config = shell(&pod, "user", &format!("id -u > /dev/stdout; {SERVICE}"));
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let id = pod.up(&config)?;
    assert!(node.cri.log(&id)?.contains(" stdout F 1000\n"));
    assert_eq!(pod.exec(&id, "id -u; echo out > /dev/stdout")?, "1000\nout");
    assert_eq!(fs::metadata(format!("/proc/{}", pid(node, &id)?))?.uid(), HOST + 1000);
    node.cri.stop(&id, 5)?;
    assert_eq!(node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?.exit_code, 0);
    node.cri.remove(&id)?;
    Ok(())
}

fn own_namespaces(node: &Node, handler: &str) -> Result {
    let mut config = node.cri.pod("own-namespaces");
    users(&mut config);
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    for (key, value) in [
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "20"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ] {
        sysctls.insert(key.to_owned(), value.to_owned());
    }
    let pod = run(node, handler, config)?;
    let ip = node.cri.pod_status(&pod.id)?.network.ok_or("a network")?.ip;
    let mut config = shell(&pod, "c", SERVICE);
    security(&mut config).masked_paths = vec!["/proc/keys".to_owned()];
    let id = pod.up(&config)?;
    assert!(pod.exec(&id, "ip -4 addr show dev eth0")?.contains(&ip));
    assert!(pod.exec(&id, "ip -4 addr show dev lo")?.contains("127.0.0.1"));
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced fs/mqueue/msg_max net/ipv4/ping_group_range | tr '\\t' ' '";
    assert_eq!(pod.exec(&id, script)?, format!("77\n1\n20\n0 {}", LENGTH - 1));
    assert_eq!(pod.exec(&id, "stat -c '%u %a' /dev/mqueue")?, "0 1777");
    pod.exec(&id, "ls /sys/class/net/eth0 > /dev/null; test -r /proc/self/mountinfo")?;
    // Masked as in any other pod.
    assert_eq!(pod.exec(&id, "head -c1 /proc/keys | wc -c")?, "0");
    assert_eq!(pod.exec(&id, "hostname")?, "own-namespaces");
    Ok(())
}

fn shared_pids(node: &Node, handler: &str) -> Result {
    let mut config = node.cri.pod("shared-pids");
    users(&mut config);
    sandbox_namespaces(&mut config).pid = NamespaceMode::Pod.into();
    let pod = run(node, handler, config)?;
    let a = pod.up(&shell(&pod, "a", &format!(": marker-of-a; {SERVICE}")))?;
    let b = pod.up(&shell(&pod, "b", SERVICE))?;
    assert!(pod.exec(&b, "cat /proc/1/cmdline")?.contains("sandbox-init"));
    assert!(pod.exec(&b, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?.contains("marker-of-a"));
    assert_eq!(pod.exec(&b, "awk '/^Uid/ {print $2}' /proc/1/status")?, "0", "of the pod's users");
    pod.exec(&a, "for i in 1 2 3; do (sleep 0.1 &) ; done")?;
    wait_for("orphans to be reaped", LIMIT, || {
        let states = pod.exec(&b, "cat /proc/[0-9]*/stat 2>/dev/null || true")?;
        Ok((!states.contains(") Z ")).then_some(()))
    })?;
    Ok(())
}

fn host_network(node: &Node, handler: &str) -> Result {
    let mut config = node.cri.host_network_pod("host-network");
    users(&mut config);
    let pod = run(node, handler, config)?;
    let id = pod.up(&shell(&pod, "c", SERVICE))?;
    let ours = fs::read_link("/proc/self/ns/net")?.display().to_string();
    assert_eq!(pod.exec(&id, "readlink /proc/self/ns/net")?, ours);
    pod.exec(&id, "ls /sys/class/net/lo > /dev/null")?;
    let error =
        pod.exec(&id, "ip link set lo down").err().ok_or("the node's network was changed")?.to_string();
    assert!(error.contains("not permitted") || error.contains("denied"), "{error}");
    let error = pod.exec(&id, "echo 1 > /sys/kernel/mm/ksm/run").err().ok_or("/sys was written")?.to_string();
    assert!(
        error.contains("Read-only") || error.contains("denied") || error.contains("nonexistent"),
        "{error}"
    );
    Ok(())
}

fn host_others(node: &Node, handler: &str) -> Result {
    let mut config = node.cri.pod("host-others");
    users(&mut config);
    let options = sandbox_namespaces(&mut config);
    options.pid = NamespaceMode::Node.into();
    options.ipc = NamespaceMode::Node.into();
    let pod = run(node, handler, config)?;
    let id = pod.up(&shell(&pod, "c", SERVICE))?;
    for kind in ["pid", "ipc"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string();
        assert_eq!(pod.exec(&id, &format!("readlink /proc/self/ns/{kind}"))?, ours, "{kind}");
    }
    let mine = std::process::id();
    pod.exec(&id, &format!("test -d /proc/{mine}"))?;
    let error =
        pod.exec(&id, &format!("kill -0 {mine}")).err().ok_or("a process of the node was signalled")?;
    assert!(error.to_string().contains("not permitted"), "{error}");
    Ok(())
}

fn ranges(node: &Node, handler: &str) -> Result {
    let two = |host: u32| {
        vec![
            IdMapping { host_id: host, container_id: 0, length: 1000 },
            IdMapping { host_id: host + 50_000, container_id: 1000, length: 1000 },
        ]
    };
    let mut config = node.cri.host_network_pod("ranges");
    let options = sandbox_namespaces(&mut config);
    options.network = NamespaceMode::Pod.into();
    options.userns_options = Some(own_users(two(300_000), two(400_000)));
    config.hostname = "ranges".to_owned();
    let pod = run(node, handler, config)?;
    let mut config = shell(&pod, "c", SERVICE);
    security(&mut config).run_as_user = Some(Int64Value { value: 1500 });
    security(&mut config).run_as_group = Some(Int64Value { value: 7 });
    let id = pod.up(&config)?;
    assert_eq!(pod.exec(&id, "id -u; id -g; stat -c '%u:%g' /etc/hello")?, "1500\n7\n0:0");
    let outside = fs::metadata(format!("/proc/{}", pid(node, &id)?))?;
    assert_eq!((outside.uid(), outside.gid()), (350_500, 400_007));
    Ok(())
}

fn way(node: &Node) -> Result {
    let handler = able(node)?;
    let pod = pod(node, &handler, "way")?;
    let id = pod.up(&shell(&pod, "c", SERVICE))?;
    let mode = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.permissions().mode() & 0o777));
    let ways = node.daemon.run_root().join("criox-roots");
    assert_eq!(mode(&ways)?, (0, 0o711));
    assert_eq!(mode(&ways.join(&id))?, (HOST, 0o110));
    // Nothing else of ours has been opened for it.
    for private in [node.daemon.root().join("overlay"), node.daemon.run_root().join("criox").join(&pod.id)] {
        assert_eq!(mode(&private)?.1 & 0o007, 0, "{}", private.display());
    }
    node.cri.stop(&id, 5)?;
    wait_for("the way to be closed", LIMIT, || Ok((!ways.join(&id).exists()).then_some(())))?;
    node.cri.remove(&id)?;
    Ok(())
}

/// A handler with user namespaces.
fn able(node: &Node) -> Result<String> {
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
    let mut able = status.runtime_handlers.into_iter();
    let found = able.find(|handler| handler.features.is_some_and(|features| features.user_namespaces));
    Ok(found.ok_or_else(|| skip("no handler has user namespaces here"))?.name)
}

fn bad_mappings(node: &Node) -> Result {
    let range = |container_id, host_id, length| IdMapping { host_id, container_id, length };
    let mode = |mode: NamespaceMode| UserNamespace { mode: mode.into(), ..UserNamespace::default() };
    let good = || map(HOST);
    for (options, field) in [
        (mode(NamespaceMode::Container), "userns_options"),
        (mode(NamespaceMode::Target), "userns_options"),
        (mode(NamespaceMode::Pod), "userns_options.uids"),
        (own_users(good(), vec![]), "userns_options.gids"),
        (own_users(vec![range(0, HOST, 0)], good()), "userns_options.uids"),
        (own_users(good(), vec![range(1, HOST, 10)]), "userns_options.gids"),
        (own_users(vec![range(0, 0, 10)], good()), "userns_options.uids"),
        (own_users(vec![range(0, u32::MAX, 10)], good()), "userns_options.uids"),
        (own_users(vec![range(0, HOST, 10), range(0, HOST + 10, 10)], good()), "userns_options.uids"),
        (UserNamespace { mode: NamespaceMode::Node.into(), uids: good(), gids: good() }, "userns_options"),
    ] {
        let mut config = node.cri.pod("bad-mappings");
        sandbox_namespaces(&mut config).userns_options = Some(options.clone());
        let message = refused(node.cri.run_pod(&config), Code::InvalidArgument)?;
        assert!(
            message.contains(&format!("config.linux.security_context.namespace_options.{field}")),
            "{options:?}: {message}"
        );
    }
    assert!(node.cri.list_pods()?.is_empty());
    Ok(())
}

fn old_handler(node: &Node) -> Result {
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
    let unable = status.runtime_handlers.iter().find(|handler| {
        !handler.name.is_empty() && !handler.features.is_some_and(|features| features.user_namespaces)
    });
    let unable = unable.ok_or_else(|| skip("every handler has user namespaces here"))?;
    let mut config = node.cri.pod("old-handler");
    users(&mut config);
    let message = refused(node.cri.run_pod_as(&config, &unable.name), Code::FailedPrecondition)?;
    assert!(message.contains("userns_options") && message.contains(&unable.name), "{message}");
    assert!(node.cri.list_pods()?.is_empty());
    Ok(())
}

fn bad_volume(node: &Node) -> Result {
    let handler = able(node)?;
    let pod = pod(node, &handler, "bad-volume")?;
    // A file system of the kernel has no owners to map.
    let mut config = shell(&pod, "c", "true");
    config.mounts =
        vec![mapped(&volume(node, "good-volume")?, "/good"), mapped(Path::new("/sys/kernel"), "/bad")];
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::FailedPrecondition)?;
    assert!(message.contains("mounts[1].uidMappings") && message.contains("/sys/kernel"), "{message}");
    assert!(node.cri.list(None)?.is_empty());
    remove_volumes(node)?;
    Ok(())
}

fn bad_users(node: &Node) -> Result {
    let handler = able(node)?;
    let pod = pod(node, &handler, "bad-users")?;
    let value = |value: i64| Some(Int64Value { value });
    let check = |field: &str, user: i64, group: i64, more: &[i64]| -> Result {
        let mut config = shell(&pod, "c", "true");
        let security = security(&mut config);
        security.run_as_user = value(user);
        security.run_as_group = value(group);
        security.supplemental_groups = more.to_vec();
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains(&format!("config.linux.security_context.{field}")), "{message}");
        Ok(())
    };
    check("run_as_user", i64::from(LENGTH), 0, &[])?;
    check("run_as_group", 0, i64::from(LENGTH), &[])?;
    check("supplemental_groups", 0, 0, &[5, i64::from(LENGTH)])?;
    assert!(node.cri.list(None)?.is_empty());
    Ok(())
}

fn other_namespace(node: &Node) -> Result {
    let handler = able(node)?;
    let pod = pod(node, &handler, "other-namespace")?;
    let node_users = UserNamespace { mode: NamespaceMode::Node.into(), ..UserNamespace::default() };
    for other in [own_users(map(HOST + LENGTH), map(HOST + LENGTH)), node_users] {
        let mut config = shell(&pod, "c", "true");
        namespaces(&mut config).userns_options = Some(other);
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains("namespace_options.userns_options"), "{message}");
    }
    // An old kubelet says nothing: the pod's.
    let mut config = shell(&pod, "c", SERVICE);
    namespaces(&mut config).userns_options = None;
    let id = pod.up(&config)?;
    assert!(pod.exec(&id, "cat /proc/self/uid_map")?.contains(&HOST.to_string()));
    Ok(())
}

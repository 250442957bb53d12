//! What lies in a container: files of the pod, mounts, devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use criox_cri::v1::{
    Device, DnsConfig, LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::Code;

use crate::NODE;
use crate::pod::{Pod, SERVICE, refused, sandbox_security, security};

pub(crate) const TESTS: &[Test] = &[
    ("a pod has its host name, and resolv.conf as it was asked for", || NODE.test(pod_files)),
    ("the kubelet's /etc/hosts and termination log are mounted and written through", || {
        NODE.test(kubelet_files)
    }),
    ("a pod's shm is shared by its containers, and ends with it", || NODE.test(shm)),
    ("a mount is read-only when asked, a file or a directory, and follows links on the host", || {
        NODE.test(mounts)
    }),
    ("a missing mount source is made, as with CRI-O", || NODE.test(missing_source)),
    ("a mount with a host path that is not absolute is refused", || NODE.test(relative_source)),
    ("propagation: none, from the host, and both ways", || NODE.test(propagation)),
    ("a link in the image can't lead a mount out of the root", || NODE.test(link_in_image)),
    ("a device is there with just the access that was asked for", || NODE.test(devices)),
    ("the usual devices are there and can't be replaced by others", || NODE.test(usual_devices)),
    ("a read-only root can't be written, its volumes can", || NODE.test(read_only_root)),
    ("masked and read-only paths are just those of the request", || NODE.test(masked_paths)),
    ("writes of a container stay in it and out of the image", || NODE.test(own_layer)),
];

/// A directory of the test's own on the node, with a file in it.
fn directory(node: &Node, name: &str) -> Result<PathBuf> {
    let dir = node.daemon.dir().join(name);
    fs::create_dir_all(&dir)?;
    put(&dir.join("file"), "from the node\n")?;
    Ok(dir)
}

#[expect(clippy::disallowed_methods, reason = "a file in the test's own directory")]
fn put(path: &Path, text: &str) -> Result {
    Ok(fs::write(path, text)?)
}

fn bind(host: &Path, container: &str) -> Mount {
    Mount { host_path: host.display().to_string(), container_path: container.to_owned(), ..Mount::default() }
}

fn pod_files(node: &Node) -> Result {
    let mut config = node.cri.pod("files");
    config.hostname = "named-host".to_owned();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["default.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let pod = Pod::run_with(node, config)?;
    let id = pod.service("c")?;
    for command in ["hostname", "cat /etc/hostname", "echo $HOSTNAME"] {
        assert_eq!(pod.exec(&id, command)?, "named-host", "{command}");
    }
    assert_eq!(
        pod.exec(&id, "cat /etc/resolv.conf")?,
        "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
    );
    pod.exec(&id, "test -e /run/.containerenv")?;
    assert_eq!(pod.exec(&id, "readlink /etc/mtab")?, "/proc/mounts");
    Ok(())
}

fn kubelet_files(node: &Node) -> Result {
    let pod = Pod::run(node, "kubelet-files")?;
    let dir = directory(node, "kubelet-files")?;
    let (hosts, termination) = (dir.join("etc-hosts"), dir.join("1a2b3c4d"));
    put(&hosts, "127.0.0.1 localhost from-the-kubelet\n")?;
    put(&termination, "")?;
    let mut config = pod.shell("c", "cat /etc/hosts; echo last words > /dev/termination-log");
    config.mounts = vec![bind(&hosts, "/etc/hosts"), bind(&termination, "/dev/termination-log")];
    assert_eq!(pod.answer_of(&config)?, "127.0.0.1 localhost from-the-kubelet");
    assert_eq!(fs::read_to_string(&termination)?, "last words\n");
    let listed = node.cri.list(None)?.pop().ok_or("the container")?.id;
    // The kubelet finds the termination log by the path in here.
    assert_eq!(node.cri.status(&listed)?.mounts, config.mounts);
    // With the node's network and no such mount the node's file is there.
    let host = Pod::without_network(node, "host-hosts")?;
    assert_eq!(host.answer("c", "cat /etc/hosts")?, fs::read_to_string("/etc/hosts")?.trim_end());
    Ok(())
}

fn shm(node: &Node) -> Result {
    let pod = Pod::without_network(node, "shm")?;
    let a = pod.service("a")?;
    pod.exec(&a, "echo through memory > /dev/shm/x")?;
    assert_eq!(pod.answer("b", "cat /dev/shm/x")?, "through memory");
    // 64 MiB, as everywhere.
    assert_eq!(pod.exec(&a, "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2")?, "65536");
    let other = Pod::without_network(node, "other-shm")?;
    assert_eq!(other.answer("c", "ls -A /dev/shm")?, "");
    let mut config = node.cri.host_network_pod("host-ipc");
    crate::pod::sandbox_namespaces(&mut config).ipc = NamespaceMode::Node.into();
    let host = Pod::run_with(node, config)?;
    let nodes = fs::metadata("/dev/shm")?;
    let seen = host.answer("c", "stat -c '%d %i' /dev/shm")?;
    assert_eq!(
        seen,
        format!(
            "{} {}",
            std::os::unix::fs::MetadataExt::dev(&nodes),
            std::os::unix::fs::MetadataExt::ino(&nodes)
        )
    );
    Ok(())
}

fn mounts(node: &Node) -> Result {
    let pod = Pod::without_network(node, "mounts")?;
    let dir = directory(node, "mounts")?;
    let link = node.daemon.dir().join("mounts-link");
    symlink(&dir, &link)?;
    let mut config = pod.shell("c", SERVICE);
    config.mounts = vec![
        bind(&dir, "/rw"),
        Mount { readonly: true, ..bind(&dir, "/ro") },
        bind(&dir.join("file"), "/etc/single"),
        bind(&link, "/linked/deep/below"),
    ];
    let id = pod.up(&config)?;
    for path in ["/rw/file", "/ro/file", "/etc/single", "/linked/deep/below/file"] {
        assert_eq!(pod.exec(&id, &format!("cat {path}"))?, "from the node");
    }
    pod.exec(&id, "echo changed > /rw/new")?;
    assert_eq!(fs::read_to_string(dir.join("new"))?, "changed\n");
    let message = pod.exec(&id, "echo x > /ro/new").err().ok_or("a read-only mount was written")?.to_string();
    assert!(message.contains("Read-only file system"), "{message}");
    fs::remove_file(link)?;
    Ok(())
}

fn missing_source(node: &Node) -> Result {
    let pod = Pod::without_network(node, "missing")?;
    let dir = node.daemon.dir().join("was/missing");
    let mut config = pod.shell("c", "echo x > /data/file");
    config.mounts = vec![bind(&dir, "/data")];
    pod.answer_of(&config)?;
    assert_eq!(fs::read_to_string(dir.join("file"))?, "x\n");
    Ok(())
}

fn relative_source(node: &Node) -> Result {
    let pod = Pod::without_network(node, "relative")?;
    for (host, container, field) in [
        ("etc", "/x", "mounts[1].host_path"),
        ("", "/x", "mounts[1].host_path"),
        ("/etc", "", "mounts[1].container_path"),
    ] {
        let mut config = pod.shell("c", "true");
        config.mounts = vec![bind(Path::new("/etc"), "/ok"), bind(Path::new(host), container)];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains(field), "{message}");
    }
    Ok(())
}

/// A tmpfs with a file, taken away when the test ends in any way.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(path: PathBuf, text: &str) -> Result<Self> {
        fs::create_dir_all(&path)?;
        mount("test", &path, "tmpfs", MountFlags::empty(), None)?;
        let mounted = Self(path);
        put(&mounted.0.join("file"), text)?;
        Ok(mounted)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Fails only when it is gone already.
        let _gone = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn propagation(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("propagation");
    sandbox_security(&mut config).privileged = true;
    let pod = Pod::run_with(node, config)?;
    // A mount of its own, shared as a volume's parent is on a node.
    let volume = Tmpfs::new(node.daemon.dir().join("propagation"), "volume\n")?;
    fs::create_dir(volume.0.join("from-host"))?;
    fs::create_dir(volume.0.join("from-pod"))?;
    rustix::mount::mount_change(&volume.0, rustix::mount::MountPropagationFlags::SHARED)?;
    let mut config = pod.shell("c", SERVICE);
    security(&mut config).privileged = true;
    let with = |path: &str, propagation: MountPropagation| Mount {
        propagation: propagation.into(),
        ..bind(&volume.0, path)
    };
    config.mounts = vec![
        with("/private", MountPropagation::PropagationPrivate),
        with("/slave", MountPropagation::PropagationHostToContainer),
        with("/shared", MountPropagation::PropagationBidirectional),
    ];
    let id = pod.up(&config)?;
    let later = Tmpfs::new(volume.0.join("from-host"), "later\n")?;
    assert_eq!(pod.exec(&id, "cat /slave/from-host/file")?, "later");
    assert_eq!(pod.exec(&id, "cat /shared/from-host/file")?, "later");
    assert_eq!(pod.exec(&id, "ls -A /private/from-host")?, "");
    drop(later);
    pod.exec(&id, "mount -t tmpfs inside /slave/from-pod && echo x > /slave/from-pod/file")?;
    assert!(!volume.0.join("from-pod/file").exists(), "a slave sends nothing back");
    pod.exec(&id, "mount -t tmpfs inside /shared/from-pod && echo x > /shared/from-pod/file")?;
    assert!(volume.0.join("from-pod/file").exists(), "a shared mount does");
    pod.exec(&id, "umount /shared/from-pod")?;
    assert!(!volume.0.join("from-pod/file").exists());
    node.cri.stop(&id, 10)?;
    node.cri.remove(&id)?;
    Ok(())
}

fn link_in_image(node: &Node) -> Result {
    let pod = Pod::without_network(node, "link")?;
    let outside = directory(node, "outside")?;
    let inner = directory(node, "inner")?;
    let image = testkit::busybox_image()?
        .layer(&[testkit::Entry::symlink("data", &outside.display().to_string())])
        .build()?
        .push(&node.registry, "tests/link", "1")?;
    node.cri.pull(&image)?;
    let mut config = node.cri.container("c", &image, &["sh", "-c", "echo x > /data/new"]);
    config.mounts = vec![bind(&inner, "/data")];
    // Whether the runtime resolves the link inside the root or refuses it, the node's directory stays as it was.
    drop(pod.said(&config));
    let left: Vec<_> = fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["file"]);
    Ok(())
}

fn devices(node: &Node) -> Result {
    let pod = Pod::without_network(node, "devices")?;
    let mut config = pod.shell("c", SERVICE);
    config.devices = vec![Device {
        container_path: "/dev/mine".to_owned(),
        host_path: "/dev/loop-control".to_owned(),
        permissions: "r".to_owned(),
    }];
    let id = pod.up(&config)?;
    let host = std::os::unix::fs::MetadataExt::rdev(&fs::metadata("/dev/loop-control")?);
    let numbers = format!("{:x} {:x}", rustix::fs::major(host), rustix::fs::minor(host));
    assert_eq!(pod.exec(&id, "stat -c '%t %T' /dev/mine")?, numbers);
    pod.exec(&id, "exec 3< /dev/mine")?;
    let message =
        pod.exec(&id, "exec 3<> /dev/mine").err().ok_or("a device was opened for writing")?.to_string();
    assert!(message.contains("not permitted"), "{message}");

    let mut bad = pod.shell("bad", "true");
    bad.devices = vec![Device {
        container_path: "/dev/x".to_owned(),
        host_path: "/dev/no-such-device".to_owned(),
        permissions: "rwm".to_owned(),
    }];
    let message = refused(node.cri.create(&pod.id, &bad, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("/dev/no-such-device"), "{message}");
    bad.devices[0].host_path = "/dev/null".to_owned();
    bad.devices[0].permissions = "rx".to_owned();
    let message = refused(node.cri.create(&pod.id, &bad, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("devices[0]"), "{message}");
    Ok(())
}

fn usual_devices(node: &Node) -> Result {
    let pod = Pod::without_network(node, "usual")?;
    let script = "for name in null zero full random urandom tty ptmx; do test -c /dev/$name || echo no $name; done; \
                  test -d /dev/pts; test -L /dev/stdout; head -c 4 /dev/zero | wc -c; \
                  mknod /tmp/disk b 7 0 2> /dev/null || echo no mknod; ls /dev/loop0 2> /dev/null || echo no loop";
    assert_eq!(pod.answer("c", script)?, "4\nno mknod\nno loop");
    Ok(())
}

fn read_only_root(node: &Node) -> Result {
    let pod = Pod::without_network(node, "read-only")?;
    let dir = directory(node, "volume")?;
    let mut config = pod.shell(
        "c",
        "echo x > /root/x || echo refused; echo x > /data/x && echo volume; echo x > /dev/shm/x && echo shm; echo x > /dev/null && echo null",
    );
    security(&mut config).readonly_rootfs = true;
    config.mounts = vec![bind(&dir, "/data")];
    assert_eq!(pod.answer_of(&config)?, "refused\nvolume\nshm\nnull");
    Ok(())
}

fn masked_paths(node: &Node) -> Result {
    let pod = Pod::without_network(node, "masked")?;
    let mut config = pod.shell(
        "c",
        "cat /etc/hello; ls /var/secret; echo 1 > /proc/sys/kernel/domainname 2> /dev/null || echo read-only",
    );
    let context = security(&mut config);
    context.masked_paths =
        vec!["/etc/hello".to_owned(), "/var/secret".to_owned(), "/no/such/path".to_owned()];
    context.readonly_paths = vec!["/proc/sys".to_owned()];
    let image = testkit::busybox_image()?
        .layer(&[testkit::Entry::dir("var/secret"), testkit::Entry::file("var/secret/key", "x")])
        .build()?
        .push(&node.registry, "tests/secret", "1")?;
    node.cri.pull(&image)?;
    config.image.get_or_insert_default().image = image.clone();
    assert_eq!(pod.answer_of(&config)?, "read-only");
    // Empty lists mask nothing: procMount Unmasked.
    let mut config =
        pod.shell("unmasked", "cat /etc/hello; ls /var/secret; grep -c ' /proc/' /proc/self/mounts || true");
    config.image.get_or_insert_default().image = image;
    *security(&mut config) = LinuxContainerSecurityContext::default();
    assert_eq!(pod.answer_of(&config)?, "hello from the image\nkey\n0");
    Ok(())
}

fn own_layer(node: &Node) -> Result {
    let pod = Pod::without_network(node, "own-layer")?;
    let script =
        "cat /etc/hello; echo changed > /etc/hello; rm /etc/passwd; mkdir /new; ls -d /new; cat /etc/hello";
    for name in ["first", "second"] {
        assert_eq!(pod.answer(name, script)?, "hello from the image\n/new\nchanged", "{name}");
    }
    Ok(())
}

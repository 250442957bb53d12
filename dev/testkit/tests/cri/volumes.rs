//! Image volumes, recursive read-only mounts, and the options of mounts.

use std::fs;
use std::path::{Path, PathBuf};

use criox_cri::v1::{
    ContainerConfig, ContainerState, IdMapping, ImageSpec, Mount, MountPropagation, NamespaceMode,
    StatusRequest, UserNamespace,
};
use testkit::daemon::peer;
use testkit::harness::{Test, skip};
use testkit::{Entry, Node, Result, busybox_image, wait_for};
use tonic::Code;

use crate::NODE;
use crate::handlers::of_peer;
use crate::pod::{LIMIT, Pod, SERVICE, namespaces, refused, sandbox_namespaces};

pub(crate) const TESTS: &[Test] = &[
    ("an image is a read-only volume whose programs run", || NODE.test(|node| image(node, ""))),
    ("the newer crun mounts images", || with_peer("crun", image)),
    ("the newer runc mounts images", || with_peer("runc", image)),
    ("a sub-path of an image is a volume, found inside the image alone", || NODE.test(sub_path)),
    ("crun: in a user namespace an image volume belongs to the pod", || with_peer("crun", mapped_image)),
    ("runc: in a user namespace an image volume belongs to the pod", || with_peer("runc", mapped_image)),
    ("image volumes that can't be say so in the kubelet's word", || NODE.test(bad_images)),
    ("an image is not removed while it is a volume", || NODE.test(used_image)),
    ("an image volume is unmounted when its container has ended", || NODE.test(unmounted)),
    ("crun: a recursive read-only mount has nothing writable below", || with_peer("crun", recursive)),
    ("runc: a recursive read-only mount has nothing writable below", || with_peer("runc", recursive)),
    ("recursive read-only mounts without their conditions are refused", || NODE.test(bad_recursive)),
    ("options of a mount are set and win over ours", || NODE.test(|node| options(node, ""))),
    ("the newer crun sets options of mounts", || with_peer("crun", options)),
    ("the newer runc sets options of mounts", || with_peer("runc", options)),
    ("unknown options of a mount are refused by number", || NODE.test(bad_options)),
    ("propagation that the node's mount can't give is refused", || NODE.test(bad_propagation)),
];

fn with_peer(name: &str, test: fn(&Node, &str) -> Result) -> Result {
    peer(name).map_err(|error| skip(error.to_string()))?;
    NODE.test(|node| test(node, &of_peer(name)))
}

fn pod<'a>(node: &'a Node, handler: &str, name: &str) -> Result<Pod<'a>> {
    let config = node.cri.host_network_pod(name);
    let id = node.cri.run_pod_as(&config, handler)?;
    Ok(Pod { cri: &node.cri, image: &node.image, id, config })
}

/// An image with a tree of its own, and a program; its reference and its ID.
fn content(node: &Node) -> Result<(String, String)> {
    let image = busybox_image()?.layer(&[
        Entry::dir("data/"),
        Entry::dir("data/deep/"),
        Entry::file("data/deep/file", b"from the volume\n"),
        Entry::symlink("inside", "/data/deep"),
        Entry::symlink("outside", "../../../../../etc/shadow-of-the-node"),
    ]);
    let reference = image.build()?.push(&node.registry, "tests/volume", "1")?;
    let id = node.cri.pull(&reference)?;
    Ok((reference, id))
}

fn volume(image: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: "/volume".to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: "the/users:words".to_owned(),
            ..ImageSpec::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Mount::default()
    }
}

fn image(node: &Node, handler: &str) -> Result {
    let (reference, image) = content(node)?;
    let pod = pod(node, handler, "image-volume")?;
    let mut config = pod.shell("c", SERVICE);
    config.mounts = vec![volume(&reference, "")];
    let id = pod.up(&config)?;
    assert_eq!(pod.exec(&id, "cat /volume/data/deep/file")?, "from the volume");
    assert_eq!(pod.exec(&id, "/volume/bin/busybox echo runs")?, "runs");
    for script in ["touch /volume/new", "rm /volume/data/deep/file", "mount -o remount,rw /volume"] {
        assert!(pod.exec(&id, script).is_err(), "{script}");
    }
    let told = node.cri.status(&id)?.mounts.into_iter().find(|mount| mount.container_path == "/volume");
    let told = told.ok_or("the mount in the status")?;
    let spec = told.image.ok_or("its image")?;
    assert_eq!((spec.image.as_str(), spec.image_ref.as_str()), (image.as_str(), image.as_str()));
    assert_eq!(spec.user_specified_image, "the/users:words");
    assert!(told.host_path.is_empty() && told.readonly);
    node.cri.remove(&id)?;
    node.cri.remove_image(&reference)?;
    Ok(())
}

fn sub_path(node: &Node) -> Result {
    let (reference, _) = content(node)?;
    let pod = pod(node, "", "sub-path")?;
    for (name, path, script) in [
        ("directory", "data/deep", "cat /volume/file"),
        ("link", "inside", "cat /volume/file"),
        ("file", "data/deep/file", "cat /volume"),
        ("dots", "./data//deep/", "cat /volume/file"),
    ] {
        let mut config = pod.shell(name, script);
        config.mounts = vec![volume(&reference, path)];
        assert_eq!(pod.answer_of(&config)?, "from the volume", "{path}");
    }
    for path in ["not-existing", "outside", "data/deep/file/below"] {
        let mut config = pod.shell("missing", "true");
        config.mounts = vec![volume(&reference, path)];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.starts_with("ImageVolumeMountFailed"), "{message}");
        assert!(message.contains("mounts[0].image_sub_path") && message.contains(path), "{message}");
    }
    node.cri.remove_pod(&pod.id)?;
    node.cri.remove_image(&reference)?;
    Ok(())
}

fn mapped_image(node: &Node, handler: &str) -> Result {
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
    let features = status.runtime_handlers.iter().find(|found| found.name == handler);
    if !features.and_then(|found| found.features).is_some_and(|features| features.user_namespaces) {
        return Err(skip(format!("Status says that {handler} has no user namespaces here")));
    }
    let (reference, _) = content(node)?;
    let map = || vec![IdMapping { host_id: 500_000, container_id: 0, length: 65_536 }];
    let mut config = node.cri.pod("mapped-image");
    sandbox_namespaces(&mut config).userns_options =
        Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(), gids: map() });
    let id = node.cri.run_pod_as(&config, handler)?;
    let pod = Pod { cri: &node.cri, image: &node.image, id, config };
    let mut config = pod.shell("c", SERVICE);
    *namespaces(&mut config) = sandbox_namespaces(&mut pod.config.clone()).clone();
    let whole = Mount { uid_mappings: map(), gid_mappings: map(), ..volume(&reference, "") };
    config.mounts = vec![
        Mount { container_path: "/part".to_owned(), image_sub_path: "data/deep".to_owned(), ..whole.clone() },
        whole,
    ];
    let id = pod.up(&config)?;
    assert_eq!(
        pod.exec(&id, "cat /part/file; stat -c '%u:%g' /part/file /volume/bin/busybox")?,
        "from the volume\n0:0\n0:0"
    );
    assert!(pod.exec(&id, "touch /volume/new").is_err());
    node.cri.remove_pod(&pod.id)?;
    node.cri.remove_image(&reference)?;
    Ok(())
}

fn bad_images(node: &Node) -> Result {
    let (reference, _) = content(node)?;
    let pod = pod(node, "", "bad-images")?;
    let check = |mount: Mount, code: Code, parts: &[&str]| -> Result {
        let mut config = pod.shell("c", "true");
        config.mounts = vec![mount];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), code)?;
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(node.cri.list(None)?.is_empty());
        Ok(())
    };
    let word = "ImageVolumeMountFailed: config.mounts[0].image";
    check(volume("localhost/not/there:1", ""), Code::FailedPrecondition, &[word, "localhost/not/there:1"])?;
    check(volume("", ""), Code::InvalidArgument, &[word])?;
    for path in ["/etc", "../etc", "data/../.."] {
        check(
            volume(&reference, path),
            Code::InvalidArgument,
            &["ImageVolumeMountFailed", "image_sub_path", path],
        )?;
    }
    check(
        Mount { readonly: false, ..volume(&reference, "") },
        Code::InvalidArgument,
        &["mounts[0].readonly"],
    )?;
    check(
        Mount { host_path: "/etc".to_owned(), ..volume(&reference, "") },
        Code::InvalidArgument,
        &["mounts[0].host_path"],
    )?;
    let plain = Mount { host_path: "/etc".to_owned(), image: None, ..volume("", "deep") };
    check(plain, Code::InvalidArgument, &["mounts[0].image_sub_path"])?;
    let map = || vec![IdMapping { host_id: 500_000, container_id: 0, length: 65_536 }];
    let mapped = Mount { uid_mappings: map(), gid_mappings: map(), ..volume(&reference, "") };
    check(mapped, Code::InvalidArgument, &["mounts[0].uidMappings"])?;
    node.cri.remove_image(&reference)?;
    Ok(())
}

fn used_image(node: &Node) -> Result {
    let (reference, _) = content(node)?;
    let pod = pod(node, "", "used-image")?;
    let mut config = pod.shell("c", SERVICE);
    config.mounts = vec![volume(&reference, "data/deep")];
    let id = pod.up(&config)?;
    let error = node.cri.remove_image(&reference).err().ok_or("an image in use was removed")?;
    assert!(error.message().contains("in use"), "{error}");
    assert_eq!(pod.exec(&id, "cat /volume/file")?, "from the volume");
    node.cri.remove(&id)?;
    node.cri.remove_image(&reference)?;
    assert!(node.cri.image(&reference)?.is_none());
    Ok(())
}

fn unmounted(node: &Node) -> Result {
    let (reference, _) = content(node)?;
    let pod = pod(node, "", "unmounted")?;
    let mounted = || -> Result<usize> {
        let home = node.daemon.root().join("overlay").display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(table.lines().filter(|line| line.contains(&home) && line.contains("/merged ")).count())
    };
    assert_eq!(mounted()?, 0);
    let mut config = pod.shell("c", "true");
    config.mounts = vec![
        volume(&reference, "data"),
        Mount { container_path: "/other".to_owned(), ..volume(&reference, "") },
    ];
    let id = pod.create(&config)?;
    assert_eq!(mounted()?, 3);
    node.cri.start(&id)?;
    node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    wait_for("the mounts to go", LIMIT, || Ok((mounted()? == 0).then_some(())))?;
    node.cri.remove(&id)?;
    node.cri.remove_image(&reference)?;
    Ok(())
}

/// A tmpfs of its own, with another one in it.
struct Tree(PathBuf);

impl Tree {
    fn new(path: PathBuf) -> Result<Self> {
        let mount = |at: &Path| -> Result {
            fs::create_dir_all(at)?;
            let none = rustix::mount::MountFlags::empty();
            Ok(rustix::mount::mount("criox-test", at, "tmpfs", none, c"size=1m")?)
        };
        mount(&path)?;
        let tree = Self(path);
        mount(&tree.0.join("below"))?;
        Ok(tree)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for path in [self.0.join("below"), self.0.clone()] {
            let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn bind(host: &Path, container: &str) -> Mount {
    Mount { host_path: host.display().to_string(), container_path: container.to_owned(), ..Mount::default() }
}

fn recursive(node: &Node, handler: &str) -> Result {
    let pod = pod(node, handler, "recursive")?;
    let tree = Tree::new(node.daemon.dir().join("recursive"))?;
    let read_only = Mount { readonly: true, ..bind(&tree.0, "/plain") };
    let recursive = Mount { recursive_read_only: true, readonly: true, ..bind(&tree.0, "/all") };
    let mut config = pod.shell("c", SERVICE);
    config.mounts = vec![read_only, recursive];
    let id = pod.up(&config)?;
    pod.exec(&id, "touch /plain/below/file")?;
    for path in ["/plain/file", "/all/file", "/all/below/file"] {
        let error = pod.exec(&id, &format!("touch {path}")).err().ok_or(path)?.to_string();
        assert!(error.contains("Read-only file system"), "{path}: {error}");
    }
    let told = node.cri.status(&id)?.mounts.into_iter().find(|mount| mount.container_path == "/all");
    assert!(told.is_some_and(|mount| mount.recursive_read_only));
    node.cri.remove(&id)?;
    Ok(())
}

fn bad_recursive(node: &Node) -> Result {
    let pod = pod(node, "", "bad-recursive")?;
    let tree = Tree::new(node.daemon.dir().join("bad-recursive"))?;
    rustix::mount::mount_change(&tree.0, rustix::mount::MountPropagationFlags::SHARED)?;
    let recursive = || Mount { recursive_read_only: true, readonly: true, ..bind(&tree.0, "/all") };
    let with = |propagation: MountPropagation| Mount { propagation: propagation.into(), ..recursive() };
    for mount in [
        Mount { readonly: false, ..recursive() },
        with(MountPropagation::PropagationHostToContainer),
        with(MountPropagation::PropagationBidirectional),
    ] {
        let mut config = pod.shell("c", "true");
        config.mounts = vec![mount];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains("config.mounts[0].recursive_read_only"), "{message}");
    }
    // The machine's crun and runc may be too old; then the word that the kubelet knows comes.
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
    for handler in status.runtime_handlers {
        if handler.features.is_some_and(|features| features.recursive_read_only_mounts) {
            continue;
        }
        let pod = self::pod(node, &handler.name, &format!("old-{}", handler.name))?;
        let mut config = pod.shell("c", "true");
        config.mounts = vec![recursive()];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::FailedPrecondition)?;
        assert!(message.contains("RROUnsupported"), "{message}");
    }
    Ok(())
}

/// The options of the mount at a place, as the kernel tells them.
fn told(pod: &Pod, id: &str, place: &str) -> Result<Vec<String>> {
    let line = pod.exec(id, &format!("grep ' {place} ' /proc/self/mountinfo"))?;
    let options = line.split(' ').nth(5).ok_or("a line of mountinfo")?;
    Ok(options.split(',').map(str::to_owned).collect())
}

fn options(node: &Node, handler: &str) -> Result {
    let (reference, _) = content(node)?;
    let pod = pod(node, handler, "options")?;
    let dir = node.daemon.dir().join("options");
    fs::create_dir_all(&dir)?;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut config = pod.shell("c", SERVICE);
    config.mounts = vec![
        Mount { mount_options: words(&["noexec", "nosuid", "nodev", "noatime"]), ..bind(&dir, "/strict") },
        bind(&dir, "/plain"),
        Mount { mount_options: words(&["noexec"]), ..volume(&reference, "") },
    ];
    let id = pod.up(&config)?;
    pod.exec(&id, "cp /bin/busybox /plain/busybox && /plain/busybox echo runs")?;
    let error = pod.exec(&id, "/strict/busybox echo runs").err().ok_or("noexec is not in force")?.to_string();
    assert!(error.contains("Permission denied"), "{error}");
    let strict = told(&pod, &id, "/strict")?;
    for word in ["noexec", "nosuid", "nodev", "noatime"] {
        assert!(strict.iter().any(|told| told == word), "{word}: {strict:?}");
    }
    let image = told(&pod, &id, "/volume")?;
    for word in ["ro", "noexec", "nosuid", "nodev"] {
        assert!(image.iter().any(|told| told == word), "{word}: {image:?}");
    }
    assert!(!told(&pod, &id, "/plain")?.iter().any(|told| told == "noexec"));
    node.cri.remove(&id)?;
    node.cri.remove_image(&reference)?;
    remove(&dir)
}

#[expect(clippy::disallowed_methods, reason = "no container that could change it runs any more")]
fn remove(dir: &Path) -> Result {
    Ok(fs::remove_dir_all(dir)?)
}

fn bad_options(node: &Node) -> Result {
    let pod = pod(node, "", "bad-options")?;
    for option in ["rw", "bind", "rshared", "uid=0", "context=x", "no-such-option", "", "noexec,suid"] {
        let mut config: ContainerConfig = pod.shell("c", "true");
        let mount = Mount {
            mount_options: vec!["nodev".to_owned(), option.to_owned()],
            ..bind(Path::new("/etc"), "/x")
        };
        config.mounts = vec![mount];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains("config.mounts[0].mount_options[1]"), "{message}");
    }
    Ok(())
}

fn bad_propagation(node: &Node) -> Result {
    let pod = pod(node, "", "bad-propagation")?;
    let tree = Tree::new(node.daemon.dir().join("private"))?;
    rustix::mount::mount_change(&tree.0, rustix::mount::MountPropagationFlags::PRIVATE)?;
    for propagation in
        [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional]
    {
        let mut config = pod.shell("c", "true");
        config.mounts = vec![Mount { propagation: propagation.into(), ..bind(&tree.0, "/x") }];
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains("config.mounts[0].propagation") && message.contains("shared"), "{message}");
    }
    let mut config = pod.shell("c", "true");
    config.mounts = vec![Mount { propagation: 9, ..bind(&tree.0, "/x") }];
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("config.mounts[0].propagation"), "{message}");
    Ok(())
}

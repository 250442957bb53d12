//! What is refused: requests by their fields, and checkpoints that were made to do harm. Nothing is made, nothing is
//! written, nothing is left.

use std::path::{Path, PathBuf};

use criox_cri::v1::{
    CheckpointContainerRequest, CheckpointPodRequest, ContainerConfig, Int64Value, KeyValue, Mount,
    RestorePodRequest,
};
use serde_json::{Value, json};
use testkit::harness::Test;
use testkit::tar::{self, Entry};
use testkit::{Daemon, Node, Result, busybox_image};
use tonic::{Code, Status};

use super::faults::{HANGING, stand_in};
use super::{directory, restore_pod, with_criu};
use crate::NODE;
use crate::pod::{Pod, refused, security};

pub(crate) const TESTS: &[Test] = &[
    ("without configuration nothing is checkpointed or restored", || NODE.test(off)),
    ("checkpoint_only restores nothing", checkpoint_only),
    ("a location that is not a caller's file is refused", || HANGING.test(location)),
    ("what CheckpointPod can't do is refused, and nothing is written", || HANGING.test(checkpoint_pod)),
    ("a restored pod is what its configurations expect, or is not made", || HANGING.test(restore)),
    ("an archive that was made to do harm does none", || HANGING.test(hostile)),
    ("mounts, images and policy of an archive count for nothing", || HANGING.test(policy)),
];

const NOT_AVAILABLE: &str = "checkpoint/restore support not available";

fn off(node: &Node) -> Result {
    let (cri, pod) = (&node.cri, Pod::without_network(node, "off")?);
    let id = pod.service("c")?;
    let place = directory(&node.daemon, "off")?;
    let archive = place.join("a.tar").display().to_string();
    let answers: [Result<(), Status>; 3] = [
        super::checkpoint(cri, &id, &place.join("a.tar"), 0),
        super::checkpoint_pod(cri, &pod.id, &[&id], &place),
        cri.create(&pod.id, &cri.container("again", &archive, &[]), &pod.config).map(drop),
    ];
    let restored = restore_pod(node, RestorePodRequest::default()).map(drop);
    for answer in answers.into_iter().chain([restored]) {
        let said = refused(answer, Code::FailedPrecondition)?;
        assert!(said.contains(NOT_AVAILABLE) && said.contains("container_level_enabled"), "{said}");
    }
    assert!(std::fs::read_dir(place)?.next().is_none());
    Ok(())
}

fn checkpoint_only() -> Result {
    let level = "[crio.checkpoint_restore]\ncontainer_level_enabled = \"checkpoint_only\"\n";
    let builder = with_criu(Daemon::builder().without_network(), stand_in()?)?;
    let daemon = builder.drop_in(level).start()?;
    let cri = daemon.cri()?;
    let config = cri.host_network_pod("only");
    let pod = cri.run_pod(&config)?;
    let create = cri.create(&pod, &cri.container("again", "/a.tar", &[]), &config).map(drop);
    let restore = cri.call(cri.runtime().restore_pod(RestorePodRequest::default())).map(drop);
    for answer in [create, restore] {
        let said = refused(answer, Code::FailedPrecondition)?;
        assert!(said.contains(NOT_AVAILABLE) && said.contains("checkpoint_only"), "{said}");
    }
    // That much is allowed.
    let output = directory(&daemon, "only")?;
    refused(super::checkpoint_pod(&cri, &pod, &[], &output), Code::InvalidArgument)?;
    daemon.finish()
}

fn location(node: &Node) -> Result {
    let pod = Pod::without_network(node, "location")?;
    let id = pod.service("c")?;
    let place = directory(&node.daemon, "location")?;
    std::os::unix::fs::symlink("/etc/passwd", place.join("link"))?;
    std::fs::create_dir(place.join("directory"))?;
    let within = |name: &str| place.join(name).display().to_string();
    let own = node.daemon.root().join("a.tar").display().to_string();
    for bad in [
        "",
        "relative.tar",
        "/",
        "/..",
        &within("../x.tar"),
        &within("link"),
        &within("directory"),
        &within("absent/a.tar"),
        &own,
        "/dev/null",
    ] {
        let request =
            CheckpointContainerRequest { container_id: id.clone(), location: bad.to_owned(), timeout: 1 };
        let answer = node.cri.call(node.cri.runtime().checkpoint_container(request));
        let said = refused(answer, Code::InvalidArgument).map_err(|error| format!("{bad:?}: {error}"))?;
        assert!(said.starts_with("location: "), "{bad:?}: {said}");
    }
    let request = |id: &str, timeout| CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: within("a.tar"),
        timeout,
    };
    let call = |request| node.cri.call(node.cri.runtime().checkpoint_container(request)).map(drop);
    assert!(refused(call(request(&id, -1)), Code::InvalidArgument)?.contains("timeout"));
    refused(call(request(&"0".repeat(64), 1)), Code::NotFound)?;
    let created = pod.create(&pod.shell("created", "true"))?;
    assert!(refused(call(request(&created, 1)), Code::FailedPrecondition)?.contains("does not run"));
    assert!(!place.join("a.tar").exists());
    Ok(())
}

fn checkpoint_pod(node: &Node) -> Result {
    let pod = Pod::without_network(node, "refused")?;
    let (id, other) = (pod.service("c")?, Pod::without_network(node, "refused-other")?);
    let foreign = other.service("c")?;
    let created = pod.create(&pod.shell("created", "true"))?;
    let output = directory(&node.daemon, "refused")?;
    let full = directory(&node.daemon, "refused-full")?;
    std::fs::create_dir(full.join("something"))?;
    let link = full.join("link");
    std::os::unix::fs::symlink(&output, &link)?;
    let good = CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: output.display().to_string(),
        container_ids: vec![id.clone()],
        ..Default::default()
    };
    let ids = |ids: &[&String]| CheckpointPodRequest {
        container_ids: ids.iter().map(|id| (*id).clone()).collect(),
        ..good.clone()
    };
    let to = |path: &Path| CheckpointPodRequest { output_path: path.display().to_string(), ..good.clone() };
    let option = CheckpointPodRequest {
        options: [("leave-stopped".to_owned(), "true".to_owned())].into(),
        ..good.clone()
    };
    let unknown = CheckpointPodRequest { pod_sandbox_id: "0".repeat(64), ..good.clone() };
    for (request, code, word) in [
        (ids(&[]), Code::InvalidArgument, "container_ids"),
        (ids(&[&id, &id]), Code::InvalidArgument, "named twice"),
        (ids(&[&id, &foreign]), Code::InvalidArgument, "is not of pod sandbox"),
        (ids(&[&id, &"0".repeat(64)]), Code::NotFound, "does not exist"),
        (ids(&[&id, &created]), Code::FailedPrecondition, "does not run"),
        (option, Code::InvalidArgument, "\"leave-stopped\""),
        (to(&full), Code::InvalidArgument, "is not empty"),
        (to(Path::new("relative")), Code::InvalidArgument, "absolute"),
        (to(&output.join("../refused")), Code::InvalidArgument, "\"..\""),
        (to(&output.join("absent")), Code::InvalidArgument, "is not a directory"),
        (to(&link), Code::InvalidArgument, "is not a directory"),
        (to(&node.daemon.run_root().join("ns")), Code::InvalidArgument, "output_path"),
        (unknown, Code::NotFound, "does not exist"),
    ] {
        let answer = node.cri.call(node.cri.runtime().checkpoint_pod(request));
        let said = refused(answer, code).map_err(|error| format!("{word}: {error}"))?;
        assert!(said.contains(word), "{word}: {said}");
        assert!(std::fs::read_dir(&output)?.next().is_none(), "{word}");
    }
    assert_eq!(std::fs::read_dir(&full)?.count(), 2);
    // Nobody was frozen for it.
    assert_eq!(pod.exec(&id, "echo alive")?, "alive");
    Ok(())
}

/// The specification of a container that runs here, as the daemon wrote it.
fn specification(node: &Node, config: &ContainerConfig) -> Result<Value> {
    let pod = Pod::without_network(node, "specification")?;
    let id = pod.create(config)?;
    let path = node.daemon.root().join("overlay-containers").join(&id).join("userdata/config.json");
    let spec = serde_json::from_slice(&std::fs::read(path)?)?;
    node.cri.remove_pod(&pod.id)?;
    Ok(spec)
}

fn put(path: &Path, bytes: &[u8]) -> Result {
    use std::io::Write as _;
    Ok(std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(bytes)?)
}

/// What `config.dump` says of a container of this image.
fn dump(image: &str, runtime: &str) -> Value {
    json!({"id": "c".repeat(64), "name": "k8s_c", "rootfsImage": image, "rootfsImageRef": image,
        "rootfsImageName": image, "runtime": runtime, "createdTime": "2026-01-01T00:00:00Z",
        "checkpointedTime": "2026-01-01T00:00:01Z", "restoredTime": "0001-01-01T00:00:00Z", "restored": false})
}

/// A checkpoint of a pod with one container that fits in all but its memory, which is not there.
fn crafted(node: &Node, name: &str, runtime: &str, spec: &Value) -> Result<PathBuf> {
    let dir = directory(&node.daemon, name)?;
    let container = dir.join("containers/c");
    std::fs::create_dir_all(container.join("checkpoint"))?;
    put(&container.join("config.dump"), &serde_json::to_vec(&dump(&node.image, runtime))?)?;
    put(&container.join("spec.dump"), &serde_json::to_vec(spec)?)?;
    put(&container.join("bind.mounts"), b"[]")?;
    put(&container.join("deleted.files"), b"[]")?;
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let manifest = json!({"version": 1, "created": "2026-01-01T00:00:01Z", "handler": runtime, "arch": arch,
        "containers": [{"name": "c", "id": "c".repeat(64), "attempt": 0}]});
    put(&dir.join("checkpoint.json"), &serde_json::to_vec(&manifest)?)?;
    Ok(dir)
}

fn restore(node: &Node) -> Result {
    let cri = &node.cri;
    let mut config = cri.container("c", &node.image, &["sh", "-c", "sleep 1000"]);
    config.envs = vec![KeyValue { key: "A".into(), value: "1".into() }];
    let spec = specification(node, &config)?;
    let good = crafted(node, "crafted", "crun", &spec)?;
    let second = busybox_image()?.cmd(&["other"]).build()?.push(&node.registry, "tests/other", "1")?;
    cri.pull(&second)?;
    let pods = cri.list_pods()?.len();
    let request = |change: &dyn Fn(&mut RestorePodRequest)| {
        let mut request = RestorePodRequest {
            checkpoint_path: good.display().to_string(),
            config: Some(cri.host_network_pod("crafted")),
            runtime_handler: "crun".into(),
            container_configs: vec![config.clone()],
            ..Default::default()
        };
        change(&mut request);
        request
    };
    let check = |word: &str, change: &dyn Fn(&mut RestorePodRequest)| -> Result {
        let error =
            restore_pod(node, request(change)).err().ok_or_else(|| format!("{word}: it was restored"))?;
        assert!(error.message().contains(word), "{word}: {error}");
        assert!(!matches!(error.code(), Code::Internal | Code::Unimplemented), "{word}: {error}");
        assert_eq!(cri.list_pods()?.len(), pods, "{word}");
        Ok(())
    };
    let of = |change: fn(&mut ContainerConfig)| {
        move |request: &mut RestorePodRequest| change(&mut request.container_configs[0])
    };
    check("config: is missing", &|r| r.config = None)?;
    check("container_configs: must not be empty", &|r| r.container_configs.clear())?;
    check("named twice", &|r| r.container_configs.push(config.clone()))?;
    let other = cri.container("d", &node.image, &["true"]);
    check("the checkpoint has no d", &|r| r.container_configs = vec![other.clone()])?;
    check("the checkpoint has no d", &|r| r.container_configs.push(other.clone()))?;
    check("options", &|r| drop(r.options.insert("x".into(), "y".into())))?;
    check("checkpoint_path", &|r| r.checkpoint_path = "relative".into())?;
    check("checkpoint_path", &|r| r.checkpoint_path = "/nonexistent".into())?;
    check("runtime_handler", &|r| r.runtime_handler = "runc".into())?;
    check("not configured", &|r| r.runtime_handler = "absent".into())?;
    check("config.image.image", &|r| {
        r.container_configs[0].image.get_or_insert_default().image.clone_from(&second);
    })?;
    check("config.command", &of(|c| c.command = vec!["other".into()]))?;
    check("config.working_dir", &of(|c| c.working_dir = "/tmp".into()))?;
    check("config.tty", &of(|c| c.tty = true))?;
    check("config.envs: \"A\"", &of(|c| c.envs[0].value = "2".into()))?;
    check("config.envs: \"B\"", &of(|c| c.envs.push(KeyValue { key: "B".into(), value: "1".into() })))?;
    check("run_as_user", &of(|c| security(c).run_as_user = Some(Int64Value { value: 1000 })))?;
    check("readonly_rootfs", &of(|c| security(c).readonly_rootfs = true))?;
    check(
        "config.mounts[0]",
        &of(|c| {
            let (container_path, host_path) = ("/data".into(), "/tmp".into());
            c.mounts.push(Mount { container_path, host_path, ..Mount::default() });
        }),
    )?;
    // All fits, and there is no memory.
    check("checkpoint refused", &|_| ())?;
    put(&good.join("checkpoint.json"), b"{\"version\": 2}")?;
    check("version 2", &|_| ())?;
    std::fs::remove_file(good.join("checkpoint.json"))?;
    check("checkpoint_path", &|_| ())?;
    assert!(!node.daemon.root().join("criox/intakes").read_dir()?.any(|_| true));
    Ok(())
}

/// The members that an archive has to have, and `more`.
fn archive_with(node: &Node, dir: &Path, name: &str, more: &[Entry]) -> Result<PathBuf> {
    let spec = json!({"ociVersion": "1.0.2", "process": {"args": ["sh"], "cwd": "/"}, "root": {"path": "r"}});
    let mut entries = vec![
        Entry::file("config.dump", serde_json::to_vec(&dump(&node.image, "crun"))?),
        Entry::file("spec.dump", serde_json::to_vec(&spec)?),
        Entry::dir("checkpoint"),
    ];
    entries.extend_from_slice(more);
    let path = dir.join(format!("{name}.tar"));
    put(&path, &tar::archive(&entries))?;
    Ok(path)
}

fn hostile(node: &Node) -> Result {
    let pod = Pod::without_network(node, "hostile")?;
    let dir = directory(&node.daemon, "hostile")?;
    let canary = dir.join("canary");
    put(&canary, b"untouched")?;
    let there = canary.display().to_string();
    let before = node.cri.list(None)?.len();
    let images = node.cri.list_images()?.len();
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("log-link", vec![Entry::symlink("dump.log", &there)]),
        ("log-hard-link", vec![Entry::hardlink("dump.log", &there)]),
        ("stats-fifo", vec![Entry::fifo("stats-dump")]),
        ("device", vec![Entry::char_device("deleted.files", 1, 3)]),
        ("container-log-link", vec![Entry::symlink("io.kubernetes.cri-o.LogPath", &there)]),
        ("images-link", vec![Entry::symlink("checkpoint/core-1.img", &there)]),
        (
            "through-link",
            vec![Entry::symlink("checkpoint/x", "/"), Entry::file("checkpoint/x/etc/evil", "x")],
        ),
        ("dots", vec![Entry::file("../../canary", "x")]),
        ("absolute", vec![Entry::file(&there, "x")]),
        ("unknown", vec![Entry::file("bin/sh", "x")]),
        ("twice", vec![Entry::file("dump.log", "a"), Entry::file("dump.log", "b")]),
        ("size", vec![Entry::file("rootfs-diff.tar", "x").claim_size(1 << 50)]),
        ("no-processes", vec![]),
        ("nonsense-processes", vec![Entry::file("checkpoint/pstree.img", vec![0xff; 4096])]),
        ("deep", vec![Entry::file(&format!("checkpoint/{}", "a/".repeat(3000)), "x")]),
        ("json", vec![Entry::file("bind.mounts", "[".repeat(100_000))]),
    ];
    for (name, entries) in cases {
        let archive = archive_with(node, &dir, name, &entries)?;
        refuse_archive(node, &pod, name, &archive)?;
        assert_eq!(std::fs::read(&canary)?, b"untouched", "{name}");
    }
    for (name, bytes) in [("empty", &b""[..]), ("text", b"not an archive"), ("cut", &[0x61; 700])] {
        let path = dir.join(name);
        put(&path, bytes)?;
        refuse_archive(node, &pod, name, &path)?;
    }
    std::os::unix::fs::symlink(archive_with(node, &dir, "target", &[])?, dir.join("link"))?;
    for path in [&dir, &dir.join("absent"), &dir.join("link"), Path::new("/dev/zero")] {
        refuse_archive(node, &pod, "no archive", path)?;
    }
    assert_eq!(node.cri.list(None)?.len(), before);
    assert_eq!(node.cri.list_images()?.len(), images);
    Ok(())
}

fn refuse_archive(node: &Node, pod: &Pod<'_>, name: &str, archive: &Path) -> Result {
    let config = node.cri.container("again", &archive.display().to_string(), &[]);
    let status = node.cri.create(&pod.id, &config, &pod.config).err();
    let status = status.ok_or_else(|| format!("{name}: it was taken"))?;
    let good = matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition);
    assert!(good && !status.message().is_empty(), "{name}: {status}");
    let intakes = node.daemon.root().join("criox/intakes");
    let left = intakes.read_dir().map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "{name}: {status}");
    Ok(())
}

fn policy(node: &Node) -> Result {
    let cri = &node.cri;
    let pod = Pod::without_network(node, "policy")?;
    let dir = directory(&node.daemon, "archived-policy")?;
    let bind =
        json!([{"source": "/", "destination": "/host", "file_type": "directory", "permissions": 0o755}]);
    let mount = json!({"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]});
    let base = json!({"ociVersion": "1.0.2", "process": {"args": ["sh"], "cwd": "/"}, "root": {"path": "r"}});
    let with = |name: &str, spec: &Value, config: &Value, binds: &Value| -> Result<String> {
        let entries = [
            Entry::file("config.dump", serde_json::to_vec(config)?),
            Entry::file("spec.dump", serde_json::to_vec(spec)?),
            Entry::file("bind.mounts", serde_json::to_vec(binds)?),
            Entry::dir("checkpoint"),
        ];
        let path = dir.join(format!("{name}.tar"));
        put(&path, &tar::archive(&entries))?;
        let status =
            cri.create(&pod.id, &cri.container("again", &path.display().to_string(), &[]), &pod.config);
        Ok(status.err().ok_or_else(|| format!("{name}: it was taken"))?.message().to_owned())
    };
    let fits = dump(&node.image, "crun");
    let said = with("binds", &base, &fits, &bind)?;
    assert!(said.contains("expects following bind mounts defined (/host)"), "{said}");
    let mut spec = base.clone();
    spec["mounts"] = json!([mount]);
    let said = with("spec", &spec, &fits, &json!([]))?;
    assert!(said.contains("expects following bind mounts defined (/host)"), "{said}");
    let said = with("runtime", &base, &dump(&node.image, "runc"), &json!([]))?;
    assert!(said.contains("runtime_handler") && said.contains("runc"), "{said}");
    let images = cri.list_images()?;
    let said = with("image", &base, &dump("registry.invalid/other:1", "crun"), &json!([]))?;
    assert!(said.contains("\"registry.invalid/other:1\"") && said.contains("pull it first"), "{said}");
    assert_eq!(cri.list_images()?, images, "no image gets a name by a checkpoint");
    Ok(())
}

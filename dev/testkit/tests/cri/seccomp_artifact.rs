//! Filters that a registry keeps: an annotation names them, for containers that ask for none.

use std::io::Write as _;

use criox_cri::v1::security_profile::ProfileType;
use criox_cri::v1::{PodSandboxConfig, SecurityProfile};
use testkit::harness::Test;
use testkit::image::Blob;
use testkit::{Daemon, Node, Result, Shared, busybox_image};
use tonic::Code;

use crate::pod::{Pod, refused, security};

pub(crate) const TESTS: &[Test] = &[
    ("the annotation of a pod names the filter of a container, or of all", || ALLOWED.test(pods)),
    ("the annotation of an image counts where the pod's says nothing", || ALLOWED.test(images)),
    ("a filter that can't be had, or is none, or hostile, is refused by its name", || ALLOWED.test(refusals)),
];

const NAME: &str = "seccomp-profile.crio.io";
const MEDIA_TYPE: &str = "application/vnd.cncf.seccomp-profile.config.v1+json";
/// One call that a shell can try.
const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
const TRY: &str = "mkdir /tmp/x 2>&1; true";

/// A node whose default handler allows the annotation, and whose other one does not.
pub(crate) static ALLOWED: Shared = Shared::new(|| {
    Node::start(|registry| {
        let builder = Daemon::builder().registry(registry).runtime("runc", "").runtime("crun", "");
        let mut daemon = builder.prepare()?;
        let text = format!(
            "[crio.runtime.runtimes.runc]\nruntime_root = \"{}/run/runc\"\nallowed_annotations = [\"{NAME}\"]\n",
            daemon.dir().display()
        );
        std::fs::File::create_new(daemon.config_dir().join("50-artifact.conf"))?
            .write_all(text.as_bytes())?;
        daemon.start()?;
        Ok(daemon)
    })
});

/// Pushes an artifact as `oras` does; its reference.
fn push(node: &Node, tag: &str, kind: &str, content: &str) -> Result<String> {
    let (config, layer) = (Blob::new(kind, b"{}".to_vec()), Blob::new("text/plain", content.into()));
    for blob in [&config, &layer] {
        node.registry.push_blob("tests/profile", blob)?;
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let manifest = Blob::new("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
    node.registry.push_manifest("tests/profile", tag, &manifest)?;
    Ok(format!("{}/tests/profile:{tag}", node.registry.address()))
}

fn pod(node: &Node, name: &str, annotation: &str, value: &str) -> PodSandboxConfig {
    let mut config = node.cri.host_network_pod(name);
    config.annotations.insert(annotation.to_owned(), value.to_owned());
    config
}

fn refuses(said: &str) -> bool {
    said.contains("not permitted")
}

fn pods(node: &Node) -> Result {
    let profile = push(node, "pods", MEDIA_TYPE, PROFILE)?;
    let all = Pod::run_with(node, pod(node, "all", &format!("{NAME}/POD"), &profile))?;
    assert!(refuses(&all.answer("app", TRY)?));
    // Once fetched it is known by its digest, but a tag is asked for anew.
    assert!(refuses(&all.answer("again", TRY)?));
    let one = Pod::run_with(node, pod(node, "one", &format!("{NAME}/app"), &profile))?;
    assert!(refuses(&one.answer("app", TRY)?));
    assert_eq!(one.answer("other", TRY)?, "");
    // Who asks for a filter has that one.
    let mut own = one.shell("app", TRY);
    own.metadata.as_mut().ok_or("metadata")?.attempt = 1;
    own.log_path = "app.1.log".to_owned();
    let kind = ProfileType::RuntimeDefault.into();
    security(&mut own).seccomp = Some(SecurityProfile { profile_type: kind, localhost_ref: String::new() });
    assert_eq!(one.answer_of(&own)?, "");
    // A handler that does not allow it.
    let config = pod(node, "strict", &format!("{NAME}/POD"), &profile);
    let id = node.cri.run_pod_as(&config, "crun")?;
    let strict = Pod { cri: &node.cri, image: &node.image, id, config };
    assert_eq!(strict.answer("app", TRY)?, "");
    Ok(())
}

fn images(node: &Node) -> Result {
    let profile = push(node, "images", MEDIA_TYPE, PROFILE)?;
    let open = push(node, "open", MEDIA_TYPE, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)?;
    let annotated = busybox_image()?.annotation(NAME, &profile).build()?;
    let image = annotated.push(&node.registry, "tests/annotated", "1")?;
    node.cri.pull(&image)?;
    let ask = |config: PodSandboxConfig| -> Result<String> {
        let id = node.cri.run_pod(&config)?;
        Pod { cri: &node.cri, image: &image, id, config }.answer("app", TRY)
    };
    assert!(refuses(&ask(node.cri.host_network_pod("image"))?));
    assert_eq!(ask(pod(node, "over", &format!("{NAME}/POD"), &open))?, "");
    Ok(())
}

fn refusals(node: &Node) -> Result {
    let hostile = r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x.sock"}"#;
    let large = format!("{PROFILE}{}", " ".repeat(2 << 20));
    let wrong = [
        (push(node, "hostile", MEDIA_TYPE, hostile)?, "listener"),
        (push(node, "broken", MEDIA_TYPE, "{")?, "not valid"),
        (push(node, "large", MEDIA_TYPE, &large)?, "at most"),
        (push(node, "other", "application/x", PROFILE)?, MEDIA_TYPE),
        (format!("{}/tests/profile:absent", node.registry.address()), "absent"),
        (node.image.clone(), MEDIA_TYPE),
        ("UPPER CASE".to_owned(), "UPPER CASE"),
    ];
    for (index, (reference, words)) in wrong.iter().enumerate() {
        let name = format!("wrong{index}");
        let pod = Pod::run_with(node, pod(node, &name, &format!("{NAME}/POD"), reference))?;
        let created = node.cri.create(&pod.id, &pod.shell("app", TRY), &pod.config);
        let error = created.err().ok_or_else(|| format!("{reference} was taken"))?;
        let message = error.message();
        assert!(message.contains(reference.as_str()) && message.contains(words), "{reference}: {error}");
        assert!(node.cri.list(Some(&pod.id))?.is_empty());
    }
    let pod = Pod::run_with(node, pod(node, "bare", NAME, &wrong[0].0))?;
    let created = node.cri.create(&pod.id, &pod.shell("app", TRY), &pod.config);
    let message = refused(created, Code::InvalidArgument)?;
    assert!(message.contains("seccomp-profile.crio.io/POD"), "{message}");
    Ok(())
}

//! The real `crictl` against the daemon: each of its commands that a node's administrator uses, once, in the order of a
//! pod's life.

#[path = "crictl/checkpoint.rs"]
mod checkpoint;
#[path = "crictl/streams.rs"]
mod streams;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};
use testkit::daemon::peer;
use testkit::harness::skip;
use testkit::{Daemon, Registry, Result, busybox_image, wait_for};

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("crictl walks through the life of a pod", walk),
        ("crictl executes, attaches, forwards ports and updates, over both transports", streams::streams),
        (
            "crictl checkpoints a container, and creates one that goes on from its archive",
            checkpoint::checkpoint,
        ),
    ])
}

/// `crictl` on one socket.
struct Crictl {
    program: PathBuf,
    socket: PathBuf,
    config: PathBuf,
}

impl Crictl {
    fn new(daemon: &Daemon) -> Result<Self> {
        let program = peer("crictl").map_err(|error| skip(error.to_string()))?;
        let config = daemon.dir().join("crictl.yaml");
        // Its own configuration would come from /etc otherwise.
        put(&config, "timeout: 30\n")?;
        Ok(Self { program, socket: daemon.socket(), config })
    }

    /// Standard output of a command that must succeed, without the last line's end.
    fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("crictl {}: {}: {said}", args.join(" "), output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    fn output(&self, args: &[&str]) -> Result<std::process::Output> {
        Ok(self.command(args).output()?)
    }

    fn command(&self, args: &[&str]) -> Command {
        let endpoint = format!("unix://{}", self.socket.display());
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config);
        command.args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint]).args(args);
        command
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(args)?;
        serde_json::from_str(&text)
            .map_err(|error| format!("crictl {}: {error}: {text}", args.join(" ")).into())
    }
}

#[expect(clippy::disallowed_methods, reason = "a file in the test's own directory")]
fn put(path: &Path, text: &str) -> Result {
    Ok(std::fs::write(path, text)?)
}

fn walk() -> Result {
    let registry = Registry::start()?;
    let image = busybox_image()?.build()?;
    let reference = image.push(&registry, "crictl/busybox", "1")?;
    let stats = "[crio.stats]\nincluded_pod_metrics = [\"all\"]\n";
    let mut daemon = Daemon::builder().registry(&registry).drop_in(stats).start()?;
    let crictl = Crictl::new(&daemon)?;

    let version = crictl.run(&["version"])?;
    assert!(
        version.contains("RuntimeName:  cri-o") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    let info = crictl.json(&["info"])?;
    let conditions = info["status"]["conditions"].as_array().ok_or("info has no conditions")?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        assert_eq!(found.map(|condition| &condition["status"]), Some(&json!(true)), "{info}");
    }

    images(&crictl, &reference, image.id())?;
    let events = Following::begin(&crictl, &["events"], &daemon.dir().join("events"))?;
    let (pod, container) = pod(&crictl, &mut daemon, &reference)?;
    daemon.note(&pod);
    daemon.note(&container);
    statistics(&crictl, &pod, &container)?;
    end(&crictl, &pod, &container)?;
    events.wait_for_all(&pod, &container)?;

    crictl.run(&["rmi", &reference])?;
    assert_eq!(crictl.run(&["images", "-q"])?, "");
    daemon.finish()
}

fn images(crictl: &Crictl, reference: &str, id: &str) -> Result {
    let pulled = crictl.run(&["pull", reference])?;
    assert!(pulled.contains(id), "{pulled}");
    // crictl puts "sha256:" before the IDs that it prints in full.
    let listed = crictl.run(&["images", "-q", "--no-trunc"])?;
    assert_eq!(listed.trim_start_matches("sha256:"), id);
    let table = crictl.run(&["images"])?;
    let (name, tag) = reference.rsplit_once(':').ok_or("a reference with a tag")?;
    assert!(table.contains(name) && table.contains(tag), "{table}");
    let inspected = crictl.json(&["inspecti", reference])?;
    assert_eq!(inspected["status"]["id"], id);
    assert_eq!(inspected["status"]["repoTags"], json!([reference]));
    assert_eq!(inspected["info"]["imageSpec"]["config"]["Cmd"], json!(["/bin/sh"]));
    let absent = crictl.output(&["inspecti", &format!("{name}:absent")])?;
    assert!(!absent.status.success());
    // By ID, and pulled again for the rest of the walk.
    crictl.run(&["rmi", id])?;
    assert_eq!(crictl.run(&["images", "-q"])?, "");
    crictl.run(&["pull", reference])?;
    let usage = crictl.json(&["imagefsinfo"])?;
    let used = &usage["status"]["imageFilesystems"][0]["usedBytes"]["value"];
    assert!(
        used.as_str().and_then(|bytes| bytes.parse::<u64>().ok()).is_some_and(|bytes| bytes > 0),
        "{usage}"
    );
    Ok(())
}

fn pod(crictl: &Crictl, daemon: &mut Daemon, reference: &str) -> Result<(String, String)> {
    let dir = daemon.dir().to_owned();
    let (pod_json, container_json) = (dir.join("pod.json"), dir.join("container.json"));
    let (pod_path, container_path) = (pod_json.display().to_string(), container_json.display().to_string());
    let logs = dir.join("logs/crictl");
    let pod_config = json!({
        "metadata": {"name": "walk", "namespace": "default", "uid": "uid-crictl", "attempt": 0},
        "hostname": "walk",
        "log_directory": logs,
        "labels": {"app": "walk"},
        "linux": {"cgroup_parent": daemon.cgroup_parent(), "security_context": {"namespace_options": {"pid": 1}}},
    });
    let container_config = json!({
        "metadata": {"name": "main"},
        "image": {"image": reference},
        "command": ["sh", "-c", "echo to out; echo to err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done"],
        "log_path": "main/0.log",
        "linux": {},
    });
    put(&pod_json, &pod_config.to_string())?;
    put(&container_json, &container_config.to_string())?;

    let pod = crictl.run(&["runp", &pod_path])?;
    assert_eq!(crictl.run(&["pods", "-q", "--no-trunc"])?, pod);
    assert_eq!(crictl.run(&["pods", "-q", "--label", "app=other"])?, "");
    let table = crictl.run(&["pods"])?;
    assert!(table.contains("Ready") && table.contains("walk"), "{table}");
    let inspected = crictl.json(&["inspectp", &pod])?;
    assert_eq!(inspected["status"]["id"], pod);
    assert_eq!(inspected["status"]["state"], "SANDBOX_READY");
    assert_eq!(inspected["status"]["labels"]["app"], "walk");
    assert!(
        inspected["status"]["network"]["ip"].as_str().is_some_and(|ip| ip.starts_with("10.231.")),
        "{inspected}"
    );

    let container = crictl.run(&["create", &pod, &container_path, &pod_path])?;
    assert_eq!(crictl.run(&["ps", "-q"])?, "", "a created container does not run");
    assert_eq!(crictl.run(&["ps", "-a", "-q", "--no-trunc"])?, container);
    crictl.run(&["start", &container])?;
    assert_eq!(crictl.run(&["ps", "-q", "--no-trunc"])?, container);
    let table = crictl.run(&["ps"])?;
    assert!(table.contains("Running") && table.contains("main"), "{table}");
    let inspected = crictl.json(&["inspect", &container])?;
    assert_eq!(inspected["status"]["state"], "CONTAINER_RUNNING");
    let pid = inspected["info"]["pid"].as_u64().ok_or("inspect has no pid")?;
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(inspected["info"]["runtimeSpec"]["process"]["args"][0], "sh");

    // crictl reads the file itself: the two streams are told apart as it was told.
    wait_for("both lines in the log", std::time::Duration::from_secs(10), || {
        let output = crictl.output(&["logs", &container])?;
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((said.0 == "to out\n" && said.1 == "to err\n").then_some(()))
    })?;
    assert_eq!(crictl.run(&["exec", "-s", &container, "cat", "/etc/hello"])?, "hello from the image");
    let failed = crictl.output(&["exec", "-s", &container, "sh", "-c", "exit 4"])?;
    assert!(!failed.status.success());
    Ok((pod, container))
}

/// `stats`, `statsp`, `metricdescs`, `metricsp`.
fn statistics(crictl: &Crictl, pod: &str, container: &str) -> Result {
    let number =
        |value: &Value| value["value"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let stats = crictl.json(&["stats", "-o", "json", "--id", container])?;
    let entry = &stats["stats"][0];
    assert_eq!(entry["attributes"]["id"], container, "{stats}");
    assert!(number(&entry["cpu"]["usageCoreNanoSeconds"]) > 0, "{stats}");
    assert!(number(&entry["memory"]["workingSetBytes"]) > 0, "{stats}");
    let table = crictl.run(&["stats", "-s", "1"])?;
    assert!(table.contains("main") && table.contains("CPU %"), "{table}");

    let stats = crictl.json(&["statsp", "-o", "json", "--id", pod])?;
    let entry = &stats["stats"][0];
    assert_eq!(entry["attributes"]["id"], pod, "{stats}");
    assert_eq!(entry["linux"]["containers"][0]["attributes"]["id"], container, "{stats}");
    assert_eq!(entry["linux"]["network"]["defaultInterface"]["name"], "eth0", "{stats}");

    let descriptors = crictl.json(&["metricdescs"])?;
    let names = descriptors["descriptors"].as_array().ok_or("no descriptors")?;
    assert!(names.iter().any(|entry| entry["name"] == "container_cpu_usage_seconds_total"), "{descriptors}");
    let metrics = crictl.json(&["metricsp"])?;
    let of_pod = &metrics["podMetrics"][0];
    assert_eq!(of_pod["podSandboxId"], pod);
    assert_eq!(of_pod["containerMetrics"][0]["containerId"], container);
    Ok(())
}

/// A command that goes on, and writes what it gets to a file.
struct Following {
    process: std::process::Child,
    output: PathBuf,
}

impl Following {
    fn begin(crictl: &Crictl, args: &[&str], output: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create_new(true).append(true).open(output)?;
        let process = crictl.command(args).stdout(file).spawn()?;
        Ok(Self { process, output: output.to_owned() })
    }

    /// Waits for the container's whole life and the pod's end: crictl doesn't say when it has subscribed, but has for long
    /// when the first of several other commands about the pod has ended.
    fn wait_for_all(self, pod: &str, container: &str) -> Result {
        let life: Vec<String> =
            ["CREATED", "STARTED", "STOPPED", "DELETED"].map(|kind| format!("CONTAINER_{kind}_EVENT")).into();
        wait_for("all events", std::time::Duration::from_secs(20), || {
            let text = std::fs::read_to_string(&self.output)?;
            let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            let events: Vec<Value> = events.filter_map(std::result::Result::ok).collect();
            let kinds = |id: &str| -> Vec<&str> {
                let of = events.iter().filter(|event| event["containerId"] == id);
                of.filter_map(|event| event["containerEventType"].as_str()).collect()
            };
            Ok((kinds(container) == life && kinds(pod).ends_with(&[&life[2], &life[3]])).then_some(()))
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It has ended by itself, or is ended here.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn end(crictl: &Crictl, pod: &str, container: &str) -> Result {
    crictl.run(&["stop", "--timeout", "10", container])?;
    let inspected = crictl.json(&["inspect", container])?;
    assert_eq!(inspected["status"]["state"], "CONTAINER_EXITED");
    assert_eq!(inspected["status"]["exitCode"], 3);
    crictl.run(&["rm", container])?;
    assert_eq!(crictl.run(&["ps", "-a", "-q"])?, "");
    crictl.run(&["stopp", pod])?;
    assert_eq!(crictl.json(&["inspectp", pod])?["status"]["state"], "SANDBOX_NOTREADY");
    crictl.run(&["rmp", pod])?;
    assert_eq!(crictl.run(&["pods", "-q"])?, "");
    Ok(())
}

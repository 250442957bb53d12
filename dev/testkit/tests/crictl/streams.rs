//! `crictl exec`, `attach` and `port-forward` over both transports, and `crictl update`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use testkit::harness::skip;
use testkit::{Daemon, Registry, Result, busybox_image, wait_for};

use super::{Crictl, put};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];
const LIMIT: Duration = Duration::from_secs(20);

/// The test.
pub(super) fn streams() -> Result {
    let registry = Registry::start()?;
    let reference = busybox_image()?.build()?.push(&registry, "crictl/busybox", "1")?;
    let daemon = Daemon::builder().registry(&registry).start()?;
    let crictl = Crictl::new(&daemon)?;
    crictl.run(&["pull", &reference])?;
    let pod = Pod::run(&crictl, &daemon, &reference)?;
    let server = pod.container("server", &json!({"command": ["httpd", "-f", "-p", "7000", "-h", "/etc"]}))?;
    for transport in TRANSPORTS {
        exec(&crictl, &server, transport)?;
        terminal(&crictl, &server, transport)?;
        attach(&pod, transport)?;
        port_forward(&crictl, &pod.id, transport)?;
    }
    update(&crictl, &server)?;
    daemon.note(&pod.id);
    crictl.run(&["rmp", "-f", &pod.id])?;
    daemon.finish()
}

struct Pod<'a> {
    crictl: &'a Crictl,
    reference: &'a str,
    dir: std::path::PathBuf,
    id: String,
}

impl<'a> Pod<'a> {
    fn run(crictl: &'a Crictl, daemon: &Daemon, reference: &'a str) -> Result<Self> {
        let dir = daemon.dir().to_owned();
        let config = json!({
            "metadata": {"name": "streams", "namespace": "default", "uid": "uid-streams", "attempt": 0},
            "hostname": "streams",
            "log_directory": dir.join("logs/streams"),
            "linux": {"cgroup_parent": daemon.cgroup_parent(), "security_context": {"namespace_options": {"pid": 1}}},
        });
        put(&dir.join("streams.json"), &config.to_string())?;
        let id = crictl.run(&["runp", &dir.join("streams.json").display().to_string()])?;
        Ok(Self { crictl, reference, dir, id })
    }

    /// Creates and starts a container with these fields beside those that all have.
    fn container(&self, name: &str, fields: &serde_json::Value) -> Result<String> {
        let mut config = json!({
            "metadata": {"name": name},
            "image": {"image": self.reference},
            "log_path": format!("{name}.log"),
            "linux": {"resources": {"cpu_shares": 200}},
        });
        if let (Some(config), Some(fields)) = (config.as_object_mut(), fields.as_object()) {
            config.extend(fields.clone());
        }
        let path = self.dir.join(format!("{name}.json"));
        put(&path, &config.to_string())?;
        let pod = self.dir.join("streams.json").display().to_string();
        let id = self.crictl.run(&["create", &self.id, &path.display().to_string(), &pod])?;
        self.crictl.run(&["start", &id])?;
        Ok(id)
    }
}

fn exec(crictl: &Crictl, id: &str, transport: &str) -> Result {
    let exec = |rest: &[&str]| crictl.output(&[&["exec", "--transport", transport], rest].concat());
    let output = exec(&[id, "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert_eq!(out, "out\n", "{transport}");
    assert!(err.contains("err\n") && err.contains("exit code 7"), "{transport}: {err}");
    assert!(!output.status.success(), "{transport}");

    let mut command =
        crictl.command(&["exec", "--transport", transport, "-i", id, "sh", "-c", "cat; echo over"]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = process.stdin.take().ok_or("a pipe")?;
    stdin.write_all(&[b'x'; 300_000])?;
    drop(stdin);
    let output = process.wait_with_output()?;
    assert!(
        output.status.success() && output.stdout.len() == 300_000 + 5,
        "{transport}: {}",
        output.stdout.len()
    );
    Ok(())
}

fn terminal(crictl: &Crictl, id: &str, transport: &str) -> Result {
    let inner = "until stty size | grep '31 97'; do sleep 0.05; done; tty";
    let command = crictl.command(&["exec", "--transport", transport, "-i", "-t", id, "sh", "-c", inner]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> =
        words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect();
    let line = format!("stty rows 31 cols 97; exec {}", quoted.join(" "));
    // It gives crictl a terminal.
    let mut process = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| skip(format!("script (bsdutils) gives a terminal: {error}")))?;
    let held = process.stdin.take();
    let output = process.wait_with_output()?;
    drop(held);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("31 97") && said.contains("/dev/pts/"), "{transport}: {said}");
    Ok(())
}

fn attach(pod: &Pod<'_>, transport: &str) -> Result {
    let script = "while read line; do echo got $line; done; echo over";
    let fields = json!({"command": ["sh", "-c", script], "stdin": true, "stdin_once": true});
    let id = pod.container(&format!("attach-{transport}"), &fields)?;
    let mut command = pod.crictl.command(&["attach", "--transport", transport, "-i", &id]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = process.stdin.take().ok_or("a pipe")?;
    stdin.write_all(b"one\ntwo\n")?;
    let mut stdout = BufReader::new(process.stdout.take().ok_or("a pipe")?);
    let mut said = String::new();
    while !said.contains("got two\n") {
        if stdout.read_line(&mut said)? == 0 {
            return Err(format!("{transport}: it ended early: {said:?}").into());
        }
    }
    drop(stdin);
    stdout.read_to_string(&mut said)?;
    assert_eq!(said, "got one\ngot two\nover\n", "{transport}");
    process.wait()?;
    wait_for("the container to end", LIMIT, || {
        let inspected = pod.crictl.json(&["inspect", &id])?;
        Ok((inspected["status"]["state"] == "CONTAINER_EXITED").then_some(()))
    })
}

fn port_forward(crictl: &Crictl, pod: &str, transport: &str) -> Result {
    let mut command = crictl.command(&["port-forward", "--transport", transport, pod, "0:7000"]);
    let mut process = command.stdout(Stdio::piped()).spawn()?;
    let result = forwarded(process.stdout.take().ok_or("a pipe")?);
    process.kill()?;
    process.wait()?;
    result.map_err(|error| format!("{transport}: {error}").into())
}

fn forwarded(stdout: impl Read) -> Result {
    let (mut line, mut stdout) = (String::new(), BufReader::new(stdout));
    // It goes on saying something, and must be able to.
    stdout.read_line(&mut line)?;
    let address = line.split(' ').find(|word| word.starts_with("127.0.0.1:")).ok_or_else(|| line.clone())?;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert!(answer.contains("hello from the image"), "{answer:?}");
    }
    Ok(())
}

fn update(crictl: &Crictl, id: &str) -> Result {
    crictl.run(&["update", "--cpu-share", "333", "--memory", "67108864", id])?;
    let inspected = crictl.json(&["inspect", id])?;
    let limits = &inspected["status"]["resources"]["linux"];
    assert_eq!(
        (limits["cpuShares"].as_str(), limits["memoryLimitInBytes"].as_str()),
        (Some("333"), Some("67108864"))
    );
    let failed = crictl.output(&["update", "--cpuset-cpus", "4095", id])?;
    assert!(!failed.status.success());
    Ok(())
}

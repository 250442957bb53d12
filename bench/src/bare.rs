//! The programs that a daemon calls, called without one: what is left above them is the daemon's.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;

/// Starts a program with some input and gives its standard output and the time that it took.
fn call(command: &mut Command, input: &[u8]) -> Result<(Vec<u8>, Duration), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = command
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("starting {name}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let done = child.wait_with_output()?;
    let took = start.elapsed();
    if !done.status.success() {
        let text = [done.stderr, done.stdout].concat();
        return Err(format!("{name}: {}: {}", done.status, String::from_utf8_lossy(&text).trim_end()).into());
    }
    Ok((done.stdout, took))
}

/// An OCI runtime with a bundle that runs `true` and a container that sleeps.
#[derive(Debug)]
pub(crate) struct Runtime {
    program: PathBuf,
    state: PathBuf,
    bundle: PathBuf,
    sleeper: String,
    runs: usize,
}

impl Runtime {
    /// Makes bundles below `work` and starts the container for [`Runtime::exec`].
    pub(crate) fn prepare(program: &Path, rootfs: &Path, cgroup: &str, work: &Path) -> Result<Self, Failure> {
        let made = |args: &[&str]| {
            let bundle = work.join(format!("bundle-{}", args[0]));
            fs::create_dir_all(&bundle)?;
            let config = bundle.join("config.json");
            if !config.exists() {
                call(Command::new(program).arg("spec").current_dir(&bundle), b"")?;
            }
            let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(args);
            spec["root"]["path"] = json!(rootfs);
            spec["linux"]["cgroupsPath"] = json!(format!("{cgroup}/{}", args[0]));
            put(&config, &serde_json::to_vec(&spec)?)?;
            Ok::<_, Failure>(bundle)
        };
        let sleeping = made(&["sleep", "1000000"])?;
        let bundle = made(&["true"])?;
        let sleeper = format!("criox-bench-sleeper-{}", std::process::id());
        let runtime =
            Self { program: program.to_owned(), state: work.join("runtime"), bundle, sleeper, runs: 0 };
        // It keeps the descriptors that it inherits: none of them may be a pipe that is waited for.
        let status = runtime
            .command(&["run", "--detach", "--bundle"])
            .arg(sleeping)
            .arg(&runtime.sleeper)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()?;
        if !status.success() {
            return Err(format!("{} run --detach: {status}", program.display()).into());
        }
        Ok(runtime)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).args(arguments);
        command
    }

    /// `run` of `true`, to its end.
    pub(crate) fn run(&mut self) -> Result<Duration, Failure> {
        self.runs += 1;
        let id = format!("criox-bench-{}-{}", std::process::id(), self.runs);
        Ok(call(self.command(&["run", "--bundle"]).arg(&self.bundle).arg(id), b"")?.1)
    }

    /// `exec` of `true` in the sleeping container.
    pub(crate) fn exec(&self) -> Result<Duration, Failure> {
        Ok(call(self.command(&["exec"]).arg(&self.sleeper).arg("true"), b"")?.1)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Err(error) = call(self.command(&["delete", "--force"]).arg(&self.sleeper), b"") {
            crate::progress(&error.to_string());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a file of this run, which nothing reads after a crash")]
fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|error| format!("writing {}: {error}", path.display()).into())
}

/// A list of CNI plugins, executed one after the other as the specification says.
#[derive(Debug)]
pub(crate) struct Plugins {
    directory: PathBuf,
    version: Value,
    name: Value,
    plugins: Vec<Value>,
    added: usize,
}

impl Plugins {
    /// Reads a `.conflist`.
    pub(crate) fn read(list: &Path, directory: &Path) -> Result<Self, Failure> {
        let text = fs::read(list).map_err(|error| format!("reading {}: {error}", list.display()))?;
        let list: Value = serde_json::from_slice(&text)?;
        let plugins = list["plugins"].as_array().cloned().ok_or("the CNI list has no plugins")?;
        Ok(Self {
            directory: directory.to_owned(),
            version: list["cniVersion"].clone(),
            name: list["name"].clone(),
            plugins,
            added: 0,
        })
    }

    /// ADD of all plugins to a new network namespace, then DEL; both times are of the plugins alone.
    pub(crate) fn add_and_del(&mut self) -> Result<(Duration, Duration), Failure> {
        self.added += 1;
        let namespace = format!("criox-bench-{}-{}", std::process::id(), self.added);
        call(Command::new("ip").args(["netns", "add", &namespace]), b"")?;
        let done = self.both(&namespace);
        call(Command::new("ip").args(["netns", "delete", &namespace]), b"")?;
        done
    }

    fn both(&self, namespace: &str) -> Result<(Duration, Duration), Failure> {
        let mut result = Value::Null;
        let mut added = Duration::ZERO;
        for plugin in &self.plugins {
            let (output, took) = self.plugin(plugin, "ADD", namespace, &result)?;
            result = serde_json::from_slice(&output)?;
            added += took;
        }
        let mut deleted = Duration::ZERO;
        for plugin in self.plugins.iter().rev() {
            deleted += self.plugin(plugin, "DEL", namespace, &result)?.1;
        }
        Ok((added, deleted))
    }

    fn plugin(
        &self,
        plugin: &Value,
        verb: &str,
        namespace: &str,
        previous: &Value,
    ) -> Result<(Vec<u8>, Duration), Failure> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.clone();
        config["name"] = self.name.clone();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let program = self.directory.join(plugin["type"].as_str().unwrap_or_default());
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", namespace)
            .env("CNI_NETNS", format!("/run/netns/{namespace}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.directory);
        call(&mut command, &serde_json::to_vec(&config)?)
    }
}

//! A pod to test in.

use std::time::Duration;

use criox_cri::v1::{
    ContainerConfig, ContainerState, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceOption, PodSandboxConfig,
};
use testkit::{Cri, Node, Result};

/// For what takes milliseconds on an idle machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Says that it runs, then lives until it is told to stop.
pub(crate) const SERVICE: &str = "echo up; trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A sandbox that is ready.
pub(crate) struct Pod<'a> {
    pub(crate) cri: &'a Cri,
    pub(crate) image: &'a str,
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
}

/// What a container printed, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl<'a> Pod<'a> {
    /// A small one, with a network of its own.
    pub(crate) fn run(node: &'a Node, name: &str) -> Result<Self> {
        Self::run_with(node, node.cri.pod(name))
    }

    /// One that takes no network, for tests that want none: it is there much sooner.
    pub(crate) fn without_network(node: &'a Node, name: &str) -> Result<Self> {
        Self::run_with(node, node.cri.host_network_pod(name))
    }

    pub(crate) fn run_with(node: &'a Node, config: PodSandboxConfig) -> Result<Self> {
        Ok(Self { cri: &node.cri, image: &node.image, id: node.cri.run_pod(&config)?, config })
    }

    /// A container of this name that runs a shell script.
    pub(crate) fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        self.cri.container(name, self.image, &["sh", "-c", script])
    }

    /// Creates.
    pub(crate) fn create(&self, config: &ContainerConfig) -> Result<String> {
        Ok(self.cri.create(&self.id, config, &self.config)?)
    }

    /// Creates and starts.
    pub(crate) fn start(&self, config: &ContainerConfig) -> Result<String> {
        let id = self.create(config)?;
        self.cri.start(&id)?;
        Ok(id)
    }

    /// Creates and starts the usual service, and waits until it is up: its traps are set then.
    pub(crate) fn service(&self, name: &str) -> Result<String> {
        self.up(&self.shell(name, SERVICE))
    }

    /// The same for a configuration with another script that says `up`.
    pub(crate) fn up(&self, config: &ContainerConfig) -> Result<String> {
        let id = self.start(config)?;
        testkit::wait_for("the service to be up", LIMIT, || {
            Ok(self.cri.log(&id)?.contains(" stdout F up\n").then_some(()))
        })?;
        Ok(id)
    }

    /// Runs a container to its end.
    pub(crate) fn said(&self, config: &ContainerConfig) -> Result<Said> {
        let id = self.start(config)?;
        let status = self.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
        let log = self.cri.log(&id)?;
        Ok(Said { stdout: stream(&log, "stdout"), stderr: stream(&log, "stderr"), code: status.exit_code })
    }

    /// What a script prints in a container of its own, which must succeed; without the last line's end.
    pub(crate) fn answer(&self, name: &str, script: &str) -> Result<String> {
        self.answer_of(&self.shell(name, script))
    }

    /// The same for a whole configuration.
    pub(crate) fn answer_of(&self, config: &ContainerConfig) -> Result<String> {
        let said = self.said(config)?;
        if said.code != 0 {
            return Err(format!("the container failed: {said:?}").into());
        }
        Ok(said.stdout.trim_end().to_owned())
    }

    /// What a script prints that is executed in a running container; without the last line's end.
    pub(crate) fn exec(&self, id: &str, script: &str) -> Result<String> {
        let output = self.cri.exec(id, &["sh", "-c", script], 20)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.exit_code != 0 {
            return Err(format!("{script:?} ended with {}: {stderr}", output.exit_code).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

/// SIGKILL to a container's first process from outside: to its own signals process 1 is deaf.
pub(crate) fn kill(node: &Node, id: &str) -> Result {
    let (_, body) = crate::socket::get(node, &format!("/containers/{id}"))?;
    let pid =
        body["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    Ok(rustix::process::kill_process(
        pid.ok_or("a running container has a pid")?,
        rustix::process::Signal::KILL,
    )?)
}

/// The text of one stream of a log, lines joined as their tags say.
pub(crate) fn stream(log: &str, wanted: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let (_time, stream, tag) = (fields.next(), fields.next(), fields.next());
        if stream == Some(wanted) {
            text.push_str(fields.next().unwrap_or_default());
            if tag == Some("F") {
                text.push('\n');
            }
        }
    }
    text
}

/// The security context of a container, made if there is none.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The namespace options of a container, made if there are none.
pub(crate) fn namespaces(config: &mut ContainerConfig) -> &mut NamespaceOption {
    security(config).namespace_options.get_or_insert_default()
}

/// The security context of a sandbox.
pub(crate) fn sandbox_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The namespace options of a sandbox.
pub(crate) fn sandbox_namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    sandbox_security(config).namespace_options.get_or_insert_default()
}

/// The status of a call that must fail with this code; its message.
pub(crate) fn refused<T>(result: Result<T, tonic::Status>, code: tonic::Code) -> Result<String> {
    match result {
        Ok(_) => Err(format!("it succeeded instead of {code:?}").into()),
        Err(status) if status.code() == code => Ok(status.message().to_owned()),
        Err(status) => Err(format!("{code:?} expected: {status}").into()),
    }
}

//! Host ports of pods whose network has no plugin for them: our own firewall rules.
//!
//! The rules are a pure function of the pods that have host ports, and are replaced as a whole in one transaction,
//! so that a crash, a flushed ruleset or a stale pod is healed by the next change. nftables is used where `nft` is
//! installed (one table of ours, deleted with the last pod), else iptables (chains of ours).
//!
//! Traffic is caught only if it is addressed to the host itself, so nothing that is merely forwarded is (as in
//! CVE-2025-67499). A pod's own network is masqueraded on the way to it, else the answer would take the short way
//! back past the translation; so are local senders at 127.0.0.1, for which the host's end of the pod's network must
//! route loopback addresses. That would let neighbours there reach services on the host's loopback (CVE-2020-8558):
//! such packets are dropped before anything else.

mod iptables;
mod nftables;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::NetworkError;
use crate::record::{AttachIntent, Attachment, HostPort, Interface, IpConfig};

/// How long one run of `nft` or `iptables` may take; they wait for a lock that other programs hold.
const DEADLINE: Duration = Duration::from_secs(15);

/// One translation: a port of the host to an address of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule<'a> {
    sandbox: &'a str,
    port: &'a HostPort,
    to: &'a IpConfig,
}

impl Rule<'_> {
    /// The pod's network, as `10.1.0.0/16`.
    fn network(&self) -> String {
        let prefix = u32::from(self.to.prefix);
        match self.to.address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
                format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
                format!("{}/{prefix}", std::net::Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
        }
    }

    /// Our mark on the rule: from the sandbox's ID alone, never from words of the pod.
    fn comment(&self) -> &str {
        self.sandbox.get(..16).unwrap_or(self.sandbox)
    }
}

#[derive(Debug, Default, Clone)]
struct Pod {
    ports: Vec<HostPort>,
    ips: Vec<IpConfig>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Pod>,
    /// Whether all pods of the time before a restart are known again; until then the rules aren't touched.
    complete: bool,
    /// Whether the last change didn't reach the firewall; the next one brings both.
    behind: bool,
}

impl State {
    fn rules(&self) -> Vec<Rule<'_>> {
        let mut rules = Vec::new();
        for (sandbox, pod) in &self.pods {
            // The first address of each family, as CRI-O does.
            let v4 = pod.ips.iter().find(|ip| ip.address.is_ipv4());
            let v6 = pod.ips.iter().find(|ip| ip.address.is_ipv6());
            for to in [v4, v6].into_iter().flatten() {
                for port in &pod.ports {
                    if port.host_ip.is_none_or(|ip| ip.is_ipv4() == to.address.is_ipv4()) {
                        rules.push(Rule { sandbox, port, to });
                    }
                }
            }
        }
        rules
    }

    fn holder(&self, sandbox: &str, port: &HostPort) -> Option<&str> {
        let clash = |other: &HostPort| {
            other.host_port == port.host_port
                && other.protocol == port.protocol
                && (other.host_ip.is_none() || port.host_ip.is_none() || other.host_ip == port.host_ip)
        };
        let mut others = self.pods.iter().filter(|(id, _)| id.as_str() != sandbox);
        others.find(|(_, pod)| pod.ports.iter().any(clash)).map(|(id, _)| id.as_str())
    }

    /// Makes the firewall's rules those of the state.
    async fn apply(&mut self) -> Result<(), NetworkError> {
        // Also true afterwards if this future is dropped half-way.
        self.behind = true;
        let rules = self.rules();
        let applied = match run("nft", &["-f", "-"], &nftables::script(&rules)).await {
            Err(ToolFailure::NotInstalled) => iptables::apply(&rules).await,
            Err(failure) => Err(failure.into_error("replace the nftables table criox-hostports")),
            Ok(()) => Ok(()),
        };
        self.behind = applied.is_err();
        applied
    }

    fn reserve(&mut self, sandbox: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        for port in ports {
            if let Some(holder) = self.holder(sandbox, port) {
                return Err(NetworkError::HostPortTaken {
                    port: port.to_string(),
                    holder: holder.to_owned(),
                });
            }
        }
        self.take(sandbox, ports);
        Ok(())
    }

    /// Notes whose the ports are. Without an address of the pod there is no rule for them: a plugin may map them.
    fn take(&mut self, sandbox: &str, ports: &[HostPort]) {
        if !ports.is_empty() {
            self.pods.entry(sandbox.to_owned()).or_default().ports = ports.to_vec();
        }
    }
}

/// The host's ports that lead to pods.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    state: Mutex<State>,
}

impl HostPorts {
    /// Takes the ports for a pod that has no address yet: of two pods that want one port, one fails here.
    pub(crate) async fn reserve(&self, sandbox: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        self.state.lock().await.reserve(sandbox, ports)
    }

    /// Notes the ports that plugins have mapped for pods of before a restart.
    pub(crate) async fn claim(&self, intents: impl IntoIterator<Item = &AttachIntent>) {
        let mut state = self.state.lock().await;
        for intent in intents {
            state.take(&intent.sandbox_id, &intent.plugin_ports());
        }
    }

    /// Maps the ports that were reserved.
    pub(crate) async fn map(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let intent = &attachment.intent;
        let mut state = self.state.lock().await;
        state.reserve(&intent.sandbox_id, &intent.host_ports)?;
        let pod = Pod { ports: intent.host_ports.clone(), ips: attachment.ips.clone() };
        state.pods.insert(intent.sandbox_id.clone(), pod);
        state.complete = true;
        route_loopback(&intent.host_ports, &attachment.interfaces);
        let applied = state.apply().await;
        if applied.is_err() {
            state.pods.remove(&intent.sandbox_id);
        }
        applied
    }

    /// Removes a pod's rules and reservation; it is no error if it has none.
    pub(crate) async fn unmap(&self, sandbox: &str) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let known = state.pods.remove(sandbox).is_some_and(|pod| !pod.ips.is_empty());
        if state.complete && (known || state.behind) { state.apply().await } else { Ok(()) }
    }

    /// Makes the rules of the pods of before a restart, and no others.
    pub(crate) async fn restore<'a>(
        &self,
        attachments: impl Iterator<Item = &'a Attachment>,
    ) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        for attachment in attachments {
            let intent = &attachment.intent;
            if !intent.host_ports.is_empty() {
                let pod = Pod { ports: intent.host_ports.clone(), ips: attachment.ips.clone() };
                route_loopback(&pod.ports, &attachment.interfaces);
                state.pods.insert(intent.sandbox_id.clone(), pod);
            } else {
                state.take(&intent.sandbox_id, &intent.plugin_ports());
            }
        }
        state.complete = true;
        match state.apply().await {
            // A node without host ports of ours needs no firewall tool.
            Err(error) if state.pods.values().all(|pod| pod.ips.is_empty()) => {
                tracing::debug!(error = %error, "no stale host ports were removed");
                Ok(())
            }
            applied => applied,
        }
    }
}

/// Lets local senders at 127.0.0.1 reach the pod through the host's end of its network.
fn route_loopback(ports: &[HostPort], interfaces: &[Interface]) {
    if !ports.iter().any(|port| port.host_ip.is_none_or(|ip| ip.is_loopback() && ip.is_ipv4())) {
        return;
    }
    for interface in interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let name = interface.name.as_str();
        if name.is_empty()
            || name.len() > 15
            || name.contains('/')
            || matches!(name, "." | ".." | "all" | "default")
        {
            continue;
        }
        let path = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"1"));
        if let Err(error) = written {
            tracing::debug!(%path, %error, "host ports won't be reached from 127.0.0.1 through this interface");
        }
    }
}

enum ToolFailure {
    NotInstalled,
    Failed(String),
}

impl ToolFailure {
    fn into_error(self, stage: &'static str) -> NetworkError {
        let message = match self {
            Self::NotInstalled => "neither nft nor iptables is installed; install one of them".to_owned(),
            Self::Failed(message) => message,
        };
        NetworkError::HostPorts { stage, message }
    }
}

async fn run(tool: &str, args: &[&str], stdin: &str) -> Result<(), ToolFailure> {
    let mut child = match Command::new(tool)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
    {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ToolFailure::NotInstalled),
        Err(error) => return Err(ToolFailure::Failed(format!("{tool}: {error}"))),
    };
    let pipe = child.stdin.take();
    let work = async {
        if let Some(mut pipe) = pipe {
            // If it doesn't read, its exit says why.
            let _unread = pipe.write_all(stdin.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(DEADLINE, work).await {
        Err(_) => Err(ToolFailure::Failed(format!("{tool} did not end in {DEADLINE:?}"))),
        Ok(Err(error)) => Err(ToolFailure::Failed(format!("{tool}: {error}"))),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
            Err(ToolFailure::Failed(format!("{tool}: {said}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Protocol;

    pub(super) fn state() -> State {
        let port = |host_port, protocol, host_ip: Option<&str>| HostPort {
            host_port,
            container_port: 8080,
            protocol,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let ip =
            |address: &str, prefix| IpConfig { address: address.parse().unwrap(), prefix, gateway: None };
        let mut state = State::default();
        let first = Pod {
            ports: vec![port(80, Protocol::Tcp, None), port(53, Protocol::Udp, Some("10.0.0.1"))],
            ips: vec![ip("10.1.0.2", 16), ip("10.1.0.3", 16), ip("fd00::2", 64)],
        };
        state.pods.insert("0123456789abcdef0123".into(), first);
        state
    }

    #[test]
    fn a_rule_for_each_port_and_family() {
        let state = state();
        let shown: Vec<_> =
            state.rules().iter().map(|r| format!("{} {} {}", r.port, r.to.address, r.network())).collect();
        assert_eq!(
            shown,
            [
                "*:80/tcp 10.1.0.2 10.1.0.0/16",
                "10.0.0.1:53/udp 10.1.0.2 10.1.0.0/16",
                "*:80/tcp fd00::2 fd00::/64"
            ]
        );
    }

    #[test]
    fn a_port_has_one_holder() {
        let mut state = state();
        let take = |state: &mut State, id: &str, host_port, protocol, ip: Option<&str>| {
            let host_ip = ip.map(|ip| ip.parse().unwrap());
            state.reserve(id, &[HostPort { host_port, container_port: 1, protocol, host_ip }])
        };
        let error = take(&mut state, "b", 80, Protocol::Tcp, Some("10.0.0.9")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "host port 10.0.0.9:80/tcp is already mapped to sandbox 0123456789abcdef0123"
        );
        assert!(take(&mut state, "b", 53, Protocol::Udp, None).is_err());
        take(&mut state, "b", 80, Protocol::Udp, None).unwrap();
        take(&mut state, "c", 53, Protocol::Udp, Some("10.0.0.2")).unwrap();
        take(&mut state, "c", 53, Protocol::Udp, Some("10.0.0.2")).unwrap();
    }
}

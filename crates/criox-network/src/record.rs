//! What is asked for, and what the caller stores: the intent before ADD, the attachment after it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::NetworkError;
use crate::bandwidth::Bandwidth;

/// The version of [`AttachIntent`] and [`Attachment`] that this program writes.
pub(crate) const RECORD_VERSION: u32 = 1;

/// A transport protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name in lower case, as CNI and nftables write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// Port of the host, never 0.
    pub host_port: u16,
    /// Port of the pod, never 0.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The one address of the host it listens on; `None` means all of them.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    /// From the CRI's `PortMapping`; `None` if it maps no host port (`host_port` 0, which the kubelet sends for every
    /// port of every container).
    ///
    /// # Errors
    /// [`NetworkError::InvalidRequest`] for a port out of range or an address that isn't one.
    pub fn from_cri(
        protocol: Protocol,
        container_port: i32,
        host_port: i32,
        host_ip: &str,
    ) -> Result<Option<Self>, NetworkError> {
        let port = |field, port: i32| {
            u16::try_from(port).map_err(|_| NetworkError::InvalidRequest {
                field,
                reason: format!("{port} is not a port (0 to 65535)"),
            })
        };
        let host_port = port("port_mappings.host_port", host_port)?;
        if host_port == 0 {
            return Ok(None);
        }
        let container_port = port("port_mappings.container_port", container_port)?;
        if container_port == 0 {
            return Err(NetworkError::InvalidRequest {
                field: "port_mappings.container_port",
                reason: format!("host port {host_port} leads to container port 0"),
            });
        }
        let host_ip = match host_ip {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| NetworkError::InvalidRequest {
                field: "port_mappings.host_ip",
                reason: format!("{text:?} is not an IP address"),
            })?),
        };
        let host_ip = host_ip.filter(|ip| !ip.is_unspecified());
        Ok(Some(Self { host_port, container_port, protocol, host_ip }))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.host_port, self.protocol.as_str()),
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol.as_str()),
            None => write!(f, "*:{}/{}", self.host_port, self.protocol.as_str()),
        }
    }
}

/// The pod's resolver settings, for the `dns` capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Options, as in resolv.conf(5).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A pod that wants a network.
#[derive(Debug, Clone, Default)]
pub struct AttachRequest {
    /// The sandbox's ID (`CNI_CONTAINERID`).
    pub sandbox_id: String,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// The pod's namespace, name and UID (`CNI_ARGS`).
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// Host ports; served by a plugin that declares `portMappings`, else by criox itself.
    pub host_ports: Vec<HostPort>,
    /// Capability `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// Capability `dns`.
    pub dns: Option<Dns>,
    /// Capability `ips`: addresses with prefix length that IPAM shall hand out.
    pub ips: Vec<String>,
    /// Capability `mac`.
    pub mac: Option<String>,
    /// Capability `cgroupPath`: the pod's cgroup.
    pub cgroup_path: Option<String>,
    /// Capability `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// A network namespace as it was when it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsRef {
    /// Where it was pinned.
    pub path: PathBuf,
    /// Device number of its nsfs file.
    pub dev: u64,
    /// Inode number of its nsfs file, which the kernel uses again.
    pub ino: u64,
    /// Its cookie, which the kernel doesn't, if there are such. An addition to version 1 that a reader may ignore: without
    /// it the others count alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
}

/// All that ADD will use and DEL will need, to be stored durably *before* ADD. Unknown fields of newer versions are
/// dropped, so a record whose `version` is above ours must be left alone by the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachIntent {
    /// Version of this record.
    pub version: u32,
    /// The sandbox's ID.
    pub sandbox_id: String,
    /// The network's name.
    pub network: String,
    /// Name of the interface inside the pod, `eth0`.
    pub ifname: String,
    /// The pod's network namespace.
    pub netns: NetnsRef,
    /// The whole configuration list, as JSON text.
    pub config: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// The capability arguments offered; each plugin gets those it declares.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub capability_args: Map<String, Value>,
    /// Host ports that criox itself must map, because no plugin of the chain does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

impl AttachIntent {
    /// The host ports that a plugin of the chain maps.
    pub(crate) fn plugin_ports(&self) -> Vec<HostPort> {
        let given = self.capability_args.get("portMappings").cloned();
        given.and_then(|ports| serde_json::from_value(ports).ok()).unwrap_or_default()
    }
}

/// An interface that the plugins made or touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, or empty.
    #[serde(default)]
    pub mac: String,
    /// The path of the namespace it is in; empty for the host's.
    #[serde(default)]
    pub sandbox: String,
}

/// An address of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address.
    pub address: IpAddr,
    /// Length of the network prefix, in bits.
    pub prefix: u8,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A pod on its network, to be stored after ADD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// What was asked for.
    pub intent: AttachIntent,
    /// The last plugin's result, in the version of the configuration.
    pub result: Value,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// The pod's own addresses: the primary one first, then those of the other family, in the plugins' order.
    pub ips: Vec<IpConfig>,
}

impl Attachment {
    /// The pod's primary address, the CRI's `PodSandboxNetworkStatus.ip`.
    #[must_use]
    pub fn primary_ip(&self) -> Option<IpAddr> {
        self.ips.first().map(|ip| ip.address)
    }

    /// The others, the CRI's `additional_ips`.
    pub fn additional_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ips.iter().skip(1).map(|ip| ip.address)
    }

    /// The result in the form of CNI 1.0, for CRI-O's annotation `io.kubernetes.cri-o.CNIResult`.
    #[must_use]
    pub fn result_1_0(&self) -> Value {
        crate::result::to_version(&self.result, crate::CniVersion::V1_0_0)
    }
}

/// An attachment of which perhaps only the intent is known, because the daemon died during ADD.
#[derive(Debug, Clone, Copy)]
pub struct AttachmentRef<'a> {
    /// The intent.
    pub intent: &'a AttachIntent,
    /// The result, if ADD had one.
    pub result: Option<&'a Value>,
}

impl<'a> From<&'a AttachIntent> for AttachmentRef<'a> {
    fn from(intent: &'a AttachIntent) -> Self {
        Self { intent, result: None }
    }
}

impl<'a> From<&'a Attachment> for AttachmentRef<'a> {
    fn from(attachment: &'a Attachment) -> Self {
        Self { intent: &attachment.intent, result: Some(&attachment.result) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_are_taken_as_the_cri_gives_them() {
        let made = |container, host, ip| HostPort::from_cri(Protocol::Tcp, container, host, ip);
        assert_eq!(made(80, 0, "").unwrap(), None);
        assert_eq!(made(80, 8080, "0.0.0.0").unwrap().unwrap().to_string(), "*:8080/tcp");
        assert_eq!(made(80, 8080, "::").unwrap().unwrap().host_ip, None);
        assert_eq!(made(80, 8080, "fd00::1").unwrap().unwrap().to_string(), "[fd00::1]:8080/tcp");
        for (container, host, ip) in
            [(80, -1, ""), (80, 65536, ""), (0, 80, ""), (80, 80, "x"), (80, 80, "1.2.3.4;")]
        {
            assert!(made(container, host, ip).is_err(), "{container} {host} {ip:?}");
        }
    }

    #[test]
    fn version_one_records_are_read_for_ever() {
        let golden = r#"{"intent":{"version":1,"sandbox_id":"s1","network":"n","ifname":"eth0",
            "netns":{"path":"/run/netns/a","dev":4,"ino":4026532000},"config":"{}","args":[["IgnoreUnknown","1"]],
            "capability_args":{"mac":"02:00:00:00:00:01"},
            "host_ports":[{"hostPort":80,"containerPort":8080,"protocol":"udp","hostIP":"10.0.0.1"}]},
            "result":{"cniVersion":"1.0.0"},"interfaces":[{"name":"eth0","mac":"","sandbox":"/run/netns/a"}],
            "ips":[{"address":"10.1.0.2","prefix":16,"gateway":"10.1.0.1"},{"address":"fd00::2","prefix":64}]}"#;
        let read: Attachment = serde_json::from_str(golden).unwrap();
        assert_eq!(read.intent.version, RECORD_VERSION);
        assert_eq!(read.primary_ip().unwrap().to_string(), "10.1.0.2");
        assert_eq!(read.additional_ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["fd00::2"]);
        assert_eq!(
            serde_json::to_value(&read).unwrap(),
            serde_json::from_str::<Value>(golden).unwrap(),
            "what is written is what was read"
        );
        let with_cookie = golden.replace("4026532000}", "4026532000,\"cookie\":77}");
        let read: Attachment = serde_json::from_str(&with_cookie).unwrap();
        assert_eq!(read.intent.netns.cookie, Some(77));
        assert_eq!(
            serde_json::to_value(&read).unwrap(),
            serde_json::from_str::<Value>(&with_cookie).unwrap()
        );
    }
}

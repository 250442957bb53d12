//! The pod's network: what is owed is on disk before it is asked for, so that DEL follows each ADD, also after a crash
//! or a reboot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criox_cri::v1;
use criox_network::{
    AttachIntent, AttachRequest, Attachment, AttachmentRef, Bandwidth, Dns, HostPort, Protocol,
};
use criox_records::{Namespace, RecordError, SandboxRecord, VERSION};
use criox_sys::durable;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Kind, Result, failpoint};

/// How the name of a result's file ends, in the place of the intent's `json`.
const RESULT: &str = "result.json";

/// What the network owes for one pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    version: u32,
    /// Written before ADD.
    intent: AttachIntent,
    /// Written after it.
    #[serde(default)]
    attachment: Option<Attachment>,
}

impl NetworkRecord {
    /// As the network takes it.
    pub(crate) fn as_ref(&self) -> AttachmentRef<'_> {
        match &self.attachment {
            Some(attachment) => attachment.into(),
            None => (&self.intent).into(),
        }
    }

    /// The result, if ADD had one.
    pub(crate) fn attachment(&self) -> Option<&Attachment> {
        self.attachment.as_ref()
    }
}

/// Attaches a pod whose network namespace is pinned; its addresses, the primary one first.
pub(super) async fn attach(context: &Arc<Context>, sandbox: &SandboxRecord) -> Result<Vec<String>> {
    let failed = |error| Error::failed(format!("network of pod sandbox {}", sandbox.id)).because(error);
    let path = context.paths.network_record(sandbox.id.as_str());
    let intent = context.network.prepare(&request(context, sandbox)?).map_err(failed)?;
    let mut record = NetworkRecord { version: VERSION, intent, attachment: None };
    write(&path, &record, durable::write_durable).await?;
    failpoint("network.intended")?;
    let attachment = context.network.add(&record.intent).await.map_err(failed)?;
    failpoint("network.added")?;
    let ips = attachment.primary_ip().into_iter().chain(attachment.additional_ips());
    let ips = ips.map(|ip| ip.to_string()).collect();
    record.attachment = Some(attachment);
    // Beside the intent and never in its place: this file isn't synced, and a power cut may empty it.
    write(&result_path(&path), &record, durable::write_atomic).await?;
    Ok(ips)
}

/// What a pod asks of its network, checked.
struct Asked {
    host_ports: Vec<HostPort>,
    bandwidth: Option<Bandwidth>,
}

/// Refuses what no network could do.
///
/// # Errors
/// The field.
pub(super) fn check(config: &v1::PodSandboxConfig) -> Result<()> {
    asked(config).map(drop)
}

fn asked(config: &v1::PodSandboxConfig) -> Result<Asked> {
    let invalid = |error: criox_network::NetworkError| {
        Error::new(Kind::InvalidArgument, "config".to_owned()).because(error)
    };
    let mut host_ports = Vec::new();
    for mapping in &config.port_mappings {
        let protocol = match mapping.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        };
        let port = HostPort::from_cri(protocol, mapping.container_port, mapping.host_port, &mapping.host_ip);
        host_ports.extend(port.map_err(invalid)?);
    }
    Ok(Asked { host_ports, bandwidth: Bandwidth::from_annotations(&config.annotations).map_err(invalid)? })
}

fn request(context: &Context, sandbox: &SandboxRecord) -> Result<AttachRequest> {
    let config = &sandbox.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let Asked { host_ports, bandwidth } = asked(config)?;
    Ok(AttachRequest {
        sandbox_id: sandbox.id.to_string(),
        netns: context.paths.namespace(Namespace::Network, sandbox.id.as_str()),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        host_ports,
        bandwidth,
        dns: config.dns_config.as_ref().map(|dns| Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        cgroup_path: Some(sandbox.cgroup_parent.clone()),
        annotations: config.annotations.clone(),
        ..Default::default()
    })
}

/// Gives back what was recorded. No record: nothing is owed.
///
/// # Errors
/// A plugin failed; the record stays, and the call can be repeated.
pub(crate) async fn release(context: &Context, path: &Path) -> Result<()> {
    let Some(record) = read(path).await? else { return Ok(()) };
    context.network.del(record.as_ref()).await.map_err(|error| {
        Error::failed(format!("the network of pod sandbox {} was not given back", record.intent.sandbox_id))
            .because(error)
    })?;
    let path = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || {
        crate::container::remove::remove_file(&result_path(&path))?;
        crate::container::remove::remove_file(&path)
    })
    .await;
    removed.unwrap_or(Ok(()))
}

/// Where the result lies whose intent is at `path`.
fn result_path(path: &Path) -> PathBuf {
    path.with_extension(RESULT)
}

/// The record at a path, with the result if there is one; none if there is no file, or only the torn beginning of one,
/// before which no ADD was asked for.
pub(crate) async fn read(path: &Path) -> Result<Option<NetworkRecord>> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        match criox_records::read::<NetworkRecord>(&result_path(&path)) {
            Err(RecordError::Io { .. } | RecordError::Damaged { .. }) => {
                criox_records::read::<NetworkRecord>(&path)
            }
            result => result,
        }
    })
    .await;
    match read {
        Ok(Ok(record)) => Ok(Some(record)),
        Ok(Err(RecordError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(Err(error @ RecordError::Damaged { .. })) => {
            tracing::warn!(%error, "taking the damaged record for none: it was not complete when criox or the machine died");
            Ok(None)
        }
        Ok(Err(error)) => Err(Error::failed("what the network owes").because(error)),
        Err(error) => Err(Error::failed("what the network owes").because(error)),
    }
}

/// Keeps the debt of a pod that is being removed although its network could not be given back.
pub(crate) async fn keep_debt(context: &Context, sandbox: &str) -> Result<()> {
    let (from, debts) = (context.paths.network_record(sandbox), context.paths.network_debts());
    let to = debts.join(format!("{sandbox}.json"));
    let moved = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&debts)?;
        match std::fs::rename(result_path(&from), result_path(&to)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::rename(&from, &to)
    })
    .await;
    match moved {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            Err(Error::failed(format!("debt of the network of pod sandbox {sandbox}")).because(error))
        }
        Err(error) => {
            Err(Error::failed(format!("debt of the network of pod sandbox {sandbox}")).because(error))
        }
    }
}

/// Tries to give back what removed pods still owe.
pub(crate) async fn settle_debts(context: &Context) {
    for path in debt_paths(context) {
        if let Err(error) = release(context, &path).await {
            tracing::warn!(error = error.chain(), "trying again in a minute");
        }
    }
}

/// The records of networks that removed pods still owe.
pub(crate) async fn debts(context: &Context) -> Vec<NetworkRecord> {
    let mut records = Vec::new();
    for path in debt_paths(context) {
        match read(&path).await {
            Ok(record) => records.extend(record),
            Err(error) => tracing::warn!(error = error.chain(), "left alone"),
        }
    }
    records
}

fn debt_paths(context: &Context) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(context.paths.network_debts()).into_iter().flatten().flatten();
    let is_result = |path: &PathBuf| path.to_string_lossy().ends_with(RESULT);
    entries.map(|entry| entry.path()).filter(|path| !is_result(path)).collect()
}

async fn write(
    path: &Path,
    record: &NetworkRecord,
    how: fn(&Path, &[u8], u32) -> std::result::Result<(), durable::PathError>,
) -> Result<()> {
    let failed =
        || Error::failed(format!("record of the network of pod sandbox {}", record.intent.sandbox_id));
    let bytes = serde_json::to_vec(record).map_err(|error| failed().because(error))?;
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || how(&path, &bytes, 0o600)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed().because(error)),
        Err(error) => Err(failed().because(error)),
    }
}

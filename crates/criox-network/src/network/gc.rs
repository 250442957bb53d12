//! Removing what belongs to no pod.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::Network;
use super::chain::{environment, stdin};
use crate::cache::CachedAttachment;
use crate::plugin::Call;
use crate::record::{AttachIntent, AttachmentRef, NetnsRef, RECORD_VERSION};
use crate::{NetworkConf, NetworkError, PluginFailure, Verb};

impl Network {
    /// Removes what belongs to no valid attachment of the default network: cached attachments of pods by DEL, the
    /// rest by GC, if the configuration has it (1.1.0, and not `disableGC`). `valid` is every attachment that is
    /// recorded, intents included. Attachments that aren't a pod's (podman's, in the same cache) count as valid.
    ///
    /// While it runs, [`Self::add`] waits, at most the deadline for GC.
    ///
    /// # Errors
    /// [`NetworkError::Busy`] when a pod is just being attached: try again later. [`NetworkError::Incomplete`].
    pub async fn gc(&self, valid: &[AttachmentRef<'_>]) -> Result<(), NetworkError> {
        let Ok(_gate) = self.shared.gc_gate.try_write() else { return Err(NetworkError::Busy) };
        let Some(conf) = self.readiness().default_network() else { return Ok(()) };
        if conf.disable_gc {
            return Ok(());
        }
        let mut live: HashSet<String> = self.known().clone();
        live.extend(valid.iter().map(|record| record.intent.sandbox_id.clone()));
        let cached = self.shared.cache.list(&conf.name);
        let (stale, kept): (Vec<_>, Vec<_>) =
            cached.into_iter().partition(|one| one.is_pod() && !live.contains(&one.container_id));
        let until = Instant::now() + self.shared.options.deadlines.gc;
        let mut failures = self.delete_stale(&conf, stale, until).await;
        if conf.version.has_gc_and_status() {
            let mut attachments: HashSet<(String, String)> =
                kept.into_iter().map(|one| (one.container_id, one.if_name)).collect();
            attachments.extend(live.into_iter().map(|id| (id, super::IFNAME.to_owned())));
            attachments.extend(
                valid.iter().map(|record| (record.intent.sandbox_id.clone(), record.intent.ifname.clone())),
            );
            failures.extend(self.call_gc(&conf, attachments, until).await);
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(NetworkError::Incomplete { network: conf.name.clone(), verb: Verb::Gc, failures })
    }

    /// DEL of attachments that only the cache knows. Their namespaces are never entered: what is at that path now
    /// can't be told from what was there then.
    async fn delete_stale(
        &self,
        conf: &NetworkConf,
        stale: Vec<CachedAttachment>,
        until: Instant,
    ) -> Vec<PluginFailure> {
        let mut failures = Vec::new();
        for one in stale {
            if Instant::now() > until {
                break;
            }
            let own = one.config().and_then(|text| NetworkConf::parse_list(&text).ok());
            let used = own.as_ref().unwrap_or(conf);
            let intent = AttachIntent {
                version: RECORD_VERSION,
                args: one.args(),
                capability_args: one.capability_args(),
                sandbox_id: one.container_id,
                network: one.network_name,
                ifname: one.if_name,
                netns: NetnsRef { path: PathBuf::new(), dev: 0, ino: 0, cookie: None },
                config: String::new(),
                host_ports: Vec::new(),
            };
            // Others wait for this to end, so one that hangs may not take the time of an ordinary DEL.
            let left = until.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(used.plugins.len()).unwrap_or(1).max(1);
            let result = one.result.is_object().then_some(&one.result);
            let failed = self.chain(used, &intent).within(share).del(false, result).await;
            if failed.is_empty() {
                tracing::info!(sandbox = %intent.sandbox_id, network = %conf.name, "a stale attachment was removed");
                if let Err(error) =
                    self.shared.cache.remove(&intent.network, &intent.sandbox_id, &intent.ifname)
                {
                    tracing::warn!(%error, "its cache file stays");
                }
            }
            failures.extend(failed);
        }
        failures
    }

    async fn call_gc(
        &self,
        conf: &NetworkConf,
        attachments: HashSet<(String, String)>,
        until: Instant,
    ) -> Vec<PluginFailure> {
        let dirs = &self.shared.options.plugin_dirs;
        let env = environment(Verb::Gc, dirs);
        let list: Vec<Value> = attachments
            .into_iter()
            .map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}))
            .collect();
        let mut failures = Vec::new();
        for plugin in &conf.plugins {
            let mut more = Map::new();
            // The specification names the first; plugins built against its draft read the second.
            more.insert("cni.dev/valid-attachments".into(), list.clone().into());
            more.insert("cni.dev/attachments".into(), list.clone().into());
            let stdin = stdin(conf, plugin, more);
            let deadline = until.saturating_duration_since(Instant::now());
            let call = Call { plugin: &plugin.plugin_type, verb: Verb::Gc, dirs, env: &env, stdin, deadline };
            if let Err(failure) = call.run().await {
                failures.push(failure);
            }
        }
        failures
    }
}

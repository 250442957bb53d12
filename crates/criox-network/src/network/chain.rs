//! Executing the chain of one attachment.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Deadlines, Network};
use crate::conf::PluginConf;
use crate::plugin::Call;
use crate::record::AttachIntent;
use crate::{NetworkConf, PluginFailure, Verb, result};

/// A chain with the arguments of one attachment.
pub(super) struct Chain<'a> {
    conf: &'a NetworkConf,
    intent: &'a AttachIntent,
    dirs: &'a [PathBuf],
    deadlines: Deadlines,
}

impl Network {
    pub(super) fn chain<'a>(&'a self, conf: &'a NetworkConf, intent: &'a AttachIntent) -> Chain<'a> {
        let options = &self.shared.options;
        Chain { conf, intent, dirs: &options.plugin_dirs, deadlines: options.deadlines }
    }
}

impl Chain<'_> {
    /// The same with less time for each DEL.
    pub(super) fn within(mut self, del: Duration) -> Self {
        self.deadlines.del = self.deadlines.del.min(del);
        self
    }

    /// ADD in order, each plugin given the result of the one before; `so_far` is the last one's, also on failure.
    pub(super) async fn add(&self, so_far: &mut Option<Value>) -> Result<(), PluginFailure> {
        let env = self.env(Verb::Add, true);
        for plugin in &self.conf.plugins {
            let call = self.call(plugin, Verb::Add, &env, so_far.as_ref(), self.deadlines.add);
            let none = call.bad_result("it printed nothing".into());
            let given = call.run().await?.ok_or(none)?;
            // A plugin that says no version answers in the one it was asked in.
            let said = result::version(&given).unwrap_or(self.conf.version);
            *so_far = Some(if said == self.conf.version && given.get("cniVersion").is_some() {
                given
            } else {
                result::to_version(&given, self.conf.version)
            });
        }
        Ok(())
    }

    /// CHECK in order; the first failure ends it.
    pub(super) async fn check(&self, result: &Value) -> Result<(), PluginFailure> {
        let env = self.env(Verb::Check, true);
        let result = result::to_version(result, self.conf.version);
        for plugin in &self.conf.plugins {
            self.call(plugin, Verb::Check, &env, Some(&result), self.deadlines.check).run().await?;
        }
        Ok(())
    }

    /// DEL in reverse order; a failure doesn't spare the others.
    pub(super) async fn del(&self, inside: bool, result: Option<&Value>) -> Vec<PluginFailure> {
        let env = self.env(Verb::Del, inside);
        let result = result
            .filter(|_| self.conf.version.has_prev_result_at_del())
            .map(|result| result::to_version(result, self.conf.version));
        let mut failures = Vec::new();
        for plugin in self.conf.plugins.iter().rev() {
            let call = self.call(plugin, Verb::Del, &env, result.as_ref(), self.deadlines.del);
            if let Err(failure) = call.run().await {
                failures.push(failure);
            }
        }
        failures
    }

    fn env(&self, verb: Verb, inside: bool) -> Vec<(&'static str, String)> {
        let netns =
            if inside { self.intent.netns.path.to_string_lossy().into_owned() } else { String::new() };
        let args = self
            .intent
            .args
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(";");
        let mut env = environment(verb, self.dirs);
        env.extend([
            ("CNI_CONTAINERID", self.intent.sandbox_id.clone()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", self.intent.ifname.clone()),
            ("CNI_ARGS", args),
        ]);
        env
    }

    fn call<'a>(
        &'a self,
        plugin: &'a PluginConf,
        verb: Verb,
        env: &'a [(&'static str, String)],
        prev_result: Option<&Value>,
        deadline: Duration,
    ) -> Call<'a> {
        let mut more = Map::new();
        if let Some(result) = prev_result {
            more.insert("prevResult".into(), result.clone());
        }
        let wanted: Map<String, Value> = self
            .intent
            .capability_args
            .iter()
            .filter(|(name, _)| plugin.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            more.insert("runtimeConfig".into(), Value::Object(wanted));
        }
        let stdin = stdin(self.conf, plugin, more);
        Call { plugin: &plugin.plugin_type, verb, dirs: self.dirs, env, stdin, deadline }
    }
}

/// The variables of every verb.
pub(super) fn environment(verb: Verb, dirs: &[PathBuf]) -> Vec<(&'static str, String)> {
    let path = dirs.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(":");
    vec![("CNI_COMMAND", verb.as_str().to_owned()), ("CNI_PATH", path)]
}

/// A plugin's own object with the list's name and version, and what the runtime adds.
pub(super) fn stdin(conf: &NetworkConf, plugin: &PluginConf, more: Map<String, Value>) -> Vec<u8> {
    let mut object = plugin.raw.clone();
    object.insert("name".into(), conf.name.clone().into());
    object.insert("cniVersion".into(), conf.version.to_string().into());
    object.extend(more);
    Value::Object(object).to_string().into_bytes()
}

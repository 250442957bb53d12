//! Status and RuntimeConfig.

use std::collections::BTreeMap;

use criox_config::value::CgroupManager;
use criox_cri::v1;
use criox_sys::cgroup::Layout;
use serde_json::json;

use super::Services;

pub(super) async fn status(services: &Services, verbose: bool) -> v1::StatusResponse {
    let context = services.lifecycle.context();
    let network = context.network.status();
    let handlers = handlers(services).await;
    // One answer for the node: that of pods which name no handler.
    let default =
        handlers.iter().find(|handler| handler.name.is_empty()).and_then(|handler| handler.features);
    let conditions = vec![
        runtime_ready(services),
        condition("NetworkReady", network.ready, network.reason, network.message.clone()),
    ];
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info: if verbose { info(services) } else { BTreeMap::new() },
        runtime_handlers: handlers,
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: default.is_some_and(|features| features.user_namespaces),
            mount_options: true,
        }),
    }
}

/// Whether pods without a handler of their own can run.
fn runtime_ready(services: &Services) -> v1::RuntimeCondition {
    match services.lifecycle.context().handlers.get("").and_then(|handler| handler.program()) {
        Ok(_) => condition("RuntimeReady", true, "", String::new()),
        Err(error) => {
            condition("RuntimeReady", false, "RuntimeHandlerMissing", criox_lifecycle::chain(&error))
        }
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: String) -> v1::RuntimeCondition {
    v1::RuntimeCondition { r#type: kind.into(), status, reason: reason.into(), message }
}

/// Each by name, and the default once more under the empty name.
async fn handlers(services: &Services) -> Vec<v1::RuntimeHandler> {
    let context = services.lifecycle.context();
    let default = context.handlers.default_name();
    let mut answer = Vec::new();
    for handler in context.handlers.iter() {
        let found = handler.features().await;
        let features = v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: found.recursive_read_only && context.node.recursive_read_only,
            user_namespaces: found.user_namespaces && found.idmapped_mounts && context.node.idmapped_mounts,
        };
        if handler.name == default {
            answer.push(v1::RuntimeHandler { name: String::new(), features: Some(features) });
        }
        answer.push(v1::RuntimeHandler { name: handler.name.clone(), features: Some(features) });
    }
    answer
}

fn info(services: &Services) -> BTreeMap<String, String> {
    let context = services.lifecycle.context();
    let config = json!({
        "sandboxImage": context.config.image.pause_image,
        "crio": { "CgroupManager": context.config.runtime.cgroup_manager.as_str(), "DefaultRuntime": context.handlers.default_name() },
    });
    let pulls: Vec<_> = context
        .images
        .pulls()
        .iter()
        .map(|pull| json!({ "image": pull.image, "stage": pull.stage, "seconds": pull.elapsed.as_secs() }))
        .collect();
    let criox = json!({
        "version": super::RUNTIME_VERSION,
        "monitors": services.lifecycle.connected_monitors(),
        "pulls": pulls,
        "limits": limits(services),
        "networkProblems": context.network.status().problems,
    });
    BTreeMap::from([("config".into(), config.to_string()), ("criox".into(), criox.to_string())])
}

/// What this daemon can't give although it may be asked for, in words.
pub(crate) fn limits(services: &Services) -> Vec<String> {
    let context = services.lifecycle.context();
    let mut limits = Vec::new();
    if !context.node.capabilities.has("SYS_RESOURCE") {
        limits.push(format!(
            "criox has no CAP_SYS_RESOURCE: oom_score_adj is not set below {}, resource limits are not raised, and \"all\" capabilities are those that criox has",
            context.node.oom_score_adj
        ));
    }
    if context.cgroups.layout() == Layout::Hybrid {
        limits.push(
            "this machine mounts cgroup v1 and v2 at once (hybrid): crun refuses to run; boot with systemd.unified_cgroup_hierarchy=1 or use runc".into(),
        );
    }
    if !context.defaults.apparmor_missing.is_empty() {
        limits.push(format!(
            "{}: containers that name no AppArmor profile run without one, and those that ask for RuntimeDefault are refused",
            context.defaults.apparmor_missing
        ));
    }
    limits.extend(context.clamps.all());
    limits
}

pub(super) fn runtime_config(services: &Services) -> v1::RuntimeConfigResponse {
    let driver = match services.lifecycle.context().config.runtime.cgroup_manager {
        CgroupManager::Systemd => v1::CgroupDriver::Systemd,
        CgroupManager::Cgroupfs => v1::CgroupDriver::Cgroupfs,
    };
    v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}

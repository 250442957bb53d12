//! The configuration as each part wants it.

use std::sync::Arc;
use std::time::Duration;

use criox_config::registries::RegistriesPaths;
use criox_config::storage::StoreOptions as StorageOptions;
use criox_config::value::CgroupManager;
use criox_config::{AuthFile, CertsD, Config, Loaded, Origin, Policy, Problem, Problems, Registries};
use criox_image::{ImageOptions, Proxies, Timeouts};
use criox_network::NetworkOptions;
use criox_spec::{Defaults, Ulimit};
use criox_store::StoreOptions;

use crate::rpc::RUNTIME_VERSION;

/// Whether systemd manages cgroups.
pub(crate) fn systemd(config: &Config) -> bool {
    config.runtime.cgroup_manager == CgroupManager::Systemd
}

/// # Errors
/// A storage option that doesn't exist or can't be honoured.
pub(crate) fn store_options(config: &Config) -> Result<StoreOptions, Problems> {
    let parsed = StorageOptions::parse(&config.root.storage_option).map_err(|messages| {
        let problem =
            |message| Problem { origin: Origin::Default, key: "crio.storage_option".into(), message };
        Problems(messages.into_iter().map(problem).collect())
    })?;
    let mut options = StoreOptions::new(&config.root.root, &config.root.runroot);
    if !parsed.mount_options.is_empty() {
        options.mount_options = parsed.mount_options;
    }
    options.skip_mount_home = parsed.skip_mount_home;
    Ok(options)
}

/// # Errors
/// Mistakes in `registries.conf`.
pub(crate) fn image_options(loaded: &Loaded) -> Result<ImageOptions, Problems> {
    let config = &loaded.config;
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
    let process = &loaded.process;
    let paths = RegistriesPaths::system(
        home.as_deref(),
        process.registries_conf.clone(),
        process.registries_conf_dir.clone(),
    );
    let mut auth_files: Vec<_> = config.image.global_auth_file.clone().into_iter().collect();
    auth_files
        .extend(AuthFile::system_paths(|name| std::env::var(name).ok(), rustix::process::getuid().as_raw()));
    let mut pinned = config.image.pinned_images.clone();
    pinned.push(config.image.pause_image.clone());
    let mut timeouts = Timeouts::default();
    if config.image.pull_progress_timeout > Duration::ZERO {
        timeouts.no_progress = config.image.pull_progress_timeout;
        // A registry that doesn't even begin to answer makes no progress either.
        timeouts.connect = timeouts.connect.min(timeouts.no_progress);
        timeouts.headers = timeouts.headers.min(timeouts.no_progress);
    }
    Ok(ImageOptions {
        registries: Arc::new(Registries::load(&paths)?),
        short_name_mode: config.image.short_name_mode,
        policy: Policy::path(config.image.signature_policy.as_deref(), home.as_deref()),
        policy_dir: Some(config.image.signature_policy_dir.clone()),
        auth_files,
        certs: CertsD::system(home.as_deref()),
        pinned,
        timeouts,
        proxies: Proxies::from_environment(),
        user_agent: format!("cri-o/{RUNTIME_VERSION} os/linux arch/{}", std::env::consts::ARCH),
        ..ImageOptions::default()
    })
}

/// CNI.
pub(crate) fn network_options(config: &Config) -> NetworkOptions {
    let network = &config.network;
    let mut plugin_dirs = network.plugin_dirs.clone();
    plugin_dirs.extend(network.plugin_dir.clone().filter(|dir| !plugin_dirs.contains(dir)));
    NetworkOptions {
        conf_dir: network.network_dir.clone(),
        plugin_dirs,
        default_network: Some(network.cni_default_network.clone()).filter(|name| !name.is_empty()),
        disable_hostport_mapping: config.runtime.disable_hostport_mapping,
        status_grace_period: network.cni_status_grace_period,
        ..NetworkOptions::default()
    }
}

/// What every container gets.
pub(crate) fn spec_defaults(config: &Config) -> Defaults {
    let runtime = &config.runtime;
    let limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let ulimit = |ulimit: &criox_config::value::Ulimit| Ulimit {
        name: ulimit.name.clone(),
        soft: limit(ulimit.soft),
        hard: limit(ulimit.hard),
    };
    Defaults {
        capabilities: runtime.default_capabilities.clone(),
        add_inheritable_capabilities: runtime.add_inheritable_capabilities,
        env: runtime.default_env.clone(),
        ulimits: runtime.default_ulimits.iter().map(ulimit).collect(),
        pids_limit: runtime.pids_limit,
        read_only: runtime.read_only,
        apparmor_profile: runtime.apparmor_profile.clone(),
        apparmor_missing: String::new(),
        device_ownership_from_security_context: runtime.device_ownership_from_security_context,
        hostnetwork_disable_selinux: runtime.hostnetwork_disable_selinux,
    }
}

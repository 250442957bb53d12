use super::*;
use crate::handler::RuntimeHandler;
use crate::value::{CgroupManager, CheckpointLevel, LogLevel};

/// Writes files into a directory and loads them: `crio.conf`, `crio.conf.d/…`, `storage.conf`.
fn load_with(files: &[(&str, &str)], overrides: Overrides) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a fixture")]
        std::fs::write(path, text).unwrap();
    }
    let options = LoadOptions {
        config_path: ConfigFile::Optional(dir.path().join("crio.conf")),
        drop_in_dir: Some(dir.path().join("crio.conf.d")),
        storage: StoragePaths { main: vec![dir.path().join("storage.conf")], ..StoragePaths::default() },
        overrides,
    };
    Config::load(&options).map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

fn load(files: &[(&str, &str)]) -> Loaded {
    load_with(files, Overrides::default()).unwrap()
}

fn errors(text: &str) -> Vec<String> {
    match load_with(&[("crio.conf", text)], Overrides::default()) {
        Ok(_) => Vec::new(),
        Err(text) => text.lines().map(str::to_owned).collect(),
    }
}

/// One file gives exactly one error that contains `want`.
fn check_error(text: &str, want: &str) {
    let got = errors(text);
    assert!(got.len() == 1 && got[0].contains(want), "{text}\ngot {got:#?}\nwanted {want}");
}

#[test]
fn without_any_file_the_defaults_are_those_of_cri_o() {
    let loaded = load(&[]);
    let c = &loaded.config;
    assert_eq!(c.root.root, Path::new("/var/lib/containers/storage"));
    assert_eq!(c.api.listen, Path::new("/var/run/crio/crio.sock"));
    assert_eq!(c.runtime.cgroup_manager, CgroupManager::Systemd);
    assert_eq!(c.runtime.default_capabilities.len(), 9);
    assert_eq!(c.image.pause_image, "registry.k8s.io/pause:3.10.1");
    assert_eq!(c.network.plugin_dirs, [Path::new("/opt/cni/bin/")]);
    let crun = &c.runtime.runtimes["crun"];
    assert_eq!(crun.min_memory_bytes(), 500 << 10);
    assert_eq!(crun.monitor_cgroup, "system.slice");
    assert_eq!(crun.allowed_annotations, ["io.containers.trace-syscall", "devices.crio.io"]);
    assert!(loaded.not_yet_in_effect.is_empty() && loaded.unknown.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn all_156_keys_are_known_and_documented() {
    assert_eq!(keys().count(), 156);
    assert!(keys().all(|key| !key.doc.is_empty()));
    let mut paths: Vec<String> = keys().map(Key::path).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 156, "a key stands twice");
}

#[test]
fn later_files_win_scalars_and_arrays_are_replaced() {
    let loaded = load(&[
        (
            "crio.conf",
            "[crio.runtime]\nlog_level = \"debug\"\ndefault_env = [\"A=1\", \"B=2\"]\nread_only = true\n",
        ),
        ("crio.conf.d/10-a", "[crio.runtime]\nlog_level = \"warn\"\ndefault_env = [\"C=3\"]\n"),
        ("crio.conf.d/20-b/x.bak", "[crio.runtime]\nlog_level = \"error\"\n"),
        ("crio.conf.d/05-z.conf", "[crio.runtime]\nlog_level = \"trace\"\nno_pivot = true\n"),
    ]);
    let r = &loaded.config.runtime;
    assert_eq!(
        r.log_level,
        LogLevel::Error,
        "directories are read in their lexical place, whatever the extension"
    );
    assert_eq!(r.default_env, ["C=3"]);
    assert!(r.read_only && r.no_pivot);
    match loaded.origin("crio.runtime.log_level") {
        Origin::File { path, line } => assert!(path.ends_with("20-b/x.bak") && line == 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_runtime_table_replaces_the_whole_table_of_its_name() {
    let loaded = load(&[
        (
            "crio.conf",
            "[crio.runtime.runtimes.runc]\nruntime_root = \"/run/runc\"\nmonitor_env = [\"A=b\"]\n\
             [crio.runtime.runtimes.kept]\nruntime_root = \"/run/kept\"\n",
        ),
        (
            "crio.conf.d/1",
            "[crio.runtime.runtimes.runc]\nmonitor_cgroup = \"pod\"\n[crio.runtime.runtimes.crun]\nruntime_path = \"/x\"\n",
        ),
    ]);
    let runtimes = &loaded.config.runtime.runtimes;
    assert_eq!(
        runtimes["runc"],
        RuntimeHandler { monitor_cgroup: "pod".to_owned(), ..RuntimeHandler::default() },
        "keys of the earlier table are lost"
    );
    assert_eq!(runtimes["kept"].root(), Path::new("/run/kept"));
    let crun = &runtimes["crun"];
    assert!(crun.monitor_env.is_empty() && crun.allowed_annotations.is_empty());
    assert_eq!(crun.container_min_memory, "12MiB", "the built-in 500KiB is lost, too");
    assert_eq!(crun.root(), Path::new("/run/crun"));
    assert_eq!(loaded.origin("crio.runtime.runtimes.runc.monitor_env"), Origin::Default);
}

#[test]
fn storage_options_add_up_and_empty_places_keep_storage_conf() {
    let loaded = load(&[
        (
            "storage.conf",
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"/data\"\nrunroot = \"/run/data\"\n\
             [storage.options.overlay]\nmountopt = \"nodev\"\n",
        ),
        (
            "crio.conf",
            "[crio]\nroot = \"\"\nstorage_driver = \"\"\nstorage_option = [\"overlay.skip_mount_home=true\", \"overlay.size=1G\"]\n",
        ),
        ("crio.conf.d/1", "[crio]\nstorage_option = [\"overlay.skip_mount_home=true\"]\n"),
        ("crio.conf.d/2", "[crio]\nlog_dir = \"/l\"\n"),
    ]);
    let root = &loaded.config.root;
    assert_eq!(root.root, Path::new("/data"));
    assert_eq!(root.runroot, Path::new("/run/data"));
    assert_eq!(root.storage_driver, "overlay");
    assert_eq!(
        root.storage_option,
        ["overlay.mountopt=nodev", "overlay.size=1G", "overlay.skip_mount_home=true"],
        "of two equal ones the last stays"
    );
    assert_eq!(loaded.origin("crio.runroot"), Origin::StorageConf);
}

#[test]
fn flags_go_before_variables_and_both_before_files() {
    let env = |name: &str| match name {
        "CONTAINER_LOG_LEVEL" => Some("warn".to_owned()),
        "CONTAINER_READ_ONLY" => Some(String::new()),
        "CONTAINER_DEFAULT_ENV" => Some("A=1, B=2".to_owned()),
        "CONTAINER_CGROUP_MANAGER" => Some("cgroupfs".to_owned()),
        "CONTAINER_STORAGE_OPT" => Some("overlay.mountopt=nodev".to_owned()),
        "CONTAINER_PIDS_LIMIT" => Some(String::new()),
        _ => None,
    };
    let mut overrides = Overrides::from_env(env);
    overrides.set("log-level", &["trace".to_owned()]);
    overrides.set("root", &[String::new()]);
    overrides.set("runtimes", &["runc:/usr/bin/runc:/run/runc:oci:true::64MiB".to_owned()]);
    overrides.set("pull-progress-timeout", &["90s".to_owned()]);
    let file = "[crio]\nstorage_option = [\"overlay.size=1\"]\n[crio.runtime]\nlog_level = \"debug\"\nread_only = true\npids_limit = 7\n";
    let loaded = load_with(&[("crio.conf", file)], overrides).unwrap();
    let c = &loaded.config;
    assert_eq!(c.runtime.log_level, LogLevel::Trace);
    assert!(!c.runtime.read_only, "an empty variable is false");
    assert_eq!(c.runtime.pids_limit, 7, "an empty number is none");
    assert_eq!(c.runtime.default_env, ["A=1", "B=2"]);
    assert_eq!(c.root.storage_option, ["overlay.mountopt=nodev"], "a flag replaces, it does not add");
    assert_eq!(c.root.root, Path::new("/var/lib/containers/storage"));
    assert_eq!(c.image.pull_progress_timeout.as_secs(), 90);
    let runc = &c.runtime.runtimes["runc"];
    assert!(runc.privileged_without_host_devices);
    assert_eq!(runc.min_memory_bytes(), 64 << 20);
    assert_eq!(c.runtime.runtimes["crun"].monitor_cgroup, "", "system.slice is for systemd only");
    assert_eq!(loaded.origin("crio.runtime.log_level"), Origin::Flag("log-level".to_owned()));
    assert_eq!(loaded.origin("crio.runtime.default_env"), Origin::Env("CONTAINER_DEFAULT_ENV".to_owned()));
}

#[test]
fn every_flag_has_the_kind_of_its_key() {
    use crate::field::Kind;
    assert_eq!(crate::flags::FLAGS.len(), 140);
    for flag in crate::flags::FLAGS {
        assert!(!flag.help().is_empty(), "{}", flag.name);
        if flag.key.is_empty() || flag.name == "runtimes" {
            continue;
        }
        let key = key(flag.key).unwrap_or_else(|| panic!("--{} has no key {}", flag.name, flag.key));
        assert_eq!(flag.kind, key.kind, "--{}", flag.name);
        assert_ne!(flag.kind, Kind::Map);
    }
    for key in keys().filter(|key| !key.table.contains('*') && key.name != "plugin_dir") {
        let path = key.path();
        assert!(crate::flags::FLAGS.iter().any(|flag| flag.key == path), "{path} has no flag");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_file_and_line() {
    let mut overrides =
        Overrides::from_env(|name| (name == "CONTAINER_READ_ONLY").then(|| "maybe".to_owned()));
    overrides.set("metrics-port", &["99999".to_owned()]);
    overrides.set("log-format", &["xml".to_owned()]);
    let got = load_with(
        &[
            (
                "crio.conf",
                "[crio.runtime]\ncgroup_manager = \"cgroupsv3\"\n\nlog_size_max = 12\n\
                 default_ulimits = [\"nofile=2:1\", \"x=1\"]\n\
                 default_capabilities = [\"ALL\"]\n[crio.image]\nimage_volumes = 7\n",
            ),
            ("crio.conf.d/1", "[crio.api]\nlisten = \"/a\"\n[crio.runtime]\nread_only = = true\nbad line\n"),
            ("crio.conf.d/2", "[crio.network]\n\nnetwork_dir = \"relative\"\n"),
            ("storage.conf", "[storage]\ndriver = 3\n"),
        ],
        overrides,
    )
    .unwrap_err();
    for want in [
        "crio.conf:2: crio.runtime.cgroup_manager: \"cgroupsv3\" is not one of \"systemd\", \"cgroupfs\"",
        "crio.conf:4: crio.runtime.log_size_max: must be negative or at least 8192, not 12",
        "crio.conf:5: crio.runtime.default_ulimits: entry 1: \"nofile=2:1\": the soft limit is above the hard limit; \
         entry 2: \"x\" is not a resource limit",
        "crio.conf:6: crio.runtime.default_capabilities: \"ALL\" is not a capability such as \"NET_ADMIN\"",
        "crio.conf:8: crio.image.image_volumes: must be text in quotes, not integer",
        "crio.conf.d/1:4: ",
        "crio.conf.d/1:5: ",
        "crio.conf.d/2:3: crio.network.network_dir: \"relative\" is not an absolute path",
        "storage.conf:2: storage.driver: must be text in quotes, not integer",
        "$CONTAINER_READ_ONLY: crio.runtime.read_only: \"maybe\" is neither true nor false",
        "--metrics-port: crio.metrics.metrics_port: 99999 is not between 0 and 65535",
        "--log-format: \"xml\" is neither \"text\" nor \"json\"",
    ] {
        assert!(got.lines().any(|line| line.starts_with(want)), "missing: {want}\n in:\n{got}");
    }
    assert_eq!(got.lines().count(), 12, "{got}");
}

#[test]
fn what_is_wrong_is_said_by_key() {
    for (text, want) in [
        ("[crio]\nlog_dir = \"x\"", "crio.conf:2: crio.log_dir: \"x\" is not an absolute path"),
        ("[crio]\nstorage_driver = \"vfs\"", "crio.conf:2: crio.storage_driver: \"vfs\" is not supported"),
        ("[crio]\nstorage_option = [\"overlay.mount_program=/f\"]", "crio.conf:2: crio.storage_option"),
        ("[crio.api]\nstream_port = \"70000\"", "70000 is not a port"),
        ("[crio.api]\nstream_idle_timeout = \"soon\"", "not a duration"),
        ("[crio.runtime]\ndefault_capabilities = [\"CAP_CHOWN\"]", "\"CAP_CHOWN\" is not a capability"),
        ("[crio.runtime]\ndefault_runtime = \"nope\"", "\"nope\" is not in the runtimes table (crun)"),
        ("[crio.runtime]\ndefault_sysctls = [\"a = b\"]", "spaces"),
        ("[crio.runtime]\ninfra_ctr_cpuset = \"3-1\"", "list of CPUs"),
        ("[crio.runtime]\ntimezone = \"../etc\"", "time zone"),
        ("[crio.runtime]\nmin_injected_gomaxprocs = -1", "negative"),
        ("[crio.runtime]\nseparate_pull_cgroup = \"x\"", "slice"),
        ("[crio.runtime]\nconmon_cgroup = \"x\"", "crio.runtime.conmon_cgroup"),
        ("[crio.runtime]\nconmon = \"conmon\"", "crio.runtime.conmon: \"conmon\" is not an absolute path"),
        ("[crio.runtime]\nuid_mappings = \"0:1\"", "container:host:size"),
        ("[crio.runtime]\nlog_level = 1", "must be text in quotes"),
        ("[crio.runtime]\nlog_size_max = 99999999999999999999", "out of range"),
        ("[crio.runtime]\nruntimes = 1", "crio.runtime.runtimes: must be a table"),
        ("[crio.runtime.runtimes]\nx = 1", "crio.runtime.runtimes.x: must be a table"),
        (
            "[crio.runtime.runtimes.crun]\nruntime_type = \"vm\"",
            "runtimes.crun.runtime_type: \"vm\" runtimes",
        ),
        (
            "[crio.runtime.runtimes.x]\nmonitor_cgroup = \"y\"",
            "crio.conf:2: crio.runtime.runtimes.x.monitor_cgroup",
        ),
        ("[crio.runtime.runtimes.x]\nmonitor_path = \"y\"", "crio.runtime.runtimes.x.monitor_path"),
        ("[crio.runtime.workloads.w]\nannotation_prefix = \"p\"", "activation_annotation: must be set"),
        ("[crio.image]\npause_image = \"pause\"", "crio.image.pause_image"),
        ("[crio.image]\nshort_name_mode = \"permissive\"", "\"enforcing\", \"disabled\""),
        ("[crio.image]\npull_progress_timeout = -1", "negative"),
        ("[crio.checkpoint_restore]\ncontainer_level_enabled = \"some\"", "checkpoint_only"),
        ("[crio.metrics]\nmetrics_collectors = [\"nope\"]", "not a metric"),
        ("[crio.stats]\nincluded_pod_metrics = [\"all\", \"cpu\"]", "stand alone"),
        ("crio = 1", "crio.conf:1: crio: must be a table"),
        ("[crio]\na = 1\na = 2", "crio.conf:3: duplicate key"),
    ] {
        check_error(text, want);
    }
}

#[test]
fn a_bad_handler_is_left_out_unless_it_is_the_default() {
    let loaded = load(&[(
        "crio.conf",
        "[crio.runtime.runtimes.odd]\nruntime_type = \"strange\"\nallowed_annotations = [\"nobody.knows\"]\n",
    )]);
    assert!(!loaded.config.runtime.runtimes.contains_key("odd"));
    let warnings: Vec<String> = loaded.warnings.iter().map(Problem::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains(":2: crio.runtime.runtimes.odd.runtime_type"), "{warnings:?}");
    assert!(warnings[1].contains("handler \"odd\" is ignored"), "{warnings:?}");
}

#[test]
fn checkpoints_are_off_unless_the_new_key_says_so_and_the_old_one_does_not_object() {
    let level = |text: &str| load(&[("crio.conf", text)]).config.checkpoint_restore.container_level_enabled;
    let on = "[crio.checkpoint_restore]\ncontainer_level_enabled = \"checkpoint_restore\"\n";
    assert_eq!(level(""), CheckpointLevel::None);
    assert_eq!(level("[crio.runtime]\nenable_criu_support = true\n"), CheckpointLevel::None);
    assert_eq!(level(on), CheckpointLevel::CheckpointRestore);
    assert_eq!(level(&on.replace("_restore\"", "_only\"")), CheckpointLevel::CheckpointOnly);
    let both = format!("{on}[crio.runtime]\nenable_criu_support = false\n");
    assert_eq!(level(&both), CheckpointLevel::None);
    let loaded = load(&[("crio.conf", &both)]);
    assert!(
        loaded.warnings.iter().any(|w| w.to_string().contains("enable_criu_support")),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn handlers_inherit_from_the_default() {
    let loaded = load(&[(
        "crio.conf",
        "[crio.runtime.runtimes.high]\ninherit_default_runtime = true\nruntime_root = \"/x\"\nmonitor_env = [\"A=b\"]\n",
    )]);
    let high = &loaded.config.runtime.runtimes["high"];
    assert_eq!(high.runtime_path.as_deref(), Some(Path::new("crun")), "looked up by the default's name");
    assert_eq!(high.root(), Path::new("/run/crun"));
    assert_eq!(high.monitor_env, ["A=b"]);
}

#[test]
fn programs_are_found_on_the_node_and_handlers_without_one_left_out() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("crun");
    #[expect(clippy::disallowed_methods, reason = "a fixture")]
    std::fs::write(&program, "").unwrap();
    let search = format!("relative:{}", dir.path().display());
    let file = "[crio.runtime.runtimes.high]\ninherit_default_runtime = true\n\
                [crio.runtime.runtimes.gone]\nruntime_path = \"/nowhere/runc\"\n";
    let mut loaded = load(&[("crio.conf", file)]);
    let error = loaded.clone().check_node(&search).unwrap_err().to_string();
    assert!(error.contains("no program \"crun\""), "not executable yet: {error}");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    loaded.check_node(&search).unwrap();
    let runtimes = &loaded.config.runtime.runtimes;
    assert_eq!(runtimes.keys().collect::<Vec<_>>(), ["crun", "high"]);
    assert!(runtimes.values().all(|handler| handler.runtime_path.as_deref() == Some(&*program)));
    assert!(loaded.warnings.iter().any(|w| w.message.contains("handler \"gone\" is ignored")));

    let file = "[crio.runtime]\ntimezone = \"Middle/Earth\"\nadditional_devices = [\"/dev/nonesuch\"]\n";
    let error = load(&[("crio.conf", file)]).check_node(&search).unwrap_err().to_string();
    assert!(error.contains("crio.conf:2: ") && error.contains("crio.conf:3: "), "{error}");
}

#[test]
fn keys_are_matched_exactly_then_without_case_and_unknown_ones_are_told() {
    let loaded = load(&[(
        "crio.conf",
        "[CRIO.Runtime]\nLog_Level = \"debug\"\nmanage_ns_lifecycle = true\n[crio.image]\nseparate_pull_cgroup = \"pod\"\n\
         [other]\nx = 1\n",
    )]);
    assert_eq!(loaded.config.runtime.log_level, LogLevel::Info, "of two tables the exact name counts");
    let loaded = load(&[(
        "crio.conf",
        "[CRIO.Runtime]\nLog_Level = \"debug\"\nmanage_ns_lifecycle = true\n[Crio2]\nx = 1\n",
    )]);
    assert_eq!(loaded.config.runtime.log_level, LogLevel::Debug);
    let unknown: Vec<&str> = loaded.unknown.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(unknown, ["Crio2", "crio.runtime.manage_ns_lifecycle"]);
}

#[test]
fn keys_without_effect_are_named_only_if_they_differ_from_the_default() {
    let loaded = load(&[(
        "crio.conf",
        "[crio.runtime]\nconmon = \"/usr/bin/conmon\"\nblockio_reload = false\nshared_cpuset = \"1\"\n\
         [crio.metrics]\nenable_metrics = true\n\
         [crio.runtime.runtimes.runc]\nmonitor_path = \"/usr/bin/conmon\"\n",
    )]);
    let names = |keys: &[KeyRef]| keys.iter().map(|key| key.key.clone()).collect::<Vec<_>>();
    assert_eq!(
        names(&loaded.not_yet_in_effect),
        ["crio.runtime.shared_cpuset", "crio.metrics.enable_metrics"]
    );
    assert_eq!(
        names(&loaded.without_meaning),
        ["crio.runtime.conmon", "crio.runtime.runtimes.runc.monitor_path"]
    );
}

#[test]
fn values_are_adjusted_as_in_cri_o() {
    let loaded = load(&[(
        "crio.conf",
        "[crio.runtime]\nctr_stop_timeout = 5\nuid_mappings = \"0:1000:10\"\ndefault_runtime = \"\"\n\
         [crio.network]\nplugin_dir = \"/opt/old\"\ncni_status_grace_period = 5000000000\n\
         [crio.metrics]\nmetrics_collectors = [\"container_runtime_crio_operations_total\", \"crio_processes_defunct\"]\n\
         [crio.runtime.runtimes.crun]\ncontainer_create_timeout = 3\ncontainer_min_memory = \"lots\"\n",
    )]);
    let c = &loaded.config;
    assert_eq!(c.runtime.ctr_stop_timeout, 30);
    assert!(c.runtime.uid_mappings.0.is_empty(), "both or none");
    assert_eq!(c.runtime.default_runtime, "crun");
    assert_eq!(c.network.plugin_dirs, [Path::new("/opt/cni/bin/"), Path::new("/opt/old")]);
    assert_eq!(c.network.cni_status_grace_period.as_secs(), 5);
    assert_eq!(c.metrics.metrics_collectors, ["operations_total", "processes_defunct"]);
    assert_eq!(c.runtime.runtimes["crun"].container_create_timeout, 30);
    assert_eq!(c.runtime.runtimes["crun"].container_min_memory, "12MiB");
    assert_eq!(loaded.warnings.len(), 5, "{:?}", loaded.warnings);
}

#[test]
fn a_missing_main_file_is_an_error_only_if_it_was_asked_for() {
    let path = PathBuf::from("/nonexistent/crio.conf");
    let mut options =
        LoadOptions { config_path: ConfigFile::Optional(path.clone()), ..LoadOptions::defaults() };
    assert!(Config::load(&options).is_ok());
    options.config_path = ConfigFile::Required(path);
    let error = Config::load(&options).unwrap_err().to_string();
    assert_eq!(error, "/nonexistent/crio.conf: does not exist");
}

#[test]
fn a_link_to_a_directory_is_refused_and_one_to_a_file_followed() {
    let dir = tempfile::tempdir().unwrap();
    let drop_ins = dir.path().join("d");
    std::fs::create_dir(&drop_ins).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a fixture")]
    std::fs::write(dir.path().join("real"), "[crio.runtime]\nread_only = true\n").unwrap();
    std::os::unix::fs::symlink("../real", drop_ins.join("link")).unwrap();
    let options = LoadOptions { drop_in_dir: Some(drop_ins.clone()), ..LoadOptions::defaults() };
    assert!(Config::load(&options).unwrap().config.runtime.read_only);
    std::os::unix::fs::symlink("/", drop_ins.join("dir")).unwrap();
    let error = Config::load(&options).unwrap_err().to_string();
    assert!(error.contains("is a link to a directory"), "{error}");
}

#[test]
fn the_rendered_configuration_reads_back_as_itself() {
    let loaded = load(&[(
        "crio.conf",
        "[crio]\nroot = \"/r\"\nstorage_option = [\"overlay.size=1G\"]\n[crio.runtime]\ncgroup_manager = \"cgroupfs\"\n\
         default_env = [\"A=\\\"quoted\\\"\", 'B=back\\slash']\ndefault_ulimits = [\"nofile=1\"]\n\
         [crio.runtime.runtimes.\"odd.name\"]\ndefault_annotations = { \"a/b\" = \"line\\nbreak\" }\n\
         [crio.runtime.runtimes.crun]\nruntime_path = \"/usr/bin/crun\"\n\
         [crio.runtime.workloads.w]\nactivation_annotation = \"x\"\nresources = { cpuset = \"0-1\", cpushares = 5 }\n\
         [crio.network]\ncni_status_grace_period = \"1m\"\n[crio.nri.default_validator]\nnri_enable_default_validator = true\n",
    )]);
    for text in [loaded.config.render(), loaded.config.render_full()] {
        let again =
            Config::parse(Path::new("rendered"), text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(again.config, loaded.config, "{text}");
        assert!(again.unknown.is_empty(), "{:?}", again.unknown);
    }
}

#[test]
fn rendered_defaults_are_all_commented_out_and_full_ones_are_not() {
    let config = load(&[]).config;
    let text = config.render();
    let active: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '['])).collect();
    assert!(active.is_empty(), "{active:?}");
    let full = config.render_full();
    let set = full.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '['])).count();
    assert_eq!(set, 156 - 8, "all but those of workloads, of which there is none");
    assert!(full.contains("\nlisten = \"/var/run/crio/crio.sock\"\n"));
}

#[test]
fn deep_nesting_is_an_error_not_a_stack_overflow() {
    for open in ["[", "{a="] {
        let text = format!("[crio.runtime]\nx = {}", open.repeat(100_000));
        assert!(Config::parse(Path::new("f"), text.as_bytes()).is_err());
    }
    let text = format!("{{\"default\":{}", "[".repeat(100_000));
    assert!(crate::Policy::parse(Path::new("f"), text.as_bytes()).is_err());
}

#[test]
fn a_line_that_can_not_be_read_hides_no_other_mistake_and_makes_no_new_one() {
    let got = errors(
        "[crio.runtime]\nlog_level = \"loud\"\nread_only = yes\ndefault_runtime = \"runc\"\n\
         [crio.runtime.runtimes.runc\nruntime_path = \"/usr/bin/runc\"\n",
    );
    let lines: Vec<&str> = got.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["crio.conf:2", "crio.conf:3", "crio.conf:5"], "{got:#?}");
}

mod parsing {
    use proptest::prelude::*;

    use super::*;
    use crate::field::Kind;

    /// Files that are nearly right: known tables and keys with values of any type.
    fn nearly_toml() -> impl Strategy<Value = String> {
        let keys: Vec<(String, Kind)> = keys().map(|key| (key.path().replace('*', "x"), key.kind)).collect();
        let any_value = prop_oneof![
            Just("true".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            "[ -~]{0,20}".prop_map(|s| Value::String(s).to_string()),
            prop::collection::vec("[a-z0-9=:,./-]{0,12}", 0..4).prop_map(|v| format!("{v:?}")),
            "[ -~]{0,12}",
            Just("{ a = \"b\" }".to_owned()),
        ];
        let line = (prop::sample::select(keys), 0..30u8, any_value).prop_map(|((path, kind), dice, any)| {
            let value = match kind {
                _ if dice == 0 => any,
                Kind::Bool => (dice % 2 == 0).to_string(),
                Kind::Int => (i64::from(dice) * 10_000).to_string(),
                Kind::Duration => format!("\"{dice}s\""),
                Kind::List => "[]".to_owned(),
                Kind::Map => format!("{{ \"a.{dice}\" = \"b\" }}"),
                Kind::String if dice % 2 == 0 => "\"\"".to_owned(),
                Kind::String => format!("\"/path/{dice}\""),
            };
            format!("{path} = {value}\n")
        });
        prop::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
    }

    proptest! {
        #[test]
        fn bytes_never_make_any_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let path = Path::new("f");
            let _ = Config::parse(path, &bytes);
            let _ = crate::Registries::parse(path, &bytes);
            let _ = StorageConf::parse(path, &bytes);
            let _ = crate::Policy::parse(path, &bytes);
            let _ = crate::AuthFile::parse(path, &bytes);
        }

        #[test]
        fn text_never_makes_any_parser_panic(text in "[\\[\\]{}=\"'#.,:a-z0-9\n -]{0,200}") {
            let path = Path::new("f");
            let _ = Config::parse(path, text.as_bytes());
            let _ = crate::Registries::parse(path, text.as_bytes());
            let _ = crate::Policy::parse(path, text.as_bytes());
        }

        #[test]
        fn known_keys_with_any_value_never_panic_and_good_ones_read_back(text in nearly_toml()) {
            if let Ok(loaded) = Config::parse(Path::new("f"), text.as_bytes()) {
                let rendered = loaded.config.render();
                let again = Config::parse(Path::new("g"), rendered.as_bytes())
                    .map_err(|e| TestCaseError::fail(format!("{e}\n{rendered}")))?;
                prop_assert_eq!(again.config, loaded.config);
            }
        }
    }
}

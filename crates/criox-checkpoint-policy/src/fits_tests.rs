//! What fits and what doesn't.

use criox_checkpoint::SpecMount;
use criox_checkpoint::criu::{Filters, Process, Thread};

use super::*;

const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;

fn live() -> oci::Spec {
    let mut spec = oci::Spec::default();
    spec.process.args = vec!["sh".into(), "-c".into(), "x".into()];
    spec.process.env = vec!["A=1".into(), "HOSTNAME=new".into()];
    spec.process.cwd = "/".into();
    spec.process.user = oci::User { uid: 1000, gid: 50, additional_gids: vec![50, 60], ..Default::default() };
    spec.process.capabilities =
        Some(oci::Capabilities { bounding: vec!["CAP_NET_RAW".into()], ..Default::default() });
    spec.mounts = vec![oci::Mount { destination: "/data".into(), kind: "bind".into(), ..Default::default() }];
    spec
}

fn archived() -> SpecDump {
    SpecDump {
        args: vec!["sh".into(), "-c".into(), "x".into()],
        env: vec!["HOSTNAME=old".into(), "A=1".into()],
        cwd: "/".into(),
        uid: 1000,
        gid: 50,
        additional_gids: vec![60, 50],
        mounts: vec![bind("/data")],
        ..SpecDump::default()
    }
}

fn bind(destination: &str) -> SpecMount {
    SpecMount { destination: destination.into(), kind: "bind".into(), ..SpecMount::default() }
}

fn config() -> v1::ContainerConfig {
    v1::ContainerConfig {
        mounts: vec![v1::Mount { container_path: "/data/".into(), ..Default::default() }],
        ..Default::default()
    }
}

fn user() -> Credentials {
    Credentials {
        uid: 1000,
        gid: 50,
        euid: 1000,
        egid: 50,
        suid: 1000,
        sgid: 50,
        fsuid: 1000,
        fsgid: 50,
        groups: vec![50, 60],
        inheritable: 0,
        permitted: 0,
        effective: 0,
        bounding: NET_RAW,
        ambient: None,
        no_new_privs: Some(false),
        securebits: 0,
        lsm_profile: None,
        seccomp: Seccomp::Disabled,
    }
}

fn processes(first: Credentials, second: Option<Credentials>) -> Processes {
    let process =
        |pid, first, credentials| Process { pid, first, threads: vec![Thread { tid: pid, credentials }] };
    let rest = second.map(|credentials| process(7, false, credentials));
    Processes { processes: std::iter::once(process(1, true, first)).chain(rest).collect() }
}

#[track_caller]
fn refused(result: Result<()>, word: &str) {
    let error = result.expect_err(word);
    assert!(error.to_string().contains(word), "{word}: {error}");
}

#[test]
fn what_is_the_same_fits_and_what_can_be_seen_to_differ_does_not() {
    process(&config(), &live(), &archived(), Expected::Everything).expect("the same");
    let with = |change: fn(&mut SpecDump)| {
        let mut archived = archived();
        change(&mut archived);
        process(&config(), &live(), &archived, Expected::Everything)
    };
    refused(with(|a| a.args = vec!["other".into()]), "config.args");
    refused(with(|a| a.env.push("SECRET=7".into())), "config.envs: \"SECRET\"");
    refused(with(|a| a.env = vec!["A=2".into()]), "config.envs: \"A\"");
    refused(with(|a| a.cwd = "/tmp".into()), "working_dir");
    refused(with(|a| a.uid = 0), "run_as_user");
    refused(with(|a| a.additional_gids = vec![50]), "supplemental_groups");
    refused(with(|a| a.no_new_privileges = true), "no_new_privs");
    refused(with(|a| a.readonly_root = true), "readonly_rootfs");
    let error = with(|a| a.env = vec!["A=geheim".into()]).expect_err("another value");
    assert!(!error.to_string().contains("geheim"), "values may be secret: {error}");
}

#[test]
fn a_created_container_names_what_it_cares_about() {
    let mut other = archived();
    other.args = vec!["other".into()];
    other.env.clear();
    process(&config(), &live(), &other, Expected::Policy).expect("the request names no command");
    let named = v1::ContainerConfig { command: vec!["sh".into()], ..config() };
    refused(process(&named, &live(), &other, Expected::Policy), "config.command");
}

#[test]
fn a_mount_of_the_checkpoint_that_nobody_asked_for_is_refused_with_its_place() {
    let check =
        |archived: &SpecDump, binds: &[&str], expected| mounts(&config(), &live(), archived, binds, expected);
    check(&archived(), &["/data"], Expected::Everything).expect("declared");
    refused(check(&archived(), &["/"], Expected::Policy), "expects following bind mounts defined (/)");
    let mut more = archived();
    more.mounts.push(bind("/host"));
    refused(check(&more, &[], Expected::Policy), "(/host)");
}

#[test]
fn a_mount_that_would_be_missing_is_refused_but_for_the_kubelets_own() {
    let mut live = live();
    let mut config = config();
    for place in ["/etc/hosts", "/extra"] {
        config.mounts.push(v1::Mount { container_path: place.into(), ..Default::default() });
        live.mounts.push(oci::Mount { destination: place.into(), ..Default::default() });
    }
    refused(mounts(&config, &live, &archived(), &[], Expected::Policy), "config.mounts[2].container_path");
    refused(
        mounts(&config, &live, &archived(), &[], Expected::Everything),
        "config.mounts[1].container_path",
    );
    config.mounts.pop();
    mounts(&config, &live, &archived(), &[], Expected::Policy)
        .expect("the kubelet adds it to every container");
}

#[test]
fn a_call_that_no_rule_allows_is_looked_for_in_the_filters() {
    let rule = |name: &str, action: &str| oci::Syscall {
        names: vec![name.into()],
        action: action.into(),
        ..Default::default()
    };
    let mut profile = oci::Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        syscalls: vec![rule("read", "SCMP_ACT_ALLOW"), rule("mount", "SCMP_ACT_KILL")],
        ..Default::default()
    };
    let names = |profile: &oci::Seccomp| {
        let calls = refused_calls(profile).into_iter();
        calls
            .map(|(arch, number)| criox_spec::call_name(arch, i32::try_from(number).unwrap_or(-1)))
            .collect::<Vec<_>>()
    };
    let refused = names(&profile);
    assert!(refused.iter().any(|name| name == "mount") && refused.iter().any(|name| name == "write"));
    assert!(!refused.iter().any(|name| name == "read" || name == "socketcall"), "{refused:?}");
    profile.default_action = "SCMP_ACT_LOG".into();
    assert!(names(&profile).is_empty(), "it refuses nothing by itself");
}

#[test]
fn no_process_gets_more_than_was_asked_for() {
    let check = |first, second, spec: &oci::Spec| credentials(&processes(first, second), spec);
    check(user(), Some(user()), &live()).expect("as asked for");
    let with = |change: fn(&mut Credentials)| {
        let mut credentials = user();
        change(&mut credentials);
        credentials
    };
    refused(check(with(|c| c.bounding |= SYS_ADMIN), None, &live()), "bounding set");
    refused(check(with(|c| c.bounding = 1 << 63), None, &live()), "bounding set");
    for change in [
        (|c: &mut Credentials| c.permitted = SYS_ADMIN) as fn(&mut Credentials),
        |c| c.inheritable = SYS_ADMIN,
        |c| c.ambient = Some(SYS_ADMIN),
    ] {
        refused(check(user(), Some(with(change)), &live()), "CAP_SYS_ADMIN");
    }
    refused(check(with(|c| c.euid = 0), None, &live()), "run_as_user");
    refused(check(with(|c| c.groups.push(0)), None, &live()), "run_as_group");
    check(user(), Some(with(|c| c.uid = 0)), &live()).expect("by a program of the image");
    let mut strict = live();
    strict.process.no_new_privileges = true;
    let quiet = |change: fn(&mut Credentials)| {
        let mut credentials = with(change);
        credentials.no_new_privs = Some(true);
        credentials
    };
    check(quiet(|_| ()), Some(quiet(|_| ())), &strict).expect("kept from new privileges");
    refused(check(quiet(|_| ()), Some(quiet(|c| c.uid = 0)), &strict), "run_as_user");
    refused(check(user(), None, &strict), "no_new_privs");
    refused(check(with(|c| c.no_new_privs = None), None, &strict), "no_new_privs");
    refused(check(quiet(|c| c.effective = NET_RAW), None, &strict), "capabilities");
    let mut root = live();
    root.process.user.uid = 0;
    check(with(|c| c.uid = 33), None, &root).expect("root may become anybody");
}

#[test]
fn a_filter_and_a_profile_that_were_asked_for_must_be_there() {
    let mut spec = live();
    spec.linux.seccomp = Some(oci::Seccomp::default());
    refused(credentials(&processes(user(), None), &spec), "seccomp");
    let filtered = Credentials { seccomp: Seccomp::Filter(Filters::default()), ..user() };
    credentials(&processes(filtered.clone(), None), &spec).expect("it has one");
    spec.process.apparmor_profile = Some("crio-default".into());
    refused(credentials(&processes(filtered.clone(), None), &spec), "apparmor");
    let unconfined = Credentials { lsm_profile: Some("unconfined".into()), ..filtered.clone() };
    refused(credentials(&processes(unconfined, None), &spec), "apparmor");
    let confined = Credentials { lsm_profile: Some("other".into()), ..filtered };
    credentials(&processes(confined, None), &spec).expect("it is replaced by the one asked for");
}

#[test]
fn runtimes_do_not_restore_each_others_checkpoints() {
    let made_by = |runtime: &str| ConfigDump { runtime: runtime.into(), ..ConfigDump::default() };
    refused(same_runtime(&made_by("crun"), "runc"), "runtime_handler");
    refused(same_runtime(&made_by("runc"), "crun"), "runtime_handler");
    for (there, here) in [("crun", "crun"), ("", "crun"), ("kata", "kata"), ("high-performance", "crun")] {
        same_runtime(&made_by(there), here).expect("may be the same");
    }
}

#[test]
fn who_was_with_the_node_is_not_restored_where_it_is_to_be_apart() {
    let with = |kinds: &[&str]| {
        let mut spec = live();
        let namespace = |kind: &&str| oci::Namespace { kind: (*kind).to_owned(), path: None };
        spec.linux.namespaces = kinds.iter().map(namespace).collect();
        spec
    };
    // A host network is one that nobody asks to be kept apart.
    let shared = BTreeSet::from(["network", "user", "time"]);
    namespaces(&shared, &with(&["mount", "pid", "ipc", "uts"])).unwrap();
    let error = namespaces(&shared, &with(&["mount", "pid", "network"])).unwrap_err().to_string();
    assert!(error.contains("namespace_options") && error.contains("network"), "{error}");
}

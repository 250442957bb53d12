//! Who a container's process is, and what it may.

use criox_cri::v1::security_profile::ProfileType;
use criox_cri::v1::{
    Capability, ContainerConfig, Int64Value, KeyValue, SecurityProfile, SupplementalGroupsPolicy,
};
use serde_json::json;
use testkit::harness::Test;
use testkit::{ImageBuilder, Node, Result, busybox_image};
use tonic::Code;

use crate::NODE;
use crate::pod::{Pod, refused, sandbox_security, security};

pub(crate) const TESTS: &[Test] = &[
    ("a user by number has the image's group of it, and the image's further groups", || {
        NODE.test(user_by_number)
    }),
    ("a user by name is the image's", || NODE.test(user_by_name)),
    ("supplementary groups are merged or strict as asked", || NODE.test(groups)),
    ("the image's user counts when the request has none", || NODE.test(image_user)),
    ("a user that can't be is refused with the field", || NODE.test(bad_users)),
    ("entry point and command follow Docker's rules", || NODE.test(command_rules)),
    ("the environment is the image's, and the request wins", || NODE.test(environment)),
    ("the working directory is the request's, the image's, or made", || NODE.test(working_directory)),
    ("a container without a command is refused", || NODE.test(no_command)),
    ("capabilities are added and dropped", || NODE.test(capabilities)),
    ("no_new_privs is as asked", || NODE.test(no_new_privs)),
    ("seccomp is the default profile, none, or a file of the node", || NODE.test(seccomp)),
    ("a privileged container has devices, all capabilities and nothing masked", || NODE.test(privileged)),
    ("a privileged container needs a privileged pod", || NODE.test(privileged_needs_pod)),
    ("limits of the configuration are set", || NODE.test(limits)),
    ("standard input is at its end at once, and a terminal is one when asked", || NODE.test(terminal)),
];

/// Pushes and pulls.
fn pulled(node: &Node, name: &str, image: ImageBuilder) -> Result<String> {
    let reference = image.build()?.push(&node.registry, &format!("tests/{name}"), "1")?;
    node.cri.pull(&reference)?;
    Ok(reference)
}

fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

const ID: &str = "id -u; id -g; id -G; echo $HOME";

fn user_by_number(node: &Node) -> Result {
    let pod = Pod::without_network(node, "by-number")?;
    let mut config = pod.shell("c", ID);
    security(&mut config).run_as_user = number(1000);
    assert_eq!(pod.answer_of(&config)?, "1000\n1000\n1000 50000\n/tmp");
    let id = node.cri.list(None)?.pop().ok_or("the container")?.id;
    let user = node.cri.status(&id)?.user.and_then(|user| user.linux).ok_or("a user in the status")?;
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert!(user.supplemental_groups.contains(&50000), "{user:?}");
    // One that nobody knows.
    let mut config = pod.shell("unknown", "id -u; id -g; id -G");
    security(&mut config).run_as_user = number(4242);
    assert_eq!(pod.answer_of(&config)?, "4242\n0\n0");
    let mut config = pod.shell("group", "id -u; id -g");
    security(&mut config).run_as_user = number(1000);
    security(&mut config).run_as_group = number(7);
    assert_eq!(pod.answer_of(&config)?, "1000\n7");
    Ok(())
}

fn user_by_name(node: &Node) -> Result {
    let pod = Pod::without_network(node, "by-name")?;
    let mut config = pod.shell("c", ID);
    security(&mut config).run_as_username = "app".to_owned();
    assert_eq!(pod.answer_of(&config)?, "1000\n1000\n1000 50000\n/tmp");
    Ok(())
}

fn groups(node: &Node) -> Result {
    let pod = Pod::without_network(node, "groups")?;
    let ask = |name: &str, policy: SupplementalGroupsPolicy| -> Result<Vec<String>> {
        let mut config = pod.shell(name, "id -G");
        let context = security(&mut config);
        context.run_as_user = number(1000);
        context.supplemental_groups = vec![2000, 3000];
        context.supplemental_groups_policy = policy.into();
        let mut groups: Vec<String> = pod.answer_of(&config)?.split_whitespace().map(str::to_owned).collect();
        groups.sort();
        Ok(groups)
    };
    assert_eq!(ask("merge", SupplementalGroupsPolicy::Merge)?, ["1000", "2000", "3000", "50000"]);
    assert_eq!(ask("strict", SupplementalGroupsPolicy::Strict)?, ["1000", "2000", "3000"]);
    Ok(())
}

fn image_user(node: &Node) -> Result {
    let pod = Pod::without_network(node, "image-user")?;
    for (n, (user, expected)) in [
        ("app", "1000\n1000"),
        ("1000", "1000\n1000"),
        ("app:extra", "1000\n50000"),
        ("65534:7", "65534\n7"),
        ("", "0\n0"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = pulled(node, &format!("user-{n}"), busybox_image()?.user(user))?;
        let config = node.cri.container(&format!("c{n}"), &image, &["sh", "-c", "id -u; id -g"]);
        assert_eq!(pod.answer_of(&config)?, expected, "{user:?}");
        let status = node.cri.image(&image)?.ok_or("the image")?;
        let named = user.starts_with("app");
        assert_eq!(status.uid.is_some(), !named, "{status:?}");
        assert_eq!(status.username, if named { "app" } else { "" });
    }
    Ok(())
}

fn bad_users(node: &Node) -> Result {
    let pod = Pod::without_network(node, "bad-users")?;
    let check_as = |code: Code, field: &str, change: &dyn Fn(&mut ContainerConfig)| -> Result {
        let mut config = pod.shell("c", "true");
        change(&mut config);
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), code)?;
        assert!(message.contains(field), "{field}: {message}");
        Ok(())
    };
    let check =
        |field: &str, change: &dyn Fn(&mut ContainerConfig)| check_as(Code::InvalidArgument, field, change);
    check("run_as_group", &|config| security(config).run_as_group = number(7))?;
    // The request alone is not wrong: it doesn't fit the image.
    check_as(Code::FailedPrecondition, "run_as_username", &|config| {
        security(config).run_as_username = "nobody-knows".to_owned();
    })?;
    check("run_as_user", &|config| security(config).run_as_user = number(-5))?;
    check("run_as_user", &|config| security(config).run_as_user = number(1 << 40))?;
    check("run_as_user", &|config| {
        security(config).run_as_user = number(1);
        security(config).run_as_username = "app".to_owned();
    })?;
    let image = pulled(node, "ghost", busybox_image()?.user("ghost"))?;
    check_as(Code::FailedPrecondition, "ghost", &|config| {
        config.image.get_or_insert_default().image.clone_from(&image)
    })?;
    let mut sandbox = node.cri.host_network_pod("group-without-user");
    sandbox_security(&mut sandbox).run_as_group = number(7);
    let message = refused(node.cri.run_pod(&sandbox), Code::InvalidArgument)?;
    assert!(message.contains("run_as_group"), "{message}");
    Ok(())
}

fn command_rules(node: &Node) -> Result {
    let pod = Pod::without_network(node, "command")?;
    let image = pulled(node, "entry", busybox_image()?.entrypoint(&["/bin/echo", "entry"]).cmd(&["cmd"]))?;
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    for (name, command, args, expected) in [
        ("image", &[][..], &[][..], "entry cmd"),
        ("args", &[], &["args"], "entry args"),
        ("command", &["echo", "command"], &[], "command"),
        ("both", &["echo", "command"], &["args"], "command args"),
    ] {
        let mut config = node.cri.container(name, &image, &[]);
        config.command = owned(command);
        config.args = owned(args);
        assert_eq!(pod.answer_of(&config)?, expected, "{name}");
    }
    Ok(())
}

fn environment(node: &Node) -> Result {
    let pod = Pod::without_network(node, "environment")?;
    let env = json!(["PATH=/bin:/image", "KEPT=image", "CHANGED=image", "EQUALS=a=b"]);
    let image = pulled(node, "environment", busybox_image()?.config("Env", env))?;
    let mut config =
        node.cri.container("c", &image, &["sh", "-c", "echo $PATH $KEPT $CHANGED $EQUALS \"$NEW\""]);
    let pair = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.into() };
    config.envs = vec![pair("CHANGED", "request"), pair("NEW", "with  blanks and ✓"), pair("LAST", "")];
    assert_eq!(pod.answer_of(&config)?, "/bin:/image image request a=b with  blanks and ✓");
    Ok(())
}

fn working_directory(node: &Node) -> Result {
    let pod = Pod::without_network(node, "workdir")?;
    let image = pulled(node, "workdir", busybox_image()?.config("WorkingDir", json!("/made/for/it")))?;
    let config = node.cri.container("image", &image, &["pwd"]);
    assert_eq!(pod.answer_of(&config)?, "/made/for/it");
    let mut config = node.cri.container("request", &image, &["pwd"]);
    config.working_dir = "/var".to_owned();
    assert_eq!(pod.answer_of(&config)?, "/var");
    assert_eq!(pod.answer("none", "pwd")?, "/");
    Ok(())
}

fn no_command(node: &Node) -> Result {
    let pod = Pod::without_network(node, "no-command")?;
    let image = pulled(node, "no-command", busybox_image()?.cmd(&[]))?;
    let config = node.cri.container("c", &image, &[]);
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("command"), "{message}");
    Ok(())
}

/// One of the sets of capabilities of a container's process, as a bit mask.
fn capability_set(pod: &Pod, config: &ContainerConfig, set: &str) -> Result<u64> {
    let status = pod.answer_of(config)?;
    let line = status.lines().find(|line| line.starts_with(set)).ok_or("no such set")?;
    Ok(u64::from_str_radix(line.split_whitespace().nth(1).unwrap_or_default(), 16)?)
}

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;

fn capabilities(node: &Node) -> Result {
    let pod = Pod::without_network(node, "capabilities")?;
    let ask = |name: &str, set: &str, capability: Capability| {
        let mut config = pod.shell(name, "cat /proc/self/status");
        security(&mut config).capabilities = Some(capability);
        capability_set(&pod, &config, set)
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let usual = ask("usual", "CapEff", Capability::default())?;
    // CRI-O's nine.
    assert_eq!(usual, 0x05fb, "{usual:x}");
    let added = Capability {
        add_capabilities: words(&["NET_ADMIN"]),
        drop_capabilities: words(&["CHOWN"]),
        ..Capability::default()
    };
    let effective = ask("added", "CapEff", added.clone())?;
    assert_eq!(effective, (usual | NET_ADMIN) & !CHOWN, "{effective:x}");
    let bounding = ask("bounding", "CapBnd", added)?;
    assert_eq!(bounding, effective);
    let only = Capability {
        add_capabilities: words(&["KILL"]),
        drop_capabilities: words(&["ALL"]),
        ..Capability::default()
    };
    assert_eq!(ask("only", "CapEff", only)?, KILL);
    let ambient =
        Capability { add_ambient_capabilities: words(&["NET_BIND_SERVICE"]), ..Capability::default() };
    let mut config = pod.shell("ambient", "cat /proc/self/status");
    security(&mut config).capabilities = Some(ambient);
    security(&mut config).run_as_user = number(1000);
    assert_eq!(capability_set(&pod, &config, "CapEff")?, NET_BIND_SERVICE);
    let mut config = pod.shell("user", "cat /proc/self/status");
    security(&mut config).run_as_user = number(1000);
    assert_eq!(capability_set(&pod, &config, "CapEff")?, 0);
    let mut config = pod.shell("bad", "true");
    let bad = Capability { add_capabilities: words(&["NO_SUCH_THING"]), ..Capability::default() };
    security(&mut config).capabilities = Some(bad);
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("NO_SUCH_THING"), "{message}");
    Ok(())
}

fn no_new_privs(node: &Node) -> Result {
    let pod = Pod::without_network(node, "no-new-privs")?;
    for (name, wanted, expected) in [("with", true, "1"), ("without", false, "0")] {
        let mut config = pod.shell(name, "grep NoNewPrivs /proc/self/status | tr -dc 01");
        security(&mut config).no_new_privs = wanted;
        assert_eq!(pod.answer_of(&config)?, expected);
    }
    Ok(())
}

fn seccomp(node: &Node) -> Result {
    let pod = Pod::without_network(node, "seccomp")?;
    let ask = |name: &str, profile: ProfileType, file: &str, script: &str| {
        let mut config = pod.shell(name, script);
        security(&mut config).seccomp =
            Some(SecurityProfile { profile_type: profile.into(), localhost_ref: file.to_owned() });
        pod.answer_of(&config)
    };
    let mode = "grep Seccomp: /proc/self/status | tr -dc 012";
    assert_eq!(ask("default", ProfileType::RuntimeDefault, "", mode)?, "2");
    assert_eq!(ask("unconfined", ProfileType::Unconfined, "", mode)?, "0");
    assert_eq!(
        ask("denied", ProfileType::RuntimeDefault, "", "unshare -U true 2> /dev/null || echo denied")?,
        "denied"
    );
    let file = node.daemon.dir().join("no-mkdir.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new().append(true).create(true).open(&file)?,
        profile.to_string().as_bytes(),
    )?;
    let script = "mkdir /tmp/x 2> /dev/null || echo denied; touch /tmp/y && echo touched";
    assert_eq!(ask("file", ProfileType::Localhost, &file.display().to_string(), script)?, "denied\ntouched");
    let mut config = pod.shell("absent", "true");
    security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: "/no/such/profile.json".to_owned(),
    });
    let error =
        node.cri.create(&pod.id, &config, &pod.config).err().ok_or("a profile that isn't there was used")?;
    assert!(error.message().contains("/no/such/profile.json"), "{error}");
    Ok(())
}

fn privileged(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("privileged");
    sandbox_security(&mut config).privileged = true;
    let pod = Pod::run_with(node, config)?;
    let mut config = pod.shell(
        "c",
        "cat /proc/self/status; ls -d /dev/loop-control; grep ' /sys sysfs' /proc/self/mounts | grep -c rw; grep -c ' /proc/' /proc/self/mounts",
    );
    let context = security(&mut config);
    context.privileged = true;
    // The kubelet always sends them.
    context.masked_paths = vec!["/proc/kcore".to_owned()];
    context.readonly_paths = vec!["/proc/sys".to_owned()];
    // grep's last count is 0, and so its code 1.
    let said = pod.said(&config)?;
    assert!(said.stdout.ends_with("/dev/loop-control\n1\n0\n"), "{said:?}");
    let mask = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let ours = std::fs::read_to_string("/proc/self/status")?;
    let find = |text: &str| text.lines().find(|line| line.starts_with("CapEff")).and_then(mask);
    // All that this machine lets a daemon give.
    assert_eq!(find(&said.stdout), find(&ours));
    assert!(said.stdout.contains("Seccomp:\t0"));
    Ok(())
}

fn privileged_needs_pod(node: &Node) -> Result {
    // With a namespace of the node's a pod counts as privileged, as in CRI-O.
    let pod = Pod::run(node, "unprivileged")?;
    let mut config = pod.shell("c", "true");
    security(&mut config).privileged = true;
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("privileged"), "{message}");
    Ok(())
}

fn limits(node: &Node) -> Result {
    let pod = Pod::without_network(node, "limits")?;
    assert_eq!(pod.answer("c", "ulimit -Sn; ulimit -Hn")?, "1000\n2000");
    Ok(())
}

fn terminal(node: &Node) -> Result {
    let pod = Pod::without_network(node, "terminal")?;
    assert_eq!(pod.answer("none", "cat; tty || true")?, "not a tty");
    let mut config = pod.shell("tty", "tty; echo to stderr >&2");
    config.tty = true;
    let said = pod.said(&config)?;
    // A terminal ends lines with both characters, and has one stream.
    assert_eq!(said.stdout.replace('\r', ""), "/dev/pts/0\nto stderr\n");
    assert_eq!(said.stderr, "");
    Ok(())
}

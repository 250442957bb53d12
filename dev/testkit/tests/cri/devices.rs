//! Devices by every way in which a container comes by one, and what else a node's configuration gives to containers.

use std::io::Write as _;
use std::path::Path;

use criox_cri::v1::{CdiDevice, ContainerConfig, Device, Int64Value};
use testkit::harness::Test;
use testkit::{Daemon, Node, Result, Shared};
use tonic::Code;

use crate::pod::{Pod, refused, sandbox_security, security};

pub(crate) const TESTS: &[Test] = &[
    ("a CDI device brings nodes, mounts, variables, groups and hooks", || CONFIGURED.test(cdi)),
    ("CDI devices are named by field and annotation, and change with their files", || {
        CONFIGURED.test(cdi_names)
    }),
    ("a CDI device that nobody describes is refused by its name, and leaves nothing", || {
        CONFIGURED.test(cdi_unknown)
    }),
    ("the devices annotation gives what the node allows, and nothing else", || CONFIGURED.test(annotation)),
    ("devices of the configuration are in every container", || CONFIGURED.test(additional)),
    ("a device belongs to the container's user where it is so configured", || CONFIGURED.test(ownership)),
    ("a container has the time zone of the configuration, in a file of its own", || {
        CONFIGURED.test(timezone)
    }),
    ("a privileged container has the configured filter", || CONFIGURED.test(privileged_seccomp)),
];

/// A node whose configuration says something about devices.
pub(crate) static CONFIGURED: Shared = Shared::new(|| {
    Node::start(|registry| {
        let mut daemon = Daemon::builder().registry(registry).runtime("crun", "").prepare()?;
        let dir = daemon.dir().to_owned();
        let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
        put(&dir.join("privileged.json"), profile)?;
        let text = format!(
            "[crio.runtime]\ncdi_spec_dirs = [\"{0}/cdi-static\", \"{0}/cdi\"]\nallowed_devices = [\"/dev/fuse\"]\n\
             additional_devices = [\"/dev/loop-control:/dev/added:r\"]\ndevice_ownership_from_security_context = true\n\
             timezone = \"Etc/UTC\"\nprivileged_seccomp_profile = \"{0}/privileged.json\"\n\
             [crio.runtime.runtimes.crun]\nruntime_root = \"{0}/run/crun\"\nallowed_annotations = [\"devices.crio.io\"]\n",
            dir.display()
        );
        put(&daemon.config_dir().join("50-devices.conf"), &text)?;
        std::fs::create_dir(dir.join("cdi"))?;
        daemon.start()?;
        Ok(daemon)
    })
});

fn put(path: &Path, text: &str) -> Result {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn device(name: &str) -> CdiDevice {
    CdiDevice { name: name.to_owned() }
}

fn cdi(node: &Node) -> Result {
    let dir = node.daemon.dir();
    put(&dir.join("driver.txt"), "driver\n")?;
    let text = format!(
        r#"
cdiVersion: 0.7.0
kind: vendor.example/card
devices:
  - name: "0"
    containerEdits:
      env: [CARD=0]
      deviceNodes:
        - path: /dev/card0
          hostPath: /dev/null
          permissions: rw
      additionalGids: [4321]
containerEdits:
  env: [DRIVER=loaded]
  mounts:
    - hostPath: {0}/driver.txt
      containerPath: /opt/driver/driver.txt
      options: [ro, bind, nosuid]
  hooks:
    - hookName: createRuntime
      path: /bin/sh
      args: [sh, -c, "echo created > {0}/hook.txt"]
"#,
        dir.display()
    );
    put(&dir.join("cdi/card.yaml"), &text)?;
    let pod = Pod::without_network(node, "cdi")?;
    let mut config = pod.shell(
        "c",
        "echo $CARD $DRIVER; cat /opt/driver/driver.txt; echo x > /dev/card0 && echo written; id -G; \
         echo x 2> /dev/null > /opt/driver/driver.txt || echo read-only",
    );
    config.cdi_devices = vec![device("vendor.example/card=0")];
    let said = pod.answer_of(&config)?;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((&lines[..3], lines[4]), (&["0 loaded", "driver", "written"][..], "read-only"), "{said}");
    assert!(lines[3].split(' ').any(|group| group == "4321"), "{said}");
    assert_eq!(std::fs::read_to_string(dir.join("hook.txt"))?, "created\n");
    // Another container has nothing of it.
    assert_eq!(pod.answer("other", "echo ${CARD:-none}; ls /dev/card0 2> /dev/null || true")?, "none");
    Ok(())
}

fn simple(name: &str, value: &str) -> String {
    format!(
        r#"{{"cdiVersion":"0.5.0","kind":"vendor.example/simple","devices":[{{"name":"{name}","containerEdits":{{"env":["{name}={value}"]}}}}]}}"#
    )
}

fn cdi_names(node: &Node) -> Result {
    let file = node.daemon.dir().join("cdi/simple-a.json");
    put(&file, &simple("A", "1"))?;
    put(&node.daemon.dir().join("cdi/simple-b.json"), &simple("B", "1"))?;
    let pod = Pod::without_network(node, "cdi-names")?;
    let ask = |name: &str| -> Result<String> {
        let mut config = pod.shell(name, "echo $A $B");
        config.cdi_devices = vec![device("vendor.example/simple=A")];
        let both = "vendor.example/simple=A,vendor.example/simple=B";
        config.annotations.insert("cdi.k8s.io/plugin".to_owned(), both.to_owned());
        pod.answer_of(&config)
    };
    assert_eq!(ask("first")?, "1 1");
    put(&file, &simple("A", "22"))?;
    assert_eq!(ask("second")?, "22 1");
    Ok(())
}

fn cdi_unknown(node: &Node) -> Result {
    put(&node.daemon.dir().join("cdi/broken.yaml"), "kind: [")?;
    let pod = Pod::without_network(node, "cdi-unknown")?;
    let mut config = pod.shell("c", "true");
    config.cdi_devices = vec![device("vendor.example/absent=7")];
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::FailedPrecondition)?;
    for word in ["CDI_devices", "vendor.example/absent=7", "broken.yaml"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    config.cdi_devices = vec![device("../x=y")];
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("CDI_devices[0].name"), "{message}");
    config.cdi_devices.clear();
    config.annotations.insert("cdi.k8s.io/x".to_owned(), "nothing".to_owned());
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("cdi.k8s.io/x"), "{message}");
    assert!(node.cri.list(Some(&pod.id))?.is_empty());
    std::fs::remove_file(node.daemon.dir().join("cdi/broken.yaml"))?;
    Ok(())
}

fn annotation(node: &Node) -> Result {
    let pod_with = |name: &str, key: &str, value: &str| {
        let mut config = node.cri.host_network_pod(name);
        config.annotations.insert(key.to_owned(), value.to_owned());
        Pod::run_with(node, config)
    };
    let ls = "ls -d /dev/fuse /dev/mine 2> /dev/null || true";
    let pod = pod_with("allowed", "devices.crio.io", "/dev/fuse,/dev/fuse:/dev/mine:r")?;
    assert_eq!(pod.answer("c", ls)?, "/dev/fuse\n/dev/mine");
    let pod = pod_with("not-allowed", "devices.crio.io", "/dev/loop-control")?;
    let config = pod.shell("c", "true");
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("/dev/loop-control") && message.contains("devices.crio.io"), "{message}");
    // The older name acts only where the handler names it, too.
    let pod = pod_with("older", "io.kubernetes.cri-o.Devices", "/dev/fuse")?;
    assert_eq!(pod.answer("c", ls)?, "");
    Ok(())
}

fn additional(node: &Node) -> Result {
    let pod = Pod::without_network(node, "additional")?;
    let script = "exec 3< /dev/added && echo read; (exec 3<> /dev/added) 2> /dev/null || echo not written";
    assert_eq!(pod.answer("c", script)?, "read\nnot written");
    Ok(())
}

fn ownership(node: &Node) -> Result {
    let pod = Pod::without_network(node, "ownership")?;
    let ask = |name: &str, change: &dyn Fn(&mut ContainerConfig)| -> Result<String> {
        let mut config = pod.shell(name, "stat -c '%u %g' /dev/mine");
        config.devices = vec![Device {
            container_path: "/dev/mine".to_owned(),
            host_path: "/dev/fuse".to_owned(),
            permissions: "rw".to_owned(),
        }];
        change(&mut config);
        pod.answer_of(&config)
    };
    assert_eq!(ask("nobody", &|_| ())?, "0 0");
    let user = |config: &mut ContainerConfig| security(config).run_as_user = Some(Int64Value { value: 1000 });
    assert_eq!(ask("user", &user)?, "1000 0");
    let both = |config: &mut ContainerConfig| {
        user(config);
        security(config).run_as_group = Some(Int64Value { value: 7 });
    };
    assert_eq!(ask("both", &both)?, "1000 7");
    Ok(())
}

fn timezone(node: &Node) -> Result {
    let zone = std::fs::read("/usr/share/zoneinfo/Etc/UTC").map_err(|error| {
        testkit::harness::skip(format!("the node has no zones (package tzdata): {error}"))
    })?;
    let pod = Pod::without_network(node, "timezone")?;
    let script = "head -c 4 /etc/localtime; echo; echo spoilt > /etc/localtime; cat /etc/localtime";
    assert_eq!(pod.answer("c", script)?, "TZif\nspoilt");
    // The node's own file, and the next container's, are as they were.
    assert_eq!(std::fs::read("/usr/share/zoneinfo/Etc/UTC")?, zone);
    assert_eq!(pod.answer("next", "head -c 4 /etc/localtime")?, "TZif");
    Ok(())
}

fn privileged_seccomp(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("privileged-seccomp");
    sandbox_security(&mut config).privileged = true;
    let pod = Pod::run_with(node, config)?;
    let script = "mkdir /tmp/x 2> /dev/null || echo denied";
    let mut config = pod.shell("privileged", script);
    security(&mut config).privileged = true;
    assert_eq!(pod.answer_of(&config)?, "denied");
    assert_eq!(pod.answer("plain", script)?, "");
    Ok(())
}

//! Files as vendors write them, and as they should not.

use criox_cri::v1;

use super::*;
use crate::oci;

const JSON: &str = r#"{
  "cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "annotations": {"made": "by hand"},
  "devices": [
    {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0", "type": "c", "major": 240, "minor": 1}], "env": ["GPU=0"]}},
    {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/gpu0"}], "env": ["GPU=all"]}}
  ],
  "containerEdits": {
    "env": ["DRIVER=1"],
    "mounts": [{"hostPath": "/usr/lib/gpu", "containerPath": "/usr/lib/gpu", "options": ["ro", "rbind"]}],
    "hooks": [{"hookName": "createContainer", "path": "/usr/bin/gpu-hook", "args": ["gpu-hook", "link"], "timeout": 5}]
  }
}"#;

const YAML: &str = r#"
cdiVersion: "0.7.0"
kind: vendor.com/net
devices:
  - name: a
    containerEdits:
      deviceNodes:
        - {path: /dev/net0, type: c, major: 10, minor: 7, fileMode: 0660, uid: 3, permissions: rw}
        - path: /dev/fifo
          type: p
      additionalGids: [44, 0, 44]
      intelRdt: {closID: low, l3CacheSchema: "L3:0=f"}
"#;

fn json(text: &str) -> Result<CdiFile, CdiError> {
    parse_cdi(text.as_bytes(), CdiFormat::Json)
}

fn nobody(path: &str) -> Result<HostNode, CdiError> {
    Err(CdiError(format!("nobody asks for {path}")))
}

fn injected(file: &CdiFile, device: &str) -> oci::Spec {
    let mut spec = oci::Spec::default();
    spec.process.env = vec!["GPU=none".into(), "HOME=/".into()];
    spec.process.user.uid = 1000;
    let edits = [file.common(), file.device(device).unwrap()];
    inject(&mut spec, &edits, CdiFacts::default(), &mut |path| match path {
        "/dev/gpu0" => Ok(HostNode { kind: 'c', major: 240, minor: 1 }),
        path => nobody(path),
    })
    .unwrap();
    spec
}

#[test]
fn a_device_brings_its_own_edits_and_those_of_its_file() {
    let file = json(JSON).unwrap();
    assert_eq!((file.kind(), file.devices().collect::<Vec<_>>()), ("vendor.com/gpu", vec!["0", "all"]));
    let spec = injected(&file, "0");
    assert_eq!(spec.process.env, ["GPU=0", "HOME=/", "DRIVER=1"]);
    assert_eq!(spec.mounts[0].destination, "/usr/lib/gpu");
    assert_eq!((spec.mounts[0].kind.as_str(), spec.mounts[0].options.len()), ("bind", 2));
    let node = &spec.linux.devices[0];
    assert_eq!((node.path.as_str(), node.major, node.minor, node.uid), ("/dev/gpu0", 240, 1, Some(1000)));
    let rule = &spec.linux.resources.unwrap().devices[0];
    assert!(rule.allow && rule.access == "rwm" && rule.major == Some(240));
    let hook = &spec.hooks.unwrap().create_container[0];
    assert_eq!((hook.path.as_str(), hook.timeout), ("/usr/bin/gpu-hook", Some(5)));
}

#[test]
fn numbers_that_the_file_leaves_out_are_those_of_the_node() {
    let spec = injected(&json(JSON).unwrap(), "all");
    let node = &spec.linux.devices[0];
    assert_eq!((node.path.as_str(), node.kind.as_str(), node.major), ("/dev/gpu", "c", 240));
}

#[test]
fn yaml_is_read_as_go_programs_write_it() {
    let file = parse_cdi(YAML.as_bytes(), CdiFormat::Yaml).unwrap();
    let spec = injected(&file, "a");
    let node = &spec.linux.devices[0];
    assert_eq!((node.file_mode, node.uid, node.gid), (Some(0o660), Some(3), None));
    assert_eq!(spec.linux.devices[1].kind, "p");
    // A pipe has no rule in the device controller.
    assert_eq!(spec.linux.resources.unwrap().devices.len(), 1);
    assert_eq!(spec.process.user.additional_gids, [44]);
    assert_eq!(spec.linux.intel_rdt.unwrap().clos_id, "low");
    // JSON is YAML, too.
    assert_eq!(parse_cdi(JSON.as_bytes(), CdiFormat::Yaml), json(JSON));
}

#[test]
fn a_later_device_replaces_what_is_at_the_same_place() {
    let file = json(JSON).unwrap();
    let mut spec = oci::Spec::default();
    spec.mounts.push(oci::Mount { destination: "/usr/lib/gpu/x".into(), ..Default::default() });
    spec.mounts.push(oci::Mount { destination: "/usr/lib/gpu".into(), ..Default::default() });
    spec.linux.devices.push(oci::Device { path: "/dev/gpu0".into(), ..Default::default() });
    let edits = [file.common(), file.device("0").unwrap(), file.device("0").unwrap()];
    inject(&mut spec, &edits, CdiFacts::default(), &mut nobody).unwrap();
    let places: Vec<&str> = spec.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(places, ["/usr/lib/gpu", "/usr/lib/gpu/x"]);
    assert_eq!((spec.linux.devices.len(), spec.linux.devices[0].major), (1, 240));
}

#[test]
fn a_node_of_another_type_and_what_the_handler_cannot_do_are_refused() {
    let file = |edits: &str| {
        let text = format!(
            r#"{{"cdiVersion":"1.1.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{edits}}}]}}"#
        );
        json(&text).unwrap()
    };
    let check = |edits: &str, facts: CdiFacts, word: &str| {
        let mut lookup = |_: &str| Ok(HostNode { kind: 'b', major: 8, minor: 0 });
        let file = file(edits);
        let edits = [file.device("d").unwrap()];
        let error = inject(&mut oci::Spec::default(), &edits, facts, &mut lookup).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    };
    let none = CdiFacts::default();
    check(r#"{"deviceNodes":[{"path":"/dev/x","type":"c"}]}"#, none, "/dev/x");
    check(r#"{"netDevices":[{"hostInterfaceName":"eth9","name":"eth0"}]}"#, none, "eth9");
    check(r#"{"intelRdt":{}}"#, CdiFacts { intel_rdt: Some(false), ..none }, "intelRdt");
}

#[test]
fn broken_files_are_refused_with_the_reason() {
    let check = |change: &dyn Fn(&mut serde_json::Value), word: &str| {
        let mut value: serde_json::Value = serde_json::from_str(JSON).unwrap();
        change(&mut value);
        let error = json(&value.to_string()).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    };
    check(&|v| v["kind"] = "gpu".into(), "vendor and class");
    check(&|v| v["kind"] = "../x".into(), "name of a vendor");
    check(&|v| v["cdiVersion"] = "9.0.0".into(), "not known");
    check(&|v| v["cdiVersion"] = "0.9.0".into(), "not known");
    check(&|v| v["cdiVersion"] = "new".into(), "no version");
    check(&|v| v["cdiVersion"] = "0.5.0".into(), "annotations");
    check(&|v| v["devices"] = serde_json::json!([]), "no device");
    check(&|v| v["devices"][0]["name"] = "all".into(), "twice");
    check(&|v| v["devices"][0]["name"] = "a b".into(), "name of a device");
    check(&|v| v["devices"][0]["containerEdits"] = serde_json::json!({}), "no containerEdits");
    check(&|v| v["devices"][0]["typo"] = 1.into(), "typo");
    check(&|v| v["containerEdits"]["env"][0] = "X".into(), "NAME=value");
    check(&|v| v["containerEdits"]["mounts"][0]["containerPath"] = "/a/../b".into(), "..");
    check(&|v| v["containerEdits"]["mounts"][0]["containerPath"] = "/".into(), "root");
    check(&|v| v["containerEdits"]["mounts"][0]["hostPath"] = "".into(), "hostPath");
    check(&|v| v["containerEdits"]["hooks"][0]["hookName"] = "postStart".into(), "postStart");
    check(&|v| v["containerEdits"]["hooks"][0]["path"] = "hook".into(), "not absolute");
    check(&|v| v["containerEdits"]["hooks"][0]["timeout"] = 0.into(), "above 0");
    check(&|v| v["devices"][0]["containerEdits"]["deviceNodes"][0]["type"] = "d".into(), "unknown type");
    check(
        &|v| v["devices"][0]["containerEdits"]["deviceNodes"][0]["permissions"] = "x".into(),
        "permissions",
    );
    check(&|v| v["devices"][0]["containerEdits"]["deviceNodes"][0]["major"] = (-1).into(), "-1");
    check(
        &|v| v["devices"][0]["containerEdits"]["intelRdt"] = serde_json::json!({"closID": "a/b"}),
        "closID",
    );
}

#[test]
fn yaml_that_grows_or_repeats_itself_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let previous = level - 1;
        let list = vec![format!("*a{previous}"); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    assert!(parse_cdi(bomb.as_bytes(), CdiFormat::Yaml).is_err());
    let twice = YAML.replace("kind: vendor.com/net", "kind: vendor.com/net\nkind: other.com/net");
    assert!(parse_cdi(twice.as_bytes(), CdiFormat::Yaml).is_err());
    assert!(parse_cdi(b"\xff\xfe", CdiFormat::Yaml).is_err());
    assert!(parse_cdi(&vec![b' '; MAX_BYTES + 1], CdiFormat::Json).is_err());
    let deep = "[".repeat(100_000);
    assert!(parse_cdi(deep.as_bytes(), CdiFormat::Yaml).is_err() && json(&deep).is_err());
}

#[test]
fn versions_are_needed_for_what_they_brought() {
    let check = |version: &str, name: &str, class: &str, edits: &str, good: bool| {
        let text = format!(
            r#"{{"cdiVersion":"{version}","kind":"v/{class}","devices":[{{"name":"{name}","containerEdits":{edits}}}]}}"#
        );
        assert_eq!(json(&text).is_ok(), good, "{text}: {:?}", json(&text));
    };
    let env = r#"{"env":["A=b"]}"#;
    check("0.3.0", "d", "c", env, true);
    check("v0.3.0", "d", "c", env, true);
    check("1.0.0", "d", "c", env, true);
    check("1.2.0", "d", "c", env, false);
    let mount = r#"{"mounts":[{"hostPath":"/a","containerPath":"/b","type":"bind"}]}"#;
    check("0.3.0", "d", "c", mount, false);
    check("0.4.0", "d", "c", mount, true);
    check("0.4.0", "0", "c", env, false);
    check("0.5.0", "0", "c", env, true);
    check("0.5.0", "d", "c.d", env, false);
    check("0.6.0", "d", "c.d", env, true);
    check("0.6.0", "d", "c", r#"{"additionalGids":[1]}"#, false);
    check("0.7.0", "d", "c", r#"{"additionalGids":[1]}"#, true);
    let net = r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#;
    check("1.0.0", "d", "c", net, false);
    check("1.1.0", "d", "c", net, true);
}

#[test]
fn a_request_names_devices_by_field_then_by_annotation_each_once() {
    let device = |name: &str| v1::CdiDevice { name: name.to_owned() };
    let annotations = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let container = v1::ContainerConfig {
        cdi_devices: vec![device("v.com/c=b"), device("v.com/c=b")],
        annotations: annotations("cdi.k8s.io/plugin_1", "v.com/c=a:0,v.com/c=b"),
        ..Default::default()
    };
    let names: Vec<String> = cdi_names(&container).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["v.com/c=b", "v.com/c=a:0"]);
    for bad in
        ["", "v.com/c", "c=a", "../x=y", "v.com/c=", "v.com/c=../a", "v.com/c/d=a", "v.com/c=a=b", "1v/c=a"]
    {
        let container = v1::ContainerConfig { cdi_devices: vec![device(bad)], ..Default::default() };
        assert_eq!(cdi_names(&container).unwrap_err().field, "CDI_devices[0].name", "{bad}");
        let container =
            v1::ContainerConfig { annotations: annotations("cdi.k8s.io/x", bad), ..Default::default() };
        assert_eq!(cdi_names(&container).unwrap_err().field, "annotations[cdi.k8s.io/x]", "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn no_input_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        for format in [CdiFormat::Json, CdiFormat::Yaml] {
            drop(parse_cdi(&bytes, format));
        }
    }

    #[test]
    fn no_cut_file_makes_it_panic(at in 0..YAML.len(), byte in proptest::num::u8::ANY) {
        let mut bytes = YAML.as_bytes().to_vec();
        bytes[at] = byte;
        drop(parse_cdi(&bytes, CdiFormat::Yaml));
        drop(parse_cdi(&YAML.as_bytes()[..at], CdiFormat::Yaml));
    }
}

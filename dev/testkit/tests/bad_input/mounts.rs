//! Sources and targets of mounts.

use criox_cri::v1::{ImageSpec, Mount};
use testkit::harness::Test;
use testkit::{Node, Result};

use crate::{NODE, refused, still_works};

pub(crate) const TESTS: &[Test] = &[
    ("mount sources that can't be are named, and no container is left", || NODE.test(sources)),
    ("mounts on the wrong kind of file are told with the path", || NODE.test(targets)),
];

fn sources(node: &Node) -> Result {
    let config = node.cri.host_network_pod("sources");
    let pod = node.cri.run_pod_as(&config, "real")?;
    let check = |mount: Mount, parts: &[&str]| -> Result {
        let mut container = node.cri.container("c", &node.image, &["true"]);
        container.mounts = vec![mount];
        refused(node.cri.create(&pod, &container, &config), parts)?;
        assert!(node.cri.list(None)?.is_empty());
        Ok(())
    };
    let bind = |host: &str| Mount {
        host_path: host.to_owned(),
        container_path: "/data".to_owned(),
        ..Mount::default()
    };
    let field = "mounts[0].host_path";
    check(bind("/etc/hostname/below-a-file"), &[field, "/etc/hostname/below-a-file"])?;
    check(bind("/proc/no-such-file/x"), &[field, "/proc/no-such-file/x"])?;
    check(bind("/no/such/source"), &[field, "/no/such/source"])?;
    check(bind("relative"), &[field, "relative"])?;
    check(bind(&format!("/{}", "x".repeat(5000))), &[field])?;
    let image = Some(ImageSpec { image: node.image.clone(), ..ImageSpec::default() });
    check(Mount { image: image.clone(), host_path: String::new(), ..bind("") }, &["mounts[0].readonly"])?;
    let volume = || Mount { image: image.clone(), readonly: true, ..bind("") };
    let missing = ImageSpec { image: "localhost/no/such/image:1".to_owned(), ..ImageSpec::default() };
    check(
        Mount { image: Some(missing), ..volume() },
        &["ImageVolumeMountFailed: config.mounts[0].image", "localhost/no/such/image:1"],
    )?;
    let long = "x/".repeat(5000);
    for path in ["../../etc", "/etc", "no/such/path", "bin/busybox/below", long.as_str()] {
        check(
            Mount { image_sub_path: path.to_owned(), ..volume() },
            &["ImageVolumeMountFailed: config.mounts[0].image_sub_path"],
        )?;
    }
    check(Mount { host_path: "/etc".to_owned(), ..volume() }, &["mounts[0].host_path"])?;
    let both = Mount { recursive_read_only: true, ..bind("/etc") };
    check(both, &["mounts[0]", "recursive_read_only"])?;
    still_works(node)
}

fn targets(node: &Node) -> Result {
    let config = node.cri.host_network_pod("targets");
    let pod = node.cri.run_pod_as(&config, "real")?;
    for (name, host, inside) in
        [("file-on-dir", "/etc/hostname", "/root"), ("dir-on-file", "/etc", "/bin/busybox")]
    {
        let mut container = node.cri.container(name, &node.image, &["true"]);
        container.mounts =
            vec![Mount { host_path: host.to_owned(), container_path: inside.to_owned(), ..Mount::default() }];
        let created = node.cri.create(&pod, &container, &config);
        refused(created, &[inside.trim_start_matches('/')])?;
        assert!(node.cri.list(None)?.is_empty());
    }
    still_works(node)
}

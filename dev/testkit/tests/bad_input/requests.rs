//! Clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use criox_cri::v1;
use hyper_util::rt::TokioIo;
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::{NODE, refused, still_works};

pub(crate) const TESTS: &[Test] = &[
    ("empty requests are answered with an error, never a panic", || NODE.test(empty)),
    ("metadata without a name, a namespace or a UID is refused by field", || NODE.test(metadata)),
    ("IDs that are paths are unknown IDs", || NODE.test(path_ids)),
    ("garbage on the socket ends its own connection only", || NODE.test(garbage)),
    ("messages of another type are refused", || NODE.test(malformed)),
    ("connections that say nothing keep nobody waiting", || NODE.test(silent)),
    ("values beyond all measure are refused by field", || NODE.test(extremes)),
];

/// The daemon must have said nothing of a panic in all its life.
fn no_panic(node: &Node) -> Result {
    let log = node.daemon.log();
    assert!(
        !log.contains("panicked"),
        "{}",
        log.lines().filter(|line| line.contains("panicked")).collect::<String>()
    );
    node.cri.version()?;
    Ok(())
}

fn empty(node: &Node) -> Result {
    let cri = &node.cri;
    macro_rules! call {
        ($($client:ident.$method:ident: $request:ident),* $(,)?) => {
            vec![$((stringify!($method), cri.call(cri.$client().$method(v1::$request::default())).map(drop))),*]
        };
    }
    let refused: Vec<(&str, Result<(), Status>)> = call![
        runtime.run_pod_sandbox: RunPodSandboxRequest,
        runtime.pod_sandbox_status: PodSandboxStatusRequest,
        runtime.create_container: CreateContainerRequest,
        runtime.start_container: StartContainerRequest,
        runtime.container_status: ContainerStatusRequest,
        runtime.reopen_container_log: ReopenContainerLogRequest,
        runtime.exec_sync: ExecSyncRequest,
        images.image_status: ImageStatusRequest,
        images.pull_image: PullImageRequest,
        images.remove_image: RemoveImageRequest,
    ];
    for (method, answer) in refused {
        let status = answer.err().ok_or_else(|| format!("an empty {method} succeeded"))?;
        assert!(matches!(status.code(), Code::InvalidArgument | Code::NotFound), "{method}: {status}");
    }
    let idempotent: Vec<(&str, Result<(), Status>)> = call![
        runtime.stop_pod_sandbox: StopPodSandboxRequest,
        runtime.remove_pod_sandbox: RemovePodSandboxRequest,
        runtime.stop_container: StopContainerRequest,
        runtime.remove_container: RemoveContainerRequest,
        runtime.list_pod_sandbox: ListPodSandboxRequest,
        runtime.list_containers: ListContainersRequest,
        runtime.version: VersionRequest,
        runtime.status: StatusRequest,
        runtime.runtime_config: RuntimeConfigRequest,
        runtime.update_runtime_config: UpdateRuntimeConfigRequest,
        images.list_images: ListImagesRequest,
        images.image_fs_info: ImageFsInfoRequest,
    ];
    for (method, answer) in idempotent {
        answer.map_err(|status| format!("{method}: {status}"))?;
    }
    // With an outer message, and nothing in it.
    let request = v1::RunPodSandboxRequest { config: Some(Default::default()), ..Default::default() };
    crate::refused(cri.call(cri.runtime().run_pod_sandbox(request)), &["metadata"])?;
    let config = cri.host_network_pod("empty");
    let pod = cri.run_pod_as(&config, "real")?;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod,
        config: Some(Default::default()),
        sandbox_config: None,
    };
    crate::refused(cri.call(cri.runtime().create_container(request)), &["metadata"])?;
    no_panic(node)
}

fn metadata(node: &Node) -> Result {
    for field in ["name", "namespace", "uid"] {
        let mut config = node.cri.host_network_pod("metadata");
        let metadata = config.metadata.get_or_insert_default();
        match field {
            "name" => metadata.name.clear(),
            "namespace" => metadata.namespace.clear(),
            _ => metadata.uid.clear(),
        }
        let status = refused(node.cri.run_pod(&config), &[&format!("metadata.{field}")])?;
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    assert!(node.cri.list_pods()?.is_empty());
    Ok(())
}

fn path_ids(node: &Node) -> Result {
    let cri = &node.cri;
    let config = cri.pod("p");
    let outside = node.daemon.dir().join("outside");
    std::fs::create_dir_all(&outside)?;
    let near = format!("../../{}", outside.file_name().unwrap_or_default().to_string_lossy());
    for id in [
        "../../../etc",
        "/etc/passwd",
        ".",
        "..",
        "a/b",
        "\u{0}",
        "%2e%2e",
        near.as_str(),
        &"f".repeat(1 << 20),
    ] {
        for status in [
            cri.status(id).map(drop),
            cri.pod_status(id).map(drop),
            cri.start(id),
            cri.exec(id, &["true"], 1).map(drop),
            cri.create(id, &cri.container("c", &node.image, &["true"]), &config).map(drop),
        ] {
            let status = status.err().ok_or("a path was an ID")?;
            assert_eq!(status.code(), Code::NotFound, "{id:.40}: {status}");
        }
        cri.stop(id, 0)?;
        cri.remove(id)?;
        cri.stop_pod(id)?;
        cri.remove_pod(id)?;
        // Names of images are something else; a path is none either.
        drop(cri.image(id));
        drop(cri.remove_image(id));
    }
    assert!(outside.exists() && std::path::Path::new("/etc/passwd").exists());
    no_panic(node)
}

/// The preface of HTTP/2 (RFC 9113, 3.4) and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

fn garbage(node: &Node) -> Result {
    let mut long_head = b"GET /".to_vec();
    long_head.extend(std::iter::repeat_n(b'x', 1 << 20));
    let pieces: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\0\0\0\0".to_vec(),
        vec![0xff; 100_000],
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        long_head,
        PREFACE[..10].to_vec(),
        PREFACE.to_vec(),
        [PREFACE, &[0xff; 64]].concat(),
        // HEADERS that are no HPACK.
        [PREFACE, b"\x00\x00\x08\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff"].concat(),
        // A DATA frame for a stream that nobody opened, and a frame that claims 16 MB.
        [PREFACE, b"\x00\x00\x04\x00\x01\x00\x00\x00\x07abcd"].concat(),
        [PREFACE, b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"].concat(),
    ];
    for piece in pieces {
        let mut stream = UnixStream::connect(node.daemon.socket())?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        // The daemon may hang up in the middle.
        drop(stream.write_all(&piece));
        drop(stream.shutdown(std::net::Shutdown::Write));
        drop(stream.read(&mut [0; 1024]));
        node.cri.version()?;
    }
    no_panic(node)
}

fn channel(node: &Node) -> Channel {
    let path = node.daemon.socket();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

fn malformed(node: &Node) -> Result {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let mut grpc = tonic::client::Grpc::new(channel(node));
        for method in
            ["Version", "RunPodSandbox", "CreateContainer", "ListContainers", "ExecSync", "NoSuchMethod"]
        {
            grpc.ready().await?;
            let path = format!("/runtime.v1.RuntimeService/{method}").parse()?;
            // Where a text or a message is expected there is a number.
            let request = tonic::Request::new(v1::Int64Value { value: -1 });
            let codec = ProstCodec::<v1::Int64Value, v1::VersionResponse>::default();
            let status = grpc
                .unary(request, path, codec)
                .await
                .err()
                .ok_or_else(|| format!("{method} took a number"))?;
            let expected: &[Code] = match method {
                "NoSuchMethod" => &[Code::Unimplemented],
                _ => &[Code::Internal, Code::InvalidArgument],
            };
            assert!(expected.contains(&status.code()), "{method}: {status}");
        }
        Ok::<(), testkit::Error>(())
    })?;
    no_panic(node)
}

fn silent(node: &Node) -> Result {
    let connections = (0..60)
        .map(|_| {
            let mut stream = UnixStream::connect(node.daemon.socket())?;
            stream.write_all(PREFACE)?;
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    let begun = std::time::Instant::now();
    node.daemon.cri()?.version()?;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(connections);
    no_panic(node)
}

fn extremes(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("extremes");
    config.hostname = "h".repeat(65);
    refused(node.cri.run_pod(&config), &["hostname"])?;
    let mut config = node.cri.pod("extremes");
    config.linux.get_or_insert_default().cgroup_parent = "../../escape".to_owned();
    refused(node.cri.run_pod(&config), &["cgroup_parent"])?;
    let mut config = node.cri.pod("extremes");
    let port = v1::PortMapping { container_port: 70_000, host_port: 70_000, ..Default::default() };
    config.port_mappings = vec![port];
    refused(node.cri.run_pod(&config), &["port"])?;
    let mut config = node.cri.pod("extremes");
    let servers = vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()];
    config.dns_config = Some(v1::DnsConfig { servers, ..Default::default() });
    refused(node.cri.run_pod(&config), &["dns_config.servers"])?;

    let config = node.cri.host_network_pod("extremes");
    let pod = node.cri.run_pod_as(&config, "real")?;
    let check = |part: &str, change: &dyn Fn(&mut v1::ContainerConfig)| -> Result {
        let mut container = node.cri.container("c", &node.image, &["true"]);
        change(&mut container);
        refused(node.cri.create(&pod, &container, &config), &[part])?;
        Ok(())
    };
    let resources = |container: &mut v1::ContainerConfig,
                     change: &dyn Fn(&mut v1::LinuxContainerResources)| {
        change(container.linux.get_or_insert_default().resources.get_or_insert_default());
    };
    check("oom_score_adj", &|container| resources(container, &|r| r.oom_score_adj = 5000))?;
    check("memory", &|container| resources(container, &|r| r.memory_limit_in_bytes = -7))?;
    check("cpuset_cpus", &|container| resources(container, &|r| r.cpuset_cpus = "zero".to_owned()))?;
    check("envs", &|container| {
        container.envs = vec![v1::KeyValue { key: "A=B\0".to_owned(), value: b"x".to_vec() }];
    })?;
    check("working_dir", &|container| container.working_dir = "relative".to_owned())?;
    check("image", &|container| container.image = None)?;
    check("no/such", &|container| {
        container.image.get_or_insert_default().image = "localhost/no/such:1".to_owned()
    })?;
    assert!(node.cri.list(None)?.is_empty());
    no_panic(node)?;
    still_works(node)
}

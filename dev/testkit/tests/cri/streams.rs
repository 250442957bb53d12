//! Lists as streams: the same answers as the lists, in parts.

use std::collections::HashSet;
use std::fmt::Debug;

use criox_cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatsFilter, ImageFilter, ImageSpec,
    PodSandboxFilter, PodSandboxStatsFilter, StreamContainerStatsRequest, StreamContainersRequest,
    StreamImagesRequest, StreamPodSandboxMetricsRequest, StreamPodSandboxStatsRequest,
    StreamPodSandboxesRequest,
};
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::{Response, Status, Streaming};

use crate::NODE;
use crate::pod::Pod;

pub(crate) const TESTS: &[Test] = &[
    ("a long list of containers comes in several messages, each container once", || NODE.test(containers)),
    ("streams of pods, statistics, metrics and images hold what the lists hold", || NODE.test(others)),
    ("an empty list has no message", || NODE.test(empty)),
    ("a client that goes in the middle of a list leaves nothing behind", || NODE.test(abandoned)),
];

/// All messages of a stream.
fn messages<M>(
    node: &Node,
    call: impl Future<Output = std::result::Result<Response<Streaming<M>>, Status>>,
) -> Result<Vec<M>> {
    let all = async {
        let mut stream = call.await?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await? {
            messages.push(message);
        }
        Ok(Response::new(messages))
    };
    Ok(node.cri.call(all)?)
}

/// The IDs in the parts, none of which is empty, and none of them twice.
#[track_caller]
fn once<T: Debug>(parts: &[Vec<T>], id: impl Fn(&T) -> String) -> HashSet<String> {
    let mut seen = HashSet::new();
    for part in parts {
        assert!(!part.is_empty(), "a message has at least one item");
        for item in part {
            assert!(seen.insert(id(item)), "{item:?} came twice");
        }
    }
    seen
}

fn streamed(node: &Node, filter: Option<ContainerFilter>) -> Result<Vec<Vec<String>>> {
    let request = StreamContainersRequest { filter };
    let parts = messages(node, node.cri.runtime().stream_containers(request))?;
    let ids = |part: Vec<criox_cri::v1::Container>| part.into_iter().map(|container| container.id).collect();
    Ok(parts.into_iter().map(|part| ids(part.containers)).collect())
}

fn containers(node: &Node) -> Result {
    let pod = Pod::without_network(node, "stream")?;
    for number in 0..35 {
        pod.create(&pod.shell(&format!("c{number}"), "true"))?;
    }
    let running = pod.service("running")?;
    let parts = streamed(node, None)?;
    assert!(parts.len() > 1, "36 containers are too many for one message");
    let listed: HashSet<String> = node.cri.list(None)?.into_iter().map(|container| container.id).collect();
    assert_eq!(once(&parts, String::clone), listed);
    let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
    let filter = ContainerFilter { state: Some(state), ..ContainerFilter::default() };
    assert_eq!(streamed(node, Some(filter))?, [[running]]);
    Ok(())
}

fn others(node: &Node) -> Result {
    let pods = [Pod::run(node, "stream-1")?, Pod::without_network(node, "stream-2")?];
    let mut running = HashSet::new();
    for pod in &pods {
        running.insert(pod.service("c")?);
    }
    let ready: HashSet<String> = pods.iter().map(|pod| pod.id.clone()).collect();
    let runtime = || node.cri.runtime();

    let parts = messages(node, runtime().stream_pod_sandboxes(StreamPodSandboxesRequest { filter: None }))?;
    let parts: Vec<_> = parts.into_iter().map(|part| part.pod_sandboxes).collect();
    assert_eq!(once(&parts, |pod| pod.id.clone()), ready);

    let request = StreamContainerStatsRequest { filter: None };
    let parts = messages(node, runtime().stream_container_stats(request))?;
    let parts: Vec<_> = parts.into_iter().map(|part| part.container_stats).collect();
    assert_eq!(once(&parts, |stats| stats.attributes.clone().unwrap_or_default().id), running);
    assert!(parts.iter().flatten().all(|stats| stats.cpu.is_some() && stats.memory.is_some()));

    let request = StreamPodSandboxStatsRequest { filter: None };
    let parts = messages(node, runtime().stream_pod_sandbox_stats(request))?;
    let parts: Vec<_> = parts.into_iter().map(|part| part.pod_sandbox_stats).collect();
    assert_eq!(once(&parts, |stats| stats.attributes.clone().unwrap_or_default().id), ready);

    let request = StreamPodSandboxMetricsRequest {};
    let parts = messages(node, runtime().stream_pod_sandbox_metrics(request))?;
    let parts: Vec<_> = parts.into_iter().map(|part| part.pod_sandbox_metrics).collect();
    assert_eq!(once(&parts, |metrics| metrics.pod_sandbox_id.clone()), ready);

    let parts = messages(node, node.cri.images().stream_images(StreamImagesRequest { filter: None }))?;
    let parts: Vec<_> = parts.into_iter().map(|part| part.images).collect();
    let listed: HashSet<String> = node.cri.list_images()?.into_iter().map(|image| image.id).collect();
    assert_eq!(once(&parts, |image| image.id.clone()), listed);
    let image = ImageSpec { image: node.image.clone(), ..ImageSpec::default() };
    let request = StreamImagesRequest { filter: Some(ImageFilter { image: Some(image) }) };
    let parts = messages(node, node.cri.images().stream_images(request))?;
    assert_eq!(parts.iter().map(|part| part.images.len()).sum::<usize>(), 1);
    Ok(())
}

fn empty(node: &Node) -> Result {
    let _pod = Pod::without_network(node, "stream-none")?;
    let id = "ff".repeat(32);
    let runtime = || node.cri.runtime();
    assert!(
        streamed(node, Some(ContainerFilter { id: id.clone(), ..ContainerFilter::default() }))?.is_empty()
    );
    let filter = Some(PodSandboxFilter { id: id.clone(), ..PodSandboxFilter::default() });
    let request = StreamPodSandboxesRequest { filter };
    assert!(messages(node, runtime().stream_pod_sandboxes(request))?.is_empty());
    let filter = Some(ContainerStatsFilter { id: id.clone(), ..ContainerStatsFilter::default() });
    let request = StreamContainerStatsRequest { filter };
    assert!(messages(node, runtime().stream_container_stats(request))?.is_empty());
    let filter = Some(PodSandboxStatsFilter { id, ..PodSandboxStatsFilter::default() });
    let request = StreamPodSandboxStatsRequest { filter };
    assert!(messages(node, runtime().stream_pod_sandbox_stats(request))?.is_empty());
    let image = ImageSpec { image: "localhost/absent:1".to_owned(), ..ImageSpec::default() };
    let request = StreamImagesRequest { filter: Some(ImageFilter { image: Some(image) }) };
    assert!(messages(node, node.cri.images().stream_images(request))?.is_empty());
    Ok(())
}

fn abandoned(node: &Node) -> Result {
    let pod = Pod::without_network(node, "stream-left")?;
    pod.service("c")?;
    for _ in 0..20 {
        let request = StreamContainersRequest { filter: None };
        let stream = node.cri.call(node.cri.runtime().stream_containers(request))?;
        drop(stream);
    }
    assert_eq!(streamed(node, None)?.len(), 1);
    Ok(())
}

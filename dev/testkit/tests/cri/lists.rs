//! Filters, labels, annotations.

use std::collections::BTreeMap;

use criox_cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};
use testkit::harness::Test;
use testkit::{Node, Result};

use crate::NODE;
use crate::pod::Pod;

pub(crate) const TESTS: &[Test] = &[
    ("containers are listed by ID, state, pod and labels, all of which must fit", || NODE.test(containers)),
    ("pods are listed by ID, state and labels, all of which must fit", || NODE.test(pods)),
    ("labels and annotations come back as they were given", || NODE.test(round_trip)),
];

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn containers(node: &Node) -> Result {
    let (one, two) = (Pod::without_network(node, "list-1")?, Pod::without_network(node, "list-2")?);
    let mut config = one.shell("a", crate::pod::SERVICE);
    config.labels = labels(&[("app", "web"), ("tier", "front")]);
    let a = one.start(&config)?;
    config = one.shell("b", "true");
    config.labels = labels(&[("app", "web")]);
    let b = one.create(&config)?;
    let c = two.create(&two.shell("c", "true"))?;

    let list = |filter: ContainerFilter| -> Result<Vec<String>> {
        let request = ListContainersRequest { filter: Some(filter) };
        let listed = node.cri.call(node.cri.runtime().list_containers(request))?.containers;
        let mut ids: Vec<String> = listed.into_iter().map(|container: Container| container.id).collect();
        ids.sort();
        Ok(ids)
    };
    let sorted = |ids: &[&String]| -> Vec<String> {
        let mut ids: Vec<String> = ids.iter().map(|&id| id.clone()).collect();
        ids.sort();
        ids
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let all = ContainerFilter::default();
    assert_eq!(list(all.clone())?, sorted(&[&a, &b, &c]));
    assert_eq!(list(ContainerFilter { id: a.clone(), ..all.clone() })?, sorted(&[&a]));
    assert_eq!(list(ContainerFilter { id: a[..16].to_owned(), ..all.clone() })?, sorted(&[&a]));
    assert!(list(ContainerFilter { id: "ffff".repeat(16), ..all.clone() })?.is_empty());
    assert!(list(ContainerFilter { id: "no-id".to_owned(), ..all.clone() })?.is_empty());
    assert_eq!(list(ContainerFilter { pod_sandbox_id: one.id.clone(), ..all.clone() })?, sorted(&[&a, &b]));
    assert_eq!(
        list(ContainerFilter { state: state(ContainerState::ContainerRunning), ..all.clone() })?,
        sorted(&[&a])
    );
    assert_eq!(
        list(ContainerFilter { state: state(ContainerState::ContainerCreated), ..all.clone() })?,
        sorted(&[&b, &c])
    );
    assert!(
        list(ContainerFilter { state: state(ContainerState::ContainerExited), ..all.clone() })?.is_empty()
    );
    assert_eq!(
        list(ContainerFilter { label_selector: labels(&[("app", "web")]), ..all.clone() })?,
        sorted(&[&a, &b])
    );
    let both = labels(&[("app", "web"), ("tier", "front")]);
    assert_eq!(list(ContainerFilter { label_selector: both.clone(), ..all.clone() })?, sorted(&[&a]));
    assert!(list(ContainerFilter { label_selector: labels(&[("app", "we")]), ..all.clone() })?.is_empty());
    let contradiction =
        ContainerFilter { label_selector: both, state: state(ContainerState::ContainerCreated), ..all };
    assert!(list(contradiction)?.is_empty());
    Ok(())
}

fn pods(node: &Node) -> Result {
    let (one, two) = (Pod::without_network(node, "pods-1")?, Pod::without_network(node, "pods-2")?);
    node.cri.stop_pod(&two.id)?;
    let list = |filter: PodSandboxFilter| -> Result<Vec<String>> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let listed = node.cri.call(node.cri.runtime().list_pod_sandbox(request))?.items;
        Ok(listed.into_iter().map(|pod: PodSandbox| pod.id).collect())
    };
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let all = PodSandboxFilter::default();
    assert_eq!(list(all.clone())?.len(), 2);
    assert_eq!(
        list(PodSandboxFilter { id: one.id[..10].to_owned(), ..all.clone() })?,
        std::slice::from_ref(&one.id)
    );
    assert_eq!(
        list(PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..all.clone() })?,
        std::slice::from_ref(&one.id)
    );
    assert_eq!(
        list(PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..all.clone() })?,
        std::slice::from_ref(&two.id)
    );
    let selector = labels(&[("app", "pods-2")]);
    assert_eq!(
        list(PodSandboxFilter { label_selector: selector.clone(), ..all.clone() })?,
        std::slice::from_ref(&two.id)
    );
    let contradiction =
        PodSandboxFilter { label_selector: selector, state: state(PodSandboxState::SandboxReady), ..all };
    assert!(list(contradiction)?.is_empty());
    Ok(())
}

fn round_trip(node: &Node) -> Result {
    let given = labels(&[
        ("io.kubernetes.pod.uid", "2f1c-…"),
        ("empty", ""),
        ("with spaces and \"quotes\"", "line\nbreak\tand \\ backslash"),
        ("日本", "語 🦀"),
    ]);
    let long = "x".repeat(200_000);
    let mut annotations = given.clone();
    annotations.insert("long".to_owned(), long);
    let mut config = node.cri.host_network_pod("round-trip");
    config.labels = given.clone();
    config.annotations = annotations.clone();
    let pod = Pod::run_with(node, config)?;
    let status = node.cri.pod_status(&pod.id)?;
    assert!(status.labels == given && status.annotations == annotations);
    assert_eq!(status.metadata, pod.config.metadata);
    assert!(status.created_at > 0);
    let entry = node.cri.list_pods()?.pop().ok_or("the pod is listed")?;
    assert!(entry.labels == given && entry.annotations == annotations);
    assert_eq!(entry.metadata, pod.config.metadata);

    let mut config = pod.shell("c", "true");
    config.labels = given.clone();
    config.annotations = annotations.clone();
    let id = pod.create(&config)?;
    let status = node.cri.status(&id)?;
    assert!(status.labels == given && status.annotations == annotations);
    assert_eq!(status.metadata, config.metadata);
    let entry = node.cri.list(None)?.pop().ok_or("the container is listed")?;
    assert!(entry.labels == given && entry.annotations == annotations);
    assert_eq!((entry.metadata, entry.pod_sandbox_id), (config.metadata, pod.id.clone()));
    assert_eq!(entry.image.map(|image| image.image), config.image.map(|image| image.image));
    Ok(())
}

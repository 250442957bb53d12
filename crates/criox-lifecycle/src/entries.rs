//! Entries of lists in the form that goes over the wire, made once for each state of a pod. A kubelet lists everything
//! each second, and nearly nothing has changed since.

use std::sync::{Arc, OnceLock};

use criox_answers::status;
use criox_cri::v1;
use prost::Message as _;
use prost::bytes::Bytes;

use crate::index::{Index, PodView};

/// The entries of one pod, from the first list that shows them until the pod is published anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entries {
    sandbox: OnceLock<Bytes>,
    /// In the order of the pod's containers; those that no list shows are empty.
    containers: OnceLock<Box<[Bytes]>>,
}

impl Index {
    /// What ListPodSandbox answers: each item is a `ListPodSandboxResponse` with one entry, and all of them one after the
    /// other are the whole message (an encoded message goes on with the bytes of another of its type).
    pub fn encoded_pods(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<Bytes> {
        self.listed_pods(filter).iter().map(|view| sandbox(view)).collect()
    }

    /// The same for ListContainers.
    pub fn encoded_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<Bytes> {
        let pods = self.pods();
        let mut all = Vec::with_capacity(pods.len());
        for view in &pods {
            let passes = |record: &Arc<_>| status::container_passes(record, filter);
            let entries = view.containers.values().zip(containers(view));
            all.extend(
                entries
                    .filter(|(record, _)| record.claimed && passes(record))
                    .map(|(_, bytes)| bytes.clone()),
            );
        }
        all
    }
}

fn sandbox(view: &PodView) -> Bytes {
    let encode = || {
        let items = vec![status::sandbox_entry(&view.sandbox)];
        v1::ListPodSandboxResponse { items }.encode_to_vec().into()
    };
    view.entries.sandbox.get_or_init(encode).clone()
}

fn containers(view: &PodView) -> &[Bytes] {
    view.entries.containers.get_or_init(|| {
        let encode = |record| {
            let containers = vec![status::container_entry(record)];
            v1::ListContainersResponse { containers }.encode_to_vec().into()
        };
        view.containers
            .values()
            .map(|record| if record.claimed { encode(record) } else { Bytes::new() })
            .collect()
    })
}

//! A connection to one daemon, and its calls with deadlines and names.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use criox_cri::v1::image_service_client::ImageServiceClient;
use criox_cri::v1::runtime_service_client::RuntimeServiceClient;
use criox_cri::v1::{
    ContainerConfig, ContainerState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ImageSpec, ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest, PodSandbox, PodSandboxConfig, PodSandboxFilter, PullImageRequest,
    RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::Failure;

/// No call may take longer; a pull of the big image takes the longest.
const DEADLINE: Duration = Duration::from_secs(180);

/// Seconds between the stop signal and the kill; the workload ends at the signal.
const GRACE: i64 = 10;

/// A daemon that is driven. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What a call answered, and how long that took.
type Timed<T = ()> = Result<(T, Duration), Failure>;

/// Waits for a call with the deadline, on the heap: tonic's futures are large.
fn timed<'a, T>(
    name: &'a str,
    call: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
) -> Pin<Box<dyn Future<Output = Timed<T>> + Send + 'a>> {
    Box::pin(async move {
        let start = Instant::now();
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(Ok(answer)) => Ok((answer.into_inner(), start.elapsed())),
            Ok(Err(status)) => Err(format!("{name}: {:?}: {}", status.code(), status.message()).into()),
            Err(_) => Err(format!("{name}: no answer in {} s", DEADLINE.as_secs()).into()),
        }
    })
}

async fn channel(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    // The address is of no meaning on a UNIX socket, but HTTP/2 wants one.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(5));
    let connect = move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    endpoint.connect_with_connector(tower::service_fn(connect)).await
}

impl Daemon {
    /// Connects to a socket.
    pub(crate) async fn connect(path: &Path) -> Result<Self, Failure> {
        let channel = channel(path.to_owned())
            .await
            .map_err(|error| format!("connecting to {}: {}", path.display(), chain(&error)))?;
        // What the kubelet takes.
        let limit = 16 << 20;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit),
        })
    }

    /// Whether the daemon says that it is ready, and how many containers it knows to be running.
    pub(crate) async fn ready(&mut self) -> Result<(bool, usize), Failure> {
        let (status, _) = timed("Status", self.runtime.status(StatusRequest::default())).await?;
        let conditions = status.status.unwrap_or_default().conditions;
        let ready = conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status);
        let (list, _) =
            timed("ListContainers", self.runtime.list_containers(ListContainersRequest::default())).await?;
        let running = list.containers.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
        Ok((ready, running.count()))
    }

    pub(crate) async fn run_sandbox(&mut self, config: &PodSandboxConfig) -> Timed<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let (answer, took) = timed("RunPodSandbox", self.runtime.run_pod_sandbox(request)).await?;
        Ok((answer.pod_sandbox_id, took))
    }

    pub(crate) async fn create(
        &mut self,
        pod: &str,
        config: ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Timed<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let (answer, took) = timed("CreateContainer", self.runtime.create_container(request)).await?;
        Ok((answer.container_id, took))
    }

    pub(crate) async fn start(&mut self, container: &str) -> Timed {
        let request = StartContainerRequest { container_id: container.to_owned() };
        let (_, took) = timed("StartContainer", self.runtime.start_container(request)).await?;
        Ok(((), took))
    }

    /// Runs a command that must end with code 0.
    pub(crate) async fn exec(&mut self, container: &str, command: &[&str]) -> Timed {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        let (answer, took) = timed("ExecSync", self.runtime.exec_sync(request)).await?;
        if answer.exit_code != 0 {
            let text = String::from_utf8_lossy(&answer.stderr).into_owned();
            return Err(format!("ExecSync {command:?} ended with {}: {text}", answer.exit_code).into());
        }
        Ok(((), took))
    }

    pub(crate) async fn status(&mut self, container: &str) -> Result<ContainerStatus, Failure> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let (answer, _) = timed("ContainerStatus", self.runtime.container_status(request)).await?;
        answer.status.ok_or_else(|| format!("ContainerStatus of {container} has no status").into())
    }

    pub(crate) async fn stop(&mut self, container: &str) -> Timed {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: GRACE };
        let (_, took) = timed("StopContainer", self.runtime.stop_container(request)).await?;
        Ok(((), took))
    }

    pub(crate) async fn remove(&mut self, container: &str) -> Timed {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        let (_, took) = timed("RemoveContainer", self.runtime.remove_container(request)).await?;
        Ok(((), took))
    }

    pub(crate) async fn stop_sandbox(&mut self, pod: &str) -> Timed {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        let (_, took) = timed("StopPodSandbox", self.runtime.stop_pod_sandbox(request)).await?;
        Ok(((), took))
    }

    pub(crate) async fn remove_sandbox(&mut self, pod: &str) -> Timed {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        let (_, took) = timed("RemovePodSandbox", self.runtime.remove_pod_sandbox(request)).await?;
        Ok(((), took))
    }

    /// How many containers there are.
    pub(crate) async fn list_containers(&mut self) -> Timed<usize> {
        let call = self.runtime.list_containers(ListContainersRequest::default());
        timed("ListContainers", call).await.map(|(answer, took)| (answer.containers.len(), took))
    }

    /// How many sandboxes there are.
    pub(crate) async fn list_sandboxes(&mut self) -> Timed<usize> {
        let call = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default());
        timed("ListPodSandbox", call).await.map(|(answer, took)| (answer.items.len(), took))
    }

    /// How many containers have figures.
    pub(crate) async fn list_container_stats(&mut self) -> Timed<usize> {
        let call = self.runtime.list_container_stats(ListContainerStatsRequest::default());
        timed("ListContainerStats", call).await.map(|(answer, took)| (answer.stats.len(), took))
    }

    /// How many sandboxes have figures.
    pub(crate) async fn list_sandbox_stats(&mut self) -> Timed<usize> {
        let call = self.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default());
        timed("ListPodSandboxStats", call).await.map(|(answer, took)| (answer.stats.len(), took))
    }

    /// The sandboxes with this label.
    pub(crate) async fn sandboxes(&mut self, key: &str, value: &str) -> Result<Vec<PodSandbox>, Failure> {
        let label_selector = [(key.to_owned(), value.to_owned())].into();
        let filter = PodSandboxFilter { label_selector, ..PodSandboxFilter::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        Ok(timed("ListPodSandbox", self.runtime.list_pod_sandbox(request)).await?.0.items)
    }

    pub(crate) async fn pull(&mut self, image: &str) -> Timed {
        let request = PullImageRequest { image: Some(named(image)), ..PullImageRequest::default() };
        let (_, took) = timed("PullImage", self.images.pull_image(request)).await?;
        Ok(((), took))
    }

    pub(crate) async fn remove_image(&mut self, image: &str) -> Timed {
        let request = RemoveImageRequest { image: Some(named(image)) };
        let (_, took) = timed("RemoveImage", self.images.remove_image(request)).await?;
        Ok(((), took))
    }
}

fn named(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}

/// An error with its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

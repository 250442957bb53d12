//! A blocking CRI client: what a kubelet would ask, in one line each.
//!
//! The generated clients are open ([`Cri::runtime`], [`Cri::images`] with [`Cri::call`]) for everything that has no line here.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use criox_cri::v1::image_service_client::ImageServiceClient;
use criox_cri::v1::runtime_service_client::RuntimeServiceClient;
use criox_cri::v1::{
    AuthConfig, Container, ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState,
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse,
    Image, ImageSpec, ImageStatusRequest, LinuxContainerConfig, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListContainersRequest, ListImagesRequest, ListPodSandboxRequest,
    NamespaceMode, NamespaceOption, PodSandbox, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, VersionRequest, VersionResponse,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::{Result, wait_for};

/// No call of a test takes longer; the kubelet's own patience is two minutes.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// As CRI-O's: image lists and exec output can be long.
const MESSAGE_LIMIT: usize = 80 << 20;

/// A connection to a CRI socket.
#[derive(Debug)]
pub struct Cri {
    tokio: Runtime,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    ids: Arc<Mutex<Vec<String>>>,
    place: Place,
}

/// Where the pods that [`Cri::pod`] describes put their things.
#[derive(Debug, Clone)]
pub struct Place {
    /// Cgroup parent of every pod.
    pub cgroup_parent: String,
    /// Directory that gets one log directory for each pod.
    pub logs: PathBuf,
}

impl Cri {
    /// Connects, waiting up to `limit` for somebody to listen.
    pub fn connect(socket: &Path, place: Place, limit: Duration) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        wait_for(&format!("{} to accept connections", socket.display()), limit, || {
            Ok(std::os::unix::net::UnixStream::connect(socket).ok())
        })?;
        let path = socket.to_owned();
        // The address is never looked at: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://localhost");
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = {
            let _inside = tokio.enter();
            endpoint.connect_with_connector_lazy(connector)
        };
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
            tokio,
            ids: Arc::default(),
            place,
        })
    }

    /// Every ID of a sandbox or a container that was made through this client, for a leak check.
    pub fn ids(&self) -> Vec<String> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A generated client, for calls that have no method here.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// A generated client, for calls that have no method here.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// Waits for one call. Its status is the caller's to judge; a call without end is `DEADLINE_EXCEEDED` here.
    pub fn call<T>(
        &self,
        call: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> std::result::Result<T, Status> {
        self.tokio.block_on(async {
            tokio::time::timeout(CALL_LIMIT, call)
                .await
                .unwrap_or_else(|_| {
                    Err(Status::deadline_exceeded(format!("the test waited {} s", CALL_LIMIT.as_secs())))
                })
                .map(Response::into_inner)
        })
    }

    /// `Version`.
    pub fn version(&self) -> std::result::Result<VersionResponse, Status> {
        self.call(self.runtime().version(VersionRequest { version: "v1".to_owned() }))
    }

    /// `PullImage` without credentials; the image's ID.
    pub fn pull(&self, reference: &str) -> std::result::Result<String, Status> {
        self.pull_as(reference, None)
    }

    /// `PullImage` with a user and a password.
    pub fn pull_as(
        &self,
        reference: &str,
        account: Option<(&str, &str)>,
    ) -> std::result::Result<String, Status> {
        let auth = account.map(|(user, password)| AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        });
        let request = PullImageRequest { image: Some(image(reference)), auth, sandbox_config: None };
        self.call(self.images().pull_image(request)).map(|response| response.image_ref)
    }

    /// `ImageStatus`; `None` for an image that isn't there.
    pub fn image(&self, reference: &str) -> std::result::Result<Option<Image>, Status> {
        let request = ImageStatusRequest { image: Some(image(reference)), verbose: false };
        self.call(self.images().image_status(request)).map(|response| response.image)
    }

    /// `ListImages` without a filter.
    pub fn list_images(&self) -> std::result::Result<Vec<Image>, Status> {
        self.call(self.images().list_images(ListImagesRequest { filter: None }))
            .map(|response| response.images)
    }

    /// `RemoveImage`.
    pub fn remove_image(&self, reference: &str) -> std::result::Result<(), Status> {
        let request = RemoveImageRequest { image: Some(image(reference)) };
        self.call(self.images().remove_image(request)).map(drop)
    }

    /// What a kubelet would send for a small pod of this name, with a network of its own.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.place.logs.join(name).display().to_string(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.place.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container.into(),
                        ..NamespaceOption::default()
                    }),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// The same with the node's network.
    pub fn host_network_pod(&self, name: &str) -> PodSandboxConfig {
        let mut config = self.pod(name);
        config.hostname = String::new();
        if let Some(options) = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut())
            .and_then(|context| context.namespace_options.as_mut())
        {
            options.network = NamespaceMode::Node.into();
        }
        config
    }

    /// `RunPodSandbox` with the default handler; the sandbox's ID.
    pub fn run_pod(&self, config: &PodSandboxConfig) -> std::result::Result<String, Status> {
        self.run_pod_as(config, "")
    }

    /// `RunPodSandbox` with a named handler.
    pub fn run_pod_as(
        &self,
        config: &PodSandboxConfig,
        handler: &str,
    ) -> std::result::Result<String, Status> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = self.call(self.runtime().run_pod_sandbox(request))?.pod_sandbox_id;
        self.note(&id);
        Ok(id)
    }

    /// `PodSandboxStatus`.
    pub fn pod_status(&self, id: &str) -> std::result::Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.call(self.runtime().pod_sandbox_status(request))?
            .status
            .ok_or_else(|| Status::internal("the answer holds no status"))
    }

    /// `ListPodSandbox` without a filter.
    pub fn list_pods(&self) -> std::result::Result<Vec<PodSandbox>, Status> {
        self.call(self.runtime().list_pod_sandbox(ListPodSandboxRequest { filter: None }))
            .map(|response| response.items)
    }

    /// `StopPodSandbox`.
    pub fn stop_pod(&self, id: &str) -> std::result::Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(self.runtime().stop_pod_sandbox(request)).map(drop)
    }

    /// `RemovePodSandbox`.
    pub fn remove_pod(&self, id: &str) -> std::result::Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(self.runtime().remove_pod_sandbox(request)).map(drop)
    }

    /// What a kubelet would send for a container that runs `command`, with its log in `NAME/0.log`.
    pub fn container(&self, name: &str, reference: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image(reference)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        }
    }

    /// `CreateContainer`; the container's ID.
    pub fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> std::result::Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        // The kubelet makes the directories of logs.
        if let Some((dir, _)) = config.log_path.rsplit_once('/') {
            std::fs::create_dir_all(Path::new(&pod_config.log_directory).join(dir))
                .map_err(|error| Status::internal(format!("cannot make the log directory: {error}")))?;
        }
        let id = self.call(self.runtime().create_container(request))?.container_id;
        self.note(&id);
        Ok(id)
    }

    /// `StartContainer`.
    pub fn start(&self, id: &str) -> std::result::Result<(), Status> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.call(self.runtime().start_container(request)).map(drop)
    }

    /// A pod with one container of that name running in it; (sandbox, container).
    pub fn run(&self, name: &str, reference: &str, command: &[&str]) -> Result<(String, String)> {
        let config = self.pod(name);
        let pod = self.run_pod(&config)?;
        let container = self.create(&pod, &self.container(name, reference, command), &config)?;
        self.start(&container)?;
        Ok((pod, container))
    }

    /// `ExecSync`; `timeout` in seconds, 0 for none.
    pub fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> std::result::Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout,
        };
        self.call(self.runtime().exec_sync(request))
    }

    /// `StopContainer` with a grace period in seconds.
    pub fn stop(&self, id: &str, grace: i64) -> std::result::Result<(), Status> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.call(self.runtime().stop_container(request)).map(drop)
    }

    /// `RemoveContainer`.
    pub fn remove(&self, id: &str) -> std::result::Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.call(self.runtime().remove_container(request)).map(drop)
    }

    /// `ListContainers`, of one sandbox or of all.
    pub fn list(&self, pod: Option<&str>) -> std::result::Result<Vec<Container>, Status> {
        let filter =
            pod.map(|pod| ContainerFilter { pod_sandbox_id: pod.to_owned(), ..ContainerFilter::default() });
        self.call(self.runtime().list_containers(ListContainersRequest { filter }))
            .map(|response| response.containers)
    }

    /// `ContainerStatus`.
    pub fn status(&self, id: &str) -> std::result::Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.call(self.runtime().container_status(request))?
            .status
            .ok_or_else(|| Status::internal("the answer holds no status"))
    }

    /// Waits until a container is in that state.
    pub fn wait_state(&self, id: &str, state: ContainerState, limit: Duration) -> Result<ContainerStatus> {
        wait_for(&format!("container {id} to be {}", state.as_str_name()), limit, || {
            let status = self.status(id)?;
            Ok((status.state() == state).then_some(status))
        })
    }

    /// A container's log as it is on disk.
    pub fn log(&self, id: &str) -> Result<String> {
        let path = self.status(id)?.log_path;
        std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}").into())
    }

    /// Stops and removes every pod that the daemon lists, without grace for what runs in it.
    pub fn remove_all_pods(&self) -> Result {
        for container in self.list(None)? {
            self.stop(&container.id, 0)?;
        }
        for pod in self.list_pods()? {
            self.stop_pod(&pod.id)?;
            self.remove_pod(&pod.id)?;
        }
        Ok(())
    }

    fn note(&self, id: &str) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Shares the list of IDs with whoever checks for leftovers.
    pub(crate) fn noting_in(mut self, ids: Arc<Mutex<Vec<String>>>) -> Self {
        self.ids = ids;
        self
    }
}

fn image(reference: &str) -> ImageSpec {
    ImageSpec {
        image: reference.to_owned(),
        user_specified_image: reference.to_owned(),
        ..ImageSpec::default()
    }
}

//! RuntimeService: each method hands its request to whoever does the work.

use std::pin::Pin;

use criox_cri::v1;
use criox_cri::v1::runtime_service_server::RuntimeService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Services;
use crate::edge;

type Answer<T> = Result<Response<T>, Status>;

/// Answers of requests that are not there yet. In the form that `async_trait` makes of a method, which does not see
/// into this macro.
macro_rules! not_yet {
    ($($method:ident: $request:ident => $response:ty;)*) => {
        $(
            fn $method<'a, 'async_trait>(
                &'a self,
                _: Request<v1::$request>,
            ) -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'async_trait>>
            where
                'a: 'async_trait,
                Self: 'async_trait,
            {
                let name = concat!(stringify!($method), " is not there yet in this version of criox");
                Box::pin(std::future::ready(Err(Status::unimplemented(name))))
            }
        )*
    };
}

#[tonic::async_trait]
impl RuntimeService for Services {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(super::version::version()))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        Ok(Response::new(super::status::status(self, request.into_inner().verbose).await))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        Ok(Response::new(super::status::runtime_config(self)))
    }

    /// The pod CIDR: our networks get their ranges from the CNI configuration, as with CRI-O.
    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        super::run_pod_sandbox::run_pod_sandbox(self, request.into_inner()).await.map(Response::new)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.lifecycle.stop_pod_sandbox(&id).await.map_err(|error| edge::status(&error))?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.lifecycle.remove_pod_sandbox(&id).await.map_err(|error| edge::status(&error))?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        super::pod_sandbox_status::pod_sandbox_status(self, &request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        Ok(Response::new(v1::ListPodSandboxResponse {
            items: self.lifecycle.list_pod_sandboxes(filter.as_ref()),
        }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        super::create_container::create_container(self, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        self.lifecycle.start_container(&id).await.map_err(|error| edge::status(&error))?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        super::stop_container::stop_container(self, &request.into_inner()).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.lifecycle.remove_container(&id).await.map_err(|error| edge::status(&error))?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let filter = request.into_inner().filter;
        Ok(Response::new(v1::ListContainersResponse {
            containers: self.lifecycle.list_containers(filter.as_ref()),
        }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        super::container_status::container_status(self, &request.into_inner()).await.map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        self.lifecycle.reopen_container_log(&id).await.map_err(|error| edge::status(&error))?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        super::exec_sync::exec_sync(self, request.into_inner()).await.map(Response::new)
    }

    type GetContainerEventsStream = ReceiverStream<Result<v1::ContainerEventResponse, Status>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(super::events::events(self)))
    }

    type StreamPodSandboxesStream = tokio_stream::Empty<Result<v1::StreamPodSandboxesResponse, Status>>;
    type StreamContainersStream = tokio_stream::Empty<Result<v1::StreamContainersResponse, Status>>;
    type StreamContainerStatsStream = tokio_stream::Empty<Result<v1::StreamContainerStatsResponse, Status>>;
    type StreamPodSandboxStatsStream = tokio_stream::Empty<Result<v1::StreamPodSandboxStatsResponse, Status>>;
    type StreamPodSandboxMetricsStream =
        tokio_stream::Empty<Result<v1::StreamPodSandboxMetricsResponse, Status>>;

    not_yet! {
        stream_pod_sandboxes: StreamPodSandboxesRequest => Self::StreamPodSandboxesStream;
        stream_containers: StreamContainersRequest => Self::StreamContainersStream;
        stream_container_stats: StreamContainerStatsRequest => Self::StreamContainerStatsStream;
        stream_pod_sandbox_stats: StreamPodSandboxStatsRequest => Self::StreamPodSandboxStatsStream;
        stream_pod_sandbox_metrics: StreamPodSandboxMetricsRequest => Self::StreamPodSandboxMetricsStream;
        update_container_resources: UpdateContainerResourcesRequest => v1::UpdateContainerResourcesResponse;
        exec: ExecRequest => v1::ExecResponse;
        attach: AttachRequest => v1::AttachResponse;
        port_forward: PortForwardRequest => v1::PortForwardResponse;
        container_stats: ContainerStatsRequest => v1::ContainerStatsResponse;
        list_container_stats: ListContainerStatsRequest => v1::ListContainerStatsResponse;
        pod_sandbox_stats: PodSandboxStatsRequest => v1::PodSandboxStatsResponse;
        list_pod_sandbox_stats: ListPodSandboxStatsRequest => v1::ListPodSandboxStatsResponse;
        checkpoint_container: CheckpointContainerRequest => v1::CheckpointContainerResponse;
        checkpoint_pod: CheckpointPodRequest => v1::CheckpointPodResponse;
        restore_pod: RestorePodRequest => v1::RestorePodResponse;
        list_metric_descriptors: ListMetricDescriptorsRequest => v1::ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => v1::ListPodSandboxMetricsResponse;
        update_pod_sandbox_resources: UpdatePodSandboxResourcesRequest => v1::UpdatePodSandboxResourcesResponse;
    }
}

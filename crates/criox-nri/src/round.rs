//! One event, asked of the plugins in their order.
//!
//! Only the plugins that were there when the round was made are asked. One that is still being synchronized is waited
//! for; one that does not answer is closed at its limit, and the round goes on without it.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::adjust::Merge;
use crate::owners::Owners;
use crate::plugin::{Plugin, PluginError};
use crate::proto::{
    Container, ContainerAdjustment, CreateContainerRequest, CreateContainerResponse, Event,
    LinuxContainerUpdate, LinuxResources, PluginInstance, PodSandbox, PostCreateContainerRequest,
    PostStartContainerRequest, PostUpdateContainerRequest, PostUpdatePodSandboxRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopContainerResponse, StopPodSandboxRequest, UpdateContainerRequest,
    UpdateContainerResponse, UpdatePodSandboxRequest, UpdatePodSandboxResponse,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use crate::update::Updates;
use crate::validator::Validator;

type Result<T> = std::result::Result<T, PluginError>;

/// The plugins that are asked about one event.
#[derive(Debug)]
pub struct Round {
    plugins: Vec<Arc<Plugin>>,
    validator: Option<Arc<Validator>>,
}

/// What plugins want of a container that is being made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Created {
    /// Its adjustment.
    pub adjust: ContainerAdjustment,
    /// Changes of others.
    pub updates: Updates,
}

impl Round {
    pub(crate) fn new(plugins: Vec<Arc<Plugin>>, validator: Option<Arc<Validator>>) -> Self {
        Self { plugins, validator }
    }

    /// RunPodSandbox: before the sandbox is shown.
    ///
    /// # Errors
    /// A plugin objects: the sandbox must not come about.
    pub async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<()> {
        let request = RunPodSandboxRequest { pod: Some(pod.clone()) };
        for plugin in &self.plugins {
            plugin.tell(Event::RunPodSandbox, &request, &pod, None).await?;
        }
        Ok(())
    }

    /// UpdatePodSandbox: before new limits of the pod count.
    ///
    /// # Errors
    /// A plugin objects: the update must not happen.
    pub async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<()> {
        let request = UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        for plugin in &self.plugins {
            plugin.ask::<_, UpdatePodSandboxResponse>(Event::UpdatePodSandbox, &request).await?;
        }
        Ok(())
    }

    /// CreateContainer: before the container's configuration is written. Validators see the sum of all wishes.
    ///
    /// # Errors
    /// A plugin or validator objects, two plugins are in conflict, or one asks for what can't be.
    pub async fn create_container(&self, pod: PodSandbox, container: Container) -> Result<Created> {
        let original = container.clone();
        let mut merge = Merge::new(container);
        let mut request = CreateContainerRequest { pod: Some(pod), container: None };
        for plugin in &self.plugins {
            request.container = Some(merge.container.clone());
            let asked = plugin.ask::<_, CreateContainerResponse>(Event::CreateContainer, &request);
            let answer = Box::pin(asked).await?;
            if let Some(answer) = answer {
                merge.take(&plugin.name.to_string(), answer)?;
            }
        }
        Box::pin(self.validate(request.pod.unwrap_or_default(), original, &merge)).await?;
        Ok(Created { adjust: merge.adjust, updates: merge.updates })
    }

    async fn validate(&self, pod: PodSandbox, container: Container, merge: &Merge) -> Result<()> {
        let instance = |plugin: &Arc<Plugin>| PluginInstance {
            name: plugin.name.base().to_owned(),
            index: plugin.name.index().to_owned(),
        };
        let validators: Vec<_> =
            self.plugins.iter().filter(|plugin| plugin.wants(Event::ValidateContainerAdjustment)).collect();
        if validators.is_empty() && self.validator.is_none() {
            return Ok(());
        }
        // Who has been closed meanwhile has not seen the container.
        let present = self.plugins.iter().filter(|plugin| !plugin.connection.is_closed());
        let request = ValidateContainerAdjustmentRequest {
            pod: Some(pod),
            container: Some(container),
            adjust: Some(merge.adjust.clone()),
            update: merge.updates.updates.clone(),
            owners: Some(merge.owners.as_message().clone()),
            plugins: present.map(instance).collect(),
        };
        if let Some(validator) = &self.validator {
            validator.check(&request, &merge.owners)?;
        }
        let event = Event::ValidateContainerAdjustment;
        let asked = validators.into_iter().map(|plugin| {
            let request = &request;
            async move {
                let name = plugin.name.to_string();
                let answer = plugin.ask::<_, ValidateContainerAdjustmentResponse>(event, request).await?;
                match answer {
                    Some(answer) if answer.reject => {
                        let unsaid = "it gives no reason".to_owned();
                        let reason = if answer.reason.is_empty() { unsaid } else { answer.reason };
                        Err(PluginError::Rejected { validator: name, reason })
                    }
                    Some(_) => Ok(()),
                    // What was not validated is not let through.
                    None => {
                        Err(PluginError::Rejected { validator: name, reason: "it does not answer".into() })
                    }
                }
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// UpdateContainer: before new limits count. Returns the limits that count, and changes of others.
    ///
    /// # Errors
    /// As [`Round::create_container`].
    pub async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<(LinuxResources, Updates)> {
        let (mut updates, mut owners) = (Updates::default(), Owners::default());
        let id = container.id.clone();
        let mut request = UpdateContainerRequest {
            pod: Some(pod),
            container: Some(container),
            linux_resources: Some(resources.clone()),
        };
        // As if the request were the first wish, which nobody owns.
        updates.updates.push(crate::proto::ContainerUpdate {
            container_id: id.clone(),
            linux: Some(LinuxContainerUpdate { resources: Some(resources.clone()) }),
            ignore_failure: false,
        });
        for plugin in &self.plugins {
            let answer = plugin.ask::<_, UpdateContainerResponse>(Event::UpdateContainer, &request).await?;
            if let Some(answer) = answer {
                updates.take(&mut owners, &plugin.name.to_string(), &answer.update, &answer.evict)?;
                request.linux_resources = updates.clone().split_off(&id);
            }
        }
        Ok((updates.split_off(&id).unwrap_or(resources), updates))
    }

    /// StopContainer: after its end. Returns changes of others.
    ///
    /// # Errors
    /// As [`Round::create_container`]; those that objected have not kept the others from hearing of it.
    pub async fn stop_container(&self, pod: PodSandbox, container: Container) -> (Updates, Result<()>) {
        let (mut updates, mut owners, mut result) = (Updates::default(), Owners::default(), Ok(()));
        let request = StopContainerRequest { pod: Some(pod), container: Some(container) };
        for plugin in &self.plugins {
            let taken = match plugin.ask::<_, StopContainerResponse>(Event::StopContainer, &request).await {
                Ok(Some(answer)) => updates.take(&mut owners, &plugin.name.to_string(), &answer.update, &[]),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            result = result.and(taken);
        }
        (updates, result)
    }
}

/// Events that are only told. A plugin that objects keeps no other from hearing of it; the first objection is returned.
macro_rules! told {
    ($($(#[$doc:meta])* $name:ident($event:ident, $request:ident { $pod:ident $(, $container:ident)? });)+) => {
        impl Round {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The first objection; all plugins have been told.
                pub async fn $name(&self, $pod: PodSandbox $(, $container: Container)?) -> Result<()> {
                    let request = $request {
                        $pod: Some($pod.clone()),
                        $($container: Some($container.clone()),)?
                    };
                    let mut result = Ok(());
                    for plugin in &self.plugins {
                        let container = told!(@container $($container)?);
                        let told = plugin.tell(Event::$event, &request, &$pod, container).await;
                        result = result.and(told);
                    }
                    result
                }
            )+
        }
    };
    (@container $container:ident) => { Some(&$container) };
    (@container) => { None };
}

told! {
    /// PostUpdatePodSandbox: new limits of the pod count.
    post_update_pod_sandbox(PostUpdatePodSandbox, PostUpdatePodSandboxRequest { pod });
    /// StopPodSandbox: its containers have ended; what it has is still there.
    stop_pod_sandbox(StopPodSandbox, StopPodSandboxRequest { pod });
    /// RemovePodSandbox: nothing of it is left.
    remove_pod_sandbox(RemovePodSandbox, RemovePodSandboxRequest { pod });
    /// PostCreateContainer: its process waits for the start.
    post_create_container(PostCreateContainer, PostCreateContainerRequest { pod, container });
    /// StartContainer: before its process runs.
    start_container(StartContainer, StartContainerRequest { pod, container });
    /// PostStartContainer: its process runs.
    post_start_container(PostStartContainer, PostStartContainerRequest { pod, container });
    /// PostUpdateContainer: new limits count.
    post_update_container(PostUpdateContainer, PostUpdateContainerRequest { pod, container });
    /// RemoveContainer: nothing of it is left, or it did not come about.
    remove_container(RemoveContainer, RemoveContainerRequest { pod, container });
}

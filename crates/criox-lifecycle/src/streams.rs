//! What the streaming server asks of pods, and what Exec, Attach and PortForward check before they give out a URL.

use criox_cri::ids::{ContainerId, SandboxId};
use criox_streaming::{AttachRequest, Backend, ExecRequest, Failure, Process};
use futures_util::future::BoxFuture;
use std::os::fd::OwnedFd;

use crate::Lifecycle;
use crate::container::{attach, exec, stream};
use crate::error::{Error, Result};
use crate::sandbox::port_forward;

impl Lifecycle {
    /// Exec: whether the command could be started now; the container's whole ID.
    ///
    /// # Errors
    /// Unknown, or not running; no command.
    pub fn check_exec(&self, id: &str, command: &[String]) -> Result<ContainerId> {
        let (view, record) = self.context.index.container(id)?;
        exec::ready(&view, &record, command).map(|_| record.id)
    }

    /// Attach: whether a client could attach now; the container's whole ID.
    ///
    /// # Errors
    /// Unknown, or ended; `tty` is not what the container has.
    pub fn check_attach(&self, id: &str, tty: bool) -> Result<ContainerId> {
        let (view, record) = self.context.index.container(id)?;
        attach::ready(&view, &record)?;
        attach::check(&record, tty).map(|()| record.id)
    }

    /// PortForward: whether ports could be reached now; the sandbox's whole ID.
    ///
    /// # Errors
    /// Unknown, or not ready.
    pub fn check_port_forward(&self, id: &str) -> Result<SandboxId> {
        let view = self.context.index.pod(id)?;
        port_forward::ready(&view).map(|()| view.sandbox.id)
    }
}

fn failure(error: Error) -> Failure {
    Failure::new(error.chain())
}

impl Backend for Lifecycle {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, std::result::Result<Process, Failure>> {
        Box::pin(async move {
            let (view, record) = self.context.index.container(&request.container).map_err(failure)?;
            stream::exec(&self.context, &view, &record, &request).await.map_err(failure)
        })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, std::result::Result<Process, Failure>> {
        Box::pin(async move {
            let (view, record) = self.context.index.container(&request.container).map_err(failure)?;
            attach::ready(&view, &record).map_err(failure)?;
            attach::attach(&view, &record, &request).await.map_err(failure)
        })
    }

    fn port_forward(&self, sandbox: &str, port: u16) -> BoxFuture<'_, std::result::Result<OwnedFd, Failure>> {
        let view = self.context.index.pod(sandbox);
        Box::pin(async move {
            port_forward::connect(&self.context, &*view.map_err(failure)?, port).await.map_err(failure)
        })
    }
}

//! A pod's own user namespace, as far as the node, the handler and the store have a say in it.

use std::os::fd::OwnedFd;

use criox_confine::{Users, Ways};
use criox_cri::v1;
use criox_records::Namespace;

use crate::context::Context;
use crate::error::{Error, Kind, Result};

/// The field that asks for it.
pub(crate) const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";

/// Refuses a user namespace that the node or the handler can't give, before anything is made.
///
/// # Errors
/// Who can't, and what to do.
pub(crate) async fn possible(context: &Context, sandbox: &v1::PodSandboxConfig, handler: &str) -> Result<()> {
    if Users::of(sandbox).is_none() {
        return Ok(());
    }
    let refused = |reason: String| {
        Err(Error::new(Kind::FailedPrecondition, format!("{FIELD}: {reason}; or set hostUsers: true")))
    };
    if !context.node.idmapped_mounts {
        return refused(format!(
            "the kernel, or the file system of {}, can't give files other owners (idmapped mounts); it takes Linux 5.19 or newer and a file system such as ext4, XFS or btrfs",
            context.store.graph_root().display()
        ));
    }
    let handler = context.handlers.get(handler)?;
    if !handler.features().await.idmapped_mounts {
        return refused(format!(
            "the program of runtime handler {:?} does not say that it makes idmapped mounts; use crun 1.9 or newer, or runc 1.2 or newer",
            handler.name
        ));
    }
    Ok(())
}

/// The pod's user namespace itself.
pub(crate) fn open(context: &Context, sandbox: &str) -> Result<OwnedFd> {
    let pin = context.paths.namespace(Namespace::User, sandbox);
    Ok(criox_confine::open_user_namespace(&pin)?)
}

/// Withdraws what belongs to no container of the store any more.
pub(crate) fn sweep(context: &Context) {
    let ways = Ways::new(context.paths.ways());
    for name in ways.containers() {
        let unknown = context.store.container(&name).is_err_and(|error| error.is_unknown());
        if unknown && let Err(error) = ways.withdraw(&name) {
            tracing::warn!(
                container = name,
                error = crate::error::chain(&error),
                "the way to a removed container's root stays"
            );
        }
    }
}

//! Files that a pod's containers get from us: `resolv.conf`, `hostname`, `.containerenv`.

use criox_confine::Users;
use criox_records::{RunDir, SandboxRecord, names};
use criox_sys::durable;

use crate::container::bundle::give;
use crate::error::{Error, Result};

pub(super) fn write(run: &RunDir, sandbox: &SandboxRecord) -> Result<()> {
    let resolv_conf =
        match criox_spec::resolv_conf(sandbox.config.0.dns_config.as_ref()).map_err(Error::in_config)? {
            Some(text) => text.into_bytes(),
            // A node without the file has no name servers to give.
            None => std::fs::read("/etc/resolv.conf").unwrap_or_default(),
        };
    let hostname = format!("{}\n", names::hostname(sandbox));
    let files = [
        (run.resolv_conf(), resolv_conf.as_slice()),
        (run.hostname(), hostname.as_bytes()),
        (run.containerenv(), b""),
    ];
    // Root of the pod may write them, as root of a pod with the node's users may.
    let pod_root = Users::of(&sandbox.config.0).map(|users| users.root());
    for (path, bytes) in files {
        let failed = || Error::failed(format!("files of pod sandbox {}", sandbox.id));
        durable::write_atomic(&path, bytes, 0o644).map_err(|error| failed().because(error))?;
        give(&path, pod_root).map_err(|error| failed().because(error))?;
    }
    Ok(())
}

//! Version.

use criox_cri::v1;

/// `cri-o`, so that IDs, cAdvisor and tools keep working.
const RUNTIME_NAME: &str = "cri-o";
/// The version of Kubernetes that this follows, and our own.
pub(crate) const RUNTIME_VERSION: &str = concat!("1.37.0+criox.", env!("CARGO_PKG_VERSION"));

pub(super) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: RUNTIME_NAME.into(),
        runtime_version: RUNTIME_VERSION.into(),
        runtime_api_version: "v1".into(),
    }
}

//! SELinux labels of what a container gets from the node: its volumes, where the request asks for it, and the files
//! that the runtime itself gives to it.

use std::path::{Path, PathBuf};

use criox_cri::v1;
use criox_spec::{ProvidedMounts, ResolvedMount, SelinuxLabels, gated_annotation};

use super::relabel;
use crate::error::Result;

/// The type of containers that no policy confines: they reach every label.
const UNCONFINED_TYPE: &str = "spc_t";
/// Asks to look no further than a volume's top directory.
const TRUST_TOP: [&str; 2] =
    ["try-skip-volume-selinux-label.crio.io", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel"];

/// What is to be labelled, and why.
#[derive(Debug)]
pub struct Labelling<'a> {
    /// The request, whose mounts say which of them are to have the label.
    pub container: &'a v1::ContainerConfig,
    /// Its sandbox's request.
    pub sandbox: &'a v1::PodSandboxConfig,
    /// Where the request's mounts really are, in its order.
    pub mounts: &'a [ResolvedMount],
    /// What the runtime itself gives to it.
    pub provided: &'a ProvidedMounts,
    /// The annotations that the handler lets pods use.
    pub allowed_annotations: &'a [String],
}

impl Labelling<'_> {
    /// Labels it all.
    ///
    /// # Errors
    /// A volume that belongs to the system, or that can't be labelled, with its field.
    pub fn apply(&self, labels: &SelinuxLabels) -> Result<()> {
        if labels.mount.is_empty() {
            return Ok(());
        }
        if !self.is_unconfined() {
            let trust_top = gated_annotation(&self.sandbox.annotations, self.allowed_annotations, &TRUST_TOP);
            for (path, field) in self.volumes() {
                relabel(&path, &labels.mount, trust_top == Some("true"), &field)?;
            }
        }
        for path in self.files() {
            relabel(path, &labels.mount, false, "file of the container")?;
        }
        Ok(())
    }

    fn is_unconfined(&self) -> bool {
        let context = self.container.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        context.is_some_and(|context| {
            let kind = context.selinux_options.as_ref().map(|options| options.r#type.as_str());
            context.privileged || kind == Some(UNCONFINED_TYPE)
        })
    }

    /// Volumes whose request asks for it; an image's tree has its label by its mount.
    fn volumes(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let mounts = self.container.mounts.iter().zip(self.mounts).enumerate();
        mounts.filter(|(_, (wanted, _))| wanted.selinux_relabel && wanted.image.is_none()).map(
            |(index, (_, resolved))| {
                (PathBuf::from(&resolved.source), format!("config.mounts[{index}].selinux_relabel"))
            },
        )
    }

    /// Files of our own making; `/etc/hosts` and `/dev/shm` of the node are the node's.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let ProvidedMounts { resolv_conf, hostname, containerenv, localtime, passwd, group, .. } =
            self.provided;
        let all = [resolv_conf, hostname, containerenv, localtime, passwd, group];
        all.into_iter().flatten().map(Path::new).filter(|path| path.exists())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelling<'a>(
        container: &'a v1::ContainerConfig,
        sandbox: &'a v1::PodSandboxConfig,
        mounts: &'a [ResolvedMount],
        provided: &'a ProvidedMounts,
    ) -> Labelling<'a> {
        Labelling { container, sandbox, mounts, provided, allowed_annotations: &[] }
    }

    #[test]
    fn only_volumes_whose_request_asks_for_it_are_labelled() {
        let mount = |relabel, image: Option<v1::ImageSpec>| v1::Mount {
            selinux_relabel: relabel,
            image,
            ..Default::default()
        };
        let container = v1::ContainerConfig {
            mounts: vec![mount(false, None), mount(true, None), mount(true, Some(v1::ImageSpec::default()))],
            ..Default::default()
        };
        let source = |path: &str| ResolvedMount { source: path.to_owned(), ..Default::default() };
        let mounts = [source("/etc"), source("/data"), source("/image")];
        let (sandbox, provided) = (v1::PodSandboxConfig::default(), ProvidedMounts::default());
        let labelling = labelling(&container, &sandbox, &mounts, &provided);
        let found: Vec<_> = labelling.volumes().collect();
        assert_eq!(found, [("/data".into(), "config.mounts[1].selinux_relabel".to_owned())]);
        assert!(!labelling.is_unconfined());
    }

    #[test]
    fn a_system_directory_is_refused_by_its_field_and_a_container_beyond_policies_needs_no_label() {
        let mut container = v1::ContainerConfig {
            mounts: vec![v1::Mount { selinux_relabel: true, ..Default::default() }],
            ..Default::default()
        };
        let mounts = [ResolvedMount { source: "/etc".to_owned(), ..Default::default() }];
        let (sandbox, provided) = (v1::PodSandboxConfig::default(), ProvidedMounts::default());
        let labels = SelinuxLabels { process: String::new(), mount: "u:o:t:s0".to_owned() };
        let error = labelling(&container, &sandbox, &mounts, &provided).apply(&labels).expect_err("/etc");
        assert!(error.to_string().contains("config.mounts[0].selinux_relabel"), "{error}");
        container
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
            .selinux_options
            .get_or_insert_default()
            .r#type = UNCONFINED_TYPE.to_owned();
        labelling(&container, &sandbox, &mounts, &provided).apply(&labels).expect("nothing to do");
    }
}

//! The images of this node: what there is, what is being pulled, and how it goes away.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use criox_config::value::ShortNameMode;
use criox_config::{CertsD, Registries};
use criox_store::{Store, UnpackLimits, Usage};

use crate::artifact::Kept;
use crate::catalogue::Catalogue;
use crate::error::PullError;
use crate::info::ImageInfo;
use crate::platform::Platform;
use crate::pull::{Layers, PullProgress, PullRequest, PulledImage, Pulls, local_names, pull};
use crate::reference::is_lower_hex;
use crate::registry::{Proxies, Timeouts};

/// What the configuration says about images. [`Images::reload`] exchanges it as a whole.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// `registries.conf`.
    pub registries: Arc<Registries>,
    /// CRI-O's `short_name_mode`.
    pub short_name_mode: ShortNameMode,
    /// Further registries to be reached without verification (`insecure_registries`), `host[:port]`.
    pub insecure_registries: Vec<String>,
    /// The signature policy; read at each pull.
    pub policy: PathBuf,
    /// Policies of namespaces, `<namespace>.json`.
    pub policy_dir: Option<PathBuf>,
    /// Credentials, the first file that knows a registry counts; read at each pull.
    pub auth_files: Vec<PathBuf>,
    /// Certificates by registry.
    pub certs: CertsD,
    /// Hosts outside a registry's own domain that may see its credentials in a token request.
    pub token_hosts: Vec<String>,
    /// Images that collection must spare: `*part*`, `beginning*`, or a full name; case doesn't count.
    pub pinned: Vec<String>,
    /// The platform whose images are chosen.
    pub platform: Platform,
    /// How long registries may take.
    pub timeouts: Timeouts,
    /// What stands between this node and registries.
    pub proxies: Proxies,
    /// Layers that are fetched and unpacked at the same time, over all pulls. Fixed at start.
    pub parallel_layers: usize,
    /// Bounds on a layer's content. Fixed at start.
    pub limits: UnpackLimits,
    /// Value of `User-Agent`.
    pub user_agent: String,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            registries: Arc::default(),
            short_name_mode: ShortNameMode::Enforcing,
            insecure_registries: Vec::new(),
            policy: "/etc/containers/policy.json".into(),
            policy_dir: None,
            auth_files: Vec::new(),
            certs: CertsD::system(None),
            token_hosts: Vec::new(),
            pinned: Vec::new(),
            platform: Platform::host(),
            timeouts: Timeouts::default(),
            proxies: Proxies::default(),
            parallel_layers: 6,
            limits: UnpackLimits::default(),
            user_agent: concat!("criox/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl ImageOptions {
    pub(crate) fn is_insecure(&self, host: &str) -> bool {
        self.insecure_registries.iter().any(|insecure| insecure == host)
    }

    /// Whether a pattern pins one of these names.
    pub(crate) fn is_pinned<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        names.any(|name| self.pinned.iter().any(|pattern| pattern_matches(pattern, name)))
    }
}

/// CRI-O's patterns: `*part*` anywhere, `beginning*` (anywhere as well, for its expression has no anchor), or exact.
fn pattern_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    match (pattern.strip_prefix('*').and_then(|p| p.strip_suffix('*')), pattern.strip_suffix('*')) {
        (Some(part), _) | (None, Some(part)) => name.contains(part),
        (None, None) => name == pattern,
    }
}

pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) pulls: Pulls,
    pub(crate) layers: Layers,
    pub(crate) artifacts: Kept,
    options: RwLock<Arc<ImageOptions>>,
    catalogue: Catalogue,
}

impl Shared {
    pub(crate) fn options(&self) -> Arc<ImageOptions> {
        self.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The images of a store, with what is needed to pull more. Clones are the same.
#[derive(Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

/// What removing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// Nothing has this name.
    Absent,
    /// The image lost this name and keeps others.
    Untagged {
        /// The image's ID.
        id: String,
        /// The name that went.
        name: String,
    },
    /// The image is gone with all its names.
    Deleted {
        /// The image's ID.
        id: String,
    },
}

impl Images {
    /// The images of `store`.
    pub fn new(store: Store, options: ImageOptions) -> Self {
        let layers = Layers::new(store.clone(), options.limits.clone(), options.parallel_layers);
        let shared = Shared {
            store,
            pulls: Pulls::default(),
            layers,
            artifacts: Kept::default(),
            options: RwLock::new(Arc::new(options)),
            catalogue: Catalogue::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Exchanges the configuration; pulls under way keep what they began with.
    pub fn reload(&self, options: ImageOptions) {
        *self.shared.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
        self.shared.catalogue.forget();
    }

    /// Pulls an image, or joins the pull that does the same. Dropping the future does not cancel the pull: the next
    /// call with the same request joins it.
    ///
    /// # Errors
    /// See [`PullErrorKind`](crate::PullErrorKind).
    pub async fn pull(&self, request: PullRequest) -> Result<PulledImage, PullError> {
        pull(&self.shared, request).await
    }

    /// The pulls under way.
    pub fn pulls(&self) -> Vec<PullProgress> {
        self.shared.pulls.snapshot()
    }

    /// All images. Waits for no pull; only an image that is new since the last call costs reading its two
    /// small documents.
    ///
    /// # Errors
    /// What the store answered when its records can't be read.
    pub fn list(&self) -> Result<Arc<[Arc<ImageInfo>]>, criox_store::Error> {
        self.shared.catalogue.list(&self.shared.store, &self.shared.options())
    }

    /// The image with this ID, unique prefix of an ID (three digits or more), `name:tag`, `name@digest`, or short
    /// name; `None` if there is none.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn find(&self, image: &str) -> Result<Option<Arc<ImageInfo>>, criox_store::Error> {
        Ok(self.locate(image)?.map(|(info, _)| info))
    }

    /// The image, and the name that found it unless the ID did.
    #[expect(clippy::type_complexity, reason = "a pair in an option in a result says what it is")]
    fn locate(&self, image: &str) -> Result<Option<(Arc<ImageInfo>, Option<String>)>, criox_store::Error> {
        let list = self.list()?;
        let id = image.strip_prefix("sha256:").unwrap_or(image);
        if id.len() >= 3 && is_lower_hex(id) {
            let mut matching = list.iter().filter(|info| info.id.starts_with(id));
            if let (Some(info), None) = (matching.next(), matching.next()) {
                return Ok(Some((info.clone(), None)));
            }
        }
        for reference in local_names(&self.shared.options(), image) {
            let name = reference.to_string();
            if let Some(info) = list.iter().find(|info| info.names.contains(&name)) {
                return Ok(Some((info.clone(), Some(name))));
            }
            // Any digest of the image under any of its repositories.
            if let Some(info) = list.iter().find(|info| info.repo_digests.contains(&name)) {
                return Ok(Some((info.clone(), Some(name))));
            }
        }
        Ok(None)
    }

    /// Removes an image: by ID with all its names, by name only that name unless it was the last. What isn't there
    /// is no error. Blocks.
    ///
    /// # Errors
    /// [`criox_store::Error::ImageInUse`] while a container was made from it; what the store answered.
    pub fn remove(&self, image: &str) -> Result<Removed, criox_store::Error> {
        let Some((info, name)) = self.locate(image)? else { return Ok(Removed::Absent) };
        let id = info.id.clone();
        let result = match name {
            Some(name) if info.names.iter().any(|other| *other != name) && info.names.contains(&name) => self
                .shared
                .store
                .remove_names(&id, std::slice::from_ref(&name))
                .map(|_| Removed::Untagged { id: id.clone(), name }),
            _ => self.shared.store.delete_image(&id).map(|_| Removed::Deleted { id: id.clone() }),
        };
        match result {
            // Somebody was faster.
            Err(criox_store::Error::ImageUnknown(_)) => Ok(Removed::Absent),
            Ok(removed) => {
                tracing::info!(image, id, ?removed, "image removed");
                Ok(removed)
            }
            Err(e) => Err(e),
        }
    }

    /// Space that images take, from the store's records.
    ///
    /// # Errors
    /// What the store answered when its records can't be read.
    pub fn fs_usage(&self) -> Result<Usage, criox_store::Error> {
        self.shared.store.usage()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_follow_cri_o_s_patterns() {
        for (pattern, name, pinned) in [
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/Pause:3.10", "registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/pause", "registry.k8s.io/pause:3.10", false),
            ("registry.k8s.io/pause*", "registry.k8s.io/pause:3.10", true),
            ("*pause*", "registry.k8s.io/pause:3.10", true),
            ("*other*", "registry.k8s.io/pause:3.10", false),
        ] {
            assert_eq!(pattern_matches(pattern, name), pinned, "{pattern} {name}");
        }
    }
}

//! Strings of the interface that the kubelet, or its users' tools, know by their text.

// `ContainerStatus.reason`, and the state reason in `kubectl get pods`.

/// The container ended with code 0.
pub const COMPLETED: &str = "Completed";
/// The container ended with another code, or by a signal.
pub const ERROR: &str = "Error";
/// The cgroup's out-of-memory killer ended it; CRI obliges to exactly this string.
pub const OOM_KILLED: &str = "OOMKilled";
/// It made calls that its filter refuses, and its pod's annotation asks to stop it for them; the text is CRI-O's.
pub const SECCOMP_KILLED: &str = "seccomp killed";
/// The process could not be started; the kubelet then takes no termination message from the log.
pub const CONTAINER_CANNOT_RUN: &str = "ContainerCannotRun";
/// It ended and nobody read its exit code (a reboot, a lost record); the exit code is [`UNKNOWN_EXIT_CODE`].
pub const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
/// The pod's monitor died and the pod was killed after it; the exit code is [`UNKNOWN_EXIT_CODE`].
pub const MONITOR_LOST: &str = "MonitorLost";

/// The exit code of a container whose real one is not known.
pub const UNKNOWN_EXIT_CODE: i32 = 255;

// Beginnings of PullImage errors. The kubelet reads them at the very start of the message and only with the gRPC
// code Unknown, and shows the rest to the user.

/// No registry that may have the image answered.
pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable:";
/// The signature policy refused the image.
pub const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed:";

// Errors of CreateContainer.

/// A recursive read-only mount was asked of a kernel or runtime handler without them.
pub const RRO_UNSUPPORTED: &str = "RROUnsupported";
/// An image could not be mounted as a volume: absent, or its sub-path is.
pub const IMAGE_VOLUME_MOUNT_FAILED: &str = "ImageVolumeMountFailed";

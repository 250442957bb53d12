//! A node like production: a Debian guest with systemd as PID 1, cgroup v2 and AppArmor, in QEMU without KVM.
//!
//! Booting it takes a quarter of a minute, so that is done once: the guest's memory and devices are saved as a template,
//! and each machine resumes from it in a second or two, clean and equal.
//!
//! | module | for |
//! |---|---|
//! | [`machine`] | a guest: its command line, started, resumed, ended |
//! | [`template`] | the saved state that machines resume from |
//! | [`agent`] | commands in the guest, over a virtio port |
//! | [`qmp`] | QEMU's own control socket |

pub mod agent;
pub mod machine;
pub mod qmp;
pub mod template;

pub use machine::{Machine, Options};

/// Whatever went wrong; the text says what to do.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything here.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

//! The image store shared with podman, skopeo and buildah: what one puts there, the others use, and nobody loses anything.
//!
//! The peers come from the private root that `scripts/peers` makes, for a machine's own may be too old to know volatile
//! records. `load.rs` runs for `CRIOX_INTEROP_SECONDS` (40 if unset); `scripts/interop` sets it.

mod load;
mod ours;
mod peers;
mod store;
mod theirs;
mod together;

use std::process::ExitCode;

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("what was pulled is listed, run, checked, copied and removed by peers", ours::pulled),
        ("an image without compression is copied out as it came", ours::unchanged),
        ("an image of an index is found by the digests of both manifests", ours::by_digests),
        ("what peers put into the store is listed and run", theirs::put_by_peers),
        ("a layer that a peer left half-made is made anew", theirs::half_made),
        ("containers are shown to peers, and their prune spares what runs", together::shown_and_spared),
        ("a peer that starts first or last takes no mount away", together::mounts_stay),
        ("under load from both sides, with kills, nothing is lost", load::both_at_once),
    ])
}

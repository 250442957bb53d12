//! Compiles `proto/runtime/v1/api.proto` in pure Rust, so that a build needs no `protoc`.

use std::error::Error;

const PROTO: &str = "proto/runtime/v1/api.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;

    let mut types = prost_build::Config::new();
    // Ordered maps: the same value always has the same bytes, and fingerprints of requests depend on that.
    types.btree_map(["."]);
    // Holds credentials; `src/redact.rs` has its `Debug`.
    types.skip_debug([".runtime.v1.AuthConfig"]);

    tonic_prost_build::configure()
        .build_client(std::env::var_os("CARGO_FEATURE_CLIENT").is_some())
        .build_transport(false)
        .compile_fds_with_config(descriptors, types)?;
    Ok(())
}

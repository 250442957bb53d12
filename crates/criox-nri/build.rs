//! Compiles the protocols without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/nri.proto", "proto/ttrpc.proto"], ["proto"])?;
    let mut types = prost_build::Config::new();
    // Ordered maps: the same adjustment always has the same bytes, and plugins' wishes are taken in a fixed order.
    types.btree_map(["."]);
    types.compile_fds(descriptors)?;
    Ok(())
}

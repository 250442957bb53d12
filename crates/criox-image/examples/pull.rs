//! Pulls one image from an insecure registry into a store of its own, and says how long it took:
//! `pull GRAPH_ROOT RUN_ROOT HOST[:PORT]/REPOSITORY[:TAG]`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use criox_config::Registries;
use criox_image::{ImageOptions, Images, PullRequest, Reference};
use criox_store::{Store, StoreOptions};

#[expect(clippy::print_stdout, reason = "an example speaks to who runs it")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [graph_root, run_root, image] = &arguments[..] else {
        return Err("usage: pull GRAPH_ROOT RUN_ROOT IMAGE".into());
    };
    let host = Reference::parse(image)?.domain().to_owned();
    let registries = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    let policy = PathBuf::from(graph_root).join("policy.json");
    let options = ImageOptions {
        registries: Arc::new(Registries::parse("registries.conf".as_ref(), registries.as_bytes())?),
        policy,
        ..Default::default()
    };
    let roots = StoreOptions::new(graph_root, run_root);
    let (store, _) = Store::open(StoreOptions { skip_mount_home: true, ..roots })?;
    let images = Images::new(store, options);
    let start = Instant::now();
    let pulled =
        images.pull(PullRequest { image: image.clone(), ..Default::default() }).await.map_err(|e| {
            let mut text = e.to_string();
            let mut source = e.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        })?;
    println!("{} in {:.3} s", pulled.reference, start.elapsed().as_secs_f64());
    Ok(())
}

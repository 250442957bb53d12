//! What is done beside all requests: runtimes are asked once what they can, the store's files are counted, and layers that
//! no image needs are removed.

use std::sync::Arc;
use std::time::Duration;

use criox_lifecycle::Context;
use criox_store::Store;

/// Between rounds.
const ROUND: Duration = Duration::from_secs(3600);
/// How old a layer without an image must be: pulls of other programs commit their layers before the image that needs them.
const UNREFERENCED: Duration = Duration::from_secs(24 * 3600);

/// Runs until it is aborted.
pub(crate) async fn run(context: Arc<Context>) {
    for handler in context.handlers.iter() {
        handler.features().await;
    }
    loop {
        let store = context.store.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || round(&store)).await {
            tracing::error!(%error, "the store's upkeep ended in a panic");
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// A failure costs space, and the next round tries again.
fn round(store: &Store) {
    match store.remove_unreferenced_layers(UNREFERENCED) {
        Ok(layers) if layers.is_empty() => {}
        Ok(layers) => tracing::info!(?layers, "removed layers that no image needs"),
        Err(error) => {
            tracing::warn!(error = criox_lifecycle::chain(&error), "layers that no image needs stay")
        }
    }
    if let Err(error) = store.count_inodes() {
        tracing::warn!(error = criox_lifecycle::chain(&error), "the store's files could not be counted");
    }
}

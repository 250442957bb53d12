//! The images that the measurements want, as OCI layouts for skopeo to push.

use testkit::image::busybox_image;
use testkit::tar::Entry;
use testkit::{Compression, ImageBuilder};

use crate::args::ImageOptions;
use crate::{Failure, progress};

/// Layers of the big image.
const LAYERS: usize = 8;

/// Bytes of a file in it, on average; with 14 400 files this makes about 620 MB, 200 MB of them compressed.
const FILE_SIZE: usize = 43_000;

/// Writes the layouts `busybox`, `pause` and `big`, each with the tag `latest`.
pub(crate) fn write(options: &ImageOptions) -> Result<(), Failure> {
    let busybox = busybox_image()?.build()?;
    busybox.write_oci_layout(&options.directory.join("busybox"), "latest")?;

    let program = std::fs::read(&options.pause)
        .map_err(|error| format!("reading {}: {error}", options.pause.display()))?;
    let pause = ImageBuilder::new().layer(&[Entry::program("pause", program)]).entrypoint(&["/pause"]);
    pause.build()?.write_oci_layout(&options.directory.join("pause"), "latest")?;

    let big = big(options.big_files).build()?;
    let size: usize = big.layers.iter().map(|layer| layer.bytes.len()).sum();
    progress(&format!("the big image has {} MB in {} files", size / 1_000_000, options.big_files));
    big.write_oci_layout(&options.directory.join("big"), "latest")?;
    Ok(())
}

/// Many files in many directories, a third of each not compressible; the same bytes in every run.
fn big(files: usize) -> ImageBuilder {
    let mut image = ImageBuilder::new();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for layer in 0..LAYERS {
        let mut entries = vec![Entry::dir("data"), Entry::dir(&format!("data/layer{layer}"))];
        let count = files / LAYERS + usize::from(layer < files % LAYERS);
        for file in 0..count {
            let directory = format!("data/layer{layer}/{:03}", file / 40);
            if file % 40 == 0 {
                entries.push(Entry::dir(&directory));
            }
            // Between a fifth and nine fifths of the average.
            let size = FILE_SIZE / 5 + noise.below(FILE_SIZE * 8 / 5);
            entries.push(Entry::file(&format!("{directory}/file{file}"), content(&mut noise, size)));
        }
        image = image.layer_as(&entries, Compression::Gzip);
    }
    image
}

fn content(noise: &mut Noise, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 192);
    while bytes.len() < size {
        for _ in 0..8 {
            bytes.extend(noise.next().to_le_bytes());
        }
        bytes.extend(
            b"A line of text that every file has, again and again, as program texts and tables do.\n",
        );
        bytes.extend([0; 43]);
    }
    bytes.truncate(size);
    bytes
}

/// Numbers without a pattern (xorshift64*), always the same ones.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_big_image_has_eight_layers_and_compresses_to_a_third() {
        let built = big(80).build().unwrap();
        assert_eq!(built.layers.len(), LAYERS);
        let compressed: usize = built.layers.iter().map(|layer| layer.bytes.len()).sum();
        let ratio = (80 * FILE_SIZE) as f64 / compressed as f64;
        assert!((2.0..4.5).contains(&ratio), "{ratio}");
    }

    #[test]
    fn it_is_the_same_in_every_run() {
        let digest = || big(16).build().unwrap().manifest.digest;
        assert_eq!(digest(), digest());
    }
}

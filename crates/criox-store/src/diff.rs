//! A layer's tar stream, put together again from its tar-split and its files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use criox_sys::durable::PathError;
use criox_sys::inroot::Root;
use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::store::Store;
use crate::tarsplit::{Assembler, Files};

/// The uncompressed tar stream of a layer, byte for byte as it came. A file that no longer has its checksum ends it
/// with an error.
#[derive(Debug)]
pub struct LayerDiff(Assembler<BufReader<MultiGzDecoder<BufReader<File>>>, LayerFiles>);

impl Read for LayerDiff {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// The contents of a layer: its own directory, then those below it (a tar-split copied from another layer of the same
/// content finds its files there).
#[derive(Debug)]
struct LayerFiles(Vec<Root>);

impl Files for LayerFiles {
    fn open(&mut self, name: &std::ffi::OsStr) -> io::Result<File> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for root in &self.0 {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            let Some(path) = crate::unpack::clean(name.as_bytes()) else { continue };
            match root.open_at(&path, flags, Mode::empty()) {
                Ok(fd) => {
                    let file = File::from(fd);
                    if file.metadata()?.is_file() {
                        return Ok(file);
                    }
                }
                Err(e) => last = e.into(),
            }
        }
        Err(last)
    }
}

impl Store {
    /// The layer's tar stream.
    ///
    /// # Errors
    /// [`Error::LayerUnknown`]; [`Error::Corrupt`] when it has no tar-split.
    pub fn layer_diff(&self, id: &str) -> Result<LayerDiff, Error> {
        let layer = self.layer(id)?;
        let path = self.tar_split_path(&layer.id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Corrupt {
                    what: format!("layer {id}"),
                    why: "it has no tar-split".into(),
                });
            }
            Err(e) => return Err(PathError::new("open", path, e).into()),
        };
        let overlay = &self.shared.overlay;
        let mut roots = vec![Root::open(&overlay.diff_dir(&layer.id))?];
        for lower in overlay.lowers(&layer.id)? {
            // The links below `l` are resolved by hand: a root is never opened through one.
            let lower: PathBuf =
                std::fs::canonicalize(&lower).map_err(|e| PathError::new("resolve", lower, e))?;
            roots.push(Root::open(&lower)?);
        }
        let entries = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
        Ok(LayerDiff(Assembler::new(entries, LayerFiles(roots))))
    }
}

//! An archive from elsewhere becomes a directory of ours.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use criox_store::tar::{Entry, Kind, Reader, TarError};
use criox_sys::durable::PathError;

use crate::cancel::Cancel;
use crate::error::Error;
use crate::intake::{Intake, Limits};
use crate::metadata::{ConfigDump, MAX_CONFIG, MAX_SPEC, SpecDump};
use crate::names;
use crate::receive::{Incoming, Receiver, Verdict};

/// Unpacks a container's archive into the empty directory `into`, and looks at it. After an error `into` holds a part.
///
/// # Errors
/// [`Error::Refused`], [`Error::NoSpace`], [`Error::Cancelled`]; what reading or writing answered.
pub fn unpack(archive: &File, into: &Path, limits: &Limits, cancel: &Cancel) -> Result<Intake, Error> {
    let mut receiver = Receiver::new(into, limits, cancel)?;
    let source = Source { file: archive, offset: 0, cancel };
    refuse_compressed(archive)?;
    unpack_stream(source, &mut receiver)?;
    Intake::open(into)
}

/// Unpacks the members of a stream.
pub(crate) fn unpack_stream(source: impl Read, receiver: &mut Receiver<'_>) -> Result<(), Error> {
    let mut reader = Reader::new(source, ());
    loop {
        let Some(entry) = reader.next_entry().map_err(|e| tar_error(e, receiver.cancel))? else {
            return Ok(());
        };
        let Verdict::Take(mut file, path) = receiver.decide(&entry.name, incoming(&entry), entry.size)?
        else {
            continue;
        };
        loop {
            receiver.cancel.check("unpack an archive")?;
            let chunk = reader.content().map_err(|e| tar_error(e, receiver.cancel))?;
            if chunk.is_empty() {
                break;
            }
            file.write_all(chunk).map_err(|e| PathError::new("write", &path, e))?;
            let length = chunk.len();
            reader.consume(length).map_err(|e| tar_error(e, receiver.cancel))?;
        }
    }
}

/// Reads `config.dump` and `spec.dump` of an archive, nothing else: which base image it takes, before anything is made.
/// [`unpack`] looks at everything.
///
/// # Errors
/// [`Error::Refused`] when they are missing or malformed, or what comes before them is.
pub fn peek(archive: &File, cancel: &Cancel) -> Result<(ConfigDump, SpecDump), Error> {
    refuse_compressed(archive)?;
    peek_stream(Source { file: archive, offset: 0, cancel }, cancel)
}

/// As [`peek`].
pub(crate) fn peek_stream(source: impl Read, cancel: &Cancel) -> Result<(ConfigDump, SpecDump), Error> {
    let mut reader = Reader::new(source, ());
    let (mut config, mut spec) = (None, None);
    let mut entries = 0;
    while config.is_none() || spec.is_none() {
        let Some(entry) = reader.next_entry().map_err(|e| tar_error(e, cancel))? else { break };
        entries += 1;
        if entries > Limits::default().max_entries {
            return Err(Error::refused(
                "archive",
                format!("more than {} entries", Limits::default().max_entries),
            ));
        }
        let name = entry.name.strip_prefix(b"./").unwrap_or(&entry.name);
        if name == names::CONFIG_DUMP.as_bytes() {
            config = Some(ConfigDump::parse(&content(
                &mut reader,
                &entry,
                names::CONFIG_DUMP,
                MAX_CONFIG,
                cancel,
            )?)?);
        } else if name == names::SPEC_DUMP.as_bytes() {
            spec = Some(SpecDump::parse(&content(&mut reader, &entry, names::SPEC_DUMP, MAX_SPEC, cancel)?)?);
        }
    }
    let config = config.ok_or_else(|| Error::refused(names::CONFIG_DUMP, "missing"))?;
    let spec = spec.ok_or_else(|| Error::refused(names::SPEC_DUMP, "missing"))?;
    Ok((config, spec))
}

/// The content of a small member.
fn content(
    reader: &mut Reader<impl Read, ()>,
    entry: &Entry,
    name: &'static str,
    limit: u64,
    cancel: &Cancel,
) -> Result<Vec<u8>, Error> {
    if incoming(entry) != Incoming::Regular || entry.size > limit {
        return Err(Error::refused(name, format!("not a regular file of at most {limit} bytes")));
    }
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.content().map_err(|e| tar_error(e, cancel))?;
        if chunk.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(chunk);
        let length = chunk.len();
        reader.consume(length).map_err(|e| tar_error(e, cancel))?;
    }
}

fn incoming(entry: &Entry) -> Incoming {
    match entry.kind {
        // No writer of checkpoints makes sparse members, and a map of holes is a way to claim any size.
        Kind::Regular if entry.sparse.is_some() => Incoming::Other("a sparse file"),
        Kind::Regular => Incoming::Regular,
        Kind::Directory => Incoming::Directory,
        Kind::HardLink => Incoming::Other("a hard link"),
        Kind::Symlink => Incoming::Other("a symbolic link"),
        Kind::Fifo => Incoming::Other("a FIFO"),
        Kind::CharDevice | Kind::BlockDevice => Incoming::Other("a device"),
    }
}

/// The archive's bytes from the start, wherever others have read to.
struct Source<'a> {
    file: &'a File,
    offset: u64,
    cancel: &'a Cancel,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("called off"));
        }
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// podman can write archives that are compressed; CRI-O and the kubelet can't, so neither is it read here.
fn refuse_compressed(archive: &File) -> Result<(), Error> {
    let mut magic = [0u8; 4];
    let count = archive.read_at(&mut magic, 0).map_err(|e| PathError::new("read", "archive", e))?;
    let kind = match &magic[..count] {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
        [0xfd, b'7', b'z', b'X'] => "xz",
        [b'B', b'Z', b'h', _] => "bzip2",
        _ => return Ok(()),
    };
    Err(Error::refused("archive", format!("it is compressed with {kind}: decompress it first")))
}

fn tar_error(error: TarError, cancel: &Cancel) -> Error {
    match error {
        TarError::Input(_) if cancel.is_cancelled() => Error::Cancelled { step: "read an archive" },
        TarError::Input(e) | TarError::Tap(e) => PathError::new("read", "archive", e).into(),
        malformed @ TarError::Malformed { .. } => Error::refused("archive", malformed.to_string()),
    }
}

/// Reads an archive from memory, for fuzzing: whatever comes out has only names that we know.
#[cfg(feature = "fuzzing")]
pub fn fuzz(archive: &[u8], into: &Path) {
    let (limits, cancel) = (Limits { max_bytes: 1 << 20, max_entries: 100, reserve_bytes: 0 }, Cancel::new());
    let _ = peek_stream(archive, &cancel);
    if let Ok(mut receiver) = Receiver::new(into, &limits, &cancel) {
        let _ = unpack_stream(archive, &mut receiver);
    }
    let _ = Intake::open(into);
}

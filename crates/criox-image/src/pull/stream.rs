//! From the network task to the unpacking thread: a bounded channel of pieces, hashed as they are taken, and the
//! decompression on top. Never more than the channel's pieces in memory.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf as _, Bytes, BytesMut};
use criox_store::{Compression, Digest, Hasher};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

/// Pieces on the way, each at most the HTTP client's buffer.
const PIECES: usize = 8;
/// zstd windows up to 128 MiB (`zstd --long=27`); more is an attack on memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Expansion is watched from here on…
const RATIO_FROM: u64 = 64 << 20;
/// …and may not exceed this.
const RATIO_MAX: u64 = 200;

/// What the network task sends.
pub(crate) enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// All announced bytes have been sent. Without it the download was given up.
    End,
}

/// A channel whose far end reads like a file.
pub(crate) fn channel(digest: &Digest) -> (mpsc::Sender<Piece>, Blob) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let taken = Arc::default();
    (sender, Blob { receiver, piece: Bytes::new(), ended: false, hasher: Hasher::like(digest), taken })
}

/// The compressed bytes of a blob, hashed as they are read. Reading blocks.
pub(crate) struct Blob {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
    hasher: Hasher,
    taken: Arc<AtomicU64>,
}

impl Blob {
    /// The next piece from the channel, hashed; empty at the end.
    fn receive(&mut self) -> io::Result<Bytes> {
        while !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) if data.is_empty() => {}
                Some(Piece::Data(data)) => {
                    self.hasher.update(&data);
                    self.taken.fetch_add(data.len() as u64, Ordering::Relaxed);
                    return Ok(data);
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the download was given up")),
            }
        }
        Ok(Bytes::new())
    }

    /// Bytes at the front, as many as `wanted` unless the blob is shorter.
    fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.piece.len() < wanted {
            let more = self.receive()?;
            if more.is_empty() {
                break;
            }
            if self.piece.is_empty() {
                self.piece = more;
            } else {
                let mut joined = BytesMut::from(&self.piece[..]);
                joined.extend_from_slice(&more);
                self.piece = joined.freeze();
            }
        }
        Ok(&self.piece)
    }

    /// Takes what is left, and gives the digest of all.
    fn finish(mut self) -> io::Result<Digest> {
        while !self.receive()?.is_empty() {}
        Ok(self.hasher.finish())
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty() {
            self.piece = self.receive()?;
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

impl Read for Blob {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

enum Decoder {
    Plain(Blob),
    Gzip(Box<MultiGzDecoder<Blob>>),
    Zstd(zstd::stream::read::Decoder<'static, Blob>),
}

/// The uncompressed tar stream of a layer.
pub(crate) struct LayerStream {
    decoder: Decoder,
    compression: Compression,
    expanded: u64,
    taken: Arc<AtomicU64>,
}

impl LayerStream {
    /// Looks at the first bytes, for tools name layers wrongly, and sets up the right decompression.
    pub(crate) fn new(mut blob: Blob) -> io::Result<Self> {
        let compression = match blob.peek(4)? {
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            [b'B', b'Z', b'h', ..] => return Err(unsupported("bzip2")),
            [0xfd, b'7', b'z', b'X'] | [0xfd, b'7', b'z', b'X', ..] => return Err(unsupported("xz")),
            _ => Compression::None,
        };
        let taken = blob.taken.clone();
        let decoder = match compression {
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(blob))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Decoder::Zstd(decoder)
            }
            Compression::None => Decoder::Plain(blob),
        };
        Ok(Self { decoder, compression, expanded: 0, taken })
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Reads the compressed blob to its end and gives its digest.
    pub(crate) fn finish(self) -> io::Result<Digest> {
        match self.decoder {
            Decoder::Plain(blob) => blob.finish(),
            Decoder::Gzip(decoder) => decoder.into_inner().finish(),
            Decoder::Zstd(decoder) => decoder.finish().finish(),
        }
    }
}

impl Read for LayerStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = match &mut self.decoder {
            Decoder::Plain(blob) => blob.read(out),
            Decoder::Gzip(decoder) => decoder.read(out),
            Decoder::Zstd(decoder) => decoder.read(out),
        }?;
        self.expanded += length as u64;
        if self.expanded > RATIO_FROM && self.expanded / RATIO_MAX > self.taken.load(Ordering::Relaxed) {
            let why = "the layer expands more than two hundred fold: taken for a decompression bomb";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(length)
    }
}

fn unsupported(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("the layer is compressed with {name}; gzip, zstd or none can be read"),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Sends `blob` in pieces of `size`, reads it as a layer; `end` says whether the download completes.
    fn check(blob: &[u8], size: usize, end: bool) -> io::Result<(Vec<u8>, Digest, Compression)> {
        let (sender, receiver) = channel(&Digest::sha256(b""));
        let blob = Bytes::copy_from_slice(blob);
        let feeder = std::thread::spawn(move || {
            for piece in blob.chunks(size) {
                if sender.blocking_send(Piece::Data(Bytes::copy_from_slice(piece))).is_err() {
                    return;
                }
            }
            if end {
                let _ = sender.blocking_send(Piece::End);
            }
        });
        let result = (|| {
            let mut stream = LayerStream::new(receiver)?;
            let mut out = Vec::new();
            stream.read_to_end(&mut out)?;
            let compression = stream.compression();
            Ok((out, stream.finish()?, compression))
        })();
        feeder.join().unwrap();
        result
    }

    #[test]
    fn all_compressions_are_told_by_their_bytes() {
        let data: Vec<u8> = (0..8_000u32).flat_map(u32::to_le_bytes).collect();
        let members = [gzip(&data[..1000]), gzip(&data[1000..])].concat();
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        let skippable = [&zstd[..], &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]].concat();
        for (blob, compression) in [
            (data.clone(), Compression::None),
            (gzip(&data), Compression::Gzip),
            (members, Compression::Gzip),
            (zstd, Compression::Zstd),
            (skippable, Compression::Zstd),
        ] {
            for size in [1, 3, 5000, usize::MAX] {
                let (out, digest, found) = check(&blob, size.min(blob.len()), true).unwrap();
                assert!(out == data && found == compression);
                assert_eq!(digest, Digest::sha256(&blob));
            }
        }
    }

    #[test]
    fn an_empty_blob_is_an_empty_stream() {
        assert_eq!(check(b"", 1, true).unwrap().0, b"");
    }

    #[test]
    fn a_download_that_was_given_up_is_no_end_of_file() {
        let data = vec![7; 10_000];
        for blob in [data.clone(), gzip(&data), zstd::encode_all(&data[..], 1).unwrap()] {
            assert_eq!(check(&blob, 1000, false).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }

    #[test]
    fn truncated_compressed_blobs_are_errors() {
        let data: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
        for blob in [gzip(&data), zstd::encode_all(&data[..], 1).unwrap()] {
            for cut in (10..blob.len() - 1).step_by(blob.len() / 40) {
                assert!(check(&blob[..cut], 1000, true).is_err(), "{cut} of {}", blob.len());
            }
        }
    }

    #[test]
    fn bombs_long_windows_and_unknown_compressions_are_refused() {
        let bomb = zstd::encode_all(&vec![0; 80 << 20][..], 1).unwrap();
        let error = check(&bomb, 1 << 16, true).err().unwrap();
        assert!(error.to_string().contains("bomb"), "{error}");
        for magic in [&b"BZh91AY"[..], b"\xfd7zXZ\0\0"] {
            assert_eq!(check(magic, 2, true).unwrap_err().kind(), io::ErrorKind::Unsupported);
        }
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(b"x").unwrap();
        assert!(check(&encoder.finish().unwrap(), 100, true).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(blob in proptest::collection::vec(any::<u8>(), 0..200), which in 0..3usize) {
            let magic: &[u8] = [&b""[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"][which];
            let _ = check(&[magic, &blob].concat(), 7, true);
        }
    }
}

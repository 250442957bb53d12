use proptest::prelude::*;

use super::*;

#[path = "../../tests/archive/mod.rs"]
mod archive;
use archive::{Archive, Header, seal};

/// A member and its content.
type Member = (Entry, Vec<u8>);

/// Reads a whole stream; members with their contents, and what went to the tap.
fn read(stream: &[u8]) -> Result<(Vec<Member>, Vec<u8>), TarError> {
    struct Taken(Vec<u8>);
    impl Tap for Taken {
        fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    let mut reader = Reader::new(stream, Taken(Vec::new()));
    let mut members = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        loop {
            let chunk = reader.content()?;
            let length = chunk.len();
            if length == 0 {
                break;
            }
            content.extend_from_slice(chunk);
            reader.consume(length)?;
        }
        members.push((entry, content));
    }
    reader.drain()?;
    Ok((members, reader.into_parts().1.0))
}

fn names(stream: &[u8]) -> Vec<String> {
    read(stream)
        .unwrap()
        .0
        .into_iter()
        .map(|(entry, _)| String::from_utf8_lossy(&entry.name).into_owned())
        .collect()
}

fn check_refused(stream: &[u8], why: &str) {
    let error = read(stream).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn members_come_with_their_metadata() {
    let stream = Archive::default()
        .pax(&[
            ("path", "ü/long".as_bytes()),
            ("mtime", b"-1.25"),
            ("uid", b"4000000000"),
            ("SCHILY.xattr.user.a=b", b"x"),
            ("comment", b"multi\nline"),
        ])
        .entry(Header { name: b"short", mode: 0o4755, gid: 7, ..Header::default() }, b"hello")
        .entry(Header { name: b"dev/x", kind: b'3', device: (5, 1), ..Header::default() }, b"")
        .end();
    let (members, _) = read(&stream).unwrap();
    let (entry, content) = &members[0];
    assert_eq!((entry.name.as_slice(), content.as_slice()), ("ü/long".as_bytes(), &b"hello"[..]));
    assert_eq!((entry.uid, entry.gid, entry.mode), (4_000_000_000, 7, 0o4755));
    assert_eq!(entry.mtime, FileTime { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"b=x".to_vec())]);
    assert_eq!(members[1].0.device, (5, 1));
    assert_eq!(members[1].0.kind, Kind::CharDevice);
}

#[test]
fn gnu_long_names_and_links_are_read() {
    let long = "d/".repeat(100) + "file";
    let link = "t".repeat(300);
    let stream = Archive::default()
        .entry(
            Header { name: b"././@LongLink", kind: b'L', ..Header::default() },
            format!("{long}\0").as_bytes(),
        )
        .entry(
            Header { name: b"././@LongLink", kind: b'K', ..Header::default() },
            format!("{link}\0").as_bytes(),
        )
        .symlink("cut", "cut")
        .file("next", b"")
        .end();
    let (members, _) = read(&stream).unwrap();
    assert_eq!(members[0].0.name, long.as_bytes());
    assert_eq!(members[0].0.link, link.as_bytes());
    assert_eq!(members[1].0.name, b"next");
}

#[test]
fn one_size_counts_for_content_and_for_the_next_header() {
    // The header says nothing, the record 1024: an inner archive must stay content.
    let inner = Archive::default().file("inner", b"").0;
    let mut stream = Archive::default().pax(&[("size", b"512")]);
    stream.0.extend_from_slice(&Header { name: b"outer", ..Header::default() }.block());
    let stream = stream.padded(&inner).file("after", b"").end();
    assert_eq!(names(&stream), ["outer", "after"]);
}

#[test]
fn links_and_directories_have_no_content_whatever_their_size() {
    let mut stream = Archive::default();
    stream.0.extend_from_slice(&Header { name: b"d/", kind: b'5', size: 4096, ..Header::default() }.block());
    assert_eq!(names(&stream.file("f", b"").end()), ["d/", "f"]);
}

#[test]
fn binary_numbers_and_prefixes_are_read() {
    let mut block = Header { name: b"name", ..Header::default() }.block();
    block[124] = 0x80;
    block[125..136].fill(0);
    block[135] = 3;
    block[136..148].fill(0xff);
    block[345..351].copy_from_slice(b"prefix");
    seal(&mut block);
    let mut stream = Archive(block.to_vec());
    stream = stream.padded(b"abc");
    let (members, _) = read(&stream.end()).unwrap();
    assert_eq!(members[0].0.name, b"prefix/name");
    assert_eq!(members[0].1, b"abc");
    assert_eq!(members[0].0.mtime.seconds, -1);
}

#[test]
fn sparse_maps_of_every_form_are_read() {
    let extents = vec![Extent { offset: 512, length: 3 }, Extent { offset: 4096, length: 2 }];
    let inline = Archive::default().padded(b"2\n512\n3\n4096\n2\n").0;
    let form_10 = Archive::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", b"8192"),
        ])
        .entry(Header { name: b"GNUSparseFile.0/f", ..Header::default() }, &[&inline[..], b"abcde"].concat());
    let form_01 = Archive::default()
        .pax(&[("GNU.sparse.map", b"512,3,4096,2"), ("GNU.sparse.size", b"8192"), ("GNU.sparse.name", b"f")])
        .file("x", b"abcde");
    let form_00 = Archive::default()
        .pax(&[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.offset", b"512"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"2"),
        ])
        .file("f", b"abcde");
    let mut block = Header { name: b"f", kind: b'S', size: 5, ..Header::default() }.block();
    block[257..265].copy_from_slice(b"ustar  \0");
    for (at, number) in [(386, 512), (398, 3), (410, 4096), (422, 2), (483, 8192)] {
        block[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    }
    seal(&mut block);
    let old = Archive(block.to_vec()).padded(b"abcde");
    for stream in [form_10, form_01, form_00, old] {
        let stream = stream.file("after", b"").end();
        let (members, tapped) = read(&stream).unwrap();
        assert_eq!(members[0].0.name, b"f");
        assert_eq!(members[0].0.sparse.as_ref(), Some(&extents));
        assert_eq!((members[0].0.size, members[0].0.stored), (8192, 5));
        assert_eq!(members[0].1, b"abcde");
        assert_eq!(members[1].0.name, b"after");
        assert_eq!(tapped, stream, "a sparse file's content belongs to the tap");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for map in ["0,5,3,1", "0,6", "8190,5", "0,18446744073709551615", "5", "a,b"] {
        let stream =
            Archive::default().pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", b"8192")]);
        read(&stream.file("f", b"abcde").end()).expect_err(map);
    }
}

#[test]
fn damage_is_an_error_and_never_skipped() {
    let good = Archive::default().file("a", b"hello").file("b", b"").0;
    let mut bad = good.clone();
    bad[0] ^= 1;
    check_refused(&bad, "checksum");
    check_refused(&good[..514], "ends inside a file");
    check_refused(&good[..1100], "ends inside a header");
    // Only the padding is cut, which some writers leave out at the end.
    assert_eq!(names(&good[..517]), ["a"]);
    assert_eq!(names(&good[..700]), ["a"]);
    check_refused(&Archive::default().pax(&[("path", b"x")]).0, "without a member");
    check_refused(&Archive(vec![0; 512]).file("x", b"").0, "single block");
    check_refused(
        &Archive::default().entry(Header { name: b"x", kind: b'V', ..Header::default() }, b"").end(),
        "type",
    );
    let records: [&[u8]; 6] =
        [b"5 a=", b"8 path=x\n", b"0 path=x\n", b"99999999999 a=b\n", b"8 =abcd\n", b"11 mtime=x\n"];
    for text in records {
        let stream = Archive::default().entry(Header { name: b"x", kind: b'x', ..Header::default() }, text);
        read(&stream.file("f", b"").end()).unwrap_err();
    }
}

#[test]
fn huge_records_are_refused_before_they_are_read() {
    let header = Header { name: b"x", kind: b'x', size: 4 << 30, ..Header::default() };
    check_refused(&header.block(), "too long");
    let mut many = Archive::default();
    for _ in 0..9 {
        many = many.entry(Header { name: b"x", kind: b'L', ..Header::default() }, &vec![b'a'; 1 << 20]);
    }
    check_refused(&many.0, "too long");
}

/// What this many bytes cost by the square would take minutes.
fn check_is_quick(stream: &[u8], why: &str) {
    let start = std::time::Instant::now();
    check_refused(stream, why);
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn attributes_without_end_are_refused_at_once() {
    let records = |part: usize| -> Vec<u8> {
        (0..36_000).flat_map(|n| format!("28 SCHILY.xattr.u.{part}{n:07}=\n").into_bytes()).collect()
    };
    let mut many = Archive::default();
    for part in 0..8 {
        many = many.entry(Header { name: b"x", kind: b'x', ..Header::default() }, &records(part));
    }
    check_is_quick(&many.file("f", b"").end(), "too many extended attributes");
}

#[test]
fn a_long_sparse_map_is_taken_apart_once() {
    let map = format!("200000\n{}", "0\n0\n".repeat(199_999));
    let pax: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"0")];
    check_is_quick(&Archive::default().pax(&pax).file("f", map.as_bytes()).end(), "cut off");
}

#[test]
fn the_end_is_the_end_however_it_comes() {
    let members = Archive::default().file("a", b"x").0;
    for tail in [&[][..], &[0; 512], &[0; 1024], &[0; 10240], &[&[0u8; 1024][..], b"rest"].concat()] {
        let stream = [&members[..], tail].concat();
        assert_eq!(names(&stream), ["a"]);
    }
    assert!(names(b"").is_empty());
}

proptest! {
    #[test]
    fn no_input_makes_it_panic(mut blocks in prop::collection::vec(any::<u8>(), 0..3000), sealed in any::<bool>(), kind in any::<u8>()) {
        if sealed && blocks.len() >= 512 {
            let mut block: [u8; 512] = blocks[..512].try_into().unwrap();
            block[156] = kind;
            for at in [100, 108, 116, 124, 136] {
                block[at..at + 8].copy_from_slice(b"0000777\0");
            }
            seal(&mut block);
            blocks[..512].copy_from_slice(&block);
        }
        let _ = read(&blocks);
    }

    #[test]
    fn damaged_archives_never_panic(at in 0usize..4000, byte in any::<u8>(), cut in 0usize..5000) {
        let mut stream = Archive::default()
            .pax(&[("path", b"long"), ("SCHILY.xattr.user.x", b"y"), ("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"5")])
            .file("a", b"hello")
            .dir("d/")
            .hardlink("h", "a")
            .file("b", &[7; 1000])
            .end();
        let at = at % stream.len();
        stream[at] = byte;
        let block = at / 512 * 512;
        if let Ok(mut header) = <[u8; 512]>::try_from(&stream[block..block + 512]) {
            seal(&mut header);
            stream[block..block + 512].copy_from_slice(&header);
        }
        stream.truncate(cut.min(stream.len()));
        let _ = read(&stream);
    }

    #[test]
    fn tap_and_contents_together_are_the_stream(files in prop::collection::vec(("[a-z]{1,20}", prop::collection::vec(any::<u8>(), 0..2000)), 0..10), tail in 0usize..3000) {
        let mut archive = Archive::default();
        for (name, content) in &files {
            archive = archive.file(name, content);
        }
        let mut stream = archive.end();
        stream.resize(stream.len() + tail, 0);
        let (members, tapped) = read(&stream).unwrap();
        let content: usize = members.iter().map(|(_, content)| content.len()).sum();
        prop_assert_eq!(content + tapped.len(), stream.len());
        let read: Vec<_> = members.into_iter().map(|(e, c)| (String::from_utf8(e.name).unwrap(), c)).collect();
        prop_assert_eq!(read, files);
    }
}

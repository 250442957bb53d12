//! The formats of cgroup files, from bytes. What is malformed is left out, never guessed.

/// Averages and total of one line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiLine {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// Microseconds altogether.
    pub total_us: u64,
}

/// A pressure file (`Documentation/accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// Time in which at least one task waited.
    pub some: PsiLine,
    /// Time in which every task waited.
    pub full: PsiLine,
}

/// What went between a cgroup and one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Number of the device.
    pub major: u32,
    /// Number of the device.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
    /// Discard requests.
    pub discards: u64,
}

/// The one number of a file. None for `max`, `-1` and whatever else is no number.
pub fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes.trim_ascii()).ok()?.parse().ok()
}

/// Calls back for each line `KEY NUMBER`.
pub fn keyed<'a>(bytes: &'a [u8], mut take: impl FnMut(&'a [u8], u64)) {
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else { continue };
        let (key, value) = line.split_at(space);
        if let Some(value) = number(value) {
            take(key, value);
        }
    }
}

/// A pressure file. None if it has no line `some`; `full` is absent for the CPU on kernels before 5.13.
pub fn psi(bytes: &[u8]) -> Option<Psi> {
    let text = std::str::from_utf8(bytes).ok()?;
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).and_then(psi_line);
    Some(Psi { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

fn psi_line(line: &str) -> Option<PsiLine> {
    let mut psi = PsiLine::default();
    let mut total = None;
    for field in line.split_ascii_whitespace() {
        let (key, value) = field.split_once('=')?;
        match key {
            "avg10" => psi.avg10 = percent(value)?,
            "avg60" => psi.avg60 = percent(value)?,
            "avg300" => psi.avg300 = percent(value)?,
            "total" => total = value.parse().ok(),
            _ => {}
        }
    }
    Some(PsiLine { total_us: total?, ..psi })
}

/// `NaN` and the like are numbers to the parser of the language, but none of the kernel's.
fn percent(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)
}

/// `io.stat` of v2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
pub fn io_v2(bytes: &[u8]) -> Vec<DeviceIo> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Vec::new() };
    text.lines().filter_map(io_v2_line).collect()
}

fn io_v2_line(line: &str) -> Option<DeviceIo> {
    let mut fields = line.split_ascii_whitespace();
    let (major, minor) = device(fields.next()?)?;
    let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
    for field in fields {
        let Some((key, value)) = field.split_once('=') else { continue };
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => io.read_bytes = value,
            "wbytes" => io.write_bytes = value,
            "rios" => io.reads = value,
            "wios" => io.writes = value,
            "dbytes" => io.discard_bytes = value,
            "dios" => io.discards = value,
            // Controllers of I/O add fields of their own.
            _ => {}
        }
    }
    Some(io)
}

/// `blkio.throttle.io_service_bytes` and `blkio.throttle.io_serviced` of v1: `8:0 Read 4096`, one line an operation.
pub fn io_v1(service_bytes: &[u8], serviced: &[u8]) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    let mut lines = |bytes: &[u8], is_bytes: bool| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        for ((major, minor), operation, value) in text.lines().filter_map(io_v1_line) {
            let known = devices.iter().position(|io| (io.major, io.minor) == (major, minor));
            let index = known.unwrap_or_else(|| {
                devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
                devices.len() - 1
            });
            let io = &mut devices[index];
            match (operation, is_bytes) {
                ("Read", true) => io.read_bytes = value,
                ("Write", true) => io.write_bytes = value,
                ("Discard", true) => io.discard_bytes = value,
                ("Read", false) => io.reads = value,
                ("Write", false) => io.writes = value,
                ("Discard", false) => io.discards = value,
                // Sums of these.
                _ => {}
            }
        }
    };
    lines(service_bytes, true);
    lines(serviced, false);
    devices
}

fn io_v1_line(line: &str) -> Option<((u32, u32), &str, u64)> {
    let mut fields = line.split_ascii_whitespace();
    Some((device(fields.next()?)?, fields.next()?, fields.next()?.parse().ok()?))
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_numbers_and_max_is_none() {
        for (text, value) in [
            ("0\n", Some(0)),
            (" 42 \n", Some(42)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("max\n", None),
            ("-1\n", None),
            ("", None),
        ] {
            assert_eq!(number(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn keyed_lines_are_read_whatever_stands_between_them() {
        let mut seen = Vec::new();
        keyed(b"cache 1\nnonsense\ntotal_rss 22\nx y\n hugetlb\nlast 3", |key, value| {
            seen.push((String::from_utf8_lossy(key).into_owned(), value));
        });
        assert_eq!(seen, [("cache".to_owned(), 1), ("total_rss".to_owned(), 22), ("last".to_owned(), 3)]);
    }

    #[test]
    fn pressure_is_read_with_and_without_full() {
        let both = b"some avg10=1.50 avg60=0.25 avg300=0.00 total=123456\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let read = psi(both).expect("a pressure file");
        assert_eq!(
            (read.some.avg10, read.some.avg60, read.some.total_us, read.full.total_us),
            (1.5, 0.25, 123_456, 7)
        );
        let some = psi(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n").expect("an old kernel's");
        assert_eq!((some.some.total_us, some.full), (9, PsiLine::default()));
        for wrong in
            ["", "full avg10=0 avg60=0 avg300=0 total=1", "some total=", "some avg10=NaN total=1", "some x"]
        {
            assert_eq!(psi(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn devices_of_v2_are_read_with_fields_of_other_controllers() {
        let text =
            b"8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=512 dios=3 cost.usage=9\n254:16 \nnvme x\n";
        let expected = DeviceIo {
            major: 8,
            minor: 0,
            read_bytes: 4096,
            write_bytes: 8192,
            reads: 1,
            writes: 2,
            discard_bytes: 512,
            discards: 3,
        };
        let idle = DeviceIo { major: 254, minor: 16, ..DeviceIo::default() };
        assert_eq!(io_v2(text), [expected, idle]);
    }

    #[test]
    fn devices_of_v1_are_joined_from_two_files() {
        let bytes = b"254:0 Read 4096\n254:0 Write 0\n254:0 Sync 4096\n254:0 Discard 1\n254:0 Total 4096\nTotal 4096\n";
        let requests = b"254:0 Read 1\n254:0 Write 0\n8:16 Write 5\nTotal 1\n";
        let read = io_v1(bytes, requests);
        let first =
            DeviceIo { major: 254, read_bytes: 4096, reads: 1, discard_bytes: 1, ..DeviceIo::default() };
        assert_eq!(read, [first, DeviceIo { major: 8, minor: 16, writes: 5, ..DeviceIo::default() }]);
        assert!(io_v1(b"Total 0\n", b"Total 0\n").is_empty());
    }

    proptest! {
        #[test]
        fn no_input_makes_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            number(&bytes);
            keyed(&bytes, |_, _| {});
            psi(&bytes);
            io_v2(&bytes);
            io_v1(&bytes, &bytes);
        }

        #[test]
        fn whatever_numbers_the_kernel_prints_are_read_back(
            pairs in proptest::collection::vec(("[a-z_]{1,20}", any::<u64>()), 0..20),
            total: u64,
            percent in 0u32..10_000,
        ) {
            let text: String = pairs.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
            let mut read = Vec::new();
            keyed(text.as_bytes(), |key, value| read.push((String::from_utf8_lossy(key).into_owned(), value)));
            prop_assert_eq!(&read, &pairs);
            let (whole, part) = (percent / 100, percent % 100);
            let line = format!("some avg10={whole}.{part:02} avg60=0.00 avg300=0.00 total={total}\n");
            let read = psi(line.as_bytes()).expect("a pressure file");
            prop_assert_eq!(read.some.total_us, total);
            prop_assert!((read.some.avg10 - f64::from(percent) / 100.0).abs() < 1e-9);
        }
    }
}

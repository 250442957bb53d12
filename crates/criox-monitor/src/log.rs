//! The CRI log format: `2016-10-06T00:17:09.669794202Z stdout F line`, one record a line; P marks a record that
//! the next one of its stream continues.

/// The longest piece of a line in one record; longer lines go on in further records.
pub(crate) const MAX_PIECE: usize = 16 * 1024;

/// Which stream of a container bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn field(self) -> &'static [u8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// A time as RFC 3339 gives it, in UTC with nanoseconds.
pub(crate) type Timestamp = [u8; 30];

/// Formats nanoseconds since the epoch (not before it).
pub(crate) fn timestamp(nanoseconds: i64) -> Timestamp {
    let seconds = nanoseconds.max(0) / 1_000_000_000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to civil date, counted from 1 March of year 0, whose leap day comes last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);

    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], of_day / 3_600);
    put(&mut text[14..16], of_day / 60 % 60);
    put(&mut text[17..19], of_day % 60);
    put(&mut text[20..29], nanoseconds.max(0) % 1_000_000_000);
    text
}

/// Decimal digits, right-aligned over zeroes.
fn put(field: &mut [u8], mut value: i64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Makes records of the bytes of one stream. Holds the end of the last read while its line is unfinished.
#[derive(Debug)]
pub(crate) struct Splitter {
    stream: Stream,
    tail: Vec<u8>,
}

impl Splitter {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, tail: Vec::new() }
    }

    /// Takes in bytes; appends records to `out` and returns how many.
    pub(crate) fn feed(&mut self, bytes: &[u8], time: &Timestamp, out: &mut Vec<u8>) -> u64 {
        let mut records = 0;
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            records += self.line(&rest[..end], time, out);
            rest = &rest[end + 1..];
        }
        self.tail.extend_from_slice(rest);
        while self.tail.len() >= MAX_PIECE {
            let tail = std::mem::take(&mut self.tail);
            self.record(&tail[..MAX_PIECE], b'P', time, out);
            self.tail.extend_from_slice(&tail[MAX_PIECE..]);
            records += 1;
        }
        records
    }

    /// Whether an unfinished line waits.
    pub(crate) fn holds(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Writes the unfinished line as a P record (it has waited long enough).
    pub(crate) fn release(&mut self, time: &Timestamp, out: &mut Vec<u8>) -> u64 {
        if self.tail.is_empty() {
            return 0;
        }
        let tail = std::mem::take(&mut self.tail);
        self.record(&tail, b'P', time, out);
        1
    }

    /// The stream has ended. A last line without a newline stays one, as a P record: a termination message that the
    /// kubelet takes from the log must not get a newline that nobody wrote.
    pub(crate) fn finish(&mut self, time: &Timestamp, out: &mut Vec<u8>) -> u64 {
        self.release(time, out)
    }

    fn line(&mut self, end: &[u8], time: &Timestamp, out: &mut Vec<u8>) -> u64 {
        if self.tail.is_empty() && end.len() <= MAX_PIECE {
            self.record(end, b'F', time, out);
            return 1;
        }
        let mut line = std::mem::take(&mut self.tail);
        line.extend_from_slice(end);
        let mut records = 0;
        let mut pieces = line.chunks(MAX_PIECE).peekable();
        while let Some(piece) = pieces.next() {
            let tag = if pieces.peek().is_some() { b'P' } else { b'F' };
            self.record(piece, tag, time, out);
            records += 1;
        }
        records
    }

    fn record(&self, piece: &[u8], tag: u8, time: &Timestamp, out: &mut Vec<u8>) {
        out.reserve(time.len() + 11 + piece.len());
        out.extend_from_slice(time);
        out.extend_from_slice(self.stream.field());
        out.extend_from_slice(&[tag, b' ']);
        out.extend_from_slice(piece);
        out.push(b'\n');
    }
}

/// A record, read again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) stream: Stream,
    /// The next one of its stream continues it.
    pub(crate) partial: bool,
    pub(crate) piece: &'a [u8],
    /// Bytes that it takes in the log.
    pub(crate) length: usize,
}

/// The records in what a [`Splitter`] has made.
pub(crate) fn records(data: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let length = memchr::memchr(b'\n', rest)? + 1;
        let (line, after) = rest.split_at(length);
        rest = after;
        let stream =
            if line[30..].starts_with(Stream::Stdout.field()) { Stream::Stdout } else { Stream::Stderr };
        Some(Record { stream, partial: line[38] == b'P', piece: &line[40..length - 1], length })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIME: &str = "2016-10-06T00:17:09.669794202Z";

    #[track_caller]
    fn check(reads: &[&str], expected: &str) {
        let time = timestamp(1_475_713_029_669_794_202);
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut out = Vec::new();
        for read in reads {
            splitter.feed(read.as_bytes(), &time, &mut out);
        }
        splitter.finish(&time, &mut out);
        assert_eq!(String::from_utf8(out).unwrap().replace(TIME, "T"), expected);
    }

    #[test]
    fn timestamps_are_rfc_3339_with_nanoseconds() {
        for (nanoseconds, expected) in [
            (1_475_713_029_669_794_202, TIME),
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (4_107_542_399_999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&timestamp(nanoseconds)).unwrap(), expected);
        }
    }

    #[test]
    fn lines_become_full_records_wherever_reads_cut_them() {
        check(&["a\nbc\n"], "T stdout F a\nT stdout F bc\n");
        check(&["a", "\nb", "c\n"], "T stdout F a\nT stdout F bc\n");
        check(&["\n\n"], "T stdout F \nT stdout F \n");
    }

    #[test]
    fn an_unfinished_last_line_stays_unfinished() {
        check(&["a\nb"], "T stdout F a\nT stdout P b\n");
    }

    #[test]
    fn carriage_returns_and_escapes_are_data() {
        check(&["a\rb\x1b[0m\n"], "T stdout F a\rb\x1b[0m\n");
    }

    #[test]
    fn a_long_line_is_continued() {
        let long = "x".repeat(MAX_PIECE);
        check(&[&long, "y\n"], &format!("T stdout P {long}\nT stdout F y\n"));
        check(&[&format!("{long}y\n")], &format!("T stdout P {long}\nT stdout F y\n"));
        check(&[&long], &format!("T stdout P {long}\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn records_joined_give_the_stream_back(
            reads in proptest::collection::vec(proptest::collection::vec(prop_oneof![5 => any::<u8>(), 1 => Just(b'\n')], 0..40_000), 0..6),
        ) {
            let time = timestamp(1);
            let mut splitter = Splitter::new(Stream::Stderr);
            let (mut out, mut records) = (Vec::new(), 0);
            for read in &reads {
                records += splitter.feed(read, &time, &mut out);
            }
            records += splitter.finish(&time, &mut out);
            let (mut joined, mut count) = (Vec::new(), 0);
            for record in out.split_inclusive(|b| *b == b'\n') {
                prop_assert_eq!(&record[..38], &[&time[..], b" stderr "].concat()[..]);
                prop_assert!(record.len() <= 41 + MAX_PIECE);
                joined.extend_from_slice(&record[40..record.len() - 1]);
                if record[38] == b'F' { joined.push(b'\n'); }
                count += 1;
            }
            prop_assert_eq!(joined, reads.concat());
            let again = super::records(&out).map(|record| {
                (record.stream == Stream::Stderr, record.partial, record.piece.to_vec(), record.length)
            });
            let lines = out.split_inclusive(|b| *b == b'\n').map(|line| {
                (true, line[38] == b'P', line[40..line.len() - 1].to_vec(), line.len())
            });
            prop_assert!(again.eq(lines));
            prop_assert_eq!(count, records);
        }
    }
}

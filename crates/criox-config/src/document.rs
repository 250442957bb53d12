//! A TOML file with the line of every key.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::{Origin, Problems};

/// Size above which a configuration file is refused: no real one comes near, and a wrong path (a log, a device) must
/// not be read into memory.
const MAX_FILE: u64 = 8 << 20;

/// Reads a whole file. `Ok(None)` if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Problems> {
    use std::io::Read;
    let fail = |e: std::io::Error| Problems::one(Origin::whole(path), "", format!("can't be read: {e}"));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Problems::one(Origin::whole(path), "", format!("larger than {} MiB", MAX_FILE >> 20)));
    }
    Ok(Some(bytes))
}

/// The text of one file, to be parsed by [`Document::parse`].
pub(crate) struct Document<'a> {
    path: PathBuf,
    text: &'a str,
    newlines: Vec<usize>,
}

impl<'a> Document<'a> {
    /// Takes bytes as UTF-8.
    pub(crate) fn new(path: &Path, bytes: &'a [u8]) -> Result<Self, Problems> {
        let newlines: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i).collect();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self { path: path.to_owned(), text, newlines }),
            Err(e) => {
                let line = line_of(&newlines, e.valid_up_to());
                Err(Problems::one(Origin::File { path: path.to_owned(), line }, "", "is not UTF-8 text"))
            }
        }
    }

    /// Parses the text. Syntax errors of all lines are reported, of each line the first: the others follow from it.
    pub(crate) fn parse(&self) -> Result<DeTable<'a>, Problems> {
        let (table, problems) = self.parse_partly();
        problems.or(table)
    }

    /// As [`Self::parse`], with what could be read beside the errors, so that other mistakes can be told, too.
    pub(crate) fn parse_partly(&self) -> (DeTable<'a>, Problems) {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        let mut problems = Problems::default();
        for error in errors {
            let at = self.at(error.span().map_or(0, |span| span.start));
            if problems.iter().all(|other| other.origin != at) {
                problems.add(at, "", error.message().replace('\n', ", "));
            }
        }
        (table.into_inner(), problems)
    }

    /// The origin of what starts at this byte.
    pub(crate) fn at(&self, byte: usize) -> Origin {
        Origin::File { path: self.path.clone(), line: line_of(&self.newlines, byte) }
    }

    /// The origin of a key.
    pub(crate) fn origin<T>(&self, spanned: &Spanned<T>) -> Origin {
        self.at(spanned.span().start)
    }
}

fn line_of(newlines: &[usize], byte: usize) -> usize {
    newlines.partition_point(|n| *n < byte) + 1
}

/// A value without its spans. Fails on a number that is out of range.
pub(crate) fn plain(value: &DeValue<'_>) -> Result<toml::Value, String> {
    Ok(match value {
        DeValue::String(s) => toml::Value::String(s.to_string()),
        DeValue::Integer(i) => toml::Value::Integer(
            i64::from_str_radix(i.as_str(), i.radix()).map_err(|_| format!("number {i} is out of range"))?,
        ),
        DeValue::Float(f) => {
            toml::Value::Float(f.as_str().parse().map_err(|_| format!("bad number {}", f.as_str()))?)
        }
        DeValue::Boolean(b) => toml::Value::Boolean(*b),
        DeValue::Datetime(d) => toml::Value::Datetime(*d),
        DeValue::Array(a) => {
            toml::Value::Array(a.iter().map(|v| plain(v.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(t) => {
            let mut table = toml::Table::new();
            for (key, value) in t {
                table.insert(key.get_ref().to_string(), plain(value.get_ref())?);
            }
            toml::Value::Table(table)
        }
    })
}

/// Finds a key as Go's TOML decoder does: exactly, else without regard to case.
pub(crate) fn find<'t, 'i>(
    table: &'t DeTable<'i>,
    name: &str,
) -> Option<(&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
    let exact = table.iter().find(|(k, _)| k.get_ref() == name);
    exact.or_else(|| table.iter().find(|(k, _)| k.get_ref().eq_ignore_ascii_case(name)))
}

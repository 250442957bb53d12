//! Tables of `crio.conf` as data: every key with its type, default, effect and meaning stands in one place.

use std::collections::BTreeMap;

use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::document::{Document, find, plain};
use crate::field::Kind;
use crate::problem::{KeyRef, Origin, Problems};

/// What setting a key does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It takes effect.
    Now,
    /// Accepted; the part that it steers is not there yet.
    NotYet,
    /// Names something that exists in CRI-O only (conmon, pinns, gRPC of Go).
    WithoutMeaning,
}

/// A key of `crio.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The table, as `crio.runtime`.
    pub table: &'static str,
    /// The key in that table.
    pub name: &'static str,
    /// The type of its value.
    pub kind: Kind,
    /// What setting it does.
    pub effect: Effect,
    /// Its meaning, one line an element.
    pub doc: &'static [&'static str],
}

impl Key {
    /// `crio.runtime.cgroup_manager`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.table, self.name)
    }
}

/// A table whose keys are the fields of a struct.
pub(crate) trait Section {
    const TABLE: &'static str;
    const KEYS: &'static [Key];
    /// Sets a key of [`Self::KEYS`]; the error says what the value should be.
    fn set(&mut self, name: &str, value: &Value) -> Result<(), String>;
    /// The value of a key of [`Self::KEYS`].
    fn get(&self, name: &str) -> Option<Value>;
}

/// Declares a [`Section`]: `effect name: type = default;` a key, then optionally further fields that are no keys.
macro_rules! section {
    (
        $(#[doc = $sdoc:literal])*
        $name:ident = $path:literal {
            $( $(#[doc = $doc:literal])* $effect:ident $field:ident : $ty:ty = $default:expr; )*
        }
        $( tables { $( $(#[doc = $tdoc:literal])* $table:ident : $tty:ty = $tdefault:expr; )* } )?
    ) => {
        $(#[doc = $sdoc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $field: $ty, )*
            $( $( $(#[doc = $tdoc])* pub $table: $tty, )* )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* $( $( $table: $tdefault, )* )? }
            }
        }

        impl $crate::table::Section for $name {
            const TABLE: &'static str = $path;
            const KEYS: &'static [$crate::table::Key] = &[ $( $crate::table::Key {
                table: $path,
                name: stringify!($field),
                kind: <$ty as $crate::field::Field>::KIND,
                effect: $crate::table::Effect::$effect,
                doc: &[$($doc),*],
            }, )* ];

            fn set(&mut self, name: &str, value: &toml::Value) -> Result<(), String> {
                match name {
                    $( stringify!($field) => self.$field = $crate::field::Field::read(value)?, )*
                    _ => return Err("is not a key of this table".to_owned()),
                }
                Ok(())
            }

            fn get(&self, name: &str) -> Option<toml::Value> {
                match name {
                    $( stringify!($field) => Some($crate::field::Field::write(&self.$field)), )*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use section;

/// What reading files leaves besides the values.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    pub(crate) problems: Problems,
    /// Where each key was set last.
    pub(crate) origins: BTreeMap<String, Origin>,
    /// Keys that nobody knows.
    pub(crate) unknown: Vec<KeyRef>,
    /// A file could be read in part only: that something is missing is no mistake of its own then.
    pub(crate) partial: bool,
}

/// Sets the keys of `section` that `table` has. `at` is the table's name as shown to users; `tables` are the names in
/// it that are not keys of the section but read by the caller.
pub(crate) fn apply<S: Section>(
    section: &mut S,
    at: &str,
    doc: &Document<'_>,
    table: &DeTable<'_>,
    tables: &[&str],
    sink: &mut Sink,
) {
    for key in S::KEYS {
        let Some((name, value)) = find_dashed(table, key.name) else { continue };
        let origin = doc.origin(name);
        let path = format!("{at}.{}", key.name);
        if let Err(message) = plain(value.get_ref()).and_then(|value| section.set(key.name, &value)) {
            let shown = format!("{at}.{}", name.get_ref());
            sink.problems.add(origin.clone(), shown.trim_start_matches('.'), message);
        }
        sink.origins.insert(path, origin);
    }
    for name in table.keys() {
        let same = |known: &str| dashed_eq(name.get_ref(), known);
        if !S::KEYS.iter().any(|key| same(key.name)) && !tables.iter().any(|known| same(known)) {
            let key = format!("{at}.{}", name.get_ref()).trim_start_matches('.').to_owned();
            sink.unknown.push(KeyRef { key, origin: doc.origin(name) });
        }
    }
}

/// storage.conf and registries.conf write dashes where a field's name has underscores.
fn find_dashed<'t, 'i>(
    table: &'t DeTable<'i>,
    name: &str,
) -> Option<(&'t toml::Spanned<std::borrow::Cow<'i, str>>, &'t toml::Spanned<DeValue<'i>>)> {
    find(table, name).or_else(|| table.iter().find(|(k, _)| dashed_eq(k.get_ref(), name)))
}

fn dashed_eq(written: &str, name: &str) -> bool {
    written.len() == name.len() && written.replace('-', "_").eq_ignore_ascii_case(name)
}

/// The table of that name, if there is one; something else of that name is a problem.
pub(crate) fn subtable<'t, 'i>(
    doc: &Document<'_>,
    table: &'t DeTable<'i>,
    at: &str,
    name: &str,
    sink: &mut Sink,
) -> Option<&'t DeTable<'i>> {
    let (key, value) = find(table, name)?;
    match value.get_ref() {
        DeValue::Table(table) => Some(table),
        other => {
            let message = format!("must be a table, not {}", other.type_str());
            sink.problems.add(doc.origin(key), format!("{at}.{name}").trim_start_matches('.'), message);
            None
        }
    }
}

//! The types a key can have, and how they are read from and written to TOML.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

/// What kind of value a key or a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// Go's notation, or nanoseconds in a file.
    Duration,
    /// A list of texts.
    List,
    /// A table of texts.
    Map,
}

impl Kind {
    fn wanted(self) -> &'static str {
        match self {
            Self::String => "text in quotes",
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Duration => "a duration such as \"5s\"",
            Self::List => "a list of texts",
            Self::Map => "a table of texts",
        }
    }
}

/// A type that a key can have. `read` of what `write` gave is the same value.
pub(crate) trait Field: Sized + PartialEq {
    const KIND: Kind;
    fn read(value: &Value) -> Result<Self, String>;
    fn write(&self) -> Value;
}

/// A type that is written as one text.
pub(crate) trait Text: Sized + PartialEq {
    /// `Ok(None)` leaves the entry out of a list.
    fn parse(text: &str) -> Result<Option<Self>, String>;
    fn text(&self) -> String;
}

fn mismatch(kind: Kind, value: &Value) -> String {
    format!("must be {}, not {}", kind.wanted(), value.type_str())
}

impl Field for String {
    const KIND: Kind = Kind::String;
    fn read(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| mismatch(Self::KIND, value))
    }
    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Field for PathBuf {
    const KIND: Kind = Kind::String;
    fn read(value: &Value) -> Result<Self, String> {
        let text = String::read(value)?;
        if text.contains('\0') { Err("contains a NUL byte".to_owned()) } else { Ok(text.into()) }
    }
    fn write(&self) -> Value {
        Value::String(self.to_string_lossy().into_owned())
    }
}

impl Field for Option<PathBuf> {
    const KIND: Kind = Kind::String;
    fn read(value: &Value) -> Result<Self, String> {
        let path = PathBuf::read(value)?;
        Ok(if path.as_os_str().is_empty() { None } else { Some(path) })
    }
    fn write(&self) -> Value {
        self.as_ref().map_or_else(|| Value::String(String::new()), Field::write)
    }
}

impl Field for bool {
    const KIND: Kind = Kind::Bool;
    fn read(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| mismatch(Self::KIND, value))
    }
    fn write(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Field for i64 {
    const KIND: Kind = Kind::Int;
    fn read(value: &Value) -> Result<Self, String> {
        value.as_integer().ok_or_else(|| mismatch(Self::KIND, value))
    }
    fn write(&self) -> Value {
        Value::Integer(*self)
    }
}

macro_rules! narrow {
    ($($ty:ty),*) => { $(
        impl Field for $ty {
            const KIND: Kind = Kind::Int;
            fn read(value: &Value) -> Result<Self, String> {
                let n = i64::read(value)?;
                n.try_into().map_err(|_| format!("{n} is not between {} and {}", <$ty>::MIN, <$ty>::MAX))
            }
            fn write(&self) -> Value {
                Value::Integer(i64::from(*self))
            }
        }
    )* };
}
narrow!(u16, u32);

impl Field for Duration {
    const KIND: Kind = Kind::Duration;
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => crate::duration::parse(text),
            Value::Integer(n) => {
                u64::try_from(*n).map(Self::from_nanos).map_err(|_| format!("{n} is negative"))
            }
            _ => Err(mismatch(Self::KIND, value)),
        }
    }
    fn write(&self) -> Value {
        Value::String(crate::duration::format(*self))
    }
}

impl Field for BTreeMap<String, String> {
    const KIND: Kind = Kind::Map;
    fn read(value: &Value) -> Result<Self, String> {
        let table = value.as_table().ok_or_else(|| mismatch(Self::KIND, value))?;
        table
            .iter()
            .map(|(k, v)| match v.as_str() {
                Some(text) => Ok((k.clone(), text.to_owned())),
                None => Err(format!("value of \"{k}\" must be text in quotes, not {}", v.type_str())),
            })
            .collect()
    }
    fn write(&self) -> Value {
        Value::Table(self.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect())
    }
}

impl Text for String {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        Ok(Some(text.to_owned()))
    }
    fn text(&self) -> String {
        self.clone()
    }
}

impl Text for PathBuf {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.contains('\0') { Err("contains a NUL byte".to_owned()) } else { Ok(Some(text.into())) }
    }
    fn text(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl<T: Text> Field for Vec<T> {
    const KIND: Kind = Kind::List;
    fn read(value: &Value) -> Result<Self, String> {
        let array = value.as_array().ok_or_else(|| mismatch(Self::KIND, value))?;
        let mut items = Self::with_capacity(array.len());
        let mut errors = Vec::new();
        for (i, item) in array.iter().enumerate() {
            let parsed = match item.as_str() {
                Some(text) => T::parse(text),
                None => Err(format!("must be text in quotes, not {}", item.type_str())),
            };
            match parsed {
                Ok(item) => items.extend(item),
                Err(e) => errors.push(format!("entry {}: {e}", i + 1)),
            }
        }
        if errors.is_empty() { Ok(items) } else { Err(errors.join("; ")) }
    }
    fn write(&self) -> Value {
        Value::Array(self.iter().map(|item| Value::String(item.text())).collect())
    }
}

/// An enumeration of texts, as a key's type.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $text:literal $(| $alias:literal)* ),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $( $(#[$vmeta])* $variant, )* }

        impl $name {
            /// As written in the file.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::field::Field for $name {
            const KIND: $crate::field::Kind = $crate::field::Kind::String;
            fn read(value: &toml::Value) -> Result<Self, String> {
                let text = <String as $crate::field::Field>::read(value)?;
                match text.as_str() {
                    $( $text $(| $alias)* => Ok(Self::$variant), )*
                    _ => Err(format!("\"{text}\" is not one of {}", [$(concat!("\"", $text, "\"")),*].join(", "))),
                }
            }
            fn write(&self) -> toml::Value {
                toml::Value::String(self.as_str().to_owned())
            }
        }
    };
}
pub(crate) use choice;

//! Requests of which no record can be made.

use std::borrow::Cow;

/// A request without what its record needs. It is wrong by itself; repeating it is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    field: &'static str,
    reason: Cow<'static, str>,
}

impl FieldError {
    pub(crate) const fn new(field: &'static str, reason: &'static str) -> Self {
        Self { field, reason: Cow::Borrowed(reason) }
    }

    /// With a reason that tells a value.
    pub(crate) fn about(field: &'static str, reason: String) -> Self {
        Self { field, reason: Cow::Owned(reason) }
    }
}

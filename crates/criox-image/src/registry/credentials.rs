//! Credentials as headers. Nothing here is ever printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use criox_config::Credentials;
use http::HeaderValue;

/// The value of `Authorization` for the basic scheme, if there is a user and a password.
pub(crate) fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    if credentials.username.is_empty() || credentials.password.is_empty() {
        return None;
    }
    let text = STANDARD.encode(format!("{}:{}", credentials.username, credentials.password));
    secret_header(&format!("Basic {text}"))
}

/// A header value that `Debug` hides.
pub(crate) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_right_and_hidden() {
        let credentials =
            Credentials { username: "u".into(), password: "s3cr3t:x".into(), ..Default::default() };
        let header = basic(&credentials).unwrap();
        assert_eq!(header.to_str().unwrap(), "Basic dTpzM2NyM3Q6eA==");
        assert!(!format!("{header:?}").contains("dTpz"));
        assert!(basic(&Credentials::default()).is_none());
        assert!(secret_header("a\r\nb").is_none());
    }
}

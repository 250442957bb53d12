//! `Debug` of messages that hold secrets.

use std::fmt;

use crate::v1::AuthConfig;

/// What stands in place of a secret, when there is one.
fn shade(secret: &str) -> &'static str {
    if secret.is_empty() { "" } else { "<redacted>" }
}

/// Names the user and the server; the fields marked `debug_redact` in the protocol file are never printed.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &shade(&self.password))
            .field("auth", &shade(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &shade(&self.identity_token))
            .field("registry_token", &shade(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_credentials_shows_none_of_them() {
        let auth = AuthConfig {
            username: "alice".into(),
            password: "hunter2".into(),
            auth: "YWxpY2U6aHVudGVyMg==".into(),
            server_address: "registry.example".into(),
            identity_token: "idtoken".into(),
            registry_token: "regtoken".into(),
        };
        let text = format!("{auth:?} {auth:#?}");
        assert!(text.contains("alice") && text.contains("registry.example"), "{text}");
        for secret in ["hunter2", "YWxpY2U6aHVudGVyMg==", "idtoken", "regtoken"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }

    #[test]
    fn an_absent_credential_is_told_apart_from_a_hidden_one() {
        let text = format!("{:?}", AuthConfig { auth: "x".into(), ..AuthConfig::default() });
        assert!(text.contains(r#"password: """#) && text.contains(r#"auth: "<redacted>""#), "{text}");
    }
}

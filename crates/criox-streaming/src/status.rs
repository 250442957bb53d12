//! What a client reads on the error stream when its command has ended.

use serde_json::json;

use crate::backend::Failure;

/// How an exec or attach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    /// The command ended with this code, not 0.
    Code(u8),
    /// It could not be run, with the whole sentence.
    Failure(String),
}

impl Status {
    /// `doing` is "executing command in container" or "attaching to container".
    pub(crate) fn failure(doing: &str, failure: &Failure) -> Self {
        Self::Failure(format!("Internal error occurred: error {doing}: {failure}"))
    }

    fn text(&self) -> Option<String> {
        match self {
            Self::Success => None,
            Self::Code(code) => Some(format!("command terminated with non-zero exit code: exit code {code}")),
            Self::Failure(text) => Some(text.clone()),
        }
    }

    /// What is written: from version 4 of the protocol on an object (`metav1.Status`), before that a text, and nothing
    /// for success.
    pub(crate) fn encode(&self, version: u8) -> Vec<u8> {
        let Some(message) = self.text() else {
            return if version >= 4 { json!({"status": "Success"}).to_string().into() } else { Vec::new() };
        };
        if version < 4 {
            return message.into();
        }
        let status = match self {
            Self::Code(code) => {
                let causes = json!([{"reason": "ExitCode", "message": code.to_string()}]);
                json!({
                    "status": "Failure",
                    "message": message,
                    "reason": "NonZeroExitCode",
                    "details": {"causes": causes},
                })
            }
            _ => {
                json!({"status": "Failure", "message": message, "reason": "InternalError", "code": 500})
            }
        };
        status.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(status: &Status, version: u8, want: &str) {
        let bytes = status.encode(version);
        let text = String::from_utf8(bytes).unwrap();
        if version >= 4 {
            let (found, want): (Value, Value) =
                (serde_json::from_str(&text).unwrap(), serde_json::from_str(want).unwrap());
            assert_eq!(found, want);
        } else {
            assert_eq!(text, want);
        }
    }

    #[test]
    fn clients_find_the_exit_code_where_they_look_for_it() {
        check(&Status::Success, 4, r#"{"status":"Success"}"#);
        check(
            &Status::Code(7),
            4,
            r#"{"status":"Failure","message":"command terminated with non-zero exit code: exit code 7",
                "reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#,
        );
        let failed = Status::failure("executing command in container", &Failure::new("no such container"));
        check(
            &failed,
            5,
            r#"{"status":"Failure","reason":"InternalError","code":500,
                "message":"Internal error occurred: error executing command in container: no such container"}"#,
        );
    }

    #[test]
    fn old_clients_read_a_text() {
        check(&Status::Success, 3, "");
        check(&Status::Code(1), 2, "command terminated with non-zero exit code: exit code 1");
        let failed = Status::failure("attaching to container", &Failure::new("gone"));
        check(&failed, 1, "Internal error occurred: error attaching to container: gone");
    }
}

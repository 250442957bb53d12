//! `WWW-Authenticate` (RFC 9110 section 11.6.1): several challenges in one or more header lines.

/// One challenge of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// The scheme, in lower case.
    pub(crate) scheme: String,
    /// The parameters, names in lower case, in their order.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name (lower case).
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Reads one header value. What can't be read ends the list: a malformed tail never invalidates what stands
/// before it.
pub(crate) fn parse(value: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((word, after)) = token(rest) else { return challenges };
        // A word followed by "=" belongs to the challenge before it, any other begins a new one.
        match parameter_value(after) {
            Some((text, after)) if !challenges.is_empty() => {
                if let Some(challenge) = challenges.last_mut() {
                    challenge.parameters.push((word.to_ascii_lowercase(), text));
                }
                rest = after;
            }
            Some(_) => return challenges,
            None if after.trim_start_matches([' ', '\t']).starts_with('=') => return challenges,
            None => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = skip_token68(after);
            }
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|b| !(b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)));
    match end.unwrap_or(text.len()) {
        0 => None,
        end => Some(text.split_at(end)),
    }
}

/// `= value`, the value a token or a quoted string; some registries leave the quotes out where they are needed,
/// so that an unquoted value ends only at a comma or a blank.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start_matches([' ', '\t']).strip_prefix('=')?.trim_start_matches([' ', '\t']);
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        // "==" and the like is the padding of a token68, not a parameter.
        return (end > 0 && !text.starts_with('=')).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &quoted[at + 1..])),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

/// Passes over credentials such as those of Negotiate, which no registry needs.
fn skip_token68(text: &str) -> &str {
    let trimmed = text.trim_start_matches([' ', '\t']);
    let end = trimmed.find([',', ' ', '\t']).unwrap_or(trimmed.len());
    let word = &trimmed[..end];
    let is_token68 =
        word.ends_with('=') && !word.contains('"') && trimmed[end..].trim_start().starts_with([',', '\0'])
            || word.ends_with('=') && trimmed[end..].trim().is_empty();
    if is_token68 { &trimmed[end..] } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(value: &str, expect: &[(&str, &[(&str, &str)])]) {
        let got = parse(value);
        let got: Vec<(&str, Vec<(&str, &str)>)> = got
            .iter()
            .map(|c| {
                (c.scheme.as_str(), c.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect())
            })
            .collect();
        let expect: Vec<(&str, Vec<(&str, &str)>)> = expect.iter().map(|(s, p)| (*s, p.to_vec())).collect();
        assert_eq!(got, expect, "{value}");
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push""#,
            &[(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:library/busybox:pull,push"),
                ],
            )],
        );
        check(r#"Basic realm="Registry Realm""#, &[("basic", &[("realm", "Registry Realm")])]);
        check("Basic", &[("basic", &[])]);
        check(
            r#"Bearer realm="a, \"b\"" , error = insufficient_scope, Basic Realm=x"#,
            &[
                ("bearer", &[("realm", "a, \"b\""), ("error", "insufficient_scope")]),
                ("basic", &[("realm", "x")]),
            ],
        );
        check("Negotiate YWJj==, Basic realm=\"r\"", &[("negotiate", &[]), ("basic", &[("realm", "r")])]);
        check(
            "Bearer realm=https://a.b/token?x=1,service=s",
            &[("bearer", &[("realm", "https://a.b/token?x=1"), ("service", "s")])],
        );
    }

    #[test]
    fn malformed_tails_end_the_list() {
        check("", &[]);
        check("=", &[]);
        check("realm=\"x\"", &[]);
        check("Bearer realm=\"unterminated", &[("bearer", &[])]);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_ends(value in "\\PC{0,120}") {
            prop_assert!(parse(&value).len() <= value.len());
        }
    }
}

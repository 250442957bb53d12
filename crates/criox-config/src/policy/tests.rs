use super::*;

const POLICY: &str = r#"{
  "default": [{"type": "reject"}],
  "transports": {
    "docker": {
      "quay.io": [{"type": "insecureAcceptAnything"}],
      "quay.io/team": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
      "quay.io/team/app:v1": [{"type": "insecureAcceptAnything"}],
      "*.example.com": [{"type": "insecureAcceptAnything"}, {"type": "sigstoreSigned", "keyData": "aGk="}],
      "*.b.example.com": [{"type": "insecureAcceptAnything"}]
    },
    "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]}
  }
}"#;

fn check(policy: &str, host: &str, repository: &str, tag: &str, want: &str) {
    let policy = Policy::parse(Path::new("p.json"), policy.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    let got = match policy.evaluate(host, repository, tag) {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Reject { scope } => format!("reject {scope}"),
        Verdict::NeedsSignature { scope, requirement } => format!("{requirement} {scope}"),
    };
    assert_eq!(got, want, "{host}/{repository}{tag}");
}

fn check_errors(text: &str, want: &[&str]) {
    let got = Policy::parse(Path::new("p.json"), text.as_bytes()).unwrap_err().to_string();
    let lines: Vec<&str> = got.lines().collect();
    assert_eq!(lines.len(), want.len(), "{text}\n{got}");
    for (line, want) in lines.iter().zip(want) {
        assert!(line.contains(want), "{text}\ngot {line}\nwanted {want}");
    }
}

#[test]
fn the_most_specific_scope_counts() {
    check(POLICY, "quay.io", "other/app", ":v1", "accept");
    check(POLICY, "quay.io", "team/app", ":v1", "accept");
    check(POLICY, "quay.io", "team/app", ":v2", "signedBy docker:quay.io/team");
    check(POLICY, "quay.io", "team/app", "@sha256:0", "signedBy docker:quay.io/team");
    check(POLICY, "quay.io", "teams/app", ":v1", "accept");
    check(POLICY, "docker.io", "library/x", ":1", "reject default");
    check(POLICY, "a.example.com:5000", "x", ":1", "sigstoreSigned docker:*.example.com");
    check(POLICY, "a.b.example.com", "x", ":1", "accept");
    check(POLICY, "example.com", "x", ":1", "reject default");
}

#[test]
fn the_transports_default_goes_before_the_policys() {
    let text =
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"insecureAcceptAnything"}]}}}"#;
    check(text, "a.io", "x", ":1", "accept");
}

#[test]
fn one_reject_or_an_unimplemented_requirement_rejects() {
    let text = r#"{"default":[{"type":"insecureAcceptAnything"},{"type":"reject"}]}"#;
    check(text, "a.io", "x", ":1", "reject default");
    let text = r#"{"default":[{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}]}"#;
    check(text, "a.io", "x", ":1", "reject default");
}

#[test]
fn all_mistakes_are_reported_and_nothing_unknown_is_passed_over() {
    check_errors("{}", &["default: must be there"]);
    check_errors("[]", &["must be an object", "default: must be there"]);
    check_errors(r#"{"default":[]}"#, &["must not be empty"]);
    check_errors(r#"{"default":[{"type":"reject"}],"defaults":1}"#, &["\"defaults\" is unknown"]);
    check_errors(r#"{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}"#, &["stands twice"]);
    check_errors("{\n\"default\": oops}", &["p.json:2: "]);
    check_errors(
        r#"{"default":[{"type":"accept"},{"type":"reject","keyPath":"/k"},1],
            "transports":{"docker":{"a.io":[{"type":"signedBy","keyType":"PGP","keyPath":"/k","keyData":"x"}]}}}"#,
        &[
            "default[0]: \"accept\" is not a type",
            "default[1]: \"keyPath\" is unknown",
            "default[2]: must be an object",
            "transports.docker.\"a.io\"[0]: \"keyType\" must be one of",
            "exactly one of keyPath, keyPaths, keyData",
        ],
    );
    check_errors(
        r#"{"default":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i"},"signedIdentity":{"type":"remapIdentity","prefix":"a"}},
            {"type":"sigstoreSigned","pki":{"caRootsPath":"/r","subjectEmail":"e"},"rekorPublicKeyPath":"/k"}]}"#,
        &[
            "exactly one of subjectEmail",
            "needs a Rekor key",
            "exactly one of signedPrefix",
            "together with a Rekor key",
        ],
    );
}

#[test]
fn a_missing_policy_is_an_error() {
    let error = Policy::load(Path::new("/nonexistent/policy.json")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/policy.json: does not exist"), "{error}");
}

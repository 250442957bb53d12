use super::*;

fn encode(text: &str) -> String {
    BASE64.encode(text)
}

fn file() -> AuthFile {
    let text = format!(
        r#"{{"auths":{{
            "quay.io":{{"auth":"{}"}},
            "quay.io/team/app":{{"auth":"{}"}},
            "https://index.docker.io/v1/":{{"auth":"{}"}},
            "token.io":{{"auth":"{}","identitytoken":"idt"}},
            "empty.io":{{}},
            "bad.io":{{"auth":"***"}},
            "nocolon.io":{{"auth":"{}"}}
        }},"credHelpers":{{"helper.io":"ecr"}},"credsStore":"ignored"}}"#,
        encode("host:pw"),
        encode("app:pw:with:colons"),
        encode("hub:pw\0\0"),
        encode("<token>:"),
        encode("nocolon"),
    );
    AuthFile::parse(Path::new("auth.json"), text.as_bytes()).unwrap()
}

fn check(host: &str, repository: &str, want: Option<(&str, &str)>) {
    let got = file().lookup(host, repository).unwrap();
    assert_eq!(got.as_ref().map(|c| (c.username.as_str(), c.password.as_str())), want, "{host}/{repository}");
}

#[test]
fn the_longest_path_counts_then_the_host_in_any_old_form() {
    check("quay.io", "team/app", Some(("app", "pw:with:colons")));
    check("quay.io", "team/app/sub", Some(("app", "pw:with:colons")));
    check("quay.io", "team/application", Some(("host", "pw")));
    check("quay.io", "x", Some(("host", "pw")));
    check("docker.io", "library/x", Some(("hub", "pw")));
    check("other.io", "x", None);
    check("empty.io", "x", None);
    check("nocolon.io", "x", None);
}

#[test]
fn tokens_helpers_and_damage_are_told_apart() {
    assert_eq!(file().lookup("token.io", "x").unwrap().unwrap().identity_token, "idt");
    let helper = file().lookup("helper.io", "x").unwrap_err();
    assert!(helper.to_string().contains("in the helper ecr"), "{helper}");
    let bad = file().lookup("bad.io", "x").unwrap_err();
    assert_eq!(bad, AuthError::Encoding { place: "\"bad.io\"".to_owned() });
}

#[test]
fn dockers_oldest_format_has_hosts_and_urls_as_keys() {
    let text = format!(r#"{{"https://a.io/v1/":{{"auth":"{}"}}}}"#, encode("u:p"));
    let old = AuthFile::parse(Path::new("/root/.dockercfg"), text.as_bytes()).unwrap();
    assert_eq!(old.lookup("a.io", "x").unwrap().unwrap().username, "u");
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let c = Credentials::from_cri("", "", &encode("user:s3cret"), "t0ken", "r3gistry").unwrap();
    assert_eq!((c.username.as_str(), c.password.as_str()), ("user", "s3cret"));
    for shown in [format!("{c:?}"), format!("{:?}", file())] {
        assert!(
            !["s3cret", "t0ken", "r3gistry", "idt", &encode("host:pw")].iter().any(|s| shown.contains(s)),
            "{shown}"
        );
    }
    let text = r#"{"auths":{"a.io":"s3cret"}}"#;
    let error = AuthFile::parse(Path::new("auth.json"), text.as_bytes()).unwrap_err().to_string();
    assert!(!error.contains("s3cret") && error.starts_with("auth.json:1: "), "{error}");
}

#[test]
fn credentials_of_a_request_may_be_empty_but_not_garbled() {
    assert!(Credentials::from_cri("", "pw", "", "", "").unwrap().is_empty());
    assert!(!Credentials::from_cri("u", "pw", "", "", "").unwrap().is_empty());
    assert!(Credentials::from_cri("u", "pw", "%%%", "", "").is_err());
    assert!(AuthFile::load(Path::new("/nonexistent")).unwrap().lookup("a.io", "x").unwrap().is_none());
}

#[test]
fn the_systems_files_are_searched_in_the_order_of_podman() {
    let env = |name: &str| (name == "HOME").then(|| "/root".to_owned());
    let paths: Vec<String> =
        AuthFile::system_paths(env, 0).iter().map(|path| path.display().to_string()).collect();
    assert_eq!(
        paths,
        [
            "/run/containers/0/auth.json",
            "/root/.config/containers/auth.json",
            "/root/.docker/config.json",
            "/root/.dockercfg"
        ]
    );
}

use super::*;

fn parse(text: &str) -> Registries {
    Registries::parse(Path::new("r.conf"), text.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

/// `name` (with `@` at its end for "has a digest") is pulled from these places: host, repository, then flags.
fn check(text: &str, name: &str, want: &[&str]) {
    let (bare, digest) = name.strip_suffix('@').map_or((name, false), |bare| (bare, true));
    let (host, repository) = bare.split_once('/').unwrap();
    let got: Vec<String> = match parse(text).resolve(host, repository, digest) {
        Ok(endpoints) => endpoints
            .iter()
            .map(|e| {
                let (insecure, mirror) =
                    (if e.insecure { " insecure" } else { "" }, if e.mirror { " mirror" } else { "" });
                format!("{} {}{insecure}{mirror}", e.host, e.repository)
            })
            .collect(),
        Err(e) => vec![e.to_string()],
    };
    assert_eq!(got, want, "{name} in\n{text}");
}

fn check_error(text: &str, want: &str) {
    let got = Registries::parse(Path::new("r.conf"), text.as_bytes()).unwrap_err().to_string();
    assert!(got.contains(want) && got.lines().count() == 1, "{text}\ngot {got}\nwanted {want}");
}

#[test]
fn names_without_an_entry_go_where_they_say() {
    check("", "quay.io/a/b", &["quay.io a/b"]);
}

#[test]
fn the_longest_prefix_counts_and_ends_at_a_separator() {
    let text = "[[registry]]\nprefix = \"example.com\"\nlocation = \"one.io\"\n\
                [[registry]]\nprefix = \"example.com/team\"\nlocation = \"two.io/x\"\n";
    check(text, "example.com/a", &["one.io a"]);
    check(text, "example.com/team/a", &["two.io x/a"]);
    check(text, "example.com/teams/a", &["one.io teams/a"]);
    check(text, "example.community/a", &["example.community a"]);
    check(text, "example.com:5000/a", &["one.io:5000 a"]);
}

#[test]
fn a_wildcard_replaces_the_whole_host() {
    let text = "[[registry]]\nprefix = \"*.example.com\"\nlocation = \"mirror.io/all\"\n";
    check(text, "a.example.com/x", &["mirror.io all/x"]);
    check(text, "a.b.example.com/x", &["mirror.io all/x"]);
    check(text, "example.com/x", &["example.com x"]);
    check(text, "other.io/a.example.com/x", &["other.io a.example.com/x"]);
    check(
        "[[registry]]\nprefix = \"*.example.com\"\ninsecure = true\n",
        "a.example.com/x",
        &["a.example.com x insecure"],
    );
}

#[test]
fn mirrors_come_first_in_order_and_are_asked_as_configured() {
    let text = "[[registry]]\nlocation = \"docker.io\"\n\
                [[registry.mirror]]\nlocation = \"127.0.0.1:5000\"\ninsecure = true\n\
                [[registry.mirror]]\nlocation = \"digests.io/hub\"\npull-from-mirror = \"digest-only\"\n\
                [[registry.mirror]]\nlocation = \"tags.io/\"\npull-from-mirror = \"tag-only\"\n";
    check(
        text,
        "docker.io/library/busybox",
        &[
            "127.0.0.1:5000 library/busybox insecure mirror",
            "tags.io library/busybox mirror",
            "docker.io library/busybox",
        ],
    );
    check(
        text,
        "docker.io/library/busybox@",
        &[
            "127.0.0.1:5000 library/busybox insecure mirror",
            "digests.io hub/library/busybox mirror",
            "docker.io library/busybox",
        ],
    );
    let text = "[[registry]]\nlocation = \"a.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.io\"\n";
    check(text, "a.io/x", &["a.io x"]);
    check(text, "a.io/x@", &["m.io x mirror", "a.io x"]);
}

#[test]
fn blocked_names_and_blocked_places_are_refused() {
    let text = "[[registry]]\nlocation = \"bad.io\"\nblocked = true\n\
                [[registry]]\nprefix = \"alias.io\"\nlocation = \"bad.io\"\nblocked = true\n\
                [[registry]]\nprefix = \"good.io\"\nlocation = \"good.io\"\n[[registry.mirror]]\nlocation = \"bad.io/m\"\n";
    check(text, "bad.io/x", &["registry bad.io is blocked in registries.conf: bad.io/x must not be pulled"]);
    check(
        text,
        "alias.io/x",
        &["registry alias.io is blocked in registries.conf: alias.io/x must not be pulled"],
    );
    check(text, "good.io/x", &["good.io x"]);
}

#[test]
fn mistakes_are_named() {
    check_error("[registries.search]\nregistries = [\"a.io\"]\n", "r.conf:1: registries: is version 1");
    check_error("[[registry]]\nlocation = \"https://a.io\"\n", "must not have a scheme");
    check_error("[[registry]]\nprefix = \"*.a.io/x\"\nlocation = \"b.io\"\n", "only a domain may follow");
    check_error("[[registry]]\nprefix = \"a.*.io\"\nlocation = \"b.io\"\n", "only at the beginning");
    check_error("[[registry]]\ninsecure = true\n", "registry.location: must be set");
    check_error(
        "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\ninsecure = true\n",
        "registry.mirror.location",
    );
    check_error(
        "[[registry]]\nlocation = \"a.io\"\npull-from-mirror = \"all\"\n",
        "belongs into [[registry.mirror]]",
    );
    check_error(
        "[[registry]]\nlocation = \"a.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.io\"\npull-from-mirror = \"all\"\n",
        "together with",
    );
    check_error(
        "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\npull-from-mirror = \"never\"\n",
        "r.conf:5: registry.mirror.pull-from-mirror: \"never\" is not one of",
    );
    check_error(
        "[[registry]]\nlocation = \"a.io\"\n[[registry]]\nprefix = \"b.io\"\nlocation = \"a.io\"\ninsecure = true\n",
        "r.conf:3: registry.location: \"a.io\" is described twice",
    );
    check_error("registry = 1\n", "must be written as [[registry]]");
    check_error("unqualified-search-registries = [\"docker.io/library\"]\n", "host[:port]");
    check_error("short-name-mode = \"strict\"\n", "r.conf:1: short-name-mode");
    check_error("[aliases]\n\"a:b\" = \"docker.io/x\"\n", "r.conf:2: aliases.a:b");
    check_error("[aliases]\na = \"b\"\n", "must have a registry");
    check_error("[aliases]\na = \"docker.io/b:1\"\n", "no tag or digest");
}

#[test]
fn short_names_follow_alias_then_mode() {
    let one =
        parse("unqualified-search-registries = [\"docker.io\"]\n[aliases]\nfedora = \"r.fp.org/fedora\"\n");
    let two = parse("unqualified-search-registries = [\"docker.io\", \"quay.io\"]\n");
    let (enforcing, disabled) = (ShortNameMode::Enforcing, ShortNameMode::Disabled);
    assert_eq!(one.resolve_short_name("fedora", enforcing).unwrap(), ["r.fp.org/fedora"]);
    assert_eq!(one.resolve_short_name("busybox", enforcing).unwrap(), ["docker.io/library/busybox"]);
    assert_eq!(one.resolve_short_name("me/busybox", enforcing).unwrap(), ["docker.io/me/busybox"]);
    let error = two.resolve_short_name("busybox", enforcing).unwrap_err();
    assert_eq!(error, ResolveError::Ambiguous { name: "busybox".to_owned() });
    assert_eq!(
        two.resolve_short_name("busybox", disabled).unwrap(),
        ["docker.io/library/busybox", "quay.io/busybox"]
    );
    let none = parse("").resolve_short_name("busybox", disabled).unwrap_err();
    assert_eq!(none, ResolveError::NoRegistry { name: "busybox".to_owned() });
    assert!(is_short("a/b") && !is_short("localhost/b") && !is_short("a:5000/b") && !is_short("a.io/b"));
}

#[test]
fn drop_ins_replace_entries_by_prefix_and_lists_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let drop_ins = dir.path().join("d");
    std::fs::create_dir(&drop_ins).unwrap();
    let main = dir.path().join("registries.conf");
    for (path, text) in [
        (
            main.clone(),
            "unqualified-search-registries = [\"a.io\"]\nshort-name-mode = \"enforcing\"\n\
             [[registry]]\nlocation = \"x.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\n\
             [[registry]]\nlocation = \"y.io\"\ninsecure = true\n[aliases]\na = \"a.io/a\"\nb = \"a.io/b\"\n",
        ),
        (
            drop_ins.join("2.conf"),
            "unqualified-search-registries = []\n[[registry]]\nlocation = \"x.io\"\ninsecure = true\n\
             [aliases]\na = \"\"\nc = \"a.io/c\"\n",
        ),
        (drop_ins.join("1.conf"), "unqualified-search-registries = [\"z.io\"]\nsome-key = 1\n"),
        (drop_ins.join("9.conf.bak"), "nonsense"),
        (dir.path().join("aliases"), "[aliases]\nb = \"rec.io/b\"\n"),
    ] {
        #[expect(clippy::disallowed_methods, reason = "a fixture")]
        std::fs::write(path, text).unwrap();
    }
    let mut paths = RegistriesPaths {
        main: Some(main),
        required: true,
        drop_in_dirs: vec![drop_ins],
        recorded_aliases: Some(dir.path().join("aliases")),
    };
    let got = Registries::load(&paths).unwrap();
    assert!(got.unqualified_search.is_empty(), "an empty list replaces, too");
    assert_eq!(got.short_name_mode, "enforcing");
    let x = got.find("x.io/i").unwrap();
    assert!(x.insecure && x.mirrors.is_empty(), "the whole entry is replaced");
    assert!(got.find("y.io/i").unwrap().insecure);
    let aliases: Vec<_> = got.aliases.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(aliases, ["b=rec.io/b", "c=a.io/c"]);
    assert_eq!(got.unknown.iter().map(|k| k.key.as_str()).collect::<Vec<_>>(), ["some-key"]);

    paths.main = Some(dir.path().join("absent"));
    assert!(Registries::load(&paths).unwrap_err().to_string().ends_with("absent: does not exist"));
    paths.required = false;
    assert!(Registries::load(&paths).is_ok());
}

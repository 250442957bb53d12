use super::*;

fn parse(text: &str) -> StorageConf {
    StorageConf::parse(Path::new("storage.conf"), text.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

fn check_option(option: &str, want: &str) {
    let errors = StoreOptions::parse(&[option.to_owned()]).unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains(want), "{option}: {errors:?}");
}

#[test]
fn the_overlay_table_goes_before_the_general_options() {
    let conf = parse(
        "[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionalimagestores = [\"/ro\"]\nmountopt = \"nosuid\"\nsize = \"1G\"\n\
         disable-volatile = true\n[storage.options.pull_options]\nenable_partial_images = \"true\"\n\
         [storage.options.overlay]\nmountopt = \"nodev,metacopy=on\"\n",
    );
    let options = conf.driver_options();
    assert_eq!(options, ["overlay.imagestore=/ro", "overlay.mountopt=nodev,metacopy=on", "overlay.size=1G"]);
    assert!(conf.options.disable_volatile);
    assert_eq!(conf.pull_options["enable_partial_images"], "true");
    let parsed = StoreOptions::parse(&options).unwrap();
    assert_eq!(parsed.mount_options, ["nodev", "metacopy=on"]);
    assert_eq!(parsed.additional_image_stores, [Path::new("/ro")]);
    assert_eq!(parsed.size.as_deref(), Some("1G"));
}

#[test]
fn options_that_can_not_be_honoured_are_refused() {
    check_option("overlay.mount_program=/usr/bin/fuse-overlayfs", "remove mount_program");
    check_option(".use_composefs=true", "doesn't support");
    check_option("overlay2.force_mask=shared", "doesn't support");
    check_option("overlay.skip_mount_home=yes", "neither true nor false");
    check_option("overlay.unheard=1", "no such option");
    check_option("overlay.imagestore=relative", "not absolute");
    check_option("mountopt", "key=value");
    assert!(
        StoreOptions::parse(&["overlay.mount_program=".to_owned(), "use_composefs=false".to_owned()]).is_ok()
    );
}

#[test]
fn mistakes_in_the_file_have_its_line() {
    let text = "[storage]\ntransient_store = \"true\"\n[storage.options.overlay]\nsize = 3\n";
    let error = StorageConf::parse(Path::new("s"), text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        error,
        "s:2: storage.transient_store: must be true or false, not string\n\
         s:4: storage.options.overlay.size: must be text in quotes, not integer"
    );
}

#[test]
fn drop_ins_are_sorted_by_name_over_all_directories() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    for (path, text) in [
        (dir.path().join("main"), "[storage]\ngraphroot = \"$BASE/${SUB}/store\"\nrunroot = \"/run/main\"\n"),
        (a.join("20.conf"), "[storage]\nrunroot = \"/run/a20\"\n"),
        (a.join("10.conf"), "[storage]\nrunroot = \"/run/a10\"\ndriver = \"vfs\"\n"),
        (b.join("10.conf"), "[storage]\nrunroot = \"/run/b10\"\n"),
    ] {
        #[expect(clippy::disallowed_methods, reason = "a fixture")]
        std::fs::write(path, text).unwrap();
    }
    let mut paths = StoragePaths {
        main: vec![dir.path().join("absent"), dir.path().join("main")],
        drop_in_dirs: vec![a, b],
        ..StoragePaths::default()
    };
    let env = |name: &str| match name {
        "BASE" => Some("/base".to_owned()),
        "SUB" => Some("sub".to_owned()),
        _ => None,
    };
    let conf = StorageConf::load(&paths, env).unwrap();
    assert_eq!(conf.storage.graphroot, Path::new("/base/sub/store"));
    assert_eq!(conf.storage.runroot, Path::new("/run/a20"));
    assert_eq!(conf.storage.driver, "overlay", "a/10.conf is replaced by b/10.conf");

    paths.driver = Some("btrfs".to_owned());
    paths.options = Some("overlay.size=1, overlay.inodes=2".to_owned());
    let conf = StorageConf::load(&paths, env).unwrap();
    assert_eq!(conf.storage.driver, "btrfs");
    assert_eq!(conf.driver_options(), ["overlay.size=1", "overlay.inodes=2"]);

    paths.only = Some(dir.path().join("absent"));
    assert!(StorageConf::load(&paths, env).unwrap_err().to_string().ends_with("absent: does not exist"));
}

//! With a kernel's files and a parser of our own making.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::error::chain;

/// A kernel that knows some profiles, and a parser that is this script; `$LIST` is the kernel's list.
struct Node {
    root: tempfile::TempDir,
}

impl Node {
    fn new(loaded: &str) -> Self {
        let node = Self { root: tempfile::tempdir().expect("a directory") };
        node.put("sys/module/apparmor/parameters/enabled", "Y\n");
        node.put("sys/kernel/security/apparmor/profiles", loaded);
        node
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        durable::write_atomic(&path, text.as_bytes(), 0o755).expect("a file");
    }

    fn list(&self) -> PathBuf {
        self.root.path().join("sys/kernel/security/apparmor/profiles")
    }

    fn parser(&self, script: &str) -> PathBuf {
        let text = format!(
            "#!/bin/sh\nLIST={}\nROOT={}\n{script}\n",
            self.list().display(),
            self.root.path().display()
        );
        self.put("parser", &text);
        let path = self.root.path().join("parser");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        path
    }

    fn apparmor(&self, default: &str, parsers: Vec<PathBuf>) -> AppArmor {
        let files = AppArmorFiles::below(self.root.path());
        AppArmor::with(files, parsers, default, &self.root.path().join("run"))
    }

    fn times_called(&self) -> usize {
        fs::read_to_string(self.root.path().join("calls")).unwrap_or_default().lines().count()
    }
}

/// Counts itself, and the kernel knows the profile after it.
const LOADS: &str = "echo \"$@\" >> $ROOT/calls; echo 'crio-default (enforce)' >> $LIST";

#[test]
fn the_default_profile_is_loaded_once_a_boot() {
    let node = Node::new("other (enforce)\n");
    let apparmor = node.apparmor(DEFAULT, vec![node.parser(LOADS)]);
    apparmor.prepare().expect("loaded");
    apparmor.prepare().expect("there");
    apparmor.require(DEFAULT).expect("there");
    assert_eq!(node.times_called(), 1);
    // A restarted daemon finds it.
    node.apparmor(DEFAULT, vec![node.parser(LOADS)]).prepare().expect("there");
    assert_eq!(node.times_called(), 1);
}

#[test]
fn a_profile_of_that_name_that_another_program_loaded_is_replaced_by_ours() {
    let node = Node::new("crio-default (enforce)\n");
    node.apparmor(DEFAULT, vec![node.parser(LOADS)]).prepare().expect("loaded");
    assert_eq!(node.times_called(), 1);
}

#[test]
fn the_default_profile_is_loaded_again_when_somebody_unloads_it() {
    let node = Node::new("");
    let apparmor = node.apparmor(DEFAULT, vec![node.parser(LOADS)]);
    apparmor.prepare().expect("loaded");
    node.put("sys/kernel/security/apparmor/profiles", "");
    apparmor.require(DEFAULT).expect("loaded again");
    assert_eq!(node.times_called(), 2);
}

#[track_caller]
fn fails(node: &Node, apparmor: &AppArmor, words: &[&str]) {
    let error = chain(&apparmor.prepare().expect_err("not loaded"));
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    // Nothing claims that it was loaded.
    assert!(!node.root.path().join("run/criox/apparmor").join(DEFAULT).exists());
}

#[test]
fn what_keeps_the_default_profile_from_being_loaded_is_said() {
    let node = Node::new("");
    fails(&node, &node.apparmor(DEFAULT, vec!["/no/such/parser".into()]), &["no apparmor_parser", "install"]);
    let broken = node.parser("echo 'syntax error in line 7' >&2; exit 3");
    fails(&node, &node.apparmor(DEFAULT, vec![broken]), &["ended with 3", "line 7"]);
    let liar = node.parser("exit 0");
    fails(&node, &node.apparmor(DEFAULT, vec![liar]), &["does not know it"]);
    fails(&node, &node.apparmor("site-default", vec![]), &["site-default", "not loaded"]);
}

#[test]
fn an_unknown_profile_is_refused_by_its_name() {
    let node = Node::new("mine (enforce)\n");
    let apparmor = node.apparmor(UNCONFINED, vec![node.parser(LOADS)]);
    apparmor.prepare().expect("nothing to do");
    apparmor.require("mine").expect("loaded");
    let error = apparmor.require("theirs").expect_err("unknown");
    assert!(matches!(error, Error::Node { .. }), "{error:?}");
    assert!(error.to_string().contains("\"theirs\""), "{error}");
    // The administrator wants none of ours.
    assert!(apparmor.require(DEFAULT).is_err());
    assert_eq!(node.times_called(), 0);
}

/// So long that the others come while it runs.
const SLOWLY: &str = "echo \"$@\" >> $ROOT/calls; sleep 0.3";

/// What several containers get that want a profile while the first one's load is in flight.
fn together(apparmor: &AppArmor, node: &Node, name: &str) -> Vec<Result<()>> {
    std::thread::scope(|scope| {
        let first = scope.spawn(|| apparmor.require(DEFAULT));
        while node.times_called() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let others: Vec<_> = (0..4).map(|_| scope.spawn(|| apparmor.require(name))).collect();
        others.into_iter().chain([first]).map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn who_wants_the_profile_while_it_is_loaded_waits_for_that_load() {
    let node = Node::new("");
    let script = format!("{SLOWLY}; echo 'crio-default (enforce)' >> $LIST");
    let apparmor = node.apparmor(DEFAULT, vec![node.parser(&script)]);
    assert!(together(&apparmor, &node, DEFAULT).iter().all(Result::is_ok));
    assert_eq!(node.times_called(), 1);
}

#[test]
fn a_load_that_fails_fails_all_who_waited_for_it_and_is_tried_anew_by_the_next() {
    let node = Node::new("");
    let apparmor = node.apparmor(DEFAULT, vec![node.parser(&format!("{SLOWLY}; echo broken; exit 1"))]);
    for result in together(&apparmor, &node, DEFAULT) {
        let error = chain(&result.expect_err("not loaded"));
        assert!(error.contains("crio-default") && error.contains("broken"), "{error}");
    }
    assert_eq!(node.times_called(), 1);
    node.parser(LOADS);
    apparmor.require(DEFAULT).expect("loaded");
}

#[test]
fn a_parser_that_hangs_is_ended_and_delays_nobody_with_another_profile() {
    let node = Node::new("mine (enforce)\n");
    let hangs = node.parser("echo \"$@\" >> $ROOT/calls; exec sleep 60");
    let apparmor = AppArmor { patience: Duration::from_millis(500), ..node.apparmor(DEFAULT, vec![hangs]) };
    let begun = std::time::Instant::now();
    let mine = std::thread::scope(|scope| {
        let first = scope.spawn(|| apparmor.require(DEFAULT));
        while node.times_called() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        apparmor.require("mine").expect("loaded");
        assert!(!first.is_finished());
        first.join().expect("no panic")
    });
    let error = chain(&mine.expect_err("not loaded"));
    assert!(error.contains("did not end within 0.5 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30) && apparmor.hung().is_none());
}

#[test]
fn while_a_parser_hangs_in_the_kernel_no_other_is_started() {
    let node = Node::new("");
    let apparmor = node.apparmor(DEFAULT, vec![node.parser(LOADS)]);
    // One that will not end for a while stands for one that the kernel keeps.
    let mut spec = SpawnSpec::new(Path::new("/bin/sleep")).expect("a program");
    spec.arg("60").expect("an argument");
    let hung = spec.spawn().expect("it starts");
    *apparmor.hung() = Some(hung);
    fails(&node, &apparmor, &["crio-default", "hangs in the kernel"]);
    assert_eq!(node.times_called(), 0);
    if let Some(hung) = &*apparmor.hung() {
        hung.send_signal(9).expect("it is there");
        assert!(hung.wait_ended(Duration::from_secs(10)).expect("it is there"));
    }
    apparmor.prepare().expect("loaded");
    assert!(apparmor.hung().is_none());
}

#[test]
fn a_kernel_without_apparmor_needs_no_parser() {
    let node = Node::new("");
    node.put("sys/module/apparmor/parameters/enabled", "N\n");
    node.apparmor(DEFAULT, vec![]).prepare().expect("nothing to do");
}

#[test]
fn the_real_parser_understands_the_profile() {
    let Some(parser) = PARSERS.iter().map(Path::new).find(|path| path.exists()) else {
        eprintln!("skipped: there is no apparmor_parser (package apparmor)");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("profile");
    durable::write_atomic(&file, PROFILE.as_bytes(), 0o600).expect("the profile");
    let output = std::process::Command::new(parser)
        .args(["--skip-kernel-load", "--skip-cache", "--quiet"])
        .arg(&file)
        .output()
        .expect("the parser runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

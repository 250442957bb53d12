//! Makes the images that the conformance suites name, and leaves them in the storage of a registry.
//!
//! ```text
//! suite-images PROGRAMS STORAGE
//! ```
//!
//! PROGRAMS holds what `scripts/peers images` built: `busybox`, `pause`, `webserver`, `nonewprivs`, and, for the node
//! suite, `agnhost`, which may be missing. STORAGE is a directory for `docker-registry` to serve. Printed is one line for
//! each image, `REPOSITORY:TAG DIGEST`; the suite's hosts (`registry.k8s.io` and others) are not part of the names, for a
//! mirror in `registries.conf` stands for each of them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for scripts")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::json;
use testkit::{Entry, ImageBuilder, Registry, Result};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(programs), Some(storage), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: suite-images PROGRAMS STORAGE");
        return ExitCode::from(2);
    };
    match make(&programs, &storage) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("suite-images: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(programs: &Path, storage: &Path) -> Result {
    let registry = Registry::start_in(storage)?;
    let mut images = critest(programs)?;
    images.extend(node(programs)?);
    for (name, image) in images {
        let (repository, tag) = name.rsplit_once(':').ok_or("an image without a tag")?;
        // Without a difference two names would be one image, and to remove the one would remove the other.
        let image = image.config("Labels", json!({"criox.test.image": name})).build()?;
        image.push(&registry, repository, tag)?;
        println!("{name} {}", image.manifest.digest);
    }
    // One content under three tags.
    let same =
        Files::read(programs)?.busybox()?.config("Labels", json!({"criox.test.image": "tags"})).build()?;
    for tag in ["1", "2", "3"] {
        same.push(&registry, "k8s-staging-cri-tools/test-image-tags", tag)?;
        println!("k8s-staging-cri-tools/test-image-tags:{tag} {}", same.manifest.digest);
    }
    Ok(())
}

type Named = (String, ImageBuilder);

/// What critest 1.37 names.
fn critest(programs: &Path) -> Result<Vec<Named>> {
    let files = Files::read(programs)?;
    let mut images = Vec::new();
    let mut add = |name: &str, image: ImageBuilder| images.push((name.to_owned(), image));
    for tag in ["3.9", "3.10", "3.10.1", "3.10.2"] {
        add(&format!("pause:{tag}"), files.pause());
    }
    for tag in ["1.29-2", "1.29-4"] {
        add(&format!("e2e-test-images/busybox:{tag}"), files.busybox()?);
    }
    add("e2e-test-images/nginx:1.14-2", files.web("nginx", 80)?);
    add("e2e-test-images/httpd:2.4.39-4", files.web("httpd", 80)?);
    add("e2e-test-images/nonewprivs:1.3", files.set_uid()?);
    let own = "k8s-staging-cri-tools";
    for architecture in ["amd64", "arm64"] {
        add(&format!("{own}/hostnet-nginx-{architecture}:latest"), files.web("nginx", 12003)?);
    }
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        add(&format!("{own}/test-image-user-{name}:latest"), files.busybox()?.user(user));
    }
    add(&format!("{own}/test-image-predefined-group:latest"), files.busybox()?.user("1000"));
    for name in ["latest:latest", "digest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"]
    {
        add(&format!("{own}/test-image-{name}"), files.busybox()?);
    }
    // Short names, by which scripts and static pods say the same.
    add("library/busybox:latest", files.busybox()?);
    add("library/nginx:latest", files.web("nginx", 80)?);
    Ok(images)
}

/// What the node suite of Kubernetes 1.37 names beside them. Empty without `agnhost`, which takes long to build.
fn node(programs: &Path) -> Result<Vec<Named>> {
    let Ok(agnhost) = std::fs::read(programs.join("agnhost")) else { return Ok(Vec::new()) };
    let files = Files::read(programs)?;
    let mut images = Vec::new();
    let mut add = |name: &str, image: ImageBuilder| images.push((format!("e2e-test-images/{name}"), image));
    for (tag, arguments) in [("2.66.1", &["pause"][..]), ("2.55", &["pause"])] {
        let program = [
            Entry::program("agnhost", agnhost.clone()),
            Entry::symlink("agnhost-2", "agnhost"),
            Entry::dir("uploads").mode(0o777),
            Entry::program("usr/bin/curl", include_str!("../../images/curl.sh")),
        ];
        add(
            &format!("agnhost:{tag}"),
            files.busybox()?.layer(&program).entrypoint(&["/agnhost"]).cmd(arguments),
        );
    }
    add("busybox:1.37.0-2", files.busybox()?);
    for tag in ["1.27.0-2", "1.28.0-2"] {
        add(&format!("nginx:{tag}"), files.web("nginx", 80)?);
    }
    add("nonewprivs:1.4", files.set_uid()?);
    add("nonroot:1.5", files.busybox()?.user("1234").cmd(&["id", "-u"]));
    Ok(images)
}

/// The programs that go into the images.
struct Files {
    busybox: PathBuf,
    pause: Vec<u8>,
    webserver: Vec<u8>,
    nonewprivs: Vec<u8>,
}

impl Files {
    fn read(programs: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = programs.join(name);
            std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        Ok(Self {
            busybox: programs.join("busybox"),
            pause: read("pause")?,
            webserver: read("webserver")?,
            nonewprivs: read("nonewprivs")?,
        })
    }

    fn pause(&self) -> ImageBuilder {
        ImageBuilder::new()
            .layer(&[Entry::program("pause", self.pause.clone())])
            .entrypoint(&["/pause"])
            .user("65535:65535")
    }

    /// busybox with all its applets at their usual places, and the accounts that the suites expect.
    ///
    /// Applets are hard links: a mask over `/bin/ls` must hide that name and not busybox itself.
    fn busybox(&self) -> Result<ImageBuilder> {
        let program = std::fs::read(&self.busybox)
            .map_err(|error| format!("cannot read {}: {error}", self.busybox.display()))?;
        let listed = Command::new(&self.busybox).arg("--list-full").output()?;
        let listed = String::from_utf8(listed.stdout)?;
        let mut base: Vec<Entry> = [
            "bin",
            "dev",
            "etc",
            "home",
            "proc",
            "root",
            "run",
            "sbin",
            "sys",
            "usr",
            "usr/bin",
            "usr/sbin",
            "usr/local",
            "usr/local/bin",
            "var",
            "var/lib",
            "var/log",
            "var/spool",
        ]
        .into_iter()
        .map(Entry::dir)
        .collect();
        base.push(Entry::dir("tmp").mode(0o1777));
        base.push(Entry::symlink("var/run", "../run"));
        base.push(Entry::program("bin/busybox", program));
        // At the applet's own place, and in /bin, where the suites' busybox has them all.
        let mut places = BTreeSet::new();
        for path in listed.lines() {
            places.extend(path.contains("bin/").then(|| path.to_owned()));
            places.extend(path.rsplit('/').next().map(|applet| format!("bin/{applet}")));
        }
        places.remove("bin/busybox");
        base.extend(places.iter().map(|path| Entry::hardlink(path, "bin/busybox").mode(0o755)));
        let accounts = [
            Entry::file(
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                 default-user:x:1000:1000::/home/default-user:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
            ),
            Entry::file(
                "etc/group",
                "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\n\
                 group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n",
            ),
            Entry::dir("home/default-user").owner(1000, 1000),
        ];
        Ok(ImageBuilder::new()
            .config("Env", json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]))
            .layer(&base)
            .layer(&accounts)
            .cmd(&["sh"]))
    }

    /// A web server under the name of the one that it stands for.
    fn web(&self, name: &str, port: u16) -> Result<ImageBuilder> {
        let path = format!("usr/sbin/{name}");
        Ok(self
            .busybox()?
            .layer(&[Entry::program(&path, self.webserver.clone())])
            .entrypoint(&[&format!("/{path}"), "master process", &port.to_string()])
            .config("Cmd", json!(null))
            .config("ExposedPorts", json!({format!("{port}/tcp"): {}})))
    }

    fn set_uid(&self) -> Result<ImageBuilder> {
        let program = Entry::program("nnp", self.nonewprivs.clone()).mode(0o4755);
        Ok(self.busybox()?.layer(&[program]).entrypoint(&["/nnp"]).config("Cmd", json!(null)))
    }
}

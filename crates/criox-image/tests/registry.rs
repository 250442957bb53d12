//! Pulls from Debian's `docker-registry`, plain, with a password, frozen and gone; and over TLS.
#![expect(clippy::unwrap_used, reason = "the helpers of a test may panic, too")]

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use criox_config::{CertsD, Registries};
use criox_image::{Auth, ImageOptions, Images, PullErrorKind, PullRequest, Timeouts};
use criox_store::{Store, StoreOptions};
use tempfile::TempDir;
use testkit::image::ImageBuilder;
use testkit::registry::{PASSWORD, Registry, USER};
use testkit::tar::Entry;

fn put(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn options(root: &Path, address: &str, insecure: bool) -> ImageOptions {
    let policy = root.join("policy.json");
    put(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let registries = format!("[[registry]]\nlocation = \"{address}\"\ninsecure = {insecure}\n");
    ImageOptions {
        registries: Arc::new(Registries::parse(Path::new("registries.conf"), registries.as_bytes()).unwrap()),
        policy,
        certs: CertsD { dirs: vec![root.join("certs.d")] },
        timeouts: Timeouts {
            headers: Duration::from_secs(5),
            retry: Duration::from_millis(10),
            ..Default::default()
        },
        ..Default::default()
    }
}

fn store(root: &TempDir) -> Store {
    let roots = StoreOptions::new(root.path().join("graph"), root.path().join("run"));
    Store::open(StoreOptions { skip_mount_home: true, ..roots }).unwrap().0
}

fn request(image: String, auth: Option<Auth>) -> PullRequest {
    PullRequest { image, auth, namespace: String::new() }
}

fn an_image() -> ImageBuilder {
    ImageBuilder::new()
        .layer(&[Entry::dir("etc"), Entry::file("etc/a", "one"), Entry::hardlink("etc/b", "etc/a")])
        .layer(&[Entry::whiteout("etc/a"), Entry::symlink("etc/c", "b"), Entry::file("d", vec![7; 100_000])])
        .cmd(&["/d"])
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_both_formats_come_from_a_real_registry() {
    let registry = Registry::start().unwrap();
    let root = tempfile::tempdir().unwrap();
    let images = Images::new(store(&root), options(root.path(), registry.address(), true));
    for (tag, builder) in [("oci", an_image()), ("docker", an_image().docker())] {
        let image = builder.build().unwrap();
        image.push(&registry, "some/image", tag).unwrap();
        let name = format!("{}/some/image:{tag}", registry.address());
        let pulled = images.pull(request(name.clone(), None)).await.unwrap();
        assert_eq!(pulled.id, image.id().trim_start_matches("sha256:"));
        let repository = format!("{}/some/image@sha256:", registry.address());
        assert!(pulled.reference.starts_with(&repository), "{}", pulled.reference);
        assert_eq!(images.find(&name).unwrap().unwrap().config.cmd, ["/d"]);
    }
    // Both formats share their layers.
    assert_eq!(images.store().layers().unwrap().len(), 2);
    let missing =
        images.pull(request(format!("{}/some/image:no", registry.address()), None)).await.unwrap_err();
    assert_eq!(missing.kind(), PullErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_password_takes_it_from_the_request_or_the_auth_file() {
    let registry = Registry::start_with_password().unwrap();
    an_image().build().unwrap().push(&registry, "private", "1").unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path(), registry.address(), true);
    let images = Images::new(store(&root), options.clone());
    let name = format!("{}/private:1", registry.address());
    let auth = |password: &str| {
        Some(Auth { username: USER.into(), password: password.into(), ..Default::default() })
    };
    for wrong in [None, auth("wrong")] {
        let error = images.pull(request(name.clone(), wrong)).await.unwrap_err();
        assert_eq!(error.kind(), PullErrorKind::Unauthorized);
    }
    images.pull(request(name.clone(), auth(PASSWORD))).await.unwrap();

    let file = root.path().join("auth.json");
    let encoded =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{USER}:{PASSWORD}"));
    put(&file, &format!(r#"{{"auths":{{"{}":{{"auth":"{encoded}"}}}}}}"#, registry.address()));
    options.auth_files = vec![root.path().join("absent.json"), file];
    images.reload(options);
    images.pull(request(name, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_registry_is_given_up_and_a_stopped_one_is_unavailable() {
    let mut registry = Registry::start().unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path(), registry.address(), true);
    options.timeouts.headers = Duration::from_millis(500);
    let images = Images::new(store(&root), options);
    let name = format!("{}/some/image:1", registry.address());
    registry.freeze().unwrap();
    // The signal stops one thread after the other.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = images.pull(request(name.clone(), None)).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::RegistryUnavailable, "{error}");
    // Reads and other calls aren't held up by a pull that hangs.
    assert!(images.list().unwrap().is_empty());
    registry.thaw().unwrap();
    registry.stop();
    let error = images.pull(request(name.clone(), None)).await.unwrap_err();
    assert!(error.to_string().starts_with("RegistryUnavailable"), "{error}");
    registry.restart().unwrap();
    an_image().build().unwrap().push(&registry, "some/image", "1").unwrap();
    images.pull(request(name, None)).await.unwrap();
}

/// A server of TLS on loopback that answers every request with an empty 404, as `openssl` makes it.
struct TlsServer {
    process: std::process::Child,
    address: String,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn openssl(arguments: &[&str], dir: &Path) -> bool {
    Command::new("openssl").args(arguments).current_dir(dir).output().is_ok_and(|out| out.status.success())
}

/// A registry behind TLS with a certificate of its own authority.
fn tls_registry(dir: &Path) -> Option<TlsServer> {
    let made = openssl(
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "server.key",
            "-out",
            "server.crt",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ],
        dir,
    );
    if !made {
        return None;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    put(
        &dir.join("config.yml"),
        &format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp: {{addr: '{address}', tls: {{certificate: {}/server.crt, key: {}/server.key}}}}\n",
            dir.display(),
            dir.display(),
            dir.display()
        ),
    );
    let process = Command::new("docker-registry")
        .args(["serve", "config.yml"])
        .current_dir(dir)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let server = TlsServer { process, address };
    for _ in 0..200 {
        if std::net::TcpStream::connect(&server.address).is_ok() {
            return Some(server);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("docker-registry doesn't listen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_must_be_known_unless_the_registry_is_insecure() {
    let root = tempfile::tempdir().unwrap();
    let Some(server) = tls_registry(root.path()) else {
        eprintln!("not tested: TLS towards a registry, for openssl is not installed");
        return;
    };
    let store = store(&root);
    let pull = async |insecure: bool| {
        let images = Images::new(store.clone(), options(root.path(), &server.address, insecure));
        images.pull(request(format!("{}/a:1", server.address), None)).await.unwrap_err()
    };
    // Nothing is there, so that success is a 404.
    assert_eq!(pull(false).await.kind(), PullErrorKind::RegistryUnavailable);
    assert_eq!(pull(true).await.kind(), PullErrorKind::NotFound);
    let certs = root.path().join("certs.d").join(&server.address);
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(root.path().join("server.crt"), certs.join("ca.crt")).unwrap();
    let error = pull(false).await;
    assert_eq!(error.kind(), PullErrorKind::NotFound, "{error}: {:?}", std::error::Error::source(&error));
}

//! A real registry on loopback: Debian's `docker-registry`, with storage of its own.
//!
//! Besides serving it can be frozen (SIGSTOP: connections are accepted, nothing is answered), stopped, asked for a password,
//! and its stored blobs can be spoilt.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::image::Blob;
use crate::{Error, Result, wait_for};

/// The only account of a registry with a password.
pub const USER: &str = "tester";
/// Its password; the registry knows the bcrypt hash below.
pub const PASSWORD: &str = "loopback-secret";
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuVkNCXUFp7QU1XGq3Fjdyp4/TDa9ewga";

/// The test's patience with one request; the registry answers from a local disk.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// A running registry; dropped, it is ended and its storage is gone.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    storage: PathBuf,
    address: String,
    process: Option<Child>,
    authorization: Option<String>,
}

impl Registry {
    /// Starts one that anybody may use, on a free port of 127.0.0.1.
    pub fn start() -> Result<Self> {
        Self::launch(false, None)
    }

    /// The same with a storage that stays: a directory that another registry may serve afterwards.
    pub fn start_in(storage: &Path) -> Result<Self> {
        Self::launch(false, Some(storage))
    }

    /// Starts one that wants [`USER`] and [`PASSWORD`] (basic authentication) for everything.
    pub fn start_with_password() -> Result<Self> {
        Self::launch(true, None)
    }

    fn launch(password: bool, storage: Option<&Path>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("criox-registry-").tempdir()?;
        let storage = storage.map_or_else(|| dir.path().join("data"), Path::to_owned);
        let mut registry = Self {
            dir,
            storage,
            address: "127.0.0.1:0".to_owned(),
            process: None,
            authorization: password
                .then(|| format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))),
        };
        registry.restart()?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`, the first part of a reference.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts the registry again after [`Registry::stop`], at the same address and with the same content.
    pub fn restart(&mut self) -> Result {
        self.stop();
        let path = self.dir.path();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '{}'}}\n",
            self.storage.display(),
            self.address
        );
        if self.authorization.is_some() {
            let file = path.join("htpasswd");
            put(&file, format!("{USER}:{PASSWORD_HASH}\n").as_bytes())?;
            config.push_str(&format!("auth: {{htpasswd: {{realm: loopback, path: {}}}}}\n", file.display()));
        }
        put(&path.join("config.yml"), config.as_bytes())?;
        let log = path.join("log");
        put(&log, b"")?;
        let output = std::fs::OpenOptions::new().append(true).open(&log)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(path.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| format!("cannot start docker-registry (scripts/deps installs it): {error}"))?;
        self.process = Some(process);
        self.address = wait_for("docker-registry to listen", Duration::from_secs(20), || {
            let text = std::fs::read_to_string(&log)?;
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().transpose()) {
                return Err(format!("docker-registry ended with {}: {text}", status?).into());
            }
            Ok(text.split("listening on ").nth(1).and_then(|rest| {
                let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
                Some(rest[..end].to_owned())
            }))
        })?;
        Ok(())
    }

    /// Ends the process; what it stores stays. Connections are refused from now on.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Both fail only for a process that has ended.
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// Stops the process in its tracks: the kernel still accepts connections, but no answer comes.
    pub fn freeze(&self) -> Result {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) -> Result {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result {
        let process = self.process.as_ref().ok_or("the registry isn't running")?;
        Ok(kill_process(Pid::from_child(process), signal)?)
    }

    /// Where a blob lies in the storage, to be cut, spoilt or removed by a test.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.storage
            .join("docker/registry/v2/blobs/sha256")
            .join(hex.get(..2).unwrap_or(hex))
            .join(hex)
            .join("data")
    }

    /// Uploads a blob in one piece, if it isn't there.
    pub fn push_blob(&self, repository: &str, blob: &Blob) -> Result {
        let head = self.request("HEAD", &format!("/v2/{repository}/blobs/{}", blob.digest), None, &[])?;
        if head.status == 200 {
            return Ok(());
        }
        let start =
            self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), None, &[])?.expect(202)?;
        let location = start.header("location").ok_or("the registry gave no place for the upload")?;
        let place = location.split_once(&self.address).map_or(location, |(_, path)| path);
        let joint = if place.contains('?') { '&' } else { '?' };
        let path = format!("{place}{joint}digest={}", blob.digest);
        self.request("PUT", &path, Some("application/octet-stream"), &blob.bytes)?.expect(201)?;
        Ok(())
    }

    /// Puts a manifest or an index at a tag or a digest.
    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &Blob) -> Result {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.request("PUT", &path, Some(&manifest.media_type), &manifest.bytes)?.expect(201)?;
        Ok(())
    }

    /// One request on one connection. HTTP/1.0, so that the answer ends where the connection does.
    fn request(&self, method: &str, path: &str, media_type: Option<&str>, body: &[u8]) -> Result<Answer> {
        let failed = |error: std::io::Error| -> Error { format!("{method} {path}: {error}").into() };
        let mut stream = TcpStream::connect(&self.address).map_err(failed)?;
        stream.set_read_timeout(Some(REQUEST_LIMIT)).map_err(failed)?;
        stream.set_write_timeout(Some(REQUEST_LIMIT)).map_err(failed)?;
        let mut head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        if let Some(media_type) = media_type {
            head.push_str(&format!("Content-Type: {media_type}\r\n"));
        }
        if let Some(authorization) = &self.authorization {
            head.push_str(&format!("Authorization: {authorization}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).map_err(failed)?;
        stream.write_all(body).map_err(failed)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(failed)?;
        Answer::parse(&bytes).ok_or_else(|| format!("{method} {path}: no HTTP answer").into())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head: head.to_owned(), body: body.to_owned() })
    }

    fn expect(self, status: u16) -> Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        Err(format!("the registry answered {} instead of {status}: {}", self.status, self.body).into())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a file in the registry's own temporary directory")]
fn put(path: &Path, bytes: &[u8]) -> Result {
    Ok(std::fs::write(path, bytes)?)
}

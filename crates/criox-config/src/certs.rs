//! `certs.d` (containers-certs.d(5)): authorities and client certificates by registry.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Directories that hold one directory per registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertsD {
    /// The first that knows a registry counts; they are not merged.
    pub dirs: Vec<PathBuf>,
}

/// What is configured for one registry. Only paths: reading and checking them is the client's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostCerts {
    /// Authorities besides the system's (`*.crt`).
    pub authorities: Vec<PathBuf>,
    /// Client certificates (`*.cert`) with their keys (`*.key`).
    pub clients: Vec<ClientCert>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCert {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What is wrong with a directory.
#[derive(Debug, Error)]
pub enum CertsError {
    /// It can't be listed.
    #[error("list certificates in {}", dir.display())]
    List {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One half of a pair is missing.
    #[error("{} is missing: a client certificate needs both *.cert and *.key", missing.display())]
    Pair {
        /// The file that should be there.
        missing: PathBuf,
    },
}

impl CertsD {
    /// The usual directories; `home` is that of the user who pulls.
    pub fn system(home: Option<&Path>) -> Self {
        let own = home.filter(|home| home.is_absolute()).map(|home| home.join(".config/containers/certs.d"));
        let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        Self { dirs: own.into_iter().chain(system).collect() }
    }

    /// What is configured for `host[:port]`, where the request goes (after rewriting), with Docker Hub as `docker.io`.
    ///
    /// # Errors
    /// The directory can't be listed, or a pair is incomplete.
    pub fn lookup(&self, host: &str) -> Result<HostCerts, CertsError> {
        // A host becomes a file name here, and must not lead elsewhere.
        if host.is_empty() || host.starts_with('.') || host.contains('/') {
            return Ok(HostCerts::default());
        }
        for dir in &self.dirs {
            let dir = dir.join(host);
            match std::fs::read_dir(&dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
                Ok(entries) => return sort(entries.into_iter().map(|entry| entry.path()).collect()),
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) => {}
                Err(source) => return Err(CertsError::List { dir, source }),
            }
        }
        Ok(HostCerts::default())
    }
}

fn sort(mut files: Vec<PathBuf>) -> Result<HostCerts, CertsError> {
    files.sort();
    let mut certs = HostCerts::default();
    let pair = |file: &Path, extension: &str| {
        let other = file.with_extension(extension);
        if files.contains(&other) { Ok(other) } else { Err(CertsError::Pair { missing: other }) }
    };
    for file in &files {
        match file.extension().and_then(|ext| ext.to_str()) {
            Some("crt") => certs.authorities.push(file.clone()),
            Some("cert") => {
                certs.clients.push(ClientCert { cert: file.clone(), key: pair(file, "key")? });
            }
            Some("key") => drop(pair(file, "cert")?),
            _ => {}
        }
    }
    Ok(certs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[&str]) -> (tempfile::TempDir, CertsD) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a fixture")]
            std::fs::write(path, "").unwrap();
        }
        let dirs = ["none", "a", "b"].map(|name| dir.path().join(name)).to_vec();
        (dir, CertsD { dirs })
    }

    #[test]
    fn the_first_directory_that_knows_the_host_counts() {
        let (dir, certs) = dir_with(&[
            "a/r.io:5000/ca.crt",
            "a/r.io:5000/client.cert",
            "a/r.io:5000/client.key",
            "a/r.io:5000/notes.txt",
            "b/r.io:5000/other.crt",
            "b/only-b/ca.crt",
        ]);
        let host = certs.lookup("r.io:5000").unwrap();
        let base = dir.path().join("a/r.io:5000");
        assert_eq!(host.authorities, [base.join("ca.crt")]);
        assert_eq!(
            host.clients,
            [ClientCert { cert: base.join("client.cert"), key: base.join("client.key") }]
        );
        assert_eq!(certs.lookup("only-b").unwrap().authorities.len(), 1);
        assert_eq!(certs.lookup("unknown").unwrap(), HostCerts::default());
        assert_eq!(certs.lookup("../a/r.io:5000").unwrap(), HostCerts::default());
    }

    #[test]
    fn half_a_pair_is_an_error_that_names_the_other_half() {
        for (file, missing) in
            [("a/r/c.cert", "a/r/c.key is missing"), ("a/r/c.key", "a/r/c.cert is missing")]
        {
            let (_dir, certs) = dir_with(&[file]);
            let error = certs.lookup("r").unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}

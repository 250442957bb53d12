//! One-use URLs: an unguessable token stands for a request until a client comes for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

use crate::backend::{AttachRequest, ExecRequest, PortForwardRequest};

/// How long a URL may be used.
const LIFETIME: Duration = Duration::from_secs(60);

/// URLs that may wait at once, as in the reference server.
const MOST: usize = 1000;

/// 128 bits: more than can be guessed in the lifetime.
const TOKEN_BYTES: usize = 16;

/// Why no URL was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The request is malformed (gRPC InvalidArgument), in the reference server's words.
    #[error("{0}")]
    Invalid(&'static str),
    /// Too many URLs wait for their clients (gRPC ResourceExhausted).
    #[error("maximum number of in-flight requests exceeded")]
    TooMany,
    /// The system gave no random bytes.
    #[error("the system gives no random bytes for a token")]
    NoRandom,
}

/// What a URL stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    /// First element of the URL's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    fn check(&self) -> Result<(), UrlError> {
        let (container, tty, some, stderr) = match self {
            Self::Exec(r) => (&r.container, r.tty, r.stdin || r.stdout || r.stderr, r.stderr),
            Self::Attach(r) => (&r.container, r.tty, r.stdin || r.stdout || r.stderr, r.stderr),
            Self::PortForward(r) if r.sandbox.is_empty() => {
                return Err(UrlError::Invalid("missing required pod_sandbox_id"));
            }
            Self::PortForward(_) => return Ok(()),
        };
        match () {
            () if container.is_empty() => Err(UrlError::Invalid("missing required container_id")),
            () if tty && stderr => Err(UrlError::Invalid("tty and stderr cannot both be true")),
            () if !some => Err(UrlError::Invalid("one of stdin, stdout, or stderr must be set")),
            () => Ok(()),
        }
    }
}

/// The requests that wait for their clients.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_token: HashMap<String, (Request, Instant)>,
    /// Oldest first. A token that was used stays here until it expires.
    order: VecDeque<(Instant, String)>,
}

impl Table {
    /// All have the same lifetime, so the oldest expire first.
    fn sweep(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(expires, _)| *expires <= now) {
            if let Some((_, token)) = self.order.pop_front() {
                self.by_token.remove(&token);
            }
        }
    }
}

impl Waiting {
    /// A path (`/verb/token`) that stands for the request from now on.
    pub(crate) fn put(&self, request: Request) -> Result<String, UrlError> {
        self.put_at(request, Instant::now())
    }

    fn put_at(&self, request: Request, now: Instant) -> Result<String, UrlError> {
        request.check()?;
        let mut bytes = [0; TOKEN_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| UrlError::NoRandom)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let path = format!("/{}/{token}", request.verb());
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.sweep(now);
        if table.by_token.len() >= MOST {
            return Err(UrlError::TooMany);
        }
        let expires = now + LIFETIME;
        table.order.push_back((expires, token.clone()));
        table.by_token.insert(token, (request, expires));
        Ok(path)
    }

    /// The request that `path` stands for, which it does no longer afterwards.
    pub(crate) fn take(&self, path: &str) -> Option<Request> {
        self.take_at(path, Instant::now())
    }

    fn take_at(&self, path: &str, now: Instant) -> Option<Request> {
        let (verb, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.sweep(now);
        // A token at another verb's path is a guess or a mistake: the owner may still come.
        if table.by_token.get(token)?.0.verb() != verb {
            return None;
        }
        table.by_token.remove(token).map(|(request, _)| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(sandbox: &str) -> Request {
        Request::PortForward(PortForwardRequest { sandbox: sandbox.to_owned(), ports: Vec::new() })
    }

    fn exec(container: &str, tty: bool, stdout: bool, stderr: bool) -> Request {
        let (container, command) = (container.to_owned(), vec!["true".to_owned()]);
        Request::Exec(ExecRequest { container, command, tty, stdin: false, stdout, stderr })
    }

    #[test]
    fn a_path_is_good_for_one_use() {
        let waiting = Waiting::default();
        let path = waiting.put(forward("a")).unwrap();
        assert_eq!(waiting.take(&path), Some(forward("a")));
        assert_eq!(waiting.take(&path), None);
    }

    #[test]
    fn a_path_expires_after_a_minute() {
        let (waiting, now) = (Waiting::default(), Instant::now());
        let (early, late) =
            (waiting.put_at(forward("a"), now).unwrap(), waiting.put_at(forward("b"), now).unwrap());
        assert_eq!(waiting.take_at(&early, now + LIFETIME - Duration::from_millis(1)), Some(forward("a")));
        assert_eq!(waiting.take_at(&late, now + LIFETIME), None);
    }

    #[test]
    fn a_thousand_may_wait_and_expired_ones_make_room() {
        let (waiting, now) = (Waiting::default(), Instant::now());
        let paths: Vec<_> = (0..MOST).map(|_| waiting.put_at(forward("a"), now).unwrap()).collect();
        assert_eq!(waiting.put_at(forward("a"), now), Err(UrlError::TooMany));
        assert!(waiting.take_at(&paths[7], now).is_some());
        assert!(waiting.put_at(forward("a"), now).is_ok());
        assert_eq!(waiting.put_at(forward("a"), now), Err(UrlError::TooMany));
        assert!(waiting.put_at(forward("a"), now + LIFETIME).is_ok());
        let table = waiting.0.lock().unwrap();
        assert_eq!((table.by_token.len(), table.order.len()), (1, 1));
    }

    #[test]
    fn tokens_are_long_and_differ() {
        let waiting = Waiting::default();
        let a = waiting.put(forward("a")).unwrap();
        let b = waiting.put(forward("a")).unwrap();
        assert_ne!(a, b);
        assert_eq!(a.len(), "/portforward/".len() + 22);
    }

    #[test]
    fn a_guess_finds_nothing_and_spends_nothing() {
        let waiting = Waiting::default();
        let path = waiting.put(forward("a")).unwrap();
        let token = path.rsplit('/').next().unwrap();
        for guess in [
            "",
            "/",
            "//",
            "/portforward",
            "/portforward/",
            "/portforward/AAAAAAAAAAAAAAAAAAAAAA",
            token,
            &format!("/exec/{token}"),
            &format!("/portforward/{token}/"),
            &format!("//portforward/{token}"),
        ] {
            assert_eq!(waiting.take(guess), None, "{guess}");
        }
        assert!(waiting.take(&path).is_some());
    }

    #[test]
    fn malformed_requests_get_no_url() {
        let waiting = Waiting::default();
        for (request, want) in [
            (exec("", false, true, false), "missing required container_id"),
            (exec("c", true, false, true), "tty and stderr cannot both be true"),
            (exec("c", true, false, false), "one of stdin, stdout, or stderr must be set"),
            (forward(""), "missing required pod_sandbox_id"),
        ] {
            assert_eq!(waiting.put(request), Err(UrlError::Invalid(want)));
        }
        assert!(waiting.put(exec("c", true, true, false)).is_ok());
    }
}

//! A blob as a stream that survives a broken connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use super::Registry;
use super::error::RegistryError;
use super::http::content_length;
use criox_store::Digest;

/// A retry is earned by this much progress since the last one, or by time.
const PROGRESS_PER_RETRY: u64 = 1 << 20;
const TIME_PER_RETRY: Duration = Duration::from_secs(60);

/// The bytes of one blob, in order, never more than announced. The digest is the reader's to verify.
pub(crate) struct BlobReader {
    registry: Arc<Registry>,
    digest: Digest,
    size: u64,
    offset: u64,
    /// Bytes that a server repeats because it doesn't know ranges.
    skip: u64,
    body: Incoming,
    url: String,
    retried: Option<(Instant, u64)>,
}

impl BlobReader {
    pub(crate) async fn open(
        registry: Arc<Registry>,
        digest: &Digest,
        size: u64,
    ) -> Result<Self, RegistryError> {
        let answer = registry.blob_from(digest, None).await?;
        if let Some(length) = content_length(&answer.headers).filter(|l| *l != size) {
            return Err(wrong_size(answer.url, size, length));
        }
        Ok(Self {
            registry,
            digest: digest.clone(),
            size,
            offset: 0,
            skip: 0,
            body: answer.body,
            url: answer.url,
            retried: None,
        })
    }

    /// The next piece; `None` when all announced bytes have come.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let no_progress = self.registry.timeouts().no_progress;
        loop {
            let broken = match timeout(no_progress, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    match self.accept(data)? {
                        Some(data) => return Ok(Some(data)),
                        None => continue,
                    }
                }
                Ok(None) if self.offset == self.size => return Ok(None),
                Ok(None) => None,
                Ok(Some(Err(e))) => Some(e),
                Err(_) => {
                    return Err(RegistryError::Stalled {
                        url: self.url.clone(),
                        what: "data of the blob",
                        after: no_progress,
                    });
                }
            };
            if !self.may_retry() {
                return Err(match broken {
                    Some(e) => RegistryError::Unreachable { url: self.url.clone(), source: Box::new(e) },
                    None => wrong_size(self.url.clone(), self.size, self.offset),
                });
            }
            self.resume().await?;
        }
    }

    fn accept(&mut self, mut data: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let repeated = self.skip.min(data.len() as u64);
        self.skip -= repeated;
        // At most the length of `data`, so that it fits.
        let _ = data.split_to(usize::try_from(repeated).unwrap_or(data.len()));
        let got = self.offset + data.len() as u64;
        if got > self.size {
            return Err(wrong_size(self.url.clone(), self.size, got));
        }
        self.offset = got;
        Ok((!data.is_empty()).then_some(data))
    }

    fn may_retry(&self) -> bool {
        self.retried.is_none_or(|(when, offset)| {
            self.offset >= offset + PROGRESS_PER_RETRY || when.elapsed() >= TIME_PER_RETRY
        })
    }

    async fn resume(&mut self) -> Result<(), RegistryError> {
        self.retried = Some((Instant::now(), self.offset));
        tracing::info!(url = self.url, offset = self.offset, size = self.size, "blob broke off, resuming");
        sleep(self.registry.timeouts().retry).await;
        let answer = self.registry.blob_from(&self.digest, Some(self.offset)).await?;
        self.skip = match answer.status {
            StatusCode::PARTIAL_CONTENT => {
                check_range(&answer.headers, self.offset, self.size)
                    .map_err(|why| RegistryError::Protocol { url: answer.url.clone(), why })?;
                0
            }
            _ => self.offset,
        };
        self.url = answer.url;
        self.body = answer.body;
        Ok(())
    }
}

fn wrong_size(url: String, expected: u64, got: u64) -> RegistryError {
    if got > expected {
        RegistryError::TooLarge { url, expected, got }
    } else {
        RegistryError::TooShort { url, expected, got }
    }
}

pub(super) fn range_from(offset: u64) -> Option<(http::HeaderName, HeaderValue)> {
    Some((RANGE, HeaderValue::from_str(&format!("bytes={offset}-")).ok()?))
}

/// `Content-Range: bytes <first>-<last>/<all>` (RFC 9110 section 14.4) must continue where we stopped.
fn check_range(headers: &HeaderMap, offset: u64, size: u64) -> Result<(), String> {
    let value = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let parts = value.strip_prefix("bytes ").and_then(|range| {
        let (range, all) = range.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.trim().parse::<u64>().ok()?, all.trim().parse::<u64>().ok()))
    });
    match parts {
        Some((first, all)) if first == offset && all.is_none_or(|all| all == size) => Ok(()),
        _ => Err(format!("asked for bytes from {offset} of {size}, got Content-Range {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_continue_where_the_blob_broke_off() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, HeaderValue::from_str(value).unwrap());
            check_range(&headers, 10, 100).is_ok()
        };
        assert!(check("bytes 10-99/100"));
        assert!(check("bytes 10-99/*"));
        for bad in ["bytes 0-99/100", "bytes 10-99/101", "", "bytes", "items 10-99/100", "bytes 10/100"] {
            assert!(!check(bad), "{bad}");
        }
    }
}

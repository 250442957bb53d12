//! The opening handshake (RFC 6455, section 4.2), with Kubernetes' subprotocols.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Response, StatusCode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::negotiate::choose;

/// What the client's key is joined with (section 1.3).
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How channels are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// Version of the remote command protocol, of which the error channel depends.
    pub(crate) version: u8,
    /// Text frames with base64, for clients that can't send binary ones.
    pub(crate) base64: bool,
}

const fn binary(version: u8) -> Dialect {
    Dialect { version, base64: false }
}

const fn base64(version: u8) -> Dialect {
    Dialect { version, base64: true }
}

/// What a client speaks that names nothing.
pub(crate) const UNNAMED: Dialect = binary(1);

/// Exec and attach.
pub(crate) const REMOTE_COMMAND: &[(&str, Dialect)] = &[
    ("v5.channel.k8s.io", binary(5)),
    ("v4.channel.k8s.io", binary(4)),
    ("v3.channel.k8s.io", binary(3)),
    ("v2.channel.k8s.io", binary(2)),
    ("channel.k8s.io", binary(1)),
    ("v4.base64.channel.k8s.io", base64(4)),
    ("v3.base64.channel.k8s.io", base64(3)),
    ("v2.base64.channel.k8s.io", base64(2)),
    ("base64.channel.k8s.io", base64(1)),
];

/// How ports are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Two channels for each port of the request.
    Channels { base64: bool },
    /// SPDY in binary messages.
    Tunnel,
}

/// Port-forward.
pub(crate) const PORT_FORWARD: &[(&str, Forward)] = &[
    ("SPDY/3.1+portforward.k8s.io", Forward::Tunnel),
    ("v4.channel.k8s.io", Forward::Channels { base64: false }),
    ("channel.k8s.io", Forward::Channels { base64: false }),
    ("v4.base64.channel.k8s.io", Forward::Channels { base64: true }),
    ("base64.channel.k8s.io", Forward::Channels { base64: true }),
];

/// Why a handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("a WebSocket is opened by GET")]
    Method,
    #[error("only version 13 of WebSocket is spoken")]
    Version,
    #[error("Sec-WebSocket-Key is missing or not 16 bytes in base64")]
    Key,
    #[error("none of the WebSocket subprotocols that were asked for is spoken")]
    Protocol,
}

impl Refused {
    /// The status to answer with.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Key => StatusCode::BAD_REQUEST,
            Self::Protocol => StatusCode::FORBIDDEN,
        }
    }
}

/// The answer that opens the WebSocket, and what is spoken on it: the client's first protocol that is known, or `unnamed`
/// if it names none.
pub(crate) fn accept<T: Copy>(
    method: &Method,
    headers: &HeaderMap,
    known: &[(&'static str, T)],
    unnamed: T,
) -> Result<(Response<()>, T), Refused> {
    if method != Method::GET {
        return Err(Refused::Method);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refused::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).ok_or(Refused::Key)?.trim();
    if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(Refused::Key);
    }
    let (name, chosen) = match choose(headers, &SEC_WEBSOCKET_PROTOCOL, known) {
        Some((name, chosen)) => (Some(name), chosen),
        None if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) => return Err(Refused::Protocol),
        None => (None, unnamed),
    };
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{MAGIC}").as_bytes());
    let proof = HeaderValue::from_str(&STANDARD.encode(hash)).map_err(|_| Refused::Key)?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, proof);
    if let Some(name) = name {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((response, chosen))
}

//! The answer to a client's request, and what is done once it has upgraded.

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;

use crate::backend::PortForwardRequest;
use crate::exec::{self, Call};
use crate::forward;
use crate::negotiate::{self, ACCEPTED_PROTOCOLS, STREAM_PROTOCOL, Upgrade, choose, upgrade};
use crate::session::{Session, Wire};
use crate::source::Ended;
use crate::urls::{self, Waiting};
use crate::websocket::handshake::{self, Dialect, Forward};

/// What is spoken after the upgrade.
#[derive(Debug)]
pub(crate) enum Plan {
    ExecSpdy(Call, u8),
    ExecWebSocket(Call, Dialect),
    ForwardSpdy(PortForwardRequest),
    ForwardTunnel(PortForwardRequest),
    ForwardChannels(PortForwardRequest, bool),
}

impl Plan {
    /// Whether SPDY is carried in WebSocket messages.
    pub(crate) fn is_tunnelled(&self) -> bool {
        matches!(self, Self::ForwardTunnel(_))
    }

    /// For the log: what is done to what. Tokens and commands stay out of it.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::ExecSpdy(Call::Exec(request), _) | Self::ExecWebSocket(Call::Exec(request), _) => {
                format!("exec in {}", request.container)
            }
            Self::ExecSpdy(Call::Attach(request), _) | Self::ExecWebSocket(Call::Attach(request), _) => {
                format!("attach to {}", request.container)
            }
            Self::ForwardSpdy(request) | Self::ForwardTunnel(request) | Self::ForwardChannels(request, _) => {
                format!("port-forward to {}", request.sandbox)
            }
        }
    }

    /// Serves the client to its end.
    pub(crate) async fn run(self, session: &Session, wire: Wire) -> Result<(), Ended> {
        match self {
            Self::ExecSpdy(call, version) => exec::spdy(session, wire, call, version).await,
            Self::ExecWebSocket(call, dialect) => exec::websocket(session, wire, call, dialect).await,
            Self::ForwardSpdy(request) => forward::spdy(session, wire, request).await,
            Self::ForwardTunnel(request) => forward::tunnel(session, wire, request).await,
            Self::ForwardChannels(request, base64) => {
                forward::websocket(session, wire, request, base64).await
            }
        }
    }
}

/// Answers a request. A token is used up by the first one, whatever becomes of it.
pub(crate) fn answer<B>(waiting: &Waiting, request: &Request<B>) -> (Response<Full<Bytes>>, Option<Plan>) {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return (*text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed"), None);
    }
    let Some(wanted) = waiting.take(request.uri().path()) else {
        return (*text(StatusCode::NOT_FOUND, "404 page not found"), None);
    };
    let answered = match (upgrade(request.headers()), wanted) {
        (Some(Upgrade::WebSocket), urls::Request::PortForward(wanted)) => forward_websocket(request, wanted),
        (Some(Upgrade::WebSocket), wanted) => handshake::accept(
            request.method(),
            request.headers(),
            handshake::REMOTE_COMMAND,
            handshake::UNNAMED,
        )
        .map(|(response, dialect)| (response, Plan::ExecWebSocket(call(wanted), dialect)))
        .map_err(refused),
        (other, urls::Request::PortForward(wanted)) => {
            spdy(other, request.headers(), negotiate::PORT_FORWARD)
                .map(|(response, _)| (response, Plan::ForwardSpdy(wanted)))
        }
        (other, wanted) => spdy(other, request.headers(), negotiate::REMOTE_COMMAND)
            .map(|(response, version)| (response, Plan::ExecSpdy(call(wanted), version))),
    };
    match answered {
        Ok((response, plan)) => (response.map(|()| Full::default()), Some(plan)),
        Err(refusal) => (*refusal, None),
    }
}

fn call(request: urls::Request) -> Call {
    match request {
        urls::Request::Exec(request) => Call::Exec(request),
        urls::Request::Attach(request) => Call::Attach(request),
        // Answered before, by every caller.
        urls::Request::PortForward(_) => unreachable!("a port-forward is no call"),
    }
}

type Refusal = Box<Response<Full<Bytes>>>;

fn forward_websocket<B>(
    request: &Request<B>,
    wanted: PortForwardRequest,
) -> Result<(Response<()>, Plan), Refusal> {
    let unnamed = Forward::Channels { base64: false };
    let (response, how) =
        handshake::accept(request.method(), request.headers(), handshake::PORT_FORWARD, unnamed)
            .map_err(refused)?;
    let Forward::Channels { base64 } = how else { return Ok((response, Plan::ForwardTunnel(wanted))) };
    if wanted.ports.is_empty() || wanted.ports.len() > forward::MOST_PORTS {
        let message = "over this protocol, 1 to 32 ports have to be named in the request";
        return Err(text(StatusCode::BAD_REQUEST, message));
    }
    Ok((response, Plan::ForwardChannels(wanted, base64)))
}

fn spdy<T: Copy>(
    asked: Option<Upgrade>,
    headers: &HeaderMap,
    known: &[(&'static str, T)],
) -> Result<(Response<()>, T), Refusal> {
    let name = HeaderName::from_static(STREAM_PROTOCOL);
    if negotiate::values(headers, &name).next().is_none() {
        return Err(text(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: X-Stream-Protocol-Version is required",
        ));
    }
    let Some((chosen, meaning)) = choose(headers, &name, known) else {
        let mut refusal = text(
            StatusCode::FORBIDDEN,
            "unable to upgrade: none of the stream protocols asked for is spoken",
        );
        for (known, _) in known {
            let accepted = HeaderName::from_static(ACCEPTED_PROTOCOLS);
            refusal.headers_mut().append(accepted, HeaderValue::from_static(known));
        }
        return Err(refusal);
    };
    if asked != Some(Upgrade::Spdy) {
        let message = "unable to upgrade: the headers Connection: Upgrade and Upgrade: SPDY/3.1 are required";
        return Err(text(StatusCode::BAD_REQUEST, message));
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    answer.insert(name, HeaderValue::from_static(chosen));
    Ok((response, meaning))
}

fn refused(why: handshake::Refused) -> Refusal {
    let mut refusal = text(why.status(), &why.to_string());
    if why == handshake::Refused::Version {
        refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    refusal
}

fn text(status: StatusCode, text: &str) -> Refusal {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Box::new(response)
}

//! The headers by which a client asks for a protocol.

use http::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};

/// By which a client names what it wants to speak over SPDY, best first.
pub(crate) const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// By which the server names what it speaks, when it speaks nothing of that.
pub(crate) const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// Exec and attach over SPDY, with the version of each. There is no fifth one.
pub(crate) const REMOTE_COMMAND: &[(&str, u8)] =
    &[("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1)];

/// Port-forward over SPDY.
pub(crate) const PORT_FORWARD: &[(&str, u8)] = &[("portforward.k8s.io", 1)];

/// What a client upgrades to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    Spdy,
    WebSocket,
}

/// What the client upgrades to, if anything that is known.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<Upgrade> {
    if !values(headers, &CONNECTION).any(|value| value.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let asks = |name: &str| values(headers, &UPGRADE).any(|value| value.eq_ignore_ascii_case(name));
    match () {
        () if asks("websocket") => Some(Upgrade::WebSocket),
        () if asks("spdy/3.1") => Some(Upgrade::Spdy),
        () => None,
    }
}

/// All values of a header, of several lines and between commas, without empty ones.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// The first of the client's protocols that is known, with what is known about it.
pub(crate) fn choose<T: Copy>(
    headers: &HeaderMap,
    name: &HeaderName,
    known: &[(&'static str, T)],
) -> Option<(&'static str, T)> {
    values(headers, name).find_map(|wanted| known.iter().copied().find(|(known, _)| *known == wanted))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[track_caller]
    fn check_upgrade(connection: &'static str, to: &'static str, want: Option<Upgrade>) {
        assert_eq!(upgrade(&headers(&[("connection", connection), ("upgrade", to)])), want);
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        check_upgrade("Upgrade", "SPDY/3.1", Some(Upgrade::Spdy));
        check_upgrade("keep-alive, Upgrade", "websocket", Some(Upgrade::WebSocket));
        check_upgrade("upgrade", "WebSocket", Some(Upgrade::WebSocket));
        check_upgrade("keep-alive", "SPDY/3.1", None);
        check_upgrade("upgrade", "h2c", None);
        check_upgrade("upgrade", "spdy/2", None);
    }

    #[test]
    fn the_clients_first_known_protocol_wins() {
        let name = HeaderName::from_static(STREAM_PROTOCOL);
        let choice = |value: &'static str| {
            choose(&headers(&[(STREAM_PROTOCOL, value)]), &name, REMOTE_COMMAND).map(|(_, version)| version)
        };
        assert_eq!(choice("v5.channel.k8s.io, v4.channel.k8s.io,v3.channel.k8s.io"), Some(4));
        assert_eq!(choice("channel.k8s.io,v4.channel.k8s.io"), Some(1));
        assert_eq!(choice("v9.channel.k8s.io"), None);
        let mut several = HeaderMap::new();
        for value in ["v5.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"] {
            several.append(name.clone(), HeaderValue::from_static(value));
        }
        assert_eq!(choose(&several, &name, REMOTE_COMMAND), Some(("v3.channel.k8s.io", 3)));
    }
}

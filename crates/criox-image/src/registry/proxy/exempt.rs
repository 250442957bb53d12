//! `NO_PROXY`: hosts that are reached without a proxy.

use std::net::IpAddr;

/// A list of hosts, domains, addresses and networks, some with a port.
#[derive(Debug, Default)]
pub(super) struct Exempt {
    /// `*`.
    all: bool,
    networks: Vec<(IpAddr, u8)>,
    /// With the port as it was written; empty for any.
    addresses: Vec<(IpAddr, String)>,
    domains: Vec<Domain>,
}

#[derive(Debug)]
struct Domain {
    /// What names end with; begins with a dot.
    suffix: String,
    /// Whether the name without the dot is meant, too.
    itself: bool,
    port: String,
}

impl Exempt {
    /// From entries between commas: `*`, `10.0.0.0/8`, `10.0.0.1[:port]`, `example.com[:port]` (with all below it),
    /// `.example.com[:port]` and `*.example.com[:port]` (only what is below it).
    pub(super) fn parse(text: &str) -> Self {
        let mut exempt = Self::default();
        for entry in text.split(',') {
            let entry = entry.trim().to_lowercase();
            if entry == "*" {
                exempt.all = true;
            } else if let Some(network) = network(&entry) {
                exempt.networks.push(network);
            } else {
                exempt.add(&entry);
            }
        }
        exempt
    }

    fn add(&mut self, entry: &str) {
        let (host, port) = split_port(entry);
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.addresses.push((address.to_canonical(), port.to_owned()));
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        if host.is_empty() {
            return;
        }
        let itself = !host.starts_with('.');
        let suffix = if itself { format!(".{host}") } else { host.to_owned() };
        self.domains.push(Domain { suffix, itself, port: port.to_owned() });
    }

    /// Whether a host, as an address has it, is reached directly. The node itself always is.
    pub(super) fn holds(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let port = port.to_string();
        let at = |wanted: &str| wanted.is_empty() || wanted == port;
        if let Ok(address) = host.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback()
                || self.all
                || self.networks.iter().any(|(network, length)| contains(*network, *length, address))
                || self.addresses.iter().any(|(one, port)| *one == address && at(port));
        }
        let is_in =
            |domain: &Domain| host.ends_with(&domain.suffix) || domain.itself && host == domain.suffix[1..];
        host == "localhost" || self.all || self.domains.iter().any(|domain| is_in(domain) && at(&domain.port))
    }
}

/// `address/length`, the length as large as the family allows.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    match address {
        IpAddr::V4(_) => (length <= 32).then_some((address, length)),
        // `::ffff:10.0.0.0/104` is 10.0.0.0/8.
        IpAddr::V6(v6) => match v6.to_ipv4_mapped().zip(length.checked_sub(96)) {
            Some((v4, length)) => (length <= 32).then_some((v4.into(), length)),
            None => (length <= 128).then_some((address, length)),
        },
    }
}

fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    let length = u32::from(length);
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// A host without brackets, and its port or nothing. More than one colon without brackets is an IPv6 address.
fn split_port(entry: &str) -> (&str, &str) {
    if let Some((host, rest)) = entry.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (host, rest.strip_prefix(':').unwrap_or(""));
    }
    match entry.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port),
        _ => (entry, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, direct: &[(&str, u16)], proxied: &[(&str, u16)]) {
        let exempt = Exempt::parse(list);
        for (host, port) in direct {
            assert!(exempt.holds(host, *port), "{host}:{port} is in {list:?}");
        }
        for (host, port) in proxied {
            assert!(!exempt.holds(host, *port), "{host}:{port} is not in {list:?}");
        }
    }

    #[test]
    fn the_node_itself_is_never_proxied() {
        let own =
            [("localhost", 80), ("LocalHost", 5000), ("127.0.0.1", 443), ("127.9.9.9", 1), ("[::1]", 443)];
        check("", &own, &[("localhost.example", 80), ("128.0.0.1", 80), ("[fd00::1]", 80), ("a", 443)]);
        check("", &[("[::ffff:127.0.0.1]", 1)], &[]);
    }

    #[test]
    fn a_domain_means_itself_and_all_below_it() {
        let below = [("a.example.com", 443), ("a.b.Example.COM", 1)];
        check("example.com", &below, &[("notexample.com", 443), ("example.com.evil", 443)]);
        check(" x , Example.Com ,", &[("example.com", 443), ("x", 1), below[0], below[1]], &[("y", 1)]);
        for list in [".example.com", "*.example.com", "x,*.EXAMPLE.com"] {
            check(list, &below, &[("example.com", 443), ("badexample.com", 443)]);
        }
        check("registry", &[("registry", 5000), ("a.registry", 1)], &[("registry.example", 443)]);
        check("*example.com", &[], &[("a.example.com", 443), ("example.com", 443)]);
    }

    #[test]
    fn a_port_limits_an_entry() {
        check("example.com:5000", &[("example.com", 5000), ("a.example.com", 5000)], &[("example.com", 443)]);
        check("*.example.com:80", &[("a.example.com", 80)], &[("a.example.com", 81), ("example.com", 80)]);
        check("10.0.0.1:5000", &[("10.0.0.1", 5000)], &[("10.0.0.1", 443)]);
        check("[fd00::1]:5000", &[("[fd00::1]", 5000)], &[("[fd00::1]", 443)]);
        check(":5000", &[], &[("10.0.0.1", 5000), ("a", 5000)]);
        check("example.com:", &[("example.com", 1)], &[]);
    }

    #[test]
    fn addresses_and_networks_mean_addresses_and_not_names() {
        check(
            "10.0.0.1",
            &[("10.0.0.1", 1), ("[::ffff:10.0.0.1]", 1)],
            &[("10.0.0.2", 1), ("a.10.0.0.1", 1)],
        );
        check("10.0.0.0/8,172.16.0.0/12", &[("10.255.0.1", 443), ("172.31.0.1", 1)], &[("172.32.0.1", 1)]);
        check("10.1.2.3/8", &[("10.200.0.1", 443)], &[("11.0.0.1", 1), ("ten.example", 443)]);
        check("fd00::/8", &[("[fd12::1]", 443)], &[("[fe12::1]", 443), ("253.0.0.1", 443)]);
        check("fd00::1", &[("[fd00::1]", 443)], &[("[fd00::2]", 443)]);
        // Which Go takes for a name.
        check("[fd00::1]", &[("[fd00::1]", 443)], &[]);
        check("::ffff:10.0.0.0/104", &[("10.1.2.3", 443)], &[("11.0.0.1", 443)]);
        check("::ffff:10.0.0.0/129,fd00::/129", &[], &[("10.0.0.0", 443), ("[fd00::1]", 443)]);
        check("0.0.0.0/0", &[("1.2.3.4", 443)], &[("a.example", 443), ("[fd00::1]", 443)]);
        check("::/0", &[("[fd00::1]", 443)], &[("1.2.3.4", 443)]);
        check("10.0.0.0/33,10.0.0.0/,/8,10.0.0.0/x", &[], &[("10.0.0.1", 443)]);
        check("0.1", &[], &[("10.0.0.1", 443)]);
    }

    #[test]
    fn a_star_means_everything() {
        for list in ["*", "a, * ,b"] {
            check(list, &[("quay.io", 443), ("10.0.0.1", 80), ("[fd00::1]", 1)], &[]);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_list_makes_it_panic(list in "\\PC*|[*.:/,0-9a-f\\[\\]]*", host in "\\PC*|[.:0-9a-f\\[\\]]*") {
            Exempt::parse(&list).holds(&host, 443);
        }
    }
}

//! What a pod's containers are told of name servers.

use std::fmt::Write as _;

use criox_cri::v1;

use crate::error::SpecError;

/// Name servers, search domains and options of one pod: more are refused.
const MAX_ENTRIES: usize = 64;

/// resolv.conf(5) of a request; none means the node's.
///
/// # Errors
/// An entry that would become another line.
pub fn resolv_conf(dns: Option<&v1::DnsConfig>) -> Result<Option<String>, SpecError> {
    let Some(dns) = dns else { return Ok(None) };
    for (field, entries) in
        [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)]
    {
        let field = format!("dns_config.{field}");
        if entries.len() > MAX_ENTRIES {
            return Err(SpecError::invalid(field, format!("has more than {MAX_ENTRIES} entries")));
        }
        if let Some(bad) =
            entries.iter().find(|entry| entry.chars().any(|c| c.is_control() || c.is_whitespace()))
        {
            return Err(SpecError::invalid(field, format!("{bad:?} has blanks or control characters in it")));
        }
    }
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        writeln!(text, "nameserver {server}").unwrap_or_default();
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> v1::DnsConfig {
        let owned = |entries: &[&str]| entries.iter().map(ToString::to_string).collect();
        v1::DnsConfig { servers: owned(servers), searches: owned(searches), options: owned(options) }
    }

    #[test]
    fn the_order_is_search_servers_options() {
        let dns =
            dns(&["10.96.0.10", "fd00::a"], &["ns.svc.cluster.local", "svc.cluster.local"], &["ndots:5"]);
        assert_eq!(
            resolv_conf(Some(&dns)).expect("a plain request").expect("not the node's"),
            "search ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn nothing_asked_means_the_nodes() {
        assert_eq!(resolv_conf(None).expect("none"), None);
        assert_eq!(resolv_conf(Some(&dns(&[], &[], &[]))).expect("empty"), None);
    }

    #[test]
    fn an_entry_cannot_become_another_line() {
        for bad in ["1.1.1.1\nnameserver 6.6.6.6", "a b", "x\r", "\0"] {
            assert!(resolv_conf(Some(&dns(&[bad], &[], &[]))).is_err(), "{bad:?}");
            assert!(resolv_conf(Some(&dns(&[], &[bad], &[]))).is_err(), "{bad:?}");
            assert!(resolv_conf(Some(&dns(&[], &[], &[bad]))).is_err(), "{bad:?}");
        }
    }
}

//! The rules as one nftables transaction.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::Rule;

/// A script that replaces our table; with no rules it only removes it.
pub(super) fn script(rules: &[Rule<'_>]) -> String {
    // "add" before "delete" so that deleting never fails; nothing in between can be seen.
    let mut script = "add table inet criox-hostports\ndelete table inet criox-hostports\n".to_owned();
    if rules.is_empty() {
        return script;
    }
    script.push_str("table inet criox-hostports {\n chain hostports {\n");
    for rule in rules {
        let (family, target) = match rule.to.address {
            IpAddr::V4(ip) => ("ip", format!("{ip}")),
            IpAddr::V6(ip) => ("ip6", format!("[{ip}]")),
        };
        let to_host = match rule.port.host_ip {
            Some(ip) => format!("{family} daddr {ip}"),
            None => format!("meta nfproto {}", if family == "ip" { "ipv4" } else { "ipv6" }),
        };
        let _infallible = writeln!(
            script,
            "  {to_host} {} dport {} dnat {family} to {target}:{} comment \"{}\"",
            rule.port.protocol.as_str(),
            rule.port.host_port,
            rule.port.container_port,
            rule.comment(),
        );
    }
    script.push_str(
        " }\n chain prerouting {\n  type nat hook prerouting priority -100; policy accept;\n  \
         fib daddr type local jump hostports\n }\n chain output {\n  \
         type nat hook output priority -100; policy accept;\n  fib daddr type local jump hostports\n }\n \
         chain postrouting {\n  type nat hook postrouting priority 100; policy accept;\n",
    );
    let mut masquerades = BTreeSet::new();
    for rule in rules {
        let (address, network) = (rule.to.address, rule.network());
        if address.is_ipv4() {
            masquerades.insert(format!("ct status dnat ip saddr {network} ip daddr {address} masquerade"));
            masquerades.insert(format!("ct status dnat ip saddr 127.0.0.0/8 ip daddr {address} masquerade"));
        } else {
            masquerades.insert(format!("ct status dnat ip6 saddr {network} ip6 daddr {address} masquerade"));
        }
    }
    for line in masquerades {
        let _infallible = writeln!(script, "  {line}");
    }
    script.push_str(
        " }\n chain localguard {\n  type filter hook prerouting priority -300; policy accept;\n  \
         iifname != \"lo\" ip daddr 127.0.0.0/8 drop\n }\n}\n",
    );
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_as_a_whole() {
        let state = super::super::tests::state();
        let script = script(&state.rules());
        for line in [
            "  meta nfproto ipv4 tcp dport 80 dnat ip to 10.1.0.2:8080 comment \"0123456789abcdef\"\n",
            "  ip daddr 10.0.0.1 udp dport 53 dnat ip to 10.1.0.2:8080 comment \"0123456789abcdef\"\n",
            "  meta nfproto ipv6 tcp dport 80 dnat ip6 to [fd00::2]:8080 comment \"0123456789abcdef\"\n",
            "  ct status dnat ip saddr 10.1.0.0/16 ip daddr 10.1.0.2 masquerade\n",
            "  ct status dnat ip6 saddr fd00::/64 ip6 daddr fd00::2 masquerade\n",
        ] {
            assert!(script.contains(line), "{line} is not in\n{script}");
        }
    }

    #[test]
    fn no_rules_leave_no_table() {
        assert_eq!(script(&[]), "add table inet criox-hostports\ndelete table inet criox-hostports\n");
    }
}

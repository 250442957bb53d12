//! The rules for iptables, where `nft` isn't installed: our chains are refilled in one transaction for each family.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Rule, ToolFailure, run};
use crate::NetworkError;

/// Where our chains hang: table, built-in chain, condition, our chain.
const JUMPS: [(&str, &str, &[&str], &str); 4] = [
    ("nat", "PREROUTING", &["-m", "addrtype", "--dst-type", "LOCAL"], "CRIOX-HOSTPORTS"),
    ("nat", "OUTPUT", &["-m", "addrtype", "--dst-type", "LOCAL"], "CRIOX-HOSTPORTS"),
    ("nat", "POSTROUTING", &["-m", "conntrack", "--ctstate", "DNAT"], "CRIOX-HOSTPORTS-MASQ"),
    ("raw", "PREROUTING", &[], "CRIOX-LOCALGUARD"),
];

pub(super) async fn apply(rules: &[Rule<'_>]) -> Result<(), NetworkError> {
    for (six, tool, restore) in
        [(false, "iptables", "iptables-restore"), (true, "ip6tables", "ip6tables-restore")]
    {
        let any = rules.iter().any(|rule| rule.to.address.is_ipv6() == six);
        match fill(tool, restore, &script(rules, six), any).await {
            // A host without IPv6 has no ip6tables, and no need of it.
            Err(_) if !any => {}
            Err(failure) => return Err(failure.into_error("replace the iptables chains CRIOX-*")),
            Ok(()) => {}
        }
    }
    Ok(())
}

async fn fill(tool: &str, restore: &str, script: &str, any: bool) -> Result<(), ToolFailure> {
    if any {
        run(restore, &["--noflush", "-w", "10"], script).await?;
    }
    for (table, hook, condition, chain) in JUMPS {
        let args = |action: &'static str| {
            let mut args = vec!["-w", "10", "-t", table, action, hook];
            args.extend_from_slice(condition);
            args.extend_from_slice(&["-j", chain]);
            args
        };
        let there = match run(tool, &args("-C"), "").await {
            Ok(()) => true,
            Err(ToolFailure::NotInstalled) => return Err(ToolFailure::NotInstalled),
            Err(ToolFailure::Failed(_)) => false,
        };
        if any && !there {
            run(tool, &args("-I"), "").await?;
        } else if !any && there {
            run(tool, &args("-D"), "").await?;
        }
    }
    if !any {
        for (table, chain) in
            [("nat", "CRIOX-HOSTPORTS"), ("nat", "CRIOX-HOSTPORTS-MASQ"), ("raw", "CRIOX-LOCALGUARD")]
        {
            // Fails where there is no such chain, which is what is wanted.
            let _absent = run(tool, &["-w", "10", "-t", table, "-F", chain], "").await;
            let _absent = run(tool, &["-w", "10", "-t", table, "-X", chain], "").await;
        }
    }
    Ok(())
}

/// Input for `iptables-restore --noflush`, which empties the chains that it declares.
fn script(rules: &[Rule<'_>], six: bool) -> String {
    let mut nat = "*nat\n:CRIOX-HOSTPORTS - [0:0]\n:CRIOX-HOSTPORTS-MASQ - [0:0]\n".to_owned();
    let mut masquerades = BTreeSet::new();
    for rule in rules.iter().filter(|rule| rule.to.address.is_ipv6() == six) {
        let to_host = rule.port.host_ip.map(|ip| format!("-d {ip} ")).unwrap_or_default();
        let target = match rule.to.address {
            IpAddr::V4(ip) => format!("{ip}"),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let _infallible = writeln!(
            nat,
            "-A CRIOX-HOSTPORTS {to_host}-p {} --dport {} -m comment --comment {} -j DNAT --to-destination {target}:{}",
            rule.port.protocol.as_str(),
            rule.port.host_port,
            rule.comment(),
            rule.port.container_port,
        );
        masquerades.insert((rule.network(), rule.to.address));
        if !six {
            masquerades.insert(("127.0.0.0/8".to_owned(), rule.to.address));
        }
    }
    for (from, to) in masquerades {
        let _infallible = writeln!(nat, "-A CRIOX-HOSTPORTS-MASQ -s {from} -d {to} -j MASQUERADE");
    }
    nat.push_str("COMMIT\n*raw\n:CRIOX-LOCALGUARD - [0:0]\n");
    if !six {
        nat.push_str("-A CRIOX-LOCALGUARD ! -i lo -d 127.0.0.0/8 -j DROP\n");
    }
    nat.push_str("COMMIT\n");
    nat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_rules() {
        let state = super::super::tests::state();
        let rules = state.rules();
        let (four, six) = (script(&rules, false), script(&rules, true));
        assert!(
            four.contains(
                "-A CRIOX-HOSTPORTS -d 10.0.0.1 -p udp --dport 53 -m comment --comment 0123456789abcdef \
             -j DNAT --to-destination 10.1.0.2:8080\n"
            ),
            "{four}"
        );
        assert!(
            four.contains("-A CRIOX-HOSTPORTS-MASQ -s 10.1.0.0/16 -d 10.1.0.2 -j MASQUERADE\n"),
            "{four}"
        );
        assert!(!four.contains("fd00"), "{four}");
        assert!(six.contains("--to-destination [fd00::2]:8080\n") && !six.contains("10."), "{six}");
    }
}

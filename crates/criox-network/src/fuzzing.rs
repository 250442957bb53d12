//! Parsers of what lies in a node's directories and of what plugins print, for the fuzz target alone (`dev/fuzz`).

use serde_json::Value;

use crate::conf::is_identifier;
use crate::record::IpConfig;
use crate::{CniVersion, NetworkConf, cache, result};

/// Two files of a configuration directory, a plugin's result, and a file of libcni's cache; each is tried as all of them.
///
/// # Panics
/// If a parser breaks what the rest of the crate counts on.
pub fn fuzz(first: &[u8], second: &[u8]) {
    let (text, other) = (String::from_utf8_lossy(first), String::from_utf8_lossy(second));
    for parsed in
        [NetworkConf::parse_list(&text), NetworkConf::parse_single(&text, "10-x.conf")].into_iter().flatten()
    {
        network(&parsed);
        if let Ok(longer) = parsed.with_plugins(&[("x/1.conf".into(), other.clone().into_owned())]) {
            network(&longer);
        }
    }
    if let Ok(value) = serde_json::from_slice(first) {
        of_plugin(&value);
    }
    cache::fuzz(first);
}

/// What ADD and DEL count on.
fn network(network: &NetworkConf) {
    assert!(is_identifier(&network.name) && network.version.is_known() && !network.plugins.is_empty());
    for plugin in &network.plugins {
        // The name of a file in a plugin directory.
        assert!(!plugin.plugin_type.is_empty() && !plugin.plugin_type.contains(['/', '\0']));
        assert!(plugin.plugin_type != "." && plugin.plugin_type != "..");
    }
    // The record of an attachment holds the text: DEL must find the same chain in it.
    assert_eq!(NetworkConf::parse_list(&network.text).as_ref(), Ok(network));
}

/// A result means the same in every version that has a place for all of it.
fn of_plugin(value: &Value) {
    let _version = result::version(value);
    let Ok((interfaces, ips)) = result::read(value) else { return };
    for version in [CniVersion::V0_3_0, CniVersion::V0_4_0, CniVersion::V1_1_0] {
        let again = result::to_version(value, version);
        assert_eq!(result::version(&again), Some(version));
        assert_eq!(result::read(&again).as_ref(), Ok(&(interfaces.clone(), ips.clone())));
    }
    let old = result::to_version(value, CniVersion::V0_2_0);
    let (_, few) = result::read(&old).unwrap_or_default();
    let of_family =
        |ips: &[IpConfig], four: bool| ips.iter().filter(|ip| ip.address.is_ipv4() == four).count();
    assert!([true, false].into_iter().all(|four| of_family(&few, four) <= 1));
}

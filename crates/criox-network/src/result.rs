//! Results of plugins: their forms in the versions of the specification, and what they say about the pod.
//!
//! Results go along the chain as JSON values, so that a field that a plugin adds reaches the next one.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::CniVersion;
use crate::record::{Interface, IpConfig};

/// The version that a result says it has.
pub(crate) fn version(result: &Value) -> Option<CniVersion> {
    result.get("cniVersion").and_then(Value::as_str).and_then(CniVersion::parse)
}

/// The same result in the form of `version`.
pub(crate) fn to_version(result: &Value, version: CniVersion) -> Value {
    let mut modern = to_modern(result);
    modern.insert("cniVersion".into(), version.to_string().into());
    if version >= CniVersion::V1_0_0 {
        return Value::Object(modern);
    }
    if version >= CniVersion::V0_3_0 {
        if let Some(Value::Array(ips)) = modern.get_mut("ips") {
            for ip in ips {
                let family = if is_v6(ip.get("address")) { "6" } else { "4" };
                if let Value::Object(ip) = ip {
                    ip.insert("version".into(), family.into());
                }
            }
        }
        return Value::Object(modern);
    }
    to_0_2(modern)
}

/// Fields as in 1.x: `ips` without their family, no `ip4` and `ip6`.
fn to_modern(result: &Value) -> Map<String, Value> {
    let mut modern = result.as_object().cloned().unwrap_or_default();
    for key in ["ip4", "ip6"] {
        let Some(old) = modern.remove(key) else { continue };
        let mut ip = Map::new();
        if let Some(address) = old.get("ip") {
            ip.insert("address".into(), address.clone());
        }
        if let Some(gateway) = old.get("gateway") {
            ip.insert("gateway".into(), gateway.clone());
        }
        append(&mut modern, "ips", Value::Object(ip));
        if let Some(Value::Array(routes)) = old.get("routes") {
            for route in routes {
                append(&mut modern, "routes", route.clone());
            }
        }
    }
    if let Some(Value::Array(ips)) = modern.get_mut("ips") {
        for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
            ip.remove("version");
        }
    }
    modern
}

/// Fields as up to 0.2: one address of each family, with the routes of that family.
fn to_0_2(modern: Map<String, Value>) -> Value {
    let mut old = Map::new();
    let list = |key: &str| modern.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    for ip in list("ips") {
        let six = is_v6(ip.get("address"));
        let key = if six { "ip6" } else { "ip4" };
        if old.contains_key(key) {
            continue;
        }
        let mut one = Map::new();
        one.insert("ip".into(), ip.get("address").cloned().unwrap_or_default());
        if let Some(gateway) = ip.get("gateway") {
            one.insert("gateway".into(), gateway.clone());
        }
        let routes: Vec<Value> =
            list("routes").into_iter().filter(|route| is_v6(route.get("dst")) == six).collect();
        if !routes.is_empty() {
            one.insert("routes".into(), Value::Array(routes));
        }
        old.insert(key.into(), Value::Object(one));
    }
    for key in ["cniVersion", "dns"] {
        if let Some(value) = modern.get(key) {
            old.insert(key.into(), value.clone());
        }
    }
    Value::Object(old)
}

fn append(map: &mut Map<String, Value>, key: &str, value: Value) {
    if let Value::Array(list) = map.entry(key).or_insert_with(|| json!([])) {
        list.push(value);
    }
}

fn is_v6(text: Option<&Value>) -> bool {
    text.and_then(Value::as_str).is_some_and(|text| text.contains(':'))
}

/// The interfaces, and the addresses of the pod in the plugins' order.
///
/// An address that belongs to an interface of the host (a bridge's) is none of the pod's, unless that is all there
/// is: some plugins name the host's end of the pair for the pod's address.
///
/// # Errors
/// What is wrong with the result.
pub(crate) fn read(result: &Value) -> Result<(Vec<Interface>, Vec<IpConfig>), String> {
    if !result.is_object() {
        return Err("it is not a JSON object".into());
    }
    let modern = to_modern(result);
    let interfaces: Vec<Interface> = match modern.get("interfaces") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => serde_json::from_value(list.clone()).map_err(|e| format!("interfaces: {e}"))?,
    };
    let mut inside: Vec<IpConfig> = Vec::new();
    let mut outside: Vec<IpConfig> = Vec::new();
    let mut known = HashSet::new();
    let ips = match modern.get("ips") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(ips)) => ips,
        Some(_) => return Err("ips is not an array".into()),
    };
    for ip in ips {
        let one = address(ip)?;
        let owner = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let on_host =
            owner.and_then(|index| interfaces.get(index)).is_some_and(|owner| owner.sandbox.is_empty());
        // Not by looking through the list: a result of a megabyte has forty thousand addresses.
        if known.insert((on_host, one.address)) {
            if on_host { &mut outside } else { &mut inside }.push(one);
        }
    }
    Ok((interfaces, if inside.is_empty() { outside } else { inside }))
}

fn address(ip: &Value) -> Result<IpConfig, String> {
    let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
    let bad = || format!("{text:?} is not an address with a prefix length");
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if prefix > if address.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    let gateway = match ip.get("gateway").and_then(Value::as_str) {
        None | Some("") => None,
        Some(text) => Some(text.parse().map_err(|_| format!("gateway {text:?} is not an address"))?),
    };
    Ok(IpConfig { address, prefix, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual() -> Value {
        json!({"cniVersion":"1.0.0",
            "interfaces":[{"name":"cni0","mac":"aa"},{"name":"eth0","sandbox":"/run/netns/x"}],
            "ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":1},{"address":"fd00::2/64","interface":1}],
            "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"}],"dns":{},"x-own":1})
    }

    #[test]
    fn addresses_carry_their_family_before_1_0() {
        let old = to_version(&dual(), CniVersion::V0_4_0);
        assert_eq!(old["cniVersion"], "0.4.0");
        assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(old["x-own"], 1, "foreign fields are kept");
        assert_eq!(to_version(&old, CniVersion::V1_0_0), dual(), "and back");
    }

    #[test]
    fn one_address_of_each_family_before_0_3() {
        let old = to_version(&dual(), CniVersion::V0_2_0);
        let want = json!({"cniVersion":"0.2.0",
            "ip4":{"ip":"10.1.0.2/16","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},
            "ip6":{"ip":"fd00::2/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}});
        assert_eq!(old, want);
        let (interfaces, ips) = read(&old).unwrap();
        assert!(interfaces.is_empty());
        assert_eq!(ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>(), ["10.1.0.2", "fd00::2"]);
    }

    #[test]
    fn the_pods_addresses_are_read_in_order() {
        let (interfaces, ips) = read(&dual()).unwrap();
        assert_eq!(interfaces[1].sandbox, "/run/netns/x");
        assert_eq!((ips[0].prefix, ips[0].gateway.unwrap().to_string()), (16, "10.1.0.1".into()));
        assert_eq!(ips[1].address.to_string(), "fd00::2");
    }

    #[test]
    fn addresses_of_the_host_are_not_the_pods() {
        let mut result = dual();
        result["ips"][0]["interface"] = json!(0);
        assert_eq!(read(&result).unwrap().1.len(), 1);
        result["ips"][1]["interface"] = json!(0);
        assert_eq!(read(&result).unwrap().1.len(), 2, "but better than none");
        result["ips"][1]["interface"] = json!(99);
        assert_eq!(read(&result).unwrap().1[0].address.to_string(), "fd00::2");
    }

    #[test]
    fn a_result_as_long_as_a_plugin_may_print_is_read_at_once() {
        let ips: Vec<Value> = (0..40_000_u32)
            .map(|n| json!({"address": format!("{}/8", std::net::Ipv4Addr::from_bits(n))}))
            .collect();
        let twice = [ips.clone(), ips].concat();
        let begun = std::time::Instant::now();
        assert_eq!(read(&json!({"ips": twice})).unwrap().1.len(), 40_000);
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn nonsense_is_refused() {
        for ips in [
            json!("x"),
            json!([1]),
            json!([{"address":"10.0.0.1"}]),
            json!([{"address":"10.0.0.1/33"}]),
            json!([{"address":"10.0.0.1/8","gateway":"here"}]),
        ] {
            assert!(read(&json!({"ips": ips})).is_err(), "{ips}");
        }
        assert!(read(&json!([])).is_err());
        assert!(read(&json!({"interfaces":[{"mac":"x"}]})).is_err());
    }

    proptest::proptest! {
        #[test]
        fn conversion_keeps_the_addresses(v4 in 1_u32.., v6 in 1_u128.., to in 2_usize..6) {
            let target = [CniVersion::V0_1_0, CniVersion::V0_2_0, CniVersion::V0_3_0, CniVersion::V0_3_1,
                CniVersion::V0_4_0, CniVersion::V1_1_0][to];
            let result = json!({"ips":[{"address":format!("{}/24", std::net::Ipv4Addr::from_bits(v4))},
                {"address":format!("{}/64", std::net::Ipv6Addr::from_bits(v6))}]});
            let there = to_version(&result, target);
            proptest::prop_assert_eq!(version(&there), Some(target));
            proptest::prop_assert_eq!(read(&there).unwrap(), read(&result).unwrap());
        }
    }
}

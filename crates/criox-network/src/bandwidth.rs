//! Traffic limits of a pod, from the annotations that Kubernetes defines for them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::NetworkError;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// The burst given to the bandwidth plugin, in bits: the most it takes (it refuses `u32::MAX` bytes and more), and
/// what CRI-O gives.
const BURST: u64 = u32::MAX as u64 * 8 - 1;

/// Rates in bits per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the pod; `None` is unlimited.
    pub ingress: Option<u64>,
    /// Out of the pod; `None` is unlimited.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// The limits that a pod's annotations ask for; `None` if they don't.
    ///
    /// # Errors
    /// [`NetworkError::InvalidRequest`] for a value that isn't a quantity from 1k to 1P, Kubernetes' own bounds.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, NetworkError> {
        let rate = |key: &'static str| {
            let Some(text) = annotations.get(key) else { return Ok(None) };
            match quantity(text) {
                Some(rate @ 1_000..=1_000_000_000_000_000) => Ok(Some(rate)),
                _ => Err(NetworkError::InvalidRequest {
                    field: key,
                    reason: format!("{text:?} is not a rate in bits per second from 1k to 1P, such as 10M"),
                }),
            }
        };
        let limits = Self { ingress: rate(INGRESS)?, egress: rate(EGRESS)? };
        Ok((limits != Self::default()).then_some(limits))
    }

    pub(crate) fn capability(self) -> Value {
        let mut map = Map::new();
        if let Some(rate) = self.ingress {
            map.insert("ingressRate".into(), rate.into());
            map.insert("ingressBurst".into(), BURST.into());
        }
        if let Some(rate) = self.egress {
            map.insert("egressRate".into(), rate.into());
            map.insert("egressBurst".into(), BURST.into());
        }
        Value::Object(map)
    }
}

/// A Kubernetes quantity as a whole number, rounded up; `None` if it isn't one or doesn't fit.
fn quantity(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty())
        || fraction.contains('.')
        || whole.len() > 20
        || fraction.len() > 9
    {
        return None;
    }
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (multiply, divide): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?;
            let size = 10_u128.checked_pow(u32::from(power.unsigned_abs()))?;
            if power < 0 { (1, size) } else { (size, 1) }
        }
    };
    let value = digits.checked_mul(multiply)?.div_ceil(scale.checked_mul(divide)?);
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_quantities() {
        for (text, want) in [
            ("1000", Some(1000)),
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(1_610_612_736)),
            ("2e3", Some(2000)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            ("+1k", Some(1000)),
            (".5k", Some(500)),
            ("", None),
            ("-1", None),
            ("10 M", None),
            ("1.2.3", None),
            ("M", None),
            ("999999999999999999999999", None),
            ("1e99", None),
            ("10MB", None),
        ] {
            assert_eq!(quantity(text), want, "{text:?}");
        }
    }

    #[test]
    fn limits_come_from_the_annotations() {
        let limits = |pairs: &[(&str, &str)]| {
            Bandwidth::from_annotations(&pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
        };
        assert_eq!(limits(&[("other", "1")]).unwrap(), None);
        let both = limits(&[(INGRESS, "10M"), (EGRESS, "1k")]).unwrap().unwrap();
        assert_eq!(both, Bandwidth { ingress: Some(10_000_000), egress: Some(1000) });
        assert_eq!(both.capability()["egressBurst"], 34_359_738_359_u64);
        assert!(limits(&[(INGRESS, "999")]).is_err());
        assert!(limits(&[(EGRESS, "2P")]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9.+kKMGiEe-]{0,40}") {
            let _any = quantity(&text);
        }
    }
}

//! Lists that a kubelet can take. Its client refuses a message above 16 MiB, and a node whose lists are refused is
//! NotReady. What makes a list that long are annotations, which anybody who may create a pod chooses: 256 KiB an object.
//! The kubelet reads the status where it needs a whole one, so a list that would not fit goes without the longest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use criox_cri::v1;
use prost::Message;

/// What the kubelet's client takes, less room for what is around the entries.
pub(super) const LIMIT: usize = (16 << 20) - (64 << 10);
/// Tag and length of an entry in its list.
const FRAME: usize = 8;

type Annotations = BTreeMap<String, String>;

/// An entry of a list.
pub(super) trait Entry: Message {
    /// The annotations in it, its own and those of what it holds.
    fn annotations(&mut self) -> Vec<&mut Annotations>;
}

/// The list without its longest annotations, if it would not fit otherwise.
pub(super) fn fit<E: Entry>(list: Vec<E>) -> Vec<E> {
    fit_into(list, LIMIT)
}

fn fit_into<E: Entry>(mut list: Vec<E>, limit: usize) -> Vec<E> {
    let size = |list: &[E]| list.iter().map(|entry| entry.encoded_len() + FRAME).sum::<usize>();
    let Some(mut excess) = size(&list).checked_sub(limit).filter(|excess| *excess > 0) else { return list };
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            excess,
            "a list is longer than a kubelet takes (16 MiB): it goes without the longest annotations, statuses have all (said once)"
        );
    }
    let mut lengths: Vec<usize> = Vec::new();
    for annotations in list.iter_mut().flat_map(Entry::annotations) {
        lengths.extend(annotations.iter().map(|(key, value)| key.len() + value.len()));
    }
    lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
    let mut shortest = usize::MAX;
    for length in lengths {
        if excess == 0 {
            break;
        }
        shortest = length;
        excess = excess.saturating_sub(length);
    }
    for annotations in list.iter_mut().flat_map(Entry::annotations) {
        annotations.retain(|key, value| key.len() + value.len() < shortest);
    }
    list
}

macro_rules! own_annotations {
    ($($entry:ty),*) => {
        $(impl Entry for $entry {
            fn annotations(&mut self) -> Vec<&mut Annotations> {
                vec![&mut self.annotations]
            }
        })*
    };
}

own_annotations!(v1::PodSandbox, v1::Container);

impl Entry for v1::Image {
    fn annotations(&mut self) -> Vec<&mut Annotations> {
        self.spec.iter_mut().map(|spec| &mut spec.annotations).collect()
    }
}

impl Entry for v1::ContainerStats {
    fn annotations(&mut self) -> Vec<&mut Annotations> {
        self.attributes.iter_mut().map(|attributes| &mut attributes.annotations).collect()
    }
}

impl Entry for v1::PodSandboxStats {
    fn annotations(&mut self) -> Vec<&mut Annotations> {
        let own = self.attributes.iter_mut().map(|attributes| &mut attributes.annotations);
        let containers = self.linux.iter_mut().flat_map(|linux| &mut linux.containers);
        own.chain(containers.flat_map(Entry::annotations)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(lengths: &[&[usize]]) -> Vec<v1::PodSandbox> {
        let pod = |lengths: &&[usize]| v1::PodSandbox {
            annotations: lengths
                .iter()
                .map(|length| (format!("a{length:08}"), "x".repeat(*length)))
                .collect(),
            ..Default::default()
        };
        lengths.iter().map(pod).collect()
    }

    fn kept(lengths: &[&[usize]], limit: usize) -> Vec<Vec<usize>> {
        let list = fit_into(pods(lengths), limit);
        let size: usize = list.iter().map(|pod| pod.encoded_len() + FRAME).sum();
        assert!(size <= limit, "{size} of {limit}");
        list.iter().map(|pod| pod.annotations.values().map(String::len).collect()).collect()
    }

    #[test]
    fn a_list_that_fits_is_left_as_it_is() {
        assert_eq!(kept(&[&[10, 2000], &[], &[3000]], 6000), [vec![10, 2000], vec![], vec![3000]]);
    }

    #[test]
    fn a_list_that_does_not_fit_loses_its_longest_annotations_and_no_entry() {
        assert_eq!(
            kept(&[&[10, 2000], &[], &[3000], &[500]], 3000),
            [vec![10, 2000], vec![], vec![], vec![500]]
        );
        assert_eq!(
            kept(&[&[10, 2000], &[30], &[3000], &[500]], 700),
            [vec![10], vec![30], vec![], vec![500]]
        );
    }

    #[test]
    fn annotations_of_statistics_are_found_in_pods_and_containers() {
        let attributes = |length| {
            let annotations = [("a".to_owned(), "x".repeat(length))].into();
            v1::ContainerAttributes { annotations, ..Default::default() }
        };
        let container =
            |length| v1::ContainerStats { attributes: Some(attributes(length)), ..Default::default() };
        let linux = v1::LinuxPodSandboxStats {
            containers: vec![container(10), container(4000)],
            ..Default::default()
        };
        let pod = v1::PodSandboxStats { linux: Some(linux), ..Default::default() };
        let mut fitted = fit_into(vec![pod], 1000);
        let left: Vec<usize> = fitted[0].annotations().iter().map(|annotations| annotations.len()).collect();
        assert_eq!(left, [1, 0]);
    }
}

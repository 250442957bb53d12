//! Metrics of pods for Prometheus.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use criox_cri::v1::{
    LinuxContainerResources, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, Metric,
    MetricDescriptor, MetricType, PodSandboxMetrics,
};
use testkit::harness::Test;
use testkit::{Node, Result, wait_for};

use crate::NODE;
use crate::pod::{LIMIT, Pod};

pub(crate) const TESTS: &[Test] = &[
    ("descriptors of metrics are complete, explained and always the same", || NODE.test(descriptors)),
    ("every described metric has a value, with as many labels as its descriptor", || NODE.test(values)),
    ("metrics say what the container's cgroup says", || NODE.test(truth)),
];

/// Of the metrics that critest 1.37 expects, those of which a node may have no value: devices that count, huge pages,
/// pressure (cgroup v2).
const OPTIONAL: [&str; 13] = [
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
];

fn described(node: &Node) -> Result<Vec<MetricDescriptor>> {
    let request = ListMetricDescriptorsRequest {};
    Ok(node.cri.call(node.cri.runtime().list_metric_descriptors(request))?.descriptors)
}

fn metrics_of(node: &Node, pod: &str) -> Result<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    let all = node.cri.call(node.cri.runtime().list_pod_sandbox_metrics(request))?.pod_metrics;
    Ok(all.into_iter().find(|metrics| metrics.pod_sandbox_id == pod).ok_or("the pod has metrics")?)
}

fn all(metrics: &PodSandboxMetrics) -> impl Iterator<Item = &Metric> {
    metrics.metrics.iter().chain(metrics.container_metrics.iter().flat_map(|container| &container.metrics))
}

fn descriptors(node: &Node) -> Result {
    let descriptors = described(node)?;
    let names: HashSet<&str> = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
    assert_eq!(names.len(), descriptors.len(), "no name twice");
    for descriptor in &descriptors {
        assert!(!descriptor.help.is_empty(), "{}", descriptor.name);
        assert_eq!(descriptor.label_keys[..5], ["id", "image", "namespace", "pod", "container"]);
    }
    for name in OPTIONAL.iter().chain(&[
        "container_last_seen",
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
        "container_oom_events_total",
        "container_start_time_seconds",
        "container_ulimits_soft",
        "container_fs_usage_bytes",
    ]) {
        assert!(names.contains(name), "{name}");
    }
    assert_eq!(described(node)?, descriptors);
    Ok(())
}

fn limited(pod: &Pod<'_>) -> criox_cri::v1::ContainerConfig {
    let mut config = pod.shell("measured", crate::pod::SERVICE);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    });
    config
}

fn values(node: &Node) -> Result {
    let pod = Pod::run(node, "metrics")?;
    let id = pod.up(&limited(&pod))?;
    let descriptors = described(node)?;
    let keys: HashMap<&str, usize> = descriptors
        .iter()
        .map(|descriptor| (descriptor.name.as_str(), descriptor.label_keys.len()))
        .collect();
    // What a layer holds is counted beside the start.
    let metrics = wait_for("a value of every metric", LIMIT, || {
        let metrics = metrics_of(node, &pod.id)?;
        let found: HashSet<&str> = all(&metrics).map(|metric| metric.name.as_str()).collect();
        let missing = keys.keys().any(|name| !found.contains(name) && !OPTIONAL.contains(name));
        Ok((!missing).then_some(metrics))
    })?;
    for metric in all(&metrics) {
        let expected = keys.get(metric.name.as_str()).ok_or("a metric without a descriptor is dropped")?;
        assert_eq!(metric.label_values.len(), *expected, "{}", metric.name);
        assert!(metric.value.is_some(), "{}: a kubelet would panic", metric.name);
        let counter = metric.name.ends_with("_total") && metric.name != "container_fs_inodes_total"
            || metric.name == "container_memory_failcnt";
        assert_eq!(metric.metric_type() == MetricType::Counter, counter, "{}", metric.name);
    }
    for metric in &metrics.metrics {
        assert_eq!(metric.label_values[..5], [pod.id.as_str(), "", "default", "metrics", "POD"]);
    }
    let container = metrics.container_metrics.first().ok_or("a container")?;
    assert_eq!(container.container_id, id);
    for metric in &container.metrics {
        let [of, image, namespace, of_pod, name] = &metric.label_values[..5] else {
            return Err("five labels".into());
        };
        assert_eq!(
            (of.as_str(), image.as_str(), namespace.as_str(), of_pod.as_str(), name.as_str()),
            (id.as_str(), node.image.as_str(), "default", "metrics", "measured")
        );
    }
    Ok(())
}

fn truth(node: &Node) -> Result {
    let pod = Pod::without_network(node, "truth")?;
    let id = pod.up(&limited(&pod))?;
    let metrics = metrics_of(node, &pod.id)?;
    let container = metrics.container_metrics.first().ok_or("a container")?;
    let value = |name: &str| -> Result<u64> {
        let metric = container.metrics.iter().find(|metric| metric.name == name);
        let metric = metric.ok_or_else(|| format!("{name} has no value"))?;
        Ok(metric.value.ok_or("a value")?.value)
    };
    assert_eq!(value("container_spec_memory_limit_bytes")?, 64 << 20);
    assert_eq!(value("container_spec_cpu_quota")?, 20_000);
    assert_eq!(value("container_spec_cpu_period")?, 100_000);
    // On cgroup v2 cAdvisor's straight line leads back from a weight of whole numbers, to which newer runtimes take a curve.
    let shares = value("container_spec_cpu_shares")?;
    assert!([1024, 998, 2597].contains(&shares), "{shares}");
    // The shell, and perhaps its sleep.
    let processes = value("container_processes")?;
    assert!((1..=2).contains(&processes), "{processes}");
    assert!(value("container_threads")? >= 1);
    assert!(value("container_file_descriptors")? >= 3);
    assert_eq!(value("container_ulimits_soft")?, 1000);
    assert_eq!(value("container_oom_events_total")?, 0);
    let memory = value("container_memory_usage_bytes")?;
    assert!(value("container_memory_working_set_bytes")? <= memory && memory < 64 << 20);
    assert!(value("container_memory_max_usage_bytes")? > 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let age = |seconds: u64| now.saturating_sub(Duration::from_secs(seconds));
    assert!(age(value("container_start_time_seconds")?) < 3 * LIMIT);
    assert!(age(value("container_last_seen")?) < LIMIT);
    // No network of its own, no figures of the node's.
    assert!(all(&metrics).all(|metric| !metric.name.starts_with("container_network")));

    // A process that dies for want of memory is counted.
    pod.exec(&id, "tail /dev/zero; true")?;
    let metrics = metrics_of(node, &pod.id)?;
    let killed = all(&metrics).find(|metric| metric.name == "container_oom_events_total");
    assert!(killed.and_then(|metric| metric.value).is_some_and(|value| value.value >= 1));
    Ok(())
}

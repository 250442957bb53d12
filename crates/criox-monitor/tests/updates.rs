//! Changed limits, with real containers under each runtime.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and names the runtime"
)]

mod harness;

use std::path::PathBuf;

use criox_monitor_api::proto::{self, failure, reply, request::Verb};
use criox_sys::cgroup::Cgroups;
use harness::{Pod, ready, runtimes};

fn each(test: impl Fn(Pod)) {
    for runtime in runtimes() {
        if ready(&runtime) {
            eprintln!("with {runtime}");
            test(Pod::new(&runtime));
        }
    }
}

/// One value of the container's limits, by its names on v1 and v2.
fn limit(pod: &Pod, v1: (&str, &str), v2: &str) -> String {
    let cgroups = Cgroups::detect().unwrap();
    let (controller, file) = if cgroups.is_v2() { ("", v2) } else { v1 };
    let path: PathBuf = cgroups.dir(controller, &format!("{}/crio-c1", pod.group)).unwrap().join(file);
    std::fs::read_to_string(&path).unwrap().trim().to_owned()
}

fn all(pod: &Pod) -> Vec<String> {
    vec![
        limit(pod, ("memory", "memory.limit_in_bytes"), "memory.max"),
        limit(pod, ("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max"),
        limit(pod, ("cpu", "cpu.cfs_quota_us"), "cpu.max"),
        limit(pod, ("cpu", "cpu.shares"), "cpu.weight"),
        limit(pod, ("cpuset", "cpuset.cpus"), "cpuset.cpus"),
    ]
}

fn update(pod: &mut Pod, resources: &serde_json::Value, score: Option<i32>) -> reply::Result {
    pod.client.call(Verb::Update(proto::Update {
        container_id: "c1".into(),
        resources: resources.to_string().into_bytes(),
        timeout_ms: 10_000,
        previous: b"{}".to_vec(),
        oom_score_adj: score,
    }))
}

fn begin(pod: &mut Pod) -> i32 {
    let create = pod.bundle("c1", "sleep 60 & echo 123 > /proc/self/oom_score_adj; sleep 60; true", |config| {
        config["linux"]["resources"] = serde_json::json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}});
    });
    let created = pod.create_with(create);
    pod.start("c1");
    created.pid
}

#[test]
fn limits_are_changed_all_at_once_up_and_down() {
    each(|mut pod| {
        begin(&mut pod);
        for megabytes in [128_u64, 32, 200] {
            let bytes = megabytes << 20;
            let resources = serde_json::json!({"memory": {"limit": bytes, "swap": bytes}, "cpu": {"quota": 20_000 + megabytes, "period": 100_000, "cpus": "0"}});
            let result = update(&mut pod, &resources, None);
            assert!(matches!(result, reply::Result::Done(_)), "{result:?}");
            let now = all(&pod);
            assert!(
                now[0] == bytes.to_string() && now[2].starts_with(&(20_000 + megabytes).to_string()),
                "{now:?}"
            );
            assert_eq!(now[4], "0");
        }
        pod.delete("c1");
    });
}

#[test]
fn what_the_kernel_refuses_changes_nothing() {
    each(|mut pod| {
        begin(&mut pod);
        let before = all(&pod);
        let wrong = serde_json::json!({"memory": {"limit": 128 << 20, "swap": 128 << 20}, "cpu": {"shares": 100, "quota": 30_000, "period": 100_000, "cpus": "4095"}});
        let reply::Result::Failure(refused) = update(&mut pod, &wrong, None) else {
            panic!("it took {wrong}")
        };
        assert_eq!(refused.kind(), failure::Kind::Runtime, "{}", refused.message);
        assert_eq!(all(&pod), before, "{}", refused.message);
        // The score comes last, and takes the limits back with it.
        let right = serde_json::json!({"memory": {"limit": 128 << 20, "swap": 128 << 20}});
        assert!(matches!(update(&mut pod, &right, Some(2000)), reply::Result::Failure(_)));
        assert_eq!(all(&pod), before);
        pod.delete("c1");
        let reply::Result::Failure(gone) = update(&mut pod, &right, None) else { panic!() };
        assert_eq!(gone.kind(), failure::Kind::NotFound);
    });
}

#[test]
fn a_score_goes_to_those_who_have_not_chosen_their_own() {
    each(|mut pod| {
        let first = begin(&mut pod);
        let own =
            |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while own(first).trim() != "123" || pod.procs("c1").len() < 3 {
            assert!(std::time::Instant::now() < until);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let result = update(&mut pod, &serde_json::json!({}), Some(500));
        assert!(matches!(result, reply::Result::Done(_)), "{result:?}");
        let mut scores: Vec<String> =
            pod.procs("c1").into_iter().map(|pid| own(pid).trim().to_owned()).collect();
        scores.sort();
        assert_eq!(scores, ["0", "500", "500"]);
        pod.delete("c1");
    });
}

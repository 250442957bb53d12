//! The runtime side against a plugin over a real socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod plugin;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criox_nri::proto::{
    ConfigureResponse, Container, ContainerAdjustment, ContainerEviction, ContainerUpdate,
    CreateContainerRequest, CreateContainerResponse, Event, FailurePolicy, KeyValue, LinuxContainerUpdate,
    PodSandbox, StateChangeEvent, UpdateContainersRequest, UpdateContainersResponse,
    ValidateContainerAdjustmentResponse,
};
use criox_nri::{Everything, Mark, Marks, Nri, Options, Runtime};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use plugin::{Answer, TestPlugin};
use prost::Message;

const ALL: &[Event] =
    &[Event::RunPodSandbox, Event::CreateContainer, Event::StopContainer, Event::RemoveContainer];
const LIMIT: Duration = Duration::from_millis(400);

/// Pods and containers that "run": IDs, and which of them are shown.
#[derive(Default)]
struct World {
    shown: Mutex<Vec<String>>,
    creating: Mutex<Vec<String>>,
    updated: Mutex<Vec<ContainerUpdate>>,
    evicted: Mutex<Vec<ContainerEviction>>,
    /// Length of the name of each pod.
    size: usize,
}

impl Runtime for World {
    fn snapshot(&self, marks: &Marks) -> BoxFuture<'static, Everything> {
        let shown = self.shown.lock().unwrap().clone();
        let creating = self.creating.lock().unwrap().clone();
        let containers = shown.into_iter().filter(|id| !marks.is_being_removed(id));
        let containers = containers.chain(creating.into_iter().filter(|id| marks.is_being_created(id)));
        let containers = containers.map(|id| Container { id, ..Default::default() }).collect();
        let pods = (0..8)
            .map(|id| PodSandbox {
                id: format!("pod{id}"),
                name: "n".repeat(self.size),
                ..Default::default()
            })
            .collect();
        ready((pods, containers)).boxed()
    }

    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<ContainerUpdate>> {
        let (failed, made) = updates.into_iter().partition(|update| update.container_id == "unknown");
        self.updated.lock().unwrap().extend::<Vec<_>>(made);
        ready(failed).boxed()
    }

    fn evict(&self, evictions: Vec<ContainerEviction>) -> BoxFuture<'_, ()> {
        self.evicted.lock().unwrap().extend(evictions);
        ready(()).boxed()
    }
}

struct Node {
    nri: Nri,
    world: Arc<World>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

fn options(socket: &Path, plugins: &Path) -> Options {
    Options {
        listen: Some(socket.into()),
        plugin_dir: plugins.into(),
        config_dir: plugins.into(),
        // Also the limit of a synchronization, as it is not shorter than that of a request.
        registration_timeout: LIMIT,
        request_timeout: LIMIT,
        runtime_name: "cri-o".into(),
        runtime_version: "1.37.0+criox.test".into(),
        validator: None,
    }
}

async fn node_of(world: World, limit: Duration) -> Node {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nri/nri.sock");
    let options = Options { request_timeout: limit, ..options(&socket, Path::new("/nonexistent")) };
    let nri = Nri::new(options);
    let world = Arc::new(world);
    nri.start(world.clone()).await.unwrap();
    Node { nri, world, socket, _directory: directory }
}

async fn node() -> Node {
    node_of(World::default(), LIMIT).await
}

impl Node {
    async fn plugin(
        &self,
        index: &str,
        name: &str,
        events: &[Event],
        act: impl FnMut(&str, &[u8]) -> Answer + Send + 'static,
    ) -> TestPlugin {
        TestPlugin::connect(&self.socket, index, name, events, Box::new(act)).await
    }

    async fn joined(&self, count: usize) {
        until("plugins have joined", || self.nri.plugins().len() == count).await;
    }

    /// CreateContainer as who works on pods does it.
    async fn create(&self, id: &str) -> Result<criox_nri::Created, String> {
        self.world.creating.lock().unwrap().push(id.into());
        let round = self.nri.round(Mark::Creating(id));
        let container = Container { id: id.into(), env: vec!["A=1".into()], ..Default::default() };
        let result = match round {
            Some(round) => {
                round.create_container(PodSandbox::default(), container).await.map_err(|e| e.to_string())
            }
            None => Ok(criox_nri::Created::default()),
        };
        self.world.creating.lock().unwrap().retain(|other| other != id);
        if result.is_ok() {
            self.world.shown.lock().unwrap().push(id.into());
        }
        self.nri.settled(id);
        result
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "waited ten seconds until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn usual(_: &str, _: &[u8]) -> Answer {
    Answer::Usual
}

fn adjustment(key: &str, value: &str) -> Vec<u8> {
    let env = vec![KeyValue { key: key.into(), value: value.into() }];
    let adjust = Some(ContainerAdjustment { env, ..Default::default() });
    CreateContainerResponse { adjust, ..Default::default() }.encode_to_vec()
}

#[tokio::test]
async fn a_plugin_registers_is_configured_synchronized_and_asked() {
    let node = node().await;
    node.world.shown.lock().unwrap().push("old".into());
    assert!(node.nri.round(Mark::Nothing).is_none());
    let plugin = node.plugin("10", "a", ALL, usual).await;
    node.joined(1).await;
    {
        let seen = plugin.seen.lock().unwrap();
        let configured = seen.configured.clone().unwrap();
        assert_eq!((configured.runtime_name.as_str(), configured.request_timeout), ("cri-o", 400));
        assert_eq!((seen.synchronized.pods.len(), seen.synchronized.containers[0].id.as_str()), (8, "old"));
    }
    node.create("new").await.unwrap();
    assert_eq!(plugin.seen.lock().unwrap().methods(), ["Configure", "Synchronize", "CreateContainer"]);
    drop(plugin);
    node.nri.stop().await;
    assert!(!node.socket.exists());
}

#[tokio::test]
async fn events_that_a_plugin_does_not_want_are_not_told() {
    let node = node().await;
    let plugin = node.plugin("10", "a", &[Event::RemoveContainer], usual).await;
    node.joined(1).await;
    node.create("c").await.unwrap();
    let round = node.nri.round(Mark::Removing("c")).unwrap();
    round.remove_container(PodSandbox::default(), Container::default()).await.unwrap();
    node.nri.settled("c");
    assert_eq!(plugin.seen.lock().unwrap().methods(), ["Configure", "Synchronize", "RemoveContainer"]);
}

#[tokio::test]
async fn plugins_are_asked_in_the_order_of_their_indices() {
    let node = node().await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let noting = |name: &'static str| {
        let order = order.clone();
        move |method: &str, _: &[u8]| {
            if method == "CreateContainer" {
                order.lock().unwrap().push(name);
            }
            Answer::Usual
        }
    };
    let _c = node.plugin("90", "c", ALL, noting("c")).await;
    let _a = node.plugin("05", "a", ALL, noting("a")).await;
    let _b = node.plugin("10", "b", ALL, noting("b")).await;
    node.joined(3).await;
    node.create("x").await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["a", "b", "c"]);
}

#[tokio::test]
async fn adjustments_add_up_and_conflicts_name_both_plugins() {
    let node = node().await;
    let set = |key: &'static str| {
        move |method: &str, _: &[u8]| match method {
            "CreateContainer" => Answer::Message(adjustment(key, "2")),
            _ => Answer::Usual,
        }
    };
    let _a = node.plugin("10", "a", ALL, set("A")).await;
    let b = node.plugin("20", "b", ALL, set("B")).await;
    node.joined(2).await;
    let created = node.create("c").await.unwrap();
    assert_eq!(created.adjust.env.len(), 2);
    // The second plugin saw what the first had asked for.
    let asked = b.seen.lock().unwrap().calls.last().unwrap().1.clone();
    let asked = CreateContainerRequest::decode(asked.as_slice()).unwrap();
    assert_eq!(asked.container.unwrap().env, ["A=2"]);
    let _c = node.plugin("30", "c", ALL, set("A")).await;
    node.joined(3).await;
    let error = node.create("d").await.unwrap_err();
    assert!(error.contains("10-a") && error.contains("30-c"), "{error}");
}

#[tokio::test]
async fn an_error_of_a_plugin_fails_the_request_and_keeps_the_plugin() {
    let node = node().await;
    let mut first = true;
    let plugin = node
        .plugin("10", "a", ALL, move |method, _| match method {
            "CreateContainer" if std::mem::take(&mut first) => Answer::Error(2, "no room".into()),
            _ => Answer::Usual,
        })
        .await;
    node.joined(1).await;
    let error = node.create("c").await.unwrap_err();
    assert!(error.contains("10-a") && error.contains("CreateContainer"), "{error}");
    node.create("c").await.unwrap();
    assert!(!plugin.is_closed());
}

#[tokio::test]
async fn a_plugin_that_hangs_is_closed_at_its_limit_and_delays_nobody_else() {
    let node = Arc::new(node().await);
    let hung = node
        .plugin("10", "hung", ALL, |method, payload| {
            let is_slow = |request: CreateContainerRequest| request.container.unwrap().id == "slow";
            match method {
                "CreateContainer" if is_slow(CreateContainerRequest::decode(payload).unwrap()) => {
                    Answer::Silence
                }
                _ => Answer::Usual,
            }
        })
        .await;
    let well = node.plugin("20", "well", ALL, usual).await;
    node.joined(2).await;
    let begun = Instant::now();
    let slow = tokio::spawn({
        let node = node.clone();
        async move { node.create("slow").await }
    });
    until("the plugin hangs", || {
        node.nri.round(Mark::Nothing).is_some() && hung.seen.lock().unwrap().methods().len() > 2
    })
    .await;
    // Another pod, while the plugin hangs in the first.
    node.create("quick").await.unwrap();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    slow.await.unwrap().unwrap();
    assert!(begun.elapsed() >= LIMIT && begun.elapsed() < 3 * LIMIT, "{:?}", begun.elapsed());
    until("the plugin is closed", || hung.is_closed() && node.nri.plugins() == ["20-well"]).await;
    let quick = Instant::now();
    node.create("after").await.unwrap();
    assert!(quick.elapsed() < LIMIT / 2);
    assert_eq!(well.seen.lock().unwrap().methods().iter().filter(|m| *m == "CreateContainer").count(), 3);
}

#[tokio::test]
async fn a_plugin_may_ask_that_its_silence_counts_or_is_borne() {
    let node = node().await;
    let plugin = node
        .plugin("10", "a", ALL, |method, _| match method {
            "Configure" => {
                let policy = FailurePolicy { fail_request: true, keep_connected: true };
                let response = ConfigureResponse { events: 0, failure_policy: Some(policy) };
                Answer::Message(response.encode_to_vec())
            }
            "CreateContainer" => Answer::Silence,
            _ => Answer::Usual,
        })
        .await;
    node.joined(1).await;
    let error = node.create("c").await.unwrap_err();
    assert!(error.contains("10-a"), "{error}");
    assert!(!plugin.is_closed());
    assert_eq!(node.nri.plugins(), ["10-a"]);
}

#[tokio::test]
async fn one_that_talks_nonsense_is_dropped_and_the_request_goes_on() {
    let node = node().await;
    let plugin = node
        .plugin("10", "a", ALL, |method, _| match method {
            "CreateContainer" => Answer::Nonsense,
            _ => Answer::Usual,
        })
        .await;
    node.joined(1).await;
    let begun = Instant::now();
    node.create("c").await.unwrap();
    assert!(begun.elapsed() < LIMIT);
    until("it is dropped", || plugin.is_closed() && node.nri.plugins().is_empty()).await;
}

#[tokio::test]
async fn one_that_does_not_register_or_by_a_wrong_name_does_not_join() {
    let node = node().await;
    let silent = tokio::net::UnixStream::connect(&node.socket).await.unwrap();
    let _wrong = node.plugin("1", "a", ALL, usual).await;
    let _wrong = node.plugin("10", "a/b", ALL, usual).await;
    let mut byte = [0];
    let ended = tokio::time::timeout(LIMIT * 4, async {
        silent.readable().await.unwrap();
        silent.try_read(&mut byte).unwrap()
    });
    assert_eq!(ended.await.unwrap(), 0);
    assert!(node.nri.plugins().is_empty());
}

#[tokio::test]
async fn a_large_synchronization_comes_in_pieces() {
    let node = node_of(World { size: 2 << 20, ..World::default() }, Duration::from_secs(10)).await;
    let plugin = node.plugin("10", "a", ALL, usual).await;
    until("it has been told of all pods", || plugin.seen.lock().unwrap().synchronized.pods.len() == 8).await;
    let seen = plugin.seen.lock().unwrap();
    assert_eq!(seen.synchronized.pods.len(), 8);
    assert!(seen.methods().iter().filter(|method| *method == "Synchronize").count() > 3);
}

#[tokio::test]
async fn what_is_created_during_a_synchronization_is_told_once_and_not_lost() {
    let node = Arc::new(node().await);
    let _first = node.plugin("00", "first", ALL, usual).await;
    node.joined(1).await;
    let mut made = 0;
    let stop = Arc::new(Mutex::new(false));
    let makers: Vec<_> = (0..4)
        .map(|maker| {
            let (node, stop) = (node.clone(), stop.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while count < 20 || !*stop.lock().unwrap() {
                    node.create(&format!("c{maker}-{count}")).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut late = Vec::new();
    for index in 10..20 {
        let pause = Duration::from_millis(20);
        let plugin = node
            .plugin(&index.to_string(), "late", ALL, move |method, _| match method {
                "Synchronize" => Answer::Later(pause),
                _ => Answer::Usual,
            })
            .await;
        late.push(plugin);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    node.joined(11).await;
    *stop.lock().unwrap() = true;
    for maker in makers {
        made += maker.await.unwrap();
    }
    assert!(made >= 80, "{made}");
    for plugin in late {
        let seen = plugin.seen.lock().unwrap();
        let mut told: Vec<String> = seen.synchronized.containers.iter().map(|c| c.id.clone()).collect();
        let events = seen.calls.iter().filter(|(method, _)| method == "CreateContainer");
        told.extend(events.map(|(_, payload)| {
            CreateContainerRequest::decode(payload.as_slice()).unwrap().container.unwrap().id
        }));
        told.sort();
        let count = told.len();
        told.dedup();
        assert_eq!((count, told.len()), (made, made), "each once");
        // Nothing comes before the synchronization.
        assert_eq!(seen.methods()[1], "Synchronize");
    }
}

#[tokio::test]
async fn what_is_being_removed_is_not_told_to_who_joins() {
    let node = node().await;
    node.world.shown.lock().unwrap().extend(["a".into(), "b".into()]);
    assert!(node.nri.round(Mark::Removing("a")).is_none());
    let plugin = node.plugin("10", "a", ALL, usual).await;
    node.joined(1).await;
    let synchronized = plugin.seen.lock().unwrap().synchronized.clone();
    assert_eq!(synchronized.containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn one_that_hangs_in_its_synchronization_delays_a_creation_once() {
    let node = node().await;
    let hung = node
        .plugin("10", "a", ALL, |method, _| match method {
            "Synchronize" => Answer::Silence,
            _ => Answer::Usual,
        })
        .await;
    until("it is being synchronized", || node.nri.plugins().len() == 1).await;
    let begun = Instant::now();
    node.create("c").await.unwrap();
    assert!(begun.elapsed() < 2 * LIMIT, "{:?}", begun.elapsed());
    until("it is dropped", || hung.is_closed() && node.nri.plugins().is_empty()).await;
    assert_eq!(hung.seen.lock().unwrap().methods(), ["Configure", "Synchronize"]);
}

#[tokio::test]
async fn updates_and_evictions_that_nobody_asked_about_are_made() {
    let node = node().await;
    let plugin = node.plugin("10", "a", ALL, usual).await;
    node.joined(1).await;
    let update = |id: &str| ContainerUpdate {
        container_id: id.into(),
        linux: Some(LinuxContainerUpdate::default()),
        ignore_failure: false,
    };
    let request = UpdateContainersRequest {
        update: vec![update("known"), update("unknown")],
        evict: vec![ContainerEviction { container_id: "victim".into(), reason: "r".into() }],
    };
    let response = plugin.call("UpdateContainers", request.encode_to_vec()).await.unwrap();
    let failed = UpdateContainersResponse::decode(response.payload.as_slice()).unwrap().failed;
    assert_eq!(failed.iter().map(|f| f.container_id.as_str()).collect::<Vec<_>>(), ["unknown"]);
    assert_eq!(node.world.updated.lock().unwrap().len(), 1);
    assert_eq!(node.world.evicted.lock().unwrap()[0].container_id, "victim");
    let unknown = plugin.call("Fly", Vec::new()).await.unwrap();
    assert_eq!(unknown.status.unwrap().code, 12);
}

#[tokio::test]
async fn a_plugin_of_before_the_separate_events_gets_state_changes() {
    let node = node().await;
    let plugin = node
        .plugin("10", "old", ALL, |method, _| match method {
            "RunPodSandbox" | "RemoveContainer" => Answer::Error(12, "unknown method".into()),
            _ => Answer::Usual,
        })
        .await;
    node.joined(1).await;
    let pod = PodSandbox { id: "p".into(), ..Default::default() };
    node.nri.round(Mark::Nothing).unwrap().run_pod_sandbox(pod).await.unwrap();
    let (method, payload) = plugin.seen.lock().unwrap().calls.last().cloned().unwrap();
    let change = StateChangeEvent::decode(payload.as_slice()).unwrap();
    assert_eq!((method.as_str(), change.event()), ("StateChange", Event::RunPodSandbox));
    assert_eq!(change.pod.unwrap().id, "p");
}

#[tokio::test]
async fn a_validator_decides_about_the_sum_of_all_wishes() {
    let node = node().await;
    let _setter = node
        .plugin("50", "setter", &[Event::CreateContainer], |method, _| match method {
            "CreateContainer" => Answer::Message(adjustment("A", "2")),
            _ => Answer::Usual,
        })
        .await;
    let validator = node
        .plugin("10", "judge", &[Event::ValidateContainerAdjustment], |method, _| match method {
            "ValidateContainerAdjustment" => {
                let answer = ValidateContainerAdjustmentResponse { reject: true, reason: "not A".into() };
                Answer::Message(answer.encode_to_vec())
            }
            _ => Answer::Usual,
        })
        .await;
    node.joined(2).await;
    let error = node.create("c").await.unwrap_err();
    assert!(error.contains("10-judge") && error.contains("not A"), "{error}");
    drop(validator);
}

#[tokio::test]
async fn a_program_is_started_with_its_socket_and_ended_with_us() {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let plugins = directory.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    let report = directory.path().join("report");
    let script = format!(
        "#!/bin/sh\n/bin/readlink /proc/self/fd/$NRI_PLUGIN_SOCKET > {0}.new\necho $NRI_PLUGIN_IDX $NRI_PLUGIN_NAME $$ >> {0}.new\n/bin/mv {0}.new {0}\nexec /bin/sleep 1000\n",
        report.display()
    );
    let path = plugins.join("10-script");
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode_of_program().open(&path).unwrap();
    file.write_all(script.as_bytes()).unwrap();
    drop(file);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let nri = Nri::new(Options { listen: None, ..options(Path::new("/none"), &plugins) });
    let begun = Instant::now();
    // It never registers, and is ended.
    nri.start(Arc::new(World::default())).await.unwrap();
    assert!(begun.elapsed() >= LIMIT && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let told = std::fs::read_to_string(&report).unwrap();
    assert!(told.starts_with("socket:") && told.contains("10 script"), "{told}");
    let pid: i32 = told.split_whitespace().last().unwrap().parse().unwrap();
    until("the program has ended", || !Path::new(&format!("/proc/{pid}")).exists()).await;
    nri.stop().await;
}

trait ModeOfProgram {
    fn mode_of_program(&mut self) -> &mut Self;
}

impl ModeOfProgram for std::fs::OpenOptions {
    fn mode_of_program(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::mode(self, 0o755)
    }
}

#[tokio::test]
async fn the_socket_of_another_runtime_is_left_alone_and_that_of_a_dead_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nri.sock");
    let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let nri = Nri::new(options(&socket, Path::new("/nonexistent")));
    nri.start(Arc::new(World::default())).await.unwrap();
    nri.stop().await;
    assert!(socket.exists());
    drop(other);
    let nri = Nri::new(options(&socket, Path::new("/nonexistent")));
    nri.start(Arc::new(World::default())).await.unwrap();
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    TestPlugin::over(stream, "10", "a", ALL, Box::new(usual)).await;
    until("it has joined", || nri.plugins() == ["10-a"]).await;
    nri.stop().await;
}

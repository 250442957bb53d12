//! Bytes of protocol version 1: a monitor outlives the daemon that started it, so that neither side may ever write others
//! for the same message, or read these as something else.

use criox_monitor_api::proto::{
    Attach, Checkpoint, CloseStdin, ContainerState, Create, Event, Exec, ExecFinished, ExecStarted,
    ExitFacts, Exited, Failure, ForbiddenCall, ForbiddenCalls, Freeze, Hello, ListReply, ListenSeccomp,
    Message, Reply, Request, Resize, Restore, SeccompListening, SeccompNotified, Thaw, Update, event,
    failure, message, reply, request::Verb,
};

#[track_caller]
fn check<M: prost::Message + Default + PartialEq + std::fmt::Debug>(message: &M, golden: &str) {
    let bytes = message.encode_to_vec();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "{message:?}");
    assert_eq!(&M::decode(bytes.as_slice()).expect("it is what was written"), message);
}

fn request(verb: Verb) -> Request {
    Request { id: 7, verb: Some(verb) }
}

#[test]
fn requests_of_version_one_keep_their_bytes() {
    check(&request(Verb::Hello(Hello { versions: vec![1] })), "080712030a0101");
    let exec = Exec {
        container_id: "c".into(),
        exec_id: "e".into(),
        process: b"{}".to_vec(),
        terminal: true,
        stdin: true,
        stdout: true,
        stderr: true,
        timeout_ms: 5,
        start_timeout_ms: 6,
    };
    check(&request(Verb::Exec(exec)), "080742160a01631201651a027b7d200128013001380140054806");
    let attach = Attach { container_id: "c".into(), stdin: true, stdout: true, stderr: true, terminal: true };
    check(&request(Verb::Attach(attach)), "08077a0b0a01631001180120012801");
    let resize = Resize { container_id: "c".into(), exec_id: "e".into(), width: 80, height: 24 };
    check(&request(Verb::Resize(resize)), "080782010a0a016312016518502018");
    check(&request(Verb::CloseStdin(CloseStdin { container_id: "c".into() })), "08078a01030a0163");
    let listen = ListenSeccomp { container_id: "c".into() };
    check(&request(Verb::ListenSeccomp(listen)), "0807e202030a0163");
    let freeze = Freeze { container_ids: vec!["c".into()], timeout_ms: 7 };
    check(&request(Verb::Freeze(freeze)), "0807d202050a01631007");
    let thaw = Thaw { container_ids: vec!["c".into()] };
    check(&request(Verb::Thaw(thaw)), "0807da02030a0163");
    let checkpoint = Checkpoint {
        container_id: "c".into(),
        image_path: "/i".into(),
        work_path: "/w".into(),
        timeout_ms: 7,
    };
    check(&request(Verb::Checkpoint(checkpoint)), "0807c2020d0a016312022f691a022f772007");
    let from = Restore {
        image_path: "/i".into(),
        work_path: "/w".into(),
        lsm_profile: "p".into(),
        lsm_mount_context: "m".into(),
        cgroup: "/g".into(),
    };
    let create = Create { container_id: "c".into(), restore: Some(from), ..Create::default() };
    check(&request(Verb::Create(create)), "08072a170a016352120a022f6912022f771a017022016d2a022f67");
    let update = Update {
        container_id: "c".into(),
        resources: b"{}".to_vec(),
        timeout_ms: 5,
        previous: b"[]".to_vec(),
        oom_score_adj: Some(-3),
    };
    check(&request(Verb::Update(update)), "080792010f0a016312027b7d180522025b5d2805");
}

#[test]
fn messages_of_version_one_keep_their_bytes() {
    let reply =
        |result| Message { kind: Some(message::Kind::Reply(Reply { request_id: 7, result: Some(result) })) };
    check(&reply(reply::Result::ExecStarted(ExecStarted { pid: 9 })), "0a06080732020809");
    let finished = ExecFinished { exit_code: 3, timed_out: true };
    check(&reply(reply::Result::ExecFinished(finished)), "0a0808073a0408031001");
    let failure = Failure { kind: failure::Kind::WrongState.into(), message: "x".into() };
    check(&reply(reply::Result::Failure(failure)), "0a09080712050802120178");
    let exit = ExitFacts { exit_code: 137, signal: 9, oom_killed: true, finished_at: 11 };
    let exited = event::Kind::Exited(Exited { container_id: "c".into(), exit: Some(exit) });
    let event = Message { kind: Some(message::Kind::Event(Event { number: 2, kind: Some(exited) })) };
    check(&event, "12120802120e0a0163120908890110091801200b");
    let listening = SeccompListening { path: "/p".into() };
    check(&reply(reply::Result::SeccompListening(listening)), "0a08080752040a022f70");
    let call = ForbiddenCall { arch: 0xc000_003e, number: -1, count: 3 };
    let forbidden = Some(ForbiddenCalls { calls: vec![call], first_at: 4, last_at: 5 });
    let state = ContainerState {
        container_id: "c".into(),
        forbidden: forbidden.clone(),
        ..ContainerState::default()
    };
    let list = ListReply { containers: vec![state], ..ListReply::default() };
    check(
        &reply(reply::Result::List(list)),
        "0a24080742200a1e0a016342190a1308be8080800c10ffffffffffffffffff01180310041805",
    );
    let notified = event::Kind::SeccompNotified(SeccompNotified { container_id: "c".into(), forbidden });
    check(
        &Message { kind: Some(message::Kind::Event(Event { number: 2, kind: Some(notified) })) },
        "12220802321e0a016312190a1308be8080800c10ffffffffffffffffff01180310041805",
    );
}

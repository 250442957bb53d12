//! Bytes of protocol version 1: a monitor outlives the daemon that started it, so that neither side may ever write others
//! for the same message, or read these as something else.

use criox_monitor_api::proto::{
    Attach, CloseStdin, Event, Exec, ExecFinished, ExecStarted, ExitFacts, Exited, Failure, Hello, Message,
    Reply, Request, Resize, Update, event, failure, message, reply, request::Verb,
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
}

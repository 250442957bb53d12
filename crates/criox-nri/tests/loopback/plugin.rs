//! A plugin of our own making: the other side of the wire, over the same codec.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use criox_nri::proto::{
    ConfigureRequest, ConfigureResponse, Event, RegisterPluginRequest, SynchronizeRequest,
    SynchronizeResponse,
};
use criox_nri::ttrpc::{Request, Response, Status};
use criox_nri::wire::{Assembler, Channel, Kind, encode};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// What a plugin does with a call: an answer, an error, or nothing for ever.
pub(crate) type Act = Box<dyn FnMut(&str, &[u8]) -> Answer + Send>;

pub(crate) enum Answer {
    /// The usual one: empty, and what a synchronization needs.
    Usual,
    Message(Vec<u8>),
    Error(i32, String),
    /// After a while, the usual one.
    Later(Duration),
    /// Never.
    Silence,
    /// Bytes that are no frame.
    Nonsense,
}

/// What it has been called with.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) calls: Vec<(String, Vec<u8>)>,
    pub(crate) synchronized: SynchronizeRequest,
    pub(crate) configured: Option<ConfigureRequest>,
}

impl Seen {
    pub(crate) fn methods(&self) -> Vec<String> {
        self.calls.iter().map(|(method, _)| method.clone()).collect()
    }
}

#[derive(Clone)]
pub(crate) struct TestPlugin {
    pub(crate) seen: Arc<Mutex<Seen>>,
    /// Calls of its own: the frame to send.
    own: mpsc::Sender<(String, Vec<u8>, tokio::sync::oneshot::Sender<Response>)>,
    closed: Arc<Mutex<bool>>,
    over: Arc<tokio::sync::Notify>,
}

impl TestPlugin {
    /// Connects and registers.
    pub(crate) async fn connect(socket: &Path, index: &str, name: &str, events: &[Event], act: Act) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        Self::over(stream, index, name, events, act).await
    }

    pub(crate) async fn over(
        stream: UnixStream,
        index: &str,
        name: &str,
        events: &[Event],
        act: Act,
    ) -> Self {
        let mask = events.iter().fold(0, |mask, event| mask | 1 << (*event as i32 - 1));
        let (own, calls) = mpsc::channel(8);
        let plugin = Self { seen: Arc::default(), own, closed: Arc::default(), over: Arc::default() };
        tokio::spawn(run(plugin.clone(), stream, calls, mask, act));
        let register = RegisterPluginRequest {
            plugin_name: name.into(),
            plugin_idx: index.into(),
            nri_version: "test".into(),
        };
        drop(plugin.call("RegisterPlugin", register.encode_to_vec()).await);
        plugin
    }

    /// A call of the runtime's service.
    pub(crate) async fn call(&self, method: &str, payload: Vec<u8>) -> Option<Response> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.own.send((method.into(), payload, reply)).await.ok()?;
        answer.await.ok()
    }

    /// Goes without a word.
    #[allow(dead_code, reason = "not every test that includes this file ends a plugin")]
    pub(crate) fn disconnect(&self) {
        self.over.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.lock().unwrap()
    }
}

async fn run(
    plugin: TestPlugin,
    stream: UnixStream,
    mut own: mpsc::Receiver<(String, Vec<u8>, tokio::sync::oneshot::Sender<Response>)>,
    mask: i32,
    mut act: Act,
) {
    let (mut reading, mut writing) = stream.into_split();
    let (mut assembler, mut frames, mut buffer) = (Assembler::new(), Vec::new(), vec![0; 64 << 10]);
    let (mut next, mut waiting) = (1, HashMap::new());
    let (later, mut due) = mpsc::channel::<Vec<u8>>(64);
    loop {
        tokio::select! {
            () = plugin.over.notified() => break,
            Some(bytes) = due.recv() => if writing.write_all(&bytes).await.is_err() { break },
            Some((method, payload, reply)) = own.recv() => {
                let service = "nri.pkg.api.v1alpha1.Runtime".to_owned();
                let request = Request { service, method, payload, ..Default::default() };
                let bytes = encode(Channel::Runtime, Kind::Request, &request).unwrap().on_stream(next);
                waiting.insert(next, reply);
                next += 2;
                if writing.write_all(&bytes).await.is_err() { break }
            }
            count = reading.read(&mut buffer) => {
                let Ok(count @ 1..) = count else { break };
                assembler.push(&buffer[..count], &mut frames).unwrap();
                for frame in frames.drain(..) {
                    if frame.channel == Channel::Runtime {
                        let response = Response::decode(frame.payload.as_slice()).unwrap();
                        if let Some(reply) = waiting.remove(&frame.stream) { drop(reply.send(response)); }
                        continue;
                    }
                    let request = Request::decode(frame.payload.as_slice()).unwrap();
                    let answer = act(&request.method, &request.payload);
                    let usual = usual(&plugin, &request, mask);
                    let response = match answer {
                        Answer::Usual => Response { status: None, payload: usual },
                        Answer::Message(payload) => Response { status: None, payload },
                        Answer::Error(code, message) => {
                            Response { status: Some(Status { code, message }), payload: Vec::new() }
                        }
                        Answer::Silence => continue,
                        Answer::Nonsense => {
                            drop(writing.write_all(&[0xff; 64]).await);
                            continue;
                        }
                        Answer::Later(pause) => {
                            let (later, stream) = (later.clone(), frame.stream);
                            tokio::spawn(async move {
                                tokio::time::sleep(pause).await;
                                let response = Response { status: None, payload: usual };
                                let bytes = encode(Channel::Plugin, Kind::Response, &response).unwrap();
                                drop(later.send(bytes.on_stream(stream)).await);
                            });
                            continue;
                        }
                    };
                    let bytes = encode(Channel::Plugin, Kind::Response, &response).unwrap().on_stream(frame.stream);
                    if writing.write_all(&bytes).await.is_err() { break }
                }
            }
        }
    }
    *plugin.closed.lock().unwrap() = true;
}

/// Notes the call, and makes the answer that a plugin without a will of its own would give.
fn usual(plugin: &TestPlugin, request: &Request, mask: i32) -> Vec<u8> {
    let mut seen = plugin.seen.lock().unwrap();
    seen.calls.push((request.method.clone(), request.payload.clone()));
    match request.method.as_str() {
        "Configure" => {
            seen.configured = Some(ConfigureRequest::decode(request.payload.as_slice()).unwrap());
            ConfigureResponse { events: mask, failure_policy: None }.encode_to_vec()
        }
        "Synchronize" => {
            let piece = SynchronizeRequest::decode(request.payload.as_slice()).unwrap();
            seen.synchronized.pods.extend(piece.pods);
            seen.synchronized.containers.extend(piece.containers);
            SynchronizeResponse { update: Vec::new(), more: piece.more }.encode_to_vec()
        }
        _ => Vec::new(),
    }
}

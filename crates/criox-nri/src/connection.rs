//! One plugin's socket: calls in both directions. A task reads, a task writes; callers wait for answers by the number
//! of their stream, each with a deadline of its own. When the connection ends, every waiting call fails at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ttrpc;
use crate::wire::{Assembler, Channel, Encoded, Frame, Kind, WireError, encode};

/// The service that plugins have.
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that the runtime has.
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Frames that may wait for the socket.
const QUEUE: usize = 32;
/// Calls of a plugin that may wait for us.
const INCOMING: usize = 8;
/// Calls that may wait for the answers of one plugin.
const CALLS: usize = 4096;
/// What one read takes.
const READ: usize = 64 << 10;

/// gRPC's codes, as far as they are told apart here.
pub(crate) mod code {
    /// The request is wrong.
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    /// Too much of something.
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    /// Not now.
    pub(crate) const FAILED_PRECONDITION: i32 = 9;
    /// No such method.
    pub(crate) const UNIMPLEMENTED: i32 = 12;
}

/// Why a call of a plugin failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The plugin says so.
    #[error("{message}")]
    Refused {
        /// gRPC's code.
        code: i32,
        /// The plugin's words.
        message: String,
    },
    /// It did not answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The connection has ended.
    #[error("its connection has ended")]
    Closed,
    /// It does not keep to the protocol.
    #[error("its answer is no message of the protocol")]
    Malformed,
    /// What it should be told does not fit into a message.
    #[error("the request is {0} bytes long, more than a message may be")]
    TooLong(usize),
}

/// A call of the plugin.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The method of the runtime's service.
    pub(crate) method: String,
    /// The encoded request.
    pub(crate) payload: Vec<u8>,
    stream: u32,
    queue: mpsc::Sender<Vec<u8>>,
}

impl Incoming {
    /// Answers it. A plugin that has gone needs no answer.
    pub(crate) async fn answer(self, result: Result<Vec<u8>, ttrpc::Status>) {
        if let Some(bytes) = response(self.stream, result) {
            drop(self.queue.send(bytes).await);
        }
    }
}

fn response(stream: u32, result: Result<Vec<u8>, ttrpc::Status>) -> Option<Vec<u8>> {
    let response = match result {
        Ok(payload) => ttrpc::Response { status: None, payload },
        Err(status) => ttrpc::Response { status: Some(status), payload: Vec::new() },
    };
    encode(Channel::Runtime, Kind::Response, &response).ok().map(|frame| frame.on_stream(stream))
}

/// A connection to a plugin. Clones share it; it ends with [`Connection::close`], or when the plugin goes.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    /// Calls that were made; the numbers of their streams are odd.
    made: u32,
    calls: HashMap<u32, oneshot::Sender<ttrpc::Response>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.calls.clear();
        drop(waiting);
        self.closed.send_replace(true);
    }
}

/// Takes the answer's place back when nobody waits any more.
struct Call {
    stream: u32,
    shared: Arc<Shared>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.waiting().calls.remove(&self.stream);
    }
}

impl Connection {
    /// Over a connected socket; the plugin's own calls come from the receiver.
    pub(crate) fn new(socket: UnixStream) -> (Self, mpsc::Receiver<Incoming>) {
        let (queue, frames) = mpsc::channel(QUEUE);
        let (incoming, calls) = mpsc::channel(INCOMING);
        let shared = Arc::new(Shared { waiting: Mutex::default(), closed: watch::Sender::new(false) });
        let (reading, writing) = socket.into_split();
        let reader = Reader { shared: shared.clone(), queue: queue.clone(), incoming };
        tokio::spawn(reader.run(reading));
        tokio::spawn(write(shared.clone(), writing, frames));
        (Self { shared, queue }, calls)
    }

    /// Ends it: waiting calls fail, the socket is closed.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        let mut closed = self.shared.closed.subscribe();
        // The sender lives as long as we do.
        drop(closed.wait_for(|closed| *closed).await);
    }

    /// Calls a method of the plugin and waits for its answer.
    ///
    /// # Errors
    /// The plugin refuses, is silent for `limit`, has gone, or talks nonsense.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let request = ttrpc::Request {
            service: PLUGIN_SERVICE.into(),
            method: method.into(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let frame = encode(Channel::Plugin, Kind::Request, &request).map_err(CallError::TooLong)?;
        let answered = tokio::time::timeout(limit, self.exchange(frame)).await;
        let response = answered.unwrap_or(Err(CallError::TimedOut(limit)))?;
        match response.status {
            Some(status) if status.code != 0 => {
                Err(CallError::Refused { code: status.code, message: status.message })
            }
            _ => A::decode(response.payload.as_slice()).map_err(|_| CallError::Malformed),
        }
    }

    async fn exchange(&self, frame: Encoded) -> Result<ttrpc::Response, CallError> {
        let place = tokio::select! {
            place = self.queue.reserve() => place.map_err(|_| CallError::Closed)?,
            () = self.ended() => return Err(CallError::Closed),
        };
        let (sender, answer) = oneshot::channel();
        let _call = {
            let mut waiting = self.shared.waiting();
            if waiting.closed || waiting.calls.len() >= CALLS {
                return Err(CallError::Closed);
            }
            // The peer insists that numbers rise in the order of the frames: both under one lock.
            let stream = waiting.made.wrapping_mul(2).wrapping_add(1);
            waiting.made = waiting.made.wrapping_add(1);
            waiting.calls.insert(stream, sender);
            place.send(frame.on_stream(stream));
            Call { stream, shared: self.shared.clone() }
        };
        answer.await.map_err(|_| CallError::Closed)
    }
}

async fn write(shared: Arc<Shared>, mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    let mut closed = shared.closed.subscribe();
    let writing = async {
        while let Some(frame) = frames.recv().await {
            socket.write_all(&frame).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        result = writing => if let Err(error) = result {
            tracing::debug!(%error, "write to an NRI plugin");
        },
        _ = closed.wait_for(|closed| *closed) => {}
    }
    shared.close();
}

struct Reader {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Vec<u8>>,
    incoming: mpsc::Sender<Incoming>,
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("read")]
    Read(#[from] std::io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("{0}")]
    Protocol(&'static str),
}

impl Reader {
    async fn run(self, socket: OwnedReadHalf) {
        let mut closed = self.shared.closed.subscribe();
        tokio::select! {
            result = self.read(socket) => if let Err(error) = result {
                tracing::warn!(%error, "an NRI plugin does not keep to the protocol, or its socket failed");
            },
            _ = closed.wait_for(|closed| *closed) => {}
        }
        self.shared.close();
    }

    async fn read(&self, mut socket: OwnedReadHalf) -> Result<(), Lost> {
        let (mut assembler, mut frames) = (Assembler::new(), Vec::new());
        let mut buffer = vec![0; READ];
        loop {
            let count = socket.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            assembler.push(&buffer[..count], &mut frames)?;
            for frame in frames.drain(..) {
                self.dispatch(frame)?;
            }
        }
    }

    /// Never waits: an answer that is wanted by nobody, or a call that nobody has time for, must hold up no other.
    fn dispatch(&self, frame: Frame) -> Result<(), Lost> {
        match (frame.channel, frame.kind) {
            (Channel::Plugin, Kind::Response) => {
                let response = ttrpc::Response::decode(frame.payload.as_slice())
                    .map_err(|_| Lost::Protocol("an answer is no ttrpc response"))?;
                // Unknown: its caller has gone.
                if let Some(call) = self.shared.waiting().calls.remove(&frame.stream) {
                    drop(call.send(response));
                }
                Ok(())
            }
            (Channel::Runtime, Kind::Request) => {
                let request = ttrpc::Request::decode(frame.payload.as_slice())
                    .map_err(|_| Lost::Protocol("a call is no ttrpc request"))?;
                self.take(frame.stream, request)
            }
            _ => Err(Lost::Protocol("a frame has a type that its connection has not")),
        }
    }

    fn take(&self, stream: u32, request: ttrpc::Request) -> Result<(), Lost> {
        if request.service != RUNTIME_SERVICE {
            let message = format!("there is no service {:?}", shown(&request.service));
            return self.refuse(stream, code::UNIMPLEMENTED, message);
        }
        let call =
            Incoming { method: request.method, payload: request.payload, stream, queue: self.queue.clone() };
        match self.incoming.try_send(call) {
            Ok(()) => Ok(()),
            Err(_) => self.refuse(stream, code::RESOURCE_EXHAUSTED, "too many calls at once".into()),
        }
    }

    fn refuse(&self, stream: u32, code: i32, message: String) -> Result<(), Lost> {
        let bytes = response(stream, Err(ttrpc::Status { code, message }));
        match bytes.map(|bytes| self.queue.try_send(bytes)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(Lost::Protocol("it asks without reading the answers")),
        }
    }
}

/// The beginning of a name that a plugin gave us, for a message.
pub(crate) fn shown(text: &str) -> &str {
    const MAX: usize = 128;
    text.char_indices().nth(MAX).map_or(text, |(end, _)| &text[..end])
}

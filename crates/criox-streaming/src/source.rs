//! The direction from the client.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::activity::Activity;
use crate::socket::Socket;

/// What is read at once.
const READ: usize = 64 << 10;

/// How often a connection that is not read is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why nothing more comes from a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// It closed the connection.
    #[error("the client closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the client's connection broke: {0}")]
    Broken(#[from] io::Error),
    /// It broke the protocol.
    #[error("the client sent {0}")]
    Protocol(String),
    /// It did not open its streams.
    #[error("the client did not open all its streams within 30 s")]
    Late,
    /// Nothing passed for too long.
    #[error("nothing passed for as long as stream_idle_timeout says")]
    Idle,
}

/// The bytes that a client sends.
pub(crate) struct Source {
    io: Box<dyn AsyncRead + Send + Sync + Unpin>,
    socket: Socket,
    activity: Arc<Activity>,
    /// What was read and not decoded yet.
    pub(crate) buffer: BytesMut,
}

impl Source {
    /// `early` was read by the HTTP server.
    pub(crate) fn new(
        io: Box<dyn AsyncRead + Send + Sync + Unpin>,
        socket: Socket,
        activity: Arc<Activity>,
        early: &Bytes,
    ) -> Self {
        Self { io, socket, activity, buffer: BytesMut::from(&early[..]) }
    }

    /// Adds to the buffer. Nothing is lost when the future is dropped.
    pub(crate) async fn fill(&mut self) -> Result<(), Ended> {
        self.buffer.reserve(READ);
        if self.io.read_buf(&mut self.buffer).await? == 0 {
            return Err(Ended::Closed);
        }
        self.activity.touch();
        Ok(())
    }

    /// Reads to the client's end, and drops what comes.
    pub(crate) async fn drain(&mut self) {
        while self.fill().await.is_ok() {
            self.buffer.clear();
        }
    }

    /// Something that watches the connection while nothing is read.
    pub(crate) fn watch(&self) -> Watch {
        Watch(self.socket.clone())
    }
}

/// Watches a connection that is not read, as its streams are full.
pub(crate) struct Watch(Socket);

impl Watch {
    /// Waits until the client has closed it.
    pub(crate) async fn hung_up(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.0.hung_up() {
                return;
            }
        }
    }
}

/// Waits for `room`, but not beyond the client's end.
pub(crate) async fn or_hung_up<T>(watch: &Watch, room: impl Future<Output = T>) -> Result<T, Ended> {
    tokio::select! {
        biased;
        done = room => Ok(done),
        () = watch.hung_up() => Err(Ended::Closed),
    }
}

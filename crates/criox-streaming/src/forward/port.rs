//! One connection to a port.

use std::sync::Arc;

use tokio::sync::watch;

use crate::backend::Backend;
use crate::fd::Fd;
use crate::queue::Receiver;
use crate::sink::{Copied, CopyError, Lane, Sink};
use crate::spdy;

/// Says when the client has given the connection up: its sender was dropped. The sink is never left in the middle of a
/// frame by it.
pub(super) type Gone = watch::Receiver<()>;

/// One connection of a client.
pub(super) struct Forward {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) sink: Arc<Sink>,
    pub(super) sandbox: String,
    pub(super) port: u16,
    pub(super) data: Lane,
    pub(super) error: Lane,
    pub(super) pieces: Receiver,
    pub(super) gone: Gone,
    /// Streams of SPDY, which have ends of their own; channels of a WebSocket have none.
    pub(super) streams: bool,
}

impl Forward {
    /// Connects and copies until both directions have ended. Returns when all is said to the client.
    pub(super) async fn run(mut self) {
        let dial = self.backend.port_forward(&self.sandbox, self.port);
        let dialled = tokio::select! {
            dialled = dial => dialled,
            () = gone(self.gone.clone()) => return,
        };
        let connection = match dialled.map(Fd::pipe) {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return self.failed(&error.to_string()).await,
            Err(failure) => return self.failed(&failure.to_string()).await,
        };
        let Self { data, gone: given_up, pieces, streams, .. } = &mut self;
        let (up, down) =
            (up(&connection, pieces, given_up.clone()), down(&connection, data, given_up.clone()));
        if *streams {
            tokio::join!(up, down);
        } else {
            // A channel can't say that its direction has ended, so the end of the port's direction is the end.
            tokio::select! { () = down => (), () = async { up.await; std::future::pending().await } => () }
        }
        // An error here is the client's end, which its reader sees, too.
        let _ = self.data.finish().await;
        let _ = self.error.finish().await;
    }

    /// Tells the client why there is no connection.
    async fn failed(&self, why: &str) {
        let text = format!("error forwarding port {} to pod {}, uid : {why}", self.port, self.sandbox);
        tracing::debug!("{text}");
        if self.error.send(text.as_bytes()).await.is_ok() && self.streams {
            for lane in [&self.error, &self.data] {
                let _ = spdy::reset(&self.sink, lane).await;
            }
        }
    }
}

async fn gone(mut gone: Gone) {
    while gone.changed().await.is_ok() {}
}

/// What the client sends goes to the port.
async fn up(connection: &Fd, pieces: &mut Receiver, given_up: Gone) {
    let copy = async {
        while let Some(piece) = pieces.next().await {
            if connection.write_all(&piece).await.is_err() {
                break;
            }
        }
        pieces.close();
        connection.end_writing();
    };
    tokio::select! { () = copy => (), () = gone(given_up) => () }
}

/// What the port sends goes to the client. Only waiting is given up, never a frame that is being written.
async fn down(connection: &Fd, data: &Lane, given_up: Gone) {
    loop {
        let mut ready = tokio::select! {
            ready = connection.readable() => match ready {
                Ok(ready) => ready,
                Err(_) => break,
            },
            () = gone(given_up.clone()) => break,
        };
        match data.copy(&mut ready).await {
            Ok(Copied::Bytes(_) | Copied::Nothing) => (),
            // A port that resets its connection ends it like one that closes it: the client keeps its other ones.
            Ok(Copied::End) | Err(CopyError::Read(_) | CopyError::Client(_)) => break,
        }
    }
    let _ = data.finish().await;
}

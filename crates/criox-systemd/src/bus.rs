//! One connection to systemd, and the ends of jobs that come over it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::{Connection, MatchRule, Message, MessageStream, connection::Builder};
use zbus::{OwnedObjectPath, Type};

use crate::error::Attempt;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Ends of jobs that are read late; they are few for one unit.
const ENDS: usize = 16;
/// Signals that are read late.
const QUEUE: usize = 1024;

/// A way to systemd.
#[derive(Debug, Clone)]
pub enum Route {
    /// The system bus.
    SystemBus,
    /// A socket on which systemd talks D-Bus itself: it works without a bus.
    Private(PathBuf),
}

impl Route {
    async fn connect(&self) -> zbus::Result<Connection> {
        match self {
            Self::SystemBus => Builder::system().build().await,
            Self::Private(path) => {
                let failed = |error| zbus::Error::InputOutput(Arc::new(error));
                let stream = tokio::net::UnixStream::connect(path).await.map_err(failed)?;
                let stream = stream.into_std().map_err(failed)?;
                Builder::unix_stream(stream).p2p().build().await
            }
        }
    }

    /// On a bus peers have names, on a socket of two they don't.
    fn destination(&self) -> Option<&'static str> {
        match self {
            Self::SystemBus => Some(SYSTEMD),
            Self::Private(_) => None,
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SystemBus => f.write_str("system bus"),
            Self::Private(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How a job ended: its object, and systemd's word for the result.
pub(crate) type End = (OwnedObjectPath, String);

/// Who waits for jobs of which unit.
#[derive(Debug, Default)]
struct Waiters(Mutex<HashMap<String, Vec<mpsc::Sender<End>>>>);

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<mpsc::Sender<End>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, unit: &str, end: &End) {
        for sender in self.lock().get(unit).into_iter().flatten() {
            // One whose queue is full waits for a job that is not among the last.
            drop(sender.try_send(end.clone()));
        }
    }
}

/// Somebody who waits for jobs of a unit.
struct Waiting<'a> {
    waiters: &'a Waiters,
    unit: &'a str,
    receiver: mpsc::Receiver<End>,
}

impl<'a> Waiting<'a> {
    fn new(waiters: &'a Waiters, unit: &'a str) -> Self {
        let (sender, receiver) = mpsc::channel(ENDS);
        waiters.lock().entry(unit.to_owned()).or_default().push(sender);
        Self { waiters, unit, receiver }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        let mut waiters = self.waiters.lock();
        if let Some(senders) = waiters.get_mut(self.unit) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiters.remove(self.unit);
            }
        }
    }
}

/// A connection that is subscribed to the ends of jobs.
#[derive(Debug)]
pub(crate) struct Bus {
    connection: Connection,
    destination: Option<&'static str>,
    waiters: Arc<Waiters>,
    follower: JoinHandle<()>,
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Bus {
    pub(crate) async fn open(route: &Route) -> zbus::Result<Self> {
        let connection = route.connect().await?;
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        let stream = MessageStream::for_match_rule(rule, &connection, NonZeroUsize::new(QUEUE)).await?;
        let waiters = Arc::new(Waiters::default());
        let follower = tokio::spawn(follow(stream, waiters.clone()));
        let bus = Self { connection, destination: route.destination(), waiters, follower };
        // systemd is silent about jobs to those who don't ask.
        match bus.call("Subscribe", &()).await {
            Err(zbus::Error::MethodError(name, ..)) if name.ends_with("AlreadySubscribed") => {}
            other => drop(other?),
        }
        Ok(bus)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.follower.is_finished() || self.connection.is_closed()
    }

    /// Calls a method of systemd's manager.
    pub(crate) async fn call<B: zbus::export::serde::Serialize + Type>(
        &self,
        method: &'static str,
        body: &B,
    ) -> zbus::Result<Message> {
        self.connection.call_method(self.destination, OBJECT, Some(MANAGER), method, body).await
    }

    /// Calls a method that answers with a job of the unit, and waits for the job's end. The answer must come within
    /// `patience`; the job has all the time that the caller gives it.
    pub(crate) async fn job<B: zbus::export::serde::Serialize + Type>(
        &self,
        method: &'static str,
        unit: &str,
        body: &B,
        patience: Duration,
    ) -> Result<(), Attempt> {
        // Before it is asked for: the end can come with the answer.
        let mut ends = Waiting::new(&self.waiters, unit);
        let answer = timeout(patience, self.call(method, body)).await.map_err(|_| Attempt::Silent)??;
        let job: OwnedObjectPath = answer.body().deserialize()?;
        loop {
            let end = tokio::select! {
                end = ends.receiver.recv() => end,
                () = self.connection.closed() => None,
            };
            match end {
                Some((ended, result)) if ended == job && result == "done" => return Ok(()),
                Some((ended, result)) if ended == job => return Err(Attempt::Job(result)),
                Some(_) => {}
                None => return Err(Attempt::Lost("the connection was closed while a job ran".into())),
            }
        }
    }
}

/// Hands on the ends of jobs, until the connection ends.
async fn follow(mut stream: MessageStream, waiters: Arc<Waiters>) {
    while let Some(Ok(message)) = stream.next().await {
        match message.body().deserialize::<(u32, OwnedObjectPath, String, String)>() {
            Ok((_, job, unit, result)) => waiters.tell(&unit, &(job, result)),
            Err(error) => tracing::warn!(%error, "a signal of systemd was not understood"),
        }
    }
    // Nobody may wait for what can't come any more.
    waiters.lock().clear();
}

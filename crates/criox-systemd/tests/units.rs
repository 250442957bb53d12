//! Units against a systemd that is played on a socket: one that works, refuses, dies in between, and never answers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criox_systemd::{Route, Scope, Systemd, SystemdError};
use futures_util::StreamExt as _;
use tempfile::TempDir;
use tokio::net::UnixListener;
use zbus::connection::Builder;
use zbus::{Connection, Guid, Message, MessageStream, ObjectPath, OwnedVariant, message};

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const OBJECT: &str = "/org/freedesktop/systemd1";

/// What the played systemd does with a job.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Ends it with this result; the end comes before the answer.
    Ends(&'static str),
    /// Answers with this error.
    Refuses(&'static str),
    /// Closes the connection instead of answering, as often as this; then ends jobs well.
    Dies(usize),
    /// Takes the job and never ends it.
    Hangs,
    /// Does not even answer.
    IsSilent,
}

/// A systemd that is played.
#[derive(Debug)]
struct Played {
    _dir: TempDir,
    path: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Played {
    fn start(manner: Manner) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("private");
        let listener = UnixListener::bind(&path).expect("a socket");
        let (asked, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (seen, count) = (asked.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let manner = match manner {
                    Manner::Dies(times) if number >= times => Manner::Ends("done"),
                    manner => manner,
                };
                let stream = stream.into_std().expect("a stream");
                let guid = Guid::generate();
                let connection = Builder::unix_stream(stream).server(guid).p2p();
                let connection = connection.build().await.expect("a peer");
                tokio::spawn(serve(connection, manner, seen.clone()));
            }
        });
        Self { _dir: dir, path, asked, connections }
    }

    fn client(&self, limit: Duration) -> Systemd {
        Systemd::new(vec![Route::Private(self.path.clone())], limit)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

async fn serve(connection: Connection, manner: Manner, asked: Arc<Mutex<Vec<String>>>) {
    let mut messages = MessageStream::from(&connection);
    while let Some(Ok(message)) = messages.next().await {
        let header = message.header();
        if header.message_type() != message::Type::MethodCall {
            continue;
        }
        let method = header.member().map(|member| member.to_string()).unwrap_or_default();
        if method == "Subscribe" {
            connection.reply(&header, &()).await.expect("an answer");
            continue;
        }
        let unit = unit_of(&message);
        asked.lock().expect("no panic").push(format!("{method} {unit}"));
        let job = ObjectPath::try_from(format!("{OBJECT}/job/{}", message.primary_header().serial_num()))
            .expect("a path");
        match manner {
            Manner::Ends(result) => {
                // Of another job of the same unit, which must not be taken for this one's.
                ended(&connection, &ObjectPath::from_static_str_unchecked("/other"), &unit, "canceled").await;
                ended(&connection, &job, &unit, result).await;
                connection.reply(&header, &job).await.expect("an answer");
            }
            Manner::Refuses(name) => {
                connection.reply_error(&header, name, &"no").await.expect("an answer");
            }
            Manner::Dies(_) => return drop(connection.close().await),
            Manner::IsSilent => {}
            Manner::Hangs => connection.reply(&header, &job).await.expect("an answer"),
        }
    }
}

fn unit_of(message: &Message) -> String {
    type Start = (String, String, Vec<(String, OwnedVariant)>, Vec<(String, Vec<(String, OwnedVariant)>)>);
    let body = message.body();
    let start = body.deserialize::<Start>().map(|start| start.0);
    start.or_else(|_| body.deserialize::<(String, String)>().map(|stop| stop.0)).expect("a unit")
}

async fn ended(connection: &Connection, job: &ObjectPath<'_>, unit: &str, result: &str) {
    let body = (1u32, job, unit, result);
    connection.emit_signal(None::<&str>, OBJECT, MANAGER, "JobRemoved", &body).await.expect("a signal");
}

fn scope() -> Scope<'static> {
    Scope { name: "a.scope", slice: "s.slice", pid: 7, description: "d", after: &["criox.service"] }
}

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_call_returns_when_its_own_job_is_done() {
    let played = Played::start(Manner::Ends("done"));
    let systemd = played.client(LIMIT);
    systemd.start_scope(scope()).await.expect("a scope");
    systemd.start_slice("s.slice").await.expect("a slice");
    systemd.stop("s.slice").await.expect("an end");
    assert_eq!(
        played.asked(),
        ["StartTransientUnit a.scope", "StartTransientUnit s.slice", "StopUnit s.slice"]
    );
    // All over one connection.
    assert_eq!(played.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_calls_at_once_share_one_connection() {
    let played = Played::start(Manner::Ends("done"));
    let systemd = played.client(LIMIT);
    let calls = (0..50).map(|number| {
        let systemd = systemd.clone();
        async move { systemd.start_slice(&format!("s{number}.slice")).await }
    });
    for result in futures_util::future::join_all(calls).await {
        result.expect("a slice");
    }
    assert_eq!((played.asked().len(), played.connections.load(Ordering::SeqCst)), (50, 1));
}

#[tokio::test]
async fn a_job_that_fails_is_an_error_with_its_result() {
    let systemd = Played::start(Manner::Ends("failed"));
    let error = systemd.client(LIMIT).start_scope(scope()).await.expect_err("a failed job");
    assert!(matches!(&error, SystemdError::Job { unit, result } if unit == "a.scope" && result == "failed"));
}

#[tokio::test]
async fn what_is_as_it_should_be_is_no_error() {
    let played = Played::start(Manner::Refuses("org.freedesktop.systemd1.UnitExists"));
    played.client(LIMIT).start_scope(scope()).await.expect("it is there");
    let error = played.client(LIMIT).stop("a.scope").await.expect_err("another error");
    assert!(matches!(&error, SystemdError::Refused { call: "StopUnit", .. }), "{error}");
    let played = Played::start(Manner::Refuses("org.freedesktop.systemd1.NoSuchUnit"));
    played.client(LIMIT).stop("a.scope").await.expect("it is gone");
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_anew() {
    let played = Played::start(Manner::Dies(3));
    played.client(LIMIT).start_scope(scope()).await.expect("a scope in the end");
    assert_eq!((played.asked().len(), played.connections.load(Ordering::SeqCst)), (4, 4));
}

#[tokio::test]
async fn a_systemd_that_hangs_costs_the_limit_and_names_the_call() {
    let played = Played::start(Manner::Hangs);
    let start = Instant::now();
    let error = played.client(Duration::from_millis(300)).start_scope(scope()).await.expect_err("no end");
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(
        error.to_string().starts_with("StartTransientUnit of a.scope by systemd is not finished"),
        "{error}"
    );
}

/// How long a call takes that fails.
async fn failing(systemd: &Systemd) -> Duration {
    let start = Instant::now();
    systemd.start_scope(scope()).await.expect_err("no systemd");
    start.elapsed()
}

#[tokio::test]
async fn a_systemd_that_does_not_answer_costs_one_caller_a_third_and_the_next_nothing() {
    let played = Played::start(Manner::IsSilent);
    let systemd = played.client(Duration::from_millis(1500));
    let first = failing(&systemd).await;
    assert!((Duration::from_millis(400)..Duration::from_millis(1400)).contains(&first), "{first:?}");
    for _ in 0..5 {
        assert!(failing(&systemd).await < Duration::from_millis(100));
    }
    assert_eq!(played.asked().len(), 1);
    // It is not given up for good.
    tokio::time::sleep(Duration::from_millis(550)).await;
    failing(&systemd).await;
    assert_eq!(played.asked().len(), 2);
}

#[tokio::test]
async fn a_job_that_does_not_end_says_nothing_about_others() {
    let played = Played::start(Manner::Hangs);
    let systemd = played.client(Duration::from_millis(300));
    for asked in 1..3 {
        assert!(failing(&systemd).await >= Duration::from_millis(300));
        assert_eq!(played.asked().len(), asked);
    }
}

#[tokio::test]
async fn callers_of_a_bus_that_takes_no_connection_share_one_attempt() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("private");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let systemd = Systemd::new(vec![Route::Private(path)], Duration::from_secs(30));
    let start = Instant::now();
    let calls = (0..20).map(|_| failing(&systemd));
    futures_util::future::join_all(calls).await;
    // One time limit of a connection, and not one for each.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert!(failing(&systemd).await < Duration::from_millis(100));
    listener.set_nonblocking(true).expect("a socket");
    let attempts = std::iter::from_fn(|| listener.accept().ok()).count();
    assert_eq!(attempts, 1);
}

#[tokio::test]
async fn a_socket_on_which_nobody_talks_costs_the_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("private");
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let systemd = Systemd::new(vec![Route::Private(path)], Duration::from_millis(300));
    let start = Instant::now();
    let error = systemd.start_scope(scope()).await.expect_err("no systemd");
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(matches!(error, SystemdError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn the_second_route_is_taken_where_the_first_leads_nowhere() {
    let played = Played::start(Manner::Ends("done"));
    let routes =
        vec![Route::Private(Path::new("/nonexistent/private").into()), Route::Private(played.path.clone())];
    Systemd::new(routes, LIMIT).start_scope(scope()).await.expect("a scope");
}

#[tokio::test]
async fn no_systemd_at_all_is_told_with_every_route() {
    let routes = vec![Route::Private("/nonexistent/a".into()), Route::Private("/nonexistent/b".into())];
    let error = Systemd::new(routes, Duration::from_millis(200)).stop("a.scope").await.expect_err("nobody");
    let text = error.to_string();
    assert!(text.contains("/nonexistent/a") && text.contains("/nonexistent/b"), "{text}");
}

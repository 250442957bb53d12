//! A registry for tests that misbehaves on demand: one request a connection, any answer, any ending.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Where a range begins.
    pub(crate) fn range(&self) -> Option<usize> {
        self.header("range").strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Announced length, if not that of `body`.
    pub(crate) announced: Option<u64>,
    /// After the body, stay silent instead of closing.
    pub(crate) hang: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), announced: None, hang: false }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Announces the whole body but ends after `length` bytes.
    pub(crate) fn cut(mut self, length: usize) -> Self {
        self.announced = Some(self.body.len() as u64);
        self.body.truncate(length);
        self
    }

    pub(crate) fn hang(mut self) -> Self {
        self.hang = true;
        self
    }
}

pub(crate) struct FakeRegistry {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeRegistry {
    /// Serves until dropped. The handler gets each request and how many for the same target came before it.
    pub(crate) async fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        let handler = Arc::new(handler);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, handler.clone(), log.clone()));
            }
        });
        Self { address, seen, task }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far, without the ping.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|s| s.target != "/v2/").cloned().collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    handler: Arc<impl Fn(&Seen, usize) -> Reply>,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Option<()> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        // A TLS client: this server knows plain http only.
        if bytes.first() == Some(&0x16) || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.lines();
    let mut request = lines.next()?.split(' ');
    let mut seen = Seen {
        method: request.next()?.to_owned(),
        target: request.next()?.to_owned(),
        headers: lines
            .filter_map(|l| l.split_once(": "))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect(),
        body: String::new(),
    };
    let length: usize = seen.header("content-length").parse().unwrap_or(0);
    while bytes.len() < head_end + 4 + length {
        stream.read_buf(&mut bytes).await.ok()?;
    }
    seen.body = String::from_utf8_lossy(&bytes[head_end + 4..]).into_owned();
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|s| s.target == seen.target).count();
        log.push(seen.clone());
        before
    };
    let reply = handler(&seen, before);
    let length = reply.announced.unwrap_or(reply.body.len() as u64);
    let mut answer =
        format!("HTTP/1.1 {} X\r\ncontent-length: {length}\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str("\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.write_all(&reply.body).await.ok()?;
    if reply.hang {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    stream.shutdown().await.ok()
}

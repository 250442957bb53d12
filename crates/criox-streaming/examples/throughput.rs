//! How fast the output of an exec gets to a client, in comparison with a plain copy loop over the same loopback.
//!
//! Both are run several times in turn, and the medians are compared; below 0.6 it fails:
//!
//! ```text
//! cargo run --release -p criox-streaming --example throughput [MEGABYTES [ROUNDS]]
//! ```

#[path = "server/host.rs"]
mod host;

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use criox_streaming::{ExecRequest, Options, Server};

/// What a copy loop holds, the size of a pipe.
const BUFFER: usize = 64 << 10;

/// Of a plain copy loop, at least.
const PROMISED: f64 = 0.6;

fn command(bytes: u64) -> Vec<String> {
    ["head", "-c", &bytes.to_string(), "/dev/zero"].map(str::to_owned).to_vec()
}

/// Reads to the end, and gives the bytes.
fn drain(stream: &mut TcpStream) -> std::io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(all),
            read => all += read as u64,
        }
    }
}

/// A process's pipe to a connection, with nothing between but a buffer.
fn plain(bytes: u64) -> Result<f64, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    let copies = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let line = command(bytes);
        let mut child = Command::new(&line[0]).args(&line[1..]).stdout(Stdio::piped()).spawn()?;
        let mut output = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match output.read(&mut buffer)? {
                0 => break,
                read => stream.write_all(&buffer[..read])?,
            }
        }
        child.wait().map(drop)
    });
    let read = drain(&mut TcpStream::connect(address)?)?;
    copies.join().map_err(|_| "the copy loop panicked")??;
    assert_eq!(read, bytes);
    Ok(rate(bytes, started))
}

fn rate(bytes: u64, started: Instant) -> f64 {
    bytes as f64 / started.elapsed().as_secs_f64() / 1e6
}

/// An exec over WebSocket, of which the client takes the frames as they come.
fn exec(server: &Server, bytes: u64) -> Result<f64, Box<dyn Error>> {
    let url = server.exec_url(ExecRequest {
        container: "host".to_owned(),
        command: command(bytes),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: false,
    })?;
    let rest = url.strip_prefix("http://").ok_or("no URL")?;
    let (address, path) = rest.split_at(rest.find('/').ok_or("no path")?);
    let started = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    // Frames add a few bytes to each 64 KiB.
    let read = drain(&mut stream)?;
    assert!(read > bytes && read < bytes + bytes / 100 + 4096, "{read} bytes");
    Ok(rate(bytes, started))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<u64>());
    let bytes = numbers.next().transpose()?.unwrap_or(512) * 1_000_000;
    let rounds = numbers.next().transpose()?.unwrap_or(9);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = runtime.block_on(Server::bind(Options::new(), Arc::new(host::Host::default())))?;
    let server = Arc::new(server);
    runtime.spawn(Arc::clone(&server).run(std::future::pending()));
    let (mut plains, mut execs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        plains.push(plain(bytes)?);
        execs.push(exec(&server, bytes)?);
    }
    let (plain, exec) = (median(plains), median(execs));
    let mut output = std::io::stdout().lock();
    writeln!(output, "plain copy loop  {plain:>8.0} MB/s")?;
    writeln!(output, "exec, WebSocket  {exec:>8.0} MB/s")?;
    writeln!(output, "ratio            {:>8.2}", exec / plain)?;
    if exec < PROMISED * plain { Err("less than promised".into()) } else { Ok(()) }
}

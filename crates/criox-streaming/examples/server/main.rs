//! A streaming server for this machine's own commands and ports: what an independent client is tested against.
//!
//! Lines on standard input ask for URLs, lines on standard output give them. It ends with its input.
//!
//! ```text
//! exec [tty] [stdin] [stdout] [stderr] -- exit 7
//! attach [tty] [stdin] [stdout] [stderr] -- cat
//! forward 8080 9090
//! ```
//!
//! Arguments: `CERTIFICATE KEY [CLIENT_AUTHORITY]` for TLS.

mod host;

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use criox_streaming::{AttachRequest, ExecRequest, Options, PortForwardRequest, Server, Tls, UrlError};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(std::path::PathBuf::from);
    let tls = match (arguments.next(), arguments.next()) {
        (Some(certificate), Some(key)) => Some(Tls {
            certificate,
            key,
            client_authority: arguments.next(),
            only_tls13: false,
            cipher_suites: Vec::new(),
        }),
        _ => None,
    };
    let options = Options { tls, ..Options::new() };
    let server = Arc::new(Server::bind(options, Arc::new(host::Host::default())).await?);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(Arc::clone(&server).run(async {
        let _ = stopped.await;
    }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut output = std::io::stdout().lock();
        match url(&server, &line) {
            Ok(url) => writeln!(output, "{url}")?,
            Err(error) => writeln!(output, "error: {error}")?,
        }
        output.flush()?;
    }
    let _ = stop.send(());
    Ok(running.await?)
}

fn url(server: &Server, line: &str) -> Result<String, UrlError> {
    let (head, command) = line.split_once(" -- ").unwrap_or((line, ""));
    let has = |word: &str| head.split(' ').any(|found| found == word);
    let (tty, stdin, stdout, stderr) = (has("tty"), has("stdin"), has("stdout"), has("stderr"));
    match head.split(' ').next() {
        Some("exec") => {
            let command = ["sh", "-c", command].map(str::to_owned).to_vec();
            server.exec_url(ExecRequest { container: "host".to_owned(), command, tty, stdin, stdout, stderr })
        }
        Some("attach") => {
            server.attach_url(AttachRequest { container: command.to_owned(), tty, stdin, stdout, stderr })
        }
        Some("forward") => {
            let ports = head.split(' ').skip(1).filter_map(|port| port.parse().ok()).collect();
            server.port_forward_url(PortForwardRequest { sandbox: "host".to_owned(), ports })
        }
        _ => Err(UrlError::Invalid("exec, attach or forward")),
    }
}

//! Kubernetes' own client library (`dev/testkit/clients/streaming`), as `kubectl` uses it, over both of its transports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use criox_cri::v1::{AttachRequest, ExecRequest};
use testkit::harness::{Test, skip};
use testkit::{Node, Result};

use crate::{LIMIT, NODE, attach_url, exec_request, exec_url, forward_url, idle, run};

pub(crate) const TESTS: &[Test] = &[
    ("client-go runs commands, with their streams and codes", || NODE.test(commands)),
    ("client-go sends megabytes, and their end", || NODE.test(megabytes)),
    ("client-go attaches", || NODE.test(attached)),
    ("client-go forwards a port, many connections in turn", || NODE.test(forwarded)),
];

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

fn client(verb: &str, transport: &str) -> Result<Command> {
    let program = testkit::daemon::peer("streaming-client").map_err(|error| skip(error.to_string()))?;
    let mut command = Command::new(program);
    command.args([verb, "--transport", transport]);
    Ok(command)
}

/// Runs a client that is given `input`, and waits for its end.
fn finish(mut command: Command, input: &[u8]) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("a client without input")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // Fails when the client has ended, of which its output tells.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| "the writer panicked")?;
    Ok(output)
}

fn commands(node: &Node) -> Result {
    let id = idle(node, "kubernetes-commands")?;
    for transport in TRANSPORTS {
        let url = exec_url(&node.cri, exec_request(&id, "echo out; echo err >&2; exit 7"))?;
        let mut command = client("exec", transport)?;
        command.args(["--stdout", "--stderr", &url]);
        let Output { status, stdout, stderr } = finish(command, b"")?;
        assert_eq!((status.code(), &stdout[..], &stderr[..]), (Some(7), &b"out\n"[..], &b"err\n"[..]));
        let url = exec_url(&node.cri, exec_request(&id, "kill -KILL $$"))?;
        let mut command = client("exec", transport)?;
        command.args(["--stdout", "--stderr", &url]);
        assert_eq!(finish(command, b"")?.status.code(), Some(137), "{transport}");
    }
    Ok(())
}

fn megabytes(node: &Node) -> Result {
    let id = idle(node, "kubernetes-megabytes")?;
    let sent: Vec<u8> = (0u32..1_000_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    for transport in TRANSPORTS {
        let request = ExecRequest { stdin: true, stderr: false, ..exec_request(&id, "cat") };
        let mut command = client("exec", transport)?;
        command.args(["--stdin", "--stdout", &exec_url(&node.cri, request)?]);
        let output = finish(command, &sent)?;
        assert_eq!(output.status.code(), Some(0), "{transport}");
        assert!(output.stdout == sent, "{transport}: {} of {} bytes", output.stdout.len(), sent.len());
    }
    Ok(())
}

fn attached(node: &Node) -> Result {
    for transport in TRANSPORTS {
        let script = "while read line; do echo got $line; done";
        let id = run(&node.cri, &node.image, &format!("kubernetes-attach-{transport}"), script, |config| {
            (config.stdin, config.stdin_once) = (true, true);
        })?;
        let request = AttachRequest { container_id: id, stdin: true, stdout: true, ..Default::default() };
        let mut command = client("attach", transport)?;
        command.args(["--stdin", "--stdout", &attach_url(&node.cri, request)?]);
        let output = finish(command, b"one\ntwo\n")?;
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"got one\ngot two\n"[..]));
    }
    Ok(())
}

fn forwarded(node: &Node) -> Result {
    let listens = ["httpd", "-f", "-p", "127.0.0.1:7000", "-h", "/etc"];
    let (pod, id) = node.cri.run("kubernetes-forward", &node.image, &listens)?;
    // A connection that is refused ends the whole client, as in kubectl.
    let ask = ["wget", "-q", "-O", "-", "http://127.0.0.1:7000/hello"];
    testkit::wait_for("the server to listen", LIMIT, || {
        Ok((node.cri.exec(&id, &ask, 10)?.exit_code == 0).then_some(()))
    })?;
    for transport in TRANSPORTS {
        let mut command = client("forward", transport)?;
        command.args([&forward_url(&node.cri, &pod, 7000)?, "0:7000"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let ready = line.strip_prefix("ready ").and_then(|ports| ports.split(':').next());
        let port: u16 = ready.ok_or_else(|| format!("{transport}: {line:?}"))?.parse()?;
        let fetched = (0..20).try_for_each(|_| fetch(port));
        drop(child.stdin.take());
        let status = child.wait()?;
        fetched?;
        assert_eq!(status.code(), Some(0), "{transport}");
    }
    Ok(())
}

fn fetch(port: u16) -> Result {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(b"GET /hello HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    assert!(answer.contains("hello from the image"), "{answer}");
    Ok(())
}

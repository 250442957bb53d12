//! PortForward.

use std::net::TcpListener;

use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::Code;

use crate::socket::Socket;
use crate::{LIMIT, NODE, V4, forward_url, refused};

pub(crate) const TESTS: &[Test] = &[
    ("a port of the pod's loopback is reached, and no port of the node's", || NODE.test(inside)),
    ("two hundred connections to a port leave no descriptor", || NODE.test(many)),
    ("a port of ::1 is reached", || NODE.test(version_six)),
    ("a pod of the node's network has the node's ports", || NODE.test(of_the_node)),
    ("PortForward is refused at the call for what can't be", || NODE.test(refusals)),
];

/// A pod with a network of its own in which a web server listens.
fn server(node: &Node, name: &str, listen: &str) -> Result<String> {
    let command = ["httpd", "-f", "-p", listen, "-h", "/etc"];
    Ok(node.cri.run(name, &node.image, &command)?.0)
}

fn get(node: &Node, pod: &str) -> Result {
    talk(node, pod, 7000, "GET /hello HTTP/1.0\r\n\r\n", "hello from the image")
}

/// One connection: something is sent, and its answer comes. Retried, for the server may not listen yet.
fn talk(node: &Node, pod: &str, port: i32, text: &str, wanted: &str) -> Result {
    testkit::wait_for("the port to answer", LIMIT, || {
        let mut connection = Socket::open(&forward_url(&node.cri, pod, port)?, V4)?;
        // A message of the port on each channel comes first.
        connection.send(0, text.as_bytes())?;
        let mut answer = Vec::new();
        while let Some((channel, bytes)) = connection.next()? {
            match channel {
                0 => answer.extend_from_slice(&bytes),
                _ if bytes.len() > 2 => return Ok(None),
                _ => {}
            }
            if String::from_utf8_lossy(&answer).contains(wanted) {
                assert_eq!(answer[..2], u16::try_from(port)?.to_le_bytes());
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
}

fn inside(node: &Node) -> Result {
    let pod = server(node, "forward", "127.0.0.1:7000")?;
    get(node, &pod)?;
    // The node's loopback has a listener at a port at which the pod's has none.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let mut connection = Socket::open(&forward_url(&node.cri, &pod, port.into())?, V4)?;
    let mut error = String::new();
    while let Some((channel, bytes)) = connection.next()? {
        if channel == 1 && bytes.len() > 2 {
            error = String::from_utf8(bytes)?;
            break;
        }
    }
    assert!(error.contains(&format!("port {port}")) && error.contains("refused"), "{error}");
    Ok(())
}

fn many(node: &Node) -> Result {
    let pod = server(node, "forward-many", "7000")?;
    get(node, &pod)?;
    let before = descriptors(node)?;
    for _ in 0..200 {
        get(node, &pod)?;
    }
    testkit::wait_for("the daemon to close what it opened", LIMIT, || {
        Ok((descriptors(node)? <= before).then_some(()))
    })
}

fn descriptors(node: &Node) -> Result<usize> {
    let pid = node.daemon.pid().ok_or("the daemon runs")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn version_six(node: &Node) -> Result {
    let pod = server(node, "forward-six", "[::1]:7000")?;
    get(node, &pod)
}

fn of_the_node(node: &Node) -> Result {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let config = node.cri.host_network_pod("forward-node");
    let pod = node.cri.run_pod(&config)?;
    let answer = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
    });
    talk(node, &pod, port.into(), "node", "node")?;
    drop(answer.join());
    Ok(())
}

fn refusals(node: &Node) -> Result {
    let pod = node.cri.run_pod(&node.cri.host_network_pod("forward-refusals"))?;
    for port in [0, -1, 65_536] {
        assert!(refused(forward_url(&node.cri, &pod, port), Code::InvalidArgument).contains("port"));
    }
    refused(forward_url(&node.cri, &"0".repeat(64), 80), Code::NotFound);
    node.cri.stop_pod(&pod)?;
    assert!(refused(forward_url(&node.cri, &pod, 80), Code::FailedPrecondition).contains(&pod));
    Ok(())
}

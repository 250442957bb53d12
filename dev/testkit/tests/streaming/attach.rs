//! Attach.

use criox_cri::v1::{AttachRequest, ContainerState};
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::Code;

use crate::socket::Socket;
use crate::{LIMIT, NODE, V4, V5, attach_url, refused, run};

pub(crate) const TESTS: &[Test] = &[
    ("several clients attached at once get the same output, and so does the log", || NODE.test(several)),
    ("a stdin that is open once closes with its first client", || NODE.test(stdin_once)),
    ("a stdin that stays open takes one client after the other", || NODE.test(stdin_stays)),
    ("a client attaches to a terminal, and resizes it", || NODE.test(terminal)),
    ("a client that only writes has done when its input ends", || NODE.test(only_input)),
    ("Attach is refused at the call for what can't be", || NODE.test(refusals)),
];

fn request(id: &str) -> AttachRequest {
    AttachRequest { container_id: id.to_owned(), stdout: true, stderr: true, ..Default::default() }
}

/// Each line that is read is answered; the script ends with the input.
const ECHO: &str = "while read line; do echo got $line; echo err $line >&2; done; echo over";

fn several(node: &Node) -> Result {
    let id = run(&node.cri, &node.image, "attach-several", ECHO, |config| {
        (config.stdin, config.stdin_once) = (true, true);
    })?;
    let mut writer =
        Socket::open(&attach_url(&node.cri, AttachRequest { stdin: true, ..request(&id) })?, V5)?;
    let mut readers = Vec::new();
    for _ in 0..5 {
        readers.push(Socket::open(&attach_url(&node.cri, request(&id))?, V4)?);
    }
    // All have attached when an answer has come to each.
    writer.send(0, b"first\n")?;
    for reader in &mut readers {
        let seen = reader.until("first\n");
        if seen.is_err() {
            return Err("a client that was attached got nothing".into());
        }
    }
    writer.send(0, b"second\n")?;
    writer.close(0)?;
    for reader in &mut readers {
        let said = reader.rest()?;
        assert_eq!(said.stdout, "got second\nover\n");
        assert!(said.stderr.ends_with("err second\n"), "{said:?}");
        assert!(said.status.contains("Success"), "{said:?}");
    }
    node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    let log = node.cri.log(&id)?;
    for line in ["stdout F got first", "stderr F err first", "stdout F got second", "stdout F over"] {
        assert!(log.contains(line), "{log}");
    }
    Ok(())
}

fn stdin_once(node: &Node) -> Result {
    for leaves in [false, true] {
        let id = run(&node.cri, &node.image, &format!("attach-once-{leaves}"), ECHO, |config| {
            (config.stdin, config.stdin_once) = (true, true);
        })?;
        let mut client =
            Socket::open(&attach_url(&node.cri, AttachRequest { stdin: true, ..request(&id) })?, V5)?;
        client.send(0, b"x\n")?;
        client.until("got x\n")?;
        if leaves {
            drop(client);
        } else {
            client.close(0)?;
            assert_eq!(client.rest()?.stdout, "over\n");
        }
        node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
        assert!(node.cri.log(&id)?.ends_with("stdout F over\n"));
    }
    Ok(())
}

fn stdin_stays(node: &Node) -> Result {
    let id = run(&node.cri, &node.image, "attach-stays", ECHO, |config| config.stdin = true)?;
    for text in ["one", "two", "three"] {
        let mut client =
            Socket::open(&attach_url(&node.cri, AttachRequest { stdin: true, ..request(&id) })?, V4)?;
        client.send(0, format!("{text}\n").as_bytes())?;
        client.until(&format!("got {text}\n"))?;
    }
    assert_eq!(node.cri.status(&id)?.state(), ContainerState::ContainerRunning);
    Ok(())
}

fn terminal(node: &Node) -> Result {
    let id = run(&node.cri, &node.image, "attach-terminal", "sh", |config| {
        (config.stdin, config.tty) = (true, true);
    })?;
    let wrong = refused(attach_url(&node.cri, request(&id)), Code::InvalidArgument);
    assert!(wrong.contains("tty"), "{wrong}");
    let typed = AttachRequest { stdin: true, tty: true, stderr: false, ..request(&id) };
    let mut client = Socket::open(&attach_url(&node.cri, typed.clone())?, V4)?;
    client.send(4, b"{\"Width\":77,\"Height\":22}")?;
    testkit::wait_for("the new size", LIMIT, || {
        client.send(0, b"stty size; echo do''ne\n")?;
        Ok(client.until("done\r\n")?.contains("22 77").then_some(()))
    })?;
    drop(client);
    let mut client = Socket::open(&attach_url(&node.cri, typed)?, V4)?;
    client.send(0, b"exit 6\n")?;
    assert!(client.rest()?.status.contains("Success"));
    let status = node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!(status.exit_code, 6);
    Ok(())
}

fn only_input(node: &Node) -> Result {
    let id = run(&node.cri, &node.image, "attach-input", ECHO, |config| config.stdin = true)?;
    let deaf = AttachRequest { stdin: true, stdout: false, stderr: false, ..request(&id) };
    let mut client = Socket::open(&attach_url(&node.cri, deaf)?, V5)?;
    client.send(0, b"word\n")?;
    client.close(0)?;
    assert!(client.rest()?.status.contains("Success"));
    testkit::wait_for("what was written to be in the log", LIMIT, || {
        Ok(node.cri.log(&id)?.contains("got word").then_some(()))
    })?;
    assert_eq!(node.cri.status(&id)?.state(), ContainerState::ContainerRunning);
    Ok(())
}

fn refusals(node: &Node) -> Result {
    let id = run(&node.cri, &node.image, "attach-refusals", "true", |_| {})?;
    node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert!(refused(attach_url(&node.cri, request(&id)), Code::FailedPrecondition).contains(&id));
    refused(attach_url(&node.cri, request(&"0".repeat(64))), Code::NotFound);
    let nothing = AttachRequest { stdout: false, stderr: false, ..request(&id) };
    refused(attach_url(&node.cri, nothing), Code::InvalidArgument);
    Ok(())
}

//! Exec.

use criox_cri::v1::{ContainerState, ExecRequest};
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::Code;

use crate::socket::{Socket, status_line};
use crate::{LIMIT, NODE, V4, V5, exec_request, exec_url, idle, refused, run, run_as};

pub(crate) const TESTS: &[Test] = &[
    ("an exec has its streams apart, and its code in the status", || NODE.test(streams)),
    ("an exec with a terminal is resized and answers what is typed", || NODE.test(terminal)),
    ("the end of the client's input is the end of the command's", || NODE.test(input)),
    ("megabytes pass through an exec both ways", || NODE.test(megabytes)),
    ("a signal's code is 128 and its number; a missing program is an error in the status", || {
        NODE.test(codes)
    }),
    ("an exec under runc is the same", || NODE.test(under_runc)),
    ("a URL is good once, and a guessed one never", || NODE.test(once)),
    ("Exec is refused at the call for what can't be", || NODE.test(refusals)),
];

fn streams(node: &Node) -> Result {
    let id = idle(node, "exec-streams")?;
    for protocol in [V4, V5] {
        let url = exec_url(&node.cri, exec_request(&id, "echo out; echo err >&2; exit 7"))?;
        let said = Socket::open(&url, protocol)?.rest()?;
        assert_eq!((said.stdout.as_str(), said.stderr.as_str(), said.code()?), ("out\n", "err\n", 7));
    }
    let only = ExecRequest { stderr: false, ..exec_request(&id, "echo out; echo err >&2") };
    let said = Socket::open(&exec_url(&node.cri, only)?, V4)?.rest()?;
    assert_eq!((said.stdout.as_str(), said.stderr.as_str(), said.code()?), ("out\n", "", 0));
    Ok(())
}

fn typed(request: ExecRequest) -> ExecRequest {
    ExecRequest { tty: true, stdin: true, stderr: false, ..request }
}

fn terminal(node: &Node) -> Result {
    let id = idle(node, "exec-terminal")?;
    check_terminal(node, &id)
}

fn check_terminal(node: &Node, id: &str) -> Result {
    let request = ExecRequest { cmd: vec!["sh".to_owned()], ..typed(exec_request(id, "")) };
    let mut session = Socket::open(&exec_url(&node.cri, request)?, V4)?;
    for (width, height) in [(91, 33), (120, 40)] {
        session.send(4, format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes())?;
        // The size is set beside what is typed.
        let wanted = format!("{height} {width}");
        testkit::wait_for("the new size", LIMIT, || {
            session.send(0, b"stty size; echo do''ne\n")?;
            Ok(session.until("done\r\n")?.contains(&wanted).then_some(()))
        })?;
    }
    session.send(0, b"tty; exit 3\n")?;
    let said = session.rest()?;
    assert!(said.stdout.contains("/dev/pts/"), "{said:?}");
    assert_eq!((said.stderr.as_str(), said.code()?), ("", 3));
    Ok(())
}

fn input(node: &Node) -> Result {
    let id = idle(node, "exec-input")?;
    let request = ExecRequest { stdin: true, ..exec_request(&id, "cat; echo over; exit 4") };
    let mut session = Socket::open(&exec_url(&node.cri, request)?, V5)?;
    session.send(0, b"to cat\n")?;
    session.until("to cat\n")?;
    session.close(0)?;
    let said = session.rest()?;
    assert_eq!((said.stdout.as_str(), said.code()?), ("over\n", 4));
    Ok(())
}

fn megabytes(node: &Node) -> Result {
    let id = idle(node, "exec-megabytes")?;
    let request =
        ExecRequest { stdin: true, ..exec_request(&id, "md5sum; head -c 5000000 /dev/zero | tr '\\0' y") };
    let mut session = Socket::open(&exec_url(&node.cri, request)?, V5)?;
    for _ in 0..50 {
        session.send(0, &[b'x'; 100_000])?;
    }
    session.close(0)?;
    let said = session.rest()?;
    let (sum, rest) = said.stdout.split_once('\n').ok_or("a sum")?;
    // Of five million times "x".
    assert_eq!(sum.split(' ').next(), Some("9dff3479548c346bbeeeab2c23af22fd"));
    assert!(rest.len() == 5_000_000 && rest.bytes().all(|byte| byte == b'y'), "{}", rest.len());
    assert_eq!(said.code()?, 0);
    Ok(())
}

fn codes(node: &Node) -> Result {
    let id = idle(node, "exec-codes")?;
    let said = Socket::open(&exec_url(&node.cri, exec_request(&id, "kill -9 $$"))?, V4)?.rest()?;
    assert_eq!(said.code()?, 137);
    for tty in [false, true] {
        let request =
            ExecRequest { cmd: vec!["/absent".to_owned()], tty, stderr: !tty, ..exec_request(&id, "") };
        let said = Socket::open(&exec_url(&node.cri, request)?, V4)?.rest()?;
        assert!(said.status.contains("InternalError") && said.status.contains("/absent"), "{said:?}");
    }
    Ok(())
}

fn under_runc(node: &Node) -> Result {
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let id = run_as(&node.cri, &node.image, ("exec-runc", "runc"), script, |_| {})?;
    check_terminal(node, &id)?;
    let said = Socket::open(&exec_url(&node.cri, exec_request(&id, "echo out; exit 5"))?, V4)?.rest()?;
    assert_eq!((said.stdout.as_str(), said.code()?), ("out\n", 5));
    Ok(())
}

fn once(node: &Node) -> Result {
    let id = idle(node, "exec-once")?;
    let url = exec_url(&node.cri, exec_request(&id, "echo once"))?;
    assert!(Socket::open(&url, V4)?.rest()?.stdout == "once\n");
    assert!(status_line(&url, V4)?.1.contains(" 404 "));
    let (base, _) = url.rsplit_once('/').ok_or("a token")?;
    assert!(status_line(&format!("{base}/AAAAAAAAAAAAAAAAAAAAAA"), V4)?.1.contains(" 404 "));
    Ok(())
}

fn refusals(node: &Node) -> Result {
    let id = idle(node, "exec-refusals")?;
    let cri = &node.cri;
    let wrong = ExecRequest { tty: true, ..exec_request(&id, "true") };
    refused(exec_url(cri, wrong), Code::InvalidArgument);
    let deaf = ExecRequest { stdout: false, stderr: false, ..exec_request(&id, "true") };
    refused(exec_url(cri, deaf), Code::InvalidArgument);
    let nothing = ExecRequest { cmd: Vec::new(), ..exec_request(&id, "") };
    refused(exec_url(cri, nothing), Code::InvalidArgument);
    refused(exec_url(cri, exec_request(&"0".repeat(64), "true")), Code::NotFound);
    let ended = run(cri, &node.image, "exec-ended", "true", |_| {})?;
    cri.wait_state(&ended, ContainerState::ContainerExited, LIMIT)?;
    assert!(refused(exec_url(cri, exec_request(&ended, "true")), Code::NotFound).contains(&ended));
    Ok(())
}

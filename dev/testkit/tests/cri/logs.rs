//! The log format: `TIME STREAM TAG CONTENT`, byte for byte.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use criox_cri::v1::{ContainerState, ReopenContainerLogRequest};
use testkit::harness::Test;
use testkit::{Node, Result, wait_for};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod, SERVICE, refused};

pub(crate) const TESTS: &[Test] = &[
    ("each line has its time, stream and tag, and every byte of the content", || NODE.test(format)),
    ("a line that is too long, or never ended, comes in parts", || NODE.test(partial)),
    ("lines of a megabyte, from both streams at once and with the log reopened meanwhile, are whole", || {
        NODE.test(megabytes)
    }),
    ("a log that was renamed is reopened without losing a line", || NODE.test(reopen)),
    ("the log of what doesn't run is not reopened, and no file is made", || NODE.test(reopen_exited)),
    ("a container that is shown as exited has its whole log on disk", || NODE.test(complete)),
    ("output of a child that outlives the container's process doesn't hold up its end", || NODE.test(child)),
    ("a container without a log path logs into the configured directory", || NODE.test(no_log_path)),
    ("a log path that leaves the pod's directory is refused", || NODE.test(escaping)),
];

/// One record of a log.
#[derive(Debug)]
struct Record {
    time: String,
    stream: String,
    tag: String,
    content: Vec<u8>,
}

impl Record {
    /// Parses strictly: anything that isn't a record is an error.
    fn parse(line: &[u8]) -> Result<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ').map(<[u8]>::to_vec);
        let mut text = || String::from_utf8(fields.next().unwrap_or_default());
        let (time, stream, tag) = (text()?, text()?, text()?);
        let content =
            fields.next().ok_or_else(|| format!("{:?} has no content", String::from_utf8_lossy(line)))?;
        let plain: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let good = plain == "0000-00-00T00:00:00.000000000Z"
            && ["stdout", "stderr"].contains(&stream.as_str())
            && ["F", "P"].contains(&tag.as_str());
        if good {
            Ok(Self { time, stream, tag, content })
        } else {
            Err(format!("not a record: {:?}", String::from_utf8_lossy(line)).into())
        }
    }
}

fn records(log: &[u8]) -> Result<Vec<Record>> {
    let body = log.strip_suffix(b"\n").ok_or("a log ends with a whole line")?;
    body.split(|byte| *byte == b'\n').map(Record::parse).collect()
}

/// Runs to the end and parses what is on disk at that moment.
fn logged(pod: &Pod, name: &str, script: &str) -> Result<Vec<Record>> {
    let id = pod.start(&pod.shell(name, script))?;
    let status = pod.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    records(&fs::read(status.log_path)?)
}

fn of<'a>(records: &'a [Record], stream: &str) -> Vec<(&'a str, &'a [u8])> {
    let wanted = records.iter().filter(|record| record.stream == stream);
    wanted.map(|record| (record.tag.as_str(), record.content.as_slice())).collect()
}

fn format(node: &Node) -> Result {
    let pod = Pod::without_network(node, "format")?;
    let script = r"echo one; echo; echo '  two  '; printf 'tab\there\r\n'; printf '\377\000\033[0m\n'; \
                   echo oops >&2; echo 'stdout F x'; printf 'no end'";
    let records = logged(&pod, "c", script)?;
    assert_eq!(
        of(&records, "stdout"),
        [
            ("F", &b"one"[..]),
            ("F", b""),
            ("F", b"  two  "),
            ("F", b"tab\there\r"),
            ("F", b"\xff\x00\x1b[0m"),
            ("F", b"stdout F x"),
            ("P", b"no end"),
        ]
    );
    assert_eq!(of(&records, "stderr"), [("F", &b"oops"[..])]);
    assert!(records.windows(2).all(|pair| pair[0].time <= pair[1].time), "{records:?}");
    Ok(())
}

fn partial(node: &Node) -> Result {
    let pod = Pod::without_network(node, "partial")?;
    let script = "head -c 50000 /dev/zero | tr '\\0' x; echo; echo short; printf begin; sleep 1.5; echo end";
    let records = logged(&pod, "c", script)?;
    let mut lines = vec![Vec::new()];
    for record in &records {
        assert!(record.content.len() <= 16 << 10, "{} bytes", record.content.len());
        lines.last_mut().ok_or("never empty")?.extend_from_slice(&record.content);
        if record.tag == "F" {
            lines.push(Vec::new());
        }
    }
    assert_eq!(lines, [vec![b'x'; 50000], b"short".to_vec(), b"beginend".to_vec(), Vec::new()]);
    assert!(of(&records, "stdout").contains(&("P", &b"begin"[..])), "a prompt is shown before its line ends");
    Ok(())
}

/// Lines of a megabyte; `$CRIOX_TEST_LOG_LINES` of them from each stream (a thousand are a log of two gigabytes).
#[expect(clippy::print_stdout, reason = "says what was measured, for the longer run")]
fn megabytes(node: &Node) -> Result {
    const LINE: usize = 1 << 20;
    let lines: usize =
        std::env::var("CRIOX_TEST_LOG_LINES").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    let patience = LIMIT + Duration::from_secs(lines as u64);
    let pod = Pod::without_network(node, "megabytes")?;
    let write = |letter: char| {
        let line = format!("/{letter}");
        format!(
            "head -c {LINE} /dev/zero | tr '\\0' {letter} > {line}; echo >> {line}; \
             i=0; while [ $i -lt {lines} ]; do cat {line}; i=$((i + 1)); done"
        )
    };
    let script = format!("({}) & ({}) >&2 & wait", write('o'), write('e'));
    let begun = Instant::now();
    let id = pod.start(&pod.shell("c", &script))?;
    let path = node.cri.status(&id)?.log_path;
    let mut files = Vec::new();
    for n in 0..3 {
        let renamed = format!("{path}.{n}");
        // All four files get a part: this much is written three times in any case.
        let part = (2 * lines * LINE / 5) as u64;
        wait_for("a part to be written", patience, || Ok((fs::metadata(&path)?.len() > part).then_some(())))?;
        fs::rename(&path, &renamed)?;
        files.push(renamed);
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        if node.cri.call(node.cri.runtime().reopen_container_log(request)).is_err() {
            // It has ended: what is written goes where it went.
            break;
        }
    }
    assert_eq!(node.cri.wait_state(&id, ContainerState::ContainerExited, patience)?.exit_code, 0);
    println!("{lines} lines of each stream were logged after {:?}", begun.elapsed());
    files.push(path);
    let mut ends = [(0, 0), (0, 0)];
    // The last one may have got nothing any more.
    for file in files.iter().filter(|file| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0)) {
        // Not read whole: it may have gigabytes.
        for line in BufReader::new(fs::File::open(file)?).split(b'\n') {
            let record = Record::parse(&line?)?;
            let (stream, letter) = if record.stream == "stdout" { (0, b'o') } else { (1, b'e') };
            assert!(
                record.content.iter().all(|byte| *byte == letter),
                "a record holds the other stream's bytes"
            );
            let (whole, part): &mut (usize, usize) = &mut ends[stream];
            *part += record.content.len();
            if record.tag == "F" {
                assert_eq!(*part, LINE, "line {whole} of {}", record.stream);
                (*whole, *part) = (*whole + 1, 0);
            }
        }
    }
    assert_eq!(ends, [(lines, 0), (lines, 0)]);
    Ok(())
}

fn reopen(node: &Node) -> Result {
    let pod = Pod::without_network(node, "reopen")?;
    let script = "echo up; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let id = pod.up(&pod.shell("c", script))?;
    let path = node.cri.status(&id)?.log_path;
    let mut files = Vec::new();
    for n in 0..5 {
        let renamed = format!("{path}.{n}");
        fs::rename(&path, &renamed)?;
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        node.cri.call(node.cri.runtime().reopen_container_log(request))?;
        assert!(Path::new(&path).exists(), "the new file is there when the answer is");
        files.push(renamed);
    }
    files.push(path.clone());
    let all = || -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for file in &files {
            all.extend(fs::read(file)?);
        }
        Ok(all)
    };
    wait_for("the last line", LIMIT, || {
        Ok(String::from_utf8_lossy(&all()?).contains(" line 19999\n").then_some(()))
    })?;
    let expected: Vec<Vec<u8>> =
        std::iter::once(b"up".to_vec()).chain((0..20000).map(|n| format!("line {n}").into_bytes())).collect();
    let written: Vec<Vec<u8>> = records(&all()?)?.into_iter().map(|record| record.content).collect();
    assert!(written == expected, "{} of {} lines", written.len(), expected.len());
    Ok(())
}

fn reopen_exited(node: &Node) -> Result {
    let pod = Pod::without_network(node, "reopen-exited")?;
    let created = pod.create(&pod.shell("created", "true"))?;
    let exited = pod.start(&pod.shell("exited", "true"))?;
    node.cri.wait_state(&exited, ContainerState::ContainerExited, LIMIT)?;
    for id in [created, exited] {
        let path = node.cri.status(&id)?.log_path;
        let renamed = format!("{path}.1");
        // The log of a container that never ran may not be there yet.
        let _absent = fs::rename(&path, &renamed);
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        let answer = node.cri.call(node.cri.runtime().reopen_container_log(request));
        let message = refused(answer, Code::FailedPrecondition)?;
        assert!(message.contains(&id), "{message}");
        assert!(!Path::new(&path).exists());
    }
    Ok(())
}

fn complete(node: &Node) -> Result {
    let pod = Pod::without_network(node, "complete")?;
    for n in 0..8 {
        let size = 1 << (n * 3);
        let script = format!("head -c {size} /dev/zero | tr '\\0' y; echo; echo last >&2");
        let records = logged(&pod, &format!("c{n}"), &script)?;
        let bytes: usize = of(&records, "stdout").iter().map(|(_, content)| content.len()).sum();
        assert_eq!(bytes, size);
        assert_eq!(of(&records, "stderr"), [("F", &b"last"[..])]);
    }
    Ok(())
}

fn child(node: &Node) -> Result {
    // With shared PIDs a child lives on when the container's process has ended, and holds its pipes.
    let mut config = node.cri.host_network_pod("child");
    crate::pod::sandbox_namespaces(&mut config).pid = criox_cri::v1::NamespaceMode::Pod.into();
    let pod = Pod::run_with(node, config)?;
    let mut config = pod.shell("c", "setsid sleep 1000 & echo up; exit 6");
    *crate::pod::namespaces(&mut config) = crate::pod::sandbox_namespaces(&mut pod.config.clone()).clone();
    let id = pod.start(&config)?;
    let status = node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!(status.exit_code, 6);
    assert!(node.cri.log(&id)?.ends_with(" stdout F up\n"));
    Ok(())
}

fn no_log_path(node: &Node) -> Result {
    let pod = Pod::without_network(node, "no-log-path")?;
    let mut config = pod.shell("c", SERVICE);
    config.log_path = String::new();
    let id = pod.up(&config)?;
    let path = node.cri.status(&id)?.log_path;
    assert!(Path::new(&path).starts_with(node.daemon.dir().join("logs")) && path.contains(&id), "{path}");
    Ok(())
}

fn escaping(node: &Node) -> Result {
    let pod = Pod::without_network(node, "escaping")?;
    for path in ["../../escaped", "/tmp/criox-escaped", "a/../../b"] {
        let mut config = pod.shell("c", "true");
        config.log_path = path.to_owned();
        let message = refused(
            pod.cri.call(pod.cri.runtime().create_container(criox_cri::v1::CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(config),
                sandbox_config: Some(pod.config.clone()),
            })),
            Code::InvalidArgument,
        )?;
        assert!(message.contains("log_path"), "{message}");
    }
    assert!(!Path::new("/tmp/criox-escaped").exists());
    Ok(())
}

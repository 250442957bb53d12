//! Commands in the guest. `guest/usr/local/bin/node-agent` is the other end, and says how they talk.

use std::io::{ErrorKind, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Result;

/// Another command may have the port: how long its end is waited for.
const CONNECT: Duration = Duration::from_secs(60);

/// A connection to one port of the agent, which does one thing at a time.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    count: u32,
}

impl Agent {
    /// Connects to the socket of a port.
    pub fn connect(socket: &Path) -> Result<Self> {
        let until = Instant::now() + CONNECT;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(Self { stream, count: 0 }),
                Err(error) if Instant::now() > until => {
                    return Err(format!("{} takes no connection: {error}", socket.display()).into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Runs a bash script in the guest and passes its output on as it comes. Returns its exit status.
    ///
    /// # Errors
    /// The guest did not finish within the limit, or is gone.
    pub fn run(&mut self, script: &str, limit: Duration, output: &mut dyn Write) -> Result<u8> {
        let tag = self.tag();
        let script = STANDARD.encode(script);
        self.send(&format!("\n{tag} run {script} .\n"), &[])?;
        self.answer(&tag, limit, output)
    }

    /// As [`Agent::run`], for scripts that must succeed; returns the output.
    pub fn text(&mut self, script: &str, limit: Duration) -> Result<String> {
        let mut output = Vec::new();
        let status = self.run(script, limit, &mut output)?;
        let text = String::from_utf8_lossy(&output).into_owned();
        if status == 0 { Ok(text) } else { Err(format!("status {status} of {script:?}: {text}").into()) }
    }

    /// Copies files and directories, all from one directory, to a directory of the guest.
    pub fn put(&mut self, from: &Path, names: &[&str], to: &str, limit: Duration) -> Result {
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "--numeric-owner", "--dereference", "-cf", "-"]);
        // An archive's names are below the guest's root.
        let prefix = to.trim_matches('/');
        tar.arg(format!("--transform=s,^,{prefix}/,")).arg("-C").arg(from).args(names);
        let archive = tar.output()?;
        if !archive.status.success() {
            return Err(format!("tar: {}", String::from_utf8_lossy(&archive.stderr)).into());
        }
        let tag = self.tag();
        self.send(&format!("\n{tag} unpack {} .\n", archive.stdout.len()), &archive.stdout)?;
        let mut output = Vec::new();
        match self.answer(&tag, limit, &mut output)? {
            0 => Ok(()),
            status => {
                Err(format!("unpacking below {to}: {status}: {}", String::from_utf8_lossy(&output)).into())
            }
        }
    }

    /// What an earlier command left in the line is told from the answer by this.
    fn tag(&mut self) -> String {
        self.count += 1;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        format!("t{}-{}-{now}", std::process::id(), self.count)
    }

    fn send(&mut self, line: &str, body: &[u8]) -> Result {
        self.stream.set_write_timeout(Some(CONNECT))?;
        self.stream.write_all(line.as_bytes())?;
        self.stream.write_all(body)?;
        Ok(())
    }

    fn answer(&mut self, tag: &str, limit: Duration, output: &mut dyn Write) -> Result<u8> {
        let until = Instant::now() + limit;
        let mut answer = Answer::new(tag);
        let mut bytes = vec![0; 1 << 16];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the guest did not finish within {} s", limit.as_secs()).into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let read = match self.stream.read(&mut bytes) {
                Ok(0) => return Err("the guest is gone: look at its console.log and qemu.log".into()),
                Ok(read) => read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(status) = answer.take(&bytes[..read], output)? {
                return Ok(status);
            }
        }
    }
}

/// Finds the answer in what comes out of the port.
struct Answer {
    begin: Vec<u8>,
    end: Vec<u8>,
    begun: bool,
    held: Vec<u8>,
}

impl Answer {
    fn new(tag: &str) -> Self {
        Self {
            begin: format!("{tag} begin\n").into(),
            end: format!("\n{tag} end ").into(),
            begun: false,
            held: Vec::new(),
        }
    }

    /// Takes more bytes; passes on what is output for certain. The status comes with the last of them.
    fn take(&mut self, bytes: &[u8], output: &mut dyn Write) -> Result<Option<u8>> {
        self.held.extend_from_slice(bytes);
        if !self.begun {
            let Some(at) = find(&self.held, &self.begin) else { return Ok(None) };
            self.held.drain(..at + self.begin.len());
            self.begun = true;
        }
        if let Some(at) = find(&self.held, &self.end) {
            let status = &self.held[at + self.end.len()..];
            let Some(line) = status.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
            let status = std::str::from_utf8(&status[..line])?.trim().parse()?;
            output.write_all(&self.held[..at])?;
            output.flush()?;
            return Ok(Some(status));
        }
        // The end may have begun in the last bytes.
        let certain = self.held.len().saturating_sub(self.end.len());
        output.write_all(&self.held[..certain])?;
        output.flush()?;
        self.held.drain(..certain);
        Ok(None)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stream: &[u8], piece: usize, expected: (&str, Option<u8>)) {
        let (mut answer, mut output, mut status) = (Answer::new("t"), Vec::new(), None);
        for bytes in stream.chunks(piece) {
            assert_eq!(status, None);
            status = answer.take(bytes, &mut output).unwrap();
        }
        assert_eq!((String::from_utf8(output).unwrap().as_str(), status), expected, "pieces of {piece}");
    }

    #[test]
    fn an_answer_is_found_however_the_bytes_come() {
        for piece in [1, 2, 7, 1000] {
            check(
                b"hello\nlate output of another\nt begin\nline\nlast\nt end 3\n",
                piece,
                ("line\nlast", Some(3)),
            );
            check(b"t begin\n\nt end 0\n", piece, ("", Some(0)));
            check(b"x end 1\n", piece, ("", None));
        }
    }
}

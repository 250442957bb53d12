//! QEMU's control socket: one JSON object a line, the QEMU Machine Protocol.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Result;

/// What QEMU may take for one command.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection; QEMU serves one at a time.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation behind.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.read()?;
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes one command and returns what it answers; events in between are passed over.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": name, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{line}")?;
        loop {
            let mut answer = self.read().map_err(|error| format!("QEMU, asked for {name}: {error}"))?;
            if let Some(error) = answer.get("error") {
                return Err(format!("QEMU refused {name}: {error}").into());
            }
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err("its control socket was closed".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

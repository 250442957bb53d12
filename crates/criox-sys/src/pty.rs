//! Pseudo-terminals: the runtime makes them (OCI `--console-socket`), we keep the master.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::Winsize;

use crate::socket;

/// Receives the master that an OCI runtime sends over a connection to its console socket. Bytes beside it (the
/// terminal's name) are dropped. `InvalidData` if no descriptor or no terminal came.
pub fn receive_master(connection: impl AsFd) -> io::Result<OwnedFd> {
    let mut fds = Vec::new();
    let mut name = [0; 256];
    socket::recv_with_fds(connection, &mut name, &mut fds)?;
    match fds.into_iter().next() {
        Some(master) if rustix::termios::isatty(&master) => Ok(master),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no terminal came over the console socket")),
    }
}

/// Sets the size of a terminal, in characters (`TIOCSWINSZ`); its foreground processes get SIGWINCH.
pub fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

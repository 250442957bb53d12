//! Sockets that see or send packets as they are. CRIU opens them as the node's root, whatever the process may do that
//! gets them; with one a container can pass itself off as another of its network.

use criox_sys::inroot::Root;
use prost::Message;

use super::{MAX_IMAGE, decode, entries, image};
use crate::error::Error;

/// All open files since CRIU 3.0 (`criu/include/magic.h`).
const NAME: &str = "files.img";
const FILES: u32 = 0x5630_3138;
/// Images of older versions, one for each kind: packet sockets, sockets of IP, tunnels.
const OLD: [&str; 3] = ["packetsk.img", "inetsk.img", "tunfile.img"];

/// Kinds of files (`fd_types` of `images/fdinfo.proto`).
const INET: u32 = 4;
const PACKET: u32 = 10;
const TUNNEL: u32 = 15;
/// `SOCK_RAW` of socket(2).
const RAW: u32 = 3;

#[derive(Clone, PartialEq, Message)]
struct FileEntry {
    #[prost(uint32, optional, tag = "1")]
    kind: Option<u32>,
    #[prost(message, optional, tag = "4")]
    inet: Option<InetSocket>,
    #[prost(message, optional, tag = "6")]
    packet: Option<Any>,
    #[prost(message, optional, tag = "11")]
    tunnel: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct InetSocket {
    #[prost(uint32, optional, tag = "4")]
    kind: Option<u32>,
}

/// Of which it only counts that it is there.
#[derive(Clone, PartialEq, Message)]
struct Any {}

/// Refuses images with such a socket, or with a tunnel.
///
/// # Errors
/// [`Error::Refused`], also for what is malformed or of a version that would have to be looked at elsewhere.
pub(super) fn check(root: &Root, names: &[String]) -> Result<(), Error> {
    if let Some(old) = OLD.iter().find(|old| names.iter().any(|name| name == *old)) {
        return Err(Error::refused(*old, "of a CRIU before 3.0, whose sockets are not looked at"));
    }
    if !names.iter().any(|name| name == NAME) {
        return Ok(());
    }
    check_files(&image(root, NAME, MAX_IMAGE)?)
}

/// As [`check`], for the files.
pub(super) fn check_files(bytes: &[u8]) -> Result<(), Error> {
    for entry in entries(NAME, bytes, FILES)? {
        let file: FileEntry = decode(NAME, entry)?;
        let raw = file.inet.is_some_and(|inet| inet.kind.is_none_or(|kind| kind == RAW));
        let what = match file.kind {
            _ if file.packet.is_some() => "a packet socket",
            _ if file.tunnel.is_some() => "a tunnel",
            Some(PACKET) => "a packet socket",
            Some(TUNNEL) => "a tunnel",
            Some(INET) if raw => "a raw socket",
            _ => continue,
        };
        return Err(Error::refused(NAME, format!("{what}, and no process has the capability NET_RAW")));
    }
    Ok(())
}

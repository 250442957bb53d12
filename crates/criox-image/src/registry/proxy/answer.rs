//! A proxy's answer to CONNECT (RFC 9110, section 9.3.6).

/// A longer head is no answer to CONNECT.
const HEAD_MAX: usize = 16 << 10;

/// The status of an answer of which these bytes have come so far, and where its head ends; nothing before that.
///
/// # Errors
/// Why it is no answer, as soon as that can be told: who speaks another protocol may not say more for ever.
pub(crate) fn status(bytes: &[u8]) -> Result<Option<(u16, usize)>, &'static str> {
    const BEGINNING: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(BEGINNING.len());
    if bytes[..known] != BEGINNING[..known] {
        return Err("its answer to CONNECT is not HTTP/1");
    }
    let Some(end) = head_end(bytes) else {
        return if bytes.len() < HEAD_MAX { Ok(None) } else { Err("its answer to CONNECT has no end") };
    };
    let line =
        bytes[BEGINNING.len()..].split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    // The minor version, a space, three digits; a space and the proxy's words may follow.
    let [b'0'..=b'9', b' ', digits @ ..] = line else { return Err("its answer to CONNECT has no status") };
    match digits {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']
        | [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..] => {
            let digit = |byte: &u8| u16::from(byte - b'0');
            Ok(Some((digit(a) * 100 + digit(b) * 10 + digit(c), end)))
        }
        _ => Err("its answer to CONNECT has no status"),
    }
}

/// Behind the first empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let ends = |at: &usize| bytes[*at] == b'\n';
    let mut lines = (0..bytes.len()).filter(ends);
    lines.find_map(|at| match bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_when_the_head_has_come() {
        let answer = b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n";
        for length in 0..answer.len() {
            assert_eq!(status(&answer[..length]), Ok(None), "{length}");
        }
        assert_eq!(status(answer), Ok(Some((200, answer.len()))));
        assert_eq!(status(b"HTTP/1.0 407 \r\n\r\nbody"), Ok(Some((407, 17))));
        assert_eq!(status(b"HTTP/1.1 200\r\n\r\n"), Ok(Some((200, 16))));
        assert_eq!(status(b"HTTP/1.1 200 OK\n\n"), Ok(Some((200, 17))));
    }

    #[test]
    fn garbage_is_told_at_its_first_wrong_byte() {
        for garbage in [
            &b"SSH-2.0-x\r\n"[..],
            b"HTTP/2",
            b"\x15\x03",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1  200\r\n\r\n",
            b"HTTP/1.x 200\r\n\r\n",
            b"HTTP/1.1 099\r\n\r\n",
            b"HTTP/1.\r\n\r\n",
        ] {
            assert!(status(garbage).is_err(), "{}", String::from_utf8_lossy(garbage));
        }
        let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &vec![b'x'; HEAD_MAX]].concat();
        assert!(status(&endless).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(tail: Vec<u8>) {
            let answer = [b"HTTP/1.".as_slice(), &tail].concat();
            if let Ok(Some((status, end))) = status(&answer) {
                proptest::prop_assert!((100..1000).contains(&status) && end <= answer.len());
            }
        }
    }
}

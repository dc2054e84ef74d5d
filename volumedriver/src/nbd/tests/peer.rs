//! A client that says exactly what a test wants, over a blocking socket, and reads replies of every style.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest any test waits for the server.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Peer<S = UnixStream> {
    pub stream: S,
}

/// A structured or extended reply chunk, or a simple reply with type 0 and its error as payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub last: bool,
    pub kind: u16,
    pub cookie: u64,
    pub payload: Vec<u8>,
}

impl Peer {
    /// Connected, greeted, client flags sent.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let mut peer = Self { stream };
        assert_eq!(peer.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        peer.give(&3u32.to_be_bytes());
        peer
    }
}

impl<S: Read + Write> Peer<S> {
    pub fn give(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("received");
        bytes
    }
    fn number<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("as long as asked")
    }
    pub fn take_u16(&mut self) -> u16 {
        u16::from_be_bytes(self.number())
    }
    pub fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.number())
    }
    pub fn take_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.number())
    }
    /// The server closes without another byte.
    pub fn closed(&mut self) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("still open: {other:?}"),
        }
    }

    /// Sends an option; (type, data) of its replies up to the final one.
    pub fn option(&mut self, code: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.give(&bytes);
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take_u64(), 0x3e889045565a9);
            assert_eq!(self.take_u32(), code);
            let (kind, len) = (self.take_u32(), self.take_u32());
            replies.push((kind, self.take(len as usize)));
            if kind == 1 || kind > 1 << 31 {
                return replies;
            }
        }
    }
    pub fn acked(&mut self, code: u32, data: &[u8]) {
        let replies = self.option(code, data);
        assert_eq!(replies.last().map(|reply| reply.0), Some(1), "option {code}: {replies:?}");
    }
    /// Into the transmission phase with `NBD_OPT_GO`.
    pub fn go(&mut self, name: &str) {
        self.acked(7, &named(name, &[0, 0]));
    }

    pub fn ask(&mut self, flags: u16, command: u16, cookie: u64, at: u64, len: u32) {
        self.give(&compact(flags, command, cookie, at, len));
    }
    pub fn ask_extended(&mut self, flags: u16, command: u16, cookie: u64, at: u64, len: u64) {
        let mut bytes = 0x21e41c71u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend([cookie, at, len].map(u64::to_be_bytes).concat());
        self.give(&bytes);
    }
    /// The header of a simple reply: (error, cookie).
    pub fn simple(&mut self) -> (u32, u64) {
        assert_eq!(self.take_u32(), 0x67446698);
        (self.take_u32(), self.take_u64())
    }
    pub fn structured(&mut self) -> Chunk {
        assert_eq!(self.take_u32(), 0x668e33ef);
        let (flags, kind) = (self.take_u16(), self.take_u16());
        let (cookie, len) = (self.take_u64(), self.take_u32());
        Chunk { last: flags == 1, kind, cookie, payload: self.take(len as usize) }
    }
    /// Also checks that the reply repeats the request's offset.
    pub fn extended(&mut self, at: u64) -> Chunk {
        assert_eq!(self.take_u32(), 0x6e8a278c);
        let (flags, kind) = (self.take_u16(), self.take_u16());
        let cookie = self.take_u64();
        assert_eq!(self.take_u64(), at);
        let len = self.take_u64();
        Chunk { last: flags == 1, kind, cookie, payload: self.take(len as usize) }
    }
}

pub fn compact(flags: u16, command: u16, cookie: u64, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x25609513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(at.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Option data that begins with an export name.
pub fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(rest);
    bytes
}

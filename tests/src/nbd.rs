//! A small blocking NBD client that can say anything, legal or not, and keep many requests in flight.
//!
//! Fixed newstyle, simple replies, one connection over a unix socket. Source: the NBD protocol document.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;

pub const REP_ACK: u32 = 1;
pub const REP_INFO: u32 = 3;
pub const INFO_EXPORT: u16 = 0;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_WRITE_ZEROES: u16 = 6;

pub const FLAG_FUA: u16 = 1;

pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;

/// Longest silence of the server that is not an error.
const SILENCE: Duration = Duration::from_secs(60);

/// Greets the server up to the options; nothing chosen yet.
pub fn greet(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    let (magic, rest) = greeting.split_at(8);
    if magic != NBDMAGIC.to_be_bytes() || rest[..8] != IHAVEOPT.to_be_bytes() {
        return Err(bad(format!("not a newstyle greeting: {greeting:02x?}")));
    }
    // Fixed newstyle, no zeroes.
    stream.write_all(&3u32.to_be_bytes())?;
    Ok(stream)
}

/// One option with its data.
#[must_use]
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of OPT_GO for an export, no information asked.
#[must_use]
pub fn go(export: &str) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend([0, 0]);
    data
}

/// One request's header, to be followed by what it writes.
#[must_use]
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// One reply to an option: its kind and data.
pub fn option_reply(stream: &mut UnixStream) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    if header[..8] != OPTION_REPLY_MAGIC.to_be_bytes() {
        return Err(bad(format!("not an option reply: {header:02x?}")));
    }
    let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
    let len = u32::from_be_bytes(header[16..20].try_into().unwrap());
    if len > 1 << 20 {
        return Err(bad(format!("an option reply of {len} bytes")));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

fn bad(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

/// A connection in the transmission phase.
pub struct Connection {
    pub stream: UnixStream,
    pub size: u64,
    next_cookie: u64,
    reads: Reads,
    /// From the thread that reads, so that a server waiting to send never keeps us from sending.
    replies: mpsc::Receiver<io::Result<Reply>>,
}

/// Bytes that each read in flight will bring, by cookie.
type Reads = Arc<Mutex<HashMap<u64, u32>>>;

/// The end of one request.
#[derive(Debug)]
pub struct Reply {
    pub cookie: u64,
    /// 0, or the protocol's error.
    pub error: u32,
    /// Of a read.
    pub data: Vec<u8>,
}

impl Connection {
    pub fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = greet(socket)?;
        stream.write_all(&option(OPT_GO, &go(export)))?;
        let mut size = None;
        loop {
            match option_reply(&mut stream)? {
                (REP_ACK, _) => break,
                (REP_INFO, data) if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                    size = Some(u64::from_be_bytes(data[2..10].try_into().unwrap()));
                }
                (REP_INFO, _) => {}
                (kind, data) => {
                    let message = String::from_utf8_lossy(&data).into_owned();
                    return Err(bad(format!("{export}: refused with {kind:#x}: {message}")));
                }
            }
        }
        let size = size.ok_or_else(|| bad("no export information".to_owned()))?;
        stream.set_read_timeout(None)?;
        let reads = Reads::default();
        let replies = read_replies(stream.try_clone()?, reads.clone());
        Ok(Self { stream, size, next_cookie: 1, reads, replies })
    }

    /// Sends a request without waiting for its reply.
    pub fn send(
        &mut self,
        (command, flags): (u16, u16),
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if command == CMD_READ {
            self.reads.lock().unwrap().insert(cookie, len);
        }
        let mut bytes = request(flags, command, cookie, offset, len);
        bytes.extend(data);
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    /// The next reply, of whichever request.
    pub fn receive(&mut self) -> io::Result<Reply> {
        self.replies.recv_timeout(SILENCE).unwrap_or_else(|gone| Err(io::Error::other(gone)))
    }

    fn call(
        &mut self,
        command: (u16, u16),
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<Reply> {
        let cookie = self.send(command, offset, len, data)?;
        let reply = self.receive()?;
        assert_eq!(reply.cookie, cookie, "another request's reply");
        Ok(reply)
    }

    fn done(reply: Reply) -> io::Result<Vec<u8>> {
        match reply.error {
            0 => Ok(reply.data),
            error => Err(io::Error::from_raw_os_error(error.cast_signed())),
        }
    }

    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.call((CMD_READ, 0), offset, len, &[]).and_then(Self::done)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).unwrap();
        self.call((CMD_WRITE, 0), offset, len, data).and_then(Self::done).map(drop)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.call((CMD_FLUSH, 0), 0, 0, &[]).and_then(Self::done).map(drop)
    }

    pub fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.call((CMD_TRIM, 0), offset, len, &[]).and_then(Self::done).map(drop)
    }

    /// Says goodbye as the protocol wants it.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send((CMD_DISC, 0), 0, 0, &[])?;
        match self.receive() {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
            other => Err(bad(format!("after the goodbye came {other:?}"))),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the thread that reads.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Reads replies until the connection ends; the error that ended it comes last.
fn read_replies(mut stream: UnixStream, reads: Reads) -> mpsc::Receiver<io::Result<Reply>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        loop {
            let reply = read_reply(&mut stream, &reads);
            let ended = reply.is_err();
            if sender.send(reply).is_err() || ended {
                break;
            }
        }
    });
    receiver
}

fn read_reply(stream: &mut UnixStream, reads: &Reads) -> io::Result<Reply> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    if header[..4] != SIMPLE_REPLY_MAGIC.to_be_bytes() {
        return Err(bad(format!("not a simple reply: {header:02x?}")));
    }
    let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
    let cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
    let len = reads.lock().unwrap().remove(&cookie).filter(|_| error == 0).unwrap_or(0);
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok(Reply { cookie, error, data })
}

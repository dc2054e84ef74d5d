//! Bytes over sockets with the least that a store needs: the yardstick for transports.
//!
//! A request is its kind (`P` or `G`), three numbers of 8 bytes (length of the name, offset, length), the name, and for a put
//! the bytes. A get is answered by the bytes, a put by one byte.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use backend_alba::bench::{Check, Known, Target};
use backend_alba::server::Address;
use backend_alba::{Fault, Result};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// What is read at once.
const STEP: usize = 1 << 20;
/// Longest name.
const MAX_NAME: u64 = 1024;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}
type Connection = Pin<Box<dyn Socket>>;

fn fault(error: io::Error) -> Fault {
    Fault::io("the connection", error)
}

pub async fn serve(address: &Address) -> Result<()> {
    let known = Known::default();
    match address {
        Address::Tcp(text) => {
            let listener = TcpListener::bind(text).await.map_err(fault)?;
            super::announce(&listener.local_addr().map_err(fault)?);
            loop {
                let (socket, _) = listener.accept().await.map_err(fault)?;
                socket.set_nodelay(true).map_err(fault)?;
                tokio::spawn(answer(Box::pin(socket), known.clone()));
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path).map_err(fault)?;
            super::announce(address);
            loop {
                let (socket, _) = listener.accept().await.map_err(fault)?;
                tokio::spawn(answer(Box::pin(socket), known.clone()));
            }
        }
    }
}

/// Until the client leaves.
async fn answer(mut socket: Connection, known: Known) {
    let mut buffer = vec![0; STEP];
    while let Ok(kind) = socket.read_u8().await {
        if let Err(error) = answer_one(&mut socket, kind, &known, &mut buffer).await {
            eprintln!("peers: {error}");
            return;
        }
    }
}

async fn answer_one(
    socket: &mut Connection,
    kind: u8,
    known: &Known,
    buffer: &mut [u8],
) -> io::Result<()> {
    let name_len = socket.read_u64().await?.min(MAX_NAME);
    let (offset, mut left) = (socket.read_u64().await?, socket.read_u64().await?);
    let mut name = vec![0; name_len as usize];
    socket.read_exact(&mut name).await?;
    let name = String::from_utf8_lossy(&name);
    if kind == b'G' {
        for mut piece in known.range(&name, offset, left) {
            socket.write_all_buf(&mut piece).await?;
        }
        return socket.flush().await;
    }
    while left > 0 {
        let step = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = socket.read(&mut buffer[..step]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= read as u64;
    }
    socket.write_u8(1).await?;
    socket.flush().await
}

pub struct Client {
    address: Address,
    idle: Mutex<Vec<(Connection, Vec<u8>)>>,
    names: Mutex<BTreeSet<String>>,
}

impl Client {
    pub fn of(address: Address) -> Self {
        Self { address, idle: Mutex::default(), names: Mutex::default() }
    }

    async fn connection(&self) -> Result<(Connection, Vec<u8>)> {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(idle);
        }
        let socket: Connection = match &self.address {
            Address::Tcp(text) => {
                let socket = TcpStream::connect(text).await.map_err(fault)?;
                socket.set_nodelay(true).map_err(fault)?;
                Box::pin(socket)
            }
            Address::Unix(path) => Box::pin(UnixStream::connect(path).await.map_err(fault)?),
        };
        Ok((socket, vec![0; STEP]))
    }

    async fn ask(
        &self,
        socket: &mut Connection,
        kind: u8,
        name: &str,
        (offset, len): (u64, u64),
    ) -> Result<()> {
        let numbers = [name.len() as u64, offset, len].map(u64::to_be_bytes).concat();
        let request = [&[kind][..], &numbers, name.as_bytes()].concat();
        socket.write_all(&request).await.map_err(fault)
    }

    fn give_back(&self, connection: (Connection, Vec<u8>)) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

#[async_trait]
impl Target for Client {
    async fn put(&self, name: &str, body: Vec<Bytes>) -> Result<()> {
        let (mut socket, buffer) = self.connection().await?;
        let len = body.iter().map(|piece| piece.len() as u64).sum();
        self.ask(&mut socket, b'P', name, (0, len)).await?;
        for mut piece in body {
            socket.write_all_buf(&mut piece).await.map_err(fault)?;
        }
        socket.flush().await.map_err(fault)?;
        socket.read_u8().await.map_err(fault)?;
        self.give_back((socket, buffer));
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
        Ok(())
    }

    async fn get(&self, name: &str, (offset, len): (u64, u64), check: &mut Check) -> Result<()> {
        let (mut socket, mut buffer) = self.connection().await?;
        self.ask(&mut socket, b'G', name, (offset, len)).await?;
        let mut left = len;
        while left > 0 {
            let step = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = socket.read(&mut buffer[..step]).await.map_err(fault)?;
            if read == 0 {
                return Err(Fault::unavailable("the server has closed the connection"));
            }
            check.take(&buffer[..read])?;
            left -= read as u64;
        }
        self.give_back((socket, buffer));
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    async fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(names.iter().filter(|name| name.starts_with(prefix)).cloned().collect())
    }
}

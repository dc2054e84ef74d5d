//! The registry in etcd.
//!
//! Every change is one transaction. Reads are linearizable (etcd's default), so what is read is what was agreed. Work is done
//! on the runtime the client was made on, whatever thread asks.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, Identity,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::runtime::Handle;
use volumedriver_core::fault::{Fault, Kind, Result};

use super::{Created, Registry};
use crate::config::{RegistryTls, RegistryUrl};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest PEM file, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Keys below one prefix of an etcd cluster.
#[derive(Clone)]
pub struct Etcd {
    client: Arc<Client>,
    prefix: String,
    title: String,
    runtime: Handle,
}

impl Etcd {
    /// Names the servers; the connection is made when first needed.
    pub async fn connect(url: &RegistryUrl) -> Result<Self> {
        let title = format!("registry etcd://{}/{}", url.servers.join(","), url.prefix);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, TIMEOUT)
            .with_require_leader(true);
        if let Some(tls) = &url.tls {
            options = options.with_tls(tls_options(tls)?);
        }
        let client = Client::connect(&url.servers, Some(options)).await;
        let client = client.map_err(|error| fault_of(error).about(&title))?;
        let client = Arc::new(client);
        Ok(Self { client, prefix: format!("{}/", url.prefix), title, runtime: Handle::current() })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn call<T: Send + 'static, F>(&self, work: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        // The client's own time-out does not cover the wait for a connection.
        let work =
            tokio::time::timeout(TIMEOUT + CONNECT_TIMEOUT, work(Client::clone(&self.client)));
        let work = self.runtime.spawn(work);
        match work.await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(error))) => Err(fault_of(error).about(&self.title)),
            Ok(Err(_late)) => Err(Fault::unavailable(format!("{}: no answer", self.title))),
            Err(error) if error.is_panic() => {
                Err(Fault::bug("a call of the registry panicked").because(error))
            }
            Err(_) => Err(Fault::closed("the daemon is shutting down")),
        }
    }
}

impl Registry for Etcd {
    async fn create(&self, key: &str, value: Bytes) -> Result<Created> {
        let key = self.key(key);
        let create = |mut client: Client| async move {
            let txn = Txn::new()
                .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key.as_str(), value.to_vec(), None)])
                .or_else([TxnOp::get(key.as_str(), None)]);
            let answer = client.txn(txn).await?;
            if answer.succeeded() {
                return Ok(Some(Created::Now));
            }
            let found = answer.op_responses().into_iter().find_map(|op| match op {
                TxnOpResponse::Get(get) => get.kvs().first().map(|kv| kv.value().to_vec()),
                TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
            });
            Ok(found.map(|value| Created::Before(Bytes::from(value))))
        };
        let odd = || Fault::bug(format!("{}: a key both there and not there", self.title));
        self.call(create).await?.ok_or_else(odd)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let key = self.key(key);
        let get = |mut client: Client| async move {
            let answer = client.get(key, None).await?;
            Ok(answer.kvs().first().map(|kv| Bytes::copy_from_slice(kv.value())))
        };
        self.call(get).await
    }

    async fn retire(&self, key: &str, old: Bytes, new: Bytes, life: Duration) -> Result<bool> {
        let key = self.key(key);
        let seconds = i64::try_from(life.as_secs().max(1)).unwrap_or(i64::MAX);
        let retire = |mut client: Client| async move {
            let lease = client.lease_grant(seconds, None).await?.id();
            let options = PutOptions::new().with_lease(lease);
            let txn = Txn::new()
                .when([Compare::value(key.as_str(), CompareOp::Equal, old.to_vec())])
                .and_then([TxnOp::put(key.as_str(), new.to_vec(), Some(options))]);
            Ok(client.txn(txn).await?.succeeded())
        };
        self.call(retire).await
    }

    async fn remove(&self, key: &str, old: Bytes) -> Result<()> {
        let key = self.key(key);
        let remove = |mut client: Client| async move {
            let txn = Txn::new()
                .when([Compare::value(key.as_str(), CompareOp::Equal, old.to_vec())])
                .and_then([TxnOp::delete(key.as_str(), None)]);
            client.txn(txn).await.map(drop)
        };
        self.call(remove).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = self.key(key);
        let delete = |mut client: Client| async move { client.delete(key, None).await.map(drop) };
        self.call(delete).await
    }

    async fn delete_all(&self, prefix: &str) -> Result<()> {
        let prefix = self.key(prefix);
        let delete = |mut client: Client| async move {
            client.delete(prefix, Some(DeleteOptions::new().with_prefix())).await.map(drop)
        };
        self.call(delete).await
    }
}

fn tls_options(tls: &RegistryTls) -> Result<TlsOptions> {
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
    if let Some((certificate, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(options)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let about = |e: std::io::Error| {
        Fault::invalid(format!("[registry] url: {} cannot be read", file.display())).because(e)
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(about)?;
    opened.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(about)?;
    Ok(bytes)
}

/// What cannot be understood may pass: the registry has no message that is about the content of a request of ours.
fn fault_of(error: Error) -> Fault {
    let kind = match &error {
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Kind::Invalid
        }
        Error::IoError(_)
        | Error::TransportError(_)
        | Error::GRpcStatus(_)
        | Error::WatchError(_)
        | Error::Utf8Error(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => Kind::Unavailable,
    };
    Fault::new(kind, error.to_string())
}

//! The table in an etcd cluster, shared by several processes; every key begins with a prefix of this backend's own.
//!
//! A commit is one transaction that compares by value. etcd takes 128 operations in a transaction (`--max-txn-ops`) and
//! 1.5 MiB in a request (`--max-request-bytes`) unless it is started with more: what is larger is refused whole, with the
//! number it would take.
//!
//! A request that was never sent is sent again. One that was sent and not answered is not, if it changes something: it may
//! have been carried out, or still will be. While etcd does not answer, callers are told after one short attempt.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, Identity, KvClient,
    TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::kv::{Commit, Guard, Key, Kv, Value, Write};
use crate::fault::{Fault, Kind, Result};

/// An attempt that takes longer is given up.
const ATTEMPT: Duration = Duration::from_secs(5);
/// For so long attempts are made: an election takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
/// The only attempt while etcd is known not to answer.
const SHORT_ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);
/// Keys asked for in one request.
const GETS: usize = 100;
/// Keys of one request for a range: at most about 2 KiB each.
const RANGE: usize = 500;
/// Operations that every etcd takes in a transaction.
const WRITES: usize = 120;
const MAX_ANSWER_BYTES: usize = 64 << 20;
const DEFAULT_PREFIX: &str = "alba";

/// Where a cluster is. As text: `etcd://HOST:PORT[,HOST:PORT]...[/PREFIX][?ca=FILE&certificate=FILE&key=FILE&name=NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdPlace {
    /// Members of the cluster.
    pub endpoints: Vec<String>,
    /// Of all keys. Default `alba`.
    pub prefix: String,
    /// TLS, when there is any of it.
    pub tls: Option<EtcdTls>,
}

/// Files in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who may have signed the servers' certificates.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name the servers' certificates must have, if it is not the host's.
    pub name: Option<String>,
}

impl FromStr for EtcdPlace {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Fault::invalid(format!("NSM {text:?}: {why}"));
        let form = "it must be etcd://HOST:PORT[,HOST:PORT]...[/PREFIX][?ca=FILE&...]";
        let rest = text.strip_prefix("etcd://").ok_or_else(|| bad(form))?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, q)| (r, Some(q)));
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, DEFAULT_PREFIX));
        let prefix = prefix.trim_end_matches('/');
        let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '&' | '#');
        if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(fits) {
            return Err(bad("the prefix must be 1 to 200 printable characters"));
        }
        let endpoints: Vec<String> = hosts.split(',').map(str::to_string).collect();
        for endpoint in &endpoints {
            let port = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(bad(&format!("{endpoint:?} is not HOST:PORT")));
            }
        }
        let tls = query.map(|query| tls_of(query).map_err(|why| bad(&why))).transpose()?;
        Ok(Self { endpoints, prefix: prefix.to_string(), tls })
    }
}

fn tls_of(query: &str) -> Result<EtcdTls, String> {
    let mut tls = EtcdTls::default();
    for part in query.split('&') {
        match part.split_once('=').filter(|(_, value)| !value.is_empty()) {
            Some(("ca", file)) => tls.ca = Some(file.into()),
            // The first is what every URL says, the second what this one said at first.
            Some(("certificate" | "cert", file)) => tls.cert = Some(file.into()),
            Some(("key", file)) => tls.key = Some(file.into()),
            Some(("name", name)) => tls.name = Some(name.into()),
            _ => {
                return Err(format!(
                    "{part:?} is none of ca=FILE, certificate=FILE, key=FILE, name=NAME"
                ));
            }
        }
    }
    if tls.cert.is_some() != tls.key.is_some() {
        return Err("certificate and key go together".into());
    }
    Ok(tls)
}

impl fmt::Display for EtcdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.endpoints.join(","), self.prefix)
    }
}

pub struct Etcd {
    place: EtcdPlace,
    client: KvClient,
    /// Keeps the connections.
    _client: Client,
    prefix: Vec<u8>,
    /// It did not answer when it was last asked.
    is_silent: AtomicBool,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Etcd({})", self.place)
    }
}

/// Whether a request may be sent twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Read,
    Change,
}

impl Etcd {
    /// Does not wait for an answer: a cluster that is not there yet is no error.
    pub async fn connect(place: EtcdPlace) -> Result<Self> {
        let about = |fault: Fault| fault.about(&place);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(5))
            .with_keep_alive_while_idle(true);
        let mut scheme = "http";
        if let Some(tls) = &place.tls {
            options = options.with_tls(options_of(tls).map_err(about)?);
            scheme = "https";
        }
        let endpoints: Vec<String> =
            place.endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect();
        let connected = Client::connect(&endpoints, Some(options)).await;
        let client = connected.map_err(|e| fault_of(e, "cannot connect")).map_err(about)?;
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let prefix = format!("{}/", place.prefix).into_bytes();
        let is_silent = AtomicBool::new(false);
        Ok(Self { place, client: kv, _client: client, prefix, is_silent })
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    async fn call<T, F>(&self, request: Request, send: impl Fn(KvClient) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let was_silent = self.is_silent.load(Ordering::Relaxed);
        let attempt = if was_silent { SHORT_ATTEMPT } else { ATTEMPT };
        let deadline = Instant::now() + if was_silent { Duration::ZERO } else { PATIENCE };
        loop {
            let (may_repeat, fault) = match timeout(attempt, send(self.client.clone())).await {
                Ok(Ok(answer)) => {
                    self.is_silent.store(false, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => {
                    let may_repeat = request == Request::Read || was_not_sent(&error);
                    (may_repeat, fault_of(error, "it does not answer"))
                }
                Err(_) => {
                    let waited = attempt.as_secs();
                    let fault = Fault::unavailable(format!("it has not answered for {waited} s"));
                    (request == Request::Read, fault)
                }
            };
            if fault.kind != Kind::Unavailable || !may_repeat || Instant::now() >= deadline {
                self.is_silent.store(fault.kind == Kind::Unavailable, Ordering::Relaxed);
                return Err(fault.about(&self.place));
            }
            sleep(PAUSE).await;
        }
    }

    async fn get_one(&self, key: &[u8]) -> Result<Option<Value>> {
        let key = self.key(key);
        let send = |mut client: KvClient| {
            let key = key.clone();
            async move { client.get(key, None).await }
        };
        let mut answer = self.call(Request::Read, send).await?;
        Ok(answer.take_kvs().pop().map(|kv| kv.into_key_value().1))
    }

    async fn get_some(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        if let [key] = keys {
            return Ok(vec![self.get_one(key).await?]);
        }
        let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(self.key(key), None)).collect();
        let send = |mut client: KvClient| {
            let txn = Txn::new().and_then(gets.clone());
            async move { client.txn(txn).await }
        };
        let answer = self.call(Request::Read, send).await?;
        let value = |answer: TxnOpResponse| match answer {
            TxnOpResponse::Get(mut get) => Ok(get.take_kvs().pop().map(|kv| kv.into_key_value().1)),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => {
                Err(Fault::bug("etcd answers a get with something else").about(&self.place))
            }
        };
        answer.op_responses().into_iter().map(value).collect()
    }
}

#[async_trait]
impl Kv for Etcd {
    fn place(&self) -> String {
        self.place.to_string()
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn writes_at_once(&self) -> usize {
        WRITES
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        let mut values = Vec::with_capacity(keys.len());
        for some in keys.chunks(GETS) {
            values.extend(self.get_some(some).await?);
        }
        Ok(values)
    }

    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        let (mut from, to) = (self.key(&from), self.key(&to));
        let mut found = Vec::new();
        while from < to && found.len() < limit {
            let count = (limit - found.len()).min(RANGE);
            let send = |mut client: KvClient| {
                let (from, to) = (from.clone(), to.clone());
                async move {
                    let options = GetOptions::new().with_range(to).with_limit(count as i64);
                    client.get(from, Some(options)).await
                }
            };
            let entries = self.call(Request::Read, send).await?.take_kvs();
            let Some(last) = entries.last() else { break };
            from = [last.key(), &[0]].concat();
            let is_last = entries.len() < count;
            for entry in entries {
                let (key, value) = entry.into_key_value();
                found.push((key.get(self.prefix.len()..).unwrap_or_default().to_vec(), value));
            }
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    async fn commit(&self, commit: Commit) -> Result<bool> {
        let Commit { guards, writes, durability: _ } = commit;
        if guards.is_empty() && writes.is_empty() {
            return Ok(true);
        }
        let guard = |guard: Guard| {
            let key = self.key(&guard.key);
            match guard.expected {
                Some(value) => Compare::value(key, CompareOp::Equal, value),
                None => Compare::version(key, CompareOp::Equal, 0),
            }
        };
        let write = |write: Write| match write {
            Write::Put(key, value) => TxnOp::put(self.key(&key), value, None),
            Write::Delete(key) => TxnOp::delete(self.key(&key), None),
        };
        let count = guards.len().max(writes.len());
        let guards: Vec<Compare> = guards.into_iter().map(guard).collect();
        let writes: Vec<TxnOp> = writes.into_iter().map(write).collect();
        let send = |mut client: KvClient| {
            let txn = Txn::new().when(guards.clone()).and_then(writes.clone());
            async move { client.txn(txn).await }
        };
        let sent = self.call(Request::Change, send).await;
        sent.map(|answer| answer.succeeded()).map_err(|fault| too_large(fault, count))
    }
}

fn options_of(tls: &EtcdTls) -> Result<TlsOptions> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|e| Fault {
            source: Some(Box::new(e)),
            ..Fault::invalid(format!("cannot read {}", path.display()))
        })
    };
    let mut options = TlsOptions::new();
    if let Some(ca) = &tls.ca {
        options = options.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        options = options.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &tls.name {
        options = options.domain_name(name);
    }
    Ok(options)
}

/// No connection could be made for it.
fn was_not_sent(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = match error {
        Error::GRpcStatus(status) => Some(status),
        _ => None,
    };
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn fault_of(error: Error, what: &str) -> Fault {
    let kind = match &error {
        Error::GRpcStatus(status) => kind_of(status),
        Error::IoError(_) | Error::TransportError(_) | Error::EndpointError(_) => Kind::Unavailable,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Kind::Invalid
        }
        Error::WatchError(_)
        | Error::Utf8Error(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => Kind::Bug,
    };
    Fault { source: Some(Box::new(error)), ..Fault::new(kind, what) }
}

fn kind_of(status: &tonic::Status) -> Kind {
    match status.code() {
        Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::OutOfRange
        | Code::Unimplemented => Kind::Invalid,
        // Either its quota is used up, or a message is too long for it.
        Code::ResourceExhausted if status.message().contains("larger than max") => Kind::Invalid,
        Code::ResourceExhausted if status.message().contains("space exceeded") => Kind::NoSpace,
        Code::DataLoss => Kind::Corrupt,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Kind::Unavailable,
    }
}

/// What has to be done about a transaction that this etcd does not take.
fn too_large(fault: Fault, count: usize) -> Fault {
    let text = fault.to_string();
    let flag = if text.contains("too many operations") {
        "--max-txn-ops"
    } else if text.contains("too large") || text.contains("larger than max") {
        "--max-request-bytes"
    } else {
        return fault;
    };
    let advice = format!(
        "a change of {count} keys is more than this etcd takes at once; make it in smaller parts, or start etcd with a higher {flag}"
    );
    Fault { message: format!("{advice}: {}", fault.message), ..fault }
}

#[cfg(test)]
pub mod tests;

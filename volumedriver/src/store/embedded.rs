//! The object backend in this process, on local directories.

use std::sync::Arc;

use backend_alba::{Alba, Config};
use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};

use super::pace::Pace;
use super::service::Service;
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// Names asked for at once.
const PAGE: usize = 1000;
/// Bytes of a paced put handed over at a time; one that is shorter is not worth pacing.
const STEP_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub struct Embedded {
    alba: Alba,
    service: Service,
    pace: Pace,
}

impl Embedded {
    /// Opens or creates the backend; its work is done on the runtime this is awaited on.
    pub async fn open(config: Config) -> Result<Self> {
        let title = format!("embedded backend {}", config.data_dir.display());
        let alba = Alba::open(config).await.map_err(|fault| of_backend(fault).about(title))?;
        Ok(Self { alba, service: Service::here(), pace: Pace::default() })
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl Future<Output = backend_alba::Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.service.run(async move { work.await.map_err(of_backend) }).await
    }
}

impl ObjectStore for Embedded {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        let (alba, namespace) = (self.alba.clone(), namespace.to_string());
        self.call(async move { alba.create_namespace(&namespace).await.map(drop) }).await
    }

    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        let (alba, namespace) = (self.alba.clone(), namespace.to_string());
        self.call(async move { alba.delete_namespace(&namespace).await.map(drop) }).await
    }

    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        let (alba, prefix) = (self.alba.clone(), prefix.to_string());
        let list = async move {
            let mut names: Vec<String> = Vec::new();
            loop {
                let after = names.last().cloned().unwrap_or_default();
                let page = alba.list_namespaces(&prefix, &after, PAGE).await?;
                names.extend(page.names);
                if !page.more {
                    return Ok(names);
                }
            }
        };
        self.call(list).await
    }

    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let (alba, namespace, name) = (self.alba.clone(), namespace.to_string(), name.to_string());
        let pace = matches!(purpose, Purpose::Data) && self.pace.is_set();
        let pace = pace.then(|| self.pace.clone());
        let purpose = match purpose {
            Purpose::Data => backend_alba::Purpose::Data,
            Purpose::Metadata => backend_alba::Purpose::Metadata,
        };
        let put = async move {
            match pace {
                Some(pace) => put_at_pace(&alba, &namespace, &name, body, &pace).await,
                None => alba.put_if_absent(&namespace, &name, body, purpose).await,
            }
        };
        Ok(match self.call(put).await? {
            backend_alba::Put::Created => Put::Created,
            backend_alba::Put::Exists => Put::Exists,
        })
    }

    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let (alba, namespace, name) = (self.alba.clone(), namespace.to_string(), name.to_string());
        self.call(async move { alba.get_range(&namespace, &name, offset, len).await }).await
    }

    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        let (alba, namespace, name) = (self.alba.clone(), namespace.to_string(), name.to_string());
        let found = self.call(async move { alba.head(&namespace, &name).await }).await?;
        Ok(found.map(|manifest| ObjectInfo { len: manifest.len, crc: manifest.crc }))
    }

    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (alba, namespace, prefix) =
            (self.alba.clone(), namespace.to_string(), prefix.to_string());
        let mut after = after.unwrap_or_default().to_string();
        let list = async move {
            let mut names: Vec<String> = Vec::new();
            while names.len() < limit {
                let page = alba.list(&namespace, &prefix, &after, limit - names.len()).await?;
                names.extend(page.names);
                match names.last() {
                    Some(last) if page.more => after.clone_from(last),
                    _ => break,
                }
            }
            Ok(names)
        };
        self.call(list).await
    }

    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        let (alba, namespace, name) = (self.alba.clone(), namespace.to_string(), name.to_string());
        self.call(async move { alba.delete(&namespace, &name).await.map(drop) }).await
    }

    fn pace(&self, bytes_per_s: Option<u64>) {
        self.pace.set(bytes_per_s);
    }

    fn is_on_this_disk(&self) -> bool {
        true
    }

    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<std::fs::File>>> {
        let (alba, namespace, name) = (self.alba.clone(), namespace.to_string(), name.to_string());
        let found = self.call(async move { alba.local_file(&namespace, &name).await }).await?;
        Ok(found.map(Arc::new))
    }
}

/// A put in steps, each when it is due.
async fn put_at_pace(
    alba: &Alba,
    namespace: &str,
    name: &str,
    body: Vec<Bytes>,
    pace: &Pace,
) -> backend_alba::Result<backend_alba::Put> {
    let len: usize = body.iter().map(Bytes::len).sum();
    let purpose = backend_alba::Purpose::Data;
    if len < STEP_BYTES {
        return alba.put_if_absent(namespace, name, body, purpose).await;
    }
    let mut upload = alba.begin_put(namespace, name, (len as u64, purpose), None).await?;
    for mut piece in body {
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(STEP_BYTES));
            pace.take(part.len() as u64).await;
            upload.push(part).await?;
        }
    }
    upload.finish().await
}

fn of_backend(fault: backend_alba::Fault) -> Fault {
    let kind = match fault.kind {
        backend_alba::Kind::Invalid
        | backend_alba::Kind::NotFound
        | backend_alba::Kind::AssertFailed => Kind::Invalid,
        backend_alba::Kind::NoSpace => Kind::NoSpace,
        backend_alba::Kind::Unavailable => Kind::Unavailable,
        backend_alba::Kind::Corrupt => Kind::Corrupt,
        backend_alba::Kind::Outdated => Kind::Unavailable,
        backend_alba::Kind::Bug => Kind::Bug,
    };
    Fault { kind, message: fault.message, source: fault.source }
}

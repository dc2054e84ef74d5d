//! A bucket, through the client the volumedriver has.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backend_alba::bench::{Check, Target};
use backend_alba::{Fault, Result};
use bytes::Bytes;
use volumedriver::config::BackendUrl;
use volumedriver::store::s3::S3Store;
use volumedriver::world::{ObjectStore as _, Purpose, Put};

const NAMESPACE: &str = "bench";
/// Names asked for at once.
const PAGE: u32 = 1000;

pub struct Bucket(S3Store);

impl Bucket {
    pub async fn open(url: &str, keys: &Path) -> Result<Self> {
        let parsed: BackendUrl = url.parse().map_err(fault)?;
        let BackendUrl::S3(parsed) = parsed else {
            return Err(Fault::invalid(format!("{url} is no bucket")));
        };
        let keys: PathBuf = keys.into();
        let store = S3Store::open(&parsed, Some(&keys)).await.map_err(fault)?;
        store.create_namespace(NAMESPACE).await.map_err(fault)?;
        Ok(Self(store))
    }
}

fn fault(fault: volumedriver_core::fault::Fault) -> Fault {
    Fault::unavailable(fault.to_string())
}

#[async_trait]
impl Target for Bucket {
    async fn put(&self, name: &str, body: Vec<Bytes>) -> Result<()> {
        match self.0.put_if_absent(NAMESPACE, name, body, Purpose::Data).await.map_err(fault)? {
            Put::Created => Ok(()),
            Put::Exists => Err(Fault::invalid(format!("object {name:?} is there already"))),
        }
    }

    async fn get(&self, name: &str, (offset, len): (u64, u64), check: &mut Check) -> Result<()> {
        let found = self.0.get_range(NAMESPACE, name, offset, len).await.map_err(fault)?;
        check.take(&found.ok_or_else(|| Fault::not_found(format!("object {name:?} is gone")))?)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(NAMESPACE, name).await.map_err(fault)
    }

    async fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().map(String::as_str);
            let page = self.0.list(NAMESPACE, prefix, after, PAGE).await.map_err(fault)?;
            let is_last = page.len() < PAGE as usize;
            names.extend(page);
            if is_last {
                return Ok(names);
            }
        }
    }
}

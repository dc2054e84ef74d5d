//! Opening a backend: its data directory, its NSM, its OSDs, then its background work.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};

use super::blocking::{Blocking, Threads};
use super::data_dir::DataDir;
use super::get::OpenFragments;
use super::osds::{GivenOsd, Osds};
use super::{Alba, Config, Inner, collect, repair};
use crate::fault::{Fault, Result};
use crate::name::AlbaId;
use crate::nsm::Nsm;
use crate::nsm::kv::Kv;
use crate::nsm::rocks::Rocks;
use crate::osd::Space;
use crate::outside::Outside;
use crate::preset;

/// What a backend is made of when it does not open all of it itself. Nothing else of the machine is used then but
/// tokio's clock.
#[derive(Debug)]
pub struct Parts {
    /// Its limits; `data_dir` and `osds` are not used.
    pub config: Config,
    pub id: AlbaId,
    /// The NSM's clusters, always in the same order.
    pub tables: Vec<Arc<dyn Kv>>,
    pub osds: Vec<GivenOsd>,
    pub outside: Outside,
    pub threads: Threads,
}

pub(super) async fn of_parts(parts: Parts) -> Result<Alba> {
    let Parts { config, id, tables, osds, outside, threads } = parts;
    let blocking = Blocking::new(&config, threads);
    let nsm = Nsm::open(tables, outside.clone()).await?;
    let osds = Osds::new(osds, &nsm, &outside).await?;
    start(Opened { config, id, nsm, osds, outside, blocking, local: None }).await
}

/// With a RocksDB in the data directory, and the OSDs that are opened for the backend of this identity.
pub(super) async fn in_directory(
    config: Config,
    osds: impl FnOnce(&Config, AlbaId) -> Result<Vec<GivenOsd>> + Send + 'static,
) -> Result<Alba> {
    let blocking = Blocking::new(&config, Threads::Blocking);
    let outside = Outside::default();
    let (path, limits) = (config.data_dir.clone(), config.nsm_limits());
    let open = move || {
        let data_dir = DataDir::open(&path)?;
        let table = Rocks::open(&path.join("nsm"))?;
        let space = Space::open(&path, limits)
            .map_err(|e| Fault::io("no statistics of the data directory", e))?;
        Ok((data_dir, table, space))
    };
    let (data_dir, table, space) = blocking.run(open).await?;
    let nsm = Nsm::open(vec![Arc::new(table)], outside.clone()).await?;
    let id = data_dir.id;
    let known = config.clone();
    let given = blocking.run(move || osds(&known, id)).await?;
    let osds = Osds::new(given, &nsm, &outside).await?;
    let local = Some((data_dir, space));
    start(Opened { config, id, nsm, osds, outside, blocking, local }).await
}

struct Opened {
    config: Config,
    id: AlbaId,
    nsm: Nsm,
    osds: Osds,
    outside: Outside,
    blocking: Blocking,
    local: Option<(DataDir, Arc<Space>)>,
}

async fn start(opened: Opened) -> Result<Alba> {
    let Opened { config, id, nsm, osds, outside, blocking, local } = opened;
    let is_single = osds.all().len() == 1;
    nsm.ensure_presets(if is_single { preset::SINGLE } else { preset::DEFAULT }).await?;
    let (notices, noticed) = mpsc::channel(repair::NOTICES);
    let (data_dir, nsm_space) = local.unzip();
    let inner = Arc::new(Inner {
        open_fragments: OpenFragments::new(config.open_count),
        id,
        config,
        nsm,
        nsm_space,
        outside,
        osds,
        unfinished: Mutex::default(),
        blocking,
        wakes: Arc::default(),
        shortage: Arc::default(),
        notices,
        _data_dir: data_dir,
        alive: watch::channel(()).0,
    });
    collect::start(&inner);
    repair::start(&inner, noticed);
    Ok(Alba { inner })
}

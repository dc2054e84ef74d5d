//! Opening a backend: its data directory, its NSM, its OSDs, then its background work.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tokio::sync::{mpsc, watch};

use super::agent::{self, Agent};
use super::blocking::{Blocking, Threads};
use super::data_dir::{DataDir, NsmKind};
use super::get::OpenFragments;
use super::members::{self, Watch};
use super::osds::{GivenOsd, Osds};
use super::remember::Remembered;
use super::{Alba, Config, Inner, OsdPlace, collect, repair};
use crate::fault::{Fault, Result};
use crate::name::AlbaId;
use crate::net::Tls;
use crate::nsm::Nsm;
use crate::nsm::etcd::{Etcd, EtcdPlace};
use crate::nsm::identity::{self, Founding, Joined};
use crate::nsm::kv::Kv;
use crate::nsm::rebuild;
use crate::nsm::rocks::Rocks;
use crate::osd::{Claimed, Place, Space};
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
    let watch = Watch::default();
    start(Opened { config, id, nsm, osds, watch, outside, blocking, local: None }).await
}

/// With the NSM of the configuration, and the OSDs that are opened for the backend of this identity. Those of `places` are
/// tried again when they were not.
pub(super) async fn in_directory(
    config: Config,
    places: Vec<OsdPlace>,
    osds: impl FnOnce(&Config, AlbaId) -> Result<Vec<GivenOsd>> + Send + 'static,
) -> Result<Alba> {
    let blocking = Blocking::new(&config, Threads::Blocking);
    let outside = Outside::default();
    let (path, limits) = (config.data_dir.clone(), config.nsm_limits());
    let open = move || {
        let data_dir = DataDir::open(&path)?;
        let space = Space::open(&path, limits)
            .map_err(|e| Fault::io("no statistics of the data directory", e))?;
        Ok((data_dir, space))
    };
    let (data_dir, space) = blocking.run(open).await?;
    let (data_dir, id, tables) = if config.nsm.is_empty() {
        blocking.run(move || local_table(data_dir)).await?
    } else {
        shared_tables(data_dir, &config.nsm, &blocking).await?
    };
    let nsm = Nsm::open(tables, outside.clone()).await?;
    let known = config.clone();
    let given = blocking.run(move || osds(&known, id)).await?;
    let osds = Osds::new(given, &nsm, &outside).await?;
    let local = Some((data_dir, space));
    let watch = Watch::of(places);
    start(Opened { config, id, nsm, osds, watch, outside, blocking, local }).await
}

type Tables = (DataDir, AlbaId, Vec<Arc<dyn Kv>>);

/// The RocksDB in the directory. Blocks.
fn local_table(mut data_dir: DataDir) -> Result<Tables> {
    data_dir.check_local()?;
    let id = data_dir.id.unwrap_or_else(AlbaId::random);
    data_dir.note(id, None)?;
    let table = Rocks::open(&data_dir.nsm_path())?;
    data_dir.note(id, Some(NsmKind::Local))?;
    Ok((data_dir, id, vec![Arc::new(table)]))
}

/// Clusters of etcd, and the backend that they belong to.
async fn shared_tables(
    mut data_dir: DataDir,
    places: &[EtcdPlace],
    blocking: &Blocking,
) -> Result<Tables> {
    data_dir.check_etcd()?;
    let founding = match (data_dir.id, data_dir.nsm) {
        (Some(id), Some(_)) => Founding::Lost(id),
        (id, _) => Founding::As(id.unwrap_or_else(AlbaId::random)),
    };
    let Joined { id, tables } = identity::join(connect(places).await?, founding).await?;
    let note = move || data_dir.note(id, Some(NsmKind::Etcd)).map(|()| data_dir);
    Ok((blocking.run(note).await?, id, tables))
}

async fn connect(places: &[EtcdPlace]) -> Result<Vec<Arc<dyn Kv>>> {
    let mut tables: Vec<Arc<dyn Kv>> = Vec::new();
    for place in places {
        tables.push(Arc::new(Etcd::connect(place.clone()).await?));
    }
    Ok(tables)
}

struct Opened {
    config: Config,
    id: AlbaId,
    nsm: Nsm,
    osds: Osds,
    watch: Watch,
    outside: Outside,
    blocking: Blocking,
    local: Option<(DataDir, Arc<Space>)>,
}

async fn start(opened: Opened) -> Result<Alba> {
    let Opened { config, id, nsm, osds, watch, outside, blocking, local } = opened;
    let is_single = osds.count() + config.elsewhere.len() == 1;
    nsm.ensure_presets(if is_single { preset::SINGLE } else { preset::DEFAULT }).await?;
    let (notices, noticed) = mpsc::channel(repair::NOTICES);
    let (data_dir, nsm_space) = local.unzip();
    let agent = Agent::new(outside.bytes());
    let epoch = collect::first_epoch(&nsm).await?;
    let inner = Arc::new(Inner {
        open_fragments: OpenFragments::new(config.open_count),
        remembered: Remembered::new(config.manifest_count, nsm.cluster_count()),
        id,
        config,
        nsm,
        nsm_space,
        outside,
        osds,
        watch,
        epoch: AtomicU32::new(epoch),
        agent,
        blocking,
        wakes: Arc::default(),
        shortage: Arc::default(),
        notices,
        _data_dir: data_dir,
        alive: watch::channel(()).0,
    });
    inner.refresh_osds().await?;
    collect::start(&inner);
    members::start(&inner);
    repair::start(&inner, noticed);
    agent::start(&inner);
    Ok(Alba { inner })
}

/// The NSM alone, for changes while nobody serves the backend.
pub(super) async fn nsm_of(config: &Config) -> Result<(DataDir, Nsm)> {
    let blocking = Blocking::new(config, Threads::Blocking);
    let path = config.data_dir.clone();
    let data_dir = blocking.run(move || DataDir::open(&path)).await?;
    let (data_dir, _, tables) = if config.nsm.is_empty() {
        blocking.run(move || local_table(data_dir)).await?
    } else {
        shared_tables(data_dir, &config.nsm, &blocking).await?
    };
    Ok((data_dir, Nsm::open(tables, Outside::default()).await?))
}

/// A backend whose NSM is lost, and the empty one that is to take its place.
pub(super) struct Lost {
    pub id: AlbaId,
    pub osds: Vec<GivenOsd>,
    tables: Vec<Arc<dyn Kv>>,
    data_dir: DataDir,
    kind: NsmKind,
    blocking: Blocking,
}

/// The OSDs of a backend whose NSM is lost, and empty tables that are marked as being rebuilt. An OSD that does not open is
/// an error: whoever recovers says which ones are left.
pub(super) async fn for_recovery(config: Config) -> Result<Lost> {
    let blocking = Blocking::new(&config, Threads::Blocking);
    let (path, places) = (config.data_dir.clone(), config.places());
    let elsewhere = described(&config).await?;
    let known = elsewhere.iter().find_map(|(_, _, owner)| *owner);
    let open = move || {
        let data_dir = DataDir::open(&path)?;
        let id = match data_dir.id.or(known) {
            Some(id) => id,
            None => owner_of(&places)?,
        };
        Ok((data_dir, id))
    };
    let (data_dir, id) = blocking.run(open).await?;
    let (kind, tables) = if config.nsm.is_empty() {
        let path = data_dir.nsm_path();
        let table = blocking.run(move || Rocks::open(&path)).await?;
        (NsmKind::Local, vec![Arc::new(table) as Arc<dyn Kv>])
    } else {
        (NsmKind::Etcd, connect(&config.nsm).await?)
    };
    for table in &tables {
        rebuild::prepare(&**table).await?;
    }
    let tables = match kind {
        NsmKind::Local => tables,
        NsmKind::Etcd => identity::join(tables, Founding::As(id)).await?.tables,
    };
    let (count, tls) = (config.places().len(), config.tls.clone());
    let mut osds = blocking.run(move || super::osds::directories(&config, id)).await?;
    if osds.len() < count {
        return Err(Fault::unavailable(format!(
            "{} of {count} OSDs can be opened; give only those that are left",
            osds.len()
        )));
    }
    for (place, said, owner) in elsewhere {
        osds.push(given_osd(id, (&place, owner), said, tls.as_ref())?);
    }
    Ok(Lost { id, osds, tables, data_dir, kind, blocking })
}

type Found = (Place, Claimed, Option<AlbaId>);

/// What the OSDs say that are given for a recovery and any process can reach.
async fn described(config: &Config) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for osd in &config.elsewhere {
        let (said, owner) = osd.place.described(config.tls.as_ref()).await?;
        let node = osd.node.clone().unwrap_or(said.node);
        let labels = if osd.labels.is_empty() { said.labels } else { osd.labels.clone() };
        all.push((osd.place.clone(), Claimed { node, labels, ..said }, owner));
    }
    Ok(all)
}

fn given_osd(
    id: AlbaId,
    (place, owner): (&Place, Option<AlbaId>),
    said: Claimed,
    tls: Option<&Tls>,
) -> Result<GivenOsd> {
    if owner != Some(id) {
        let owner = owner.map_or("no backend".into(), |owner| format!("backend {owner}"));
        let message = format!("OSD {} at {place} belongs to {owner}, not to {id}", said.id);
        return Err(Fault::invalid(message));
    }
    let osd = place.connect((said.id, id), tls)?;
    Ok(GivenOsd { osd, node: said.node, labels: said.labels })
}

impl Lost {
    pub async fn nsm(&self) -> Result<Nsm> {
        let nsm = Nsm::begin_rebuild(self.tables.clone(), Outside::default()).await?;
        let is_single = self.osds.len() == 1;
        nsm.ensure_presets(if is_single { preset::SINGLE } else { preset::DEFAULT }).await?;
        Ok(nsm)
    }

    /// The directory knows where its NSM is.
    pub async fn finish(self) -> Result<()> {
        let Self { id, mut data_dir, kind, blocking, .. } = self;
        blocking.run(move || data_dir.note(id, Some(kind))).await
    }
}

/// The backend that the markers of these OSDs name.
fn owner_of(places: &[OsdPlace]) -> Result<AlbaId> {
    for place in places {
        let marker = std::fs::read_to_string(place.path.join("OSD")).unwrap_or_default();
        let owner = marker.lines().find_map(|line| AlbaId::parse(line.strip_prefix("alba ")?));
        if let Some(id) = owner {
            return Ok(id);
        }
    }
    Err(Fault::invalid("none of the OSDs given says which backend it belongs to"))
}

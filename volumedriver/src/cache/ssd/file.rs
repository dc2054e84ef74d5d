//! The file of the disk tier: regions of clusters, then the catalogue, then a header of one block.
//!
//! The catalogue is written by a clean end and read by the next start (a warm start). What makes it right: the header says
//! "in use", durably, before the first byte of the file changes; it says "closed" only after the catalogue and all clusters
//! it names are durable. So whatever happens between, a catalogue is either exact or not believed, and after a crash the tier
//! starts empty. Clusters that decay on the disk are found by their checksums, in the catalogue as in memory.

use volumedriver_core::cache::index::{RegionNo, Shape, Slot};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::cache::{CacheHeader, CachePage, FileState, PAGE_BYTES};
use volumedriver_core::format::journal::BLOCK_BYTES;
use volumedriver_core::units::{ClusterSize, NodeId};

use crate::io::buf::{AlignedBuf, AreaSlice};
use crate::world::{Disk, DiskFile, Durability, World};

use super::SsdConfig;

/// The name of the only file there is.
const NAME: &str = "cache-0000";
/// The ring must be longer than what of it can be in memory at a time.
const LEAST_REGIONS: u64 = 2 * super::MOST_BATCHES as u64;
/// Slots a page of the catalogue is reckoned with; with very many logs it takes fewer, and the last ones find no page.
const PAGE_SLOTS: u64 = 3000;

pub type FileOf<W> = <<W as World>::Disk as Disk>::File;

/// What lies where in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub shape: Shape,
    pub cluster: ClusterSize,
}

impl Layout {
    /// As many regions as fit into `bytes` with their catalogue.
    pub fn plan(bytes: u64, region_bytes: u64, cluster: ClusterSize) -> Result<Self> {
        let region_slots = region_bytes / cluster.bytes();
        let page_share = (region_slots * PAGE_BYTES as u64).div_ceil(PAGE_SLOTS);
        let fixed = (BLOCK_BYTES + PAGE_BYTES) as u64;
        let fitting =
            bytes.saturating_sub(fixed) / (region_slots * cluster.bytes() + page_share).max(1);
        let regions = fitting.min(Shape::MOST_SLOTS / region_slots.max(1));
        if region_slots == 0 || regions < LEAST_REGIONS {
            return Err(Fault::invalid(format!(
                "{bytes} bytes are too few for a read cache in regions of {region_bytes} bytes"
            )));
        }
        let shape = Shape { regions: regions as u32, region_slots: region_slots as u32 };
        Ok(Self { shape, cluster })
    }

    pub fn region_bytes(&self) -> usize {
        self.shape.region_slots as usize * self.cluster.bytes() as usize
    }
    pub fn offset_of(&self, slot: Slot) -> u64 {
        u64::from(slot.0) * self.cluster.bytes()
    }
    /// Pages there is room for.
    pub fn pages(&self) -> u32 {
        (self.shape.slots() / PAGE_SLOTS + 1) as u32
    }
    pub fn page_offset(&self, page: u32) -> u64 {
        self.shape.slots() * self.cluster.bytes() + u64::from(page) * PAGE_BYTES as u64
    }
    fn header_offset(&self) -> u64 {
        self.page_offset(self.pages())
    }
    pub fn len(&self) -> u64 {
        self.header_offset() + BLOCK_BYTES as u64
    }
}

/// The file, and the catalogue that is to be believed.
pub struct CacheFile<F> {
    pub file: F,
    pub layout: Layout,
    node: NodeId,
}

/// A catalogue that a clean end left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Catalogue {
    stamp: u64,
    pub hand: RegionNo,
    pub pages: u32,
}

impl<F: DiskFile> CacheFile<F> {
    /// Opens the file of an earlier run or makes a new one. Another node's is refused and left alone.
    pub async fn open<D: Disk<File = F>>(
        disk: &D,
        config: &SsdConfig,
        cluster: ClusterSize,
    ) -> Result<(Self, Option<Catalogue>)> {
        let layout = Layout::plan(config.bytes, config.region_bytes, cluster)?;
        let node = config.node;
        let found = disk.list().await?.into_iter().find(|(name, _)| name == NAME);
        if let Some((_, len)) = found {
            let file = disk.open(NAME).await?;
            let header = read_header(&file).await?;
            if let Some(header) = header.filter(|header| header.node != node) {
                return Err(Fault::invalid(format!(
                    "{NAME} belongs to node {}, this is node {node}; name another directory or move it away",
                    header.node
                )));
            }
            if len == layout.len() {
                let catalogue = header.and_then(|header| believed(&header, &layout));
                return Ok((Self { file, layout, node }, catalogue));
            }
            tracing::info!("the read cache on disk has another size than before: it starts empty");
            drop(file);
            disk.remove(NAME).await?;
        }
        let file = disk.reserve(NAME, layout.len()).await?;
        Ok((Self { file, layout, node }, None))
    }

    /// Durable when it returns.
    pub async fn put_header(&self, state: FileState) -> Result<()> {
        let Layout { shape, cluster } = self.layout;
        let header = CacheHeader {
            node: self.node,
            cluster_size: cluster,
            region_slots: shape.region_slots,
            regions: shape.regions,
            state,
        };
        let mut block = [0; BLOCK_BYTES];
        header.encode(&mut block);
        self.write(&block, self.layout.header_offset(), Durability::Now).await
    }

    /// After everything else is durable.
    pub async fn put_catalogue(&self, stamp: u64, hand: RegionNo, pages: u32) -> Result<()> {
        self.put_header(FileState::Closed { stamp, hand: hand.0, pages }).await
    }

    pub async fn put_page(&self, page: &CachePage) -> Result<()> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        page.encode(&mut bytes);
        self.write(&bytes[..], self.layout.page_offset(page.number), Durability::Later).await
    }

    /// `None`: damaged.
    pub async fn page(&self, catalogue: &Catalogue, number: u32) -> Result<Option<CachePage>> {
        let buf = AlignedBuf::recycled(PAGE_BYTES);
        let bytes = self.file.read_at(buf, self.layout.page_offset(number)).await?;
        let page = match CachePage::decode(&bytes) {
            Ok(page) => page,
            Err(fault) => {
                tracing::warn!(%fault, number, "part of the read cache on disk is not known any more");
                return Ok(None);
            }
        };
        let belongs = page.stamp == catalogue.stamp && page.number == number;
        Ok(belongs.then_some(page))
    }

    async fn write(&self, bytes: &[u8], offset: u64, durability: Durability) -> Result<()> {
        let mut buf = AlignedBuf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        self.file.write_at(vec![AreaSlice::from_aligned(buf)], offset, durability).await
    }
}

/// The header at the file's end; `None` when there is none, for a file that was never used or is damaged.
async fn read_header<F: DiskFile>(file: &F) -> Result<Option<CacheHeader>> {
    let block = BLOCK_BYTES as u64;
    let len = file.len();
    if len < block || !len.is_multiple_of(block) {
        return Ok(None);
    }
    let bytes = file.read_at(AlignedBuf::zeroed(BLOCK_BYTES), len - block).await?;
    Ok(CacheHeader::decode(&bytes).ok())
}

fn believed(header: &CacheHeader, layout: &Layout) -> Option<Catalogue> {
    let shape = Shape { regions: header.regions, region_slots: header.region_slots };
    let same = Layout { shape, cluster: header.cluster_size } == *layout;
    match header.state {
        FileState::Closed { stamp, hand, pages } if same && pages <= layout.pages() => {
            Some(Catalogue { stamp, hand: RegionNo(hand), pages })
        }
        FileState::Closed { .. } | FileState::InUse => None,
    }
}

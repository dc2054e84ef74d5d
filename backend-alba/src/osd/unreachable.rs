//! An OSD that is known but could not be opened: every call says why.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Fragment, FragmentWriter, Osd, Priority, Room, Sequence, Title, Wanted};
use crate::fault::{Fault, Result};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::trailer::Trailer;

#[derive(Debug)]
pub struct Unreachable {
    pub id: OsdId,
    pub place: String,
    pub why: String,
}

impl Unreachable {
    fn fault<T>(&self) -> Result<T> {
        Err(Fault::unavailable(self.why.clone()))
    }
}

#[async_trait]
impl Osd for Unreachable {
    fn id(&self) -> OsdId {
        self.id
    }
    fn place(&self) -> String {
        self.place.clone()
    }
    async fn room(&self) -> Result<Room> {
        self.fault()
    }
    async fn create(&self, _title: Title) -> Result<Box<dyn FragmentWriter>> {
        self.fault()
    }
    async fn open(
        &self,
        _wanted: Wanted,
        _priority: Priority,
    ) -> Result<Option<Arc<dyn Fragment>>> {
        self.fault()
    }
    async fn open_raw(&self, _file: FragmentId) -> Result<Option<File>> {
        self.fault()
    }
    async fn remove(&self, _file: FragmentId) -> Result<()> {
        self.fault()
    }
    async fn apply(&self, _sequence: Sequence) -> Result<Vec<u32>> {
        self.fault()
    }
    async fn describe(&self, _file: FragmentId) -> Result<Option<Trailer>> {
        self.fault()
    }
    async fn list(&self, _shard: u8) -> Result<Vec<FragmentId>> {
        self.fault()
    }
    async fn release(&self, _alba: AlbaId) -> Result<()> {
        self.fault()
    }
}

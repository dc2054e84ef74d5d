//! What the backend holds and how its OSDs are.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;

use super::osds::Member;
use super::{Alba, Inner};
use crate::fault::Result;
use crate::name::{AlbaId, OsdId};
use crate::nsm::{OsdRecord, OsdRole};
use crate::osd::Room;

#[derive(Clone, Debug)]
pub struct Status {
    pub id: AlbaId,
    pub namespaces: u64,
    pub objects: u64,
    /// Sum of the lengths of all objects.
    pub object_bytes: u64,
    pub osds: Vec<OsdStatus>,
}

#[derive(Clone, Debug)]
pub struct OsdStatus {
    pub id: OsdId,
    pub path: PathBuf,
    /// The failure domain it belongs to.
    pub node: String,
    pub labels: Vec<String>,
    pub role: OsdRole,
    pub state: OsdState,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Why it is in this state, when that is not plain.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OsdState {
    Ready,
    /// Reads and deletes only.
    Full,
    /// Known, but not given to this process.
    Absent,
    /// Its last operations failed.
    Failing,
}

impl Status {
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.osds.iter().map(|osd| osd.capacity_bytes).sum()
    }
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.osds.iter().map(|osd| osd.used_bytes).sum()
    }
}

impl Alba {
    pub async fn status(&self) -> Result<Status> {
        Box::pin(self.inner.status()).await
    }
}

impl Inner {
    async fn status(self: &Arc<Self>) -> Result<Status> {
        let (totals, known) = (self.nsm.totals().await?, self.nsm.osds().await?);
        let members = self.osds.all();
        let mut osds = join_all(members.iter().map(|member| of_osd(member))).await;
        for (id, record) in known {
            if self.osds.get(id).is_err() {
                osds.push(absent(id, record));
            }
        }
        let (namespaces, objects) = (totals.namespaces, totals.objects);
        Ok(Status { id: self.id, namespaces, objects, object_bytes: totals.object_bytes, osds })
    }
}

async fn of_osd(member: &Member) -> OsdStatus {
    let health = member.health();
    let (state, room, reason) = match member.room().await {
        Err(fault) => (OsdState::Failing, Room::default(), fault.to_string()),
        Ok(room) if health.is_failing() => {
            (OsdState::Failing, room, "its last operations failed".into())
        }
        Ok(room) if room.free_bytes == 0 => {
            (OsdState::Full, room, "no room but the reserve".into())
        }
        Ok(room) => (OsdState::Ready, room, String::new()),
    };
    let (capacity_bytes, used_bytes) = (room.capacity_bytes, room.used_bytes);
    OsdStatus {
        id: member.id(),
        path: member.place().into(),
        node: member.node.clone(),
        labels: member.labels.clone(),
        role: member.role(),
        state,
        capacity_bytes,
        used_bytes,
        reason,
    }
}

fn absent(id: OsdId, record: OsdRecord) -> OsdStatus {
    let OsdRecord { path, node, labels, role } = record;
    let (state, reason) = (OsdState::Absent, "its directory was not given at start".into());
    let (capacity_bytes, used_bytes) = (0, 0);
    let path = path.into();
    OsdStatus { id, path, node, labels, role, state, capacity_bytes, used_bytes, reason }
}

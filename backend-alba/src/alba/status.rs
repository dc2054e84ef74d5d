//! What the backend holds and how its OSDs are.

use std::path::PathBuf;

use super::{Alba, Inner};
use crate::fault::Result;
use crate::name::{AlbaId, OsdId};
use crate::osd::{Osd, Room};

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
        self.run(|inner| inner.status()).await
    }
}

impl Inner {
    fn status(&self) -> Result<Status> {
        let totals = self.nsm.totals()?;
        let mut osds: Vec<OsdStatus> = self.osds.iter().map(of_osd).collect();
        for (id, path) in self.nsm.osds()? {
            if self.osds.iter().all(|osd| osd.id != id) {
                osds.push(absent(id, path));
            }
        }
        let (namespaces, objects) = (totals.namespaces, totals.objects);
        Ok(Status { id: self.id, namespaces, objects, object_bytes: totals.object_bytes, osds })
    }
}

fn of_osd(osd: &Osd) -> OsdStatus {
    let (state, room, reason) = match osd.room() {
        Err(fault) => (OsdState::Failing, Room::default(), fault.to_string()),
        Ok(room) if osd.is_failing() => {
            (OsdState::Failing, room, "its last operations failed".into())
        }
        Ok(room) if room.free_bytes == 0 => {
            (OsdState::Full, room, "no room but the reserve".into())
        }
        Ok(room) => (OsdState::Ready, room, String::new()),
    };
    let (capacity_bytes, used_bytes) = (room.capacity_bytes, room.used_bytes);
    OsdStatus { id: osd.id, path: osd.path().into(), state, capacity_bytes, used_bytes, reason }
}

fn absent(id: OsdId, path: String) -> OsdStatus {
    let reason = "its directory was not given at start".into();
    let path = PathBuf::from(path);
    OsdStatus { id, path, state: OsdState::Absent, capacity_bytes: 0, used_bytes: 0, reason }
}

//! The gRPC service that manages the OSDs of a backend. The contract is `proto/alba_osds.proto`.

use tonic::{Request, Response, Status};
use volumedriver_proto::alba_osds as wire;
use wire::alba_osds_server::{AlbaOsds as Service, AlbaOsdsServer};

use crate::alba::{Alba, Candidate, Elsewhere, OsdState, OsdStatus};
use crate::fault::{Fault, Kind, Result};
use crate::name::OsdId;
use crate::nsm::OsdRole;
use crate::osd::kind;

#[derive(Clone)]
pub(super) struct OsdsService {
    alba: Alba,
}

impl OsdsService {
    pub(super) fn of(alba: Alba) -> AlbaOsdsServer<Self> {
        AlbaOsdsServer::new(Self { alba })
    }
}

#[tonic::async_trait]
impl Service for OsdsService {
    async fn list_osds(
        &self,
        _request: Request<wire::ListOsdsRequest>,
    ) -> Result<Response<wire::ListOsdsResponse>, Status> {
        let status = self.alba.status().await?;
        let candidates = self.alba.candidates().into_iter().map(candidate);
        let osds = status.osds.into_iter().map(claimed).chain(candidates).collect();
        Ok(Response::new(wire::ListOsdsResponse { osds }))
    }

    async fn claim_osd(
        &self,
        request: Request<wire::ClaimOsdRequest>,
    ) -> Result<Response<wire::ClaimOsdResponse>, Status> {
        let wire::ClaimOsdRequest { address, node, labels } = request.into_inner();
        let node = (!node.is_empty()).then_some(node);
        let given = Elsewhere::new(address.parse()?, node, labels)?;
        let claimed = self.alba.claim_osd_as(&given).await;
        let osd_id = claimed.map_err(refused)?.to_string();
        Ok(Response::new(wire::ClaimOsdResponse { osd_id }))
    }

    async fn set_osd_role(
        &self,
        request: Request<wire::SetOsdRoleRequest>,
    ) -> Result<Response<wire::SetOsdRoleResponse>, Status> {
        let request = request.into_inner();
        let role = match request.role() {
            wire::Role::Active => OsdRole::Active,
            wire::Role::Disabled => OsdRole::Disabled,
            wire::Role::Decommissioning => OsdRole::Decommissioning,
            wire::Role::Unspecified => {
                return Err(Status::invalid_argument("no role is given"));
            }
        };
        self.alba.set_osd_role(osd_id(&request.osd_id)?, role).await?;
        Ok(Response::new(wire::SetOsdRoleResponse {}))
    }

    async fn purge_osd(
        &self,
        request: Request<wire::PurgeOsdRequest>,
    ) -> Result<Response<wire::PurgeOsdResponse>, Status> {
        let wire::PurgeOsdRequest { osd_id: id, force } = request.into_inner();
        let purged = self.alba.purge_osd(osd_id(&id)?, force).await.map_err(refused)?;
        let (released, note) = (purged.released, purged.note);
        Ok(Response::new(wire::PurgeOsdResponse { released, note }))
    }

    async fn announce_osd(
        &self,
        request: Request<wire::AnnounceOsdRequest>,
    ) -> Result<Response<wire::AnnounceOsdResponse>, Status> {
        self.alba.announce_osd(&request.into_inner().address).await?;
        Ok(Response::new(wire::AnnounceOsdResponse {}))
    }
}

/// What cannot be done as things are.
fn refused(fault: Fault) -> Status {
    match fault.kind {
        Kind::Invalid => Status::failed_precondition(fault.to_string()),
        _ => fault.into(),
    }
}

fn osd_id(text: &str) -> Result<OsdId, Status> {
    let wrong =
        || Status::invalid_argument(format!("{text:?} is no OSD's id: 32 lower-case digits"));
    OsdId::parse(text).ok_or_else(wrong)
}

fn claimed(osd: OsdStatus) -> wire::ListedOsd {
    let state = match osd.state {
        OsdState::Ready => "ready",
        OsdState::Full => "full",
        OsdState::Absent => "absent",
        OsdState::Failing => "failing",
    };
    let role = match osd.role {
        OsdRole::Active => wire::Role::Active,
        OsdRole::Disabled => wire::Role::Disabled,
        OsdRole::Decommissioning => wire::Role::Decommissioning,
    };
    let place = osd.path.to_string_lossy().into_owned();
    wire::ListedOsd {
        osd_id: osd.id.to_string(),
        kind: kind(&place).into(),
        place,
        node: osd.node,
        labels: osd.labels,
        standing: wire::Standing::Claimed.into(),
        role: role.into(),
        state: state.into(),
        reason: osd.reason,
        capacity_bytes: osd.capacity_bytes,
        used_bytes: osd.used_bytes,
    }
}

fn candidate(candidate: Candidate) -> wire::ListedOsd {
    let said = candidate.said;
    let standing = match said.owner {
        None => wire::Standing::Available,
        Some(_) => wire::Standing::Foreign,
    };
    let reason = said.owner.map(|owner| format!("belongs to backend {owner}"));
    wire::ListedOsd {
        osd_id: said.id.to_string(),
        kind: kind(&candidate.place).into(),
        place: candidate.place,
        node: said.node,
        labels: said.labels,
        standing: standing.into(),
        role: wire::Role::Unspecified.into(),
        state: String::new(),
        reason: reason.unwrap_or_default(),
        capacity_bytes: said.capacity_bytes,
        used_bytes: said.used_bytes,
    }
}

//! The gRPC service of administration over [`Alba`]. The contract is `proto/alba_admin.proto`.

use tonic::{Request, Response, Status};
use volumedriver_proto::alba_admin as wire;
use wire::alba_admin_server::{AlbaAdmin as Service, AlbaAdminServer};

use crate::alba::{Alba, SafetyLine};
use crate::fault::{Fault, Result};
use crate::maintenance::{self, Counts, Item, ItemKey, State, Task};
use crate::manifest::Fragment;
use crate::name::OsdId;
use crate::preset;

/// The service; cheap to clone.
#[derive(Clone)]
pub(super) struct AdminService {
    alba: Alba,
}

impl AdminService {
    pub fn new(alba: Alba) -> Self {
        Self { alba }
    }

    pub fn server(self) -> AlbaAdminServer<Self> {
        AlbaAdminServer::new(self)
            .max_decoding_message_size(super::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(super::MAX_MESSAGE_BYTES)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Service for AdminService {
    async fn list_presets(
        &self,
        _request: Request<wire::ListPresetsRequest>,
    ) -> Answer<wire::ListPresetsResponse> {
        let known = self.alba.presets().await?;
        let presets = known.presets.into_iter();
        let presets = presets.map(|(name, raw)| preset(name, raw, &known.default)).collect();
        Ok(Response::new(wire::ListPresetsResponse { presets }))
    }

    async fn get_preset(
        &self,
        request: Request<wire::GetPresetRequest>,
    ) -> Answer<wire::GetPresetResponse> {
        let name = request.into_inner().name;
        let known = self.alba.presets().await?;
        let found = known.presets.into_iter().find(|(known, _)| *known == name);
        let missing = || Fault::not_found(format!("there is no preset {name:?}"));
        let (name, raw) = found.ok_or_else(missing)?;
        let preset = Some(preset(name, raw, &known.default));
        Ok(Response::new(wire::GetPresetResponse { preset }))
    }

    async fn put_preset(
        &self,
        request: Request<wire::PutPresetRequest>,
    ) -> Answer<wire::PutPresetResponse> {
        let missing = || Status::invalid_argument("no preset was given");
        let given = request.into_inner().preset.ok_or_else(missing)?;
        let policies: Vec<&str> = given.policies.iter().map(String::as_str).collect();
        let mut raw = preset::Raw::of(&policies);
        if given.fragment_bytes > 0 {
            raw.fragment_bytes = given.fragment_bytes;
        }
        (raw.verify_upload, raw.labels) = (given.verify_upload, given.labels);
        let version = self.alba.put_preset(&given.name, raw).await?;
        Ok(Response::new(wire::PutPresetResponse { version }))
    }

    async fn delete_preset(
        &self,
        request: Request<wire::DeletePresetRequest>,
    ) -> Answer<wire::DeletePresetResponse> {
        let deleted = self.alba.delete_preset(&request.into_inner().name).await?;
        Ok(Response::new(wire::DeletePresetResponse { deleted }))
    }

    async fn set_default_preset(
        &self,
        request: Request<wire::SetDefaultPresetRequest>,
    ) -> Answer<wire::SetDefaultPresetResponse> {
        self.alba.set_default_preset(&request.into_inner().name).await?;
        Ok(Response::new(wire::SetDefaultPresetResponse {}))
    }

    async fn get_namespace_preset(
        &self,
        request: Request<wire::GetNamespacePresetRequest>,
    ) -> Answer<wire::GetNamespacePresetResponse> {
        let preset = self.alba.preset_of(&request.into_inner().namespace).await?;
        Ok(Response::new(wire::GetNamespacePresetResponse { preset }))
    }

    async fn set_namespace_preset(
        &self,
        request: Request<wire::SetNamespacePresetRequest>,
    ) -> Answer<wire::SetNamespacePresetResponse> {
        let wire::SetNamespacePresetRequest { namespace, preset } = request.into_inner();
        self.alba.set_preset_of(&namespace, &preset).await?;
        Ok(Response::new(wire::SetNamespacePresetResponse {}))
    }

    async fn show_object(
        &self,
        request: Request<wire::ShowObjectRequest>,
    ) -> Answer<wire::ShowObjectResponse> {
        let wire::ShowObjectRequest { namespace, name } = request.into_inner();
        let found = self.alba.head(&namespace, &name).await?;
        let manifest = found.ok_or_else(|| super::no_object(&namespace, &name))?;
        let nodes = self.alba.nodes().await?;
        let fragment = |f: &Fragment| wire::Fragment {
            index: f.index.into(),
            osd_id: f.osd.to_string(),
            file_id: f.file.to_string(),
            crc32: f.crc,
            node: nodes.get(&f.osd).cloned().unwrap_or_default(),
            gc_epoch: f.file.epoch(),
        };
        Ok(Response::new(wire::ShowObjectResponse {
            object_id: manifest.id.to_string(),
            len: manifest.len,
            crc32: manifest.crc,
            created_ms: manifest.created_ms,
            policy: manifest.policy.to_string(),
            codec: format!("{:?}", manifest.codec),
            unit_bytes: manifest.unit,
            fragment_bytes: manifest.layout().fragment_len(),
            fragments: manifest.fragments.iter().map(fragment).collect(),
        }))
    }

    async fn get_safety(
        &self,
        request: Request<wire::GetSafetyRequest>,
    ) -> Answer<wire::GetSafetyResponse> {
        let wire::GetSafetyRequest { dead_osd_ids, namespace } = request.into_inner();
        let dead = dead_osd_ids.iter().map(|id| osd_id(id)).collect::<Result<Vec<OsdId>>>()?;
        let only = (!namespace.is_empty()).then_some(namespace.as_str());
        let safety = self.alba.safety(&dead, only).await?;
        let buckets = safety.lines.iter().map(bucket).collect();
        let dead_osd_ids = safety.dead.iter().map(ToString::to_string).collect();
        Ok(Response::new(wire::GetSafetyResponse { buckets, dead_osd_ids }))
    }

    async fn list_work(
        &self,
        _request: Request<wire::ListWorkRequest>,
    ) -> Answer<wire::ListWorkResponse> {
        let items = self.alba.work().await?.into_iter().map(item).collect();
        Ok(Response::new(wire::ListWorkResponse { items }))
    }

    async fn cancel_work(
        &self,
        request: Request<wire::CancelWorkRequest>,
    ) -> Answer<wire::CancelWorkResponse> {
        let job = request.into_inner().job_id.parse()?;
        let cancelled = self.alba.cancel_work(job).await?;
        Ok(Response::new(wire::CancelWorkResponse { cancelled }))
    }

    async fn start_work(
        &self,
        request: Request<wire::StartWorkRequest>,
    ) -> Answer<wire::StartWorkResponse> {
        let request = request.into_inner();
        let unreachable_is_missing = request.unreachable_is_missing;
        let task = match request.kind() {
            wire::TaskKind::Repair => Task::Repair,
            wire::TaskKind::Rewrite => Task::Rewrite,
            wire::TaskKind::VerifyExistence => {
                Task::Verify { checksum: false, unreachable_is_missing }
            }
            wire::TaskKind::VerifyChecksums => {
                Task::Verify { checksum: true, unreachable_is_missing }
            }
            wire::TaskKind::Unspecified
            | wire::TaskKind::Tour
            | wire::TaskKind::Scrub
            | wire::TaskKind::Empty => {
                return Err(Status::invalid_argument("this kind of work cannot be asked for"));
            }
        };
        let only = (!request.namespace.is_empty()).then_some(request.namespace.as_str());
        let job = self.alba.start_work(task, only).await?;
        Ok(Response::new(wire::StartWorkResponse { job_id: job.to_string() }))
    }

    async fn get_maintenance(
        &self,
        _request: Request<wire::GetMaintenanceRequest>,
    ) -> Answer<wire::GetMaintenanceResponse> {
        let settings_json = json(&self.alba.maintenance().await?)?;
        Ok(Response::new(wire::GetMaintenanceResponse { settings_json }))
    }

    async fn set_maintenance(
        &self,
        request: Request<wire::SetMaintenanceRequest>,
    ) -> Answer<wire::SetMaintenanceResponse> {
        let changes = request.into_inner().changes;
        let settings_json = json(&self.alba.change_maintenance(&changes).await?)?;
        Ok(Response::new(wire::SetMaintenanceResponse { settings_json }))
    }
}

fn json(settings: &maintenance::settings::Raw) -> Result<String> {
    let failed = |e: serde_json::Error| Fault {
        source: Some(Box::new(e)),
        ..Fault::bug("settings cannot be written as JSON")
    };
    serde_json::to_string(settings).map_err(failed)
}

fn osd_id(text: &str) -> Result<OsdId> {
    let bad = || Fault::invalid(format!("OSD {text:?} is not 32 hexadecimal digits"));
    OsdId::parse(text).ok_or_else(bad)
}

fn preset(name: String, raw: preset::Raw, default: &str) -> wire::Preset {
    let is_default = name == default;
    wire::Preset {
        name,
        version: raw.version,
        policies: raw.policies,
        fragment_bytes: raw.fragment_bytes,
        verify_upload: raw.verify_upload,
        labels: raw.labels,
        is_default,
    }
}

fn bucket(line: &SafetyLine) -> wire::SafetyBucket {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    wire::SafetyBucket {
        namespace: line.namespace.clone(),
        policy: line.bucket.policy.to_string(),
        full_fragments: count(line.bucket.policy.total()),
        fragments: count(line.bucket.fragments),
        objects: line.tally.objects,
        bytes: line.tally.bytes,
        survives_osds: line.tally.standing.osds,
        survives_nodes: line.tally.standing.nodes,
        lost: line.tally.lost,
    }
}

fn item((key, item): (ItemKey, Item)) -> wire::WorkItem {
    let (at_namespace, at_name) = item.at.map(|at| (at.namespace, at.name)).unwrap_or_default();
    let osd_id = match &item.task {
        Task::Empty { osd } => osd.clone(),
        Task::Tour | Task::Scrub | Task::Repair | Task::Rewrite | Task::Verify { .. } => {
            String::new()
        }
    };
    wire::WorkItem {
        job_id: key.job.to_string(),
        part: key.part.into(),
        kind: kind(&item.task).into(),
        namespace: item.range.namespace.unwrap_or_default(),
        osd_id,
        at_namespace,
        at_name,
        agent_id: item.owner.unwrap_or_default(),
        done: item.state == State::Done,
        counts: Some(counts(item.counts)),
        note: item.note,
        created_ms: item.created_ms,
    }
}

fn kind(task: &Task) -> wire::TaskKind {
    match task {
        Task::Tour => wire::TaskKind::Tour,
        Task::Scrub => wire::TaskKind::Scrub,
        Task::Empty { .. } => wire::TaskKind::Empty,
        Task::Repair => wire::TaskKind::Repair,
        Task::Rewrite => wire::TaskKind::Rewrite,
        Task::Verify { checksum: false, .. } => wire::TaskKind::VerifyExistence,
        Task::Verify { checksum: true, .. } => wire::TaskKind::VerifyChecksums,
    }
}

fn counts(counts: Counts) -> wire::Counts {
    wire::Counts {
        objects: counts.objects,
        made: counts.made,
        rewritten: counts.rewritten,
        bytes: counts.bytes,
        missing: counts.missing,
        unavailable: counts.unavailable,
        mismatched: counts.mismatched,
        lacking: counts.lacking,
        failed: counts.failed,
    }
}

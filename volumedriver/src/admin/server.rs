//! The management service: checks what came in, asks the engine, answers.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{ByteCount, ClusterSize, MAX_VOLUME_BYTES, NodeId};
use volumedriver_proto::management as proto;
use volumedriver_proto::management::management_server::{Management, ManagementServer};

use super::convert::{self, status_of};
use super::live::LiveConfig;
use super::{Attached, CreateSpec, Engine, EngineStatus, VdiskInfo, VdiskState};
use crate::config::{Config, check_vdisk_name, field, holds_two_scos, size};
use crate::metrics::Metrics;

/// What the service answers from.
pub struct Service<E> {
    pub engine: E,
    pub config: Arc<LiveConfig>,
    pub metrics: Arc<Metrics>,
    pub node: NodeId,
    /// Where NBD clients really connect (a port of 0 replaced by the one chosen).
    pub nbd_endpoints: Vec<String>,
    pub started: Instant,
}

/// Serves until `stop` is done; calls under way are finished.
pub async fn serve<E: Engine>(
    listener: UnixListener,
    service: Service<E>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    tonic::transport::Server::builder()
        .add_service(ManagementServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .map_err(|e| Fault::unavailable("the management service ended").because(e))
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<E: Engine> Management for Service<E> {
    async fn create_vdisk(
        &self,
        request: Request<proto::CreateVdiskRequest>,
    ) -> Answer<proto::Vdisk> {
        let config = self.config.running().await;
        let spec = create_spec(&config, request.into_inner()).map_err(status_of)?;
        let name = spec.name.clone();
        let info = self.engine.create(spec).await.map_err(status_of)?;
        tracing::info!(vdisk = name, size = info.size.0, "created");
        Ok(Response::new(convert::vdisk(info)))
    }

    async fn list_vdisks(
        &self,
        _: Request<proto::ListVdisksRequest>,
    ) -> Answer<proto::ListVdisksReply> {
        let vdisks = self.engine.list().await.map_err(status_of)?;
        Ok(Response::new(proto::ListVdisksReply {
            vdisks: vdisks.into_iter().map(convert::vdisk).collect(),
        }))
    }

    async fn show_vdisk(&self, request: Request<proto::ShowVdiskRequest>) -> Answer<proto::Vdisk> {
        let info = self.engine.show(request.into_inner().name).await.map_err(status_of)?;
        Ok(Response::new(convert::vdisk(info)))
    }

    async fn resize_vdisk(
        &self,
        request: Request<proto::ResizeVdiskRequest>,
    ) -> Answer<proto::Vdisk> {
        let proto::ResizeVdiskRequest { name, size_bytes } = request.into_inner();
        let before = self.engine.show(name.clone()).await.map_err(status_of)?;
        let size = check_size(size_bytes, before.cluster_size).map_err(status_of)?;
        if size < before.size {
            return Err(status_of(Fault::invalid(format!(
                "{name} cannot shrink from {} to {}",
                size::exact(before.size),
                size::exact(size)
            ))));
        }
        let info = self.engine.resize(name.clone(), size).await.map_err(status_of)?;
        tracing::info!(vdisk = name, size = info.size.0, "resized");
        Ok(Response::new(convert::vdisk(info)))
    }

    async fn delete_vdisk(
        &self,
        request: Request<proto::DeleteVdiskRequest>,
    ) -> Answer<proto::DeleteVdiskReply> {
        let proto::DeleteVdiskRequest { name, force } = request.into_inner();
        let attached = if force { Attached::Disconnect } else { Attached::Refuse };
        self.engine.delete(name.clone(), attached).await.map_err(status_of)?;
        tracing::info!(vdisk = name, "deleted");
        Ok(Response::new(proto::DeleteVdiskReply {}))
    }

    async fn accept_loss(
        &self,
        request: Request<proto::AcceptLossRequest>,
    ) -> Answer<proto::Vdisk> {
        let proto::AcceptLossRequest { name, confirmed, force } = request.into_inner();
        if !confirmed {
            let info = self.engine.show(name.clone()).await.map_err(status_of)?;
            return Err(status_of(unconfirmed(&info)));
        }
        let attached = if force { Attached::Disconnect } else { Attached::Refuse };
        let info = self.engine.accept_loss(name.clone(), attached).await.map_err(status_of)?;
        tracing::warn!(vdisk = name, "its loss was accepted");
        Ok(Response::new(convert::vdisk(info)))
    }

    async fn flush_vdisk(
        &self,
        request: Request<proto::FlushVdiskRequest>,
    ) -> Answer<proto::Vdisk> {
        let info = self.engine.flush(request.into_inner().name).await.map_err(status_of)?;
        Ok(Response::new(convert::vdisk(info)))
    }

    async fn get_backend_status(
        &self,
        _: Request<proto::GetBackendStatusRequest>,
    ) -> Answer<proto::BackendStatus> {
        let info = self.engine.backend().await.map_err(status_of)?;
        Ok(Response::new(convert::backend(info)))
    }

    async fn probe_backend(
        &self,
        _: Request<proto::ProbeBackendRequest>,
    ) -> Answer<proto::ProbeReport> {
        let info = self.engine.probe().await.map_err(status_of)?;
        Ok(Response::new(convert::probe(info)))
    }

    async fn get_node_status(
        &self,
        _: Request<proto::GetNodeStatusRequest>,
    ) -> Answer<proto::NodeStatus> {
        let status = self.engine.status().await.map_err(status_of)?;
        Ok(Response::new(self.node_status(status)))
    }

    async fn get_metrics(
        &self,
        _: Request<proto::GetMetricsRequest>,
    ) -> Answer<proto::MetricsText> {
        let text = self.metrics.encode().map_err(status_of)?;
        Ok(Response::new(proto::MetricsText { text }))
    }

    async fn show_config(
        &self,
        _: Request<proto::ShowConfigRequest>,
    ) -> Answer<proto::ConfigEntries> {
        let file = &self.config.source().file;
        let file = file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        let running = self.config.running().await;
        let entries = running.entries.iter().map(convert::config_entry).collect();
        Ok(Response::new(proto::ConfigEntries { file, entries }))
    }

    async fn reload_config(
        &self,
        _: Request<proto::ReloadConfigRequest>,
    ) -> Answer<proto::ReloadConfigReply> {
        let reloaded = self.config.reload(&self.engine).await.map_err(status_of)?;
        let (applied, needs_restart) = (reloaded.applied.len(), reloaded.needs_restart.len());
        tracing::info!(applied, needs_restart, "configuration reloaded");
        Ok(Response::new(convert::reloaded(reloaded)))
    }
}

impl<E> Service<E> {
    fn node_status(&self, status: EngineStatus) -> proto::NodeStatus {
        let vdisks = &status.vdisks;
        proto::NodeStatus {
            node_id: self.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().into(),
            uptime_ms: convert::millis(self.started.elapsed()),
            data_dir: self.config.source().data_dir.display().to_string(),
            nbd_endpoints: self.nbd_endpoints.clone(),
            io_engine: status.io_engine.to_owned(),
            shard_count: status.shards,
            buffer_capacity_bytes: status.buffer_capacity.0,
            buffer_used_bytes: status.buffer_used.0,
            backlog_bytes: vdisks.iter().map(|v| v.backlog.0).sum(),
            upload_lag_ms: vdisks.iter().map(|v| convert::millis(v.upload_lag)).max().unwrap_or(0),
            connections: vdisks.iter().map(|v| v.connections).sum(),
            cache: Some(convert::cache(status.cache)),
            vdisks: status.vdisks.into_iter().map(convert::vdisk).collect(),
        }
    }
}

/// What an operator should know before accepting a loss.
fn unconfirmed(info: &VdiskInfo) -> Fault {
    let name = &info.name;
    let VdiskState::ReadOnly(why) = &info.state else {
        return Fault::invalid(format!(
            "vDisk {name} is not read-only: there is no loss to accept"
        ));
    };
    Fault::invalid(format!(
        "nothing was changed. vDisk {name} is read-only: {why}. What it shows now becomes its content for good, and what is \
         lost stays lost; a damaged cluster stays unreadable until it is overwritten. Copy out what you may need, then do it \
         with --yes"
    ))
}

fn create_spec(config: &Config, request: proto::CreateVdiskRequest) -> Result<CreateSpec> {
    check_vdisk_name(&request.name)?;
    let cluster_size = match request.cluster_size_bytes {
        Some(bytes) => ClusterSize::new(bytes)?,
        None => config.vpool.cluster_size,
    };
    let mut settings = config.settings_of(&request.name).clone();
    if let Some(bytes) = request.sco_size_bytes {
        settings.sco_size = check_sco_size(bytes)?;
    }
    if !holds_two_scos(&settings, &config.buffer) {
        return Err(Fault::invalid(format!(
            "two SCOs of {} do not fit into the vDisk's share of the write buffer ({} % of {})",
            size::exact(settings.sco_size),
            settings.buffer_share_percent,
            size::exact(config.buffer.capacity)
        )));
    }
    let size = check_size(request.size_bytes, cluster_size)?;
    Ok(CreateSpec { name: request.name, size, cluster_size, settings })
}

fn check_size(bytes: u64, cluster_size: ClusterSize) -> Result<ByteCount> {
    let legal = (cluster_size.bytes()..=MAX_VOLUME_BYTES).contains(&bytes);
    if legal && bytes.is_multiple_of(cluster_size.bytes()) {
        return Ok(ByteCount(bytes));
    }
    let shown = |bytes| size::exact(ByteCount(bytes));
    Err(Fault::invalid(format!(
        "a vDisk cannot have a size of {}: it must be {} to {}, a multiple of the cluster size ({})",
        shown(bytes),
        shown(cluster_size.bytes()),
        shown(MAX_VOLUME_BYTES),
        shown(cluster_size.bytes())
    )))
}

fn check_sco_size(bytes: u64) -> Result<ByteCount> {
    let field::Legal::Bytes(span) = &field::SCO_SIZE.legal else {
        return Err(Fault::bug("the SCO size is not a size"));
    };
    if span.allows(bytes) {
        return Ok(ByteCount(bytes));
    }
    let shown = size::exact(ByteCount(bytes));
    Err(Fault::invalid(format!("an SCO size of {shown} is not legal: {}", field::SCO_SIZE.legal)))
}

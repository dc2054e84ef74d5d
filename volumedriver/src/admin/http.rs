//! `/metrics` for Prometheus and `/healthz` for whoever restarts daemons, over HTTP.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use volumedriver_core::fault::{Fault, Result};

use super::{Engine, VdiskState};
use crate::metrics::Metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `stop` is done.
pub async fn serve<E: Engine>(
    listener: TcpListener,
    engine: E,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .with_state(metrics)
        .merge(Router::new().route("/healthz", get(healthz::<E>)).with_state(engine));
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
        .map_err(|e| Fault::unavailable("the metrics service ended").because(e))
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(fault) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{fault}\n")).into_response(),
    }
}

/// 200 when the engine answers and every vDisk serves; else 503 with the reasons, one per line.
async fn healthz<E: Engine>(State(engine): State<E>) -> Response {
    let vdisks = match engine.list().await {
        Ok(vdisks) => vdisks,
        Err(fault) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")).into_response();
        }
    };
    let unwell = vdisks
        .iter()
        .filter(|v| matches!(v.state, VdiskState::ReadOnly(_) | VdiskState::Failed(_)));
    let lines: Vec<String> =
        unwell.map(|v| format!("{}: {}: {}\n", v.name, v.state.name(), v.state.reason())).collect();
    match lines.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, lines.concat()).into_response(),
    }
}

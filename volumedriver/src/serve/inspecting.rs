//! `inspect …`: files as they lie, objects from a store opened for the purpose.

use std::path::Path;

use volumedriver_core::fault::{Fault, Result};

use crate::config::BackendUrl;
use crate::inspect::{self, Findings, Form, InspectArgs, View};
use crate::metrics::Metrics;
use crate::store::{AnyStore, Place};

/// Prints what was found, then fails if any of it is damaged.
pub fn inspect(args: &InspectArgs, data_dir: Option<&Path>, form: Form) -> Result<()> {
    let view = args.view()?;
    let findings = match args.what.needs_store() {
        false => inspect::local(&args.what, &view, data_dir)?,
        true => remote(args, &view, data_dir)?,
    };
    findings.report().print(form)?;
    findings.verdict()
}

/// Objects come from the store of `--backend`, else from the embedded one of the data directory.
fn remote(args: &InspectArgs, view: &View, data_dir: Option<&Path>) -> Result<Findings> {
    let url = match (&args.backend, data_dir) {
        (Some(url), _) => url.parse()?,
        (None, Some(dir)) => BackendUrl::Embedded(dir.join("backend")),
        (None, None) => {
            return Err(Fault::invalid(
                "which store? give --backend URL, or --data-dir DIR for its embedded one",
            ));
        }
    };
    // Opening would create it.
    if let BackendUrl::Embedded(directory) = &url
        && !directory.is_dir()
    {
        return Err(Fault::invalid(format!("{}: there is no backend", directory.display())));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Fault::unavailable("threads cannot be started").because(e))?;
    runtime.block_on(async {
        let store = AnyStore::open(&Place::new(url.clone()), &Metrics::new().store).await?;
        inspect::remote(&args.what, view, &store).await
    })
}

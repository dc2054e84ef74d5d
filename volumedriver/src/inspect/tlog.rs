//! `inspect tlog`: which SCOs it lists and what changed in them.

use serde_json::Value;
use volumedriver_core::fault::Result;
use volumedriver_core::format::tlog::{Tlog, TlogSco};

use super::file::Fetched;
use super::sco::change_rows;
use super::{Doc, Findings, Rows};

pub fn inspect(object: &Fetched, all: bool) -> Result<Findings> {
    let tlog = Tlog::decode(&object.bytes).map_err(|fault| fault.about(&object.name))?;
    let scos = Rows {
        columns: &["sco", "cluster_count", "object_bytes", "change_count", "first_seq", "last_seq"],
        rows: tlog.scos.iter().map(sco_row).collect(),
    };
    let mut fields: Vec<(&str, Doc)> = vec![
        ("object_bytes", object.bytes.len().into()),
        ("volume", tlog.volume.to_string().into()),
        ("epoch", tlog.epoch.0.into()),
        ("number", tlog.no.0.into()),
        ("scos", Doc::Rows(scos)),
    ];
    if all {
        let changes: Vec<_> =
            tlog.scos.iter().flat_map(|sco| sco.changes.iter().cloned()).collect();
        fields.push(("changes", Doc::Rows(change_rows(&changes))));
    }
    Ok(Findings::sound(Doc::Fields(fields)))
}

fn sco_row(sco: &TlogSco) -> Vec<Value> {
    let seq =
        |change: Option<&volumedriver_core::format::Change>| Value::from(change.map(|c| c.seq.0));
    vec![
        sco.id.to_string().into(),
        sco.cluster_count.into(),
        sco.object_bytes.into(),
        sco.changes.len().into(),
        seq(sco.changes.first()),
        seq(sco.changes.last()),
    ]
}

//! `inspect manifest`: one link of the chain; and shapes, which `inspect vdisk` shows too.

use serde_json::Value;
use volumedriver_core::fault::Result;
use volumedriver_core::format::manifest::{
    Body, Manifest, Opening, Origin, RunRef, Shape, ShapeChange, TlogRef,
};

use super::file::Fetched;
use super::{Doc, Findings, Rows};

pub fn inspect(object: &Fetched) -> Result<Findings> {
    let manifest = Manifest::decode(&object.bytes).map_err(|fault| fault.about(&object.name))?;
    let mut fields: Vec<(&str, Doc)> = vec![
        ("object_bytes", object.bytes.len().into()),
        ("volume", manifest.volume.to_string().into()),
        ("number", manifest.no.0.into()),
        ("epoch", manifest.epoch.0.into()),
        ("node", manifest.node.to_string().into()),
        ("kind", kind(&manifest).into()),
    ];
    fields.push(match &manifest.body {
        Body::Checkpoint(shape) => ("shape", shape_doc(shape)),
        Body::Delta(changes) => ("changes", Doc::Rows(change_rows(changes))),
    });
    Ok(Findings::sound(Doc::Fields(fields)))
}

pub fn kind(manifest: &Manifest) -> &'static str {
    match manifest.body {
        Body::Checkpoint(_) => "checkpoint",
        Body::Delta(_) => "delta",
    }
}

/// A shape in full.
pub fn shape_doc(shape: &Shape) -> Doc {
    Doc::Fields(vec![
        ("name", shape.name.clone().into()),
        ("size_bytes", shape.size.0.into()),
        ("cluster_size_bytes", shape.cluster_size.bytes().into()),
        ("sco_size_bytes", shape.sco_size.0.into()),
        ("last_seq", shape.last_seq.0.into()),
        ("last_sco", shape.last_sco.0.into()),
        ("last_tlog", shape.last_tlog.0.into()),
        ("origins", origins(&shape.origins)),
        ("runs", runs(&shape.runs)),
        ("tlogs", tlogs(&shape.tlogs)),
        ("openings", openings(&shape.openings)),
    ])
}

fn origins(origins: &[Origin]) -> Doc {
    let row =
        |o: &Origin| vec![o.first_sco.0.into(), o.volume.to_string().into(), o.epoch.0.into()];
    Doc::Rows(Rows {
        columns: &["first_sco", "volume", "epoch"],
        rows: origins.iter().map(row).collect(),
    })
}

fn runs(runs: &[RunRef]) -> Doc {
    let row = |r: &RunRef| {
        let numbers =
            [r.no.0, r.epoch.0, r.first_tlog.0, r.last_tlog.0, r.object_bytes, r.entry_count];
        numbers.map(Value::from).to_vec()
    };
    Doc::Rows(Rows {
        columns: &["run", "epoch", "first_tlog", "last_tlog", "object_bytes", "extent_count"],
        rows: runs.iter().map(row).collect(),
    })
}

fn tlogs(tlogs: &[TlogRef]) -> Doc {
    let row = |t: &TlogRef| {
        let numbers = [t.no.0, t.epoch.0, t.first_sco.0, t.last_sco.0, t.object_bytes];
        numbers.map(Value::from).to_vec()
    };
    Doc::Rows(Rows {
        columns: &["tlog", "epoch", "first_sco", "last_sco", "object_bytes"],
        rows: tlogs.iter().map(row).collect(),
    })
}

fn openings(openings: &[Opening]) -> Doc {
    let row = |o: &Opening| vec![o.epoch.0.into(), o.no.0.into(), o.node.to_string().into()];
    Doc::Rows(Rows {
        columns: &["epoch", "manifest", "node"],
        rows: openings.iter().map(row).collect(),
    })
}

fn change_rows(changes: &[ShapeChange]) -> Rows {
    let row = |change: &ShapeChange| {
        let (kind, what) = describe(change);
        vec![kind.into(), what.into()]
    };
    Rows { columns: &["change", "what"], rows: changes.iter().map(row).collect() }
}

fn describe(change: &ShapeChange) -> (&'static str, String) {
    match change {
        ShapeChange::Opened(o) => ("opened", format!("epoch {} by node {}", o.epoch, o.node)),
        ShapeChange::Resized(size) => ("resized", format!("{size} bytes")),
        ShapeChange::ScoSizeSet(size) => ("SCO size set", format!("{size} bytes")),
        ShapeChange::Published { tlog, last_seq, origins } => (
            "published",
            format!(
                "TLog {} of epoch {} with SCOs {} to {}, changes up to {last_seq}, {} new origins",
                tlog.no,
                tlog.epoch,
                tlog.first_sco,
                tlog.last_sco,
                origins.len()
            ),
        ),
        ShapeChange::Compacted { run, replaced } => (
            "compacted",
            format!(
                "run {} of epoch {} holds TLogs {} to {} in {} extents, replaces runs {:?}",
                run.no,
                run.epoch,
                run.first_tlog,
                run.last_tlog,
                run.entry_count,
                replaced.iter().map(|no| no.0).collect::<Vec<_>>()
            ),
        ),
    }
}

//! The wire protocol byte by byte, with bytes written out from the protocol document and not from our constants.

mod bytes;
mod haggling;
mod judge;
mod replies;
mod requests;
mod splits;

use super::*;
use crate::fault::{Fault, Result};

/// Two exports: `disk` of 1 MiB and `frozen`, read-only.
pub(super) struct TwoDisks;

impl Catalog for TwoDisks {
    type Export = &'static str;

    fn names(&self) -> Vec<String> {
        vec!["disk".to_string(), "frozen".to_string()]
    }

    fn find(&self, name: &str) -> Result<(Description, &'static str)> {
        let (export, read_only) = match name {
            "disk" => ("disk", false),
            "frozen" => ("frozen", true),
            "closing" => return Err(Fault::closed("going away")),
            _ => return Err(Fault::invalid("no such volume")),
        };
        let description = Description {
            name: export.to_string(),
            size: 1 << 20,
            preferred_block: 4096,
            read_only,
        };
        Ok((description, export))
    }
}

pub(super) fn agreed(style: Style) -> Agreed {
    Agreed {
        style,
        size: 1 << 20,
        preferred_block: 4096,
        read_only: false,
        contexts: if style == Style::Simple { Contexts::none() } else { Contexts::all() },
    }
}

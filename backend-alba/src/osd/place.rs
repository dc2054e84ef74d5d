//! What kind an OSD is, by the place that its record names, and the client of it.
//!
//! | place | kind |
//! |---|---|
//! | `asd://HOST:PORT`, `asd://unix:PATH` | a disk behind gRPC (`alba asd`) |
//! | a path | a directory: of the process that was given it |

use std::str::FromStr;

use super::{Osd, Remote};
use crate::fault::Result;
use crate::name::{AlbaId, OsdId};
use crate::net::{Address, Tls};

const ASD: &str = "asd://";

/// The address of an ASD, with its scheme or without.
pub fn asd_address(text: &str) -> Result<Address> {
    Address::from_str(text.strip_prefix(ASD).unwrap_or(text))
}

/// The client of an OSD that any process can reach. `None` for one of another kind.
pub fn connect(
    place: &str,
    pair: (OsdId, AlbaId),
    tls: Option<&Tls>,
) -> Result<Option<Box<dyn Osd>>> {
    if !place.starts_with(ASD) {
        return Ok(None);
    }
    Ok(Some(Box::new(Remote::new(pair, asd_address(place)?, tls)?)))
}

//! What kind an OSD is, by the place that its record names, and the client of it.
//!
//! | place | kind |
//! |---|---|
//! | `asd://HOST:PORT`, `asd://unix:PATH` | `asd`: a disk behind gRPC (`alba asd`) |
//! | `s3://BUCKET/PREFIX?...` | `s3`: a bucket |
//! | `alba://HOST:PORT/NAMESPACE?...`, `alba+unix:PATH?...` | `alba`: a namespace of another ALBA |
//! | a path | `directory`: of the process that was given it |

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Bucket, S3Url};
use super::far::{self, AlbaUrl, FarAlba};
use super::objects::{Objects, OnObjects, owner};
use super::patience::SLOW_DEADLINE;
use super::{Osd, Remote, describe};
use crate::fault::{Fault, Result};
use crate::name::{AlbaId, OsdId};
use crate::net::{Address, Tls};

const ASD: &str = "asd://";
const S3: &str = "s3:";

/// Where an OSD is that any process can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Asd(Address),
    S3(S3Url),
    Alba(AlbaUrl),
}

/// An OSD that belongs to the backend now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub id: OsdId,
    pub node: String,
    pub labels: Vec<String>,
}

/// The kind of the OSD at a place, for people.
#[must_use]
pub fn kind(place: &str) -> &'static str {
    match place {
        place if place.starts_with(ASD) => "asd",
        place if place.starts_with(S3) => "s3",
        place if far::is_one(place) => "alba",
        _ => "directory",
    }
}

/// Whether it is meant to be the place of an OSD that any process can reach.
#[must_use]
pub fn is_anywhere(text: &str) -> bool {
    kind(text) != "directory"
}

impl FromStr for Place {
    type Err = Fault;
    /// The address of an ASD also without its scheme.
    fn from_str(text: &str) -> Result<Self> {
        match kind(text) {
            "s3" => text.parse().map(Self::S3),
            "alba" => text.parse().map(Self::Alba),
            _ => asd_address(text).map(Self::Asd),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asd(address) => write!(f, "{ASD}{address}"),
            Self::S3(url) => url.fmt(f),
            Self::Alba(url) => url.fmt(f),
        }
    }
}

impl Place {
    /// Makes it the backend's, as an OSD with this identity where there is none yet. `Invalid`, with its name, when it is
    /// another backend's. Where the OSD itself says what node it is on and which labels it has, these must not be given.
    pub async fn claim(
        &self,
        (fresh, alba): (OsdId, AlbaId),
        (node, labels): (Option<&str>, &[String]),
        tls: Option<&Tls>,
    ) -> Result<Claimed> {
        let objects: Arc<dyn Objects> = match self {
            Self::Asd(address) => {
                if node.is_some() || !labels.is_empty() {
                    let message =
                        format!("OSD {self} itself says on which node it is, and its labels");
                    return Err(Fault::invalid(message));
                }
                let said = describe(address, tls).await?;
                Remote::new((said.id, alba), address.clone(), tls)?.claim().await?;
                return Ok(Claimed { id: said.id, node: said.node, labels: said.labels });
            }
            Self::S3(url) => Arc::new(Bucket::new(url.clone())),
            Self::Alba(url) => {
                let far = FarAlba::new(url.clone(), tls)?;
                self.within(SLOW_DEADLINE, far.prepare(alba)).await?;
                Arc::new(far)
            }
        };
        let id = self.within(SLOW_DEADLINE, owner::claim(&*objects, alba, fresh)).await?;
        let node = node.map_or_else(|| self.node(), str::to_owned);
        Ok(Claimed { id, node, labels: labels.to_vec() })
    }

    /// What it is and whose, for a recovery, which claims nothing.
    pub async fn described(&self, tls: Option<&Tls>) -> Result<(Claimed, Option<AlbaId>)> {
        let objects: Arc<dyn Objects> = match self {
            Self::Asd(address) => {
                let said = describe(address, tls).await?;
                let claimed = Claimed { id: said.id, node: said.node, labels: said.labels };
                return Ok((claimed, said.owner));
            }
            Self::S3(url) => Arc::new(Bucket::new(url.clone())),
            Self::Alba(url) => Arc::new(FarAlba::new(url.clone(), tls)?),
        };
        let found = self.within(SLOW_DEADLINE, owner::standing(&*objects)).await?;
        let none = || Fault::invalid(format!("OSD {self}: there is none"));
        let standing = found.ok_or_else(none)?;
        let claimed = Claimed { id: standing.id, node: self.node(), labels: Vec::new() };
        Ok((claimed, standing.owner))
    }

    /// The client of an OSD that belongs to the backend; it connects when first needed.
    pub fn connect(&self, pair: (OsdId, AlbaId), tls: Option<&Tls>) -> Result<Box<dyn Osd>> {
        Ok(match self {
            Self::Asd(address) => Box::new(Remote::new(pair, address.clone(), tls)?),
            Self::S3(url) => Box::new(OnObjects::new(pair, Arc::new(Bucket::new(url.clone())))),
            Self::Alba(url) => {
                Box::new(OnObjects::new(pair, Arc::new(FarAlba::new(url.clone(), tls)?)))
            }
        })
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let late =
            |_| Fault::unavailable(format!("it did not answer within {} s", deadline.as_secs()));
        let outcome = tokio::time::timeout(deadline, call).await.map_err(late);
        outcome.flatten().map_err(|fault| fault.about(format!("OSD {self}")))
    }

    /// The failure domain of one that does not say it: the bucket, or the other ALBA.
    fn node(&self) -> String {
        let text = match self {
            Self::Asd(address) => format!("asd-{address}"),
            Self::S3(url) => format!("s3-{}", url.bucket),
            Self::Alba(url) => format!("alba-{}", url.address),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        text.chars().map(|c| if legal(c) { c } else { '-' }).take(64).collect()
    }
}

/// The address of an ASD, with its scheme or without.
pub fn asd_address(text: &str) -> Result<Address> {
    let address = Address::from_str(text.strip_prefix(ASD).unwrap_or(text));
    address.map_err(|fault| {
        let kinds = "nor is it s3://BUCKET/PREFIX or alba://HOST:PORT/NAMESPACE";
        Fault::invalid(format!("{}, {kinds}", fault.message))
    })
}

/// The client of an OSD that any process can reach. `None` for one of another kind.
pub fn connect(
    place: &str,
    pair: (OsdId, AlbaId),
    tls: Option<&Tls>,
) -> Result<Option<Box<dyn Osd>>> {
    if !is_anywhere(place) {
        return Ok(None);
    }
    place.parse::<Place>()?.connect(pair, tls).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_of_the_kind_that_they_look_like() {
        for (text, of_kind) in [
            ("asd://h:1", "asd"),
            ("asd://unix:/s", "asd"),
            ("s3://bucket/p", "s3"),
            ("alba://h:1/ns", "alba"),
            ("alba+unix:/s?namespace=ns", "alba"),
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!((place.to_string().as_str(), kind(text)), (text, of_kind));
            assert!(crate::preset::check_word("node", &place.node()).is_ok(), "{}", place.node());
        }
        assert_eq!("h:1".parse::<Place>().unwrap().to_string(), "asd://h:1");
        for directory in ["/s3", "dir", "./alba", "asd"] {
            assert!(!is_anywhere(directory), "{directory}");
        }
        let fault = "nonsense".parse::<Place>().unwrap_err();
        assert!(fault.message.contains("s3://BUCKET/PREFIX"), "{fault}");
    }
}

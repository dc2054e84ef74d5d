//! Writers of one new name, let loose together.

use bytes::Bytes;
use futures_util::future::join_all;
use volumedriver_core::fault::{Fault, Kind, Result};

use super::{Place, put, read};
use crate::world::{ObjectStore, Put};

/// Rounds of writers, as many as it takes to see what happens in one of five with near certainty.
pub(super) struct Race {
    name: &'static str,
    rounds: usize,
    writers: usize,
}

/// How a round ended.
enum Round {
    Right,
    /// The outcome of some puts is unknown, and none is known to have won.
    Unknown,
    Lie(String),
}

impl Race {
    pub(super) fn of_single_puts() -> Self {
        Self { name: "race", rounds: 32, writers: 12 }
    }

    pub(super) fn of_uploads_in_parts() -> Self {
        Self { name: "race-parts", rounds: 8, writers: 6 }
    }

    pub(super) async fn run<S: ObjectStore>(
        &self,
        store: &S,
        place: &Place<'_>,
    ) -> Result<Option<String>> {
        let mut unknown = 0;
        for round in 0..self.rounds {
            match self.round(store, place, &format!("{}/{round}", self.name)).await? {
                Round::Right => {}
                Round::Unknown => unknown += 1,
                Round::Lie(lie) => {
                    return Ok(Some(format!("{lie} (round {} of {})", round + 1, self.rounds)));
                }
            }
        }
        if unknown > self.rounds / 4 {
            return Err(Fault::unavailable(format!(
                "{unknown} of {} races of writers had no known outcome",
                self.rounds
            )));
        }
        Ok(None)
    }

    async fn round<S: ObjectStore>(
        &self,
        store: &S,
        place: &Place<'_>,
        name: &str,
    ) -> Result<Round> {
        let bodies: Vec<Bytes> = (0..self.writers).map(body).collect();
        let puts = bodies.iter().map(|body| put(store, place, name, body));
        let (mut winners, mut unknown) = (Vec::new(), 0);
        for (writer, outcome) in join_all(puts).await.into_iter().enumerate() {
            match outcome {
                Ok(Put::Created) => winners.push(writer),
                Ok(Put::Exists) => {}
                Err(fault) if fault.kind == Kind::Unavailable => unknown += 1,
                Err(fault) => return Err(fault),
            }
        }
        let won = match winners[..] {
            [winner] => winner,
            [] if unknown > 0 => return Ok(Round::Unknown),
            [] => return Ok(Round::Lie(format!("of {} racing writers none won", self.writers))),
            _ => {
                let lie = format!(
                    "{} of {} racing writers with If-None-Match: * were all told that they won",
                    winners.len(),
                    self.writers
                );
                return Ok(Round::Lie(lie));
            }
        };
        match read(store, place, name).await? {
            Some(bytes) if bytes == bodies[won] => Ok(Round::Right),
            Some(_) => {
                Ok(Round::Lie("after a race the bytes are not those of the writer that won".into()))
            }
            None => Ok(Round::Lie("after a race the object is not there".into())),
        }
    }
}

/// Each writer's bytes differ in value and length.
fn body(writer: usize) -> Bytes {
    let value = u8::try_from(writer).unwrap_or(u8::MAX);
    Bytes::from(vec![value; 16_384 + writer])
}

//! Bodies on their way, and whether they move.
//!
//! A transfer has no deadline: it fails only when nothing has moved for a while, so a slow line is no reason to begin again.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

/// What the connection takes at a time: each such step is seen as movement.
const STEP: usize = 256 << 10;

/// When a transfer last moved. Shared by its clones.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<Instant>>);

/// Nothing moved for this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stalled(pub Duration);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn moved(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `call` as long as something has moved within `patience`.
    pub(super) async fn watch<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = T>,
    ) -> Result<T, Stalled> {
        self.moved();
        let mut call = pin!(call);
        loop {
            let due = self.last() + patience;
            tokio::select! {
                biased;
                done = &mut call => return Ok(done),
                () = sleep_until(due) => {
                    if self.last() + patience <= Instant::now() {
                        return Err(Stalled(patience));
                    }
                }
            }
        }
    }
}

/// The pieces one after the other, as a request's body that can be sent again.
pub(super) fn request_body(pieces: Vec<Bytes>, progress: Progress) -> ByteStream {
    let body = move || {
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        let rest = pieces.clone().into_iter();
        SdkBody::from_body_1_x(Pieces { rest, now: Bytes::new(), left, progress: progress.clone() })
    };
    ByteStream::new(SdkBody::retryable(body))
}

struct Pieces {
    rest: std::vec::IntoIter<Bytes>,
    now: Bytes,
    left: u64,
    progress: Progress,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        this.progress.moved();
        while this.now.is_empty() {
            match this.rest.next() {
                Some(piece) => this.now = piece,
                None => return Poll::Ready(None),
            }
        }
        let step = this.now.split_to(this.now.len().min(STEP));
        this.left -= step.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// `from..from + len` of the pieces, without copying.
pub(super) fn slice(pieces: &[Bytes], from: u64, len: u64) -> Vec<Bytes> {
    let (mut at, until) = (0_u64, from + len);
    let mut cut = Vec::new();
    for piece in pieces {
        let (begin, end) = (at, at + piece.len() as u64);
        at = end;
        let (low, high) = (begin.max(from), end.min(until));
        if low < high {
            // Both lie within the piece, whose length is a usize.
            cut.push(piece.slice((low - begin) as usize..(high - begin) as usize));
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_lives_and_what_does_not_ends() {
        let patience = Duration::from_secs(15);
        let progress = Progress::new();
        let slow = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(14)).await;
                progress.moved();
            }
        };
        assert_eq!(progress.watch(patience, slow).await, Ok(()));
        let stuck = async {
            tokio::time::sleep(Duration::from_secs(14)).await;
            progress.moved();
            std::future::pending::<()>().await;
        };
        let began = Instant::now();
        assert_eq!(progress.watch(patience, stuck).await, Err(Stalled(patience)));
        assert_eq!(began.elapsed().as_secs(), 29);
    }

    #[tokio::test]
    async fn a_body_is_its_pieces_in_order_as_often_as_it_is_asked_for() {
        let pieces = vec![Bytes::from(vec![1; STEP + 1]), Bytes::new(), Bytes::from_static(b"end")];
        let whole = pieces.concat();
        let body = request_body(pieces, Progress::new()).into_inner();
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(whole.len() as u64));
        let again = body.try_clone().expect("retryable");
        for body in [body, again] {
            let got = ByteStream::new(body).collect().await.unwrap().into_bytes();
            assert!(got == whole);
        }
    }

    #[test]
    fn slices_are_those_of_the_whole() {
        let pieces = [
            Bytes::from_static(b"abc"),
            Bytes::new(),
            Bytes::from_static(b"d"),
            Bytes::from_static(b"efgh"),
        ];
        let whole = pieces.concat();
        for from in 0..=whole.len() {
            for to in from..=whole.len() {
                let cut = slice(&pieces, from as u64, (to - from) as u64);
                assert_eq!(cut.concat(), whole[from..to]);
                assert!(cut.iter().all(|piece| !piece.is_empty()));
            }
        }
    }
}

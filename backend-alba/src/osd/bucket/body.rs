//! The body of a fragment on its way up: what comes through a queue, of a length that is known.

use std::pin::Pin;
use std::task::{Context, Poll};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// A queue that ends early breaks the request off: the server has not got what it was promised and keeps nothing.
pub(super) fn of_queue(queue: mpsc::Receiver<Bytes>, len: u64) -> ByteStream {
    ByteStream::new(SdkBody::from_body_1_x(Queued { queue, left: len }))
}

struct Queued {
    queue: mpsc::Receiver<Bytes>,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the fragment was given up, {0} bytes of it were still to come")]
    Short(u64),
    #[error("{0} bytes more than announced")]
    Long(u64),
}

impl Body for Queued {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let Poll::Ready(next) = self.queue.poll_recv(context) else { return Poll::Pending };
        let left = self.left;
        Poll::Ready(Some(match next {
            None => Err(Broken::Short(left)),
            Some(bytes) => match left.checked_sub(bytes.len() as u64) {
                None => Err(Broken::Long(bytes.len() as u64 - left)),
                Some(left) => {
                    self.left = left;
                    Ok(Frame::data(bytes))
                }
            },
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

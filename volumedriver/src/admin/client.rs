//! The asking side of the management socket.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_proto::management::management_client::ManagementClient;

use super::socket;

/// Longest answer that is read, bytes: a listing of very many vDisks.
const MAX_ANSWER_BYTES: usize = 64 << 20;

pub type Client = ManagementClient<Channel>;

/// Connects to the daemon of this data directory.
pub async fn connect(data_dir: &Path) -> Result<Client> {
    let path = socket::path(data_dir);
    // Asked for first by itself, because the channel's error would not say why.
    UnixStream::connect(&path).await.map_err(|e| no_daemon(data_dir, &path, e))?;
    // The URI is a formality; the connector decides where to go.
    let endpoint = Endpoint::from_static("http://management");
    let connect = tower::service_fn(move |_: Uri| dial(path.clone()));
    let channel = endpoint
        .connect_with_connector(connect)
        .await
        .map_err(|e| Fault::unavailable("the daemon does not answer").because(e))?;
    Ok(ManagementClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

fn no_daemon(data_dir: &Path, path: &Path, e: std::io::Error) -> Fault {
    let shown = data_dir.display();
    Fault::unavailable(format!(
        "no daemon serves {shown} (start it with: volumedriver serve --data-dir {shown}); {}",
        path.display()
    ))
    .because(e)
}

/// A refusal as it was before it crossed the socket.
#[must_use]
pub fn fault_of(status: &tonic::Status) -> Fault {
    Fault::new(kind_of(status.code()), status.message())
}

fn kind_of(code: tonic::Code) -> Kind {
    use tonic::Code;
    match code {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => {
            Kind::Invalid
        }
        Code::ResourceExhausted => Kind::NoSpace,
        Code::Unavailable | Code::DeadlineExceeded => Kind::Unavailable,
        Code::DataLoss => Kind::Corrupt,
        Code::FailedPrecondition => Kind::Fenced,
        Code::Aborted | Code::Cancelled => Kind::Closed,
        Code::PermissionDenied | Code::Unauthenticated => Kind::Invalid,
        Code::Ok | Code::Unknown | Code::Internal | Code::Unimplemented => Kind::Bug,
    }
}

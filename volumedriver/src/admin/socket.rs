//! Unix sockets in the data directory: mode 0600, a dead one is replaced, a live one is refused.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use volumedriver_core::fault::{Fault, Result};

use crate::config::MAX_SOCKET_PATH_BYTES;

/// The management socket of a data directory.
#[must_use]
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("management.sock")
}

/// Listens at `path`, for this user only. The caller holds the lock of the data directory, so nobody else binds meanwhile.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    check_free(path)?;
    // Bound under another name, so that no client ever sees it with other permissions.
    let hidden = path.with_extension("new");
    if hidden.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(Fault::invalid(format!(
            "{shown}: longer than a socket's path can be ({MAX_SOCKET_PATH_BYTES} bytes); use a shorter data directory"
        )));
    }
    let about =
        |e: std::io::Error| Fault::unavailable(format!("{shown}: cannot listen here")).because(e);
    match fs::remove_file(&hidden) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(about(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(about)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(about)?;
    fs::rename(&hidden, path).map_err(about)?;
    Ok(listener)
}

/// Nothing there, or a socket nobody answers at.
fn check_free(path: &Path) -> Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(Fault::unavailable(format!("{shown}: cannot be looked at")).because(e));
        }
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Fault::invalid(format!(
                "{shown}: something that is not a socket is in the way"
            )));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Fault::invalid(format!("{shown}: another process is listening here"))),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => {
            Err(Fault::unavailable(format!("{shown}: cannot tell whether it is in use")).because(e))
        }
    }
}

//! The TLS options, which all parts have in common.

use std::path::PathBuf;

use backend_alba::Result;
use backend_alba::server::{Tls, TlsFiles};
use clap::Args;

/// All three or none: without them connections are plain. Unix sockets always are.
#[derive(Args)]
pub(super) struct TlsOptions {
    /// Our certificate (PEM), which the other side checks.
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    /// The key of our certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "tls_ca")]
    tls_key: Option<PathBuf>,
    /// Certificates of the authorities (PEM) that may have signed the other side's.
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "tls_key")]
    tls_ca: Option<PathBuf>,
}

impl TlsOptions {
    pub(super) fn load(&self) -> Result<Option<Tls>> {
        match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(authority)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                let files = TlsFiles { certificate, key, authority: authority.clone() };
                Tls::load(&files).map(Some)
            }
            // Some without the others is refused before this.
            _ => Ok(None),
        }
    }
}

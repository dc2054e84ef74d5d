//! TLS of NBD sessions (`NBD_OPT_STARTTLS`): from configured files to something that accepts, or a message naming the file.

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::wire::nbd::TlsPolicy;

use crate::config::{TlsConfig, TlsFiles};

/// Whether clients may or must use TLS, ready to be used.
#[derive(Clone)]
pub enum Tls {
    Off,
    Optional(TlsAcceptor),
    Required(TlsAcceptor),
}

impl Tls {
    /// Reads the files. `Invalid` names the file that is missing, unreadable or does not hold what it should.
    pub fn load(config: &TlsConfig) -> Result<Self> {
        match config {
            TlsConfig::Off => Ok(Self::Off),
            TlsConfig::Optional(files) => Ok(Self::Optional(acceptor(files)?)),
            TlsConfig::Required(files) => Ok(Self::Required(acceptor(files)?)),
        }
    }

    pub(super) fn policy(&self) -> TlsPolicy {
        match self {
            Self::Off => TlsPolicy::Off,
            Self::Optional(_) => TlsPolicy::Optional,
            Self::Required(_) => TlsPolicy::Required,
        }
    }

    pub(super) fn acceptor(&self) -> Option<&TlsAcceptor> {
        match self {
            Self::Off => None,
            Self::Optional(acceptor) | Self::Required(acceptor) => Some(acceptor),
        }
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_reader(open(&files.key)?)
        .map_err(|error| about(&files.key, "no private key in this PEM file").because(error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::bug("TLS versions of our own provider").because(error))?;
    let builder = match &files.client_ca {
        Some(ca) => builder.with_client_cert_verifier(client_verifier(ca, provider)?),
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| {
        let key = files.key.display();
        about(&files.certificate, &format!("does not go with the key {key}")).because(error)
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn client_verifier(
    ca: &Path,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots
            .add(certificate)
            .map_err(|error| about(ca, "holds no usable CA certificate").because(error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| about(ca, "cannot be used to check clients").because(error))
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_reader_iter(open(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| about(path, "is not a PEM file of certificates").because(error))?;
    if chain.is_empty() {
        return Err(about(path, "no certificate in this PEM file"));
    }
    Ok(chain)
}

fn open(path: &Path) -> Result<BufReader<std::fs::File>> {
    let file = std::fs::File::open(path);
    file.map(BufReader::new).map_err(|error| about(path, "cannot be read").because(error))
}

fn about(path: &Path, what: &str) -> Fault {
    Fault::invalid(what).about(path.display())
}

//! TLS between all parts: both sides show a certificate, and trust those that one authority has signed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::Status;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

use crate::fault::{Fault, Result};

/// Longest file of certificates or keys, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Whoever connects and says nothing has this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The files of one side, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its own certificate, and those between it and the authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Certificates of the authorities that may have signed the other side's.
    pub authority: PathBuf,
}

/// What one side shows and whom it trusts.
#[derive(Clone)]
pub struct Tls {
    identity: Identity,
    authority: Certificate,
}

impl std::fmt::Debug for Tls {
    // Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads and checks the files; a fault names the one that is wrong.
    pub fn load(files: &TlsFiles) -> Result<Self> {
        let certificate = read(&files.certificate)?;
        check_certificates(&files.certificate, &certificate)?;
        let key = read(&files.key)?;
        if PrivateKeyDer::from_pem_slice(&key).is_err() {
            let file = files.key.display();
            return Err(Fault::invalid(format!("{file}: it holds no private key (PEM)")));
        }
        let authority = read(&files.authority)?;
        check_certificates(&files.authority, &authority)?;
        let identity = Identity::from_pem(certificate, key);
        let tls = Self { identity, authority: Certificate::from_pem(authority) };
        // Whatever else is wrong with them, such as a key of another certificate.
        let files = format!("{} and {}", files.certificate.display(), files.key.display());
        tls.serve(Server::builder()).map_err(|fault| fault.about(files))?;
        Ok(tls)
    }

    pub(super) fn serve(&self, server: Server) -> Result<Server> {
        let config = ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.authority.clone())
            .timeout(HANDSHAKE_TIMEOUT);
        server.tls_config(config).map_err(unusable)
    }

    pub(super) fn connect(&self, endpoint: Endpoint) -> Result<Endpoint> {
        let config = ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .timeout(HANDSHAKE_TIMEOUT);
        endpoint.tls_config(config).map_err(unusable)
    }
}

fn unusable(error: tonic::transport::Error) -> Fault {
    let source: Option<Box<dyn std::error::Error + Send + Sync>> = Some(Box::new(error));
    Fault { source, ..Fault::invalid("they cannot be used for TLS") }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = path.display();
    let unread = |e: std::io::Error| {
        let source: Option<Box<dyn std::error::Error + Send + Sync>> = Some(Box::new(e));
        Fault { source, ..Fault::invalid(format!("{file}: cannot be read")) }
    };
    let len = std::fs::metadata(path).map_err(unread)?.len();
    if len > MAX_FILE_BYTES {
        let message = format!("{file}: {len} bytes, at most {MAX_FILE_BYTES} are legal");
        return Err(Fault::invalid(message));
    }
    std::fs::read(path).map_err(unread)
}

fn check_certificates(path: &Path, pem: &[u8]) -> Result<()> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if certificate.is_err() {
            count = 0;
            break;
        }
        count += 1;
    }
    let none = || Fault::invalid(format!("{}: it holds no certificate (PEM)", path.display()));
    if count == 0 { Err(none()) } else { Ok(()) }
}

/// What a failed call says to a person: all of its causes, and what a broken connection most likely means.
#[must_use]
pub fn explain(status: &Status) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        cause = error.source();
    }
    if causes.is_empty() {
        return status.message().to_string();
    }
    let causes = causes.join(": ");
    match hint(&causes) {
        Some(hint) => format!("{hint} ({causes})"),
        None => causes,
    }
}

/// What a server that wants TLS does to a client without, or with a certificate it does not like.
const CLOSED: &str = "it closed the connection at once: if it wants TLS, give the TLS options";

fn hint(causes: &str) -> Option<&'static str> {
    let hints = [
        ("UnknownIssuer", "its certificate is signed by an authority that is not ours"),
        ("BadSignature", "its certificate is signed by an authority that is not ours"),
        ("certificate expired", "its certificate has expired"),
        ("NotValidForName", "its certificate is for another name"),
        ("not valid for name", "its certificate is for another name"),
        ("InvalidContentType", "it does not speak TLS: leave out the TLS options"),
        ("CertificateRequired", "it wants a certificate of ours: give the TLS options"),
        ("UnknownCA", "it does not trust the authority that signed our certificate"),
        ("DecryptError", "it does not trust the authority that signed our certificate"),
        ("CertificateExpired", "our certificate has expired"),
        ("BadCertificate", "it refuses our certificate"),
        ("Connection refused", "nothing listens there"),
        ("connection closed", CLOSED),
        ("broken pipe", CLOSED),
        ("Connection reset", CLOSED),
        ("frame with invalid size", "it does not speak gRPC without TLS: give the TLS options"),
    ];
    hints.iter().find(|(mark, _)| causes.contains(mark)).map(|(_, hint)| *hint)
}

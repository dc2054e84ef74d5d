//! STARTTLS with certificates made here: the three policies, client certificates, and configuration that cannot work.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::peer::{Peer, named};
use super::ram::{Ram, Rams, Running, Speed};
use crate::config::{TlsConfig, TlsFiles};
use crate::nbd::{Limits, Tls};

/// A CA, a certificate for `localhost` and one for a client, as PEM files.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write =
            |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).expect("written");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        write("ca.pem", params.self_signed(&key).expect("signed").pem());
        let ca = Issuer::new(params, key);
        for name in ["server", "client"] {
            let params = CertificateParams::new(vec!["localhost".to_string()]).expect("parameters");
            let key = KeyPair::generate().expect("a key");
            write(&format!("{name}.pem"), params.signed_by(&key, &ca).expect("signed").pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: None,
        }
    }
    fn client(&self, certificate: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate_in(&self.path("ca.pem"))).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        Arc::new(match certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key")));
                let chain = vec![certificate_in(&self.path(&format!("{name}.pem")))];
                builder.with_client_auth_cert(chain, key.expect("a key")).expect("a pair")
            }
        })
    }
}

fn certificate_in(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

fn server(config: &TlsConfig) -> Running {
    let tls = Tls::load(config).expect("usable files");
    let rams = || Rams::of([Ram::new("disk", 8 << 20, Speed::AtOnce)]);
    Running::with_tls(rams, Limits::default(), tls)
}

/// After the server agreed to start TLS.
fn secure(
    peer: Peer,
    config: Arc<ClientConfig>,
) -> Peer<StreamOwned<ClientConnection, UnixStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(config, name).expect("a session");
    Peer { stream: StreamOwned::new(session, peer.stream) }
}

#[test]
fn a_session_over_tls() {
    let certificates = Certificates::new();
    for config in
        [TlsConfig::Optional(certificates.files()), TlsConfig::Required(certificates.files())]
    {
        let server = server(&config);
        let mut peer = Peer::connect(&server.socket());
        peer.acked(5, &[]);
        let mut peer = secure(peer, certificates.client(None));
        assert_eq!(peer.option(5, &[]).last().map(|reply| reply.0), Some(0x8000_0003));
        peer.acked(8, &[]);
        peer.go("disk");
        let data: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 255 + 1) as u8).collect();
        peer.ask(0, 1, 1, 0, 4 << 20);
        peer.give(&data);
        assert_eq!(peer.simple(), (0, 1));
        peer.ask(4, 0, 2, 0, 4 << 20);
        let chunk = peer.structured();
        assert!(chunk.last && chunk.payload[8..] == data);
        peer.ask(0, 2, 3, 0, 0);
        peer.closed();
    }
}

#[test]
fn forced_tls_says_so_and_optional_tls_does_not_insist() {
    let certificates = Certificates::new();
    let forced = server(&TlsConfig::Required(certificates.files()));
    let mut peer = Peer::connect(&forced.socket());
    let refused = peer.option(7, &named("disk", &[0, 0]));
    assert_eq!(refused.last().map(|reply| reply.0), Some(0x8000_0005));
    peer.acked(5, &[]);

    let optional = server(&TlsConfig::Optional(certificates.files()));
    Peer::connect(&optional.socket()).go("disk");

    let off = server(&TlsConfig::Off);
    let refused = Peer::connect(&off.socket()).option(5, &[]);
    assert_eq!(refused.last().map(|reply| reply.0), Some(0x8000_0002));
}

#[test]
fn bytes_in_the_clear_after_starting_tls_are_not_listened_to() {
    let certificates = Certificates::new();
    let server = server(&TlsConfig::Optional(certificates.files()));
    let mut peer = Peer::connect(&server.socket());
    peer.give(b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x08\0\0\0\0");
    peer.take(20);
    peer.closed();
}

#[test]
fn clients_show_a_certificate_where_one_is_asked_for() {
    let certificates = Certificates::new();
    let client_ca = Some(certificates.path("ca.pem"));
    let server = server(&TlsConfig::Required(TlsFiles { client_ca, ..certificates.files() }));
    let mut peer = Peer::connect(&server.socket());
    peer.acked(5, &[]);
    secure(peer, certificates.client(Some("client"))).go("disk");

    let mut peer = Peer::connect(&server.socket());
    peer.acked(5, &[]);
    let mut nameless = secure(peer, certificates.client(None));
    // TLS 1.3 tells the client only after its first bytes.
    let _ = std::io::Write::write_all(&mut nameless.stream, b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    let mut byte = [0];
    assert!(!matches!(std::io::Read::read(&mut nameless.stream, &mut byte), Ok(1)));
}

#[test]
fn files_that_cannot_work_are_named() {
    let certificates = Certificates::new();
    std::fs::write(certificates.path("empty.pem"), "").expect("written");
    let missing = certificates.path("missing.pem");
    let empty = certificates.path("empty.pem");
    let other_key = certificates.path("client.key");
    let good = certificates.files();
    for (files, named) in [
        (TlsFiles { certificate: missing.clone(), ..good.clone() }, "missing.pem"),
        (TlsFiles { certificate: empty.clone(), ..good.clone() }, "empty.pem"),
        (TlsFiles { key: missing.clone(), ..good.clone() }, "missing.pem"),
        (TlsFiles { key: certificates.path("server.pem"), ..good.clone() }, "server.pem"),
        (TlsFiles { key: other_key, ..good.clone() }, "client.key"),
        (TlsFiles { client_ca: Some(missing), ..good.clone() }, "missing.pem"),
        (TlsFiles { client_ca: Some(empty), ..good.clone() }, "empty.pem"),
    ] {
        let message = Tls::load(&TlsConfig::Required(files)).err().expect("refused").to_string();
        assert!(message.contains(named), "{message}");
    }
}

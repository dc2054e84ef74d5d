//! From a URL to a client of its server: credentials, TLS, endpoint.

use std::path::Path;
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::url::{Addressing, S3Url};
use crate::fault::{Fault, Result};

/// Times a question is asked, and a deletion; fragments on their way up are sent once.
const ATTEMPTS: u32 = 3;
/// Before the second one; the backend goes around an OSD that is away rather than wait for it.
const PAUSE: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers close idle connections too, some after 20 s: a request on one that is just being closed fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// What servers without regions expect.
const DEFAULT_REGION: &str = "us-east-1";
/// Longest file of certificates or credentials, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Connects to nothing yet.
pub(super) async fn client(url: &S3Url) -> Result<Client> {
    let http = http_client(url.ca.as_deref())?;
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(PAUSE);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(retries)
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(profile) = &url.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = &url.credentials {
        loader = loader.credentials_provider(from_file(file, url.profile.as_deref())?);
    }
    if let Some(endpoint) = &url.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let by_default = url.endpoint.as_ref().map(|_| DEFAULT_REGION);
    if let Some(region) = url.region.as_deref().or(by_default) {
        loader = loader.region(Region::new(region.to_owned()));
    }
    // The library's futures are large.
    let shared = Box::pin(loader.load()).await;
    if shared.region().is_none() {
        return Err(Fault::invalid(
            "no region: give region=... in its URL, or set AWS_REGION, or endpoint=... for a server of your own",
        ));
    }
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(url.addressing == Addressing::Path)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Ok(Client::from_conf(config))
}

/// The file named counts, and nothing else.
fn from_file(file: &Path, profile: Option<&str>) -> Result<ProfileFileCredentialsProvider> {
    read(file, "credentials")?;
    let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
    let profile = profile.unwrap_or("default");
    Ok(ProfileFileCredentialsProvider::builder().profile_files(files).profile_name(profile).build())
}

fn http_client(ca: Option<&Path>) -> Result<SharedHttpClient> {
    let trust = match ca {
        Some(file) => TrustStore::empty().with_pem_certificate(checked_certificates(file)?),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context
        .map_err(|e| Fault { source: Some(Box::new(e)), ..Fault::bug("TLS cannot be set up") })?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build_https())
}

/// The library panics over certificates that are none.
fn checked_certificates(file: &Path) -> Result<Vec<u8>> {
    let pem = read(file, "ca")?;
    let about = |why: String| Fault::invalid(format!("ca={}: {why}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| about(format!("not PEM: {e:?}")))?;
        roots.add(certificate).map_err(|e| about(format!("no certificate: {e}")))?;
    }
    if roots.is_empty() { Err(about("there is no certificate in it".into())) } else { Ok(pem) }
}

fn read(file: &Path, parameter: &str) -> Result<Vec<u8>> {
    let name = format!("{parameter}={}", file.display());
    let unread = |e: std::io::Error| Fault {
        source: Some(Box::new(e)),
        ..Fault::invalid(format!("{name}: it cannot be read"))
    };
    let len = std::fs::metadata(file).map_err(unread)?.len();
    if len > MAX_FILE_BYTES {
        let message = format!("{name}: {len} bytes, at most {MAX_FILE_BYTES} are legal");
        return Err(Fault::invalid(message));
    }
    std::fs::read(file).map_err(unread)
}

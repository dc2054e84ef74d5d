//! From a URL to a client: credentials, TLS, endpoint.

use std::path::Path;
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
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
use rustls::pki_types::pem::PemObject;
use volumedriver_core::fault::{Fault, Result};

use crate::config::{Addressing, S3Url};

/// A connection that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers close idle connections too, some after 20 s: a request on one that is just being closed fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// What servers without regions expect.
const DEFAULT_REGION: &str = "us-east-1";
/// Longest file of certificates or credentials, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Connects to nothing yet. Repetition, patience and checksums are ours: the library does none of them.
pub(super) async fn client(url: &S3Url, credentials: Option<&Path>) -> Result<Client> {
    let http = http_client(url.ca.as_deref())?;
    // The library's futures are large.
    let shared = Box::pin(shared_config(url, credentials, http)).await?;
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(url.addressing == Addressing::Path)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Ok(Client::from_conf(config))
}

async fn shared_config(
    url: &S3Url,
    credentials: Option<&Path>,
    http: SharedHttpClient,
) -> Result<SdkConfig> {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(profile) = &url.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = credentials {
        loader = loader.credentials_provider(from_file(file, url.profile.as_deref())?);
    }
    let region = url.region.as_deref();
    if let Some(endpoint) = &url.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(region) = region.or(url.endpoint.as_ref().map(|_| DEFAULT_REGION)) {
        loader = loader.region(Region::new(region.to_owned()));
    }
    let shared = loader.load().await;
    if shared.region().is_none() {
        return Err(Fault::invalid(
            "no region: give region=... in the backend's URL, or set AWS_REGION, or endpoint=... for a server of your own",
        ));
    }
    Ok(shared)
}

/// The file named in the configuration counts, and nothing else.
fn from_file(file: &Path, profile: Option<&str>) -> Result<ProfileFileCredentialsProvider> {
    read(file, "[vpool] s3_credentials")?;
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
    let context = context.map_err(|e| Fault::bug("TLS cannot be set up").because(e))?;
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
    match roots.is_empty() {
        false => Ok(pem),
        true => Err(about("there is no certificate in it".to_owned())),
    }
}

fn read(file: &Path, what: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let about = |e: std::io::Error| {
        Fault::invalid(format!("{what}: {} cannot be read", file.display())).because(e)
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(about)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(about)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        false => Ok(bytes),
        true => Err(Fault::invalid(format!("{what}: {} is too long", file.display()))),
    }
}

//! What a server's "no" means, and what a person can do about it.
//!
//! Whatever may pass (a server that is away, overloaded, misconfigured for an hour, has lost its clock or our rights) is
//! `Unavailable`: uploads go on trying, and the message stands in `backend status`. Opening a vPool for the first time does
//! not wait for any of it (see the probe).

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use volumedriver_core::fault::{Fault, Kind};

use super::body::Stalled;

/// The meaning of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// 412: the key exists.
    Exists,
    /// 409: somebody else is writing this key right now.
    Conflict,
    /// No such key.
    Absent,
    NoBucket,
    NoUpload,
    /// 416: the range begins past the end.
    PastEnd,
    SlowDown,
    Denied,
    NoCredentials,
    Skewed,
    WrongRegion,
    /// The certificate is not trusted, or does not fit the name.
    Untrusted,
    Unreachable,
    /// The body did not arrive as it was sent.
    Garbled,
    Full,
    TooLarge,
    /// The server does not know what was asked of it.
    Unsupported,
    /// It failed, or answered what nobody understands: the outcome is unknown.
    Failed,
}

/// A call that was not answered with what was asked.
#[derive(Debug)]
pub(super) struct Refusal {
    pub meaning: Meaning,
    message: String,
}

impl Refusal {
    pub(super) fn new(meaning: Meaning, message: impl Into<String>) -> Self {
        Self { meaning, message: message.into() }
    }

    /// Whether the same call may be answered otherwise in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self.meaning {
            Meaning::SlowDown | Meaning::Unreachable | Meaning::Garbled | Meaning::Failed => true,
            Meaning::Exists
            | Meaning::Conflict
            | Meaning::Absent
            | Meaning::NoBucket
            | Meaning::NoUpload
            | Meaning::PastEnd
            | Meaning::Denied
            | Meaning::NoCredentials
            | Meaning::Skewed
            | Meaning::WrongRegion
            | Meaning::Untrusted
            | Meaning::Full
            | Meaning::TooLarge
            | Meaning::Unsupported => false,
        }
    }

    /// As the engine sees it; `about` is the object's or bucket's name.
    pub(super) fn into_fault(self, about: &str) -> Fault {
        let Self { meaning, message } = self;
        let kind = match meaning {
            Meaning::Full => Kind::NoSpace,
            Meaning::PastEnd | Meaning::TooLarge => Kind::Invalid,
            Meaning::Exists
            | Meaning::Conflict
            | Meaning::Absent
            | Meaning::NoBucket
            | Meaning::NoUpload
            | Meaning::SlowDown
            | Meaning::Denied
            | Meaning::NoCredentials
            | Meaning::Skewed
            | Meaning::WrongRegion
            | Meaning::Untrusted
            | Meaning::Unreachable
            | Meaning::Garbled
            | Meaning::Unsupported
            | Meaning::Failed => Kind::Unavailable,
        };
        let advice = advice(meaning).map(|advice| format!(". {advice}")).unwrap_or_default();
        Fault::new(kind, format!("{about}: {message}{advice}"))
    }
}

/// What to do, where that is plain.
fn advice(meaning: Meaning) -> Option<&'static str> {
    match meaning {
        Meaning::NoBucket => Some("Create the bucket, or correct its name in the backend's URL"),
        Meaning::Denied => Some(
            "The credentials are wrong, have expired or lack the right to read, write, list and delete there: see \
             [vpool] s3_credentials and the AWS_ variables of the environment",
        ),
        Meaning::NoCredentials => Some(
            "Name a file in [vpool] s3_credentials, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile \
             in the backend's URL, or give the instance a role",
        ),
        Meaning::Skewed => {
            Some("This machine's clock and the server's differ by too much: synchronise them")
        }
        Meaning::WrongRegion => Some("Give region=... in the backend's URL"),
        Meaning::Untrusted => Some(
            "Give ca=FILE in the backend's URL, with the certificate of the server's authority",
        ),
        Meaning::Unreachable => {
            Some("Is endpoint=... in the backend's URL right, and the server up?")
        }
        Meaning::Full => Some("The server has no room"),
        Meaning::Unsupported => Some(
            "The server lacks something this needs; checksum=when_required or multipart_mib=0 in the backend's URL \
             asks less of it",
        ),
        Meaning::Exists
        | Meaning::Conflict
        | Meaning::Absent
        | Meaning::NoUpload
        | Meaning::PastEnd
        | Meaning::SlowDown
        | Meaning::Garbled
        | Meaning::TooLarge
        | Meaning::Failed => None,
    }
}

impl From<Stalled> for Refusal {
    fn from(Stalled(patience): Stalled) -> Self {
        let seconds = patience.as_secs();
        Self::new(Meaning::Failed, format!("nothing moved for {seconds} s"))
    }
}

impl<E: ProvideErrorMetadata + Error + 'static> From<SdkError<E, HttpResponse>> for Refusal {
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let status = error.raw_response().map(|response| response.status().as_u16());
        match (&error, status) {
            (SdkError::ServiceError(service), Some(status)) => {
                let said = service.err();
                let code = said.code().unwrap_or_default();
                let words = said.message().unwrap_or_default();
                let message = format!("the server answers {status} {code} {words}");
                Self::new(
                    meaning_of(status, code),
                    message.split_whitespace().collect::<Vec<_>>().join(" "),
                )
            }
            (_, Some(status)) => {
                // The status is there, the rest is no S3 answer.
                let meaning = match meaning_of(status, "") {
                    Meaning::SlowDown => Meaning::SlowDown,
                    _ => Meaning::Failed,
                };
                Self::new(meaning, format!("the server answers {status} and {}", chain(&error)))
            }
            (_, None) => {
                let chain = chain(&error);
                Self::new(meaning_of_chain(&chain), chain)
            }
        }
    }
}

/// All causes in one line, each once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Errors before there was an answer have types of many crates behind them; their words are what can be relied on.
fn meaning_of_chain(chain: &str) -> Meaning {
    let says = |words: &[&str]| words.iter().any(|words| chain.contains(words));
    if says(&["invalid peer certificate", "UnknownIssuer", "CertificateUnknown", "BadSignature"]) {
        Meaning::Untrusted
    } else if says(&["credential", "no providers in chain"]) {
        Meaning::NoCredentials
    } else if says(&["dns error", "error trying to connect", "Connect", "connection refused"]) {
        Meaning::Unreachable
    } else {
        Meaning::Failed
    }
}

/// By the error code where there is a known one, else by the HTTP status.
fn meaning_of(status: u16, code: &str) -> Meaning {
    match code {
        "NoSuchKey" | "NotFound" => Meaning::Absent,
        "NoSuchBucket" => Meaning::NoBucket,
        "NoSuchUpload" => Meaning::NoUpload,
        "PreconditionFailed" => Meaning::Exists,
        "ConditionalRequestConflict" | "OperationAborted" => Meaning::Conflict,
        "InvalidRange" => Meaning::PastEnd,
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "BandwidthLimitExceeded" => Meaning::SlowDown,
        "RequestTimeTooSkewed" => Meaning::Skewed,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "InvalidSecurity"
        | "AccountProblem"
        | "AllAccessDisabled"
        | "InvalidClientTokenId" => Meaning::Denied,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => Meaning::WrongRegion,
        "BadDigest"
        | "InvalidDigest"
        | "IncompleteBody"
        | "RequestTimeout"
        | "XAmzContentChecksumMismatch"
        | "XAmzContentSHA256Mismatch" => Meaning::Garbled,
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" => Meaning::Full,
        "EntityTooLarge" | "KeyTooLongError" => Meaning::TooLarge,
        "NotImplemented" => Meaning::Unsupported,
        _ => meaning_of_status(status),
    }
}

fn meaning_of_status(status: u16) -> Meaning {
    match status {
        301 | 307 | 308 => Meaning::WrongRegion,
        401 | 403 => Meaning::Denied,
        409 => Meaning::Conflict,
        412 => Meaning::Exists,
        413 => Meaning::TooLarge,
        416 => Meaning::PastEnd,
        429 | 503 => Meaning::SlowDown,
        501 => Meaning::Unsupported,
        507 => Meaning::Full,
        _ => Meaning::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_more_than_the_status() {
        for (status, code, meaning) in [
            (404, "NoSuchKey", Meaning::Absent),
            (404, "NoSuchBucket", Meaning::NoBucket),
            (404, "", Meaning::Failed),
            (403, "RequestTimeTooSkewed", Meaning::Skewed),
            (403, "", Meaning::Denied),
            (400, "ExpiredToken", Meaning::Denied),
            (400, "AuthorizationHeaderMalformed", Meaning::WrongRegion),
            (400, "InvalidRequest", Meaning::Failed),
            (409, "ConditionalRequestConflict", Meaning::Conflict),
            (412, "PreconditionFailed", Meaning::Exists),
            (412, "", Meaning::Exists),
            (416, "InvalidRange", Meaning::PastEnd),
            (503, "SlowDown", Meaning::SlowDown),
            (503, "", Meaning::SlowDown),
            (429, "", Meaning::SlowDown),
            (500, "InternalError", Meaning::Failed),
            (507, "", Meaning::Full),
        ] {
            assert_eq!(meaning_of(status, code), meaning, "{status} {code}");
        }
    }

    #[test]
    fn what_an_operator_can_mend_is_never_final_and_says_how() {
        for (meaning, advice) in [
            (Meaning::Denied, "s3_credentials"),
            (Meaning::NoCredentials, "AWS_ACCESS_KEY_ID"),
            (Meaning::Skewed, "clock"),
            (Meaning::NoBucket, "Create the bucket"),
            (Meaning::Untrusted, "ca=FILE"),
            (Meaning::WrongRegion, "region="),
            (Meaning::Unreachable, "endpoint="),
        ] {
            let fault = Refusal::new(meaning, "said so").into_fault("bucket b");
            assert_eq!(fault.kind, Kind::Unavailable, "{meaning:?}");
            assert!(fault.message.contains(advice), "{fault}");
            assert!(fault.message.starts_with("bucket b: said so"), "{fault}");
        }
    }
}

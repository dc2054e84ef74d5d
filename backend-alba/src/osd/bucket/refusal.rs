//! What a server's "no" means to an OSD, and what a person can do about it.
//!
//! Whatever may pass or can be mended is `Unavailable`: the backend reads and writes around such an OSD, and the words stand
//! in `alba osd list`.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::fault::{Fault, Kind};

/// What the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The key exists.
    Exists,
    /// Somebody else is writing this key right now.
    Conflict,
    /// No such key.
    Absent,
    /// The range begins past the end.
    PastEnd,
    Full,
    /// A person must do something.
    Mendable(&'static str),
    Failed,
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub meaning: Meaning,
    message: String,
}

impl Refusal {
    pub(super) fn new(meaning: Meaning, message: impl Into<String>) -> Self {
        Self { meaning, message: message.into() }
    }
}

impl From<Refusal> for Fault {
    fn from(Refusal { meaning, message }: Refusal) -> Self {
        match meaning {
            Meaning::Full => Self::new(Kind::NoSpace, message),
            Meaning::PastEnd => Self::corrupt(message),
            Meaning::Mendable(advice) => Self::unavailable(format!("{message}. {advice}")),
            Meaning::Exists | Meaning::Conflict | Meaning::Absent | Meaning::Failed => {
                Self::unavailable(message)
            }
        }
    }
}

impl<E: ProvideErrorMetadata + Error + 'static> From<SdkError<E, HttpResponse>> for Refusal {
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let status = error.raw_response().map(|response| response.status().as_u16());
        match (&error, status) {
            (SdkError::ServiceError(service), Some(status)) => {
                let code = service.err().code().unwrap_or_default();
                let words = service.err().message().unwrap_or_default();
                let message = format!("the server answers {status} {code} {words}");
                Self::new(meaning_of(status, code), one_line(&message))
            }
            (_, Some(status)) => {
                let message = format!("the server answers {status} and {}", chain(&error));
                Self::new(meaning_of(status, ""), one_line(&message))
            }
            (_, None) => {
                let chain = chain(&error);
                Self::new(meaning_before_an_answer(&chain), chain)
            }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All causes, each once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if words.last().is_none_or(|last| !last.ends_with(&text)) {
            words.push(text);
        }
        cause = error.source();
    }
    words.join(": ")
}

const CREDENTIALS: Meaning = Meaning::Mendable(
    "The credentials are wrong, have expired or lack the right to read, write, list and delete there: see credentials=FILE \
     and profile=NAME in its URL, and the AWS_ variables of the environment",
);
const NO_CREDENTIALS: Meaning = Meaning::Mendable(
    "Give credentials=FILE or profile=NAME in its URL, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the \
     instance a role",
);
const NO_BUCKET: Meaning =
    Meaning::Mendable("Create the bucket, or correct its name in the URL of the OSD");
const CLOCK: Meaning =
    Meaning::Mendable("This machine's clock and the server's differ by too much: synchronise them");
const REGION: Meaning = Meaning::Mendable("Give region=... in its URL");
const TRUST: Meaning =
    Meaning::Mendable("Give ca=FILE in its URL, with the certificate of the server's authority");
const UNREACHABLE: Meaning =
    Meaning::Mendable("Is endpoint=... in its URL right, and the server up?");

/// The errors' types are those of many crates; their words are what can be relied on.
fn meaning_before_an_answer(chain: &str) -> Meaning {
    let says = |words: &[&str]| words.iter().any(|word| chain.contains(word));
    if says(&["invalid peer certificate", "UnknownIssuer", "CertificateUnknown", "BadSignature"]) {
        TRUST
    } else if says(&["credential", "no providers in chain"]) {
        NO_CREDENTIALS
    } else if says(&["dns error", "error trying to connect", "onnect"]) {
        UNREACHABLE
    } else {
        Meaning::Failed
    }
}

/// By the code where it is a known one, else by the status.
fn meaning_of(status: u16, code: &str) -> Meaning {
    match code {
        "NoSuchKey" | "NotFound" => return Meaning::Absent,
        "NoSuchBucket" => return NO_BUCKET,
        "PreconditionFailed" => return Meaning::Exists,
        "InvalidRange" => return Meaning::PastEnd,
        "RequestTimeTooSkewed" => return CLOCK,
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => {
            return REGION;
        }
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken" => return CREDENTIALS,
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" => return Meaning::Full,
        _ => {}
    }
    match status {
        301 | 307 | 308 => REGION,
        401 | 403 => CREDENTIALS,
        409 => Meaning::Conflict,
        412 => Meaning::Exists,
        416 => Meaning::PastEnd,
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
            (404, "NoSuchBucket", NO_BUCKET),
            // Some proxy's: not that the key is missing.
            (404, "", Meaning::Failed),
            (403, "RequestTimeTooSkewed", CLOCK),
            (403, "", CREDENTIALS),
            (400, "ExpiredToken", CREDENTIALS),
            (412, "", Meaning::Exists),
            (416, "InvalidRange", Meaning::PastEnd),
            (503, "SlowDown", Meaning::Failed),
            (507, "", Meaning::Full),
        ] {
            assert_eq!(meaning_of(status, code), meaning, "{status} {code}");
        }
    }

    #[test]
    fn what_can_be_mended_says_how_and_is_never_final() {
        for (meaning, advice) in [
            (CREDENTIALS, "credentials=FILE"),
            (TRUST, "ca=FILE"),
            (NO_BUCKET, "Create the bucket"),
        ] {
            let fault = Fault::from(Refusal::new(meaning, "said so"));
            assert_eq!(fault.kind, Kind::Unavailable);
            assert!(fault.message.starts_with("said so. ") && fault.message.contains(advice));
        }
        assert_eq!(Fault::from(Refusal::new(Meaning::Full, "x")).kind, Kind::NoSpace);
    }
}

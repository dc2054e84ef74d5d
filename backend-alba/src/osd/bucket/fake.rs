//! An S3 server in this process that does as it is told, also what it should not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use tempfile::TempDir;

use super::S3Url;

const BUCKET: &str = "bucket";
const KEYS: &str = "keys";
/// Keys in one answer.
const PAGE: usize = 7;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Good,
    /// Every answer is this.
    Refuses(u16, &'static str),
    Hangs,
    /// `If-None-Match` counts for nothing.
    Overwrites,
    /// A range is answered by the one a byte later.
    Shifts,
    /// Bodies of more than 4096 bytes lack the last one.
    Truncates,
    /// Whatever range is asked for, all of it comes.
    IgnoresRange,
    /// The newest key is not listed.
    ListsLate,
    /// A put is refused with 409 once, then carried out.
    Conflicts,
}

#[derive(Clone)]
pub struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<Stored>>,
    /// Holds the file of credentials. Each server has its own: tests run side by side, and one that writes would empty it under
    /// another that reads.
    keys: Arc<TempDir>,
}

#[derive(Default)]
struct Stored {
    mood: Mood,
    objects: BTreeMap<String, Bytes>,
    newest: Option<String>,
    conflicts: usize,
}

impl Fake {
    /// Serves on the runtime this is awaited on.
    pub async fn serve() -> Self {
        let state: Arc<Mutex<Stored>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(handle).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let keys = TempDir::new().unwrap();
        let text = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n";
        std::fs::write(keys.path().join(KEYS), text).unwrap();
        Self { address, state, keys: Arc::new(keys) }
    }

    pub fn url(&self, more: &str) -> S3Url {
        let keys = self.keys.path().join(KEYS);
        let (address, keys) = (self.address, keys.display());
        let text = format!("s3://{BUCKET}/p?endpoint=http://{address}&credentials={keys}{more}");
        text.parse().unwrap()
    }

    pub fn set(&self, mood: Mood) {
        self.state().mood = mood;
    }
    fn state(&self) -> MutexGuard<'_, Stored> {
        self.state.lock().unwrap()
    }

    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Changes the object whose key ends like this.
    pub fn change(&self, end: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let (_, object) = state.objects.iter_mut().find(|(key, _)| key.ends_with(end)).unwrap();
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
    }
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let byte = u8::from_str_radix(&part[..2], 16).unwrap();
        format!("{text}{}{}", char::from(byte), &part[2..])
    })
}

async fn handle(State(state): State<Arc<Mutex<Stored>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mood = state.lock().unwrap().mood;
    match mood {
        Mood::Refuses(status, code) => return refuse(status, code),
        Mood::Hangs => std::future::pending().await,
        _ => {}
    }
    // What does not arrive as announced is not kept.
    let Ok(body) = to_bytes(body, 1 << 30).await else { return refuse(400, "IncompleteBody") };
    let key = decoded(parts.uri.path());
    let key = key.strip_prefix(&format!("/{BUCKET}")).unwrap().trim_start_matches('/').to_owned();
    let header = |name: &str| Some(parts.headers.get(name)?.to_str().unwrap().to_owned());
    let mut state = state.lock().unwrap();
    match (parts.method, key.is_empty()) {
        (Method::GET, true) => state.list(parts.uri.query().unwrap_or_default()),
        (Method::GET, false) => state.get(&key, header("range")),
        (Method::PUT, false) => {
            let announced = header("content-length").map(|len| len.parse::<usize>().unwrap());
            assert_eq!(announced, Some(body.len()));
            state.put(key, body, header("if-none-match").is_some())
        }
        (Method::DELETE, false) => {
            state.objects.remove(&key);
            answer(204, Bytes::new())
        }
        _ => refuse(501, "NotImplemented"),
    }
}

impl Stored {
    fn put(&mut self, key: String, body: Bytes, only_if_absent: bool) -> Response {
        if self.mood == Mood::Conflicts {
            self.conflicts += 1;
            if self.conflicts % 2 == 1 {
                return refuse(409, "ConditionalRequestConflict");
            }
        }
        let is_refused = only_if_absent && self.mood != Mood::Overwrites;
        if is_refused && self.objects.contains_key(&key) {
            return refuse(412, "PreconditionFailed");
        }
        self.newest = Some(key.clone());
        self.objects.insert(key, body);
        answer(200, Bytes::new())
    }

    fn get(&self, key: &str, range: Option<String>) -> Response {
        let Some(whole) = self.objects.get(key) else { return refuse(404, "NoSuchKey") };
        let range = range.filter(|_| self.mood != Mood::IgnoresRange);
        let Some(range) = range else { return answer(200, whole.clone()) };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let len = whole.len();
        let (from, to) = match from {
            "" => (len.saturating_sub(to.parse().unwrap()), len),
            from => (from.parse().unwrap(), (to.parse::<usize>().unwrap() + 1).min(len)),
        };
        if from >= len {
            return refuse(416, "InvalidRange");
        }
        let shift = usize::from(self.mood == Mood::Shifts && to < len);
        let cut = usize::from(self.mood == Mood::Truncates && to - from > 4096);
        let body = whole.slice(from + shift..to + shift - cut);
        Response::builder()
            .status(206)
            .header("content-range", format!("bytes {from}-{}/{len}", to - 1))
            .body(body.into())
            .unwrap()
    }

    fn list(&self, query: &str) -> Response {
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(given, _)| *given == name).map(|(_, value)| decoded(value))
        };
        let prefix = value("prefix").unwrap_or_default();
        let after = value("start-after").unwrap_or_default();
        let late = self.newest.as_ref().filter(|_| self.mood == Mood::ListsLate);
        let keys = self
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix) && **key > after && Some(*key) != late);
        let keys: Vec<(&String, &Bytes)> = keys.collect();
        let contents: String = keys
            .iter()
            .take(PAGE)
            .map(|(key, body)| {
                format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", body.len())
            })
            .collect();
        let more = keys.len() > PAGE;
        let text = format!(
            "<ListBucketResult><IsTruncated>{more}</IsTruncated>{contents}</ListBucketResult>"
        );
        answer(200, text.into())
    }
}

fn answer(status: u16, body: Bytes) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    Response::builder().status(status).header("etag", "\"tag\"").body(Body::from(body)).unwrap()
}

fn refuse(status: u16, code: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>as planned</Message></Error>");
    answer(status, body.into())
}

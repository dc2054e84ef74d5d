//! A small S3 server in this process, honest or with one lie, to find out whether lies are found out.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;

use crate::config::{BackendUrl, S3Url};

pub(super) const BUCKET: &str = "bucket";

/// What it does instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    None,
    /// If-None-Match is ignored.
    Overwrites,
    /// 200, but the old bytes stay.
    ClaimsToWrite,
    /// 412, but the new bytes are written.
    RefusesAndWrites,
    /// Looks first and writes later, so that racing writers all win.
    ManyWinners,
    /// A list lacks the newest object.
    StaleList,
    /// A list shows what was deleted last.
    ListsTheDead,
    /// start-after is ignored.
    IgnoresStartAfter,
    /// Ranges begin one byte late, and Content-Range does not say so.
    ShiftsRanges,
    /// Range is ignored: everything comes, with 200.
    IgnoresRange,
    /// The last byte of every long body is missing.
    Truncates,
    /// Metadata is not kept.
    DropsMetadata,
    /// What was just written is not found by the first who asks.
    ReadsLate,
    /// Deletes are answered and not done.
    KeepsTheDead,
    /// Completions of uploads ignore If-None-Match.
    PartsOverwrite,
    /// Completions fail with status 200 and an error as body.
    FailsWith200,
    /// Parts are put together in the wrong order.
    MixesParts,
    /// Knows no uploads in parts.
    NoParts,
    /// Knows no deletion of many objects at once.
    NoBatchDelete,
}

/// An answer that is given instead of the right one.
#[derive(Clone, Debug)]
pub(super) struct Instead {
    pub method: Method,
    /// 0: the right answer after all.
    pub status: u16,
    pub code: &'static str,
    /// The request is carried out first; only the answer is another.
    pub carried_out: bool,
    /// How many times.
    pub times: usize,
}

#[derive(Clone)]
pub(super) struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    lie: Lie,
    state: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    next_upload: u64,
    newest: Option<String>,
    dead: Option<String>,
    unread: Option<String>,
    instead: VecDeque<Instead>,
    /// Every so many GETs take so long.
    slow: Option<(usize, Duration)>,
    gets: usize,
    requests: Vec<String>,
}

#[derive(Clone)]
struct Object {
    body: Bytes,
    crc: Option<String>,
}

struct Upload {
    key: String,
    crc: Option<String>,
    parts: BTreeMap<u32, Bytes>,
}

impl Fake {
    /// Serves on the runtime this is awaited on.
    pub(super) async fn serve(lie: Lie) -> Self {
        let shared = Arc::new(Shared { lie, state: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(handle).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared }
    }

    pub(super) fn url(&self, parameters: &str) -> S3Url {
        let text = format!("s3://{BUCKET}/pool?endpoint=http://{}{parameters}", self.address);
        match text.parse().unwrap() {
            BackendUrl::S3(url) => url,
            BackendUrl::Embedded(_) | BackendUrl::Alba(_) => unreachable!("it is a bucket"),
        }
    }

    pub(super) fn answer_instead(&self, instead: Instead) {
        self.shared.state().instead.push_back(instead);
    }

    /// After so many other requests of the method.
    pub(super) fn answer_instead_after(&self, skipped: usize, instead: Instead) {
        let method = instead.method.clone();
        let right = Instead { method, status: 0, code: "", carried_out: true, times: skipped };
        self.shared.state().instead.extend([right, instead]);
    }

    /// Objects that are there.
    pub(super) fn plant(&self, keys: impl Iterator<Item = String>) {
        let object = Object { body: Bytes::from_static(b"x"), crc: Some("8cdc1683".into()) };
        self.shared.state().objects.extend(keys.map(|key| (key, object.clone())));
    }

    /// An upload that was begun in 2020.
    pub(super) fn plant_upload(&self, key: &str) {
        let upload = Upload { key: key.to_owned(), crc: None, parts: BTreeMap::new() };
        self.shared.state().uploads.insert(format!("planted-{key}"), upload);
    }

    pub(super) fn be_slow(&self, every: usize, how_long: Duration) {
        self.shared.state().slow = Some((every, how_long));
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.shared.state().objects.keys().cloned().collect()
    }

    pub(super) fn unfinished_uploads(&self) -> usize {
        self.shared.state().uploads.len()
    }

    /// Lines `METHOD KEY?QUERY` of what was asked so far, from here on forgotten.
    pub(super) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state().requests)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Stored> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, taken apart.
struct Asked {
    parts: Parts,
    key: String,
    query: BTreeMap<String, String>,
    body: Bytes,
}

impl Asked {
    async fn read(request: Request) -> Self {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, 1 << 30).await.unwrap();
        let path = decoded(parts.uri.path());
        let key = path.strip_prefix(&format!("/{BUCKET}")).unwrap_or(&path).trim_start_matches('/');
        let pairs = parts.uri.query().unwrap_or_default().split('&');
        let query = pairs
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect();
        let key = key.to_owned();
        Self { parts, key, query, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).map(|value| value.to_str().unwrap())
    }
    fn create_only(&self) -> bool {
        self.header("if-none-match") == Some("*")
    }
    fn crc(&self, lie: Lie) -> Option<String> {
        let crc = self.header("x-amz-meta-crc32").map(str::to_owned);
        crc.filter(|_| lie != Lie::DropsMetadata)
    }
    fn asks(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        if let (b'%', [high, low, tail @ ..]) = (first, after) {
            let digits = [*high, *low];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            rest = tail;
        } else {
            bytes.push(if *first == b'+' { b' ' } else { *first });
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap()
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let asked = Asked::read(request).await;
    let (instead, pause) = shared.state().before(&asked);
    tokio::time::sleep(pause).await;
    match instead {
        None => answer(&shared, &asked).await,
        Some(instead) => {
            if instead.carried_out {
                let right = answer(&shared, &asked).await;
                if instead.status == 0 {
                    return right;
                }
            }
            refuse(instead.status, instead.code)
        }
    }
}

impl Stored {
    /// Takes note of a request; what is to be answered instead, and after which pause.
    fn before(&mut self, asked: &Asked) -> (Option<Instead>, Duration) {
        let (method, query) = (&asked.parts.method, asked.parts.uri.query().unwrap_or_default());
        self.requests.push(format!("{method} {}?{query}", asked.key));
        let mut pause = Duration::ZERO;
        if *method == Method::GET
            && !asked.key.is_empty()
            && let Some((every, how_long)) = self.slow
        {
            self.gets += 1;
            if self.gets.is_multiple_of(every) {
                pause = how_long;
            }
        }
        let instead = self.instead.front_mut().filter(|instead| instead.method == *method);
        let answer = instead.map(|instead| {
            instead.times -= 1;
            instead.clone()
        });
        self.instead.retain(|instead| instead.times > 0);
        (answer, pause)
    }
}

async fn answer(shared: &Shared, asked: &Asked) -> Response {
    let method = &asked.parts.method;
    match (method.as_str(), asked.key.is_empty()) {
        ("HEAD", true) => ok(""),
        ("GET", true) if asked.asks("uploads").is_some() => list_uploads(shared),
        ("GET", true) => list(shared, asked),
        ("POST", true) if asked.asks("delete").is_some() => delete_many(shared, asked),
        ("PUT", false) if asked.asks("uploadId").is_some() => put_part(shared, asked),
        ("PUT", false) => put(shared, asked).await,
        ("POST", false) if asked.asks("uploads").is_some() => begin(shared, asked),
        ("POST", false) => complete(shared, asked).await,
        ("GET" | "HEAD", false) => get(shared, asked),
        ("DELETE", false) => delete(shared, asked),
        _ => refuse(501, "NotImplemented"),
    }
}

fn ok(body: impl Into<Body>) -> Response {
    Response::builder().header("etag", "\"tag\"").body(body.into()).unwrap()
}

fn refuse(status: u16, code: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>as planned</Message></Error>");
    let status = StatusCode::from_u16(status).unwrap();
    Response::builder().status(status).body(body.into()).unwrap()
}

async fn put(shared: &Shared, asked: &Asked) -> Response {
    let object = Object { body: asked.body.clone(), crc: asked.crc(shared.lie) };
    store(shared, &asked.key, object, asked.create_only()).await
}

async fn store(shared: &Shared, key: &str, object: Object, create_only: bool) -> Response {
    let exists = create_only && shared.state().objects.contains_key(key);
    if shared.lie == Lie::ManyWinners {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut state = shared.state();
    let exists = match shared.lie {
        Lie::ManyWinners => exists,
        _ => create_only && state.objects.contains_key(key),
    };
    match (exists, shared.lie) {
        (true, Lie::Overwrites) | (false, _) => {}
        (true, Lie::ClaimsToWrite) => return ok(""),
        (true, Lie::RefusesAndWrites) => {
            state.objects.insert(key.to_owned(), object);
            return refuse(412, "PreconditionFailed");
        }
        (true, _) => return refuse(412, "PreconditionFailed"),
    }
    state.objects.insert(key.to_owned(), object);
    state.newest = Some(key.to_owned());
    state.unread = Some(key.to_owned());
    ok("")
}

fn get(shared: &Shared, asked: &Asked) -> Response {
    let mut state = shared.state();
    if shared.lie == Lie::ReadsLate && state.unread.as_ref() == Some(&asked.key) {
        state.unread = None;
        return refuse(404, "NoSuchKey");
    }
    let Some(object) = state.objects.get(&asked.key).cloned() else {
        return refuse(404, "NoSuchKey");
    };
    let whole = object.body;
    let range = asked.header("range").and_then(|range| range.strip_prefix("bytes="));
    let range = range.filter(|_| shared.lie != Lie::IgnoresRange);
    let mut answer = Response::builder();
    if let Some(crc) = object.crc {
        answer = answer.header("x-amz-meta-crc32", crc);
    }
    let body = match range.and_then(|range| range.split_once('-')) {
        None => whole,
        Some((from, to)) => {
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            if from >= whole.len() {
                return refuse(416, "InvalidRange");
            }
            let to = to.min(whole.len() - 1);
            let said = format!("bytes {from}-{to}/{}", whole.len());
            answer = answer.status(206).header("content-range", said);
            match shared.lie {
                Lie::ShiftsRanges if to + 1 < whole.len() => whole.slice(from + 1..=to + 1),
                _ => whole.slice(from..=to),
            }
        }
    };
    if asked.parts.method == Method::HEAD {
        return answer.header("content-length", body.len()).body(Body::empty()).unwrap();
    }
    let cut = shared.lie == Lie::Truncates && body.len() > 4096;
    let body = if cut { body.slice(..body.len() - 1) } else { body };
    answer.body(body.into()).unwrap()
}

fn delete(shared: &Shared, asked: &Asked) -> Response {
    let mut state = shared.state();
    if let Some(id) = asked.asks("uploadId") {
        return match state.uploads.remove(id) {
            Some(_) => ok(""),
            None => refuse(404, "NoSuchUpload"),
        };
    }
    if shared.lie != Lie::KeepsTheDead && state.objects.remove(&asked.key).is_some() {
        state.dead = Some(asked.key.clone());
    }
    ok("")
}

fn delete_many(shared: &Shared, asked: &Asked) -> Response {
    if shared.lie == Lie::NoBatchDelete {
        return refuse(400, "MissingContentMD5");
    }
    let text = String::from_utf8(asked.body.to_vec()).unwrap();
    let mut state = shared.state();
    for part in text.split("<Key>").skip(1) {
        let key = part.split("</Key>").next().unwrap();
        if shared.lie != Lie::KeepsTheDead {
            state.objects.remove(key);
        }
    }
    ok("<DeleteResult></DeleteResult>")
}

fn list(shared: &Shared, asked: &Asked) -> Response {
    let state = shared.state();
    let (lie, prefix) = (shared.lie, asked.asks("prefix").unwrap_or_default());
    let after = asked.asks("start-after").filter(|_| lie != Lie::IgnoresStartAfter);
    let max: usize = asked.asks("max-keys").map_or(1000, |max| max.parse().unwrap());
    let mut keys: Vec<&String> = state.objects.keys().collect();
    if lie == Lie::StaleList {
        keys.retain(|key| Some(*key) != state.newest.as_ref());
    }
    if let (Lie::ListsTheDead, Some(dead)) = (lie, &state.dead) {
        keys.push(dead);
        keys.sort();
        keys.dedup();
    }
    keys.retain(|key| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
    let truncated = keys.len() > max;
    let contents: String = keys
        .iter()
        .take(max)
        .map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>"))
        .collect();
    ok(format!(
        "<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{contents}</ListBucketResult>"
    ))
}

fn list_uploads(shared: &Shared) -> Response {
    let state = shared.state();
    let uploads: String = state
        .uploads
        .iter()
        .map(|(id, upload)| {
            format!(
                "<Upload><Key>{}</Key><UploadId>{id}</UploadId><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>",
                upload.key
            )
        })
        .collect();
    ok(format!(
        "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{uploads}</ListMultipartUploadsResult>"
    ))
}

fn begin(shared: &Shared, asked: &Asked) -> Response {
    if shared.lie == Lie::NoParts {
        return refuse(501, "NotImplemented");
    }
    let mut state = shared.state();
    state.next_upload += 1;
    let id = format!("upload-{}", state.next_upload);
    let upload =
        Upload { key: asked.key.clone(), crc: asked.crc(shared.lie), parts: BTreeMap::new() };
    state.uploads.insert(id.clone(), upload);
    ok(format!(
        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
    ))
}

fn put_part(shared: &Shared, asked: &Asked) -> Response {
    let number = asked.asks("partNumber").unwrap().parse().unwrap();
    let mut state = shared.state();
    match state.uploads.get_mut(asked.asks("uploadId").unwrap()) {
        None => refuse(404, "NoSuchUpload"),
        Some(upload) => {
            upload.parts.insert(number, asked.body.clone());
            ok("")
        }
    }
}

async fn complete(shared: &Shared, asked: &Asked) -> Response {
    if shared.lie == Lie::FailsWith200 {
        let body = "<Error><Code>InternalError</Code><Message>as planned</Message></Error>";
        return Response::builder().body(body.into()).unwrap();
    }
    let upload = shared.state().uploads.remove(asked.asks("uploadId").unwrap());
    let Some(upload) = upload else { return refuse(404, "NoSuchUpload") };
    let mut parts: Vec<Bytes> = upload.parts.into_values().collect();
    if shared.lie == Lie::MixesParts {
        parts.reverse();
    }
    let object = Object { body: parts.concat().into(), crc: upload.crc };
    let create_only = asked.create_only() && shared.lie != Lie::PartsOverwrite;
    let answer = store(shared, &upload.key, object, create_only).await;
    match answer.status() {
        StatusCode::OK => ok(
            "<CompleteMultipartUploadResult><ETag>\"tag\"</ETag></CompleteMultipartUploadResult>",
        ),
        _ => answer,
    }
}

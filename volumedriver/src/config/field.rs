//! Every key of the configuration file, described once: meaning, default, legal values, whether a reload applies it.
//!
//! The checks, the error messages, `config show`, `config keys` and the reload all read these descriptions.

use std::fmt;

use volumedriver_core::units::ByteCount;

use super::size;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// One key of the configuration file.
#[derive(Debug)]
pub struct Field {
    pub section: &'static str,
    pub key: &'static str,
    pub meaning: &'static str,
    pub default: Preset,
    pub legal: Legal,
    pub change: Change,
}

/// The value of a key that is not in the file.
#[derive(Debug)]
pub enum Preset {
    Number(u64),
    Text(&'static str),
    /// Not a constant; the sentence says what it is.
    Derived(&'static str),
}

/// The values a key may have.
#[derive(Debug)]
pub enum Legal {
    /// An integer of bytes or a text like "64MiB".
    Bytes(Span),
    Millis(Span),
    Count(Span),
    Percent(Span),
    OneOf(&'static [&'static str]),
    /// What the text must be.
    Text(&'static str),
    /// What each text of the list must be.
    Texts(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub min: u64,
    pub max: u64,
    pub multiple_of: u64,
    /// 0 is legal too, and turns the thing off.
    pub zero_is_off: bool,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// On `config reload` and SIGHUP.
    Live,
    /// When the daemon starts.
    Restart,
}

impl Span {
    const fn new(min: u64, max: u64) -> Self {
        Self { min, max, multiple_of: 1, zero_is_off: false }
    }
    const fn multiple_of(self, multiple_of: u64) -> Self {
        Self { multiple_of, ..self }
    }
    const fn or_off(self) -> Self {
        Self { zero_is_off: true, ..self }
    }
    #[must_use]
    pub fn allows(&self, value: u64) -> bool {
        let off = self.zero_is_off && value == 0;
        off || ((self.min..=self.max).contains(&value) && value.is_multiple_of(self.multiple_of))
    }
    fn describe(&self, f: &mut fmt::Formatter<'_>, show: impl Fn(u64) -> String) -> fmt::Result {
        if self.zero_is_off {
            f.write_str("0 (off) or ")?;
        }
        write!(f, "{} to {}", show(self.min), show(self.max))?;
        if self.multiple_of > 1 {
            write!(f, ", a multiple of {}", show(self.multiple_of))?;
        }
        Ok(())
    }
}

impl fmt::Display for Legal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(span) => {
                f.write_str("a size from ")?;
                span.describe(f, |bytes| size::exact(ByteCount(bytes)))
            }
            Self::Millis(span) => span.describe(f, |ms| format!("{ms} ms")),
            Self::Count(span) => span.describe(f, |count| count.to_string()),
            Self::Percent(span) => span.describe(f, |percent| format!("{percent} %")),
            Self::OneOf(names) => write!(f, "one of {}", Quoted(names)),
            Self::Text(what) => f.write_str(what),
            Self::Texts(what) => write!(f, "a list, each {what}"),
        }
    }
}

struct Quoted(&'static [&'static str]);

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}{name:?}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Field {
    /// The default as the file would have it, or the sentence that describes it.
    #[must_use]
    pub fn default_text(&self) -> String {
        match (&self.default, &self.legal) {
            (Preset::Number(bytes), Legal::Bytes(_)) => size::exact(ByteCount(*bytes)),
            (Preset::Number(number), _) => number.to_string(),
            (Preset::Text(text) | Preset::Derived(text), _) => (*text).to_string(),
        }
    }
}

/// Declares the fields and [`ALL`], so that no field can be left out of it.
macro_rules! fields {
    ($($name:ident = [$section:literal] $key:literal, $legal:expr, $default:expr, $change:ident, $meaning:literal;)*) => {
        $(pub const $name: Field = Field {
            section: $section,
            key: $key,
            meaning: $meaning,
            default: $default,
            legal: $legal,
            change: Change::$change,
        };)*
        /// Every key there is, in the order of the file.
        pub static ALL: &[&Field] = &[$(&$name),*];
    };
}

use Preset::{Derived, Number, Text};

fields! {
    NODE_IO = ["node"] "io", Legal::OneOf(&["auto", "uring", "psync"]), Text("auto"), Restart,
        "How local files are read and written: io_uring, threads with pread and pwrite, or whichever works.";
    NODE_SHARDS = ["node"] "shards_count", Legal::Count(Span::new(1, 1)), Number(1), Restart,
        "Threads that own volumes. Fixed for the life of the data directory.";
    NODE_SERVICE_THREADS = ["node"] "service_threads_count", Legal::Count(Span::new(1, 64)), Number(2), Restart,
        "Threads for gRPC, HTTP, TLS and the object backend.";

    NBD_LISTEN = ["nbd"] "listen", Legal::Texts("unix:PATH or HOST:PORT"), Derived("unix:DATA_DIR/nbd.sock"), Restart,
        "Where NBD clients connect. --nbd on the command line takes its place.";
    NBD_TLS = ["nbd.tls"] "mode", Legal::OneOf(&["off", "optional", "required"]), Text("off"), Restart,
        "Whether NBD clients may or must use TLS (STARTTLS).";
    NBD_TLS_CERTIFICATE = ["nbd.tls"] "certificate", Legal::Text("the path of a PEM file"), Derived("none"), Restart,
        "The server's certificate chain. Needed when TLS is not off.";
    NBD_TLS_KEY = ["nbd.tls"] "key", Legal::Text("the path of a PEM file"), Derived("none"), Restart,
        "The private key of the certificate. Needed when TLS is not off.";
    NBD_TLS_CLIENT_CA = ["nbd.tls"] "client_ca", Legal::Text("the path of a PEM file"), Derived("none"), Restart,
        "When set, TLS clients must show a certificate signed by one of these.";
    NBD_CONNECTIONS = ["nbd"] "connections_count", Legal::Count(Span::new(1, 65_536)), Number(1024), Restart,
        "Most connections at a time; further ones are told so and closed.";
    NBD_INFLIGHT_COUNT = ["nbd"] "inflight_requests_count", Legal::Count(Span::new(1, 65_536)), Number(1024), Restart,
        "Most requests of one connection being worked on; further ones wait in the socket.";
    NBD_INFLIGHT_BYTES = ["nbd"] "inflight_bytes", Legal::Bytes(Span::new(32 * MIB, GIB)), Number(64 * MIB), Restart,
        "Most data of one connection's requests being worked on.";
    NBD_MEMORY = ["nbd"] "memory_bytes", Legal::Bytes(Span::new(128 * MIB, TIB)), Number(512 * MIB), Restart,
        "Most data of all connections' requests together, beyond 2 MiB of each; over that requests wait.";
    NBD_HANDSHAKE = ["nbd"] "handshake_timeout_ms", Legal::Millis(Span::new(100, 600_000)), Number(30_000), Restart,
        "A client that has not chosen an export by then is disconnected.";

    METRICS_LISTEN = ["metrics"] "listen", Legal::Text("HOST:PORT"), Derived("off"), Restart,
        "Where /metrics (Prometheus) and /healthz are served over HTTP.";

    BUFFER_DIRECTORY = ["buffer"] "directory", Legal::Text("a path"), Derived("DATA_DIR/buffer"), Restart,
        "Where the write buffer's segment files lie. A fast, durable device.";
    BUFFER_CAPACITY = ["buffer"] "capacity_bytes", Legal::Bytes(Span::new(128 * MIB, 8 * TIB)), Number(4 * GIB), Restart,
        "Size of the write buffer on disk: acknowledged data not yet on the backend.";
    BUFFER_SEGMENT = ["buffer"] "segment_bytes", Legal::Bytes(Span::new(4 * MIB, GIB).multiple_of(MIB)),
        Number(64 * MIB), Restart,
        "Size of one segment file of the write buffer.";
    BUFFER_MEMORY = ["buffer"] "memory_bytes", Legal::Bytes(Span::new(16 * MIB, TIB)), Number(256 * MIB), Restart,
        "Memory for data on its way into the buffer and for the newest data in it.";
    BUFFER_BATCH = ["buffer"] "batch_bytes", Legal::Bytes(Span::new(4 * KIB, 16 * MIB).multiple_of(4 * KIB)),
        Number(128 * KIB), Restart,
        "Data acknowledged from memory is written to the journal as soon as this much waits, even when nobody flushes.";
    BUFFER_LINGER = ["buffer"] "linger_ms", Legal::Millis(Span::new(0, 60_000)), Number(2), Restart,
        "... or as soon as some has waited for this long.";

    CACHE_RAM = ["cache"] "ram_bytes", Legal::Bytes(Span::new(MIB, 16 * TIB).or_off()), Number(256 * MIB), Restart,
        "Read cache in memory.";
    CACHE_SSD = ["cache"] "ssd_bytes", Legal::Bytes(Span::new(64 * MIB, 16 * TIB).or_off()),
        Derived("0 with an embedded backend (its objects are local files already), else 4GiB"), Restart,
        "Read cache on a local disk, reserved at once. Takes 26 bytes of memory per cluster: 6.5 GiB per TiB of 4 KiB clusters.";
    CACHE_DIRECTORY = ["cache"] "directory", Legal::Text("a path"), Derived("DATA_DIR/cache"), Restart,
        "Where the read cache on disk lies. A fast device; if it is lost, nothing is lost.";

    REGISTRY_URL = ["registry"] "url", Legal::Text("etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ca=FILE&certificate=FILE&key=FILE]"),
        Derived("none"), Restart,
        "etcd, to guard the names of an S3 backend that does not do put-if-absent. Once used by a vPool, used forever.";

    VPOOL_BACKEND = ["vpool"] "backend", Legal::Text(
            "embedded:DIRECTORY, alba:HOST:PORT, alba://HOST:PORT/PREFIX?preset=NAME&certificate=FILE&key=FILE&ca=FILE, alba:unix:PATH or \
             s3://BUCKET/PREFIX?NAME=VALUE&... (README, section S3)",
        ),
        Derived("embedded:DATA_DIR/backend"), Restart,
        "The object backend. --backend on the command line takes its place.";
    S3_CREDENTIALS = ["vpool"] "s3_credentials", Legal::Text("the path of a file in the form of ~/.aws/credentials"),
        Derived("as the AWS tools find them: environment, profile, web identity token, instance role"), Restart,
        "The keys of an S3 backend, under the profile of its URL (else \"default\").";
    VPOOL_BACKEND_CAPACITY = ["vpool"] "backend_capacity_bytes", Legal::Bytes(Span::new(64 * MIB, 1024 * TIB).or_off()),
        Number(0), Restart,
        "Most that objects may take of an embedded backend's disk; off: all of it but a small reserve.";
    VPOOL_CLUSTER_SIZE = ["vpool"] "cluster_size_bytes", Legal::Bytes(Span::new(4 * KIB, 64 * KIB)),
        Number(4 * KIB), Live,
        "Cluster size of new vDisks, a power of two; fixed for the life of a vDisk.";
    SCO_SIZE = ["vpool"] "sco_size_bytes", Legal::Bytes(Span::new(MIB, 128 * MIB).multiple_of(64 * KIB)),
        Derived("16MiB with an embedded backend, else 64MiB"), Live,
        "Data in an SCO; a change counts from the next SCO on.";
    ACK = ["vpool"] "ack", Legal::OneOf(&["memory", "buffer"]), Text("memory"), Live,
        "What a plain write has reached when it is acknowledged: memory, or the journal on stable storage.";
    FLUSH = ["vpool"] "flush", Legal::OneOf(&["journal", "backend"]), Text("journal"), Live,
        "What FLUSH and FUA wait for: the journal on stable storage, or the backend.";
    READAHEAD = ["vpool"] "readahead_bytes", Legal::Bytes(Span::new(4 * KIB, 64 * MIB).or_off()),
        Number(512 * KIB), Live,
        "How far ahead of a sequential reader the backend is read.";
    BUFFER_SHARE = ["vpool"] "buffer_share_percent", Legal::Percent(Span::new(1, 100)), Number(50), Live,
        "Most of the write buffer one vDisk may hold.";
    UPLOAD_DELAY = ["vpool"] "upload_max_delay_ms", Legal::Millis(Span::new(100, 86_400_000)), Number(30_000), Live,
        "An SCO that is not full is uploaded after this long.";
    UPLOAD_CONCURRENCY = ["vpool"] "upload_concurrency_count", Legal::Count(Span::new(1, 64)), Number(4), Live,
        "SCOs of one vDisk on their way to the backend at a time.";
    MAP_MEMORY = ["vpool"] "map_memory_bytes", Legal::Bytes(Span::new(MIB, TIB)), Number(64 * MIB), Live,
        "Memory for the map of one vDisk; the rest of the map is paged.";
    COMPRESSION = ["vpool"] "compression", Legal::Text("\"none\", \"lz4\", \"zstd\" or \"zstd:LEVEL\" with a level from 1 to 19"),
        Text("none"), Live,
        "How SCOs are compressed, from the next one built on; what does not shrink is stored as it is.";
    ENCRYPTION = ["vpool"] "encryption", Legal::OneOf(&["none", "aes-256-gcm"]), Text("none"), Live,
        "How SCOs are encrypted, from the next one built on. Needs encryption_key.";
    ENCRYPTION_KEY = ["vpool"] "encryption_key", Legal::Text("file:PATH, env:NAME or command:COMMAND, or a list of these"),
        Derived("none"), Live,
        "Where the master keys are, 64 hexadecimal digits a line: the first encrypts, all of them decrypt. Read at the start and at every reload.";
}

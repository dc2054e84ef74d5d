//! Servers that others wrote, as child processes on loopback: S3 servers and etcd. `tests/setup` installs them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::daemon::scratch;
use crate::tool::Tool;

const BUCKET: &str = "bucket";
const KEY: &str = "test";
const SECRET: &str = "testsecret";
/// How long a server may take until it answers, on a busy machine.
const UP_WITHIN: Duration = Duration::from_secs(90);

/// A server that is killed when this is dropped.
pub struct Server {
    child: Child,
    scratch: TempDir,
    port: u16,
}

/// Where `tests/setup` puts what no package has.
fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let path = cache.unwrap_or_else(home).join("volumedriver-tests").join(name);
    assert!(path.exists(), "{} is missing: tests/setup", path.display());
    path
}

/// A port nobody listens on, for a moment at least.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// moto: everything in memory. With one thread its conditional writes are as they should be; as it comes, with many,
    /// racing writers now and then both win.
    #[must_use]
    pub fn moto() -> Self {
        Self::moto_with("False")
    }

    fn moto_with(threaded: &str) -> Self {
        const SERVER: &str = "import sys\n\
            from werkzeug.serving import run_simple\n\
            from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app\n\
            app = DomainDispatcherApplication(create_backend_app)\n\
            run_simple('127.0.0.1', int(sys.argv[1]), app, threaded=sys.argv[2] == 'True')";
        let port = free_port();
        let mut command = Command::new(installed("moto/bin/python"));
        command.args(["-c", SERVER, &port.to_string(), threaded]);
        let server = Self::start(command, scratch(), port);
        Tool::new("curl")
            .args(&["-sSf", "-X", "PUT", &format!("{}/{BUCKET}", server.http())])
            .run();
        server
    }

    /// moto as it comes: with as many threads as there are requests.
    #[must_use]
    pub fn moto_of_many_threads() -> Self {
        Self::moto_with("True")
    }

    /// s3s-fs: files in a directory; racing writers may all win.
    #[must_use]
    pub fn s3s_fs() -> Self {
        let (port, scratch) = (free_port(), scratch());
        std::fs::create_dir(scratch.path().join(BUCKET)).unwrap();
        let mut command = Command::new(installed("s3s-fs/bin/s3s-fs"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", KEY, "--secret-key", SECRET]).arg(scratch.path());
        Self::start(command, scratch, port)
    }

    #[must_use]
    pub fn etcd() -> Self {
        let (port, peers, scratch) = (free_port(), free_port(), scratch());
        let (url, peer_url) =
            (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(scratch.path().join("etcd"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer_url, "--log-level", "error"]);
        command.args(["--initial-advertise-peer-urls", &peer_url]);
        command.arg("--initial-cluster").arg(format!("default={peer_url}"));
        Self::start(command, scratch, port)
    }

    fn start(mut command: Command, scratch: TempDir, port: u16) -> Self {
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut server = Self { child, scratch, port };
        let begin = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(server.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}\n{}", log());
            assert!(begin.elapsed() < UP_WITHIN, "{command:?} does not answer\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    #[must_use]
    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bucket, with a prefix in it.
    #[must_use]
    pub fn s3_url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint={}", self.http())
    }

    #[must_use]
    pub fn etcd_url(&self, prefix: &str) -> String {
        format!("etcd://127.0.0.1:{}/{prefix}", self.port)
    }

    /// A file with the keys of the bucket.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        let file = self.path().join("keys");
        let text =
            format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
        std::fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

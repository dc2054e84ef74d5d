//! Servers that others wrote, as child processes on loopback: S3 servers and etcd. `tests/setup` installs them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::alba::Authority;
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
    /// `http` or `https`; then `ca.pem` in its folder, `client.pem` and `client-key.pem` are what a client needs.
    scheme: &'static str,
}

/// Certificates of a server and of its clients, in its folder.
fn certify(folder: &Path) {
    let authority = Authority::new(folder);
    authority.sign("server", "127.0.0.1", 2100);
    authority.sign("client", "client", 2100);
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

    /// With one thread, over TLS.
    #[must_use]
    pub fn moto_over_https() -> Self {
        let scratch = scratch();
        certify(scratch.path());
        Self::moto_in(scratch, "False", "https")
    }

    fn moto_with(threaded: &str) -> Self {
        Self::moto_in(scratch(), threaded, "http")
    }

    fn moto_in(scratch: TempDir, threaded: &str, scheme: &'static str) -> Self {
        const SERVER: &str = "import sys\n\
            from werkzeug.serving import run_simple\n\
            from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app\n\
            app = DomainDispatcherApplication(create_backend_app)\n\
            tls = (sys.argv[3] + '/server.pem', sys.argv[3] + '/server-key.pem')\n\
            run_simple('127.0.0.1', int(sys.argv[1]), app, threaded=sys.argv[2] == 'True',\n\
                ssl_context=tls if sys.argv[4] == 'https' else None)";
        let port = free_port();
        let mut command = Command::new(installed("moto/bin/python"));
        command.args(["-c", SERVER, &port.to_string(), threaded]).arg(scratch.path()).arg(scheme);
        let mut server = Self::start(command, scratch, port);
        server.scheme = scheme;
        let trust = server.path().join("ca.pem").display().to_string();
        Tool::new("curl")
            .args(&["-sSf", "--cacert", &trust, "-X", "PUT"])
            .args(&[&format!("{}/{BUCKET}", server.http())])
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
        Self::etcd_in(scratch(), "http")
    }

    /// Both sides show a certificate.
    #[must_use]
    pub fn etcd_over_tls() -> Self {
        let scratch = scratch();
        certify(scratch.path());
        Self::etcd_in(scratch, "https")
    }

    fn etcd_in(scratch: TempDir, scheme: &'static str) -> Self {
        let (port, peers) = (free_port(), free_port());
        let (url, peer_url) =
            (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(scratch.path().join("etcd"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer_url, "--log-level", "error"]);
        command.args(["--initial-advertise-peer-urls", &peer_url]);
        command.arg("--initial-cluster").arg(format!("default={peer_url}"));
        if scheme == "https" {
            let file = |name: &str| scratch.path().join(name);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.pem"));
            command.arg("--cert-file").arg(file("server.pem"));
            command.arg("--key-file").arg(file("server-key.pem"));
        }
        let mut server = Self::start(command, scratch, port);
        server.scheme = scheme;
        server
    }

    fn start(mut command: Command, scratch: TempDir, port: u16) -> Self {
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut server = Self { child, scratch, port, scheme: "http" };
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
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The bucket, with a prefix in it.
    #[must_use]
    pub fn s3_url(&self, prefix: &str) -> String {
        let plain = self.s3_url_without_trust(prefix);
        match self.scheme {
            "https" => format!("{plain}&ca={}", self.path().join("ca.pem").display()),
            _ => plain,
        }
    }

    /// The same for who does not know the server's authority.
    #[must_use]
    pub fn s3_url_without_trust(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint={}", self.http())
    }

    #[must_use]
    pub fn etcd_url(&self, prefix: &str) -> String {
        let plain = self.etcd_url_without_tls(prefix);
        let file = |name: &str| self.path().join(name).display().to_string();
        match self.scheme {
            "https" => format!(
                "{plain}?ca={}&certificate={}&key={}",
                file("ca.pem"),
                file("client.pem"),
                file("client-key.pem")
            ),
            _ => plain,
        }
    }

    /// The same for who has no certificate and knows no authority.
    #[must_use]
    pub fn etcd_url_without_tls(&self, prefix: &str) -> String {
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

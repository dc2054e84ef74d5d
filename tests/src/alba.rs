//! Processes of `alba` (a server, ASDs) in a scratch directory, to be used, killed and started again; certificates for them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::daemon::program;
use crate::tool::{self, Tool};

/// How long a process may take to say `ready`, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// `alba serve` or `alba asd`, listening on a port that the system chose.
pub struct Alba {
    child: Option<Child>,
    arguments: Vec<String>,
    /// HOST:PORT; the same after a restart.
    pub address: String,
    pub data_dir: PathBuf,
    log: PathBuf,
}

impl Alba {
    /// `verb` is `serve` or `asd`; everything of it lies below `folder`.
    #[must_use]
    pub fn start(folder: &Path, verb: &str, name: &str, arguments: &[&str]) -> Self {
        let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        arguments.insert(0, verb.into());
        let (address, data_dir) = ("127.0.0.1:0".into(), folder.join(name));
        let log = folder.join(format!("{name}.log"));
        let mut process = Self { child: None, arguments, address, data_dir, log };
        process.restart();
        process
    }

    /// Starts it again on the same data and the same port.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.spawn());
        let address = self.child.as_mut().and_then(ready_address);
        self.address = address.unwrap_or_else(|| panic!("not ready\n{}", self.log_tail()));
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        Command::new(program("alba"))
            .args(&self.arguments)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &self.address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        tool::signal(child.id(), rustix::process::Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("no end {PATIENCE:?} after SIGTERM\n{}", self.log_tail());
    }

    /// `alba ARGUMENTS --connect ADDRESS`.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Tool {
        Tool::new(program("alba")).args(arguments).args(&["--connect", &self.address])
    }

    /// The files of all fragments of an ASD.
    #[must_use]
    pub fn fragments(&self) -> Vec<PathBuf> {
        let shards = std::fs::read_dir(self.data_dir.join("objects")).unwrap().flatten();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.path()).unwrap().flatten());
        files.map(|file| file.path()).collect()
    }

    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!("--- {}:\n{}\n---", self.log.display(), lines[from..].join("\n"))
    }
}

/// The address that stands in its first line beginning with `ready`; `None` when there is none. Reads on afterwards.
fn ready_address(child: &mut Child) -> Option<String> {
    let output = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let _ = sender.send(lines.find_map(|l| Some(l.strip_prefix("ready ")?.to_string())));
        lines.for_each(drop);
    });
    receiver.recv_timeout(PATIENCE).ok().flatten()
}

impl Drop for Alba {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// An authority and what it signs, as PEM files of a folder.
pub struct Authority {
    folder: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// Its own certificate is `ca.pem`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        std::fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) }
    }

    /// `NAME.pem` and `NAME-key.pem` for this host, valid up to a year from 2000 on.
    pub fn sign(&self, name: &str, host: &str, until_year: i32) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![host.to_string()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.folder.join(format!("{name}.pem")), signed.pem()).unwrap();
        let file = self.folder.join(format!("{name}-key.pem"));
        std::fs::write(file, key.serialize_pem()).unwrap();
    }

    /// The TLS options of who goes by this name.
    #[must_use]
    pub fn options(&self, name: &str) -> Vec<String> {
        let file = |name: String| self.folder.join(name).display().to_string();
        let (cert, key) = (file(format!("{name}.pem")), file(format!("{name}-key.pem")));
        let options = [
            "--tls-cert".into(),
            cert,
            "--tls-key".into(),
            key,
            "--tls-ca".into(),
            file("ca.pem".into()),
        ];
        options.into()
    }
}

//! Runs programs of the system under a time limit and keeps what they say.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Seconds a program may run unless told otherwise.
const SECONDS: u32 = 300;

/// A program and its arguments.
pub struct Tool {
    command: Command,
    line: OsString,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
    /// The command line, for messages.
    pub line: String,
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self::within(SECONDS, program)
    }

    /// A program that is killed after this many seconds.
    pub fn within(seconds: u32, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &seconds.to_string()]).arg(program.as_ref());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
        command.stdin(Stdio::null());
        Self { command, line: program.as_ref().to_owned() }
    }

    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument.as_ref());
        self.line.push(" ");
        self.line.push(argument.as_ref());
        self
    }

    #[must_use]
    pub fn args(self, arguments: &[impl AsRef<OsStr>]) -> Self {
        arguments.iter().fold(self, |tool, argument| tool.arg(argument))
    }

    /// Runs to its end, however that is.
    #[must_use]
    pub fn outcome(mut self) -> Said {
        let line = self.line.to_string_lossy().into_owned();
        let output = self.command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { status: output.status, out: text(output.stdout), err: text(output.stderr), line }
    }

    /// Runs to its end and expects success; what it wrote to its standard output.
    pub fn run(self) -> String {
        let said = self.outcome();
        assert!(said.status.success(), "failed: {said}");
        said.out
    }

    /// The command itself, to be started and left running (under the same time limit).
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let timed_out = self.status.code() == Some(124) || self.status.signal() == Some(9);
        let hint = if timed_out { " (out of time)" } else { "" };
        write!(f, "{}\n{}{hint}\n{}{}", self.line, self.status, self.out, self.err)
    }
}

/// Sends a signal to a process that we started and have not waited for yet.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).unwrap();
}

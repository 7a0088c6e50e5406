//! What one probe found, in the words that operators know from HAProxy, and what it counts as.
//!
//! Pure. Refuses to know how a probe is made.

use std::{fmt, io};

/// Result of one probe. `Display` is the detail in words; [`Outcome::word`] is the short reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `L4OK`: the TCP connection was accepted.
    L4Ok,
    /// `L4CON`: the connection was refused, reset, or the host unreachable.
    L4Con(io::ErrorKind),
    /// `L4TOUT`: no connection within the time-out.
    L4Tout,
    /// `L7OK`: an HTTP response with a status of 200 to 299.
    L7Ok {
        /// HTTP status code.
        status: u16,
    },
    /// `L7STS`: an HTTP response with another status.
    L7Sts {
        /// HTTP status code.
        status: u16,
    },
    /// `L7RSP`: connected, but what came was not an HTTP response, or nothing before the connection ended.
    L7Rsp(ResponseError),
    /// `L7TOUT`: connected, but no response within the time-out.
    L7Tout,
    /// `SOCKERR`: this machine could not ask (no file descriptors, no free ports). Says nothing about the backend.
    SockErr(String),
}

/// Why what came was not a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// Bytes that are not HTTP/1.
    Invalid,
    /// The connection was closed before a whole header.
    Closed,
    /// The connection was reset.
    Reset,
    /// A header larger than the limit.
    TooLarge,
    /// Any other failure while reading or writing.
    Io(io::ErrorKind),
}

/// What an outcome counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Counts towards `rise`.
    Success,
    /// Counts towards `fall`.
    Failure,
    /// Counts as nothing.
    Inconclusive,
}

impl Outcome {
    /// All words, for metrics that list every label value.
    pub const WORDS: [&'static str; 8] = ["L4OK", "L4CON", "L4TOUT", "L7OK", "L7STS", "L7RSP", "L7TOUT", "SOCKERR"];

    /// The short reason.
    pub fn word(&self) -> &'static str {
        match self {
            Self::L4Ok => "L4OK",
            Self::L4Con(_) => "L4CON",
            Self::L4Tout => "L4TOUT",
            Self::L7Ok { .. } => "L7OK",
            Self::L7Sts { .. } => "L7STS",
            Self::L7Rsp(_) => "L7RSP",
            Self::L7Tout => "L7TOUT",
            Self::SockErr(_) => "SOCKERR",
        }
    }

    /// What it counts as.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::L4Ok | Self::L7Ok { .. } => Verdict::Success,
            Self::L4Con(_) | Self::L4Tout | Self::L7Sts { .. } | Self::L7Rsp(_) | Self::L7Tout => Verdict::Failure,
            Self::SockErr(_) => Verdict::Inconclusive,
        }
    }

    /// The HTTP status, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::L7Ok { status } | Self::L7Sts { status } => Some(*status),
            _ => None,
        }
    }

    /// Outcome of a failed `connect`.
    ///
    /// The kernel's own time-out is `L4TOUT` like ours. Shortages of this machine are told apart from a backend's refusal:
    /// otherwise a node out of file descriptors would take every backend down.
    pub fn from_connect_error(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EAGAIN
                | libc::EACCES
                | libc::EPERM
                | libc::EAFNOSUPPORT,
            ) => Self::SockErr(error.to_string()),
            Some(libc::ETIMEDOUT) => Self::L4Tout,
            _ => Self::L4Con(error.kind()),
        }
    }

    /// Outcome of a failed read or write on an established connection.
    pub fn from_stream_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Self::L7Rsp(ResponseError::Reset)
            }
            io::ErrorKind::UnexpectedEof => Self::L7Rsp(ResponseError::Closed),
            io::ErrorKind::TimedOut => Self::L7Tout,
            kind => Self::L7Rsp(ResponseError::Io(kind)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L4Ok => f.write_str("connection accepted"),
            Self::L4Con(kind) => write!(f, "{kind}"),
            Self::L4Tout => f.write_str("no connection within the time-out"),
            Self::L7Ok { status } | Self::L7Sts { status } => write!(f, "HTTP status {status}"),
            Self::L7Rsp(ResponseError::Invalid) => f.write_str("answer is not HTTP"),
            Self::L7Rsp(ResponseError::Closed) => f.write_str("connection closed before a response"),
            Self::L7Rsp(ResponseError::Reset) => f.write_str("connection reset before a response"),
            Self::L7Rsp(ResponseError::TooLarge) => f.write_str("response header too large"),
            Self::L7Rsp(ResponseError::Io(kind)) => write!(f, "{kind} before a response"),
            Self::L7Tout => f.write_str("no response within the time-out"),
            Self::SockErr(what) => write!(f, "could not ask: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_errors_that_are_ours_do_not_count() {
        for (errno, word, verdict) in [
            (libc::ECONNREFUSED, "L4CON", Verdict::Failure),
            (libc::ECONNRESET, "L4CON", Verdict::Failure),
            (libc::EHOSTUNREACH, "L4CON", Verdict::Failure),
            (libc::ENETUNREACH, "L4CON", Verdict::Failure),
            (libc::ETIMEDOUT, "L4TOUT", Verdict::Failure),
            (libc::EMFILE, "SOCKERR", Verdict::Inconclusive),
            (libc::ENFILE, "SOCKERR", Verdict::Inconclusive),
            (libc::EADDRNOTAVAIL, "SOCKERR", Verdict::Inconclusive),
            (libc::ENOBUFS, "SOCKERR", Verdict::Inconclusive),
            (libc::EPERM, "SOCKERR", Verdict::Inconclusive),
        ] {
            let outcome = Outcome::from_connect_error(&io::Error::from_raw_os_error(errno));
            assert_eq!((outcome.word(), outcome.verdict()), (word, verdict), "errno {errno}");
        }
    }

    #[test]
    fn every_word_is_listed() {
        let all = [
            Outcome::L4Ok,
            Outcome::L4Con(io::ErrorKind::ConnectionRefused),
            Outcome::L4Tout,
            Outcome::L7Ok { status: 204 },
            Outcome::L7Sts { status: 503 },
            Outcome::L7Rsp(ResponseError::Invalid),
            Outcome::L7Tout,
            Outcome::SockErr("too many open files".into()),
        ];
        assert_eq!(all.each_ref().map(Outcome::word), Outcome::WORDS);
        assert_eq!(Outcome::L7Sts { status: 503 }.to_string(), "HTTP status 503");
        assert_eq!(Outcome::L4Con(io::ErrorKind::ConnectionRefused).to_string(), "connection refused");
    }
}

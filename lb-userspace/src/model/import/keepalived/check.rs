//! Checkers of real servers as the one check that a service has.
//!
//! keepalived fails a real server after one attempt and `retry` more, and takes it back after one success; so `fall` is one more
//! than `retry`, and `rise` is 1.

use std::time::Duration;

use super::super::{
    super::{HealthCheck, Probe, parse, parse::shown},
    Draft,
    tree::Statement,
};

/// Failures and successes in a row, at most (`fall`).
const COUNT_MAX: u32 = 100;
/// Times of weir's checks.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

/// Times that a virtual server, a real server and a checker may each set.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    delay_loop: Option<Duration>,
    connect_timeout: Option<Duration>,
    retry: Option<u32>,
    virtualhost: Option<String>,
}

/// What became of a statement.
pub(super) enum Taken {
    /// It is about something else.
    Not,
    /// It means something here.
    Whole,
    /// It means nothing here, and why.
    Lost(&'static str),
}

impl Timers {
    /// Takes a statement that is about checks.
    pub fn setting(&mut self, statement: &Statement) -> Taken {
        fn set<T>(to: &mut Option<T>, read: Option<T>, unread: &'static str) -> Taken {
            match read {
                Some(read) => {
                    *to = Some(read);
                    Taken::Whole
                }
                None => Taken::Lost(unread),
            }
        }
        const NO_TIME: &str = "says no time in seconds and was left out";
        let value = statement.value();
        match statement.name() {
            "delay_loop" => set(&mut self.delay_loop, value.and_then(seconds), NO_TIME),
            "connect_timeout" => set(&mut self.connect_timeout, value.and_then(seconds), NO_TIME),
            "retry" | "nb_get_retry" => {
                set(&mut self.retry, value.and_then(|value| value.parse().ok()), "says no number and was left out")
            }
            "virtualhost" => set(&mut self.virtualhost, value.map(str::to_owned), "says no name and was left out"),
            "delay_before_retry" => Taken::Lost(
                "has no counterpart: a backend whose state is in question is asked more often than the interval says",
            ),
            "warmup" => {
                Taken::Lost("has no counterpart: the first probe of a backend comes at a random point of the interval")
            }
            "alpha" => Taken::Lost(ALPHA),
            _ => Taken::Not,
        }
    }
}

/// What is said about `alpha` and `omega`, wherever they stand.
pub(super) const ALPHA: &str = "has no counterpart: the first result of a check decides whether a backend is up";

/// Seconds with up to six decimals.
fn seconds(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = text.parse::<f64>().ok().filter(|_| plain)?;
    // Far beyond what any check takes, and safe to convert.
    (seconds <= 1e9).then(|| Duration::from_millis((seconds * 1000.0).round() as u64))
}

/// Whether a block of that name checks a real server.
pub(super) fn is_check(name: &str) -> bool {
    const CHECKS: [&str; 10] = [
        "HTTP_GET",
        "SSL_GET",
        "TCP_CHECK",
        "SMTP_CHECK",
        "DNS_CHECK",
        "MISC_CHECK",
        "BFD_CHECK",
        "UDP_CHECK",
        "PING_CHECK",
        "FILE_CHECK",
    ];
    CHECKS.contains(&name)
}

/// The checks of the real servers of one virtual server.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// The first one, and its port where it is not the backend's.
    first: Option<HealthCheck>,
    /// A backend of which no check can be taken over.
    unchecked: Option<usize>,
}

impl Checks {
    /// Reads what checks the real server `block`, whose port is `port`.
    pub fn read(&mut self, block: &Statement, port: u16, timers: &Timers, draft: &mut Draft) {
        let mut own = None;
        for checker in block.block().iter().filter(|statement| is_check(statement.name())) {
            let Some(check) = check(checker, port, timers, draft) else { continue };
            if own.is_none() {
                own = Some((checker.line, check));
            } else {
                draft.note(checker.line, "a service has one check: this further one was left out");
            }
        }
        match (own, &self.first) {
            (None, _) => _ = self.unchecked.get_or_insert(block.line),
            (Some((_, check)), None) => self.first = Some(check),
            (Some((line, check)), Some(first)) if check != *first => {
                draft
                    .note(line, "a service has one check for all its backends: the one of the first backend was taken");
            }
            _ => {}
        }
    }

    /// Gives the service its check.
    pub fn finish(self, draft: &mut Draft) {
        if let (Some(line), Some(_)) = (self.unchecked, &self.first) {
            draft.note(line, "this backend had no check that could be taken over: it gets the one of the others");
        }
        draft.check = self.first;
    }
}

fn check(block: &Statement, port: u16, timers: &Timers, draft: &mut Draft) -> Option<HealthCheck> {
    let name = block.name();
    if !matches!(name, "HTTP_GET" | "SSL_GET" | "TCP_CHECK" | "SMTP_CHECK") {
        let text = format!("`{name}` has no counterpart and was left out: `type` is \"http\" or \"tcp\"");
        draft.note(block.line, text);
        return None;
    }
    let mut timers = timers.clone();
    let (mut connect_port, mut url) = (None, None);
    for statement in block.block() {
        let lost = |why: &str| format!("`{}` {why}", shown(statement.name()));
        match timers.setting(statement) {
            Taken::Not => {}
            Taken::Whole => continue,
            Taken::Lost(why) => {
                draft.note(statement.line, lost(why));
                continue;
            }
        }
        match statement.name() {
            "connect_port" => match statement.value().and_then(|value| value.parse().ok()) {
                Some(port) => connect_port = Some(port),
                None => draft.note(statement.line, lost("says no port: that of the backend is asked")),
            },
            "url" if url.is_none() => url = Some(statement),
            "url" => draft.note(statement.line, "a check asks for one URL: this further one was left out"),
            "connect_ip" => {
                draft.note(statement.line, lost("has no counterpart: the backend's own address is checked"))
            }
            "http_protocol" => draft.note(statement.line, lost("has no counterpart: requests are HTTP/1.1")),
            "fast_recovery" => {
                draft.note(statement.line, lost("has no counterpart: one success takes a backend back (`rise = 1`)"));
            }
            "log_all_failures" => {
                draft.note(
                    statement.line,
                    lost("has no counterpart: `weir health list` shows the last failure of each backend"),
                );
            }
            _ => draft.note(statement.line, lost("of the check has no counterpart and was left out")),
        }
    }
    let line = block.line;
    let probe = match name {
        "HTTP_GET" => http(url, &timers, draft),
        "TCP_CHECK" => Probe::Tcp,
        "SSL_GET" => {
            // The URL means nothing then.
            draft.note(line, "SSL_GET has no counterpart yet: a TCP check takes its place");
            Probe::Tcp
        }
        _ => {
            draft.note(line, "SMTP_CHECK has no counterpart: a TCP check takes its place");
            Probe::Tcp
        }
    };
    // Without a setting, keepalived asks every minute and waits for five seconds.
    let wanted = timers.delay_loop.unwrap_or(Duration::from_secs(60));
    let interval = wanted.clamp(INTERVAL.0, INTERVAL.1);
    if interval != wanted {
        draft.note(line, "the interval of the check was brought into the range from 100 ms to 1 h");
    }
    let wanted = timers.connect_timeout.unwrap_or(Duration::from_secs(5));
    let timeout = wanted.clamp(Duration::from_millis(1), interval);
    if timeout != wanted {
        draft.note(line, "a probe ends before the next one begins: the timeout of the check is its interval");
    }
    Some(HealthCheck {
        probe,
        port: connect_port.filter(|own| *own != port && *own != 0),
        interval,
        timeout,
        rise: 1,
        fall: timers.retry.unwrap_or(1).saturating_add(1).min(COUNT_MAX),
    })
}

fn http(url: Option<&Statement>, timers: &Timers, draft: &mut Draft) -> Probe {
    let (mut path, mut host) = ("/".to_owned(), timers.virtualhost.clone());
    for statement in url.map(Statement::block).unwrap_or_default() {
        let line = statement.line;
        match (statement.name(), statement.value()) {
            ("path", Some(value)) => path = value.to_owned(),
            ("virtualhost", Some(value)) => host = Some(value.to_owned()),
            ("status_code", Some("200" | "200-299")) if statement.words.len() == 2 => {}
            ("status_code", _) => draft.note(line, "`status_code` has no counterpart: 200 to 299 are a success"),
            ("digest", _) => {
                draft.note(line, "`digest` has no counterpart: the status decides, 200 to 299 are a success")
            }
            (name, _) => {
                let text = format!("`{}` of the check has no counterpart and was left out", shown(name));
                draft.note(line, text);
            }
        }
    }
    let line = url.map_or(draft.line, |url| url.line);
    if parse::path_refused(&path).is_some() {
        draft.note(line, "the path of the check is not one that can be requested: \"/\" took its place");
        path = "/".to_owned();
    }
    if host.as_deref().is_some_and(|host| parse::host_refused(host).is_some()) {
        draft.note(line, "the `virtualhost` of the check is no host name and was left out");
        host = None;
    }
    Probe::Http { path, host }
}

//! Settings of one service as the command line writes them, `algo=least_connections window=10m`: the keys of `[[service]]`
//! about algorithm and flows, checked by the code that checks the file, with the same findings.
//!
//! A key that is not set stays as it is if the file had to say it, and follows the new setting if the file need not have:
//! `algo=least_connections` takes `track` along, and back.
//!
//! Pure. Refuses to know: where settings are kept, and whether the ring still fits the node's limits.

use thiserror::Error;

use super::{
    Flows, Service, Track,
    code::{Code, Severity},
    diagnostic::Diagnostic,
    emit, foreign, parse, schema,
    schema::Table,
};

/// The ring size among [`KEYS`].
const RING_SIZE: &str = "algo_config.ring_size";

/// What can be set on a service, in the order of the configuration reference.
pub const KEYS: [&str; 9] = [
    "algo",
    RING_SIZE,
    "track",
    "udp_flows",
    "on_marked_down",
    "window",
    "flow_timeout",
    "announce_for",
    "drain_timeout",
];

/// Why settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SetError {
    /// The text is not `KEY=VALUE`.
    #[error("`{0}` is no setting: write KEY=VALUE, as in algo=maglev; {keys} can be set", keys = schema::list(KEYS))]
    Form(String),
    /// There is no such key among [`KEYS`].
    #[error("`{key}` cannot be set on a service: {hint}")]
    Key {
        /// The key as written.
        key: String,
        /// What was meant, or what there is.
        hint: String,
    },
    /// A key is set twice.
    #[error("`{0}` is set twice")]
    Twice(&'static str),
    /// The value is none that the key takes, or contradicts another key. At least one error; its places mean nothing.
    #[error("{}", sentences(.0))]
    Refused(Vec<Diagnostic>),
}

impl SetError {
    /// The code that the same mistake has in the file.
    pub fn code(&self) -> Code {
        match self {
            Self::Form(_) => Code::Syntax,
            Self::Key { .. } => Code::UnknownKey,
            Self::Twice(_) => Code::DuplicateKey,
            Self::Refused(findings) => findings.first().map_or(Code::BadValue, |finding| finding.code),
        }
    }
}

/// `message (hint); message (hint)`.
fn sentences(findings: &[Diagnostic]) -> String {
    let sentence = |finding: &Diagnostic| match &finding.hint {
        Some(hint) => format!("{} ({hint})", finding.message),
        None => finding.message.clone(),
    };
    findings.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// The service with other settings: one or several `KEY=VALUE` with white space between, taken together.
///
/// # Errors
/// The first text that is no setting, else everything that the file would be refused for.
pub fn parse(service: &Service, settings: &str) -> Result<Service, SetError> {
    let mut set: Vec<(&'static str, String)> = Vec::new();
    for word in settings.split_whitespace() {
        let (key, value) = setting(word)?;
        if set.iter().any(|(other, _)| *other == key) {
            return Err(SetError::Twice(key));
        }
        set.push((key, value));
    }
    if set.is_empty() {
        return Err(SetError::Form(settings.to_owned()));
    }
    let is_set = |key: &str| set.iter().any(|(other, _)| *other == key);
    let mut settings = kept(service);
    settings.retain(|(key, _)| match *key {
        "algo_config" => !is_set(RING_SIZE),
        // What a UDP service promises and what it records are one fact with two names.
        "track" => !is_set("track") && !is_set("udp_flows"),
        key => !is_set(key),
    });
    settings.extend(set.into_iter().map(|(key, value)| match key {
        RING_SIZE => ("algo_config", format!("{{ ring_size = {value} }}")),
        key => (key, value),
    }));
    let mut text = String::new();
    // By itself a service has no pool; none of the settings looks at the VIP.
    let alone = Service { pool: None, ..service.clone() };
    emit::service(&mut text, &alone, &settings);
    let set = parse::service(&text).map(|set| Service { pool: service.pool.clone(), ..set });
    set.map_err(|mut findings| {
        findings.retain(|finding| finding.severity() == Severity::Error);
        SetError::Refused(findings)
    })
}

/// What is in force for each of [`KEYS`] that the service has: key and value as [`parse`] reads them.
pub fn settings(service: &Service) -> Vec<(&'static str, String)> {
    let text = |(key, value): (&'static str, String)| match key {
        "algo_config" => (RING_SIZE, service.algo.ring_size().to_string()),
        // None of these values has a character that TOML escapes.
        key => (key, value.trim_matches('"').to_owned()),
    };
    emit::settings(service).into_iter().map(text).collect()
}

/// Key and value of each `KEY=VALUE` of a text that [`parse`] takes, in the order of [`KEYS`].
pub fn pairs(settings: &str) -> Vec<(&'static str, &str)> {
    let words = || settings.split_whitespace().filter_map(|word| word.split_once('='));
    KEYS.into_iter().filter_map(|key| words().find(|(word, _)| *word == key).map(|(_, value)| (key, value))).collect()
}

/// Key and TOML value of `KEY=VALUE`.
fn setting(word: &str) -> Result<(&'static str, String), SetError> {
    let (key, value) = word.split_once('=').ok_or_else(|| SetError::Form(word.to_owned()))?;
    let Some(known) = KEYS.into_iter().find(|known| *known == key) else {
        return Err(SetError::Key { key: key.to_owned(), hint: key_hint(key) });
    };
    // A number stays one, so that the file's findings about units and types hold here too.
    let value = value.parse::<i64>().map_or_else(|_| emit::quoted(value), |number| number.to_string());
    Ok((known, value))
}

/// The settings that a file with this service has to say; see the invariants of [`Flows`] for what follows from what.
fn kept(service: &Service) -> Vec<(&'static str, String)> {
    let Flows { track, window, flow_timeout, .. } = service.flows;
    let default = Flows::defaults(service.key.protocol, service.algo.kind());
    let limited = service.backends.iter().any(|backend| backend.max_connections > 0);
    let follows = |key: &str| match key {
        "track" => track == if limited { Track::All } else { default.track },
        "udp_flows" => true,
        "window" => window == default.window.min(flow_timeout),
        "flow_timeout" => flow_timeout == default.flow_timeout.max(window),
        _ => false,
    };
    let mut settings = emit::settings(service);
    settings.retain(|(key, _)| !follows(key));
    settings
}

/// What was meant by a key that cannot be set, or what can.
fn key_hint(key: &str) -> String {
    let near = schema::nearest(key, KEYS);
    if let Some((0 | 1, near)) = near {
        return format!("did you mean `{near}`?");
    }
    if key == "ring_size" {
        return format!("did you mean `{RING_SIZE}`?");
    }
    if let Some(hint) = foreign::key_hint(key) {
        return hint;
    }
    if let Some((_, near)) = near {
        return format!("did you mean `{near}`?");
    }
    let list = schema::list(KEYS);
    match schema::KEYS.iter().find(|known| known.name == key) {
        Some(known) if known.table == Table::Service => format!("it is changed in the file; {list} can be"),
        Some(known) => format!("it belongs in {}; {list} can be", known.table),
        None => format!("{list} can be"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{
        super::{Algo, OnMarkedDown, UdpFlows, check, duration, sample},
        *,
    };

    fn service(keys: &str) -> Service {
        let text = format!(
            "node.interface = \"eth0\"\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\nport = 53\nforward = \"ipip\"\n{keys}\n"
        );
        let checked = check("test.toml", &text);
        let rendered = checked.render(&text, false);
        checked.config.and_then(|config| config.services.into_iter().next()).unwrap_or_else(|| panic!("{rendered}"))
    }

    /// The service with the settings; the error as text where there is one.
    fn with(keys: &str, settings: &str) -> Result<Service, String> {
        parse(&service(keys), settings).map_err(|error| error.to_string())
    }

    #[test]
    fn each_key_is_set() {
        let set = with(
            "",
            "algo=random_two algo_config.ring_size=251 track=all on_marked_down=reset window=10m flow_timeout=1h \
             announce_for=0s drain_timeout=1m30s",
        );
        let (mut expect, s) = (service(""), Duration::from_secs);
        expect.algo = Algo::RandomTwo { ring_size: 251 };
        expect.flows = Flows {
            track: Track::All,
            on_marked_down: OnMarkedDown::Reset,
            window: s(600),
            flow_timeout: s(3600),
            announce_for: s(0),
            drain_timeout: s(90),
        };
        assert_eq!(set, Ok(expect));
        let sticky = with("protocol = \"udp\"", "udp_flows=sticky").map(|s| s.udp_flows());
        assert_eq!(sticky, Ok(Some(UdpFlows::Sticky)));
    }

    #[test]
    fn what_the_file_need_not_say_follows() {
        let table = [
            // (file, settings, track afterwards)
            ("", "algo=round_robin", Track::All),
            ("algo = \"round_robin\"", "algo=maglev", Track::Moved),
            ("track = \"all\"", "algo=source_hash", Track::All),
            ("backends = [{ address = \"10.0.0.1\", max_connections = 9 }]", "window=1m", Track::All),
            ("protocol = \"udp\"", "udp_flows=sticky", Track::All),
            ("protocol = \"udp\"\nudp_flows = \"sticky\"", "udp_flows=stateless", Track::Moved),
            ("protocol = \"udp\"\nudp_flows = \"sticky\"", "track=moved", Track::Moved),
            ("protocol = \"udp\"\nudp_flows = \"sticky\"", "window=1s", Track::All),
        ];
        for (keys, settings, track) in table {
            assert_eq!(with(keys, settings).map(|s| s.flows.track), Ok(track), "{keys} {settings}");
        }
        let table = [
            // (file, settings, window and flow_timeout afterwards)
            ("", "window=10h", ("10h", "10h")),
            ("", "flow_timeout=1m", ("1m", "1m")),
            ("flow_timeout = \"1m\"", "flow_timeout=3h", ("2h4m", "3h")),
            ("window = \"10h\"", "window=1h", ("1h", "2h4m")),
            ("window = \"1h\"\nflow_timeout = \"2h\"", "announce_for=1s", ("1h", "2h")),
            ("flow_timeout = \"1m\"", "algo=round_robin", ("1m", "1m")),
        ];
        for (keys, settings, (window, flow_timeout)) in table {
            let times = with(keys, settings).map(|s| [s.flows.window, s.flows.flow_timeout].map(duration::format));
            assert_eq!(times, Ok([window, flow_timeout].map(str::to_owned)), "{keys} {settings}");
        }
    }

    #[test]
    fn refusals_say_what_there_is() {
        let chosen = "algo = \"least_connections\"";
        let table = [
            ("", "algo=wlc", "`algo` cannot be \"wlc\" (in weir, IPVS' \"wlc\" is \"weighted_least_connections\")"),
            ("", "algo=maglve", "`algo` cannot be \"maglve\" (did you mean \"maglev\"?)"),
            ("", "track=no", "`track` cannot be \"no\" (`track` takes \"moved\" or \"all\")"),
            ("", "track=1", "`track` cannot be an integer (`track` takes \"moved\" or \"all\")"),
            (
                chosen,
                "track=moved",
                "`track` cannot be \"moved\" beside `algo = \"least_connections\"`, for which every flow is recorded (remove \
                 `track`, which is \"all\" beside it)",
            ),
            (
                "",
                "udp_flows=sticky",
                "`udp_flows` does not belong to a TCP service (TCP flows keep their backend without it; `track = \"all\"` \
                 records every one of them)",
            ),
            ("", "window=300", "`window` has no unit (write \"300s\" for seconds or \"300ms\" for milliseconds)"),
            (
                "",
                "window=19h",
                "`window` is out of range: 19h (`window` takes a duration from \"1s\" to \"18h\", at most `flow_timeout`)",
            ),
            (
                "",
                "algo_config.ring_size=65536",
                "`ring_size` is not prime: 65536 (the nearest primes are 65521 and 65537)",
            ),
            (
                "",
                "algo_config.ring_size=big",
                "`ring_size` cannot be a string (`ring_size` takes a prime number from 251 to 655373)",
            ),
            ("", "ring_size=251", "`ring_size` cannot be set on a service: did you mean `algo_config.ring_size`?"),
            ("", "lb_algo=rr", "`lb_algo` cannot be set on a service: in weir, keepalived's `lb_algo` is `algo`"),
            ("", "drain-timeout=1s", "`drain-timeout` cannot be set on a service: did you mean `drain_timeout`?"),
            ("", "window=1s window=2s", "`window` is set twice"),
        ];
        for (keys, settings, message) in table {
            assert_eq!(with(keys, settings).err().as_deref(), Some(message), "{settings}");
        }
        let list = schema::list(KEYS);
        for (settings, message) in [
            ("vip=192.0.2.2", format!("`vip` cannot be set on a service: it is changed in the file; {list} can be")),
            (
                "max_connections=5",
                format!(
                    "`max_connections` cannot be set on a service: it belongs in `[[service.backends]]`; {list} can be"
                ),
            ),
            ("colour=blue", format!("`colour` cannot be set on a service: {list} can be")),
            ("algo", format!("`algo` is no setting: write KEY=VALUE, as in algo=maglev; {list} can be set")),
            (" ", format!("` ` is no setting: write KEY=VALUE, as in algo=maglev; {list} can be set")),
        ] {
            assert_eq!(with("", settings), Err(message));
        }
    }

    #[test]
    fn refusals_have_the_codes_of_the_file() {
        let code = |settings| parse(&service(""), settings).map_err(|error| error.code());
        let table = [
            ("algo", Code::Syntax),
            ("colour=blue", Code::UnknownKey),
            ("track=all track=all", Code::DuplicateKey),
            ("algo=rr", Code::BadValue),
            ("algo=round_robin track=moved", Code::TrackConflict),
            ("udp_flows=sticky", Code::ProtocolKey),
            ("window=2h flow_timeout=1h", Code::WindowAboveTimeout),
            ("window=soon", Code::BadDuration),
            ("window=0s", Code::OutOfRange),
        ];
        for (settings, expect) in table {
            assert_eq!(code(settings).err(), Some(expect), "{settings}");
        }
    }

    #[test]
    fn every_key_is_one_of_the_file() {
        for key in KEYS.into_iter().filter(|key| *key != RING_SIZE) {
            assert!(schema::find(Table::Service, key).is_some(), "{key}");
        }
    }

    proptest! {
        #[test]
        fn what_is_in_force_changes_nothing(config in sample::config()) {
            for service in &config.services {
                for (key, value) in settings(service) {
                    let setting = format!("{key}={value}");
                    prop_assert_eq!(pairs(&setting), [(key, &*value)]);
                    prop_assert_eq!(parse(service, &setting), Ok(service.clone()), "{}", setting);
                }
            }
        }

        #[test]
        fn any_text_is_answered(config in sample::config(), key in 0..KEYS.len(), value in "\\PC{0,20}", text in "\\PC{0,40}") {
            for service in &config.services {
                let _ = parse(service, &text);
                let setting = format!("{}={value}", KEYS.get(key).copied().unwrap_or_default());
                let error = parse(service, &setting).err();
                prop_assert!(error.is_none_or(|error| !error.to_string().is_empty()));
            }
        }
    }
}

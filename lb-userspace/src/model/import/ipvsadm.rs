//! What `ipvsadm -S` prints, and scripts of `ipvsadm` commands, as drafts of services (ipvsadm(8)).
//!
//! Refuses to know: names of hosts and ports, which `ipvsadm -S` prints unless it is told `-n`.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    super::{Forward, Protocol, algo::Kind, parse::shown},
    BACKENDS_MAX, BackendDraft, Draft, Found, ImportError, SERVICES_MAX, algo,
};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    /// Address, port and protocol.
    At(IpAddr, u16, Protocol),
    /// A firewall mark, or SCTP: known, and left out.
    Other,
}

/// Reads the commands.
pub(super) fn read(text: &str) -> Result<Found, ImportError> {
    let mut found = Found::default();
    let mut known: HashMap<Which, usize> = HashMap::new();
    let mut backends = 0;
    for (at, line) in text.lines().enumerate() {
        let line_number = at + 1;
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        // A script calls the program by its name, with or without a path.
        let own_name = words.first().is_some_and(|word| *word == "ipvsadm" || word.ends_with("/ipvsadm"));
        let words = words.get(usize::from(own_name)..).unwrap_or_default();
        let Some((command, options)) = words.split_first() else { continue };
        match *command {
            "-A" | "--add-service" => service(line_number, options, &mut known, &mut found)?,
            "-a" | "--add-server" => server(line_number, options, &known, &mut backends, &mut found)?,
            // What begins a script that fills the table anew.
            "-C" | "--clear" => {}
            command => {
                let what = if command.starts_with('-') { "option" } else { "command" };
                let text = format!("the {what} `{}` adds no service and no server: it was left out", shown(command));
                found.note(line_number, text);
            }
        }
    }
    if found.services.is_empty() && known.is_empty() {
        found.note(1, "there is no service in it: `ipvsadm -Sn` prints those of a node, as root");
    }
    Ok(found)
}

/// The options of a command, each with its value.
struct Options<'w> {
    line: usize,
    words: std::slice::Iter<'w, &'w str>,
}

impl<'w> Options<'w> {
    /// The next option with the value that is written into it (`--weight=3`).
    fn next(&mut self) -> Option<(&'w str, Option<&'w str>)> {
        let word = *self.words.next()?;
        Some(match word.split_once('=') {
            Some((option, value)) if word.starts_with("--") => (option, Some(value)),
            _ => (word, None),
        })
    }

    /// The value of an option that needs one.
    fn value(&mut self, option: &str, inner: Option<&'w str>) -> Result<&'w str, ImportError> {
        inner.or_else(|| self.words.next().copied()).ok_or_else(|| ImportError {
            line: self.line,
            message: format!("`{}` has no value", shown(option)),
            hint: "take what `ipvsadm -Sn` prints as it is",
        })
    }

    /// The same as a number.
    fn number(&mut self, option: &str, inner: Option<&'w str>) -> Result<u32, ImportError> {
        let value = self.value(option, inner)?;
        value.parse().map_err(|_| ImportError {
            line: self.line,
            message: format!("`{}` takes a number, not `{}`", shown(option), shown(value)),
            hint: "take what `ipvsadm -Sn` prints as it is",
        })
    }

    /// The service that `-t`, `-u`, `-f` or `--sctp-service` names, if `option` is one of them.
    fn service(&mut self, option: &str, inner: Option<&'w str>) -> Result<Option<Which>, ImportError> {
        let protocol = match option {
            "-t" | "--tcp-service" => Protocol::Tcp,
            "-u" | "--udp-service" => Protocol::Udp,
            "-f" | "--fwmark-service" | "--sctp-service" => {
                self.value(option, inner)?;
                return Ok(Some(Which::Other));
            }
            _ => return Ok(None),
        };
        let (address, port) = endpoint(self.line, self.value(option, inner)?)?;
        Ok(Some(Which::At(address, port, protocol)))
    }
}

/// `192.0.2.1:80`, `[2001:db8::1]:80`; without a port, 0, which is all of them.
fn endpoint(line: usize, text: &str) -> Result<(IpAddr, u16), ImportError> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(at) = text.parse::<SocketAddr>() {
        return Ok((at.ip(), at.port()));
    }
    bare.parse().map(|address| (address, 0)).map_err(|_| ImportError {
        line,
        message: format!("`{}` is not an address with a port as numbers", shown(text)),
        hint: "names of hosts and ports are not resolved: `ipvsadm -Sn` prints numbers",
    })
}

fn missing(line: usize, what: &str) -> ImportError {
    let message = format!("the command says no {what}");
    ImportError { line, message, hint: "take what `ipvsadm -Sn` prints as it is" }
}

fn service(
    line: usize,
    words: &[&str],
    known: &mut HashMap<Which, usize>,
    found: &mut Found,
) -> Result<(), ImportError> {
    let mut options = Options { line, words: words.iter() };
    let (mut which, mut scheduler) = (None, "wlc");
    let (mut with_port, mut persistent, mut one_packet) = (false, false, false);
    let mut lost = Vec::new();
    while let Some((option, inner)) = options.next() {
        if let Some(named) = options.service(option, inner)? {
            which = Some(named);
            continue;
        }
        match option {
            "-s" | "--scheduler" => scheduler = options.value(option, inner)?,
            "-p" | "--persistent" => {
                persistent = true;
                // Its time-out may be left out.
                let next = options.words.as_slice().first();
                if inner.is_none() && next.is_some_and(|next| !next.starts_with('-')) {
                    options.words.next();
                }
            }
            "-o" | "--ops" => one_packet = true,
            "-M" | "--netmask" => {
                options.value(option, inner)?;
                lost.push(format!("`{option}` has no counterpart: `algo = \"source_hash\"` hashes the whole address"));
            }
            "--pe" => {
                options.value(option, inner)?;
                lost.push("`--pe` has no counterpart: weir looks at addresses and ports only".to_owned());
            }
            "-b" | "--sched-flags" => {
                let flags = options.value(option, inner)?;
                for flag in flags.split(',') {
                    match flag {
                        "sh-port" | "mh-port" | "flag-2" => with_port = true,
                        flag => lost.push(format!(
                            "the flag `{}` has no counterpart: what is down leaves the ring anyway",
                            shown(flag)
                        )),
                    }
                }
            }
            "-6" | "--ipv6" => {}
            option => lost.push(format!("`{}` has no counterpart and was left out", shown(option))),
        }
    }
    let which = which.ok_or_else(|| missing(line, "service"))?;
    let Which::At(vip, port, protocol) = which else {
        known.insert(which, usize::MAX);
        found.note(
            line,
            "the service was left out: weir balances TCP and UDP by address and port, no firewall marks and no SCTP",
        );
        return Ok(());
    };
    if found.services.len() >= SERVICES_MAX {
        found.note(line, format!("the service was left out: more than {SERVICES_MAX} are not taken over at once"));
        return Ok(());
    }
    if known.contains_key(&which) {
        found.note(line, "the service was added before: this time it was left out");
        return Ok(());
    }
    let (kind, differs) = algo(scheduler, with_port);
    let mut draft = Draft {
        line,
        name: None,
        vip,
        port,
        protocol,
        forward: Forward::Dsr,
        algo: if persistent { Kind::SourceHash } else { kind },
        one_packet,
        keep: false,
        check: None,
        backends: Vec::new(),
        notes: Vec::new(),
    };
    if persistent {
        draft.note(
            line,
            "persistence became `algo = \"source_hash\"`: a client stays with its backend for as long as that is there, and the \
             scheduler means nothing any more",
        );
    }
    lost.into_iter().chain(differs.filter(|_| !persistent)).for_each(|text| draft.note(line, text));
    known.insert(which, found.services.len());
    found.services.push(draft);
    Ok(())
}

fn server(
    line: usize,
    words: &[&str],
    known: &HashMap<Which, usize>,
    backends: &mut usize,
    found: &mut Found,
) -> Result<(), ImportError> {
    let mut options = Options { line, words: words.iter() };
    // Gatewaying is ipvsadm's default.
    let (mut which, mut at, mut forward) = (None, None, Forward::Dsr);
    let (mut weight, mut max_connections) = (1, 0);
    let mut lost = Vec::new();
    while let Some((option, inner)) = options.next() {
        if let Some(named) = options.service(option, inner)? {
            which = Some(named);
            continue;
        }
        match option {
            "-r" | "--real-server" => at = Some(endpoint(line, options.value(option, inner)?)?),
            "-g" | "--gatewaying" => forward = Forward::Dsr,
            "-i" | "--ipip" => forward = Forward::Ipip,
            "-m" | "--masquerading" => forward = Forward::Nat,
            "-w" | "--weight" => weight = options.number(option, inner)?,
            "-x" | "--u-threshold" => max_connections = options.number(option, inner)?,
            "-y" | "--l-threshold" => {
                if options.number(option, inner)? > 0 {
                    let why = "has no counterpart: a backend takes new flows again once it is below `max_connections`";
                    lost.push(format!("`{option}` {why}"));
                }
            }
            "--tun-type" => {
                let kind = options.value(option, inner)?;
                if kind != "ipip" {
                    lost.push(format!("a tunnel of type `{}` has no counterpart yet: \"ipip\" tunnels", shown(kind)));
                }
            }
            "--tun-port" => {
                options.value(option, inner)?;
                lost.push("`--tun-port` has no counterpart: \"ipip\" tunnels".to_owned());
            }
            "--tun-nocsum" | "--tun-csum" | "--tun-remcsum" | "-6" | "--ipv6" => {}
            option => lost.push(format!("`{}` has no counterpart and was left out", shown(option))),
        }
    }
    let which = which.ok_or_else(|| missing(line, "service"))?;
    let (address, port) = at.ok_or_else(|| missing(line, "real server"))?;
    let Some(draft) = known.get(&which).and_then(|at| found.services.get_mut(*at)) else {
        let text = "the server was left out: its service was, or was not added before it";
        found.note(line, text);
        return Ok(());
    };
    if *backends >= BACKENDS_MAX {
        draft.note(line, format!("the server was left out: more than {BACKENDS_MAX} are not taken over at once"));
        return Ok(());
    }
    *backends += 1;
    if draft.backends.is_empty() {
        draft.forward = forward;
    } else if draft.forward != forward {
        draft.note(line, "a service has one forwarding mode: that of its first server was taken for this one too");
    }
    lost.into_iter().for_each(|text| draft.note(line, text));
    draft.backends.push(BackendDraft { line, address, port, weight, max_connections });
    Ok(())
}

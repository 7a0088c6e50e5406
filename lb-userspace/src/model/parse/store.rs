//! `[store]` and `[[pool]]`, each by itself.

use std::{collections::HashMap, net::IpAddr, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;

use super::{
    super::{
        schema::Table,
        store::{
            EmbeddedStore, POOLS_MAX, Pool, RedisServers, RedisStore, RemoteStore, StoreConfig, StoreUrl,
            StoreUrlError, TlsFiles,
        },
    },
    At, Code, Diagnostic, Findings, Span, address,
    node::{self, PATH_BYTES_MAX, name},
    reader::{Section, shown},
};

/// Default of `path`.
const PATH: &str = "/var/lib/weir/store.redb";
/// Where a sentinel listens unless told otherwise.
const SENTINEL_PORT: u16 = 26_379;
/// Sentinels of one master, at most.
const SENTINELS_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    File,
    Embedded,
    Redis,
}

/// `[store]` as far as it could be read.
pub(super) struct Draft {
    /// Whether services stand in the file; `None` if that could not be read.
    pub is_file: Option<bool>,
    /// Where the kind is set, or the table starts.
    pub span: Span,
    store: Option<StoreConfig>,
}

impl Draft {
    /// A table that is none.
    pub fn refused() -> Self {
        Self { is_file: None, span: 0..0, store: None }
    }

    /// What a file without the table has.
    pub fn absent() -> Self {
        Self { is_file: Some(true), span: 0..0, store: Some(StoreConfig::File) }
    }

    /// The store, if nothing in it was refused.
    pub fn into_store(self) -> Option<StoreConfig> {
        self.store
    }
}

/// Keys of every kind but `kind` itself, with the kinds that have them: embedded and owned, embedded elsewhere, Redis.
const KEYS: [(&str, [bool; 3]); 16] = [
    ("path", [true, false, false]),
    ("listen", [true, false, false]),
    ("url", [false, true, true]),
    ("sentinels", [false, false, true]),
    ("master_name", [false, false, true]),
    ("server_tls", [false, false, true]),
    ("sentinel_user", [false, false, true]),
    ("sentinel_password_file", [false, false, true]),
    ("user", [false, false, true]),
    ("password_file", [false, false, true]),
    ("token_file", [true, true, false]),
    ("ca_file", [true, true, true]),
    ("cert_file", [true, true, true]),
    ("key_file", [true, true, true]),
    ("insecure", [true, true, true]),
    ("kind", [true, true, true]),
];

/// Reads `[store]`.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Draft {
    let kinds = [("file", Kind::File), ("embedded", Kind::Embedded), ("redis", Kind::Redis)];
    let kind = match section.get("kind") {
        None => Some(At { value: Kind::File, span: section.span.clone() }),
        Some(_) => section.word("kind", &kinds, findings),
    };
    let Some(At { value: kind, span }) = kind else {
        return Draft { is_file: None, span: section.span.clone(), store: None };
    };
    // Errors of a part that is not returned are still counted in `findings`.
    let before = findings.errors;
    let store = match kind {
        Kind::File => {
            foreign(section, None, "a store of kind \"file\"", findings);
            Some(StoreConfig::File)
        }
        Kind::Embedded if section.get("url").is_some() => {
            foreign(section, Some(1), "the embedded database of another process", findings);
            remote(section, findings)
        }
        Kind::Embedded => {
            foreign(section, Some(0), "an embedded database of this node", findings);
            embedded(section, &span, findings)
        }
        Kind::Redis => {
            foreign(section, Some(2), "a store of kind \"redis\"", findings);
            redis(section, findings)
        }
    };
    Draft { is_file: Some(kind == Kind::File), span, store: store.filter(|_| findings.errors == before) }
}

/// Reads `[store]` of a process other than an agent; `None` if there is no such table, or something in it was refused. The place is
/// where the kind is set. One that does not `serve` has no database of its own to open to others.
pub(super) fn used(root: &Section<'_>, serves: bool, findings: &mut Findings) -> Option<At<StoreConfig>> {
    let section = root.table("store", Table::Store, findings)?;
    let draft = read(&section, findings);
    if let (Some(StoreConfig::Embedded(_)), Some(span), false) = (&draft.store, section.key_span("listen"), serves) {
        let what = "only the agent or orchestrator that owns a database opens it to others";
        let finding = Diagnostic::new(Code::StoreKey, span, what)
            .hint("set `listen` in its file, and here `url` with its address");
        findings.push(finding);
        return None;
    }
    Some(At { value: draft.store?, span: draft.span })
}

/// Reports keys that do not belong to the kind of store.
fn foreign(section: &Section<'_>, column: Option<usize>, what: &str, findings: &mut Findings) {
    for (key, kinds) in KEYS.iter().filter(|(key, _)| *key != "kind") {
        let belongs = column.is_some_and(|column| kinds.get(column).copied().unwrap_or(false));
        let Some(span) = section.key_span(key).filter(|_| !belongs) else { continue };
        let names = KEYS.iter().filter(|(_, kinds)| column.is_some_and(|c| kinds.get(c).copied().unwrap_or(false)));
        let has: Vec<&str> = names.map(|(name, _)| *name).collect();
        let hint = if has.is_empty() {
            "the services stand in this file: for another store write `kind = \"embedded\"` or `kind = \"redis\"`"
                .to_owned()
        } else {
            format!("it has {}", super::super::schema::list(has))
        };
        let message = format!("`{key}` does not belong to {what}");
        findings.push(Diagnostic::new(Code::StoreKey, span, message).hint(hint));
    }
}

fn embedded(section: &Section<'_>, kind: &Span, findings: &mut Findings) -> Option<StoreConfig> {
    let listen = section.string("listen", findings).and_then(|At { value, span }| {
        if let Ok(at) =
            value.parse::<SocketAddr>().map_err(drop).and_then(|at| if at.port() == 0 { Err(()) } else { Ok(at) })
        {
            return Some(At { value: at, span });
        }
        let message = format!("`listen` is not an address with a port: \"{}\"", shown(value));
        let hint =
            "write \"[::]:9653\" for every address of this machine, \"127.0.0.1:9653\" for none that others reach";
        findings.push(Diagnostic::new(Code::BadListen, span, message).hint(hint));
        None
    });
    let token_file = path(section, "token_file", findings);
    let (tls, insecure) = (tls(section, findings), insecure(section, findings));
    for key in ["token_file", "ca_file", "cert_file"] {
        let unused = section.key_span(key).filter(|_| section.get("listen").is_none());
        if let Some(span) = unused {
            let message = format!("`{key}` without `listen` means nothing");
            let hint = "this node's own command line uses the agent's socket; `listen` opens the database to others";
            findings.push(Diagnostic::new(Code::StoreKey, span, message).hint(hint));
        }
    }
    let open = listen.as_ref().filter(|at| !at.value.ip().is_loopback());
    if let Some(at) = open.filter(|_| !insecure) {
        let encrypted = tls.cert_file.is_some();
        let asked = token_file.is_some() || tls.ca_file.is_some();
        if !(encrypted && asked) {
            let missing = match (encrypted, asked) {
                (false, false) => "TLS and without asking who is there",
                (false, true) => "TLS",
                _ => "asking who is there",
            };
            let message = format!("the store would be open to the network without {missing}");
            let hint = "set `cert_file` and `key_file`, and `token_file` or `ca_file`; where the network itself is protected, \
                        `insecure = true`";
            let finding = Diagnostic::new(Code::StoreInsecure, at.span.clone(), message);
            findings.push(finding.related(kind.clone(), "the store").hint(hint));
        }
    }
    let listen = listen.map(|at| at.value);
    let path = path(section, "path", findings).unwrap_or_else(|| PATH.into());
    Some(StoreConfig::Embedded(EmbeddedStore { path, listen, token_file, tls, insecure }))
}

fn remote(section: &Section<'_>, findings: &mut Findings) -> Option<StoreConfig> {
    let url = url(section, false, findings);
    let token_file = path(section, "token_file", findings);
    let (tls, insecure) = (tls(section, findings), insecure(section, findings));
    let At { value: url, span } = url?;
    if matches!(url, StoreUrl::Tcp { scheme, .. } if scheme.is_tls()) && section.get("ca_file").is_none() {
        let finding = Diagnostic::new(Code::MissingKey, span.clone(), "a store over TLS needs `ca_file`")
            .hint("weir serves it with a certificate of your own authority: copy that authority's certificate here, in PEM form");
        findings.push(finding);
    }
    let known = token_file.is_some() || tls.cert_file.is_some();
    protected(&url, &span, known, insecure, "`token_file` or `cert_file`", findings);
    Some(StoreConfig::Remote(RemoteStore { url, token_file, tls, insecure }))
}

fn redis(section: &Section<'_>, findings: &mut Findings) -> Option<StoreConfig> {
    let (user, password_file) = login(section, "user", "password_file", findings);
    let sentinel = login(section, "sentinel_user", "sentinel_password_file", findings);
    let server_tls = section.boolean("server_tls", findings);
    let (tls, insecure) = (tls(section, findings), insecure(section, findings));
    let servers = servers(section, findings)?;
    let urls: Vec<&At<StoreUrl>> = match &servers {
        Servers::One(url) => vec![url],
        Servers::Sentinels(urls, _) => urls.iter().collect(),
    };
    // One finding for all of them.
    if let Some(url) = urls.iter().find(|url| url.value.leaves_machine()) {
        let url = urls.iter().find(|url| url.value.is_readable()).unwrap_or(url);
        protected(&url.value, &url.span, password_file.is_some(), insecure, "`user` and `password_file`", findings);
        let span = section.key_span("server_tls").filter(|_| server_tls == Some(false) && !insecure);
        if let Some(span) = span.filter(|_| !url.value.is_readable()) {
            let finding =
                Diagnostic::new(Code::StoreInsecure, span, "the master is reached over a network without TLS");
            findings
                .push(finding.hint("leave `server_tls` out; where the network itself is protected, `insecure = true`"));
        }
    }
    let servers = match servers {
        Servers::One(url) => RedisServers::One(url.value),
        Servers::Sentinels(urls, master_name) => {
            let urls = urls.into_iter().map(|url| url.value).collect();
            let (user, password_file) = sentinel;
            RedisServers::Sentinels { urls, master_name, server_tls, user, password_file }
        }
    };
    Some(StoreConfig::Redis(RedisStore { servers, user, password_file, tls, insecure }))
}

/// A user and the file with its password.
fn login(
    section: &Section<'_>,
    user: &str,
    password_file: &str,
    findings: &mut Findings,
) -> (Option<String>, Option<PathBuf>) {
    let name = section.string(user, findings).and_then(|At { value, span }| {
        let good = (1..=128).contains(&value.len()) && value.chars().all(|c| c.is_ascii_graphic());
        if !good {
            let message = format!("no user of Redis is called \"{}\"", shown(value));
            findings.push(Diagnostic::new(Code::BadName, span, message).hint("`ACL LIST` shows the users of a server"));
        }
        good.then(|| value.to_owned())
    });
    let file = path(section, password_file, findings);
    if let Some(span) = section.key_span(user).filter(|_| section.get(password_file).is_none()) {
        let finding = Diagnostic::new(Code::MissingKey, span, format!("a `{user}` needs a `{password_file}`"));
        findings.push(
            finding.hint("write the password into a file that only weir may read (mode 0600), and its path here"),
        );
    }
    (name, file)
}

enum Servers {
    One(At<StoreUrl>),
    Sentinels(Vec<At<StoreUrl>>, String),
}

fn servers(section: &Section<'_>, findings: &mut Findings) -> Option<Servers> {
    match (section.key_span("url"), section.key_span("sentinels")) {
        (Some(url), Some(sentinels)) => {
            let finding = Diagnostic::new(Code::ConflictingKeys, sentinels, "`url` and `sentinels` exclude each other")
                .related(url, "`url` is set here")
                .hint("`url` is one server; `sentinels` say which server is the master: keep one");
            findings.push(finding);
            None
        }
        (None, Some(_)) => sentinels(section, findings),
        _ => {
            if section.get("url").is_none() {
                let finding =
                    Diagnostic::new(Code::MissingKey, section.span.clone(), "the store does not say where Redis is")
                        .hint("`url = \"rediss://redis.example.com:6379\"`, or `sentinels` and `master_name`");
                findings.push(finding);
            }
            let words = ["master_name", "server_tls", "sentinel_user", "sentinel_password_file"];
            for (word, span) in words.iter().filter_map(|word| Some((word, section.key_span(word)?))) {
                let finding =
                    Diagnostic::new(Code::StoreKey, span, format!("`{word}` without `sentinels` means nothing"))
                        .hint("sentinels know masters by name: `sentinels = [\"rediss://10.0.0.5:26379\"]`");
                findings.push(finding);
            }
            url(section, true, findings).map(Servers::One)
        }
    }
}

fn sentinels(section: &Section<'_>, findings: &mut Findings) -> Option<Servers> {
    section.require(&["master_name"], findings);
    let master_name = name_of(section, findings);
    let list = section.strings("sentinels", findings)?;
    if list.value.is_empty() || list.value.len() > SENTINELS_MAX {
        let message = format!("{} sentinels, a store has 1 to {SENTINELS_MAX}", list.value.len());
        let hint = "three on three machines outlive the loss of one";
        findings.push(Diagnostic::new(Code::OutOfRange, list.span, message).hint(hint));
        return None;
    }
    let mut urls = Vec::with_capacity(list.value.len());
    for At { value, span } in list.value {
        match parsed(value, Some(SENTINEL_PORT)) {
            Ok(url) => urls.push(At { value: url, span }),
            Err((why, hint)) => findings.push(bad_url("sentinels", value, span, &why, hint)),
        }
    }
    let encrypted = |url: &At<StoreUrl>| matches!(&url.value, StoreUrl::Tcp { scheme, .. } if scheme.is_tls());
    if let Some((first, other)) = urls
        .first()
        .and_then(|first| urls.iter().find(|other| encrypted(other) != encrypted(first)).map(|other| (first, other)))
    {
        let finding =
            Diagnostic::new(Code::BadUrl, other.span.clone(), "sentinels with and without TLS cannot be mixed")
                .related(first.span.clone(), "the first one")
                .hint("give all of them one scheme; `server_tls` says how the master is reached where that differs");
        findings.push(finding);
    }
    Some(Servers::Sentinels(urls, master_name?))
}

/// `master_name`.
fn name_of(section: &Section<'_>, findings: &mut Findings) -> Option<String> {
    let At { value, span } = section.string("master_name", findings)?;
    if super::super::is_name(value) {
        return Some(value.to_owned());
    }
    let finding = Diagnostic::new(Code::BadName, span, format!("\"{}\" cannot be the name of a master", shown(value)))
        .hint("`SENTINEL MASTERS` shows the names; they have letters, digits, `-`, `_` and `.`");
    findings.push(finding);
    None
}

fn url(section: &Section<'_>, redis: bool, findings: &mut Findings) -> Option<At<StoreUrl>> {
    let At { value, span } = section.string("url", findings)?;
    match parsed(value, redis.then_some(StoreUrl::REDIS_PORT)) {
        Ok(url) => Some(At { value: url, span }),
        Err((why, hint)) => {
            findings.push(bad_url("url", value, span, &why, hint));
            None
        }
    }
}

/// The address of a store of one kind; `redis_port` is the default port where it is Redis.
fn parsed(text: &str, redis_port: Option<u16>) -> Result<StoreUrl, (String, &'static str)> {
    let redis = redis_port.is_some();
    let hint = if redis {
        "write \"rediss://redis.example.com:6379\" (TLS) or \"redis://127.0.0.1:6379\""
    } else {
        "write \"https://store.example.com:9653\", \"http://127.0.0.1:9653\" or \"unix:/var/lib/weir/store.sock\""
    };
    let url = StoreUrl::parse(text, redis_port.unwrap_or(StoreUrl::REDIS_PORT)).map_err(|error| match error {
        StoreUrlError::Secret if redis => (error.to_string(), "write `user` and `password_file` instead"),
        StoreUrlError::Secret => (error.to_string(), "write `token_file` instead"),
        error => (error.to_string(), hint),
    })?;
    match &url {
        StoreUrl::Unix(_) if redis => Err(("Redis is reached over TCP".to_owned(), hint)),
        StoreUrl::Tcp { scheme, .. } if scheme.is_redis() != redis => {
            Err(("the store of that kind speaks another protocol".to_owned(), hint))
        }
        _ => Ok(url),
    }
}

fn bad_url(key: &str, text: &str, span: Span, why: &str, hint: &str) -> Diagnostic {
    // What stands before an @ may be a password.
    let text = text.rsplit_once('@').map_or_else(|| shown(text), |(_, host)| format!("...@{}", shown(host)));
    Diagnostic::new(Code::BadUrl, span, format!("`{key}` has no address of a store, \"{text}\": {why}")).hint(hint)
}

/// Reports what a network could read, or where nobody is asked who they are.
fn protected(url: &StoreUrl, span: &Span, known: bool, insecure: bool, keys: &str, findings: &mut Findings) {
    if insecure || !url.leaves_machine() || (known && !url.is_readable()) {
        return;
    }
    let redis = matches!(url, StoreUrl::Tcp { scheme, .. } if scheme.is_redis());
    let scheme = if redis { "rediss://" } else { "https://" };
    let (missing, hint) = match (url.is_readable(), known) {
        (true, true) => ("TLS", format!("write `{scheme}`")),
        (true, false) => ("TLS and credentials", format!("write `{scheme}`, and set {keys}")),
        (false, _) => ("credentials", format!("set {keys}")),
    };
    let message = format!("the store is reached over a network without {missing}");
    let hint = format!("{hint}; where the network itself is protected, `insecure = true`");
    findings.push(Diagnostic::new(Code::StoreInsecure, span.clone(), message).hint(hint));
}

fn tls(section: &Section<'_>, findings: &mut Findings) -> TlsFiles {
    let mut file = |name| path(section, name, findings);
    let tls = TlsFiles { ca_file: file("ca_file"), cert_file: file("cert_file"), key_file: file("key_file") };
    for (has, lacks) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if let Some(span) = section.key_span(has).filter(|_| section.get(lacks).is_none()) {
            let finding = Diagnostic::new(Code::MissingKey, span, format!("`{has}` needs `{lacks}`"))
                .hint("a certificate is shown with its private key, each a file in PEM form");
            findings.push(finding);
        }
    }
    tls
}

fn insecure(section: &Section<'_>, findings: &mut Findings) -> bool {
    section.boolean("insecure", findings).unwrap_or(false)
}

fn path(section: &Section<'_>, name: &str, findings: &mut Findings) -> Option<PathBuf> {
    node::path(section, name, PATH_BYTES_MAX, findings)
}

/// `[[pool]]` as far as it could be read.
pub(super) struct PoolDraft {
    pub name: Option<At<String>>,
    pub prefix: Option<At<IpNet>>,
}

impl PoolDraft {
    /// The pool, if nothing in it was refused.
    pub fn pool(&self) -> Option<Pool> {
        Some(Pool { name: self.name.as_ref()?.value.clone(), prefix: self.prefix.as_ref()?.value })
    }

    /// Moves every place by `by` bytes, which wrap around.
    pub fn shift(&mut self, by: usize) {
        let spans = [self.name.as_mut().map(|at| &mut at.span), self.prefix.as_mut().map(|at| &mut at.span)];
        spans.into_iter().flatten().for_each(|span| super::super::diagnostic::shift(span, by));
    }
}

/// Reads `[[pool]]`.
pub(super) fn pool(section: &Section<'_>, findings: &mut Findings) -> PoolDraft {
    section.require(&["name", "prefix"], findings);
    let prefix = section.string("prefix", findings).and_then(|At { value, span }| {
        let (message, hint) = match value.parse::<IpNet>() {
            Ok(net) if net.trunc() != net => (
                format!("`prefix` has bits beyond its length: \"{}\"", shown(value)),
                format!("write \"{}\"", net.trunc()),
            ),
            Ok(net) => match address::unusable(net.network()).or_else(|| address::unusable(net.broadcast())) {
                Some((kind, hint)) => (format!("`prefix` holds {kind}: {net}"), hint.to_owned()),
                None => return Some(At { value: net, span }),
            },
            Err(_) => (
                format!("`prefix` is not a prefix: \"{}\"", shown(value)),
                "a prefix is written \"192.0.2.32/28\" or \"2001:db8:0:1::/64\"".to_owned(),
            ),
        };
        findings.push(Diagnostic::new(Code::BadPrefix, span, message).hint(hint));
        None
    });
    PoolDraft { name: name(section, findings), prefix }
}

/// The prefixes of pools by name, checked against each other.
pub(super) fn pools(drafts: &[&PoolDraft], findings: &mut Findings) -> HashMap<String, At<IpNet>> {
    let mut known: HashMap<String, At<IpNet>> = HashMap::new();
    if let Some(name) = drafts.get(POOLS_MAX).and_then(|draft| draft.name.as_ref()) {
        let message = format!("{} pools, a configuration has at most {POOLS_MAX}", drafts.len());
        findings.push(Diagnostic::new(Code::OutOfRange, name.span.clone(), message));
    }
    for draft in drafts.iter().take(POOLS_MAX) {
        let (Some(name), Some(prefix)) = (&draft.name, &draft.prefix) else { continue };
        if let Some(first) = known.get(&name.value) {
            let finding = Diagnostic::new(
                Code::DuplicateName,
                name.span.clone(),
                format!("two pools are called `{}`", name.value),
            )
            .related(first.span.clone(), "first here")
            .hint("`vip = \"pool:NAME\"` must mean one pool: choose another name");
            findings.push(finding);
            continue;
        }
        let overlaps = |other: &IpNet| other.contains(&prefix.value) || prefix.value.contains(other);
        let other = known.iter().filter(|(_, other)| overlaps(&other.value)).min_by_key(|(_, other)| other.span.start);
        if let Some((other_name, other)) = other {
            let message = format!("the pools `{other_name}` and `{}` have addresses in common", name.value);
            let finding = Diagnostic::new(Code::PoolOverlap, prefix.span.clone(), message)
                .related(other.span.clone(), format!("`{other_name}` is {}", other.value))
                .hint("an address is leased by one node at a time: give each pool addresses of its own");
            findings.push(finding);
        }
        known.insert(name.value.clone(), prefix.clone());
    }
    known
}

/// The pool that holds `address`.
pub(super) fn pool_of(pools: &HashMap<String, At<IpNet>>, address: IpAddr) -> Option<(&str, &At<IpNet>)> {
    pools.iter().find(|(_, prefix)| prefix.value.contains(&address)).map(|(name, prefix)| (name.as_str(), prefix))
}

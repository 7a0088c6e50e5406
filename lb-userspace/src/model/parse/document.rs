//! The configuration of a node whose services stand in a store: the text of its own file, then each object.
//!
//! Every text is a TOML document by itself, so a broken one says nothing about the others. Places of findings count through all
//! texts one after the other; [`Document::sources`] leads back to the text and the line within it.
//!
//! Owns: which object means what. Refuses to know: where objects are kept. Invariant: an object that was read before is not read
//! again.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        POOL_OBJECT, SERVICE_OBJECT, StoreConfig,
        diagnostic::{self, Entry, Sources},
    },
    At, Checked, Code, Config, Diagnostic, Findings, Parts, Section, Table, broken, checked, in_store, node_of, reader,
    service, service_of, store, store_of,
};

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// One `[[service]]`.
    Service,
    /// One `[[pool]]`.
    Pool,
}

impl ObjectKind {
    /// What an object of that name holds; `None` for those that are no part of a configuration.
    pub fn of(key: &str) -> Option<(Self, &str)> {
        let (kind, name) = key.split_once('/')?;
        match kind {
            SERVICE_OBJECT => Some((Self::Service, name)),
            POOL_OBJECT => Some((Self::Pool, name)),
            _ => None,
        }
    }

    /// The table that it consists of.
    const fn table(self) -> (&'static str, Table) {
        match self {
            Self::Service => (SERVICE_OBJECT, Table::Service),
            Self::Pool => (POOL_OBJECT, Table::Pool),
        }
    }
}

/// An object of the store.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its name: `service/web`.
    pub key: String,
    /// Its text.
    pub text: Arc<str>,
    /// Where its places begin.
    start: usize,
}

/// A node's file with the objects of its store.
#[derive(Clone, Debug)]
pub struct Document {
    file_name: String,
    local: Arc<str>,
    objects: Vec<Object>,
    end: usize,
}

impl Document {
    /// The text of the file called `file_name`, without objects yet.
    pub fn new(file_name: &str, local: impl Into<Arc<str>>) -> Self {
        let local = local.into();
        Self { file_name: file_name.to_owned(), end: local.len() + 1, local, objects: Vec::new() }
    }

    /// The same with one more object. Those that are no part of a configuration ([`ObjectKind::of`]) are passed over.
    pub fn push(&mut self, key: &str, text: Arc<str>) {
        if ObjectKind::of(key).is_some() {
            let start = self.end;
            // One place lies between two texts, so that an end is not the next one's beginning.
            self.end = start.saturating_add(text.len() + 1);
            self.objects.push(Object { key: key.to_owned(), text, start });
        }
    }

    /// The texts with their names, as findings point into them.
    pub fn sources(&self) -> Sources<'_> {
        let objects = self.objects.iter().map(|object| (&*object.key, object.start, &*object.text));
        Sources::new([(&*self.file_name, 0, &*self.local)].into_iter().chain(objects))
    }

    /// The findings for people; see [`diagnostic::render_in`].
    pub fn render(&self, checked: &Checked, colour: bool) -> String {
        diagnostic::render_in(&checked.diagnostics, &self.sources(), colour)
    }

    /// The findings with positions, for JSON.
    pub fn entries(&self, checked: &Checked) -> Vec<Entry> {
        diagnostic::entries_in(&checked.diagnostics, &self.sources())
    }
}

/// An object that was read.
pub(super) struct Known {
    /// Place from which those in `draft` and `findings` count.
    start: usize,
    draft: Draft,
    /// What was found in the object by itself.
    findings: Findings,
}

enum Draft {
    Service(Box<service::Draft>),
    Pool(store::PoolDraft),
    /// Nothing that could be used.
    Broken,
}

impl Known {
    fn move_to(&mut self, start: usize) {
        let by = start.wrapping_sub(self.start);
        if by == 0 {
            return;
        }
        match &mut self.draft {
            Draft::Service(draft) => draft.shift(by),
            Draft::Pool(draft) => draft.shift(by),
            Draft::Broken => {}
        }
        self.findings.list.iter_mut().for_each(|found| found.shift(by));
        self.start = start;
    }

    /// The name that the text itself gives.
    fn name(&self) -> Option<&At<String>> {
        match &self.draft {
            Draft::Service(draft) => draft.name.as_ref(),
            Draft::Pool(draft) => draft.name.as_ref(),
            Draft::Broken => None,
        }
    }
}

/// Checks the document with the help of what is `known`, which is replaced by what this one holds.
pub(super) fn check(document: &Document, known: &mut HashMap<Arc<str>, Known>) -> Checked {
    let mut findings = Findings::default();
    let config = configuration(document, known, &mut findings);
    checked(&document.file_name, config, findings)
}

fn configuration(document: &Document, known: &mut HashMap<Arc<str>, Known>, findings: &mut Findings) -> Option<Config> {
    let mut parts: Vec<(&Object, Known)> = Vec::with_capacity(document.objects.len());
    for object in &document.objects {
        let Some((kind, name)) = ObjectKind::of(&object.key) else { continue };
        let mut one = known.remove(&object.text).filter(|one| one.is(kind)).unwrap_or_else(|| read(kind, &object.text));
        one.move_to(object.start);
        findings.omitted += one.findings.omitted;
        findings.errors += one.findings.errors - one.findings.list.iter().filter(|d| d.is_error()).count();
        one.findings.list.iter().for_each(|found| findings.push(found.clone()));
        if let Some(at) = one.name().filter(|at| at.value != name) {
            let message = format!("the object `{}` holds a {} called `{}`", object.key, kind.table().0, at.value);
            let hint = "it was written past `weir`: write it anew under its own name, or give it this one";
            findings.push(Diagnostic::new(Code::ObjectName, at.span.clone(), message).hint(hint));
        }
        parts.push((object, one));
    }
    let (local, errors) = DeTable::parse_recoverable(&document.local);
    let config = if errors.is_empty() {
        let root = Section::root(local.get_ref(), &document.local, findings);
        let (node, store) = (node_of(&root, findings), store_of(&root, findings));
        in_store(&root, &store, findings);
        let (mut services, mut pools) = (Vec::new(), Vec::new());
        for (_, one) in &parts {
            match &one.draft {
                Draft::Service(draft) => services.push(&**draft),
                Draft::Pool(draft) => pools.push(draft),
                Draft::Broken => {}
            }
        }
        Parts { node, store, pools, services }.finish(findings)
    } else {
        broken(&local, &errors, &document.local, findings);
        None
    };
    known.clear();
    known.extend(parts.into_iter().map(|(object, one)| (Arc::clone(&object.text), one)));
    config
}

impl Known {
    fn is(&self, kind: ObjectKind) -> bool {
        matches!((&self.draft, kind), (Draft::Service(_), ObjectKind::Service) | (Draft::Pool(_), ObjectKind::Pool))
    }
}

/// Reads an object by itself: a document of exactly one table of its kind.
fn read(kind: ObjectKind, text: &str) -> Known {
    let mut findings = Findings::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    let draft = if errors.is_empty() {
        one(kind, document.get_ref(), text, &mut findings)
    } else {
        reader::syntax(text, &diagnostic::Lines::new(text), &errors, &mut findings);
        None
    };
    Known { start: 0, draft: draft.unwrap_or(Draft::Broken), findings }
}

fn one(kind: ObjectKind, entries: &DeTable<'_>, text: &str, findings: &mut Findings) -> Option<Draft> {
    let (key, table) = kind.table();
    let only = || match entries.get(key).filter(|_| entries.len() == 1)?.get_ref() {
        DeValue::Array(elements) if elements.len() == 1 => elements.first(),
        _ => None,
    };
    let element = only().and_then(|element| Some((element.get_ref().as_table()?, element.span())));
    let Some((entries, span)) = element else {
        let place = text.find(|c: char| !c.is_whitespace()).unwrap_or(0);
        let message = format!("an object of this kind holds one `[[{key}]]` and nothing else");
        let finding = Diagnostic::new(Code::ObjectName, place..place, message)
            .hint("it was written past `weir`: `weir config export` shows what the store holds");
        findings.push(finding);
        return None;
    };
    let section = Section::open(table, entries, span, findings);
    Some(match kind {
        ObjectKind::Service => Draft::Service(Box::new(service_of(&section, findings))),
        ObjectKind::Pool => Draft::Pool(store::pool(&section, findings)),
    })
}

/// Where the services of a node stand, by its file alone: whatever else is wrong with it is the business of who uses it. A text
/// that is no TOML and does not seem to have the table has none.
///
/// # Errors
/// What is wrong with `[store]`.
pub fn store(file_name: &str, text: &str) -> Result<StoreConfig, Box<Checked>> {
    let mut findings = Findings::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        if !text.lines().any(|line| line.trim_start().starts_with("[store]")) {
            return Ok(StoreConfig::File);
        }
        reader::syntax(text, &diagnostic::Lines::new(text), &errors, &mut findings);
        return Err(Box::new(checked(file_name, None, findings)));
    }
    let root = Section::root(document.get_ref(), text, &mut Findings::default());
    let store = store_of(&root, &mut findings).into_store();
    store.filter(|_| findings.errors == 0).ok_or_else(|| Box::new(checked(file_name, None, findings)))
}

/// The `state_dir` of a node, by its file alone.
pub fn state_dir(text: &str) -> PathBuf {
    path(text, &["node", "state_dir"]).unwrap_or_else(|| "/var/lib/weir".into())
}

/// The socket of a node's agent, by its file alone.
pub fn api_socket(text: &str) -> PathBuf {
    path(text, &["node", "api", "socket"]).unwrap_or_else(|| "/run/weir/api.sock".into())
}

/// The text under these keys.
fn path(text: &str, keys: &[&str]) -> Option<PathBuf> {
    let (document, _) = DeTable::parse_recoverable(text);
    let (last, tables) = keys.split_last()?;
    let mut table = document.get_ref();
    for key in tables {
        table = table.get(*key)?.get_ref().as_table()?;
    }
    table.get(*last)?.get_ref().as_str().map(Into::into)
}

/// Checks services and pools of a text that says nothing, or nothing that counts, about a node: each table by itself and all of them
/// against each other. Everything that was found.
pub fn services(file_name: &str, text: &str) -> Checked {
    let mut findings = Findings::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let root = Section::root(document.get_ref(), text, &mut findings);
        // What it says about its node is not taken, and yet may be wrong.
        if root.get("node").is_some() {
            node_of(&root, &mut findings);
        }
        if root.get("store").is_some() {
            store_of(&root, &mut findings);
        }
        let pools = super::pools_of(&root, &mut findings);
        let sections = root.tables(SERVICE_OBJECT, Table::Service, &mut findings);
        let services: Vec<service::Draft> = sections.iter().map(|section| service_of(section, &mut findings)).collect();
        let prefixes = store::pools(&pools.iter().collect::<Vec<_>>(), &mut findings);
        super::cross::check(None, &prefixes, &services.iter().collect::<Vec<_>>(), &mut findings);
    } else {
        broken(&document, &errors, text, &mut findings);
    }
    checked(file_name, None, findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "[node]\ninterface = \"eth0\"\n[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:6379\"\n";

    fn service(n: usize, weight: usize) -> Arc<str> {
        format!(
            "[[service]]\nname = \"s{n}\"\nvip = \"192.0.2.{n}\"\nport = 80\nforward = \"dsr\"\n[[service.backends]]\n\
             address = \"10.0.{n}.1\"\nweight = {weight}\n"
        )
        .into()
    }

    fn document(weights: &[usize]) -> Document {
        let mut document = Document::new("weir.toml", LOCAL);
        let objects = weights.iter().enumerate();
        objects.for_each(|(n, weight)| document.push(&format!("service/s{n}"), service(n, *weight)));
        document
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        let mut known = HashMap::new();
        assert!(check(&document(&[1, 1, 1]), &mut known).diagnostics.is_empty());
        // What is known of the second one is made to differ from its text, which shows who is asked.
        let Some(Known { draft: Draft::Service(draft), .. }) = known.get_mut(&service(1, 1)) else {
            panic!("not known")
        };
        draft.backends[0].weight.value = 7;
        let config = check(&document(&[11_usize, 1, 1]), &mut known).config.expect("a good document");
        let weights: Vec<u16> = config.services.iter().map(|service| service.backends[0].weight).collect();
        assert_eq!(weights, [11, 7, 1], "read again");
        assert_eq!(known.len(), 3, "what is gone is forgotten");
    }

    #[test]
    fn a_broken_file_says_so_and_forgets_nothing() {
        let mut known = HashMap::new();
        check(&document(&[1, 2]), &mut known);
        let broken = Document { local: "[node".into(), ..document(&[1, 2]) };
        let checked = check(&broken, &mut known);
        assert!(
            checked.config.is_none() && checked.count(diagnostic::Severity::Error) == 1,
            "{}",
            broken.render(&checked, false)
        );
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn the_store_is_found_in_any_file() {
        let kind = |text: &str| store("f", text).map(|store| store.kind());
        assert_eq!(kind(LOCAL), Ok("redis"));
        assert_eq!(kind(""), Ok("file"));
        assert_eq!(kind("[node]\ninterface = 3\n"), Ok("file"), "what else is wrong is not its business");
        assert_eq!(kind("[node\n"), Ok("file"));
        assert!(kind("[store]\nkind = \"redis\"\nurl = redis\n").is_err());
        assert!(kind("[store]\nkind = \"redis\"\n").is_err());
        assert_eq!(state_dir("[node]\nstate_dir = \"/srv/weir\"\n").to_str(), Some("/srv/weir"));
        assert_eq!(state_dir("nonsense").to_str(), Some("/var/lib/weir"));
    }

    #[test]
    fn a_file_of_services_needs_no_node() {
        let web = &*service(1, 1);
        let count = |text: &str| services("f", text).count(diagnostic::Severity::Error);
        assert_eq!(count(web), 0);
        assert_eq!(count(&format!("[node]\ninterface = \"eth0\"\n{web}")), 0);
        assert_eq!(count(&format!("[node]\ninterface = 3\n{web}")), 1, "what it says of its node is checked");
        assert_eq!(count(&format!("{web}\n{web}")), 2, "name and VIP");
        assert_eq!(count(&web.replace("192.0.2.1", "pool:front")), 1, "no such pool");
    }
}

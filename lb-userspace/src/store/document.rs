//! Objects of a store as the configuration of a node, and as the text of a file.
//!
//! Pure. Owns: which objects are part of a configuration, and how files and objects become each other. Refuses to know: what
//! the texts mean ([`crate::model`]), and where objects are kept.

use std::sync::Arc;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

use super::{
    edit::EditError,
    object::{Key, Objects},
    write::NewText,
};
use crate::model::{Document, POOL_OBJECT, SERVICE_OBJECT};

/// The file of a node with the objects of its store, ready for [`crate::model::Incremental::document`].
pub fn document(file_name: &str, local: impl Into<Arc<str>>, objects: &Objects) -> Document {
    let mut document = Document::new(file_name, local);
    for (key, text) in objects {
        document.push(key.as_str(), Arc::clone(text));
    }
    document
}

/// Whether an object is part of a configuration.
pub fn is_configuration(key: &Key) -> bool {
    matches!(key.kind(), SERVICE_OBJECT | POOL_OBJECT)
}

/// Services and pools as a file would have them: what [`split`] makes the same objects of.
pub fn join(objects: &Objects) -> String {
    let mut out = String::new();
    // Pools first: a file is read from its top.
    for kind in [POOL_OBJECT, SERVICE_OBJECT] {
        for (_, text) in objects.iter().filter(|(key, _)| key.kind() == kind) {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
    }
    out
}

/// The services and pools of a file as objects. Comments stay with the table that they stand before; what else the file holds
/// is not taken.
///
/// # Errors
/// [`EditError::Broken`] for a text that is not TOML, or a table that could have no key; a text that
/// [`crate::model::parse::document::services`] finds no error in has none of that.
pub fn split(file_name: &str, text: &str) -> Result<Vec<(Key, Arc<str>)>, EditError> {
    let broken = |why: String| EditError::Broken { what: file_name.to_owned(), why };
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| broken(error.message().to_owned()))?;
    let mut objects = Vec::new();
    for kind in [POOL_OBJECT, SERVICE_OBJECT] {
        let Some(item) = document.remove(kind) else { continue };
        let tables = item.into_array_of_tables().map_err(|_| broken(format!("`{kind}` is no array of tables")))?;
        for table in tables {
            let name = table.get("name").and_then(Item::as_str).unwrap_or_default();
            let key = Key::new(&format!("{kind}/{name}"))?;
            if objects.iter().any(|(other, _)| *other == key) {
                return Err(broken(format!("{kind} `{name}` stands in it twice")));
            }
            objects.push((key, text_of(kind, table)));
        }
    }
    Ok(objects)
}

/// The text of an object that holds `table`.
pub(super) fn text_of(kind: &str, table: Table) -> Arc<str> {
    let mut tables = ArrayOfTables::new();
    tables.push(table);
    let mut document = DocumentMut::new();
    document.insert(kind, Item::ArrayOfTables(tables));
    normal(&document.to_string())
}

/// The same text without empty lines around it, with one line end at its end.
pub(super) fn normal(text: &str) -> Arc<str> {
    let mut text = text.trim_start_matches(['\n', '\r']).trim_end().to_owned();
    text.push('\n');
    text.into()
}

/// What makes the store hold `wanted`: these services and pools, and with `prune` no others. Objects of other kinds stay.
pub fn replace(objects: &Objects, wanted: &[(Key, Arc<str>)], prune: bool) -> Vec<NewText> {
    let mut edits: Vec<NewText> = wanted.iter().map(|(key, text)| (key.clone(), Some(Arc::clone(text)))).collect();
    if prune {
        let gone = objects.keys().filter(|key| is_configuration(key) && !wanted.iter().any(|(other, _)| other == *key));
        edits.extend(gone.map(|key| (key.clone(), None)));
    }
    edits.retain(|(key, text)| objects.get(key) != text.as_ref());
    edits
}

/// `objects` after `edits`.
pub fn after(objects: &Objects, edits: &[NewText]) -> Objects {
    let mut after = objects.clone();
    for (key, text) in edits {
        match text {
            Some(text) => after.insert(key.clone(), Arc::clone(text)),
            None => after.remove(key),
        };
    }
    after
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{self, Incremental, code::Code, emit, parse};

    const LOCAL: &str = "[node]\ninterface = \"eth0\"\n[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:6379\"\n";

    const FILE: &str = "# The site's services.\n\n[node]\ninterface = \"eth0\"\n\n# The shop.\n[[service]]\nname = \"web\" # here\n\
        vip = \"pool:front\"\nport = 80\nforward = \"dsr\"\n\n[service.health_check]\ntype = \"tcp\"\n\n# Old, and slow.\n\
        [[service.backends]]\naddress = \"10.0.0.1\"\n\n[[service]]\nname = \"dns\"\nvip = \"192.0.2.2\"\nport = 53\n\
        protocol = \"udp\"\nforward = \"dsr\"\nbackends = [{ address = \"10.0.0.9\" }]\n\n[[pool]]\nname = \"front\"\n\
        prefix = \"198.51.100.0/28\"\n";

    fn objects(text: &str) -> Objects {
        split("file", text).unwrap().into_iter().collect()
    }

    #[test]
    fn a_file_becomes_objects_with_their_comments() {
        let objects = objects(FILE);
        let keys: Vec<_> = objects.keys().map(Key::as_str).collect();
        assert_eq!(keys, ["pool/front", "service/dns", "service/web"]);
        let web = &objects[&Key::new("service/web").unwrap()];
        assert_eq!(
            &**web,
            "# The shop.\n[[service]]\nname = \"web\" # here\nvip = \"pool:front\"\nport = 80\nforward = \"dsr\"\n\n\
             [service.health_check]\ntype = \"tcp\"\n\n# Old, and slow.\n[[service.backends]]\naddress = \"10.0.0.1\"\n"
        );
        assert_eq!(self::objects(&join(&objects)), objects);
    }

    #[test]
    fn a_node_runs_what_the_objects_say() {
        let document = document("weir.toml", LOCAL, &objects(FILE));
        let checked = Incremental::default().document(&document);
        let config = checked.config.clone().unwrap_or_else(|| panic!("{}", document.render(&checked, false)));
        assert_eq!(config.services.iter().map(|s| &*s.name).collect::<Vec<_>>(), ["dns", "web"]);
        assert_eq!(config.pools.len(), 1);
        let (leased, waiting) = config.clone().leased(&std::collections::BTreeMap::new());
        assert_eq!((leased.services.len(), waiting), (1, vec!["web".to_owned()]));
        let lease = ("front".to_owned(), "198.51.100.7".parse().unwrap());
        let (leased, waiting) = config.leased(&std::collections::BTreeMap::from([lease]));
        assert_eq!((leased.services[1].key.vip.to_string().as_str(), waiting.len()), ("198.51.100.7", 0));
    }

    #[test]
    fn a_finding_names_its_object_and_the_line_in_it() {
        let mut objects = objects(FILE);
        objects.insert(
            Key::new("service/api").unwrap(),
            "[[service]]\nname = \"api\"\nvip = \"192.0.2.2\"\nport = 53\nprotocol = \"udp\"\nforward = \"dsr\"\n\
             [[service.backends]]\naddress = \"10.0.0.9\"\nweight = 1001\n"
                .into(),
        );
        let document = document("weir.toml", LOCAL, &objects);
        let checked = Incremental::default().document(&document);
        assert!(checked.config.is_none());
        let entries = document.entries(&checked);
        let at = |code| entries.iter().find(|entry| entry.code == code).unwrap();
        assert_eq!((&*at(Code::OutOfRange).file, at(Code::OutOfRange).line), ("service/api", 9));
        let duplicate = at(Code::DuplicateService);
        assert_eq!((&*duplicate.file, duplicate.line), ("service/dns", 3));
        assert_eq!((duplicate.related[0].file.as_deref(), duplicate.related[0].line), (Some("service/api"), 3));
        let shown = document.render(&checked, false);
        assert!(shown.contains("--> service/api:9:10") && shown.contains("::: service/api:3:7"), "{shown}");
    }

    /// Reads the same as the first time, also where a text returns under another name, and one object more or less.
    #[test]
    fn what_is_remembered_changes_no_answer() {
        let mut incremental = Incremental::default();
        let mut all = objects(FILE);
        for step in 0..6 {
            match step {
                1 => _ = all.remove(&Key::new("pool/front").unwrap()),
                2 => _ = all.insert(Key::new("service/broken").unwrap(), "[[service]]\nname = 1\n".into()),
                3 => {
                    let text = Arc::clone(&all[&Key::new("service/dns").unwrap()]);
                    all.insert(Key::new("service/twice").unwrap(), text);
                }
                4 => all.retain(|key, _| key.name() != "broken"),
                _ => {}
            }
            let document = document("weir.toml", LOCAL, &all);
            assert_eq!(incremental.document(&document), Incremental::default().document(&document), "step {step}");
        }
    }

    #[test]
    fn a_file_is_applied_whole_or_on_top() {
        let objects = objects(FILE);
        let other = Key::new("scaling/web").unwrap();
        let have: Objects = objects.clone().into_iter().chain([(other.clone(), "x".into())]).collect();
        assert!(replace(&have, &objects.clone().into_iter().collect::<Vec<_>>(), true).is_empty());
        let web = Key::new("service/web").unwrap();
        let wanted = vec![(web.clone(), Arc::clone(&objects[&web]))];
        let removed: Vec<String> = replace(&have, &wanted, true).iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(removed, ["pool/front", "service/dns"]);
        assert!(replace(&have, &wanted, false).is_empty());
        assert!(after(&have, &replace(&have, &wanted, true)).contains_key(&other));
    }

    proptest! {
        /// Through the store and back, a configuration says the same.
        #[test]
        fn any_configuration_survives_the_store(config in model::sample_config()) {
            let text = emit(&config);
            let wanted = split("file", &text).unwrap();
            let objects: Objects = wanted.into_iter().collect();
            prop_assert_eq!(split("file", &join(&objects)).unwrap().into_iter().collect::<Objects>(), objects.clone());
            let checked = Incremental::default().document(&document("weir.toml", LOCAL, &objects));
            let read = checked.config.map(|config| config.services).unwrap_or_default();
            let mut expect = config.services.clone();
            expect.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(read, expect);
        }

        #[test]
        fn any_text_is_answered(text in "(\\PC|\n){0,200}") {
            let _ = split("file", &text);
            let _ = parse::document::services("file", &text);
            let objects = Objects::from([(Key::new("service/web").unwrap(), text.clone().into())]);
            let document = document("weir.toml", text, &objects);
            let checked = Incremental::default().document(&document);
            let shown = document.render(&checked, false);
            prop_assert_eq!(shown.is_empty(), checked.diagnostics.is_empty());
        }
    }
}

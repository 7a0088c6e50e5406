//! Checking a file again after a small change, at the price of the change.
//!
//! The text is cut before each line that starts with `[[service]]`. Where every part is a whole TOML document by itself, the
//! file means what its parts mean one after the other, so a part that was read before need not be read again. What tables
//! must agree on is checked anew each time.
//!
//! Owns: when that holds, and the parts that were read last. Invariant: the answer is the one of [`super::whole`], whatever was
//! checked before; where that is not certain (a syntax error, a service written in another way, a table of `[node]` between
//! services, more findings than are kept), the whole text is read at once.

use std::{collections::HashMap, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{
    Checked, Config, Diagnostic, Findings, Parts, Section, Table, checked,
    document::{self, Document},
    node_of, pools_of,
    service::Draft,
    service_of, store_of, whole,
};

/// What a service starts with, where the text is cut.
const HEADER: &str = "[[service]]";

/// Remembers the services of the text that was checked last, and checks the next one with their help.
#[derive(Default)]
pub struct Incremental {
    /// By their text.
    known: HashMap<String, Known>,
    /// Objects of a store, by their text.
    objects: HashMap<Arc<str>, document::Known>,
}

/// A service that was read.
struct Known {
    /// Byte of the file from which the places in `draft` and `findings` count.
    start: usize,
    draft: Draft,
    /// What was found in the service by itself.
    findings: Vec<Diagnostic>,
}

impl Incremental {
    /// The same as [`super::check`].
    pub fn check(&mut self, file_name: &str, text: &str) -> Checked {
        let mut findings = Findings::default();
        match self.by_parts(text, &mut findings) {
            Some(config) if findings.omitted == 0 => checked(file_name, config, findings),
            _ => whole(file_name, text),
        }
    }

    /// Checks the text of a node's file and the objects of its store.
    pub fn document(&mut self, document: &Document) -> Checked {
        document::check(document, &mut self.objects)
    }

    /// The configuration, unless there are errors; `None` if the parts of the text do not stand by themselves. What was known
    /// of parts that this text still has stays known in either case.
    fn by_parts(&mut self, text: &str, findings: &mut Findings) -> Option<Option<Config>> {
        let cuts = cuts(text);
        let (first, ends) = (cuts.first()?, cuts.iter().skip(1).copied().chain([text.len()]));
        let preamble = DeTable::parse(text.get(..*first)?).ok()?;
        if preamble.get_ref().contains_key("service") {
            return None;
        }
        let root = Section::root(preamble.get_ref(), text, &mut Findings::default());
        if store_of(&root, &mut Findings::default()).is_file == Some(false) {
            // That there are services is the finding.
            return None;
        }
        let mut parts: Vec<(String, Known, bool)> = Vec::with_capacity(cuts.len());
        for (&start, end) in cuts.iter().zip(ends) {
            let part = text.get(start..end)?;
            // Two equal parts are two services: the second one is read anew.
            let (text, mut known, fresh) = match self.known.remove_entry(part) {
                Some((text, known)) => (text, known, false),
                None => match read(part) {
                    Some(known) => (part.to_owned(), known, true),
                    None => {
                        let held = parts.into_iter().filter(|(_, _, fresh)| !fresh);
                        self.known.extend(held.map(|(text, known, _)| (text, known)));
                        return None;
                    }
                },
            };
            known.move_to(start);
            parts.push((text, known, fresh));
        }

        let root = Section::root(preamble.get_ref(), text, findings);
        let (node, store, pools) = (node_of(&root, findings), store_of(&root, findings), pools_of(&root, findings));
        parts.iter().flat_map(|(_, known, _)| &known.findings).for_each(|found| findings.push(found.clone()));
        let drafts = parts.iter().map(|(_, known, _)| &known.draft).collect();
        let config = Parts { node, store, pools: pools.iter().collect(), services: drafts }.finish(findings);
        self.known = parts.into_iter().map(|(text, known, _)| (text, known)).collect();
        Some(config)
    }
}

impl Known {
    fn move_to(&mut self, start: usize) {
        let by = start.wrapping_sub(self.start);
        if by != 0 {
            self.draft.shift(by);
            self.findings.iter_mut().for_each(|found| found.shift(by));
            self.start = start;
        }
    }
}

/// Bytes at which a line starts with [`HEADER`].
fn cuts(text: &str) -> Vec<usize> {
    let starts_line = |at: &usize| *at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n');
    text.match_indices(HEADER).map(|(at, _)| at).filter(starts_line).collect()
}

/// Reads a part that starts with [`HEADER`]; `None` unless it is a TOML document of exactly one service.
fn read(part: &str) -> Option<Known> {
    let document = DeTable::parse(part).ok()?;
    let root = document.get_ref();
    let DeValue::Array(services) = root.get("service").filter(|_| root.len() == 1)?.get_ref() else { return None };
    let element = services.first().filter(|_| services.len() == 1)?;
    let DeValue::Table(entries) = element.get_ref() else { return None };
    let mut findings = Findings::default();
    let section = Section::open(Table::Service, entries, element.span(), &mut findings);
    let draft = service_of(&section, &mut findings);
    (findings.omitted == 0).then_some(Known { start: 0, draft, findings: findings.list })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{
        super::super::{emit, sample},
        *,
    };

    /// A text of `n` services by `nat`, with findings of every kind: in one service and between services.
    fn text(n: usize) -> String {
        let mut text = String::from("[node]\ninterface = \"eth0\"\n");
        for n in 0..n {
            text.push_str(&format!(
                "[[service]]\nname = \"s{n}\"\nvip = \"192.0.2.{n}\"\nport = 80\nforward = \"nat\"\n\
                 algo_config = {{ ring_size = 251 }}\n[service.health_check]\ntype = \"http\"\n\
                 [[service.backends]]\naddress = \"10.0.{n}.1\"\nport = 8080\n[[service.backends]]\naddress = \"10.0.{n}.2\"\n"
            ));
        }
        text
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        let mut incremental = Incremental::default();
        let before = text(3);
        incremental.check("f", &before);
        // What is known of the second service is made to differ from its text, which shows who is asked.
        let (part, mut known) = incremental.known.remove_entry(&before[cuts(&before)[1]..cuts(&before)[2]]).unwrap();
        known.draft.backends[0].weight.value = 7;
        incremental.known.insert(part, known);
        let after = before.replace("10.0.0.1", "10.0.0.111");
        let config = incremental.check("f", &after).config.unwrap();
        let [first, second, _] = &*config.services else { panic!("{config:?}") };
        assert_eq!(first.backends[0].address.to_string(), "10.0.0.111");
        assert_eq!(second.backends[0].weight, 7, "read again");
    }

    #[test]
    fn places_move_with_their_service() {
        let mut incremental = Incremental::default();
        let before = text(4) + "weight = 1001\n[service.heath_check]\n";
        let seen = incremental.check("f", &before);
        assert_eq!(seen, whole("f", &before));
        assert_eq!(seen.diagnostics.len(), 2, "{seen:?}");
        for after in
            [format!("# longer\n{before}"), before.replace("8080", "80"), before.replace("10.0.1.2", "10.0.0.2")]
        {
            assert_eq!(incremental.check("f", &after), whole("f", &after), "{after}");
        }
    }

    #[test]
    fn a_broken_text_forgets_nothing() {
        let mut incremental = Incremental::default();
        let before = text(3);
        incremental.check("f", &before);
        let broken = before.replace("10.0.1.1\"", "10.0.1.1");
        assert_eq!(incremental.check("f", &broken), whole("f", &broken));
        assert_eq!(incremental.known.len(), 3);
        assert_eq!(incremental.check("f", &before), whole("f", &before));
    }

    /// Texts whose parts are not what they look like.
    #[test]
    fn parts_that_do_not_stand_by_themselves_are_read_as_a_whole() {
        let node = "[node]\ninterface = \"eth0\"\n";
        let service = "[[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nport = 1\nforward = \"ipip\"\n";
        let texts = [
            format!("{service}{node}"),
            format!("{node}{service}[node.limits]\nservices_max = 1\n{service}"),
            format!("service = []\n{node}{service}"),
            format!("service.name = \"b\"\n{node}{service}"),
            format!("{node}[service]\nname = \"b\"\n{service}"),
            format!("{node}name = \"\"\"\n{service}\"\"\"\n"),
            format!("{node}name = '''\n{service}'''\n{service}"),
            format!("{node}interfaces = [\n{service}]\n"),
            format!("{node}{service}[[ service ]]\nname = \"b\"\n"),
            format!("{node}{service}[service.x]\n[[service]]\n[service.backends]\n[[service.backends]]\n"),
            format!("{node}{service}name = \"twice\"\n"),
            format!("{node}{service}{node}"),
            format!("{node}{service}{service}"),
            format!("{node}[[service]] trailing\n"),
            format!("{}{service}", node.replace('\n', "\r\n")),
            format!("\u{feff}{service}{node}"),
            service.to_owned(),
        ];
        for text in texts {
            assert_eq!(Incremental::default().check("f", &text), whole("f", &text), "{text}");
        }
    }

    /// A text after one edit: `length` bytes from `at` on give way to what `with` picks.
    fn edit(text: &str, at: prop::sample::Index, length: usize, with: &str) -> String {
        let boundary = |from: usize| (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let start = boundary(at.index(text.len() + 1));
        let end = boundary((start + length).min(text.len()));
        format!("{}{with}{}", &text[..start], &text[end..])
    }

    const EDITS: &[&str] = &[
        "",
        "\n",
        "1",
        "\"",
        "'''",
        "[",
        "# note\n",
        "[[service]]\n",
        "\n[[service]]\n",
        "[[service.backends]]\n",
        "\n[node]\n",
        "[node.limits]\n",
        "\nport = 81\n",
        "\nname = \"s0\"\n",
        "\nweight = 3\n",
        "\naddress = \"10.0.0.1\"\n",
        "\nservice = 1\n",
    ];

    proptest! {
        #[test]
        fn any_history_gives_the_answer_of_the_whole(
            config in sample::config(),
            edits in vec((any::<prop::sample::Index>(), 0usize..40, prop::sample::select(EDITS), any::<bool>()), 1..8),
        ) {
            let good = emit(&config) + &text(3)[text(0).len()..];
            let mut incremental = Incremental::default();
            let mut before = good.clone();
            for (at, length, with, keep) in edits {
                let after = edit(&before, at, length, with);
                prop_assert_eq!(incremental.check("f", &after), whole("f", &after), "{}", after);
                before = if keep { after } else { good.clone() };
            }
        }
    }
}

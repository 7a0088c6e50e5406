//! Edits as people see them: text before, words, text after.

use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    agent::unified::unified,
    model::{AdminState, Incremental, code::Severity},
    store::document,
};

const LOCAL: &str = "[node]\ninterface = \"eth0\"\n[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:6379\"\n";

const WEB: &str = "\
# The shop; ask before you touch it.
[[service]]
name = \"web\"
vip = \"192.0.2.1\"
port = 80 # plain
forward = \"nat\"

[service.health_check]
type = \"tcp\"   # for now

# Rack 1.
[[service.backends]]
address = \"10.0.0.11\"
weight = 10     # measured

# Rack 2.
[[service.backends]]
address = \"10.0.0.12\"
port = 8080
";

fn objects() -> Objects {
    Objects::from([(key("web").unwrap(), WEB.into())])
}

fn settings(words: &[&str]) -> Vec<Setting> {
    words.iter().map(|word| word.parse().unwrap()).collect()
}

fn target(address: &str, port: Option<u16>) -> Target {
    Target { service: "web".into(), address: address.parse().unwrap(), port }
}

/// The lines that differ.
fn changed(edits: Result<Vec<NewText>, EditError>) -> String {
    let edits = edits.unwrap();
    let [(_, Some(after))] = &*edits else { panic!("{edits:?}") };
    let after_objects = document::after(&objects(), &edits);
    let whole = document::document("weir.toml", LOCAL, &after_objects);
    let checked = Incremental::default().document(&whole);
    assert!(checked.config.is_some(), "{}", whole.render(&checked, false));
    let difference = unified(WEB, after);
    difference.lines().filter(|line| line.starts_with(['+', '-'])).map(|line| format!("{line}\n")).collect()
}

#[test]
fn only_what_is_asked_for_changes() {
    let objects = objects();
    let set = |words: &[&str]| changed(set_service(&objects, "web", &settings(words)));
    assert_eq!(set(&["port=81"]), "-port = 80 # plain\n+port = 81 # plain\n");
    assert_eq!(set(&["algo=source_hash"]), "+algo = \"source_hash\"\n");
    assert_eq!(set(&["algo_config.ring_size=10007"]), "+algo_config = { ring_size = 10007 }\n");
    assert_eq!(set(&["health_check.type=http"]), "-type = \"tcp\"   # for now\n+type = \"http\"   # for now\n");
    let without = set_service(&objects, "web", &settings(&["health_check.type="])).unwrap();
    let check = "[service.health_check]\ntype = \"tcp\"   # for now\n\n";
    assert_eq!(without[0].1.as_deref(), Some(&*WEB.replace(check, "")));
    let backend = |address, port, change| changed(change_backend(&objects, &target(address, port), change));
    let weight = |weight| BackendChange { weight: Some(weight), ..BackendChange::default() };
    let state = |state| BackendChange { admin_state: Some(state), ..BackendChange::default() };
    assert_eq!(backend("10.0.0.11", None, weight(3)), "-weight = 10     # measured\n+weight = 3     # measured\n");
    assert_eq!(backend("10.0.0.12", Some(8080), weight(3)), "+weight = 3\n");
    assert_eq!(backend("10.0.0.12", None, weight(1)), "", "it has that weight");
    assert_eq!(backend("10.0.0.11", Some(80), state(AdminState::Drain)), "+admin_state = \"drain\"\n");
    assert_eq!(backend("10.0.0.11", None, state(AdminState::Ready)), "", "it is ready");
    assert_eq!(
        changed(remove_backend(&objects, &target("10.0.0.12", None))),
        "-\n-# Rack 2.\n-[[service.backends]]\n-address = \"10.0.0.12\"\n-port = 8080\n"
    );
    let new = |text: &str| -> NewBackend { text.parse().unwrap() };
    assert_eq!(
        changed(add_backend(&objects, "web", &new("10.0.0.13"))),
        "+\n+[[service.backends]]\n+address = \"10.0.0.13\"\n"
    );
    let heavy = NewBackend { change: weight(7), ..new("10.0.0.11:81") };
    assert_eq!(
        changed(add_backend(&objects, "web", &heavy)),
        "+\n+[[service.backends]]\n+address = \"10.0.0.11\"\n+port = 81\n+weight = 7\n"
    );
}

#[test]
fn a_drain_and_back_is_told_in_the_same_place() {
    let state = |state| BackendChange { admin_state: Some(state), ..BackendChange::default() };
    let drained = document::after(
        &objects(),
        &change_backend(&objects(), &target("10.0.0.11", None), state(AdminState::Drain)).unwrap(),
    );
    let back = change_backend(&drained, &target("10.0.0.11", None), state(AdminState::Ready)).unwrap();
    let text = back[0].1.as_deref().unwrap();
    assert_eq!(text, WEB.replace("# measured\n", "# measured\nadmin_state = \"ready\"\n"));
}

#[test]
fn backends_in_braces_stay_in_braces() {
    let text = "[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"dsr\"\nbackends = [\n  \
                { address = \"10.0.0.1\" },\n  { address = \"10.0.0.2\", weight = 2 },\n]\n";
    let objects = Objects::from([(key("web").unwrap(), text.into())]);
    let weight = BackendChange { weight: Some(5), ..BackendChange::default() };
    let after = |edits: Result<Vec<NewText>, EditError>| edits.unwrap()[0].1.clone().unwrap().to_string();
    assert_eq!(
        after(change_backend(&objects, &target("10.0.0.2", Some(80)), weight)),
        text.replace("weight = 2", "weight = 5")
    );
    let added = after(add_backend(&objects, "web", &"10.0.0.3".parse().unwrap()));
    assert!(added.contains("  { address = \"10.0.0.2\", weight = 2 },\n  { address = \"10.0.0.3\" }"), "{added}");
    assert!(!after(remove_backend(&objects, &target("10.0.0.1", None))).contains("10.0.0.1\""));
}

#[test]
fn a_new_service_reads_like_a_written_one() {
    let words = ["vip=192.0.2.9", "port=443", "forward=ipip", "health_check.type=http", "health_check.port=8080"];
    let backends: Vec<NewBackend> = ["10.0.0.1", "10.0.0.2"].iter().map(|text| text.parse().unwrap()).collect();
    let edits = create_service(&objects(), "shop", &settings(&words), &backends).unwrap();
    let expect = "[[service]]\nname = \"shop\"\nvip = \"192.0.2.9\"\nport = 443\nforward = \"ipip\"\n\n\
                  [service.health_check]\ntype = \"http\"\nport = 8080\n\n[[service.backends]]\naddress = \"10.0.0.1\"\n\n\
                  [[service.backends]]\naddress = \"10.0.0.2\"\n";
    assert_eq!(edits[0].1.as_deref(), Some(expect));
    assert_eq!(delete_service(&document::after(&objects(), &edits), "shop").unwrap(), [(key("shop").unwrap(), None)]);
}

#[test]
fn what_cannot_be_done_is_said_with_names() {
    let (objects, none) = (objects(), BackendChange::default());
    let told = |result: Result<Vec<NewText>, EditError>| result.unwrap_err().to_string();
    assert_eq!(told(set_service(&objects, "wed", &[])), "there is no service `wed`: did you mean `web`?");
    assert_eq!(told(set_service(&objects, "database", &[])), "there is no service `database` among the 1 of the store");
    assert_eq!(told(delete_service(&Objects::new(), "web")), "there is no service `web`: the store holds none");
    assert_eq!(told(create_service(&objects, "web", &[], &[])), "there is a service `web` already");
    assert_eq!(
        told(change_backend(&objects, &target("10.0.0.12", Some(80)), none)),
        "service `web` has no backend 10.0.0.12:80"
    );
    assert_eq!(
        told(add_backend(&objects, "web", &"10.0.0.11:80".parse().unwrap())),
        "service `web` has a backend 10.0.0.11:80 already"
    );
    for (word, error) in [
        ("algo", "is no setting"),
        ("=x", "is no setting"),
        ("a.b.c=1", "is no setting"),
        ("name=x", "a service keeps its name"),
        ("backends=x", "`weir backend add"),
    ] {
        assert!(word.parse::<Setting>().unwrap_err().to_string().contains(error), "{word}");
    }
    let twice = set_service(&objects, "web", &settings(&["port=1", "port=2"]));
    assert_eq!(told(twice), "`port` is set twice");
    // What the words mean is for the check of the whole, which finds it in the text that they make.
    let wrong = set_service(&objects, "web", &settings(&["port=0", "colour=red"])).unwrap();
    let whole = document::document("weir.toml", LOCAL, &document::after(&objects, &wrong));
    let checked = Incremental::default().document(&whole);
    let shown = whole.render(&checked, false);
    assert_eq!(checked.count(Severity::Error), 2, "{shown}");
    assert!(shown.contains("service/web:5:8") && shown.contains("unknown key `colour`"), "{shown}");
}

proptest! {
    /// No text in an object and no words make an edit panic; what it makes of a good text is TOML.
    #[test]
    fn any_object_is_answered(
        text in "(\\PC|\n){0,100}",
        torn in any::<prop::sample::Index>(),
        word in select(vec!["port=1", "health_check.port=2", "health_check.port=", "algo_config.x=", "a=ü", "port.x=1"]),
        address in select(vec!["10.0.0.11", "10.0.0.12", "::1"]),
    ) {
        let at = (torn.index(WEB.len())..=WEB.len()).find(|at| WEB.is_char_boundary(*at)).unwrap();
        for text in [text.clone(), WEB.to_owned(), format!("{}{text}{}", &WEB[..at], &WEB[at..])] {
            let objects = Objects::from([(key("web").unwrap(), text.into())]);
            let change = BackendChange { weight: Some(3), max_connections: Some(0), admin_state: Some(AdminState::Drain) };
            let results = [
                set_service(&objects, "web", &settings(&[word])),
                add_backend(&objects, "web", &address.parse().unwrap()),
                remove_backend(&objects, &target(address, None)),
                change_backend(&objects, &target(address, Some(80)), change),
                delete_service(&objects, "web"),
            ];
            for after in results.into_iter().flatten().flatten().filter_map(|(_, after)| after) {
                prop_assert!(after.parse::<DocumentMut>().is_ok(), "{after}");
            }
        }
    }
}

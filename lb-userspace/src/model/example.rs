//! The commented configuration that ships with weir: clean, complete, and right about its defaults.

use super::{algo::Kind, check, emit, schema};

const TEXT: &str = include_str!("../../assets/weir.toml");

#[test]
fn it_checks_without_a_finding() {
    let checked = check("weir.toml", TEXT);
    assert!(checked.diagnostics.is_empty(), "{}", checked.render(TEXT, false));
    let config = checked.config.expect("a configuration without findings");
    assert_eq!(config.services.iter().map(|s| s.backends.len()).collect::<Vec<_>>(), [2, 2]);
}

/// The key that a line sets or shows: `key = ...`, `# key = ...`.
fn shown_key(line: &str) -> Option<&str> {
    let line = line.trim_start_matches("# ");
    let (key, _) = line.split_once(" = ")?;
    key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_').then_some(key)
}

/// The table of the schema that a header opens.
fn opened(line: &str) -> Option<schema::Table> {
    Some(match line {
        "[node]" => schema::Table::Node,
        "[node.limits]" => schema::Table::Limits,
        "[node.metrics]" => schema::Table::Metrics,
        "[node.api]" => schema::Table::Api,
        "[store]" => schema::Table::Store,
        // A pool means nothing without a store.
        "# [[pool]]" => schema::Table::Pool,
        "[[service]]" => schema::Table::Service,
        "[service.health_check]" => schema::Table::HealthCheck,
        "[[service.backends]]" => schema::Table::Backend,
        _ => return None,
    })
}

#[test]
fn it_shows_every_key_in_its_table() {
    use schema::Table;
    let mut shown = ["node", "store", "pool", "service"].map(|key| (Table::Root, key)).to_vec();
    let mut table = Table::Root;
    for line in TEXT.lines() {
        if let Some(opened) = opened(line) {
            table = opened;
            // A header shows the key that holds the table.
            shown.extend(match opened {
                Table::Limits => Some((Table::Node, "limits")),
                Table::Metrics => Some((Table::Node, "metrics")),
                Table::Api => Some((Table::Node, "api")),
                Table::HealthCheck => Some((Table::Service, "health_check")),
                Table::Backend => Some((Table::Service, "backends")),
                _ => None,
            });
        }
        if let Some(key) = shown_key(line) {
            shown.push((table, key));
            if key == "algo_config" && line.contains("ring_size = ") {
                shown.extend(Kind::ALL.map(|kind| (Table::AlgoConfig(kind), "ring_size")));
            }
        }
    }
    for key in schema::KEYS {
        assert!(shown.contains(&(key.table, key.name)), "{} has no `{}`", key.table, key.name);
    }
    for (table, key) in shown {
        assert!(schema::find(table, key).is_some(), "{table} shows `{key}`, which does not exist");
    }
}

#[test]
fn it_explains_every_algorithm() {
    for kind in Kind::ALL {
        let word = format!("\"{kind}\"");
        let explains = |line: &str| line.strip_prefix('#').is_some_and(|line| line.trim_start().starts_with(&word));
        assert!(TEXT.lines().any(explains), "{word} is not explained");
        assert!(schema::find(schema::Table::Service, "algo").is_some_and(|key| key.takes.contains(&word)), "{word}");
    }
}

#[test]
fn its_defaults_are_the_defaults() {
    // Examples of keys that have no fixed default, or that exclude another.
    let examples =
        ["# name = ", "# interface = ", "# seed_file = ", "# group = ", "# host = ", "# port = ", "# prefix = "];
    // Keys of a store belong to kinds that are not the default.
    let of_store: Vec<&str> =
        schema::keys(schema::Table::Store).map(|key| key.name).filter(|name| *name != "kind").collect();
    let mut table = schema::Table::Root;
    let mut uncomment = |line: &str| {
        table = opened(line).unwrap_or(table);
        let key = shown_key(line).filter(|_| line.starts_with("# "));
        let foreign = table == schema::Table::Store && key.is_some_and(|key| of_store.contains(&key));
        if key.is_some() && !foreign && !examples.iter().any(|example| line.starts_with(example)) {
            line[2..].to_owned()
        } else {
            line.to_owned()
        }
    };
    let text: String = TEXT.lines().map(|line| uncomment(line) + "\n").collect();
    assert!(text.matches("\nring_slots_max = ").count() == 1, "nothing was uncommented");
    let checked = check("weir.toml", &text);
    assert!(checked.diagnostics.is_empty(), "{}", checked.render(&text, false));
    let as_shipped = check("weir.toml", TEXT).config;
    assert_eq!(checked.config.as_ref().map(emit), as_shipped.as_ref().map(emit));
    for key in schema::KEYS {
        let literal =
            key.default.starts_with(|c: char| c == '"' || c.is_ascii_digit()) && !key.default.contains(", or");
        let line = format!("# {} = {}", key.name, key.default);
        let within = format!("{} = {}", key.name, key.default);
        assert!(!literal || TEXT.contains(&line) || TEXT.contains(&within), "`{line}` is not shown");
    }
}

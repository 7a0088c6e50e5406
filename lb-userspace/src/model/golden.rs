//! Every diagnostic has a file that provokes it (`tests/config/*.toml`) with its rendering beside it (`*.txt`).
//!
//! What follows a line `#--- object KEY` in a file is an object of the store, as it stands beside the node's file.
//!
//! `UPDATE_GOLDEN=1` writes the renderings anew; read the difference before committing it. The file's name begins with
//! the code that it shows.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::{Checked, Document, Incremental, check, code::Code};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

/// Files with `extension`, without it, sorted.
fn stems(extension: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder()).unwrap_or_else(|error| panic!("{}: {error}", folder().display()));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let of_kind = paths.filter(|path| path.extension().is_some_and(|e| e == extension));
    of_kind.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
}

/// What a check of the file finds, and how it is shown.
fn found(name: &str, text: &str) -> (Checked, String) {
    let mut parts = text.split("#--- object ");
    let mut document = Document::new(name, parts.next().unwrap_or_default());
    let mut objects = 0;
    for part in parts {
        let (key, text) = part.split_once('\n').expect("a line for the key");
        document.push(key, text.into());
        objects += 1;
    }
    let (checked, shown) = if objects == 0 {
        let checked = check(name, text);
        let shown = checked.render(text, false);
        (checked, shown)
    } else {
        let checked = Incremental::default().document(&document);
        let shown = document.render(&checked, false);
        (checked, shown)
    };
    let shown = format!("{shown}\n{}\n", checked.summary());
    (checked, shown)
}

#[test]
fn every_rendering_is_as_agreed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    for stem in stems("toml") {
        let path = folder().join(format!("{stem}.toml"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (checked, shown) = found(&format!("{stem}.toml"), &text);
        assert_eq!(checked.config.is_none(), checked.count(super::code::Severity::Error) > 0, "{stem}");
        let golden = folder().join(format!("{stem}.txt"));
        if update {
            fs::write(&golden, &shown).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
        } else if fs::read_to_string(&golden).unwrap_or_default() != shown {
            different.push(format!("--- {stem}\n{shown}"));
        }
    }
    assert!(different.is_empty(), "differs from tests/config (UPDATE_GOLDEN=1 rewrites):\n{}", different.join("\n"));
}

#[test]
fn every_rendering_has_its_file_and_every_code_its_example() {
    let files = stems("toml");
    assert_eq!(files, stems("txt"), "each .toml has a .txt beside it");
    for code in Code::ALL {
        let word = code.as_str();
        let mut examples = files.iter().filter(|stem| *stem == word || stem.starts_with(&format!("{word}--")));
        let shows = |stem: &String| {
            let text = fs::read_to_string(folder().join(format!("{stem}.toml"))).unwrap_or_default();
            found(stem, &text).0.diagnostics.iter().any(|d| d.code == *code)
        };
        assert!(examples.any(shows), "no golden file {word}.toml or {word}--*.toml shows this code");
    }
}

//! Every diagnostic has a file that provokes it (`tests/config/*.toml`) with its rendering beside it (`*.txt`).
//!
//! `UPDATE_GOLDEN=1` writes the renderings anew; read the difference before committing it. The file's name begins with
//! the code that it shows.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::{check, code::Code};

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

#[test]
fn every_rendering_is_as_agreed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    for stem in stems("toml") {
        let path = folder().join(format!("{stem}.toml"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let checked = check(&format!("{stem}.toml"), &text);
        assert_eq!(checked.config.is_none(), checked.count(super::code::Severity::Error) > 0, "{stem}");
        let shown = format!("{}\n{}\n", checked.render(&text, false), checked.summary());
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
            check(stem, &text).diagnostics.iter().any(|d| d.code == *code)
        };
        assert!(examples.any(shows), "no golden file {word}.toml or {word}--*.toml shows this code");
    }
}

//! `cargo xtask tidy`: the rules of the code base that the compiler does not check.
//!
//! [`check`] is pure: a path and its text in, findings out. Only the walk over the tree touches the disk.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// A longer file is a sign that two things share a name.
const LINES_MAX: usize = 600;

/// What a module of lb-userspace may import from its siblings. A module that is not named here fails the check.
const IMPORTS: &[(&str, &[&str])] = &[
    ("object", &[]),
    ("model", &[]),
    ("api", &["model"]),
    ("store", &["model"]),
    ("decap", &["dataplane", "object"]),
    ("plan", &["model"]),
    ("health", &["model"]),
    ("net", &["model"]),
    ("telemetry", &["api", "model"]),
    ("dataplane", &["model", "object", "plan"]),
    ("dns", &["model", "store", "telemetry"]),
    ("orchestrator", &["api", "dns", "health", "model", "store", "telemetry"]),
    ("agent", &["api", "dataplane", "health", "model", "net", "plan", "store", "telemetry"]),
];
/// Modules that may import every sibling: the command line, and the crate's root.
const TOP: &[&str] = &["cli", "main", "lib"];
/// Modules that may name aya.
const AYA: &[&str] = &["dataplane", "decap", "object"];

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File, relative to the root.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// The rule, and what to do.
    pub rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.rule)
    }
}

/// Checks the whole tree and prints what is wrong.
pub fn run() -> Result<()> {
    let root = crate::root();
    let mut files = Vec::new();
    walk(&root, &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    let tests = test_modules(&files);
    for file in &files {
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let relative = file.strip_prefix(&root).unwrap_or(file);
        let kind = if tests.contains(file) { Kind::Tests } else { Kind::Code };
        findings.extend(check(relative, &text, kind));
    }
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} finding(s) in {} files", findings.len(), files.len());
    }
    println!("tidy: {} files in order", files.len());
    Ok(())
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() || name == ".git" || name == "target" || name == "proptest-regressions" {
            continue;
        }
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// What a file of the product holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What ships.
    Code,
    /// A module that its parent declares under `#[cfg(test)]`.
    Tests,
}

/// Files of modules that are declared under `#[cfg(test)]`.
fn test_modules(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let Ok(text) = fs::read_to_string(file) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let name = pair[1].strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
            if let ("#[cfg(test)]", Some(name), Some(folder)) = (pair[0], name, file.parent()) {
                found.insert(folder.join(format!("{name}.rs")));
                let stem = file.file_stem().unwrap_or_default();
                found.insert(folder.join(stem).join(format!("{name}.rs")));
            }
        }
    }
    found
}

/// The rules one file breaks.
pub fn check(path: &Path, text: &str, kind: Kind) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, rule: String| findings.push(Finding { path: path.to_owned(), line, rule });
    machine_paths(path, text, &mut find);
    if path.extension().is_some_and(|extension| extension == "rs") {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            find(LINES_MAX, format!("{lines} lines, at most {LINES_MAX}: two things share this file"));
        }
        if !text.starts_with("//!") {
            find(1, "opens without `//!`: say what the module owns, refuses to know, and keeps invariant".to_owned());
        }
        unfinished(path, text, &mut find);
        if product(path) && kind == Kind::Code {
            imports(path, text, &mut find);
            panics(text, &mut find);
        }
    }
    findings
}

/// Whether the file belongs to what ships, not to tests or tools.
fn product(path: &Path) -> bool {
    path.starts_with("lb-core/src") || path.starts_with("lb-userspace/src")
}

/// Line numbers and text, up to the test module that ends a file.
fn outside_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
    std::iter::from_fn(move || {
        let (at, line) = lines.next()?;
        let tests = line.starts_with("#[cfg(test)]") && lines.peek().is_some_and(|(_, next)| next.starts_with("mod "));
        let inline = tests && lines.peek().is_some_and(|(_, next)| next.ends_with('{'));
        (!inline).then_some((at, line))
    })
}

/// Code without its comment and, roughly, without its string literals.
fn code(line: &str) -> String {
    let mut quoted = false;
    let mut previous = ' ';
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '"' && previous != '\\' && previous != '\'' {
            quoted = !quoted;
        } else if !quoted {
            if c == '/' && chars.peek() == Some(&'/') {
                break;
            }
            out.push(c);
        }
        previous = if previous == '\\' { ' ' } else { c };
    }
    out
}

/// Folders that exist on one machine only.
fn machine_paths(path: &Path, text: &str, find: &mut impl FnMut(usize, String)) {
    // Written in halves so that this file does not find itself.
    let patterns = [
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/tmp/w", "t/"),
        concat!("/tmp/b", "oot"),
        concat!("/ho", "me/"),
    ];
    if path.ends_with("Cargo.lock") {
        return;
    }
    for (at, line) in text.lines().enumerate() {
        if let Some(pattern) = patterns.iter().find(|pattern| line.contains(*pattern)) {
            find(at + 1, format!("names a path of one machine (`{pattern}`)"));
        }
    }
}

fn unfinished(path: &Path, text: &str, find: &mut impl FnMut(usize, String)) {
    let patterns = [concat!("tod", "o!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    for (at, line) in text.lines().enumerate() {
        let code = code(line);
        if let Some(pattern) = patterns.iter().find(|pattern| code.contains(*pattern)) {
            find(at + 1, format!("`{pattern}`: nothing unfinished is called done ({})", path.display()));
        }
    }
}

fn imports(path: &Path, text: &str, find: &mut impl FnMut(usize, String)) {
    if path.starts_with("lb-core/src") {
        for (at, line) in outside_tests(text) {
            let code = code(line);
            if names_crate(&code, "aya") {
                find(at, "lb-core must not know aya: it runs on the host as it does in the kernel".to_owned());
            }
        }
        if path.ends_with("lb-core/src/lib.rs") && !text.contains("#![forbid(unsafe_code)]") {
            find(1, "lb-core must say `#![forbid(unsafe_code)]`".to_owned());
        }
        return;
    }
    let Some(module) = module_of(path) else { return };
    let allowed = IMPORTS.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
    let top = TOP.contains(&module.as_str());
    if allowed.is_none() && !top {
        find(
            1,
            format!("module `{module}` has no row in the table of imports (xtask/src/tidy.rs): say what it may know"),
        );
    }
    for (at, code) in statements(text) {
        if (names_crate(&code, "aya") || names_crate(&code, "aya_obj")) && !AYA.contains(&module.as_str()) {
            find(at, format!("`{module}` must not name aya: only {} do", AYA.join(" and ")));
        }
        for sibling in siblings(&code) {
            if let Some(allowed) = allowed
                && sibling != module
                && !allowed.contains(&sibling.as_str())
                && (IMPORTS.iter().any(|(name, _)| *name == sibling) || TOP.contains(&sibling.as_str()))
            {
                find(at, format!("`{module}` must not import `{sibling}`: imports point one way (ARCHITECTURE.md)"));
            }
        }
    }
}

/// Lines of code, a `use` that is broken over several lines put together on its first.
fn statements(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (at, line) in outside_tests(text) {
        let code = code(line);
        match found.last_mut() {
            Some((_, statement)) if open => statement.push_str(&code),
            _ => found.push((at, code)),
        }
        let last = found.last().map_or("", |(_, statement)| statement.trim_start());
        let import = last.starts_with("use ") || last.starts_with("pub use ") || last.starts_with("pub(crate) use ");
        open = import && !last.contains(';');
    }
    found
}

/// The top-level module of lb-userspace that a file belongs to.
fn module_of(path: &Path) -> Option<String> {
    let first = path.strip_prefix("lb-userspace/src").ok()?.components().next()?;
    let name = first.as_os_str().to_string_lossy();
    Some(name.strip_suffix(".rs").unwrap_or(&name).to_owned())
}

fn names_crate(code: &str, name: &str) -> bool {
    let code = code.trim_start();
    code.starts_with(&format!("use {name}::"))
        || code.match_indices(&format!("{name}::")).any(|(at, _)| {
            code[..at]
                .chars()
                .next_back()
                .is_none_or(|before| !(before.is_alphanumeric() || matches!(before, '_' | ':')))
        })
}

/// Modules named after `crate::`, also in a one-line `crate::{a, b::c}`.
fn siblings(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let ident =
            |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push(ident(&item));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                item.push(c);
            }
            found.push(ident(&item));
        } else {
            found.push(ident(rest));
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// `unwrap` never; `expect` where a comment above or beside it says why it cannot fail.
fn panics(text: &str, find: &mut impl FnMut(usize, String)) {
    let mut previous = "";
    for (at, line) in outside_tests(text) {
        let code = code(line);
        if code.contains(".unwrap()") {
            find(at, "`unwrap()` outside tests: return the error".to_owned());
        }
        let explained = line.contains("//") || previous.trim_start().starts_with("//");
        if code.contains(".expect(") && !explained {
            find(at, "`expect` without a comment that says why it cannot fail".to_owned());
        }
        previous = line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text, Kind::Code)
            .into_iter()
            .map(|finding| format!("{}: {}", finding.line, finding.rule))
            .collect()
    }

    #[test]
    fn a_clean_file_has_no_findings() {
        let text =
            "//! Owns.\n\nuse crate::model::Config;\n\n#[cfg(test)]\nmod tests {\n    fn t() { x.unwrap(); }\n}\n";
        assert_eq!(rules("lb-userspace/src/plan/ring.rs", text), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_seen() {
        for (path, text, part) in [
            ("xtask/src/a.rs", "fn main() {}\n", "opens without"),
            ("xtask/src/a.rs", &format!("//! A.\n{}", "\n".repeat(600)), "601 lines"),
            ("xtask/src/a.rs", &format!("//! A.\nfn a() {{ {}) }}\n", concat!("tod", "o!(")), "unfinished"),
            ("README.md", concat!("see /ro", "ot/x\n"), "one machine"),
            ("lb-userspace/src/model/a.rs", "//! A.\nuse crate::plan::Ring;\n", "must not import `plan`"),
            ("lb-userspace/src/model.rs", "//! A.\nuse crate::{model::X, agent::{Y, Z}};\n", "must not import `agent`"),
            ("lb-userspace/src/net.rs", "//! A.\nuse crate::{\n    model::X,\n    health::Y,\n};\n", "import `health`"),
            ("lb-userspace/src/health/a.rs", "//! A.\nuse aya::Ebpf;\n", "must not name aya"),
            ("lb-userspace/src/novelty.rs", "//! A.\n", "no row"),
            ("lb-core/src/parse.rs", "//! A.\nuse aya::Ebpf;\n", "must not know aya"),
            ("lb-core/src/lib.rs", "//! A.\n", "forbid(unsafe_code)"),
            ("lb-core/src/a.rs", "//! A.\nfn a() { b.unwrap() }\n", "`unwrap()`"),
            ("lb-core/src/a.rs", "//! A.\n\nfn a() { b.expect(\"c\") }\n", "`expect`"),
        ] {
            let found = rules(path, text);
            assert!(found.len() == 1 && found[0].contains(part), "{path}: wanted {part}, got {found:?}");
        }
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let text = "//! Never `.unwrap()`.\n// use aya::Ebpf;\nconst A: &str = \".unwrap() crate::agent::X\";\n";
        assert_eq!(rules("lb-userspace/src/model/a.rs", text), Vec::<String>::new());
        // A reason makes an expect acceptable.
        let text = "//! A.\nfn a() {\n    // The array has four elements.\n    b.expect(\"c\");\n}\n";
        assert_eq!(rules("lb-core/src/a.rs", text), Vec::<String>::new());
    }
}

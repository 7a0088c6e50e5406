//! The lines of a `keepalived.conf` after its parameters were put in (keepalived.conf(5), "Parameter substitution").
//!
//! Refuses to know: words, blocks and comments. Invariant: what parameters make of a text is bounded.

use std::collections::HashMap;

use super::{Found, ImportError};

/// Lines of all that parameters expand to.
const LINES_MAX: usize = 1 << 20;
/// Bytes of all that parameters expand to.
const BYTES_MAX: usize = 64 << 20;
/// Parameters within parameters.
const DEPTH_MAX: usize = 16;
/// Replacements in one line.
const REPLACEMENTS_MAX: usize = 256;

/// A line and where it, or the parameter's use that made it, stands.
pub(super) struct Line {
    /// Number, from 1.
    pub number: usize,
    pub text: String,
}

/// The lines of `text`; those whose condition only keepalived can decide are left out, and noted.
pub(super) fn lines(text: &str, found: &mut Found) -> Result<Vec<Line>, ImportError> {
    let mut reader = Reader { parameters: HashMap::new(), out: Vec::new(), bytes: 0, found };
    let numbered: Vec<(usize, &str)> = text.lines().enumerate().map(|(at, line)| (at + 1, line)).collect();
    reader.read(&numbered, 0)?;
    Ok(reader.out)
}

struct Reader<'f> {
    parameters: HashMap<String, String>,
    out: Vec<Line>,
    bytes: usize,
    found: &'f mut Found,
}

impl Reader<'_> {
    fn read(&mut self, lines: &[(usize, &str)], depth: usize) -> Result<(), ImportError> {
        let mut rest = lines.iter();
        while let Some(&(number, line)) = rest.next() {
            if depth > DEPTH_MAX || self.out.len() >= LINES_MAX || self.bytes > BYTES_MAX {
                let message = "the file's parameters expand to more than can be meant".to_owned();
                return Err(ImportError { line: number, message, hint: "a parameter may hold itself" });
            }
            if let Some((name, value)) = definition(line) {
                let mut value = value.to_owned();
                if let Some(first) = value.trim_end().strip_suffix('\\') {
                    let mut whole = vec![first.to_owned()];
                    for (_, more) in rest.by_ref() {
                        let more = more.trim_end();
                        whole.push(more.strip_suffix('\\').unwrap_or(more).to_owned());
                        if !more.ends_with('\\') {
                            break;
                        }
                    }
                    value = whole.join("\n");
                }
                self.parameters.insert(name.to_owned(), value);
                continue;
            }
            let line = self.replaced(number, line)?;
            self.bytes += line.len() + 1;
            if line.contains('\n') || definition(&line).is_some() {
                let inner: Vec<(usize, &str)> = line.lines().map(|line| (number, line)).collect();
                self.read(&inner, depth + 1)?;
                continue;
            }
            match line.trim_start().chars().next() {
                Some('@') => {
                    let text = "a line with a condition (@) was left out: take over by hand what holds for this node";
                    self.found.note(number, text);
                }
                Some('~') => {
                    self.found.note(
                        number,
                        "a line that repeats itself (~SEQ, ~LST) was left out: write its lines out first",
                    );
                }
                _ => self.out.push(Line { number, text: line }),
            }
        }
        Ok(())
    }

    /// The line with its parameters' values, until none is left.
    fn replaced(&self, number: usize, line: &str) -> Result<String, ImportError> {
        let mut line = line.to_owned();
        for _ in 0..REPLACEMENTS_MAX {
            let uses = line.match_indices('$').find_map(|(at, _)| {
                let (name, length) = used(line.get(at + 1..)?)?;
                Some((at, length + 1, self.parameters.get(name)?))
            });
            let Some((at, length, value)) = uses else { return Ok(line) };
            if line.len() + value.len() > BYTES_MAX {
                break;
            }
            let value = value.clone();
            line.replace_range(at..at + length, &value);
            // The lines of a definition are read one by one, each with what is defined by then.
            if value.contains('\n') {
                return Ok(line);
            }
        }
        let message = "a parameter has no end".to_owned();
        Err(ImportError { line: number, message, hint: "does it hold itself?" })
    }
}

/// Name and value of `$NAME=value`.
fn definition(line: &str) -> Option<(&str, &str)> {
    let rest = line.trim_start().strip_prefix('$')?;
    let name = name(rest)?;
    Some((name, rest.get(name.len()..)?.strip_prefix('=')?.trim_start()))
}

/// The parameter that `rest`, which stands behind a `$`, uses, and how much of `rest` is its use: `{NAME}`, or `NAME` before white
/// space.
fn used(rest: &str) -> Option<(&str, usize)> {
    if let Some(inner) = rest.strip_prefix('{') {
        let name = name(inner)?;
        return inner.get(name.len()..)?.starts_with('}').then_some((name, name.len() + 2));
    }
    let name = name(rest)?;
    let after = rest.get(name.len()..)?.chars().next();
    after.is_none_or(char::is_whitespace).then_some((name, name.len()))
}

/// The name of a parameter that `text` begins with.
fn name(text: &str) -> Option<&str> {
    let length = text.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let name = text.get(..length)?;
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, ImportError> {
        let lines = lines(text, &mut Found::default())?;
        Ok(lines.into_iter().map(|line| format!("{}:{}\n", line.number, line.text.trim())).collect())
    }

    #[test]
    fn parameters_are_replaced_when_they_are_used() {
        let text = "$BASE=10.2.${SUB}\n$SUB=0\n${BASE}.100\n$SUB=10\n  ${BASE}.100 $SUB $SUBX ${NONE}\n";
        assert_eq!(read(text).unwrap(), "3:10.2.0.100\n5:10.2.10.100 10 $SUBX ${NONE}\n");
        let text = "$RS= \\\nreal_server 10.0.0.${N} 80 { \\\n}\n$N=1\n$RS\n$N=2\n$RS\n";
        assert_eq!(read(text).unwrap(), "5:\n5:real_server 10.0.0.1 80 {\n5:}\n7:\n7:real_server 10.0.0.2 80 {\n7:}\n");
    }

    #[test]
    fn what_has_no_end_is_refused() {
        assert!(read("$A=${A}${A}\n$A\n").is_err());
        assert!(read("$A= \\\n$A \\\n$A \\\n\n$A\n").is_err());
        let bomb: String = (0..40).map(|n| format!("$V{}=${{V{n}}}${{V{n}}}\n", n + 1)).collect();
        assert!(read(&format!("$V0=x\n{bomb}${{V40}}\n")).is_err());
    }

    #[test]
    fn conditions_are_noted() {
        let mut found = Found::default();
        let lines = lines("@main x\ny\n~SEQ(A, 3) z\n", &mut found).unwrap();
        assert_eq!((lines.len(), found.notes.len()), (1, 2));
    }
}

//! Reading typed values out of a table of the parsed document, with findings about what is unknown, missing, of the wrong
//! type or out of range. Knows types and the schema; refuses to know what keys mean.

use std::{collections::HashSet, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    super::{diagnostic::Lines, duration, foreign, schema},
    At, Code, Diagnostic, Findings, Span, Table,
};

/// A table that is being read.
pub(super) struct Section<'d> {
    table: Table,
    entries: &'d DeTable<'d>,
    /// Where the table starts: its header, or the whole inline table.
    pub span: Span,
}

impl<'d> Section<'d> {
    /// Starts reading; reports the keys that `table` does not have.
    pub fn open(table: Table, entries: &'d DeTable<'d>, span: Span, findings: &mut Findings) -> Self {
        for key in entries.keys() {
            let name: &str = key.get_ref();
            if schema::find(table, name).is_none() {
                let place = if table.is_root() { "at" } else { "in" };
                let message = format!("unknown key `{}` {place} {table}", shown(name));
                findings.push(Diagnostic::new(Code::UnknownKey, key.span(), message).hint(unknown_hint(table, name)));
            }
        }
        Self { table, entries, span }
    }

    /// Starts reading the top level of `text`; what is missing there is missing at its end.
    pub fn root(entries: &'d DeTable<'d>, text: &str, findings: &mut Findings) -> Self {
        let end = text.trim_end().len();
        Self::open(Table::Root, entries, end..end, findings)
    }

    /// Reports each of `keys` that is absent.
    pub fn require(&self, keys: &[&str], findings: &mut Findings) {
        for name in keys.iter().filter(|name| self.get(name).is_none()) {
            let takes = schema::find(self.table, name).map_or("", |key| key.takes);
            let message = match self.table {
                table if table.is_root() => format!("`{name}` is missing"),
                table => format!("{table} has no `{name}`"),
            };
            let hint = format!("`{name}` takes {takes}");
            findings.push(Diagnostic::new(Code::MissingKey, self.span.clone(), message).hint(hint));
        }
    }

    /// The value of `name`, whatever it is.
    pub fn get(&self, name: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.entries.get(name)
    }

    /// Whether the array under `name` is absent or has no element.
    pub fn is_empty(&self, name: &str) -> bool {
        self.get(name).is_none_or(|value| value.get_ref().as_array().is_some_and(|array| array.is_empty()))
    }

    /// Where the key itself stands.
    pub fn key_span(&self, name: &str) -> Option<Span> {
        self.entries.get_key_value(name).map(|(key, _)| key.span())
    }

    /// The string under `name`.
    pub fn string(&self, name: &str, findings: &mut Findings) -> Option<At<&'d str>> {
        let value = self.get(name)?;
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text, span: value.span() }),
            _ => {
                findings.push(self.wrong_type(name, value, None));
                None
            }
        }
    }

    /// The truth under `name`.
    pub fn boolean(&self, name: &str, findings: &mut Findings) -> Option<bool> {
        let value = self.get(name)?;
        if let DeValue::Boolean(truth) = value.get_ref() {
            return Some(*truth);
        }
        let quoted = value.get_ref().as_str().filter(|text| matches!(*text, "true" | "false")).map(str::to_owned);
        findings.push(self.wrong_type(name, value, quoted));
        None
    }

    /// The number under `name`, within `range`.
    pub fn integer(&self, name: &str, range: RangeInclusive<u32>, findings: &mut Findings) -> Option<At<u32>> {
        let value = self.get(name)?;
        let DeValue::Integer(number) = value.get_ref() else {
            let quoted = value.get_ref().as_str().filter(|text| text.parse::<u64>().is_ok()).map(str::to_owned);
            findings.push(self.wrong_type(name, value, quoted));
            return None;
        };
        // TOML numbers have at most 64 bits with sign; what this cannot read is out of every range.
        let parsed = i128::from_str_radix(number.as_str(), number.radix()).ok();
        match parsed.and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(n) => Some(At { value: n, span: value.span() }),
            None => {
                let message = format!("`{name}` is out of range: {}", shown(&number.to_string()));
                let hint = format!("`{name}` takes {}", self.takes(name));
                findings.push(Diagnostic::new(Code::OutOfRange, value.span(), message).hint(hint));
                None
            }
        }
    }

    /// The word under `name`, one of `words`.
    pub fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], findings: &mut Findings) -> Option<At<T>> {
        let At { value: text, span } = self.string(name, findings)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(At { value: *value, span });
        }
        let message = format!("`{name}` cannot be \"{}\"", shown(text));
        let near = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(word, _)| *word);
        let hint = near
            .map(|word| format!("write \"{word}\", in lower case"))
            .or_else(|| foreign::word_hint(name, text))
            .or_else(|| {
                let (_, word) = schema::nearest(text, words.iter().map(|(word, _)| *word))?;
                Some(format!("did you mean \"{word}\"?"))
            })
            .unwrap_or_else(|| format!("`{name}` takes {}", self.takes(name)));
        findings.push(Diagnostic::new(Code::BadValue, span, message).hint(hint));
        None
    }

    /// The duration under `name`, within `range`.
    pub fn duration(
        &self,
        name: &str,
        range: RangeInclusive<Duration>,
        findings: &mut Findings,
    ) -> Option<At<Duration>> {
        let value = self.get(name)?;
        let units =
            "a duration is whole numbers with units, the larger unit first: \"500ms\", \"2s\", \"1m30s\", \"2h4m\"";
        let text = match value.get_ref() {
            DeValue::String(text) => text,
            DeValue::Integer(number) => {
                let n = shown(&number.to_string());
                let message = format!("`{name}` has no unit");
                let hint = format!("write \"{n}s\" for seconds or \"{n}ms\" for milliseconds");
                findings.push(Diagnostic::new(Code::BadDuration, value.span(), message).hint(hint));
                return None;
            }
            _ => {
                findings.push(self.wrong_type(name, value, None));
                return None;
            }
        };
        let Some(parsed) = duration::parse(text) else {
            let message = format!("`{name}` is not a duration: \"{}\"", shown(text));
            findings.push(Diagnostic::new(Code::BadDuration, value.span(), message).hint(units));
            return None;
        };
        if range.contains(&parsed) {
            return Some(At { value: parsed, span: value.span() });
        }
        let message = format!("`{name}` is out of range: {}", shown(text));
        let hint = format!("`{name}` takes {}", self.takes(name));
        findings.push(Diagnostic::new(Code::OutOfRange, value.span(), message).hint(hint));
        None
    }

    /// The table under `name`.
    pub fn table(&self, name: &str, table: Table, findings: &mut Findings) -> Option<Section<'d>> {
        let value = self.get(name)?;
        match value.get_ref() {
            DeValue::Table(entries) => Some(Section::open(table, entries, value.span(), findings)),
            _ => {
                findings.push(self.wrong_type(name, value, None));
                None
            }
        }
    }

    /// The tables of the array under `name`; none if it is absent.
    pub fn tables(&self, name: &str, table: Table, findings: &mut Findings) -> Vec<Section<'d>> {
        let Some(value) = self.get(name) else { return Vec::new() };
        let DeValue::Array(elements) = value.get_ref() else {
            findings.push(self.wrong_type(name, value, None));
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(elements.len());
        for element in elements.iter() {
            match element.get_ref() {
                DeValue::Table(entries) => sections.push(Section::open(table, entries, element.span(), findings)),
                _ => findings.push(self.wrong_element(name, element)),
            }
        }
        sections
    }

    /// The strings of the array under `name`.
    pub fn strings(&self, name: &str, findings: &mut Findings) -> Option<At<Vec<At<&'d str>>>> {
        let value = self.get(name)?;
        let DeValue::Array(elements) = value.get_ref() else {
            let one = value.get_ref().as_str().map(|text| format!("[\"{text}\"]"));
            findings.push(self.wrong_type(name, value, one));
            return None;
        };
        let mut strings = Vec::with_capacity(elements.len());
        for element in elements.iter() {
            match element.get_ref() {
                DeValue::String(text) => strings.push(At { value: &**text, span: element.span() }),
                _ => findings.push(self.wrong_element(name, element)),
            }
        }
        Some(At { value: strings, span: value.span() })
    }

    /// What `name` takes, in words.
    fn takes(&self, name: &str) -> &'static str {
        schema::find(self.table, name).map_or("another value", |key| key.takes)
    }

    /// The finding that `value` is of the wrong type; `instead` is how it should be written, where that is clear.
    fn wrong_type(&self, name: &str, value: &Spanned<DeValue<'_>>, instead: Option<String>) -> Diagnostic {
        let message = format!("`{name}` cannot be {}", kind(value.get_ref()));
        let takes = self.takes(name);
        let quoted = if self.is_text(name) { ", in quotes" } else { "" };
        let hint = match instead {
            Some(text) => format!("write {name} = {}", shown(&text)),
            None => format!("`{name}` takes {takes}{quoted}"),
        };
        Diagnostic::new(Code::WrongType, value.span(), message).hint(hint)
    }

    /// The same about an element of the array under `name`.
    fn wrong_element(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Diagnostic {
        let message = format!("an element of `{name}` cannot be {}", kind(value.get_ref()));
        let hint = format!("`{name}` takes {}", self.takes(name));
        Diagnostic::new(Code::WrongType, value.span(), message).hint(hint)
    }

    /// Whether `name` takes free text, which a user may have left without quotes.
    fn is_text(&self, name: &str) -> bool {
        let takes = self.takes(name);
        !takes.contains('"')
            && !["a number", "a prime", "a table", "an array", "true"].iter().any(|start| takes.starts_with(start))
    }
}

/// What a value is, with its article.
fn kind(value: &DeValue<'_>) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}

/// Reports syntax errors, one a line; returns the lines (from 1) on which they are.
pub(super) fn syntax(
    text: &str,
    lines: &Lines<'_>,
    errors: &[toml::de::Error],
    findings: &mut Findings,
) -> HashSet<usize> {
    let mut broken = HashSet::new();
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let (line, _) = lines.position(span.start);
        // What follows on the same line is most often the parser finding its feet.
        if broken.insert(line) {
            findings.push(syntax_error(text, span, error.message()));
        }
    }
    broken
}

fn syntax_error(text: &str, span: Span, message: &str) -> Diagnostic {
    if message.starts_with("duplicate key") {
        let word = text.get(span.clone()).unwrap_or_default();
        let hint = "keep one of them; a further service or backend starts with `[[service]]` or `[[service.backends]]`";
        return Diagnostic::new(Code::DuplicateKey, span, format!("`{}` is written twice", shown(word))).hint(hint);
    }
    if let Some((key, value, span)) = bare_text(text, &span) {
        let hint = format!("write {} = \"{}\"", shown(key), shown(value));
        return Diagnostic::new(Code::Syntax, span, "text and addresses need quotes").hint(hint);
    }
    let hint = if message.starts_with("unclosed array table") {
        "a table of an array starts with two brackets on both sides: `[[service]]`"
    } else if message.starts_with("unclosed table") {
        "a table starts with its name in brackets: `[node]`"
    } else if message.starts_with("key with no value") {
        "write `key = value`; a table starts with its name in brackets: `[node]`"
    } else {
        return Diagnostic::new(Code::Syntax, span, message);
    };
    Diagnostic::new(Code::Syntax, span, message).hint(hint)
}

/// Key and value of the line of `span`, where the value is text that lacks quotes, with the value's place.
fn bare_text<'t>(text: &'t str, span: &Span) -> Option<(&'t str, &'t str, Span)> {
    let start = text.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..)?.split(['\n', '#']).next()?;
    let (key, value) = line.split_once('=')?;
    let at = start + key.len() + 1 + (value.len() - value.trim_start().len());
    let (key, value) = (key.trim(), value.trim());
    let of_text = |c: char| c.is_alphanumeric() || matches!(c, '.' | ':' | '/' | '-' | '_' | '%' | '*');
    let is_text = !value.is_empty() && value.chars().all(of_text) && value.contains(|c: char| !c.is_ascii_digit());
    is_text.then(|| (key, value, at..at + value.len()))
}

fn unknown_hint(table: Table, name: &str) -> String {
    let near = schema::nearest(name, schema::keys(table).map(|key| key.name));
    if let Some((0 | 1, key)) = near {
        return format!("did you mean `{key}`?");
    }
    if let Some(hint) = foreign::key_hint(name) {
        return hint;
    }
    if let Some((_, key)) = near {
        return format!("did you mean `{key}`?");
    }
    if let Some(key) = schema::siblings(table).iter().find(|key| key.name == name) {
        return format!("`{name}` belongs in {}", key.table);
    }
    format!("{table} has {}", schema::list(schema::keys(table).map(|key| key.name)))
}

/// At most 60 characters of text from the file, control characters escaped.
pub(in crate::model) fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(60) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(60).is_some() {
        out.push_str("...");
    }
    out
}

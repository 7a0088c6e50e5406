//! Findings about a configuration file and the two ways to show them: for people with source lines and carets, for
//! programs as JSON.
//!
//! Owns: positions (byte range to line and column) and rendering. Refuses to know: what the findings are about.
//! Invariant: rendering never panics, whatever the ranges are; it costs time by findings, not findings times file.

use std::{borrow::Cow, fmt::Write as _, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, renderer::DecorStyle};
use serde::Serialize;

pub use super::code::{Code, Severity};

/// A byte range of the configuration text.
pub type Span = Range<usize>;

/// Findings kept of one file; what exceeds them is only counted.
pub const DIAGNOSTICS_MAX: usize = 1000;
/// Lines apart from which two places of one finding are shown as two excerpts.
const EXCERPT_GAP_LINES: usize = 12;
/// Bytes of one source line that are shown.
const LINE_BYTES_MAX: usize = 400;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What kind of finding; also gives the severity.
    pub code: Code,
    /// Where; empty means "just here".
    pub span: Span,
    /// What is wrong, without final full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Other places that take part.
    pub related: Vec<Related>,
}

/// Another place that takes part in a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Related {
    /// Where.
    pub span: Span,
    /// What stands there.
    pub message: String,
}

impl Diagnostic {
    /// A finding without hint.
    pub fn new(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self { code, span, message: message.into(), hint: None, related: Vec::new() }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another place.
    #[must_use]
    pub fn related(mut self, span: Span, message: impl Into<String>) -> Self {
        self.related.push(Related { span, message: message.into() });
        self
    }

    /// Moves its places by `by` bytes, which wrap around.
    pub(super) fn shift(&mut self, by: usize) {
        shift(&mut self.span, by);
        self.related.iter_mut().for_each(|related| shift(&mut related.span, by));
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.severity() == Severity::Error
    }

    /// Whether the configuration is refused for it.
    pub fn severity(&self) -> Severity {
        self.code.severity()
    }
}

/// Moves a range by `by` bytes, which wrap around: a range of a part becomes one of the whole, or follows a part that moved.
pub(super) fn shift(span: &mut Span, by: usize) {
    *span = span.start.wrapping_add(by)..span.end.wrapping_add(by);
}

/// Positions of a text: byte offset to line and column, both from 1.
pub struct Lines<'t> {
    text: &'t str,
    /// Byte offset of each line's first character.
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    /// Indexes `text` once.
    pub fn new(text: &'t str) -> Self {
        let mut starts = vec![0];
        starts.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        Self { text, starts }
    }

    /// Line (from 0) that holds byte `at`.
    fn index(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at).saturating_sub(1)
    }

    /// Byte range of line `index` (from 0) without its line end.
    fn range(&self, index: usize) -> Span {
        let start = self.starts.get(index).copied().unwrap_or(self.text.len());
        let end = self.starts.get(index + 1).map_or(self.text.len(), |next| next - 1);
        start..end.max(start)
    }

    /// Line and column of byte `at`, both from 1; columns count characters.
    pub fn position(&self, at: usize) -> (usize, usize) {
        let at = self.clamp(at);
        let line = self.index(at);
        let start = self.range(line).start;
        (line + 1, self.text.get(start..at).map_or(0, |s| s.chars().count()) + 1)
    }

    /// The nearest character boundary at or before `at`.
    fn clamp(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// The texts that findings point into. Places count through all of them; each has a name, and lines of its own.
pub struct Sources<'t> {
    /// Name, place of its first byte, and text; by place.
    texts: Vec<(&'t str, usize, Lines<'t>)>,
}

impl<'t> Sources<'t> {
    /// Texts in the order of their places, which do not overlap.
    pub fn new(texts: impl IntoIterator<Item = (&'t str, usize, &'t str)>) -> Self {
        Self { texts: texts.into_iter().map(|(name, start, text)| (name, start, Lines::new(text))).collect() }
    }

    /// One text.
    pub fn one(name: &'t str, text: &'t str) -> Self {
        Self::new([(name, 0, text)])
    }

    /// Which text holds the place `at`, and where in it.
    fn find(&self, at: usize) -> Option<(usize, usize)> {
        let index = self.texts.partition_point(|(_, start, _)| *start <= at).checked_sub(1)?;
        let (_, start, _) = self.texts.get(index)?;
        Some((index, at - start))
    }

    /// Name of the text that holds `at`, and line and column there, both from 1.
    fn position(&self, at: usize) -> (&'t str, (usize, usize)) {
        let found = self.find(at).and_then(|(index, within)| Some((self.texts.get(index)?, within)));
        found.map_or(("", (1, 1)), |((name, _, lines), within)| (*name, lines.position(within)))
    }
}

/// A finding with positions instead of byte ranges, ready for JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Name of the file as the user gave it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Line of the end.
    pub end_line: usize,
    /// Column after the last character.
    pub end_column: usize,
    /// Stable word of the kind of finding.
    pub code: Code,
    /// `error` or `warning`.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Other places that take part.
    pub related: Vec<RelatedEntry>,
}

/// [`Related`] with positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelatedEntry {
    /// Name of its text, where that is another one than the finding's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What stands there.
    pub message: String,
}

/// The findings with their positions in one text, in the same order.
pub fn entries(diagnostics: &[Diagnostic], file_name: &str, text: &str) -> Vec<Entry> {
    // A large file without findings costs nothing.
    if diagnostics.is_empty() { Vec::new() } else { entries_in(diagnostics, &Sources::one(file_name, text)) }
}

/// The findings with their positions, in the same order.
pub fn entries_in(diagnostics: &[Diagnostic], sources: &Sources<'_>) -> Vec<Entry> {
    let entry = |d: &Diagnostic| {
        let (file, (line, column)) = sources.position(d.span.start);
        let (_, (end_line, end_column)) = sources.position(d.span.end);
        let related = |r: &Related| {
            let (other, (line, column)) = sources.position(r.span.start);
            let file = (other != file).then(|| other.to_owned());
            RelatedEntry { file, line, column, message: r.message.clone() }
        };
        Entry {
            file: file.to_owned(),
            line,
            column,
            end_line,
            end_column,
            code: d.code,
            severity: d.severity(),
            message: d.message.clone(),
            hint: d.hint.clone(),
            related: d.related.iter().map(related).collect(),
        }
    };
    diagnostics.iter().map(entry).collect()
}

/// The findings in one text for people: message, file, line, column, source with carets, hint. `colour` adds ANSI sequences.
/// Empty for no findings; else ends with a line end and has an empty line between findings.
pub fn render(diagnostics: &[Diagnostic], file_name: &str, text: &str, colour: bool) -> String {
    if diagnostics.is_empty() { String::new() } else { render_in(diagnostics, &Sources::one(file_name, text), colour) }
}

/// The same for findings in several texts.
pub fn render_in(diagnostics: &[Diagnostic], sources: &Sources<'_>, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
    let mut out = String::new();
    for (i, diagnostic) in diagnostics.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let rendered = renderer.render(&[group(diagnostic, sources)]);
        // A line of spaces behind the gutter helps nobody and makes golden files fragile.
        for line in rendered.lines() {
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    out
}

/// Part of one line or of several: where it starts in the text and which marks it carries.
struct Excerpt<'d> {
    /// Which text.
    source: usize,
    lines: Range<usize>,
    marks: Vec<(Span, AnnotationKind, Option<&'d str>)>,
}

fn group<'a>(diagnostic: &'a Diagnostic, sources: &Sources<'a>) -> Group<'a> {
    let level = match diagnostic.severity() {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = Group::with_title(level.primary_title(&*diagnostic.message).id(diagnostic.code.as_str()));
    for excerpt in excerpts(diagnostic, sources) {
        let Some((file_name, _, lines)) = sources.texts.get(excerpt.source) else { continue };
        let file_name = *file_name;
        let start = lines.range(excerpt.lines.start).start;
        let end = lines.range(excerpt.lines.end.saturating_sub(1)).end;
        let Some(source) = lines.text.get(start..end) else { continue };
        if source.len() > LINE_BYTES_MAX * excerpt.lines.len() {
            // A machine-written line of thousands of characters would bury the finding: say only where it is.
            let mark = excerpt.marks.first().map_or(start, |(span, _, _)| span.start);
            let (line, column) = lines.position(mark);
            group = group.element(Origin::path(file_name).line(line).char_column(column));
            continue;
        }
        let shown = Shown::new(source);
        let annotations = excerpt.marks.into_iter().map(|(span, kind, label)| {
            let place = |at: usize| shown.place(at.saturating_sub(start).min(source.len()));
            kind.span(place(span.start)..place(span.end)).label(label)
        });
        let snippet = Snippet::source(shown.text()).line_start(excerpt.lines.start + 1).path(file_name);
        group = group.element(snippet.annotations(annotations));
    }
    match &diagnostic.hint {
        Some(hint) => group.element(Level::HELP.message(&**hint)),
        None => group,
    }
}

/// A text as it is shown: without what stands between `://` and `@`, which may be a password.
struct Shown<'t> {
    source: &'t str,
    secrets: Vec<Span>,
}

impl<'t> Shown<'t> {
    fn new(source: &'t str) -> Self {
        let secret = |(at, mark): (usize, &str)| {
            let start = at + mark.len();
            let rest = source.get(start..).unwrap_or_default();
            let end = rest.find(['"', '\'', '\n', ' ']).unwrap_or(rest.len());
            let length = rest.get(..end)?.rfind('@')?;
            Some(start..start + length)
        };
        Self { source, secrets: source.match_indices("://").filter_map(secret).collect() }
    }

    /// The characters with their places in the source; one star stands for each character of a secret, so that columns stay.
    fn chars(&self) -> impl Iterator<Item = (usize, char)> {
        let secret = |at| self.secrets.iter().any(|span| span.contains(&at));
        self.source.char_indices().map(move |(at, c)| (at, if secret(at) { '*' } else { c }))
    }

    fn text(&self) -> Cow<'t, str> {
        if self.secrets.is_empty() { self.source.into() } else { self.chars().map(|(_, c)| c).collect() }
    }

    /// Where the byte `at` of the source stands in the text that is shown.
    fn place(&self, at: usize) -> usize {
        if self.secrets.is_empty() {
            return at;
        }
        self.chars().take_while(|(from, _)| *from < at).map(|(_, c)| c.len_utf8()).sum()
    }
}

/// The places of a finding, near ones of one text joined; the primary one first.
fn excerpts<'d>(diagnostic: &'d Diagnostic, sources: &Sources<'_>) -> Vec<Excerpt<'d>> {
    let places = std::iter::once((&diagnostic.span, AnnotationKind::Primary, None))
        .chain(diagnostic.related.iter().map(|r| (&r.span, AnnotationKind::Context, Some(&*r.message))));
    let mut excerpts: Vec<Excerpt<'d>> = Vec::new();
    for (span, kind, label) in places {
        let Some((source, from)) = sources.find(span.start) else { continue };
        let Some((_, _, lines)) = sources.texts.get(source) else { continue };
        let start = lines.clamp(from);
        let line = lines.index(start);
        // A range over several lines (a table, an array) is marked by its first line.
        let end = from.saturating_add(span.end.saturating_sub(span.start));
        let end = lines.clamp(end).clamp(start, lines.range(line).end.max(start));
        let mark = (start..end, kind, label);
        let near = |e: &&mut Excerpt<'d>| {
            e.source == source
                && line + EXCERPT_GAP_LINES >= e.lines.start
                && line <= e.lines.end.saturating_add(EXCERPT_GAP_LINES)
        };
        match excerpts.iter_mut().find(near) {
            Some(excerpt) => {
                excerpt.lines = excerpt.lines.start.min(line)..excerpt.lines.end.max(line + 1);
                excerpt.marks.push(mark);
            }
            None => excerpts.push(Excerpt { source, lines: line..line + 1, marks: vec![mark] }),
        }
    }
    excerpts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let lines = Lines::new("a\nüb\n");
        assert_eq!(
            [0, 1, 2, 4, 5, 6, 99].map(|at| lines.position(at)),
            [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1), (3, 1)]
        );
        assert_eq!(lines.position(3), (2, 1), "inside a character is at the character");
    }

    #[test]
    fn far_places_get_their_own_excerpt() {
        let text = format!("first = 1\n{}second = 2\n", "\n".repeat(40));
        let at = text.find("second").unwrap_or_default();
        let d = Diagnostic::new(Code::DuplicateName, at..at + 6, "twice").related(0..5, "first here");
        let shown = render(&[d], "f.toml", &text, false);
        assert_eq!(shown.lines().filter(|l| l.contains("f.toml:")).count(), 2, "{shown}");
        assert!(shown.contains(" 1 | first = 1") && shown.contains("42 | second = 2"), "{shown}");
    }

    #[test]
    fn a_long_line_is_not_shown() {
        let text = format!("a = \"{}\"\n", "x".repeat(5000));
        let shown = render(&[Diagnostic::new(Code::BadName, 4..10, "long")], "f.toml", &text, false);
        assert!(shown.len() < 200 && shown.contains("f.toml:1:5"), "{shown}");
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        let table = [
            ("url = \"redis://op:hünter@h:1\" # x@y", "url = \"redis://*********@h:1\" # x@y"),
            ("a://b c@d ://@", "a://b c@d ://@"),
            ("x", "x"),
        ];
        for (text, shown) in table {
            assert_eq!(Shown::new(text).text(), shown);
        }
        let text = "url = \"http://op:secret@h\"\n";
        assert!(!render(&[Diagnostic::new(Code::BadUrl, 6..20, "m")], "f", text, true).contains("secret"));
    }

    #[test]
    fn a_finding_behind_a_password_keeps_its_column() {
        let text = "url = \"redis://über:€@h\" x\n";
        let at = text.find('x').expect("in the text");
        let column = text.chars().position(|c| c == 'x').expect("in the text") + 1;
        let shown = render(&[Diagnostic::new(Code::Syntax, at..at + 1, "m")], "f", text, false);
        assert!(shown.contains(&format!("f:1:{column}\n")), "{shown}");
        assert!(shown.contains("redis://******@h\" x"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_range_can_be_rendered(text in "(\\PC|\n|\r|\t){0,80}", a in 0usize..400, b in 0usize..400, c in 0usize..400) {
            let d = Diagnostic::new(Code::Syntax, a..b, "m").related(c..a, "r").hint("h");
            let shown = render(std::slice::from_ref(&d), "f", &text, false);
            prop_assert!(shown.starts_with("error[syntax]: m"));
            prop_assert_eq!(entries(&[d], "f", &text).len(), 1);
        }
    }
}

//! The shape of a `keepalived.conf`: statements of words, some with a block of statements (keepalived.conf(5)).
//!
//! Refuses to know: what any word means. Invariant: blocks are at most [`DEPTH_MAX`] deep, so that the tree can be walked, and
//! dropped, on any stack.

use super::{Found, ImportError, lines};

/// Blocks within blocks; keepalived's own grammar needs five.
const DEPTH_MAX: usize = 32;

/// Words of one line, and the block behind them.
#[derive(Debug, PartialEq)]
pub(super) struct Statement {
    /// Line, from 1.
    pub line: usize,
    /// At least one.
    pub words: Vec<String>,
    /// The statements between its braces, if it has any.
    pub block: Option<Vec<Statement>>,
}

impl Statement {
    /// The first word.
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The word behind the first.
    pub fn value(&self) -> Option<&str> {
        self.words.get(1).map(String::as_str)
    }

    /// The statements of its block.
    pub fn block(&self) -> &[Self] {
        self.block.as_deref().unwrap_or_default()
    }
}

enum Token {
    Word(String),
    Open,
    Close,
}

/// The statements of a file.
pub(super) fn read(text: &str, found: &mut Found) -> Result<Vec<Statement>, ImportError> {
    // The blocks that are open, the file itself first; each belongs to the last statement of the one before.
    let mut open: Vec<Vec<Statement>> = vec![Vec::new()];
    let mut last_line = 1;
    for line in lines::lines(text, found)? {
        last_line = line.number;
        let mut words: Vec<String> = Vec::new();
        for token in tokens(&line.text) {
            match token {
                Token::Word(word) => words.push(word),
                Token::Open => {
                    finish(&mut open, line.number, &mut words);
                    let last = open.last().and_then(|block| block.last());
                    if last.is_none_or(|statement| statement.block.is_some()) {
                        let message = "a `{` that belongs to nothing".to_owned();
                        let hint = "a block follows its name: `virtual_server 192.0.2.1 80 {`";
                        return Err(ImportError { line: line.number, message, hint });
                    }
                    if open.len() > DEPTH_MAX {
                        let message = format!("more than {DEPTH_MAX} blocks within each other");
                        let hint = "keepalived itself knows no such file: is a `}` missing?";
                        return Err(ImportError { line: line.number, message, hint });
                    }
                    open.push(Vec::new());
                }
                Token::Close => {
                    finish(&mut open, line.number, &mut words);
                    let block = if open.len() > 1 { open.pop() } else { None };
                    let statement = open.last_mut().and_then(|outer| outer.last_mut());
                    let (Some(block), Some(statement)) = (block, statement) else {
                        let message = "a `}` without its `{`".to_owned();
                        return Err(ImportError {
                            line: line.number,
                            message,
                            hint: "`keepalived -t` checks the file",
                        });
                    };
                    statement.block = Some(block);
                }
            }
        }
        finish(&mut open, line.number, &mut words);
    }
    if open.len() > 1 {
        let outer = open.get(open.len() - 2).and_then(|block| block.last());
        let (line, name) = outer.map_or((last_line, ""), |statement| (statement.line, statement.name()));
        let message = format!("the block of `{}` is not closed", super::super::parse::shown(name));
        return Err(ImportError { line, message, hint: "a `}` is missing: `keepalived -t` checks the file" });
    }
    Ok(open.pop().unwrap_or_default())
}

/// Ends the statement that `words` began.
fn finish(open: &mut [Vec<Statement>], line: usize, words: &mut Vec<String>) {
    if let (false, Some(block)) = (words.is_empty(), open.last_mut()) {
        block.push(Statement { line, words: std::mem::take(words), block: None });
    }
}

/// Words and braces of a line. `#` and `!` begin a comment, quotes hold what stands between them, a backslash takes the meaning of the
/// character behind it.
fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (Some(q), c) if q == c => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#' | '!') => break,
            (None, '{' | '}') => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(if c == '{' { Token::Open } else { Token::Close });
            }
            (None, c) if c.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statements as `words{...}`, separated by `;`.
    fn shown(statements: &[Statement]) -> String {
        let one = |s: &Statement| {
            let block = s.block.as_ref().map(|block| format!("{{{}}}", shown(block))).unwrap_or_default();
            format!("{}{block}", s.words.join(","))
        };
        statements.iter().map(one).collect::<Vec<_>>().join(";")
    }

    fn check(text: &str) -> Result<String, usize> {
        read(text, &mut Found::default()).map(|s| shown(&s)).map_err(|error| error.line)
    }

    #[test]
    fn statements_and_blocks() {
        let table = [
            ("", Ok("")),
            ("a b # c\n! d\n e", Ok("a,b;e")),
            ("a b {\n c d\n}\ne", Ok("a,b{c,d};e")),
            ("a\n{\n}\n", Ok("a{}")),
            ("a { b c } d", Ok("a{b,c};d")),
            ("a \"b c\" 'd # e' f\\ g \"\"", Ok("a,b c,d # e,f g,")),
            ("a { b {\n c\n} }\n", Ok("a{b{c}}")),
            ("a {\n", Err(1)),
            ("x\na {\nb\n", Err(2)),
            ("}\n", Err(1)),
            ("\n{\n}", Err(2)),
            ("a { } { }", Err(1)),
        ];
        for (text, expect) in table {
            assert_eq!(check(text), expect.map(str::to_owned), "{text}");
        }
        assert_eq!(check(&"a {".repeat(DEPTH_MAX + 1)), Err(1));
    }
}

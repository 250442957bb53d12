//! Rust source without what is not code.

/// The source with comments, strings and character literals blanked out; lines and columns stay.
///
/// It need not be a whole lexer: a lifetime is told from a character by its missing end quote.
pub(crate) fn code_only(source: &str) -> String {
    let mut code = Code { rest: source, out: String::with_capacity(source.len()) };
    while let Some(first) = code.rest.chars().next() {
        if code.rest.starts_with("//") {
            code.blank(code.rest.find('\n').unwrap_or(code.rest.len()));
        } else if code.rest.starts_with("/*") {
            code.blank(block_comment(code.rest));
        } else if let Some(length) = raw_string(code.rest).filter(|_| !code.after_word()) {
            code.blank(length);
        } else if first == '"' {
            code.blank(string(code.rest));
        } else if let Some(length) = character(code.rest) {
            code.blank(length);
        } else {
            code.keep(first.len_utf8());
        }
    }
    code.out
}

struct Code<'a> {
    rest: &'a str,
    out: String,
}

impl Code<'_> {
    fn blank(&mut self, length: usize) {
        let (gone, rest) = self.rest.split_at(length);
        self.out.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }

    fn keep(&mut self, length: usize) {
        let (kept, rest) = self.rest.split_at(length);
        self.out.push_str(kept);
        self.rest = rest;
    }

    /// Whether the last character belongs to a word: then an `r` goes on with it.
    fn after_word(&self) -> bool {
        self.out.ends_with(is_word)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the block comment at the beginning; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of the raw string at the beginning, if one is there.
fn raw_string(text: &str) -> Option<usize> {
    let after = ["r", "br", "cr"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - body.len();
    Some(body.find(&end).map_or(text.len(), |at| start + at + end.len()))
}

/// Length of the string at the beginning.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the character literal at the beginning, if one is there.
fn character(text: &str) -> Option<usize> {
    let mut rest = text.strip_prefix('\'')?.char_indices();
    let (_, first) = rest.next()?;
    if first == '\\' {
        rest.next()?;
        return rest.find(|(_, c)| *c == '\'').map(|(at, _)| at + 2);
    }
    rest.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 2)
}

/// The words of a line of code, with their byte offsets.
pub(crate) fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    line.split(|c| !is_word(c)).filter_map(move |word| {
        let start = at;
        at += word.len() + line[start + word.len()..].chars().next().map_or(0, char::len_utf8);
        (!word.is_empty()).then_some((start, word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, want: &str) {
        let code = code_only(source);
        assert_eq!(code.split_whitespace().collect::<String>(), want, "{source}");
        let shape = |text: &str| text.lines().map(|line| line.chars().count()).collect::<Vec<_>>();
        assert_eq!(shape(&code), shape(source), "lines and columns of {source}");
    }

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        check("a // unsafe\nb", "ab");
        check("a /* x /* y */ z */ b", "ab");
        check(r#"f("un\"safe") + 1"#, "f()+1");
        check("f(\"two\nlines\", é)", "f(,é)");
        check(r##"f(r#"a"b"#, br"\", x)"##, "f(,,x)");
        check(r"('\'', 'x', '\u{1f600}', b'\\', y)", "(,,,b,y)");
        check("for<'a> fn(&'a str)", "for<'a>fn(&'astr)");
        check("for\"x\" /* open\n", "for");
    }

    #[test]
    fn words_have_their_offsets() {
        let found: Vec<_> = words("mod x_1; é(std::fs)").collect();
        assert_eq!(found, [(0, "mod"), (4, "x_1"), (9, "é"), (12, "std"), (17, "fs")]);
    }
}

//! Splits a template into text and the tokens of its actions.

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Text(String),
    Open,
    Close,
    /// An identifier, keyword or function.
    Word(String),
    /// `.a` behind nothing or space: a field of dot.
    Field(String),
    /// `.a` right behind an operand.
    Chain(String),
    Variable(String),
    Dot,
    Str(String),
    Int(i64),
    Float(f64),
    Pipe,
    Declare,
    Assign,
    Comma,
    Left,
    /// A closing parenthesis.
    Right,
    Eof,
}

pub(crate) type Lexed = Vec<(usize, Token)>;
type Failed = (usize, String);

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    out: Lexed,
}

/// Splits a whole template.
pub(crate) fn lex(text: &str) -> Result<Lexed, Failed> {
    let mut l = Lexer { text, at: 0, line: 1, out: Vec::new() };
    let mut trim_next = false;
    loop {
        let rest = l.rest();
        let open = rest.find("{{").unwrap_or(rest.len());
        let (mut plain, action) = rest.split_at(open);
        if trim_next {
            plain = plain.trim_start_matches([' ', '\t', '\r', '\n']);
        }
        // `{{- ` trims what is before; the space belongs to it.
        let trims = action.starts_with("{{-") && action.get(3..4).is_some_and(is_space);
        let kept = if trims { plain.trim_end_matches([' ', '\t', '\r', '\n']) } else { plain };
        if !kept.is_empty() {
            l.out.push((l.line, Token::Text(kept.to_owned())));
        }
        l.advance(open);
        if action.is_empty() {
            l.out.push((l.line, Token::Eof));
            return Ok(l.out);
        }
        l.advance(if trims { 3 } else { 2 });
        trim_next = l.action()?;
    }
}

fn is_space(s: &str) -> bool {
    matches!(s, " " | "\t" | "\r" | "\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn advance(&mut self, n: usize) {
        let passed = self.rest().get(..n).unwrap_or_default();
        self.line += passed.matches('\n').count();
        self.at += n;
    }

    fn push(&mut self, token: Token, n: usize) {
        self.out.push((self.line, token));
        self.advance(n);
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Failed> {
        Err((self.line, message.into()))
    }

    /// Reads up to the end of an action; returns whether it trims what follows.
    fn action(&mut self) -> Result<bool, Failed> {
        let trimmed = self.rest().trim_start();
        if trimmed.starts_with("/*") {
            self.advance(self.rest().len() - trimmed.len());
            let Some(end) = self.rest().find("*/") else { return self.fail("unclosed comment") };
            self.advance(end + 2);
            let rest = self.rest();
            let tail = rest.trim_start();
            let (n, trims) = if let Some(t) = tail.strip_prefix("-}}") {
                (rest.len() - t.len(), true)
            } else if let Some(t) = rest.strip_prefix("}}") {
                (rest.len() - t.len(), false)
            } else {
                return self.fail("comment ends before closing delimiter");
            };
            self.advance(n);
            return Ok(trims);
        }
        self.push(Token::Open, 0);
        let mut spaced = true;
        loop {
            let rest = self.rest();
            let Some(c) = rest.chars().next() else { return self.fail("unclosed action") };
            if rest.starts_with("}}") {
                self.push(Token::Close, 2);
                return Ok(false);
            }
            if c.is_whitespace() {
                let n = rest.len() - rest.trim_start().len();
                if rest.get(n..).is_some_and(|r| r.starts_with("-}}")) {
                    self.push(Token::Close, n + 3);
                    return Ok(true);
                }
                self.advance(n);
                spaced = true;
                continue;
            }
            self.token(rest, c, spaced)?;
            spaced = false;
        }
    }

    fn token(&mut self, rest: &str, c: char, spaced: bool) -> Result<(), Failed> {
        let word_len = |s: &str| s.find(|c| !is_word(c)).unwrap_or(s.len());
        let second = rest.chars().nth(1);
        match c {
            '"' | '`' | '\'' => return self.quoted(rest, c),
            '|' => self.push(Token::Pipe, 1),
            ',' => self.push(Token::Comma, 1),
            '(' => self.push(Token::Left, 1),
            ')' => self.push(Token::Right, 1),
            '=' => self.push(Token::Assign, 1),
            ':' if second == Some('=') => self.push(Token::Declare, 2),
            '.' if !second.is_some_and(|d| d.is_ascii_digit()) => {
                let name = rest.get(1..).unwrap_or_default();
                let n = word_len(name);
                let name = name.get(..n).unwrap_or_default().to_owned();
                let token = match (name.is_empty(), spaced) {
                    (true, _) => Token::Dot,
                    (false, true) => Token::Field(name),
                    (false, false) if self.follows_operand() => Token::Chain(name),
                    (false, false) => Token::Field(name),
                };
                self.push(token, n + 1);
            }
            '$' => {
                let n = word_len(rest.get(1..).unwrap_or_default());
                let name = rest.get(..=n).unwrap_or_default().to_owned();
                self.push(Token::Variable(name), n + 1);
            }
            _ if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => return self.number(rest),
            _ if is_word(c) => {
                let n = word_len(rest);
                self.push(Token::Word(rest.get(..n).unwrap_or_default().to_owned()), n);
            }
            _ => return self.fail(format!("unexpected {c:?} in command")),
        }
        Ok(())
    }

    fn follows_operand(&self) -> bool {
        matches!(
            self.out.last(),
            Some((
                _,
                Token::Field(_)
                    | Token::Chain(_)
                    | Token::Variable(_)
                    | Token::Right
                    | Token::Word(_)
                    | Token::Dot
            ))
        )
    }

    fn number(&mut self, rest: &str) -> Result<(), Failed> {
        let signed = rest.strip_prefix(['+', '-']).unwrap_or(rest);
        let hex = signed.starts_with("0x") || signed.starts_with("0X");
        let mut end = rest.len() - signed.len();
        let mut before = ' ';
        for c in signed.chars() {
            let in_exponent = matches!(c, '+' | '-') && matches!(before, 'e' | 'E') && !hex;
            if !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || in_exponent) {
                break;
            }
            before = c;
            end += c.len_utf8();
        }
        let text = rest.get(..end).unwrap_or_default();
        let clean = text.replace('_', "");
        let digits = clean.trim_start_matches(['+', '-']);
        let negative = clean.starts_with('-');
        let token = if let Some(h) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            i64::from_str_radix(h, 16).ok().map(|i| Token::Int(if negative { -i } else { i }))
        } else if let Ok(i) = clean.parse::<i64>() {
            Some(Token::Int(i))
        } else {
            clean.parse::<f64>().ok().map(Token::Float)
        };
        match token {
            Some(t) => {
                self.push(t, end);
                Ok(())
            }
            None => self.fail(format!("bad number syntax: {text:?}")),
        }
    }

    fn quoted(&mut self, rest: &str, quote: char) -> Result<(), Failed> {
        let mut out = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            if c == quote {
                let token = if quote == '\'' {
                    Token::Int(out.chars().next().map_or(0, |c| i64::from(c as u32)))
                } else {
                    Token::Str(out)
                };
                self.push(token, i + 1);
                return Ok(());
            }
            if quote == '`' || c != '\\' {
                if c == '\n' && quote != '`' {
                    break;
                }
                out.push(c);
                continue;
            }
            let Some((_, e)) = chars.next() else { break };
            let digits = |n: usize, radix| {
                let text = rest.get(i + 2..i + 2 + n).unwrap_or_default();
                u32::from_str_radix(text, radix).ok().and_then(char::from_u32)
            };
            let (decoded, skip) = match e {
                'n' => (Some('\n'), 0),
                't' => (Some('\t'), 0),
                'r' => (Some('\r'), 0),
                'a' => (Some('\u{7}'), 0),
                'b' => (Some('\u{8}'), 0),
                'f' => (Some('\u{c}'), 0),
                'v' => (Some('\u{b}'), 0),
                '\\' | '"' | '\'' => (Some(e), 0),
                'x' => (digits(2, 16), 2),
                'u' => (digits(4, 16), 4),
                'U' => (digits(8, 16), 8),
                _ => (None, 0),
            };
            let Some(decoded) = decoded else {
                return self.fail("invalid escape in quoted string");
            };
            out.push(decoded);
            for _ in 0..skip {
                chars.next();
            }
        }
        self.fail(if quote == '`' {
            "unterminated raw quoted string"
        } else {
            "unterminated quoted string"
        })
    }
}

//! Parameters of a URL: `?NAME=VALUE&...`, with `%XX` for special characters in values.

use std::fmt;
use std::path::PathBuf;

use crate::fault::{Fault, Result};

/// Longest value, bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// What was given, each name at most once and one of the legal ones.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str, legal: &[&str]) -> Result<Self> {
        let mut given: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !legal.contains(&name) {
                let legal = legal.join(", ");
                let message = format!("{name:?} is no parameter; legal are {legal}");
                return Err(Fault::invalid(message));
            }
            if given.iter().any(|(earlier, _)| earlier == name) {
                return Err(Fault::invalid(format!("{name} is given twice")));
            }
            let fine = decode(value).filter(|value| (1..=MAX_VALUE_BYTES).contains(&value.len()));
            let fine = fine.filter(|value| !value.chars().any(char::is_control));
            let wrong = || {
                let message = format!("{name}={value}: it has no value, or one of odd characters");
                Fault::invalid(message)
            };
            given.push((name.to_owned(), fine.ok_or_else(wrong)?));
        }
        Ok(Self(given))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }
}

/// `None` for what is no UTF-8 with `%XX`.
fn decode(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        match (first, after) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let byte = digit(*high)? * 16 + digit(*low)?;
                bytes.push(u8::try_from(byte).ok()?);
                rest = tail;
            }
            (b'%', _) => return None,
            (byte, _) => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Writes the parameters that there are.
pub(super) fn write(
    f: &mut fmt::Formatter<'_>,
    given: impl IntoIterator<Item = (&'static str, Option<String>)>,
) -> fmt::Result {
    let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
    for (n, (name, value)) in given.enumerate() {
        write!(f, "{}{name}=", if n == 0 { '?' } else { '&' })?;
        for byte in value.bytes() {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => write!(f, "{}", char::from(byte))?,
                b'-' | b'_' | b'.' | b'/' | b':' | b'[' | b']' => {
                    write!(f, "{}", char::from(byte))?;
                }
                byte => write!(f, "%{byte:02X}")?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_checked() {
        let query = Query::parse("a=1&b=%2Fx%20y", &["a", "b", "c"]).unwrap();
        assert_eq!(
            (query.get("a"), query.get("b"), query.get("c")),
            (Some("1"), Some("/x y"), None)
        );
        for text in ["d=1", "a=1&a=2", "a", "a=", "a=%4", "a=%zz", "a=%ff", "a=%00"] {
            assert!(Query::parse(text, &["a"]).is_err(), "{text}");
        }
    }
}

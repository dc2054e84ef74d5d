//! From typed values to checked ones: each value against its [`Field`], then the whole against itself.
//!
//! Every message names the file, the key, the value and what is legal. The effective value of every key is recorded on the
//! way, so that what is shown and compared is what was checked.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::ByteCount;

use super::field::{Field, Legal, Preset};
use super::size;

/// The effective value of one key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `vpool`, `vdisk.NAME`, ...
    pub section: String,
    pub field: &'static Field,
    /// As the file would have it (TOML).
    pub value: String,
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File,
    CommandLine,
}

/// Checks one file's values.
pub struct Checker<'a> {
    /// The file as the user named it.
    pub file: &'a str,
    pub entries: Vec<Entry>,
}

impl Checker<'_> {
    /// A number (bytes, ms, count, percent).
    pub fn number(
        &mut self,
        field: &'static Field,
        section: &str,
        typed: Option<Value>,
    ) -> Result<u64> {
        let Preset::Number(default) = field.default else {
            return Err(Fault::bug(format!("{} has no default number", field.key)));
        };
        self.number_or(field, section, typed, default)
    }

    /// A number whose default depends on something else.
    pub fn number_or(
        &mut self,
        field: &'static Field,
        section: &str,
        typed: Option<Value>,
        default: u64,
    ) -> Result<u64> {
        let Some(typed) = typed else {
            self.record(field, section, written(field, default), Origin::Default);
            return Ok(default);
        };
        let number = self.read_number(field, section, &typed)?;
        self.record(field, section, written(field, number), Origin::File);
        Ok(number)
    }

    fn read_number(&self, field: &'static Field, section: &str, typed: &Value) -> Result<u64> {
        let (span, number) = match (&field.legal, typed) {
            (Legal::Bytes(span), Value::String(text)) => {
                (span, size::parse(text).ok().map(|size| size.0))
            }
            (
                Legal::Bytes(span)
                | Legal::Millis(span)
                | Legal::Count(span)
                | Legal::Percent(span),
                Value::Integer(number),
            ) => (span, u64::try_from(*number).ok()),
            _ => return Err(self.illegal(field, section, typed, None)),
        };
        number.filter(|n| span.allows(*n)).ok_or_else(|| self.illegal(field, section, typed, None))
    }

    /// One of a few names.
    pub fn choice<T: Copy>(
        &mut self,
        field: &'static Field,
        section: &str,
        typed: Option<Value>,
        (default, choices): (T, &[(&str, T)]),
    ) -> Result<T> {
        let Some(typed) = typed else {
            self.record(field, section, format!("{:?}", field.default_text()), Origin::Default);
            return Ok(default);
        };
        let chosen = choices.iter().find(|(name, _)| typed.as_str() == Some(name));
        let (name, value) = chosen.ok_or_else(|| self.illegal(field, section, &typed, None))?;
        self.record(field, section, format!("{name:?}"), Origin::File);
        Ok(*value)
    }

    /// A text that is read further, when there is one.
    pub fn text<T: FromStr<Err = Fault>>(
        &mut self,
        field: &'static Field,
        section: &str,
        typed: Option<Value>,
    ) -> Result<Option<T>> {
        let Some(typed) = typed else { return Ok(None) };
        let Some(text) = typed.as_str() else {
            return Err(self.illegal(field, section, &typed, None));
        };
        let value = text.parse().map_err(|why| self.illegal(field, section, &typed, Some(why)))?;
        Ok(Some(value))
    }

    /// A path; a relative one counts from `directory`.
    pub fn path(
        &mut self,
        field: &'static Field,
        section: &str,
        typed: Option<Value>,
        directory: &Path,
    ) -> Result<Option<PathBuf>> {
        let Some(typed) = typed else { return Ok(None) };
        match typed.as_str() {
            Some(text) if !text.is_empty() && !text.contains('\0') => {
                let path = directory.join(text);
                self.record(field, section, quoted(&path.display().to_string()), Origin::File);
                Ok(Some(path))
            }
            _ => Err(self.illegal(field, section, &typed, None)),
        }
    }

    pub fn record(&mut self, field: &'static Field, section: &str, value: String, origin: Origin) {
        self.entries.push(Entry { section: section.to_owned(), field, value, origin });
    }

    /// The message for a value that its field does not allow.
    pub fn illegal(
        &self,
        field: &Field,
        section: &str,
        typed: &Value,
        why: Option<Fault>,
    ) -> Fault {
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        Fault::invalid(format!(
            "{}: [{section}] {} = {typed}: not legal{why}, it must be {}",
            self.file, field.key, field.legal
        ))
    }

    /// The message for a value that does not go with another one.
    pub fn conflict(
        &self,
        field: &Field,
        section: &str,
        value: impl std::fmt::Display,
        why: &str,
    ) -> Fault {
        Fault::invalid(format!("{}: [{section}] {} = {value}: {why}", self.file, field.key))
    }
}

fn written(field: &Field, number: u64) -> String {
    match field.legal {
        Legal::Bytes(_) => quoted(&size::exact(ByteCount(number))),
        _ => number.to_string(),
    }
}

/// A text as TOML writes it.
pub fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

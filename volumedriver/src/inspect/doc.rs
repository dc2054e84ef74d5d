//! A result as a tree that prints both ways: for people, and as one JSON document.

use std::io::{ErrorKind, Write};

use serde_json::{Map, Value};
use volumedriver_core::fault::{Fault, Result};

use super::table::{Align, Table};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Human,
    Json,
}

/// One result in both forms.
#[derive(Debug)]
pub struct Report {
    pub human: String,
    pub json: Value,
}

impl Report {
    /// The one place that writes to stdout. A reader that went away is not an error.
    pub fn print(&self, form: Form) -> Result<()> {
        let text = match form {
            Form::Human => self.human.clone(),
            Form::Json => format!("{:#}\n", self.json),
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(Fault::unavailable("cannot write to stdout").because(e))
            }
            _ => Ok(()),
        }
    }
}

/// What was found, in the order in which a person wants to read it.
#[derive(Debug)]
pub enum Doc {
    Scalar(Value),
    Fields(Vec<(&'static str, Doc)>),
    Rows(Rows),
}

/// Things of the same kind.
#[derive(Debug)]
pub struct Rows {
    pub columns: &'static [&'static str],
    pub rows: Vec<Vec<Value>>,
}

impl<T: Into<Value>> From<T> for Doc {
    fn from(value: T) -> Self {
        Self::Scalar(value.into())
    }
}

impl Doc {
    #[must_use]
    pub fn report(&self) -> Report {
        let mut human = String::new();
        self.render(0, &mut human);
        Report { human, json: self.json() }
    }

    #[must_use]
    pub fn json(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::Fields(fields) => {
                let pairs = fields.iter().map(|(name, doc)| ((*name).to_owned(), doc.json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
            Self::Rows(rows) => rows.json(),
        }
    }

    fn render(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        match self {
            Self::Scalar(value) => out.push_str(&format!("{indent}{}\n", plain(value))),
            Self::Rows(rows) => {
                rows.table().lines().for_each(|line| out.push_str(&format!("{indent}{line}\n")));
            }
            Self::Fields(fields) => render_fields(fields, depth, out),
        }
    }
}

fn render_fields(fields: &[(&'static str, Doc)], depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let names = fields.iter().filter(|(_, doc)| matches!(doc, Doc::Scalar(_)));
    let width = names.map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    for (name, doc) in fields {
        match doc {
            Doc::Scalar(value) => {
                let name = format!("{name}:");
                out.push_str(&format!("{indent}{name:<width$} {}\n", plain(value)));
            }
            Doc::Rows(rows) if rows.rows.is_empty() => {
                out.push_str(&format!("{indent}{name}: none\n"))
            }
            Doc::Rows(_) | Doc::Fields(_) => {
                out.push_str(&format!("{indent}{name}:\n"));
                doc.render(depth + 1, out);
            }
        }
    }
}

impl Rows {
    fn json(&self) -> Value {
        let object = |row: &Vec<Value>| {
            let pairs = self.columns.iter().zip(row);
            pairs.map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Map<_, _>>()
        };
        self.rows.iter().map(|row| Value::Object(object(row))).collect()
    }

    fn table(&self) -> String {
        let numeric = |column: usize| {
            self.rows.iter().all(|row| row.get(column).is_some_and(Value::is_number))
        };
        let align = |column| if numeric(column) { Align::Right } else { Align::Left };
        let columns: Vec<_> =
            self.columns.iter().enumerate().map(|(n, name)| (*name, align(n))).collect();
        let mut table = Table::new(&columns);
        self.rows.iter().for_each(|row| table.row(row.iter().map(plain).collect()));
        table.render()
    }
}

/// A value without JSON's quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
